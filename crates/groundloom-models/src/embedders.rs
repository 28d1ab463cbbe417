//! Embedders of a network, its processor and its tokenizer.

use candle_core::Tensor;
use image::RgbImage;
use rayon::prelude::*;

use crate::{
    ModelError,
    clip::Clip,
    embedder::{Embedder, EmbedderInfo, Modality},
    image_processor::ImageProcessor,
    layers::{compute, normalise},
    naflex::{PatchProcessor, Siglip2},
    sentence::SentenceEncoder,
    siglip::Siglip,
    ssd::SsdMobileNetV2,
    text_tokenizer::{TextTokenizer, Tokens},
    vit::VisionTransformer,
};

/// Tokens of one pass, padding among them: enough to fill the cores, few enough that the activations stay small.
const TOKENS: usize = 4096;
/// Images of one pass.
const IMAGES: usize = 32;

/// A network of two towers. Inputs are pixels `[n, 3, height, width]` and token ids `[n, length]`; outputs are
/// `[n, dims]`, not normalised.
pub(crate) trait Towers: Send + Sync {
    fn images(&self, pixels: &Tensor) -> candle_core::Result<Tensor>;
    fn texts(&self, ids: &Tensor) -> candle_core::Result<Tensor>;
}

impl Towers for Clip {
    fn images(&self, pixels: &Tensor) -> candle_core::Result<Tensor> {
        self.images(pixels)
    }

    fn texts(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        self.texts(ids)
    }
}

impl Towers for Siglip {
    fn images(&self, pixels: &Tensor) -> candle_core::Result<Tensor> {
        self.images(pixels)
    }

    fn texts(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        self.texts(ids)
    }
}

/// Images and texts in one space; the vectors have length 1.
pub(crate) struct DualEmbedder<N> {
    pub(crate) info: EmbedderInfo,
    pub(crate) network: N,
    pub(crate) processor: ImageProcessor,
    pub(crate) tokenizer: TextTokenizer,
}

impl<N: Towers> Embedder for DualEmbedder<N> {
    fn info(&self) -> &EmbedderInfo {
        &self.info
    }

    fn embed_texts(&self, texts: &[&str]) -> Vec<Result<Vec<f32>, ModelError>> {
        let read = |text: &str| self.tokenizer.encode(text);
        in_text_batches(texts, read, |tokens| {
            let ids = self.tokenizer.pad(tokens)?.ids;
            self.network.texts(&ids).and_then(|x| normalise(&x)?.to_vec2()).map_err(compute("the text tower"))
        })
    }

    fn embed_images(&self, images: &[&RgbImage]) -> Vec<Result<Vec<f32>, ModelError>> {
        in_image_batches(images, &self.processor, |pixels| {
            self.network.images(pixels).and_then(|x| normalise(&x)?.to_vec2()).map_err(compute("the vision tower"))
        })
    }
}

/// Images of any aspect ratio and texts in one space; the vectors have length 1.
pub(crate) struct PatchEmbedder {
    pub(crate) info: EmbedderInfo,
    pub(crate) network: Siglip2,
    pub(crate) processor: PatchProcessor,
    pub(crate) tokenizer: TextTokenizer,
}

impl Embedder for PatchEmbedder {
    fn info(&self) -> &EmbedderInfo {
        &self.info
    }

    fn embed_texts(&self, texts: &[&str]) -> Vec<Result<Vec<f32>, ModelError>> {
        let read = |text: &str| self.tokenizer.encode(text);
        in_text_batches(texts, read, |tokens| {
            let ids = self.tokenizer.pad(tokens)?.ids;
            self.network.texts(&ids).and_then(|x| normalise(&x)?.to_vec2()).map_err(compute("the text tower"))
        })
    }

    fn embed_images(&self, images: &[&RgbImage]) -> Vec<Result<Vec<f32>, ModelError>> {
        let empty = |image: &RgbImage| ModelError::EmptyImage { width: image.width(), height: image.height() };
        let mut answers: Vec<_> = images.iter().map(|image| Err(empty(image))).collect();
        let good: Vec<usize> = (0..images.len()).filter(|&i| images[i].width() > 0 && images[i].height() > 0).collect();
        for places in good.chunks(IMAGES) {
            let batch: Vec<&RgbImage> = places.iter().map(|&i| images[i]).collect();
            let vectors = self.processor.batch(&batch).and_then(|batch| {
                let vectors = self.network.images(&batch).and_then(|x| normalise(&x)?.to_vec2());
                vectors.map_err(compute("the vision tower"))
            });
            settle(places, vectors, &mut answers);
        }
        answers
    }
}

/// Sentences.
pub(crate) struct SentenceEmbedder {
    pub(crate) info: EmbedderInfo,
    pub(crate) encoder: SentenceEncoder,
}

impl Embedder for SentenceEmbedder {
    fn info(&self) -> &EmbedderInfo {
        &self.info
    }

    fn embed_texts(&self, texts: &[&str]) -> Vec<Result<Vec<f32>, ModelError>> {
        in_text_batches(
            texts,
            |text| self.encoder.tokens(text),
            |tokens| self.encoder.embed(tokens)?.to_vec2().map_err(compute("the sentence encoder")),
        )
    }

