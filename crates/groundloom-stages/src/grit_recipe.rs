//! The stages of a GrIT pipeline, one after the other.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use arrow::record_batch::RecordBatch;
use groundloom_data::columns;
use serde_json::{Value, json};

use crate::{Stage, fixtures, stage_types};

fn stage(name: &str, config: Value) -> std::sync::Arc<dyn Stage> {
    let kinds = stage_types();
    let kind = kinds.iter().find(|kind| kind.component.name == name).unwrap();
    (kind.rebuild)(&config).unwrap()
}

fn grit(caption: &str, boxes: Value, form: &str) -> RecordBatch {
    let boxes_type = columns::boxes_type();
    let mut rows = fixtures::rows([
        ("caption", fixtures::texts([Some(caption)])),
        ("boxes", fixtures::column(phrase_boxes(&boxes_type), [boxes])),
    ]);
    for (name, config) in [
        ("noun_chunks", json!({})),
        ("drop_abstract_chunks", json!({})),
        ("filter_boxes", json!({})),
        ("expand_expressions", json!({})),
        ("drop_contained", json!({ "form": form })),
    ] {
        rows = fixtures::apply(&*stage(name, config), &rows);
    }
    rows
}

/// Boxes as an outside detector brings them: `phrase` in place of `chunk`.
fn phrase_boxes(boxes: &arrow::datatypes::DataType) -> arrow::datatypes::DataType {
    use arrow::datatypes::{DataType, Field};
    let DataType::List(item) = boxes else { panic!("boxes are a list") };
    let DataType::Struct(fields) = item.data_type() else { panic!("of structs") };
    let phrase = Field::new("phrase", DataType::Utf8, true);
    let fields = std::iter::once(phrase)
        .chain(fields.iter().filter(|f| f.name() != "chunk").map(|f| f.as_ref().clone()))
        .collect();
    DataType::List(std::sync::Arc::new(Field::new("item", DataType::Struct(fields), true)))
}

fn texts(rows: &RecordBatch, column: &str) -> Vec<String> {
    let row = fixtures::json(rows.column_by_name(column).unwrap()).remove(0);
    row.as_array().unwrap().iter().map(|entry| entry["text"].as_str().unwrap().to_owned()).collect()
}

fn dog_boxes() -> Value {
    json!([
        {"phrase": "a dog", "score": 0.91, "x1": 0.3, "y1": 0.4, "x2": 0.6, "y2": 0.9},
        {"phrase": "a field", "score": 0.83, "x1": 0.0, "y1": 0.3, "x2": 1.0, "y2": 1.0},
        {"phrase": "flowers", "score": 0.72, "x1": 0.0, "y1": 0.7, "x2": 1.0, "y2": 1.0},
    ])
}

#[test]
fn a_dog_in_a_field_of_flowers() {
    let rows = grit("a dog in a field of flowers", dog_boxes(), "loader");
    assert_eq!(texts(&rows, "chunks"), ["a dog", "a field", "flowers"]);
    assert_eq!(texts(&rows, "expressions"), ["a dog in a field of flowers"]);
    let boxes = fixtures::json(rows.column_by_name("boxes").unwrap());
    assert_eq!(
        boxes[0].as_array().unwrap().iter().map(|b| b["chunk"].as_u64().unwrap()).collect::<Vec<_>>(),
        [0, 1, 2]
    );

    let rows = grit("a dog in a field of flowers", dog_boxes(), "release");
    assert_eq!(texts(&rows, "expressions"), ["a dog in a field of flowers", "a field of flowers", "flowers"]);
    let rows = grit("a dog in a field of flowers", dog_boxes(), "most");
    assert_eq!(texts(&rows, "expressions"), ["a dog", "a field", "flowers"]);
}

#[test]
fn abstract_chunks_and_pairs_without_a_box_end_empty() {
    let rows = grit("the love of my life", json!([]), "loader");
    assert_eq!((texts(&rows, "chunks"), texts(&rows, "expressions")), (vec![], vec![]));
    let rows = grit("A dog in a field of flowers.", dog_boxes(), "loader");
    assert_eq!(
        texts(&rows, "expressions"),
        ["A dog in a field of flowers"],
        "matched whatever the case, without the full stop"
    );
}

