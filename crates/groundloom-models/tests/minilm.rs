//! The embedded sentence encoder beside the original by transformers (`tests/data/minilm.jsonl`): eight texts, the
//! empty one, other alphabets and a text beyond the longest among them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use groundloom_models::{DEFAULT_SENTENCE_ENCODER, Embedder, resolve_embedder};
use serde_json::Value;

fn expected() -> Vec<(String, Vec<f32>)> {
    let lines = include_str!("data/minilm.jsonl").lines();
    let read = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        let vector = row["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
        (row["text"].as_str().unwrap().to_owned(), vector)
    };
    lines.map(read).collect()
}

fn embed(model: &dyn Embedder, texts: &[&str]) -> Vec<Vec<f32>> {
    model.embed_texts(texts).into_iter().collect::<Result<_, _>>().unwrap()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn the_embedded_encoder_gives_the_originals_vectors() {
    let model = resolve_embedder(DEFAULT_SENTENCE_ENCODER).unwrap();
    let info = model.info();
    assert_eq!((info.dims, info.normalised, info.texts, info.images), (384, true, true, false));
    assert_eq!(info.licence, "apache-2.0");
    let expected = expected();
    let texts: Vec<&str> = expected.iter().map(|(text, _)| text.as_str()).collect();
    assert!(texts.len() >= 8);
    let found = embed(&*model, &texts);
    for ((text, expected), found) in expected.iter().zip(&found) {
        let cosine = cosine(expected, found);
        println!("{cosine:.6} {text:.40}");
        assert!(cosine >= 0.999, "{cosine} {text:.60}");
        assert!((length(found) - 1.0).abs() < 1e-5);
    }
    // One by one, in reverse, among others: the same bits.
    for (text, together) in texts.iter().zip(&found).rev() {
        assert_eq!(embed(&*model, &[text])[0], *together);
        assert_eq!(embed(&*model, &["", text, "a dog"])[1], *together);
    }
}

fn length(vector: &[f32]) -> f64 {
    vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// The original folder, where `GROUNDLOOM_MINILM` names it: 90 MB that the repository does not hold.
#[test]
fn the_original_weights_give_the_originals_vectors() {
    let Ok(folder) = std::env::var("GROUNDLOOM_MINILM") else { return };
    let model = resolve_embedder(&folder).unwrap();
    let mut worst = 0.0_f32;
    for (text, expected) in expected() {
        let found = &embed(&*model, &[&text])[0];
        let apart = expected.iter().zip(found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        worst = worst.max(apart);
    }
    println!("largest difference {worst:e}");
    assert!(worst < 1e-5, "{worst}");
}
