//! Whisper (Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022): an encoder of log-mel
//! spectra, and a decoder that writes what is said.
//!
//! Reference: transformers' `modeling_whisper.py`, `generation_whisper.py`, `feature_extraction_whisper.py`.

mod alignment;
mod log_mel;
mod prompt;
mod transcriber;
mod words;

use candle_core::{Device, IndexOp, Tensor};

use crate::{
    ModelError,
    config::Config,
    convolution::Convolution,
    decoder::{CrossAttention, Decoder, DecoderBlock, Memory, Norm, Past},
    kernels::Epilogue,
    language_model::row,
    layers::{Activation, Embedding, LayerNorm, Linear, activation, causal_bias},
    opt,
    transformer::{BlockNames, NormPlace, Stack, StackShape},
    weights::Weights,
};
use alignment::Attended;
pub(crate) use log_mel::LogMel;
pub(crate) use prompt::Prompts;
pub(crate) use transcriber::{WhisperEncoder, WhisperTranscriber};
pub(crate) use words::Timed;

type Candle<T> = candle_core::Result<T>;

const NAMES: BlockNames = BlockNames { key_bias: false, ..opt::NAMES };

/// Epsilon of the norms: torch's default, no option.
const EPS: f64 = 1e-5;

/// Frames of a spectrum for each vector of the encoder: the stride of the second convolution.
pub(crate) const STRIDE: usize = 2;

/// `WhisperForConditionalGeneration`.
#[derive(Debug)]
pub(crate) struct Whisper {
    convolutions: [Convolution; 2],
    /// `[positions, width]`.
    positions: Tensor,
    encoder: Stack,
    encoder_norm: LayerNorm,
    words: Embedding,
    word_positions: Embedding,
    decoder: Decoder,
    decoder_norm: LayerNorm,
    head: Linear,
    /// Length of a vector.
    pub(crate) width: usize,
    /// Mel filters of a spectrum.
    pub(crate) mels: usize,
    /// Vectors of the encoder for one window.
    pub(crate) frames: usize,
    /// The longest text in tokens, the prompt among them.
    pub(crate) longest: usize,
    /// Tokens that it chooses from.
    pub(crate) vocabulary: usize,
    /// Frames of the encoder that a median is taken of, to tell when words are said.
    pub(crate) median_width: usize,
}

impl Whisper {
    /// Reads the network of a `config.json` with `model_type` `whisper`.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`], [`ModelError::BadWeights`].
    pub(crate) fn load(config: &Config, weights: &Weights) -> Result<Self, ModelError> {
        let width = config.size_or("d_model", 384)?;
        let activation = activation(config, "activation_function", Activation::Gelu)?;
        let shape = |half: &str| -> Result<StackShape, ModelError> {
            Ok(StackShape {
                layers: config.size_or(&format!("{half}_layers"), 4)?,
                width,
                heads: config.size_or(&format!("{half}_attention_heads"), 6)?,
                inner: config.size_or(&format!("{half}_ffn_dim"), 1536)?,
                activation,
                eps: EPS,
            })
        };
        let (reading, writing) = (shape("encoder")?, shape("decoder")?);
        let mels = config.size_or("num_mel_bins", 80)?;
        let frames = config.size_or("max_source_positions", 1500)?;
        let longest = config.size_or("max_target_positions", 448)?;
        let vocabulary = config.size_or("vocab_size", 51_865)?;
        let median_width = config.size_or("median_filter_width", 7)?;
        if median_width.is_multiple_of(2) {
            return Err(config.bad("median_filter_width", "an odd number", median_width));
        }
        unused_options(config)?;
        config.finish()?;

        let body = weights.at_first(&["model", ""]);
        let (encoder, decoder) = (body.at("encoder"), body.at("decoder"));
        let convolution = |name: &str, channels: usize, stride: usize| {
            Convolution::load(&encoder.at(name), [width, channels, 3], stride, true)
        };
        let layers = decoder.at("layers");
        let blocks = (0..writing.layers).map(|i| block(&layers.at(i), writing)).collect::<Result<_, _>>()?;
        let words = Embedding::load(&decoder.at("embed_tokens"), vocabulary, width)?;
        let this = Self {
            convolutions: [convolution("conv1", mels, 1)?, convolution("conv2", width, STRIDE)?],
            positions: encoder.tensor("embed_positions.weight", &[frames, width])?,
            encoder: Stack::load(&encoder.at("layers"), reading, NormPlace::Before, NAMES)?,
            encoder_norm: LayerNorm::load(&encoder.at("layer_norm"), width, EPS)?,
            head: Linear::tied(&words, None)?,
            words,
            word_positions: Embedding::load(&decoder.at("embed_positions"), longest, width)?,
            decoder: Decoder::new(&layers, writing, NormPlace::Before, blocks)?,
            decoder_norm: LayerNorm::load(&decoder.at("layer_norm"), width, EPS)?,
            width,
            mels,
            frames,
            longest,
            vocabulary,
            median_width,
        };
        // Older files hold the table of words twice.
        weights.finish(&["proj_out."])?;
        Ok(this)
    }

