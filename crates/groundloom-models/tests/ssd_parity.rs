//! The embedded detector beside LiteRT's outputs (`scripts/make_fixtures.py`), and its kernels beside candle's
//! operations.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::path::Path;

use candle_core::{Device, safetensors::load_buffer};
use groundloom_data::{DecodeLimits, media::decode_rgb};
use groundloom_models::{
    DEFAULT_DETECTOR, DetectOptions, Detection, Detector, resolve_plain_ssd, resolve_ssd,
    ssd::{RawOutputs, SsdMobileNetV2},
};
use image::RgbImage;

const PHOTOS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/photos");

/// LiteRT's outputs for `chelsea.png`.
struct Reference {
    raw: RawOutputs,
    features: Vec<f32>,
}

fn reference() -> Reference {
    let tensors = load_buffer(include_bytes!("data/chelsea.safetensors"), &Device::Cpu).unwrap();
    let values = |name: &str| tensors[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let boxes = values("chelsea.boxes").as_chunks::<4>().0.to_vec();
    Reference { raw: RawOutputs { boxes, logits: values("chelsea.logits") }, features: values("chelsea.features") }
}

fn photo(name: &str) -> RgbImage {
    let bytes = std::fs::read(Path::new(PHOTOS).join(name)).expect(name);
    decode_rgb(&bytes, &DecodeLimits::default()).expect(name)
}

fn chelsea() -> RgbImage {
    photo("chelsea.png")
}

fn detector() -> SsdMobileNetV2 {
    resolve_ssd(DEFAULT_DETECTOR).unwrap()
}

fn largest_difference<'a>(a: impl IntoIterator<Item = &'a f32>, b: impl IntoIterator<Item = &'a f32>) -> f32 {
    let (a, b): (Vec<_>, Vec<_>) = (a.into_iter().collect(), b.into_iter().collect());
    assert_eq!(a.len(), b.len());
    a.into_iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn raw_outputs_equal_the_reference() {
    let (model, reference) = (detector(), reference());
    let raw = model.raw_outputs(&model.preprocess(&chelsea()).unwrap()).unwrap();
    let boxes = largest_difference(raw.boxes.iter().flatten(), reference.raw.boxes.iter().flatten());
    let logits = largest_difference(&raw.logits, &reference.raw.logits);
    println!("largest difference from LiteRT: boxes {boxes:e}, logits {logits:e}");
    assert!(boxes < 1e-2 && logits < 1e-2, "boxes {boxes}, logits {logits}");
}

#[test]
fn features_equal_the_reference() {
    let difference = largest_difference(&detector().features(&chelsea()).unwrap(), &reference().features);
    println!("largest difference from LiteRT: features {difference:e}");
    assert!(difference < 1e-3, "{difference}");
}

#[test]
fn kernels_equal_candles_operations() {
    let model = detector();
    let plain = resolve_plain_ssd(DEFAULT_DETECTOR, &Device::Cpu).unwrap();
    let noise = RgbImage::from_fn(300, 300, |x, y| image::Rgb([x * 7 + y, x ^ y, x * y].map(|v| v as u8)));
    for image in [model.preprocess(&chelsea()).unwrap(), noise, RgbImage::new(300, 300)] {
        let (fast, slow) = (model.raw_outputs(&image).unwrap(), plain.detect(image.as_raw()).unwrap());
        let boxes = largest_difference(fast.boxes.iter().flatten(), slow.boxes.iter().flatten());
        let logits = largest_difference(&fast.logits, &slow.logits);
        let features = largest_difference(&model.features(&image).unwrap(), &plain.features(image.as_raw()).unwrap());
        println!("largest difference from candle: boxes {boxes:e}, logits {logits:e}, features {features:e}");
        assert!(
            boxes < 1e-3 && logits < 1e-3 && features < 1e-4,
            "boxes {boxes}, logits {logits}, features {features}"
        );
    }
}

/// One line of `data/photos.jsonl`: what the reference finds at score 0.3.
#[derive(serde::Deserialize)]
struct ExpectedPhoto {
    image: String,
    width: u32,
    height: u32,
    detections: Vec<(f32, String, [f32; 4])>,
}

/// Both decoders read PNG and lossless WebP to the same bytes, but may round JPEG differently by a level, and a score
/// near the threshold then falls on either side: such detections need no partner.
#[test]
fn detections_in_the_example_photographs_equal_the_reference() {
    let (model, mut compared) = (detector(), 0);
    for line in include_str!("data/photos.jsonl").lines() {
        let expected: ExpectedPhoto = serde_json::from_str(line).unwrap();
        let image = photo(&expected.image);
        assert_eq!(image.dimensions(), (expected.width, expected.height), "{}", expected.image);
        let found = model.detect(&image, &DetectOptions { min_score: 0.3, nms_iou: 0.5 }).unwrap();
        let near = |d: &Detection, (score, label, bbox): &(f32, String, [f32; 4])| {
            *d.label == **label && (d.score - score).abs() < 0.02 && largest_difference(&d.bbox.xyxy(), bbox) < 0.01
        };
        for wanted in &expected.detections {
            let there = found.iter().any(|d| near(d, wanted));
            assert!(there || wanted.0 < 0.32, "{}: {wanted:?} is not among {found:?}", expected.image);
        }
        for d in &found {
            let there = expected.detections.iter().any(|wanted| near(d, wanted));
            assert!(there || d.score < 0.32, "{}: the reference has no {d:?}", expected.image);
        }
        compared += expected.detections.len();
    }
    assert!(compared >= 25, "{compared}");
}

#[test]
fn an_answer_does_not_depend_on_threads_or_on_what_came_before() {
    let model = detector();
    let (cat, options) = (chelsea(), DetectOptions { min_score: 0.01, nms_iou: 1.0 });
    let alone = model.detect(&cat, &options).unwrap();
    assert!(alone.len() > 10);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (model, cat, alone, options) = (&model, &cat, &alone, &options);
            scope.spawn(move || {
                for _ in 0..3 {
                    model.detect(&RgbImage::from_pixel(40, 20 + thread, image::Rgb([200, 10, 30])), options).unwrap();
                    assert_eq!(&model.detect(cat, options).unwrap(), alone);
                }
            });
        }
    });
}

