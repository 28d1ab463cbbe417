//! Layer normalisation and softmax of rows.

use pulp::{Simd, WithSimd};

use super::{
    Isa,
    activation::{exp, mul_add},
};

/// Partial sums of a row, whatever the vectors' width, so that every instruction set adds in the same order.
const LANES: usize = 16;

/// Each row of `width` values to mean 0 and variance 1, then scaled and shifted (Ba, Kiros and Hinton, "Layer
/// Normalization", 2016). `weight` and `bias` are `[width]`, `values` is `[rows, width]`.
pub(crate) fn layer_norm(isa: Isa, values: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    isa.dispatch(LayerNorm { values, weight, bias, eps });
}

struct LayerNorm<'a> {
    values: &'a mut [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
}

impl WithSimd for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let width = self.weight.len();
        for row in self.values.chunks_exact_mut(width) {
            let mean = sum(row, |x| x) / width as f32;
            let variance = sum(row, |x| (x - mean) * (x - mean)) / width as f32;
            let scale = 1.0 / (variance + self.eps).sqrt();
            for ((x, &weight), &bias) in row.iter_mut().zip(self.weight).zip(self.bias) {
                *x = mul_add::<S>((*x - mean) * scale, weight, bias);
            }
        }
    }
}

/// The sum of `f` over a row.
#[inline(always)]
fn sum(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    let (full, rest) = row.as_chunks::<LANES>();
    for chunk in full {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += f(x);
        }
    }
    for (sum, &x) in sums.iter_mut().zip(rest) {
        *sum += f(x);
    }
    tree(sums, |a, b| a + b)
}

/// Halves against halves.
#[inline(always)]
fn tree(mut values: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            values[i] = f(values[i], values[i + half]);
        }
    }
    values[0]
}

/// Each row of `width` values `x` to exp(scale·x + bias − greatest) over their sum. `bias` holds a row for each row of
/// `values`, or is empty.
pub(crate) fn softmax(isa: Isa, values: &mut [f32], width: usize, scale: f32, bias: &[f32]) {
    isa.dispatch(Softmax { values, width, scale, bias });
}

struct Softmax<'a> {
    values: &'a mut [f32],
    width: usize,
    scale: f32,
    bias: &'a [f32],
}

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let mut bias = self.bias.chunks_exact(self.width);
        for row in self.values.chunks_exact_mut(self.width) {
            match bias.next() {
                Some(bias) => {
                    row.iter_mut().zip(bias).for_each(|(x, &bias)| *x = mul_add::<S>(*x, self.scale, bias));
                }
                None => row.iter_mut().for_each(|x| *x *= self.scale),
            }
            let mut greatest = [f32::MIN; LANES];
            let (full, rest) = row.as_chunks::<LANES>();
            for chunk in full {
                for (most, &x) in greatest.iter_mut().zip(chunk) {
                    *most = if x > *most { x } else { *most };
                }
            }
            for (most, &x) in greatest.iter_mut().zip(rest) {
                *most = if x > *most { x } else { *most };
            }
            let greatest = tree(greatest, |a, b| if a > b { a } else { b });
            row.iter_mut().for_each(|x| *x = exp::<S>(*x - greatest));
            let whole = 1.0 / sum(row, |x| x);
            row.iter_mut().for_each(|x| *x *= whole);
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
        fn rows_are_normalised_the_same_on_every_instruction_set(
            rows in prop::collection::vec(prop::collection::vec(-20.0_f32..20.0, 37), 1..5),
            width in 1_usize..=37,
            scale in 0.01_f32..2.0,
        ) {
            let values: Vec<f32> = rows.iter().flat_map(|row| row[..width].iter().copied()).collect();
            let (weight, bias): (Vec<f32>, Vec<f32>) = (0..width).map(|i| (1.0 + i as f32 / 50.0, i as f32 / 9.0)).unzip();
            let mut fused: Option<(Vec<f32>, Vec<f32>)> = None;
            for isa in Isa::all() {
                let (mut normed, mut soft) = (values.clone(), values.clone());
                layer_norm(isa, &mut normed, &weight, &bias, 1e-5);
                softmax(isa, &mut soft, width, scale, &[]);
                for (row, (normed, soft)) in values.chunks(width).zip(normed.chunks(width).zip(soft.chunks(width))) {
                    let row: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
                    let mean = row.iter().sum::<f64>() / width as f64;
                    let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                    let whole: f64 = row.iter().map(|x| (x * f64::from(scale)).exp()).sum();
                    for i in 0..width {
                        let expected = (row[i] - mean) / (variance + 1e-5).sqrt() * f64::from(weight[i]) + f64::from(bias[i]);
                        prop_assert!((f64::from(normed[i]) - expected).abs() < 2e-5, "{} {expected}", normed[i]);
                        let expected = (row[i] * f64::from(scale)).exp() / whole;
                        prop_assert!((f64::from(soft[i]) - expected).abs() < 1e-6, "{} {expected}", soft[i]);
                    }
                }
                if isa.class() == crate::KernelClass::Fused {
                    let first = fused.get_or_insert_with(|| (normed.clone(), soft.clone()));
                    prop_assert!(*first == (normed, soft), "{isa:?} gives other bits");
                }
            }
        }
    }

    #[test]
    fn masked_keys_weigh_nothing() {
        for isa in Isa::all() {
            let mut row = [3.0, 1.0, 2.0];
            softmax(isa, &mut row, 3, 1.0, &[0.0, f32::MIN, f32::MIN]);
            assert_eq!(row, [1.0, 0.0, 0.0]);
            let mut row = [3.0, 3.0];
            softmax(isa, &mut row, 2, 1.0, &[f32::NEG_INFINITY, 0.0]);
            assert_eq!(row, [0.0, 1.0]);
        }
    }
}
