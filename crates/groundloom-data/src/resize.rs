//! Resizing that equals Pillow's to the byte.
//!
//! The reference is Pillow 13's `Image.resize` for 8-bit images (`src/libImaging/Resample.c`): antialiased (a filter's support grows with the downscale), weights in
//! 22-bit fixed point, one pass along x and one along y, and a rounding to 8 bits between the two. Models that were trained behind Pillow see exactly the pixels that
//! they were trained on. The pass along x comes first, except where the height shrinks by more than twice as many pixels as the width; Pillow before 13 knew no such
//! exception (and 12.2 another), so that last bits differ there.

use image::RgbImage;

/// How neighbouring pixels are weighted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Filter {
    /// Mean of the covered pixels; Pillow's `BOX`.
    Box,
    /// Triangle, support 1; Pillow's `BILINEAR`.
    Bilinear,
    /// Keys' cubic with a = -0.5, support 2; Pillow's `BICUBIC`.
    Bicubic,
    /// Lanczos-3, support 3; Pillow's `LANCZOS`.
    Lanczos,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Box => 0.5,
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Box => {
                if x > -0.5 && x <= 0.5 {
                    1.0
                } else {
                    0.0
                }
            }
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Bicubic => {
                const A: f64 = -0.5;
                let x = x.abs();
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
            Self::Lanczos => {
                if (-3.0..3.0).contains(&x) {
                    sinc(x) * sinc(x / 3.0)
                } else {
                    0.0
                }
            }
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

/// Bits after the point of a weight: 32, less 8 of the sample, less 2 for sums above 1 and the sign.
const PRECISION: u32 = 22;
const HALF: i32 = 1 << (PRECISION - 1);

/// The weights of one output position: input positions `first..first + weights.len()`.
#[derive(Debug, Clone, Copy)]
struct Taps<'a> {
    first: usize,
    weights: &'a [i32],
}

/// The weights of every output position along one axis.
#[derive(Debug)]
struct Axis {
    input: usize,
    bounds: Vec<(usize, usize)>,
    weights: Vec<i32>,
    stride: usize,
}

impl Axis {
    fn new(input: u32, output: u32, filter: Filter) -> Self {
        let scale = f64::from(input) / f64::from(output);
        let widened = scale.max(1.0);
        let support = filter.support() * widened;
        let stride = support.ceil() as usize * 2 + 1;
        let mut bounds = Vec::with_capacity(output as usize);
        let mut weights = vec![0; stride * output as usize];
        let mut exact = vec![0.0; stride];
        for position in 0..output {
            let center = (f64::from(position) + 0.5) * scale;
            // Casts truncate towards zero, as C's do.
            let first = ((center - support + 0.5) as i64).max(0) as usize;
            let last = ((center + support + 0.5) as i64).clamp(0, i64::from(input)) as usize;
            let count = last.saturating_sub(first).min(stride);
            let mut sum = 0.0;
            for (i, w) in exact[..count].iter_mut().enumerate() {
                *w = filter.weight(((first + i) as f64 - center + 0.5) * (1.0 / widened));
                sum += *w;
            }
            let fixed = &mut weights[position as usize * stride..][..count];
            for (fixed, &w) in fixed.iter_mut().zip(&exact) {
                let w = if sum == 0.0 { w } else { w / sum };
                *fixed = (w * f64::from(1u32 << PRECISION) + if w < 0.0 { -0.5 } else { 0.5 }) as i32;
            }
            bounds.push((first, count));
        }
        Self { input: input as usize, bounds, weights, stride }
    }

    fn taps(&self, position: usize) -> Taps<'_> {
        let (first, count) = self.bounds[position];
        Taps { first, weights: &self.weights[position * self.stride..][..count] }
    }

    /// The input positions that any output position needs.
    fn needed(&self) -> std::ops::Range<usize> {
        let first = self.bounds.first().map_or(0, |b| b.0);
        let last = self.bounds.last().map_or(0, |b| b.0 + b.1);
        first..last
    }
}

/// Resizes an image to `width` x `height` pixels (each at least 1; 0 is taken as 1). Equals Pillow's `image.resize((width, height), filter)` to the byte.
pub fn resize(image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    let (width, height) = (width.max(1), height.max(1));
    if image.width() == 0 || image.height() == 0 {
        return RgbImage::new(width, height);
    }
    let (from_width, from_height) = image.dimensions();
    let horizontal = (width != from_width).then(|| Axis::new(from_width, width, filter));
    let vertical = (height != from_height).then(|| Axis::new(from_height, height, filter));
    let samples = image.as_raw();
    let samples = match (horizontal, vertical) {
        (None, None) => return image.clone(),
        (Some(x), None) => across(samples, 0..from_height as usize, &x),
        (None, Some(y)) => down(samples, width, 0, &y),
        (Some(x), Some(y)) if shrinks_more_in_height(image.dimensions(), (width, height)) => {
            across(&down(samples, from_width, 0, &y), 0..height as usize, &x)
        }
        (Some(x), Some(y)) => {
            let rows = y.needed();
            down(&across(samples, rows.clone(), &x), width, rows.start, &y)
        }
    };
    RgbImage::from_raw(width, height, samples).unwrap_or_else(|| RgbImage::new(width, height))
}

/// When Pillow 13 resizes columns before rows.
fn shrinks_more_in_height(from: (u32, u32), to: (u32, u32)) -> bool {
    from.1.saturating_sub(to.1) > from.0.saturating_sub(to.0).saturating_mul(2)
}

/// Resizes the given rows along x. Returns rows of three samples per output position.
fn across(samples: &[u8], rows: std::ops::Range<usize>, axis: &Axis) -> Vec<u8> {
    let stride = axis.input * 3;
    let width = axis.bounds.len() * 3;
    let mut out = vec![0; width * rows.len()];
    for (to, row) in out.chunks_exact_mut(width).zip(rows) {
        let from = &samples[row * stride..][..stride];
        for (position, pixel) in to.chunks_exact_mut(3).enumerate() {
            let taps = axis.taps(position);
            let mut sums = [HALF; 3];
            for (p, &w) in from[taps.first * 3..].chunks_exact(3).zip(taps.weights) {
                for (sum, &sample) in sums.iter_mut().zip(p) {
                    *sum += i32::from(sample) * w;
                }
            }
            for (sample, sum) in pixel.iter_mut().zip(sums) {
                *sample = rounded(sum);
            }
        }
    }
    out
}

/// Samples whose sums are kept in registers at once.
const BLOCK: usize = 32;

/// Resizes rows of `width` pixels along y; `samples` begins with input row `first`.
fn down(samples: &[u8], width: u32, first: usize, axis: &Axis) -> Vec<u8> {
    let stride = width as usize * 3;
    let mut out = vec![0; stride * axis.bounds.len()];
    for (position, to) in out.chunks_exact_mut(stride).enumerate() {
        let taps = axis.taps(position);
        let from = &samples[(taps.first - first) * stride..];
        for (block, to) in to.chunks_mut(BLOCK).enumerate() {
            let mut sums = [HALF; BLOCK];
            for (row, &w) in from.chunks_exact(stride).zip(taps.weights) {
                for (sum, &sample) in sums.iter_mut().zip(&row[block * BLOCK..][..to.len()]) {
                    *sum += i32::from(sample) * w;
                }
            }
            for (sample, sum) in to.iter_mut().zip(sums) {
                *sample = rounded(sum);
            }
        }
    }
    out
}

fn rounded(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}
