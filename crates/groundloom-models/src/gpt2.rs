//! GPT-2 (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019).
//!
//! Reference: transformers' `modeling_gpt2.py`.

use candle_core::Tensor;

use crate::{
    ModelError,
    config::Config,
    decoder::{Decoder, DecoderBlock, Norm, Past},
    language_model::{LanguageModel, TextLimits, Words},
    layers::{Activation, Embedding, LayerNorm, Linear, activation, causal_bias},
    transformer::{NormPlace, StackShape},
    weights::Weights,
};

type Candle<T> = candle_core::Result<T>;

/// `GPT2LMHeadModel`.
#[derive(Debug)]
pub(crate) struct Gpt2 {
    words: Words,
    positions: Embedding,
    decoder: Decoder,
    norm: LayerNorm,
}

impl Gpt2 {
    /// Reads the network of a `config.json` with `model_type` `gpt2`.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`], [`ModelError::BadWeights`].
    pub(crate) fn load(config: &Config, weights: &Weights) -> Result<Self, ModelError> {
        let width = config.size_or("n_embd", 768)?;
        let shape = StackShape {
            layers: config.size_or("n_layer", 12)?,
            width,
            heads: config.size_or("n_head", 12)?,
            inner: config.size_or("n_inner", 4 * width)?,
            activation: activation(config, "activation_function", Activation::GeluTanh)?,
            eps: config.number_or("layer_norm_epsilon", 1e-5)?,
        };
        let (vocabulary, longest) = (config.size_or("vocab_size", 50_257)?, config.size_or("n_positions", 1024)?);
        let end = config.id_if_there("eos_token_id")?.unwrap_or(50_256);
        config.only("scale_attn_weights", true)?;
        config.only("scale_attn_by_inverse_layer_idx", false)?;
        // Training, a head of classes, and the order of a product in half precision.
        for inert in ["attn_pdrop", "embd_pdrop", "resid_pdrop", "reorder_and_upcast_attn", "n_ctx"] {
            config.value(inert);
        }
        for inert in ["activation", "first_dropout", "proj_to_labels", "type", "use_proj"] {
            config.value(&format!("summary_{inert}"));
        }
        config.finish()?;
        let body = weights.at_first(&["transformer", ""]);
        let layers = body.at("h");
        let blocks = (0..shape.layers).map(|i| block(&layers.at(i), shape)).collect::<Result<_, _>>()?;
        let limits = TextLimits { longest, start: end, end };
        let this = Self {
            positions: Embedding::load(&body.at("wpe"), longest, width)?,
            decoder: Decoder::new(&layers, shape, NormPlace::Before, blocks)?,
            norm: LayerNorm::load(&body.at("ln_f"), width, shape.eps)?,
            words: Words::load(weights, &body.at("wte"), [vocabulary, width], limits)?,
        };
        // Older files hold the causal mask as tensors.
        let masks = (0..shape.layers).flat_map(|i| {
            let mask = move |prefix: &str, name: &str| format!("{prefix}h.{i}.attn.{name}");
            ["", "transformer."]
                .into_iter()
                .flat_map(move |prefix| ["bias", "masked_bias"].map(|name| mask(prefix, name)))
        });
        let masks: Vec<String> = masks.collect();
        weights.finish(&masks.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(this)
    }
}

/// A block, whose layers lie as `[inputs, outputs]`.
fn block(weights: &Weights, shape: StackShape) -> Result<DecoderBlock, ModelError> {
    let StackShape { width, inner, eps, .. } = shape;
    let layer = |name: &str, inputs: usize, outputs: usize| Linear::load_columns(&weights.at(name), inputs, outputs);
    let norm = |name: &str| LayerNorm::load(&weights.at(name), width, eps).map(Norm::Layer);
    Ok(DecoderBlock {
        inner_norms: None,
        qkv: layer("attn.c_attn", width, 3 * width)?,
        head_norms: None,
        output: layer("attn.c_proj", width, width)?,
        attention_norm: norm("ln_1")?,
        cross: None,
        up: layer("mlp.c_fc", width, inner)?,
        gate: None,
        down: layer("mlp.c_proj", inner, width)?,
        feed_forward_norm: norm("ln_2")?,
    })
}

impl LanguageModel for Gpt2 {
    fn forward(
        &self,
        vectors: Tensor,
        mask: Option<&Tensor>,
        past: &mut Past,
        each: &mut dyn FnMut(&Tensor),
    ) -> Candle<Tensor> {
        let (before, length) = (past.len(), vectors.dim(1)?);
        let bias = causal_bias(before, length, mask)?;
        let x = vectors.broadcast_add(&self.positions.table().narrow(0, before, length)?)?;
        each(&x);
        self.norm.forward(&self.decoder.forward(x, Some(&bias), Some(past), None, each)?)
    }

    fn words(&self) -> &Words {
        &self.words
    }
}
