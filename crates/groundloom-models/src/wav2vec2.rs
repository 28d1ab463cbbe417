//! wav2vec 2.0 (Baevski et al., "wav2vec 2.0: A Framework for Self-Supervised Learning of Speech Representations", 2020)
//! and HuBERT (Hsu et al., "HuBERT: Self-Supervised Speech Representation Learning by Masked Prediction of Hidden
//! Units", 2021): one network, trained differently.
//!
//! Reference: transformers' `modeling_wav2vec2.py`, `modeling_hubert.py`.

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde_json::Value;

use crate::{
    ModelError,
    clip::stack_shape,
    config::Config,
    convolution::Convolution,
    kernels::{Epilogue, Isa},
    layers::{Activation, LayerNorm, Linear, activation, padding_bias, plain, with_values},
    transformer::{BlockNames, NormPlace, Stack, StackShape},
    weights::Weights,
};

type Candle<T> = candle_core::Result<T>;

/// What keeps a variance from being zero in the norms of the extractor: torch's default, no option.
const EXTRACTOR_EPS: f64 = 1e-5;
/// Values of an activation that one task works on.
const TASK: usize = 1 << 16;

/// What a `config.json` calls the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Wav2Vec2,
    Hubert,
}

impl Kind {
    /// The kind of a `model_type`.
    pub(crate) fn of(model_type: &str) -> Option<Self> {
        [Self::Wav2Vec2, Self::Hubert].into_iter().find(|kind| kind.name() == model_type)
    }

    /// The `model_type`, and where a checkpoint with a head keeps the rest.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Wav2Vec2 => "wav2vec2",
            Self::Hubert => "hubert",
        }
    }
}

/// Convolutions, and a transformer over their frames.
#[derive(Debug)]
pub(crate) struct Wav2Vec2 {
    extractor: Extractor,
    projection_norm: Option<LayerNorm>,
    projection: Linear,
    positions: Positions,
    norms: NormPlace,
    norm: LayerNorm,
    stack: Stack,
    /// Length of a frame's vector.
    pub(crate) width: usize,
    /// A value for each token of the alphabet; none in a checkpoint that was not trained for texts.
    head: Option<Linear>,
    /// Tokens that the head chooses from.
    pub(crate) alphabet: usize,
}

/// From a waveform to frames.
#[derive(Debug)]
struct Extractor {
    layers: Vec<(Convolution, ExtractorNorm)>,
    activation: Activation,
    /// Length of a frame.
    channels: usize,
}

/// What lies between a convolution and its activation function.
#[derive(Debug)]
enum ExtractorNorm {
    None,
    /// Each channel over all frames (a group norm of as many groups as channels): what a frame becomes depends on the
    /// whole waveform.
    Time {
        weight: Vec<f32>,
        bias: Vec<f32>,
    },
    /// All channels of a frame.
    Channels(LayerNorm),
}

/// The convolution that tells a frame where it is among its neighbours, in groups of channels.
#[derive(Debug)]
struct Positions {
    groups: Vec<Convolution>,
    activation: Activation,
    kernel: usize,
}

impl Wav2Vec2 {
    /// Reads the network of a `config.json` of `kind`.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`], [`ModelError::BadWeights`].
    pub(crate) fn load(config: &Config, kind: Kind, weights: &Weights) -> Result<Self, ModelError> {
        let shape = stack_shape(config, [768, 3072, 12, 12], Activation::Gelu, 1e-5)?;
        let StackShape { width, eps, .. } = shape;
        let body = weights.at_first(&[kind.name(), ""]);
        let extractor = Extractor::load(config, &body.at("feature_extractor.conv_layers"))?;
        let stable = config.flag_or("do_stable_layer_norm", false)?;
        let norms = if stable { NormPlace::Before } else { NormPlace::After };
        let projection = body.at("feature_projection");
        let normed = kind == Kind::Wav2Vec2 || config.flag_or("feat_proj_layer_norm", true)?;
        let projection_norm = match normed {
            true => Some(LayerNorm::load(&projection.at("layer_norm"), extractor.channels, eps)?),
            false => None,
        };
        let encoder = body.at("encoder");
        let positions = Positions::load(config, &encoder.at("pos_conv_embed.conv"), width, extractor.activation)?;
        let alphabet = config.size_or("vocab_size", 32)?;
        unused_options(config)?;
        config.finish()?;
        let head = weights.at("lm_head");
        let head = match head.has("weight") {
            true => Some(Linear::load(&head, width, alphabet, true)?),
            false => None,
        };
        let this = Self {
            projection: Linear::load(&projection.at("projection"), extractor.channels, width, true)?,
            extractor,
            projection_norm,
            positions,
            norms,
            norm: LayerNorm::load(&encoder.at("layer_norm"), width, eps)?,
            stack: Stack::load(&encoder.at("layers"), shape, norms, BlockNames::WAV2VEC2)?,
            width,
            head,
            alphabet,
        };
        // What stood for masked frames in training, and what pre-training compared with.
        let mask = format!("{}.masked_spec_embed", kind.name());
        weights.finish(&["masked_spec_embed", &mask, "quantizer.", "project_hid.", "project_q."])?;
        Ok(this)
    }

