//! The decoder: queries with boxes look at each other, the text and the image, and refine their boxes (Liu et al.,
//! "Grounding DINO", 2023, section 3.4).

use candle_core::{Result, Tensor};

use super::{
    config::GroundingDinoConfig,
    deformable::{DeformableAttention, Levels, References},
    layers::{MultiHeadAttention, Perceptron, logit, sigmoid},
    position,
};
use crate::{
    ModelError,
    layers::{Activation, LayerNorm, Linear, feed_forward},
    weights::Weights,
};

type Loaded<T> = std::result::Result<T, ModelError>;

/// How near to 0 and 1 a box's coordinates may come before they are taken back to logits.
pub(crate) const BOX_EPS: f64 = 1e-5;

/// What all layers are given.
pub(crate) struct Memory<'a> {
    /// `[batch, tokens, width]`.
    pub(crate) vision: &'a Tensor,
    /// `[batch, tokens, 1]`; `None` where all tokens are real.
    pub(crate) real: Option<&'a Tensor>,
    pub(crate) levels: &'a Levels,
    /// The real part of each level's map, `[batch, levels, 4]`: width, height, width, height.
    pub(crate) ratios: &'a Tensor,
    /// `[batch, words, width]`.
    pub(crate) text: &'a Tensor,
    /// `[batch, 1, 1, words]` to add to scores; `None` where all words are real.
    pub(crate) hidden_text: Option<&'a Tensor>,
}

/// What each layer gives.
pub(crate) struct Decoded {
    /// Normed states, `[batch, queries, width]`, of each layer.
    pub(crate) states: Vec<Tensor>,
    /// Boxes after each layer, `[batch, queries, 4]`: centre and size, fractions of the padded image.
    pub(crate) boxes: Vec<Tensor>,
}

/// The layers and what they share.
pub(crate) struct Decoder {
    width: usize,
    layers: Vec<DecoderLayer>,
    norm: LayerNorm,
    positions: Perceptron,
    /// One, or one for each layer.
    box_heads: Vec<Perceptron>,
}

impl Decoder {
    /// `weights` is the whole model.
    pub(crate) fn load(config: &GroundingDinoConfig, weights: &Weights) -> Loaded<Self> {
        let width = config.width;
        let decoder = weights.at("model.decoder");
        let layers = (0..config.decoder.layers)
            .map(|number| DecoderLayer::load(config, &decoder.at(format!("layers.{number}"))))
            .collect::<Loaded<_>>()?;
        let heads = weights.at_first(&["bbox_embed", "model.decoder.bbox_embed"]);
        let count = if config.shared_box_head { 1 } else { config.decoder.layers };
        Ok(Self {
            width,
            layers,
            norm: LayerNorm::load(&decoder.at("layer_norm"), width, config.eps)?,
            positions: Perceptron::load(&decoder.at("reference_points_head"), &[2 * width, width, width])?,
            box_heads: (0..count)
                .map(|number| Perceptron::load(&heads.at(number), &[width, width, width, 4]))
                .collect::<Loaded<_>>()?,
        })
    }

    fn box_head(&self, layer: usize) -> &Perceptron {
        &self.box_heads[layer.min(self.box_heads.len() - 1)]
    }

    /// `queries` is `[batch, n, width]`, `boxes` their `[batch, n, 4]`.
    pub(crate) fn forward(&self, queries: &Tensor, boxes: &Tensor, memory: &Memory<'_>) -> Result<Decoded> {
        let mut decoded = Decoded { states: Vec::new(), boxes: Vec::new() };
        let (mut hidden, mut boxes) = (queries.clone(), boxes.clone());
        for (number, layer) in self.layers.iter().enumerate() {
            // [batch, queries, 1, 4] · [batch, 1, levels, 4]
            let references = boxes.unsqueeze(2)?.broadcast_mul(&memory.ratios.unsqueeze(1)?)?;
            let first = references.narrow(2, 0, 1)?.squeeze(2)?;
            let positions = self.positions.forward(&position::of_coordinates(&first, self.width / 2)?)?;
            hidden = layer.forward(&hidden, &positions, &references, memory)?;
            boxes = sigmoid(&(self.box_head(number).forward(&hidden)? + logit(&boxes, BOX_EPS)?)?)?;
            decoded.states.push(self.norm.forward(&hidden)?);
            decoded.boxes.push(boxes.clone());
        }
        Ok(decoded)
    }

    /// The last layer's boxes as the model answers them: its normed states move the boxes that it began with.
    pub(crate) fn final_boxes(&self, decoded: &Decoded, first: &Tensor) -> Result<Tensor> {
        let last = self.layers.len() - 1;
        let before = if last == 0 { first } else { &decoded.boxes[last - 1] };
        sigmoid(&(self.box_head(last).forward(&decoded.states[last])? + logit(before, BOX_EPS)?)?)
    }
}

struct DecoderLayer {
    among: MultiHeadAttention,
    among_norm: LayerNorm,
    text: MultiHeadAttention,
    text_norm: LayerNorm,
    vision: DeformableAttention,
    vision_norm: LayerNorm,
    expand: Linear,
    contract: Linear,
    norm: LayerNorm,
    activation: Activation,
}

impl DecoderLayer {
    fn load(config: &GroundingDinoConfig, weights: &Weights) -> Loaded<Self> {
        let (width, stack) = (config.width, &config.decoder);
        let attention = |name: &str| {
            let at = weights.at(name);
            MultiHeadAttention::load(&at, &at.at("out_proj"), width, stack.heads)
        };
        let norm = |name: &str| LayerNorm::load(&weights.at(name), width, config.eps);
        let vision = weights.at("encoder_attn");
        Ok(Self {
            among: attention("self_attn")?,
            among_norm: norm("self_attn_layer_norm")?,
            text: attention("encoder_attn_text")?,
            text_norm: norm("encoder_attn_text_layer_norm")?,
            vision: DeformableAttention::load(&vision, width, stack.heads, config.levels, stack.points)?,
            vision_norm: norm("encoder_attn_layer_norm")?,
            expand: Linear::load(&weights.at("fc1"), width, stack.hidden, true)?,
            contract: Linear::load(&weights.at("fc2"), stack.hidden, width, true)?,
            norm: norm("final_layer_norm")?,
            activation: config.activation,
        })
    }

    fn forward(&self, hidden: &Tensor, positions: &Tensor, references: &Tensor, memory: &Memory<'_>) -> Result<Tensor> {
        let placed = (hidden + positions)?;
        let attended = self.among.forward_onto(&placed, &placed, hidden, None, hidden)?;
        let hidden = self.among_norm.forward(&attended)?;

        let placed = (&hidden + positions)?;
        let attended = self.text.forward_onto(&placed, memory.text, memory.text, memory.hidden_text, &hidden)?;
        let hidden = self.text_norm.forward(&attended)?;

        let placed = (&hidden + positions)?;
        let references = References::Boxes(references);
        let (attended, _) =
            self.vision.forward_onto(&placed, &references, memory.vision, memory.real, memory.levels, &hidden)?;
        let hidden = self.vision_norm.forward(&attended)?;

        self.norm.forward(&feed_forward(&hidden, &self.expand, self.activation, &self.contract, &hidden)?)
    }
}
