//! What the detector's parts are made of beyond the crate's layers.

use candle_core::{D, Result, Tensor};

use crate::{
    ModelError,
    device::by_kernels,
    layers::{Activation, Linear, attention, plain, with_values},
    weights::Weights,
};

type Loaded<T> = std::result::Result<T, ModelError>;

/// Linear layers with ReLU between them.
pub(crate) struct Perceptron(Vec<Linear>);

impl Perceptron {
    /// `layers.0`, `layers.1`, … of the given widths: inputs first, outputs last.
    pub(crate) fn load(weights: &Weights, widths: &[usize]) -> Loaded<Self> {
        let layer = |(number, pair): (usize, &[usize])| {
            Linear::load(&weights.at(format!("layers.{number}")), pair[0], pair[1], true)
        };
        widths.windows(2).enumerate().map(layer).collect::<Loaded<_>>().map(Self)
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for (number, layer) in self.0.iter().enumerate() {
            x = if number + 1 < self.0.len() {
                layer.forward_activated(&x, Activation::Relu)?
            } else {
                layer.forward(&x)?
            };
        }
        Ok(x)
    }
}

/// Scaled dot-product attention with projections of its own (Vaswani et al., 2017).
pub(crate) struct MultiHeadAttention {
    heads: usize,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
}

impl MultiHeadAttention {
    /// `query`, `key`, `value` at `weights`, the output's projection at its `output`.
    pub(crate) fn load(weights: &Weights, output: &Weights, width: usize, heads: usize) -> Loaded<Self> {
        let part = |name: &str| Linear::load(&weights.at(name), width, width, true);
        Ok(Self {
            heads,
            query: part("query")?,
            key: part("key")?,
            value: part("value")?,
            output: Linear::load(output, width, width, true)?,
        })
    }

    /// `queries` is `[batch, n, width]`, `keys` and `values` `[batch, m, width]`; `mask` is added to the scores and
    /// broadcasts to `[batch, heads, n, m]`. The result is added to `residual`, `[batch, n, width]`.
    pub(crate) fn forward_onto(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        mask: Option<&Tensor>,
        residual: &Tensor,
    ) -> Result<Tensor> {
        let (queries, keys) = (self.query.forward(queries)?, self.key.forward(keys)?);
        let attended = attention(&queries, &keys, &self.value.forward(values)?, self.heads, mask)?;
        self.output.forward_onto(&attended, residual)
    }
}

/// Group normalisation (Wu and He, 2018) of a map `[batch, height * width, channels]`.
pub(crate) struct GroupNorm {
    groups: usize,
    eps: f64,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl GroupNorm {
    pub(crate) fn load(weights: &Weights, groups: usize, channels: usize, eps: f64) -> Loaded<Self> {
        Ok(Self {
            groups,
            eps,
            weight: weights.values("weight", &[channels])?,
            bias: weights.values("bias", &[channels])?,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, count, channels) = x.dims3()?;
        if !by_kernels(x) {
            let per_group = channels / self.groups;
            let row = |values: &[f32]| Tensor::from_slice(values, channels, x.device());
            let normed = plain::standardised(&x.reshape((batch, count, self.groups, per_group))?, (1, 3), self.eps)?;
            let normed = normed.reshape((batch, count, channels))?.broadcast_mul(&row(&self.weight)?)?;
            return normed.broadcast_add(&row(&self.bias)?);
        }
        let normed = with_values(x, |x| {
            let mut out = x.to_vec();
            for image in out.chunks_mut(count * channels) {
                let (scale, shift) = self.scale_and_shift(image);
                for pixel in image.chunks_mut(channels) {
                    for ((value, scale), shift) in pixel.iter_mut().zip(&scale).zip(&shift) {
                        *value = *value * scale + shift;
                    }
                }
            }
            Ok(out)
        })?;
        Tensor::from_vec(normed, (batch, count, channels), x.device())
    }

    /// The most that [`GroupNorm::forward`] multiplies a value of `x` by.
    pub(crate) fn steepest(&self, x: &Tensor) -> Result<f32> {
        let (_, count, channels) = x.dims3()?;
        with_values(x, |x| {
            let scales = x.chunks(count * channels).flat_map(|image| self.scale_and_shift(image).0);
            Ok(scales.fold(0.0, |most, scale| scale.abs().max(most)))
        })
    }

    /// By channel, what the values of an image `[height * width, channels]` are multiplied by, and what is added then.
    fn scale_and_shift(&self, image: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let channels = self.weight.len();
        let (mut sums, mut squares) = (vec![0.0_f64; channels], vec![0.0_f64; channels]);
        for pixel in image.chunks(channels) {
            for ((value, sum), square) in pixel.iter().zip(&mut sums).zip(&mut squares) {
                *sum += f64::from(*value);
                *square += f64::from(*value) * f64::from(*value);
            }
        }
        let per_group = channels / self.groups;
        let size = (image.len() / self.groups) as f64;
        let (mut scale, mut shift) = (vec![0.0_f32; channels], vec![0.0_f32; channels]);
        for channel in 0..channels {
            let group = channel / per_group * per_group..(channel / per_group + 1) * per_group;
            let mean = sums[group.clone()].iter().sum::<f64>() / size;
            let variance = squares[group].iter().sum::<f64>() / size - mean * mean;
            let factor = f64::from(self.weight[channel]) / (variance.max(0.0) + self.eps).sqrt();
            scale[channel] = factor as f32;
            shift[channel] = (f64::from(self.bias[channel]) - mean * factor) as f32;
        }
        (scale, shift)
    }
}

/// Every product of a row of `left` with a row of `right`: `[batch, n, width]` and `[batch, m, width]` give `[batch, n,
/// m]`. On the CPU each is one sum in one order, whatever is beside it.
pub(crate) fn products(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    let (batch, count, _) = right.dims3()?;
    if !by_kernels(right) {
        return left.contiguous()?.matmul(&right.contiguous()?.transpose(1, 2)?);
    }
    let mut found = Vec::with_capacity(batch);
    for image in 0..batch {
        let right = right.get(image)?;
        let rows = with_values(&right, |rows| {
            Linear::new(right.device(), rows, &vec![0.0; count]).map_err(|e| candle_core::Error::Msg(e.to_string()))
        })?;
        found.push(rows.forward(&left.get(image)?)?.reshape((1, left.dim(1)?, count))?);
    }
    Tensor::cat(&found, 0)
}

/// Sigmoid.
pub(crate) fn sigmoid(x: &Tensor) -> Result<Tensor> {
    candle_nn::ops::sigmoid(x)
}

/// The number whose sigmoid is `x`, after `x` has been held `eps` away from 0 and 1.
pub(crate) fn logit(x: &Tensor, eps: f64) -> Result<Tensor> {
    let x = x.clamp(eps as f32, (1.0 - eps) as f32)?;
    (&x / (1.0 - &x)?)?.log()
}

/// The largest of the last dimension.
pub(crate) fn max_last(x: &Tensor) -> Result<Tensor> {
    x.max(D::Minus1)
}