#[test]
fn order_is_by_score_and_suppression_is_within_a_class() {
    let model = detector();
    let everything = model.detect(&chelsea(), &DetectOptions { min_score: 0.0, nms_iou: 1.0 }).unwrap();
    assert!(everything.len() > 30_000, "{}", everything.len());
    assert!(everything.is_sorted_by(|a, b| a.score >= b.score));
    let kept = model.detect(&chelsea(), &DetectOptions { min_score: 0.02, nms_iou: 0.4 }).unwrap();
    for (i, a) in kept.iter().enumerate() {
        assert!(a.score >= 0.02 && a.bbox.area() > 0.0);
        assert!(kept[i + 1..].iter().all(|b| a.class != b.class || a.bbox.iou(&b.bbox) <= 0.4));
    }
}

#[test]
fn odd_images_are_answered_and_odd_options_refused() {
    let model = detector();
    for (width, height) in [(1, 1), (1, 5000), (3000, 2), (300, 300)] {
        let found = model.detect(&RgbImage::new(width, height), &DetectOptions::default()).unwrap();
        assert!(found.iter().all(|d| (0.45..=1.0).contains(&d.score)));
    }
    let error = model.detect(&RgbImage::new(0, 7), &DetectOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "expected an image of at least 1×1 pixels, found 0×7");
    let error = model.raw_outputs(&RgbImage::new(20, 30)).unwrap_err();
    assert_eq!(error.to_string(), "expected an image preprocessed to 300×300 pixels, found 20×30");
    for (min_score, nms_iou, message) in
        [(f32::NAN, 0.5, "min_score in [0, 1], found NaN"), (0.5, 1.5, "nms_iou in [0, 1], found 1.5")]
    {
        let error = model.detect(&chelsea(), &DetectOptions { min_score, nms_iou }).unwrap_err().to_string();
        assert!(error.ends_with(message), "{error}");
    }
}
