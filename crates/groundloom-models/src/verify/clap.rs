//! Fixtures of sounds and texts.

use candle_core::{Device, Tensor};

use super::{
    Fixture, Outputs,
    dual::{captions, similarities},
    text::token_table,
    writers::named,
};
use crate::{
    ModelError,
    clap::{self, Clap, LogMel},
    config::Config,
    layers::{compute, normalise},
    spectrum::MelScale,
    text_tokenizer::TokenBatch,
    weights::Weights,
};

/// How far spectra in decibels may lie from the reference's, whose last bit is 8e-6 of a value near 100.
pub(super) const INPUT_TOLERANCE: f32 = 3e-5;

/// How far the square may lie from the reference's, whose values are normed decibels: the places between the frames are
/// computed in single precision, and in the fixtures the reference itself was 1e-3 from its own double precision there.
pub(super) const SQUARE_TOLERANCE: f32 = 2e-4;

pub(super) fn towers(fixture: &Fixture, config: &Config, weights: &Weights) -> Result<Outputs, ModelError> {
    let network = Clap::load(config, weights)?;
    let front = LogMel::open(fixture.folder(), &network)?;
    let tokenizer = clap::tokenizer(fixture.folder(), &network)?;
    let failed = compute("CLAP");
    let mut outputs = token_table(fixture, &tokenizer)?;
    let batch = captions(fixture, &tokenizer)?;
    let waveform: Vec<f32> = fixture.input("waveform")?.to_vec1().map_err(&failed)?;
    let made = front.apply(&waveform);
    // The network is given the fixture's own inputs, so that its error shows by itself.
    let spectrum = fixture.input("input_features")?;
    let given = spectrum.flatten_all().and_then(|x| x.to_vec1::<f32>()).map_err(&failed)?;
    let (ids, mask) = (fixture.ids("input_ids")?, fixture.ids("attention_mask")?);
    let run = || -> candle_core::Result<Outputs> {
        let audio = &network.audio;
        let square = audio.fold(&given)?;
        let map = audio.forward(&square)?;
        let audio_pooled = audio.pooled(&map)?;
        let audio_embeds = normalise(&network.audio_projection.forward(&audio_pooled)?)?;
        let text_pooled = network.text_pooled(&TokenBatch { types: ids.zeros_like()?, ids, mask })?;
        let text_embeds = normalise(&network.text_projection.forward(&text_pooled)?)?;
        let [of_audio, of_texts] = network.logit_scales;
        Ok(named([
            ("in.input_ids", batch.ids),
            ("in.attention_mask", batch.mask),
            ("in.input_features", Tensor::from_vec(made, spectrum.dims(), &Device::Cpu)?),
            ("mel_filters", front.filters(MelScale::Htk)?),
            ("mel_filters_slaney", front.filters(MelScale::Slaney)?),
            ("audio_reshaped_mel", square),
            ("audio_last_hidden", audio.unfold(&map)?),
            ("audio_pooled", audio_pooled),
            ("text_pooled", text_pooled),
            ("logits_per_audio", similarities(&audio_embeds, &text_embeds, of_audio, 0.0)?),
            ("logits_per_text", similarities(&text_embeds, &audio_embeds, of_texts, 0.0)?),
            ("audio_embeds", audio_embeds),
            ("text_embeds", text_embeds),
        ]))
    };
    outputs.extend(run().map_err(&failed)?);
    Ok(outputs)
}
