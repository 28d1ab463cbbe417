//! BERT (Devlin et al., 2019), RoBERTa and XLM-R (Liu et al., 2019; Conneau et al., 2020), MPNet (Song et al., 2020):
//! encoders of text, and most sentence encoders (MiniLM, BGE, E5, GTE).
//!
//! Reference: transformers' `modeling_bert.py`, `modeling_roberta.py`, `modeling_mpnet.py`.

use candle_core::{IndexOp, Tensor};

use crate::{
    ModelError,
    clip::stack_shape,
    config::Config,
    layers::{Activation, Embedding, LayerNorm, Linear, compute, padding_bias},
    relative_position::{Buckets, relative_bias},
    text_tokenizer::configured_pad,
    transformer::{BlockNames, NormPlace, Stack, StackShape},
    weights::Weights,
};

type Candle<T> = candle_core::Result<T>;

/// Which encoder a `config.json` describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Bert,
    /// RoBERTa and XLM-R.
    Roberta,
    Mpnet,
}

impl Kind {
    /// The kind of a `model_type`.
    pub(crate) fn of(model_type: &str) -> Option<Self> {
        Some(match model_type {
            "bert" => Self::Bert,
            "roberta" | "xlm-roberta" => Self::Roberta,
            "mpnet" => Self::Mpnet,
            _ => return None,
        })
    }

    /// The `model_type`.
    pub(crate) fn name(self) -> &'static str {
        self.prefix()
    }

    /// Where a checkpoint with a head keeps the encoder.
    fn prefix(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::Roberta => "roberta",
            Self::Mpnet => "mpnet",
        }
    }
}

/// Rows of MPNet's table of distances; the reference takes no other number.
const BUCKETS: usize = 32;
/// MPNet's distances.
const DISTANCES: Buckets = Buckets { count: BUCKETS, farthest: 128, both_ways: true };

/// The options of an encoder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TextEncoderConfig {
    pub(crate) kind: Kind,
    pub(crate) stack: StackShape,
    pub(crate) vocabulary: usize,
    /// Rows of the table of positions.
    positions: usize,
    types: usize,
    pub(crate) pad: u32,
}

impl TextEncoderConfig {
    /// Reads a `config.json`, or an object of one.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`].
    pub(crate) fn read(config: &Config, kind: Kind) -> Result<Self, ModelError> {
        let stack = stack_shape(config, [768, 3072, 12, 12], Activation::Gelu, 1e-12)?;
        let this = Self {
            kind,
            stack,
            vocabulary: config.size_or("vocab_size", if kind == Kind::Bert { 30_522 } else { 30_527 })?,
            positions: config.size_or("max_position_embeddings", 512)?,
            types: if kind == Kind::Mpnet { 0 } else { config.size_or("type_vocab_size", 2)? },
            pad: configured_pad(config)?,
        };
        if kind == Kind::Mpnet {
            config.only("relative_attention_num_buckets", BUCKETS)?;
        }
        if this.longest() == 0 {
            return Err(config.bad("max_position_embeddings", "more than the padding's number + 1", this.positions));
        }
        config.finish()?;
        Ok(this)
    }

    /// The longest text in tokens.
    pub(crate) fn longest(&self) -> usize {
        self.positions.saturating_sub(self.first_position())
    }

    /// The row of the first token's position: RoBERTa and MPNet count from behind the padding's number.
    fn first_position(&self) -> usize {
        if self.kind == Kind::Bert { 0 } else { self.pad as usize + 1 }
    }
}

/// An encoder of token ids.
#[derive(Debug)]
pub(crate) struct TextEncoder {
    pub(crate) config: TextEncoderConfig,
    words: Embedding,
    positions: Embedding,
    types: Option<Embedding>,
    norm: LayerNorm,
    stack: Stack,
    relative: Option<Tensor>,
    pooler: Option<Linear>,
}

impl TextEncoder {
    /// Reads the encoder of `weights`, which lies behind `bert.` where the checkpoint has a head; the head is left
    /// alone.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`].
    pub(crate) fn load(weights: &Weights, config: TextEncoderConfig) -> Result<Self, ModelError> {
        let this = Self::load_at(&weights.at_first(&[config.kind.prefix(), ""]), config)?;
        weights.finish(&["cls.", "lm_head.", "pooler.", "classifier.", "qa_outputs."])?;
        Ok(this)
    }

