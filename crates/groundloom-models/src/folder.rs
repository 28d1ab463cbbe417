//! The files of one model, on disk or embedded.

use std::{borrow::Cow, path::PathBuf};

use sha2::{Digest, Sha256};

use crate::ModelError;

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
        let there = match self {
            Self::OnDisk(folder) => folder.join(name).exists(),
            Self::Embedded(model) => model.files.iter().any(|(file, _)| *file == name),
        };
        there.then(|| self.read(name)).transpose()
    }

    /// How errors name the file `name`.
    pub(crate) fn file_name(&self, name: &str) -> String {
        match self {
            Self::OnDisk(folder) => folder.join(name).display().to_string(),
            Self::Embedded(model) => format!("{} (embedded), {name}", model.name),
        }
    }
}

/// Sha256 of `bytes` in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
