//! Distances from one query to the nodes of a segment, over stored vectors or their codes.

use pulp::Simd;

use crate::{beam::Neighbour, kernels};

/// Distances from a fixed query. Smaller is closer; a node past the end is infinitely far.
pub(crate) trait Space {
    fn distance<S: Simd>(&self, simd: S, node: u32) -> f32;
    fn prefetch(&self, node: u32);
}

/// The values of `node` among rows of `stride` values each.
#[inline(always)]
pub(crate) fn row<T>(values: &[T], stride: usize, node: u32) -> &[T] {
    let start = node as usize * stride;
    values.get(start..start + stride).unwrap_or_default()
}

/// f32 vectors as they were given (unit length for cosine).
#[derive(Clone, Copy)]
pub(crate) struct FloatSpace<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) stride: usize,
    pub(crate) query: &'a [f32],
    pub(crate) l2: bool,
}

impl FloatSpace<'_> {
    /// The distance between two nodes.
    #[inline(always)]
    pub(crate) fn between<S: Simd>(&self, simd: S, a: u32, b: u32) -> f32 {
        self.pair(simd, row(self.values, self.stride, a), row(self.values, self.stride, b))
    }

    /// Replaces distances of codes by those of the vectors; the order is lost.
    #[inline(always)]
    pub(crate) fn rescore<S: Simd>(&self, simd: S, found: &mut [Neighbour]) {
        for i in 0..found.len() {
            if let Some(next) = found.get(i + 1) {
                self.prefetch(next.node());
            }
            let node = found[i].node();
            found[i] = Neighbour::new(self.distance(simd, node), node);
        }
    }

    #[inline(always)]
    fn pair<S: Simd>(&self, simd: S, a: &[f32], b: &[f32]) -> f32 {
        if self.l2 { kernels::squared_distance(simd, a, b) } else { -kernels::dot(simd, a, b) }
    }
}

impl Space for FloatSpace<'_> {
    #[inline(always)]
    fn distance<S: Simd>(&self, simd: S, node: u32) -> f32 {
        self.pair(simd, self.query, row(self.values, self.stride, node))
    }

    #[inline(always)]
    fn prefetch(&self, node: u32) {
        kernels::prefetch(row(self.values, self.stride, node));
    }
}

/// Bytes on one scale for the whole segment. Distances are in code units: their order is what counts.
#[derive(Clone, Copy)]
pub(crate) struct ByteSpace<'a> {
    pub(crate) codes: &'a [i8],
    pub(crate) stride: usize,
    pub(crate) query: &'a [i8],
    pub(crate) l2: bool,
}

impl Space for ByteSpace<'_> {
    #[inline(always)]
    fn distance<S: Simd>(&self, _simd: S, node: u32) -> f32 {
        let code = row(self.codes, self.stride, node);
        // Both sums stay below 2^24 · dims / 260: the order of rounded sums is still an order.
        if self.l2 {
            kernels::squared_distance_i8(self.query, code) as f32
        } else {
            -(kernels::dot_i8(self.query, code) as f32)
        }
    }

    #[inline(always)]
    fn prefetch(&self, node: u32) {
        kernels::prefetch(row(self.codes, self.stride, node));
    }
}

/// One bit a dimension: whether the value lies above the segment's mean. The distance is the number of differing bits.
#[derive(Clone, Copy)]
pub(crate) struct BitSpace<'a> {
    pub(crate) codes: &'a [u64],
    pub(crate) stride: usize,
    pub(crate) query: &'a [u64],
}

impl Space for BitSpace<'_> {
    #[inline(always)]
    fn distance<S: Simd>(&self, _simd: S, node: u32) -> f32 {
        kernels::hamming(self.query, row(self.codes, self.stride, node)) as f32
    }

    #[inline(always)]
    fn prefetch(&self, node: u32) {
        kernels::prefetch(row(self.codes, self.stride, node));
    }
}