    /// As [`TextEncoder::load`], of an encoder that is a part of something else.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`].
    pub(crate) fn load_at(weights: &Weights, config: TextEncoderConfig) -> Result<Self, ModelError> {
        let StackShape { width, heads, eps, .. } = config.stack;
        let embeddings = weights.at("embeddings");
        let table = |name: &str, rows: usize| Embedding::load(&embeddings.at(name), rows, width);
        let names = if config.kind == Kind::Mpnet { BlockNames::MPNET } else { BlockNames::BERT };
        let relative = match config.kind {
            Kind::Mpnet => Some(weights.tensor("encoder.relative_attention_bias.weight", &[BUCKETS, heads])?),
            _ => None,
        };
        let pooler = weights.at("pooler.dense");
        Ok(Self {
            config,
            words: table("word_embeddings", config.vocabulary)?,
            positions: table("position_embeddings", config.positions)?,
            types: match config.types {
                0 => None,
                types => Some(table("token_type_embeddings", types)?),
            },
            norm: LayerNorm::load(&embeddings.at("LayerNorm"), width, eps)?,
            stack: Stack::load(&weights.at("encoder.layer"), config.stack, NormPlace::After, names)?,
            relative,
            pooler: if pooler.has("weight") { Some(Linear::load(&pooler, width, width, true)?) } else { None },
        })
    }

    /// Token ids, their types and the mask of what is no padding (`[n, length]` of u32 each) → vectors of all tokens,
    /// `[n, length, width]`. `each` sees the embeddings and every block.
    pub(crate) fn forward(
        &self,
        ids: &Tensor,
        types: &Tensor,
        mask: &Tensor,
        each: &mut dyn FnMut(&Tensor),
    ) -> Candle<Tensor> {
        let positions = self.position_rows(ids)?;
        let mut bias = padding_bias(mask)?;
        if let Some(table) = &self.relative {
            let relative = relative_bias(table, DISTANCES, 0..ids.dim(1)?, ids.dim(1)?)?;
            bias = bias.to_device(relative.device())?.broadcast_add(&relative)?;
        }
        self.forward_with(ids, types, &positions, &bias, each)
    }

    /// As [`TextEncoder::forward`], with the rows of the positions (`[n, length]` of u32) and the bias on the scores
    /// (`[n or 1, heads or 1, length or 1, length]`) given: Grounding DINO's phrases see only themselves.
    pub(crate) fn forward_with(
        &self,
        ids: &Tensor,
        types: &Tensor,
        positions: &Tensor,
        bias: &Tensor,
        each: &mut dyn FnMut(&Tensor),
    ) -> Candle<Tensor> {
        let mut x = (self.words.forward(ids)? + self.positions.forward(positions)?)?;
        if let Some(table) = &self.types {
            x = (x + table.forward(types)?)?;
        }
        let x = self.norm.forward(&x)?;
        each(&x);
        self.stack.forward(x, Some(bias), each)
    }

    /// The first token's vector through a layer and the hyperbolic tangent, `[n, width]`; `None` where the checkpoint
    /// has no such layer.
    pub(crate) fn pooled(&self, hidden: &Tensor) -> Candle<Option<Tensor>> {
        let Some(pooler) = &self.pooler else { return Ok(None) };
        pooler.forward_activated(&hidden.i((.., 0))?.contiguous()?, Activation::Tanh).map(Some)
    }

    /// BERT counts from 0; the others count the tokens that are no padding, from behind the padding's number, which
    /// padding keeps.
    fn position_rows(&self, ids: &Tensor) -> Candle<Tensor> {
        let (n, length) = ids.dims2()?;
        let pad = self.config.pad;
        let row = |ids: Vec<u32>| -> Vec<u32> {
            if self.config.kind == Kind::Bert {
                return (0..length as u32).collect();
            }
            let mut last = pad;
            ids.into_iter()
                .map(|id| {
                    if id == pad {
                        pad
                    } else {
                        last += 1;
                        last
                    }
                })
                .collect()
        };
        let rows: Vec<u32> = ids.to_vec2::<u32>()?.into_iter().flat_map(row).collect();
        Tensor::from_vec(rows, (n, length), ids.device())
    }
}

/// A candle error of this module.
pub(crate) fn failed(e: candle_core::Error) -> ModelError {
    compute("the text encoder")(e)
}
