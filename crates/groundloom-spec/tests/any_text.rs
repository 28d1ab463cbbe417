//! Any text at all: no panic, and every place lies in the file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod product;

use groundloom_spec::{Node, SourceFile, Span, Value};
use proptest::prelude::*;

fn check_place(file: &SourceFile, span: Span) {
    assert!(span.start <= span.end && span.end <= file.text.len(), "{span:?}");
    assert!(file.text.is_char_boundary(span.start) && file.text.is_char_boundary(span.end), "{span:?}");
}

fn check_node(file: &SourceFile, node: &Node) {
    check_place(file, node.span);
    match &node.value {
        Value::List(items) => items.iter().for_each(|item| check_node(file, item)),
        Value::Map(entries) => entries.iter().for_each(|entry| {
            check_place(file, entry.key_span);
            check_node(file, &entry.value);
        }),
        _ => {}
    }
}

fn check_text(text: &str, sets: &[(&str, &str)]) {
    let (spec, found, file) = product::findings(text, sets);
    for d in &found {
        d.span.into_iter().for_each(|span| check_place(&file, span));
        d.notes.iter().filter_map(|note| note.span).for_each(|span| check_place(&file, span));
        assert!(!d.message.is_empty());
    }
    let shown = groundloom_spec::render(&file, &found, false);
    assert!(!shown.contains("hunter2"));
    assert_eq!(found.is_empty(), shown.is_empty());
    groundloom_spec::render(&file, &found, true);
    if let Some(spec) = spec {
        for component in spec.components() {
            check_place(&file, component.span);
            check_place(&file, component.name_span);
            check_place(&file, component.kind_span);
            check_node(&file, &component.config);
            for (_, span) in &component.inputs {
                check_place(&file, *span);
            }
        }
        spec.settings.iter().for_each(|node| check_node(&file, node));
        spec.params.values().for_each(|param| check_node(&file, &param.value));
    } else {
        assert!(found.has_errors());
    }
}

/// Pieces that pipeline files are made of, so that random text is often nearly one.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => prop::sample::select(vec![
            "sources", "stages", "sinks", "params", "settings", "name", "type", "input", "image_folder",
            "filter_boxes", "caption", "noun_chunks", "parquet", "path", "text", "min_score", "store", "kind",
            "choice", "amount", "size", "classes", "retries", "a", "b", "checkpoint", "columns", "api_key",
        ]).prop_map(str::to_owned),
        4 => prop::sample::select(vec![
            ": ", ":", "\n", "\n  ", "\n    ", " ", "{ ", " }", "[", "]", ", ", "- ", "\"", "'", "#", "|\n", ">\n",
            "&", "*", "!", "%", "---\n", "...\n", "? ", "<<", "\t", "\r\n", "\r", "\u{feff}", "\0", "\u{85}", "\u{2028}",
        ]).prop_map(str::to_owned),
        3 => prop::sample::select(vec![
            "${a}", "${b}", "$${a}", "${env:API_KEY}", "${env:NO}", "${", "$", "}", "1", "-0.5", "1e9", ".nan", "~",
            "true", "ü", "漢字", "🦊", "\u{202e}", "\\", "\\x41", "\\u00e9",
        ]).prop_map(str::to_owned),
        1 => any::<String>(),
    ]
}

/// Pipelines with the right form and arbitrary values.
fn near_pipeline() -> impl Strategy<Value = String> {
    let value = || {
        prop_oneof![
            3 => prop::sample::select(vec![
                "1", "-1", "0.5", "x", "\"${a}\"", "\"x${b}ü\"", "'${env:API_KEY}'", "[1, x]", "{ kind: folder, path: x }",
                "{ best_of: 3 }", "first", "yes", "true", "", "[]", "{}", "[[[]]]", "\"\\t\\u202e\"", "[0, 1]", "漢字",
                "\"$${a} ${a}\"", "|\n        text ${a}\n        ${zz}\n",
            ]).prop_map(str::to_owned),
            1 => "[a-z0-9${}:\"', ]{0,12}",
        ]
    };
    let key = prop::sample::select(vec![
        "type",
        "input",
        "path",
        "text",
        "min_score",
        "nms",
        "limit",
        "always",
        "store",
        "choice",
        "amount",
        "size",
        "classes",
        "api_key",
        "prompt",
        "retries",
        "extra",
        "checkpoint",
        "columns",
        "headers",
        "zzz",
    ]);
    let kind = prop::sample::select(vec!["image_folder", "filter_boxes", "caption", "noun_chunks", "parquet", "x"]);
    let component = (kind, prop::collection::vec((key, value()), 0..5)).prop_map(|(kind, keys)| {
        let keys: String = keys.into_iter().map(|(key, value)| format!("      {key}: {value}\n")).collect();
        format!("      type: {kind}\n{keys}")
    });
    let section = || prop::collection::vec(component.clone(), 0..4);
    (value(), value(), section(), section(), section()).prop_map(|(a, b, sources, stages, sinks)| {
        let mut text = format!("params:\n    a: {a}\n    b: {b}\n");
        let mut n = 0;
        for (section, components) in [("sources", sources), ("stages", stages), ("sinks", sinks)] {
            text.push_str(&format!("{section}:\n"));
            for component in components {
                n += 1;
                text.push_str(&format!("  c{n}:\n{component}"));
            }
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text(text in any::<String>()) {
        check_text(&text, &[]);
    }

    #[test]
    fn nearly_yaml(pieces in prop::collection::vec(piece(), 0..60), set in piece()) {
        check_text(&pieces.concat(), &[("a", &set)]);
    }

    #[test]
    fn nearly_pipelines(text in near_pipeline(), set in piece()) {
        check_text(&text, &[]);
        check_text(&text, &[("a", &set)]);
    }

    #[test]
    fn bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(file) = SourceFile::from_bytes("p.yaml", bytes) {
            check_text(&file.text, &[]);
        }
    }

    /// What JSON can say survives the way through YAML and back.
    #[test]
    fn json_is_read_as_it_is(text in "\\PC*", int in any::<i64>(), float in prop::num::f64::NORMAL, keys in prop::collection::btree_set("[a-z]{1,8}", 0..5)) {
        let text = text.replace("${", "$ {");
        let map: serde_json::Map<String, serde_json::Value> = keys.into_iter().map(|key| (key, serde_json::json!([text, int, float, null, true]))).collect();
        let expected = serde_json::Value::Object(map);
        let yaml = format!("sources: {{ a: {{ type: x, value: {expected} }} }}\nsinks: {{ b: {{ type: x }} }}\n");
        let spec = groundloom_spec::parse(SourceFile::new("p.yaml", yaml), &[], &|_| None).unwrap();
        let read = serde_json::to_value(spec.sources[0].config.get("value").unwrap()).unwrap();
        prop_assert_eq!(read, expected);
    }
}