/// A box on every chunk of the caption; what the expressions of the first and of all chunks are. The parses are spaCy's.
#[test]
fn expressions_of_real_parses() {
    let cases: &[(&str, &[&str])] = &[
        (
            "A group of people (some with umbrellas) standing in the rain.",
            &[
                "A group of people (some with umbrellas) standing in the rain",
                "people",
                "some with umbrellas",
                "umbrellas",
                "the rain",
            ],
        ),
        ("\"A dog in snow\" by Ann Lee", &["\"A dog in snow\" by Ann Lee", "snow", "Ann Lee"]),
        (
            "Photo of a man - with a hat - on a horse.",
            &["Photo of a man - with a hat - on a horse", "a man", "a hat", "a horse"],
        ),
        ("The Eiffel Tower (Paris), at night!", &["The Eiffel Tower (Paris), at night", "Paris", "night"]),
        ("A sign that says \"stop\".", &["A sign that says \"stop\"", "that"]),
        ("a view of Washington D.C.", &["a view of Washington D.C.", "Washington D.C."]),
        ("'90s cars in a row.", &["'90s cars in a row", "a row"]),
        ("A cat (left) and a dog (right) on a red sofa.", &["A cat", "a dog", "a red sofa"]),
    ];
    for (caption, expected) in cases {
        let boxes = (0..expected.len()).map(|n| json!({"chunk": n, "score": 0.9, "x1": 0.1 * n as f64, "y1": 0.0, "x2": 0.1 * n as f64 + 0.1, "y2": 1.0}));
        let boxes = fixtures::column(columns::boxes_type(), [boxes.collect::<Value>()]);
        let mut rows = fixtures::rows([("caption", fixtures::texts([Some(caption)])), ("boxes", boxes)]);
        for name in ["noun_chunks", "filter_boxes", "expand_expressions"] {
            rows = fixtures::apply(&*stage(name, json!({})), &rows);
        }
        assert_eq!(texts(&rows, "expressions"), *expected, "{caption}");
    }
}

/// `examples/photos` from captions to expressions: every stage on real photographs, checked for what must hold of any.
#[test]
fn the_example_photographs() {
    use groundloom_data::{CharIndex, ExpressionsView, MediaBuilder};
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/photos");
    let lines = std::fs::read_to_string(folder.join("captions.jsonl")).unwrap();
    let pairs: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut images = MediaBuilder::new();
    for pair in &pairs {
        let name = pair["file_name"].as_str().unwrap();
        images.append(Some(&std::fs::read(folder.join(name)).unwrap()), Some(name));
    }
    let captions: arrow::array::StringArray = pairs.iter().map(|pair| pair["caption"].as_str()).collect();
    let mut rows =
        fixtures::rows([("image", std::sync::Arc::new(images.finish())), ("caption", std::sync::Arc::new(captions))]);
    for (name, config) in [
        ("image_info", json!({})),
        ("noun_chunks", json!({})),
        ("drop_abstract_chunks", json!({})),
        ("ground", json!({})),
        ("filter_boxes", json!({"min_score": 0.45})),
        ("expand_expressions", json!({})),
        ("drop_contained", json!({})),
    ] {
        rows = fixtures::apply(&*stage(name, config), &rows);
    }
    let expressions = ExpressionsView::try_new(rows.column_by_name("expressions").unwrap()).unwrap();
    let mut grounded = 0;
    for (row, pair) in pairs.iter().enumerate() {
        let caption = CharIndex::new(pair["caption"].as_str().unwrap());
        let found = expressions.row(row).unwrap().unwrap();
        grounded += usize::from(!found.is_empty());
        assert!(found.iter().all(|e| caption.slice(e.span) == Some(e.text)));
    }
    assert!(grounded >= 7 && grounded < pairs.len(), "{grounded} of {} photographs", pairs.len());
}
