//! What is said about the keys and values of components.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod product;

use groundloom_spec::{SourceFile, parse};
use product::{Amount, Caption, Choice, FilterBoxes, Store, Suppression, boxes, caption, env, messages, pipeline};

#[test]
fn keys() {
    insta::assert_snapshot!(boxes("min_scor: 0.5"), @r#"
    p.yaml:3:31: error[unknown_key]: stage `kept` has no key "min_scor"
      |
    3 |   kept: { type: filter_boxes, min_scor: 0.5 }
      |                               ^^^^^^^^ unknown key
      |
      = help: did you mean `min_score`?
    "#);
    insta::assert_snapshot!(boxes("threshold: 0.5"), @r#"
    p.yaml:3:31: error[unknown_key]: stage `kept` has no key "threshold"
      |
    3 |   kept: { type: filter_boxes, threshold: 0.5 }
      |                               ^^^^^^^^^ unknown key
      |
      = help: its keys are: `min_score`, `nms_iou`, `nms`, `limit`, `keep_rejected` and `always`
    "#);
    insta::assert_snapshot!(boxes("inputs: pairs"), @r#"
    p.yaml:3:31: error[unknown_key]: stage `kept` has no key "inputs"
      |
    3 |   kept: { type: filter_boxes, inputs: pairs }
      |                               ^^^^^^ unknown key
      |
      = help: did you mean `input`?
    "#);
    insta::assert_snapshot!(messages(&pipeline("chunks: { type: noun_chunks }")), @r"
    p.yaml:3:3: error[missing_key]: stage `chunks` has no `text`
      |
    3 |   chunks: { type: noun_chunks }
      |   ^^^^^^ `text` is missing
      |
      = help: add `text`: The column that holds the caption.
    ");
    insta::assert_snapshot!(messages(&pipeline("chunks: { type: noun_chunks, txt: caption }")), @r#"
    p.yaml:3:32: error[unknown_key]: stage `chunks` has no key "txt"
      |
    3 |   chunks: { type: noun_chunks, txt: caption }
      |                                ^^^ unknown key
      |
      = help: did you mean `text`?
    "#);
}

#[test]
fn types() {
    insta::assert_snapshot!(boxes("min_score: high"), @r#"
    p.yaml:3:42: error[wrong_type]: `min_score` of stage `kept` must be a number, found the text "high"
      |
    3 |   kept: { type: filter_boxes, min_score: high }
      |                                          ^^^^ expected a number
    "#);
    insta::assert_snapshot!(boxes("min_score: \"0.5\""), @r#"
    p.yaml:3:42: error[wrong_type]: `min_score` of stage `kept` must be a number, found the text "0.5"
      |
    3 |   kept: { type: filter_boxes, min_score: "0.5" }
      |                                          ^^^^^ expected a number
      |
      = help: write 0.5, without quotes and separators
    "#);
    insta::assert_snapshot!(boxes("limit: 2.5"), @r"
    p.yaml:3:38: error[wrong_type]: `limit` of stage `kept` must be an integer, found the number 2.5
      |
    3 |   kept: { type: filter_boxes, limit: 2.5 }
      |                                      ^^^ expected an integer
    ");
    insta::assert_snapshot!(boxes("limit: 1_000"), @r#"
    p.yaml:3:38: error[wrong_type]: `limit` of stage `kept` must be an integer, found the text "1_000"
      |
    3 |   kept: { type: filter_boxes, limit: 1_000 }
      |                                      ^^^^^ expected an integer
      |
      = help: write 1000, without quotes and separators
    "#);
    insta::assert_snapshot!(boxes("min_score: "), @r"
    p.yaml:3:31: error[wrong_type]: `min_score` of stage `kept` must be a number, found no value
      |
    3 |   kept: { type: filter_boxes, min_score:  }
      |                               ^^^^^^^^^ expected a number
      |
      = help: give a value, or leave the key out
    ");
    insta::assert_snapshot!(boxes("keep_rejected: yes"), @r#"
    p.yaml:3:46: error[wrong_type]: `keep_rejected` of stage `kept` must be `true` or `false`, found the text "yes"
      |
    3 |   kept: { type: filter_boxes, keep_rejected: yes }
      |                                              ^^^ expected `true` or `false`
      |
      = help: write `true`
    "#);
    insta::assert_snapshot!(boxes("always: dog"), @r#"
    p.yaml:3:39: error[wrong_type]: `always` of stage `kept` must be a list of texts, found the text "dog"
      |
    3 |   kept: { type: filter_boxes, always: dog }
      |                                       ^^^ expected a list of texts
      |
      = help: write ["dog"]
    "#);
    insta::assert_snapshot!(boxes("always: [dog, 5, [cat]]"), @r#"
    p.yaml:3:45: error[wrong_type]: `always[1]` of stage `kept` must be text, found the number 5
      |
    3 |   kept: { type: filter_boxes, always: [dog, 5, [cat]] }
      |                                             ^ expected text
      |
      = help: put it in quotes: "5"

    p.yaml:3:48: error[wrong_type]: `always[2]` of stage `kept` must be text, found a list
      |
    3 |   kept: { type: filter_boxes, always: [dog, 5, [cat]] }
      |                                                ^^^^^ expected text
    "#);
    insta::assert_snapshot!(messages(&pipeline("chunks: { type: noun_chunks, text: 1.10 }")), @r#"
    p.yaml:3:38: error[wrong_type]: `text` of stage `chunks` must be text, found the number 1.10
      |
    3 |   chunks: { type: noun_chunks, text: 1.10 }
      |                                      ^^^^ expected text
      |
      = help: put it in quotes: "1.10"
    "#);
    insta::assert_snapshot!(messages(&pipeline("chunks: { type: noun_chunks, text: true }")), @r#"
    p.yaml:3:38: error[wrong_type]: `text` of stage `chunks` must be text, found `true`
      |
    3 |   chunks: { type: noun_chunks, text: true }
      |                                      ^^^^ expected text
      |
      = help: put it in quotes: "true"
    "#);
    insta::assert_snapshot!(messages(&pipeline("chunks:\n    type: noun_chunks\n    text:\n      a: b\n      c: d")), @r"
    p.yaml:6:7: error[wrong_type]: `text` of stage `chunks` must be text, found a map
      |
    6 |       a: b
      |       ^^^^ expected text
    ");
}

#[test]
fn ranges() {
    insta::assert_snapshot!(boxes("min_score: 1.5"), @r"
    p.yaml:3:42: error[out_of_range]: `min_score` of stage `kept` must be from 0 to 1, found the number 1.5
      |
    3 |   kept: { type: filter_boxes, min_score: 1.5 }
      |                                          ^^^ expected from 0 to 1
    ");
    insta::assert_snapshot!(boxes("nms_iou: -1"), @r"
    p.yaml:3:40: error[out_of_range]: `nms_iou` of stage `kept` must be from 0 to 1, found the number -1
      |
    3 |   kept: { type: filter_boxes, nms_iou: -1 }
      |                                        ^^ expected from 0 to 1
    ");
    insta::assert_snapshot!(boxes("limit: 0"), @r"
    p.yaml:3:38: error[out_of_range]: `limit` of stage `kept` must be at least 1, found the number 0
      |
    3 |   kept: { type: filter_boxes, limit: 0 }
      |                                      ^ expected at least 1
    ");
    insta::assert_snapshot!(boxes("limit: 5000000000"), @r"
    p.yaml:3:38: error[out_of_range]: `limit` of stage `kept` must be at most 4294967295, found the number 5000000000
      |
    3 |   kept: { type: filter_boxes, limit: 5000000000 }
      |                                      ^^^^^^^^^^ expected at most 4294967295
    ");
    insta::assert_snapshot!(caption("retries: { times: 300, wait: 0 }"), @r#"
    p.yaml:3:86: error[out_of_range]: `retries.times` of stage `captions` must be from 0 to 255, found the number 300
      |
    3 |   captions: { type: caption, prompt: p, api_key: "${env:API_KEY}", retries: { times: 300, wait: 0 } }
      |                                                                                      ^^^ expected from 0 to 255

    p.yaml:3:97: error[out_of_range]: `retries.wait` of stage `captions` must be at least 0.1, found the number 0
      |
    3 |   captions: { type: caption, prompt: p, api_key: "${env:API_KEY}", retries: { times: 300, wait: 0 } }
      |                                                                                                 ^ expected at least 0.1
    "#);
}

#[test]
fn names() {
    insta::assert_snapshot!(boxes("nms: per_phrases"), @r#"
    p.yaml:3:36: error[not_one_of]: `nms` of stage `kept` must be one of `across_phrases`, `per_phrase` or `off`, found the text "per_phrases"
      |
    3 |   kept: { type: filter_boxes, nms: per_phrases }
      |                                    ^^^^^^^^^^^ unknown value
      |
      = help: did you mean `per_phrase`?
    "#);
    insta::assert_snapshot!(boxes("nms: none"), @r#"
    p.yaml:3:36: error[not_one_of]: `nms` of stage `kept` must be one of `across_phrases`, `per_phrase` or `off`, found the text "none"
      |
    3 |   kept: { type: filter_boxes, nms: none }
      |                                    ^^^^ unknown value
    "#);
    insta::assert_snapshot!(boxes("nms: 5"), @r"
    p.yaml:3:36: error[not_one_of]: `nms` of stage `kept` must be one of `across_phrases`, `per_phrase` or `off`, found the number 5
      |
    3 |   kept: { type: filter_boxes, nms: 5 }
      |                                    ^ unknown value
    ");
}

#[test]
fn lengths() {
    insta::assert_snapshot!(messages(&pipeline("captions: { type: caption, prompt: \"\", api_key: \"${env:API_KEY}\" }")), @r#"
    p.yaml:3:38: error[wrong_length]: `prompt` of stage `captions` must have 1 to 2000 characters, found 0
      |
    3 |   captions: { type: caption, prompt: "", api_key: "${env:API_KEY}" }
      |                                      ^^ expected 1 to 2000 characters
    "#);
    let with_columns = |columns: &str| {
        messages(&format!(
            "sources: {{ pairs: {{ type: image_folder, path: in }} }}\nsinks: {{ out: {{ type: parquet, path: out, columns: {columns} }} }}\n"
        ))
    };
    insta::assert_snapshot!(with_columns("[]"), @r"
    p.yaml:2:52: error[wrong_length]: `columns` of sink `out` must have at least 1 item, found 0
      |
    2 | sinks: { out: { type: parquet, path: out, columns: [] } }
      |                                                    ^^ expected at least 1 item
    ");
    insta::assert_snapshot!(with_columns("[image, caption, image]"), @r#"
    p.yaml:2:69: error[duplicate_item]: `columns` of sink `out` has the text "image" twice
      |
    2 | sinks: { out: { type: parquet, path: out, columns: [image, caption, image] } }
      |                                                     -----           ^^^^^ again here
      |                                                     |
      |                                                     first here
      |
      = help: remove one of them
    "#);
}

#[test]
fn nested_maps() {
    insta::assert_snapshot!(caption("retries: { time: 3 }"), @r#"
    p.yaml:3:79: error[unknown_key]: `retries` of stage `captions` has no key "time"
      |
    3 |   captions: { type: caption, prompt: p, api_key: "${env:API_KEY}", retries: { time: 3 } }
      |                                                                               ^^^^ unknown key
      |
      = help: did you mean `times`?
    "#);
    insta::assert_snapshot!(caption("retries: 3"), @r#"
    p.yaml:3:77: error[wrong_type]: `retries` of stage `captions` must be a map, found the number 3
      |
    3 |   captions: { type: caption, prompt: p, api_key: "${env:API_KEY}", retries: 3 }
      |                                                                             ^ expected a map
    "#);
    insta::assert_snapshot!(caption("headers: { a: b, c: 5 }"), @r#"
    p.yaml:3:88: error[wrong_type]: `headers.c` of stage `captions` must be text, found the number 5
      |
    3 |   captions: { type: caption, prompt: p, api_key: "${env:API_KEY}", headers: { a: b, c: 5 } }
      |                                                                                        ^ expected text
      |
      = help: put it in quotes: "5"
    "#);
    insta::assert_snapshot!(caption("classes: { 1: cat, dog: dog }"), @r#"
    p.yaml:3:87: error[wrong_type]: the keys of `classes` of stage `captions` must be integers, found "dog"
      |
    3 |   captions: { type: caption, prompt: p, api_key: "${env:API_KEY}", classes: { 1: cat, dog: dog } }
      |                                                                                       ^^^ expected an integer
    "#);
}

#[test]
fn variants() {
    insta::assert_snapshot!(caption("store: { kind: folder, url: s3 }"), @r#"
    p.yaml:3:75: error[missing_key]: `store` of stage `captions` has no `path`
      |
    3 |   captions: { type: caption, prompt: p, api_key: "${env:API_KEY}", store: { kind: folder, url: s3 } }
      |                                                                           ^^^^^^^^^^^^^^^^^^^^^^^^^ `path` is missing
      |
      = help: add `path`: The folder.

    p.yaml:3:91: error[unknown_key]: `store` of stage `captions` has no key "url"
      |
    3 |   captions: { type: caption, prompt: p, api_key: "${env:API_KEY}", store: { kind: folder, url: s3 } }
      |                                                                                           ^^^ unknown key
      |
      = help: its keys are: `kind` and `path`
    "#);
    insta::assert_snapshot!(caption("store: { kind: floder, path: s3 }"), @r#"
    p.yaml:3:83: error[not_one_of]: `store.kind` of stage `captions` must be one of `none`, `folder` or `bucket`, found the text "floder"
      |
    3 |   captions: { type: caption, prompt: p, api_key: "${env:API_KEY}", store: { kind: floder, path: s3 } }
      |                                                                                   ^^^^^^ unknown value
      |
      = help: did you mean `folder`?
    "#);
    insta::assert_snapshot!(caption("store: { path: s3 }"), @r#"
    p.yaml:3:75: error[missing_key]: `store` of stage `captions` has no `kind`
      |
    3 |   captions: { type: caption, prompt: p, api_key: "${env:API_KEY}", store: { path: s3 } }
      |                                                                           ^^^^^^^^^^^^ `kind` is missing
      |
      = help: add `kind`: `none`, `folder` or `bucket`
    "#);
    insta::assert_snapshot!(caption("store: folder"), @r#"
    p.yaml:3:75: error[wrong_type]: `store` of stage `captions` must be a map, found the text "folder"
      |
    3 |   captions: { type: caption, prompt: p, api_key: "${env:API_KEY}", store: folder }
      |                                                                           ^^^^^^ expected a map
    "#);
    insta::assert_snapshot!(caption("choice: frist"), @r#"
    p.yaml:3:76: error[not_one_of]: `choice` of stage `captions` must be one of `first`, a map with `best_of` or a map with `scored`, found the text "frist"
      |
    3 |   captions: { type: caption, prompt: p, api_key: "${env:API_KEY}", choice: frist }
      |                                                                            ^^^^^ unknown value
      |
      = help: did you mean `first`?
    "#);
    insta::assert_snapshot!(caption("choice: { best_of: many }"), @r#"
    p.yaml:3:87: error[wrong_type]: `choice.best_of` of stage `captions` must be an integer, found the text "many"
      |
    3 |   captions: { type: caption, prompt: p, api_key: "${env:API_KEY}", choice: { best_of: many } }
      |                                                                                       ^^^^ expected an integer
    "#);
    insta::assert_snapshot!(caption("choice: { scored: { modle: clip } }"), @r#"
    p.yaml:3:88: error[unknown_key]: `choice.scored` of stage `captions` has no key "modle"
      |
    3 |   captions: { type: caption, prompt: p, api_key: "${env:API_KEY}", choice: { scored: { modle: clip } } }
      |                                                                                        ^^^^^ unknown key
      |
      = help: did you mean `model`?
    "#);
    insta::assert_snapshot!(caption("choice: { best: 3 }"), @r#"
    p.yaml:3:78: error[unknown_key]: `choice` of stage `captions` has no key "best"
      |
    3 |   captions: { type: caption, prompt: p, api_key: "${env:API_KEY}", choice: { best: 3 } }
      |                                                                              ^^^^ unknown key
      |
      = help: its keys are: `best_of` and `scored`
    "#);
    insta::assert_snapshot!(caption("choice: { best_of: 3, scored: { model: m } }"), @r#"
    p.yaml:3:76: error[wrong_length]: `choice` of stage `captions` must have exactly one key, found 2
      |
    3 |   captions: { type: caption, prompt: p, api_key: "${env:API_KEY}", choice: { best_of: 3, scored: { model: m } } }
      |                                                                            ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ expected one key
      |
      = help: give `best_of` or `scored`
    "#);
    insta::assert_snapshot!(caption("choice: 3"), @r#"
    p.yaml:3:76: error[wrong_type]: `choice` of stage `captions` must be `first`, a map with `best_of` or a map with `scored`, found the number 3
      |
    3 |   captions: { type: caption, prompt: p, api_key: "${env:API_KEY}", choice: 3 }
      |                                                                            ^ expected `first`, a map with `best_of` or a map with `scored`
    "#);
    insta::assert_snapshot!(caption("amount: [1]"), @r#"
    p.yaml:3:76: error[wrong_type]: `amount` of stage `captions` must be an integer or text, found a list
      |
    3 |   captions: { type: caption, prompt: p, api_key: "${env:API_KEY}", amount: [1] }
      |                                                                            ^^^ expected an integer or text
    "#);
    insta::assert_snapshot!(caption("amount: -1"), @r#"
    p.yaml:3:76: error[out_of_range]: `amount` of stage `captions` must be at least 0, found the number -1
      |
    3 |   captions: { type: caption, prompt: p, api_key: "${env:API_KEY}", amount: -1 }
      |                                                                            ^^ expected at least 0
    "#);
}

#[test]
fn what_only_serde_knows() {
    insta::assert_snapshot!(caption("size: [0, 5]"), @r#"
    p.yaml:3:74: error[invalid_value]: `size` of stage `captions`: a size of 0×5 has no pixels
      |
    3 |   captions: { type: caption, prompt: p, api_key: "${env:API_KEY}", size: [0, 5] }
      |                                                                          ^^^^^^
    "#);
    insta::assert_snapshot!(caption("size: [1, 2, 3]"), @r#"
    p.yaml:3:74: error[wrong_length]: `size` of stage `captions` must have exactly 2 items, found 3
      |
    3 |   captions: { type: caption, prompt: p, api_key: "${env:API_KEY}", size: [1, 2, 3] }
      |                                                                          ^^^^^^^^^ expected exactly 2 items
    "#);
    insta::assert_snapshot!(caption("size: [1]"), @r#"
    p.yaml:3:74: error[wrong_length]: `size` of stage `captions` must have exactly 2 items, found 1
      |
    3 |   captions: { type: caption, prompt: p, api_key: "${env:API_KEY}", size: [1] }
      |                                                                          ^^^ expected exactly 2 items
    "#);
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

/// A predicate, as deep as one likes.
#[derive(Debug, PartialEq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
enum Predicate {
    /// The other way round.
    Not {
        /// The predicate.
        of: Box<Predicate>,
    },
    /// As it is.
    Same {
        /// The predicate.
        of: Box<Predicate>,
    },
    /// Always.
    Always,
}

/// Keeps rows.
#[derive(Debug, PartialEq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct Keep {
    /// Which.
    r#where: Predicate,
}

impl groundloom_spec::Config for Keep {
    const NAME: &'static str = "keep";
    const SUMMARY: &'static str = "Keep rows";
    const EXAMPLE: &'static str = "kept: { type: keep, where: { op: always } }";
}

#[test]
fn variants_that_nest_deeply_are_checked_once_each() {
    let mut predicate = "{ op: alway }".to_owned();
    for level in 0..50 {
        predicate = format!("{{ op: {}, of: {predicate} }}", ["not", "same"][level % 2]);
    }
    let text = pipeline(&format!("kept: {{ type: keep, where: {predicate} }}"));
    let spec = parse(SourceFile::new("p.yaml", text.as_str()), &[], &env).unwrap();
    let findings = spec.stages[0].decode::<Keep>().unwrap_err();
    let shown = findings.to_string();
    assert!(shown.ends_with("must be one of `not`, `same` or `always`, found the text \"alway\""), "{shown}");
    let spec = parse(SourceFile::new("p.yaml", text.replace("alway ", "always ")), &[], &env).unwrap();
    spec.stages[0].decode::<Keep>().unwrap();
    let page = groundloom_spec::describe(&groundloom_spec::ComponentType::of::<Keep>(groundloom_spec::Role::Stage));
    assert!(page.lines().count() < 200, "{page}");
}

#[test]
fn places_of_values() {
    let text = pipeline(
        "captions:\n    type: caption\n    prompt: p\n    input: pairs\n    retries: { times: 3 }\n    always: [a, bc]\n    empty:",
    );
    let spec = parse(SourceFile::new("p.yaml", text), &[], &env).unwrap();
    let stage = &spec.stages[0];
    for (path, expected) in [
        ("prompt", "p"),
        ("retries.times", "3"),
        ("retries", "{ times: 3 }"),
        ("always[1]", "bc"),
        ("always[9]", "captions"),
        ("missing", "captions"),
        ("empty", "captions"),
        ("", "captions"),
        ("type", "caption"),
        ("input", "pairs"),
        ("always[", "[a, bc]"),
    ] {
        assert_eq!(spec.source.slice(stage.span_of(path)), expected, "{path}");
    }
    insta::assert_snapshot!(serde_json::to_string(&spec).unwrap(), @r#"{"sources":{"pairs":{"type":"image_folder","path":"in"}},"stages":{"captions":{"type":"caption","input":["pairs"],"prompt":"p","retries":{"times":3},"always":["a","bc"],"empty":null}},"sinks":{"out":{"type":"parquet","path":"out"}}}"#);
}

#[test]
fn colour_is_added_and_nothing_else() {
    let text = pipeline("kept: { type: filter_boxes, limit: 0 }");
    let (_, found, file) = product::findings(&text, &[]);
    let coloured = groundloom_spec::render(&file, &found, true);
    assert!(coloured.contains("\u{1b}["));
    let mut plain = String::new();
    for (index, part) in coloured.split('\u{1b}').enumerate() {
        plain.push_str(if index == 0 { part } else { part.split_once('m').unwrap().1 });
    }
    assert_eq!(plain, groundloom_spec::render(&file, &found, false));
}
