//! Fixtures of Whisper.

use candle_core::{Device, Tensor};
use serde_json::Value;

use super::{
    Fixture, NOTES, Outputs,
    writers::{greedy, named, open, tokens_and_texts},
};
use crate::{
    ModelError,
    config::Config,
    decoder::Past,
    generation::Generation,
    language_model::row,
    layers::compute,
    speech::{Segment, Transcribing},
    whisper::{Timed, WhisperTranscriber},
    writing::{Writing, Written},
};

/// How far log-mel spectra may lie from the reference's, which transforms in single precision: where a frequency is 10⁻⁸ as
/// strong as another, that is felt.
pub(super) const INPUT_TOLERANCE: f32 = 2e-5;

/// How far the times of words may lie from the reference's, in seconds: they are whole steps of 0.02 s, in single precision.
pub(super) const WORD_TOLERANCE: f32 = 1e-5;

pub(super) fn transcriber(fixture: &Fixture) -> Result<Outputs, ModelError> {
    let transcriber = open(fixture)?.whisper_transcriber()?;
    let (network, log_mel) = (&transcriber.encoder.network, &transcriber.encoder.log_mel);
    tokens_and_texts(fixture, &transcriber.tokenizer)?;
    let failed = compute("Whisper");
    let waveform = waveform(fixture, "waveform")?;
    let made = log_mel.apply(&waveform);
    // The network is given the fixture's own spectrum, so that its error shows by itself.
    let given = fixture.input("input_features")?.squeeze(0).and_then(|x| x.t()?.flatten_all()?.to_vec1::<f32>());
    let given = given.map_err(&failed)?;
    let ids = fixture.ids("decoder_input_ids")?;
    let run = || -> candle_core::Result<Outputs> {
        let mut hidden = Vec::new();
        let last = network.encode(&given, network.layers(), &mut |x| hidden.push(x.clone()))?;
        let encoded = network.normed(&last)?;
        let memory = network.remember(&encoded)?;
        let spectrum = Tensor::from_vec(made, (1, log_mel.window(), network.mels), &Device::Cpu)?.transpose(1, 2)?;
        let sums = Tensor::new(log_mel.filter_sums(), &Device::Cpu)?;
        let mut outputs = named([
            ("in.input_features", spectrum),
            ("mel_filters_row_sums", sums),
            ("encoder_last_hidden", encoded),
            ("decoder_logits", network.decode(&ids, &mut Past::default(), &memory)?),
        ]);
        outputs.extend(hidden.into_iter().enumerate().map(|(i, x)| (format!("encoder_hidden.{i}"), x)));
        Ok(outputs)
    };
    let mut outputs = run().map_err(&failed)?;
    let memory = transcriber.remember(&given)?;
    let asked = Transcribing { language: Some("en".to_owned()), ..Transcribing::default() };
    let language = transcriber.prompts.language("fixture", &asked)?;
    let prompt = transcriber.prompts.prompt(language, false, false);
    outputs.extend(greedy(fixture, "greedy", &prompt, transcriber.prompts.end, |writing, each| {
        transcriber.write(&memory, &prompt, false, writing, each)
    })?);
    if fixture.has("long_waveform") {
        outputs.extend(heard(fixture, &transcriber, &waveform)?);
    }
    outputs.extend(words(fixture, &transcriber)?);
    Ok(outputs)
}