    /// The blocks of the transformer.
    pub(crate) fn layers(&self) -> usize {
        self.stack.len()
    }

    /// Whether the checkpoint can tell texts.
    pub(crate) fn has_head(&self) -> bool {
        self.head.is_some()
    }

    /// Frames of a waveform of `samples`.
    pub(crate) fn frames(&self, samples: usize) -> usize {
        self.extractor.layers.iter().fold(samples, |frames, (layer, _)| layer.frames(frames))
    }

    /// Samples of the shortest waveform that has a frame.
    pub(crate) fn least_samples(&self) -> usize {
        self.extractor.layers.iter().rev().fold(1, |frames, (layer, _)| layer.least(frames))
    }

    /// What the convolutions make of a waveform, `[1, frames, channels]`.
    pub(crate) fn convolved(&self, waveform: &[f32]) -> Candle<Tensor> {
        if !self.extractor.takes_values() {
            return self.extractor.forward_tensor(waveform)?.unsqueeze(0);
        }
        let values = self.extractor.forward(waveform)?;
        let frames = values.len() / self.extractor.channels;
        Tensor::from_vec(values, (1, frames, self.extractor.channels), &Device::Cpu)
    }

    /// The norm before the projection, where there is one: `[1, frames, channels]` → the same.
    pub(crate) fn projection_input(&self, convolved: &Tensor) -> Candle<Tensor> {
        self.projection_norm.as_ref().map_or_else(|| Ok(convolved.clone()), |norm| norm.forward(convolved))
    }

    /// The projection: `[1, frames, channels]` → `[1, frames, width]`.
    pub(crate) fn project(&self, normed: &Tensor) -> Candle<Tensor> {
        self.projection.forward(normed)
    }

    /// What tells the frames where they are, `[1, frames, width]` → the same.
    pub(crate) fn positions(&self, projected: &Tensor) -> Candle<Tensor> {
        let (_, frames, width) = projected.dims3()?;
        if !self.positions.takes_values() {
            return self.positions.forward_tensor(&projected.squeeze(0)?)?.unsqueeze(0);
        }
        let values = with_values(projected, |x| self.positions.forward(x, width))?;
        Tensor::from_vec(values, (1, frames, width), &Device::Cpu)
    }

    /// The input of the first block and the outputs of the first `blocks`, which `each` sees, from projected frames
    /// `[1, frames, width]`; the last of them comes back. Frames from `real` on are padding: they count as zeros, and no
    /// other frame looks at them.
    pub(crate) fn encode(
        &self,
        projected: &Tensor,
        real: usize,
        blocks: usize,
        each: &mut dyn FnMut(&Tensor),
    ) -> Candle<Tensor> {
        let frames = projected.dim(1)?;
        let (mut x, mut bias) = (projected.clone(), None);
        if real < frames {
            x = x.narrow(1, 0, real)?.pad_with_zeros(1, 0, frames - real)?;
            let mask: Vec<u32> = (0..frames).map(|frame| u32::from(frame < real)).collect();
            bias = Some(padding_bias(&Tensor::from_vec(mask, (1, frames), &Device::Cpu)?)?);
        }
        x = (&x + self.positions(&x)?)?;
        if self.norms == NormPlace::After {
            x = self.norm.forward(&x)?;
        }
        each(&x);
        self.stack.forward_some(blocks, x, bias.as_ref(), each)
    }

    /// What comes after the last block: the norm, where the blocks have theirs before their layers.
    pub(crate) fn normed(&self, last: &Tensor) -> Candle<Tensor> {
        if self.norms == NormPlace::Before { self.norm.forward(last) } else { Ok(last.clone()) }
    }

    /// A value for each token, `[1, frames, width]` behind [`Wav2Vec2::normed`] → `[1, frames, alphabet]`; `None`
    /// without a head.
    pub(crate) fn logits(&self, normed: &Tensor) -> Candle<Option<Tensor>> {
        self.head.as_ref().map(|head| head.forward(normed)).transpose()
    }

