//! CLIP (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021): images and
//! texts in one space. OpenAI's checkpoints and OpenCLIP's in Hugging Face layout.
//!
//! Reference: transformers' `modeling_clip.py`. The towers are also those of OWL-ViT.

use candle_core::{IndexOp, Tensor};
use groundloom_data::Filter;

use crate::{
    ModelError,
    config::Config,
    image_processor::{CLIP_MEAN, CLIP_STD, ImageDefaults},
    layers::{Activation, Embedding, LayerNorm, Linear, activation, causal_bias, patches},
    transformer::{BlockNames, NormPlace, Stack, StackShape},
    weights::Weights,
};

type Candle<T> = candle_core::Result<T>;

/// What a `CLIPImageProcessor` does where its file is silent.
pub(crate) const IMAGE_DEFAULTS: ImageDefaults =
    ImageDefaults { filter: Filter::Bicubic, mean: CLIP_MEAN, std: CLIP_STD, crop: true };

/// `CLIPModel`.
pub(crate) struct Clip {
    pub(crate) vision: VisionTower,
    pub(crate) text: TextTower,
    pub(crate) vision_projection: Linear,
    pub(crate) text_projection: Linear,
    /// Natural logarithm of the factor on the cosine.
    pub(crate) logit_scale: f64,
}

/// The options of a vision tower.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VisionConfig {
    pub(crate) stack: StackShape,
    /// Pixels along a side.
    pub(crate) image_size: usize,
    pub(crate) patch: usize,
}

/// The options of a text tower.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TextConfig {
    pub(crate) stack: StackShape,
    pub(crate) vocabulary: usize,
    /// Longest text in tokens.
    pub(crate) positions: usize,
    pub(crate) pooling: TextPooling,
}

/// Which token's vector stands for the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextPooling {
    /// The first of the greatest id, which OpenAI's vocabulary gives to the end-of-text token.
    GreatestId,
    /// The first of this id.
    FirstOf(u32),
}

/// Reads the numbers that CLIP, SigLIP and OWL-ViT name the same way in both of their sub-configs.
///
/// # Errors
/// [`ModelError::BadConfig`].
pub(crate) fn stack_shape(
    config: &Config,
    [width, inner, layers, heads]: [usize; 4],
    default: Activation,
    eps: f64,
) -> Result<StackShape, ModelError> {
    Ok(StackShape {
        layers: config.size_or("num_hidden_layers", layers)?,
        width: config.size_or("hidden_size", width)?,
        heads: config.size_or("num_attention_heads", heads)?,
        inner: config.size_or("intermediate_size", inner)?,
        activation: activation(config, "hidden_act", default)?,
        eps: config.number_or("layer_norm_eps", eps)?,
    })
}

/// The object `NAME` of `config`, or `NAME_dict`, which older files hold and which goes before it; an empty one where
/// neither is there: every option has its default.
///
/// # Errors
/// [`ModelError::BadConfig`].
pub(crate) fn sub_config(config: &Config, name: &str) -> Result<Config, ModelError> {
    let dict = config.object(&format!("{name}_dict"))?;
    let plain = config.object(name)?;
    Ok(dict.or(plain).unwrap_or_else(|| config.empty(name)))
}

impl VisionConfig {
    /// Reads `vision_config` with CLIP's defaults.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`].
    pub(crate) fn read(config: &Config) -> Result<Self, ModelError> {
        Self::read_sized(config, [768, 3072, 12, 12], 32)
    }

    /// As [`VisionConfig::read`], with other sizes where the options are missing: as [`stack_shape`] takes them, and of a
    /// patch.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`].
    pub(crate) fn read_sized(config: &Config, sizes: [usize; 4], patch: usize) -> Result<Self, ModelError> {
        let stack = stack_shape(config, sizes, Activation::QuickGelu, 1e-5)?;
        config.only("num_channels", 3)?;
        config.value("projection_dim");
        let this =
            Self { stack, image_size: config.size_or("image_size", 224)?, patch: config.size_or("patch_size", patch)? };
        if this.patch > this.image_size {
            return Err(config.bad(
                "patch_size",
                format!("at most the image's {} pixels", this.image_size),
                this.patch,
            ));
        }
        Ok(this)
    }

    /// Squares of an image.
    pub(crate) fn patches(&self) -> usize {
        (self.image_size / self.patch).pow(2)
    }
}

