//! Sentence encoders: a text encoder, a pooling, and what `modules.json` puts behind them (sentence-transformers'
//! layout; Reimers and Gurevych, "Sentence-BERT", 2019).

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use crate::{
    ModelError,
    bert::{Kind, TextEncoder, TextEncoderConfig, failed},
    config::Config,
    device::by_kernels,
    folder::ModelFolder,
    layers::{normalise, with_values},
    text_tokenizer::{Padding, TextTokenizer, TokenBatch, Tokens},
    weights::Weights,
};

/// A text encoder with its tokenizer, pooling and normalisation.
pub(crate) struct SentenceEncoder {
    pub(crate) encoder: TextEncoder,
    pub(crate) tokenizer: TextTokenizer,
    pooling: Pooling,
    pub(crate) normalised: bool,
    lower_case: bool,
    /// Written before every text.
    prompt: String,
}

/// How the vectors of a text's tokens become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// Their mean.
    Mean,
    /// The first token's.
    First,
    /// The greatest of each place.
    Greatest,
}

/// A line of `modules.json`.
#[derive(Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    class: String,
}

/// `sentence_bert_config.json`.
#[derive(Deserialize, Default)]
struct SentenceSettings {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

/// `config_sentence_transformers.json`.
#[derive(Deserialize, Default)]
struct Prompts {
    #[serde(default)]
    prompts: BTreeMap<String, String>,
    default_prompt_name: Option<String>,
}

impl SentenceEncoder {
    /// Loads the encoder of a folder whose `config.json` is of `kind`. Without `modules.json` it is what
    /// sentence-transformers makes of a bare encoder: the mean, not normalised.
    ///
    /// # Errors
    /// [`ModelError`]: what is missing, wrong or not supported in the folder.
    pub(crate) fn load(
        folder: &ModelFolder,
        config: &Config,
        kind: Kind,
        weights: &Weights,
    ) -> Result<Self, ModelError> {
        let config = TextEncoderConfig::read(config, kind)?;
        let encoder = TextEncoder::load(weights, config)?;
        let settings: SentenceSettings = folder.json_if_there("sentence_bert_config.json")?.unwrap_or_default();
        let longest = config.longest().min(settings.max_seq_length.unwrap_or(usize::MAX));
        let tokenizer = TextTokenizer::open(folder, longest, |pad| Padding::Longest(pad.unwrap_or(config.pad)))?;
        let (pooling, normalised) = modules(folder, config.stack.width)?;
        let prompt = prompt(folder)?;
        Ok(Self { encoder, tokenizer, pooling, normalised, lower_case: settings.do_lower_case, prompt })
    }

    /// The tokens of a text.
    ///
    /// # Errors
    /// [`ModelError::Untokenized`].
    pub(crate) fn tokens(&self, text: &str) -> Result<Tokens, ModelError> {
        if !self.lower_case && self.prompt.is_empty() {
            return self.tokenizer.encode(text);
        }
        let text = format!("{}{text}", self.prompt);
        self.tokenizer.encode(if self.lower_case { text.to_lowercase() } else { text }.as_str())
    }