    /// The likeliest token of each frame, the first of equals, from `[1, frames, width]` behind [`Wav2Vec2::normed`]; none
    /// without a head.
    pub(crate) fn likeliest(&self, normed: &Tensor) -> Candle<Vec<u32>> {
        let Some(logits) = self.logits(normed)? else { return Ok(Vec::new()) };
        let first = |frame: &[f32]| (1..frame.len()).fold(0, |best, i| if frame[i] > frame[best] { i } else { best });
        with_values(&logits, |logits| Ok(logits.chunks_exact(self.alphabet).map(|frame| first(frame) as u32).collect()))
    }

    /// The vectors of all frames of a waveform, `[1, frames, width]`: the input of block `layer`, from 0 on, the number of
    /// blocks standing for the output of the last; `None`: that output behind the last norm.
    pub(crate) fn features(&self, waveform: &[f32], layer: Option<usize>) -> Candle<Tensor> {
        let projected = self.project(&self.projection_input(&self.convolved(waveform)?)?)?;
        let frames = projected.dim(1)?;
        let x = self.encode(&projected, frames, layer.unwrap_or(self.layers()), &mut |_| ())?;
        if layer.is_none() { self.normed(&x) } else { Ok(x) }
    }
}

impl Extractor {
    fn load(config: &Config, weights: &Weights) -> Result<Self, ModelError> {
        let channels = config.sizes_or("conv_dim", &[512; 7])?;
        let kernels = config.sizes_or("conv_kernel", &[10, 3, 3, 3, 3, 2, 2])?;
        let strides = config.sizes_or("conv_stride", &[5, 2, 2, 2, 2, 2, 2])?;
        let count = channels.len();
        for (key, found) in [("conv_kernel", kernels.len()), ("conv_stride", strides.len())] {
            if found != count {
                return Err(config.bad(key, format!("a list of {count} as conv_dim is"), format!("one of {found}")));
            }
        }
        let named = config.size_or("num_feat_extract_layers", count)?;
        if named != count || count == 0 {
            return Err(config.bad("num_feat_extract_layers", format!("{count} as conv_dim is long"), named));
        }
        let bias = config.flag_or("conv_bias", false)?;
        let every = match config.text("feat_extract_norm")? {
            None | Some("group") => false,
            Some("layer") => true,
            Some(other) => return Err(config.bad("feat_extract_norm", "group or layer", other)),
        };
        let mut layers = Vec::with_capacity(count);
        for i in 0..count {
            let (place, outputs) = (weights.at(i), channels[i]);
            let inputs = if i == 0 { 1 } else { channels[i - 1] };
            let convolution = Convolution::load(&place.at("conv"), [outputs, inputs, kernels[i]], strides[i], bias)?;
            let norm = place.at("layer_norm");
            let norm = if every {
                ExtractorNorm::Channels(LayerNorm::load(&norm, outputs, EXTRACTOR_EPS)?)
            } else if i == 0 {
                let values = |name: &str| norm.values(name, &[outputs]);
                ExtractorNorm::Time { weight: values("weight")?, bias: values("bias")? }
            } else {
                ExtractorNorm::None
            };
            layers.push((convolution, norm));
        }
        let activation = activation(config, "feat_extract_activation", Activation::Gelu)?;
        Ok(Self { layers, activation, channels: channels[count - 1] })
    }

    fn takes_values(&self) -> bool {
        self.layers.iter().all(|(convolution, _)| convolution.takes_values())
    }

    /// As [`Extractor::forward`], in candle's operations.
    fn forward_tensor(&self, waveform: &[f32]) -> Candle<Tensor> {
        let mut x = Tensor::from_slice(waveform, (waveform.len(), 1), &Device::Cpu)?;
        for (convolution, norm) in &self.layers {
            x = match norm {
                ExtractorNorm::None => convolution.forward_tensor(&x, Some(self.activation))?,
                ExtractorNorm::Time { weight, bias } => {
                    let x = convolution.forward_tensor(&x, None)?;
                    let row = |values: &[f32]| Tensor::from_slice(values, values.len(), x.device());
                    let x = plain::standardised(&x, 0, EXTRACTOR_EPS)?.broadcast_mul(&row(weight)?)?;
                    plain::activate(self.activation, &x.broadcast_add(&row(bias)?)?)?
                }
                ExtractorNorm::Channels(norm) => {
                    let x = norm.forward(&convolution.forward_tensor(&x, None)?)?;
                    plain::activate(self.activation, &x)?
                }
            };
        }
        Ok(x)
    }

