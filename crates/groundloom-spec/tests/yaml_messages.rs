//! What is said about files that are no good YAML, or no pipeline.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod product;

use product::messages;

#[test]
fn nothing_to_read() {
    insta::assert_snapshot!(messages(""), @r"
    p.yaml: error[empty_file]: the pipeline file is empty
     = help: a pipeline has `sources`, `stages` and `sinks`; see the files in `pipelines/`
    ");
    insta::assert_snapshot!(messages("# a comment\n"), @r"
    p.yaml: error[empty_file]: the pipeline file is empty
     = help: a pipeline has `sources`, `stages` and `sinks`; see the files in `pipelines/`
    ");
    insta::assert_snapshot!(messages("---\n...\n"), @r"
    p.yaml: error[empty_file]: the pipeline file is empty
     = help: a pipeline has `sources`, `stages` and `sinks`; see the files in `pipelines/`
    ");
    insta::assert_snapshot!(messages("- a\n- b\n"), @r"
    p.yaml:1:1: error[not_a_map]: a pipeline file is a map of sections, found a list
      |
    1 | - a
      | ^^^
      |
      = help: begin with `sources:`, `stages:` and `sinks:`; see the files in `pipelines/`
    ");
    insta::assert_snapshot!(messages("just text"), @r#"
    p.yaml:1:1: error[not_a_map]: a pipeline file is a map of sections, found the text "just text"
      |
    1 | just text
      | ^^^^^^^^^
      |
      = help: begin with `sources:`, `stages:` and `sinks:`; see the files in `pipelines/`
    "#);
}

#[test]
fn broken_syntax() {
    insta::assert_snapshot!(messages("sources: { pairs: [a, b }\n"), @r"
    p.yaml:1:19: error[syntax]: this is not YAML: mismatched bracket '[' closed by '}'
      |
    1 | sources: { pairs: [a, b }
      |                   ^
      |
      = help: a closing bracket is missing or the wrong one
    ");
    insta::assert_snapshot!(messages("sources: { pairs: { type: image_folder\n"), @r"
    p.yaml:1:19: error[syntax]: this is not YAML: unclosed bracket '{'
      |
    1 | sources: { pairs: { type: image_folder
      |                   ^
      |
      = help: a closing bracket is missing
    ");
    insta::assert_snapshot!(messages("sources:\n  pairs: \"open\n"), @r#"
    p.yaml:2:10: error[syntax]: this is not YAML: unclosed quote
      |
    2 |   pairs: "open
      |          ^
      |
      = help: a quote is missing at the end of the text
    "#);
    insta::assert_snapshot!(messages("sources:\n  pairs: a: b\n"), @r"
    p.yaml:2:11: error[syntax]: this is not YAML: mapping values are not allowed in this context
      |
    2 |   pairs: a: b
      |           ^
      |
      = help: text that has `: ` in it needs quotes
    ");
    insta::assert_snapshot!(messages("sources:\n  pairs:\n   type: x\n  other\n"), @r"
    p.yaml:4:3: error[syntax]: this is not YAML: simple key expected ':'
      |
    4 |   other
      |   ^
      |
      = help: a key is followed by a colon and a space: `key: value`
    ");
    insta::assert_snapshot!(messages("sources: @home\n"), @r"
    p.yaml:1:10: error[syntax]: this is not YAML: unexpected character: `@'
      |
    1 | sources: @home
      |          ^
      |
      = help: text that begins with this character needs quotes
    ");
    insta::assert_snapshot!(messages("sources:\n\tpairs: a\n"), @r"
    p.yaml:2:2: error[tab]: a tab stands where YAML takes spaces only
      |
    2 |     pairs: a
      |     ^
      |
      = help: indent with spaces
    ");
    insta::assert_snapshot!(messages("params: { a: 1 }\nsources: { x: { type: y, path: ${a} } }\n"), @r#"
    p.yaml:2:33: error[syntax]: this is not YAML: while parsing a flow mapping, did not find expected ',' or '}'
      |
    2 | sources: { x: { type: y, path: ${a} } }
      |                                 ^
      |
      = help: put text that has `${…}` in quotes: "${name}"
    "#);
    insta::assert_snapshot!(messages("name: \"a\\qb\"\n"), @r#"
    p.yaml:1:7: error[syntax]: this is not YAML: while parsing a quoted scalar, found unknown escape character
      |
    1 | name: "a\qb"
      |       ^
      |
      = help: write \\ for a backslash, or use single quotes, where it stands for itself
    "#);
}

#[test]
fn yaml_that_pipelines_do_without() {
    insta::assert_snapshot!(messages("name: a\n---\nname: b\n"), @r"
    p.yaml:2:1: error[multiple_documents]: a pipeline file is one YAML document, and here another begins
      |
    2 | ---
      | ^^^ second document
      |
      = help: put each pipeline in a file of its own
    ");
    insta::assert_snapshot!(messages("name: &n a\ndescription: *n\n"), @r"
    p.yaml: error[missing_key]: the pipeline has no `sources`
     = help: write sources: { name: { type: …, … } }

    p.yaml: error[missing_key]: the pipeline has no `sinks`
     = help: write sinks: { name: { type: …, … } }

    p.yaml:1:7: error[anchor]: anchors (`&name`) and aliases (`*name`) are not supported
      |
    1 | name: &n a
      |       ^^
      |
      = help: if text is meant, put it in quotes; to use a value twice, name it in `params`

    p.yaml:2:14: error[anchor]: anchors (`&name`) and aliases (`*name`) are not supported
      |
    2 | description: *n
      |              ^^
      |
      = help: if text is meant, put it in quotes; to use a value twice, name it in `params`
    ");
    insta::assert_snapshot!(messages("name: a\nsources: *\n"), @r"
    p.yaml:2:10: error[anchor]: anchors (`&name`) and aliases (`*name`) are not supported
      |
    2 | sources: *
      |          ^
      |
      = help: if text is meant, put it in quotes; to use a value twice, name it in `params`
    ");
    insta::assert_snapshot!(messages("name: *gone\n"), @r"
    p.yaml:1:7: error[anchor]: anchors (`&name`) and aliases (`*name`) are not supported
      |
    1 | name: *gone
      |       ^
      |
      = help: if text is meant, put it in quotes; to use a value twice, name it in `params`
    ");
    insta::assert_snapshot!(messages("name: !!str 1\n"), @r"
    p.yaml: error[missing_key]: the pipeline has no `sources`
     = help: write sources: { name: { type: …, … } }

    p.yaml: error[missing_key]: the pipeline has no `sinks`
     = help: write sinks: { name: { type: …, … } }

    p.yaml:1:7: error[tag]: YAML tags (`!name`) are not supported
      |
    1 | name: !!str 1
      |       ^^^^^
      |
      = help: leave the tag out; if text is meant, put it in quotes
    ");
    insta::assert_snapshot!(messages("sources:\n  <<: { a: b }\n"), @r"
    p.yaml: error[missing_key]: the pipeline has no `sinks`
     = help: write sinks: { name: { type: …, … } }

    p.yaml:2:3: error[merge_key]: merge keys (`<<`) are not supported
      |
    2 |   <<: { a: b }
      |   ^^
      |
      = help: write the keys out, or name the values in `params`

    p.yaml:2:3: error[missing_key]: `sources` has no source
      |
    2 |   <<: { a: b }
      |   ^
      |
      = help: write sources: { name: { type: …, … } }
    ");
    insta::assert_snapshot!(messages("? [a, b]\n: c\n"), @r"
    p.yaml: error[missing_key]: the pipeline has no `sources`
     = help: write sources: { name: { type: …, … } }

    p.yaml: error[missing_key]: the pipeline has no `sinks`
     = help: write sinks: { name: { type: …, … } }

    p.yaml:1:3: error[key_not_text]: a key must be text, not a list or a map
      |
    1 | ? [a, b]
      |   ^^^^^^
    ");
}

#[test]
fn duplicate_keys() {
    insta::assert_snapshot!(messages("name: a\ndescription: c\nname: b\n"), @r#"
    p.yaml: error[missing_key]: the pipeline has no `sources`
     = help: write sources: { name: { type: …, … } }

    p.yaml: error[missing_key]: the pipeline has no `sinks`
     = help: write sinks: { name: { type: …, … } }

    p.yaml:3:1: error[duplicate_key]: the key "name" is given twice
      |
    1 | name: a
      | ---- first here
    2 | description: c
    3 | name: b
      | ^^^^ again here
      |
      = help: remove one of them
    "#);
    insta::assert_snapshot!(messages(&product::pipeline("kept: { type: filter_boxes, limit: 1, \"limit\": 2 }")), @r#"
    p.yaml:3:41: error[duplicate_key]: the key "limit" is given twice
      |
    3 |   kept: { type: filter_boxes, limit: 1, "limit": 2 }
      |                               -----     ^^^^^^^ again here
      |                               |
      |                               first here
      |
      = help: remove one of them
    "#);
}

#[test]
fn numbers_that_are_none() {
    insta::assert_snapshot!(product::boxes("min_score: .nan"), @r"
    p.yaml:3:42: error[not_finite]: expected a finite number, found .nan
      |
    3 |   kept: { type: filter_boxes, min_score: .nan }
      |                                          ^^^^
      |
      = help: if it is meant as text, put it in quotes
    ");
    insta::assert_snapshot!(product::boxes("min_score: -.inf"), @r"
    p.yaml:3:42: error[not_finite]: expected a finite number, found -.inf
      |
    3 |   kept: { type: filter_boxes, min_score: -.inf }
      |                                          ^^^^^
      |
      = help: if it is meant as text, put it in quotes
    ");
    insta::assert_snapshot!(product::boxes("min_score: 1e999"), @r#"
    p.yaml:3:42: error[not_finite]: the number "1e999" is larger than any 64-bit float
      |
    3 |   kept: { type: filter_boxes, min_score: 1e999 }
      |                                          ^^^^^
      |
      = help: if it is meant as text, put it in quotes
    "#);
    insta::assert_snapshot!(product::boxes("limit: 99999999999999999999"), @r#"
    p.yaml:3:38: error[integer_too_large]: the integer "99999999999999999999" does not fit into 64 bits
      |
    3 |   kept: { type: filter_boxes, limit: 99999999999999999999 }
      |                                      ^^^^^^^^^^^^^^^^^^^^
      |
      = help: if it is meant as text, put it in quotes
    "#);
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
    insta::assert_snapshot!(messages("name: a\n"), @r"
    p.yaml: error[missing_key]: the pipeline has no `sources`
     = help: write sources: { name: { type: …, … } }

    p.yaml: error[missing_key]: the pipeline has no `sinks`
     = help: write sinks: { name: { type: …, … } }
    ");
    insta::assert_snapshot!(messages("sources: {}\nsinks:\n"), @r"
    p.yaml:1:10: error[missing_key]: `sources` has no source
      |
    1 | sources: {}
      |          ^^
      |
      = help: write sources: { name: { type: …, … } }

    p.yaml:2:6: error[missing_key]: `sinks` has no sink
      |
    2 | sinks:
      |      ^
      |
      = help: write sinks: { name: { type: …, … } }
    ");
    insta::assert_snapshot!(messages("source: { pairs: { type: image_folder, path: in } }\nsinks: { out: { type: parquet, path: out } }\n"), @r#"
    p.yaml:1:1: error[unknown_key]: a pipeline file has no section "source"
      |
    1 | source: { pairs: { type: image_folder, path: in } }
      | ^^^^^^ unknown section
      |
      = help: did you mean `sources`?
    "#);
    insta::assert_snapshot!(messages(&format!("{}models: {{}}\n", product::pipeline("chunks: { type: noun_chunks, text: t }"))), @r#"
    p.yaml:5:1: error[unknown_key]: a pipeline file has no section "models"
      |
    5 | models: {}
      | ^^^^^^ unknown section
      |
      = help: the sections are: `name`, `description`, `params`, `sources`, `stages`, `sinks` and `settings`
    "#);
    insta::assert_snapshot!(messages("name: [a]\ndescription: 5\nsources: [a]\nsinks: text\n"), @r#"
    p.yaml:1:7: error[wrong_type]: `name` must be text, found a list
      |
    1 | name: [a]
      |       ^^^ expected text
      |
      = help: put it in quotes

    p.yaml:2:14: error[wrong_type]: `description` must be text, found the number 5
      |
    2 | description: 5
      |              ^ expected text
      |
      = help: put it in quotes

    p.yaml:3:10: error[wrong_type]: `sources` must be a map, found a list
      |
    3 | sources: [a]
      |          ^^^ expected a map
      |
      = help: write sources: { name: { type: …, … } }

    p.yaml:4:8: error[wrong_type]: `sinks` must be a map, found the text "text"
      |
    4 | sinks: text
      |        ^^^^ expected a map
      |
      = help: write sinks: { name: { type: …, … } }
    "#);
}

#[test]
fn components() {
    insta::assert_snapshot!(messages(&product::pipeline("chunks:")), @r"
    p.yaml:3:3: error[wrong_type]: stage `chunks` must be a map, found no value
      |
    3 |   chunks:
      |   ^^^^^^ expected a map
      |
      = help: write chunks: { type: …, … }
    ");
    insta::assert_snapshot!(messages(&product::pipeline("chunks: noun_chunks")), @r#"
    p.yaml:3:11: error[wrong_type]: stage `chunks` must be a map, found the text "noun_chunks"
      |
    3 |   chunks: noun_chunks
      |           ^^^^^^^^^^^ expected a map
      |
      = help: write chunks: { type: …, … }
    "#);
    insta::assert_snapshot!(messages(&product::pipeline("chunks: { text: caption }")), @r"
    p.yaml:3:3: error[missing_key]: stage `chunks` has no `type`
      |
    3 |   chunks: { text: caption }
      |   ^^^^^^
      |
      = help: `groundloom stages` lists the types
    ");
    insta::assert_snapshot!(messages(&product::pipeline("chunks: { tpye: noun_chunks, text: caption }")), @r"
    p.yaml:3:13: error[missing_key]: stage `chunks` has no `type`
      |
    3 |   chunks: { tpye: noun_chunks, text: caption }
      |             ^^^^
      |
      = help: did you mean `type`?
    ");
    insta::assert_snapshot!(messages(&product::pipeline("chunks: { type: [noun_chunks], text: caption }")), @r"
    p.yaml:3:19: error[wrong_type]: the `type` of stage `chunks` must be a name, found a list
      |
    3 |   chunks: { type: [noun_chunks], text: caption }
      |                   ^^^^^^^^^^^^^ expected a name
      |
      = help: `groundloom stages` lists the types
    ");
    insta::assert_snapshot!(messages(&product::pipeline("chunks: { type: , text: caption }")), @r"
    p.yaml:3:3: error[wrong_type]: the `type` of stage `chunks` must be a name, found no value
      |
    3 |   chunks: { type: , text: caption }
      |   ^^^^^^ expected a name
      |
      = help: `groundloom stages` lists the types
    ");
    insta::assert_snapshot!(messages(&product::pipeline("noun-chunks: { type: noun_chunks, text: caption }")), @r#"
    p.yaml:3:3: error[bad_name]: "noun-chunks" can't be the name of a stage
      |
    3 |   noun-chunks: { type: noun_chunks, text: caption }
      |   ^^^^^^^^^^^
      |
      = help: use letters, digits and `_`, and don't begin with a digit
    "#);
    insta::assert_snapshot!(messages(&product::pipeline("pairs: { type: noun_chunks, text: caption }")), @r"
    p.yaml:3:3: error[duplicate_name]: the name `pairs` is given twice
      |
    1 | sources: { pairs: { type: image_folder, path: in } }
      |            ----- first here
    2 | stages:
    3 |   pairs: { type: noun_chunks, text: caption }
      |   ^^^^^ again here
      |
      = help: sources, stages and sinks share one set of names; rename one of them
    ");
    insta::assert_snapshot!(messages(&product::pipeline("a: { type: noun_chunks, text: caption, checkpoint: yes }")), @r#"
    p.yaml:3:54: error[wrong_type]: `checkpoint` must be `true` or `false`, found the text "yes"
      |
    3 |   a: { type: noun_chunks, text: caption, checkpoint: yes }
      |                                                      ^^^ expected `true` or `false`
    "#);
}

#[test]
fn control_characters_are_shown_and_not_obeyed() {
    insta::assert_snapshot!(messages("\"na\\e[31mme\\u202e\": a\n"), @r#"
    p.yaml: error[missing_key]: the pipeline has no `sources`
     = help: write sources: { name: { type: …, … } }

    p.yaml: error[missing_key]: the pipeline has no `sinks`
     = help: write sinks: { name: { type: …, … } }

    p.yaml:1:1: error[unknown_key]: a pipeline file has no section "na\u{1b}[31mme\u{202e}"
      |
    1 | "na\e[31mme\u202e": a
      | ^^^^^^^^^^^^^^^^^^ unknown section
      |
      = help: the sections are: `name`, `description`, `params`, `sources`, `stages`, `sinks` and `settings`
    "#);
}
