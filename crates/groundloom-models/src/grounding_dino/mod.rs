//! Grounding DINO: boxes for phrases, all phrases of a caption in one prompt.
//!
//! Reference: transformers' `modeling_grounding_dino.py`, `modeling_swin.py` and `processing_grounding_dino.py`.

mod config;
mod decoder;
mod deformable;
mod encoder;
mod layers;
mod network;
mod phrases;
mod position;
pub(crate) mod replay;
mod text;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use groundloom_data::{Box2d, Filter};
use image::RgbImage;

use crate::{
    Classes, DetectOptions, Detection, Detector, ModelError, ModelInfo, Vocabulary,
    config::Config,
    family::Family,
    folder::ModelFolder,
    image_processor::{IMAGENET_MEAN, IMAGENET_STD, ImageDefaults, ImageProcessor},
    layers::{compute, with_values},
    suppress,
    text_tokenizer::{Padding, TextTokenizer},
    weights::Weights,
};
use config::GroundingDinoConfig;
pub(crate) use layers::products;
use network::{GroundingDino, Prompts};
use position::PixelMask;
use text::BlockMask;

/// What a `GroundingDinoImageProcessor` does where its file is silent.
const IMAGE_DEFAULTS: ImageDefaults =
    ImageDefaults { filter: Filter::Bilinear, mean: IMAGENET_MEAN, std: IMAGENET_STD, crop: false };

/// Tensors that an answer does not need: the last norm of a Swin that classifies, and copies of the shared box head.
const UNUSED: [&str; 3] =
    ["model.backbone.conv_encoder.model.swin.layernorm.", "model.decoder.bbox_embed.", "bbox_embed."];

/// The detector of a folder.
pub(crate) struct GroundingDinoDetector {
    info: ModelInfo,
    network: GroundingDino,
    processor: ImageProcessor,
    tokenizer: TextTokenizer,
}

impl GroundingDinoDetector {
    /// Loads `config.json`, `model.safetensors`, `preprocessor_config.json` and `tokenizer.json`, for a network on `device`.
    ///
    /// # Errors
    /// What is missing, wrong or not supported in them.
    pub(crate) fn load(name: &str, folder: &ModelFolder, device: &candle_core::Device) -> Result<Self, ModelError> {
        let config = GroundingDinoConfig::read(&Config::open(folder)?)?;
        let processor = ImageProcessor::open_padding(folder, IMAGE_DEFAULTS)?;
        let tokenizer = TextTokenizer::open(folder, config.max_text, |pad| Padding::Longest(pad.unwrap_or(0)))?;
        phrases::check_delimiters(folder, &tokenizer)?;
        let weights = Weights::open(folder)?.on(device);
        let network = GroundingDino::load(config, &weights)?;
        weights.finish(&UNUSED)?;
        let info = ModelInfo {
            name: name.to_owned(),
            architecture: Family::GroundingDino.name(),
            weights_sha256: weights.sha256().to_owned(),
            weights_bytes: weights.file_bytes(),
            licence: folder.licence(),
            classes: Classes::Open,
        };
        Ok(Self { info, network, processor, tokenizer })
    }

    /// Every pair of a box and a phrase of `prompt` whose score is at least `min_score`, by phrase, then by the
    /// network's own order.
    fn pairs(
        &self,
        pixels: &candle_core::Tensor,
        prompt: &phrases::Prompt,
        min_score: f32,
    ) -> candle_core::Result<Vec<(usize, f32, [f32; 4])>> {
        let (_, _, height, width) = pixels.dims4()?;
        let mask = PixelMask::full(1, height, width);
        let prompts = Prompts::one(prompt.ids.clone());
        let outputs = self.network.forward(pixels, &mask, &prompts, BlockMask::Hidden)?;
        let max = self.network.max_text();
        with_values(&outputs.logits, |logits| {
            with_values(&outputs.boxes, |boxes| {
                let mut found = Vec::new();
                for (number, span) in &prompt.spans {
                    for (logits, bbox) in logits.chunks(max).zip(boxes.as_chunks::<4>().0) {
                        let highest = logits[span.clone()].iter().copied().fold(f32::NEG_INFINITY, f32::max);
                        let score = 1.0 / (1.0 + (-highest).exp());
                        if score >= min_score {
                            found.push((*number, score, *bbox));
                        }
                    }
                }
                Ok(found)
            })
        })
    }
}

/// Corners, held inside the image, of a centre and size in fractions of it; `None` where nothing is left.
pub(crate) fn corners([x, y, width, height]: [f32; 4]) -> Option<Box2d> {
    let (left, right) = (x - 0.5 * width, x + 0.5 * width);
    let (top, bottom) = (y - 0.5 * height, y + 0.5 * height);
    let [left, top, right, bottom] = [left, top, right, bottom].map(|c| c.clamp(0.0, 1.0));
    Box2d::new(left, top, right, bottom).ok().filter(|bbox| bbox.area() > 0.0)
}

impl Detector for GroundingDinoDetector {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn vocabulary(&self) -> Option<&Vocabulary> {
        None
    }

    fn detect_phrases(
        &self,
        image: &RgbImage,
        phrases: &[&str],
        options: &DetectOptions,
    ) -> Result<Vec<Detection>, ModelError> {
        options.check()?;
        let pixels = self.processor.batch(&[image])?;
        let mut of_phrase: Vec<Vec<Detection>> = phrases.iter().map(|_| Vec::new()).collect();
        for prompt in phrases::prompts(&self.tokenizer, phrases, self.network.max_text())? {
            let found = self.pairs(&pixels, &prompt, options.min_score).map_err(compute("Grounding DINO"))?;
            for (phrase, score, bbox) in found {
                let label: Arc<str> = phrases[phrase].into();
                let found = corners(bbox).map(|bbox| Detection { label, class: phrase as u32, score, bbox });
                of_phrase[phrase].extend(found);
            }
        }
        Ok(best_first(of_phrase, options.nms_iou))
    }
}

/// Candidates of each phrase, suppressed among themselves, then all of them, best first; equals by phrase, then in the
/// order given.
pub(crate) fn best_first(of_phrase: Vec<Vec<Detection>>, nms_iou: f32) -> Vec<Detection> {
    let mut kept = Vec::new();
    for mut candidates in of_phrase {
        candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
        kept.extend(suppress(candidates, nms_iou));
    }
    kept.sort_by(|a, b| b.score.total_cmp(&a.score));
    kept
}
