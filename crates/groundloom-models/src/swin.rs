//! Swin Transformer (Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", 2021), as
//! the backbone of detectors: feature maps of several strides; and as the audio tower of CLAP, whose map is a spectrum
//! (Chen et al., "HTS-AT: A Hierarchical Token-Semantic Audio Transformer", 2022).
//!
//! Tensor names are those of Hugging Face checkpoints. As in transformers' `SwinBackbone`, windows keep their size
//! however small a map is: maps are padded to whole windows. In CLAP a map of one window is not rolled.

mod attention;

use candle_core::{Result, Tensor};

use crate::{
    ModelError,
    config::Config,
    layers::{Activation, LayerNorm, Linear, activation, feed_forward, patches},
    weights::Weights,
};
use attention::{WindowAttention, Windows};

/// Epsilon of the norms that are not the blocks' own, whatever `layer_norm_eps` says.
const OUTER_EPS: f64 = 1e-5;

/// The options of a `backbone_config`; defaults are transformers'.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SwinConfig {
    patch: usize,
    channels: usize,
    embed: usize,
    depths: Vec<usize>,
    heads: Vec<usize>,
    window: usize,
    hidden_ratio: f64,
    qkv_bias: bool,
    activation: Activation,
    eps: f64,
    /// Stages whose maps are wanted, counted from 1, ascending.
    outputs: Vec<usize>,
    layout: Layout,
}

/// Whose checkpoint it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Backbone,
    Clap,
}

impl Layout {
    /// Where the patches' layer, their norm and the stages lie.
    fn names(self) -> [&'static str; 3] {
        match self {
            Self::Backbone => ["embeddings.patch_embeddings.projection", "embeddings.norm", "encoder.layers"],
            Self::Clap => ["patch_embed.proj", "patch_embed.norm", "layers"],
        }
    }

    /// Where the norm of a stage's map lies.
    fn output_norm(self, stage: usize) -> String {
        match self {
            Self::Backbone => format!("hidden_states_norms.stage{stage}"),
            Self::Clap => "norm".to_owned(),
        }
    }
}

impl SwinConfig {
    /// Reads the options and refuses those that this backbone lacks.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`].
    pub(crate) fn read(config: &Config) -> std::result::Result<Self, ModelError> {
        config.only("model_type", "swin")?;
        config.only("use_absolute_embeddings", false)?;
        // Both only tell what the network was trained on: masks and biases are made for each map's own size.
        for inert in ["image_size", "encoder_stride", "hidden_size", "num_layers", "stage_names", "path_norm"] {
            config.value(inert);
        }
        let depths = config.sizes_or("depths", &[2, 2, 6, 2])?;
        let embed = config.size_or("embed_dim", 96)?;
        let heads = heads_of(config, "num_heads", &[3, 6, 12, 24], &depths, embed)?;
        let last = [depths.len()];
        let mut outputs = config.sizes_or("out_indices", &last)?;
        config.value("out_features");
        outputs.sort_unstable();
        outputs.dedup();
        if outputs.iter().any(|&stage| stage > depths.len()) {
            let expected = format!("stages from 1 to {}", depths.len());
            return Err(config.bad("out_indices", expected, format!("{outputs:?}")));
        }
        let read = Self {
            patch: config.size_or("patch_size", 4)?,
            channels: config.size_or("num_channels", 3)?,
            embed,
            depths,
            heads,
            window: config.size_or("window_size", 7)?,
            hidden_ratio: config.number_or("mlp_ratio", 4.0)?,
            qkv_bias: config.flag_or("qkv_bias", true)?,
            activation: activation(config, "hidden_act", Activation::Gelu)?,
            eps: config.number_or("layer_norm_eps", 1e-5)?,
            outputs,
            layout: Layout::Backbone,
        };
        config.finish()?;
        Ok(read)
    }

