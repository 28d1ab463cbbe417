//! Convolutions along time, as speech networks have them.

use candle_core::{Device, Result, Tensor, bail};

use crate::{
    ModelError,
    device::has_kernels,
    kernels::{self, Activation, Dense, Epilogue, Isa},
    layers::{compute, plain},
    weights::Weights,
};

/// Values of the windows that are laid out at once: a few megabytes, whatever the length of the waveform.
const WINDOWS: usize = 1 << 19;

/// A convolution along time without padding: frames `[frames, channels]` → `[⌊(frames − kernel) / stride⌋ + 1, outputs]`.
/// What it sees of the input is one row for each frame of its output: it is a dense layer of these rows.
#[derive(Debug)]
pub(crate) struct Convolution {
    form: Form,
    channels: usize,
    kernel: usize,
    stride: usize,
}

/// How a convolution lies in memory.
#[derive(Debug)]
enum Form {
    /// For this crate's kernels.
    Packed(Dense),
    /// For candle's operations: `[outputs, channels, kernel]` and `[outputs]`.
    Tensors { weight: Tensor, bias: Tensor },
}

impl Convolution {
    /// Reads `weight` (`[outputs, channels, kernel]`) and, with `bias`, `bias` (`[outputs]`) at the place of `weights`.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`].
    pub(crate) fn load(
        weights: &Weights,
        [outputs, channels, kernel]: [usize; 3],
        stride: usize,
        bias: bool,
    ) -> std::result::Result<Self, ModelError> {
        let weight = weights.values("weight", &[outputs, channels, kernel])?;
        let bias = if bias { weights.values("bias", &[outputs])? } else { vec![0.0; outputs] };
        Self::new(weights.device(), &weight, &bias, kernel, stride)
    }

    /// From values, for a network on `device`: `weight` is `[outputs, channels, kernel]`, `bias` is `[outputs]`.
    ///
    /// # Errors
    /// Where the device cannot hold them.
    pub(crate) fn new(
        device: &Device,
        weight: &[f32],
        bias: &[f32],
        kernel: usize,
        stride: usize,
    ) -> std::result::Result<Self, ModelError> {
        let inputs = weight.len() / bias.len();
        let channels = inputs / kernel;
        if !has_kernels(device) {
            let failed = compute("a convolution's weights");
            let weight = Tensor::from_slice(weight, (bias.len(), channels, kernel), device).map_err(&failed)?;
            let bias = Tensor::from_slice(bias, bias.len(), device).map_err(&failed)?;
            return Ok(Self { form: Form::Tensors { weight, bias }, channels, kernel, stride });
        }
        // [outputs, channels, kernel] → [outputs, kernel, channels], the order in which frames lie in memory.
        let rows: Vec<f32> = (0..weight.len())
            .map(|i| (i / inputs, i % inputs / channels, i % channels))
            .map(|(output, tap, channel)| weight[output * inputs + channel * kernel + tap])
            .collect();
        let form = Form::Packed(Dense::pack_transposed(&rows, inputs, inputs, bias));
        Ok(Self { form, channels, kernel, stride })
    }

    /// Whether this crate's kernels compute it, of values; otherwise it takes tensors ([`Convolution::forward_tensor`]).
    pub(crate) fn takes_values(&self) -> bool {
        matches!(self.form, Form::Packed(_))
    }

    /// `[frames, channels]` → `[self.frames(frames), outputs]`, with an activation function behind it, in candle's operations.
    ///
    /// # Errors
    /// candle's, and where the convolution takes values.
    pub(crate) fn forward_tensor(&self, x: &Tensor, activation: Option<Activation>) -> Result<Tensor> {
        let Form::Tensors { weight, bias } = &self.form else { bail!("a convolution of values was given a tensor") };
        let x = x.to_device(weight.device())?.t()?.unsqueeze(0)?.contiguous()?;
        let x = x.conv1d(weight, 0, self.stride, 1, 1)?.squeeze(0)?.t()?.contiguous()?.broadcast_add(bias)?;
        match activation {
            Some(activation) => plain::activate(activation, &x),
            None => Ok(x),
        }
    }

    /// Frames of the output for `frames` of the input; none for fewer than the kernel's.
    pub(crate) fn frames(&self, frames: usize) -> usize {
        frames.checked_sub(self.kernel).map_or(0, |rest| rest / self.stride + 1)
    }

    /// The fewest frames of the input that give `frames` of the output.
    pub(crate) fn least(&self, frames: usize) -> usize {
        frames.saturating_sub(1) * self.stride + self.kernel
    }

    /// `[frames, channels]` → `[self.frames(frames), outputs]`, row-major, on the CPU.
    ///
    /// # Errors
    /// Where the values are no whole frames, and where the convolution takes tensors.
    pub(crate) fn forward(&self, x: &[f32], epilogue: Epilogue<'_>) -> Result<Vec<f32>> {
        if !x.len().is_multiple_of(self.channels) {
            bail!("a convolution of {} channels was given {} values", self.channels, x.len())
        }
        let Form::Packed(dense) = &self.form else { bail!("a convolution of tensors was given values") };
        let (inputs, outputs) = (dense.inputs(), dense.outputs());
        let mut out = vec![0.0; self.frames(x.len() / self.channels) * outputs];
        let block = (WINDOWS / inputs).max(1);
        let mut windows = Vec::with_capacity((block * inputs).min(out.len() / outputs * inputs));
        for (i, out) in out.chunks_mut(block * outputs).enumerate() {
            windows.clear();
            for frame in 0..out.len() / outputs {
                let start = (i * block + frame) * self.stride * self.channels;
                windows.extend_from_slice(&x[start..start + inputs]);
            }
            kernels::product(dense, Isa::detect(), &windows, out, epilogue);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    #[test]
    fn it_is_candles_convolution() {
        // The second is cut into several blocks of windows.
        for (frames, outputs, channels, kernel, stride) in
            [(23, 7, 3, 4, 3), (9000, 2, 40, 5, 2), (10, 4, 1, 10, 5), (6, 2, 5, 1, 1)]
        {
            let (x, weight) = (values(frames * channels, 1), values(outputs * channels * kernel, 2));
            let layer = Convolution::new(&Device::Cpu, &weight, &values(outputs, 3), kernel, stride).unwrap();
            let found = layer.forward(&x, Epilogue::Linear).unwrap();
            let tensor = |values: Vec<f32>, shape: &[usize]| Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
            let x = tensor(x, &[1, frames, channels]).transpose(1, 2).unwrap().contiguous().unwrap();
            let expected = x.conv1d(&tensor(weight, &[outputs, channels, kernel]), 0, stride, 1, 1).unwrap();
            let expected = expected.broadcast_add(&tensor(values(outputs, 3), &[1, outputs, 1])).unwrap();
            assert_eq!(expected.dims(), [1, outputs, layer.frames(frames)]);
            let expected = expected.transpose(1, 2).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (a, b) in found.iter().zip(&expected) {
                assert!((a - b).abs() < 1e-4, "{a} {b}");
            }
            assert!(layer.forward(&vec![0.0; channels + 1], Epilogue::Linear).is_err() || channels == 1);
        }
    }

    #[test]
    fn the_fewest_frames_give_a_frame() {
        let layer = Convolution::new(&Device::Cpu, &values(2 * 3 * 4, 1), &values(2, 2), 4, 3).unwrap();
        assert_eq!((layer.least(1), layer.least(3)), (4, 10));
        assert_eq!([3, 4, 9, 10].map(|frames| layer.frames(frames)), [0, 1, 2, 3]);
    }
}
