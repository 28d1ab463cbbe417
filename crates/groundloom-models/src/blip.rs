//! BLIP (Li et al., "BLIP: Bootstrapping Language-Image Pre-training for Unified Vision-Language Understanding and
//! Generation", 2022): captions of images, and whether a text fits an image.
//!
//! Reference: transformers' `modeling_blip.py`, `modeling_blip_text.py`. The vision tower is also that of BLIP-2.

use candle_core::{IndexOp, Tensor};
use groundloom_data::Filter;

use crate::{
    ModelError,
    clip::{VisionConfig, patch_layer, stack_shape, sub_config, with_class_token},
    config::Config,
    decoder::{CrossAttention, Decoder, DecoderBlock, Memory, Past},
    image_processor::{CLIP_MEAN, CLIP_STD, ImageDefaults},
    layers::{
        Activation, Embedding, LayerNorm, Linear, activation, causal_bias, compute, normalise, padding_bias, patches,
    },
    text_tokenizer::configured_pad,
    transformer::{BlockNames, NormPlace, Stack, StackShape},
    weights::Weights,
};

type Candle<T> = candle_core::Result<T>;

/// What a `BlipImageProcessor` does where its file is silent.
pub(crate) const IMAGE_DEFAULTS: ImageDefaults =
    ImageDefaults { filter: Filter::Bicubic, mean: CLIP_MEAN, std: CLIP_STD, crop: false };

/// The vision transformer of BLIP and BLIP-2.
#[derive(Debug)]
pub(crate) struct VisionTower {
    pub(crate) config: VisionConfig,
    patch: Linear,
    /// `[width]`.
    class: Tensor,
    /// `[1 + patches, width]`.
    positions: Tensor,
    stack: Stack,
    norm: LayerNorm,
}

impl VisionTower {
    /// Reads the tower at `weights` (`vision_model`).
    ///
    /// # Errors
    /// [`ModelError::BadWeights`].
    pub(crate) fn load(weights: &Weights, config: VisionConfig) -> Result<Self, ModelError> {
        let StackShape { width, eps, .. } = config.stack;
        let embeddings = weights.at("embeddings");
        let flat = |name: &str, rows: usize| {
            embeddings.tensor(name, &[1, rows, width])?.squeeze(0).map_err(compute("the vision tower's weights"))
        };
        Ok(Self {
            config,
            patch: patch_layer(&embeddings.at("patch_embedding"), width, config.patch, true)?,
            class: flat("class_embedding", 1)?,
            positions: flat("position_embedding", config.patches() + 1)?,
            stack: Stack::load(&weights.at("encoder.layers"), config.stack, NormPlace::Before, BlockNames::BLIP)?,
            norm: LayerNorm::load(&weights.at("post_layernorm"), width, eps)?,
        })
    }

    /// Pixels `[n, 3, size, size]` → vectors of all tokens behind the last norm, the class token first: `[n, 1 +
    /// patches, width]`. `each` sees the embeddings and the output of every block.
    pub(crate) fn forward(&self, pixels: &Tensor, each: &mut dyn FnMut(&Tensor)) -> Candle<Tensor> {
        let x = with_class_token(&self.patch.forward(&patches(pixels, self.config.patch)?)?, &self.class)?;
        let x = x.broadcast_add(&self.positions)?;
        each(&x);
        self.norm.forward(&self.stack.forward(x, None, each)?)
    }

    /// The class token's vector, normed once more, `[n, width]`: what the reference calls pooled.
    pub(crate) fn pooled(&self, tokens: &Tensor) -> Candle<Tensor> {
        self.norm.forward(&tokens.i((.., 0))?.contiguous()?)
    }
}

/// Reads `vision_config` with the defaults given: width, inner width, layers and heads; pixels along a side of the image
/// and of a patch.
///
/// # Errors
/// [`ModelError::BadConfig`].
pub(crate) fn vision_config(
    config: &Config,
    sizes: [usize; 4],
    [image, patch]: [usize; 2],
    eps: f64,
) -> Result<VisionConfig, ModelError> {
    let stack = stack_shape(config, sizes, Activation::Gelu, eps)?;
    config.only("num_channels", 3)?;
    config.value("projection_dim");
    let this = VisionConfig {
        stack,
        image_size: config.size_or("image_size", image)?,
        patch: config.size_or("patch_size", patch)?,
    };
    if this.patch > this.image_size {
        return Err(config.bad("patch_size", format!("at most the image's {} pixels", this.image_size), this.patch));
    }
    Ok(this)
}

