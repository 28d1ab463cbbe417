#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::Value;

use super::{replay::Recorded, *};
use crate::grounding_dino::tests::{compare, image, recordings};

#[test]
fn recorded_runs_come_out_as_the_reference_computed_them() {
    let recordings = recordings("owl");
    assert!(recordings.len() >= 2);
    for path in recordings {
        let folder = ModelFolder::OnDisk(path.clone());
        let architecture =
            if path.file_name().unwrap().to_string_lossy().starts_with("owlv2") { SECOND } else { FIRST };
        let detector = OwlDetector::load("recorded", &folder, architecture).unwrap();
        let expected = folder.read("expected.safetensors").unwrap();
        let expected = Weights::read("expected.safetensors", expected).unwrap();
        let notes: Value = folder.json("expected.json").unwrap();
        let images = [image(&expected, "in.image_a"), image(&expected, "in.image_b")];
        let texts: Vec<Vec<&str>> = notes["text_labels"]
            .as_array()
            .unwrap()
            .iter()
            .map(|list| list.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect())
            .collect();
        let threshold = notes["threshold"].as_f64().unwrap() as f32;
        let replayed = detector.replay(&Recorded { images: &images, texts: &texts, threshold }).unwrap();
        let pixels = if architecture == SECOND { 1e-5 } else { 0.0 };
        assert!(compare(&path, &replayed.tensors, &expected, pixels) >= 15);
        assert_eq!(serde_json::to_value(&replayed.labels).unwrap(), notes["post_text_labels"]);
    }
}

fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| image::Rgb([(7 * x + y) as u8, (x * y) as u8, (3 * y) as u8]))
}

#[test]
fn any_image_any_phrases_and_any_example_get_an_answer() {
    for (name, architecture) in [("owlvit", FIRST), ("owlv2", SECOND)] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/detectors").join(name);
        let detector = OwlDetector::load(name, &ModelFolder::OnDisk(path), architecture).unwrap();
        let options = DetectOptions { min_score: 0.0, nms_iou: 1.0 };
        let long = "a photo of two cats ".repeat(30);
        let phrases = ["a cat", " ", &long, "the remote control"];
        for (width, height) in [(1, 1), (64, 1), (1, 300), (40, 40)] {
            let image = picture(width, height);
            let found = detector.detect_phrases(&image, &phrases, &options).unwrap();
            // Of a sliver OWLv2's patches lie mostly in what was padded.
            assert!(!found.is_empty() || architecture == SECOND && width != height, "{width}×{height}");
            assert!(found.iter().all(|one| one.class != 1 && (0.0..=1.0).contains(&one.score)));
            assert!(found.windows(2).all(|pair| pair[0].score >= pair[1].score));
            // A phrase is looked for by itself.
            let mut alone = detector.detect_phrases(&image, &["a cat"], &options).unwrap();
            let mut among: Vec<Detection> = found.into_iter().filter(|one| one.class == 0).collect();
            for list in [&mut alone, &mut among] {
                list.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.bbox.x1().total_cmp(&b.bbox.x1())));
            }
            assert_eq!(alone, among);
            assert_eq!(detector.detect_phrases(&image, &[], &options).unwrap(), []);
            let like = detector.detect_like(&image, &picture(30, 50), &options).unwrap();
            assert!(!like.is_empty() || architecture == SECOND && width != height, "{width}×{height}");
        }
        let empty = detector.detect_phrases(&RgbImage::new(0, 3), &phrases, &options);
        assert!(matches!(empty, Err(ModelError::EmptyImage { .. })));
    }
}
