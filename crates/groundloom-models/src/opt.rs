//! OPT (Zhang et al., "OPT: Open Pre-trained Transformer Language Models", 2022), also the language model of BLIP-2.
//!
//! Reference: transformers' `modeling_opt.py`.

use candle_core::Tensor;

use crate::{
    ModelError,
    config::Config,
    decoder::{Decoder, Past},
    language_model::{LanguageModel, TextLimits, Words},
    layers::{Activation, Embedding, LayerNorm, Linear, activation, causal_bias},
    transformer::{BlockNames, NormPlace, StackShape},
    weights::Weights,
};

type Candle<T> = candle_core::Result<T>;

/// Rows of the table of positions before that of the first token.
const OFFSET: usize = 2;

/// How the blocks of fairseq's decoders name their parts.
pub(crate) const NAMES: BlockNames = BlockNames {
    attention_norm: "self_attn_layer_norm",
    up: "fc1",
    down: "fc2",
    feed_forward_norm: "final_layer_norm",
    ..BlockNames::CLIP
};

/// The options of an OPT.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OptConfig {
    pub(crate) stack: StackShape,
    norms: NormPlace,
    /// Whether a norm lies behind the last block.
    final_norm: bool,
    /// Length of a word's vector, and of what comes out behind the last block.
    pub(crate) words: usize,
    vocabulary: usize,
    limits: TextLimits,
}

impl OptConfig {
    /// Reads a `config.json` with `model_type` `opt`, or the `text_config` of another.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`].
    pub(crate) fn read(config: &Config) -> Result<Self, ModelError> {
        let width = config.size_or("hidden_size", 768)?;
        let before = config.flag_or("do_layer_norm_before", true)?;
        let removed = config.flag_or("_remove_final_layer_norm", false)?;
        for inert in ["layerdrop", "init_std", "activation_dropout"] {
            config.value(inert);
        }
        config.only("enable_bias", true)?;
        config.only("layer_norm_elementwise_affine", true)?;
        Ok(Self {
            stack: StackShape {
                layers: config.size_or("num_hidden_layers", 12)?,
                width,
                heads: config.size_or("num_attention_heads", 12)?,
                inner: config.size_or("ffn_dim", 3072)?,
                activation: activation(config, "activation_function", Activation::Relu)?,
                eps: 1e-5,
            },
            norms: if before { NormPlace::Before } else { NormPlace::After },
            final_norm: before && !removed,
            words: config.size_or("word_embed_proj_dim", width)?,
            vocabulary: config.size_or("vocab_size", 50_272)?,
            limits: TextLimits {
                longest: config.size_or("max_position_embeddings", 2048)?,
                start: config.id_if_there("bos_token_id")?.unwrap_or(2),
                end: config.id_if_there("eos_token_id")?.unwrap_or(2),
            },
        })
    }
}

/// `OPTForCausalLM`.
#[derive(Debug)]
pub(crate) struct Opt {
    words: Words,
    positions: Embedding,
    project_in: Option<Linear>,
    decoder: Decoder,
    norm: Option<LayerNorm>,
    project_out: Option<Linear>,
}

impl Opt {
    /// Reads the network of a `config.json` with `model_type` `opt`.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`], [`ModelError::BadWeights`].
    pub(crate) fn load(config: &Config, weights: &Weights) -> Result<Self, ModelError> {
        let options = OptConfig::read(config)?;
        config.finish()?;
        let this = Self::load_at(weights, options)?;
        weights.finish(&[])?;
        Ok(this)
    }

    /// Reads the network at `weights`: `model.decoder`, and `lm_head` where the checkpoint has one.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`].
    pub(crate) fn load_at(weights: &Weights, config: OptConfig) -> Result<Self, ModelError> {
        let StackShape { width, eps, .. } = config.stack;
        let body = weights.at_first(&["model.decoder", "decoder"]);
        let between = |name: &str, inputs: usize, outputs: usize| match config.words == width {
            true => Ok(None),
            false => Linear::load(&body.at(name), inputs, outputs, false).map(Some),
        };
        let norm = match config.final_norm {
            true => Some(LayerNorm::load(&body.at("final_layer_norm"), width, eps)?),
            false => None,
        };
        Ok(Self {
            positions: Embedding::load(&body.at("embed_positions"), config.limits.longest + OFFSET, width)?,
            project_in: between("project_in", config.words, width)?,
            decoder: Decoder::load(&body.at("layers"), config.stack, config.norms, NAMES)?,
            norm,
            project_out: between("project_out", width, config.words)?,
            words: Words::load(weights, &body.at("embed_tokens"), [config.vocabulary, config.words], config.limits)?,
        })
    }

    /// The rows of the positions of `length` tokens, `[n or 1, length]`: padding does not count.
    fn position_rows(&self, before: usize, length: usize, mask: Option<&Tensor>) -> Candle<Tensor> {
        let row = |mask: Vec<u32>| {
            let mut next = (OFFSET + before) as u32;
            let number = move |real: u32| {
                next += real;
                // Padding has the row before the first token's.
                if real == 1 { next - 1 } else { OFFSET as u32 - 1 }
            };
            mask.into_iter().map(number).collect::<Vec<u32>>()
        };
        let masks = match mask {
            Some(mask) => mask.to_vec2()?,
            None => vec![vec![1; length]],
        };
        let texts = masks.len();
        let rows = masks.into_iter().flat_map(row).collect::<Vec<u32>>();
        Tensor::from_vec(rows, (texts, length), self.positions.table().device())
    }
}

impl LanguageModel for Opt {
    fn forward(
        &self,
        vectors: Tensor,
        mask: Option<&Tensor>,
        past: &mut Past,
        each: &mut dyn FnMut(&Tensor),
    ) -> Candle<Tensor> {
        let (before, length) = (past.len(), vectors.dim(1)?);
        let bias = causal_bias(before, length, mask)?;
        let x = match &self.project_in {
            Some(layer) => layer.forward(&vectors)?,
            None => vectors,
        };
        let x = x.broadcast_add(&self.positions.forward(&self.position_rows(before, length, mask)?)?)?;
        each(&x);
        let mut x = self.decoder.forward(x, Some(&bias), Some(past), None, each)?;
        if let Some(norm) = &self.norm {
            x = norm.forward(&x)?;
        }
        match &self.project_out {
            Some(layer) => layer.forward(&x),
            None => Ok(x),
        }
    }

    fn words(&self) -> &Words {
        &self.words
    }
}
