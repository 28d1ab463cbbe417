//! `transcribe`: what is said in a sound.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Float64Builder, ListBuilder, StringBuilder, StructBuilder},
    datatypes::{DataType, FieldRef, Fields, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use async_trait::async_trait;
use groundloom_data::{MediaView, columns};
use groundloom_models::{
    ModelError, ModelOn, ModelPool, SAMPLE_RATE, Segment, Transcriber, Transcribing, Transcript, Work, describe_model,
    resolve_transcriber,
};
use groundloom_spec::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    embeddable, inputs,
    opened::Opened,
    sounds::{Recording, default_audio},
    stage::{ColumnError, Outcome, RowWise, Stage, StageError},
    window::{Fault, Window, answered},
};

/// Adds what is said in each row's sound, written down by a model of speech that runs in this process.
///
/// Whisper hears windows of 30 seconds one after the other, each beginning where the last whole segment of the one before ends, as transformers' `generate` does without conditioning on
/// earlier text and without falling back to higher temperatures; the likeliest token is taken each time, or beams are searched. wav2vec 2.0 and HuBERT write the likeliest token of each frame (CTC) of the whole
/// sound at once. Silence and music may come out as words: a model writes something.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Transcribe {
    /// Column with the sound (`struct<bytes, path>`): WAV, FLAC, MP3, or Ogg with Vorbis or FLAC. Several channels become their mean; 16 kHz are reached as
    /// torchaudio's `resample` reaches them by default.
    #[serde(default = "default_audio")]
    #[schemars(length(min = 1))]
    pub audio: String,
    /// The path of a model folder in Hugging Face layout: Whisper, or wav2vec 2.0 or HuBERT for CTC.
    #[schemars(length(min = 1))]
    pub model: String,
    /// The language that is spoken, as Whisper names it (`en`); without, a Whisper of several languages hears it in the first window.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub language: Option<String>,
    /// Writes English, whatever is spoken (Whisper of several languages).
    #[serde(default)]
    pub translate: bool,
    /// Writes so many texts of each window side by side and takes the likeliest (Whisper), by the beam search of transformers' `generate`; openai-whisper's command line uses 5.
    /// Default: `num_beams` of the folder's `generation_config.json`, else 1: the likeliest token each time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub beams: Option<usize>,
    /// Column to write: the text.
    #[serde(default = "default_output")]
    #[schemars(length(min = 1))]
    pub output: String,
    /// Column to write the language to that was spoken or heard (`utf8`; null for a Whisper of English alone). Without, none is written.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub language_output: Option<String>,
    /// Column to write Whisper's segments to: `list<struct<start, end, text>>`, in seconds from the beginning of the sound. Without, none is written.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub segments_output: Option<String>,
    /// Column to write Whisper's words to, as `segments_output`: each with the space before it and the punctuation around it, so that the texts one behind the other are the whole. Words are
    /// timed by the heads of the decoder that `alignment_heads` of the folder's `generation_config.json` names, as transformers' `return_timestamps="word"` times them, in steps of 0.02 s; in Chinese,
    /// Japanese, Thai, Lao, Burmese and Cantonese they are characters, as openai-whisper's. Without, none is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub words_output: Option<String>,
    /// The longest sound in seconds; a longer one goes to quarantine. Default: 3600 for Whisper; 60 for the others, which take a whole sound at once and need 7 MB for each second of it.
    #[serde(default)]
    #[schemars(range(min = 0.001))]
    pub max_seconds: Option<f64>,
}

fn default_output() -> String {
    "text".to_owned()
}

impl Config for Transcribe {
    const NAME: &'static str = "transcribe";
    const SUMMARY: &'static str = "Add what is said in each row's sound";
    const EXAMPLE: &'static str =
        "spoken: { type: transcribe, audio: audio, model: models/whisper-small, segments_output: segments }";
}

const WHISPER: &str = "whisper";

