//! An embedder as work of the pool.

use std::{num::NonZeroUsize, sync::Arc};

use image::RgbImage;

use super::Work;
use crate::{Embedder, ModelError};

/// What to embed.
#[derive(Debug, Clone)]
pub enum EmbedRequest {
    /// A text.
    Text(String),
    /// An image: RGB, orientation already applied.
    Image(RgbImage),
}

/// Runs an embedder on texts and images, a batch at a time.
pub struct EmbedderWork {
    /// The model.
    pub embedder: Arc<dyn Embedder>,
}

impl Work for EmbedderWork {
    type Item = EmbedRequest;
    type Output = Vec<f32>;

    /// A window of rows: large enough to fill a pass, small enough that two threads share a shard.
    fn batch(&self) -> NonZeroUsize {
        const { NonZeroUsize::new(64).unwrap() }
    }

    fn run(&self, items: &[EmbedRequest]) -> Vec<Result<Vec<f32>, ModelError>> {
        let (mut texts, mut images) = (Vec::new(), Vec::new());
        for item in items {
            match item {
                EmbedRequest::Text(text) => texts.push(text.as_str()),
                EmbedRequest::Image(image) => images.push(image),
            }
        }
        let (mut texts, mut images) =
            (self.embedder.embed_texts(&texts).into_iter(), self.embedder.embed_images(&images).into_iter());
        items
            .iter()
            .filter_map(|item| match item {
                EmbedRequest::Text(_) => texts.next(),
                EmbedRequest::Image(_) => images.next(),
            })
            .collect()
    }
}