    /// The blocks of the encoder.
    pub(crate) fn layers(&self) -> usize {
        self.encoder.len()
    }

    /// The input of the encoder's first block and the outputs of the first `blocks`, which `each` sees, of a window's
    /// spectrum, `[2 · frames, mels]` → the last of them, `[1, frames, width]`.
    pub(crate) fn encode(&self, spectrum: &[f32], blocks: usize, each: &mut dyn FnMut(&Tensor)) -> Candle<Tensor> {
        let [first, second] = &self.convolutions;
        // A frame of zeros at each end.
        let x = if first.takes_values() {
            let convolved = |layer: &Convolution, x: &[f32], channels: usize| {
                let silence = vec![0.0; channels];
                layer.forward(&[&silence, x, &silence].concat(), Epilogue::Activate(Activation::Gelu))
            };
            let x = convolved(second, &convolved(first, spectrum, self.mels)?, self.width)?;
            Tensor::from_vec(x, (self.frames, self.width), &Device::Cpu)?
        } else {
            let convolved = |layer: &Convolution, x: &Tensor| {
                layer.forward_tensor(&x.pad_with_zeros(0, 1, 1)?, Some(Activation::Gelu))
            };
            let x = Tensor::from_slice(spectrum, (spectrum.len() / self.mels, self.mels), &Device::Cpu)?;
            convolved(second, &convolved(first, &x)?)?
        };
        let x = (x + &self.positions)?.unsqueeze(0)?;
        each(&x);
        self.encoder.forward_some(blocks, x, None, each)
    }

    /// What comes behind the encoder's last block.
    pub(crate) fn normed(&self, last: &Tensor) -> Candle<Tensor> {
        self.encoder_norm.forward(last)
    }

    /// What the decoder makes of the encoder's vectors behind [`Whisper::normed`].
    pub(crate) fn remember(&self, encoded: &Tensor) -> Candle<Memory> {
        self.decoder.remember(encoded, None)
    }

    /// Token ids `[n, length]` behind `past` → a value for each token of the vocabulary, `[n, length, vocabulary]`.
    pub(crate) fn decode(&self, ids: &Tensor, past: &mut Past, memory: &Memory) -> Candle<Tensor> {
        let (x, bias) = self.placed(ids, past.len())?;
        let x = self.decoder.forward(x, Some(&bias), Some(past), Some(memory), &mut |_| ())?;
        self.head.forward(&self.decoder_norm.forward(&x)?)
    }

