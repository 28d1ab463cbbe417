//! The feature enhancer: image and text features look at each other, then each at itself (Liu et al., "Grounding DINO",
//! 2023, section 3.2).

use candle_core::{Result, Tensor};

use super::{
    config::GroundingDinoConfig,
    deformable::{DeformableAttention, Levels, References, Sampling},
    layers::MultiHeadAttention,
};
use crate::{
    ModelError,
    layers::{Activation, LayerNorm, Linear, attention, feed_forward},
    weights::Weights,
};

type Loaded<T> = std::result::Result<T, ModelError>;

/// What all layers are given of the image.
pub(crate) struct VisionContext {
    pub(crate) levels: Levels,
    /// `[batch, tokens, width]`.
    pub(crate) positions: Tensor,
    /// `[batch, tokens, 1]`: 1 where a token is no padding; `None` where all are real.
    pub(crate) real: Option<Tensor>,
    /// `[batch, 1, 1, tokens]`: 0, and minus infinity on padding; `None` where all are real.
    pub(crate) hidden: Option<Tensor>,
    /// `[batch, tokens, levels, 2]`: the centre of each token's own cell.
    pub(crate) references: Tensor,
}

/// What all layers are given of the text.
pub(crate) struct TextContext {
    /// `[batch, tokens, width]`.
    pub(crate) positions: Tensor,
    /// `[batch, 1, tokens, tokens]`: 0 inside a phrase, hugely negative between phrases.
    pub(crate) blocks: Tensor,
    /// `[batch, 1, 1, tokens]`: 0, and minus infinity on padding; `None` where all tokens are real.
    pub(crate) hidden: Option<Tensor>,
}

/// One layer.
pub(crate) struct EncoderLayer {
    fusion: Fusion,
    text: TextEnhancer,
    vision: DeformableLayer,
}

impl EncoderLayer {
    pub(crate) fn load(config: &GroundingDinoConfig, weights: &Weights) -> Loaded<Self> {
        Ok(Self {
            fusion: Fusion::load(config, &weights.at("fusion_layer"))?,
            text: TextEnhancer::load(config, &weights.at("text_enhancer_layer"))?,
            vision: DeformableLayer::load(config, &weights.at("deformable_layer"))?,
        })
    }

    /// Image features `[batch, tokens, width]` and text features `[batch, words, width]`, both enhanced.
    pub(crate) fn forward(
        &self,
        vision: &Tensor,
        text: &Tensor,
        seen: &VisionContext,
        read: &TextContext,
    ) -> Result<(Tensor, Tensor, Sampling)> {
        let (vision, text) = self.fusion.forward(vision, text, seen, read)?;
        let text = self.text.forward(&text, read)?;
        let (vision, sampling) = self.vision.forward(&vision, seen)?;
        Ok((vision, text, sampling))
    }
}

/// Attention both ways between image and text, with the same scores.
///
/// The reference also holds the scores within 50 000 of their maximum, for 16-bit floats; what that cuts off weighs
/// nothing after the softmax.
struct Fusion {
    heads: usize,
    vision_norm: LayerNorm,
    text_norm: LayerNorm,
    vision_query: Linear,
    vision_value: Linear,
    text_key: Linear,
    text_value: Linear,
    /// With the layer scale multiplied in, as [`Fusion::text_output`].
    vision_output: Linear,
    text_output: Linear,
}

impl Fusion {
    fn load(config: &GroundingDinoConfig, weights: &Weights) -> Loaded<Self> {
        let (width, inner) = (config.width, config.encoder.hidden / 2);
        let attention = weights.at("attn");
        let input = |name: &str| Linear::load(&attention.at(name), width, inner, true);
        let output = |name: &str, scale: &str| scaled(&attention.at(name), &weights.values(scale, &[width])?, inner);
        Ok(Self {
            heads: config.encoder.heads / 2,
            vision_norm: LayerNorm::load(&weights.at("layer_norm_vision"), width, config.eps)?,
            text_norm: LayerNorm::load(&weights.at("layer_norm_text"), width, config.eps)?,
            vision_query: input("vision_proj")?,
            vision_value: input("values_vision_proj")?,
            text_key: input("text_proj")?,
            text_value: input("values_text_proj")?,
            vision_output: output("out_vision_proj", "vision_param")?,
            text_output: output("out_text_proj", "text_param")?,
        })
    }

