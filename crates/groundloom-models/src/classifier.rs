//! What every model that sorts images into classes answers.

use std::sync::Arc;

use image::RgbImage;

use crate::{EmbedderInfo, ModelError, image_processor::ImageProcessor, layers::compute, vit::VisionTransformer};

/// A model that sorts images into classes that it was trained on.
///
/// An answer depends on the image alone: not on what else is in the batch, nor on the threads.
pub trait Classifier: Send + Sync {
    /// The model's identity; what it says of vectors is that of the network's features.
    fn info(&self) -> &EmbedderInfo;

    /// The classes, by number.
    fn labels(&self) -> &[Arc<str>];

    /// The probability of each class, in the order of [`Classifier::labels`], for each of `images` (RGB, orientation
    /// already applied); they sum to 1.
    ///
    /// An image fails by itself: [`ModelError::EmptyImage`], [`ModelError::ImageTooLong`].
    fn classify(&self, images: &[&RgbImage]) -> Vec<Result<Vec<f32>, ModelError>>;
}

/// ViT, DINOv2 or BEiT with a layer of classes.
pub(crate) struct VisionClassifier {
    pub(crate) info: EmbedderInfo,
    pub(crate) network: VisionTransformer,
    pub(crate) processor: ImageProcessor,
}

impl Classifier for VisionClassifier {
    fn info(&self) -> &EmbedderInfo {
        &self.info
    }

    fn labels(&self) -> &[Arc<str>] {
        self.network.labels()
    }

    fn classify(&self, images: &[&RgbImage]) -> Vec<Result<Vec<f32>, ModelError>> {
        crate::embedders::in_image_batches(images, &self.processor, |pixels| {
            let run = || -> candle_core::Result<Vec<Vec<f32>>> {
                let tokens = self.network.forward(pixels, &mut |_| ())?;
                let logits = self.network.logits(&tokens)?;
                logits.map_or(Ok(Vec::new()), |logits| logits.to_vec2())
            };
            let logits = run().map_err(compute("the vision transformer"))?;
            Ok(logits.into_iter().map(probabilities).collect())
        })
    }
}

/// Softmax, in double precision.
fn probabilities(logits: Vec<f32>) -> Vec<f32> {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let odds: Vec<f64> = logits.into_iter().map(|x| f64::from(x - greatest).exp()).collect();
    let whole: f64 = odds.iter().sum();
    odds.into_iter().map(|x| (x / whole) as f32).collect()
}
