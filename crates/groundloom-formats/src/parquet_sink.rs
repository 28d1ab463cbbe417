//! The Parquet sink.
//!
//! Files are made for two readers: engines that prune by statistics and skip columns, and Hugging Face `datasets`, which shows the pictures. Media bytes are stored as they are
//! (they are compressed already), in pages small enough to skip; row ids are delta-coded against their neighbours. What is written depends on the rows and the settings alone.

use std::{
    fs::File,
    io::{self, BufWriter, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    datatypes::{DataType, Field, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use bytes::Bytes;
use groundloom_data::columns::{ROW_ID, is_media};
use groundloom_spec::Config;
use parquet::{
    arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection},
    basic::{Compression as Codec, Encoding, ZstdLevel},
    column::writer::ColumnCloseResult,
    errors::ParquetError,
    file::{
        metadata::{KeyValue, PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader},
        properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder},
        reader::{ChunkReader, Length},
        writer::SerializedFileWriter,
    },
    schema::types::ColumnPath,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    FormatError, PartWriter, Sink, hugging_face,
    output_columns::{Form, OutputColumns},
    report::gallery_rows,
    row_blocks::RowBlocks,
    row_groups::{self, AlikeTexts, RowGroups, WRITE_BYTES},
};

/// A row group is closed when it has gathered this many encoded bytes: what a writer holds in memory, and what a reader of one group has to read.
const ROW_GROUP_BYTES: usize = 32 << 20;
/// A page is closed at this many bytes. Pages that stay in a core's cache until they are compressed, and buffers that the allocator does not give back to the system after each, take an
/// eighth off the time of a pipeline that only filters, beside pages of a megabyte; and who reads single rows decodes less.
const PAGE_BYTES: usize = 128 << 10;
/// A column whose different values take more than this is stored without a dictionary: what is looked up there must stay in the cache too.
const DICTIONARY_BYTES: usize = 512 << 10;
/// Level of zstd: the format's usual one, at which writing is still fast.
const ZSTD_LEVEL: i32 = 3;
/// Who wrote the file, without a build date.
const CREATED_BY: &str = concat!("groundloom version ", env!("CARGO_PKG_VERSION"));

/// Writes Parquet files that `datasets.load_dataset` and every Parquet reader open, pictures included.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ParquetSink {
    /// Folder (or URL) of the data set. Files go into `data/` inside it.
    pub path: String,
    /// Columns to render in a data set's released form, beside the typed ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub form: Option<Form>,
    /// The columns to write, in that order; all of them if not given. `row_id` is always written, and first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Vec<String>>,
    /// How pages are compressed. Media bytes never are: JPEG, PNG and FLAC do not shrink again.
    #[serde(default)]
    pub compression: ParquetCompression,
    /// Aim for files of this many bytes.
    #[serde(default = "default_file_bytes")]
    #[schemars(range(min = 1))]
    pub file_bytes: u64,
    /// How columns are laid out; a pipeline file has no say in it.
    #[serde(skip)]
    #[schemars(skip)]
    pub layout: Layout,
}

/// How columns are laid out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Layout {
    /// For readers of data: dictionaries, statistics.
    #[default]
    Data,
    /// For notes of many rows that are written fast and read rarely, by row id: everything is delta-coded against its neighbours, and only row ids have statistics.
    Notes,
}

/// How Parquet pages are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ParquetCompression {
    /// Fast, and read by everything.
    #[default]
    Snappy,
    /// Smaller files, somewhat slower.
    Zstd,
    /// Not at all.
    None,
}

fn default_file_bytes() -> u64 {
    256 << 20
}

impl ParquetSink {
    fn output(&self, input: &Schema) -> Result<OutputColumns, FormatError> {
        OutputColumns::new(input, self.form, self.columns.as_deref())
    }

