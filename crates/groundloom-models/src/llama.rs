//! Llama (Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023), the language model of LLaVA.
//!
//! Reference: transformers' `modeling_llama.py`.

use candle_core::Tensor;

use crate::{
    ModelError,
    config::Config,
    decoder::{Decoder, DecoderBlock, Norm, Past},
    language_model::{LanguageModel, TextLimits, Words},
    layers::{Activation, Linear, RmsNorm, activation, causal_bias},
    transformer::NormPlace,
    weights::Weights,
};

type Candle<T> = candle_core::Result<T>;

/// The options of a Llama.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LlamaConfig {
    layers: usize,
    pub(crate) width: usize,
    heads: usize,
    /// Heads of the keys and values, each shared by `heads / key_heads` of the queries.
    key_heads: usize,
    head_width: usize,
    inner: usize,
    activation: Activation,
    eps: f64,
    /// The wave of the slowest pair of a head turns once in 2π · this many tokens.
    rotary_base: f64,
    vocabulary: usize,
    limits: TextLimits,
}

impl LlamaConfig {
    /// Reads the `text_config` of another model's `config.json`.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`].
    pub(crate) fn read(config: &Config) -> Result<Self, ModelError> {
        let (width, heads) = (config.size_or("hidden_size", 4096)?, config.size_or("num_attention_heads", 32)?);
        let key_heads = config.size_or("num_key_value_heads", heads)?;
        if !heads.is_multiple_of(key_heads) {
            return Err(config.bad("num_key_value_heads", format!("a divisor of the {heads} heads"), key_heads));
        }
        let head_width = config.size_or("head_dim", width / heads)?;
        if !head_width.is_multiple_of(2) {
            return Err(config.bad("head_dim", "even", head_width));
        }
        for option in ["attention_bias", "mlp_bias"] {
            config.only(option, false)?;
        }
        config.only("rope_scaling", serde_json::Value::Null)?;
        let plain = config.number_or("rope_theta", 10_000.0)?;
        let rotary_base = match config.object("rope_parameters")? {
            None => plain,
            Some(rotary) => {
                rotary.only("rope_type", "default")?;
                let base = rotary.number_or("rope_theta", plain)?;
                rotary.finish()?;
                base
            }
        };
        // How the training was spread over machines.
        config.value("pretraining_tp");
        Ok(Self {
            layers: config.size_or("num_hidden_layers", 32)?,
            width,
            heads,
            key_heads,
            head_width,
            inner: config.size_or("intermediate_size", 11_008)?,
            activation: activation(config, "hidden_act", Activation::Silu)?,
            eps: config.number_or("rms_norm_eps", 1e-6)?,
            rotary_base,
            vocabulary: config.size_or("vocab_size", 32_000)?,
            limits: TextLimits {
                longest: config.size_or("max_position_embeddings", 2048)?,
                start: config.id_if_there("bos_token_id")?.unwrap_or(1),
                end: config.id_if_there("eos_token_id")?.unwrap_or(2),
            },
        })
    }
}

/// `LlamaForCausalLM`.
#[derive(Debug)]
pub(crate) struct Llama {
    words: Words,
    decoder: Decoder,
    norm: RmsNorm,
}

impl Llama {
    /// Reads the network at `weights`: `model`, and `lm_head` where the checkpoint has one.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`].
    pub(crate) fn load_at(weights: &Weights, config: LlamaConfig) -> Result<Self, ModelError> {
        let LlamaConfig { width, vocabulary, eps, .. } = config;
        let body = weights.at("model");
        let blocks = (0..config.layers).map(|i| block(&body.at("layers").at(i), config)).collect::<Result<_, _>>()?;
        Ok(Self {
            decoder: Decoder {
                norms: NormPlace::Before,
                heads: config.heads,
                scale: 1.0 / (config.head_width as f32).sqrt(),
                activation: config.activation,
                rotary_base: Some(config.rotary_base),
                blocks,
            },
            norm: RmsNorm::load(&body.at("norm"), width, eps)?,
            words: Words::load(weights, &body.at("embed_tokens"), [vocabulary, width], config.limits)?,
        })
    }
}

fn block(weights: &Weights, config: LlamaConfig) -> Result<DecoderBlock, ModelError> {
    let LlamaConfig { width, heads, key_heads, head_width, inner, eps, .. } = config;
    let attention = weights.at("self_attn");
    let attended = heads * head_width;
    let mut qkv = attention.values("q_proj.weight", &[attended, width])?;
    for name in ["k_proj.weight", "v_proj.weight"] {
        let shared = attention.values(name, &[key_heads * head_width, width])?;
        // Every head gets keys and values of its own, the same ones where the checkpoint shares them.
        for head in shared.chunks_exact(head_width * width) {
            (0..heads / key_heads).for_each(|_| qkv.extend_from_slice(head));
        }
    }
    let layer = |name: &str, inputs: usize, outputs: usize| Linear::load(&weights.at(name), inputs, outputs, false);
    let norm = |name: &str| RmsNorm::load(&weights.at(name), width, eps).map(Norm::Rms);
    Ok(DecoderBlock {
        inner_norms: None,
        qkv: Linear::new(&qkv, &vec![0.0; 3 * attended]),
        output: layer("self_attn.o_proj", attended, width)?,
        attention_norm: norm("input_layernorm")?,
        cross: None,
        up: layer("mlp.gate_proj", width, inner)?,
        gate: Some(layer("mlp.up_proj", width, inner)?),
        down: layer("mlp.down_proj", inner, width)?,
        feed_forward_norm: norm("post_attention_layernorm")?,
    })
}

impl LanguageModel for Llama {
    fn forward(
        &self,
        vectors: Tensor,
        mask: Option<&Tensor>,
        past: &mut Past,
        each: &mut dyn FnMut(&Tensor),
    ) -> Candle<Tensor> {
        let bias = causal_bias(past.len(), vectors.dim(1)?, mask)?;
        each(&vectors);
        self.norm.forward(&self.decoder.forward(vectors, Some(&bias), Some(past), None, each)?)
    }

    fn words(&self) -> &Words {
        &self.words
    }
}
