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
    /// A waveform, as [`Embedder::embed_audio`] takes it.
    Audio(Vec<f32>),
}

/// Runs an embedder on texts, images and sounds, a batch at a time.
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

    fn weights_bytes(&self) -> u64 {
        self.embedder.info().weights_bytes
    }

    fn stays_on_cpu(&self) -> bool {
        self.embedder.stays_on_cpu()
    }

    fn run(&self, items: &[EmbedRequest]) -> Vec<Result<Vec<f32>, ModelError>> {
        let (mut texts, mut images, mut sounds) = (Vec::new(), Vec::new(), Vec::new());
        for item in items {
            match item {
                EmbedRequest::Text(text) => texts.push(text.as_str()),
                EmbedRequest::Image(image) => images.push(image),
                EmbedRequest::Audio(waveform) => sounds.push(waveform.as_slice()),
            }
        }
        let (mut texts, mut images) =
            (self.embedder.embed_texts(&texts).into_iter(), self.embedder.embed_images(&images).into_iter());
        let mut sounds = self.embedder.embed_audio(&sounds).into_iter();
        items
            .iter()
            .filter_map(|item| match item {
                EmbedRequest::Text(_) => texts.next(),
                EmbedRequest::Image(_) => images.next(),
                EmbedRequest::Audio(_) => sounds.next(),
            })
            .collect()
    }
}
