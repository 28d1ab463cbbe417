//! 3×3 depthwise convolution with bias and ReLU6, a line at a time.

use pulp::{Simd, WithSimd};

use super::{Aligned, Isa};

/// Output pixels computed together: their input columns overlap and are read once.
const TOGETHER: usize = 4;

/// One 3×3 filter per channel, and a bias.
#[derive(Debug)]
pub(crate) struct Depthwise {
    channels: usize,
    /// `[3, 3, channels]`.
    taps: Aligned,
    bias: Aligned,
}

impl Depthwise {
    /// `taps` is `[3, 3, channels]`, `bias` `[channels]`; channels a multiple of 16.
    pub(crate) fn pack(taps: &[f32], bias: &[f32]) -> Self {
        Self { channels: bias.len(), taps: Aligned::copy_of(taps), bias: Aligned::copy_of(bias) }
    }

    pub(crate) fn channels(&self) -> usize {
        self.channels
    }

    /// One output line `[width, channels]`, clamped to [0, 6], from three padded input lines of `(width - 1) * stride
    /// + 3` pixels or more each.
    pub(crate) fn line(&self, isa: Isa, input: [&[f32]; 3], out: &mut [f32], stride: usize) {
        match stride {
            1 => isa.dispatch(Line::<1> { layer: self, input, out }),
            _ => isa.dispatch(Line::<2> { layer: self, input, out }),
        }
    }
}

struct Line<'a, const STRIDE: usize> {
    layer: &'a Depthwise,
    input: [&'a [f32]; 3],
    out: &'a mut [f32],
}

impl<const STRIDE: usize> WithSimd for Line<'_, STRIDE> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let width = self.out.len() / self.layer.channels;
        let mut x = 0;
        while x + TOGETHER <= width {
            self.four_pixels(simd, x);
            x += TOGETHER;
        }
        if x < width && width >= TOGETHER {
            // The last pixels again with their neighbours: the same sums, so the same bits.
            self.four_pixels(simd, width - TOGETHER);
        } else {
            for x in x..width {
                self.pixels::<S, 1, 3>(simd, x);
            }
        }
    }
}

impl<const STRIDE: usize> Line<'_, STRIDE> {
    #[inline(always)]
    fn four_pixels<S: Simd>(&mut self, simd: S, x: usize) {
        match STRIDE {
            1 => self.pixels::<S, TOGETHER, { TOGETHER + 2 }>(simd, x),
            _ => self.pixels::<S, TOGETHER, { 2 * TOGETHER + 1 }>(simd, x),
        }
    }

    /// Output pixels `x .. x + P`, all channels; they see `SEEN` input columns.
    #[inline(always)]
    fn pixels<S: Simd, const P: usize, const SEEN: usize>(&mut self, simd: S, x: usize) {
        let channels = self.layer.channels;
        let vectors = channels / S::F32_LANES;
        let taps = &S::as_simd_f32s(&self.layer.taps).0[..9 * vectors];
        let bias = &S::as_simd_f32s(&self.layer.bias).0[..vectors];
        let lines: [&[S::f32s]; 3] = self
            .input
            .map(|line| &S::as_simd_f32s(&line[x * STRIDE * channels..][..SEEN * channels]).0[..SEEN * vectors]);
        let out = &mut S::as_mut_simd_f32s(&mut self.out[x * channels..][..P * channels]).0[..P * vectors];
        let (zero, six) = (simd.splat_f32s(0.0), simd.splat_f32s(6.0));
        for c in 0..vectors {
            let mut sums = [bias[c]; P];
            for dy in 0..3 {
                let columns: [S::f32s; SEEN] = std::array::from_fn(|column| lines[dy][column * vectors + c]);
                for dx in 0..3 {
                    let tap = taps[(dy * 3 + dx) * vectors + c];
                    for p in 0..P {
                        sums[p] = simd.mul_add_e_f32s(columns[p * STRIDE + dx], tap, sums[p]);
                    }
                }
            }
            for p in 0..P {
                out[p * vectors + c] = simd.min_f32s(simd.max_f32s(sums[p], zero), six);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_instruction_set_filters_each_channel(
            width in 1_usize..14,
            vectors in 1_usize..4,
            stride in 1_usize..3,
            data in prop::collection::vec(-2.0_f32..4.0, 3 * 29 * 48),
            weights in prop::collection::vec(-1.0_f32..1.0, 10 * 48),
        ) {
            let (channels, columns) = (vectors * 16, (width - 1) * stride + 3);
            let lines: [&[f32]; 3] = std::array::from_fn(|y| &data[y * columns * channels..][..columns * channels]);
            let (taps, bias) = (&weights[..9 * channels], &weights[9 * channels..10 * channels]);
            let layer = Depthwise::pack(taps, bias);
            let mut fused: Option<Vec<f32>> = None;
            for isa in Isa::all() {
                let mut out = vec![f32::NAN; width * channels];
                layer.line(isa, lines, &mut out, stride);
                for (i, &found) in out.iter().enumerate() {
                    let (x, c) = (i / channels, i % channels);
                    let tap = |t: usize| {
                        let value = lines[t / 3][(x * stride + t % 3) * channels + c];
                        f64::from(value) * f64::from(taps[t * channels + c])
                    };
                    let expected = (f64::from(bias[c]) + (0..9).map(tap).sum::<f64>()).clamp(0.0, 6.0);
                    let near = (f64::from(found) - expected).abs() < 1e-5;
                    prop_assert!(near, "{isa:?}, pixel {x}, channel {c}: {found}, expected {expected}");
                }
                if isa.class() == crate::KernelClass::Fused {
                    prop_assert!(fused.get_or_insert_with(|| out.clone()) == &out, "{isa:?} gives other bits");
                }
            }
        }
    }
}
