//! Rows for tests, written and read as JSON.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{io::Cursor, num::NonZeroUsize, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema},
    json::{LineDelimitedWriter, ReaderBuilder},
};
use groundloom_data::{MediaBuilder, columns};
use groundloom_models::ModelPool;
use serde_json::Value;

use crate::stage::{Outcome, RowFailure, Stage};

/// A batch of the named columns, behind a `row_id`.
pub(crate) fn rows<const N: usize>(columns: [(&str, ArrayRef); N]) -> RecordBatch {
    let len = columns[0].1.len();
    let ids: ArrayRef = Arc::new((0..len).map(|n| Some(format!("{n:032x}"))).collect::<StringArray>());
    let all: Vec<(&str, ArrayRef)> = std::iter::once((columns::ROW_ID, ids)).chain(columns).collect();
    let fields: Vec<Field> =
        all.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), true)).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), all.into_iter().map(|(_, column)| column).collect()).unwrap()
}

/// A column of `data_type` with one JSON value a row.
pub(crate) fn column<const N: usize>(data_type: DataType, values: [Value; N]) -> ArrayRef {
    let lines: String = values.iter().map(|v| format!("{}\n", serde_json::json!({ "c": v }))).collect();
    let schema = Arc::new(Schema::new(vec![Field::new("c", data_type, true)]));
    let mut reader = ReaderBuilder::new(schema).build(Cursor::new(lines)).unwrap();
    Arc::clone(reader.next().unwrap().unwrap().column(0))
}

/// A text column.
pub(crate) fn texts<const N: usize>(values: [Option<&str>; N]) -> ArrayRef {
    Arc::new(StringArray::from_iter(values))
}

/// A media column of (bytes, path).
pub(crate) fn media<const N: usize>(values: [Option<(&[u8], &str)>; N]) -> ArrayRef {
    let mut builder = MediaBuilder::new();
    for value in values {
        match value {
            Some((bytes, path)) => builder.append(Some(bytes), Some(path)),
            None => builder.append_null(),
        }
    }
    Arc::new(builder.finish())
}

/// The values of a column as JSON; an absent key is a null.
pub(crate) fn json(column: &ArrayRef) -> Vec<Value> {
    let schema = Schema::new(vec![Field::new("c", column.data_type().clone(), true)]);
    let batch = RecordBatch::try_new(Arc::new(schema), vec![Arc::clone(column)]).unwrap();
    let mut writer = LineDelimitedWriter::new(Vec::new());
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    let text = String::from_utf8(writer.into_inner()).unwrap();
    text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["c"].take()).collect()
}

/// Opens the stage and runs it on one window; its columns must be what it announced.
pub(crate) fn run(stage: &dyn Stage, rows: &RecordBatch) -> Outcome {
    let announced = stage.outputs(&rows.schema()).unwrap();
    let pool = Arc::new(ModelPool::new(NonZeroUsize::MIN));
    let open = stage.open(rows.schema(), &pool).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let outcome = runtime.block_on(open.run(rows)).unwrap();
    assert_eq!(outcome.columns.len(), announced.len());
    for (column, field) in outcome.columns.iter().zip(&announced) {
        assert_eq!((column.len(), column.data_type()), (rows.num_rows(), field.data_type()), "{}", field.name());
    }
    outcome
}

/// The batch with the outcome's columns appended or replaced, as the engine does it.
pub(crate) fn apply(stage: &dyn Stage, rows: &RecordBatch) -> RecordBatch {
    let fields = stage.outputs(&rows.schema()).unwrap();
    let outcome = run(stage, rows);
    assert_eq!(outcome.failures, []);
    let mut all: Vec<(String, ArrayRef)> =
        rows.schema().fields().iter().map(|f| f.name().clone()).zip(rows.columns().iter().cloned()).collect();
    for (field, column) in fields.iter().zip(outcome.columns) {
        match all.iter_mut().find(|(name, _)| name == field.name()) {
            Some(place) => place.1 = column,
            None => all.push((field.name().clone(), column)),
        }
    }
    RecordBatch::try_from_iter_with_nullable(all.iter().map(|(name, column)| (name.as_str(), Arc::clone(column), true)))
        .unwrap()
}

/// The failures as (row, code, message).
pub(crate) fn failures(outcome: &Outcome) -> Vec<(usize, &'static str, &str)> {
    outcome.failures.iter().map(|RowFailure { row, code, message }| (*row, *code, message.as_str())).collect()
}

/// The counts as pairs.
pub(crate) fn counts(outcome: &Outcome) -> Vec<(&'static str, u64)> {
    outcome.counts.iter().map(|(what, n)| (*what, *n)).collect()
}

/// The chunks of "a dog in a field of flowers".
pub(crate) fn dog_chunks() -> Value {
    serde_json::json!([
        chunk("a dog", 0..5, "dog", 0..27),
        chunk("a field", 9..16, "field", 9..27),
        chunk("flowers", 20..27, "flower", 20..27),
    ])
}

/// A chunk without conjuncts; its head is the last word.
pub(crate) fn chunk(text: &str, span: std::ops::Range<usize>, lemma: &str, subtree: std::ops::Range<usize>) -> Value {
    serde_json::json!({
        "start": span.start, "end": span.end, "text": text, "root": text.split(' ').next_back(), "lemma": lemma,
        "subtree_start": subtree.start, "subtree_end": subtree.end, "has_conjunct": false, "has_children": subtree.end > span.end,
    })
}
