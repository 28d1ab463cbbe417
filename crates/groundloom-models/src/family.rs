//! Which network a folder holds.

use serde::Deserialize;

use crate::{ModelError, bert, folder::ModelFolder, ssd};

/// The networks of this crate, by the `model_type` of their `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Clip,
    Siglip,
    TextEncoder(bert::Kind),
    Ssd,
}

/// The part of any `config.json` that says what the model is.
#[derive(Deserialize)]
struct Architecture {
    #[serde(default)]
    architectures: Vec<String>,
    model_type: Option<String>,
}

impl Family {
    /// The network of `folder`, which the user called `name`.
    ///
    /// # Errors
    /// [`ModelError::UnsupportedArchitecture`], [`ModelError::BadConfig`], [`ModelError::Unreadable`].
    pub(crate) fn of(name: &str, folder: &ModelFolder) -> Result<Self, ModelError> {
        const SUPPORTED: &str = "clip, siglip, bert, roberta, xlm-roberta, mpnet, SsdMobileNetV2";
        let Architecture { architectures, model_type } = folder.json("config.json")?;
        let found = model_type.as_ref().or(architectures.first()).cloned().unwrap_or_default();
        let family = match found.as_str() {
            "clip" => Some(Self::Clip),
            "siglip" => Some(Self::Siglip),
            ssd::ARCHITECTURE => Some(Self::Ssd),
            other => bert::Kind::of(other).map(Self::TextEncoder),
        };
        family.ok_or_else(|| ModelError::UnsupportedArchitecture {
            origin: name.to_owned(),
            found,
            supported: SUPPORTED.to_owned(),
        })
    }

    /// The `model_type`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Clip => "clip",
            Self::Siglip => "siglip",
            Self::TextEncoder(kind) => kind.name(),
            Self::Ssd => ssd::ARCHITECTURE,
        }
    }
}
