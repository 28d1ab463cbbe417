//! Columns of a window as JSON values, row by row, for templates.

use std::collections::BTreeSet;

use arrow::{array::RecordBatch, datatypes::DataType, json::WriterBuilder, json::writer::LineDelimited};
use groundloom_data::columns;
use serde_json::{Map, Value};

use crate::stage::StageError;

/// The values of some columns: nulls are there as null, media are their path.
#[derive(Debug)]
pub(crate) struct RowValues {
    lines: Vec<u8>,
    rows: usize,
}

impl RowValues {
    /// Reads the columns that are named and there.
    pub(crate) fn read(rows: &RecordBatch, names: &BTreeSet<String>) -> Result<Self, StageError> {
        let schema = rows.schema();
        let mut picked = Vec::new();
        for (field, column) in schema.fields().iter().zip(rows.columns()) {
            if !names.contains(field.name()) {
                continue;
            }
            let column = match column.data_type() {
                DataType::Struct(_) if columns::is_media(column.data_type()) => {
                    use arrow::array::AsArray;
                    match column.as_struct().column_by_name("path") {
                        Some(path) => path.clone(),
                        None => continue,
                    }
                }
                _ => column.clone(),
            };
            picked.push((field.name().as_str(), column, true));
        }
        let mut lines = Vec::new();
        if !picked.is_empty() {
            let batch = RecordBatch::try_from_iter_with_nullable(picked)?;
            let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(&mut lines);
            writer.write(&batch)?;
            writer.finish()?;
        }
        Ok(Self { lines, rows: rows.num_rows() })
    }

    /// One map per row.
    pub(crate) fn into_rows(self) -> impl Iterator<Item = Result<Map<String, Value>, StageError>> {
        let empty = self.lines.is_empty();
        let text = String::from_utf8_lossy(&self.lines).into_owned();
        let maps: Vec<_> = text
            .lines()
            .map(|line| serde_json::from_str(line).map_err(|e| StageError::Other(format!("a row as JSON: {e}"))))
            .collect();
        let without_columns = if empty { self.rows } else { 0 };
        maps.into_iter().chain((0..without_columns).map(|_| Ok(Map::new())))
    }
}
