//! Kosmos-2 (Peng et al., "Kosmos-2: Grounding Multimodal Large Language Models to the World", 2023): a language model that
//! reads what learned queries find in an image, and writes where in it its phrases are.
//!
//! Reference: transformers' `modeling_kosmos2.py` and `processing_kosmos2.py`.

use candle_core::{Device, Tensor};

use crate::{
    ModelError,
    clip::{VisionConfig, VisionTower, sub_config},
    config::Config,
    decoder::{Decoder, DecoderBlock, Past},
    language_model::{LanguageModel, TextLimits, Words},
    layers::{Activation, LayerNorm, Linear, activation, attention, causal_bias, compute, normalise},
    text_tokenizer::configured_pad,
    transformer::{BlockNames, NormPlace, StackShape},
    weights::Weights,
};

mod captioner;
mod phrases;

pub(crate) use captioner::Kosmos2Captioner;
pub(crate) use phrases::grounded;

type Candle<T> = candle_core::Result<T>;

const NAMES: BlockNames = BlockNames {
    attention_norm: "self_attn_layer_norm",
    up: "ffn.fc1",
    down: "ffn.fc2",
    feed_forward_norm: "final_layer_norm",
    ..BlockNames::CLIP
};

/// `Kosmos2ForConditionalGeneration`.
#[derive(Debug)]
pub(crate) struct Kosmos2 {
    pub(crate) vision: VisionTower,
    dense: Linear,
    /// `[1, queries, width]`.
    queries: Tensor,
    query: Linear,
    key_value: Linear,
    output: Linear,
    pub(crate) text: TextModel,
}

/// The language model.
#[derive(Debug)]
pub(crate) struct TextModel {
    words: Words,
    /// What vectors of words, and of what stands in their place, are multiplied by.
    scale: f64,
    /// The number of the first token's position.
    first: usize,
    decoder: Decoder,
    norm: LayerNorm,
}

impl Kosmos2 {
    /// Reads the network of a `config.json` with `model_type` `kosmos-2`.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`], [`ModelError::BadWeights`].
    pub(crate) fn load(config: &Config, weights: &Weights) -> Result<Self, ModelError> {
        let (vision, text) = (sub_config(config, "vision_config")?, sub_config(config, "text_config")?);
        let vision_config = VisionConfig::read_sized(&vision, [1024, 4096, 24, 16], 14)?;
        let count = config.size_or("latent_query_num", 64)?;
        let shape = StackShape {
            layers: text.size_or("layers", 24)?,
            width: text.size_or("embed_dim", 2048)?,
            heads: text.size_or("attention_heads", 32)?,
            inner: text.size_or("ffn_dim", 8192)?,
            activation: activation(&text, "activation_function", Activation::Gelu)?,
            eps: text.number_or("layer_norm_eps", 1e-5)?,
        };
        let limits = TextLimits {
            longest: text.size_or("max_position_embeddings", 2048)?,
            start: text.id_if_there("bos_token_id")?.unwrap_or(0),
            end: text.id_if_there("eos_token_id")?.unwrap_or(2),
        };
        if !shape.width.is_multiple_of(2) || shape.width < 4 {
            return Err(text.bad("embed_dim", "an even number of at least 4", shape.width));
        }
        let vocabulary = text.size_or("vocab_size", 65_037)?;
        let scale = if text.flag_or("scale_embedding", true)? { (shape.width as f64).sqrt() } else { 1.0 };
        let first = configured_pad(&text)? as usize + 1;
        for inert in ["activation_dropout", "init_std", "layerdrop"] {
            text.value(inert);
        }
        [config, &vision, &text].into_iter().try_for_each(Config::finish)?;

        let projection = weights.at("image_to_text_projection");
        let crossed = projection.at("x_attn");
        let width = shape.width;
        let layer = |name: &str| Linear::load(&crossed.at(name), width, width, true);
        let vision_place = weights.at("vision_model").at_first(&["model", ""]);
        let this = Self {
            vision: VisionTower::load(&vision_place, vision_config, "pre_layrnorm")?,
            dense: Linear::load(&projection.at("dense"), vision_config.stack.width, width, true)?,
            queries: projection
                .tensor("latent_query", &[count, width])?
                .unsqueeze(0)
                .map_err(compute("the queries"))?,
            query: layer("q_proj")?,
            key_value: Linear::load_fused(&["k_proj", "v_proj"].map(|name| (crossed.at(name), true)), width, width)?,
            output: layer("out_proj")?,
            text: TextModel::load(&weights.at("text_model"), shape, [vocabulary, first], scale, limits)?,
        };
        weights.finish(&[])?;
        Ok(this)
    }

