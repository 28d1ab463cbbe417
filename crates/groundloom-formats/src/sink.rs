//! What a sink is: a config struct that states what it writes, writes the part file of one task, and joins parts into files.

use std::{
    fmt::Debug,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    datatypes::{Schema, SchemaRef},
    record_batch::RecordBatch,
};
use groundloom_spec::{Component, ComponentType, Config, Diagnostics, Role};

use crate::{
    FormatError, grit_tsv::GritTsvSink, jsonl_sink::JsonlSink, llava::LlavaSink, parquet_sink::ParquetSink,
    webdataset_sink::WebdatasetSink,
};

/// A sink. The implementor is the sink's config struct.
///
/// A sink never touches its target: tasks write part files in a work folder, the engine's finaliser joins them into files of a chosen size and publishes them all at once.
/// Parts and files hold no clock, host name or speed, so that the same rows give the same bytes.
pub trait Sink: Debug + Send + Sync {
    /// Folder (or URL) of the data set.
    fn path(&self) -> &str;

    /// The schema of what is written, from the columns that arrive (`row_id` first, no `_error`).
    ///
    /// # Errors
    /// A [`FormatError::Column`] for a column that the form needs and that is missing or of the wrong type.
    fn schema(&self, input: &Schema) -> Result<SchemaRef, FormatError>;

    /// Opens a part file for rows of the schema `input`; `metadata` are key-value pairs for formats that can carry them.
    ///
    /// # Errors
    /// As [`Sink::schema`], or when the file cannot be written.
    fn writer(
        &self,
        input: SchemaRef,
        file: File,
        metadata: &[(String, String)],
    ) -> Result<Box<dyn PartWriter>, FormatError>;

    /// Joins part files, in order, into one file that a reader of the format cannot tell from one written at once.
    ///
    /// # Errors
    /// When a part is damaged or the disk is full.
    fn join(&self, parts: &[PathBuf], output: &Path) -> Result<(), FormatError>;

    /// Whether a part is a complete file by itself, so that a single part is linked instead of joined. A tar part, which lacks the end blocks, is not.
    fn is_whole_file(&self) -> bool {
        true
    }

    /// File name ending without the dot: `parquet`, `jsonl.gz`, `tar`, `tsv`.
    fn extension(&self) -> &'static str;

    /// Folder inside the data set for the files: `data` for what `datasets.load_dataset` finds, or empty.
    fn folder(&self) -> &'static str {
        "data"
    }

    /// Aim for files of this many bytes: smaller parts are joined until then.
    fn file_bytes(&self) -> u64 {
        256 << 20
    }

    /// Makes what is published out of the joined files (absolute paths, in order), in `folder`, and removes them. `None`, the default, where the files are what is published.
    fn complete(&self, _folder: &Path, _files: &[PathBuf]) -> Option<Result<Vec<Published>, FormatError>> {
        None
    }
}

/// A file that [`Sink::complete`] made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Its name in the folder.
    pub name: String,
    /// Its rows; 0 for what holds none.
    pub rows: u64,
}

/// Writes the part file of one task.
pub trait PartWriter: Send {
    /// Appends rows.
    ///
    /// # Errors
    /// When the disk is full or a value cannot be expressed in the format.
    fn write(&mut self, rows: &RecordBatch) -> Result<(), FormatError>;

    /// Completes the part and gives the file back for syncing.
    ///
    /// # Errors
    /// As [`PartWriter::write`].
    fn finish(self: Box<Self>) -> Result<File, FormatError>;
}

/// Makes a sink from its component, with its settings (all defaults filled in), which go into the fingerprint.
pub type DecodeSink = fn(&Component) -> Result<(Arc<dyn Sink>, serde_json::Value), Diagnostics>;

/// A type of sink that a pipeline file may name.
#[derive(Clone, Copy, Debug)]
pub struct SinkType {
    /// Name, documentation and JSON Schema.
    pub component: ComponentType,
    /// Makes the sink from its component.
    pub decode: DecodeSink,
}

impl SinkType {
    /// The type whose config struct is `T`.
    pub fn of<T: Config + Sink + 'static>() -> Self {
        Self { component: ComponentType::of::<T>(Role::Sink), decode: decode::<T> }
    }
}

fn decode<T: Config + Sink + 'static>(
    component: &Component,
) -> Result<(Arc<dyn Sink>, serde_json::Value), Diagnostics> {
    let sink: T = component.decode()?;
    let config = serde_json::to_value(&sink).map_err(|e| {
        let mut all = Diagnostics::new();
        all.push(component.diagnostic("", "invalid_value", format!("the settings cannot be stored: {e}")));
        all
    })?;
    Ok((Arc::new(sink), config))
}

/// Every sink, in the order of the reference.
pub fn sink_types() -> Vec<SinkType> {
    vec![
        SinkType::of::<ParquetSink>(),
        SinkType::of::<JsonlSink>(),
        SinkType::of::<WebdatasetSink>(),
        SinkType::of::<GritTsvSink>(),
        SinkType::of::<LlavaSink>(),
    ]
}
