//! The frozen sample: spaCy's own answers for 500 texts, compared field by field.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;
use std::io::{BufRead, BufReader};

use flate2::read::GzDecoder;
use groundloom_syntax::{Doc, KernelClass, Pipeline, Token};
use serde_json::{Value, json};

fn sample() -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/sample.jsonl.gz");
    let lines = BufReader::new(GzDecoder::new(File::open(path).unwrap())).lines();
    let records: Vec<Value> = lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    assert_eq!(records.len(), 500);
    records
}

/// A document in the form of the sample's records.
fn record(doc: &Doc) -> Value {
    let column = |f: &dyn Fn(Token<'_>) -> Value| Value::Array(doc.tokens().map(f).collect());
    let chunks: Vec<_> =
        doc.noun_chunks().iter().map(|c| [c.start_token, c.end_token, c.start_char, c.end_char, c.root]).collect();
    let sentences: Vec<_> = doc.sentences().iter().map(|s| [s.start, s.end]).collect();
    json!({
        "doc": doc.text(),
        "text": column(&|t| t.text().into()),
        "idx": column(&|t| t.idx().into()),
        "ws": column(&|t| if t.space_after() { " ".into() } else { "".into() }),
        "norm": column(&|t| t.norm().into()),
        "shape": column(&|t| t.shape().into()),
        "tag": column(&|t| t.tag().into()),
        "pos": column(&|t| t.pos().into()),
        "morph": column(&|t| t.morph().into()),
        "dep": column(&|t| t.dep().into()),
        "head": column(&|t| t.head().into()),
        "sent_start": column(&|t| if t.is_sentence_start() { 1.into() } else { (-1).into() }),
        "left_edge": column(&|t| t.left_edge().into()),
        "right_edge": column(&|t| t.right_edge().into()),
        "lemma": column(&|t| t.lemma().into()),
        "noun_chunks": chunks,
        "sents": sentences,
    })
}

fn assert_equals_sample(pipeline: &Pipeline) {
    let sample = sample();
    let texts: Vec<&str> = sample.iter().map(|r| r["doc"].as_str().unwrap()).collect();
    for (doc, expected) in pipeline.parse_batch(&texts).into_iter().zip(&sample) {
        let doc = doc.unwrap();
        let found = record(&doc);
        for (field, expected) in expected.as_object().unwrap() {
            assert_eq!(&found[field], expected, "{field} of {:?}, margins {:?}", doc.text(), doc.margins());
        }
    }
}

#[test]
fn every_field_equals_spacys() {
    assert_equals_sample(&Pipeline::embedded().unwrap());
}

#[test]
fn spacys_own_order_of_operations_gives_the_same() {
    assert_equals_sample(&Pipeline::embedded().unwrap().exactly());
}

#[test]
fn every_kernel_class_gives_the_same() {
    for class in [KernelClass::Portable, KernelClass::Avx2] {
        if class.is_available() {
            assert_equals_sample(&Pipeline::embedded_with(class).unwrap());
        }
    }
}

#[test]
fn texts_do_not_depend_on_their_batch() {
    let pipeline = Pipeline::embedded().unwrap();
    for expected in sample().iter().take(60) {
        let doc = pipeline.parse(expected["doc"].as_str().unwrap()).unwrap();
        assert_eq!(record(&doc)["head"], expected["head"]);
        assert_eq!(record(&doc)["noun_chunks"], expected["noun_chunks"]);
    }
}

#[test]
fn threads_share_a_pipeline() {
    let pipeline = Pipeline::embedded().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let pipeline = pipeline.clone();
            scope.spawn(move || assert_equals_sample(&pipeline));
        }
    });
}
