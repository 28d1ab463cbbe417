//! What is said about the keys and values of components.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod product;

use groundloom_spec::{SourceFile, parse};
use product::{Amount, Caption, Choice, FilterBoxes, Store, Suppression, boxes, caption, env, messages, pipeline};

#[test]
fn keys() {
    insta::assert_snapshot!(boxes("min_scor: 0.5"), @"");
    insta::assert_snapshot!(boxes("threshold: 0.5"), @"");
    insta::assert_snapshot!(boxes("inputs: pairs"), @"");
    insta::assert_snapshot!(messages(&pipeline("chunks: { type: noun_chunks }")), @"");
    insta::assert_snapshot!(messages(&pipeline("chunks: { type: noun_chunks, txt: caption }")), @"");
}

#[test]
fn types() {
    insta::assert_snapshot!(boxes("min_score: high"), @"");
    insta::assert_snapshot!(boxes("min_score: \"0.5\""), @"");
    insta::assert_snapshot!(boxes("limit: 2.5"), @"");
    insta::assert_snapshot!(boxes("limit: 1_000"), @"");
    insta::assert_snapshot!(boxes("min_score: "), @"");
    insta::assert_snapshot!(boxes("keep_rejected: yes"), @"");
    insta::assert_snapshot!(boxes("always: dog"), @"");
    insta::assert_snapshot!(boxes("always: [dog, 5, [cat]]"), @"");
    insta::assert_snapshot!(messages(&pipeline("chunks: { type: noun_chunks, text: 1.10 }")), @"");
    insta::assert_snapshot!(messages(&pipeline("chunks: { type: noun_chunks, text: true }")), @"");
    insta::assert_snapshot!(messages(&pipeline("chunks:\n    type: noun_chunks\n    text:\n      a: b\n      c: d")), @"");
}

#[test]
fn ranges() {
    insta::assert_snapshot!(boxes("min_score: 1.5"), @"");
    insta::assert_snapshot!(boxes("nms_iou: -1"), @"");
    insta::assert_snapshot!(boxes("limit: 0"), @"");
    insta::assert_snapshot!(boxes("limit: 5000000000"), @"");
    insta::assert_snapshot!(caption("retries: { times: 300, wait: 0 }"), @"");
}

#[test]
fn names() {
    insta::assert_snapshot!(boxes("nms: per_phrases"), @"");
    insta::assert_snapshot!(boxes("nms: none"), @"");
    insta::assert_snapshot!(boxes("nms: 5"), @"");
}

#[test]
fn lengths() {
    insta::assert_snapshot!(messages(&pipeline("captions: { type: caption, prompt: \"\", api_key: \"${env:API_KEY}\" }")), @"");
    let with_columns = |columns: &str| {
        messages(&format!(
            "sources: {{ pairs: {{ type: image_folder, path: in }} }}\nsinks: {{ out: {{ type: parquet, path: out, columns: {columns} }} }}\n"
        ))
    };
    insta::assert_snapshot!(with_columns("[]"), @"");
    insta::assert_snapshot!(with_columns("[image, caption, image]"), @"");
}

#[test]
fn nested_maps() {
    insta::assert_snapshot!(caption("retries: { time: 3 }"), @"");
    insta::assert_snapshot!(caption("retries: 3"), @"");
    insta::assert_snapshot!(caption("headers: { a: b, c: 5 }"), @"");
    insta::assert_snapshot!(caption("classes: { 1: cat, dog: dog }"), @"");
}

#[test]
fn variants() {
    insta::assert_snapshot!(caption("store: { kind: folder, url: s3 }"), @"");
    insta::assert_snapshot!(caption("store: { kind: floder, path: s3 }"), @"");
    insta::assert_snapshot!(caption("store: { path: s3 }"), @"");
    insta::assert_snapshot!(caption("store: folder"), @"");
    insta::assert_snapshot!(caption("choice: frist"), @"");
    insta::assert_snapshot!(caption("choice: { best_of: many }"), @"");
    insta::assert_snapshot!(caption("choice: { scored: { modle: clip } }"), @"");
    insta::assert_snapshot!(caption("choice: { best: 3 }"), @"");
    insta::assert_snapshot!(caption("choice: { best_of: 3, scored: { model: m } }"), @"");
    insta::assert_snapshot!(caption("choice: 3"), @"");
    insta::assert_snapshot!(caption("amount: [1]"), @"");
    insta::assert_snapshot!(caption("amount: -1"), @"");
}

#[test]
fn what_only_serde_knows() {
    insta::assert_snapshot!(caption("size: [0, 5]"), @"");
    insta::assert_snapshot!(caption("size: [1, 2, 3]"), @"");
    insta::assert_snapshot!(caption("size: [1]"), @"");
}

#[test]
fn a_config_may_be_json_and_texts_long() {
    let prompt = "Describe the picture: all of it. ".repeat(60);
    let text = format!(
        r#"{{
"sources": {{ "pairs": {{ "type": "image_folder", "path": "in" }} }},
"stages": {{
	"captions": {{ "type": "caption", "prompt": "{prompt}", "api_key": "${{env:API_KEY}}" }}
}},
"sinks": {{ "out": {{ "type": "parquet", "path": "out" }} }}
}}
"#
    );
    let spec = parse(SourceFile::new("p.json", text), &[], &env).unwrap();
    assert_eq!(spec.stages[0].decode::<Caption>().unwrap().prompt, prompt);
}

#[test]
fn values_that_fit() {
    let decode = |config: &str| {
        let text =
            pipeline(&format!("captions: {{ type: caption, prompt: p, api_key: \"${{env:API_KEY}}\", {config} }}"));
        let spec = parse(SourceFile::new("p.yaml", text), &[], &env).unwrap();
        spec.stages[0].decode::<Caption>().unwrap()
    };
    assert_eq!(decode("choice: first").choice, Some(Choice::First));
    assert_eq!(decode("choice: { best_of: 3 }").choice, Some(Choice::BestOf(3)));
    assert_eq!(decode("choice: { scored: { model: m } }").choice, Some(Choice::Scored { model: "m".into() }));
    assert_eq!(decode("amount: 5").amount, Some(Amount::Rows(5)));
    assert_eq!(decode("amount: 5%").amount, Some(Amount::Share("5%".into())));
    assert_eq!(decode("store: { kind: none }").store, Some(Store::None));
    assert_eq!(decode("store: null").store, None);
    assert_eq!(decode("classes: { 1: cat, 2: dog }").classes[&2], "dog");
    assert_eq!(decode("headers: { on: off }").headers["on"], "off");
    assert_eq!(
        decode("extra: { a: [1, -2, 0.5, null, { b: yes }] }").extra["a"].to_string(),
        r#"[1,-2,0.5,null,{"b":"yes"}]"#
    );
    let text = pipeline("kept: { type: filter_boxes, min_score: 1, nms: off, nms_iou: null, always: [on, no] }");
    let spec = parse(SourceFile::new("p.yaml", text), &[], &env).unwrap();
    let kept = spec.stages[0].decode::<FilterBoxes>().unwrap();
    assert_eq!((kept.min_score, kept.nms, kept.nms_iou), (1.0, Suppression::Off, None));
    assert_eq!(kept.always, ["on", "no"]);
}
