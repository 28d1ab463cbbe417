//! Texts from the tokens of frames (Graves et al., "Connectionist Temporal Classification", 2006).
//!
//! Reference: transformers' `Wav2Vec2CTCTokenizer`.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{ModelError, config::Config, folder::ModelFolder};

const VOCABULARY: &str = "vocab.json";
const OPTIONS: &str = "tokenizer_config.json";

/// What `clean_up_tokenization_spaces` takes out of a text, in this order.
const SPACES: [(&str, &str); 10] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

/// The tokens that a network chooses from.
#[derive(Debug)]
pub(crate) struct Alphabet {
    /// What each id stands for in a text; nothing for the blank.
    pieces: Vec<String>,
    lower_case: bool,
    clean: bool,
}

/// A token of `tokenizer_config.json`: a string, or an object with one.
#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Plain(String),
    Object { content: String },
}

impl Token {
    fn text(self) -> String {
        match self {
            Self::Plain(text) | Self::Object { content: text } => text,
        }
    }
}

impl Alphabet {
    /// Reads the `count` tokens of `vocab.json` and of `added_tokens.json`, and `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`ModelError::Unreadable`], [`ModelError::BadConfig`] for an option that is not known and where an id has no token
    /// or the blank no id.
    pub(crate) fn open(folder: &ModelFolder, count: usize) -> Result<Self, ModelError> {
        let mut ids: BTreeMap<String, usize> = folder.json(VOCABULARY)?;
        let added: BTreeMap<String, usize> = folder.json_if_there("added_tokens.json")?.unwrap_or_default();
        ids.extend(added);
        let mut pieces = vec![None; count];
        for (token, id) in ids {
            if let Some(piece) = pieces.get_mut(id) {
                *piece = Some(token);
            }
        }
        let bad = |expected: String, found: &str| ModelError::BadConfig {
            origin: folder.file_name(VOCABULARY),
            problem: format!("expected {expected}, found {found}"),
        };
        if let Some(id) = pieces.iter().position(Option::is_none) {
            return Err(bad(format!("a token for each of the {count} ids of config.json"), &format!("none for {id}")));
        }
        let mut pieces: Vec<String> = pieces.into_iter().flatten().collect();

        let config = match folder.has(OPTIONS) {
            true => Config::read(folder, OPTIONS)?,
            false => Config::new(folder.file_name(OPTIONS), serde_json::Map::new()),
        };
        let token = |key: &str, default: &str| match config.value(key) {
            None => Ok(default.to_owned()),
            Some(value) => {
                let read = Token::deserialize(value).map(Token::text);
                read.map_err(|_| config.bad(key, "a token", value))
            }
        };
        let blank = token("pad_token", "<pad>")?;
        let delimiter = token("word_delimiter_token", "|")?;
        let space = config.text("replace_word_delimiter_char")?.unwrap_or(" ").to_owned();
        let lower_case = config.flag_or("do_lower_case", false)?;
        let clean = config.flag_or("clean_up_tokenization_spaces", false)?;
        config.only("tokenizer_class", "Wav2Vec2CTCTokenizer")?;
        // Tokens of several languages, one of which would have to be chosen.
        config.only("target_lang", serde_json::Value::Null)?;
        // What becomes of texts, not of ids.
        for inert in [
            "added_tokens_decoder",
            "additional_special_tokens",
            "backend",
            "bos_token",
            "do_normalize",
            "eos_token",
            "extra_special_tokens",
            "model_max_length",
            "name_or_path",
            "processor_class",
            "return_attention_mask",
            "special_tokens_map_file",
            "tokenizer_file",
            "unk_token",
        ] {
            config.value(inert);
        }
        config.finish()?;

        let Some(place) = pieces.iter().position(|piece| *piece == blank) else {
            return Err(bad(format!("the blank {blank:?}, the pad_token of {OPTIONS}, among the tokens"), "none"));
        };
        pieces[place].clear();
        for piece in pieces.iter_mut().filter(|piece| **piece == delimiter) {
            piece.clone_from(&space);
        }
        Ok(Self { pieces, lower_case, clean })
    }

    /// The text of the frames' ids: equal neighbours are one, blanks are none.
    pub(crate) fn text(&self, ids: &[u32]) -> String {
        let runs = ids.chunk_by(|a, b| a == b).filter_map(|run| run.first());
        let text: String = runs.filter_map(|&id| self.pieces.get(id as usize)).map(String::as_str).collect();
        let text = text.trim();
        let text = if self.lower_case { text.to_lowercase() } else { text.to_owned() };
        if !self.clean {
            return text;
        }
        SPACES.iter().fold(text, |text, (spaced, tight)| text.replace(spaced, tight))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn alphabet(options: &str) -> Result<Alphabet, ModelError> {
        let folder = tempfile::tempdir().unwrap();
        let tokens = r#"{ "<pad>": 0, "|": 1, "A": 2, "N'T": 3, "'S": 4, ".": 5 }"#;
        std::fs::write(folder.path().join(VOCABULARY), tokens).unwrap();
        std::fs::write(folder.path().join(OPTIONS), options).unwrap();
        Alphabet::open(&ModelFolder::OnDisk(folder.path().to_owned()), 6)
    }

    #[test]
    fn repeats_are_one_and_blanks_none() {
        let plain = alphabet("{}").unwrap();
        assert_eq!(plain.text(&[1, 2, 2, 0, 2, 1, 0, 1, 4, 5, 1, 5, 1]), "AA  'S. .");
        assert_eq!([plain.text(&[]), plain.text(&[0, 0, 1])], ["", ""]);
        let lower = alphabet(r#"{ "do_lower_case": true, "clean_up_tokenization_spaces": true }"#).unwrap();
        assert_eq!(lower.text(&[2, 1, 4, 1, 3, 1, 5]), "a'sn't.");
        let other = alphabet(r#"{ "pad_token": { "content": "A" }, "replace_word_delimiter_char": "_" }"#).unwrap();
        assert_eq!(other.text(&[0, 2, 1, 5]), "<pad>_.");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (options, message) in [
            (r#"{ "do_stretch": true }"#, "the option do_stretch is not supported"),
            (r#"{ "target_lang": "eng" }"#, "target_lang is supported as null only"),
            (r#"{ "pad_token": "[PAD]" }"#, "expected the blank \"[PAD]\", the pad_token of tokenizer_config.json"),
            (r#"{ "pad_token": 3 }"#, "expected pad_token to be a token, found 3"),
        ] {
            let error = alphabet(options).unwrap_err().to_string();
            assert!(error.contains(message), "expected {message:?} in {error:?}");
        }
    }
}
