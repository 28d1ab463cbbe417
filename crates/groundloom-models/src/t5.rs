//! T5 (Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2020), and
//! its later form with gated layers (T5 1.1, Flan-T5): texts from texts.
//!
//! Reference: transformers' `modeling_t5.py`.

use candle_core::{DType, Device, Tensor};

use crate::{
    ModelError,
    config::Config,
    decoder::{CrossAttention, Decoder, DecoderBlock, Memory, Norm, Past},
    language_model::{last, row, word_layer},
    layers::{Activation, Embedding, Linear, RmsNorm, causal_bias, compute, padding_bias},
    relative_position::{Buckets, relative_bias},
    text_tokenizer::configured_pad,
    transformer::NormPlace,
    weights::Weights,
    writing::{Ending, Texts, Writing, Written, write},
};

type Candle<T> = candle_core::Result<T>;

/// Tensors of older files: the shared table once more for each half, and a bias that the reference does not read.
pub(crate) const OLD: &[&str] = &[
    "encoder.embed_tokens.",
    "decoder.embed_tokens.",
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.",
];

/// Tokens of an answer: positions are distances and have no end.
const LONGEST_ANSWER: usize = 1 << 16;

/// `T5ForConditionalGeneration`.
#[derive(Debug)]
pub(crate) struct T5 {
    words: Embedding,
    encoder: Half,
    decoder: Half,
    head: Linear,
    /// What the decoder's vectors are multiplied by before the words are chosen.
    head_scale: f64,
    /// Begins every answer.
    pub(crate) start: u32,
    /// Ends it.
    pub(crate) end: u32,
    pub(crate) pad: u32,
}

/// The encoder or the decoder.
#[derive(Debug)]
struct Half {
    blocks: Decoder,
    norm: RmsNorm,
    /// `[buckets, heads]`: what is added to scores by distance.
    distances: Tensor,
    buckets: Buckets,
}

/// Sizes of a half.
#[derive(Debug, Clone, Copy)]
struct Shape {
    width: usize,
    /// Length of the queries of all heads, which need not be the width.
    attended: usize,
    heads: usize,
    inner: usize,
    activation: Activation,
    gated: bool,
    eps: f64,
}

impl T5 {
    /// Reads the network of a `config.json` with `model_type` `t5`.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`], [`ModelError::BadWeights`].
    pub(crate) fn load(config: &Config, weights: &Weights) -> Result<Self, ModelError> {
        let this = Self::load_at(weights, config)?;
        config.finish()?;
        weights.finish(OLD)?;
        Ok(this)
    }

    /// Reads the network at `weights`, of the options of `config`; whether anything else is there, the caller asks (the
    /// tensors [`OLD`] may be).
    ///
    /// # Errors
    /// [`ModelError::BadConfig`], [`ModelError::BadWeights`].
    pub(crate) fn load_at(weights: &Weights, config: &Config) -> Result<Self, ModelError> {
        let (gated, activation) = match config.text("feed_forward_proj")?.unwrap_or("relu") {
            "relu" => (false, Activation::Relu),
            "gated-gelu" => (true, Activation::GeluTanh),
            "gated-silu" => (true, Activation::Silu),
            found => return Err(config.bad("feed_forward_proj", "relu, gated-gelu or gated-silu", found)),
        };
        let heads = config.size_or("num_heads", 8)?;
        let shape = Shape {
            width: config.size_or("d_model", 512)?,
            attended: heads * config.size_or("d_kv", 64)?,
            heads,
            inner: config.size_or("d_ff", 2048)?,
            activation,
            gated,
            eps: config.number_or("layer_norm_epsilon", 1e-6)?,
        };
        let buckets = |both_ways: bool| -> Result<Buckets, ModelError> {
            Ok(Buckets {
                count: config.size_or("relative_attention_num_buckets", 32)?,
                farthest: config.size_or("relative_attention_max_distance", 128)?,
                both_ways,
            })
        };
        let layers = config.size_or("num_layers", 6)?;
        let vocabulary = config.size_or("vocab_size", 32_128)?;
        let tied = config.flag_or("tie_word_embeddings", true)?;
        let scaled = config.flag_or("scale_decoder_outputs", tied)?;
        // Said by feed_forward_proj already; training; what older files hold.
        for inert in ["dense_act_fn", "is_gated_act", "dropout_rate", "n_positions", "output_past"] {
            config.value(inert);
        }
        let (start, end) = (config.id_if_there("decoder_start_token_id")?, config.id_if_there("eos_token_id")?);
        let decoder_layers = config.size_or("num_decoder_layers", layers)?;
        let (both_ways, one_way) = (buckets(true)?, buckets(false)?);
        for buckets in [both_ways, one_way] {
            if !buckets.usable() {
                let expected = "at least 4, of which a quarter is less than relative_attention_max_distance";
                return Err(config.bad("relative_attention_num_buckets", expected, buckets.count));
            }
        }
        let pad = configured_pad(config)?;
        let words = Embedding::load(&weights.at("shared"), vocabulary, shape.width)?;
        Ok(Self {
            encoder: Half::load(&weights.at("encoder"), shape, layers, both_ways)?,
            decoder: Half::load(&weights.at("decoder"), shape, decoder_layers, one_way)?,
            head: word_layer(weights, &words, [vocabulary, shape.width])?,
            head_scale: if scaled { (shape.width as f64).powf(-0.5) } else { 1.0 },
            words,
            start: start.unwrap_or(0),
            end: end.unwrap_or(1),
            pad,
        })
    }

    /// Token ids `[n, length]` → their vectors, `[n, length, width]`.
    pub(crate) fn embed(&self, ids: &Tensor) -> Candle<Tensor> {
        self.words.forward(ids)
    }