    /// A waveform → `[frames, channels]`.
    fn forward(&self, waveform: &[f32]) -> Candle<Vec<f32>> {
        let mut x = Vec::new();
        for (i, (convolution, norm)) in self.layers.iter().enumerate() {
            let input = if i == 0 { waveform } else { &x };
            x = match norm {
                ExtractorNorm::None => convolution.forward(input, Epilogue::Activate(self.activation))?,
                ExtractorNorm::Time { weight, bias } => {
                    let mut x = convolution.forward(input, Epilogue::Linear)?;
                    norm_over_time(&mut x, weight, bias);
                    self.activated(x)
                }
                ExtractorNorm::Channels(norm) => {
                    let mut x = convolution.forward(input, Epilogue::Linear)?;
                    norm.apply(&mut x)?;
                    self.activated(x)
                }
            };
        }
        Ok(x)
    }

    fn activated(&self, mut values: Vec<f32>) -> Vec<f32> {
        values.par_chunks_mut(TASK).for_each(|values| self.activation.apply(Isa::detect(), values));
        values
    }
}

/// Each channel of `[frames, channels]` to mean 0 and variance 1 over the frames, then scaled and shifted (Wu and He,
/// "Group Normalization", 2018, with groups of one channel).
fn norm_over_time(values: &mut [f32], weight: &[f32], bias: &[f32]) {
    let channels = weight.len();
    let count = (values.len() / channels).max(1) as f64;
    let sums = |f: &dyn Fn(usize, f32) -> f64| -> Vec<f64> {
        let mut sums = vec![0.0; channels];
        for frame in values.chunks_exact(channels) {
            for (channel, (sum, &x)) in sums.iter_mut().zip(frame).enumerate() {
                *sum += f(channel, x);
            }
        }
        sums.iter().map(|sum| sum / count).collect()
    };
    let means = sums(&|_, x| f64::from(x));
    let variances = sums(&|channel, x| (f64::from(x) - means[channel]).powi(2));
    let scales: Vec<f64> =
        variances.iter().zip(weight).map(|(v, &w)| f64::from(w) / (v + EXTRACTOR_EPS).sqrt()).collect();
    for frame in values.chunks_exact_mut(channels) {
        for (channel, x) in frame.iter_mut().enumerate() {
            *x = ((f64::from(*x) - means[channel]) * scales[channel] + f64::from(bias[channel])) as f32;
        }
    }
}

impl Positions {
    fn load(config: &Config, weights: &Weights, width: usize, activation: Activation) -> Result<Self, ModelError> {
        let kernel = config.size_or("num_conv_pos_embeddings", 128)?;
        let groups = config.size_or("num_conv_pos_embedding_groups", 16)?;
        if !width.is_multiple_of(groups) {
            return Err(config.bad("num_conv_pos_embedding_groups", format!("a divisor of the width {width}"), groups));
        }
        let channels = width / groups;
        let weight = normalised_weight(weights, [width, channels, kernel])?;
        let bias = weights.values("bias", &[width])?;
        let groups = weight.chunks_exact(channels * channels * kernel).zip(bias.chunks_exact(channels));
        let device = weights.device();
        let groups = groups.map(|(weight, bias)| Convolution::new(device, weight, bias, kernel, 1));
        Ok(Self { groups: groups.collect::<Result<_, _>>()?, activation, kernel })
    }

    fn takes_values(&self) -> bool {
        self.groups.iter().all(Convolution::takes_values)
    }

    /// As [`Positions::forward`], in candle's operations: `[frames, width]` → the same.
    fn forward_tensor(&self, x: &Tensor) -> Candle<Tensor> {
        let channels = x.dim(1)? / self.groups.len();
        let before = self.kernel / 2;
        let padded = x.pad_with_zeros(0, before, self.kernel - 1 - before)?;
        let group = |(i, convolution): (usize, &Convolution)| {
            convolution.forward_tensor(&padded.narrow(1, i * channels, channels)?, Some(self.activation))
        };
        let groups = self.groups.iter().enumerate().map(group).collect::<Candle<Vec<_>>>()?;
        Tensor::cat(&groups, 1)
    }