impl TextConfig {
    /// Reads `text_config` with CLIP's defaults.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`].
    pub(crate) fn read(config: &Config) -> Result<Self, ModelError> {
        let stack = stack_shape(config, [512, 2048, 12, 8], Activation::QuickGelu, 1e-5)?;
        config.value("projection_dim");
        // Files from before the option was right say 2 and mean the greatest id.
        let pooling = match config.id_if_there("eos_token_id")? {
            Some(2) => TextPooling::GreatestId,
            Some(id) => TextPooling::FirstOf(id),
            None => TextPooling::FirstOf(49407),
        };
        Ok(Self {
            stack,
            vocabulary: config.size_or("vocab_size", 49408)?,
            positions: config.size_or("max_position_embeddings", 77)?,
            pooling,
        })
    }
}

/// CLIP's vision transformer.
#[derive(Debug)]
pub(crate) struct VisionTower {
    pub(crate) config: VisionConfig,
    patch: Linear,
    class: Tensor,
    positions: Tensor,
    pre_norm: LayerNorm,
    stack: Stack,
    /// On the class token in CLIP, on all tokens in OWL-ViT.
    pub(crate) post_norm: LayerNorm,
}

impl VisionTower {
    /// Reads the tower at `weights` (`vision_model`). `pre_norm` is how the checkpoint names the first norm:
    /// `pre_layrnorm` in CLIP.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`].
    pub(crate) fn load(weights: &Weights, config: VisionConfig, pre_norm: &str) -> Result<Self, ModelError> {
        let StackShape { width, eps, .. } = config.stack;
        let embeddings = weights.at("embeddings");
        let patch = patch_layer(&embeddings.at("patch_embedding"), width, config.patch, false)?;
        let tokens = config.patches() + 1;
        let positions = embeddings.tensor("position_embedding.weight", &[tokens, width])?;
        Ok(Self {
            config,
            patch,
            class: embeddings.tensor("class_embedding", &[width])?,
            positions,
            pre_norm: LayerNorm::load(&weights.at(pre_norm), width, eps)?,
            stack: Stack::load(&weights.at("encoder.layers"), config.stack, NormPlace::Before, BlockNames::CLIP)?,
            post_norm: LayerNorm::load(&weights.at("post_layernorm"), width, eps)?,
        })
    }

    /// Pixels `[n, 3, size, size]` → vectors of all tokens, the class token first, before the last norm:
    /// `[n, 1 + patches, width]`. `each` sees the embeddings and the output of every block.
    pub(crate) fn forward(&self, pixels: &Tensor, each: &mut dyn FnMut(&Tensor)) -> Candle<Tensor> {
        let x = with_class_token(&self.patch.forward(&patches(pixels, self.config.patch)?)?, &self.class)?;
        let x = self.pre_norm.forward(&x.broadcast_add(&self.positions)?)?;
        each(&x);
        self.stack.forward(x, None, each)
    }

    /// The class token's vector behind the last norm, `[n, width]`.
    pub(crate) fn pooled(&self, tokens: &Tensor) -> Candle<Tensor> {
        self.post_norm.forward(&tokens.i((.., 0))?.contiguous()?)
    }
}

/// A convolution over squares, as a layer: `weight` is `[width, 3, patch, patch]`.
///
/// # Errors
/// [`ModelError::BadWeights`].
pub(crate) fn patch_layer(weights: &Weights, width: usize, patch: usize, bias: bool) -> Result<Linear, ModelError> {
    let weight = weights.values("weight", &[width, 3, patch, patch])?;
    let bias = if bias { weights.values("bias", &[width])? } else { vec![0.0; width] };
    Linear::new(weights.device(), &weight, &bias)
}

/// `[n, length, width]` with the class token's vector (`width` values) before each.
pub(crate) fn with_class_token(patches: &Tensor, class: &Tensor) -> Candle<Tensor> {
    let (n, _, width) = patches.dims3()?;
    Tensor::cat(&[&class.reshape((1, 1, width))?.broadcast_as((n, 1, width))?, patches], 1)
}

/// CLIP's text transformer.
#[derive(Debug)]
pub(crate) struct TextTower {
    pub(crate) config: TextConfig,
    tokens: Embedding,
    positions: Embedding,
    stack: Stack,
    final_norm: LayerNorm,
}

impl TextTower {
    /// Reads the tower at `weights` (`text_model`).
    ///
    /// # Errors
    /// [`ModelError::BadWeights`].
    pub(crate) fn load(weights: &Weights, config: TextConfig) -> Result<Self, ModelError> {
        let StackShape { width, eps, .. } = config.stack;
        let embeddings = weights.at("embeddings");
        Ok(Self {
            config,
            tokens: Embedding::load(&embeddings.at("token_embedding"), config.vocabulary, width)?,
            positions: Embedding::load(&embeddings.at("position_embedding"), config.positions, width)?,
            stack: Stack::load(&weights.at("encoder.layers"), config.stack, NormPlace::Before, BlockNames::CLIP)?,
            final_norm: LayerNorm::load(&weights.at("final_layer_norm"), width, eps)?,
        })
    }