    fn embed_images(&self, images: &[&RgbImage]) -> Vec<Result<Vec<f32>, ModelError>> {
        self.info.refuse(Modality::Image, images.len())
    }
}

/// Features of images.
pub(crate) struct VisionEmbedder {
    pub(crate) info: EmbedderInfo,
    pub(crate) network: VisionTransformer,
    pub(crate) processor: ImageProcessor,
}

impl Embedder for VisionEmbedder {
    fn info(&self) -> &EmbedderInfo {
        &self.info
    }

    fn embed_texts(&self, texts: &[&str]) -> Vec<Result<Vec<f32>, ModelError>> {
        self.info.refuse(Modality::Text, texts.len())
    }

    fn embed_images(&self, images: &[&RgbImage]) -> Vec<Result<Vec<f32>, ModelError>> {
        in_image_batches(images, &self.processor, |pixels| {
            let tokens = self.network.forward(pixels, &mut |_| ());
            let pooled = tokens.and_then(|tokens| self.network.pooled(&tokens)?.to_vec2());
            pooled.map_err(compute("the vision transformer"))
        })
    }
}

/// The features behind a detector.
pub(crate) struct SsdEmbedder {
    pub(crate) info: EmbedderInfo,
    pub(crate) network: SsdMobileNetV2,
}

impl Embedder for SsdEmbedder {
    fn info(&self) -> &EmbedderInfo {
        &self.info
    }

    fn stays_on_cpu(&self) -> bool {
        true
    }

    fn embed_texts(&self, texts: &[&str]) -> Vec<Result<Vec<f32>, ModelError>> {
        self.info.refuse(Modality::Text, texts.len())
    }

    fn embed_images(&self, images: &[&RgbImage]) -> Vec<Result<Vec<f32>, ModelError>> {
        images.par_iter().map(|image| self.network.features(image)).collect()
    }
}

/// Reads `texts`, and runs them in batches of similar length, so that little of a batch is padding; answers in their
/// order. A text that cannot be read fails by itself; a batch that cannot be computed fails its texts.
pub(crate) fn in_text_batches(
    texts: &[&str],
    read: impl Fn(&str) -> Result<Tokens, ModelError> + Sync,
    run: impl Fn(&[&Tokens]) -> Result<Vec<Vec<f32>>, ModelError>,
) -> Vec<Result<Vec<f32>, ModelError>> {
    let tokens: Vec<_> = texts.par_iter().map(|text| read(text)).collect();
    let mut order: Vec<usize> = (0..texts.len()).filter(|&i| tokens[i].is_ok()).collect();
    let length = |i: usize| tokens[i].as_ref().map_or(0, |tokens| tokens.ids.len());
    order.sort_by_key(|&i| length(i));
    let mut answers: Vec<Result<Vec<f32>, ModelError>> =
        tokens.iter().map(|tokens| tokens.as_ref().map(|_| Vec::new()).map_err(Clone::clone)).collect();
    let mut rest = order.as_slice();
    while !rest.is_empty() {
        // The longest of a batch is its last.
        let fits = |&count: &usize| count == 1 || count * length(rest[count - 1]) <= TOKENS;
        let count = (1..=rest.len()).take_while(fits).last().unwrap_or(1);
        let (batch, later) = rest.split_at(count);
        rest = later;
        let inputs: Vec<&Tokens> = batch.iter().filter_map(|&i| tokens[i].as_ref().ok()).collect();
        settle(batch, run(&inputs), &mut answers);
    }
    answers
}

/// Resizes `images` and runs them in batches; answers in their order. An image that cannot be resized fails by itself.
pub(crate) fn in_image_batches(
    images: &[&RgbImage],
    processor: &ImageProcessor,
    run: impl Fn(&Tensor) -> Result<Vec<Vec<f32>>, ModelError>,
) -> Vec<Result<Vec<f32>, ModelError>> {
    let mut answers = Vec::with_capacity(images.len());
    for images in images.chunks(IMAGES) {
        let placed: Vec<_> = images.par_iter().map(|image| processor.place(image)).collect();
        let mut part: Vec<_> =
            placed.iter().map(|image| image.as_ref().map(|_| Vec::new()).map_err(Clone::clone)).collect();
        let (good, placed): (Vec<usize>, Vec<RgbImage>) =
            placed.into_iter().enumerate().filter_map(|(i, image)| image.ok().map(|image| (i, image))).unzip();
        if !good.is_empty() {
            settle(&good, processor.stack(&placed).and_then(|pixels| run(&pixels)), &mut part);
        }
        answers.extend(part);
    }
    answers
}

/// Puts the vectors of a batch in their places.
fn settle(places: &[usize], vectors: Result<Vec<Vec<f32>>, ModelError>, answers: &mut [Result<Vec<f32>, ModelError>]) {
    match vectors {
        Ok(vectors) => places.iter().zip(vectors).for_each(|(&i, vector)| answers[i] = Ok(vector)),
        Err(error) => places.iter().for_each(|&i| answers[i] = Err(error.clone())),
    }
}
