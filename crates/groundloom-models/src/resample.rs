//! Resizing of grids of vectors, as torch's `interpolate` does, with `align_corners=False` where nothing else is said.

use candle_core::{Result, Tensor};

use crate::layers::with_values;

/// Where one output value comes from: places of the input and their weights.
type Taps = Vec<(usize, f32)>;

/// `[from.0 · from.1, width]` → `[to.0 · to.1, width]`, by Keys' cubic with a = −0.75 and edges repeated: torch's
/// `bicubic` without antialiasing.
pub(crate) fn bicubic(grid: &Tensor, from: [usize; 2], to: [usize; 2]) -> Result<Tensor> {
    separable(grid, from, to, |from, to, i| cubic_taps(from, (i as f32 + 0.5) * (from as f32 / to as f32) - 0.5))
}

/// As [`bicubic`], the first and the last vectors staying where they are: `align_corners=True`.
pub(crate) fn bicubic_aligned(grid: &Tensor, from: [usize; 2], to: [usize; 2]) -> Result<Tensor> {
    separable(grid, from, to, |from, to, i| cubic_taps(from, i as f32 * ((from - 1) as f32 / (to.max(2) - 1) as f32)))
}

/// The four of `from` values around `place`.
fn cubic_taps(from: usize, place: f32) -> Taps {
    let start = place.floor();
    let t = place - start;
    let at = |offset: i64| (start as i64 + offset).clamp(0, from as i64 - 1) as usize;
    vec![(at(-1), cubic(t + 1.0)), (at(0), cubic(t)), (at(1), cubic(1.0 - t)), (at(2), cubic(2.0 - t))]
}

/// As [`bicubic`], linear: torch's `bilinear` without antialiasing.
pub(crate) fn bilinear(grid: &Tensor, from: [usize; 2], to: [usize; 2]) -> Result<Tensor> {
    separable(grid, from, to, |from, to, i| {
        let place = ((i as f32 + 0.5) * (from as f32 / to as f32) - 0.5).max(0.0);
        let start = (place as usize).min(from - 1);
        let t = place - start as f32;
        vec![(start, 1.0 - t), ((start + 1).min(from - 1), t)]
    })
}

/// As [`bicubic`], linear and antialiased: torch's `bilinear` with `antialias=True`. The triangle is as wide as the
/// step where the grid shrinks, and cut at the edges.
pub(crate) fn bilinear_antialiased(grid: &Tensor, from: [usize; 2], to: [usize; 2]) -> Result<Tensor> {
    separable(grid, from, to, |from, to, i| {
        let step = from as f32 / to as f32;
        let reach = step.max(1.0);
        let centre = step * (i as f32 + 0.5);
        let first = (centre - reach + 0.5).max(0.0) as usize;
        let last = ((centre + reach + 0.5) as usize).min(from);
        let weight = |j: usize| (1.0 - ((j as f32 - centre + 0.5) / reach).abs()).max(0.0);
        let sum: f32 = (first..last).map(weight).sum();
        (first..last).map(|j| (j, weight(j) / sum)).collect()
    })
}

/// Keys' kernel with a = −0.75 at a distance of `x` ≤ 2 (Keys, "Cubic Convolution Interpolation", 1981).
fn cubic(x: f32) -> f32 {
    const A: f32 = -0.75;
    if x <= 1.0 { ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0 } else { ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A }
}

/// Along each axis by itself; `taps(from, to, i)` says where the `i`th of `to` values comes from.
fn separable(
    grid: &Tensor,
    from: [usize; 2],
    to: [usize; 2],
    taps: impl Fn(usize, usize, usize) -> Taps,
) -> Result<Tensor> {
    let width = grid.dim(1)?;
    let [down, across] = [0, 1].map(|axis| (0..to[axis]).map(|i| taps(from[axis], to[axis], i)).collect::<Vec<_>>());
    let mut out = vec![0.0; to[0] * to[1] * width];
    with_values(grid, |grid| {
        let mut lines = vec![0.0; from[0] * to[1] * width];
        for (line, out) in grid.chunks(from[1] * width).zip(lines.chunks_mut(to[1] * width)) {
            for (taps, out) in across.iter().zip(out.chunks_mut(width)) {
                blend(taps, |j| &line[j * width..][..width], out);
            }
        }
        for (taps, out) in down.iter().zip(out.chunks_mut(to[1] * width)) {
            blend(taps, |j| &lines[j * to[1] * width..][..to[1] * width], out);
        }
        Ok(())
    })?;
    Tensor::from_vec(out, (to[0] * to[1], width), grid.device())
}

/// The weighted sum of rows.
fn blend<'a>(taps: &Taps, row: impl Fn(usize) -> &'a [f32], out: &mut [f32]) {
    for &(j, weight) in taps {
        out.iter_mut().zip(row(j)).for_each(|(sum, x)| *sum += weight * x);
    }
}
