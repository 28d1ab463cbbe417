//! Names of models, and what they stand for.

use std::{path::Path, sync::Arc};

use candle_core::Device;

use crate::{
    ModelError,
    clap::{self, Clap, ClapEmbedder},
    classifier::{Classifier, VisionClassifier},
    clip::{self, Clip},
    coca::{self, Coca},
    config::Config,
    detector::{Classes, Detector, ModelInfo},
    device::ModelOn,
    embedder::{Embedder, EmbedderInfo, Modality},
    embedders::{DualEmbedder, PatchEmbedder, SentenceEmbedder, SsdEmbedder, VisionEmbedder},
    family::Family,
    folder::{EmbeddedModel, ModelFolder},
    fromage::{self, Fromage, Parts},
    grounding_dino::GroundingDinoDetector,
    hub::{self, Hub},
    image_processor::{ImageDefaults, ImageProcessor},
    imagebind::{self, ImageBind, ImageBindEmbedder, Spectra},
    naflex::{PatchProcessor, Siglip2},
    owl::OwlDetector,
    sentence::{self, SentenceEncoder},
    siglip::{self, Siglip},
    speech::SAMPLE_RATE,
    ssd::{self, SsdMobileNetV2, plain::PlainNetwork},
    text_tokenizer::{Padding, TextTokenizer},
    videomae::{self, VideoMae, VideoMaeEmbedder},
    vit::{self, VisionTransformer},
    weights::Weights,
};

mod speech;
mod writers;

pub use speech::{resolve_audio_encoder, resolve_transcriber};
pub(crate) use writers::Opened;
pub use writers::{
    Ability, describe_able, describe_model, resolve_captioner, resolve_generator, resolve_grounded_captioner,
    resolve_matcher, resolve_scorer,
};

/// The embedded detector's name.
pub const DEFAULT_DETECTOR: &str = "ssd-mobilenet-v2-oidv4";

macro_rules! embedded_files {
    ($folder:literal: $($file:literal),+ $(,)?) => {
        &[$(($file, include_bytes!(concat!("../data/", $folder, "/", $file)))),+]
    };
}

/// The embedded sentence encoder's name.
pub const DEFAULT_SENTENCE_ENCODER: &str = "all-minilm-l6-v2";

static EMBEDDED: [EmbeddedModel; 2] = [
    EmbeddedModel {
        name: DEFAULT_DETECTOR,
        files: embedded_files!(
            "ssd-mobilenet-v2-oidv4": "config.json", "labels.txt", "model.safetensors", "vocabulary.tsv"
        ),
    },
    EmbeddedModel {
        name: DEFAULT_SENTENCE_ENCODER,
        files: embedded_files!(
            "all-minilm-l6-v2": "1_Pooling/config.json", "README.md", "config.json", "model.safetensors", "modules.json",
            "sentence_bert_config.json", "tokenizer.json", "tokenizer_config.json"
        ),
    },
];

/// Names of the models that are part of the binary.
pub fn embedded_names() -> impl Iterator<Item = &'static str> {
    EMBEDDED.iter().map(|model| model.name)
}

pub(crate) fn find(name: &str) -> Result<ModelFolder, ModelError> {
    if name.starts_with(hub::SCHEME) {
        return Ok(ModelFolder::OnDisk(Hub::from_env()?.folder(name)?));
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

/// Architectures that find boxes.
const DETECTORS: &str = "grounding-dino, owlvit, owlv2, SsdMobileNetV2";
/// Architectures that make vectors.
const EMBEDDERS: &str = "clip, siglip, siglip2, coca, fromage, clap, imagebind, bert, roberta, xlm-roberta, mpnet, vit, dinov2, beit, videomae, \
     SsdMobileNetV2";

fn find_ssd(name: &str) -> Result<ModelFolder, ModelError> {
    let folder = find(name)?;
    match Family::of(name, &folder)? {
        Family::Ssd => Ok(folder),
        other => Err(other.unsuited(name, ssd::ARCHITECTURE)),
    }
}

/// Loads the SSD MobileNetV2 that `name` stands for; as [`resolve`], with the methods of that architecture.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_ssd(name: &str) -> Result<SsdMobileNetV2, ModelError> {
    SsdMobileNetV2::load(&find_ssd(name)?)
}

/// As [`resolve_ssd`], in candle's own operations on `device`: the oracle of the CPU kernels.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_plain_ssd(name: &str, device: &Device) -> Result<PlainNetwork, ModelError> {
    SsdMobileNetV2::load_plain(&find_ssd(name)?, device)
}

/// A model folder, read as far as to know what it is.
struct Described {
    folder: ModelFolder,
    family: Family,
    config: Config,
    weights: Weights,
    info: EmbedderInfo,
}