    /// The decoder's input for tokens behind `before` others, and what keeps each from those behind it.
    fn placed(&self, ids: &Tensor, before: usize) -> Candle<(Tensor, Tensor)> {
        let length = ids.dim(1)?;
        let device = self.word_positions.table().device();
        let places = Tensor::arange(before as u32, (before + length) as u32, device)?;
        let x = self.words.forward(ids)?.broadcast_add(&self.word_positions.forward(&places)?)?;
        Ok((x, causal_bias(before, length, None)?))
    }

    /// Where `heads` (a block and one of its heads each) look while the decoder reads `ids`: for each head, of the tokens
    /// behind the first `skipped`, how much it attends to the first `frames` vectors of the encoder, `[tokens, frames]`.
    pub(crate) fn attended(
        &self,
        ids: &[u32],
        memory: &Memory,
        heads: &[[usize; 2]],
        skipped: usize,
        frames: usize,
    ) -> Candle<Vec<Attended>> {
        let mut attended: Vec<Attended> = vec![Vec::new(); heads.len()];
        let width = self.width / self.decoder.heads;
        let mut asks = |block: usize, queries: &Tensor| {
            let Some(keys) = memory.keys(block) else { return Ok(()) };
            for (attended, [_, head]) in attended.iter_mut().zip(heads).filter(|(_, [of, _])| *of == block) {
                let part = |x: &Tensor| x.i(0)?.narrow(1, head * width, width)?.contiguous();
                let queries = part(&queries.narrow(1, skipped, ids.len() - skipped)?)?;
                let scores = queries.matmul(&part(keys)?.t()?)?.affine(f64::from(self.decoder.scale), 0.0)?;
                let all = candle_nn::ops::softmax_last_dim(&scores)?;
                *attended = all.narrow(1, 0, frames)?.flatten_all()?.to_vec1()?;
            }
            Ok(())
        };
        let (x, bias) = self.placed(&row(ids)?, 0)?;
        let past = &mut Past::default();
        self.decoder.forward_watched(x, Some(&bias), Some(past), Some(memory), &mut |_| (), &mut asks)?;
        Ok(attended)
    }

    /// Blocks of the decoder, and heads of each.
    pub(crate) fn decoder_heads(&self) -> [usize; 2] {
        [self.decoder.blocks.len(), self.decoder.heads]
    }
}

/// A block of the decoder.
fn block(weights: &Weights, shape: StackShape) -> Result<DecoderBlock, ModelError> {
    let width = shape.width;
    let attention = weights.at("encoder_attn");
    let layer = |name: &str| Linear::load(&attention.at(name), width, width, true);
    let keys_values = [(attention.at("k_proj"), false), (attention.at("v_proj"), true)];
    Ok(DecoderBlock {
        inner_norms: None,
        cross: Some(CrossAttention {
            before: None,
            memory_norm: None,
            query: layer("q_proj")?,
            key_value: Linear::load_fused(&keys_values, width, width)?,
            output: layer("out_proj")?,
            norm: Norm::Layer(LayerNorm::load(&weights.at("encoder_attn_layer_norm"), width, EPS)?),
        }),
        ..DecoderBlock::load(weights, shape, NAMES)?
    })
}

/// Options of training and of other heads, and those that `prompt` reads where there is no `generation_config.json`.
fn unused_options(config: &Config) -> Result<(), ModelError> {
    config.only("scale_embedding", false)?;
    config.only("tie_word_embeddings", true)?;
    for inert in [
        // Written by older versions beside encoder_layers.
        "num_hidden_layers",
        "forced_decoder_ids",
        // Classes of sounds.
        "classifier_proj_size",
        "use_weighted_layer_sum",
        // Training.
        "activation_dropout",
        "apply_spec_augment",
        "decoder_layerdrop",
        "encoder_layerdrop",
        "init_std",
    ] {
        config.value(inert);
    }
    for inert in ["length", "min_masks", "prob"] {
        for axis in ["mask_feature", "mask_time"] {
            config.value(&format!("{axis}_{inert}"));
        }
    }
    Ok(())
}
