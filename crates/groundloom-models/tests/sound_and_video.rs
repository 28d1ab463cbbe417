//! Whisper, CLAP and VideoMAE: what an answer is, what it depends on, and what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::{fs, path::Path};

use candle_core::{DType, Device, Tensor, safetensors};
use groundloom_models::{
    Modality, ModelError, Transcribing, Transcript, describe_embedder, describe_model, resolve_audio_encoder,
    resolve_embedder, resolve_transcriber,
};
use image::RgbImage;

fn fixture(family: &str) -> String {
    format!("{}/tests/data/fixtures/{family}", env!("CARGO_MANIFEST_DIR"))
}

fn expected(family: &str, name: &str) -> Tensor {
    let tensors = safetensors::load(format!("{}/expected.safetensors", fixture(family)), &Device::Cpu).unwrap();
    tensors[name].to_dtype(DType::F32).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn note(family: &str, key: &str) -> String {
    let notes = fs::read(format!("{}/expected.json", fixture(family))).unwrap();
    let notes: serde_json::Value = serde_json::from_slice(&notes).unwrap();
    notes[key].as_str().unwrap().to_owned()
}

fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn hum(samples: usize, pitch: f32) -> Vec<f32> {
    (0..samples).map(|i| (i as f32 * pitch).sin() * 0.3 + (i * 7919 % 101) as f32 / 500.0).collect()
}

fn with_threads<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

const PLAIN: Transcribing =
    Transcribing { language: None, translate: false, timestamps: false, words: false, beams: None };

#[test]
fn whisper_writes_what_the_reference_writes() {
    let transcriber = resolve_transcriber(&fixture("whisper")).unwrap();
    assert_eq!(transcriber.info(), &describe_model(&fixture("whisper")).unwrap());
    let (short, long) = (expected("whisper", "in.waveform"), expected("whisper", "in.long_waveform"));
    let (short, long) = (values(&short), values(&long));
    let timed = Transcribing { timestamps: true, translate: true, ..PLAIN };
    for (name, waveform, asked) in [("plain", &short, &PLAIN), ("timed", &short, &timed), ("long", &long, &PLAIN)] {
        let said = transcriber.transcribe(&[waveform], asked).remove(0).unwrap();
        assert_eq!(said.text, note("whisper", &format!("{name}_text")).trim());
        assert_eq!(said.language.as_deref(), Some("en"), "{name}");
        // A waveform of one window has segments only where they are asked for.
        let times = if name == "plain" { vec![] } else { values(&expected("whisper", &format!("out.{name}_times"))) };
        let found: Vec<f32> = said.segments.iter().flat_map(|part| [part.start as f32, part.end as f32]).collect();
        assert!(apart(&found, &times) < 1e-5, "{name}: {found:?} {times:?}");
        assert!(said.segments.iter().all(|part| part.text == part.text.trim()));
    }
    // Another language is another prompt.
    let german = Transcribing { language: Some("de".to_owned()), ..PLAIN };
    let said = transcriber.transcribe(&[&short], &german).remove(0).unwrap();
    assert_eq!(said.language.as_deref(), Some("de"));
    assert_ne!(said.text, note("whisper", "plain_text").trim());
}

#[test]
fn whispers_features_are_those_of_the_waveform() {
    let encoder = resolve_audio_encoder(&fixture("whisper")).unwrap();
    assert_eq!((encoder.layers(), encoder.width()), (2, 16));
    let waveform = values(&expected("whisper", "in.waveform"));
    for (layer, name) in
        [(Some(0), "out.encoder_hidden.0"), (Some(1), "out.encoder_hidden.1"), (None, "out.encoder_last_hidden")]
    {
        let found = encoder.features(&[&waveform], layer).remove(0).unwrap();
        // 12 345 samples, 320 a frame, of a window of 50.
        assert_eq!((found.frames, found.width, found.values.len()), (39, 16, 39 * 16));
        // From the waveform on: the spectrum's own tolerance is felt.
        assert!(apart(&found.values, &values(&expected("whisper", name))[..39 * 16]) < 1e-4, "{name}");
    }
    // A window is 1 s.
    let long = hum(33_000, 0.1);
    let found = encoder.features(&[&long], None).remove(0).unwrap();
    assert_eq!(found.frames, 50 + 50 + 4);
    assert_eq!(found.values[..50 * 16], encoder.features(&[&long[..16_000]], None).remove(0).unwrap().values);
    assert!(matches!(encoder.features(&[&long], Some(3))[0], Err(ModelError::NoLayer { layers: 2, .. })));
}

#[test]
fn what_whisper_says_depends_on_the_waveform_alone() {
    let transcriber = resolve_transcriber(&fixture("whisper")).unwrap();
    let mut broken = hum(2000, 0.1);
    broken[7] = f32::INFINITY;
    let waveforms = [hum(3000, 0.05), vec![0.0; 16_000], vec![], broken, hum(1, 0.3), hum(40_001, 0.02)];
    let views: Vec<&[f32]> = waveforms.iter().map(Vec::as_slice).collect();
    for asked in
        [PLAIN, Transcribing { timestamps: true, ..PLAIN }, Transcribing { words: true, beams: Some(3), ..PLAIN }]
    {
        let together = transcriber.transcribe(&views, &asked);
        for (waveform, said) in views.iter().zip(&together) {
            assert_eq!(&transcriber.transcribe(&[waveform], &asked)[0], said);
        }
        assert_eq!(together[2], Err(ModelError::ShortWaveform { samples: 0, least: 1 }));
        assert_eq!(together[3], Err(ModelError::BadSample { place: 7, found: "inf".to_owned() }));
        assert_eq!(together.iter().filter(|said| said.is_ok()).count(), 4);
        let segments = |said: &Transcript| said.segments.iter().map(|part| (part.start, part.end)).collect::<Vec<_>>();
        let long = segments(together[5].as_ref().unwrap());
        assert!(!long.is_empty() && long.iter().all(|(start, end)| start <= end), "{long:?}");
        assert!(long.is_sorted_by(|a, b| a.0 <= b.0), "{long:?}");
        for said in together.iter().flatten() {
            // The words of all stretches, none of which is told twice.
            let words: String = said.words.iter().map(|word| word.text.as_str()).collect();
            assert!(
                words.is_empty() != asked.words && said.text.starts_with(words.trim()),
                "{words:?} {:?}",
                said.text
            );
            assert!(said.words.iter().all(|word| 0.0 <= word.start && word.start <= word.end), "{:?}", said.words);
        }
        let on = |threads| with_threads(threads, || transcriber.transcribe(&views, &asked));
        assert_eq!([on(1), on(3)], [together.clone(), together]);
    }
}

#[test]
fn what_a_transcriber_cannot_do_it_says() {
    let waveform = hum(2000, 0.1);
    let asked = |language: Option<&str>, translate| Transcribing {
        language: language.map(str::to_owned),
        translate,
        ..Transcribing::default()
    };
    let error = |family: &str, asked: &Transcribing| {
        resolve_transcriber(family).unwrap().transcribe(&[&waveform], asked).remove(0).unwrap_err().to_string()
    };
    let message = error(&fixture("whisper"), &asked(Some("fr"), false));
    assert!(message.ends_with("knows no language \"fr\"; expected one of: en, de"), "{message}");
    for (asked, what) in [(asked(None, true), "translate speech"), (asked(Some("en"), false), "choose among languages")]
    {
        let message = error(&fixture("wav2vec2"), &asked);
        assert!(message.contains(&format!("cannot {what}; expected a Whisper")), "{message}");
    }
    for (asked, what) in [
        (Transcribing { beams: Some(2), ..PLAIN }, "search beams"),
        (Transcribing { words: true, ..PLAIN }, "tell when words are said"),
    ] {
        let message = error(&fixture("wav2vec2"), &asked);
        assert!(message.ends_with(&format!("cannot {what}; expected a Whisper")), "{message}");
    }
    // Words are timed by heads that the folder names.
    let unnamed =
        changed("whisper", "generation_config.json", |text| text.replace("alignment_heads", "_from_model_config"));
    let message = error(unnamed.path().to_str().unwrap(), &Transcribing { words: true, ..PLAIN });
    assert!(message.contains("expected a Whisper whose generation_config.json names its alignment_heads"), "{message}");
    // A model of English alone, as its folder says.
    let english = changed("whisper", "generation_config.json", |text| {
        text.replace("\"is_multilingual\": true", "\"is_multilingual\": false, \"forced_decoder_ids\": [[1, 338]]")
    });
    let name = english.path().to_str().unwrap();
    assert!(error(name, &asked(None, true)).contains("cannot translate speech"));
    assert!(error(name, &asked(Some("en"), false)).contains("knows no language"));
    let said = resolve_transcriber(name).unwrap().transcribe(&[&waveform], &PLAIN).remove(0).unwrap();
    assert_eq!(said.language, None);
}

#[test]
fn clap_puts_sounds_and_texts_into_one_space() {
    let embedder = resolve_embedder(&fixture("clap")).unwrap();
    let info = embedder.info();
    assert_eq!(info, &describe_embedder(&fixture("clap")).unwrap());
    assert_eq!((info.dims, info.normalised, info.texts, info.images), (12, true, true, false));
    assert_eq!(info.sample_rate, Some(16_000));
    let waveform = values(&expected("clap", "in.waveform"));
    let found = embedder.embed_audio(&[&waveform]).remove(0).unwrap();
    assert!(apart(&found, &values(&expected("clap", "out.audio_embeds"))) < 2e-5);
    let texts = ["a photo of a cat", "two dogs sleeping on a pink couch", ""];
    let vectors: Vec<f32> = embedder.embed_texts(&texts).into_iter().flat_map(Result::unwrap).collect();
    assert!(apart(&vectors, &values(&expected("clap", "out.text_embeds"))) < 2e-5);
    assert!(matches!(
        embedder.embed_images(&[&RgbImage::new(3, 3)])[0],
        Err(ModelError::NoModality { what: "images", .. })
    ));
    let deaf = resolve_embedder(&fixture("clip")).unwrap();
    assert_eq!(deaf.info().sample_rate, None);
    assert!(matches!(deaf.embed_audio(&[&waveform])[0], Err(ModelError::NoModality { what: "audio", .. })));
}

#[test]
fn a_sounds_vector_depends_on_the_sound_alone() {
    let embedder = resolve_embedder(&fixture("clap")).unwrap();
    let mut broken = hum(2000, 0.1);
    broken[3] = f32::NAN;
    // A window is 2 s: a longer sound counts as far as it reaches.
    let long = hum(70_000, 0.03);
    let waveforms =
        [hum(1, 0.2), hum(31_999, 0.05), vec![0.0; 500], vec![], broken, long.clone(), long[..32_000].to_vec()];
    let views: Vec<&[f32]> = waveforms.iter().map(Vec::as_slice).collect();
    let together = embedder.embed_audio(&views);
    for (waveform, vector) in views.iter().zip(&together) {
        assert_eq!(&embedder.embed_audio(&[waveform])[0], vector);
        if let Ok(vector) = vector {
            assert!((vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }
    assert_eq!(together[3], Err(ModelError::ShortWaveform { samples: 0, least: 1 }));
    assert_eq!(together[4], Err(ModelError::BadSample { place: 3, found: "NaN".to_owned() }));
    assert_eq!(together[5], together[6]);
    assert_eq!(with_threads(3, || embedder.embed_audio(&views)), together);
}

#[test]
fn a_clips_vector_is_the_mean_of_what_the_reference_gives_last() {
    for family in ["videomae", "videomae_base"] {
        let encoder = resolve_embedder(&fixture(family)).unwrap();
        let info = encoder.info();
        assert_eq!(info, &describe_embedder(&fixture(family)).unwrap());
        assert_eq!((info.video_frames, info.dims, info.texts, info.images), (Some(4), 24, false, false));
        assert_eq!(info.modalities().collect::<Vec<_>>(), [Modality::Video]);
        let frames: Vec<RgbImage> = (0..4)
            .map(|i| {
                let bytes = values(&expected(family, &format!("in.image_{i}"))).into_iter().map(|x| x as u8).collect();
                RgbImage::from_raw(37, 29, bytes).unwrap()
            })
            .collect();
        let found = encoder.embed_videos(&[&frames]).remove(0).unwrap();
        let reference = expected(family, "out.base_last_hidden_state").mean(1).unwrap();
        assert!(apart(&found, &values(&reference)) < 2e-5, "{family}");
        // The order of time counts.
        let backwards: Vec<RgbImage> = frames.iter().rev().cloned().collect();
        let clips: [&[RgbImage]; 4] =
            [&frames, &backwards, &frames[..3], &[const { RgbImage::new }; 4].map(|new| new(0, 0))];
        let together = encoder.embed_videos(&clips);
        assert_eq!(together[0].as_ref(), Ok(&found));
        assert!(apart(together[1].as_ref().unwrap(), &found) > 1e-3);
        assert!(matches!(together[2], Err(ModelError::WrongCount { found: 3, .. })));
        assert!(matches!(together[3], Err(ModelError::EmptyImage { .. })));
    }
    let clip = resolve_embedder(&fixture("clip")).unwrap();
    assert!(matches!(clip.embed_videos(&[&[]])[0], Err(ModelError::NoModality { what: "videos", .. })));
}

/// A copy of a fixture, changed.
fn changed(family: &str, file: &str, change: impl FnOnce(String) -> String) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(Path::new(&fixture(family))).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let path = copy.path().join(file);
    let before = fs::read_to_string(&path).unwrap();
    let after = change(before.clone());
    assert_ne!(before, after, "{file} of {family} is not changed");
    fs::write(&path, after).unwrap();
    copy
}

#[test]
fn what_would_change_the_answer_is_refused_by_name() {
    let cases = [
        (
            "whisper",
            "config.json",
            "\"encoder_layers\": 2",
            "\"encoder_layers\": 1",
            "found also model.encoder.layers.1.",
        ),
        (
            "whisper",
            "config.json",
            "\"use_cache\"",
            "\"use_rope\": 1, \"use_cache\"",
            "the option use_rope is not supported",
        ),
        (
            "whisper",
            "config.json",
            "embedding\": false",
            "embedding\": true",
            "scale_embedding is supported as false only",
        ),
        (
            "whisper",
            "preprocessor_config.json",
            "\"hop_length\": 160",
            "\"hop_length\": 80",
            "hop_length is supported as 160",
        ),
        (
            "whisper",
            "preprocessor_config.json",
            "chunk_length\": 1",
            "chunk_length\": 3",
            "chunk_length to be 1 seconds as",
        ),
        (
            "whisper",
            "preprocessor_config.json",
            "feature_size\": 40",
            "feature_size\": 80",
            "feature_size to be 40 as num_mel",
        ),
        ("whisper", "preprocessor_config.json", "\"dither\": 0.0", "\"dither\": 0.1", "dither to be 0, found 0.1"),
        (
            "whisper",
            "generation_config.json",
            "\"max_length\"",
            "\"num_words\": 3, \"max_length\"",
            "num_words is not supported",
        ),
        (
            "whisper",
            "generation_config.json",
            "\"<|de|>\": 332",
            "\"<|de|>\": 390",
            "expected tokens below 390 as vocab_size of config.json, found 390",
        ),
        (
            "whisper",
            "preprocessor_config.json",
            "\"n_fft\": 400",
            "\"n_fft\": 99999",
            "n_fft to be at most 65536 samples",
        ),
        ("videomae", "config.json", "\"num_frames\": 4", "\"num_frames\": 4000000", "at most 65536 tubes, found 24"),
        (
            "whisper",
            "generation_config.json",
            "\"<|de|>\": 332",
            "\"<|de|>\": -1",
            "lang_to_id to be token ids by name",
        ),
        (
            "whisper",
            "generation_config.json",
            "      0,\n      1",
            "      9,\n      1",
            "expected alignment_heads in 2 layers of 2 heads as config.json says, found [9, 1]",
        ),
        (
            "whisper",
            "generation_config.json",
            "      0,\n      1",
            "      0",
            "alignment_heads to be pairs of a layer and a head",
        ),
        (
            "whisper",
            "config.json",
            "\"median_filter_width\": 7",
            "\"median_filter_width\": 6",
            "median_filter_width to be an odd number, found 6",
        ),
        (
            "clap",
            "config.json",
            "\"enable_fusion\": false",
            "\"enable_fusion\": true",
            "audio_config.enable_fusion is supported",
        ),
        (
            "clap",
            "config.json",
            "\"mlp_ratio\"",
            "\"pretrain\": 1, \"mlp_ratio\"",
            "audio_config.pretrain is not supported",
        ),
        (
            "clap",
            "config.json",
            "\"window_size\": 4",
            "\"window_size\": 5",
            "with the last stage at least a window, found 64",
        ),
        (
            "clap",
            "config.json",
            "\"num_mel_bins\": 16",
            "\"num_mel_bins\": 24",
            "num_mel_bins to be a divisor of spec_size",
        ),
        (
            "clap",
            "preprocessor_config.json",
            "\"rand_trunc\"",
            "\"fusion\"",
            "truncation is supported as \"rand_trunc\" only",
        ),
        (
            "clap",
            "preprocessor_config.json",
            "\"repeatpad\"",
            "\"mirror\"",
            "padding to be repeatpad, repeat or pad, found mirror",
        ),
        (
            "clap",
            "preprocessor_config.json",
            "max_length_s\": 2",
            "max_length_s\": 3",
            "a spectrum has at most 256 frames",
        ),
        ("clap", "preprocessor_config.json", "\"top_db\": null", "\"top_db\": 80", "top_db is supported as null only"),
        ("videomae", "config.json", "\"qv_bias\": true", "\"qv_bias\": false", "qv_bias is supported as true only"),
        (
            "videomae",
            "config.json",
            "\"tubelet_size\": 2",
            "\"tubelet_size\": 3",
            "tubelet_size to be a divisor of 4, found 3",
        ),
        (
            "videomae",
            "config.json",
            "pooling\": true",
            "pooling\": false",
            "videomae.layernorm.weight of shape [24], found none",
        ),
        (
            "videomae_base",
            "config.json",
            "pooling\": false",
            "pooling\": true",
            "found also layernorm.bias, layernorm.weight",
        ),
        (
            "videomae",
            "preprocessor_config.json",
            "\"do_resize\"",
            "\"do_flip\": 1, \"do_resize\"",
            "do_flip is not supported",
        ),
    ];
    for (family, file, from, to, message) in cases {
        let folder = changed(family, file, |text| text.replace(from, to));
        let name = folder.path().to_str().unwrap();
        let error = match family {
            "whisper" => resolve_transcriber(name).err(),
            _ => resolve_embedder(name).err(),
        };
        let error = error.expect(message).to_string();
        assert!(error.contains(message), "expected {message:?} in {error:?}");
    }
}

#[test]
fn shorter_sounds_fill_a_window_as_the_folder_says() {
    let waveform = hum(12_000, 0.05);
    let of = |padding: &str| {
        let folder = changed("clap", "preprocessor_config.json", |text| {
            text.replace("\"sampling_rate\"", "\"nb_max_samples\": null, \"sampling_rate\"")
                .replace("repeatpad", padding)
        });
        resolve_embedder(folder.path().to_str().unwrap()).unwrap()
    };
    let vector = |padding: &str, waveform: &[f32]| of(padding).embed_audio(&[waveform]).remove(0).unwrap();
    let filled = |length: usize, of: &[f32]| {
        let mut filled = of.to_vec();
        filled.resize(length, 0.0);
        filled
    };
    // 12 000 samples fit twice into 32 000.
    let twice = [waveform.as_slice(), &waveform].concat();
    assert_eq!(vector("repeatpad", &waveform), vector("pad", &filled(32_000, &twice)));
    assert_eq!(vector("pad", &waveform), vector("pad", &filled(32_000, &waveform)));
    let cut = [twice.as_slice(), &waveform[..8000]].concat();
    assert_eq!(vector("repeat", &waveform), vector("pad", &cut));
}

#[test]
fn older_files_of_videomae_say_less() {
    let old = |rest: &str| {
        let folder = changed("videomae", "preprocessor_config.json", |_| {
            format!(
                "{{ \"feature_extractor_type\": \"VideoMAEFeatureExtractor\", \"resample\": 2, \"size\": 24{rest} }}"
            )
        });
        resolve_embedder(folder.path().to_str().unwrap())
    };
    let frames: Vec<RgbImage> =
        (0..4).map(|i| RgbImage::from_fn(50, 30, |x, y| image::Rgb([(x * i) as u8, y as u8, (x * y) as u8]))).collect();
    let clip: [&[RgbImage]; 1] = [&frames];
    let new = resolve_embedder(&fixture("videomae")).unwrap();
    assert_eq!(old(", \"crop_size\": 24").unwrap().embed_videos(&clip), new.embed_videos(&clip));
    let error = old("").err().unwrap().to_string();
    assert!(error.contains("expected images of 24×24 pixels as config.json says, found 224×224"), "{error}");
}

#[test]
fn older_files_of_whisper_say_less() {
    let waveform = values(&expected("whisper", "in.waveform"));
    let said = |name: &str, asked: &Transcribing| {
        resolve_transcriber(name).unwrap().transcribe(&[&waveform], asked).remove(0).unwrap()
    };
    let english = Transcribing { language: Some("en".to_owned()), ..PLAIN };
    // What generation_config.json says stands in config.json; languages, tasks and timestamps are the tokenizer's.
    let folder = changed("whisper", "config.json", |text| {
        let text =
            text.replace("\"suppress_tokens\": null", "\"suppress_tokens\": [5, 9, 336, 330], \"max_length\": 40");
        let text = text.replace("\"begin_suppress_tokens\": null", "\"begin_suppress_tokens\": [220, 329]");
        text.replacen('{', "{ \"forced_decoder_ids\": [[1, null], [2, 334], [3, 338]],", 1)
    });
    fs::remove_file(folder.path().join("generation_config.json")).unwrap();
    let name = folder.path().to_str().unwrap();
    for asked in [&PLAIN, &english, &Transcribing { translate: true, ..PLAIN }] {
        assert_eq!(said(name, asked), said(&fixture("whisper"), asked));
    }
    assert_eq!(said(name, &Transcribing { language: Some("<|en|>".to_owned()), ..PLAIN }), said(name, &english));
}
