//! Llama (Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023), also the language model of LLaVA,
//! and what differs from it in few places: Qwen2 (Yang et al., 2024) and Qwen3 (Yang et al., 2025).
//!
//! Reference: transformers' `modeling_llama.py`, `modeling_qwen2.py`, `modeling_qwen3.py`.

use candle_core::Tensor;

use crate::{
    ModelError,
    config::Config,
    decoder::{Decoder, DecoderBlock, Norm, Past, Rotary},
    language_model::{LanguageModel, TextLimits, Words},
    layers::{Activation, Linear, RmsNorm, activation, causal_bias},
    transformer::NormPlace,
    weights::Weights,
};

type Candle<T> = candle_core::Result<T>;

/// Which of the networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Llama,
    /// Its queries, keys and values have biases.
    Qwen2,
    /// The queries and keys of its heads have norms.
    Qwen3,
}

impl Kind {
    /// The network that `config.json` calls `model_type`, if it is one of these.
    pub(crate) fn of(model_type: &str) -> Option<Self> {
        [Self::Llama, Self::Qwen2, Self::Qwen3].into_iter().find(|kind| kind.name() == model_type)
    }

    /// The `model_type`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }
}

/// The options of a Llama.
#[derive(Debug, Clone)]
pub(crate) struct LlamaConfig {
    kind: Kind,
    layers: usize,
    pub(crate) width: usize,
    heads: usize,
    /// Heads of the keys and values, each shared by `heads / key_heads` of the queries.
    key_heads: usize,
    head_width: usize,
    inner: usize,
    activation: Activation,
    eps: f64,
    rotary: Rotary,
    vocabulary: usize,
    limits: TextLimits,
}

impl LlamaConfig {
    /// Reads a `config.json`, or the `text_config` of another model's.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`].
    pub(crate) fn read(config: &Config, kind: Kind) -> Result<Self, ModelError> {
        let (width, heads) = (config.size_or("hidden_size", 4096)?, config.size_or("num_attention_heads", 32)?);
        let key_heads = config.size_or("num_key_value_heads", heads)?;
        if !heads.is_multiple_of(key_heads) {
            return Err(config.bad("num_key_value_heads", format!("a divisor of the {heads} heads"), key_heads));
        }
        let head_width = config.size_or("head_dim", if kind == Kind::Qwen3 { 128 } else { width / heads })?;
        if !head_width.is_multiple_of(2) {
            return Err(config.bad("head_dim", "even", head_width));
        }
        for option in ["attention_bias", "mlp_bias"] {
            config.only(option, false)?;
        }
        if kind != Kind::Llama {
            config.only("use_sliding_window", false)?;
            // What it would be if it were used.
            config.value("sliding_window");
            config.value("max_window_layers");
            if let Some(found) = config.value("layer_types") {
                let kinds = found.as_array().map(Vec::as_slice).unwrap_or_default();
                if let Some(other) = kinds.iter().find(|kind| *kind != "full_attention") {
                    return Err(config.bad("layer_types", "full_attention everywhere", other));
                }
            }
        }
        // How the training was spread over machines.
        config.value("pretraining_tp");
        Ok(Self {
            kind,
            layers: config.size_or("num_hidden_layers", 32)?,
            width,
            heads,
            key_heads,
            head_width,
            inner: config.size_or("intermediate_size", 11_008)?,
            activation: activation(config, "hidden_act", Activation::Silu)?,
            eps: config.number_or("rms_norm_eps", 1e-6)?,
            rotary: rotary(config, head_width)?,
            vocabulary: config.size_or("vocab_size", 32_000)?,
            limits: TextLimits {
                longest: config.size_or("max_position_embeddings", 2048)?,
                start: config.id_if_there("bos_token_id")?.unwrap_or(1),
                end: config.ids("eos_token_id")?.first().copied().unwrap_or(2),
            },
        })
    }
}

