//! The work of `shuffle`: a number per row to sort by, and the late fetch of media bytes.

use std::{fmt, fs::File, path::PathBuf, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, UInt64Array},
    compute::interleave,
    datatypes::{DataType, Schema, SchemaRef, UInt64Type},
    record_batch::RecordBatch,
};
use datafusion::{
    common::{DataFusionError, Result, runtime::SpawnedTask},
    execution::SendableRecordBatchStream,
};
use futures::{Stream, StreamExt, TryStreamExt};
use parquet::arrow::{
    ProjectionMask,
    arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection},
};
use parquet::file::metadata::PageIndexPolicy;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::dedup::ids_of;
use crate::counters::Counters;

/// Bytes that one fetch brings at about.
const FETCH_BYTES: u64 = 32 << 20;

/// Columns that stay behind while the rows are sorted, and where they stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Late {
    /// Names of the columns.
    pub columns: Vec<String>,
    /// The Parquet files that hold the input, in its order, with their rows and sizes.
    pub files: Vec<LateFile>,
}

/// A file from which is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LateFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its rows.
    pub rows: u64,
    /// Its bytes.
    pub bytes: u64,
}

/// Whether values of this type should not travel through a sort: encoded media, or any binary.
pub fn is_heavy(data_type: &DataType) -> bool {
    match data_type {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => true,
        DataType::Struct(fields) => fields.iter().any(|f| is_heavy(f.data_type())),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            is_heavy(item.data_type())
        }
        _ => false,
    }
}

/// The columns of `schema` that are fetched late.
pub fn late_columns(schema: &Schema) -> Vec<String> {
    schema.fields().iter().filter(|f| is_heavy(f.data_type())).map(|f| f.name().clone()).collect()
}

/// The rows with a number drawn for their id in front, and their place.
pub(super) fn draw(
    rows: SendableRecordBatchStream,
    schema: SchemaRef,
    seed: u64,
) -> impl Stream<Item = Result<RecordBatch>> + Send {
    let mut place = 0u64;
    rows.map(move |batch| {
        let batch = batch?;
        let ids = ids_of(&batch)?;
        let draws: UInt64Array =
            (0..ids.len()).map(|row| Some(xxh3_64_with_seed(ids.value(row).as_bytes(), seed))).collect();
        let places: UInt64Array = (0..batch.num_rows() as u64).map(|row| Some(place + row)).collect();
        place += batch.num_rows() as u64;
        let mut columns: Vec<ArrayRef> = vec![Arc::new(draws), Arc::new(places)];
        columns.extend(batch.columns().iter().cloned());
        Ok(RecordBatch::try_new(Arc::clone(&schema), columns)?)
    })
}

/// The sorted rows in their own columns.
pub(super) fn deal(
    drawn: SendableRecordBatchStream,
    schema: SchemaRef,
    late: Option<Late>,
    counters: Option<Arc<Counters>>,
) -> impl Stream<Item = Result<RecordBatch>> + Send {
    let rows_at_once = late.as_ref().map_or(usize::MAX, Late::rows_at_once);
    let late = late.map(Arc::new);
    let slices = drawn.map_ok(move |batch| {
        let rows = batch.num_rows();
        let step = rows_at_once.min(rows.max(1));
        futures::stream::iter(
            (0..rows.div_ceil(step)).map(move |i| Ok(batch.slice(i * step, step.min(rows - i * step)))),
        )
    });
    slices.try_flatten().and_then(move |batch: RecordBatch| {
        let (schema, late, counters) = (Arc::clone(&schema), late.clone(), counters.clone());
        async move {
            if let Some(counters) = counters {
                counters.add_rows(batch.num_rows() as u64, batch.num_rows() as u64);
            }
            let fetched = match late {
                None => Vec::new(),
                Some(late) => {
                    let places = batch.column(1).as_primitive::<UInt64Type>().clone();
                    SpawnedTask::spawn_blocking(move || late.fetch(&places))
                        .join_unwind()
                        .await
                        .map_err(|e| DataFusionError::External(Box::new(e)))??
                }
            };
            let mut fetched = fetched.into_iter();
            let mut columns = Vec::with_capacity(schema.fields().len());
            for field in schema.fields() {
                // The first two columns are ours and may have a user's name.
                let carried = batch.schema_ref().fields().iter().skip(2).position(|f| f.name() == field.name());
                columns.push(match carried {
                    Some(i) => Arc::clone(batch.column(i + 2)),
                    None => fetched
                        .next()
                        .ok_or_else(|| DataFusionError::Internal(format!("column `{}` is gone", field.name())))?,
                });
            }
            Ok(RecordBatch::try_new(schema, columns)?)
        }
    })
}

impl Late {
    /// Rows of one fetch: a function of the data alone.
    fn rows_at_once(&self) -> usize {
        let (rows, bytes) = self.files.iter().fold((0, 0), |(r, b), f| (r + f.rows, b + f.bytes));
        let row_bytes = (bytes / rows.max(1)).max(1);
        usize::try_from(FETCH_BYTES / row_bytes).unwrap_or(usize::MAX).clamp(1, 8192)
    }