    /// `[frames, width]` → the same; before the first frame and behind the last there are zeros.
    fn forward(&self, x: &[f32], width: usize) -> Candle<Vec<f32>> {
        let (frames, channels) = (x.len() / width, width / self.groups.len());
        // An even kernel sees one frame more of what was than of what comes.
        let before = self.kernel / 2;
        let mut out = vec![0.0; x.len()];
        let mut padded = vec![0.0; (frames + self.kernel - 1) * channels];
        for (group, convolution) in self.groups.iter().enumerate() {
            let columns = group * channels..(group + 1) * channels;
            for (to, from) in padded[before * channels..].chunks_exact_mut(channels).zip(x.chunks_exact(width)) {
                to.copy_from_slice(&from[columns.clone()]);
            }
            let seen = convolution.forward(&padded, Epilogue::Activate(self.activation))?;
            for (to, from) in out.chunks_exact_mut(width).zip(seen.chunks_exact(channels)) {
                to[columns.clone()].copy_from_slice(from);
            }
        }
        Ok(out)
    }
}

/// The weight `[outputs, channels, kernel]` of a convolution whose length and direction are kept apart for each tap of
/// the kernel (Salimans and Kingma, "Weight Normalization", 2016): length · direction / |direction|. Files name the two
/// `weight_g` and `weight_v`, or as torch's parametrizations do.
fn normalised_weight(weights: &Weights, shape: [usize; 3]) -> Result<Vec<f32>, ModelError> {
    let [length, direction] = match weights.has("weight_g") {
        true => ["weight_g", "weight_v"],
        false => ["parametrizations.weight.original0", "parametrizations.weight.original1"],
    };
    let kernel = shape[2];
    let lengths = weights.values(length, &[1, 1, kernel])?;
    let mut values = weights.values(direction, &shape)?;
    let mut squares = vec![0.0; kernel];
    for taps in values.chunks_exact(kernel) {
        squares.iter_mut().zip(taps).for_each(|(sum, &x)| *sum += f64::from(x).powi(2));
    }
    if let Some(tap) = squares.iter().position(|&sum: &f64| sum == 0.0) {
        return Err(weights.bad(format!(
            "expected the positions' {direction} to have a direction for every tap of the kernel, found zeros at {tap}"
        )));
    }
    let factors: Vec<f64> = squares.iter().zip(&lengths).map(|(sum, &g)| f64::from(g) / sum.sqrt()).collect();
    for taps in values.chunks_exact_mut(kernel) {
        taps.iter_mut().zip(&factors).for_each(|(x, factor)| *x = (f64::from(*x) * factor) as f32);
    }
    Ok(values)
}

/// Options of training and of heads that are not here; parts that are not here are refused.
fn unused_options(config: &Config) -> Result<(), ModelError> {
    config.only("conv_pos_batch_norm", false)?;
    config.only("add_adapter", false)?;
    config.only("adapter_attn_dim", Value::Null)?;
    for inert in [
        // Sizes of the adapter.
        "adapter_kernel_size",
        "adapter_stride",
        "num_adapter_layers",
        "output_hidden_size",
        // Pre-training.
        "codevector_dim",
        "contrastive_logits_temperature",
        "diversity_loss_weight",
        "feat_quantizer_dropout",
        "num_codevector_groups",
        "num_codevectors_per_group",
        "num_negatives",
        "proj_codevector_dim",
        // Heads for classes and speakers.
        "tdnn_dilation",
        "tdnn_dim",
        "tdnn_kernel",
        "use_weighted_layer_sum",
        "xvector_output_dim",
        // Training.
        "activation_dropout",
        "apply_spec_augment",
        "classifier_proj_size",
        "ctc_loss_reduction",
        "ctc_zero_infinity",
        "feat_extract_dropout",
        "feat_proj_dropout",
        "final_dropout",
        "freeze_feat_extract_train",
        "hidden_dropout",
        "layerdrop",
        "no_mask_channel_overlap",
        "no_mask_time_overlap",
    ] {
        config.value(inert);
    }
    for inert in ["length", "min_masks", "min_space", "other", "prob", "selection"] {
        for axis in ["mask_channel", "mask_feature", "mask_time"] {
            config.value(&format!("{axis}_{inert}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_normed_over_time() {
        let mut values = [1.0, 100.0, 3.0, 100.0];
        norm_over_time(&mut values, &[2.0, 5.0], &[0.5, -1.0]);
        let unit = 2.0 / (1.0 + 1e-5_f32).sqrt();
        assert!((values[0] - (0.5 - unit)).abs() < 1e-6 && (values[2] - (0.5 + unit)).abs() < 1e-6, "{values:?}");
        assert_eq!([values[1], values[3]], [-1.0, -1.0]);
    }
}