fn described(ModelOn { name, device }: ModelOn<'_>) -> Result<Described, ModelError> {
    let device = device.open()?;
    let folder = find(name)?;
    let family = Family::of(name, &folder)?;
    let (config, weights) = (Config::open(&folder)?, Weights::open(&folder)?.on(&device));
    let (dims, normalised, [texts, images]) = match family {
        Family::Clip => (config.size_or("projection_dim", 512)?, true, [true, true]),
        Family::Clap => (config.size_or("projection_dim", 512)?, true, [true, false]),
        Family::Coca => (coca::width(&config)?, true, [true, true]),
        Family::Fromage => (fromage::width(&config)?, true, [true, true]),
        Family::ImageBind => (imagebind::width(&config)?, true, [true, true]),
        Family::Siglip | Family::Siglip2 => (siglip::width(&config)?, true, [true, true]),
        Family::TextEncoder(_) => {
            let width = config.size_or("hidden_size", 768)?;
            (width, sentence::modules(&folder, width)?.1, [true, false])
        }
        Family::VisionTransformer(_) => (config.size_or("hidden_size", 768)?, false, [false, true]),
        Family::VideoMae => (config.size_or("hidden_size", 768)?, false, [false, false]),
        Family::Ssd => (ssd::FEATURES, false, [false, true]),
        _ => return Err(family.unsuited(name, EMBEDDERS)),
    };
    let licence = match family {
        Family::Ssd => config.text("license")?.unwrap_or("unknown").to_owned(),
        _ => folder.licence(),
    };
    let info = EmbedderInfo {
        name: name.to_owned(),
        architecture: family.name().to_owned(),
        weights_sha256: weights.sha256().to_owned(),
        weights_bytes: weights.file_bytes(),
        licence,
        dims,
        normalised,
        texts,
        images,
        sample_rate: match family {
            Family::Clap => Some(clap::sample_rate(&folder)?),
            Family::ImageBind => Some(SAMPLE_RATE),
            _ => None,
        },
        video_frames: if family == Family::VideoMae { Some(videomae::frames(&config)?) } else { None },
        others: match family {
            Family::ImageBind => imagebind::OTHERS,
            Family::VideoMae => &[Modality::Video],
            _ => &[],
        },
    };
    Ok(Described { folder, family, config, weights, info })
}

/// What the embedder that `name` stands for is, without building its network. Whether it loads, [`resolve_embedder`]
/// says.
///
/// # Errors
/// As [`resolve`].
pub fn describe_embedder(name: &str) -> Result<EmbedderInfo, ModelError> {
    described(name.into()).map(|described| described.info)
}

/// Loads the embedder that `name` stands for: an embedded model ([`embedded_names`]) or the path of a folder in Hugging
/// Face layout, whose `config.json` decides the architecture.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_embedder<'a>(model: impl Into<ModelOn<'a>>) -> Result<Arc<dyn Embedder>, ModelError> {
    let model = model.into();
    let Described { folder, family, config, weights, info } = described(model)?;
    Ok(match family {
        Family::Clip => {
            let network = Clip::load(&config, &weights)?;
            let length = network.text.config.positions;
            Arc::new(DualEmbedder {
                info,
                processor: sized(&folder, clip::IMAGE_DEFAULTS, network.vision.config.image_size)?,
                tokenizer: TextTokenizer::open(&folder, length, |pad| Padding::Longest(pad.unwrap_or(0)))?,
                network,
            })
        }
        Family::Siglip => {
            let network = Siglip::load(&config, &weights)?;
            let length = network.text.positions;
            Arc::new(DualEmbedder {
                info,
                processor: sized(&folder, siglip::IMAGE_DEFAULTS, network.vision.image_size)?,
                tokenizer: TextTokenizer::open(&folder, length, |pad| Padding::MaxLength(pad.unwrap_or(1)))?,
                network,
            })
        }
        Family::Siglip2 => {
            let network = Siglip2::load(&config, &weights)?;
            let length = network.text.positions;
            Arc::new(PatchEmbedder {
                info,
                processor: PatchProcessor::open(&folder)?,
                tokenizer: TextTokenizer::open(&folder, length, |pad| Padding::MaxLength(pad.unwrap_or(1)))?,
                network,
            })
        }
        Family::Clap => {
            let network = Clap::load(&config, &weights)?;
            Arc::new(ClapEmbedder {
                info,
                front: clap::LogMel::open(&folder, &network)?,
                tokenizer: clap::tokenizer(&folder, &network)?,
                network,
            })
        }
        Family::Coca => {
            let network = Coca::load(&config, &weights)?;
            let (length, pad) = (network.text.longest, network.text.pad);
            Arc::new(DualEmbedder {
                info,
                processor: coca::processor(&config, network.vision.image_size)?,
                // The tokenizer's file names another token, by which the network was not trained.
                tokenizer: TextTokenizer::open(&folder, length, |_| Padding::Longest(pad))?,
                network,
            })
        }
        Family::Fromage => {
            let parts = Parts::of(&folder, &config)?;
            let network = Fromage::load(&config, &parts, &weights)?;
            Arc::new(DualEmbedder {
                info,
                processor: sized(&parts.visual, clip::IMAGE_DEFAULTS, network.vision.config.image_size)?,
                tokenizer: parts.tokenizer(&network)?,
                network,
            })
        }
        Family::ImageBind => Arc::new(ImageBindEmbedder {
            info,
            processor: imagebind::processor(&config)?,
            network: ImageBind::load(&config, &weights)?,
            tokenizer: TextTokenizer::open(&folder, imagebind::POSITIONS, |_| Padding::Longest(0))?,
            spectra: Spectra::new(),
        }),
        Family::TextEncoder(kind) => {
            let encoder = SentenceEncoder::load(&folder, &config, kind, &weights)?;
            Arc::new(SentenceEmbedder { info, encoder })
        }
        Family::VisionTransformer(kind) => {
            let network = VisionTransformer::load(&config, kind, &weights)?;
            let processor = vision_processor(&folder, kind, &network)?;
            Arc::new(VisionEmbedder { info, network, processor })
        }
        Family::VideoMae => {
            let network = VideoMae::load(&config, &weights)?;
            Arc::new(VideoMaeEmbedder { info, processor: network.processor(&folder)?, network })
        }
        Family::Ssd => Arc::new(SsdEmbedder { info, network: SsdMobileNetV2::load(&folder)? }),
        _ => return Err(family.unsuited(model.name, EMBEDDERS)),
    })
}

