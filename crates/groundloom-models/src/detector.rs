//! What every detector answers.

use std::sync::Arc;

use groundloom_data::Box2d;
use image::RgbImage;

use crate::{ModelError, vocabulary::Vocabulary};

/// A model that finds things in an image.
///
/// An answer depends on the image and the options alone: not on the thread, nor on what else runs.
pub trait Detector: Send + Sync {
    /// Who this model is.
    fn info(&self) -> &ModelInfo;

    /// Whether it computes on the CPU, whatever device was asked for.
    fn stays_on_cpu(&self) -> bool {
        false
    }

    /// Which nouns name which of the model's classes; `None` for a model that takes phrases as they are.
    fn vocabulary(&self) -> Option<&Vocabulary>;

    /// Everything found in `image` (RGB, orientation already applied), best score first; equal scores by class, then
    /// by place in the model's own output. For models of [`Classes::Fixed`].
    ///
    /// # Errors
    /// [`ModelError::BadOption`], [`ModelError::EmptyImage`] and [`ModelError::NeedsPhrases`].
    fn detect(&self, image: &RgbImage, options: &DetectOptions) -> Result<Vec<Detection>, ModelError> {
        let _ = (image, options);
        Err(ModelError::NeedsPhrases { model: self.info().name.clone() })
    }

    /// What is found of each of `phrases` in `image`, best score first; equal scores by phrase, then by place in the
    /// model's own output. [`Detection::class`] is the phrase's place among `phrases`. The same box may be found for
    /// several phrases; an empty phrase is found nowhere. For models of [`Classes::Open`].
    ///
    /// # Errors
    /// [`ModelError::BadOption`], [`ModelError::EmptyImage`], [`ModelError::Untokenized`] and
    /// [`ModelError::TakesNoPhrases`].
    fn detect_phrases(
        &self,
        image: &RgbImage,
        phrases: &[&str],
        options: &DetectOptions,
    ) -> Result<Vec<Detection>, ModelError> {
        let _ = (image, phrases, options);
        Err(ModelError::TakesNoPhrases { model: self.info().name.clone() })
    }

    /// What in `image` is like the main thing in `example`, best score first, with the class 0.
    ///
    /// # Errors
    /// [`ModelError::BadOption`], [`ModelError::EmptyImage`] and [`ModelError::TakesNoExample`] for models that look
    /// for classes or phrases only.
    fn detect_like(
        &self,
        image: &RgbImage,
        example: &RgbImage,
        options: &DetectOptions,
    ) -> Result<Vec<Detection>, ModelError> {
        let _ = (image, example, options);
        Err(ModelError::TakesNoExample { model: self.info().name.clone() })
    }
}

/// A model's identity, for cards, fingerprints and `groundloom models list`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// The model's name.
    pub name: String,
    /// The architecture, as `config.json` names it.
    pub architecture: &'static str,
    /// Sha256 of `model.safetensors`, in hexadecimal.
    pub weights_sha256: String,
    /// Bytes of the files that hold the weights.
    pub weights_bytes: u64,
    /// SPDX identifier of the weights' licence.
    pub licence: String,
    /// What the model can name.
    pub classes: Classes,
}

/// What a detector can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Classes {
    /// These labels, by class number. Class 0 is background and never detected.
    Fixed(Vec<Arc<str>>),
    /// Any phrase given to it.
    Open,
}

/// How detections are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DetectOptions {
    /// Lowest score kept, in [0, 1].
    pub min_score: f32,
    /// Of two boxes of one class that overlap by more than this intersection over union, the better stays. In [0, 1].
    pub nms_iou: f32,
}

impl Default for DetectOptions {
    /// 0.45 and 0.5.
    fn default() -> Self {
        Self { min_score: 0.45, nms_iou: 0.5 }
    }
}

impl DetectOptions {
    /// Refuses values outside [0, 1].
    ///
    /// # Errors
    /// [`ModelError::BadOption`] names the option.
    pub fn check(&self) -> Result<(), ModelError> {
        for (option, found) in [("min_score", self.min_score), ("nms_iou", self.nms_iou)] {
            if !(0.0..=1.0).contains(&found) {
                return Err(ModelError::BadOption { option, found });
            }
        }
        Ok(())
    }
}

/// One thing found.
#[derive(Debug, Clone, PartialEq)]
pub struct Detection {
    /// The class's label, or the phrase.
    pub label: Arc<str>,
    /// Class number: the place of the label in [`Classes::Fixed`], or of the phrase among those given.
    pub class: u32,
    /// Confidence in [0, 1].
    pub score: f32,
    /// Where, in fractions of the oriented image's width and height.
    pub bbox: Box2d,
}

/// Greedy non-maximum suppression within one class: of `candidates` (best first) those that overlap no better one kept
/// by more than `max_iou`.
pub fn suppress(candidates: Vec<Detection>, max_iou: f32) -> Vec<Detection> {
    let mut kept: Vec<Detection> = Vec::new();
    for candidate in candidates {
        if kept.iter().all(|better| better.bbox.iou(&candidate.bbox) <= max_iou) {
            kept.push(candidate);
        }
    }
    kept
}
