//! From a reader's rows to the batches of a shard: row ids in front, errors behind, on a thread that may block.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, StringArray, StructArray, UInt32Array, new_null_array},
    buffer::NullBuffer,
    compute::{cast, take},
    datatypes::{DataType, Field, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use futures::{StreamExt, stream, stream::BoxStream};
use groundloom_data::{RowId, columns};
use tokio::sync::mpsc;

use crate::FormatError;

/// The schema of what a [`ShardReader`](crate::ShardReader) gives: `row_id`, the columns of `schema` at the indices `columns`, `_error`.
pub fn shard_schema(schema: &Schema, columns: &[usize]) -> SchemaRef {
    let mut fields = vec![Arc::new(Field::new(columns::ROW_ID, DataType::Utf8, false))];
    fields.extend(columns.iter().map(|c| Arc::clone(&schema.fields()[*c])));
    fields.push(columns::column(columns::ERROR, columns::error_type()));
    Arc::new(Schema::new(fields))
}

/// Why a row goes to quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl Fault {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Row ids and faults of a batch under construction.
#[derive(Debug)]
pub(crate) struct Rows {
    ids: Vec<RowId>,
    faults: Vec<Option<Fault>>,
    faulty: usize,
}

impl Rows {
    pub(crate) fn new() -> Self {
        Self { ids: Vec::new(), faults: Vec::new(), faulty: 0 }
    }

    pub(crate) fn push_with(&mut self, id: RowId, fault: Option<Fault>) {
        self.ids.push(id);
        self.faulty += usize::from(fault.is_some());
        self.faults.push(fault);
    }

    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Columns that hold the good rows only, with nulls put in for the others.
    pub(crate) fn spread(&self, good: &[ArrayRef]) -> Result<Vec<ArrayRef>, arrow::error::ArrowError> {
        if self.faulty == 0 {
            return Ok(good.to_vec());
        }
        let mut next = 0;
        let places: UInt32Array = self
            .faults
            .iter()
            .map(|fault| {
                fault.is_none().then(|| {
                    next += 1;
                    next - 1
                })
            })
            .collect();
        good.iter().map(|column| take(column, &places, None)).collect()
    }

    /// The batch: `values` are as long as the rows; `key`, if the user named one, is the column that ids are made from.
    pub(crate) fn finish(
        self,
        shape: &BatchShape,
        values: Vec<ArrayRef>,
        key: Option<&ArrayRef>,
    ) -> Result<RecordBatch, FormatError> {
        let fault = |source| FormatError::Arrow { location: shape.source.to_owned(), source };
        let keys = key.map(|k| cast(k, &DataType::Utf8)).transpose().map_err(fault)?;
        let keys = keys.as_ref().map(|k| k.as_string::<i32>());
        let keyed = |row: usize| keys.filter(|k| k.is_valid(row)).map(|k| RowId::from_key(k.value(row)));
        let ids = self.ids.iter().enumerate().map(|(row, id)| keyed(row).unwrap_or(*id));
        let mut all: Vec<ArrayRef> = vec![Arc::new(RowId::column(ids))];
        all.extend(values);
        all.push(if self.faulty == 0 {
            new_null_array(&columns::error_type(), self.len())
        } else {
            Arc::new(errors(shape.source, &self.faults))
        });
        RecordBatch::try_new(Arc::clone(&shape.schema), all).map_err(fault)
    }
}

fn errors(source: &str, faults: &[Option<Fault>]) -> StructArray {
    let DataType::Struct(fields) = columns::error_type() else { unreachable!("an error is a struct") };
    let text = |part: &dyn Fn(&Fault) -> String| -> ArrayRef {
        // The fields of an error are never null, so the rows without one hold empty texts under a null struct.
        Arc::new(StringArray::from_iter_values(faults.iter().map(|f| f.as_ref().map(part).unwrap_or_default())))
    };
    let parts = vec![text(&|_| source.to_owned()), text(&|f| f.code.to_owned()), text(&|f| f.message.clone())];
    StructArray::new(fields, parts, Some(NullBuffer::from_iter(faults.iter().map(Option::is_some))))
}

/// What the batches of a reader look like.
#[derive(Debug, Clone)]
pub(crate) struct BatchShape {
    /// [`shard_schema`].
    pub(crate) schema: SchemaRef,
    /// `type:` of the source, the `stage` of its errors.
    pub(crate) source: &'static str,
}

/// Finds the value of a dotted key (`meta.id`) among columns: the column's index and the fields below it.
///
/// # Errors
/// The column or field is missing, or it cannot identify a row.
pub(crate) fn find_key(schema: &Schema, key: &str) -> Result<(usize, Vec<String>), FormatError> {
    let missing = |message: String| FormatError::Input { key: "key", message };
    let names = || schema.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>().join(", ");
    // A column's own name may hold dots.
    if let Ok(index) = schema.index_of(key) {
        return check_key(key, schema.field(index).data_type()).map(|()| (index, Vec::new()));
    }
    let (column, rest) = key.split_once('.').unwrap_or((key, ""));
    let index = schema
        .index_of(column)
        .map_err(|_| missing(format!("there is no column `{column}`; there are {}", names())))?;
    let mut data_type = schema.field(index).data_type();
    let mut path = Vec::new();
    for name in rest.split('.') {
        let DataType::Struct(fields) = data_type else {
            return Err(missing(format!("`{key}` asks for a field of a column of type {data_type}")));
        };
        data_type = fields
            .iter()
            .find(|f| f.name() == name)
            .ok_or_else(|| missing(format!("there is no field `{name}` of `{key}`")))?
            .data_type();
        path.push(name.to_owned());
    }
    check_key(key, data_type).map(|()| (index, path))
}

fn check_key(key: &str, data_type: &DataType) -> Result<(), FormatError> {
    if data_type.is_string() || data_type.is_integer() {
        return Ok(());
    }
    Err(FormatError::Input {
        key: "key",
        message: format!("expected a text or whole number to identify rows, but `{key}` is {data_type}"),
    })
}

/// The field of a column that [`find_key`] found.
pub(crate) fn key_values(column: &ArrayRef, path: &[String]) -> Option<ArrayRef> {
    let mut column = Arc::clone(column);
    for name in path {
        let outer = column.as_struct_opt()?;
        let inner = outer.column_by_name(name)?;
        let nulls = NullBuffer::union(outer.nulls(), inner.nulls());
        column = arrow::array::make_array(inner.to_data().into_builder().nulls(nulls).build().ok()?);
    }
    Some(column)
}

/// Where a reader puts its batches.
pub(crate) struct Batches {
    sender: mpsc::Sender<Result<RecordBatch, FormatError>>,
}

/// Nobody reads the batches any more.
pub(crate) struct Stopped;

/// Why a reader ends early.
pub(crate) enum End {
    Stopped,
    Failed(FormatError),
}

impl From<FormatError> for End {
    fn from(error: FormatError) -> Self {
        Self::Failed(error)
    }
}

impl From<Stopped> for End {
    fn from(Stopped: Stopped) -> Self {
        Self::Stopped
    }
}

impl Batches {
    pub(crate) fn send(&self, batch: RecordBatch) -> Result<(), Stopped> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        self.sender.blocking_send(Ok(batch)).map_err(|_| Stopped)
    }
}

