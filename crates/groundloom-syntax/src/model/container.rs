//! The compact file of one model; `scripts/convert_model.py` states its layout.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;

use super::{ModelFiles, Tensor};
use crate::error::{Result, bad_model};
use crate::lemmatizer::{LemmaTables, WordList};

const MAGIC: &[u8] = b"GLSYNTAX";
const VERSION: u32 = 1;
const FILE: &str = "embedded model";

#[derive(Deserialize)]
struct Header {
    name: String,
    version: String,
    sections: HashMap<String, Section>,
}

#[derive(Deserialize)]
struct Section {
    offset: usize,
    len: usize,
    shape: Option<Vec<usize>>,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

/// Reads a container; texts keep borrowing from it.
pub(super) fn read(bytes: &'static [u8]) -> Result<ModelFiles> {
    let short = || bad_model(FILE, "it is shorter than its header says");
    if !bytes.starts_with(MAGIC) {
        return Err(bad_model(FILE, "it does not begin with the magic `GLSYNTAX`"));
    }
    let version = u32_at(bytes, 8).ok_or_else(short)?;
    if version != VERSION {
        return Err(bad_model(FILE, format!("its format is version {version}, expected {VERSION}")));
    }
    let header_len = u32_at(bytes, 12).ok_or_else(short)? as usize;
    let header = bytes.get(16..16 + header_len).ok_or_else(short)?;
    let payload = &bytes[16 + header_len..];
    let header: Header = serde_json::from_slice(header).map_err(|e| bad_model(FILE, e.to_string()))?;

    let mut tensors = HashMap::new();
    let mut texts: HashMap<String, &'static [u8]> = HashMap::new();
    for (name, section) in header.sections {
        let end = section.offset.checked_add(section.len).ok_or_else(short)?;
        let data = payload.get(section.offset..end).ok_or_else(short)?;
        match section.shape {
            Some(shape) => {
                let tensor = Tensor::from_le_bytes(&name, shape, data)?;
                tensors.insert(name, tensor);
            }
            None => {
                texts.insert(name, data);
            }
        }
    }
    let text =
        |name: &str| texts.get(name).copied().ok_or_else(|| bad_model(FILE, format!("there is no section `{name}`")));
    let mut indexes = HashMap::new();
    for (name, data) in &texts {
        if let Some(pos) = name.strip_prefix("lemma_index.") {
            indexes.insert(pos.to_owned(), WordList::from_lines(name, Cow::Borrowed(*data))?);
        }
    }
    let lemmas = LemmaTables::read(text("lemma_rules")?, text("lemma_exc")?, indexes)?;
    Ok(ModelFiles {
        id: format!("{}-{}", header.name, header.version),
        tensors,
        tokenizer: text("tokenizer")?.into(),
        attribute_ruler: text("attribute_ruler")?.into(),
        lexeme_norm: text("lexeme_norm")?.into(),
        tagger_cfg: text("tagger.cfg")?.into(),
        parser_moves: text("parser.moves")?.into(),
        lemmas,
    })
}
