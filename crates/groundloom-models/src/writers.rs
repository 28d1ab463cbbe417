//! What models that write and judge texts answer: captions, matches of images and texts, continuations, probabilities.

use candle_core::Tensor;
use groundloom_data::{Box2d, CharSpan};
use image::RgbImage;
use rayon::prelude::*;

use crate::{
    ModelError,
    blip::BlipMatch,
    decoder::Past,
    generation::Generation,
    image_processor::ImageProcessor,
    language_model::{LanguageModel, continue_behind, row},
    layers::compute,
    t5::T5,
    text_tokenizer::TextTokenizer,
    writing::{Writing, Written, log_probability},
};

/// Who a model is, for cards and fingerprints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelIdentity {
    /// The name it was resolved by.
    pub name: String,
    /// The architecture, as `config.json` names it.
    pub architecture: String,
    /// Sha256 of the weights, in hexadecimal: of `model.safetensors`, or of its shards' digests one after the other.
    pub weights_sha256: String,
    /// Bytes of the files that hold the weights.
    pub weights_bytes: u64,
    /// Sha256 of `generation_config.json` in hexadecimal, where the folder has one: it decides texts too.
    pub generation_sha256: Option<String>,
    /// SPDX identifier of the weights' licence, as the folder's model card says; `unknown` where it does not.
    pub licence: String,
}

/// A text that a model wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct WrittenText {
    /// The text, without the prompt and without special tokens.
    pub text: String,
    /// How many tokens were written, the one that ended the text among them.
    pub tokens: usize,
    /// Natural logarithm of the probability of these tokens under the model itself, whatever chose them.
    pub log_probability: f64,
}

/// How captions are written.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CaptionOptions {
    /// What the caption goes on from: "a picture of", or a question; empty for none. LLaVA is asked a question; what holds
    /// its `<image>` already is taken as it is.
    pub prompt: String,
    /// How the tokens behind it are chosen.
    pub writing: Writing,
}

/// A model that says what an image shows.
pub trait Captioner: Send + Sync {
    /// Who this model is.
    fn info(&self) -> &ModelIdentity;

    /// A caption of each of `images` (RGB, orientation already applied), which come with the seeds of their draws. It
    /// depends on the image, its seed and the options alone.
    ///
    /// An image fails by itself: [`ModelError::EmptyImage`], [`ModelError::ImageTooLong`]; all fail by options that are
    /// wrong: [`ModelError::BadWriting`], [`ModelError::NoRoom`], [`ModelError::Untokenized`].
    fn caption(&self, images: &[(&RgbImage, u64)], options: &CaptionOptions) -> Vec<Result<WrittenText, ModelError>> {
        let options = CaptionOptions { prompt: options.prompt.clone(), writing: self.filled(&options.writing) };
        images.par_iter().map(|(image, seed)| self.describe(image, *seed, &options)).collect()
    }

    /// `asked`, with what the model's folder says where it leaves something open.
    fn filled(&self, asked: &Writing) -> Writing;

    /// The caption of one image; the options are [`Captioner::filled`].
    ///
    /// # Errors
    /// Those of [`Captioner::caption`].
    fn describe(&self, image: &RgbImage, seed: u64, options: &CaptionOptions) -> Result<WrittenText, ModelError>;
}

/// A caption that says where in the image its phrases are.
#[derive(Debug, Clone, PartialEq)]
pub struct GroundedCaption {
    /// The text, the prompt's words before it.
    pub caption: WrittenText,
    /// The phrases that have a place, in the order of the text.
    pub phrases: Vec<GroundedPhrase>,
}

/// A phrase of a text and where it is seen.
#[derive(Debug, Clone, PartialEq)]
pub struct GroundedPhrase {
    /// Its words.
    pub phrase: String,
    /// Its place in the text, in characters.
    pub span: CharSpan,
    /// Its boxes.
    pub boxes: Vec<Box2d>,
}

/// A captioner that says where in the image its phrases are.
pub trait GroundedCaptioner: Captioner {
    /// As [`Captioner::caption`], with places.
    fn ground(&self, images: &[(&RgbImage, u64)], options: &CaptionOptions)
    -> Vec<Result<GroundedCaption, ModelError>>;
}

/// A model that says whether a text fits an image.
pub trait Matcher: Send + Sync {
    /// Who this model is.
    fn info(&self) -> &ModelIdentity;

