#![doc = include_str!("../README.md")]

pub mod card;
pub mod coco;
mod column_types;
pub mod compression;
pub mod csv_source;
mod delta_texts;
mod folder_metadata;
mod funnel_steps;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod globs;
pub mod grit;
pub mod grit_tsv;
pub mod hugging_face;
pub mod image_folder;
mod json_decoder;
pub mod json_rows;
mod json_types;
pub mod jsonl;
pub mod jsonl_sink;
mod lines;
pub mod llava;
mod output_columns;
pub mod parquet_sink;
pub mod parquet_source;
mod picture_files;
pub mod quarantine_codes;
pub mod report;
mod row_blocks;
mod row_groups;
pub mod shard_files;
mod shard_rows;
mod shards;
pub mod sink;
pub mod source;
pub mod store;
mod tar_reader;
mod tar_writer;
mod text_types;
pub mod webdataset;
pub mod webdataset_sink;

pub use shard_files::ShardFiles;
pub use shard_rows::shard_schema;
pub use sink::{PartWriter, Sink};
pub use source::{BatchLimits, DiscoverOptions, Discovery, Reader, Shard, ShardFile, ShardReader, Source};

/// What reading or writing a data set can fail with. A bad row is never one of these: it goes to quarantine.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// A file or folder cannot be listed, read or written.
    #[error("{location}: {message}")]
    Io {
        /// Path or URL, as the user would name it.
        location: String,
        /// What happened and what to do.
        message: String,
        /// The cause.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The content contradicts the format.
    #[error("{location}: {message}")]
    Malformed {
        /// Path or URL.
        location: String,
        /// What was expected and found, and where (byte, row, member).
        message: String,
    },
    /// Nothing matches, or something that must not be there is.
    #[error("{message}")]
    Input {
        /// The config key that is wrong, e.g. `path`.
        key: &'static str,
        /// What was expected and found, and what to do.
        message: String,
    },
    /// A column that a form needs is missing or has the wrong type.
    #[error("{message}")]
    Column {
        /// The column.
        column: String,
        /// What was expected and found.
        message: String,
    },
    /// Arrow or Parquet refused.
    #[error("{location}: {source}")]
    Arrow {
        /// Path or URL.
        location: String,
        /// The cause.
        source: arrow::error::ArrowError,
    },
}

impl FormatError {
    /// The same, about another key of the config, where it is about one.
    pub(crate) fn for_key(self, key: &'static str) -> Self {
        match self {
            Self::Input { message, .. } => Self::Input { key, message },
            other => other,
        }
    }
}
