//! Vision transformers that give features and classes: ViT (Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021),
//! DINOv2 (Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", 2024) and BEiT (Bao et al.,
//! "BEiT: BERT Pre-Training of Image Transformers", 2022).
//!
//! Reference: transformers' `modeling_vit.py`, `modeling_dinov2.py`, `modeling_beit.py`.

use std::sync::Arc;

use candle_core::{IndexOp, Tensor};
use groundloom_data::Filter;

use crate::{
    ModelError,
    clip::{patch_layer, stack_shape, with_class_token},
    config::Config,
    image_processor::{HALF, IMAGENET_MEAN, IMAGENET_STD, ImageDefaults},
    layers::{Activation, LayerNorm, Linear, compute, patches},
    resample,
    transformer::{BlockNames, NormPlace, Stack, StackShape},
    weights::Weights,
};

type Candle<T> = candle_core::Result<T>;

/// Which network a `config.json` describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Vit,
    Dinov2,
    Beit,
}

impl Kind {
    /// The kind of a `model_type`.
    pub(crate) fn of(model_type: &str) -> Option<Self> {
        [Self::Vit, Self::Dinov2, Self::Beit].into_iter().find(|kind| kind.name() == model_type)
    }

    /// The `model_type`, and where a checkpoint with a head keeps the rest.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Vit => "vit",
            Self::Dinov2 => "dinov2",
            Self::Beit => "beit",
        }
    }

    /// What the family's image processor does where its file is silent.
    pub(crate) fn image_defaults(self) -> ImageDefaults {
        match self {
            Self::Vit => ImageDefaults { filter: Filter::Bilinear, mean: HALF, std: HALF, crop: false },
            Self::Dinov2 => {
                ImageDefaults { filter: Filter::Bicubic, mean: IMAGENET_MEAN, std: IMAGENET_STD, crop: true }
            }
            Self::Beit => ImageDefaults { filter: Filter::Bicubic, mean: HALF, std: HALF, crop: false },
        }
    }
}

/// A vision transformer with a class token.
#[derive(Debug)]
pub(crate) struct VisionTransformer {
    kind: Kind,
    /// Pixels along a side that it was trained on.
    pub(crate) image_size: usize,
    square: usize,
    patch: Linear,
    class: Tensor,
    positions: Option<Positions>,
    stack: Stack,
    norm: LayerNorm,
    classifier: Option<Classifier>,
}

/// Learned positions of the class token and of a square grid of patches.
#[derive(Debug)]
struct Positions {
    /// `[1, width]`.
    class: Tensor,
    /// `[side · side, width]`.
    grid: Tensor,
    side: usize,
}

/// The layer behind the features, and the names of its outputs.
#[derive(Debug)]
struct Classifier {
    layer: Linear,
    labels: Vec<Arc<str>>,
}

