//! JSON lines into typed columns, without one bad line spoiling its neighbours.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, new_null_array},
    compute::concat_batches,
    datatypes::{DataType, Field, Fields, Schema, SchemaRef},
    json::reader::{ReaderBuilder, infer_json_schema_from_iterator},
};

/// Lines of a JSONL file, gathered for one batch.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    text: Vec<u8>,
    ends: Vec<usize>,
}

impl Lines {
    /// Appends a line, without its line break.
    pub(crate) fn push(&mut self, line: &[u8]) {
        self.text.extend_from_slice(line);
        self.text.push(b'\n');
        self.ends.push(self.text.len());
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.text.len()
    }

    /// The line `i`, without its line break.
    pub(crate) fn line(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.text[start..self.ends[i] - 1]
    }

    /// The lines as rows of `schema`, and what is wrong with the lines that are none (their values are null).
    ///
    /// All lines are decoded at once; only where that fails is each tried alone.
    pub(crate) fn decode(&self, schema: &SchemaRef) -> (RecordBatch, Vec<(usize, String)>) {
        // Only then can no two broken lines be read as one whole.
        let closed = (0..self.len()).all(|i| is_closed_object(self.line(i)));
        if closed && let Ok(batch) = decode(schema, &self.text, self.len()) {
            return (batch, Vec::new());
        }
        let mut faults = Vec::new();
        let rows: Vec<RecordBatch> = (0..self.len())
            .map(|i| match decode_one(schema, self.line(i)) {
                Ok(row) => row,
                Err(fault) => {
                    faults.push((i, fault));
                    null_row(schema)
                }
            })
            .collect();
        match concat_batches(schema, &rows) {
            Ok(batch) => (batch, faults),
            // Reached only for columns of more than 2 GiB.
            Err(e) => (null_rows(schema, self.len()), (0..self.len()).map(|i| (i, e.to_string())).collect()),
        }
    }
}

fn is_closed_object(line: &[u8]) -> bool {
    let line = line.trim_ascii();
    line.first() == Some(&b'{') && line.last() == Some(&b'}')
}

fn decode(schema: &SchemaRef, text: &[u8], rows: usize) -> Result<RecordBatch, String> {
    if schema.fields().is_empty() {
        return Ok(null_rows(schema, rows));
    }
    let mut decoder =
        ReaderBuilder::new(Arc::clone(schema)).with_batch_size(rows + 1).build_decoder().map_err(|e| e.to_string())?;
    let read = decoder.decode(text).map_err(|e| e.to_string())?;
    let batch = decoder.flush().map_err(|e| e.to_string())?;
    match batch {
        Some(batch) if read == text.len() && batch.num_rows() == rows => Ok(batch),
        _ => Err("expected one JSON object on the line".to_owned()),
    }
}

fn decode_one(schema: &SchemaRef, line: &[u8]) -> Result<RecordBatch, String> {
    // serde_json says where a line is broken; Arrow says which value has the wrong type.
    let value: serde_json::Value = serde_json::from_slice(line).map_err(|e| format!("no valid JSON: {e}"))?;
    if !value.is_object() {
        return Err(format!("expected a JSON object, found {}", kind(&value)));
    }
    let mut text = line.to_vec();
    text.push(b'\n');
    decode(schema, &text, 1).map_err(|e| e.trim_start_matches("Json error: ").to_owned())
}

fn kind(value: &serde_json::Value) -> &'static str {
    match value {
        serde_json::Value::Null => "null",
        serde_json::Value::Bool(_) => "true or false",
        serde_json::Value::Number(_) => "a number",
        serde_json::Value::String(_) => "a text",
        serde_json::Value::Array(_) => "a list",
        serde_json::Value::Object(_) => "an object",
    }
}

fn null_row(schema: &SchemaRef) -> RecordBatch {
    null_rows(schema, 1)
}

