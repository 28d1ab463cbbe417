//! Fixtures of texts.

use candle_core::{Device, Tensor};

use super::{Fixture, Outputs, numbered};
use crate::{
    ModelError,
    bert::{Kind, TextEncoder, TextEncoderConfig, failed},
    config::Config,
    folder::ModelFolder,
    layers::{compute, normalise},
    sentence::{Pooling, SentenceEncoder, pool},
    text_tokenizer::{TextTokenizer, Tokens},
    weights::Weights,
};

/// Compares the notes' token table: `in.tokens.N` pairs are not tensors of the fixture, so a difference is an error.
///
/// # Errors
/// [`ModelError::BadConfig`] names the text and both lists of ids.
pub(super) fn token_table(fixture: &Fixture, tokenizer: &TextTokenizer) -> Result<Outputs, ModelError> {
    for (text, expected) in fixture.token_table() {
        let found = tokenizer.encode_whole(text)?.ids;
        if found != expected {
            return Err(ModelError::BadConfig {
                origin: fixture.folder().file_name("tokenizer.json"),
                problem: format!("expected the ids {expected:?} for {text:?}, found {found:?}"),
            });
        }
    }
    Ok(Vec::new())
}

pub(super) fn encoder(
    fixture: &Fixture,
    config: &Config,
    kind: Kind,
    weights: &Weights,
) -> Result<Outputs, ModelError> {
    if has_tokenizer(fixture.folder()) {
        let encoder = SentenceEncoder::load(fixture.folder(), config, kind, weights)?;
        let mut outputs = token_table(fixture, &encoder.tokenizer)?;
        let texts = fixture.strings("sentences");
        let tokens = texts.into_iter().map(|text| encoder.tokens(text)).collect::<Result<Vec<Tokens>, _>>()?;
        let tokens: Vec<&Tokens> = tokens.iter().collect();
        let batch = encoder.tokenizer.pad(&tokens)?;
        outputs.extend(
            [
                ("in.input_ids", batch.ids),
                ("in.token_type_ids", batch.types),
                ("in.attention_mask", batch.mask),
                ("sentence_embedding", encoder.embed(&tokens)?),
            ]
            .map(|(name, tensor)| (name.to_owned(), tensor)),
        );
        outputs.extend(hidden(fixture, &encoder.encoder)?);
        return Ok(outputs);
    }
    hidden(fixture, &TextEncoder::load(weights, TextEncoderConfig::read(config, kind)?)?)
}

fn has_tokenizer(folder: &ModelFolder) -> bool {
    folder.has("tokenizer.json")
}

fn hidden(fixture: &Fixture, encoder: &TextEncoder) -> Result<Outputs, ModelError> {
    let (ids, mask) = (fixture.ids("input_ids")?, fixture.ids("attention_mask")?);
    let zeros = |like: &Tensor| like.zeros_like().map_err(compute("an input"));
    let types = if fixture.has("token_type_ids") { fixture.ids("token_type_ids")? } else { zeros(&ids)? };
    let pair = match fixture.has("pair_input_ids") {
        true => Some((fixture.ids("pair_input_ids")?, fixture.ids("pair_token_type_ids")?)),
        false => None,
    };
    let run = || -> candle_core::Result<Outputs> {
        let mut seen = Vec::new();
        let last = encoder.forward(&ids, &types, &mask, &mut |x| seen.push(x.clone()))?;
        let mean = pool(&last, &mask, Pooling::Mean)?;
        let mut outputs = numbered("hidden", seen);
        outputs.push(("normalised_mean".to_owned(), normalise(&mean)?));
        outputs.push(("mean_pooled".to_owned(), mean));
        if let Some(pooled) = encoder.pooled(&last)? {
            outputs.push(("pooler_output".to_owned(), pooled));
        }
        if let Some((ids, types)) = &pair {
            let mask = Tensor::ones(ids.dims(), candle_core::DType::U32, &Device::Cpu)?;
            outputs.push(("pair_last_hidden".to_owned(), encoder.forward(ids, types, &mask, &mut |_| ())?));
        }
        Ok(outputs)
    };
    run().map_err(failed)
}
