//! Models of speech: what an answer depends on, and what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::{fs, path::Path};

use candle_core::{DType, Device, Tensor, safetensors};
use groundloom_models::{
    AudioEncoder, Features, ModelError, Transcribing, describe_model, resolve_audio_encoder, resolve_transcriber,
};

const FAMILIES: [&str; 4] = ["wav2vec2", "wav2vec2_large", "hubert", "hubert_large"];

fn fixture(family: &str) -> String {
    format!("{}/tests/data/fixtures/{family}", env!("CARGO_MANIFEST_DIR"))
}

fn expected(family: &str, name: &str) -> Vec<f32> {
    let tensors = safetensors::load(format!("{}/expected.safetensors", fixture(family)), &Device::Cpu).unwrap();
    tensors[name].to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn hum(samples: usize, pitch: f32) -> Vec<f32> {
    (0..samples).map(|i| (i as f32 * pitch).sin() * 0.3 + (i * 7919 % 101) as f32 / 500.0).collect()
}

/// The features of one waveform.
fn features(encoder: &dyn AudioEncoder, waveform: &[f32], layer: Option<usize>) -> Features {
    encoder.features(&[waveform], layer).remove(0).unwrap()
}

fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn features_and_texts_are_the_references_from_the_waveform_on() {
    for family in FAMILIES {
        let encoder = resolve_audio_encoder(&fixture(family)).unwrap();
        assert_eq!(encoder.info(), &describe_model(&fixture(family)).unwrap());
        assert_eq!((encoder.layers(), encoder.width()), (3, 32));
        let waveform = expected(family, "in.waveform_0");
        for layer in [0, 3] {
            let found = features(&*encoder, &waveform, Some(layer));
            assert_eq!((found.frames, found.width), (159, 32));
            let reference = expected(family, &format!("out.hidden.{layer}"));
            assert!(apart(&found.values, &reference) < 2e-5, "{family} {layer}");
        }
        let [third, last] = [Some(3), None].map(|layer| features(&*encoder, &waveform, layer));
        // A network whose blocks begin with their norms has one more behind the last.
        assert_eq!(third == last, !family.ends_with("large"), "{family}");
        if family.starts_with("hubert") {
            assert!(apart(&last.values, &expected(family, "out.last_hidden_state")) < 2e-5, "{family}");
            continue;
        }
        let notes = fs::read_to_string(format!("{}/expected.json", fixture(family))).unwrap();
        let said = resolve_transcriber(&fixture(family))
            .unwrap()
            .transcribe(&[&waveform], &Transcribing::default())
            .remove(0)
            .unwrap();
        let text = said.text;
        assert!(!text.is_empty() && notes.contains(&format!("\"ctc_text\": [\n  \"{text}\"\n ]")), "{text}");
    }
}

#[test]
fn an_answer_depends_on_its_waveform_alone() {
    // The first frame sees 30 samples, each further one begins 20 later.
    let waveforms =
        [hum(3200, 0.05), hum(49, 0.2), hum(30, 0.1), hum(17_001, 0.01), vec![0.0; 1000], vec![], hum(29, 0.1)];
    let views: Vec<&[f32]> = waveforms.iter().map(Vec::as_slice).collect();
    for family in FAMILIES {
        let encoder = resolve_audio_encoder(&fixture(family)).unwrap();
        for layer in [Some(0), Some(2), None] {
            let together = encoder.features(&views, layer);
            for (waveform, found) in views.iter().zip(&together) {
                assert_eq!(&encoder.features(&[waveform], layer)[0], found);
            }
            for (found, frames) in together.iter().zip([159, 1, 1, 849, 49]) {
                let found = found.as_ref().unwrap();
                assert_eq!((found.frames, found.values.len()), (frames, frames * 32));
                assert!(found.values.iter().all(|x| x.is_finite()));
            }
            assert_eq!(together[5], Err(ModelError::ShortWaveform { samples: 0, least: 30 }));
            assert_eq!(together[6], Err(ModelError::ShortWaveform { samples: 29, least: 30 }));
            let on = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| encoder.features(&views, layer))
            };
            assert_eq!([on(1), on(3)], [together.clone(), together]);
        }
    }
    let transcriber = resolve_transcriber(&fixture("wav2vec2")).unwrap();
    let together = transcriber.transcribe(&views, &Transcribing::default());
    for (waveform, text) in views.iter().zip(&together) {
        assert_eq!(&transcriber.transcribe(&[waveform], &Transcribing::default())[0], text);
    }
    assert_eq!(together.iter().filter(|text| text.is_err()).count(), 2);
}

#[test]
fn what_has_no_features_says_why() {
    let encoder = resolve_audio_encoder(&fixture("hubert")).unwrap();
    let mut broken = hum(100, 0.1);
    broken[7] = f32::NAN;
    let found = encoder.features(&[&broken, &hum(100, 0.1)], None);
    assert_eq!(found[0], Err(ModelError::BadSample { place: 7, found: "NaN".to_owned() }));
    assert!(found[1].is_ok());
    let found = encoder.features(&[&hum(100, 0.1)], Some(4)).remove(0).unwrap_err().to_string();
    assert!(found.contains("expected a layer from 0 to 3 of the model") && found.ends_with("found 4"), "{found}");
    let error = resolve_transcriber(&fixture("hubert")).err().unwrap().to_string();
    assert!(
        error.contains("(hubert) cannot transcribe speech; expected Whisper, or wav2vec 2.0 or HuBERT for CTC"),
        "{error}"
    );
    let error = resolve_audio_encoder(&fixture("bert")).err().unwrap().to_string();
    assert!(
        error.contains("(bert) cannot make features of speech; expected wav2vec 2.0, HuBERT or Whisper"),
        "{error}"
    );
}

