//! What a reader gives: row ids in front, the columns asked for, the error behind.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, RecordBatch, StringArray, StringBuilder, StructArray, new_null_array},
    buffer::NullBuffer,
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef},
};
use groundloom_data::{
    RowId,
    columns::{ERROR, ROW_ID, error_type},
};

use crate::FormatError;

/// Quarantine codes of sources.
pub mod codes {
    /// A line or record that is no valid JSON object, or no record of the CSV file's width.
    pub const MALFORMED_ROW: &str = "malformed_row";
    /// A value that does not fit the column's type, which was inferred from the first rows.
    pub const WRONG_TYPE: &str = "wrong_type";
    /// A line or member that is longer than the reader accepts.
    pub const ROW_TOO_LONG: &str = "row_too_long";
    /// A file that the metadata names and that is not there.
    pub const MISSING_FILE: &str = "missing_file";
    /// A file that cannot be read.
    pub const UNREADABLE_FILE: &str = "unreadable_file";
    /// A file without a row in the metadata.
    pub const MISSING_METADATA: &str = "missing_metadata";
    /// A second row with a key that is taken.
    pub const DUPLICATE_KEY: &str = "duplicate_key";
    /// An archive that ends in the middle of a member, or is damaged there.
    pub const DAMAGED_ARCHIVE: &str = "damaged_archive";
}

/// What is wrong with a row that was read.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) row: usize,
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

/// The schema of what a reader gives for these columns of a source.
pub(crate) fn read_schema(columns: &Schema, wanted: &[usize]) -> SchemaRef {
    let mut fields: Vec<FieldRef> = vec![Arc::new(Field::new(ROW_ID, DataType::Utf8, false))];
    fields.extend(wanted.iter().map(|i| Arc::clone(&columns.fields()[*i])));
    fields.push(Arc::new(Field::new(ERROR, error_type(), true)));
    Arc::new(Schema::new(fields))
}

/// Puts ids in front of columns and errors behind them.
pub(crate) fn rows(
    source: &str,
    ids: &[RowId],
    columns: Vec<(FieldRef, ArrayRef)>,
    faults: &[Fault],
) -> Result<RecordBatch, FormatError> {
    let mut id_column = StringBuilder::with_capacity(ids.len(), ids.len() * RowId::HEX_LEN);
    ids.iter().for_each(|id| id.push_hex(&mut id_column));
    let mut fields: Vec<FieldRef> = vec![Arc::new(Field::new(ROW_ID, DataType::Utf8, false))];
    let mut arrays: Vec<ArrayRef> = vec![Arc::new(id_column.finish())];
    for (field, array) in columns {
        fields.push(field);
        arrays.push(array);
    }
    fields.push(Arc::new(Field::new(ERROR, error_type(), true)));
    arrays.push(errors(source, ids.len(), faults));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
        .map_err(|source_error| FormatError::Arrow { location: source.to_owned(), source: source_error })
}

fn errors(source: &str, rows: usize, faults: &[Fault]) -> ArrayRef {
    let DataType::Struct(fields) = error_type() else { return new_null_array(&error_type(), rows) };
    if faults.is_empty() {
        return new_null_array(&error_type(), rows);
    }
    let mut by_row: Vec<Option<&Fault>> = vec![None; rows];
    for fault in faults {
        by_row[fault.row].get_or_insert(fault);
    }
    let text = |of: fn(&Fault) -> &str| -> ArrayRef {
        Arc::new(by_row.iter().map(|f| Some(f.map_or("", of))).collect::<StringArray>())
    };
    let stages: ArrayRef =
        Arc::new(by_row.iter().map(|f| Some(if f.is_some() { source } else { "" })).collect::<StringArray>());
    let valid: Vec<bool> = by_row.iter().map(Option::is_some).collect();
    Arc::new(StructArray::new(
        fields,
        vec![stages, text(|f| f.code), text(|f| &f.message)],
        Some(NullBuffer::from(valid)),
    ))
}