    fn properties(&self, schema: &Schema, metadata: &[(String, String)]) -> Result<WriterProperties, FormatError> {
        let codec = match self.compression {
            ParquetCompression::Snappy => Codec::SNAPPY,
            ParquetCompression::Zstd => Codec::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL).map_err(|e| failed("parquet", e))?),
            ParquetCompression::None => Codec::UNCOMPRESSED,
        };
        let mut pairs: Vec<KeyValue> =
            metadata.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone())).collect();
        if let Some(features) = hugging_face::metadata(schema) {
            pairs.push(KeyValue::new(hugging_face::METADATA_KEY.to_owned(), features));
        }
        let row_id = ColumnPath::from(ROW_ID);
        let mut properties = WriterProperties::builder()
            .set_created_by(CREATED_BY.to_owned())
            .set_key_value_metadata(Some(pairs))
            .set_compression(codec)
            .set_data_page_size_limit(PAGE_BYTES)
            .set_dictionary_page_size_limit(DICTIONARY_BYTES)
            // Where it is not among the columns that `alike` names.
            .set_column_dictionary_enabled(row_id.clone(), false)
            .set_column_encoding(row_id, Encoding::DELTA_BYTE_ARRAY);
        let texts_and_numbers = schema.fields().iter().filter(|f| self.layout == Layout::Notes && f.name() != ROW_ID);
        for field in texts_and_numbers {
            let column = ColumnPath::new(vec![field.name().clone()]);
            properties = properties
                .set_column_dictionary_enabled(column.clone(), false)
                .set_column_statistics_enabled(column.clone(), EnabledStatistics::None);
            properties = match field.data_type() {
                DataType::Utf8 => properties.set_column_encoding(column, Encoding::DELTA_BYTE_ARRAY),
                t if t.is_integer() => properties.set_column_encoding(column, Encoding::DELTA_BINARY_PACKED),
                // To look for repeats in scores takes longer than all else that is done for a note.
                t if t.is_floating() => properties.set_column_compression(column, Codec::UNCOMPRESSED),
                _ => properties,
            };
        }
        for field in schema.fields() {
            properties = store_media_plainly(properties, field, vec![field.name().clone()]);
        }
        Ok(properties.build())
    }

    /// The columns whose texts are alike from row to row: ids, and in notes whatever is a text in every row.
    fn alike(&self, schema: &Schema) -> Vec<AlikeTexts> {
        let alike = |field: &usize| self.layout == Layout::Notes || schema.field(*field).name() == ROW_ID;
        (0..schema.fields().len())
            .filter(|field| alike(field) && row_groups::takes(schema, *field))
            .map(|field| AlikeTexts { field, bounded: schema.field(field).name() == ROW_ID })
            .collect()
    }
}

/// The schema with the features in its own metadata, where pyarrow (and so `datasets`) looks when the file embeds an Arrow schema; other readers look at the file's pairs.
///
/// Nothing else may be added here: a schema's metadata is an unordered map, so that two keys would be written in any order.
fn described(schema: &SchemaRef) -> SchemaRef {
    match hugging_face::metadata(schema) {
        Some(features) => {
            let metadata = [(hugging_face::METADATA_KEY.to_owned(), features)].into();
            Arc::new(schema.as_ref().clone().with_metadata(metadata))
        }
        None => schema.clone(),
    }
}

/// Media bytes anywhere in the column: neither compressed nor in a dictionary nor in statistics (a picture has no useful minimum).
fn store_media_plainly(
    mut properties: WriterPropertiesBuilder,
    field: &Field,
    path: Vec<String>,
) -> WriterPropertiesBuilder {
    let below = |steps: &[&str]| path.iter().cloned().chain(steps.iter().map(|s| (*s).to_owned())).collect::<Vec<_>>();
    match field.data_type() {
        media if is_media(media) => {
            let bytes = ColumnPath::new(below(&["bytes"]));
            properties
                .set_column_compression(bytes.clone(), Codec::UNCOMPRESSED)
                .set_column_dictionary_enabled(bytes.clone(), false)
                .set_column_statistics_enabled(bytes, EnabledStatistics::None)
        }
        DataType::Struct(fields) => {
            for child in fields {
                properties = store_media_plainly(properties, child, below(&[child.name()]));
            }
            properties
        }
        DataType::List(item) | DataType::LargeList(item) => {
            store_media_plainly(properties, item, below(&["list", item.name()]))
        }
        _ => properties,
    }
}

impl Config for ParquetSink {
    const NAME: &'static str = "parquet";
    const SUMMARY: &'static str = "Parquet files that Hugging Face `datasets` opens, pictures included";
    const EXAMPLE: &'static str = "grit: { type: parquet, form: grit, path: out/grit }";
}

impl Sink for ParquetSink {
    fn path(&self) -> &str {
        &self.path
    }

    fn schema(&self, input: &Schema) -> Result<SchemaRef, FormatError> {
        Ok(self.output(input)?.schema().clone())
    }