/// A copy of a fixture, changed.
fn changed(family: &str, change: impl FnOnce(&Path)) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(family)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    change(copy.path());
    copy
}

/// Gives the tensors of a folder other names.
fn renamed(folder: &Path, rename: impl Fn(&str) -> String) {
    let path = folder.join("model.safetensors");
    let tensors = safetensors::load(&path, &Device::Cpu).unwrap();
    let tensors = tensors.into_iter().map(|(name, tensor)| (rename(&name), tensor));
    safetensors::save(&tensors.collect::<std::collections::HashMap<String, Tensor>>(), &path).unwrap();
}

#[test]
fn older_names_of_the_weight_norm_are_the_same_network() {
    for family in FAMILIES {
        let folder = changed(family, |folder| {
            renamed(folder, |name| {
                name.replace("parametrizations.weight.original0", "weight_g")
                    .replace("parametrizations.weight.original1", "weight_v")
            });
        });
        let names = safetensors::load(folder.path().join("model.safetensors"), &Device::Cpu).unwrap();
        assert_eq!(names.keys().filter(|name| name.contains("weight_")).count(), 2, "{family}");
        let of = |name: &str| features(&*resolve_audio_encoder(name).unwrap(), &hum(2000, 0.02), None);
        assert_eq!(of(folder.path().to_str().unwrap()), of(&fixture(family)));
    }
}

#[test]
fn what_would_change_the_answer_is_refused_by_name() {
    let cases = [
        (
            "wav2vec2",
            "config.json",
            "\"add_adapter\": false",
            "\"add_adapter\": true",
            "add_adapter is supported as false",
        ),
        (
            "wav2vec2",
            "config.json",
            "\"adapter_attn_dim\": null",
            "\"adapter_attn_dim\": 16",
            "adapter_attn_dim is supported",
        ),
        (
            "hubert",
            "config.json",
            "\"conv_bias\"",
            "\"conv_rope\": 1, \"conv_bias\"",
            "the option conv_rope is not supported",
        ),
        (
            "hubert",
            "config.json",
            "norm\": \"group\"",
            "norm\": \"batch\"",
            "feat_extract_norm to be group or layer, found batch",
        ),
        (
            "hubert",
            "config.json",
            "_batch_norm\": false",
            "_batch_norm\": true",
            "conv_pos_batch_norm is supported as false",
        ),
        (
            "hubert",
            "config.json",
            "embedding_groups\": 4",
            "embedding_groups\": 5",
            "to be a divisor of the width 32, found 5",
        ),
        ("hubert", "config.json", "extract_layers\": 3", "extract_layers\": 4", "to be 3 as conv_dim is long, found 4"),
        (
            "hubert",
            "config.json",
            "\"conv_bias\": false",
            "\"conv_bias\": true",
            "conv_layers.0.conv.bias of shape [16], found none",
        ),
        (
            "hubert_large",
            "config.json",
            "\"conv_bias\": true",
            "\"conv_bias\": false",
            "found also feature_extractor.conv_layers.0.conv.bias",
        ),
        (
            "hubert",
            "config.json",
            "proj_layer_norm\": true",
            "proj_layer_norm\": false",
            "found also feature_projection.layer_norm",
        ),
        ("hubert", "preprocessor_config.json", "16000", "8000", "sampling_rate is supported as 16000 only, found 8000"),
        (
            "hubert",
            "preprocessor_config.json",
            "\"do_normalize\"",
            "\"do_trim\": true, \"do_normalize\"",
            "do_trim is not supported",
        ),
    ];
    for (family, file, from, to, message) in cases {
        let folder = changed(family, |folder| {
            let text = fs::read_to_string(folder.join(file)).unwrap();
            assert!(text.contains(from), "{file} of {family} has no {from}");
            fs::write(folder.join(file), text.replacen(from, to, 1)).unwrap();
        });
        let error = resolve_audio_encoder(folder.path().to_str().unwrap()).err().expect(message).to_string();
        assert!(error.contains(message), "expected {message:?} in {error:?}");
    }
    // The tokens of a text must be known, all of them.
    let folder = changed("wav2vec2", |folder| fs::write(folder.join("vocab.json"), "{ \"<pad>\": 0 }").unwrap());
    let error = resolve_transcriber(folder.path().to_str().unwrap()).err().unwrap().to_string();
    assert!(error.contains("expected a token for each of the 32 ids of config.json, found none for 1"), "{error}");
    // Pre-training's parts are no part of an answer; others are refused.
    let other = changed("wav2vec2", |folder| renamed(folder, |name| name.replace("lm_head", "classifier")));
    let error = resolve_audio_encoder(other.path().to_str().unwrap()).err().unwrap().to_string();
    assert!(error.contains("found also classifier.bias, classifier.weight"), "{error}");
    let known = changed("wav2vec2", |folder| renamed(folder, |name| name.replace("lm_head", "project_q")));
    assert!(resolve_audio_encoder(known.path().to_str().unwrap()).is_ok());
}
