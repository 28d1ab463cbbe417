#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| image::Rgb([(7 * x + y) as u8, (x * y) as u8, (3 * y) as u8]))
}

#[test]
fn any_image_any_phrases_and_any_example_get_an_answer() {
    for (name, generation) in [("owlvit", Generation::First), ("owlv2", Generation::Second)] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fixtures").join(name);
        let detector =
            OwlDetector::load(name, &ModelFolder::OnDisk(path), generation, &candle_core::Device::Cpu).unwrap();
        let options = DetectOptions { min_score: 0.0, nms_iou: 1.0 };
        let long = "a photo of two cats ".repeat(30);
        let phrases = ["a cat", " ", &long, "the remote control"];
        for (width, height) in [(1, 1), (64, 1), (1, 300), (40, 40)] {
            let image = picture(width, height);
            let found = detector.detect_phrases(&image, &phrases, &options).unwrap();
            // Of a sliver OWLv2's patches lie mostly in what was padded.
            assert!(!found.is_empty() || generation == Generation::Second && width != height, "{width}×{height}");
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
            assert!(!like.is_empty() || generation == Generation::Second && width != height, "{width}×{height}");
        }
        let empty = detector.detect_phrases(&RgbImage::new(0, 3), &phrases, &options);
        assert!(matches!(empty, Err(ModelError::EmptyImage { .. })));
    }
}
