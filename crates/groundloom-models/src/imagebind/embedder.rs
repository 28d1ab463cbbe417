//! ImageBind as an embedder.

use candle_core::Tensor;
use image::RgbImage;

use super::{ImageBind, Tower, inputs, inputs::Spectra};
use crate::{
    ModelError,
    embedder::{Embedder, EmbedderInfo, Modality, Plane},
    embedders::{in_image_batches, in_text_batches},
    image_processor::ImageProcessor,
    layers::{compute, normalise},
    text_tokenizer::TextTokenizer,
};

/// What is taken besides texts, images and audio.
pub(crate) const OTHERS: &[Modality] = &[Modality::Video, Modality::Depth, Modality::Thermal, Modality::Motion];

/// Everything in one space. The vectors have length 1: the reference's own are longer by a factor of each modality.
///
/// A film comes in twos of frames, the first and the last of stretches of two seconds (the reference takes five stretches,
/// evenly spread); each two is seen at three places, and the vector is the mean of all.
pub(crate) struct ImageBindEmbedder {
    pub(crate) info: EmbedderInfo,
    pub(crate) network: ImageBind,
    pub(crate) processor: ImageProcessor,
    pub(crate) tokenizer: TextTokenizer,
    pub(crate) spectra: Spectra,
}

/// The vector of one thing that was seen in several parts, `[parts, …]`: the mean of theirs, normalised.
fn mean(tower: &Tower, parts: &Tensor, name: &'static str) -> Result<Vec<f32>, ModelError> {
    let run = || normalise(&normalise(&tower.forward(parts)?)?.mean(0)?)?.to_vec1();
    run().map_err(compute(name))
}

impl Embedder for ImageBindEmbedder {
    fn info(&self) -> &EmbedderInfo {
        &self.info
    }

    fn embed_texts(&self, texts: &[&str]) -> Vec<Result<Vec<f32>, ModelError>> {
        let read = |text: &str| self.tokenizer.encode(text);
        in_text_batches(texts, read, |tokens| {
            let ids = self.tokenizer.pad(tokens)?.ids;
            let run = || normalise(&self.network.text.forward(&ids)?)?.to_vec2();
            run().map_err(compute("the text tower"))
        })
    }

    fn embed_images(&self, images: &[&RgbImage]) -> Vec<Result<Vec<f32>, ModelError>> {
        in_image_batches(images, &self.processor, |pixels| {
            let run = || normalise(&self.network.vision.forward(&inputs::still(pixels)?)?)?.to_vec2();
            run().map_err(compute("the vision tower"))
        })
    }

    fn embed_audio(&self, waveforms: &[&[f32]]) -> Vec<Result<Vec<f32>, ModelError>> {
        let one = |waveform: &&[f32]| mean(&self.network.audio, &self.spectra.of(waveform)?, "the audio tower");
        waveforms.iter().map(one).collect()
    }

    fn embed_videos(&self, videos: &[&[RgbImage]]) -> Vec<Result<Vec<f32>, ModelError>> {
        let one = |frames: &&[RgbImage]| {
            if frames.is_empty() || !frames.len().is_multiple_of(2) {
                let expected = "frames in twos: the first and the last of each two seconds".to_owned();
                return Err(ModelError::WrongCount { expected, found: frames.len() });
            }
            let crops = |two: &[RgbImage]| inputs::crops(&self.processor, [&two[0], &two[1]]);
            let crops = frames.chunks_exact(2).map(crops).collect::<Result<Vec<_>, _>>()?;
            let crops = Tensor::cat(&crops, 0).map_err(compute("the frames of a film"))?;
            mean(&self.network.vision, &crops, "the vision tower")
        };
        videos.iter().map(one).collect()
    }

    fn embed_depth(&self, maps: &[&Plane]) -> Vec<Result<Vec<f32>, ModelError>> {
        maps.iter().map(|map| mean(&self.network.depth, &inputs::depth(map)?, "the depth tower")).collect()
    }

    fn embed_thermal(&self, images: &[&Plane]) -> Vec<Result<Vec<f32>, ModelError>> {
        images.iter().map(|image| mean(&self.network.thermal, &inputs::thermal(image)?, "the thermal tower")).collect()
    }

    fn embed_motion(&self, recordings: &[&[[f32; 6]]]) -> Vec<Result<Vec<f32>, ModelError>> {
        let one = |moments: &&[[f32; 6]]| mean(&self.network.motion, &inputs::motion(moments)?, "the motion tower");
        recordings.iter().map(one).collect()
    }
}
