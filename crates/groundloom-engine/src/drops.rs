//! Which rows a task drops, and with which values: told by the operators as it happens, written to one small part file per task.
//!
//! A dropped row costs its id and the few scalars that decided over it; `why` reads them back. Values are kept in their own types, one column per stage and expression
//! (`short.length(caption)`), so that telling a batch of dropped rows is a few array copies.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use arrow::{
    array::{Array, ArrayRef, AsArray, StringArray, StringBuilder, new_null_array},
    compute::cast,
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use datafusion::{common::Result, error::DataFusionError};
use groundloom_data::columns::ROW_ID;
use groundloom_formats::{PartWriter, Sink};

use crate::{
    error::EngineError,
    finalise::notes_sink,
    ledger::{Ledger, OpenPart, Part, PartKind},
    segment::Fingerprint,
    session::BATCH_ROWS,
};

/// The column with the name of the stage that dropped a row.
pub const STAGE: &str = "stage";
/// The column with the reason, in `snake_case`.
pub const REASON: &str = "reason";
/// What `dedup` tells: the row that stays.
pub const DUPLICATE_OF: &str = "duplicate_of";

/// Texts are told up to so many bytes.
const TEXT_BYTES: usize = 96;

/// The type in which a value is told, or `None` where it is no scalar (a list, a picture).
pub fn told_type(data_type: &DataType) -> Option<DataType> {
    use DataType as T;
    match data_type {
        T::Utf8 | T::LargeUtf8 | T::Utf8View => Some(T::Utf8),
        t if t.is_integer() => Some(t.clone()),
        T::Boolean | T::Float32 | T::Float64 | T::Date32 | T::Timestamp(..) | T::Decimal128(..) => {
            Some(data_type.clone())
        }
        _ => None,
    }
}

/// A value that a stage tells of the rows it drops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The stage.
    pub stage: Arc<str>,
    /// What it is: a column or an expression of the stage's config.
    pub what: Arc<str>,
    /// Its type, one that [`told_type`] gives.
    pub data_type: DataType,
}

impl Told {
    fn column(&self) -> String {
        format!("{}.{}", self.stage, self.what)
    }
}

/// The columns of a task's dropped rows: id, stage, reason, then what its stages tell.
fn schema(told: &[Told]) -> SchemaRef {
    let mut fields: Vec<FieldRef> =
        [ROW_ID, STAGE, REASON].iter().map(|name| Arc::new(Field::new(*name, DataType::Utf8, false))).collect();
    fields.extend(told.iter().map(|t| Arc::new(Field::new(t.column(), t.data_type.clone(), true))));
    Arc::new(Schema::new(fields))
}

/// What a running task has dropped so far. Operators reach it through the session's extensions.
pub struct DropLog {
    task: Fingerprint,
    ledger: Ledger,
    sink: Arc<dyn Sink>,
    schema: SchemaRef,
    told: Vec<Told>,
    names: Mutex<HashMap<String, ArrayRef>>,
    open: Mutex<Option<Open>>,
}

struct Open {
    part: OpenPart,
    writer: Box<dyn PartWriter>,
    rows: u64,
}

impl fmt::Debug for DropLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DropLog").field("task", &self.task).finish_non_exhaustive()
    }
}

impl DropLog {
    /// The log of a task whose stages tell these values; its file is made with the first row.
    pub fn new(ledger: &Ledger, task: &Fingerprint, told: Vec<Told>) -> Self {
        Self {
            task: task.clone(),
            ledger: ledger.clone(),
            sink: notes_sink(),
            schema: schema(&told),
            told,
            names: Mutex::default(),
            open: Mutex::new(None),
        }
    }