    /// How many tokens stand for an image.
    pub(crate) fn queries(&self) -> usize {
        self.queries.dims()[1]
    }

    /// What the queries find among the vision tower's tokens (`[n, length, width of the tower]`), as the language model reads
    /// it: `[n, queries, width]`.
    pub(crate) fn projected(&self, tokens: &Tensor) -> Candle<Tensor> {
        let seen = self.dense.forward(&normalise(&self.vision.post_norm.forward(tokens)?)?)?;
        let (n, _, width) = seen.dims3()?;
        let queries = self.queries.broadcast_as((n, self.queries(), width))?.contiguous()?;
        let both = self.key_value.forward(&Tensor::cat(&[&seen, &queries], 1)?)?;
        let part = |i: usize| both.narrow(2, i * width, width)?.contiguous();
        let heads = self.text.decoder.heads;
        self.output.forward(&attention(&self.query.forward(&queries)?, &part(0)?, &part(1)?, heads, None)?)
    }
}

impl TextModel {
    fn load(
        weights: &Weights,
        shape: StackShape,
        [vocabulary, first]: [usize; 2],
        scale: f64,
        limits: TextLimits,
    ) -> Result<Self, ModelError> {
        let StackShape { width, inner, eps, .. } = shape;
        let body = weights.at("model");
        let block = |i: usize| {
            let place = body.at("layers").at(i);
            let norm = |name: &str, width: usize| LayerNorm::load(&place.at(name), width, eps);
            let inner_norms = [norm("self_attn.inner_attn_ln", width)?, norm("ffn.ffn_layernorm", inner)?];
            Ok(DecoderBlock { inner_norms: Some(inner_norms), ..DecoderBlock::load(&place, shape, NAMES)? })
        };
        let blocks = (0..shape.layers).map(block).collect::<Result<_, ModelError>>()?;
        Ok(Self {
            words: Words::load(weights, &body.at("embed_tokens"), [vocabulary, width], limits)?,
            scale,
            first,
            decoder: Decoder::new(&body, shape, NormPlace::Before, blocks)?,
            norm: LayerNorm::load(&body.at("layer_norm"), width, eps)?,
        })
    }

    /// Sines, then cosines of the places of `length` tokens behind `before` others, `[length, width]`.
    fn positions(&self, before: usize, [length, width]: [usize; 2], device: &Device) -> Candle<Tensor> {
        let half = width / 2;
        // In single precision, as the reference multiplies them.
        let step = (10_000.0_f64.ln() / (half - 1) as f64) as f32;
        let speeds: Vec<f32> = (0..half).map(|i| (-(i as f32 * step)).exp()).collect();
        let mut values = Vec::with_capacity(length * width);
        for place in self.first + before..self.first + before + length {
            let angle = |speed: &f32| place as f32 * speed;
            values.extend(speeds.iter().map(|speed| angle(speed).sin()));
            values.extend(speeds.iter().map(|speed| angle(speed).cos()));
        }
        Tensor::from_vec(values, (length, width), device)
    }
}

impl LanguageModel for TextModel {
    fn forward(
        &self,
        vectors: Tensor,
        mask: Option<&Tensor>,
        past: &mut Past,
        each: &mut dyn FnMut(&Tensor),
    ) -> Candle<Tensor> {
        let (_, length, width) = vectors.dims3()?;
        let before = past.len();
        let bias = causal_bias(before, length, mask)?;
        let x = vectors.affine(self.scale, 0.0)?.broadcast_add(&self.positions(
            before,
            [length, width],
            vectors.device(),
        )?)?;
        each(&x);
        self.norm.forward(&self.decoder.forward(x, Some(&bias), Some(past), None, each)?)
    }

    fn words(&self) -> &Words {
        &self.words
    }
}
