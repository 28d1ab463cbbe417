//! Vectors of f32 behind one trait: AVX-512, AVX2 with FMA, and plain arrays.
//!
//! The methods are inlined into functions that enable the CPU features, which is where
//! the intrinsics become instructions. Nothing outside [`super::kernels`] calls them.

/// A vector of `LANES` f32.
///
/// # Safety
/// Implementations may need CPU features: every method must only be called where those
/// are enabled. Pointers must be valid for `LANES` elements; they need no alignment.
pub(super) trait Simd: Copy {
    const LANES: usize;
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn max(self, other: Self) -> Self;
    /// `self * other + sum`, rounded once where the CPU can.
    unsafe fn mul_add(self, other: Self, sum: Self) -> Self;
}

/// Four lanes in plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 4]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Simd for Portable {
    const LANES: usize = 4;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 4])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller vouches for `LANES` elements.
        Self(unsafe { from.cast::<[f32; 4]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn mul_add(self, other: Self, sum: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * other.0[i] + sum.0[i]))
    }
}

#[cfg(target_arch = "x86_64")]
macro_rules! x86 {
    ($name:ident, $vector:ident, $lanes:literal, $doc:literal, $set:ident $load:ident $store:ident
     $add:ident $sub:ident $mul:ident $max:ident $fma:ident) => {
        #[doc = $doc]
        #[derive(Clone, Copy)]
        pub(super) struct $name(std::arch::x86_64::$vector);

        // SAFETY of the bodies: the callers enable the features and vouch for the pointers.
        impl Simd for $name {
            const LANES: usize = $lanes;
            #[inline(always)]
            unsafe fn splat(x: f32) -> Self {
                Self(unsafe { std::arch::x86_64::$set(x) })
            }
            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                Self(unsafe { std::arch::x86_64::$load(from) })
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                unsafe { std::arch::x86_64::$store(to, self.0) }
            }
            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                Self(unsafe { std::arch::x86_64::$add(self.0, other.0) })
            }
            #[inline(always)]
            unsafe fn sub(self, other: Self) -> Self {
                Self(unsafe { std::arch::x86_64::$sub(self.0, other.0) })
            }
            #[inline(always)]
            unsafe fn mul(self, other: Self) -> Self {
                Self(unsafe { std::arch::x86_64::$mul(self.0, other.0) })
            }
            #[inline(always)]
            unsafe fn max(self, other: Self) -> Self {
                Self(unsafe { std::arch::x86_64::$max(self.0, other.0) })
            }
            #[inline(always)]
            unsafe fn mul_add(self, other: Self, sum: Self) -> Self {
                Self(unsafe { std::arch::x86_64::$fma(self.0, other.0, sum.0) })
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
x86!(
    Avx512, __m512, 16, "Sixteen lanes; needs `avx512f`.",
    _mm512_set1_ps _mm512_loadu_ps _mm512_storeu_ps _mm512_add_ps _mm512_sub_ps _mm512_mul_ps
    _mm512_max_ps _mm512_fmadd_ps
);
#[cfg(target_arch = "x86_64")]
x86!(
    Avx2, __m256, 8, "Eight lanes; needs `avx2` and `fma`.",
    _mm256_set1_ps _mm256_loadu_ps _mm256_storeu_ps _mm256_add_ps _mm256_sub_ps _mm256_mul_ps
    _mm256_max_ps _mm256_fmadd_ps
);