    /// Reads the `audio_config` of CLAP, for spectra of `spec_size` × `spec_size`; the options that are not this network's
    /// have been read.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`].
    pub(crate) fn read_clap(config: &Config) -> std::result::Result<Self, ModelError> {
        // Four spectra of a long sound, blended.
        config.only("enable_fusion", false)?;
        config.only("enable_patch_layer_norm", true)?;
        config.only("flatten_patch_embeds", true)?;
        config.only("patch_embed_input_channels", 1)?;
        // Sizes of the blending; what the network was trained to sort sounds into; said by depths already.
        for inert in ["aff_block_r", "fusion_type", "num_classes", "num_hidden_layers"] {
            config.value(inert);
        }
        let depths = config.sizes_or("depths", &[2, 2, 6, 2])?;
        let embed = config.size_or("patch_embeds_hidden_size", 96)?;
        let heads = heads_of(config, "num_attention_heads", &[4, 8, 16, 32], &depths, embed)?;
        let (patch, window) = (config.size_or("patch_size", 4)?, config.size_or("window_size", 8)?);
        config.only("patch_stride", vec![patch, patch])?;
        let width = embed << (depths.len() - 1);
        let named = config.size_or("hidden_size", 768)?;
        if named != width {
            return Err(config.bad("hidden_size", format!("{width}, the width of the last stage"), named));
        }
        let side = config.size_or("spec_size", 256)?;
        let smallest = (side / patch) >> (depths.len() - 1);
        if smallest < window || !side.is_multiple_of(patch << (depths.len() - 1)) {
            let expected =
                format!("a multiple of {}, with the last stage at least a window", patch << (depths.len() - 1));
            return Err(config.bad("spec_size", expected, side));
        }
        let read = Self {
            patch,
            channels: 1,
            embed,
            outputs: vec![depths.len()],
            depths,
            heads,
            window,
            hidden_ratio: config.number_or("mlp_ratio", 4.0)?,
            qkv_bias: config.flag_or("qkv_bias", true)?,
            activation: activation(config, "hidden_act", Activation::Gelu)?,
            eps: config.number_or("layer_norm_eps", 1e-5)?,
            layout: Layout::Clap,
        };
        config.finish()?;
        Ok(read)
    }

    /// Channels of each map that [`Swin::forward`] gives.
    pub(crate) fn output_channels(&self) -> Vec<usize> {
        self.outputs.iter().map(|&stage| self.embed << (stage - 1)).collect()
    }
}

/// The heads of each stage, which must divide its width.
fn heads_of(
    config: &Config,
    key: &str,
    default: &[usize],
    depths: &[usize],
    embed: usize,
) -> std::result::Result<Vec<usize>, ModelError> {
    // Each stage is twice as wide as the one before.
    const STAGES: usize = 8;
    if depths.len() > STAGES {
        return Err(config.bad("depths", format!("a list of at most {STAGES}"), format!("one of {}", depths.len())));
    }
    let heads = config.sizes_or(key, default)?;
    if heads.len() != depths.len() || heads.is_empty() {
        let expected = format!("a list of {} sizes, as many as depths", depths.len());
        return Err(config.bad(key, expected, format!("{heads:?}")));
    }
    for (stage, &heads) in heads.iter().enumerate() {
        if !(embed << stage).is_multiple_of(heads) {
            let expected = format!("divisors of the stages' widths ({} in stage {})", embed << stage, stage + 1);
            return Err(config.bad(key, expected, heads));
        }
    }
    Ok(heads)
}

/// A map of features: `[batch, height * width, channels]`, rows from the top.
#[derive(Debug, Clone)]
pub(crate) struct FeatureMap {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) values: Tensor,
}

/// The backbone.
pub(crate) struct Swin {
    config: SwinConfig,
    patches: Linear,
    norm: LayerNorm,
    stages: Vec<Stage>,
    output_norms: Vec<LayerNorm>,
}

struct Stage {
    blocks: Vec<Block>,
    merge: Option<Merge>,
}

/// Four neighbours become one token of twice the width.
struct Merge {
    norm: LayerNorm,
    reduction: Linear,
}

struct Block {
    before: LayerNorm,
    attention: WindowAttention,
    after: LayerNorm,
    expand: Linear,
    contract: Linear,
    activation: Activation,
}

impl Swin {
    /// # Errors
    /// [`ModelError::BadWeights`].
    pub(crate) fn load(config: SwinConfig, weights: &Weights) -> std::result::Result<Self, ModelError> {
        let SwinConfig { patch, channels, embed, .. } = config;
        let [projection, norm, layers] = config.layout.names();
        let projection = weights.at(projection);
        let kernel = projection.values("weight", &[embed, channels, patch, patch])?;
        let patches = Linear::new(weights.device(), &kernel, &projection.values("bias", &[embed])?)?;
        let norm = LayerNorm::load(&weights.at(norm), embed, OUTER_EPS)?;
        let mut stages = Vec::with_capacity(config.depths.len());
        for (stage, &depth) in config.depths.iter().enumerate() {
            let width = embed << stage;
            let at = weights.at(layers).at(stage);
            let blocks = (0..depth)
                .map(|block| Block::load(&config, stage, &at.at(format!("blocks.{block}"))))
                .collect::<std::result::Result<_, _>>()?;
            let last = stage + 1 == config.depths.len();
            let merge = if last { None } else { Some(Merge::load(&at.at("downsample"), width)?) };
            stages.push(Stage { blocks, merge });
        }
        let output_norms = config
            .outputs
            .iter()
            .map(|&stage| {
                let at = weights.at(config.layout.output_norm(stage));
                LayerNorm::load(&at, embed << (stage - 1), OUTER_EPS)
            })
            .collect::<std::result::Result<_, _>>()?;
        Ok(Self { config, patches, norm, stages, output_norms })
    }

