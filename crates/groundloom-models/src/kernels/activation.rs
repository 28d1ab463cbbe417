//! Activation functions, element by element.
//!
//! Written as plain branch-free arithmetic: inlined into a function that is compiled for an instruction set, the
//! compiler makes it as wide as that set allows, and the bits stay the same.

use std::str::FromStr;

use pulp::{Simd, WithSimd};

use super::Isa;

/// An activation function, as `config.json` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// x·Φ(x), by the error function (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016). `gelu`.
    Gelu,
    /// Its approximation by the hyperbolic tangent (the same, section 2). `gelu_pytorch_tanh`, `gelu_new`,
    /// `gelu_fast`.
    GeluTanh,
    /// x·σ(1.702x), OpenAI's CLIP. `quick_gelu`.
    QuickGelu,
    /// max(x, 0). `relu`.
    Relu,
    /// x·σ(x). `silu`, `swish`.
    Silu,
    /// `tanh`.
    Tanh,
}

impl Activation {
    /// The names in `config.json`.
    pub(crate) const NAMES: &str =
        "gelu, gelu_pytorch_tanh, gelu_new, gelu_fast, quick_gelu, relu, silu, swish or tanh";

    /// Applies the function in place.
    pub(crate) fn apply(self, isa: Isa, values: &mut [f32]) {
        isa.dispatch(Apply { activation: self, values });
    }

    /// As [`Activation::apply`], for code that runs on an instruction set already.
    #[inline(always)]
    pub(super) fn map<S: Simd>(self, values: &mut [f32]) {
        match self {
            Self::Gelu => values.iter_mut().for_each(|x| *x = gelu::<S>(*x)),
            Self::GeluTanh => values.iter_mut().for_each(|x| *x = gelu_tanh::<S>(*x)),
            Self::QuickGelu => values.iter_mut().for_each(|x| *x = *x / (1.0 + exp::<S>(-1.702 * *x))),
            Self::Relu => values.iter_mut().for_each(|x| *x = x.max(0.0)),
            Self::Silu => values.iter_mut().for_each(|x| *x = *x / (1.0 + exp::<S>(-*x))),
            Self::Tanh => values.iter_mut().for_each(|x| *x = tanh::<S>(*x)),
        }
    }
}

impl FromStr for Activation {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Ok(match name {
            "gelu" => Self::Gelu,
            "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Self::GeluTanh,
            "quick_gelu" => Self::QuickGelu,
            "relu" => Self::Relu,
            "silu" | "swish" => Self::Silu,
            "tanh" => Self::Tanh,
            _ => return Err(()),
        })
    }
}

/// `a * b + c`, rounded once where the processor can.
#[inline(always)]
pub(super) fn mul_add<S: Simd>(a: f32, b: f32, c: f32) -> f32 {
    if S::IS_SCALAR { a * b + c } else { a.mul_add(b, c) }
}

/// e to the x, within two units in the last place where the result is a normal number; 0 below, huge above.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2; the series of e to the r up to its seventh power (the rest is below 5e-9).
#[inline(always)]
pub(super) fn exp<S: Simd>(x: f32) -> f32 {
    /// 1.5·2²³: added to a small number, its last bits are the number rounded.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first with few enough bits that n times it is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let clamped = x.clamp(-87.3, 88.3);
    let shifted = mul_add::<S>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = mul_add::<S>(n, -LN_2[1], mul_add::<S>(n, -LN_2[0], clamped));
    let mut sum = 1.0 / 5040.0;
    for term in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = mul_add::<S>(sum, r, term);
    }
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    let result = sum * f32::from_bits(exponent);
    if x < -87.3 { 0.0 } else { result }
}

#[inline(always)]
fn tanh<S: Simd>(x: f32) -> f32 {
    1.0 - 2.0 / (1.0 + exp::<S>(2.0 * x))
}

#[inline(always)]
fn gelu_tanh<S: Simd>(x: f32) -> f32 {
    /// √(2/π).
    const SCALE: f32 = 0.797_884_6;
    let inner = SCALE * mul_add::<S>(0.044_715 * x * x, x, x);
    // 0.5·x·(1 + tanh(inner)) without the cancellation where tanh is near −1.
    x / (1.0 + exp::<S>(-2.0 * inner))
}

/// x·Φ(x), with erfc(y) = exp(−y²)·t·P(t), t = 1/(1 + 0.39y) for y ≥ 0: the form of Abramowitz and Stegun, "Handbook of
/// Mathematical Functions", 7.1.26, with a polynomial of degree 5 fitted to 8e-9.
#[inline(always)]
fn gelu<S: Simd>(x: f32) -> f32 {
    const P: [f32; 6] = [-0.227_537_13, 0.886_664_4, -0.635_400_3, 0.649_559_4, 0.091_388_4, 0.235_325_22];
    let y = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / mul_add::<S>(0.39, y, 1.0);
    let mut sum = P[0];
    for term in &P[1..] {
        sum = mul_add::<S>(sum, t, *term);
    }
    let tail = 0.5 * sum * t * exp::<S>(-y * y);
    // Φ(|x|) = 1 − tail, Φ(−|x|) = tail: a small result is not the difference of two large ones.
    x * if x < 0.0 { tail } else { 1.0 - tail }
}

struct Apply<'a> {
    activation: Activation,
    values: &'a mut [f32],
}

impl WithSimd for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.activation.map::<S>(self.values);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// The error function's complement by its continued fraction or its series, in double precision.
    fn normal(x: f64) -> f64 {
        let y = x.abs() / std::f64::consts::SQRT_2;
        let tail = if y < 2.0 {
            let (mut term, mut sum) = (y, y);
            for n in 1..60 {
                term *= -y * y / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            1.0 - 2.0 / std::f64::consts::PI.sqrt() * sum
        } else {
            let fraction = (1..120).rev().fold(y, |below, n| y + f64::from(n) / 2.0 / below);
            (-y * y).exp() / std::f64::consts::PI.sqrt() / fraction
        };
        if x < 0.0 { tail / 2.0 } else { 1.0 - tail / 2.0 }
    }

    fn reference(activation: Activation, x: f64) -> f64 {
        match activation {
            Activation::Gelu => x * normal(x),
            Activation::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            }
            Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
            Activation::Relu => x.max(0.0),
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Tanh => x.tanh(),
        }
    }

    #[test]
    fn every_function_is_its_definition_on_every_instruction_set() {
        let points: Vec<f32> = (-40_000..=40_000).map(|i| i as f32 / 1000.0).chain([-1e30, 1e30, 0.0, -0.0]).collect();
        for name in ["gelu", "gelu_new", "quick_gelu", "relu", "silu", "tanh"] {
            let activation: Activation = name.parse().unwrap();
            let mut fused: Option<Vec<u32>> = None;
            for isa in Isa::all() {
                let mut found = points.clone();
                activation.apply(isa, &mut found);
                for (&x, &y) in points.iter().zip(&found) {
                    let expected = reference(activation, f64::from(x));
                    let error = (f64::from(y) - expected).abs();
                    assert!(
                        error <= 2.5e-7 * expected.abs().max(1.0),
                        "{name}({x}) = {y}, expected {expected}, {isa:?}"
                    );
                }
                if isa.class() == crate::KernelClass::Fused {
                    let bits: Vec<u32> = found.iter().map(|y| y.to_bits()).collect();
                    assert!(fused.get_or_insert_with(|| bits.clone()) == &bits, "{isa:?} gives other bits for {name}");
                }
            }
        }
        assert!("swiglu".parse::<Activation>().is_err());
    }
}
