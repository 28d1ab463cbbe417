//! BLIP-2 (Li et al., "BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders and Large Language
//! Models", 2023) with an OPT or a T5: a few learned queries look at an image, and what they find stands before a text.
//!
//! Reference: transformers' `modeling_blip_2.py`.

use candle_core::Tensor;

use crate::{
    ModelError,
    blip::{VisionTower, vision_config},
    clip::{stack_shape, sub_config},
    config::Config,
    decoder::{CrossAttention, Decoder, DecoderBlock},
    language_model::LanguageModel,
    layers::{Activation, LayerNorm, Linear},
    opt::{Opt, OptConfig},
    t5::{self, T5},
    transformer::{BlockNames, NormPlace, StackShape},
    weights::Weights,
};

type Candle<T> = candle_core::Result<T>;

const QFORMER_NAMES: BlockNames = BlockNames {
    query: "attention.attention.query",
    key: "attention.attention.key",
    value: "attention.attention.value",
    up: "intermediate_query.dense",
    down: "output_query.dense",
    feed_forward_norm: "output_query.LayerNorm",
    ..BlockNames::BERT
};

/// `Blip2ForConditionalGeneration`.
#[derive(Debug)]
pub(crate) struct Blip2 {
    pub(crate) vision: VisionTower,
    qformer: QFormer,
    projection: Linear,
    pub(crate) text: Text,
    /// The token that stands for a query.
    pub(crate) image_token: Option<u32>,
}

/// The language model behind the queries.
#[derive(Debug)]
pub(crate) enum Text {
    /// Goes on behind the image and the prompt.
    Opt(Opt),
    /// Answers to both.
    T5(T5),
}

impl Text {
    /// Token ids `[n, length]` → their vectors, `[n, length, width]`.
    pub(crate) fn embed(&self, ids: &Tensor) -> Candle<Tensor> {
        match self {
            Self::Opt(text) => text.embed(ids),
            Self::T5(text) => text.embed(ids),
        }
    }

    /// The token that ends a text.
    pub(crate) fn end(&self) -> u32 {
        match self {
            Self::Opt(text) => text.end(),
            Self::T5(text) => text.end,
        }
    }

    /// The longest text in tokens, the image's among them.
    pub(crate) fn longest(&self) -> usize {
        match self {
            Self::Opt(text) => text.longest(),
            // Its positions are distances.
            Self::T5(_) => usize::MAX,
        }
    }
}

/// Learned queries that look at an image's tokens.
#[derive(Debug)]
struct QFormer {
    /// `[1, queries, width]`.
    queries: Tensor,
    norm: LayerNorm,
    blocks: Decoder,
}

impl Blip2 {
    /// Reads the network of a `config.json` with `model_type` `blip-2` whose language model is an OPT or a T5.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`], [`ModelError::BadWeights`].
    pub(crate) fn load(config: &Config, weights: &Weights) -> Result<Self, ModelError> {
        let [vision, qformer, text] = [
            sub_config(config, "vision_config")?,
            sub_config(config, "qformer_config")?,
            sub_config(config, "text_config")?,
        ];
        let is_t5 = match text.text("model_type")? {
            None | Some("opt") => false,
            Some("t5") => true,
            Some(found) => return Err(text.bad("model_type", "opt or t5", found)),
        };
        config.only("use_decoder_only_language_model", !is_t5)?;
        let queries = config.size_or("num_query_tokens", 32)?;
        let image_token = match config.id_if_there("image_token_index")? {
            Some(id) => Some(id),
            None => config.id_if_there("image_token_id")?,
        };
        // The width that images and texts share in checkpoints for retrieval.
        config.value("image_text_hidden_size");
        let vision_shape = vision_config(&vision, [1408, 6144, 39, 16], [224, 14], 1e-6)?;
        vision.only("qkv_bias", true)?;
        let shape = stack_shape(&qformer, [768, 3072, 12, 12], Activation::Gelu, 1e-12)?;
        let every = qformer.size_or("cross_attention_frequency", 2)?;
        qformer.only("use_qformer_text_input", false)?;
        for inert in ["encoder_hidden_size", "max_position_embeddings", "vocab_size"] {
            qformer.value(inert);
        }
        let place = weights.at("language_model");
        let (language_model, width) = match is_t5 {
            true => (Text::T5(T5::load_at(&place, &text)?), text.size_or("d_model", 512)?),
            false => {
                let opt = OptConfig::read(&text)?;
                (Text::Opt(Opt::load_at(&place, opt)?), opt.stack.width)
            }
        };
        [config, &vision, &qformer, &text].into_iter().try_for_each(Config::finish)?;
        let this = Self {
            vision: VisionTower::load(&weights.at("vision_model"), vision_shape)?,
            qformer: QFormer::load(weights, shape, queries, every, vision_shape.stack.width)?,
            projection: Linear::load(&weights.at("language_projection"), shape.width, width, true)?,
            text: language_model,
            image_token,
        };
        let old: Vec<String> = t5::OLD.iter().map(|name| format!("language_model.{name}")).collect();
        weights.finish(&old.iter().filter(|_| is_t5).map(String::as_str).collect::<Vec<_>>())?;
        Ok(this)
    }

    /// What the queries find in an image's tokens, `[n, queries, width]`.
    pub(crate) fn queried(&self, tokens: &Tensor) -> Candle<Tensor> {
        let QFormer { queries, norm, blocks } = &self.qformer;
        let (_, count, width) = queries.dims3()?;
        let x = norm.forward(&queries.broadcast_as((tokens.dim(0)?, count, width))?.contiguous()?)?;
        blocks.forward(x, None, None, Some(&blocks.remember(tokens, None)?), &mut |_| ())
    }

    /// As the language model sees that: `[n, queries, width of a word]`.
    pub(crate) fn projected(&self, queried: &Tensor) -> Candle<Tensor> {
        self.projection.forward(queried)
    }
}

impl QFormer {
    /// `every` so many blocks, from the first on, look at the image, whose tokens have `seen` values.
    fn load(
        weights: &Weights,
        shape: StackShape,
        queries: usize,
        every: usize,
        seen: usize,
    ) -> Result<Self, ModelError> {
        let place = weights.at("qformer");
        let mut blocks = Vec::with_capacity(shape.layers);
        for i in 0..shape.layers {
            let layer = place.at("encoder.layer").at(i);
            let mut block = DecoderBlock::load(&layer, shape, QFORMER_NAMES)?;
            if i.is_multiple_of(every) {
                block.cross = Some(CrossAttention::load(&layer.at("crossattention"), "attention", shape, seen)?);
            }
            blocks.push(block);
        }
        Ok(Self {
            queries: weights.tensor("query_tokens", &[1, queries, shape.width])?,
            norm: LayerNorm::load(&place.at("layernorm"), shape.width, shape.eps)?,
            blocks: Decoder::new(&place, shape, NormPlace::After, blocks)?,
        })
    }
}
