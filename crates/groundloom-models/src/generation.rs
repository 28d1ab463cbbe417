//! How a model's folder says that its texts are written: `generation_config.json`.
//!
//! Reference: transformers' `GenerationConfig`. What a stage has options of its own for is not read: lengths, and how
//! tokens are drawn.

use sha2::{Digest, Sha256};

use crate::{
    ModelError,
    config::Config,
    folder::{ModelFolder, hexadecimal},
    writing::{EarlyStopping, Sampling, Writing},
};

/// The file.
pub(crate) const FILE: &str = "generation_config.json";

/// Options that change which token comes next, and are not known here: each with what it must be.
const UNKNOWN: &[(&str, f64)] = &[
    ("num_beam_groups", 1.0),
    ("diversity_penalty", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("guidance_scale", 1.0),
];

/// The same of options that may only be left out.
const ABSENT: &[&str] = &[
    "bad_words_ids",
    "constraints",
    "exponential_decay_length_penalty",
    "force_words_ids",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "sequence_bias",
    "watermarking_config",
];

/// What holds where nothing else is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Generation {
    beams: Option<usize>,
    length_penalty: Option<f64>,
    early_stopping: Option<EarlyStopping>,
    repetition_penalty: Option<f32>,
    no_repeat_ngram_size: Option<usize>,
}

impl Generation {
    /// Reads the file, where the folder has one.
    ///
    /// # Errors
    /// [`ModelError::Unreadable`], and those of [`Generation::read`].
    pub(crate) fn open(folder: &ModelFolder) -> Result<Self, ModelError> {
        if !folder.has(FILE) {
            return Ok(Self::default());
        }
        Self::read(&Config::read(folder, FILE)?)
    }

    /// Reads the options of a file that is open.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`], also for options that would change a text and are not known here.
    pub(crate) fn read(config: &Config) -> Result<Self, ModelError> {
        for (key, neutral) in UNKNOWN {
            let found = config.number_or(key, *neutral)?;
            if found != *neutral {
                return Err(config.bad(key, neutral, found));
            }
        }
        for key in ABSENT {
            if let Some(found) = config.value(key) {
                return Err(config.bad(key, "null, for it is not supported", found));
            }
        }
        let number = |key: &str| match config.value(key) {
            None => Ok(None),
            Some(_) => config.number_or(key, 0.0).map(Some),
        };
        let early_stopping = match config.value("early_stopping") {
            None => None,
            Some(value) => Some(match (value.as_bool(), value.as_str()) {
                (Some(true), _) => EarlyStopping::True,
                (Some(false), _) => EarlyStopping::False,
                (_, Some("never")) => EarlyStopping::Never,
                _ => return Err(config.bad("early_stopping", "true, false or \"never\"", value)),
            }),
        };
        let no_repeat_ngram_size = match config.value("no_repeat_ngram_size") {
            None => None,
            Some(value) => {
                let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
                Some(size.ok_or_else(|| config.bad("no_repeat_ngram_size", "a whole number", value))?)
            }
        };
        let repetition_penalty = number("repetition_penalty")?;
        if let Some(found) = repetition_penalty.filter(|found| *found <= 0.0) {
            return Err(config.bad("repetition_penalty", "above 0", found));
        }
        Ok(Self {
            beams: config.size_if_there("num_beams")?,
            length_penalty: number("length_penalty")?,
            early_stopping,
            repetition_penalty: repetition_penalty.map(|penalty| penalty as f32),
            no_repeat_ngram_size,
        })
    }

    /// `asked`, with what it leaves open. Where tokens are drawn there are no beams unless they are asked for.
    pub(crate) fn fill(&self, asked: &Writing) -> Writing {
        let beams = match asked.sampling {
            Sampling::Greedy => self.beams,
            Sampling::TopP { .. } => None,
        };
        Writing {
            repetition_penalty: asked.repetition_penalty.or(self.repetition_penalty),
            no_repeat_ngram_size: asked.no_repeat_ngram_size.or(self.no_repeat_ngram_size),
            beams: asked.beams.or(beams),
            length_penalty: asked.length_penalty.or(self.length_penalty),
            early_stopping: asked.early_stopping.or(self.early_stopping),
            ..asked.clone()
        }
    }
}

/// Sha256 of the file in hexadecimal, where the folder has one.
///
/// # Errors
/// [`ModelError::Unreadable`].
pub(crate) fn digest(folder: &ModelFolder) -> Result<Option<String>, ModelError> {
    Ok(folder.read_if_there(FILE)?.map(|bytes| hexadecimal(&Sha256::digest(&bytes))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use serde_json::{Value, json};

    use super::*;

    fn open(options: &Value) -> Result<Generation, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), options.to_string()).unwrap();
        Generation::open(&ModelFolder::OnDisk(folder.path().to_owned())).map_err(|error| error.to_string())
    }

    #[test]
    fn a_folder_says_what_is_left_open() {
        let said = open(&json!({
            "_from_model_config": true, "num_beams": 4, "length_penalty": 2, "early_stopping": "never",
            "no_repeat_ngram_size": 3, "repetition_penalty": 1.5, "bad_words_ids": null, "diversity_penalty": 0.0,
        }));
        let said = said.unwrap();
        let filled = said.fill(&Writing { length_penalty: Some(0.5), ..Writing::default() });
        assert_eq!((filled.beams, filled.length_penalty), (Some(4), Some(0.5)));
        assert_eq!((filled.early_stopping, filled.no_repeat_ngram_size), (Some(EarlyStopping::Never), Some(3)));
        assert_eq!(filled.repetition_penalty, Some(1.5));
        let drawn = Writing { sampling: Sampling::TopP { p: 0.9, temperature: 1.0 }, ..Writing::default() };
        let drawn = said.fill(&drawn);
        assert_eq!((drawn.beams, drawn.repetition_penalty), (None, Some(1.5)));
        assert_eq!(open(&json!({})).unwrap().fill(&Writing::default()), Writing::default());
        assert_eq!(open(&json!({"early_stopping": true})).unwrap().early_stopping, Some(EarlyStopping::True));
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for (options, message) in [
            (
                json!({"num_beams": 4, "num_beam_groups": 2}),
                "generation_config.json: expected num_beam_groups to be 1, found 2",
            ),
            (json!({"diversity_penalty": 0.5}), "expected diversity_penalty to be 0, found 0.5"),
            (
                json!({"forced_eos_token_id": 2}),
                "expected forced_eos_token_id to be null, for it is not supported, found 2",
            ),
            (json!({"num_beams": 0}), "expected num_beams to be a whole number of at least 1, found 0"),
            (
                json!({"early_stopping": "soon"}),
                "expected early_stopping to be true, false or \"never\", found \"soon\"",
            ),
            (json!({"no_repeat_ngram_size": -1}), "expected no_repeat_ngram_size to be a whole number, found -1"),
            (json!({"repetition_penalty": 0}), "expected repetition_penalty to be above 0, found 0"),
            (json!({"length_penalty": "long"}), "expected length_penalty to be a number, found \"long\""),
        ] {
            let error = open(&options).unwrap_err();
            assert!(error.contains(message), "expected {message:?} in {error:?}");
        }
    }
}
