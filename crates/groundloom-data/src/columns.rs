//! The Arrow types of the columns that stages share, and the names the engine reserves.
//!
//! Every column a stage adds is nullable: a row that failed earlier carries nulls in the columns of the stages it never reached.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Fields};

/// Stable identity of a row ([`crate::RowId`] in its 32-digit hexadecimal form), `utf8`, never null, the first column of every batch.
pub const ROW_ID: &str = "row_id";
/// Why the row goes to quarantine ([`error_type`]); null for a good row; the last column where present.
pub const ERROR: &str = "_error";

/// `struct<stage: utf8, code: utf8, message: utf8>`: the stage (or source) that failed the row, one of the documented codes, and what a person should read.
pub fn error_type() -> DataType {
    DataType::Struct(Fields::from(vec![
        Field::new("stage", DataType::Utf8, false),
        Field::new("code", DataType::Utf8, false),
        Field::new("message", DataType::Utf8, false),
    ]))
}

/// Hugging Face's media convention, `struct<bytes: binary, path: utf8>`: the encoded file and where it came from.
pub fn media_type() -> DataType {
    DataType::Struct(Fields::from(vec![
        Field::new("bytes", DataType::Binary, true),
        Field::new("path", DataType::Utf8, true),
    ]))
}

/// Whether a column holds media: a struct with `bytes: binary` (or large binary / binary view) and `path: utf8`.
pub fn is_media(data_type: &DataType) -> bool {
    let DataType::Struct(fields) = data_type else { return false };
    let bytes = fields.iter().any(|f| {
        f.name() == "bytes" && matches!(f.data_type(), DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
    });
    bytes && fields.iter().any(|f| f.name() == "path")
}

fn list_of(fields: Vec<Field>) -> DataType {
    DataType::List(Arc::new(Field::new("item", DataType::Struct(Fields::from(fields)), true)))
}

fn item(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, true)
}

/// `chunks`, written by `noun_chunks`: one entry per noun chunk in text order.
///
/// `start`/`end` are character offsets of the chunk (Unicode scalar values, end exclusive); `root` is the text of its head noun, `lemma` that noun's lemma (lower case);
/// `subtree_start`/`subtree_end` the character span of the head's whole subtree (spaCy's `root.left_edge` … `root.right_edge`);
/// `has_conjunct` whether the head has conjuncts (GrIT does not expand those); `has_children` whether the head's subtree reaches beyond the chunk.
pub fn chunks_type() -> DataType {
    list_of(vec![
        item("start", DataType::Int32),
        item("end", DataType::Int32),
        item("text", DataType::Utf8),
        item("root", DataType::Utf8),
        item("lemma", DataType::Utf8),
        item("subtree_start", DataType::Int32),
        item("subtree_end", DataType::Int32),
        item("has_conjunct", DataType::Boolean),
        item("has_children", DataType::Boolean),
    ])
}

/// The values of a vector column: `float32`, none of them null.
pub fn vector_item() -> Field {
    Field::new("item", DataType::Float32, false)
}

/// A vector of `dims` values, `fixed_size_list<float32>`, as `embed` writes it.
pub fn vector_type(dims: usize) -> DataType {
    DataType::FixedSizeList(Arc::new(vector_item()), i32::try_from(dims).unwrap_or(i32::MAX))
}

/// `boxes`, written by `ground` or brought by the source: one entry per box.
///
/// `chunk` is the index into `chunks` of the phrase it answers; `label` the detector's own class or phrase;
/// coordinates are normalised `xyxy` in [0, 1] of the oriented image; `score` in [0, 1].
pub fn boxes_type() -> DataType {
    list_of(vec![
        item("chunk", DataType::Int32),
        item("label", DataType::Utf8),
        item("score", DataType::Float32),
        item("x1", DataType::Float32),
        item("y1", DataType::Float32),
        item("x2", DataType::Float32),
        item("y2", DataType::Float32),
    ])
}

/// `expressions`, written by `expand_expressions`: one entry per chunk that has a box, in text order.
///
/// `start`/`end` are character offsets into the caption, `chunk` the index into `chunks` whose boxes the expression inherits.
pub fn expressions_type() -> DataType {
    list_of(vec![
        item("start", DataType::Int32),
        item("end", DataType::Int32),
        item("text", DataType::Utf8),
        item("chunk", DataType::Int32),
    ])
}

/// `conversations`, written by `dialogue` and `instruct`: the turns of a dialogue in order, as LLaVA and ShareGPT name them.
///
/// `from` is `human` or `gpt`; `value` what is said, with `<image>` where the image stands.
pub fn conversations_type() -> DataType {
    list_of(vec![item("from", DataType::Utf8), item("value", DataType::Utf8)])
}

/// A field named `name` of `data_type`, nullable as every column that a stage adds.
pub fn column(name: &str, data_type: DataType) -> FieldRef {
    Arc::new(Field::new(name, data_type, true))
}
