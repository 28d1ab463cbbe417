//! Short codes of vectors: what a graph is walked with, so that a walk reads a quarter of the bytes or less. Whatever the
//! codes find is scored again with the vectors.

use pulp::{Arch, Simd, WithSimd};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::lines::Rows;

/// How the vectors are coded for the walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Coding {
    /// The f32 vectors themselves.
    F32,
    /// A byte a dimension.
    #[default]
    Int8,
    /// A bit a dimension: above or below the mean of its dimension.
    Binary,
}

impl Coding {
    /// Its name in manifests and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Int8 => "int8",
            Self::Binary => "binary",
        }
    }
}

impl std::str::FromStr for Coding {
    type Err = crate::IndexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "f32" => Ok(Self::F32),
            "int8" => Ok(Self::Int8),
            "binary" => Ok(Self::Binary),
            other => Err(crate::IndexError::BadSetting {
                setting: "coding",
                expected: "`f32`, `int8` or `binary`",
                found: format!("{other:?}"),
            }),
        }
    }
}

/// Bytes of a code row for `dims` dimensions: whole 64-byte lines.
pub(crate) fn byte_stride(dims: usize) -> usize {
    dims.next_multiple_of(64)
}

/// 64-bit words of a code row for `dims` dimensions: whole 16-byte pieces.
pub(crate) fn word_stride(dims: usize) -> usize {
    dims.div_ceil(64).next_multiple_of(2)
}

/// Values of a sample from which the byte scale is taken.
const SAMPLE: usize = 1 << 20;

/// The value that 127 stands for: one in ten thousand values is larger and gets cut, so that outliers do not cost the
/// rest their precision. Never 0.
pub(crate) fn byte_scale(rows: &Rows, dims: usize) -> f32 {
    let step = (rows.len() * dims / SAMPLE).max(1);
    let mut sample: Vec<f32> =
        (0..rows.len() * dims).step_by(step).map(|i| rows.row(i / dims)[i % dims].abs()).collect();
    if sample.is_empty() {
        return 1.0;
    }
    let at = (sample.len() - 1) - sample.len() / 10_000;
    let (_, scale, _) = sample.select_nth_unstable_by(at, f32::total_cmp);
    if *scale > 0.0 { *scale } else { 1.0 }
}

/// Writes the byte code of `vector` over `code`, which is at least as long.
pub(crate) fn encode_bytes(vector: &[f32], scale: f32, code: &mut [i8]) {
    Arch::new().dispatch(Encode { vector, scale, code });
}

/// Inside the dispatch rounding is one instruction, outside it is a call.
struct Encode<'a> {
    vector: &'a [f32],
    scale: f32,
    code: &'a mut [i8],
}

impl WithSimd for Encode<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (byte, value) in self.code.iter_mut().zip(self.vector) {
            *byte = (value / self.scale * 127.0).round_ties_even().clamp(-127.0, 127.0) as i8;
        }
    }
}

/// The mean of every dimension.
pub(crate) fn means(rows: &Rows, dims: usize) -> Vec<f32> {
    let mut sums = vec![0.0_f64; dims];
    for row in 0..rows.len() {
        sums.iter_mut().zip(rows.row(row)).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    sums.iter().map(|sum| (sum / rows.len().max(1) as f64) as f32).collect()
}

/// Writes the bit code of `vector` over `code`, which holds zeros.
pub(crate) fn encode_bits(vector: &[f32], means: &[f32], code: &mut [u64]) {
    for (i, (value, mean)) in vector.iter().zip(means).enumerate() {
        code[i / 64] |= u64::from(value > mean) << (i % 64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outliers_do_not_set_the_scale() {
        let mut rows = Rows::new(100);
        for i in 0..200 {
            let mut row = vec![0.1; 100];
            row[0] = if i == 17 { 1e6 } else { -0.2 };
            rows.push(&row);
        }
        assert!((byte_scale(&rows, 100) - 0.2).abs() < 1e-6);
        let mut code = [0; 3];
        encode_bytes(&[0.2, -0.1, 9.0], 0.2, &mut code);
        assert_eq!(code, [127, -64, 127]);
    }

    #[test]
    fn bits_lie_above_the_mean() {
        let mut rows = Rows::new(2);
        rows.push(&[1.0, 5.0]);
        rows.push(&[3.0, 5.0]);
        let means = means(&rows, 2);
        assert_eq!(means, [2.0, 5.0]);
        let mut code = [0];
        encode_bits(&[3.0, 5.5], &means, &mut code);
        assert_eq!(code, [3]);
    }
}