/// BLIP's BERT, as an encoder or a decoder.
#[derive(Debug)]
pub(crate) struct TextModel {
    words: Embedding,
    positions: Embedding,
    norm: LayerNorm,
    decoder: Decoder,
    /// Longest text in tokens.
    pub(crate) longest: usize,
}

/// The options of the text side.
#[derive(Debug, Clone, Copy)]
struct TextConfig {
    stack: StackShape,
    vocabulary: usize,
    positions: usize,
    start: u32,
    end: u32,
    pad: u32,
}

impl TextConfig {
    fn read(config: &Config) -> Result<Self, ModelError> {
        // Names, and what training or the other half of a model looks at; the reference sets the width of what is
        // attended to to the vision tower's.
        for inert in ["encoder_hidden_size", "projection_dim", "label_smoothing", "is_decoder"] {
            config.value(inert);
        }
        Ok(Self {
            stack: stack_shape(config, [768, 3072, 12, 8], Activation::Gelu, 1e-12)?,
            vocabulary: config.size_or("vocab_size", 30_524)?,
            positions: config.size_or("max_position_embeddings", 512)?,
            start: config.id_if_there("bos_token_id")?.unwrap_or(30_522),
            end: config.id_if_there("sep_token_id")?.unwrap_or(102),
            pad: configured_pad(config)?,
        })
    }
}

impl TextModel {
    fn load(weights: &Weights, config: TextConfig, vision: usize) -> Result<Self, ModelError> {
        let StackShape { width, eps, layers, .. } = config.stack;
        let embeddings = weights.at("embeddings");
        let mut blocks = Vec::with_capacity(layers);
        for i in 0..layers {
            let place = weights.at("encoder.layer").at(i);
            let mut block = DecoderBlock::load(&place, config.stack, BlockNames::BERT)?;
            block.cross = Some(CrossAttention::load(&place.at("crossattention"), "self", config.stack, vision)?);
            blocks.push(block);
        }
        Ok(Self {
            words: Embedding::load(&embeddings.at("word_embeddings"), config.vocabulary, width)?,
            positions: Embedding::load(&embeddings.at("position_embeddings"), config.positions, width)?,
            norm: LayerNorm::load(&embeddings.at("LayerNorm"), width, eps)?,
            decoder: Decoder::new(weights, config.stack, NormPlace::After, blocks)?,
            longest: config.positions,
        })
    }

    /// What the blocks make of an image's tokens, `[n, length, width]`.
    pub(crate) fn remember(&self, image: &Tensor) -> Candle<Memory> {
        self.decoder.remember(image, None)
    }

    /// Token ids `[n, length]` behind `past` → vectors, `[n, length, width]`. `bias` as in [`Decoder::forward`].
    fn forward(&self, ids: &Tensor, bias: &Tensor, past: Option<&mut Past>, memory: Option<&Memory>) -> Candle<Tensor> {
        let before = past.as_ref().map_or(0, |past| past.len());
        let positions = self.positions.table().narrow(0, before, ids.dim(1)?)?;
        let x = self.norm.forward(&self.words.forward(ids)?.broadcast_add(&positions)?)?;
        self.decoder.forward(x, Some(bias), past, memory, &mut |_| ())
    }

    /// A text read as a whole: every token sees all those that `mask` (`[n, length]`) does not take for padding.
    pub(crate) fn encode(&self, ids: &Tensor, mask: &Tensor, memory: Option<&Memory>) -> Candle<Tensor> {
        self.forward(ids, &padding_bias(mask)?, None, memory)
    }

    /// A text as it is written: every token sees those before it that `mask` (`[n, length]`, without a past only) does
    /// not take for padding.
    pub(crate) fn continue_with(
        &self,
        ids: &Tensor,
        mask: Option<&Tensor>,
        past: &mut Past,
        memory: &Memory,
    ) -> Candle<Tensor> {
        let bias = causal_bias(past.len(), ids.dim(1)?, mask)?;
        self.forward(ids, &bias, Some(past), Some(memory))
    }
}

/// `BlipForConditionalGeneration`: captions.
#[derive(Debug)]
pub(crate) struct BlipCaption {
    pub(crate) vision: VisionTower,
    pub(crate) text: TextModel,
    head: WordHead,
    /// Begins every caption.
    pub(crate) start: u32,
    /// Ends it.
    pub(crate) end: u32,
}

/// From a token's vector to a value for each word.
#[derive(Debug)]
struct WordHead {
    transform: Linear,
    activation: Activation,
    norm: LayerNorm,
    words: Linear,
}

