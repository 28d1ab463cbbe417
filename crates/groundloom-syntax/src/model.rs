//! A model's files, in memory: read from the embedded container or from a spaCy folder.

mod container;
mod folder;
mod weights;

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use crate::error::{Result, bad_model, unsupported};
use crate::lemmatizer::LemmaTables;
use crate::msgpack;

pub(crate) use weights::{COLUMNS, DEPTH, HIDDEN, HIDDEN_PIECES, LayerNorm, Maxout, PIECES, SLOTS, WIDTH, Weights};

/// The container that `scripts/convert_model.py` wrote.
static EMBEDDED: &[u8] = include_bytes!("../model/en_core_web_sm-3.8.0.bin");

/// An f32 array in C order.
#[derive(Debug)]
pub(crate) struct Tensor {
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<f32>,
}

impl Tensor {
    /// Reads little-endian f32; the byte count must match the shape.
    pub(crate) fn from_le_bytes(file: &str, shape: Vec<usize>, bytes: &[u8]) -> Result<Self> {
        let expected = shape.iter().try_fold(4usize, |acc, &d| acc.checked_mul(d));
        if expected != Some(bytes.len()) {
            return Err(bad_model(file, format!("a tensor of shape {shape:?} has {} bytes of f32 data", bytes.len())));
        }
        let data = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect::<Vec<_>>();
        if data.iter().any(|x| !x.is_finite()) {
            return Err(bad_model(file, "a weight is not a finite number"));
        }
        Ok(Self { shape, data })
    }
}

/// Everything that inference needs from a model, before it is arranged for use.
pub(crate) struct ModelFiles {
    /// `name-version`, for messages and fingerprints.
    pub(crate) id: String,
    /// By the names of `scripts/convert_model.py`.
    tensors: HashMap<String, Tensor>,
    pub(crate) tokenizer: Cow<'static, [u8]>,
    pub(crate) attribute_ruler: Cow<'static, [u8]>,
    pub(crate) lexeme_norm: Cow<'static, [u8]>,
    pub(crate) tagger_cfg: Cow<'static, [u8]>,
    pub(crate) parser_moves: Cow<'static, [u8]>,
    pub(crate) lemmas: LemmaTables,
}

impl ModelFiles {
    /// The model inside the binary: `en_core_web_sm` 3.8.0.
    pub(crate) fn embedded() -> Result<Self> {
        container::read(EMBEDDED)
    }

    #[cfg(test)]
    pub(crate) fn embedded_bytes() -> &'static [u8] {
        EMBEDDED
    }

    #[cfg(test)]
    pub(crate) fn container(bytes: &'static [u8]) -> Result<Self> {
        container::read(bytes)
    }

    /// A spaCy 3.7 or 3.8 model folder.
    pub(crate) fn folder(path: &Path) -> Result<Self> {
        folder::read(path)
    }

    /// Takes a tensor out and checks its shape.
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.tensors.remove(name).ok_or_else(|| bad_model(name, "the model has no such weights"))?;
        if tensor.shape != shape {
            return Err(unsupported(format!("`{name}` of shape {shape:?}"), format!("shape {:?}", tensor.shape)));
        }
        Ok(tensor.data)
    }

    /// The number of rows of an embedding table.
    fn rows(&self, name: &str) -> Result<usize> {
        self.tensors
            .get(name)
            .and_then(|t| t.shape.first().copied())
            .filter(|&n| n > 0)
            .ok_or_else(|| bad_model(name, "the model has no such embedding table"))
    }

    /// The tagger's labels in class order, from its JSON.
    pub(crate) fn tag_labels(&self) -> Result<Vec<String>> {
        #[derive(serde::Deserialize)]
        struct Cfg {
            labels: Vec<String>,
        }
        serde_json::from_slice::<Cfg>(&self.tagger_cfg)
            .map(|cfg| cfg.labels)
            .map_err(|e| bad_model("tagger/cfg", e.to_string()))
    }

    /// The parser's `moves` JSON, from its MessagePack wrapping.
    pub(crate) fn moves_json(&self) -> Result<String> {
        let file = "parser/moves";
        msgpack::read(&self.parser_moves, file)?
            .get("moves")
            .and_then(msgpack::Value::as_str)
            .map(str::to_owned)
            .ok_or_else(|| bad_model(file, "there is no string under `moves`"))
    }
}