impl Transcribe {
    fn asked(&self) -> Transcribing {
        Transcribing {
            language: self.language.clone(),
            translate: self.translate,
            timestamps: self.segments_output.is_some(),
            words: self.words_output.is_some(),
            beams: self.beams,
        }
    }

    fn most_seconds(&self, architecture: &str) -> f64 {
        self.max_seconds.unwrap_or(if architecture == WHISPER { 3600.0 } else { 60.0 })
    }

    /// What only Whisper can do, by the key that asks for it.
    fn asked_of_whisper(&self) -> Option<&'static str> {
        [
            ("language", self.language.is_some()),
            ("translate", self.translate),
            ("language_output", self.language_output.is_some()),
            ("segments_output", self.segments_output.is_some()),
            ("words_output", self.words_output.is_some()),
            ("beams", self.beams.is_some()),
        ]
        .into_iter()
        .find_map(|(key, asked)| asked.then_some(key))
    }
}

fn segment_fields() -> Fields {
    [("start", DataType::Float64), ("end", DataType::Float64), ("text", DataType::Utf8)]
        .map(|(name, kind)| columns::column(name, kind))
        .to_vec()
        .into()
}

fn segments_type() -> DataType {
    DataType::List(columns::column("item", DataType::Struct(segment_fields())))
}

impl Stage for Transcribe {
    fn outputs(&self, input: &Schema) -> Result<Vec<FieldRef>, ColumnError> {
        inputs::require(input, "audio", &self.audio, MediaView::check_type)?;
        let error = |key, message: String| ColumnError { key, column: self.model.clone(), message };
        let model = describe_model(&self.model).map_err(|e| embeddable::model_fault(&self.model, &e))?;
        match (model.architecture.as_str(), self.asked_of_whisper()) {
            (WHISPER, _) | ("wav2vec2" | "hubert", None) => {}
            (other @ ("wav2vec2" | "hubert"), Some(key)) => {
                return Err(error(key, format!("`{key}` needs a Whisper, found {} ({other})", model.name)));
            }
            (other, _) => {
                let expected = "expected Whisper, or wav2vec 2.0 or HuBERT for CTC";
                return Err(error("model", format!("{expected}, found {} ({other})", model.name)));
            }
        }
        let mut written = vec![columns::column(&self.output, DataType::Utf8)];
        written.extend(self.language_output.iter().map(|name| columns::column(name, DataType::Utf8)));
        for output in [&self.segments_output, &self.words_output] {
            written.extend(output.iter().map(|name| columns::column(name, segments_type())));
        }
        let names: Vec<&String> = written.iter().map(|field| field.name()).collect();
        for (key, name) in [
            ("language_output", &self.language_output),
            ("segments_output", &self.segments_output),
            ("words_output", &self.words_output),
        ] {
            if name.as_ref().is_some_and(|name| names.iter().filter(|other| **other == name).count() > 1) {
                return Err(error(
                    key,
                    format!("`{key}` names a column that this stage writes already; give it another name"),
                ));
            }
        }
        Ok(written)
    }

    fn open(&self, _input: SchemaRef, models: &Arc<ModelPool>) -> Result<Arc<dyn RowWise>, StageError> {
        Ok(Opened::new(self, models))
    }

    /// Sounds take seconds each: few enough that a stopped run loses little.
    fn window(&self) -> usize {
        32
    }

    fn models(&self) -> Result<Vec<String>, StageError> {
        embeddable::writer_identity(&self.model)
    }
}

/// A sound, and how it is written down.
struct Request {
    recording: Recording,
    asked: Arc<Transcribing>,
}

/// Decodes and transcribes.
struct TranscribeEncoded {
    transcriber: Arc<dyn Transcriber>,
}

impl Work for TranscribeEncoded {
    type Item = Request;
    type Output = Result<Transcript, Fault>;

    fn weights_bytes(&self) -> u64 {
        self.transcriber.info().weights_bytes
    }