/// Runs a reader on a blocking thread; one batch waits while the next is made. Dropping the stream ends the reader at its next batch.
pub(crate) fn on_thread(
    work: impl FnOnce(&Batches) -> Result<(), End> + Send + 'static,
) -> BoxStream<'static, Result<RecordBatch, FormatError>> {
    // Started by the first poll, as a stream should be.
    stream::once(async move {
        let (sender, receiver) = mpsc::channel(1);
        let task = tokio::task::spawn_blocking(move || {
            let batches = Batches { sender };
            if let Err(End::Failed(error)) = work(&batches) {
                // Nobody left to tell is no failure.
                let _ = batches.sender.blocking_send(Err(error));
            }
        });
        stream::unfold((receiver, Some(task)), |(mut receiver, mut task)| async move {
            if let Some(item) = receiver.recv().await {
                return Some((item, (receiver, task)));
            }
            // Its end must not pass for the end of the rows if it panicked.
            match task.take()?.await {
                Ok(()) => None,
                Err(e) => {
                    let error = FormatError::Io {
                        location: "a shard's reader".to_owned(),
                        message: "it stopped unexpectedly; this is a bug, please report it".to_owned(),
                        source: Some(Box::new(e)),
                    };
                    Some((Err(error), (receiver, None)))
                }
            }
        })
    })
    .flatten()
    .boxed()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[tokio::test]
    async fn a_reader_that_panics_is_an_error_not_an_end() {
        let mut stream = on_thread(|_| panic!("on purpose"));
        let error = stream.next().await.unwrap().unwrap_err();
        assert!(error.to_string().contains("stopped unexpectedly"));
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn a_dropped_stream_ends_its_reader() {
        let (done, ended) = std::sync::mpsc::channel();
        let mut stream = on_thread(move |batches| {
            let schema = Arc::new(Schema::new(vec![Field::new("x", DataType::Utf8, false)]));
            let column: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
            let batch = RecordBatch::try_new(schema, vec![column]).unwrap();
            while batches.send(batch.clone()).is_ok() {}
            done.send(()).unwrap();
            Ok(())
        });
        stream.next().await.unwrap().unwrap();
        drop(stream);
        ended.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
    }

    #[test]
    fn keys_are_columns_or_fields() {
        let inner = DataType::Struct(
            vec![Field::new("id", DataType::Int64, true), Field::new("w", DataType::Float64, true)].into(),
        );
        let schema = Schema::new(vec![Field::new("a.b", DataType::Utf8, true), Field::new("meta", inner, true)]);
        assert_eq!(find_key(&schema, "a.b").unwrap(), (0, vec![]));
        assert_eq!(find_key(&schema, "meta.id").unwrap(), (1, vec!["id".to_owned()]));
        for (key, message) in [
            ("x", "no column `x`; there are a.b, meta"),
            ("meta.x", "no field `x`"),
            ("meta", "but `meta` is"),
            ("meta.w", "Float64"),
            ("meta.id.x", "of a column of type Int64"),
        ] {
            let error = find_key(&schema, key).unwrap_err().to_string();
            assert!(error.contains(message), "{key}: {error}");
        }
    }
}
