//! Params and secrets: what they become, and what is said about them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod product;

use groundloom_spec::{SourceFile, Value, parse};
use product::{Caption, FilterBoxes, env, messages, messages_with, pipeline};

/// A pipeline whose source has this path.
fn with_path(params: &str, path: &str) -> String {
    format!(
        "params: {params}\nsources: {{ pairs: {{ type: image_folder, path: {path} }} }}\nsinks: {{ out: {{ type: parquet, path: out }} }}\n"
    )
}

/// The path that comes out, as JSON.
fn path(params: &str, path: &str, sets: &[(&str, &str)]) -> String {
    let sets: Vec<(String, String)> =
        sets.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let file = SourceFile::new("p.yaml", with_path(params, path));
    let spec = parse(file, &sets, &env).unwrap();
    serde_json::to_string(spec.sources[0].config.get("path").unwrap()).unwrap()
}

#[test]
fn values_keep_their_type_alone_and_become_text_inside_text() {
    for (params, written, expected) in [
        ("{ a: 1 }", r#""${a}""#, "1"),
        ("{ a: 0.50 }", r#""${a}""#, "0.5"),
        ("{ a: 0.50 }", r#""run-${a}""#, r#""run-0.50""#),
        ("{ a: 0x1F }", r#""${a}""#, "31"),
        ("{ a: true }", r#""${a}""#, "true"),
        ("{ a: true }", r#"" ${a}""#, r#"" true""#),
        ("{ a: yes }", r#""${a}""#, r#""yes""#),
        ("{ a: '1' }", r#""${a}""#, r#""1""#),
        ("{ a: [1, x] }", r#""${a}""#, r#"[1,"x"]"#),
        ("{ a: { b: [c] } }", r#""${a}""#, r#"{"b":["c"]}"#),
        ("{ a: x, b: \"${a}y\", c: \"${b}z\" }", r#""${c}""#, r#""xyz""#),
        ("{ a: x }", r#""$${a}${a}$a""#, r#""${a}x$a""#),
        ("{ a: x }", "'${a}'", r#""x""#),
        ("{ a: x }", "[\"${a}\", { k: \"${a}\" }]", r#"["x",{"k":"x"}]"#),
    ] {
        assert_eq!(path(params, written, &[]), expected, "{params} {written}");
    }
}

#[test]
fn set_replaces_a_param() {
    for (set, expected) in [
        ("0.5", "0.5"),
        ("007", "7"),
        ("text", r#""text""#),
        ("a: b # c", r#""a: b # c""#),
        ("*glob", r#""*glob""#),
        ("\"1\"", r#""1""#),
        ("[a, 1]", r#"["a",1]"#),
        ("{ k: v }", r#"{"k":"v"}"#),
        ("null", "null"),
        ("", "null"),
        ("no", r#""no""#),
        ("${b}/x", r#""other/x""#),
    ] {
        assert_eq!(path("{ a: 1, b: other }", r#""${a}""#, &[("a", "first"), ("a", set)]), expected, "{set}");
    }
}

#[test]
fn unknown_params() {
    insta::assert_snapshot!(messages(&with_path("{ input: 1 }", "\"x ${inptu} y\"")), @"");
    insta::assert_snapshot!(messages("sources: { pairs: { type: image_folder, path: \"${input}\" } }\nsinks: { out: { type: parquet, path: out } }\n"), @"");
    insta::assert_snapshot!(messages_with(&with_path("{ input: 1 }", "\"x${input}\""), &[("inptu", "2")]), @"");
    insta::assert_snapshot!(messages_with(&pipeline("a: { type: noun_chunks, text: t }"), &[("input", "2")]), @"");
}

#[test]
fn values_that_set_cannot_take() {
    insta::assert_snapshot!(messages_with(&with_path("{ a: 1 }", "\"x${a}\""), &[("a", "[1")]), @"");
    insta::assert_snapshot!(messages_with(&with_path("{ a: 1 }", "\"x${a}\""), &[("a", ".nan")]), @"");
    insta::assert_snapshot!(messages_with(&with_path("{ a: 1 }", "\"x${a}\""), &[("a", "${b}")]), @"");
}

#[test]
fn params_without_value_or_use() {
    insta::assert_snapshot!(messages(&with_path("{ input: }", "\"${input}\"")), @"");
    insta::assert_snapshot!(messages(&with_path("{ input: }", "in")), @"");
    insta::assert_snapshot!(messages(&with_path("{ in-put: 1 }", "in")), @"");
    insta::assert_snapshot!(messages(&with_path("[a]", "in")), @"");
}

#[test]
fn malformed_references() {
    insta::assert_snapshot!(messages(&with_path("{ a: 1 }", "\"${a\"")), @"");
    insta::assert_snapshot!(messages(&with_path("{ a: 1 }", "\"ü ${a} ${a b} ${file:x}\"")), @"");
    insta::assert_snapshot!(messages(&with_path("{ a: [1] }", "\"x ${a}\"")), @"");
}

#[test]
fn params_that_refer_to_each_other() {
    insta::assert_snapshot!(messages(&with_path("{ a: \"${b}\", b: \"${c}\", c: \"x ${a}\" }", "\"${a}\"")), @"");
    insta::assert_snapshot!(messages(&with_path("{ a: \"${a}\" }", "\"${a}\"")), @"");
}

#[test]
fn params_that_grow_without_bound() {
    let mut params = "{ p0: [x, x, x, x, x, x, x, x, x, x]".to_owned();
    for n in 1..12 {
        let one = format!("\"${{p{}}}\"", n - 1);
        params.push_str(&format!(", p{n}: [{}]", vec![one; 10].join(", ")));
    }
    params.push_str(" }");
    let shown = messages(&with_path(&params, "\"${p11}\""));
    assert!(shown.contains("error[too_large]: with its params put in"), "{shown}");

    let mut params = "{ p0: x".to_owned();
    for n in 1..100 {
        params.push_str(&format!(", p{n}: [\"${{p{}}}\"]", n - 1));
    }
    params.push_str(" }");
    let shown = messages(&with_path(&params, "\"${p60}\""));
    assert!(shown.contains("error[too_deep]"), "{shown}");
    let shown = messages(&with_path(&params, "\"${p99}\""));
    assert!(shown.contains("error[too_deep]: params refer to each other through more than 64 steps"), "{shown}");
}

#[test]
fn where_a_wrong_value_came_from() {
    let text = pipeline("kept: { type: filter_boxes, min_score: \"${score}\" }")
        .replace("sources", "params: { score: high }\nsources");
    insta::assert_snapshot!(messages(&text), @"");
    insta::assert_snapshot!(messages_with(&text, &[("score", "2")]), @"");
    let text = text.replace("high", "{ a: 1 }");
    insta::assert_snapshot!(messages(&text), @"");
}

#[test]
fn secrets_are_named_and_never_shown() {
    let text = pipeline("captions: { type: caption, prompt: p, api_key: \"${key}\", store: { kind: bucket, url: s3, key: \"k-${env:BUCKET_KEY}\" } }")
        .replace("sources", "params: { key: \"${env:API_KEY}\" }\nsources");
    let spec = parse(SourceFile::new("p.yaml", text), &[], &env).unwrap();
    let config: Caption = spec.stages[0].decode().unwrap();
    assert_eq!(config.api_key.reveal(&env).unwrap(), "hunter2-never-shown");
    let shown = format!("{spec:?} {config:?} {}", serde_json::to_string(&spec).unwrap());
    assert!(!shown.contains("hunter2"));
    insta::assert_snapshot!(serde_json::to_string(&config.store).unwrap(), @"");
    assert!(matches!(spec.stages[0].config.get("api_key").unwrap().value, Value::Secret(_)));
}

#[test]
fn secrets_in_the_wrong_place() {
    insta::assert_snapshot!(messages(&pipeline("captions: { type: caption, prompt: p, api_key: \"${env:NO_SUCH}\" }")), @"");
    insta::assert_snapshot!(messages(&pipeline("captions: { type: caption, prompt: p, api_key: plain }")), @"");
    insta::assert_snapshot!(messages(&with_path("{ a: \"${env:API_KEY}\" }", "\"in/${a}\"")), @"");
    insta::assert_snapshot!(product::caption("extra: { deep: [\"${env:API_KEY}\"] }"), @"");
    insta::assert_snapshot!(product::boxes("min_score: \"${env:API_KEY}\", nms: \"${env:API_KEY}\""), @"");
    insta::assert_snapshot!(messages(&pipeline("a: { type: \"${env:API_KEY}\" }")), @"");
}

#[test]
fn a_param_may_be_a_whole_section() {
    let text = "params: { s: { shard_rows: 5 } }\nsources: { pairs: { type: image_folder, path: in } }\nsinks: { out: { type: parquet, path: out } }\nsettings: \"${s}\"\n";
    let spec = parse(SourceFile::new("p.yaml", text), &[], &env).unwrap();
    assert_eq!(spec.decode_settings::<product::Settings>().unwrap().shard_rows, 5);
}

#[test]
fn defaults_apply() {
    let spec = parse(SourceFile::new("p.yaml", pipeline("kept: { type: filter_boxes }")), &[], &env).unwrap();
    let config: FilterBoxes = spec.stages[0].decode().unwrap();
    assert_eq!(config.min_score, 0.65);
    assert_eq!(spec.decode_settings::<product::Settings>().unwrap().shard_rows, 10_000);
}
