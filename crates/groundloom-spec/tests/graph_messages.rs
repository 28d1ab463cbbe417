//! What is said about types, inputs and cycles.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod product;

use groundloom_spec::{SourceFile, parse};
use product::{messages, pipeline};

#[test]
fn unknown_types() {
    insta::assert_snapshot!(messages(&pipeline("chunks: { type: noun_chunk, text: caption }")), @r#"
    p.yaml:3:19: error[unknown_type]: there is no stage of type "noun_chunk"
      |
    3 |   chunks: { type: noun_chunk, text: caption }
      |                   ^^^^^^^^^^ unknown stage type
      |
      = help: did you mean `noun_chunks`?
    "#);
    insta::assert_snapshot!(messages(&pipeline("chunks: { type: segment, text: caption }")), @r#"
    p.yaml:3:19: error[unknown_type]: there is no stage of type "segment"
      |
    3 |   chunks: { type: segment, text: caption }
      |                   ^^^^^^^ unknown stage type
      |
      = help: the types of stages are: `noun_chunks`, `filter_boxes` and `caption`
    "#);
    insta::assert_snapshot!(messages(&pipeline("out2: { type: parquet, path: out }")), @r#"
    p.yaml:3:17: error[unknown_type]: there is no stage of type "parquet"
      |
    3 |   out2: { type: parquet, path: out }
      |                 ^^^^^^^ unknown stage type
      |
      = help: `parquet` is a sink; put it under `sinks`
    "#);
}

#[test]
fn unknown_inputs() {
    insta::assert_snapshot!(messages(&pipeline("chunks: { type: noun_chunks, text: caption, input: pair }")), @r#"
    p.yaml:3:54: error[unknown_input]: stage `chunks` reads "pair", which is no source or stage
      |
    3 |   chunks: { type: noun_chunks, text: caption, input: pair }
      |                                                      ^^^^ unknown name
      |
      = help: did you mean `pairs`?
    "#);
    insta::assert_snapshot!(messages(&pipeline("chunks: { type: noun_chunks, text: caption, input: [pairs, elsewhere] }")), @r#"
    p.yaml:3:62: error[unknown_input]: stage `chunks` reads "elsewhere", which is no source or stage
      |
    3 |   chunks: { type: noun_chunks, text: caption, input: [pairs, elsewhere] }
      |                                                              ^^^^^^^^^ unknown name
      |
      = help: it may read: `pairs`
    "#);
    insta::assert_snapshot!(messages(&pipeline("chunks: { type: noun_chunks, text: caption, input: out }")), @r"
    p.yaml:3:54: error[sink_as_input]: stage `chunks` reads `out`, which is a sink
      |
    3 |   chunks: { type: noun_chunks, text: caption, input: out }
      |                                                      ^^^ a sink gives no rows
      |
      = help: read what the sink reads
    ");
    insta::assert_snapshot!(messages(&pipeline("chunks: { type: noun_chunks, text: caption, input: 5 }")), @r"
    p.yaml:3:54: error[wrong_type]: `input` must be a name or a list of names, found the number 5
      |
    3 |   chunks: { type: noun_chunks, text: caption, input: 5 }
      |                                                      ^ expected a name
      |
      = help: write input: name, or input: [name, name]; without `input`, the one above is read
    ");
    insta::assert_snapshot!(messages(&pipeline("chunks: { type: noun_chunks, text: caption, input: [] }")), @r"
    p.yaml:3:54: error[wrong_length]: `input` names nothing
      |
    3 |   chunks: { type: noun_chunks, text: caption, input: [] }
      |                                                      ^^
      |
      = help: leave `input` out to read the one above
    ");
    insta::assert_snapshot!(messages(&pipeline("chunks: { type: noun_chunks, text: caption, input: [pairs, pairs] }")), @r#"
    p.yaml:3:62: error[duplicate_item]: "pairs" is an input twice
      |
    3 |   chunks: { type: noun_chunks, text: caption, input: [pairs, pairs] }
      |                                                       -----  ^^^^^ again here
      |                                                       |
      |                                                       first here
      |
      = help: remove one of them
    "#);
    insta::assert_snapshot!(messages("sources: { a: { type: image_folder, path: in, input: b } }\nsinks: { out: { type: parquet, path: out } }\n"), @r"
    p.yaml:1:47: error[unknown_key]: a source has no `input`
      |
    1 | sources: { a: { type: image_folder, path: in, input: b } }
      |                                               ^^^^^ unknown key
      |
      = help: what reads another component is a stage; put it under `stages`
    ");
}

#[test]
fn cycles() {
    insta::assert_snapshot!(messages(&pipeline("a: { type: noun_chunks, text: t, input: a }")), @r"
    p.yaml:3:43: error[cycle]: stage `a` reads itself
      |
    3 |   a: { type: noun_chunks, text: t, input: a }
      |                                           ^ its own name
      |
      = help: let `input` name another component
    ");
    insta::assert_snapshot!(messages(&pipeline("a: { type: noun_chunks, text: t, input: c }\n  b: { type: noun_chunks, text: t }\n  c: { type: noun_chunks, text: t }")), @r"
    p.yaml:3:43: error[cycle]: stages read each other in a circle: `a` → `b` → `c` → `a`
      |
    3 |   a: { type: noun_chunks, text: t, input: c }
      |                                           ^ closes the circle
      |
      = help: let one of them read something else
    ");
}

#[test]
fn which_source() {
    insta::assert_snapshot!(messages("\
sources:
  a: { type: image_folder, path: a }
  b: { type: image_folder, path: b }
stages:
  chunks: { type: noun_chunks, text: t }
sinks:
  out: { type: parquet, path: out }
"), @r"
    p.yaml:5:3: error[ambiguous_input]: stage `chunks` reads the one above, and there are 2 sources
      |
    5 |   chunks: { type: noun_chunks, text: t }
      |   ^^^^^^ which source?
      |
      = help: add input: `a` or `b`
    ");
}

#[test]
fn rows_that_go_nowhere() {
    insta::assert_snapshot!(messages("\
sources:
  a: { type: image_folder, path: a }
stages:
  lost: { type: noun_chunks, text: t }
  used: { type: noun_chunks, text: t, input: a }
sinks:
  out: { type: parquet, path: out }
"), @r"
    p.yaml:4:3: warning[unread]: nothing reads stage `lost`, so it will not run
      |
    4 |   lost: { type: noun_chunks, text: t }
      |   ^^^^
      |
      = help: add input: lost where its rows are wanted
    ");
}

#[test]
fn several_mistakes_at_once() {
    insta::assert_snapshot!(messages("\
name: grit
params: { input: photos, detector: small }
sources:
  pairs: { type: image_folder, path: \"${inptu}\" }
stages:
  chunks:    { type: noun_chunk, text: caption }
  confident: { type: filter_boxes, min_scor: 0.5, nms_iou: 1.5, nms: per_phase, input: chunk }
sinks:
  grit: { type: parquet }
settings: { shard_rows: many }
"), @r#"
    p.yaml:2:11: warning[unused_param]: nothing uses the param `input`
      |
    2 | params: { input: photos, detector: small }
      |           ^^^^^
      |
      = help: use it as "${input}", or remove it

    p.yaml:2:26: warning[unused_param]: nothing uses the param `detector`
      |
    2 | params: { input: photos, detector: small }
      |                          ^^^^^^^^
      |
      = help: use it as "${detector}", or remove it

    p.yaml:4:39: error[unknown_param]: there is no param `inptu`
      |
    4 |   pairs: { type: image_folder, path: "${inptu}" }
      |                                       ^^^^^^^^ not declared
      |
      = help: did you mean `input`?

    p.yaml:6:22: error[unknown_type]: there is no stage of type "noun_chunk"
      |
    6 |   chunks:    { type: noun_chunk, text: caption }
      |                      ^^^^^^^^^^ unknown stage type
      |
      = help: did you mean `noun_chunks`?

    p.yaml:7:36: error[unknown_key]: stage `confident` has no key "min_scor"
      |
    7 |   confident: { type: filter_boxes, min_scor: 0.5, nms_iou: 1.5, nms: per_phase, input: chunk }
      |                                    ^^^^^^^^ unknown key
      |
      = help: did you mean `min_score`?

    p.yaml:7:60: error[out_of_range]: `nms_iou` of stage `confident` must be from 0 to 1, found the number 1.5
      |
    7 |   confident: { type: filter_boxes, min_scor: 0.5, nms_iou: 1.5, nms: per_phase, input: chunk }
      |                                                            ^^^ expected from 0 to 1

    p.yaml:7:70: error[not_one_of]: `nms` of stage `confident` must be one of `across_phrases`, `per_phrase` or `off`, found the text "per_phase"
      |
    7 |   confident: { type: filter_boxes, min_scor: 0.5, nms_iou: 1.5, nms: per_phase, input: chunk }
      |                                                                      ^^^^^^^^^ unknown value
      |
      = help: did you mean `per_phrase`?

    p.yaml:7:88: error[unknown_input]: stage `confident` reads "chunk", which is no source or stage
      |
    7 |   confident: { type: filter_boxes, min_scor: 0.5, nms_iou: 1.5, nms: per_phase, input: chunk }
      |                                                                                        ^^^^^ unknown name
      |
      = help: did you mean `chunks`?

    p.yaml:9:3: error[missing_key]: sink `grit` has no `path`
      |
    9 |   grit: { type: parquet }
      |   ^^^^ `path` is missing
      |
      = help: add `path`: The folder of the data set.

    p.yaml:10:25: error[wrong_type]: `shard_rows` of the settings must be an integer, found the text "many"
       |
    10 | settings: { shard_rows: many }
       |                         ^^^^ expected an integer
    "#);
}

#[test]
fn the_order_of_a_graph() {
    let text = "\
sources:
  a: { type: image_folder, path: a }
  b: { type: image_folder, path: b }
stages:
  late:  { type: noun_chunks, text: t, input: [early, b] }
  early: { type: noun_chunks, text: t, input: a }
  last:  { type: noun_chunks, text: t, input: late }
sinks:
  out:  { type: parquet, path: out }
  mid:  { type: parquet, path: mid, input: early }
";
    let spec = parse(SourceFile::new("p.yaml", text), &[], &product::env).unwrap();
    let graph = spec.check_graph().unwrap();
    let shown: Vec<String> =
        graph.nodes.iter().map(|node| format!("{} {} <- {}", node.role, node.name, node.inputs.join(", "))).collect();
    insta::assert_snapshot!(shown.join("\n"), @r"
    source a <- 
    source b <- 
    stage early <- a
    stage late <- early, b
    stage last <- late
    sink out <- last
    sink mid <- early
    ");
    assert!(graph.warnings.is_empty());
}