    /// The vectors of tokens, or of what stands in their place (`[n, length, width]`), and the mask of what is no padding
    /// (`[n, length]`) → the encoder's vectors, `[n, length, width]`. `each` sees the first and the output of every block.
    pub(crate) fn encode(&self, x: Tensor, mask: &Tensor, each: &mut dyn FnMut(&Tensor)) -> Candle<Tensor> {
        let length = x.dim(1)?;
        let distances = relative_bias(&self.encoder.distances, self.encoder.buckets, 0..length, length)?;
        let bias = distances.broadcast_add(&padding_bias(mask)?.to_device(distances.device())?)?;
        each(&x);
        self.encoder.norm.forward(&self.encoder.blocks.forward(x, Some(&bias), None, None, each)?)
    }

    /// What the decoder makes of the encoder's vectors.
    pub(crate) fn remember(&self, encoded: &Tensor, mask: &Tensor) -> Candle<Memory> {
        self.decoder.blocks.remember(encoded, Some(padding_bias(mask)?))
    }

    /// Token ids `[n, length]` behind `past` → a value for each token of the vocabulary, `[n, length, vocabulary]`.
    pub(crate) fn decode(&self, ids: &Tensor, past: &mut Past, memory: &Memory) -> Candle<Tensor> {
        let (before, length) = (past.len(), ids.dim(1)?);
        let Half { blocks, norm, distances, buckets } = &self.decoder;
        let keys = before + length;
        let bias = relative_bias(distances, *buckets, before..keys, keys)?;
        let bias = bias.broadcast_add(&causal_bias(before, length, None)?.to_device(bias.device())?)?;
        let x = blocks.forward(self.words.forward(ids)?, Some(&bias), Some(past), Some(memory), &mut |_| ())?;
        self.head.forward(&norm.forward(&x)?.affine(self.head_scale, 0.0)?)
    }
}

impl T5 {
    /// Writes the answer to the vectors of one text, `[1, length, width]`; `each` sees the values behind every token.
    ///
    /// # Errors
    /// [`Writing::check`]'s; [`ModelError::Compute`] where candle refuses, which is a defect.
    pub(crate) fn answer(
        &self,
        vectors: Tensor,
        writing: &Writing,
        seed: u64,
        each: &mut dyn FnMut(&[f32]),
    ) -> Result<Written, ModelError> {
        let failed = compute("T5");
        let read = || {
            let mask = Tensor::ones((1, vectors.dim(1)?), DType::U32, &Device::Cpu)?;
            self.remember(&self.encode(vectors, &mask, &mut |_| ())?, &mask)
        };
        let memory = read().map_err(&failed)?;
        let mut past = Past::default();
        let start = [self.start];
        let mut next = |texts: Texts<'_>| {
            let mut run = || {
                let ids = texts.follow([&mut past])?.map_or_else(|| row(&start), Ok)?;
                last(&self.decode(&ids, &mut past, &memory)?)
            };
            run().map_err(&failed)
        };
        write(writing, seed, &start, Ending::at(&[self.end]), LONGEST_ANSWER, &mut next, each)
    }
}

impl Half {
    fn load(weights: &Weights, shape: Shape, layers: usize, buckets: Buckets) -> Result<Self, ModelError> {
        let blocks = weights.at("block");
        let distances = blocks.at("0.layer.0.SelfAttention.relative_attention_bias");
        Ok(Self {
            distances: distances.tensor("weight", &[buckets.count, shape.heads])?,
            blocks: Decoder {
                norms: NormPlace::Before,
                heads: shape.heads,
                // The reference does not divide scores by the root of their length.
                scale: 1.0,
                activation: shape.activation,
                rotary: None,
                blocks: (0..layers)
                    .map(|i| block(&blocks.at(i).at("layer"), shape, !buckets.both_ways))
                    .collect::<Result<_, _>>()?,
            },
            norm: RmsNorm::load(&weights.at("final_layer_norm"), shape.width, shape.eps)?,
            buckets,
        })
    }
}

/// A block, with attention to the encoder where it is one of the decoder's.
fn block(weights: &Weights, shape: Shape, decodes: bool) -> Result<DecoderBlock, ModelError> {
    let Shape { width, attended, inner, eps, .. } = shape;
    let norm = |layer: usize| RmsNorm::load(&weights.at(layer).at("layer_norm"), width, eps).map(Norm::Rms);
    let plain = |place: &Weights, name: &str, inputs: usize, outputs: usize| {
        Linear::load(&place.at(name), inputs, outputs, false)
    };
    let fused = |place: &Weights, names: &[&str]| {
        let parts: Vec<_> = names.iter().map(|name| (place.at(name), false)).collect();
        Linear::load_fused(&parts, width, attended)
    };
    let own = weights.at("0.SelfAttention");
    let cross = match decodes {
        false => None,
        true => {
            let place = weights.at("1.EncDecAttention");
            Some(CrossAttention {
                before: None,
                memory_norm: None,
                query: plain(&place, "q", width, attended)?,
                key_value: fused(&place, &["k", "v"])?,
                output: plain(&place, "o", attended, width)?,
                norm: norm(1)?,
            })
        }
    };
    let last = if decodes { 2 } else { 1 };
    let layers = weights.at(last).at("DenseReluDense");
    Ok(DecoderBlock {
        inner_norms: None,
        qkv: fused(&own, &["q", "k", "v"])?,
        head_norms: None,
        output: plain(&own, "o", attended, width)?,
        attention_norm: norm(0)?,
        cross,
        up: plain(&layers, if shape.gated { "wi_0" } else { "wi" }, width, inner)?,
        gate: if shape.gated { Some(plain(&layers, "wi_1", width, inner)?) } else { None },
        down: plain(&layers, "wo", inner, width)?,
        feed_forward_norm: norm(last)?,
    })
}
