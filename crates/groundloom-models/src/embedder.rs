//! What every model that makes vectors answers.

use image::{ImageBuffer, Luma, RgbImage};

use crate::ModelError;

/// An image of one channel of numbers: how far things are, how warm they are.
pub type Plane = ImageBuffer<Luma<f32>, Vec<f32>>;

/// What is turned into a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Modality {
    /// Words.
    Text,
    /// A picture in colour.
    Image,
    /// A waveform.
    Audio,
    /// Frames of a film.
    Video,
    /// How far away each pixel is.
    Depth,
    /// How warm each pixel is.
    Thermal,
    /// What an inertial sensor measured.
    Motion,
}

impl Modality {
    /// The modality in the plural, as it is named in errors and lists.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Text => "texts",
            Self::Image => "images",
            Self::Audio => "audio",
            Self::Video => "videos",
            Self::Depth => "depth maps",
            Self::Thermal => "thermal images",
            Self::Motion => "motion",
        }
    }
}

/// A model that turns a text, an image or what else it takes ([`EmbedderInfo::modalities`]) into a vector.
///
/// A vector depends on the text or the image alone: not on what else is in the batch, nor on the threads. What a model
/// does not take fails by [`ModelError::NoModality`].
pub trait Embedder: Send + Sync {
    /// Who this model is, and what its vectors are.
    fn info(&self) -> &EmbedderInfo;

    /// Whether it computes on the CPU, whatever device was asked for.
    fn stays_on_cpu(&self) -> bool {
        false
    }

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
    /// [`EmbedderInfo::dims`] values each. Of long waveforms a model sees what it was trained to see.
    ///
    /// A waveform fails by itself: [`ModelError::ShortWaveform`], [`ModelError::BadSample`].
    fn embed_audio(&self, waveforms: &[&[f32]]) -> Vec<Result<Vec<f32>, ModelError>> {
        self.info().refuse(Modality::Audio, waveforms.len())
    }

    /// The vectors of `videos`, frames (RGB, orientation already applied) in the order of time. ImageBind takes the first and
    /// the last of each two seconds; VideoMAE [`EmbedderInfo::video_frames`] of them: the released networks were trained on
    /// every second or fourth frame of a film with 25 to 30 a second.
    ///
    /// A video fails by itself: [`ModelError::WrongCount`], and as an image does.
    fn embed_videos(&self, videos: &[&[RgbImage]]) -> Vec<Result<Vec<f32>, ModelError>> {
        self.info().refuse(Modality::Video, videos.len())
    }

    /// The vectors of `maps` of disparities: the distance of two cameras in metres, times their focal length in pixels,
    /// by the distance of what they see in metres. A map fails by itself, as an image does.
    fn embed_depth(&self, maps: &[&Plane]) -> Vec<Result<Vec<f32>, ModelError>> {
        self.info().refuse(Modality::Depth, maps.len())
    }

    /// The vectors of thermal `images`, from 0 (cold) to 1 (warm). An image fails by itself.
    fn embed_thermal(&self, images: &[&Plane]) -> Vec<Result<Vec<f32>, ModelError>> {
        self.info().refuse(Modality::Thermal, images.len())
    }

    /// The vectors of `recordings` of an inertial sensor: at each moment three accelerations, then three turning rates.
    ///
    /// A recording fails by itself: [`ModelError::WrongCount`] where it has not as many moments as the model takes.
    fn embed_motion(&self, recordings: &[&[[f32; 6]]]) -> Vec<Result<Vec<f32>, ModelError>> {
        self.info().refuse(Modality::Motion, recordings.len())
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
    /// Bytes of the files that hold the weights.
    pub weights_bytes: u64,
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
    /// Frames of the videos that it takes, where it is one number.
    pub video_frames: Option<usize>,
    /// What else it takes.
    pub others: &'static [Modality],
}

impl EmbedderInfo {
    /// All that the model takes.
    pub fn modalities(&self) -> impl Iterator<Item = Modality> + '_ {
        let [text, image, audio] = [
            self.texts.then_some(Modality::Text),
            self.images.then_some(Modality::Image),
            self.sample_rate.map(|_| Modality::Audio),
        ];
        text.into_iter().chain(image).chain(audio).chain(self.others.iter().copied())
    }

    /// The answer to what the model does not take.
    pub(crate) fn refuse<T>(&self, what: Modality, count: usize) -> Vec<Result<T, ModelError>> {
        let refusal = || ModelError::NoModality { model: self.name.clone(), what: what.plural() };
        (0..count).map(|_| Err(refusal())).collect()
    }
}
