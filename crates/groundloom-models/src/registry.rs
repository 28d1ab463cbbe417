//! Names of models, and what they stand for.

use std::{path::Path, sync::Arc};

use candle_core::Device;
use serde::Deserialize;

use crate::{
    ModelError,
    detector::Detector,
    folder::{EmbeddedModel, ModelFolder},
    ssd::{self, SsdMobileNetV2, plain::PlainNetwork},
};

/// The embedded detector's name.
pub const DEFAULT_DETECTOR: &str = "ssd-mobilenet-v2-oidv4";

macro_rules! embedded_files {
    ($folder:literal: $($file:literal),+ $(,)?) => {
        &[$(($file, include_bytes!(concat!("../data/", $folder, "/", $file)))),+]
    };
}

static EMBEDDED: [EmbeddedModel; 1] = [EmbeddedModel {
    name: DEFAULT_DETECTOR,
    files: embedded_files!("ssd-mobilenet-v2-oidv4": "config.json", "labels.txt", "model.safetensors", "vocabulary.tsv"),
}];

/// Names of the models that are part of the binary.
pub fn embedded_names() -> impl Iterator<Item = &'static str> {
    EMBEDDED.iter().map(|model| model.name)
}

/// The part of any `config.json` that says what the model is.
#[derive(Deserialize)]
struct Architecture {
    #[serde(default)]
    architectures: Vec<String>,
    model_type: Option<String>,
}

fn find(name: &str) -> Result<ModelFolder, ModelError> {
    if name.starts_with("hf://") {
        return Err(ModelError::NotFetched { name: name.to_owned() });
    }
    if let Some(model) = EMBEDDED.iter().find(|model| model.name == name) {
        return Ok(ModelFolder::Embedded(model));
    }
    if Path::new(name).is_dir() {
        return Ok(ModelFolder::OnDisk(name.into()));
    }
    let embedded = embedded_names().collect::<Vec<_>>().join(", ");
    Err(ModelError::UnknownModel { name: name.to_owned(), embedded })
}

fn check_architecture(name: &str, folder: &ModelFolder) -> Result<(), ModelError> {
    let config = folder.read("config.json")?;
    let config: Architecture = serde_json::from_slice(&config).map_err(|e| ModelError::BadConfig {
        origin: folder.file_name("config.json"),
        problem: format!("expected JSON with an `architectures` list, found: {e}"),
    })?;
    match config.architectures.first().or(config.model_type.as_ref()) {
        Some(found) if found == ssd::ARCHITECTURE => Ok(()),
        found => Err(ModelError::UnsupportedArchitecture {
            origin: name.to_owned(),
            found: found.cloned().unwrap_or_default(),
            supported: ssd::ARCHITECTURE.to_owned(),
        }),
    }
}

/// Loads the SSD MobileNetV2 that `name` stands for; as [`resolve`], with the methods of that architecture.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_ssd(name: &str) -> Result<SsdMobileNetV2, ModelError> {
    let folder = find(name)?;
    check_architecture(name, &folder)?;
    SsdMobileNetV2::load(&folder)
}

/// As [`resolve_ssd`], in candle's own operations on `device`: the oracle of the CPU kernels.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_plain_ssd(name: &str, device: &Device) -> Result<PlainNetwork, ModelError> {
    let folder = find(name)?;
    check_architecture(name, &folder)?;
    SsdMobileNetV2::load_plain(&folder, device)
}

/// Loads the detector that `name` stands for: an embedded model ([`embedded_names`]) or the path of a folder in
/// Hugging Face layout, whose `config.json` decides the architecture.
///
/// # Errors
/// [`ModelError::UnknownModel`], [`ModelError::NotFetched`] for `hf://` names,
/// [`ModelError::UnsupportedArchitecture`], and what is missing or wrong in the folder.
pub fn resolve(name: &str) -> Result<Arc<dyn Detector>, ModelError> {
    resolve_ssd(name).map(|model| Arc::new(model) as Arc<dyn Detector>)
}