    /// The probability that the text fits the image, for each pair, by the layers that look at both. Texts beyond the
    /// model's longest are cut. A pair fails by itself, as in [`Captioner::caption`].
    fn matches(&self, pairs: &[(&RgbImage, &str)]) -> Vec<Result<f32, ModelError>>;

    /// The cosine between the vectors of image and text, each looked at by itself; otherwise as [`Matcher::matches`].
    fn cosines(&self, pairs: &[(&RgbImage, &str)]) -> Vec<Result<f32, ModelError>>;
}

/// A model that writes texts from texts.
pub trait Generator: Send + Sync {
    /// Who this model is.
    fn info(&self) -> &ModelIdentity;

    /// What follows each of `texts`, which come with the seeds of their draws: an answer (T5) or a continuation (GPT-2,
    /// OPT). What T5 answers to is cut to the longest that its tokenizer's file names. A text fails by itself:
    /// [`ModelError::Untokenized`], [`ModelError::NoRoom`]; all fail by [`ModelError::BadWriting`].
    fn generate(&self, texts: &[(&str, u64)], writing: &Writing) -> Vec<Result<WrittenText, ModelError>>;
}

/// How probable a text is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TextScore {
    /// Tokens that were judged.
    pub tokens: usize,
    /// Natural logarithm of the probability of all of them, each behind those before it; the first behind the token that
    /// begins texts.
    pub log_probability: f64,
    /// The inverse of a token's probability in the geometric mean: e to the power of −log_probability / tokens.
    pub perplexity: f64,
}

/// A model that says how probable a text is.
pub trait TextScorer: Send + Sync {
    /// Who this model is.
    fn info(&self) -> &ModelIdentity;

    /// The probability of each of `texts`. Of a text beyond the model's longest, its beginning is judged. A text fails by
    /// itself: [`ModelError::Untokenized`], [`ModelError::EmptyText`].
    fn score(&self, texts: &[&str]) -> Vec<Result<TextScore, ModelError>>;
}

/// A text, from what was written.
pub(crate) fn text_of(tokenizer: &TextTokenizer, written: &Written, end: u32) -> Result<WrittenText, ModelError> {
    Ok(WrittenText {
        text: tokenizer.decode(written.words(end))?.trim().to_owned(),
        tokens: written.ids.len(),
        log_probability: written.log_probability,
    })
}

/// BLIP for retrieval.
pub(crate) struct BlipMatcher {
    pub(crate) info: ModelIdentity,
    pub(crate) network: BlipMatch,
    pub(crate) processor: ImageProcessor,
    pub(crate) tokenizer: TextTokenizer,
}

impl BlipMatcher {
    /// Runs `f` on the image's tokens, and the text's ids and mask, of each pair by itself.
    fn each_pair(
        &self,
        pairs: &[(&RgbImage, &str)],
        f: impl Fn(&Tensor, &Tensor, &Tensor) -> candle_core::Result<f32> + Sync,
    ) -> Vec<Result<f32, ModelError>> {
        let one = |&(image, text): &(&RgbImage, &str)| {
            let pixels = self.processor.batch(&[image])?;
            let tokens = self.tokenizer.encode(text)?;
            let batch = self.tokenizer.pad(&[&tokens])?;
            let run = || f(&self.network.vision.forward(&pixels, &mut |_| ())?, &batch.ids, &batch.mask);
            run().map_err(compute("BLIP"))
        };
        pairs.par_iter().map(one).collect()
    }
}

impl Matcher for BlipMatcher {
    fn info(&self) -> &ModelIdentity {
        &self.info
    }

    fn matches(&self, pairs: &[(&RgbImage, &str)]) -> Vec<Result<f32, ModelError>> {
        self.each_pair(pairs, |image, ids, mask| {
            let memory = self.network.text.remember(image)?;
            let values = self.network.match_logits(ids, mask, &memory)?.flatten_all()?.to_vec1::<f32>()?;
            Ok(log_probability(&values, 1).exp() as f32)
        })
    }

    fn cosines(&self, pairs: &[(&RgbImage, &str)]) -> Vec<Result<f32, ModelError>> {
        self.each_pair(pairs, |image, ids, mask| {
            let values = |x: Tensor| x.flatten_all()?.to_vec1::<f32>();
            let image = values(self.network.image_vectors(image)?)?;
            let text = values(self.network.text_vectors(ids, mask)?)?;
            let dot: f64 = image.iter().zip(&text).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            Ok(dot.clamp(-1.0, 1.0) as f32)
        })
    }
}

