//! A detector as work of the pool.

use std::sync::Arc;

use image::RgbImage;

use super::Work;
use crate::{DetectOptions, Detection, Detector, ModelError};

/// One image, and what to look for.
#[derive(Debug, Clone)]
pub struct DetectRequest {
    /// RGB, orientation already applied.
    pub image: RgbImage,
    /// Which detections to keep.
    pub options: DetectOptions,
}

/// Runs a detector on images, each by itself.
pub struct DetectorWork {
    /// The model.
    pub detector: Arc<dyn Detector>,
}

impl Work for DetectorWork {
    type Item = DetectRequest;
    type Output = Vec<Detection>;

    fn weights_bytes(&self) -> u64 {
        self.detector.info().weights_bytes
    }

    fn stays_on_cpu(&self) -> bool {
        self.detector.stays_on_cpu()
    }

    fn run(&self, items: &[DetectRequest]) -> Vec<Result<Vec<Detection>, ModelError>> {
        items.iter().map(|item| self.detector.detect(&item.image, &item.options)).collect()
    }
}
