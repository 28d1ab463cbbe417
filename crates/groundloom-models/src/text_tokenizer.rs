//! From text to token ids: `tokenizer.json` with the truncation and padding of the model's family.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde::Deserialize;
use tokenizers::{Encoding, Tokenizer, TruncationParams};

use crate::{ModelError, config::Config, folder::ModelFolder};

/// The file of a model folder.
const FILE: &str = "tokenizer.json";
/// Where the longest input and the padding token are named.
const SETTINGS: &str = "tokenizer_config.json";

/// Reads text as a model was trained to: special tokens added, cut to the longest input that the model takes.
#[derive(Clone)]
pub(crate) struct TextTokenizer {
    tokenizer: Arc<Tokenizer>,
    max_length: usize,
    padding: Padding,
    frame: Option<Frame>,
}

/// Tokens that stand around every text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Stands before it, where the tokenizer has not put it there.
    pub(crate) first: u32,
    /// Stands behind it, and beyond the longest text.
    pub(crate) last: u32,
    /// How `last` is written: a text that ends so is read as if it didn't.
    pub(crate) written: &'static str,
}

impl Frame {
    /// A text without what is read as `last`, and without the white space before it, as Python's `rstrip` knows it.
    fn inside<'a>(&self, text: &'a str) -> &'a str {
        let space = |c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c);
        let trimmed = text.trim_end_matches(space);
        trimmed.strip_suffix(self.written).unwrap_or(trimmed).trim_end_matches(space)
    }
}

/// How texts of one batch become equally long: at the end, with this token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Padding {
    /// To the longest of the batch.
    Longest(u32),
    /// To the longest that the model takes, as it was trained (SigLIP, OWL-ViT).
    MaxLength(u32),
}

/// The token ids of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) ids: Vec<u32>,
    /// 0 for the first sequence of a pair, 1 for the second.
    pub(crate) types: Vec<u32>,
}

/// Texts of one batch, padded: `[n, length]` of u32 each.
#[derive(Debug, Clone)]
pub(crate) struct TokenBatch {
    pub(crate) ids: Tensor,
    pub(crate) types: Tensor,
    /// 1 for a token of the text, 0 for padding.
    pub(crate) mask: Tensor,
}

#[derive(Deserialize, Default)]
struct Settings {
    model_max_length: Option<f64>,
    pad_token: Option<TokenName>,
}

/// A token's text, or the object that older files hold.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum TokenName {
    Text(String),
    Object { content: String },
}

impl TokenName {
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Object { content: text } => text,
        }
    }
}

impl TextTokenizer {
    /// Reads `tokenizer.json` and `tokenizer_config.json`. Texts are cut to `max_length` tokens, special ones
    /// included, or to the file's `model_max_length` where that is less. `padding` makes the family's padding from the
    /// id of the padding token that the files name (the token's id, or else the family's).
    ///
    /// # Errors
    /// [`ModelError::Unreadable`], [`ModelError::BadConfig`].
    pub(crate) fn open(
        folder: &ModelFolder,
        max_length: usize,
        padding: impl FnOnce(Option<u32>) -> Padding,
    ) -> Result<Self, ModelError> {
        let bad = |problem: String| ModelError::BadConfig { origin: folder.file_name(FILE), problem };
        let mut tokenizer = read_tokenizer(folder)?;
        let settings: Settings = folder.json_if_there(SETTINGS)?.unwrap_or_default();
        // Where the model has no limit of its own, the file holds 1e30.
        let limit = settings.model_max_length.filter(|&limit| limit >= 1.0).map_or(usize::MAX, |limit| limit as usize);
        let max_length = max_length.min(limit);
        let special = tokenizer.encode("", true).map_or(0, |empty| empty.len());
        if max_length <= special {
            return Err(bad(format!(
                "expected a longest input of more than the {special} special tokens, found {max_length}"
            )));
        }
        tokenizer
            .with_truncation(Some(TruncationParams { max_length, ..TruncationParams::default() }))
            .map_err(|e| bad(format!("cannot cut texts to {max_length} tokens: {e}")))?;
        tokenizer.with_padding(None);
        let pad = settings.pad_token.as_ref().and_then(|token| tokenizer.token_to_id(token.text()));
        Ok(Self { tokenizer: Arc::new(tokenizer), max_length, padding: padding(pad), frame: None })
    }

    /// The same, with `frame` around every text.
    pub(crate) fn framed(self, frame: Frame) -> Self {
        Self { frame: Some(frame), ..self }
    }

