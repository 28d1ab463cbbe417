//! `config.json` of a model folder, read option by option: what nobody reads is refused.

use std::{cell::RefCell, collections::BTreeSet, fmt::Display};

use serde_json::{Map, Value};

use crate::{ModelError, folder::ModelFolder, fromage};

/// Options that change no answer: names, versions, training, and the defaults of text generation, which older versions
/// of transformers wrote into every file.
const INERT: &[&str] = &[
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "drop_path_rate",
    "dropout",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "hidden_dropout_prob",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "length_penalty",
    "logit_scale_init_value",
    "max_length",
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tie_word_embeddings",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
];

/// Options with one value that leaves the network as it is; any other value is refused unless the architecture reads
/// the option itself.
const NEUTRAL: &[(&str, &str)] = &[
    ("add_cross_attention", "false"),
    ("is_decoder", "false"),
    ("position_embedding_type", "\"absolute\""),
    ("pruned_heads", "{}"),
];

/// The options of a folder in open_clip's layout.
pub(crate) const OPEN_CLIP: &str = "open_clip_config.json";

/// One object of a `config.json`. A missing option and `null` are the same.
#[derive(Debug)]
pub(crate) struct Config {
    /// The file, as errors name it.
    origin: String,
    /// Where in the file: `text_config.`, or nothing.
    path: String,
    values: Map<String, Value>,
    read: RefCell<BTreeSet<String>>,
}

impl Config {
    /// Reads `config.json`, or `open_clip_config.json` in a folder of open_clip, `model_args.json` in one of FROMAGe.
    ///
    /// # Errors
    /// [`ModelError::Unreadable`], [`ModelError::BadConfig`] where it is no JSON object.
    pub(crate) fn open(folder: &ModelFolder) -> Result<Self, ModelError> {
        let name = match folder.is_open_clip() {
            true => OPEN_CLIP,
            false if folder.is_fromage() => fromage::OPTIONS,
            false => "config.json",
        };
        Self::read(folder, name)
    }

    /// Reads the JSON file `name`.
    ///
    /// # Errors
    /// As [`Config::open`].
    pub(crate) fn read(folder: &ModelFolder, name: &str) -> Result<Self, ModelError> {
        let origin = folder.file_name(name);
        match serde_json::from_slice(&folder.read(name)?) {
            Ok(Value::Object(values)) => Ok(Self::new(origin, values)),
            found => {
                let found = found.map_or_else(|e| e.to_string(), |value| format!("{value:.60}"));
                Err(ModelError::BadConfig { origin, problem: format!("expected a JSON object, found: {found}") })
            }
        }
    }

    pub(crate) fn new(origin: String, values: Map<String, Value>) -> Self {
        Self { origin, path: String::new(), values, read: RefCell::default() }
    }

    /// The value of `key`, marked as read.
    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.read.borrow_mut().insert(key.to_owned());
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// A whole number of at least 1, with a default.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`] where it is something else; so for all that follow.
    pub(crate) fn size_or(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        Ok(self.size_if_there(key)?.unwrap_or(default))
    }

    /// A whole number of at least 1.
    pub(crate) fn size_if_there(&self, key: &str) -> Result<Option<usize>, ModelError> {
        // Sizes beyond 2^32 are no network's, and their products must not overflow.
        self.typed(key, "a whole number of at least 1", |value| {
            value.as_u64().filter(|n| (1..=u64::from(u32::MAX)).contains(n)).map(|n| n as usize)
        })
    }

    /// A list of whole numbers of at least 1, with a default.
    pub(crate) fn sizes_or(&self, key: &str, default: &[usize]) -> Result<Vec<usize>, ModelError> {
        let size = |value: &Value| value.as_u64().filter(|n| (1..=u64::from(u32::MAX)).contains(n)).map(|n| n as usize);
        let list = self.typed(key, "a list of whole numbers of at least 1", |value| {
            value.as_array().and_then(|list| list.iter().map(size).collect::<Option<Vec<_>>>())
        })?;
        Ok(list.unwrap_or_else(|| default.to_vec()))
    }

    /// A token id.
    pub(crate) fn id_if_there(&self, key: &str) -> Result<Option<u32>, ModelError> {
        self.typed(key, "a token id", |value| value.as_u64().and_then(|n| u32::try_from(n).ok()))
    }

