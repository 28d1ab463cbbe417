//! SigLIP (Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023) and SigLIP 2 of fixed resolution
//! (Tschannen et al., 2025), which is the same network: images and texts in one space.
//!
//! Reference: transformers' `modeling_siglip.py`.

use candle_core::{IndexOp, Tensor};
use groundloom_data::Filter;

use crate::{
    ModelError,
    clip::{embed, patch_layer, scalar, stack_shape, sub_config},
    config::Config,
    image_processor::{HALF, ImageDefaults},
    layers::{Activation, Embedding, LayerNorm, Linear, attention, patches},
    transformer::{BlockNames, NormPlace, Stack, StackShape},
    weights::Weights,
};

type Candle<T> = candle_core::Result<T>;

/// What a `SiglipImageProcessor` does where its file is silent.
pub(crate) const IMAGE_DEFAULTS: ImageDefaults =
    ImageDefaults { filter: Filter::Bicubic, mean: HALF, std: HALF, crop: false };

/// `SiglipModel`.
pub(crate) struct Siglip {
    pub(crate) vision: VisionTower,
    pub(crate) text: TextTower,
    /// Natural logarithm of the factor on the cosine.
    pub(crate) logit_scale: f64,
    pub(crate) logit_bias: f64,
}

/// Length of an embedding.
///
/// # Errors
/// [`ModelError::BadConfig`].
pub(crate) fn width(config: &Config) -> Result<usize, ModelError> {
    let text = sub_config(config, "text_config")?;
    text.size_or("projection_size", text.size_or("hidden_size", 768)?)
}

impl Siglip {
    /// Reads the network of a `config.json` with `model_type` `siglip`.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`], [`ModelError::BadWeights`].
    pub(crate) fn load(config: &Config, weights: &Weights) -> Result<Self, ModelError> {
        let (vision, text) = (sub_config(config, "vision_config")?, sub_config(config, "text_config")?);
        let shape = |config: &Config| stack_shape(config, [768, 3072, 12, 12], Activation::GeluTanh, 1e-6);
        let (vision_shape, text_shape) = (shape(&vision)?, shape(&text)?);
        let (image_size, patch) = (vision.size_or("image_size", 224)?, vision.size_or("patch_size", 16)?);
        if patch > image_size {
            return Err(vision.bad("patch_size", format!("at most the image's {image_size} pixels"), patch));
        }
        vision.only("num_channels", 3)?;
        vision.only("vision_use_head", true)?;
        let (vocabulary, positions) =
            (text.size_or("vocab_size", 32_000)?, text.size_or("max_position_embeddings", 64)?);
        let width = width(config)?;
        text.value("projection_size");
        if width != vision_shape.width {
            return Err(text.bad(
                "projection_size",
                format!("the image's {} values: texts and images share a space", vision_shape.width),
                width,
            ));
        }
        [config, &vision, &text].into_iter().try_for_each(Config::finish)?;
        let this = Self {
            vision: VisionTower::load(&weights.at("vision_model"), vision_shape, image_size, patch)?,
            text: TextTower::load(&weights.at("text_model"), text_shape, vocabulary, positions, width)?,
            logit_scale: scalar(weights, "logit_scale")?,
            logit_bias: scalar(weights, "logit_bias")?,
        };
        weights.finish(&[])?;
        Ok(this)
    }

    /// Pixels `[n, 3, size, size]` → embeddings, not normalised, `[n, width]`.
    pub(crate) fn images(&self, pixels: &Tensor) -> Candle<Tensor> {
        self.vision.head.forward(&self.vision.forward(pixels, &mut |_| ())?)
    }

    /// Token ids `[n, positions]`, padded to the full length as the network was trained, → embeddings, not
    /// normalised, `[n, width]`.
    pub(crate) fn texts(&self, ids: &Tensor) -> Candle<Tensor> {
        self.text.pooled(&self.text.forward(ids, &mut |_| ())?)
    }
}

/// The vision transformer: no class token; a learned query gathers the patches.
pub(crate) struct VisionTower {
    /// Pixels along a side.
    pub(crate) image_size: usize,
    square: usize,
    patch: Linear,
    positions: Tensor,
    stack: Stack,
    post_norm: LayerNorm,
    pub(crate) head: PoolingHead,
}

impl VisionTower {
    fn load(weights: &Weights, shape: StackShape, image_size: usize, square: usize) -> Result<Self, ModelError> {
        let embeddings = weights.at("embeddings");
        let count = (image_size / square).pow(2);
        Ok(Self {
            image_size,
            square,
            patch: patch_layer(&embeddings.at("patch_embedding"), shape.width, square, true)?,
            positions: embeddings.tensor("position_embedding.weight", &[count, shape.width])?,
            stack: Stack::load(&weights.at("encoder.layers"), shape, NormPlace::Before, BlockNames::CLIP)?,
            post_norm: LayerNorm::load(&weights.at("post_layernorm"), shape.width, shape.eps)?,
            head: PoolingHead::load(&weights.at("head"), shape)?,
        })
    }

