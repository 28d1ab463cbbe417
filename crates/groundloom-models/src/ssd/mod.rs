//! SSD MobileNetV2: a detector of fixed classes, small enough to ship.

mod anchors;
mod config;
mod network;
pub mod plain;
mod shape;

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::Device;
use groundloom_data::{Box2d, Filter, resize};
use image::RgbImage;

use crate::{
    ModelError,
    detector::{Classes, DetectOptions, Detection, Detector, ModelInfo, suppress},
    folder::ModelFolder,
    kernels::Isa,
    vocabulary::Vocabulary,
    weights::Weights,
};
use anchors::{Anchor, anchors, exp};
use config::{BoxCoder, Resample, SsdConfig};
pub use network::RawOutputs;
use network::{Network, Workspace};
use plain::PlainNetwork;
pub(crate) use shape::FEATURES;
use shape::NetworkShape;

/// The architecture's name in `config.json`.
pub const ARCHITECTURE: &str = "SsdMobileNetV2";

/// The file of a folder that maps nouns to classes. Optional: without it each label names itself.
const VOCABULARY: &str = "vocabulary.tsv";

/// SSD (Liu et al., 2016) on MobileNetV2 (Sandler et al., 2018), as the TensorFlow object detection API builds it
/// (`ssd_mobilenet_v2`, 1×1 box predictors).
pub struct SsdMobileNetV2 {
    info: ModelInfo,
    labels: Vec<Arc<str>>,
    vocabulary: Vocabulary,
    network: Network,
    anchors: Vec<Anchor>,
    coder: BoxCoder,
    /// Buffers of passes that are over. Threads take one each, so replicas share the weights and nothing else.
    idle: Mutex<Vec<Workspace>>,
}

/// `config.json` and labels, read and found consistent.
struct Description {
    config: SsdConfig,
    labels: Vec<Arc<str>>,
    vocabulary: Vocabulary,
    shape: NetworkShape,
}

impl Description {
    fn read(folder: &ModelFolder) -> Result<Self, ModelError> {
        let bad = |file: &str, problem: String| ModelError::BadConfig { origin: folder.file_name(file), problem };
        let config: SsdConfig = serde_json::from_slice(&folder.read("config.json")?)
            .map_err(|e| bad("config.json", format!("expected the settings of an {ARCHITECTURE}, found: {e}")))?;
        let Resample::Bilinear = config.resample;
        if config.labels.contains(['/', '\\']) {
            return Err(bad(
                "config.json",
                format!("expected `labels` to name a file of the folder, found the path {:?}", config.labels),
            ));
        }
        let text = |file: &str, bytes: Cow<'static, [u8]>| {
            String::from_utf8(bytes.into_owned())
                .map_err(|e| bad(file, format!("expected UTF-8 text, found bytes that are not ({e})")))
        };
        let labels: Vec<Arc<str>> =
            text(&config.labels, folder.read(&config.labels)?)?.lines().map(|line| Arc::from(line.trim())).collect();
        if labels.len() < 2 {
            return Err(bad(
                &config.labels,
                format!("expected a line for background and one for each class, found {} lines", labels.len()),
            ));
        }
        let vocabulary = match folder.read_if_there(VOCABULARY)? {
            Some(bytes) => Vocabulary::read(&folder.file_name(VOCABULARY), &text(VOCABULARY, bytes)?, &labels)?,
            None => Vocabulary::of_labels(&labels),
        };
        let image_size = config.image_size;
        if !(32..=4096).contains(&image_size) {
            return Err(bad(
                "config.json",
                format!("expected an image_size from 32 to 4096 pixels, found {image_size}"),
            ));
        }
        if config.anchors.strides.contains(&0) {
            return Err(bad("config.json", "expected strides of at least 1 pixel, found 0".to_owned()));
        }
        let shape = NetworkShape::new(&config.anchors, image_size, labels.len()).map_err(|e| bad("config.json", e))?;
        Ok(Self { config, labels, vocabulary, shape })
    }

    fn rescale(&self) -> [f32; 2] {
        self.config.rescale.map(|v| v as f32)
    }
}

impl SsdMobileNetV2 {
    /// Loads the model of a folder (`config.json`, its labels, `model.safetensors`).
    ///
    /// # Errors
    /// What is missing or wrong in the folder.
    pub(crate) fn load(folder: &ModelFolder) -> Result<Self, ModelError> {
        Self::load_with(folder, Isa::detect())
    }

    fn load_with(folder: &ModelFolder, isa: Isa) -> Result<Self, ModelError> {
        let description = Description::read(folder)?;
        let weights = Weights::open(folder)?;
        let rescale = description.rescale();
        let Description { config, labels, vocabulary, shape } = description;
        let info = ModelInfo {
            name: config.name,
            architecture: ARCHITECTURE,
            weights_sha256: weights.sha256().to_owned(),
            weights_bytes: weights.file_bytes(),
            licence: config.license,
            classes: Classes::Fixed(labels.clone()),
        };
        let anchors = anchors(&config.anchors, config.image_size);
        let network = Network::load(&weights, shape, rescale, isa)?;
        Ok(Self { info, labels, vocabulary, network, anchors, coder: config.box_coder, idle: Mutex::default() })
    }

