//! BLIP, BLIP-2, LLaVA and CoCa as captioners (Kosmos-2: `kosmos2`).

use candle_core::Tensor;
use image::RgbImage;

use crate::{
    ModelError,
    blip::BlipCaption,
    blip2::{Blip2, Text},
    coca::Coca,
    decoder::Past,
    generation::Generation,
    image_processor::ImageProcessor,
    language_model::{LanguageModel, continue_behind, last, room, row},
    layers::compute,
    llava::Llava,
    text_tokenizer::TextTokenizer,
    writers::{CaptionOptions, Captioner, ModelIdentity, WrittenText, text_of},
    writing::{Ending, Texts, Writing, Written, write},
};

/// BLIP for captions.
pub(crate) struct BlipCaptioner {
    pub(crate) info: ModelIdentity,
    pub(crate) network: BlipCaption,
    pub(crate) processor: ImageProcessor,
    pub(crate) tokenizer: TextTokenizer,
    pub(crate) generation: Generation,
}

impl BlipCaptioner {
    /// What a caption begins with: the tokens of `prompt`, behind the start instead of the first special token and
    /// without the last.
    pub(crate) fn context(&self, prompt: &str) -> Result<Vec<u32>, ModelError> {
        let mut ids = self.tokenizer.encode_whole(prompt)?.ids;
        ids.pop();
        match ids.first_mut() {
            Some(first) => *first = self.network.start,
            None => ids.push(self.network.start),
        }
        Ok(ids)
    }

    /// Writes behind `context` about the image whose tokens are `image`, `[1, length, width]`.
    pub(crate) fn write(
        &self,
        image: &Tensor,
        context: &[u32],
        writing: &Writing,
        seed: u64,
        each: &mut dyn FnMut(&[f32]),
    ) -> Result<Written, ModelError> {
        let failed = compute("BLIP's text decoder");
        let memory = self.network.text.remember(image).map_err(&failed)?;
        let mut past = Past::default();
        let mut next = |texts: Texts<'_>| {
            let mut run = || {
                let ids = texts.follow([&mut past])?.map_or_else(|| row(context), Ok)?;
                let hidden = self.network.text.continue_with(&ids, None, &mut past, &memory)?;
                last(&self.network.logits(&hidden.narrow(1, hidden.dim(1)?.saturating_sub(1), 1)?)?)
            };
            run().map_err(&failed)
        };
        let room = room(context.len(), self.network.text.longest)?;
        write(writing, seed, context, Ending::at(&[self.network.end]), room, &mut next, each)
    }
}

impl Captioner for BlipCaptioner {
    fn info(&self) -> &ModelIdentity {
        &self.info
    }

    fn filled(&self, asked: &Writing) -> Writing {
        self.generation.fill(asked)
    }

    fn describe(&self, image: &RgbImage, seed: u64, options: &CaptionOptions) -> Result<WrittenText, ModelError> {
        let pixels = self.processor.batch(&[image])?;
        let image = self.network.vision.forward(&pixels, &mut |_| ()).map_err(compute("the vision tower"))?;
        let context = self.context(&options.prompt)?;
        let written = self.write(&image, &context, &options.writing, seed, &mut |_| ())?;
        text_of(&self.tokenizer, &written, self.network.end)
    }
}

/// BLIP-2.
pub(crate) struct Blip2Captioner {
    pub(crate) info: ModelIdentity,
    pub(crate) network: Blip2,
    pub(crate) processor: ImageProcessor,
    pub(crate) tokenizer: TextTokenizer,
    pub(crate) generation: Generation,
}

impl Blip2Captioner {
    /// The tokens of `prompt`: an OPT's behind the one that begins texts, a T5's before the one that ends them.
    pub(crate) fn context(&self, prompt: &str) -> Result<Vec<u32>, ModelError> {
        let mut ids = self.tokenizer.encode_whole(prompt)?.ids;
        if let Text::Opt(text) = &self.network.text
            && ids.first() != Some(&text.start())
        {
            ids.insert(0, text.start());
        }
        Ok(ids)
    }

    /// What stands for an image, then the vectors of the text's tokens: `[1, queries + length, width]`.
    pub(crate) fn vectors(&self, projected: &Tensor, context: &[u32]) -> candle_core::Result<Tensor> {
        Tensor::cat(&[projected, &self.network.text.embed(&row(context)?)?], 1)
    }

    /// All tokens of `vectors`, whose last are `context`: the reference has one in the place of each query.
    pub(crate) fn ids(&self, vectors: &Tensor, context: &[u32]) -> Result<Vec<u32>, ModelError> {
        let queries = vectors.dim(1).map_err(compute("a text's vectors"))?.saturating_sub(context.len());
        let image = self.network.image_token.map_or_else(Vec::new, |image| vec![image; queries]);
        Ok([&image, context].concat())
    }

    /// Writes on behind `vectors`, `context` being the tokens among them (OPT), or the answer to them (T5).
    pub(crate) fn write(
        &self,
        vectors: Tensor,
        context: &[u32],
        writing: &Writing,
        seed: u64,
        each: &mut dyn FnMut(&[f32]),
    ) -> Result<Written, ModelError> {
        match &self.network.text {
            Text::Opt(text) => {
                let whole = self.ids(&vectors, context)?;
                continue_behind(text, vectors, &whole, writing, seed, each)
            }
            Text::T5(text) => text.answer(vectors, writing, seed, each),
        }
    }
}

impl Captioner for Blip2Captioner {
    fn info(&self) -> &ModelIdentity {
        &self.info
    }