    /// Token ids `[n, length]` → vectors behind the last norm, `[n, length, width]`. A token sees itself and those
    /// before it; where `mask` (`[n, length]`) is given also no padding. `each` sees the embeddings and every block.
    pub(crate) fn forward(&self, ids: &Tensor, mask: Option<&Tensor>, each: &mut dyn FnMut(&Tensor)) -> Candle<Tensor> {
        let length = ids.dim(1)?;
        let bias = causal_bias(0, length, mask)?;
        let x = embed(&self.tokens, &self.positions, ids)?;
        each(&x);
        self.final_norm.forward(&self.stack.forward(x, Some(&bias), each)?)
    }

    /// The vectors that stand for the texts, `[n, width]`.
    pub(crate) fn pooled(&self, hidden: &Tensor, ids: &Tensor) -> Candle<Tensor> {
        pooled(hidden, ids, self.config.pooling)
    }
}

/// The vectors that stand for the texts of `ids` (`[n, length]`) among those of all tokens, `[n, length, width]`.
pub(crate) fn pooled(hidden: &Tensor, ids: &Tensor, pooling: TextPooling) -> Candle<Tensor> {
    let mut rows = Vec::new();
    for (text, ids) in ids.to_vec2::<u32>()?.iter().enumerate() {
        let place = match pooling {
            TextPooling::FirstOf(end) => ids.iter().position(|&id| id == end),
            TextPooling::GreatestId => {
                let greatest = ids.iter().max();
                ids.iter().position(|id| Some(id) == greatest)
            }
        };
        // The reference's argmax over nothing found is the first token.
        rows.push(hidden.i((text, place.unwrap_or(0)))?);
    }
    Tensor::stack(&rows, 0)
}

/// Vectors of tokens plus those of their positions.
pub(crate) fn embed(tokens: &Embedding, positions: &Embedding, ids: &Tensor) -> Candle<Tensor> {
    embed_behind(tokens, positions, 0, ids)
}

/// As [`embed`], of tokens behind `before` others.
pub(crate) fn embed_behind(tokens: &Embedding, positions: &Embedding, before: usize, ids: &Tensor) -> Candle<Tensor> {
    tokens.forward(ids)?.broadcast_add(&positions.table().narrow(0, before, ids.dim(1)?)?)
}

impl Clip {
    /// Reads the network of a `config.json` with `model_type` `clip`.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`], [`ModelError::BadWeights`].
    pub(crate) fn load(config: &Config, weights: &Weights) -> Result<Self, ModelError> {
        let (vision, text) = (sub_config(config, "vision_config")?, sub_config(config, "text_config")?);
        let width = config.size_or("projection_dim", 512)?;
        let (vision_config, text_config) = (VisionConfig::read(&vision)?, TextConfig::read(&text)?);
        [config, &vision, &text].into_iter().try_for_each(Config::finish)?;
        let projection = |name: &str, inputs: usize| Linear::load(&weights.at(name), inputs, width, false);
        let this = Self {
            vision: VisionTower::load(&weights.at("vision_model"), vision_config, "pre_layrnorm")?,
            text: TextTower::load(&weights.at("text_model"), text_config)?,
            vision_projection: projection("visual_projection", vision_config.stack.width)?,
            text_projection: projection("text_projection", text_config.stack.width)?,
            logit_scale: scalar(weights, "logit_scale")?,
        };
        weights.finish(&[])?;
        Ok(this)
    }

    /// Pixels → embeddings, not normalised, `[n, width]`.
    pub(crate) fn images(&self, pixels: &Tensor) -> Candle<Tensor> {
        let tokens = self.vision.forward(pixels, &mut |_| ())?;
        self.vision_projection.forward(&self.vision.pooled(&tokens)?)
    }

    /// Token ids → embeddings, not normalised, `[n, width]`. Padding lies behind the end of a text, where no token
    /// that counts looks.
    pub(crate) fn texts(&self, ids: &Tensor) -> Candle<Tensor> {
        let hidden = self.text.forward(ids, None, &mut |_| ())?;
        self.text_projection.forward(&self.text.pooled(&hidden, ids)?)
    }
}

/// A tensor of one value, with or without an axis.
///
/// # Errors
/// [`ModelError::BadWeights`].
pub(crate) fn scalar(weights: &Weights, name: &str) -> Result<f64, ModelError> {
    let shape: &[usize] = if weights.shape_of(name).is_some_and(|shape| shape == [1]) { &[1] } else { &[] };
    Ok(f64::from(weights.values(name, shape)?[0]))
}
