//! What every model that makes vectors answers.

use image::RgbImage;

use crate::ModelError;

/// A model that turns a text, an image or a sound into a vector.
///
/// A vector depends on the text, the image or the sound alone: not on what else is in the batch, nor on the threads.
pub trait Embedder: Send + Sync {
    /// Who this model is, and what its vectors are.
    fn info(&self) -> &EmbedderInfo;

    /// The vectors of `texts`, in order, [`EmbedderInfo::dims`] values each. Texts beyond the model's longest are cut.
    ///
    /// A text fails by itself: [`ModelError::Untokenized`], [`ModelError::NoModality`] for a model of images only.
    fn embed_texts(&self, texts: &[&str]) -> Vec<Result<Vec<f32>, ModelError>>;

    /// The vectors of `images` (RGB, orientation already applied), in order, [`EmbedderInfo::dims`] values each.
    ///
    /// An image fails by itself: [`ModelError::EmptyImage`], [`ModelError::ImageTooLong`],
    /// [`ModelError::NoModality`] for a model of texts only.
    fn embed_images(&self, images: &[&RgbImage]) -> Vec<Result<Vec<f32>, ModelError>>;

    /// The vectors of `waveforms` (mono, [`EmbedderInfo::sample_rate`] samples a second, full scale from −1 to 1), in order,
    /// [`EmbedderInfo::dims`] values each. Waveforms beyond the model's longest are cut.
    ///
    /// A waveform fails by itself: [`ModelError::ShortWaveform`], [`ModelError::BadSample`], [`ModelError::NoModality`] for
    /// a model that takes no sounds.
    fn embed_audio(&self, waveforms: &[&[f32]]) -> Vec<Result<Vec<f32>, ModelError>> {
        self.info().refuse("audio", waveforms.len())
    }
}

/// An embedder's identity, for cards, fingerprints, indexes and `groundloom models list`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbedderInfo {
    /// The name it was resolved by.
    pub name: String,
    /// The architecture, as `config.json` names it.
    pub architecture: String,
    /// Sha256 of the weights, in hexadecimal: of `model.safetensors`, or of its shards' digests one after the other.
    pub weights_sha256: String,
    /// SPDX identifier of the weights' licence, as the folder's model card says; `unknown` where it does not.
    pub licence: String,
    /// Length of a vector.
    pub dims: usize,
    /// Whether every vector has length 1, so that a dot product is the cosine.
    pub normalised: bool,
    /// Whether it takes texts.
    pub texts: bool,
    /// Whether it takes images.
    pub images: bool,
    /// Samples a second of the waveforms that it takes; `None` where it takes none.
    pub sample_rate: Option<u32>,
}

impl EmbedderInfo {
    /// The answer to what the model does not take (`"texts"`, `"images"`, `"audio"`).
    pub(crate) fn refuse<T>(&self, what: &'static str, count: usize) -> Vec<Result<T, ModelError>> {
        let refusal = || ModelError::NoModality { model: self.name.clone(), what };
        (0..count).map(|_| Err(refusal())).collect()
    }
}
