//! The bytes of a model's tokens, and which of them may come next in a form.

use serde_json::Value;
use tokenizers::Tokenizer;

use super::{JsonForm, State, initial};
use crate::{ModelError, writing::Guide};

/// The bytes of every token.
#[derive(Debug)]
pub(crate) struct FormVocabulary {
    /// By id; `None` for special tokens, which are no text.
    bytes: Vec<Option<Box<[u8]>>>,
    /// By id: the characters of a token that may stand inside any text as it is.
    characters: Vec<Option<u16>>,
}

/// How a tokenizer writes bytes.
enum Writes {
    /// Each byte as a character of its own (GPT-2).
    ByteLevel,
    /// Characters as they are, a space as ▁, other bytes as `<0x0A>` (SentencePiece).
    Fallback,
}

impl FormVocabulary {
    /// Reads the tokens of a tokenizer.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`], with the name of the model, where it doesn't write every byte with a token of its own.
    pub(crate) fn new(tokenizer: &Tokenizer, name: &str) -> Result<Self, ModelError> {
        let bad = |found: &str| ModelError::BadConfig {
            origin: name.to_owned(),
            problem: format!(
                "expected a tokenizer that writes every byte (ByteLevel, or ByteFallback with ▁), which answers in the form of a schema need; found {found}; leave `schema` out"
            ),
        };
        let decoder = serde_json::to_value(tokenizer.get_decoder()).unwrap_or_default();
        let writes =
            match (mentions(&decoder, "ByteLevel"), mentions(&decoder, "ByteFallback") && mentions(&decoder, "▁")) {
                (true, _) => Writes::ByteLevel,
                (_, true) => Writes::Fallback,
                _ => return Err(bad(&format!("the decoder {decoder}"))),
            };
        let added = tokenizer.get_added_tokens_decoder();
        let size = tokenizer.get_vocab_size(true) as u32;
        let bytes: Vec<_> = (0..size)
            .map(|id| {
                let token = tokenizer.id_to_token(id).filter(|_| !added.contains_key(&id))?;
                let bytes = match writes {
                    Writes::ByteLevel => token.chars().map(byte_of).collect::<Option<Vec<u8>>>()?,
                    Writes::Fallback => match token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>')) {
                        Some(hex) if hex.len() == 2 => vec![u8::from_str_radix(hex, 16).ok()?],
                        _ => token.replace('▁', " ").into_bytes(),
                    },
                };
                (!bytes.is_empty()).then(|| bytes.into_boxed_slice())
            })
            .collect();
        // All that texts in UTF-8 are made of, but for control characters.
        let mut single = [false; 256];
        bytes.iter().flatten().filter(|bytes| bytes.len() == 1).for_each(|bytes| single[usize::from(bytes[0])] = true);
        let missing = (0x20..=0xf4_u8).find(|byte| !single[usize::from(*byte)] && !matches!(byte, 0x7f | 0xc0 | 0xc1));
        if let Some(byte) = missing {
            return Err(bad(&format!("no token for the byte 0x{byte:02x}")));
        }
        let characters = bytes.iter().map(|bytes| bytes.as_deref().and_then(plain_characters)).collect();
        Ok(Self { bytes, characters })
    }
}

/// Whether a text stands anywhere in a value.
fn mentions(value: &Value, text: &str) -> bool {
    match value {
        Value::String(found) => found == text,
        Value::Array(items) => items.iter().any(|item| mentions(item, text)),
        Value::Object(entries) => entries.values().any(|entry| mentions(entry, text)),
        _ => false,
    }
}

/// The byte that a character of a byte-level token stands for: printable ones of Latin-1 for themselves, the others, in their order, for what lies from 256 on.
fn byte_of(character: char) -> Option<u8> {
    let printable = |byte: &u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let code = u32::from(character);
    match u8::try_from(code) {
        Ok(byte) => printable(&byte).then_some(byte),
        Err(_) => (0..=255_u8).filter(|byte| !printable(byte)).nth(code as usize - 256),
    }
}

/// The characters of bytes that may stand inside any text, wherever a character may begin.
fn plain_characters(bytes: &[u8]) -> Option<u16> {
    let text = str::from_utf8(bytes).ok()?;
    let plain = text.chars().all(|c| c >= ' ' && c != '"' && c != '\\' && c != '\x7f');
    plain.then(|| u16::try_from(text.chars().count()).ok()).flatten()
}

/// A text in a form while it is written.
pub(crate) struct Following<'a> {
    form: &'a JsonForm,
    vocabulary: &'a FormVocabulary,
    /// Tokens that end an answer.
    ends: &'a [u32],
    state: State,
}

impl<'a> Following<'a> {
    pub(crate) fn new(form: &'a JsonForm, vocabulary: &'a FormVocabulary, ends: &'a [u32]) -> Self {
        Self { form, vocabulary, ends, state: initial(form) }
    }

    /// Whether what is written fits the form as it stands.
    pub(crate) fn is_whole(&self) -> bool {
        self.state.left(self.form) == 0
    }
}

impl Guide for Following<'_> {
    fn allow(&mut self, values: &mut [f32], room: usize) -> Result<(), ModelError> {
        let (form, state) = (self.form, &self.state);
        let left = state.left(form);
        let first: Vec<bool> = (0..=255).map(|byte| state.behind(form, byte).is_some()).collect();
        let in_text = state.in_text(form);
        let behind = room.saturating_sub(1);
        let fits = |id: usize| {
            if self.ends.contains(&(id as u32)) {
                return left == 0;
            }
            let Some(Some(bytes)) = self.vocabulary.bytes.get(id) else { return false };
            if let (Some((may, must)), Some(characters)) = (in_text, self.vocabulary.characters[id]) {
                let characters = usize::from(characters);
                return characters <= may && left - characters.min(must) <= behind;
            }
            // One byte is one token at most.
            first[usize::from(bytes[0])]
                && state.behind_all(form, bytes).is_some_and(|state| state.left(form) <= behind)
        };
        let mut any = false;
        for (id, value) in values.iter_mut().enumerate() {
            match fits(id) {
                true => any = true,
                false => *value = f32::NEG_INFINITY,
            }
        }
        match any {
            true => Ok(()),
            false => Err(ModelError::NoRoomForForm { needed: left, room }),
        }
    }

    fn chosen(&mut self, id: u32) -> bool {
        if let Some(Some(bytes)) = self.vocabulary.bytes.get(id as usize)
            && let Some(state) = self.state.behind_all(self.form, bytes)
        {
            self.state = state;
        }
        self.state.is_over(self.form)
    }
}
