//! OWL-ViT and OWLv2: every patch of an image with a box, compared with each phrase by itself, or with another image.
//!
//! Reference: transformers' `modeling_owlvit.py`, `modeling_owlv2.py` and their processors.

mod network;
pub(crate) mod replay;
mod resize;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use candle_core::{Device, Tensor};
use groundloom_data::{Box2d, Filter};
use image::RgbImage;

use crate::{
    Classes, DetectOptions, Detection, Detector, ModelError, ModelInfo, Vocabulary,
    clip::IMAGE_DEFAULTS as CLIP_DEFAULTS,
    config::Config,
    family::Family,
    folder::ModelFolder,
    grounding_dino::{best_first, corners},
    image_processor::{ImageDefaults, ImageProcessor},
    layers::{compute, with_values},
    text_tokenizer::{Padding, TextTokenizer, Tokens},
    weights::Weights,
};
use network::{Owl, Queries};
use resize::Floats;

/// Which of the two networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Generation {
    /// OWL-ViT.
    First,
    /// OWLv2.
    Second,
}

/// What an `OwlViTImageProcessor` does where its file is silent.
const IMAGE_DEFAULTS: ImageDefaults = ImageDefaults { crop: false, ..CLIP_DEFAULTS };

/// The detector of a folder.
pub(crate) struct OwlDetector {
    info: ModelInfo,
    network: Owl,
    pixels: Pixels,
    tokenizer: TextTokenizer,
}

/// From images to the network's square.
enum Pixels {
    /// OWL-ViT: squeezed to the square.
    Squeezed(ImageProcessor),
    /// OWLv2: made square with black below or right, and then resized.
    Padded { processor: ImageProcessor, size: (usize, usize) },
}

impl OwlDetector {
    /// Loads `config.json`, `model.safetensors`, `preprocessor_config.json` and `tokenizer.json`, for a network on `device`.
    ///
    /// # Errors
    /// What is missing, wrong or not supported in them.
    pub(crate) fn load(
        name: &str,
        folder: &ModelFolder,
        generation: Generation,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let second = generation == Generation::Second;
        let weights = Weights::open(folder)?.on(device);
        let network = Owl::load(&Config::open(folder)?, &weights, second)?;
        let side = network.vision.config.image_size;
        let file = Config::read(folder, "preprocessor_config.json")?;
        let defaults =
            if second { ImageDefaults { filter: Filter::Bilinear, ..IMAGE_DEFAULTS } } else { IMAGE_DEFAULTS };
        file.only("do_pad", second)?;
        // An early name of `do_rescale`.
        file.only("rescale", true)?;
        let processor = ImageProcessor::read(&file, defaults)?;
        file.finish()?;
        let size = processor.fixed_size().map(|(width, height)| (width as usize, height as usize));
        if size != Some((side, side)) {
            let found = size.map_or("any size".to_owned(), |(width, height)| format!("{width}×{height}"));
            return Err(file.bad("size", format!("{side}×{side} pixels, as config.json says"), found));
        }
        let pixels = match second {
            true => Pixels::Padded { processor, size: (side, side) },
            false => Pixels::Squeezed(processor),
        };
        let positions = network.text.config.positions;
        let tokenizer = TextTokenizer::open(folder, positions, |pad| Padding::MaxLength(pad.unwrap_or(0)))?;
        let info = ModelInfo {
            name: name.to_owned(),
            architecture: Family::Owl(generation).name(),
            weights_sha256: weights.sha256().to_owned(),
            weights_bytes: weights.file_bytes(),
            licence: folder.licence(),
            classes: Classes::Open,
        };
        Ok(Self { info, network, pixels, tokenizer })
    }

    /// `[1, 3, size, size]`.
    fn pixels(&self, image: &RgbImage) -> Result<Tensor, ModelError> {
        match &self.pixels {
            Pixels::Squeezed(processor) => processor.batch(&[image]),
            Pixels::Padded { processor, size } => {
                let (width, height) = (image.width() as usize, image.height() as usize);
                let side = width.max(height);
                if width == 0 || height == 0 {
                    return Err(ModelError::EmptyImage { width: image.width(), height: image.height() });
                }
                let mut values = vec![0.0; side * side * 3];
                for (line, from) in values.chunks_mut(side * 3).zip(image.as_raw().chunks(width * 3)) {
                    for (to, byte) in line.iter_mut().zip(from) {
                        *to = processor.rescaled(*byte);
                    }
                }
                let resized = Floats { height: side, width: side, values }.resized(size.1, size.0);
                let plane = size.0 * size.1;
                let mut planes = vec![0.0; 3 * plane];
                for (at, pixel) in resized.values.chunks(3).enumerate() {
                    for (channel, value) in pixel.iter().enumerate() {
                        planes[channel * plane + at] = processor.normalised(channel, *value);
                    }
                }
                Tensor::from_vec(planes, (1, 3, size.1, size.0), &Device::Cpu).map_err(compute("the pixels"))
            }
        }
    }

