//! The layers in candle's own operations: what accelerators compute, and on the CPU what this crate's kernels are compared
//! with (`device::plainly`).
//!
//! What a layer is given is moved to its weights. Nothing here adds in an order that depends on timing.

use candle_core::{D, Device, Result, Tensor, shape::Dims};
use candle_nn::ops::{sigmoid, silu, softmax_last_dim};

use super::Activation;

/// y = x·Wᵀ + b.
#[derive(Debug)]
pub(super) struct Linear {
    /// `[outputs, inputs]`.
    weight: Tensor,
    /// `[outputs]`.
    bias: Tensor,
}

impl Linear {
    /// `weight` is `[outputs, inputs]`, row-major.
    pub(super) fn new(device: &Device, weight: &[f32], bias: &[f32]) -> Result<Self> {
        let weight = Tensor::from_slice(weight, (bias.len(), weight.len() / bias.len()), device)?;
        Self::tied(&weight, bias)
    }

    /// `weight` is `[inputs, outputs]`, row-major.
    pub(super) fn of_columns(device: &Device, weight: &[f32], bias: &[f32]) -> Result<Self> {
        let weight = Tensor::from_slice(weight, (weight.len() / bias.len(), bias.len()), device)?;
        Self::tied(&weight.t()?, bias)
    }

    /// Of a weight that lies on its device already.
    pub(super) fn tied(weight: &Tensor, bias: &[f32]) -> Result<Self> {
        Ok(Self { weight: weight.clone(), bias: Tensor::from_slice(bias, bias.len(), weight.device())? })
    }

    pub(super) fn device(&self) -> &Device {
        self.weight.device()
    }

    /// `[…, inputs]` → `[rows, outputs]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let rows = x.to_device(self.device())?.reshape(((), self.weight.dim(1)?))?;
        rows.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)
    }
}

/// An activation function, element by element.
pub(crate) fn activate(activation: Activation, x: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::QuickGelu => x * sigmoid(&x.affine(1.702, 0.0)?)?,
        Activation::Relu => x.relu(),
        Activation::Silu => silu(x),
        Activation::Tanh => x.tanh(),
    }
}

/// Layer normalisation over the last axis; `weight` and `bias` are `[width]`.
pub(super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    let normed = standardised(&x.to_device(weight.device())?, D::Minus1, f64::from(eps))?;
    normed.broadcast_mul(weight)?.broadcast_add(bias)
}

/// `x` with mean 0 and variance 1 over `axes`.
pub(crate) fn standardised(x: &Tensor, axes: impl Dims + Copy, eps: f64) -> Result<Tensor> {
    // The mean is taken away first: the difference of two large sums would be no variance.
    let centred = x.broadcast_sub(&x.mean_keepdim(axes)?)?;
    centred.broadcast_div(&(centred.sqr()?.mean_keepdim(axes)? + eps)?.sqrt()?)
}

/// Division by the root of the mean square over the last axis; `weight` is `[width]`.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let x = x.to_device(weight.device())?;
    let root = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?.sqrt()?;
    x.broadcast_div(&root)?.broadcast_mul(weight)
}

/// Attention of `queries` (`[batch, m, width]`) to `keys` (`[batch, n, width]`) and `values` (`[batch, n, out]`): `[batch, m,
/// out]`. `bias` broadcasts to `[batch, heads, m, n]`.
pub(super) fn attention(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    heads: usize,
    scale: f32,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let (batch, m, _) = queries.dims3()?;
    let out = values.dim(2)?;
    // [batch, length, heads · width] → [batch, heads, length, width]
    let by_head = |x: &Tensor| {
        let (batch, length, width) = x.dims3()?;
        x.reshape((batch, length, heads, width / heads))?.transpose(1, 2)?.contiguous()
    };
    let queries = by_head(&queries.affine(f64::from(scale), 0.0)?)?;
    let mut scores = queries.matmul(&by_head(keys)?.t()?)?;
    if let Some(bias) = bias {
        scores = scores.broadcast_add(&bias.to_device(scores.device())?)?;
    }
    let attended = softmax_last_dim(&scores)?.matmul(&by_head(values)?)?;
    attended.transpose(1, 2)?.contiguous()?.reshape((batch, m, out))
}

/// Divides each row by its Euclidean length; a row of zeros stays zeros.
pub(super) fn normalise(x: &Tensor) -> Result<Tensor> {
    // By its greatest value first: squares of small ones would vanish.
    let at_least = |x: Tensor| x.maximum(f64::from(f32::MIN_POSITIVE));
    let x = x.broadcast_div(&at_least(x.abs()?.max_keepdim(D::Minus1)?)?)?;
    x.broadcast_div(&at_least(x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)?)
}

/// Whether a failure is that of a device without memory left, by the words of its driver.
pub(super) fn is_out_of_memory(reason: &str) -> bool {
    // CUDA's driver and cuBLAS; Metal's buffers.
    ["OUT_OF_MEMORY", "out of memory", "ALLOC_FAILED", "Failed to create metal resource"]
        .iter()
        .any(|words| reason.contains(words))
}