    /// A token id or a list of them; none where it is missing.
    pub(crate) fn ids(&self, key: &str) -> Result<Vec<u32>, ModelError> {
        let id = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = self.typed(key, "a token id or a list of them", |value| match value.as_array() {
            Some(list) => list.iter().map(id).collect::<Option<Vec<_>>>(),
            None => id(value).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default())
    }

    /// A finite number.
    pub(crate) fn number_or(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        Ok(self.typed(key, "a number", |value| value.as_f64().filter(|n| n.is_finite()))?.unwrap_or(default))
    }

    /// `true` or `false`.
    pub(crate) fn flag_or(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        Ok(self.typed(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// A string.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, ModelError> {
        self.typed(key, "a string", Value::as_str)
    }

    /// An option that is only known with one value: refuses any other.
    pub(crate) fn only(&self, key: &str, supported: impl Into<Value>) -> Result<(), ModelError> {
        let supported = supported.into();
        match self.value(key) {
            Some(found) if *found != supported => Err(self.unsupported(key, &supported, found)),
            _ => Ok(()),
        }
    }

    /// An object inside this one.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Self>, ModelError> {
        let values = self.typed(key, "an object", Value::as_object)?;
        Ok(values.map(|values| Self {
            origin: self.origin.clone(),
            path: format!("{}{key}.", self.path),
            values: values.clone(),
            read: RefCell::default(),
        }))
    }

    /// An object of no options in the place of one that is missing.
    pub(crate) fn empty(&self, key: &str) -> Self {
        let path = format!("{}{key}.", self.path);
        Self { origin: self.origin.clone(), path, values: Map::new(), read: RefCell::default() }
    }

    /// Refuses the options that nobody read and that may change an answer.
    pub(crate) fn finish(&self) -> Result<(), ModelError> {
        let read = self.read.borrow();
        for (key, found) in &self.values {
            if read.contains(key) || found.is_null() || INERT.contains(&key.as_str()) {
                continue;
            }
            if let Some((_, neutral)) = NEUTRAL.iter().find(|(name, _)| name == key) {
                if serde_json::from_str::<Value>(neutral).is_ok_and(|neutral| *found == neutral) {
                    continue;
                }
                return Err(self.unsupported(key, neutral, found));
            }
            return Err(ModelError::BadConfig {
                origin: self.origin.clone(),
                problem: format!(
                    "the option {}{key} is not supported (found {found:.60}); an answer without it might not be the \
                     model's",
                    self.path
                ),
            });
        }
        Ok(())
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        match self.value(key) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| self.bad(key, expected, value)),
        }
    }

    /// An error about `key`: what was expected, what was found.
    pub(crate) fn bad(&self, key: &str, expected: impl Display, found: impl Display) -> ModelError {
        let problem = format!("expected {}{key} to be {expected}, found {found:.60}", self.path);
        ModelError::BadConfig { origin: self.origin.clone(), problem }
    }

    fn unsupported(&self, key: &str, supported: impl Display, found: impl Display) -> ModelError {
        let problem = format!("{}{key} is supported as {supported} only, found {found:.60}", self.path);
        ModelError::BadConfig { origin: self.origin.clone(), problem }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use serde_json::json;

    use super::*;

    fn config(value: Value) -> Config {
        let Value::Object(values) = value else { panic!("{value}") };
        Config::new("config.json".to_owned(), values)
    }

    #[test]
    fn options_are_read_or_refused_by_name() {
        let it = config(json!({
            "hidden_size": 8, "eps": 1e-5, "sub": { "act": "gelu", "odd": 3 }, "use_cache": true, "is_decoder": false,
            "nothing": null, "bias": true,
        }));
        assert_eq!(it.size_or("hidden_size", 1).unwrap(), 8);
        assert_eq!(it.size_or("absent", 3).unwrap(), 3);
        assert_eq!(it.number_or("eps", 1.0).unwrap(), 1e-5);
        it.only("bias", true).unwrap();
        let sub = it.object("sub").unwrap().unwrap();
        assert_eq!(sub.text("act").unwrap(), Some("gelu"));
        it.finish().unwrap();
        let message = sub.finish().unwrap_err().to_string();
        assert!(message.contains("the option sub.odd is not supported (found 3)"), "{message}");
        let message = it.only("bias", false).unwrap_err().to_string();
        assert!(message.contains("bias is supported as false only, found true"), "{message}");
        for key in ["eps", "sub", "bias"] {
            let message = it.size_or(key, 1).unwrap_err().to_string();
            assert!(message.contains("whole number of at least 1, found"), "{message}");
        }
        let message = config(json!({ "is_decoder": true })).finish().unwrap_err().to_string();
        assert!(message.contains("is_decoder is supported as false only, found true"), "{message}");
    }
}