    fn writer(
        &self,
        input: SchemaRef,
        file: File,
        metadata: &[(String, String)],
    ) -> Result<Box<dyn PartWriter>, FormatError> {
        let output = self.output(&input)?;
        let properties = self.properties(output.schema(), metadata)?;
        let alike = self.alike(output.schema());
        let zstd_level = (self.compression == ParquetCompression::Zstd).then_some(ZSTD_LEVEL);
        let writer = RowGroups::new(file, described(output.schema()), properties, alike, zstd_level)
            .map_err(|e| failed(&self.path, e))?;
        let blocks = RowBlocks::new(output.schema().clone());
        Ok(Box::new(Part { location: self.path.clone(), output, blocks, writer }))
    }

    fn join(&self, parts: &[PathBuf], output: &Path) -> Result<(), FormatError> {
        join(parts, output)
    }

    fn extension(&self) -> &'static str {
        "parquet"
    }

    fn file_bytes(&self) -> u64 {
        self.file_bytes
    }
}

struct Part {
    location: String,
    output: OutputColumns,
    blocks: RowBlocks,
    writer: RowGroups,
}

impl Part {
    fn write_block(&mut self, block: &RecordBatch) -> Result<(), FormatError> {
        self.writer.write(block, ROW_GROUP_BYTES).map_err(|e| failed(&self.location, e))
    }
}

impl PartWriter for Part {
    fn write(&mut self, rows: &RecordBatch) -> Result<(), FormatError> {
        let rows = self.output.apply(rows)?;
        let blocks = self.blocks.push(&rows).map_err(|e| failed(&self.location, e.into()))?;
        blocks.iter().try_for_each(|block| self.write_block(block))
    }

    fn finish(mut self: Box<Self>) -> Result<File, FormatError> {
        if let Some(block) = self.blocks.close().map_err(|e| failed(&self.location, e.into()))? {
            self.write_block(&block)?;
        }
        self.writer.close().map_err(|e| failed(&self.location, e))
    }
}

/// Concatenates Parquet files by copying their column chunks as they are, indexes included; nothing is decoded. Row groups stay as they were.
///
/// Key-value metadata that all parts share is kept; what differs between parts is left out.
///
/// # Errors
/// A part that cannot be read or is no Parquet file, parts of different schemas, a full disk.
pub fn join(parts: &[PathBuf], output: &Path) -> Result<(), FormatError> {
    let Some((first, others)) = parts.split_first() else {
        return Err(FormatError::Input {
            key: "path",
            message: "expected at least one part to join, found none".into(),
        });
    };
    // Of hundreds of parts only one is open at a time: their page indexes are megabytes together.
    let (_, metadata) = open(first, PageIndexPolicy::Skip)?;
    let schema = metadata.file_metadata().schema_descr().root_schema_ptr();
    let mut pairs = pairs_of(&metadata);
    for part in others {
        let (_, metadata) = open(part, PageIndexPolicy::Skip)?;
        if metadata.file_metadata().schema_descr().root_schema() != schema.as_ref() {
            return Err(FormatError::Malformed {
                location: part.display().to_string(),
                message: format!(
                    "expected the columns of {}, found others: the parts were written by different runs",
                    first.display()
                ),
            });
        }
        let other = pairs_of(&metadata);
        pairs.retain(|pair| other.contains(pair));
    }
    let properties =
        WriterProperties::builder().set_created_by(CREATED_BY.to_owned()).set_key_value_metadata(Some(pairs)).build();
    let name = output.display().to_string();
    let file = File::create(output).map_err(|e| failed(&name, e.into()))?;
    let file = BufWriter::with_capacity(WRITE_BYTES, file);
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).map_err(|e| failed(&name, e))?;
    for part in parts {
        let (input, metadata) = open(part, PageIndexPolicy::Optional)?;
        append(&mut writer, &input, &metadata).map_err(|e| failed(&name, e))?;
    }
    let file = writer.into_inner().map_err(|e| failed(&name, e))?;
    let file = file.into_inner().map_err(|e| failed(&name, e.into_error().into()))?;
    file.sync_all().map_err(|e| failed(&name, e.into()))
}

fn open(part: &Path, page_index: PageIndexPolicy) -> Result<(Chunks, ParquetMetaData), FormatError> {
    let location = part.display().to_string();
    let file = Chunks(Arc::new(File::open(part).map_err(|e| failed(&location, e.into()))?));
    let metadata = ParquetMetaDataReader::new()
        .with_page_index_policy(page_index)
        .parse_and_finish(&file)
        .map_err(|e| failed(&location, e))?;
    Ok((file, metadata))
}

