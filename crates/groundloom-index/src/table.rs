//! The rows of a segment: one Parquet file with all columns, vectors as fixed-size lists of f32.

use std::{
    fs::File,
    io::{BufWriter, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, FixedSizeListArray, Float32Array, RecordBatch, StringArray, UInt64Array},
    compute::{cast, concat_batches, take_record_batch},
    datatypes::{DataType, Field, Float32Type, Schema, SchemaRef},
};
use bytes::Bytes;
use memmap2::Mmap;
use parquet::{
    arrow::{
        ArrowWriter, ProjectionMask,
        arrow_reader::{
            ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector,
        },
    },
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};
use xxhash_rust::xxh3::Xxh3;

use crate::{
    IndexError,
    manifest::ColumnSpec,
    vector_file::{FileEntry, hex},
};

/// Rows of a row group and of the batches that are read.
pub(crate) const GROUP: usize = 8192;

fn arrow_error(origin: impl ToString) -> impl FnOnce(arrow::error::ArrowError) -> IndexError {
    move |e| IndexError::BadRows { origin: origin.to_string(), problem: e.to_string() }
}

/// The vectors of a column as slices, one for each row, `None` for null; of any list of numbers.
pub(crate) fn vectors<'a>(
    batch: &RecordBatch,
    name: &str,
    values: &'a mut Option<Lists>,
) -> Result<&'a Lists, IndexError> {
    let bad = |problem: String| IndexError::BadRows { origin: format!("column {name:?}"), problem };
    let column = batch.column_by_name(name).ok_or_else(|| {
        let names: Vec<&str> = batch.schema_ref().fields().iter().map(|f| f.name().as_str()).collect();
        bad(format!("the rows have no such column; they have {}", names.join(", ")))
    })?;
    let wanted = |inner: &DataType| inner.is_numeric();
    let as_list = |inner: &Arc<Field>| {
        let to = DataType::List(Arc::new(Field::new(inner.name(), DataType::Float32, true)));
        cast(column, &to).map_err(|e| bad(e.to_string()))
    };
    let list = match column.data_type() {
        DataType::FixedSizeList(f, _) | DataType::List(f) | DataType::LargeList(f) if wanted(f.data_type()) => {
            as_list(f)?
        }
        other => return Err(bad(format!("expected lists of numbers, found {other}; embed the rows first"))),
    };
    let list = list.as_list::<i32>().clone();
    let numbers = list.values().as_primitive::<Float32Type>().clone();
    Ok(values.insert(Lists { list, numbers }))
}

/// Lists of f32.
pub(crate) struct Lists {
    list: arrow::array::ListArray,
    numbers: Float32Array,
}

impl Lists {
    /// The vector of a row; a null number in it is NaN, which is refused later.
    pub(crate) fn get(&self, row: usize) -> Option<std::borrow::Cow<'_, [f32]>> {
        if self.list.is_null(row) {
            return None;
        }
        let offsets = self.list.value_offsets();
        let (from, to) = (offsets[row] as usize, offsets[row + 1] as usize);
        if self.numbers.null_count() == 0 {
            return Some(self.numbers.values()[from..to].into());
        }
        Some((from..to).map(|i| if self.numbers.is_null(i) { f32::NAN } else { self.numbers.value(i) }).collect())
    }
}

/// The keys of a batch as text. Keys must not be null.
pub(crate) fn keys(batch: &RecordBatch, key: &str) -> Result<StringArray, IndexError> {
    let bad = |problem: String| IndexError::BadRows { origin: format!("key column {key:?}"), problem };
    let column = batch.column_by_name(key).ok_or_else(|| bad("the rows have no such column".into()))?;
    let text = cast(column, &DataType::Utf8).map_err(|e| bad(e.to_string()))?;
    if text.null_count() > 0 {
        return Err(bad("expected a key for every row, found null".into()));
    }
    Ok(text.as_string::<i32>().clone())
}

