//! What every model that makes vectors answers.

use image::RgbImage;

use crate::ModelError;

/// A model that turns a text or an image into a vector.
///
/// A vector depends on the text or the image alone: not on what else is in the batch, nor on the threads.
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
}

impl EmbedderInfo {
    /// The answer to what the model does not take (`"texts"`, `"images"`).
    pub(crate) fn refuse<T>(&self, what: &'static str, count: usize) -> Vec<Result<T, ModelError>> {
        let refusal = || ModelError::NoModality { model: self.name.clone(), what };
        (0..count).map(|_| Err(refusal())).collect()
    }
}
