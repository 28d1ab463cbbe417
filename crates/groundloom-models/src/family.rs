//! Which network a folder holds.

use serde::Deserialize;

use crate::{
    ModelError, bert, coca,
    config::{Config, OPEN_CLIP},
    folder::ModelFolder,
    llama, owl, ssd, vit, wav2vec2,
};

/// What `config.json` may name as `model_type`, or first in `architectures`.
pub const ARCHITECTURES: &str = "clip, siglip, siglip2, bert, roberta, xlm-roberta, mpnet, vit, dinov2, beit, grounding-dino, owlvit, owlv2, \
     blip, blip-2, llava, coca, fromage, kosmos-2, clap, imagebind, llama, qwen2, qwen3, opt, gpt2, t5, wav2vec2, hubert, whisper, videomae, \
     SsdMobileNetV2";

/// The networks of this crate, by the `model_type` of their `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Clip,
    Siglip,
    /// SigLIP 2 with images of any aspect ratio; with square ones it is [`Family::Siglip`].
    Siglip2,
    TextEncoder(bert::Kind),
    VisionTransformer(vit::Kind),
    GroundingDino,
    Owl(owl::Generation),
    Blip,
    /// With an OPT behind it.
    Blip2,
    /// Of a CLIP and a Llama.
    Llava,
    /// In open_clip's layout.
    Coca,
    /// As its authors release it.
    Fromage,
    /// Or Qwen2, Qwen3.
    Llama(llama::Kind),
    Clap,
    ImageBind,
    Kosmos2,
    Opt,
    Gpt2,
    T5,
    Speech(wav2vec2::Kind),
    Whisper,
    VideoMae,
    Ssd,
}

/// The part of any `config.json` that says what the model is.
#[derive(Deserialize)]
struct Architecture {
    #[serde(default)]
    architectures: Vec<String>,
    model_type: Option<String>,
}

impl Family {
    /// The network of `folder`, which the user called `name`.
    ///
    /// # Errors
    /// [`ModelError::UnsupportedArchitecture`], [`ModelError::BadConfig`], [`ModelError::Unreadable`].
    pub(crate) fn of(name: &str, folder: &ModelFolder) -> Result<Self, ModelError> {
        if folder.is_open_clip() {
            return coca::is_coca(&Config::open(folder)?)?.then_some(Self::Coca).ok_or_else(|| {
                let found = format!("{OPEN_CLIP} without multimodal_cfg");
                ModelError::UnsupportedArchitecture {
                    origin: name.to_owned(),
                    found,
                    supported: ARCHITECTURES.to_owned(),
                }
            });
        }
        if folder.is_fromage() {
            return Ok(Self::Fromage);
        }
        let Architecture { architectures, model_type } = folder.json("config.json")?;
        let found = model_type.as_ref().or(architectures.first()).cloned().unwrap_or_default();
        let family = match found.as_str() {
            "clip" => Some(Self::Clip),
            "siglip" => Some(Self::Siglip),
            "siglip2" => Some(Self::Siglip2),
            "grounding-dino" => Some(Self::GroundingDino),
            "owlvit" => Some(Self::Owl(owl::Generation::First)),
            "owlv2" => Some(Self::Owl(owl::Generation::Second)),
            "blip" => Some(Self::Blip),
            "blip-2" => Some(Self::Blip2),
            "llava" => Some(Self::Llava),
            "clap" => Some(Self::Clap),
            "imagebind" => Some(Self::ImageBind),
            "kosmos-2" => Some(Self::Kosmos2),
            "opt" => Some(Self::Opt),
            "gpt2" => Some(Self::Gpt2),
            "t5" => Some(Self::T5),
            "whisper" => Some(Self::Whisper),
            "videomae" => Some(Self::VideoMae),
            ssd::ARCHITECTURE => Some(Self::Ssd),
            other => {
                let text = bert::Kind::of(other).map(Self::TextEncoder);
                let text_or_image = text.or_else(|| vit::Kind::of(other).map(Self::VisionTransformer));
                let heard = text_or_image.or_else(|| wav2vec2::Kind::of(other).map(Self::Speech));
                heard.or_else(|| llama::Kind::of(other).map(Self::Llama))
            }
        };
        family.ok_or_else(|| ModelError::UnsupportedArchitecture {
            origin: name.to_owned(),
            found,
            supported: ARCHITECTURES.to_owned(),
        })
    }

    /// The error for a family that does not do what was asked for; `supported` are those that do.
    pub(crate) fn unsuited(self, name: &str, supported: &str) -> ModelError {
        ModelError::UnsupportedArchitecture {
            origin: name.to_owned(),
            found: self.name().to_owned(),
            supported: supported.to_owned(),
        }
    }

    /// The `model_type`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Clip => "clip",
            Self::Siglip => "siglip",
            Self::Siglip2 => "siglip2",
            Self::TextEncoder(kind) => kind.name(),
            Self::VisionTransformer(kind) => kind.name(),
            Self::GroundingDino => "grounding-dino",
            Self::Owl(owl::Generation::First) => "owlvit",
            Self::Owl(owl::Generation::Second) => "owlv2",
            Self::Blip => "blip",
            Self::Blip2 => "blip-2",
            Self::Llava => "llava",
            Self::Coca => "coca",
            Self::Fromage => "fromage",
            Self::Llama(kind) => kind.name(),
            Self::Clap => "clap",
            Self::ImageBind => "imagebind",
            Self::Kosmos2 => "kosmos-2",
            Self::Opt => "opt",
            Self::Gpt2 => "gpt2",
            Self::T5 => "t5",
            Self::Speech(kind) => kind.name(),
            Self::Whisper => "whisper",
            Self::VideoMae => "videomae",
            Self::Ssd => ssd::ARCHITECTURE,
        }
    }
}