    /// What a box's fractions are multiplied by to be fractions of the image's width and height.
    fn stretch(&self, image: &RgbImage) -> (f32, f32) {
        let (width, height) = (image.width() as f32, image.height() as f32);
        match self.pixels {
            Pixels::Squeezed(_) => (1.0, 1.0),
            Pixels::Padded { .. } => (width.max(height) / width, width.max(height) / height),
        }
    }

    /// Embeddings of phrases, `[1, phrases, width]`.
    fn read(&self, phrases: &[&str]) -> Result<Queries, ModelError> {
        let tokens: Vec<Tokens> =
            phrases.iter().map(|phrase| self.tokenizer.encode(phrase)).collect::<Result<_, _>>()?;
        let batch = self.tokenizer.pad(&tokens.iter().collect::<Vec<_>>())?;
        let embeddings = self.network.read(&batch.ids, &batch.mask).and_then(|rows| rows.unsqueeze(0));
        Ok(Queries { embeddings: embeddings.map_err(compute("the phrases"))?, real: None })
    }

    /// Every pair of a patch and a query whose score is at least `min_score`, by query.
    fn pairs(&self, image: &RgbImage, queries: &Queries, min_score: f32) -> Result<Vec<Vec<(f32, Box2d)>>, ModelError> {
        let pixels = self.pixels(image)?;
        let (across, down) = self.stretch(image);
        let run = || -> candle_core::Result<_> {
            let features = self.network.features(&pixels, &mut |_| ())?;
            let (logits, _) = self.network.compare(&features, queries)?;
            let boxes = self.network.boxes(&features)?;
            let count = logits.dim(2)?;
            with_values(&logits, |logits| {
                with_values(&boxes, |boxes| {
                    let mut found: Vec<Vec<(f32, Box2d)>> = vec![Vec::new(); count];
                    for (logits, [x, y, w, h]) in logits.chunks(count).zip(boxes.as_chunks::<4>().0) {
                        for (query, logit) in logits.iter().enumerate() {
                            let score = 1.0 / (1.0 + (-logit).exp());
                            let bbox = corners([x * across, y * down, w * across, h * down]);
                            if let Some(bbox) = bbox.filter(|_| score >= min_score) {
                                found[query].push((score, bbox));
                            }
                        }
                    }
                    Ok(found)
                })
            })
        };
        run().map_err(compute("OWL"))
    }
}

impl Detector for OwlDetector {
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
        // An empty phrase would be a query all the same.
        let asked: Vec<usize> = (0..phrases.len()).filter(|&at| !phrases[at].trim().is_empty()).collect();
        let mut of_phrase: Vec<Vec<Detection>> = phrases.iter().map(|_| Vec::new()).collect();
        if !asked.is_empty() {
            let texts: Vec<&str> = asked.iter().map(|&at| phrases[at]).collect();
            let found = self.pairs(image, &self.read(&texts)?, options.min_score)?;
            for (&phrase, found) in asked.iter().zip(found) {
                let label: Arc<str> = phrases[phrase].into();
                let detection = |(score, bbox)| Detection { label: label.clone(), class: phrase as u32, score, bbox };
                of_phrase[phrase] = found.into_iter().map(detection).collect();
            }
        }
        Ok(best_first(of_phrase, options.nms_iou))
    }

    fn detect_like(
        &self,
        image: &RgbImage,
        example: &RgbImage,
        options: &DetectOptions,
    ) -> Result<Vec<Detection>, ModelError> {
        options.check()?;
        let pixels = self.pixels(example)?;
        let query = || -> candle_core::Result<Queries> {
            let features = self.network.features(&pixels, &mut |_| ())?;
            self.network.query_of(&features, &self.network.boxes(&features)?)
        };
        let found = self.pairs(image, &query().map_err(compute("OWL"))?, options.min_score)?;
        let label: Arc<str> = "example".into();
        let detection = |(score, bbox)| Detection { label: label.clone(), class: 0, score, bbox };
        Ok(best_first(found.into_iter().map(|one| one.into_iter().map(detection).collect()).collect(), options.nms_iou))
    }
}