/// Loads the classifier that `name` stands for: the path of a folder in Hugging Face layout that holds a ViT, DINOv2 or
/// BEiT with a layer of classes.
///
/// # Errors
/// As [`resolve`]; [`ModelError::NoClasses`] for any other model.
pub fn resolve_classifier<'a>(model: impl Into<ModelOn<'a>>) -> Result<Arc<dyn Classifier>, ModelError> {
    let Described { folder, family, config, weights, info } = described(model.into())?;
    let Family::VisionTransformer(kind) = family else {
        return Err(ModelError::NoClasses { model: info.name, architecture: info.architecture });
    };
    let network = VisionTransformer::load(&config, kind, &weights)?;
    if network.labels().is_empty() {
        return Err(ModelError::NoClasses { model: info.name, architecture: info.architecture });
    }
    let processor = vision_processor(&folder, kind, &network)?;
    Ok(Arc::new(VisionClassifier { info, network, processor }))
}

fn vision_processor(
    folder: &ModelFolder,
    kind: vit::Kind,
    network: &VisionTransformer,
) -> Result<ImageProcessor, ModelError> {
    match kind {
        // DINOv2's positions stretch to any grid.
        vit::Kind::Dinov2 => ImageProcessor::open(folder, kind.image_defaults()),
        vit::Kind::Vit | vit::Kind::Beit => sized(folder, kind.image_defaults(), network.image_size),
    }
}

/// The image processor of a network that takes images of `size` × `size` pixels only.
///
/// # Errors
/// [`ModelError::Unreadable`], [`ModelError::BadConfig`].
pub(crate) fn sized(folder: &ModelFolder, defaults: ImageDefaults, size: usize) -> Result<ImageProcessor, ModelError> {
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

/// Loads the detector that `name` stands for: an embedded model ([`embedded_names`]), a model of the hub that is in the
/// cache (`hf://org/repo@revision`), or the path of a folder in Hugging Face layout, whose `config.json` decides the
/// architecture.
///
/// # Errors
/// [`ModelError::UnknownModel`], [`ModelError::NotFetched`] for `hf://` names that [`Hub::pull`] has not fetched,
/// [`ModelError::UnsupportedArchitecture`], what is missing or wrong in the folder, and [`ModelError::NotBuiltIn`] and
/// [`ModelError::NoDevice`]. The SSD computes on the CPU, whatever device is asked for.
pub fn resolve<'a>(model: impl Into<ModelOn<'a>>) -> Result<Arc<dyn Detector>, ModelError> {
    let ModelOn { name, device } = model.into();
    let device = device.open()?;
    let folder = find(name)?;
    Ok(match Family::of(name, &folder)? {
        Family::GroundingDino => Arc::new(GroundingDinoDetector::load(name, &folder, &device)?),
        Family::Owl(generation) => Arc::new(OwlDetector::load(name, &folder, generation, &device)?),
        Family::Ssd => Arc::new(SsdMobileNetV2::load(&folder)?),
        other => return Err(other.unsuited(name, DETECTORS)),
    })
}

/// What the detector that `name` stands for is, without building a large network. Whether it loads, [`resolve`] says.
///
/// # Errors
/// As [`resolve`].
pub fn describe_detector(name: &str) -> Result<ModelInfo, ModelError> {
    let folder = find(name)?;
    let family = Family::of(name, &folder)?;
    match family {
        Family::GroundingDino | Family::Owl(_) => {
            let weights = Weights::open(&folder)?;
            Ok(ModelInfo {
                name: name.to_owned(),
                architecture: family.name(),
                weights_sha256: weights.sha256().to_owned(),
                weights_bytes: weights.file_bytes(),
                licence: folder.licence(),
                classes: Classes::Open,
            })
        }
        _ => resolve(name).map(|detector| detector.info().clone()),
    }
}