    /// Tells that `stage` drops the rows `ids` for `reason`; `values` are what it told of itself in the plan, in that order.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn tell(&self, stage: &str, reason: &str, ids: &ArrayRef, values: &[ArrayRef]) -> Result<()> {
        let rows = ids.len();
        if rows == 0 {
            return Ok(());
        }
        let mut columns = vec![cast(ids, &DataType::Utf8)?, self.repeated(stage, rows), self.repeated(reason, rows)];
        let mut values = values.iter();
        for told in &self.told {
            let value = if *told.stage == *stage { values.next() } else { None };
            columns.push(match value {
                Some(value) => stored(value, &told.data_type)?,
                None => new_null_array(&told.data_type, rows),
            });
        }
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns)?;
        self.write(&batch).map_err(|e| DataFusionError::External(Box::new(e)))
    }

    /// A name so many times; the column is made once and lent in slices.
    fn repeated(&self, name: &str, rows: usize) -> ArrayRef {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        match names.get(name) {
            Some(column) if column.len() >= rows => column.slice(0, rows),
            _ => {
                let texts = std::iter::repeat_n(name, rows.max(BATCH_ROWS));
                let column: ArrayRef = Arc::new(StringArray::from_iter_values(texts));
                names.insert(name.to_owned(), Arc::clone(&column));
                column.slice(0, rows)
            }
        }
    }

    fn write(&self, batch: &RecordBatch) -> Result<(), EngineError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let open = match &mut *open {
            Some(open) => open,
            none => {
                let (part, file) = self.ledger.start_part(&self.task, PartKind::Dropped, self.sink.extension())?;
                let writer = self.sink.writer(batch.schema(), file, &[]).map_err(|e| part.failed(e))?;
                none.insert(Open { part, writer, rows: 0 })
            }
        };
        open.writer.write(batch).map_err(|e| open.part.failed(e))?;
        open.rows += batch.num_rows() as u64;
        Ok(())
    }

    /// Completes the part, if any row was dropped.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn finish(&self) -> Result<Option<(Part, OpenPart)>, EngineError> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Open { part: mut open, writer, rows }) = open else { return Ok(None) };
        let file = writer.finish().map_err(|e| open.failed(e))?;
        let part = open.complete(file, rows)?;
        Ok(Some((part, open)))
    }
}

/// A value as it is kept: texts shortened, the rest as it is.
fn stored(value: &ArrayRef, data_type: &DataType) -> Result<ArrayRef> {
    let value = if value.data_type() == data_type { Arc::clone(value) } else { cast(value, data_type)? };
    if *data_type != DataType::Utf8 {
        return Ok(value);
    }
    let texts = value.as_string::<i32>();
    if texts.iter().flatten().all(|t| t.len() <= TEXT_BYTES) {
        return Ok(value);
    }
    let mut short = StringBuilder::with_capacity(texts.len(), texts.len() * TEXT_BYTES);
    for text in texts {
        match text {
            Some(text) if text.len() > TEXT_BYTES => {
                let end = (0..=TEXT_BYTES).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
                short.append_value(format!("{}…", &text[..end]));
            }
            other => short.append_option(other),
        }
    }
    Ok(Arc::new(short.finish()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn long_texts_are_shortened_at_a_character() {
        let long = "ä".repeat(TEXT_BYTES);
        let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("short"), None, Some(long.as_str())]));
        let kept = stored(&texts, &DataType::Utf8).unwrap();
        let kept = kept.as_string::<i32>();
        assert_eq!((kept.value(0), kept.is_null(1)), ("short", true));
        assert_eq!(kept.value(2), format!("{}…", "ä".repeat(TEXT_BYTES / 2)));
    }

    #[test]
    fn only_scalars_are_told() {
        assert_eq!(told_type(&DataType::LargeUtf8), Some(DataType::Utf8));
        assert_eq!(told_type(&DataType::Float32), Some(DataType::Float32));
        assert_eq!(told_type(&groundloom_data::columns::boxes_type()), None);
        assert_eq!(told_type(&DataType::Binary), None);
        assert_eq!(told_type(&DataType::Interval(arrow::datatypes::IntervalUnit::MonthDayNano)), None);
    }
}
