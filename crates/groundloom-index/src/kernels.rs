//! The arithmetic of distances: the one door to SIMD in this crate.
//!
//! Instruction sets are chosen at run time through `pulp`, once per search and not once per pair. Sums run over sixteen
//! lanes and four accumulators whatever the vector width, and are folded by halves, so that AVX-512 and AVX2 give the
//! same bits. Integer kernels are plain loops that the compiler vectorises inside the dispatched code; their sums are exact.

use pulp::Simd;

use crate::lines::LANES;

/// Sum of products. Both slices have one length, a multiple of [`LANES`].
#[inline(always)]
pub(crate) fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    fold::<S>(
        simd,
        a,
        b,
        #[inline(always)]
        |sum, a, b| simd.mul_add_e_f32s(a, b, sum),
    )
}

/// Sum of squared differences. Both slices have one length, a multiple of [`LANES`].
#[inline(always)]
pub(crate) fn squared_distance<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    fold::<S>(
        simd,
        a,
        b,
        #[inline(always)]
        |sum, a, b| {
            let d = simd.sub_f32s(a, b);
            simd.mul_add_e_f32s(d, d, sum)
        },
    )
}

#[inline(always)]
fn fold<S: Simd>(simd: S, a: &[f32], b: &[f32], step: impl Fn(S::f32s, S::f32s, S::f32s) -> S::f32s) -> f32 {
    match S::F32_LANES {
        16 => accumulate::<S, 4>(simd, a, b, step),
        8 => accumulate::<S, 8>(simd, a, b, step),
        4 => accumulate::<S, 16>(simd, a, b, step),
        _ => accumulate::<S, 64>(simd, a, b, step),
    }
}

/// `A` vectors make the four accumulators of sixteen lanes.
#[inline(always)]
fn accumulate<S: Simd, const A: usize>(
    simd: S,
    a: &[f32],
    b: &[f32],
    step: impl Fn(S::f32s, S::f32s, S::f32s) -> S::f32s,
) -> f32 {
    let (a, b) = (S::as_simd_f32s(a).0, S::as_simd_f32s(b).0);
    let mut sums = [simd.splat_f32s(0.0); A];
    let (a_steps, a_rest) = a.as_chunks::<A>();
    let (b_steps, b_rest) = b.as_chunks::<A>();
    for (a, b) in a_steps.iter().zip(b_steps) {
        for i in 0..A {
            sums[i] = step(sums[i], a[i], b[i]);
        }
    }
    for (sum, (a, b)) in sums.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *sum = step(*sum, *a, *b);
    }
    // Four accumulators to one of sixteen lanes, then halves onto halves.
    let mut width = A;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            sums[i] = simd.add_f32s(sums[i], sums[i + width]);
        }
    }
    simd.reduce_sum_f32s(sums[0])
}

/// Sum of products of bytes; exact.
#[inline(always)]
pub(crate) fn dot_i8(a: &[i8], b: &[i8]) -> i32 {
    a.iter().zip(b).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum()
}

/// Sum of squared differences of bytes; exact.
#[inline(always)]
pub(crate) fn squared_distance_i8(a: &[i8], b: &[i8]) -> i32 {
    a.iter()
        .zip(b)
        .map(|(a, b)| {
            let d = i32::from(*a) - i32::from(*b);
            d * d
        })
        .sum()
}

/// Number of differing bits.
#[inline(always)]
pub(crate) fn hamming(a: &[u64], b: &[u64]) -> u32 {
    a.iter().zip(b).map(|(a, b)| (a ^ b).count_ones()).sum()
}

/// Asks the processor to bring the cache lines of `values` near.
#[inline(always)]
pub(crate) fn prefetch<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let start = values.as_ptr().cast::<i8>();
        let mut at = 0;
        // The processor's own prefetcher follows a run once it has started.
        while at < size_of_val(values).min(PREFETCHED) {
            // SAFETY: a prefetch reads nothing and cannot fault, and the address lies inside `values`.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(start.add(at)) };
            at += 64;
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

/// Bytes of a vector that are asked for ahead of time.
const PREFETCHED: usize = 16 * 64;

const _: () = assert!(LANES == 16, "the sums above run over sixteen lanes");

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use pulp::{Arch, WithSimd};

    use super::*;

    struct Both<'a>(&'a [f32], &'a [f32]);
    impl WithSimd for Both<'_> {
        type Output = (f32, f32);
        fn with_simd<S: Simd>(self, simd: S) -> (f32, f32) {
            (dot(simd, self.0, self.1), squared_distance(simd, self.0, self.1))
        }
    }

    proptest! {
        #[test]
        fn every_instruction_set_agrees_with_the_definition(
            pairs in prop::collection::vec((-4.0_f32..4.0, -4.0_f32..4.0), 0..400),
        ) {
            let padded = pairs.len().next_multiple_of(LANES);
            let mut a: Vec<f32> = pairs.iter().map(|p| p.0).collect();
            let mut b: Vec<f32> = pairs.iter().map(|p| p.1).collect();
            a.resize(padded, 0.0);
            b.resize(padded, 0.0);
            let expected: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let squares: f64 = a.iter().zip(&b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
            let found = Arch::new().dispatch(Both(&a, &b));
            prop_assert!((f64::from(found.0) - expected).abs() < 1e-2);
            prop_assert!((f64::from(found.1) - squares).abs() < 2e-2);
            let scalar = Arch::Scalar.dispatch(Both(&a, &b));
            prop_assert!((scalar.0 - found.0).abs() < 1e-2);
            #[cfg(target_arch = "x86_64")]
            if let Some(v3) = pulp::x86::V3::try_new() {
                let narrow = Arch::V3(v3).dispatch(Both(&a, &b));
                if !matches!(Arch::new(), Arch::Scalar) {
                    prop_assert_eq!((narrow.0.to_bits(), narrow.1.to_bits()), (found.0.to_bits(), found.1.to_bits()));
                }
            }
        }
    }

    #[test]
    fn integer_kernels_do_not_overflow() {
        assert_eq!(dot_i8(&[-127; 1024], &[-127; 1024]), 127 * 127 * 1024);
        assert_eq!(squared_distance_i8(&[-127; 1024], &[127; 1024]), 254 * 254 * 1024);
        assert_eq!(hamming(&[0, u64::MAX], &[1, 0]), 65);
    }
}