    fn forward(
        &self,
        vision: &Tensor,
        text: &Tensor,
        seen: &VisionContext,
        read: &TextContext,
    ) -> Result<(Tensor, Tensor)> {
        // The normed features are also what is added to.
        let (vision, text) = (self.vision_norm.forward(vision)?, self.text_norm.forward(text)?);
        let (queries, keys) = (self.vision_query.forward(&vision)?, self.text_key.forward(&text)?);
        let words = self.text_value.forward(&text)?;
        let to_vision = attention(&queries, &keys, &words, self.heads, read.hidden.as_ref())?;
        let pixels = self.vision_value.forward(&vision)?;
        let to_text = attention(&keys, &queries, &pixels, self.heads, seen.hidden.as_ref())?;
        Ok((self.vision_output.forward_onto(&to_vision, &vision)?, self.text_output.forward_onto(&to_text, &text)?))
    }
}

/// A linear layer whose outputs are multiplied by `scale`.
fn scaled(weights: &Weights, scale: &[f32], inputs: usize) -> Loaded<Linear> {
    let mut weight = weights.values("weight", &[scale.len(), inputs])?;
    let mut bias = weights.values("bias", &[scale.len()])?;
    for ((row, bias), scale) in weight.chunks_mut(inputs).zip(&mut bias).zip(scale) {
        row.iter_mut().for_each(|value| *value *= scale);
        *bias *= scale;
    }
    Linear::new(weights.device(), &weight, &bias)
}

/// Self-attention of the text inside its phrases.
struct TextEnhancer {
    attention: MultiHeadAttention,
    attention_norm: LayerNorm,
    expand: Linear,
    contract: Linear,
    norm: LayerNorm,
    activation: Activation,
}

impl TextEnhancer {
    fn load(config: &GroundingDinoConfig, weights: &Weights) -> Loaded<Self> {
        let (width, hidden, heads) = (config.width, config.encoder.hidden / 2, config.encoder.heads / 2);
        let attention = weights.at("self_attn");
        Ok(Self {
            attention: MultiHeadAttention::load(&attention, &attention.at("out_proj"), width, heads)?,
            attention_norm: LayerNorm::load(&weights.at("layer_norm_before"), width, config.eps)?,
            expand: Linear::load(&weights.at("fc1"), width, hidden, true)?,
            contract: Linear::load(&weights.at("fc2"), hidden, width, true)?,
            norm: LayerNorm::load(&weights.at("layer_norm_after"), width, config.eps)?,
            activation: config.activation,
        })
    }

    fn forward(&self, text: &Tensor, read: &TextContext) -> Result<Tensor> {
        let placed = (text + &read.positions)?;
        let attended = self.attention.forward_onto(&placed, &placed, text, Some(&read.blocks), text)?;
        let text = self.attention_norm.forward(&attended)?;
        self.norm.forward(&feed_forward(&text, &self.expand, self.activation, &self.contract, &text)?)
    }
}

/// Deformable self-attention of the image.
struct DeformableLayer {
    attention: DeformableAttention,
    attention_norm: LayerNorm,
    expand: Linear,
    contract: Linear,
    norm: LayerNorm,
    activation: Activation,
}

impl DeformableLayer {
    fn load(config: &GroundingDinoConfig, weights: &Weights) -> Loaded<Self> {
        let (width, stack) = (config.width, &config.encoder);
        let attention = weights.at("self_attn");
        Ok(Self {
            attention: DeformableAttention::load(&attention, width, stack.heads, config.levels, stack.points)?,
            attention_norm: LayerNorm::load(&weights.at("self_attn_layer_norm"), width, config.eps)?,
            expand: Linear::load(&weights.at("fc1"), width, stack.hidden, true)?,
            contract: Linear::load(&weights.at("fc2"), stack.hidden, width, true)?,
            norm: LayerNorm::load(&weights.at("final_layer_norm"), width, config.eps)?,
            activation: config.activation,
        })
    }

    fn forward(&self, vision: &Tensor, seen: &VisionContext) -> Result<(Tensor, Sampling)> {
        let queries = (vision + &seen.positions)?;
        let references = References::Points(&seen.references);
        let (attended, sampling) =
            self.attention.forward_onto(&queries, &references, vision, seen.real.as_ref(), &seen.levels, vision)?;
        let vision = self.attention_norm.forward(&attended)?;
        let fed = feed_forward(&vision, &self.expand, self.activation, &self.contract, &vision)?;
        Ok((self.norm.forward(&fed)?, sampling))
    }
}
