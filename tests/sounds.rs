//! Sounds and films by hand and in pipelines, with small models of random weights: what they write is nonsense, but it is the same nonsense every time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{collections::BTreeMap, fs, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, StringArray},
    datatypes::{Float32Type, Float64Type},
};
use groundloom_data::MediaBuilder;
use parquet::arrow::ArrowWriter;
use support::{Bench, root, texts};

fn fixture(family: &str) -> String {
    root().join("crates/groundloom-models/tests/data/fixtures").join(family).display().to_string()
}

fn sound_path(name: &str) -> String {
    root().join("crates/groundloom-data/tests/sounds").join(name).display().to_string()
}

fn sound(name: &str) -> Vec<u8> {
    fs::read(sound_path(name)).unwrap()
}

/// A Parquet file as Hugging Face's `Audio` feature lays it out.
fn rows_of_sounds(bench: &Bench, name: &str, sounds: &[(&str, Option<&[u8]>)]) {
    let mut audio = MediaBuilder::new();
    for (path, bytes) in sounds {
        audio.append(*bytes, Some(path));
    }
    let names: ArrayRef = Arc::new(StringArray::from_iter_values(sounds.iter().map(|(path, _)| *path)));
    let rows = RecordBatch::try_from_iter([("name", names), ("audio", Arc::new(audio.finish()) as ArrayRef)]).unwrap();
    let mut writer = ArrowWriter::try_new(fs::File::create(bench.path(name)).unwrap(), rows.schema(), None).unwrap();
    writer.write(&rows).unwrap();
    writer.close().unwrap();
}

#[test]
fn sounds_become_json_lines() {
    let bench = Bench::new();
    bench.write("page.wav", "<!DOCTYPE html><html>404</html>");
    let clap = fixture("clap");
    let (wav, mp3) = (sound_path("stereo.wav"), sound_path("mono.mp3"));
    let said = bench.run(&["embed", "--model", &clap, "--text", "rain", "--audio", &wav, "page.wav", "gone.wav", &mp3]);
    let lines: Vec<serde_json::Value> = said.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((said.code, lines.len()), (Some(1), 3), "{}", said.err);
    assert!(lines[1]["audio"] == wav.as_str() && lines[1]["embedding"].as_array().unwrap().len() == 12, "{lines:?}");
    for part in ["page.wav: expected a WAV, FLAC, MP3 or Ogg sound, found an HTML page", "gone.wav", "2 of 5 inputs"] {
        assert!(said.err.contains(part), "{}", said.err);
    }
    let said = bench.run(&["embed", "--audio", &wav]);
    assert!(said.code == Some(2) && said.err.contains("takes texts, but no audio"), "{}", said.err);
}