    fn run(&self, items: &[Request]) -> Vec<Result<Self::Output, ModelError>> {
        let one = |item: &Request| {
            let waveform = match item.recording.decode(SAMPLE_RATE) {
                Ok(waveform) => waveform,
                Err(fault) => return Ok(Err(fault)),
            };
            let gone = || Err(ModelError::ShutDown { model: self.transcriber.info().name.clone() });
            let answers = self.transcriber.transcribe(&[&waveform], &item.asked);
            answers.into_iter().next().unwrap_or_else(gone).map(Ok)
        };
        items.iter().map(one).collect()
    }
}

#[async_trait]
impl RowWise for Opened<Transcribe> {
    async fn run(&self, rows: &RecordBatch) -> Result<Outcome, StageError> {
        let Transcribe { audio, model: name, .. } = &self.config;
        let sounds = Arc::new(MediaView::try_new(inputs::column(rows, audio)?).map_err(inputs::type_changed(audio))?);
        let load = |model: ModelOn<'_>| resolve_transcriber(model).map(|transcriber| TranscribeEncoded { transcriber });
        let model = self.model("transcriber", name, load).await?;
        let most = self.config.most_seconds(&model.work().transcriber.info().architecture);
        let asked = Arc::new(self.config.asked());
        let there = (0..rows.num_rows()).filter(|&row| sounds.bytes(row).is_some());
        let request = |row| Request { recording: Recording::new(&sounds, row, most), asked: Arc::clone(&asked) };
        let mut answers = model.submit(there.map(request).collect()).await.into_iter();

        let (mut window, mut written) = (Window::default(), Written::new());
        for row in 0..rows.num_rows() {
            let transcript = match sounds.bytes(row) {
                Some(_) => match answers.next() {
                    // Every row would fail by these.
                    Some(Err(error @ (ModelError::Unable { .. } | ModelError::UnknownLanguage { .. }))) => {
                        return Err(error.into());
                    }
                    answer => answered(answer, name)?,
                },
                None => Err(Fault::missing(audio, "give each row a sound")),
            };
            let transcript = window.settle(row, transcript);
            window.count("transcribed", usize::from(transcript.is_some()));
            written.append(transcript);
        }
        Ok(window.finish(written.finish(&self.config)))
    }
}

/// The columns so far.
struct Written {
    texts: StringBuilder,
    languages: StringBuilder,
    segments: Stretches,
    words: Stretches,
}

/// A column of stretches of texts.
struct Stretches(ListBuilder<StructBuilder>);

impl Stretches {
    fn new() -> Self {
        let (starts, ends, texts) = (Float64Builder::new(), Float64Builder::new(), StringBuilder::new());
        let segment = StructBuilder::new(segment_fields(), vec![Box::new(starts), Box::new(ends), Box::new(texts)]);
        let item = columns::column("item", DataType::Struct(segment_fields()));
        Self(ListBuilder::new(segment).with_field(item))
    }

    fn append(&mut self, stretches: Option<&[Segment]>) {
        let values = self.0.values();
        for segment in stretches.unwrap_or_default() {
            for (field, seconds) in [(0, segment.start), (1, segment.end)] {
                if let Some(times) = values.field_builder::<Float64Builder>(field) {
                    times.append_value(seconds);
                }
            }
            if let Some(texts) = values.field_builder::<StringBuilder>(2) {
                texts.append_value(&segment.text);
            }
            values.append(true);
        }
        self.0.append(stretches.is_some());
    }
}

impl Written {
    fn new() -> Self {
        let (texts, languages) = (StringBuilder::new(), StringBuilder::new());
        Self { texts, languages, segments: Stretches::new(), words: Stretches::new() }
    }

    fn append(&mut self, transcript: Option<Transcript>) {
        self.languages.append_option(transcript.as_ref().and_then(|said| said.language.as_deref()));
        self.texts.append_option(transcript.as_ref().map(|said| said.text.as_str()));
        self.segments.append(transcript.as_ref().map(|said| said.segments.as_slice()));
        self.words.append(transcript.as_ref().map(|said| said.words.as_slice()));
    }