/// The schema of a row table: that of the rows, with vector columns as fixed-size lists of f32.
pub(crate) fn schema(rows: &Schema, columns: &[ColumnSpec]) -> SchemaRef {
    let fields: Vec<Field> = rows
        .fields()
        .iter()
        .map(|field| match columns.iter().find(|c| c.name == *field.name()) {
            Some(column) => {
                let item = Arc::new(Field::new("item", DataType::Float32, true));
                Field::new(field.name(), DataType::FixedSizeList(item, column.dims as i32), true)
            }
            None => field.as_ref().clone(),
        })
        .collect();
    Arc::new(Schema::new(fields))
}

/// The batch in the schema of a row table. Vectors have been checked.
pub(crate) fn normal(
    batch: &RecordBatch,
    schema: &SchemaRef,
    columns: &[ColumnSpec],
) -> Result<RecordBatch, IndexError> {
    let mut arrays: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        if let Some(column) = columns.iter().find(|c| c.name == *field.name()) {
            let mut lists = None;
            let lists = vectors(batch, field.name(), &mut lists)?;
            let rows =
                (0..batch.num_rows()).map(|row| lists.get(row).map(|v| v.iter().map(|v| Some(*v)).collect::<Vec<_>>()));
            arrays
                .push(Arc::new(FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(rows, column.dims as i32)));
            continue;
        }
        let found = batch.column_by_name(field.name()).ok_or_else(|| IndexError::BadRows {
            origin: format!("column {:?}", field.name()),
            problem: "the first rows have it and later rows lack it".into(),
        })?;
        arrays.push(cast(found, field.data_type()).map_err(arrow_error(format!("column {:?}", field.name())))?);
    }
    RecordBatch::try_new(Arc::clone(schema), arrays).map_err(arrow_error("rows"))
}

/// Writes row tables.
pub(crate) struct TableWriter {
    path: PathBuf,
    writer: ArrowWriter<BufWriter<File>>,
}

impl TableWriter {
    pub(crate) fn create(path: &Path, schema: &SchemaRef) -> Result<Self, IndexError> {
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_max_row_group_row_count(Some(GROUP))
            .set_created_by("groundloom".into())
            .build();
        let file = BufWriter::new(File::create(path).map_err(|e| IndexError::io(path, e))?);
        let writer = ArrowWriter::try_new(file, Arc::clone(schema), Some(properties))
            .map_err(|e| IndexError::damaged(path, e.to_string()))?;
        Ok(Self { path: path.to_owned(), writer })
    }

    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<(), IndexError> {
        self.writer.write(batch).map_err(|e| IndexError::damaged(&self.path, e.to_string()))
    }

    /// Ends the file and makes it durable.
    pub(crate) fn finish(self) -> Result<FileEntry, IndexError> {
        let Self { path, writer } = self;
        let out = writer.into_inner().map_err(|e| IndexError::damaged(&path, e.to_string()))?;
        let file = out.into_inner().map_err(|e| IndexError::io(&path, e.into_error()))?;
        file.sync_all().map_err(|e| IndexError::io(&path, e))?;
        entry(&path)
    }
}

/// The rows as JSON objects; null values are left out.
///
/// # Errors
/// [`IndexError::BadRows`] for a type that JSON cannot express.
pub fn as_json(rows: &RecordBatch) -> Result<Vec<serde_json::Map<String, serde_json::Value>>, IndexError> {
    let bad = |problem: String| IndexError::BadRows { origin: "rows".into(), problem };
    let mut writer = arrow::json::ArrayWriter::new(Vec::new());
    writer.write(rows).and_then(|()| writer.finish()).map_err(|e| bad(e.to_string()))?;
    let text = writer.into_inner();
    if text.is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))
}

/// Size and checksum of a whole file.
pub(crate) fn entry(path: &Path) -> Result<FileEntry, IndexError> {
    let mut file = File::open(path).map_err(|e| IndexError::io(path, e))?;
    let mut hash = Xxh3::new();
    let (mut bytes, mut buffer) = (0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                hash.update(&buffer[..read]);
                bytes += read as u64;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(IndexError::io(path, e)),
        }
    }
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(FileEntry { name, bytes, xxh3: hex(hash.digest()) })
}

