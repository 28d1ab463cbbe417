//! The options of a Grounding DINO `config.json`.

use crate::{
    ModelError,
    bert::{Kind, TextEncoderConfig},
    config::Config,
    layers::{Activation, activation},
    swin::SwinConfig,
};

/// Options that only training and the loss read.
const TRAINING: [&str; 15] = [
    "activation_dropout",
    "auxiliary_loss",
    "bbox_cost",
    "bbox_loss_coefficient",
    "class_cost",
    "disable_custom_kernels",
    "focal_alpha",
    "fusion_dropout",
    "fusion_droppath",
    "giou_cost",
    "giou_loss_coefficient",
    "init_std",
    "text_enhancer_dropout",
    "use_pretrained_backbone",
    "vision_config",
];

/// What the network is built from; defaults are transformers'.
#[derive(Debug, Clone)]
pub(crate) struct GroundingDinoConfig {
    pub(crate) backbone: SwinConfig,
    pub(crate) text: TextEncoderConfig,
    pub(crate) width: usize,
    pub(crate) queries: usize,
    pub(crate) levels: usize,
    pub(crate) activation: Activation,
    pub(crate) eps: f64,
    pub(crate) position_temperature: f64,
    /// Most tokens of a prompt.
    pub(crate) max_text: usize,
    pub(crate) encoder: StackConfig,
    pub(crate) decoder: StackConfig,
    /// Whether all decoder layers have one box head.
    pub(crate) shared_box_head: bool,
}

/// The encoder's or the decoder's layers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StackConfig {
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) hidden: usize,
    pub(crate) points: usize,
}

impl GroundingDinoConfig {
    /// Reads the options and refuses those that this network lacks.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`].
    pub(crate) fn read(config: &Config) -> Result<Self, ModelError> {
        for inert in TRAINING {
            config.value(inert);
        }
        config.only("model_type", "grounding-dino")?;
        config.only("use_timm_backbone", false)?;
        config.only("position_embedding_type", "sine")?;
        config.only("two_stage", true)?;
        config.only("two_stage_bbox_embed_share", false)?;
        config.only("embedding_init_target", true)?;
        config.only("query_dim", 4)?;
        if let Some(name) = config.value("backbone") {
            return Err(config.bad("backbone", "nothing beside backbone_config", name));
        }
        // Empty for a Swin given by backbone_config.
        config.value("backbone_kwargs");
        let missing = |key: &str| config.bad(key, "an object", "nothing");
        let backbone = config.object("backbone_config")?.ok_or_else(|| missing("backbone_config"))?;
        let text = config.object("text_config")?.ok_or_else(|| missing("text_config"))?;
        let stack = |name: &str| -> Result<StackConfig, ModelError> {
            Ok(StackConfig {
                layers: config.size_or(&format!("{name}_layers"), 6)?,
                heads: config.size_or(&format!("{name}_attention_heads"), 8)?,
                hidden: config.size_or(&format!("{name}_ffn_dim"), 2048)?,
                points: config.size_or(&format!("{name}_n_points"), 4)?,
            })
        };
        let read = Self {
            backbone: SwinConfig::read(&backbone)?,
            text: text_options(&text)?,
            width: config.size_or("d_model", 256)?,
            queries: config.size_or("num_queries", 900)?,
            levels: config.size_or("num_feature_levels", 4)?,
            activation: activation(config, "activation_function", Activation::Relu)?,
            eps: config.number_or("layer_norm_eps", 1e-5)?,
            position_temperature: config.number_or("positional_embedding_temperature", 20.0)?,
            max_text: config.size_or("max_text_len", 256)?,
            encoder: stack("encoder")?,
            decoder: stack("decoder")?,
            shared_box_head: config.flag_or("decoder_bbox_embed_share", true)?,
        };
        read.check(config)?;
        config.finish()?;
        Ok(read)
    }

    /// Sizes that must divide each other.
    fn check(&self, config: &Config) -> Result<(), ModelError> {
        let maps = self.backbone.output_channels().len();
        if maps == 0 || self.levels < maps {
            let expected = format!("at least {maps}, the number of the backbone's maps");
            return Err(config.bad("num_feature_levels", expected, self.levels));
        }
        if !self.width.is_multiple_of(32) {
            return Err(config.bad("d_model", "a multiple of 32", self.width));
        }
        let heads = [
            ("encoder_attention_heads", self.encoder.heads, self.width),
            ("decoder_attention_heads", self.decoder.heads, self.width),
        ];
        for (key, heads, width) in heads {
            if !width.is_multiple_of(heads) {
                return Err(config.bad(key, format!("a divisor of {width}"), heads));
            }
        }
        let half = self.encoder.heads / 2;
        if half == 0 || !self.width.is_multiple_of(half) || !(self.encoder.hidden / 2).is_multiple_of(half) {
            let expected = "even, its half a divisor of d_model and of half of encoder_ffn_dim";
            return Err(config.bad("encoder_attention_heads", expected, self.encoder.heads));
        }
        if self.max_text > self.text.longest() {
            let expected = format!("at most text_config.max_position_embeddings ({})", self.text.longest());
            return Err(config.bad("max_text_len", expected, self.max_text));
        }
        Ok(())
    }
}

/// The BERT that reads the prompt.
fn text_options(config: &Config) -> Result<TextEncoderConfig, ModelError> {
    config.only("model_type", "bert")?;
    TextEncoderConfig::read(config, Kind::Bert)
}
