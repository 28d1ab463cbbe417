//! Fixtures of waveforms.

use candle_core::{Device, Tensor};
use serde_json::Value;

use super::{Fixture, NOTES, Outputs, numbered};
use crate::{
    ModelError,
    config::Config,
    ctc::Alphabet,
    layers::compute,
    speech::Standardiser,
    wav2vec2::{Kind, Wav2Vec2},
    weights::Weights,
};

type Candle<T> = candle_core::Result<T>;

/// How far standardised waveforms may lie from the reference's, which sums them in single precision.
pub(super) const INPUT_TOLERANCE: f32 = 1e-5;

pub(super) fn encoder(
    fixture: &Fixture,
    config: &Config,
    kind: Kind,
    weights: &Weights,
) -> Result<Outputs, ModelError> {
    let network = Wav2Vec2::load(config, kind, weights)?;
    let mut outputs = inputs(fixture)?;
    let waveform = rows(&fixture.input("input_values")?)?.concat();
    let seen = alone(&network, kind, &waveform).map_err(compute("the speech encoder"))?;
    if network.has_head() {
        let alphabet = Alphabet::open(fixture.folder(), network.alphabet)?;
        texts(fixture, &alphabet, &seen.ids)?;
    }
    outputs.extend(seen.outputs);
    let padded = rows(&fixture.input("batch_input_values")?)?;
    let samples = rows(&fixture.input("batch_attention_mask")?)?;
    let together = || -> Candle<(String, Tensor)> {
        let mut answers = Vec::new();
        for (waveform, mask) in padded.iter().zip(&samples) {
            let real = mask.iter().filter(|&&mask| mask != 0.0).count();
            let projected = network.project(&network.projection_input(&network.convolved(waveform)?)?)?;
            let x = network.encode(&projected, network.frames(real), network.layers(), &mut |_| ())?;
            let x = network.normed(&x)?;
            answers.push(network.logits(&x)?.unwrap_or(x));
        }
        let name = if network.has_head() { "batch_logits" } else { "batch_last_hidden_state" };
        Ok((name.to_owned(), Tensor::cat(&answers, 0)?))
    };
    outputs.push(together().map_err(compute("the speech encoder"))?);
    Ok(outputs)
}

/// What a network shows of one waveform, and the likeliest token of each frame.
struct Seen {
    outputs: Outputs,
    ids: Vec<u32>,
}

fn alone(network: &Wav2Vec2, kind: Kind, waveform: &[f32]) -> Candle<Seen> {
    let convolved = network.convolved(waveform)?;
    let normed = network.projection_input(&convolved)?;
    let projected = network.project(&normed)?;
    let (mut hidden, frames) = (Vec::new(), projected.dim(1)?);
    let last = network.encode(&projected, frames, network.layers(), &mut |x| hidden.push(x.clone()))?;
    let mut outputs = numbered("hidden", hidden);
    let last = network.normed(&last)?;
    let mut ids = Vec::new();
    if let Some(logits) = network.logits(&last)? {
        ids = network.likeliest(&last)?;
        let tensor = Tensor::from_vec(ids.clone(), (1, frames), &Device::Cpu)?;
        outputs.extend([("logits".to_owned(), logits), ("argmax_ids".to_owned(), tensor)]);
    }
    let parts = match kind {
        Kind::Wav2Vec2 => vec![("extract_features", normed)],
        Kind::Hubert => vec![
            ("conv_features", convolved.transpose(1, 2)?),
            ("pos_conv", network.positions(&projected)?),
            ("last_hidden_state", last),
        ],
    };
    outputs.extend(parts.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)));
    Ok(Seen { outputs, ids })
}

/// The standardised waveforms: the first by itself, and all of them with zeros behind the shorter ones.
fn inputs(fixture: &Fixture) -> Result<Outputs, ModelError> {
    let standardiser = Standardiser::open(fixture.folder())?;
    let mut waveforms = Vec::new();
    while fixture.has(&format!("waveform_{}", waveforms.len())) {
        let waveform = fixture.input(&format!("waveform_{}", waveforms.len()))?;
        let waveform = waveform.to_vec1::<f32>().map_err(compute("a waveform"))?;
        waveforms.push(standardiser.apply(&waveform));
    }
    let longest = waveforms.iter().map(Vec::len).max().unwrap_or_default();
    let first = waveforms.first().cloned().unwrap_or_default();
    let (mut batch, mut mask) = (Vec::new(), Vec::new());
    for waveform in &waveforms {
        let padding = longest - waveform.len();
        batch.extend(waveform.iter().copied().chain(std::iter::repeat_n(0.0, padding)));
        mask.extend(waveform.iter().map(|_| 1.0).chain(std::iter::repeat_n(0.0, padding)));
    }
    let tensor = |values: Vec<f32>, width: usize| {
        let rows = values.len() / width.max(1);
        Tensor::from_vec(values, (rows, width), &Device::Cpu).map_err(compute("waveforms"))
    };
    let alone = first.len();
    Ok(vec![
        ("in.input_values".to_owned(), tensor(first, alone)?),
        ("in.batch_input_values".to_owned(), tensor(batch, longest)?),
        ("in.batch_attention_mask".to_owned(), tensor(mask, longest)?),
    ])
}

fn rows(values: &Tensor) -> Result<Vec<Vec<f32>>, ModelError> {
    values.to_vec2().map_err(compute("waveforms"))
}

/// The notes' texts: they are no tensors of the fixture, so a difference is an error.
///
/// # Errors
/// [`ModelError::BadConfig`] names the ids and both texts.
fn texts(fixture: &Fixture, alphabet: &Alphabet, ids: &[u32]) -> Result<(), ModelError> {
    let rows = fixture.notes.get("ctc_ids_text_pairs").and_then(Value::as_array);
    let row = |row: &Value| -> Option<(Vec<u32>, String)> {
        let ids = row.get("ids")?.as_array()?.iter().map(|id| id.as_u64().map(|id| id as u32));
        Some((ids.collect::<Option<_>>()?, row.get("text")?.as_str()?.to_owned()))
    };
    let mut pairs: Vec<(Vec<u32>, String)> = rows.into_iter().flatten().filter_map(row).collect();
    pairs.extend(fixture.strings("ctc_text").into_iter().map(|text| (ids.to_vec(), text.to_owned())));
    for (ids, expected) in pairs {
        let found = alphabet.text(&ids);
        if found != expected {
            return Err(ModelError::BadConfig {
                origin: fixture.folder().file_name(NOTES),
                problem: format!("expected the text {expected:?} of the ids {ids:?}, found {found:?}"),
            });
        }
    }
    Ok(())
}
