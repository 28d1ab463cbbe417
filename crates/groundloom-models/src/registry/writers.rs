//! Models that write and judge texts, by name.

use std::sync::Arc;

use super::{find, sized};
use crate::{
    ModelError,
    blip::{self, BlipCaption, BlipMatch},
    blip2::Blip2,
    captioners::{Blip2Captioner, BlipCaptioner, CocaCaptioner, LlavaCaptioner},
    clip,
    coca::{self, Coca},
    config::Config,
    device::{Device, ModelOn},
    family::Family,
    folder::ModelFolder,
    generation::{self, Generation},
    gpt2::Gpt2,
    kosmos2::{Kosmos2, Kosmos2Captioner},
    language_model::LanguageModel,
    llama::Llama,
    llava::Llava,
    opt::Opt,
    t5::T5,
    text_tokenizer::{Padding, TextTokenizer},
    weights::Weights,
    writers::{
        BlipMatcher, Captioner, Generator, GroundedCaptioner, Matcher, ModelIdentity, T5Generator, TextModel,
        TextScorer,
    },
};

/// The token of what a tokenizer does not know.
const UNKNOWN: &str = "<unk>";

/// A model folder, opened.
pub(crate) struct Opened {
    pub(super) folder: ModelFolder,
    pub(crate) family: Family,
    pub(super) config: Config,
    pub(super) weights: Weights,
    pub(super) info: ModelIdentity,
}

impl Opened {
    /// Opens the model that a name stands for.
    ///
    /// # Errors
    /// As [`super::resolve`].
    pub(crate) fn by_name(ModelOn { name, device }: ModelOn<'_>) -> Result<Self, ModelError> {
        Self::of(name, find(name)?, device)
    }

    /// Opens `folder`, which the user called `name`, for a network on `device`.
    ///
    /// # Errors
    /// As [`super::resolve`].
    pub(crate) fn of(name: &str, folder: ModelFolder, device: Device) -> Result<Self, ModelError> {
        let device = device.open()?;
        let family = Family::of(name, &folder)?;
        let (config, weights) = (Config::open(&folder)?, Weights::open(&folder)?.on(&device));
        let info = ModelIdentity {
            name: name.to_owned(),
            architecture: family.name().to_owned(),
            weights_sha256: weights.sha256().to_owned(),
            weights_bytes: weights.file_bytes(),
            generation_sha256: generation::digest(&folder)?,
            licence: folder.licence(),
        };
        Ok(Self { folder, family, config, weights, info })
    }

    /// The error for a model that cannot do `what` was asked for; `supported` can.
    pub(super) fn unable(self, what: &'static str, supported: &'static str) -> ModelError {
        ModelError::Unable { model: self.info.name, architecture: self.info.architecture, what, supported }
    }

    /// The tokenizer, for texts of up to `longest` tokens.
    fn tokenizer(&self, longest: usize, pad: u32) -> Result<TextTokenizer, ModelError> {
        TextTokenizer::open(&self.folder, longest, |named| Padding::Longest(named.unwrap_or(pad)))
    }

    /// BLIP for captions.
    ///
    /// # Errors
    /// What is missing or wrong in the folder; so for all that follow.
    pub(crate) fn blip_captioner(self) -> Result<BlipCaptioner, ModelError> {
        let network = BlipCaption::load(&self.config, &self.weights)?;
        Ok(BlipCaptioner {
            processor: sized(&self.folder, blip::IMAGE_DEFAULTS, network.vision.config.image_size)?,
            tokenizer: self.tokenizer(network.text.longest, 0)?,
            generation: Generation::open(&self.folder)?,
            network,
            info: self.info,
        })
    }

    /// BLIP for retrieval.
    pub(crate) fn blip_matcher(self) -> Result<BlipMatcher, ModelError> {
        let network = BlipMatch::load(&self.config, &self.weights)?;
        Ok(BlipMatcher {
            processor: sized(&self.folder, blip::IMAGE_DEFAULTS, network.vision.config.image_size)?,
            tokenizer: self.tokenizer(network.text.longest, network.pad)?,
            network,
            info: self.info,
        })
    }

    /// BLIP-2.
    pub(crate) fn blip2_captioner(self) -> Result<Blip2Captioner, ModelError> {
        let network = Blip2::load(&self.config, &self.weights)?;
        Ok(Blip2Captioner {
            processor: sized(&self.folder, blip::IMAGE_DEFAULTS, network.vision.config.image_size)?,
            tokenizer: self.tokenizer(network.text.longest(), 1)?,
            generation: Generation::open(&self.folder)?,
            network,
            info: self.info,
        })
    }