/// Reads both halves of a BLIP `config.json`.
fn configs(config: &Config) -> Result<(VisionConfig, TextConfig), ModelError> {
    let (vision, text) = (sub_config(config, "vision_config")?, sub_config(config, "text_config")?);
    let read = (vision_config(&vision, [768, 3072, 12, 12], [384, 16], 1e-5)?, TextConfig::read(&text)?);
    for inert in ["projection_dim", "label_smoothing"] {
        config.value(inert);
    }
    config.size_or("image_text_hidden_size", 256)?;
    [config, &vision, &text].into_iter().try_for_each(Config::finish)?;
    Ok(read)
}

impl BlipCaption {
    /// Reads the network of a `config.json` with `model_type` `blip`, of a checkpoint for captions.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`], [`ModelError::BadWeights`].
    pub(crate) fn load(config: &Config, weights: &Weights) -> Result<Self, ModelError> {
        let text_config = sub_config(config, "text_config")?;
        let head_activation = activation(&text_config, "hidden_act", Activation::Gelu)?;
        let (vision, text) = configs(config)?;
        let StackShape { width, eps, .. } = text.stack;
        let decoder = weights.at("text_decoder");
        let model = TextModel::load(&decoder.at("bert"), text, vision.stack.width)?;
        let head = decoder.at("cls.predictions");
        let bias = head.values("bias", &[text.vocabulary])?;
        let this = Self {
            vision: VisionTower::load(&weights.at("vision_model"), vision)?,
            head: WordHead {
                transform: Linear::load(&head.at("transform.dense"), width, width, true)?,
                activation: head_activation,
                norm: LayerNorm::load(&head.at("transform.LayerNorm"), width, eps)?,
                words: Linear::tied(&model.words, Some(&bias))?,
            },
            text: model,
            start: text.start,
            end: text.end,
        };
        // Older files hold the tied layer once more.
        weights.finish(&["text_decoder.cls.predictions.decoder."])?;
        Ok(this)
    }

    /// Values for each word, `[n, length, vocabulary]`, from vectors of tokens.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Candle<Tensor> {
        let head = &self.head;
        let x = head.transform.forward_activated(hidden, head.activation)?;
        head.words.forward(&head.norm.forward(&x)?)
    }
}

/// `BlipForImageTextRetrieval`: whether a text fits an image.
#[derive(Debug)]
pub(crate) struct BlipMatch {
    pub(crate) vision: VisionTower,
    pub(crate) text: TextModel,
    matching: Linear,
    vision_projection: Linear,
    text_projection: Linear,
    /// The padding token.
    pub(crate) pad: u32,
}

impl BlipMatch {
    /// Reads the network of a `config.json` with `model_type` `blip`, of a checkpoint for retrieval.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`], [`ModelError::BadWeights`].
    pub(crate) fn load(config: &Config, weights: &Weights) -> Result<Self, ModelError> {
        let (vision, text) = configs(config)?;
        let shared = config.size_or("image_text_hidden_size", 256)?;
        let (width, seen) = (text.stack.width, vision.stack.width);
        let this = Self {
            vision: VisionTower::load(&weights.at("vision_model"), vision)?,
            text: TextModel::load(&weights.at("text_encoder"), text, seen)?,
            matching: Linear::load(&weights.at("itm_head"), width, 2, true)?,
            vision_projection: Linear::load(&weights.at("vision_proj"), seen, shared, true)?,
            text_projection: Linear::load(&weights.at("text_proj"), width, shared, true)?,
            pad: text.pad,
        };
        weights.finish(&[])?;
        Ok(this)
    }

    /// Values for "no match" and "match", `[n, 2]`: of each text (`[n, length]`) with the image that `memory` holds in
    /// its place.
    pub(crate) fn match_logits(&self, ids: &Tensor, mask: &Tensor, memory: &Memory) -> Candle<Tensor> {
        let tokens = self.text.encode(ids, mask, Some(memory))?;
        self.matching.forward(&tokens.i((.., 0))?.contiguous()?)
    }

    /// Vectors of images in the space shared with texts, of length 1: `[n, width]` from their tokens.
    pub(crate) fn image_vectors(&self, tokens: &Tensor) -> Candle<Tensor> {
        normalise(&self.vision_projection.forward(&tokens.i((.., 0))?.contiguous()?)?)
    }

    /// Vectors of texts in the space shared with images, of length 1: `[n, width]`.
    pub(crate) fn text_vectors(&self, ids: &Tensor, mask: &Tensor) -> Candle<Tensor> {
        let tokens = self.text.encode(ids, mask, None)?;
        normalise(&self.text_projection.forward(&tokens.i((.., 0))?.contiguous()?)?)
    }
}