/// T5.
pub(crate) struct T5Generator {
    pub(crate) info: ModelIdentity,
    pub(crate) network: T5,
    pub(crate) tokenizer: TextTokenizer,
    pub(crate) generation: Generation,
}

impl T5Generator {
    /// Writes the answer to the tokens `ids`.
    pub(crate) fn write(
        &self,
        ids: &[u32],
        writing: &Writing,
        seed: u64,
        each: &mut dyn FnMut(&[f32]),
    ) -> Result<Written, ModelError> {
        let vectors = row(ids).and_then(|ids| self.network.embed(&ids)).map_err(compute("a text's vectors"))?;
        self.network.answer(vectors, writing, seed, each)
    }
}

impl Generator for T5Generator {
    fn info(&self) -> &ModelIdentity {
        &self.info
    }

    fn generate(&self, texts: &[(&str, u64)], writing: &Writing) -> Vec<Result<WrittenText, ModelError>> {
        let writing = self.generation.fill(writing);
        let one = |&(text, seed): &(&str, u64)| {
            let written = self.write(&self.tokenizer.encode(text)?.ids, &writing, seed, &mut |_| ())?;
            text_of(&self.tokenizer, &written, self.network.end)
        };
        texts.par_iter().map(one).collect()
    }
}

/// GPT-2, OPT.
pub(crate) struct TextModel {
    pub(crate) info: ModelIdentity,
    pub(crate) network: Box<dyn LanguageModel>,
    pub(crate) tokenizer: TextTokenizer,
    pub(crate) generation: Generation,
}

/// Tokens whose values for the whole vocabulary are held at once.
const ROWS: usize = 64;

impl TextModel {
    /// `ids` behind the token that begins texts.
    fn begun(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if ids.first() != Some(&self.network.start()) {
            ids.insert(0, self.network.start());
        }
        ids
    }

    /// The probability of `ids` behind the first of them.
    fn score_ids(&self, ids: &[u32]) -> Result<TextScore, ModelError> {
        let Some((_, judged)) = ids.split_first().filter(|(_, judged)| !judged.is_empty()) else {
            return Err(ModelError::EmptyText);
        };
        let run = || -> candle_core::Result<f64> {
            let vectors = self.network.embed(&row(&ids[..judged.len()])?)?;
            let hidden = self.network.forward(vectors, None, &mut Past::default(), &mut |_| ())?;
            let mut sum = 0.0;
            for (i, judged) in judged.chunks(ROWS).enumerate() {
                let values = self.network.logits(&hidden.narrow(1, i * ROWS, judged.len())?)?.squeeze(0)?;
                for (values, &id) in values.to_vec2::<f32>()?.iter().zip(judged) {
                    sum += log_probability(values, id as usize);
                }
            }
            Ok(sum)
        };
        let log_probability = run().map_err(compute("the language model"))?;
        let perplexity = (-log_probability / judged.len() as f64).exp();
        Ok(TextScore { tokens: judged.len(), log_probability, perplexity })
    }
}

impl TextScorer for TextModel {
    fn info(&self) -> &ModelIdentity {
        &self.info
    }

    fn score(&self, texts: &[&str]) -> Vec<Result<TextScore, ModelError>> {
        texts.par_iter().map(|text| self.score_ids(&self.begun(self.tokenizer.encode(text)?.ids))).collect()
    }
}

impl Generator for TextModel {
    fn info(&self) -> &ModelIdentity {
        &self.info
    }

    fn generate(&self, texts: &[(&str, u64)], writing: &Writing) -> Vec<Result<WrittenText, ModelError>> {
        let writing = self.generation.fill(writing);
        let one = |&(text, seed): &(&str, u64)| {
            let ids = self.begun(self.tokenizer.encode_whole(text)?.ids);
            let vectors = row(&ids).and_then(|ids| self.network.embed(&ids)).map_err(compute("a text's vectors"))?;
            let written = continue_behind(&*self.network, vectors, &ids, &writing, seed, &mut |_| ())?;
            text_of(&self.tokenizer, &written, self.network.end())
        };
        texts.par_iter().map(one).collect()
    }
}