    /// Channels of the last stage's map.
    pub(crate) fn width(&self) -> usize {
        self.config.embed << self.config.depths.len().saturating_sub(1)
    }

    /// The wanted maps, finest first, for `pixels`: `[batch, channels, height, width]`, of any size.
    ///
    /// # Errors
    /// What candle says.
    pub(crate) fn forward(&self, pixels: &Tensor) -> Result<Vec<FeatureMap>> {
        let mut map = self.embed(pixels)?;
        let mut found = Vec::with_capacity(self.config.outputs.len());
        for (stage, layers) in self.stages.iter().enumerate() {
            for (number, block) in layers.blocks.iter().enumerate() {
                let one = self.config.layout == Layout::Clap && map.height.min(map.width) <= self.config.window;
                let shift = if number % 2 == 0 || one { 0 } else { self.config.window / 2 };
                let windows = Windows { side: self.config.window, shift, height: map.height, width: map.width };
                map.values = block.forward(&map.values, windows)?;
            }
            if let Some(wanted) = self.config.outputs.iter().position(|&wanted| wanted == stage + 1) {
                found.push(FeatureMap { values: self.output_norms[wanted].forward(&map.values)?, ..map.clone() });
            }
            if let Some(merge) = &layers.merge {
                map = merge.forward(&map)?;
            }
        }
        Ok(found)
    }

    /// Patches, the last ones padded with zeros, to tokens.
    fn embed(&self, pixels: &Tensor) -> Result<FeatureMap> {
        let (_, _, height, width) = pixels.dims4()?;
        let side = self.config.patch;
        let (rows, columns) = (height.div_ceil(side), width.div_ceil(side));
        let padded = pixels.pad_with_zeros(2, 0, rows * side - height)?.pad_with_zeros(3, 0, columns * side - width)?;
        let values = self.norm.forward(&self.patches.forward(&patches(&padded, side)?)?)?;
        Ok(FeatureMap { height: rows, width: columns, values })
    }
}

impl Merge {
    fn load(weights: &Weights, width: usize) -> std::result::Result<Self, ModelError> {
        Ok(Self {
            norm: LayerNorm::load(&weights.at("norm"), 4 * width, OUTER_EPS)?,
            reduction: Linear::load(&weights.at("reduction"), 4 * width, 2 * width, false)?,
        })
    }

    /// Order of the four: top left, bottom left, top right, bottom right; zeros beyond an odd edge.
    fn forward(&self, map: &FeatureMap) -> Result<FeatureMap> {
        let (batch, _, channels) = map.values.dims3()?;
        let (rows, columns) = (map.height.div_ceil(2), map.width.div_ceil(2));
        let quads = map
            .values
            .reshape((batch, map.height, map.width, channels))?
            .pad_with_zeros(1, 0, 2 * rows - map.height)?
            .pad_with_zeros(2, 0, 2 * columns - map.width)?
            .reshape(&[batch, rows, 2, columns, 2, channels])?
            .permute([0, 1, 3, 4, 2, 5])?
            .reshape((batch, rows * columns, 4 * channels))?;
        let values = self.reduction.forward(&self.norm.forward(&quads)?)?;
        Ok(FeatureMap { height: rows, width: columns, values })
    }
}

impl Block {
    fn load(config: &SwinConfig, stage: usize, weights: &Weights) -> std::result::Result<Self, ModelError> {
        let width = config.embed << stage;
        let hidden = (config.hidden_ratio * width as f64) as usize;
        let attention = weights.at("attention");
        Ok(Self {
            before: LayerNorm::load(&weights.at("layernorm_before"), width, config.eps)?,
            attention: WindowAttention::load(&attention, width, config.heads[stage], config.window, config.qkv_bias)?,
            after: LayerNorm::load(&weights.at("layernorm_after"), width, config.eps)?,
            expand: Linear::load(&weights.at("intermediate.dense"), width, hidden, true)?,
            contract: Linear::load(&weights.at("output.dense"), hidden, width, true)?,
            activation: config.activation,
        })
    }

    fn forward(&self, tokens: &Tensor, windows: Windows) -> Result<Tensor> {
        let tokens = self.attention.forward_onto(&self.before.forward(tokens)?, windows, tokens)?;
        feed_forward(&self.after.forward(&tokens)?, &self.expand, self.activation, &self.contract, &tokens)
    }
}