/// The words of the notes: their texts, and when they are said.
///
/// # Errors
/// [`ModelError::BadConfig`] names words that differ, and what came in their place.
fn words(fixture: &Fixture, transcriber: &WhisperTranscriber) -> Result<Outputs, ModelError> {
    let texts = |expected: Vec<&str>, found: &[Segment]| {
        let found: Vec<&str> = found.iter().map(|word| word.text.as_str()).collect();
        let problem = || format!("expected the words {expected:?}, found {found:?}");
        match found == expected {
            true => Ok(()),
            false => Err(ModelError::BadConfig { origin: fixture.folder().file_name(NOTES), problem: problem() }),
        }
    };
    let rows = |value: &Value| value.as_array().into_iter().flatten().cloned().collect::<Vec<_>>();
    if let Some(unspaced) = fixture.notes.get("unspaced") {
        let ids = rows(&unspaced["ids"]).into_iter().filter_map(|id| id.as_u64());
        let tokens: Vec<Timed> = ids.map(|id| Timed { id: id as u32, end: 0.0 }).collect();
        let found = transcriber.split_words(&tokens, Some("ja"))?;
        texts(rows(&unspaced["words"]).iter().filter_map(Value::as_str).collect(), &found)?;
    }
    let mut outputs = Outputs::new();
    for (name, case) in fixture.words() {
        let options = Config::new(fixture.folder().file_name(NOTES), case.as_object().cloned().unwrap_or_default());
        let asked = Transcribing { words: true, ..Transcribing::default() };
        let writing = Generation::read(&options)?.fill(&endless());
        let whole = waveform(fixture, "long_waveform")?;
        let samples = options.size_or("samples", whole.len())?.min(whole.len());
        let heard = transcriber.listen(&whole[..samples], &asked, &writing)?;
        let found = transcriber.words_of(&heard)?;
        let expected = rows(&case["words"]);
        texts(expected.iter().filter_map(|word| word[0].as_str()).collect(), &found)?;
        let times: Vec<f32> = found.iter().flat_map(|word| [word.start as f32, word.end as f32]).collect();
        let times = Tensor::from_vec(times, (found.len(), 2), &Device::Cpu).map_err(compute("a fixture"))?;
        outputs.push((name, times));
    }
    Ok(outputs)
}

/// The likeliest tokens up to the model's own limit.
fn endless() -> Writing {
    Writing { max_new_tokens: usize::MAX, ..Writing::default() }
}

fn waveform(fixture: &Fixture, name: &str) -> Result<Vec<f32>, ModelError> {
    fixture.input(name)?.to_vec1().map_err(compute("a waveform"))
}

/// What the reference's own `generate` gave with timestamps, for a short waveform and for a long one: the tokens of all
/// stretches, and when they begin and end. What language it heard, and the texts of the notes.
fn heard(fixture: &Fixture, transcriber: &WhisperTranscriber, short: &[f32]) -> Result<Outputs, ModelError> {
    let long = waveform(fixture, "long_waveform")?;
    let mut outputs = Outputs::new();
    for (name, waveform, timestamps, translate) in
        [("plain", short, false, false), ("timed", short, true, true), ("long", &long, true, false)]
    {
        let asked = Transcribing { timestamps, translate, ..Transcribing::default() };
        outputs.extend(fixture.beams.found(name, |_, writing| {
            let ids = transcriber.listen(waveform, &asked, writing)?.ids();
            Ok(Written { ids, ..Written::default() })
        })?);
        let heard = transcriber.listen(waveform, &asked, &endless())?;
        let ids = heard.ids();
        let times: Vec<f32> =
            heard.stretches.iter().flat_map(|stretch| [stretch.start as f32, stretch.end as f32]).collect();
        let text = transcriber.text(&ids)?;
        let expected = fixture.notes.get(format!("{name}_text")).and_then(Value::as_str);
        if expected != Some(&text) {
            return Err(ModelError::BadConfig {
                origin: fixture.folder().file_name(NOTES),
                problem: format!("expected the text {expected:?} as {name}_text, found {text:?}"),
            });
        }
        let tensors = || {
            let times = Tensor::from_vec(times, (heard.stretches.len(), 2), &Device::Cpu)?;
            let language: Vec<u32> = heard.language.into_iter().collect();
            Ok(vec![
                (format!("{name}_ids"), row(&ids)?),
                (format!("{name}_times"), times),
                (format!("{name}_language_ids"), row(&language)?),
            ])
        };
        outputs.extend(tensors().map_err(compute("a fixture"))?);
    }
    Ok(outputs)
}