    /// The embeddings of a batch, `[n, width]`.
    ///
    /// # Errors
    /// [`ModelError::Compute`], which is a defect.
    pub(crate) fn embed(&self, texts: &[&Tokens]) -> Result<Tensor, ModelError> {
        let TokenBatch { ids, types, mask } = self.tokenizer.pad(texts)?;
        let run = || {
            let hidden = self.encoder.forward(&ids, &types, &mask, &mut |_| ())?;
            let pooled = pool(&hidden, &mask, self.pooling)?;
            if self.normalised { normalise(&pooled) } else { Ok(pooled) }
        };
        run().map_err(failed)
    }
}

/// One vector of each text: `hidden` is `[n, length, width]`, `mask` `[n, length]` of u32.
pub(crate) fn pool(hidden: &Tensor, mask: &Tensor, pooling: Pooling) -> candle_core::Result<Tensor> {
    let (n, length, width) = hidden.dims3()?;
    if !by_kernels(hidden) {
        // [n, length, 1]: 1 for a token, 0 for padding.
        let real = mask.to_dtype(DType::F32)?.to_device(hidden.device())?.unsqueeze(2)?;
        let count = real.sum(1)?;
        return match pooling {
            Pooling::First => hidden.narrow(1, 0, 1)?.squeeze(1),
            Pooling::Mean => hidden.broadcast_mul(&real)?.sum(1)?.broadcast_div(&count.maximum(1.0)?),
            Pooling::Greatest => {
                let hidden = hidden.broadcast_add(&real.affine(f64::from(f32::MAX), -f64::from(f32::MAX))?)?;
                hidden.max(1)?.broadcast_mul(&count.minimum(1.0)?)
            }
        };
    }
    let mask = mask.flatten_all()?.to_vec1::<u32>()?;
    let mut pooled = vec![0.0_f32; n * width];
    with_values(hidden, |hidden| {
        let texts = hidden.chunks(length * width).zip(mask.chunks(length));
        for (out, (tokens, mask)) in pooled.chunks_mut(width).zip(texts) {
            let real = || tokens.chunks(width).zip(mask).filter(|(_, real)| **real != 0).map(|(token, _)| token);
            match pooling {
                Pooling::First => out.copy_from_slice(&tokens[..width]),
                Pooling::Mean => {
                    real().for_each(|token| out.iter_mut().zip(token).for_each(|(sum, x)| *sum += x));
                    let count = real().count().max(1) as f32;
                    out.iter_mut().for_each(|sum| *sum /= count);
                }
                Pooling::Greatest => {
                    out.fill(if real().next().is_some() { f32::NEG_INFINITY } else { 0.0 });
                    real().for_each(|token| out.iter_mut().zip(token).for_each(|(most, x)| *most = most.max(*x)));
                }
            }
        }
        Ok(())
    })?;
    Tensor::from_vec(pooled, (n, width), &Device::Cpu)
}

/// Pooling and normalisation as `modules.json` says.
///
/// # Errors
/// [`ModelError::BadConfig`] names a module that is not supported.
pub(crate) fn modules(folder: &ModelFolder, width: usize) -> Result<(Pooling, bool), ModelError> {
    const FILE: &str = "modules.json";
    let bad = |problem: String| ModelError::BadConfig { origin: folder.file_name(FILE), problem };
    let Some(modules) = folder.json_if_there::<Vec<Module>>(FILE)? else { return Ok((Pooling::Mean, false)) };
    let (mut pooling, mut normalised) = (None, false);
    for (i, module) in modules.iter().enumerate() {
        let class = module.class.rsplit('.').next().unwrap_or_default();
        match (class, i) {
            ("Transformer", 0) if module.path.is_empty() => {}
            ("Pooling", 1) => {
                if module.path.split(['/', '\\']).any(|part| part == ".." || part.is_empty()) {
                    return Err(bad(format!("expected a folder of this folder, found the path {:?}", module.path)));
                }
                let config = Config::read(folder, &format!("{}/config.json", module.path))?;
                pooling = Some(read_pooling(&config, width)?);
            }
            ("Normalize", 2) => normalised = true,
            _ => {
                return Err(bad(format!(
                    "expected the modules Transformer, Pooling and, perhaps, Normalize; found {:?} at place {i}{}",
                    module.class,
                    if module.path.is_empty() { String::new() } else { format!(", in {}", module.path) }
                )));
            }
        }
    }
    let pooling = pooling.ok_or_else(|| bad("expected a module Pooling, found none".to_owned()))?;
    Ok((pooling, normalised))
}

/// `1_Pooling/config.json`: one mode, by a flag of its own or by name.
fn read_pooling(config: &Config, width: usize) -> Result<Pooling, ModelError> {
    for key in ["word_embedding_dimension", "embedding_dimension"] {
        if let Some(found) = config.size_if_there(key)?.filter(|found| *found != width) {
            return Err(config.bad(key, format!("the encoder's width, {width}"), found));
        }
    }
    config.only("include_prompt", true)?;
    let modes = [
        ("pooling_mode_mean_tokens", Pooling::Mean),
        ("pooling_mode_cls_token", Pooling::First),
        ("pooling_mode_max_tokens", Pooling::Greatest),
    ];
    let mut chosen = Vec::new();
    for (key, mode) in modes {
        if config.flag_or(key, false)? {
            chosen.push(mode);
        }
    }
    for key in ["pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken"] {
        config.only(key, false)?;
    }
    if let Some(name) = config.text("pooling_mode")? {
        chosen.push(match name {
            "mean" => Pooling::Mean,
            "cls" => Pooling::First,
            "max" => Pooling::Greatest,
            found => return Err(config.bad("pooling_mode", "mean, cls or max", found)),
        });
    }
    config.finish()?;
    match chosen.as_slice() {
        [mode] => Ok(*mode),
        _ => Err(config.bad("pooling_mode", "one of mean, cls and max", format!("{} of them", chosen.len()))),
    }
}

/// The prompt that the folder puts before every text where none is asked for.
fn prompt(folder: &ModelFolder) -> Result<String, ModelError> {
    const FILE: &str = "config_sentence_transformers.json";
    let prompts: Prompts = folder.json_if_there(FILE)?.unwrap_or_default();
    let Some(name) = prompts.default_prompt_name else { return Ok(String::new()) };
    prompts.prompts.get(&name).cloned().ok_or_else(|| ModelError::BadConfig {
        origin: folder.file_name(FILE),
        problem: format!("expected a prompt called {name:?} as default_prompt_name says, found none"),
    })
}