/// An open row table.
#[derive(Debug)]
pub(crate) struct Table {
    path: PathBuf,
    /// The mapped file. Readers of many threads share it; a shared file handle has one position for all of them.
    data: Bytes,
    metadata: ArrowReaderMetadata,
}

impl Table {
    pub(crate) fn open(folder: &Path, entry: &FileEntry) -> Result<Self, IndexError> {
        let path = folder.join(&entry.name);
        let file = File::open(&path).map_err(|e| IndexError::io(&path, e))?;
        // SAFETY: as for vector files: files of an index are never changed in place.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| IndexError::io(&path, e))?;
        let bytes = map.len() as u64;
        if bytes != entry.bytes {
            return Err(IndexError::damaged(
                &path,
                format!("expected {} bytes as the manifest says, found {bytes}", entry.bytes),
            ));
        }
        let data = Bytes::from_owner(map);
        let metadata = ArrowReaderMetadata::load(&data, ArrowReaderOptions::new())
            .map_err(|e| IndexError::damaged(&path, e.to_string()))?;
        Ok(Self { path, data, metadata })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn schema(&self) -> &SchemaRef {
        self.metadata.schema()
    }

    pub(crate) fn rows(&self) -> usize {
        self.metadata.metadata().file_metadata().num_rows().max(0) as usize
    }

    fn reader(&self, columns: &[String]) -> Result<ParquetRecordBatchReaderBuilder<Bytes>, IndexError> {
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(self.data.clone(), self.metadata.clone());
        let roots =
            self.schema().fields().iter().enumerate().filter(|(_, f)| columns.contains(f.name())).map(|(i, _)| i);
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        Ok(builder.with_projection(mask).with_batch_size(GROUP))
    }

    /// All rows of some columns, batch by batch, in the file's column order.
    pub(crate) fn scan(
        &self,
        columns: &[String],
    ) -> Result<impl Iterator<Item = Result<RecordBatch, IndexError>> + use<'_>, IndexError> {
        let reader = self.reader(columns)?.build().map_err(|e| IndexError::damaged(&self.path, e.to_string()))?;
        Ok(reader.map(|batch| batch.map_err(|e| IndexError::damaged(&self.path, e.to_string()))))
    }

    /// Some rows of some columns, in the order of `rows`.
    pub(crate) fn rows_at(&self, rows: &[u32], columns: &[String]) -> Result<RecordBatch, IndexError> {
        let damaged = |e: String| IndexError::damaged(&self.path, e);
        let mut sorted: Vec<usize> = rows.iter().map(|r| *r as usize).collect();
        sorted.sort_unstable();
        sorted.dedup();
        if let Some(last) = sorted.last().filter(|r| **r >= self.rows()) {
            return Err(damaged(format!("expected a row {last}, found {} rows", self.rows())));
        }
        let mut selectors = Vec::with_capacity(2 * sorted.len());
        let mut at = 0;
        for row in &sorted {
            if *row > at {
                selectors.push(RowSelector::skip(row - at));
            }
            selectors.push(RowSelector::select(1));
            at = row + 1;
        }
        let reader = self.reader(columns)?.with_row_selection(RowSelection::from(selectors)).build();
        let reader = reader.map_err(|e| damaged(e.to_string()))?;
        let batches: Vec<RecordBatch> = reader.collect::<Result<_, _>>().map_err(|e| damaged(e.to_string()))?;
        let schema = match batches.first() {
            Some(first) => first.schema(),
            None => {
                let kept =
                    self.schema().fields().iter().filter(|f| columns.contains(f.name())).cloned().collect::<Vec<_>>();
                Arc::new(Schema::new(kept))
            }
        };
        let all = concat_batches(&schema, &batches).map_err(arrow_error(self.path.display()))?;
        let places: UInt64Array =
            rows.iter().map(|row| sorted.binary_search(&(*row as usize)).unwrap_or(0) as u64).collect();
        take_record_batch(&all, &places).map_err(arrow_error(self.path.display()))
    }
}
