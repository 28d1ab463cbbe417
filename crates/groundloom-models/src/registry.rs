//! Names of models, and what they stand for.

use std::{path::Path, sync::Arc};

use candle_core::Device;
use serde::Deserialize;

use crate::{
    ModelError,
    clip::{self, Clip},
    config::Config,
    detector::{Detector, ModelInfo},
    dual::{DualEmbedder, SentenceEmbedder, SsdEmbedder},
    embedder::{Embedder, EmbedderInfo},
    family::Family,
    folder::{EmbeddedModel, ModelFolder},
    image_processor::{ImageDefaults, ImageProcessor},
    sentence::SentenceEncoder,
    siglip::{self, Siglip},
    ssd::{self, SsdMobileNetV2, plain::PlainNetwork},
    text_tokenizer::{Padding, TextTokenizer},
    weights::Weights,
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

/// Loads the embedder that `name` stands for: an embedded model ([`embedded_names`]) or the path of a folder in Hugging
/// Face layout, whose `config.json` decides the architecture.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_embedder(name: &str) -> Result<Arc<dyn Embedder>, ModelError> {
    let folder = find(name)?;
    let family = Family::of(name, &folder)?;
    if family == Family::Ssd {
        let network = SsdMobileNetV2::load(&folder)?;
        let ModelInfo { weights_sha256, licence, .. } = network.info().clone();
        let info = EmbedderInfo {
            name: name.to_owned(),
            architecture: ssd::ARCHITECTURE.to_owned(),
            weights_sha256,
            licence,
            dims: ssd::FEATURES,
            normalised: false,
            texts: false,
            images: true,
        };
        return Ok(Arc::new(SsdEmbedder { info, network }));
    }
    let (config, weights) = (Config::open(&folder)?, Weights::open(&folder)?);
    let info = |dims: usize, normalised: bool, [texts, images]: [bool; 2]| EmbedderInfo {
        name: name.to_owned(),
        architecture: family.name().to_owned(),
        weights_sha256: weights.sha256().to_owned(),
        licence: folder.licence(),
        dims,
        normalised,
        texts,
        images,
    };
    Ok(match family {
        Family::Clip => {
            let network = Clip::load(&config, &weights)?;
            let length = network.text.config.positions;
            Arc::new(DualEmbedder {
                info: info(network.width, true, [true, true]),
                processor: sized(&folder, clip::IMAGE_DEFAULTS, network.vision.config.image_size)?,
                tokenizer: TextTokenizer::open(&folder, length, |pad| Padding::Longest(pad.unwrap_or(0)))?,
                network,
            })
        }
        Family::Siglip => {
            let network = Siglip::load(&config, &weights)?;
            let length = network.text.positions;
            Arc::new(DualEmbedder {
                info: info(network.width, true, [true, true]),
                processor: sized(&folder, siglip::IMAGE_DEFAULTS, network.vision.image_size)?,
                tokenizer: TextTokenizer::open(&folder, length, |pad| Padding::MaxLength(pad.unwrap_or(1)))?,
                network,
            })
        }
        Family::TextEncoder(kind) => {
            let encoder = SentenceEncoder::load(&folder, &config, kind, &weights)?;
            Arc::new(SentenceEmbedder { info: info(encoder.width(), encoder.normalised, [true, false]), encoder })
        }
        Family::Ssd => unreachable!("loaded above"),
    })
}

/// The image processor of a network that takes images of `size` × `size` pixels only.
fn sized(folder: &ModelFolder, defaults: ImageDefaults, size: usize) -> Result<ImageProcessor, ModelError> {
    let processor = ImageProcessor::open(folder, defaults)?;
    match processor.fixed_size() {
        Some((width, height)) if width as usize == size && height as usize == size => Ok(processor),
        found => Err(ModelError::BadConfig {
            origin: folder.file_name("preprocessor_config.json"),
            problem: format!(
                "expected images of {size}×{size} pixels as config.json says, found {}",
                found.map_or("images of any size".to_owned(), |(width, height)| format!("{width}×{height}"))
            ),
        }),
    }
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
