//! Models of speech, by name.

use std::sync::Arc;

use super::Opened;
use crate::{
    ModelError,
    ctc::Alphabet,
    device::ModelOn,
    family::Family,
    generation,
    speech::{AudioEncoder, Standardiser, Transcriber, Wav2Vec2Encoder, Wav2Vec2Transcriber},
    text_tokenizer::{Padding, TextTokenizer},
    wav2vec2::{Kind, Wav2Vec2},
    whisper::{LogMel, Prompts, Whisper, WhisperEncoder, WhisperTranscriber},
};

/// Loads the encoder of speech that `name` stands for: the path of a folder in Hugging Face layout that holds wav2vec 2.0
/// or HuBERT, with a head or without, or Whisper.
///
/// # Errors
/// As [`super::resolve`]; [`ModelError::Unable`] for any other model.
pub fn resolve_audio_encoder<'a>(model: impl Into<ModelOn<'a>>) -> Result<Arc<dyn AudioEncoder>, ModelError> {
    let opened = Opened::by_name(model.into())?;
    match opened.family {
        Family::Speech(kind) => Ok(Arc::new(encoder(opened, kind)?)),
        Family::Whisper => Ok(Arc::new(opened.whisper_encoder()?)),
        _ => Err(opened.unable("make features of speech", "wav2vec 2.0, HuBERT or Whisper")),
    }
}

/// Loads the transcriber that `name` stands for: the path of a folder in Hugging Face layout that holds Whisper, or wav2vec
/// 2.0 or HuBERT for CTC, with the tokens in `vocab.json`.
///
/// # Errors
/// As [`super::resolve`]; [`ModelError::Unable`] for any other model.
pub fn resolve_transcriber<'a>(model: impl Into<ModelOn<'a>>) -> Result<Arc<dyn Transcriber>, ModelError> {
    let opened = Opened::by_name(model.into())?;
    match opened.family {
        Family::Speech(kind) if opened.has("lm_head") => {
            let folder = opened.folder.clone();
            let encoder = encoder(opened, kind)?;
            let alphabet = Alphabet::open(&folder, encoder.network.alphabet)?;
            Ok(Arc::new(Wav2Vec2Transcriber { encoder, alphabet }))
        }
        Family::Whisper => Ok(Arc::new(opened.whisper_transcriber()?)),
        _ => Err(opened.unable("transcribe speech", "Whisper, or wav2vec 2.0 or HuBERT for CTC (with an lm_head)")),
    }
}

fn encoder(opened: Opened, kind: Kind) -> Result<Wav2Vec2Encoder, ModelError> {
    Ok(Wav2Vec2Encoder {
        network: Wav2Vec2::load(&opened.config, kind, &opened.weights)?,
        standardiser: Standardiser::open(&opened.folder)?,
        info: opened.info,
    })
}

impl Opened {
    /// Whisper's encoder.
    fn whisper_encoder(self) -> Result<WhisperEncoder, ModelError> {
        let network = Whisper::load(&self.config, &self.weights)?;
        Ok(WhisperEncoder { log_mel: LogMel::open(&self.folder, &network)?, network, info: self.info })
    }

    /// Whisper.
    ///
    /// # Errors
    /// What is missing or wrong in the folder.
    pub(crate) fn whisper_transcriber(self) -> Result<WhisperTranscriber, ModelError> {
        let folder = self.folder.clone();
        let encoder = self.whisper_encoder()?;
        let tokenizer =
            TextTokenizer::open(&folder, encoder.network.longest, |pad| Padding::Longest(pad.unwrap_or(0)))?;
        let prompts = Prompts::open(&folder, &tokenizer, encoder.network.vocabulary)?;
        let [blocks, heads] = encoder.network.decoder_heads();
        let mut named = prompts.alignment_heads.iter().flatten();
        if let Some([block, head]) = named.find(|[block, head]| *block >= blocks || *head >= heads) {
            let expected = format!("expected alignment_heads in {blocks} layers of {heads} heads as config.json says");
            let problem = format!("{expected}, found [{block}, {head}]");
            return Err(ModelError::BadConfig { origin: folder.file_name(generation::FILE), problem });
        }
        Ok(WhisperTranscriber { prompts, tokenizer, encoder })
    }
}