    /// The late columns of the rows at these places, in their order.
    fn fetch(&self, places: &UInt64Array) -> Result<Vec<ArrayRef>> {
        let mut order: Vec<usize> = (0..places.len()).collect();
        order.sort_unstable_by_key(|i| places.value(*i));
        // Where each row's values come to stand: (batch, row in the batch).
        let mut found = vec![(0, 0); places.len()];
        let mut batches: Vec<RecordBatch> = Vec::new();
        let (mut start, mut next) = (0u64, 0);
        for file in &self.files {
            let end = start + file.rows;
            let here: Vec<usize> = order[next..].iter().copied().take_while(|i| places.value(*i) < end).collect();
            next += here.len();
            if !here.is_empty() {
                let rows: Vec<usize> = here.iter().map(|i| (places.value(*i) - start) as usize).collect();
                let mut at = here.iter();
                for batch in self.read(file, &rows)? {
                    for (row, i) in (0..batch.num_rows()).zip(&mut at) {
                        found[*i] = (batches.len(), row);
                    }
                    batches.push(batch);
                }
                if at.next().is_some() {
                    return Err(short(file));
                }
            }
            start = end;
        }
        if next < places.len() {
            return Err(DataFusionError::Internal("a row stands behind the last file".into()));
        }
        (0..self.columns.len())
            .map(|column| {
                let parts: Vec<&dyn Array> = batches.iter().map(|b| b.column(column).as_ref()).collect();
                Ok(interleave(&parts, &found)?)
            })
            .collect()
    }

    /// The late columns of the rows with these numbers, which ascend.
    fn read(&self, file: &LateFile, rows: &[usize]) -> Result<Vec<RecordBatch>> {
        let failed = |e: &dyn fmt::Display| DataFusionError::Execution(format!("{}: {e}", file.path.display()));
        let opened = File::open(&file.path).map_err(|e| failed(&e))?;
        // With the page index only the pages that hold a wanted row are read.
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
        let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(opened, options).map_err(|e| failed(&e))?;
        let schema = Arc::clone(builder.schema());
        let mut roots = Vec::with_capacity(self.columns.len());
        for name in &self.columns {
            roots.push(schema.index_of(name).map_err(|e| failed(&e))?);
        }
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        let total = usize::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0);
        if rows.last().is_some_and(|last| *last >= total) {
            return Err(short(file));
        }
        let reader = builder
            .with_projection(mask)
            .with_row_selection(RowSelection::from_consecutive_ranges(rows.iter().map(|row| *row..*row + 1), total))
            .build()
            .map_err(|e| failed(&e))?;
        reader
            .map(|batch| {
                let batch = batch.map_err(|e| failed(&e))?;
                let columns = self.columns.iter().map(|name| batch.schema().index_of(name));
                Ok(batch.project(&columns.collect::<std::result::Result<Vec<_>, _>>()?)?)
            })
            .collect()
    }
}

fn short(file: &LateFile) -> DataFusionError {
    DataFusionError::Execution(format!(
        "{}: holds fewer rows than when it was written; run the pipeline again",
        file.path.display()
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use arrow::{
        array::{BinaryArray, Int32Array},
        datatypes::Field,
    };
    use parquet::{arrow::ArrowWriter, file::properties::WriterProperties};
    use proptest::prelude::*;

    use super::*;

    /// The bytes of row `n` of all files.
    fn bytes_of(n: usize) -> Option<Vec<u8>> {
        (n % 11 != 5).then(|| vec![(n % 251) as u8; n * 37 % 90])
    }

    fn write(folder: &std::path::Path, sizes: &[usize], group: usize) -> Late {
        let schema = Arc::new(Schema::new(vec![
            Field::new("n", DataType::Int32, false),
            Field::new("bytes", DataType::Binary, true),
        ]));
        let (mut first, mut files) = (0, Vec::new());
        for (i, rows) in sizes.iter().enumerate() {
            let path = folder.join(format!("{i}.parquet"));
            let properties = WriterProperties::builder()
                .set_max_row_group_row_count(Some(group))
                .set_data_page_row_count_limit(3)
                .set_write_batch_size(2)
                .build();
            let file = File::create(&path).unwrap();
            let mut writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties)).unwrap();
            let values: Vec<Option<Vec<u8>>> = (first..first + rows).map(bytes_of).collect();
            let bytes: BinaryArray = values.iter().map(|v| v.as_deref()).collect();
            let n: Int32Array = (first..first + rows).map(|n| Some(n as i32)).collect();
            writer
                .write(&RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(n), Arc::new(bytes)]).unwrap())
                .unwrap();
            writer.close().unwrap();
            let bytes = std::fs::metadata(&path).unwrap().len();
            files.push(LateFile { path, rows: *rows as u64, bytes });
            first += rows;
        }
        Late { columns: vec!["bytes".to_owned()], files }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_rows_are_fetched_in_any_order(
            sizes in prop::collection::vec(0usize..30, 1..5), group in 1usize..12, order in any::<u64>(), share in 1usize..4
        ) {
            let folder = tempfile::tempdir().unwrap();
            let late = write(folder.path(), &sizes, group);
            let mut places: Vec<usize> = (0..sizes.iter().sum()).filter(|n| n % share == 0).collect();
            places.sort_by_key(|n| xxh3_64_with_seed(&n.to_le_bytes(), order));
            if places.is_empty() {
                return Ok(());
            }
            let wanted: UInt64Array = places.iter().map(|n| Some(*n as u64)).collect();
            let found = late.fetch(&wanted).unwrap();
            let found = found[0].as_binary::<i32>();
            for (i, n) in places.iter().enumerate() {
                let value = found.is_valid(i).then(|| found.value(i).to_vec());
                prop_assert_eq!(value, bytes_of(*n), "row {}", n);
            }
        }
    }

    #[test]
    fn a_place_behind_the_files_is_an_error_and_no_panic() {
        let folder = tempfile::tempdir().unwrap();
        let late = write(folder.path(), &[4, 3], 2);
        assert!(late.fetch(&UInt64Array::from(vec![7])).is_err());
        let short = Late { files: vec![LateFile { rows: 9, ..late.files[0].clone() }], ..late };
        assert!(short.fetch(&UInt64Array::from(vec![8])).is_err());
    }
}