/// Rows of nulls; every column of a source is nullable.
pub(crate) fn null_rows(schema: &SchemaRef, rows: usize) -> RecordBatch {
    let columns: Vec<ArrayRef> = schema.fields().iter().map(|f| new_null_array(f.data_type(), rows)).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
        .unwrap_or_else(|_| RecordBatch::new_empty(Arc::clone(schema)))
}

/// The columns of JSON objects: every key of every object, nullable, integers and floats as float, what is always null as text.
///
/// # Errors
/// In words, when one key holds values that have no common type.
pub(crate) fn infer(objects: impl Iterator<Item = serde_json::Value>) -> Result<Schema, String> {
    let schema =
        infer_json_schema_from_iterator(objects.map(Ok)).map_err(|e| e.to_string().replace("Json error: ", ""))?;
    Ok(Schema::new(schema.fields().iter().map(|f| typed(f)).collect::<Fields>()))
}

fn typed(field: &Field) -> Arc<Field> {
    Arc::new(Field::new(field.name(), typed_kind(field.data_type()), true))
}

fn typed_kind(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Null => DataType::Utf8,
        DataType::List(item) => DataType::List(typed(item)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(|f| typed(f)).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use arrow::array::AsArray;
    use proptest::prelude::*;

    fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true), Field::new("t", DataType::Utf8, true)]))
    }

    fn lines(texts: &[&[u8]]) -> Lines {
        let mut lines = Lines::default();
        texts.iter().for_each(|t| lines.push(t));
        lines
    }

    #[test]
    fn a_bad_line_spoils_only_itself() {
        let lines = lines(&[
            br#"{"a": 1, "t": "x"}"#,
            br#"{"a": 2, "t": "#,
            br#"{"a": "many"}"#,
            b"[1, 2]",
            br#"{"a": 3}{"a": 4}"#,
            b"\xff\xfe",
            br#"{"a": 5, "t": "y", "more": [1]}"#,
        ]);
        let (batch, faults) = lines.decode(&schema());
        let a: Vec<Option<i64>> = batch.column(0).as_primitive::<arrow::datatypes::Int64Type>().iter().collect();
        assert_eq!(a, [Some(1), None, None, None, None, None, Some(5)]);
        assert_eq!(faults.iter().map(|(i, _)| *i).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert!(faults[0].1.contains("column"), "{}", faults[0].1);
        assert!(faults[2].1.contains("a list"), "{}", faults[2].1);
    }

    #[test]
    fn two_broken_lines_are_not_read_as_one() {
        let (batch, faults) = lines(&[br#"{"a": 1,"#, br#""t": "x"}"#, br#"{"a": 1}{"a": 2}"#]).decode(&schema());
        assert_eq!((batch.num_rows(), faults.len()), (3, 3));
    }

    #[test]
    fn types_come_from_all_values() {
        let values =
            [r#"{"a": 1, "n": null}"#, r#"{"a": 1.5, "l": [{"x": 1}]}"#].map(|t| serde_json::from_str(t).unwrap());
        let schema = infer(values.into_iter()).unwrap();
        assert_eq!(schema.field_with_name("a").unwrap().data_type(), &DataType::Float64);
        assert_eq!(schema.field_with_name("n").unwrap().data_type(), &DataType::Utf8);
        let conflict = [r#"{"a": 1}"#, r#"{"a": {"b": 1}}"#].map(|t| serde_json::from_str(t).unwrap());
        assert!(infer(conflict.into_iter()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_row_each(texts in prop::collection::vec(prop::collection::vec(any::<u8>().prop_filter("line", |b| *b != b'\n'), 0..40), 0..8)) {
            let mut all = Lines::default();
            texts.iter().for_each(|t| all.push(t));
            let (batch, faults) = all.decode(&schema());
            prop_assert_eq!(batch.num_rows(), texts.len());
            prop_assert!(faults.iter().all(|(i, _)| *i < texts.len()));
        }
    }
}