    /// The same model in candle's own operations.
    ///
    /// # Errors
    /// What is missing or wrong in the folder.
    pub(crate) fn load_plain(folder: &ModelFolder, device: &Device) -> Result<PlainNetwork, ModelError> {
        let description = Description::read(folder)?;
        let weights = Weights::open(folder)?;
        PlainNetwork::load(&weights, description.shape, description.config.rescale, device)
    }

    /// Side of the square input in pixels.
    pub fn image_size(&self) -> u32 {
        self.network.shape().image as u32
    }

    /// `image` as the network sees it: squeezed to its square, antialiased bilinear as PIL does it.
    ///
    /// # Errors
    /// [`ModelError::EmptyImage`].
    pub fn preprocess(&self, image: &RgbImage) -> Result<RgbImage, ModelError> {
        let (width, height) = image.dimensions();
        if width == 0 || height == 0 {
            return Err(ModelError::EmptyImage { width, height });
        }
        Ok(resize(image, self.image_size(), self.image_size(), Filter::Bilinear))
    }

    /// The network's outputs for an image that has been through [`SsdMobileNetV2::preprocess`].
    ///
    /// # Errors
    /// [`ModelError::WrongImageSize`] where the image has another size than that gives.
    pub fn raw_outputs(&self, preprocessed: &RgbImage) -> Result<RawOutputs, ModelError> {
        self.check_size(preprocessed)?;
        Ok(self.with_workspace(|work| self.network.detect(preprocessed.as_raw(), work)))
    }

    /// 1280 values that describe `image` as a whole: the backbone's last activations, averaged over space.
    /// Near-duplicates lie near each other by cosine. Not normalised; all values are in [0, 6].
    ///
    /// # Errors
    /// [`ModelError::EmptyImage`].
    pub fn features(&self, image: &RgbImage) -> Result<Vec<f32>, ModelError> {
        let image = self.preprocess(image)?;
        Ok(self.with_workspace(|work| self.network.features(image.as_raw(), work)))
    }

    fn check_size(&self, image: &RgbImage) -> Result<(), ModelError> {
        let (width, height) = image.dimensions();
        let expected = self.image_size();
        if (width, height) == (expected, expected) {
            Ok(())
        } else {
            Err(ModelError::WrongImageSize { expected, width, height })
        }
    }

    fn with_workspace<T>(&self, work: impl FnOnce(&mut Workspace) -> T) -> T {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut workspace = idle().pop().unwrap_or_default();
        let result = work(&mut workspace);
        idle().push(workspace);
        result
    }

    /// Scores over the threshold of every class but background, suppressed within the class, best first.
    fn choose(&self, raw: &RawOutputs, options: &DetectOptions) -> Vec<Detection> {
        let classes = self.labels.len();
        let surely_below = logit(options.min_score) - 1e-3;
        let mut found = Vec::new();
        for (class, label) in self.labels.iter().enumerate().skip(1) {
            let logits = raw.logits.iter().skip(class).step_by(classes);
            let mut candidates: Vec<Detection> = logits
                .zip(self.anchors.iter().zip(&raw.boxes))
                .filter(|&(&logit, _)| logit >= surely_below)
                .filter_map(|(&logit, (anchor, &offsets))| {
                    let score = 1.0 / (1.0 + exp(-logit));
                    let [x1, y1, x2, y2] = anchor.decode(offsets, self.coder);
                    // A box that lies outside the image has nothing left after clipping.
                    let bbox = Box2d::new(x1, y1, x2, y2).ok().filter(|b| b.area() > 0.0)?;
                    (score >= options.min_score).then(|| Detection {
                        label: label.clone(),
                        class: class as u32,
                        score,
                        bbox,
                    })
                })
                .collect();
            candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
            found.extend(suppress(candidates, options.nms_iou));
        }
        found.sort_by(|a, b| b.score.total_cmp(&a.score));
        found
    }
}

/// The logit whose sigmoid is `score`; infinite at 0 and 1.
fn logit(score: f32) -> f32 {
    (score / (1.0 - score)).ln()
}

impl Detector for SsdMobileNetV2 {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Its convolutions are kernels of the CPU.
    fn stays_on_cpu(&self) -> bool {
        true
    }

    fn vocabulary(&self) -> Option<&Vocabulary> {
        Some(&self.vocabulary)
    }

    fn detect(&self, image: &RgbImage, options: &DetectOptions) -> Result<Vec<Detection>, ModelError> {
        options.check()?;
        let raw = self.raw_outputs(&self.preprocess(image)?)?;
        Ok(self.choose(&raw, options))
    }
}