impl VisionTransformer {
    /// Reads the network of a `config.json` of `kind`.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`], [`ModelError::BadWeights`].
    pub(crate) fn load(config: &Config, kind: Kind, weights: &Weights) -> Result<Self, ModelError> {
        let (stack, size, square) = options(config, kind)?;
        let labels = labels(config)?;
        config.finish()?;
        let StackShape { width, eps, heads, .. } = stack;
        let body = weights.at_first(&[kind.name(), ""]);
        let embeddings = body.at("embeddings");
        let side = size / square;
        let layers = body.at("encoder.layer");
        let names = match kind {
            Kind::Vit => BlockNames::VIT,
            Kind::Dinov2 => BlockNames::DINOV2,
            Kind::Beit if layers.has("0.lambda_1") => BlockNames::BEIT,
            Kind::Beit => BlockNames { attention_scale: None, feed_forward_scale: None, ..BlockNames::BEIT },
        };
        let mut blocks = Stack::load(&layers, stack, NormPlace::Before, names)?;
        if kind == Kind::Beit {
            for i in 0..blocks.len() {
                let rows = (2 * side - 1).pow(2) + 3;
                let bias = layers.at(i).at("attention.attention.relative_position_bias");
                let table = bias.tensor("relative_position_bias_table", &[rows, heads])?;
                blocks.set_bias(i, grid_bias(&table, side).map_err(compute("the position bias"))?);
            }
        }
        let positions = match kind {
            Kind::Beit => None,
            Kind::Vit | Kind::Dinov2 => {
                let both = embeddings.values("position_embeddings", &[1, 1 + side * side, width])?;
                let tensor = |values: &[f32], rows: usize| {
                    Tensor::from_slice(values, (rows, width), weights.device()).map_err(compute("the positions"))
                };
                let (class, grid) = both.split_at(width);
                Some(Positions { class: tensor(class, 1)?, grid: tensor(grid, side * side)?, side })
            }
        };
        let norm = if kind == Kind::Beit { "pooler.layernorm" } else { "layernorm" };
        let head = weights.at("classifier");
        let classifier = match head.has("weight") {
            false => None,
            true => {
                // DINOv2's head sees the class token and the mean of the patches.
                let inputs = if kind == Kind::Dinov2 { 2 * width } else { width };
                Some(Classifier { layer: Linear::load(&head, inputs, labels.len(), true)?, labels })
            }
        };
        let this = Self {
            kind,
            image_size: size,
            square,
            patch: patch_layer(&embeddings.at("patch_embeddings.projection"), width, square, true)?,
            class: embeddings.tensor("cls_token", &[1, 1, width])?,
            positions,
            stack: blocks,
            norm: LayerNorm::load(&body.at(norm), width, eps)?,
            classifier,
        };
        // The pooler is a layer for fine-tuning, the mask token is one of training.
        let known =
            ["pooler.", "embeddings.mask_token"].map(|name| [name.to_owned(), format!("{}.{name}", kind.name())]);
        weights.finish(&known.as_flattened().iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(this)
    }

    /// The classes by number; none for a checkpoint without a head.
    pub(crate) fn labels(&self) -> &[Arc<str>] {
        self.classifier.as_ref().map_or(&[], |classifier| &classifier.labels)
    }

    /// Pixels `[n, 3, height, width]` → vectors of all tokens, the class token first, before the last norm. `each` sees
    /// the embeddings and every block.
    pub(crate) fn forward(&self, pixels: &Tensor, each: &mut dyn FnMut(&Tensor)) -> Candle<Tensor> {
        let (_, _, height, width) = pixels.dims4()?;
        let mut x = with_class_token(&self.patch.forward(&patches(pixels, self.square)?)?, &self.class)?;
        if let Some(positions) = &self.positions {
            x = x.broadcast_add(&positions.of(height / self.square, width / self.square)?)?;
        }
        each(&x);
        self.stack.forward(x, None, each)
    }

    /// Vectors of all tokens behind the last norm; BEiT has none there.
    pub(crate) fn normed(&self, tokens: &Tensor) -> Candle<Tensor> {
        if self.kind == Kind::Beit { Ok(tokens.clone()) } else { self.norm.forward(tokens) }
    }

    /// The vectors that stand for the images, `[n, width]`: the class token's behind the last norm; BEiT's mean of the
    /// patches, normed.
    pub(crate) fn pooled(&self, tokens: &Tensor) -> Candle<Tensor> {
        match self.kind {
            Kind::Beit => self.norm.forward(&tokens.i((.., 1..))?.mean(1)?),
            Kind::Vit | Kind::Dinov2 => self.norm.forward(&tokens.i((.., 0))?.contiguous()?),
        }
    }

    /// A value for each class, `[n, classes]`; `None` without a head.
    pub(crate) fn logits(&self, tokens: &Tensor) -> Candle<Option<Tensor>> {
        let Some(classifier) = &self.classifier else { return Ok(None) };
        let pooled = self.pooled(tokens)?;
        let input = match self.kind {
            Kind::Dinov2 => {
                let patches = self.norm.forward(&tokens.i((.., 1..))?.contiguous()?)?;
                Tensor::cat(&[pooled, patches.mean(1)?], 1)?
            }
            Kind::Vit | Kind::Beit => pooled,
        };
        classifier.layer.forward(&input).map(Some)
    }
}

impl Positions {
    /// The vectors for a grid of `down` × `across` patches: bicubic between the learned ones where it is another grid.
    fn of(&self, down: usize, across: usize) -> Candle<Tensor> {
        let grid = match (down, across) == (self.side, self.side) {
            true => self.grid.clone(),
            false => resample::bicubic(&self.grid, [self.side, self.side], [down, across])?,
        };
        Tensor::cat(&[&self.class, &grid], 0)
    }
}

/// Sizes of the blocks, of the image, of a patch.
fn options(config: &Config, kind: Kind) -> Result<(StackShape, usize, usize), ModelError> {
    let eps = if kind == Kind::Dinov2 { 1e-6 } else { 1e-12 };
    let mut stack = stack_shape(config, [768, 3072, 12, 12], Activation::Gelu, eps)?;
    config.only("num_channels", 3)?;
    let (size, patch) = match kind {
        Kind::Vit => {
            config.only("qkv_bias", true)?;
            for inert in ["encoder_stride", "pooler_act", "pooler_output_size"] {
                config.value(inert);
            }
            (224, 16)
        }
        Kind::Dinov2 => {
            stack.inner = stack.width * config.size_or("mlp_ratio", 4)?;
            config.only("qkv_bias", true)?;
            config.only("use_swiglu_ffn", false)?;
            for inert in ["layerscale_value", "use_mask_token", "apply_layernorm"] {
                config.value(inert);
            }
            (224, 14)
        }
        Kind::Beit => {
            config.only("use_relative_position_bias", true)?;
            config.only("use_shared_relative_position_bias", false)?;
            config.only("use_absolute_position_embeddings", false)?;
            config.only("use_mean_pooling", true)?;
            if config.value("use_relative_position_bias").is_none() {
                return Err(config.bad("use_relative_position_bias", true, "nothing"));
            }
            // What a segmentation head does, and training.
            for inert in ["add_fpn", "auxiliary_channels", "auxiliary_concat_input", "auxiliary_loss_weight"] {
                config.value(inert);
            }
            for inert in ["auxiliary_num_convs", "layer_scale_init_value", "pool_scales", "use_mask_token"] {
                config.value(inert);
            }
            for inert in ["semantic_loss_ignore_index", "use_auxiliary_head", "vocab_size"] {
                config.value(inert);
            }
            (224, 16)
        }
    };
    // Which blocks a detector would look at.
    for inert in ["out_features", "out_indices", "reshape_hidden_states", "stage_names"] {
        config.value(inert);
    }
    let (size, patch) = (config.size_or("image_size", size)?, config.size_or("patch_size", patch)?);
    if patch > size {
        return Err(config.bad("patch_size", format!("at most the image's {size} pixels"), patch));
    }
    Ok((stack, size, patch))
}

/// The names in `id2label`, by number.
///
/// # Errors
/// [`ModelError::BadConfig`].
pub(crate) fn labels(config: &Config) -> Result<Vec<Arc<str>>, ModelError> {
    let Some(map) = config.value("id2label") else {
        // The reference's default is two classes.
        let count = config.size_or("num_labels", 2)?;
        return Ok((0..count).map(|i| format!("LABEL_{i}").into()).collect());
    };
    let read = |i: usize| map.get(i.to_string()).and_then(|label| label.as_str()).map(Arc::from);
    let count = map.as_object().map_or(0, serde_json::Map::len);
    (0..count).map(read).collect::<Option<_>>().ok_or_else(|| config.bad("id2label", "names by number from 0 on", map))
}

/// BEiT's bias by the places of two patches in a grid of `side` × `side` and the class token, `[1, heads, 1 + patches,
/// 1 + patches]`. `table` is `[(2·side − 1)² + 3, heads]`; its last rows are class → patch, patch → class, class → class.
fn grid_bias(table: &Tensor, side: usize) -> Candle<Tensor> {
    let (rows, heads) = table.dims2()?;
    let (rows, tokens) = (rows as u32, 1 + side * side);
    let row = |query: usize, key: usize| match (query.checked_sub(1), key.checked_sub(1)) {
        (None, None) => rows - 1,
        (Some(_), None) => rows - 2,
        (None, Some(_)) => rows - 3,
        (Some(query), Some(key)) => {
            let offset = |query: usize, key: usize| query + side - 1 - key;
            (offset(query / side, key / side) * (2 * side - 1) + offset(query % side, key % side)) as u32
        }
    };
    let places: Vec<u32> = (0..tokens * tokens).map(|i| row(i / tokens, i % tokens)).collect();
    let bias = table.index_select(&Tensor::from_vec(places, tokens * tokens, table.device())?, 0)?;
    bias.reshape((tokens, tokens, heads))?.permute((2, 0, 1))?.unsqueeze(0)?.contiguous()
}