    /// The tokenizer itself, for families that need its offsets or its vocabulary.
    pub(crate) fn inner(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The tokens of `text`, not padded.
    ///
    /// # Errors
    /// [`ModelError::Untokenized`].
    pub(crate) fn encode(&self, text: &str) -> Result<Tokens, ModelError> {
        self.read(self.inner(), text, self.max_length)
    }

    /// The tokens of `text`, `most` of them and what stands behind every text.
    fn read(&self, tokenizer: &Tokenizer, text: &str, most: usize) -> Result<Tokens, ModelError> {
        let text = self.frame.as_ref().map_or(text, |frame| frame.inside(text));
        let encoding: Encoding =
            tokenizer.encode_fast(text, true).map_err(|e| ModelError::Untokenized { reason: e.to_string() })?;
        let (mut ids, mut types) = (encoding.get_ids().to_vec(), encoding.get_type_ids().to_vec());
        if let Some(frame) = &self.frame {
            if ids.first() != Some(&frame.first) {
                ids.insert(0, frame.first);
            }
            ids.truncate(most);
            ids.push(frame.last);
            types.resize(ids.len(), 0);
        }
        Ok(Tokens { ids, types })
    }

    /// As [`TextTokenizer::encode`], not cut.
    ///
    /// # Errors
    /// [`ModelError::Untokenized`].
    pub(crate) fn encode_whole(&self, text: &str) -> Result<Tokens, ModelError> {
        let mut tokenizer = self.inner().clone();
        tokenizer.with_truncation(None).map_err(|e| ModelError::Untokenized { reason: e.to_string() })?;
        self.read(&tokenizer, text, usize::MAX)
    }

    /// As [`TextTokenizer::encode_whole`], without the special tokens around a text.
    ///
    /// # Errors
    /// [`ModelError::Untokenized`].
    pub(crate) fn encode_bare(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let mut tokenizer = self.inner().clone();
        let whole = tokenizer.with_truncation(None).and_then(|tokenizer| tokenizer.encode_fast(text, false));
        Ok(whole.map_err(|e| ModelError::Untokenized { reason: e.to_string() })?.get_ids().to_vec())
    }

    /// The text of `ids`, without special tokens.
    ///
    /// # Errors
    /// [`ModelError::Untokenized`].
    pub(crate) fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        self.inner().decode(ids, true).map_err(|e| ModelError::Untokenized { reason: e.to_string() })
    }

    /// Texts as one rectangle.
    ///
    /// # Errors
    /// [`ModelError::Compute`] where candle refuses, which is a defect.
    pub(crate) fn pad(&self, texts: &[&Tokens]) -> Result<TokenBatch, ModelError> {
        let (pad, length) = match self.padding {
            Padding::Longest(pad) => (pad, texts.iter().map(|text| text.ids.len()).max().unwrap_or(0)),
            Padding::MaxLength(pad) => (pad, self.max_length),
        };
        let (mut ids, mut types, mut mask) = (Vec::new(), Vec::new(), Vec::new());
        for text in texts {
            let missing = length.saturating_sub(text.ids.len());
            ids.extend(text.ids.iter().copied().chain(std::iter::repeat_n(pad, missing)));
            types.extend(text.types.iter().copied().chain(std::iter::repeat_n(0, missing)));
            mask.extend(std::iter::repeat_n(1_u32, text.ids.len()).chain(std::iter::repeat_n(0, missing)));
        }
        let tensor = |values: Vec<u32>| {
            Tensor::from_vec(values, (texts.len(), length), &Device::Cpu)
                .map_err(|e| ModelError::Compute { operation: "the tokens of a batch", reason: e.to_string() })
        };
        Ok(TokenBatch { ids: tensor(ids)?, types: tensor(types)?, mask: tensor(mask)? })
    }
}

/// Reads `tokenizer.json`, with the truncation and padding that it names.
///
/// # Errors
/// [`ModelError::Unreadable`], [`ModelError::BadConfig`].
pub(crate) fn read_tokenizer(folder: &ModelFolder) -> Result<Tokenizer, ModelError> {
    let bad = |problem: String| ModelError::BadConfig { origin: folder.file_name(FILE), problem };
    if !folder.has(FILE) {
        return Err(bad(
            "expected this file, found none. Folders of older versions hold vocab.json and merges.txt or \
                        vocab.txt instead: save the tokenizer once with AutoTokenizer.save_pretrained of transformers"
                .to_owned(),
        ));
    }
    Tokenizer::from_bytes(folder.read(FILE)?)
        .map_err(|e| bad(format!("expected a tokenizer of the tokenizers library, found: {e}")))
}

/// The padding token that `config.json` names, or 0.
pub(crate) fn configured_pad(config: &Config) -> Result<u32, ModelError> {
    Ok(config.id_if_there("pad_token_id")?.unwrap_or(0))
}
