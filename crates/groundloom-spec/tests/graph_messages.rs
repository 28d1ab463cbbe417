//! What is said about types, inputs and cycles.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod product;

use groundloom_spec::{SourceFile, parse};
use product::{messages, pipeline};

#[test]
fn unknown_types() {
    insta::assert_snapshot!(messages(&pipeline("chunks: { type: noun_chunk, text: caption }")), @"");
    insta::assert_snapshot!(messages(&pipeline("chunks: { type: segment, text: caption }")), @"");
    insta::assert_snapshot!(messages(&pipeline("out2: { type: parquet, path: out }")), @"");
}

#[test]
fn unknown_inputs() {
    insta::assert_snapshot!(messages(&pipeline("chunks: { type: noun_chunks, text: caption, input: pair }")), @"");
    insta::assert_snapshot!(messages(&pipeline("chunks: { type: noun_chunks, text: caption, input: [pairs, elsewhere] }")), @"");
    insta::assert_snapshot!(messages(&pipeline("chunks: { type: noun_chunks, text: caption, input: out }")), @"");
    insta::assert_snapshot!(messages(&pipeline("chunks: { type: noun_chunks, text: caption, input: 5 }")), @"");
    insta::assert_snapshot!(messages(&pipeline("chunks: { type: noun_chunks, text: caption, input: [] }")), @"");
    insta::assert_snapshot!(messages(&pipeline("chunks: { type: noun_chunks, text: caption, input: [pairs, pairs] }")), @"");
    insta::assert_snapshot!(messages("sources: { a: { type: image_folder, path: in, input: b } }\nsinks: { out: { type: parquet, path: out } }\n"), @"");
}

#[test]
fn cycles() {
    insta::assert_snapshot!(messages(&pipeline("a: { type: noun_chunks, text: t, input: a }")), @"");
    insta::assert_snapshot!(messages(&pipeline("a: { type: noun_chunks, text: t, input: c }\n  b: { type: noun_chunks, text: t }\n  c: { type: noun_chunks, text: t }")), @"");
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
"), @"");
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
"), @"");
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
"), @"");
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
    insta::assert_snapshot!(shown.join("\n"), @"");
    assert!(graph.warnings.is_empty());
}