/// How places turn a head of `width` values: `rope_theta` with `rope_scaling`, or `rope_parameters` in newer files.
fn rotary(config: &Config, width: usize) -> Result<Rotary, ModelError> {
    let plain = config.number_or("rope_theta", 10_000.0)?;
    let (newer, older) = (config.object("rope_parameters")?, config.object("rope_scaling")?);
    let Some(options) = newer.or(older) else { return Ok(Rotary::new(plain, width)) };
    let rotary = Rotary::new(options.number_or("rope_theta", plain)?, width);
    let kind = match options.text("rope_type")? {
        Some(kind) => kind,
        None => options.text("type")?.unwrap_or("default"),
    };
    let rotary = match kind {
        "default" => rotary,
        "linear" => rotary.slower(options.number_or("factor", 1.0)?),
        "llama3" => {
            let bounds = [options.number_or("low_freq_factor", 1.0)?, options.number_or("high_freq_factor", 4.0)?];
            let original = options.size_or("original_max_position_embeddings", 8192)?;
            rotary.slower_where_slow(options.number_or("factor", 8.0)?, bounds, original)
        }
        "yarn" => {
            // Whole points are the bounds, unless the file says otherwise.
            options.only("truncate", true)?;
            let base = options.number_or("rope_theta", plain)?;
            let betas = [options.number_or("beta_fast", 32.0)?, options.number_or("beta_slow", 1.0)?];
            let original = options.size_or("original_max_position_embeddings", 32_768)?;
            let given = options.value("attention_factor").is_some_and(|value| !value.is_null());
            let length = given.then(|| options.number_or("attention_factor", 1.0)).transpose()?;
            rotary.yarn(base, options.number_or("factor", 1.0)?, betas, original as f64, length)
        }
        other => return Err(options.bad("rope_type", "default, linear, llama3 or yarn", other)),
    };
    options.value("type");
    options.finish()?;
    Ok(rotary)
}

/// `LlamaForCausalLM`.
#[derive(Debug)]
pub(crate) struct Llama {
    words: Words,
    decoder: Decoder,
    norm: RmsNorm,
}

impl Llama {
    /// Reads the network of a `config.json` with `model_type` `llama`, `qwen2` or `qwen3`.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`], [`ModelError::BadWeights`].
    pub(crate) fn load(config: &Config, kind: Kind, weights: &Weights) -> Result<Self, ModelError> {
        let read = LlamaConfig::read(config, kind)?;
        config.finish()?;
        let this = Self::load_at(weights, read)?;
        // Files of tied words may hold them twice, older ones the speeds of the angles.
        let speeds: Vec<String> =
            (0..this.decoder.blocks.len()).map(|i| format!("model.layers.{i}.self_attn.rotary_emb")).collect();
        weights.finish(&speeds.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(this)
    }

    /// Reads the network at `weights`: `model`, and `lm_head` where the checkpoint has one.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`].
    pub(crate) fn load_at(weights: &Weights, config: LlamaConfig) -> Result<Self, ModelError> {
        let LlamaConfig { width, vocabulary, eps, limits, .. } = config;
        let body = weights.at("model");
        let blocks = (0..config.layers).map(|i| block(&body.at("layers").at(i), &config)).collect::<Result<_, _>>()?;
        Ok(Self {
            decoder: Decoder {
                norms: NormPlace::Before,
                heads: config.heads,
                scale: 1.0 / (config.head_width as f32).sqrt(),
                activation: config.activation,
                rotary: Some(config.rotary),
                blocks,
            },
            norm: RmsNorm::load(&body.at("norm"), width, eps)?,
            words: Words::load(weights, &body.at("embed_tokens"), [vocabulary, width], limits)?,
        })
    }
}

fn block(weights: &Weights, config: &LlamaConfig) -> Result<DecoderBlock, ModelError> {
    let &LlamaConfig { kind, width, heads, key_heads, head_width, inner, eps, .. } = config;
    let attention = weights.at("self_attn");
    let attended = heads * head_width;
    let (mut qkv, mut bias) = (Vec::new(), Vec::new());
    for (name, own) in [("q_proj", heads), ("k_proj", key_heads), ("v_proj", key_heads)] {
        let shared = attention.values(&format!("{name}.weight"), &[own * head_width, width])?;
        // Every head gets keys and values of its own, the same ones where the checkpoint shares them.
        for head in shared.chunks_exact(head_width * width) {
            (0..heads / own).for_each(|_| qkv.extend_from_slice(head));
        }
        let shared = match kind {
            Kind::Qwen2 => attention.values(&format!("{name}.bias"), &[own * head_width])?,
            Kind::Llama | Kind::Qwen3 => vec![0.0; own * head_width],
        };
        for head in shared.chunks_exact(head_width) {
            (0..heads / own).for_each(|_| bias.extend_from_slice(head));
        }
    }
    let head_norm = |name: &str| RmsNorm::load(&attention.at(name), head_width, eps);
    let head_norms = match kind {
        Kind::Qwen3 => Some([head_norm("q_norm")?, head_norm("k_norm")?]),
        Kind::Llama | Kind::Qwen2 => None,
    };
    let layer = |name: &str, inputs: usize, outputs: usize| Linear::load(&weights.at(name), inputs, outputs, false);
    let norm = |name: &str| RmsNorm::load(&weights.at(name), width, eps).map(Norm::Rms);
    Ok(DecoderBlock {
        qkv: Linear::new(weights.device(), &qkv, &bias)?,
        head_norms,
        inner_norms: None,
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