#[test]
fn a_pipeline_embeds_and_transcribes_and_bad_sounds_go_to_quarantine() {
    let bench = Bench::new();
    let (wav, flac, ogg, mp3) = (sound("stereo.wav"), sound("mono.flac"), sound("mono.ogg"), sound("tagged.mp3"));
    rows_of_sounds(
        &bench,
        "in.parquet",
        &[
            ("a.wav", Some(&wav)),
            ("cut.wav", Some(&wav[..2000])),
            ("b.flac", Some(&flac)),
            ("nothing", None),
            ("c.ogg", Some(&ogg)),
            ("page.mp3", Some(b"<html>404</html>")),
            ("opus.ogg", Some(&sound("opus.ogg"))),
            ("d.mp3", Some(&mp3)),
            ("empty.wav", Some(&sound("empty.wav"))),
        ],
    );
    let pipeline = format!(
        "
sources: {{ sounds: {{ type: parquet, path: in.parquet }} }}
stages:
  heard: {{ type: embed, audio: audio, model: '{clap}' }}
  said: {{ type: transcribe, model: '{whisper}', output: said, language_output: language, segments_output: segments }}
  letters: {{ type: transcribe, model: '{ctc}', output: letters }}
sinks: {{ out: {{ type: parquet, path: out, columns: [name, embedding, said, language, segments, letters] }} }}
",
        clap = fixture("clap"),
        whisper = fixture("whisper"),
        ctc = fixture("wav2vec2"),
    );
    bench.write("p.yaml", &pipeline);
    bench.ok(&["run", "p.yaml", "--threads", "1"]);
    let rows = bench.rows("out/data");
    assert_eq!(texts(&rows, "name"), ["a.wav", "b.flac", "c.ogg", "d.mp3"]);
    let vectors = rows.column_by_name("embedding").unwrap().as_fixed_size_list().clone();
    assert_eq!((vectors.value_length(), vectors.null_count()), (12, 0));
    let length: f32 = vectors.value(0).as_primitive::<Float32Type>().values().iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-5, "{length}");
    assert!(texts(&rows, "said").iter().all(|text| !text.is_empty() && text != "∅"));
    assert!(texts(&rows, "letters").iter().all(|text| text != "∅"));
    assert!(texts(&rows, "language").iter().all(|language| ["en", "de"].contains(&language.as_str())), "{rows:?}");
    let segments = rows.column_by_name("segments").unwrap().as_list::<i32>().clone();
    assert!(segments.null_count() == 0 && !segments.value(0).is_empty());
    let first = segments.value(0);
    let time = |name: &str| first.as_struct().column_by_name(name).unwrap().as_primitive::<Float64Type>().value(0);
    assert!(time("start") >= 0.0 && time("start") <= time("end"));

    let bad = bench.rows("out/_quarantine");
    let codes: BTreeMap<String, String> = texts(&bad, "name").into_iter().zip(texts(&bad, "code")).collect();
    let expected = [
        ("cut.wav", "undecodable_audio"),
        ("empty.wav", "undecodable_audio"),
        ("nothing", "missing_value"),
        ("opus.ogg", "undecodable_audio"),
        ("page.mp3", "undecodable_audio"),
    ];
    assert_eq!(codes, expected.map(|(name, code)| (name.to_owned(), code.to_owned())).into());
    let messages = texts(&bad, "message");
    for part in
        ["cut.wav: the wav sound is cut off", "opus.ogg: Opus is not supported", "empty.wav: the wav sound has no"]
    {
        assert!(messages.iter().any(|message| message.contains(part)), "{messages:?}");
    }

    // Threads change nothing.
    bench.write("again.yaml", pipeline.replace("path: out", "path: again"));
    bench.ok(&["run", "again.yaml", "--threads", "3"]);
    assert_eq!(rows.columns(), bench.rows("again/data").columns());
}

#[test]
fn sounds_in_archives_are_transcribed() {
    let bench = Bench::new();
    let (wav, flac) = (sound("stereo.wav"), sound("mono.flac"));
    rows_of_sounds(&bench, "in.parquet", &[("a", Some(&wav)), ("b", Some(&flac))]);
    bench.write(
        "pack.yaml",
        "sources: { s: { type: parquet, path: in.parquet } }
sinks: { out: { type: webdataset, path: tars, key: name } }
",
    );
    bench.ok(&["run", "pack.yaml"]);
    bench.write(
        "p.yaml",
        format!(
            "sources: {{ s: {{ type: webdataset, path: tars/data }} }}
stages: {{ said: {{ type: transcribe, model: '{}' }} }}
sinks: {{ out: {{ type: parquet, path: out }} }}
",
            fixture("whisper")
        ),
    );
    bench.ok(&["run", "p.yaml"]);
    assert!(texts(&bench.rows("out/data"), "text").iter().all(|text| !text.is_empty() && text != "∅"));
}

#[test]
fn a_model_that_does_not_hear_is_refused_where_it_is_named() {
    let bench = Bench::new();
    let wav = sound("stereo.wav");
    rows_of_sounds(&bench, "in.parquet", &[("a.wav", Some(&wav))]);
    let check = |stage: &str| {
        let pipeline = format!(
            "sources: {{ sounds: {{ type: parquet, path: in.parquet }} }}
stages:
  heard: {{ {stage} }}
sinks: {{ out: {{ type: parquet, path: out }} }}
"
        );
        bench.write("p.yaml", pipeline);
        let said = bench.run(&["check", "p.yaml"]);
        assert_eq!(said.code, Some(2), "{stage}: {}", said.err);
        said.err
    };
    let clap = fixture("clap");
    let cases = [
        ("type: embed, audio: audio".to_owned(), "p.yaml:3:32", "takes texts, but no audio"),
        (format!("type: embed, video: audio, model: '{clap}'"), "p.yaml:3:32", "takes texts, audio, but no videos"),
        (format!("type: embed, audio: name, model: '{clap}'"), "p.yaml:3:32", "expected a column of sounds"),
        (format!("type: embed, model: '{clap}'"), "p.yaml:3:", "expected one of `column`, `audio` and `video`"),
        (format!("type: transcribe, model: '{clap}'"), "p.yaml:3:37", "expected Whisper, or wav2vec 2.0 or HuBERT"),
    ];
    for (stage, place, message) in cases {
        let error = check(&stage);
        assert!(error.contains(place) && error.contains(message), "{place} {message}\n{error}");
    }
}