    /// Pixels → vectors of the patches behind the last norm, `[n, patches, width]`. `each` sees the embeddings and
    /// every block.
    pub(crate) fn forward(&self, pixels: &Tensor, each: &mut dyn FnMut(&Tensor)) -> Candle<Tensor> {
        let x = self.patch.forward(&patches(pixels, self.square)?)?.broadcast_add(&self.positions)?;
        each(&x);
        self.post_norm.forward(&self.stack.forward(x, None, each)?)
    }
}

/// Attention of one learned query to all patches, and a feed-forward layer (Zhai et al., "Scaling Vision
/// Transformers", 2022, MAP).
pub(crate) struct PoolingHead {
    heads: usize,
    activation: Activation,
    /// The learned query, projected: the same for every image. `[1, 1, width]`.
    query: Tensor,
    keys: Linear,
    values: Linear,
    output: Linear,
    norm: LayerNorm,
    up: Linear,
    down: Linear,
}

impl PoolingHead {
    /// Reads the head at `weights`.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`].
    pub(crate) fn load(weights: &Weights, shape: StackShape) -> Result<Self, ModelError> {
        let StackShape { width, heads, inner, activation, eps, .. } = shape;
        let attention = weights.at("attention");
        let (weight, bias) =
            (attention.values("in_proj_weight", &[3 * width, width])?, attention.values("in_proj_bias", &[3 * width])?);
        let part = |i: usize| {
            Linear::new(weights.device(), &weight[i * width * width..][..width * width], &bias[i * width..][..width])
        };
        let probe = weights.tensor("probe", &[1, 1, width])?;
        Ok(Self {
            heads,
            activation,
            query: part(0)?.forward(&probe).map_err(crate::layers::compute("the pooling query"))?,
            keys: part(1)?,
            values: part(2)?,
            output: Linear::load(&attention.at("out_proj"), width, width, true)?,
            norm: LayerNorm::load(&weights.at("layernorm"), width, eps)?,
            up: Linear::load(&weights.at("mlp.fc1"), width, inner, true)?,
            down: Linear::load(&weights.at("mlp.fc2"), inner, width, true)?,
        })
    }

    /// `[n, patches, width]` → `[n, width]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Candle<Tensor> {
        self.forward_masked(x, None)
    }

    /// As [`PoolingHead::forward`], with a bias on the scores, `[n, 1, 1, patches]`.
    pub(crate) fn forward_masked(&self, x: &Tensor, bias: Option<&Tensor>) -> Candle<Tensor> {
        let (n, _, width) = x.dims3()?;
        let query = self.query.broadcast_as((n, 1, width))?;
        let gathered = attention(&query, &self.keys.forward(x)?, &self.values.forward(x)?, self.heads, bias)?;
        let x = self.output.forward(&gathered)?;
        let inner = self.up.forward_activated(&self.norm.forward(&x)?, self.activation)?;
        self.down.forward_onto(&inner, &x)?.i((.., 0))?.contiguous()
    }
}

/// The text transformer: every token sees every other, padding too; the last stands for the text.
pub(crate) struct TextTower {
    /// Length of every text in tokens.
    pub(crate) positions: usize,
    tokens: Embedding,
    position_table: Embedding,
    stack: Stack,
    final_norm: LayerNorm,
    head: Linear,
}

impl TextTower {
    /// Reads the tower at `weights`.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`].
    pub(crate) fn load(
        weights: &Weights,
        shape: StackShape,
        vocabulary: usize,
        positions: usize,
        outputs: usize,
    ) -> Result<Self, ModelError> {
        let embeddings = weights.at("embeddings");
        Ok(Self {
            positions,
            tokens: Embedding::load(&embeddings.at("token_embedding"), vocabulary, shape.width)?,
            position_table: Embedding::load(&embeddings.at("position_embedding"), positions, shape.width)?,
            stack: Stack::load(&weights.at("encoder.layers"), shape, NormPlace::Before, BlockNames::CLIP)?,
            final_norm: LayerNorm::load(&weights.at("final_layer_norm"), shape.width, shape.eps)?,
            head: Linear::load(&weights.at("head"), shape.width, outputs, true)?,
        })
    }

    /// Token ids → vectors behind the last norm, `[n, length, width]`.
    pub(crate) fn forward(&self, ids: &Tensor, each: &mut dyn FnMut(&Tensor)) -> Candle<Tensor> {
        let x = embed(&self.tokens, &self.position_table, ids)?;
        each(&x);
        self.final_norm.forward(&self.stack.forward(x, None, each)?)
    }

    /// `[n, length, width]` → `[n, outputs]`.
    pub(crate) fn pooled(&self, hidden: &Tensor) -> Candle<Tensor> {
        self.head.forward(&hidden.i((.., hidden.dim(1)? - 1))?.contiguous()?)
    }
}