    /// LLaVA.
    pub(crate) fn llava_captioner(self) -> Result<LlavaCaptioner, ModelError> {
        let network = Llava::load(&self.config, &self.weights)?;
        Ok(LlavaCaptioner {
            processor: sized(&self.folder, clip::IMAGE_DEFAULTS, network.vision.config.image_size)?,
            tokenizer: self.tokenizer(network.text.longest(), 0)?,
            generation: Generation::open(&self.folder)?,
            network,
            info: self.info,
        })
    }

    /// Kosmos-2.
    pub(crate) fn kosmos2_captioner(self) -> Result<Kosmos2Captioner, ModelError> {
        let network = Kosmos2::load(&self.config, &self.weights)?;
        let tokenizer = self.tokenizer(network.text.longest(), 1)?;
        let unknown = tokenizer.inner().token_to_id(UNKNOWN).ok_or_else(|| ModelError::BadConfig {
            origin: self.folder.file_name("tokenizer.json"),
            problem: format!("expected a token {UNKNOWN}, behind which those in the place of an image lie, found none"),
        })?;
        Ok(Kosmos2Captioner {
            processor: sized(&self.folder, clip::IMAGE_DEFAULTS, network.vision.config.image_size)?,
            tokenizer,
            first_image_token: unknown + 1,
            generation: Generation::open(&self.folder)?,
            network,
            info: self.info,
        })
    }

    /// CoCa.
    pub(crate) fn coca_captioner(self) -> Result<CocaCaptioner, ModelError> {
        let network = Coca::load(&self.config, &self.weights)?;
        let tokenizer = self.tokenizer(network.text.longest, network.text.pad)?;
        let around = tokenizer.encode("")?.ids;
        let &[_, end] = around.as_slice() else {
            return Err(ModelError::BadConfig {
                origin: self.folder.file_name("tokenizer.json"),
                problem: format!(
                    "expected a token that begins texts and one that ends them, found {around:?} around an empty text"
                ),
            });
        };
        let processor = coca::processor(&self.config, network.vision.image_size)?;
        let generation = Generation::open(&self.folder)?;
        Ok(CocaCaptioner { processor, tokenizer, generation, end, network, info: self.info })
    }

    /// GPT-2, OPT, Llama.
    pub(crate) fn text_model(self) -> Result<TextModel, ModelError> {
        let network: Box<dyn LanguageModel> = match self.family {
            Family::Opt => Box::new(Opt::load(&self.config, &self.weights)?),
            Family::Gpt2 => Box::new(Gpt2::load(&self.config, &self.weights)?),
            Family::Llama(kind) => Box::new(Llama::load(&self.config, kind, &self.weights)?),
            _ => return Err(self.unable("continue texts", "GPT-2 or OPT")),
        };
        let generation = Generation::open(&self.folder)?;
        Ok(TextModel { tokenizer: self.tokenizer(network.longest(), 1)?, generation, network, info: self.info })
    }

    /// T5.
    pub(crate) fn t5_generator(self) -> Result<T5Generator, ModelError> {
        let network = T5::load(&self.config, &self.weights)?;
        // Its positions are distances: only the file's own limit cuts a text.
        let (tokenizer, generation) = (self.tokenizer(usize::MAX, network.pad)?, Generation::open(&self.folder)?);
        Ok(T5Generator { tokenizer, generation, network, info: self.info })
    }

    /// Whether the checkpoint has tensors behind `name.`
    pub(crate) fn has(&self, name: &str) -> bool {
        !self.weights.at(name).is_empty()
    }
}

/// What a model may be asked to do, beside finding boxes, making vectors and transcribing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ability {
    /// Captioning images.
    Caption,
    /// Judging whether images and texts match.
    Match,
    /// Scoring texts.
    Score,
    /// Naming the class of an image.
    Classify,
}

impl Opened {
    /// The same, if it has what the ability takes.
    ///
    /// # Errors
    /// [`ModelError::Unable`], [`ModelError::NoClasses`].
    fn able(self, ability: Ability) -> Result<Self, ModelError> {
        let able = match (ability, self.family) {
            (Ability::Caption, Family::Blip) => self.has("text_decoder"),
            (Ability::Caption, Family::Blip2 | Family::Llava | Family::Coca | Family::Kosmos2) => true,
            (Ability::Match, Family::Blip) => self.has("itm_head"),
            (Ability::Score, Family::Opt | Family::Gpt2) => true,
            (Ability::Classify, Family::VisionTransformer(_)) => self.has("classifier"),
            _ => false,
        };
        match ability {
            _ if able => Ok(self),
            Ability::Caption => {
                let supported = "BLIP for captions (with a text_decoder), BLIP-2, LLaVA, CoCa or Kosmos-2";
                Err(self.unable("caption images", supported))
            }
            Ability::Match => Err(self.unable("match images and texts", "BLIP for retrieval (with an itm_head)")),
            Ability::Score => Err(self.unable("score texts", "GPT-2 or OPT")),
            Ability::Classify => {
                Err(ModelError::NoClasses { model: self.info.name, architecture: self.info.architecture })
            }
        }
    }
}