fn pairs_of(metadata: &ParquetMetaData) -> Vec<KeyValue> {
    metadata.file_metadata().key_value_metadata().cloned().unwrap_or_default()
}

/// A file of which several places are read at a time. Nothing is buffered: who copies column chunks has a buffer of his own, and one that is made anew for each costs more than it saves.
struct Chunks(Arc<File>);

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.0.len()
    }
}

impl ChunkReader for Chunks {
    type T = ReadFrom;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        Ok(ReadFrom { file: Arc::clone(&self.0), at: start })
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        self.0.get_bytes(start, length)
    }
}

/// Reads a file from a place on.
struct ReadFrom {
    file: Arc<File>,
    at: u64,
}

impl Read for ReadFrom {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

fn append(
    writer: &mut SerializedFileWriter<BufWriter<File>>,
    input: &Chunks,
    metadata: &ParquetMetaData,
) -> Result<(), ParquetError> {
    for (index, group) in metadata.row_groups().iter().enumerate() {
        let column_indexes = metadata.column_index().and_then(|all| all.get(index));
        let offset_indexes = metadata.offset_index().and_then(|all| all.get(index));
        let mut out = writer.next_row_group()?;
        for (i, column) in group.columns().iter().enumerate() {
            let close = ColumnCloseResult {
                bytes_written: column.compressed_size().unsigned_abs(),
                rows_written: group.num_rows().unsigned_abs(),
                metadata: column.clone(),
                bloom_filter: None,
                column_index: column_indexes.and_then(|of| of.get(i)).cloned(),
                offset_index: offset_indexes.and_then(|of| of.get(i)).cloned(),
            };
            out.append_column(input, close)?;
        }
        out.close()?;
    }
    Ok(())
}

/// Reads `limit` rows, evenly over the rows of the files as [`gallery_rows`] chooses them, and nothing else: files without a chosen row are not opened, each thread has one open at a time, and
/// pages without a chosen row are skipped by the page index. `files` are paths with their numbers of rows.
///
/// # Errors
/// A file that cannot be read or is no Parquet file.
pub fn sample(files: &[(PathBuf, u64)], limit: usize) -> Result<Vec<RecordBatch>, FormatError> {
    let chosen = gallery_rows(files.iter().map(|(_, rows)| rows).sum(), limit);
    let (mut selections, mut first) = (Vec::new(), 0);
    for (path, rows) in files {
        let here = chosen.iter().filter_map(|row| row.checked_sub(first)).filter(|row| row < rows);
        let selection =
            RowSelection::from_consecutive_ranges(here.map(|row| row as usize..row as usize + 1), *rows as usize);
        first += rows;
        if selection.selects_any() {
            selections.push((path, selection));
        }
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(selections.len()).max(1);
    let read = |part: &[(&PathBuf, RowSelection)]| -> Result<Vec<RecordBatch>, FormatError> {
        let mut batches = Vec::new();
        for (path, selection) in part {
            read_selected(path, selection, &mut batches)?;
        }
        Ok(batches)
    };
    let mut batches = Vec::new();
    std::thread::scope(|scope| {
        let parts = selections.chunks(selections.len().div_ceil(threads).max(1));
        let reading: Vec<_> = parts.map(|part| scope.spawn(move || read(part))).collect();
        for read in reading {
            match read.join() {
                Ok(read) => batches.extend(read?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(batches)
    })
}

fn read_selected(path: &Path, selection: &RowSelection, batches: &mut Vec<RecordBatch>) -> Result<(), FormatError> {
    let location = path.display().to_string();
    let file = File::open(path).map_err(|e| failed(&location, e.into()))?;
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
    let reader = ParquetRecordBatchReaderBuilder::try_new_with_options(file, options)
        .and_then(|reader| reader.with_row_selection(selection.clone()).build())
        .map_err(|e| failed(&location, e))?;
    for batch in reader {
        batches.push(batch.map_err(|source| FormatError::Arrow { location: location.clone(), source })?);
    }
    Ok(())
}

fn failed(location: &str, error: ParquetError) -> FormatError {
    let location = location.to_owned();
    match error {
        ParquetError::External(cause) => {
            FormatError::Io { location, message: format!("writing Parquet failed: {cause}"), source: Some(cause) }
        }
        ParquetError::ArrowError(message) => {
            FormatError::Arrow { location, source: arrow::error::ArrowError::ParquetError(message) }
        }
        other => FormatError::Malformed { location, message: other.to_string() },
    }
}
