//! Models of speech, by name.

use std::sync::Arc;

use super::Opened;
use crate::{
    ModelError,
    ctc::Alphabet,
    family::Family,
    speech::{AudioEncoder, Standardiser, Transcriber, Wav2Vec2Encoder, Wav2Vec2Transcriber},
    wav2vec2::Wav2Vec2,
};

/// Loads the encoder of speech that `name` stands for: the path of a folder in Hugging Face layout that holds wav2vec 2.0
/// or HuBERT, with a head or without.
///
/// # Errors
/// As [`super::resolve`]; [`ModelError::Unable`] for any other model.
pub fn resolve_audio_encoder(name: &str) -> Result<Arc<dyn AudioEncoder>, ModelError> {
    Ok(Arc::new(encoder(Opened::by_name(name)?)?))
}

/// Loads the transcriber that `name` stands for: the path of a folder in Hugging Face layout that holds wav2vec 2.0 or
/// HuBERT for CTC, with the tokens in `vocab.json`.
///
/// # Errors
/// As [`super::resolve`]; [`ModelError::Unable`] for any other model.
pub fn resolve_transcriber(name: &str) -> Result<Arc<dyn Transcriber>, ModelError> {
    let opened = Opened::by_name(name)?;
    match opened.family {
        Family::Speech(_) if opened.has("lm_head") => {
            let folder = opened.folder.clone();
            let encoder = encoder(opened)?;
            let alphabet = Alphabet::open(&folder, encoder.network.alphabet)?;
            Ok(Arc::new(Wav2Vec2Transcriber { encoder, alphabet }))
        }
        _ => Err(opened.unable("transcribe speech", "wav2vec 2.0 or HuBERT for CTC (with an lm_head)")),
    }
}

fn encoder(opened: Opened) -> Result<Wav2Vec2Encoder, ModelError> {
    let Family::Speech(kind) = opened.family else {
        return Err(opened.unable("make features of speech", "wav2vec 2.0 or HuBERT"));
    };
    Ok(Wav2Vec2Encoder {
        network: Wav2Vec2::load(&opened.config, kind, &opened.weights)?,
        standardiser: Standardiser::open(&opened.folder)?,
        info: opened.info,
    })
}
