//! LLaVA 1.5 (Liu et al., "Improved Baselines with Visual Instruction Tuning", 2023): the patches that a CLIP sees stand
//! among the words that a Llama reads.
//!
//! Reference: transformers' `modeling_llava.py`.

use candle_core::{IndexOp, Tensor};

use crate::{
    ModelError,
    clip::{VisionConfig, VisionTower, sub_config},
    config::Config,
    layers::{Activation, Linear, activation},
    llama::{Kind, Llama, LlamaConfig},
    weights::Weights,
};

type Candle<T> = candle_core::Result<T>;

/// `LlavaForConditionalGeneration`.
#[derive(Debug)]
pub(crate) struct Llava {
    pub(crate) vision: VisionTower,
    /// So many blocks before the last the patches' vectors are taken, counted from 1: 2 is the last but one.
    layer: usize,
    first: Linear,
    activation: Activation,
    second: Linear,
    pub(crate) text: Llama,
    /// The token in whose place the image stands.
    pub(crate) image_token: u32,
}

impl Llava {
    /// Reads the network of a `config.json` with `model_type` `llava`, of a CLIP and a Llama.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`], [`ModelError::BadWeights`].
    pub(crate) fn load(config: &Config, weights: &Weights) -> Result<Self, ModelError> {
        let (vision, text) = (sub_config(config, "vision_config")?, sub_config(config, "text_config")?);
        for (config, expected) in [(&vision, "clip_vision_model"), (&text, "llama")] {
            if let Some(found) = config.text("model_type")?.filter(|found| *found != expected) {
                return Err(config.bad("model_type", expected, found));
            }
        }
        config.only("vision_feature_select_strategy", "default")?;
        config.only("multimodal_projector_bias", true)?;
        let between = activation(config, "projector_hidden_act", Activation::Gelu)?;
        let (vision_config, text_config) = (VisionConfig::read(&vision)?, LlamaConfig::read(&text, Kind::Llama)?);
        let layers = vision_config.stack.layers as i64;
        let layer = match config.value("vision_feature_layer").map(|value| (value, value.as_i64())) {
            None => 2,
            Some((_, Some(layer))) if (-layers..0).contains(&layer) => layer.unsigned_abs() as usize,
            Some((found, _)) => {
                return Err(config.bad("vision_feature_layer", format!("a number from {} to -1", -layers), found));
            }
        };
        let image_token = match config.id_if_there("image_token_index")? {
            Some(id) => id,
            None => config.id_if_there("image_token_id")?.unwrap_or(32_000),
        };
        // The number of patches follows from the vision tower; the rest is training's.
        for inert in ["image_seq_length", "ignore_index", "vocab_size", "vision_feature_select_strategy"] {
            config.value(inert);
        }
        vision.value("vocab_size");
        [config, &vision, &text].into_iter().try_for_each(Config::finish)?;
        let (seen, width) = (vision_config.stack.width, text_config.width);
        let projector = weights.at("multi_modal_projector");
        let tower = weights.at_first(&["vision_tower.vision_model", "vision_tower"]);
        let this = Self {
            vision: VisionTower::load(&tower, vision_config, "pre_layrnorm")?,
            layer,
            first: Linear::load(&projector.at("linear_1"), seen, width, true)?,
            activation: between,
            second: Linear::load(&projector.at("linear_2"), width, width, true)?,
            text: Llama::load_at(&weights.at("language_model"), text_config)?,
            image_token,
        };
        weights.finish(&[])?;
        Ok(this)
    }

    /// Pixels → the vectors of the patches, `[n, patches, width of the vision tower]`.
    pub(crate) fn selected(&self, pixels: &Tensor) -> Candle<Tensor> {
        let mut seen = Vec::new();
        self.vision.forward(pixels, &mut |x| seen.push(x.clone()))?;
        let Some(layer) = seen.len().checked_sub(self.layer).and_then(|i| seen.get(i)) else {
            candle_core::bail!("a tower of {} layers was asked for that {} before its end", seen.len(), self.layer)
        };
        layer.i((.., 1..))?.contiguous()
    }

    /// As the language model sees them, `[n, patches, width of a word]`.
    pub(crate) fn projected(&self, selected: &Tensor) -> Candle<Tensor> {
        self.second.forward(&self.first.forward_activated(selected, self.activation)?)
    }
}
