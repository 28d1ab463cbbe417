//! Kosmos-2 as a captioner.

use candle_core::Tensor;
use image::RgbImage;
use rayon::prelude::*;

use super::{Kosmos2, grounded};
use crate::{
    ModelError,
    generation::Generation,
    image_processor::ImageProcessor,
    language_model::{LanguageModel, continue_behind, row},
    layers::compute,
    text_tokenizer::TextTokenizer,
    writers::{CaptionOptions, Captioner, GroundedCaption, GroundedCaptioner, ModelIdentity, WrittenText},
    writing::{Writing, Written},
};

/// What begins and ends the image in a text.
const IMAGE: [&str; 2] = ["<image>", "</image>"];
/// Before a text whose phrases are to have places.
const GROUNDING: &str = "<grounding>";
/// What a caption goes on from where nothing is said.
const PROMPT: &str = "An image of";

/// Kosmos-2.
pub(crate) struct Kosmos2Captioner {
    pub(crate) info: ModelIdentity,
    pub(crate) network: Kosmos2,
    pub(crate) processor: ImageProcessor,
    pub(crate) tokenizer: TextTokenizer,
    pub(crate) generation: Generation,
    /// The token in whose place the first of an image's vectors stands; the others follow.
    pub(crate) first_image_token: u32,
}

/// What the language model reads, in tokens.
pub(crate) struct Context {
    /// The token that begins texts, and the one that begins the image.
    before: Vec<u32>,
    /// The one that ends the image, then the prompt's.
    pub(crate) behind: Vec<u32>,
}

impl Kosmos2Captioner {
    /// The tokens of `prompt` around an image.
    ///
    /// # Errors
    /// [`ModelError::Untokenized`], also where the tokenizer knows no tag of images.
    pub(crate) fn context(&self, prompt: &str) -> Result<Context, ModelError> {
        let [begin, end] = IMAGE;
        // In one piece: tags take the spaces before them away.
        let ids = self.tokenizer.encode_bare(&format!("{begin}{end}{prompt}"))?;
        let tags = IMAGE.map(|tag| self.tokenizer.inner().token_to_id(tag));
        match (tags, ids.split_first()) {
            ([Some(begin), Some(end)], Some((first, behind))) if *first == begin && behind.first() == Some(&end) => {
                Ok(Context { before: vec![self.network.text.start(), begin], behind: behind.to_vec() })
            }
            _ => {
                let reason =
                    format!("expected a tokenizer with the tokens {begin} and {end}, found the ids {ids:?} for them");
                Err(ModelError::Untokenized { reason })
            }
        }
    }

    /// All of the context's tokens, those that an image's vectors replace among them.
    pub(crate) fn ids(&self, context: &Context) -> Vec<u32> {
        let first = self.first_image_token;
        let image = first..first + self.network.queries() as u32;
        context.before.iter().copied().chain(image).chain(context.behind.iter().copied()).collect()
    }

    /// What the language model reads: words, the image (`[1, queries, width]`), words.
    pub(crate) fn vectors(&self, context: &Context, image: &Tensor) -> candle_core::Result<Tensor> {
        let words = |ids: &[u32]| self.network.text.embed(&row(ids)?);
        Tensor::cat(&[&words(&context.before)?, image, &words(&context.behind)?], 1)
    }

    /// What is written about an image, and the text of it with all tags, the prompt before it.
    fn write(
        &self,
        image: &RgbImage,
        seed: u64,
        prompt: &str,
        writing: &Writing,
    ) -> Result<(Written, String, usize), ModelError> {
        let pixels = self.processor.batch(&[image])?;
        let context = self.context(prompt)?;
        let run = || {
            let tokens = self.network.vision.forward(&pixels, &mut |_| ())?;
            self.vectors(&context, &self.network.projected(&tokens)?)
        };
        let vectors = run().map_err(compute("Kosmos-2's image side"))?;
        let text = &self.network.text;
        let written = continue_behind(text, vectors, &self.ids(&context), writing, seed, &mut |_| ())?;
        // Without the tag that ends the image.
        let prompt = self.tokenizer.decode(&context.behind[1..])?;
        let whole = self.tokenizer.decode(&[&context.behind[1..], written.words(text.end())].concat())?;
        let begins = if whole.starts_with(&prompt) { prompt.len() } else { 0 };
        Ok((written, whole, begins))
    }
}

/// `prompt`, or what stands for none.
fn or_default(prompt: &str) -> &str {
    if prompt.is_empty() { PROMPT } else { prompt }
}

impl Captioner for Kosmos2Captioner {
    fn info(&self) -> &ModelIdentity {
        &self.info
    }

    fn filled(&self, asked: &Writing) -> Writing {
        self.generation.fill(asked)
    }

    fn describe(&self, image: &RgbImage, seed: u64, options: &CaptionOptions) -> Result<WrittenText, ModelError> {
        let (written, whole, begins) = self.write(image, seed, or_default(&options.prompt), &options.writing)?;
        Ok(WrittenText {
            text: grounded(&whole[begins..]).0,
            tokens: written.ids.len(),
            log_probability: written.log_probability,
        })
    }
}

impl GroundedCaptioner for Kosmos2Captioner {
    fn ground(
        &self,
        images: &[(&RgbImage, u64)],
        options: &CaptionOptions,
    ) -> Vec<Result<GroundedCaption, ModelError>> {
        let prompt = or_default(&options.prompt);
        let prompt = if prompt.contains(GROUNDING) { prompt.to_owned() } else { format!("{GROUNDING}{prompt}") };
        let writing = self.generation.fill(&options.writing);
        let one = |&(image, seed): &(&RgbImage, u64)| {
            let (written, whole, _) = self.write(image, seed, &prompt, &writing)?;
            let (text, phrases) = grounded(&whole);
            let (tokens, log_probability) = (written.ids.len(), written.log_probability);
            Ok(GroundedCaption { caption: WrittenText { text, tokens, log_probability }, phrases })
        };
        images.par_iter().map(one).collect()
    }
}
