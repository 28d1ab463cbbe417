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
    insta::assert_snapshot!(messages(&with_path("{ input: 1 }", "\"x ${inptu} y\"")), @r#"
    p.yaml:1:11: warning[unused_param]: nothing uses the param `input`
      |
    1 | params: { input: 1 }
      |           ^^^^^
      |
      = help: use it as "${input}", or remove it

    p.yaml:2:50: error[unknown_param]: there is no param `inptu`
      |
    2 | sources: { pairs: { type: image_folder, path: "x ${inptu} y" } }
      |                                                  ^^^^^^^^ not declared
      |
      = help: did you mean `input`?
    "#);
    insta::assert_snapshot!(messages("sources: { pairs: { type: image_folder, path: \"${input}\" } }\nsinks: { out: { type: parquet, path: out } }\n"), @r#"
    p.yaml:1:48: error[unknown_param]: there is no param `input`
      |
    1 | sources: { pairs: { type: image_folder, path: "${input}" } }
      |                                                ^^^^^^^^ not declared
      |
      = help: declare it: params: { input: … }
    "#);
    insta::assert_snapshot!(messages_with(&with_path("{ input: 1 }", "\"x${input}\""), &[("inptu", "2")]), @r#"
    p.yaml: error[unknown_param]: --set names "inptu", which is no param of this pipeline
     = help: did you mean `input`?
    "#);
    insta::assert_snapshot!(messages_with(&pipeline("a: { type: noun_chunks, text: t }"), &[("input", "2")]), @r#"
    p.yaml: error[unknown_param]: --set names "input", which is no param of this pipeline
     = help: it has no params
    "#);
}

#[test]
fn values_that_set_cannot_take() {
    insta::assert_snapshot!(messages_with(&with_path("{ a: 1 }", "\"x${a}\""), &[("a", "[1")]), @r#"
    p.yaml: error[bad_set]: --set a=[1: this is not YAML: unclosed bracket '['
     = help: put text in quotes, once for the shell and once for YAML: --set 'name="text"'
    "#);
    insta::assert_snapshot!(messages_with(&with_path("{ a: 1 }", "\"x${a}\""), &[("a", ".nan")]), @r#"
    p.yaml: error[bad_set]: --set a=.nan: expected a finite number, found .nan
     = help: put text in quotes, once for the shell and once for YAML: --set 'name="text"'
    "#);
    insta::assert_snapshot!(messages_with(&with_path("{ a: 1 }", "\"x${a}\""), &[("a", "${b}")]), @r"
    p.yaml: error[unknown_param]: there is no param `b`
     = help: the params are: `a`
    ");
}

#[test]
fn params_without_value_or_use() {
    insta::assert_snapshot!(messages(&with_path("{ input: }", "\"${input}\"")), @r"
    p.yaml:1:11: error[param_required]: the param `input` has no value
      |
    1 | params: { input: }
      |           ^^^^^ declared without a value
      |
      = help: give one: --set input=…
    ");
    insta::assert_snapshot!(messages(&with_path("{ input: }", "in")), @r#"
    p.yaml:1:11: warning[unused_param]: nothing uses the param `input`
      |
    1 | params: { input: }
      |           ^^^^^
      |
      = help: use it as "${input}", or remove it
    "#);
    insta::assert_snapshot!(messages(&with_path("{ in-put: 1 }", "in")), @r#"
    p.yaml:1:11: error[bad_name]: "in-put" can't be the name of a param
      |
    1 | params: { in-put: 1 }
      |           ^^^^^^
      |
      = help: use letters, digits and `_`, and don't begin with a digit

    p.yaml:1:11: warning[unused_param]: nothing uses the param `in-put`
      |
    1 | params: { in-put: 1 }
      |           ^^^^^^
      |
      = help: use it as "${in-put}", or remove it
    "#);
    insta::assert_snapshot!(messages(&with_path("[a]", "in")), @r"
    p.yaml:1:9: error[wrong_type]: `params` must be a map, found a list
      |
    1 | params: [a]
      |         ^^^ expected a map
      |
      = help: write params: { name: value }
    ");
}

#[test]
fn malformed_references() {
    insta::assert_snapshot!(messages(&with_path("{ a: 1 }", "\"${a\"")), @r#"
    p.yaml:1:11: warning[unused_param]: nothing uses the param `a`
      |
    1 | params: { a: 1 }
      |           ^
      |
      = help: use it as "${a}", or remove it

    p.yaml:2:48: error[bad_reference]: `${` has no closing `}`
      |
    2 | sources: { pairs: { type: image_folder, path: "${a" } }
      |                                                ^^^
      |
      = help: write $${ where ${ is meant as text
    "#);
    insta::assert_snapshot!(messages(&with_path("{ a: 1 }", "\"ü ${a} ${a b} ${file:x}\"")), @r#"
    p.yaml:2:55: error[bad_reference]: "a b" can't be the name of a param: expected letters, digits and `_`, not beginning with a digit
      |
    2 | sources: { pairs: { type: image_folder, path: "ü ${a} ${a b} ${file:x}" } }
      |                                                       ^^^^^^
      |
      = help: write $${ where ${ is meant as text

    p.yaml:2:62: error[bad_reference]: `${file:…}` is unknown; there are `${param}` and `${env:NAME}`
      |
    2 | sources: { pairs: { type: image_folder, path: "ü ${a} ${a b} ${file:x}" } }
      |                                                              ^^^^^^^^^
      |
      = help: write $${ where ${ is meant as text
    "#);
    insta::assert_snapshot!(messages(&with_path("{ a: [1] }", "\"x ${a}\"")), @r#"
    p.yaml:2:50: error[not_text]: the param `a` is a list, which can't stand inside a text
      |
    2 | sources: { pairs: { type: image_folder, path: "x ${a}" } }
      |                                                  ^^^^
      |
      = help: let the reference be the whole value, or give the param text
    "#);
}

#[test]
fn params_that_refer_to_each_other() {
    insta::assert_snapshot!(messages(&with_path("{ a: \"${b}\", b: \"${c}\", c: \"x ${a}\" }", "\"${a}\"")), @r#"
    p.yaml:1:39: error[param_cycle]: the param `a` refers to itself: `a` → `b` → `c` → `a`
      |
    1 | params: { a: "${b}", b: "${c}", c: "x ${a}" }
      |                                       ^^^^
      |
      = help: give one of these params a value of its own
    "#);
    insta::assert_snapshot!(messages(&with_path("{ a: \"${a}\" }", "\"${a}\"")), @r#"
    p.yaml:1:15: error[param_cycle]: the param `a` refers to itself: `a` → `a`
      |
    1 | params: { a: "${a}" }
      |               ^^^^
      |
      = help: give one of these params a value of its own
    "#);
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
    insta::assert_snapshot!(messages(&text), @r#"
    p.yaml:4:42: error[wrong_type]: `min_score` of stage `kept` must be a number, found the text "high"
      |
    1 | params: { score: high }
      |                  ---- the value of `score`
    ...
    4 |   kept: { type: filter_boxes, min_score: "${score}" }
      |                                          ^^^^^^^^^^ expected a number
    "#);
    insta::assert_snapshot!(messages_with(&text, &[("score", "2")]), @r#"
    p.yaml:4:42: error[out_of_range]: `min_score` of stage `kept` must be from 0 to 1, found the number 2
      |
    4 |   kept: { type: filter_boxes, min_score: "${score}" }
      |                                          ^^^^^^^^^^ expected from 0 to 1
      |
      = note: the value of `score` was given by --set
    "#);
    let text = text.replace("high", "{ a: 1 }");
    insta::assert_snapshot!(messages(&text), @r#"
    p.yaml:4:42: error[wrong_type]: `min_score` of stage `kept` must be a number, found a map
      |
    1 | params: { score: { a: 1 } }
      |                  -------- the value of `score`
    ...
    4 |   kept: { type: filter_boxes, min_score: "${score}" }
      |                                          ^^^^^^^^^^ expected a number
    "#);
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
    insta::assert_snapshot!(serde_json::to_string(&config.store).unwrap(), @r#"{"kind":"bucket","url":"s3","key":"k-${env:BUCKET_KEY}"}"#);
    assert!(matches!(spec.stages[0].config.get("api_key").unwrap().value, Value::Secret(_)));
}

#[test]
fn secrets_in_the_wrong_place() {
    insta::assert_snapshot!(messages(&pipeline("captions: { type: caption, prompt: p, api_key: \"${env:NO_SUCH}\" }")), @r#"
    p.yaml:3:51: error[missing_variable]: the environment variable NO_SUCH is not set
      |
    3 |   captions: { type: caption, prompt: p, api_key: "${env:NO_SUCH}" }
      |                                                   ^^^^^^^^^^^^^^ not set
      |
      = help: set it before the run: export NO_SUCH=…
    "#);
    insta::assert_snapshot!(messages(&pipeline("captions: { type: caption, prompt: p, api_key: plain }")), @r#"
    p.yaml:3:50: error[plain_secret]: `api_key` of stage `captions` must be a secret from the environment
      |
    3 |   captions: { type: caption, prompt: p, api_key: plain }
      |                                                  ^^^^^ expected ${env:NAME}
      |
      = help: put the secret into an environment variable and write "${env:NAME}"
    "#);
    insta::assert_snapshot!(messages(&with_path("{ a: \"${env:API_KEY}\" }", "\"in/${a}\"")), @r#"
    p.yaml:2:47: error[secret_not_allowed]: `path` of source `pairs` can't be a secret, found the secret "in/${env:API_KEY}"
      |
    2 | sources: { pairs: { type: image_folder, path: "in/${a}" } }
      |                                               ^^^^^^^^^ ${env:…} is for secrets
      |
      = help: use a param: declare it in `params`, and give it with --set
    "#);
    insta::assert_snapshot!(product::caption("extra: { deep: [\"${env:API_KEY}\"] }"), @r#"
    p.yaml:3:84: error[secret_not_allowed]: `extra.deep` of stage `captions` can't be a secret, found the secret "${env:API_KEY}"
      |
    3 |   captions: { type: caption, prompt: p, api_key: "${env:API_KEY}", extra: { deep: ["${env:API_KEY}"] } }
      |                                                                                    ^^^^^^^^^^^^^^^^ ${env:…} is for secrets
      |
      = help: use a param: declare it in `params`, and give it with --set
    "#);
    insta::assert_snapshot!(product::boxes("min_score: \"${env:API_KEY}\", nms: \"${env:API_KEY}\""), @r#"
    p.yaml:3:42: error[secret_not_allowed]: `min_score` of stage `kept` can't be a secret, found the secret "${env:API_KEY}"
      |
    3 |   kept: { type: filter_boxes, min_score: "${env:API_KEY}", nms: "${env:API_KEY}" }
      |                                          ^^^^^^^^^^^^^^^^ ${env:…} is for secrets
      |
      = help: use a param: declare it in `params`, and give it with --set

    p.yaml:3:65: error[secret_not_allowed]: `nms` of stage `kept` can't be a secret, found the secret "${env:API_KEY}"
      |
    3 |   kept: { type: filter_boxes, min_score: "${env:API_KEY}", nms: "${env:API_KEY}" }
      |                                                                 ^^^^^^^^^^^^^^^^ ${env:…} is for secrets
      |
      = help: use a param: declare it in `params`, and give it with --set
    "#);
    insta::assert_snapshot!(messages(&pipeline("a: { type: \"${env:API_KEY}\" }")), @r#"
    p.yaml:3:14: error[wrong_type]: the `type` of stage `a` must be a name, found the secret "${env:API_KEY}"
      |
    3 |   a: { type: "${env:API_KEY}" }
      |              ^^^^^^^^^^^^^^^^ expected a name
      |
      = help: `groundloom stages` lists the types
    "#);
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
