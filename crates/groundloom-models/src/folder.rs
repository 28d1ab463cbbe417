//! The files of one model, on disk or embedded.

use std::{borrow::Cow, path::PathBuf};

use serde::de::DeserializeOwned;

use crate::{ModelError, config::OPEN_CLIP, fromage};

/// A model in Hugging Face layout: `config.json`, `model.safetensors` and what they name.
#[derive(Debug, Clone)]
pub(crate) enum ModelFolder {
    OnDisk(PathBuf),
    Embedded(&'static EmbeddedModel),
}

/// A model that is part of the binary.
#[derive(Debug)]
pub(crate) struct EmbeddedModel {
    pub(crate) name: &'static str,
    pub(crate) files: &'static [(&'static str, &'static [u8])],
}

impl ModelFolder {
    /// The bytes of the file `name`.
    pub(crate) fn read(&self, name: &str) -> Result<Cow<'static, [u8]>, ModelError> {
        match self {
            Self::OnDisk(folder) => {
                let path = folder.join(name);
                std::fs::read(&path).map(Cow::Owned).map_err(|e| ModelError::Unreadable { path, reason: e.to_string() })
            }
            Self::Embedded(model) => {
                let file = model.files.iter().find(|(file, _)| *file == name);
                let missing = || ModelError::Unreadable {
                    path: self.file_name(name).into(),
                    reason: "not part of the binary".to_owned(),
                };
                file.map(|&(_, bytes)| Cow::Borrowed(bytes)).ok_or_else(missing)
            }
        }
    }

    /// The bytes of the file `name`, if there is such a file.
    pub(crate) fn read_if_there(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>, ModelError> {
        self.has(name).then(|| self.read(name)).transpose()
    }

    /// Whether there is a file `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Self::OnDisk(folder) => folder.join(name).exists(),
            Self::Embedded(model) => model.files.iter().any(|(file, _)| *file == name),
        }
    }

    /// Whether the model is in open_clip's layout alone: what Hugging Face's own programs read goes before it.
    pub(crate) fn is_open_clip(&self) -> bool {
        !self.has("config.json") && self.has(OPEN_CLIP)
    }

    /// Whether the model is a FROMAGe as its authors release it.
    pub(crate) fn is_fromage(&self) -> bool {
        !self.has("config.json") && self.has(fromage::OPTIONS)
    }

    /// The folder `name` in this one, if there is one.
    pub(crate) fn folder_if_there(&self, name: &str) -> Option<Self> {
        match self {
            Self::OnDisk(folder) => Some(folder.join(name)).filter(|path| path.is_dir()).map(Self::OnDisk),
            Self::Embedded(_) => None,
        }
    }

    /// The JSON file `name` as `T`.
    pub(crate) fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T, ModelError> {
        serde_json::from_slice(&self.read(name)?)
            .map_err(|e| ModelError::BadConfig { origin: self.file_name(name), problem: format!("found: {e}") })
    }

    /// The JSON file `name` as `T`, if there is such a file.
    pub(crate) fn json_if_there<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ModelError> {
        if self.has(name) { self.json(name).map(Some) } else { Ok(None) }
    }

    /// The licence that the model card's front matter names, or `unknown`.
    pub(crate) fn licence(&self) -> String {
        let card = self.read_if_there("README.md").ok().flatten().unwrap_or_default();
        let card = String::from_utf8_lossy(&card);
        let mut lines = card.lines();
        let front = (lines.next() == Some("---")).then(|| lines.take_while(|line| *line != "---"));
        let named = front.into_iter().flatten().find_map(|line| line.strip_prefix("license:"));
        named.map_or("unknown", |name| name.trim().trim_matches(['"', '\''])).to_owned()
    }

    /// How errors name the file `name`.
    pub(crate) fn file_name(&self, name: &str) -> String {
        match self {
            Self::OnDisk(folder) => folder.join(name).display().to_string(),
            Self::Embedded(model) => format!("{} (embedded), {name}", model.name),
        }
    }
}

/// Two lower-case digits a byte.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
