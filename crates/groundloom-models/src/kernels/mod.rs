//! f32 kernels on the CPU: the one door to SIMD in this crate. Dense layers, activations, norms and attention of the
//! encoders; convolutions of channels-last images.
//!
//! Instruction sets are chosen at run time ([`KernelClass::detect`]) through `pulp`, so there is no unsafe code here
//! (but for the test that calls `gemm`) and a machine without AVX still gets an answer. Every output value is one chain of fused multiply-adds in a fixed
//! order (bias first, then inputs in storage order), whatever the vector width. AVX-512, AVX2 with FMA and NEON
//! therefore give the same bits; only the class without a fused multiply-add differs. A row's result does not depend on
//! the rows beside it, nor on how many threads share the work. `ssd::plain` and the tests of `layers` compute the same
//! with candle's own operations.

mod activation;
mod aligned;
mod attention;
mod dense;
mod depthwise;
mod norm;
mod parallel;
mod sampling;

pub(crate) use activation::Activation;
pub(crate) use aligned::Aligned;
pub(crate) use attention::{Attention, Bias, Rows};
pub(crate) use dense::{Dense, Epilogue, Placement};
pub(crate) use depthwise::Depthwise;
pub(crate) use parallel::{feed_forward, layer_norm, product};
pub(crate) use sampling::Maps;

use std::fmt;

/// Which arithmetic the kernels use. Two machines of one class give the same bits for the same image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KernelClass {
    /// Multiply-adds round once: AVX-512, AVX2 with FMA, NEON.
    Fused,
    /// Multiplication and addition round separately: every other processor.
    Separate,
}

impl KernelClass {
    /// The class of the processor this runs on.
    pub fn detect() -> Self {
        Isa::detect().class()
    }

    /// The class's name as it enters a run's fingerprint.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fused => "f32-fused",
            Self::Separate => "f32-separate",
        }
    }
}

impl fmt::Display for KernelClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An instruction set that this processor has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Isa(pulp::Arch);

impl Isa {
    /// The widest instruction set of this processor.
    pub(crate) fn detect() -> Self {
        Self(pulp::Arch::new())
    }

    fn class(self) -> KernelClass {
        match self.0 {
            pulp::Arch::Scalar => KernelClass::Separate,
            _ => KernelClass::Fused,
        }
    }

    fn dispatch<Op: pulp::WithSimd>(self, op: Op) -> Op::Output {
        self.0.dispatch(op)
    }

    /// Every instruction set of this processor, for tests that compare them.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        let mut found = vec![Self(pulp::Arch::Scalar), Self::detect()];
        #[cfg(target_arch = "x86_64")]
        if let Some(v3) = pulp::x86::V3::try_new() {
            found.push(Self(pulp::Arch::V3(v3)));
        }
        found
    }
}
