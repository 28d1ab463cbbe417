#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use image::RgbImage;
use serde_json::Value;

use super::*;

fn own() -> GroundingDinoDetector {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fixtures/grounding_dino");
    GroundingDinoDetector::load("own", &ModelFolder::OnDisk(path), &candle_core::Device::Cpu).unwrap()
}

fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| image::Rgb([(7 * x + y) as u8, (x * y) as u8, (3 * y) as u8]))
}

#[test]
fn a_prompt_is_the_text_that_the_reference_makes_of_the_phrases() {
    let detector = own();
    let phrases = ["A cat", " the Remote-control ", "", "two dogs, sleeping", "caf\u{e9}", "\u{732b}"];
    let prompts = phrases::prompts(&detector.tokenizer, &phrases, 1000).unwrap();
    let [prompt] = prompts.as_slice() else { panic!("{prompts:?}") };
    let text = "a cat. the remote-control. two dogs, sleeping. caf\u{e9}. \u{732b}.";
    let whole = detector.tokenizer.inner().clone().with_truncation(None).unwrap().encode(text, true).unwrap();
    assert_eq!(prompt.ids, whole.get_ids());
    let spans: Vec<(usize, &str)> = prompt
        .spans
        .iter()
        .map(|(number, span)| {
            let offsets = &whole.get_offsets()[span.clone()];
            (*number, &text[offsets[0].0..offsets[offsets.len() - 1].1])
        })
        .collect();
    let expected =
        [(0, "a cat"), (1, "the remote-control"), (3, "two dogs, sleeping"), (4, "caf\u{e9}"), (5, "\u{732b}")];
    assert_eq!(spans, expected);
}

#[test]
fn phrases_that_do_not_fit_one_prompt_come_in_several() {
    let detector = own();
    let phrases = ["a cat"; 9];
    let prompts = phrases::prompts(&detector.tokenizer, &phrases, 11).unwrap();
    assert_eq!(prompts.iter().map(|prompt| prompt.spans.len()).collect::<Vec<_>>(), [3, 3, 3]);
    assert!(prompts.iter().all(|prompt| prompt.ids.len() == 11));
    // One alone is cut; stops and question marks inside a phrase would part it.
    let long = "cat ".repeat(300);
    let prompts = phrases::prompts(&detector.tokenizer, &[&long, "u.s. cat?"], 11).unwrap();
    assert_eq!((prompts[0].ids.len(), prompts[0].spans[0].1.len()), (11, 8));
    let inside = prompts[1].spans[0].1.clone();
    assert!(prompts[1].ids[inside].iter().all(|id| !text::DELIMITERS.contains(id)));
    assert_eq!(phrases::prompts(&detector.tokenizer, &["", " ", "."], 11).unwrap(), []);
}

#[test]
fn any_image_and_any_phrases_get_an_answer_that_depends_on_them_alone() {
    let detector = own();
    let options = DetectOptions { min_score: 0.0, nms_iou: 1.0 };
    let phrases = ["a cat", "", "the remote control", "?"];
    for (width, height) in [(1, 1), (64, 1), (1, 300), (40, 40), (333, 17)] {
        let image = picture(width, height);
        let found = detector.detect_phrases(&image, &phrases, &options).unwrap();
        assert_eq!(found, detector.detect_phrases(&image, &phrases, &options).unwrap(), "{width}×{height}");
        assert!(found.iter().all(|one| [0, 2].contains(&one.class) && (0.0..=1.0).contains(&one.score)));
        assert!(found.windows(2).all(|pair| pair[0].score >= pair[1].score));
        assert_eq!(detector.detect_phrases(&image, &[], &options).unwrap(), []);
    }
    let alone = detector.detect_phrases(&picture(40, 40), &["a cat"], &options).unwrap();
    assert!(!alone.is_empty() && alone.iter().all(|one| &*one.label == "a cat"));
    let strict = DetectOptions { min_score: alone[0].score, nms_iou: 1.0 };
    let kept = detector.detect_phrases(&picture(40, 40), &["a cat"], &strict).unwrap();
    assert!(!kept.is_empty() && kept.iter().all(|one| one.score >= strict.min_score));
    assert!(matches!(detector.detect(&picture(9, 9), &options), Err(ModelError::NeedsPhrases { .. })));
    let empty = detector.detect_phrases(&RgbImage::new(0, 3), &phrases, &options);
    assert!(matches!(empty, Err(ModelError::EmptyImage { .. })));
}

#[test]
fn options_that_would_change_the_answer_are_refused_by_name() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fixtures/grounding_dino");
    let original: Value = ModelFolder::OnDisk(path.clone()).json("config.json").unwrap();
    let changes: [(&str, Value, &str); 9] = [
        ("/two_stage", false.into(), "two_stage is supported as true only"),
        ("/position_embedding_type", "learned".into(), "position_embedding_type"),
        ("/embedding_init_target", false.into(), "embedding_init_target"),
        ("/backbone_config/use_absolute_embeddings", true.into(), "backbone_config.use_absolute_embeddings"),
        ("/backbone_config/model_type", "resnet".into(), "backbone_config.model_type"),
        ("/text_config/model_type", "roberta".into(), "text_config.model_type"),
        ("/max_text_len", 999.into(), "max_text_len"),
        ("/activation_function", "swiglu".into(), "activation_function"),
        ("/d_model", 33.into(), "d_model"),
    ];
    for (place, value, expected) in changes {
        let folder = tempfile::tempdir().unwrap();
        let mut changed = original.clone();
        *changed.pointer_mut(place).unwrap_or_else(|| panic!("{place}")) = value;
        std::fs::write(folder.path().join("config.json"), changed.to_string()).unwrap();
        for file in ["model.safetensors", "preprocessor_config.json", "tokenizer.json"] {
            std::fs::copy(path.join(file), folder.path().join(file)).unwrap();
        }
        let error = GroundingDinoDetector::load(
            "changed",
            &ModelFolder::OnDisk(folder.path().into()),
            &candle_core::Device::Cpu,
        )
        .err()
        .unwrap();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
