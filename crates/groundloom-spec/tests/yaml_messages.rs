//! What is said about files that are no good YAML, or no pipeline.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod product;

use product::messages;

#[test]
fn nothing_to_read() {
    insta::assert_snapshot!(messages(""), @"");
    insta::assert_snapshot!(messages("# a comment\n"), @"");
    insta::assert_snapshot!(messages("---\n...\n"), @"");
    insta::assert_snapshot!(messages("- a\n- b\n"), @"");
    insta::assert_snapshot!(messages("just text"), @"");
}

#[test]
fn broken_syntax() {
    insta::assert_snapshot!(messages("sources: { pairs: [a, b }\n"), @"");
    insta::assert_snapshot!(messages("sources: { pairs: { type: image_folder\n"), @"");
    insta::assert_snapshot!(messages("sources:\n  pairs: \"open\n"), @"");
    insta::assert_snapshot!(messages("sources:\n  pairs: a: b\n"), @"");
    insta::assert_snapshot!(messages("sources:\n  pairs:\n   type: x\n  other\n"), @"");
    insta::assert_snapshot!(messages("sources: @home\n"), @"");
    insta::assert_snapshot!(messages("sources:\n\tpairs: a\n"), @"");
    insta::assert_snapshot!(messages("params: { a: 1 }\nsources: { x: { type: y, path: ${a} } }\n"), @"");
    insta::assert_snapshot!(messages("name: \"a\\qb\"\n"), @"");
}

#[test]
fn yaml_that_pipelines_do_without() {
    insta::assert_snapshot!(messages("name: a\n---\nname: b\n"), @"");
    insta::assert_snapshot!(messages("name: &n a\ndescription: *n\n"), @"");
    insta::assert_snapshot!(messages("name: a\nsources: *\n"), @"");
    insta::assert_snapshot!(messages("name: *gone\n"), @"");
    insta::assert_snapshot!(messages("name: !!str 1\n"), @"");
    insta::assert_snapshot!(messages("sources:\n  <<: { a: b }\n"), @"");
    insta::assert_snapshot!(messages("? [a, b]\n: c\n"), @"");
}

#[test]
fn duplicate_keys() {
    insta::assert_snapshot!(messages("name: a\ndescription: c\nname: b\n"), @"");
    insta::assert_snapshot!(messages(&product::pipeline("kept: { type: filter_boxes, limit: 1, \"limit\": 2 }")), @"");
}

#[test]
fn numbers_that_are_none() {
    insta::assert_snapshot!(product::boxes("min_score: .nan"), @"");
    insta::assert_snapshot!(product::boxes("min_score: -.inf"), @"");
    insta::assert_snapshot!(product::boxes("min_score: 1e999"), @"");
    insta::assert_snapshot!(product::boxes("limit: 99999999999999999999"), @"");
}

#[test]
fn deep_nesting() {
    let shown = messages(&format!("name: {}", "[".repeat(100_000)));
    assert!(shown.starts_with("p.yaml:1:"), "{shown}");
    assert!(shown.contains("error[too_deep]: lists and maps nest deeper than 64 levels"), "{shown}");
    let shown =
        messages(&format!("name:\n{}", (0..5000).map(|n| format!("{}a:\n", " ".repeat(n + 1))).collect::<String>()));
    assert!(shown.contains("error[too_deep]"), "{shown}");
}

#[test]
fn sections() {
    insta::assert_snapshot!(messages("name: a\n"), @"");
    insta::assert_snapshot!(messages("sources: {}\nsinks:\n"), @"");
    insta::assert_snapshot!(messages("source: { pairs: { type: image_folder, path: in } }\nsinks: { out: { type: parquet, path: out } }\n"), @"");
    insta::assert_snapshot!(messages(&format!("{}models: {{}}\n", product::pipeline("chunks: { type: noun_chunks, text: t }"))), @"");
    insta::assert_snapshot!(messages("name: [a]\ndescription: 5\nsources: [a]\nsinks: text\n"), @"");
}

#[test]
fn components() {
    insta::assert_snapshot!(messages(&product::pipeline("chunks:")), @"");
    insta::assert_snapshot!(messages(&product::pipeline("chunks: noun_chunks")), @"");
    insta::assert_snapshot!(messages(&product::pipeline("chunks: { text: caption }")), @"");
    insta::assert_snapshot!(messages(&product::pipeline("chunks: { tpye: noun_chunks, text: caption }")), @"");
    insta::assert_snapshot!(messages(&product::pipeline("chunks: { type: [noun_chunks], text: caption }")), @"");
    insta::assert_snapshot!(messages(&product::pipeline("chunks: { type: , text: caption }")), @"");
    insta::assert_snapshot!(messages(&product::pipeline("noun-chunks: { type: noun_chunks, text: caption }")), @"");
    insta::assert_snapshot!(messages(&product::pipeline("pairs: { type: noun_chunks, text: caption }")), @"");
    insta::assert_snapshot!(messages(&product::pipeline("a: { type: noun_chunks, text: caption, checkpoint: yes }")), @"");
}

#[test]
fn control_characters_are_shown_and_not_obeyed() {
    insta::assert_snapshot!(messages("\"na\\e[31mme\\u202e\": a\n"), @"");
}