    fn filled(&self, asked: &Writing) -> Writing {
        self.generation.fill(asked)
    }

    fn describe(&self, image: &RgbImage, seed: u64, options: &CaptionOptions) -> Result<WrittenText, ModelError> {
        let pixels = self.processor.batch(&[image])?;
        let context = self.context(&options.prompt)?;
        let run = || {
            let tokens = self.network.vision.forward(&pixels, &mut |_| ())?;
            self.vectors(&self.network.projected(&self.network.queried(&tokens)?)?, &context)
        };
        let vectors = run().map_err(compute("BLIP-2's image side"))?;
        let written = self.write(vectors, &context, &options.writing, seed, &mut |_| ())?;
        text_of(&self.tokenizer, &written, self.network.text.end())
    }
}

/// LLaVA.
pub(crate) struct LlavaCaptioner {
    pub(crate) info: ModelIdentity,
    pub(crate) network: Llava,
    pub(crate) processor: ImageProcessor,
    pub(crate) tokenizer: TextTokenizer,
    pub(crate) generation: Generation,
}

/// Where a prompt of LLaVA has its image.
const IMAGE: &str = "<image>";

impl LlavaCaptioner {
    /// The tokens of `prompt`, before and behind the image. A prompt without an image becomes a question in the form that
    /// LLaVA 1.5 was trained on; none at all asks for a description.
    ///
    /// # Errors
    /// [`ModelError::Untokenized`], also where there are several images.
    pub(crate) fn context(&self, prompt: &str) -> Result<[Vec<u32>; 2], ModelError> {
        let whole = match (prompt.contains(IMAGE), prompt) {
            (true, prompt) => prompt.to_owned(),
            (false, "") => format!("USER: {IMAGE}\nDescribe the image. ASSISTANT:"),
            (false, question) => format!("USER: {IMAGE}\n{question} ASSISTANT:"),
        };
        let ids = self.tokenizer.encode_whole(&whole)?.ids;
        let mut parts = ids.split(|&id| id == self.network.image_token);
        match (parts.next(), parts.next(), parts.next()) {
            (Some(before), Some(behind), None) => Ok([before.to_vec(), behind.to_vec()]),
            _ => {
                let found = ids.iter().filter(|&&id| id == self.network.image_token).count();
                Err(ModelError::Untokenized { reason: format!("expected one {IMAGE} in the prompt, found {found}") })
            }
        }
    }

    /// What the language model reads: words, the image's patches (`[1, patches, width]`), words.
    pub(crate) fn vectors(&self, [before, behind]: &[Vec<u32>; 2], projected: &Tensor) -> candle_core::Result<Tensor> {
        let words = |ids: &[u32]| self.network.text.embed(&row(ids)?);
        Tensor::cat(&[&words(before)?, projected, &words(behind)?], 1)
    }

    /// All tokens of `vectors`: the reference has one in the place of each patch.
    pub(crate) fn ids(&self, vectors: &Tensor, parts: &[Vec<u32>; 2]) -> Result<Vec<u32>, ModelError> {
        let words = parts.iter().map(Vec::len).sum();
        let patches = vectors.dim(1).map_err(compute("a text's vectors"))?.saturating_sub(words);
        Ok(parts.join(&vec![self.network.image_token; patches][..]))
    }
}

impl Captioner for LlavaCaptioner {
    fn info(&self) -> &ModelIdentity {
        &self.info
    }

    fn filled(&self, asked: &Writing) -> Writing {
        self.generation.fill(asked)
    }

    fn describe(&self, image: &RgbImage, seed: u64, options: &CaptionOptions) -> Result<WrittenText, ModelError> {
        let pixels = self.processor.batch(&[image])?;
        let parts = self.context(&options.prompt)?;
        let run = || self.vectors(&parts, &self.network.projected(&self.network.selected(&pixels)?)?);
        let vectors = run().map_err(compute("LLaVA's image side"))?;
        let text = &self.network.text;
        let whole = self.ids(&vectors, &parts)?;
        let written = continue_behind(text, vectors, &whole, &options.writing, seed, &mut |_| ())?;
        text_of(&self.tokenizer, &written, text.end())
    }
}

/// CoCa.
pub(crate) struct CocaCaptioner {
    pub(crate) info: ModelIdentity,
    pub(crate) network: Coca,
    pub(crate) processor: ImageProcessor,
    pub(crate) tokenizer: TextTokenizer,
    pub(crate) generation: Generation,
    /// Ends every caption.
    pub(crate) end: u32,
}

impl CocaCaptioner {
    /// The tokens of `prompt` behind the one that begins texts, without the one that ends them.
    fn context(&self, prompt: &str) -> Result<Vec<u32>, ModelError> {
        let mut ids = self.tokenizer.encode_whole(prompt)?.ids;
        ids.pop_if(|id| *id == self.end);
        Ok(ids)
    }
}

impl Captioner for CocaCaptioner {
    fn info(&self) -> &ModelIdentity {
        &self.info
    }

    fn filled(&self, asked: &Writing) -> Writing {
        self.generation.fill(asked)
    }

    fn describe(&self, image: &RgbImage, seed: u64, options: &CaptionOptions) -> Result<WrittenText, ModelError> {
        let pixels = self.processor.batch(&[image])?;
        let run = || self.network.vision.tokens(&self.network.vision.forward(&pixels)?);
        let image = run().map_err(compute("CoCa's vision tower"))?;
        let context = self.context(&options.prompt)?;
        let written = self.network.write(&image, &context, self.end, &options.writing, seed)?;
        text_of(&self.tokenizer, &written, self.end)
    }
}
