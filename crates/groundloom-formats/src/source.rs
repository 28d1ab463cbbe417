//! What a source is: a config struct that lists its inputs, cuts them into shards and reads a shard.

use std::{fmt::Debug, ops::Range, sync::Arc};

use arrow::{datatypes::SchemaRef, record_batch::RecordBatch};
use async_trait::async_trait;
use futures::stream::BoxStream;
use groundloom_spec::{Component, ComponentType, Config, Diagnostics, Role};

use crate::{
    FormatError, coco::Coco, csv_source::CsvSource, image_folder::ImageFolder, jsonl::JsonlSource,
    parquet_source::ParquetSource, shard_files::ShardFiles, store::Stores, webdataset::WebDatasetSource,
};

/// A source of rows. The implementor is the source's config struct.
#[async_trait]
pub trait Source: Debug + Send + Sync {
    /// Lists the inputs in a fixed order, finds the schema and cuts the inputs into shards. Runs once per run, before any work.
    ///
    /// # Errors
    /// A [`FormatError`] that names the file: nothing matched, unreadable folder, columns that disagree between files, …
    async fn discover(&self, stores: &Stores, options: &DiscoverOptions) -> Result<Discovery, FormatError>;

    /// The column (or dotted field) whose value identifies a row, where the user named one; else ids come from file and place.
    fn key(&self) -> Option<&str> {
        None
    }
}

/// Sizes for cutting shards.
#[derive(Debug, Clone, Copy)]
pub struct DiscoverOptions {
    /// A shard is closed at about this many input bytes.
    pub shard_bytes: u64,
    /// … or at this many files.
    pub shard_files: usize,
}

impl Default for DiscoverOptions {
    fn default() -> Self {
        Self { shard_bytes: 64 << 20, shard_files: 1024 }
    }
}

/// What a source holds.
#[derive(Debug, Clone)]
pub struct Discovery {
    /// The user's columns: neither `row_id` nor `_error`.
    pub schema: SchemaRef,
    /// In a fixed order that is the order of the output; each a pure function of the inputs it names, so that a new file changes few of them.
    pub shards: Vec<Shard>,
    /// How a shard is read.
    pub reader: Reader,
}

/// How the engine reads the shards of a source.
#[derive(Debug, Clone)]
pub enum Reader {
    /// By DataFusion's own Parquet scan (filters are pushed into it). Shards are byte ranges that hold whole row groups.
    Parquet,
    /// By the format's own reader.
    Rows(Arc<dyn ShardReader>),
}

/// A unit of work, commit and resume: a file, a byte range of one, or a run of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Short hexadecimal hash of the files' paths and ranges (not of sizes or versions): names the shard in manifests.
    pub id: String,
    /// In reading order.
    pub files: ShardFiles,
    /// Rows, where known without reading (Parquet footers).
    pub rows: Option<u64>,
    /// Input bytes, for progress.
    pub bytes: u64,
}

/// One file, or a part of one, in a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardFile {
    /// Absolute local path or URL.
    pub location: String,
    /// Path relative to the source's root, `/`-separated: what row ids are made from.
    pub path: String,
    /// Size of the whole file in bytes.
    pub size: u64,
    /// The part of it; `None` = all.
    pub range: Option<Range<u64>>,
    /// Changes with the content: an object store's ETag, or the local modification time in nanoseconds.
    pub version: String,
    /// Where this file's own metadata row stands in the source's metadata file, if it has one.
    pub metadata: Option<Range<u64>>,
}

/// Reads shards of one source into batches.
pub trait ShardReader: Debug + Send + Sync {
    /// Streams the rows of a shard in order: `row_id: utf8`, then the columns of [`Discovery::schema`] at the indices `columns` (in that order), then
    /// [`_error`](groundloom_data::columns::ERROR). A row that cannot be read (a bad line, an unreadable member) is a row with its error and nulls, never a lost one.
    /// Batches stay under about `batch_bytes` and `batch_rows`.
    ///
    /// # Errors
    /// A [`FormatError`] in the stream ends the run: the file vanished, the disk failed.
    fn read(
        &self,
        shard: &Shard,
        columns: &[usize],
        limits: BatchLimits,
    ) -> BoxStream<'static, Result<RecordBatch, FormatError>>;
}

/// Bounds of a batch: rows and bytes, since one image row can be 5 MB.
#[derive(Debug, Clone, Copy)]
pub struct BatchLimits {
    /// Most rows in a batch.
    pub rows: usize,
    /// A batch is closed at about this many bytes.
    pub bytes: usize,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self { rows: 8192, bytes: 8 << 20 }
    }
}

/// Makes a source from its component, with its settings in canonical form for the fingerprint.
pub type DecodeSource = fn(&Component) -> Result<(Arc<dyn Source>, serde_json::Value), Diagnostics>;

/// A type of source that a pipeline file may name.
#[derive(Clone, Copy, Debug)]
pub struct SourceType {
    /// Name, documentation and JSON Schema.
    pub component: ComponentType,
    /// Makes the source from its component.
    pub decode: DecodeSource,
}

impl SourceType {
    /// The type whose config struct is `T`.
    pub fn of<T: Config + Source + 'static>() -> Self {
        Self { component: ComponentType::of::<T>(Role::Source), decode: decode::<T> }
    }
}

fn decode<T: Config + Source + 'static>(
    component: &Component,
) -> Result<(Arc<dyn Source>, serde_json::Value), Diagnostics> {
    let source: T = component.decode()?;
    let config = serde_json::to_value(&source)
        .map_err(|e| component.diagnostic("", "invalid_value", format!("the settings cannot be stored: {e}")))?;
    Ok((Arc::new(source), config))
}

/// Every source, in the order of the reference.
pub fn source_types() -> Vec<SourceType> {
    vec![
        SourceType::of::<ImageFolder>(),
        SourceType::of::<WebDatasetSource>(),
        SourceType::of::<ParquetSource>(),
        SourceType::of::<JsonlSource>(),
        SourceType::of::<CsvSource>(),
        SourceType::of::<Coco>(),
    ]
}