    /// The columns that are asked for, in their order.
    fn finish(mut self, config: &Transcribe) -> Vec<ArrayRef> {
        let mut columns: Vec<ArrayRef> = vec![Arc::new(self.texts.finish())];
        if config.language_output.is_some() {
            columns.push(Arc::new(self.languages.finish()));
        }
        for (output, Stretches(mut stretches)) in
            [(&config.segments_output, self.segments), (&config.words_output, self.words)]
        {
            if output.is_some() {
                columns.push(Arc::new(stretches.finish()));
            }
        }
        columns
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::fs;

    use groundloom_data::sound::decode_mono;
    use serde_json::{Value, json};

    use super::*;
    use crate::{fixtures, stage::codes};

    fn fixture(family: &str) -> String {
        format!("{}/../groundloom-models/tests/data/fixtures/{family}", env!("CARGO_MANIFEST_DIR"))
    }

    fn sound(name: &str) -> Vec<u8> {
        fs::read(format!("{}/../groundloom-data/tests/sounds/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    fn stage(config: Value) -> Transcribe {
        serde_json::from_value(config).unwrap()
    }

    /// A WAV of `seconds` of a swelling hum.
    fn hum(seconds: usize) -> Vec<u8> {
        let samples = seconds * SAMPLE_RATE as usize;
        let bytes = (samples * 2) as u32;
        let mut wav = [b"RIFF".as_slice(), &(bytes + 36).to_le_bytes(), b"WAVEfmt \x10\0\0\0\x01\0\x01\0"].concat();
        wav.extend(SAMPLE_RATE.to_le_bytes());
        wav.extend((2 * SAMPLE_RATE).to_le_bytes());
        wav.extend(b"\x02\0\x10\0data");
        wav.extend(bytes.to_le_bytes());
        let sample = |i: usize| ((i as f32 * 0.05).sin() * (i as f32 / 9000.0).sin() * 12_000.0) as i16;
        wav.extend((0..samples).flat_map(|i| sample(i).to_le_bytes()));
        wav
    }

    #[test]
    fn each_row_is_what_the_model_says_of_its_sound() {
        let (wav, long) = (sound("stereo.wav"), hum(5));
        let rows = fixtures::rows([(
            "audio",
            fixtures::media([
                Some((&wav, "a.wav")),
                None,
                Some((&wav[..999], "cut.wav")),
                Some((&long, "long.wav")),
                Some((b"", "e")),
            ]),
        )]);
        let config = json!({
            "model": fixture("whisper"), "segments_output": "segments", "language_output": "language",
            "words_output": "words",
        });
        let outcome = fixtures::run(&stage(config), &rows);
        let failures = fixtures::failures(&outcome);
        let found: Vec<_> = failures.iter().map(|f| (f.0, f.1)).collect();
        assert_eq!(found, [(1, codes::MISSING_VALUE), (2, codes::UNDECODABLE_AUDIO), (4, codes::UNDECODABLE_AUDIO)]);
        assert!(failures[1].2.starts_with("cut.wav: the wav sound is cut off"), "{}", failures[1].2);
        assert_eq!(fixtures::counts(&outcome), [("transcribed", 2)]);
        let transcriber = resolve_transcriber(&fixture("whisper")).unwrap();
        let asked = Transcribing { timestamps: true, words: true, ..Transcribing::default() };
        let [texts, languages, segments, words] = [0, 1, 2, 3].map(|i| fixtures::json(&outcome.columns[i]));
        for (row, bytes) in [(0, &wav), (3, &long)] {
            let waveform = decode_mono(bytes, Some(SAMPLE_RATE), &Default::default()).unwrap().samples;
            let said = transcriber.transcribe(&[&waveform], &asked).remove(0).unwrap();
            assert_eq!(
                (texts[row].as_str(), languages[row].as_str()),
                (Some(said.text.as_str()), said.language.as_deref())
            );
            for (found, said) in [(&segments, &said.segments), (&words, &said.words)] {
                let found = found[row].as_array().unwrap();
                assert_eq!(found.len(), said.len(), "{row}");
                for (found, expected) in found.iter().zip(said) {
                    assert_eq!(found["text"], expected.text);
                    let apart = |key: &str, expected: f64| (found[key].as_f64().unwrap() - expected).abs();
                    assert!(apart("start", expected.start) < 1e-9 && apart("end", expected.end) < 1e-9, "{found}");
                }
            }
            assert!(said.words.iter().all(|word| word.start <= word.end), "{:?}", said.words);
        }
        assert!(words[1].is_null() && words[3].as_array().unwrap().len() > 1, "{words:?}");
        // The window of this model is one second: five of them.
        assert!(segments[3].as_array().unwrap().len() > 1, "{}", segments[3]);

        // Another language, and another task, are another text.
        let german = fixtures::run(&stage(json!({"model": fixture("whisper"), "language": "de"})), &rows);
        assert_eq!(german.columns.len(), 1);
        let searched = fixtures::run(&stage(json!({"model": fixture("whisper"), "beams": 3})), &rows);
        assert_ne!(fixtures::json(&searched.columns[0])[3], texts[3]);
        assert_ne!(fixtures::json(&german.columns[0])[0], texts[0]);
    }

    #[test]
    fn frames_become_texts() {
        let wav = sound("stereo.wav");
        let rows = fixtures::rows([("audio", fixtures::media([Some((&wav, "a.wav")), Some((&wav[..60], "b"))]))]);
        let outcome = fixtures::run(&stage(json!({"model": fixture("wav2vec2")})), &rows);
        let waveform = decode_mono(&wav, Some(SAMPLE_RATE), &Default::default()).unwrap().samples;
        let transcriber = resolve_transcriber(&fixture("wav2vec2")).unwrap();
        let said = transcriber.transcribe(&[&waveform], &Transcribing::default()).remove(0).unwrap();
        assert_eq!(fixtures::json(&outcome.columns[0])[0].as_str(), Some(said.text.as_str()));
        let long = hum(61);
        let rows = fixtures::rows([("audio", fixtures::media([Some((&long, "long.wav"))]))]);
        let outcome = fixtures::run(&stage(json!({"model": fixture("wav2vec2")})), &rows);
        let failures = fixtures::failures(&outcome);
        assert_eq!(failures[0].1, codes::AUDIO_TOO_LONG);
        assert!(
            failures[0].2.starts_with("long.wav: the sound is longer than the limit of 60 seconds"),
            "{}",
            failures[0].2
        );
    }

    #[test]
    fn what_a_model_cannot_do_is_found_before_any_work() {
        let rows = fixtures::rows([("audio", fixtures::media([None])), ("caption", fixtures::texts([None]))]);
        let (ctc, whisper) = (fixture("wav2vec2"), fixture("whisper"));
        let cases = [
            (json!({"model": whisper, "audio": "caption"}), "audio", "expected a media column"),
            (json!({"model": whisper, "audio": "sound"}), "audio", "there is no column `sound` here"),
            (json!({"model": ctc, "segments_output": "s"}), "segments_output", "needs a Whisper, found"),
            (json!({"model": ctc, "language": "en"}), "language", "needs a Whisper, found"),
            (json!({"model": ctc, "beams": 2}), "beams", "needs a Whisper, found"),
            (json!({"model": ctc, "words_output": "w"}), "words_output", "needs a Whisper, found"),
            (
                json!({"model": whisper, "segments_output": "w", "words_output": "w"}),
                "segments_output",
                "writes already",
            ),
            (json!({"model": fixture("bert")}), "model", "expected Whisper, or wav2vec 2.0 or HuBERT for CTC"),
            (json!({"model": "no-such-model"}), "model", "no model is called"),
            (json!({"model": whisper, "segments_output": "text"}), "segments_output", "writes already"),
        ];
        for (config, key, message) in cases {
            let error = stage(config).outputs(&rows.schema()).unwrap_err();
            assert!(error.key == key && error.message.contains(message), "{error:?}");
        }
    }
}
