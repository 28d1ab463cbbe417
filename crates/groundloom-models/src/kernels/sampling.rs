//! Values between the pixels of several maps, weighted and summed: the inside of deformable attention (Zhu et al.,
//! "Deformable DETR", 2021, equation 3).

use pulp::{Simd, WithSimd};

use super::{Isa, activation::mul_add};

/// Maps of features of several heads, one level's tokens behind the other's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Maps<'a> {
    /// `[tokens, heads * depth]`.
    pub(crate) values: &'a [f32],
    /// First token, height and width of each level.
    pub(crate) levels: &'a [(usize, usize, usize)],
    pub(crate) heads: usize,
    pub(crate) depth: usize,
    /// Samples of a query in a level, for each head.
    pub(crate) points: usize,
}

impl Maps<'_> {
    /// For every query and head the sum over its samples of the value there (bilinear between pixel centres, zero
    /// outside the map) times the sample's weight: `out` is `[queries, heads * depth]`, `places` `[queries, heads,
    /// levels, points, 2]` (x and y in fractions of the level's map), `weights` `[queries, heads, levels, points]`.
    pub(crate) fn sample(&self, isa: Isa, places: &[f32], weights: &[f32], out: &mut [f32]) {
        isa.dispatch(Sample { maps: *self, places, weights, out });
    }
}

struct Sample<'a> {
    maps: Maps<'a>,
    places: &'a [f32],
    weights: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for Sample<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Maps { levels, depth, points, .. } = self.maps;
        let each = levels.len() * points;
        let heads = self.places.chunks_exact(2 * each).zip(self.weights.chunks_exact(each));
        for (number, ((places, weights), out)) in heads.zip(self.out.chunks_exact_mut(depth)).enumerate() {
            let head = number % self.maps.heads;
            // A head of 32 values, as all released models have, stays in registers.
            match <&mut [f32; 32]>::try_from(&mut *out) {
                Ok(out) => head_of::<S, 32>(&self.maps, head, places, weights, out),
                Err(_) => {
                    out.fill(0.0);
                    each_corner(&self.maps, head, places, weights, |share, value| {
                        out.iter_mut().zip(value).for_each(|(out, value)| *out = mul_add::<S>(share, *value, *out));
                    });
                }
            }
        }
    }
}

#[inline(always)]
fn head_of<S: Simd, const DEPTH: usize>(
    maps: &Maps<'_>,
    head: usize,
    places: &[f32],
    weights: &[f32],
    out: &mut [f32; DEPTH],
) {
    let mut sums = [0.0_f32; DEPTH];
    each_corner(maps, head, places, weights, |share, value| {
        if let Some(value) = value.first_chunk::<DEPTH>() {
            for (sum, value) in sums.iter_mut().zip(value) {
                *sum = mul_add::<S>(share, *value, *sum);
            }
        }
    });
    *out = sums;
}

/// The pixels around every sample of a head, with the share that each has in the sum.
#[inline(always)]
fn each_corner(maps: &Maps<'_>, head: usize, places: &[f32], weights: &[f32], mut add: impl FnMut(f32, &[f32])) {
    let width = maps.heads * maps.depth;
    for (number, (place, weight)) in places.as_chunks::<2>().0.iter().zip(weights).enumerate() {
        let (start, rows, columns) = maps.levels[number / maps.points];
        // The sum is the reference's: [0, 1] to [-1, 1] and back.
        let pixel = |fraction: f32, size: usize| ((2.0 * fraction - 1.0 + 1.0) * size as f32 - 1.0) * 0.5;
        let (x, y) = (pixel(place[0], columns), pixel(place[1], rows));
        // Neither far outside nor NaN.
        if !(x > -1.0 && x < columns as f32 && y > -1.0 && y < rows as f32) {
            continue;
        }
        let (left, top) = (x.floor(), y.floor());
        let (right_share, lower_share) = (x - left, y - top);
        let (left, top) = (left as isize, top as isize);
        for (down, share) in [(0, 1.0 - lower_share), (1, lower_share)] {
            let row = top + down;
            if row < 0 || row >= rows as isize {
                continue;
            }
            for (across, share) in [(0, share * (1.0 - right_share)), (1, share * right_share)] {
                let column = left + across;
                if column < 0 || column >= columns as isize {
                    continue;
                }
                let at = (start + row as usize * columns + column as usize) * width + head * maps.depth;
                add(share * weight, &maps.values[at..at + maps.depth]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pixel_centre_is_that_pixel_and_the_edge_fades() {
        let values: Vec<f32> = (1..=8).map(|value| value as f32).collect();
        let maps = Maps { values: &values, levels: &[(0, 2, 4)], heads: 1, depth: 1, points: 1 };
        let at = |x: f32, y: f32| {
            let mut out = [f32::NAN];
            maps.sample(Isa::detect(), &[x, y], &[1.0], &mut out);
            out[0]
        };
        assert_eq!(at(0.125, 0.25), 1.0);
        assert_eq!(at(0.875, 0.75), 8.0);
        assert_eq!(at(0.0, 0.25), 0.5);
        assert_eq!(at(0.25, 0.5), (1.0 + 2.0 + 5.0 + 6.0) / 4.0);
        for (x, y) in [(-0.2, 0.5), (1.2, 0.5), (0.5, -9.0), (f32::NAN, 0.5), (f32::INFINITY, 0.5)] {
            assert_eq!(at(x, y), 0.0);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn every_instruction_set_sums_the_definition(
            heads in 1_usize..3, wide in any::<bool>(), points in 1_usize..4, queries in 1_usize..4,
            values in prop::collection::vec(-2.0_f32..2.0, 11 * 2 * 32),
            places in prop::collection::vec(-0.4_f32..1.4, 3 * 2 * 2 * 3 * 2),
            weights in prop::collection::vec(0.0_f32..1.0, 3 * 2 * 2 * 3),
        ) {
            let depth = if wide { 32 } else { 5 };
            let levels = [(0, 2, 4), (8, 1, 3)];
            let maps = Maps { values: &values[..11 * heads * depth], levels: &levels, heads, depth, points };
            let count = queries * heads * 2 * points;
            let mut fused: Option<Vec<f32>> = None;
            for isa in Isa::all() {
                let mut out = vec![f32::NAN; queries * heads * depth];
                maps.sample(isa, &places[..2 * count], &weights[..count], &mut out);
                for (at, &found) in out.iter().enumerate() {
                    let (head, channel) = (at / depth, at % depth);
                    let mut expected = 0.0_f64;
                    for sample in 0..2 * points {
                        let number = head * 2 * points + sample;
                        let (start, rows, columns) = levels[sample / points];
                        let x = f64::from(places[2 * number]) * columns as f64 - 0.5;
                        let y = f64::from(places[2 * number + 1]) * rows as f64 - 0.5;
                        for row in 0..rows {
                            for column in 0..columns {
                                // A tent of one pixel around each pixel's centre.
                                let share = (1.0 - (x - column as f64).abs()).max(0.0) * (1.0 - (y - row as f64).abs()).max(0.0);
                                let at = (start + row * columns + column) * heads * depth + head % heads * depth + channel;
                                expected += f64::from(weights[number]) * share * f64::from(values[at]);
                            }
                        }
                    }
                    prop_assert!((f64::from(found) - expected).abs() < 2e-5, "{isa:?}: {found}, expected {expected}");
                }
                if isa.class() == crate::KernelClass::Fused {
                    prop_assert!(fused.get_or_insert_with(|| out.clone()) == &out, "{isa:?} gives other bits");
                }
            }
        }
    }
}