/// Who the model that `name` stands for is, without building its network, if it has what the ability takes.
///
/// # Errors
/// As [`super::resolve`]; [`ModelError::Unable`] and [`ModelError::NoClasses`] for a model that cannot do it.
pub fn describe_able(name: &str, ability: Ability) -> Result<ModelIdentity, ModelError> {
    Opened::by_name(name.into())?.able(ability).map(|opened| opened.info)
}

/// Who the model that `name` stands for is, of whatever kind, without building its network.
///
/// # Errors
/// As [`super::resolve`].
pub fn describe_model(name: &str) -> Result<ModelIdentity, ModelError> {
    Opened::by_name(name.into()).map(|opened| opened.info)
}

/// Loads the captioner that `name` stands for: the path of a folder in Hugging Face layout that holds BLIP for captions,
/// BLIP-2 with an OPT, LLaVA with a Llama, or Kosmos-2; or one in open_clip's layout that holds CoCa.
///
/// # Errors
/// As [`super::resolve`]; [`ModelError::Unable`] for any other model.
pub fn resolve_captioner<'a>(model: impl Into<ModelOn<'a>>) -> Result<Arc<dyn Captioner>, ModelError> {
    let opened = Opened::by_name(model.into())?.able(Ability::Caption)?;
    Ok(match opened.family {
        Family::Blip => Arc::new(opened.blip_captioner()?),
        Family::Blip2 => Arc::new(opened.blip2_captioner()?),
        Family::Llava => Arc::new(opened.llava_captioner()?),
        Family::Coca => Arc::new(opened.coca_captioner()?),
        _ => Arc::new(opened.kosmos2_captioner()?),
    })
}

/// Loads the captioner that `name` stands for, as one that says where its phrases are: the path of a folder in Hugging Face
/// layout that holds Kosmos-2.
///
/// # Errors
/// As [`super::resolve`]; [`ModelError::Unable`] for any other model.
pub fn resolve_grounded_captioner<'a>(model: impl Into<ModelOn<'a>>) -> Result<Arc<dyn GroundedCaptioner>, ModelError> {
    let opened = Opened::by_name(model.into())?;
    match opened.family {
        Family::Kosmos2 => Ok(Arc::new(opened.kosmos2_captioner()?)),
        _ => Err(opened.unable("say where the phrases of a caption are", "Kosmos-2")),
    }
}

/// Loads the matcher that `name` stands for: the path of a folder in Hugging Face layout that holds BLIP for retrieval.
///
/// # Errors
/// As [`super::resolve`]; [`ModelError::Unable`] for any other model.
pub fn resolve_matcher<'a>(model: impl Into<ModelOn<'a>>) -> Result<Arc<dyn Matcher>, ModelError> {
    Ok(Arc::new(Opened::by_name(model.into())?.able(Ability::Match)?.blip_matcher()?))
}

/// Loads the language model that `name` stands for, as a judge of texts: the path of a folder in Hugging Face layout that
/// holds GPT-2 or OPT.
///
/// # Errors
/// As [`super::resolve`]; [`ModelError::Unable`] for any other model.
pub fn resolve_scorer<'a>(model: impl Into<ModelOn<'a>>) -> Result<Arc<dyn TextScorer>, ModelError> {
    Ok(Arc::new(Opened::by_name(model.into())?.able(Ability::Score)?.text_model()?))
}

/// Loads the writer of texts that `name` stands for: the path of a folder in Hugging Face layout that holds T5, GPT-2 or
/// OPT.
///
/// # Errors
/// As [`super::resolve`]; [`ModelError::Unable`] for any other model.
pub fn resolve_generator<'a>(model: impl Into<ModelOn<'a>>) -> Result<Arc<dyn Generator>, ModelError> {
    let opened = Opened::by_name(model.into())?;
    match opened.family {
        Family::T5 => Ok(Arc::new(opened.t5_generator()?)),
        Family::Opt | Family::Gpt2 => Ok(Arc::new(opened.text_model()?)),
        _ => Err(opened.unable("write texts", "T5, GPT-2 or OPT")),
    }
}
