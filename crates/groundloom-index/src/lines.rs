//! f32 rows that start on cache lines.

use bytemuck::{Pod, Zeroable};

/// f32 values of a cache line; rows are padded with zeros to a multiple of it.
pub(crate) const LANES: usize = 16;

/// A cache line.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// Rows of f32 values, each padded with zeros to whole cache lines.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rows {
    lines: Vec<Line>,
    per_row: usize,
}

/// Values of a padded row of `dims` values.
pub(crate) fn padded(dims: usize) -> usize {
    dims.next_multiple_of(LANES)
}

impl Rows {
    /// No rows, of `dims` values each.
    pub(crate) fn new(dims: usize) -> Self {
        Self { lines: Vec::new(), per_row: padded(dims) / LANES }
    }

    /// `rows` rows of zeros, of `dims` values each.
    pub(crate) fn zeros(rows: usize, dims: usize) -> Self {
        let per_row = padded(dims) / LANES;
        Self { lines: vec![Line([0.0; LANES]); rows * per_row], per_row }
    }

    /// Appends a row; what `row` lacks is zero.
    pub(crate) fn push(&mut self, row: &[f32]) {
        let start = self.lines.len();
        self.lines.resize(start + self.per_row, Line([0.0; LANES]));
        bytemuck::cast_slice_mut::<Line, f32>(&mut self.lines[start..])[..row.len()].copy_from_slice(row);
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.lines.len() / self.per_row.max(1)
    }

    /// Values of a row, with padding.
    pub(crate) fn stride(&self) -> usize {
        self.per_row * LANES
    }

    /// All values.
    pub(crate) fn values(&self) -> &[f32] {
        bytemuck::cast_slice(&self.lines)
    }

    /// One row with its padding.
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.values()[row * self.stride()..][..self.stride()]
    }

    /// One row with its padding.
    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        let stride = self.stride();
        &mut bytemuck::cast_slice_mut::<Line, f32>(&mut self.lines)[row * stride..][..stride]
    }
}
