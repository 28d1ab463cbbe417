//! The `parquet` source: what its footers say. Rows are read by the engine's own Parquet scan.

use std::{fs::File, sync::Arc};

use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use groundloom_spec::Config;
use parquet::{
    arrow::parquet_to_arrow_schema,
    file::reader::{FileReader, SerializedFileReader},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    DiscoverOptions, Discovery, FormatError, Reader, Shard, ShardFile, Source,
    jsonl::unreadable,
    shards::shard,
    store::{Entry, Stores},
};

/// Local Parquet files.
///
/// All files must have the same columns. They are cut into shards between row groups, filters right behind the source skip row groups by their statistics,
/// and a row's id is its file and row number, or its `row_id` where the files carry one (as every data set of Groundloom does).
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ParquetSource {
    /// A file, a folder or a pattern (`data/train-*.parquet`).
    pub path: String,
    /// The column that identifies a row. Default: its file and place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl Config for ParquetSource {
    const NAME: &'static str = "parquet";
    const SUMMARY: &'static str = "local Parquet files";
    const EXAMPLE: &'static str = "pairs: { type: parquet, path: \"data/train-*.parquet\" }";
}

#[async_trait]
impl Source for ParquetSource {
    async fn discover(&self, stores: &Stores, options: &DiscoverOptions) -> Result<Discovery, FormatError> {
        if self.path.contains("://") && !self.path.starts_with("file://") {
            return Err(FormatError::Input {
                key: "path",
                message: format!(
                    "Parquet is read from local disks only so far, and `{}` is a URL; download it first",
                    self.path
                ),
            });
        }
        let entries = stores.list(&self.path, &["parquet"]).await?;
        let bytes = options.shard_bytes;
        tokio::task::spawn_blocking(move || look_at(&entries, bytes))
            .await
            .map_err(|e| FormatError::Input { key: "path", message: format!("looking at the files failed: {e}") })?
    }

    fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }
}

fn look_at(entries: &[Entry], bytes: u64) -> Result<Discovery, FormatError> {
    let mut first: Option<(SchemaRef, &Entry)> = None;
    let mut shards = Vec::new();
    for entry in entries {
        let (schema, cut) = footer(entry, bytes)?;
        if let Some((expected, one)) = &first {
            if let Some(difference) = difference(expected, &schema) {
                return Err(FormatError::Malformed {
                    location: entry.location.clone(),
                    message: format!(
                        "{difference}, unlike in {}; files of one source have the same columns",
                        one.location
                    ),
                });
            }
        } else {
            first = Some((schema, entry));
        }
        shards.extend(cut);
    }
    let Some((schema, _)) = first else {
        return Err(FormatError::Input { key: "path", message: "no Parquet file".to_owned() });
    };
    Ok(Discovery { schema, shards, reader: Reader::Parquet })
}

fn difference(expected: &Schema, found: &Schema) -> Option<String> {
    for field in expected.fields() {
        match found.field_with_name(field.name()) {
            Err(_) => return Some(format!("the column `{}` is missing", field.name())),
            Ok(other) if other.data_type() != field.data_type() => {
                return Some(format!(
                    "the column `{}` has the type {}, not {}",
                    field.name(),
                    other.data_type(),
                    field.data_type()
                ));
            }
            Ok(_) => {}
        }
    }
    found
        .fields()
        .iter()
        .find(|f| expected.index_of(f.name()).is_err())
        .map(|f| format!("there is a column `{}`", f.name()))
}

/// The columns of a file and its shards: runs of row groups of about `bytes`, as the byte range in which their first pages begin.
fn footer(entry: &Entry, bytes: u64) -> Result<(SchemaRef, Vec<Shard>), FormatError> {
    let malformed = |e: &dyn std::fmt::Display| FormatError::Malformed {
        location: entry.location.clone(),
        message: format!("no readable Parquet file: {e}"),
    };
    let file = File::open(&entry.location).map_err(|e| unreadable(&entry.location, e))?;
    let reader = SerializedFileReader::new(file).map_err(|e| malformed(&e))?;
    let metadata = reader.metadata();
    let schema =
        parquet_to_arrow_schema(metadata.file_metadata().schema_descr(), metadata.file_metadata().key_value_metadata())
            .map_err(|e| malformed(&e))?;
    let groups = metadata.row_groups();
    let start = |i: usize| {
        groups.get(i).and_then(|g| g.columns().first()).map_or(entry.size, |c| {
            // DataFusion's own test of which range a row group belongs to.
            u64::try_from(c.dictionary_page_offset().unwrap_or_else(|| c.data_page_offset())).unwrap_or(0)
        })
    };
    let (mut shards, mut first, mut rows, mut size) = (Vec::new(), 0, 0u64, 0u64);
    for (i, group) in groups.iter().enumerate() {
        rows += u64::try_from(group.num_rows()).unwrap_or(0);
        size += u64::try_from(group.compressed_size()).unwrap_or(0);
        if size >= bytes || i + 1 == groups.len() {
            let file = ShardFile {
                location: entry.location.clone(),
                path: entry.path.clone(),
                size: entry.size,
                range: Some(start(first)..if i + 1 == groups.len() { entry.size } else { start(i + 1) }),
                version: entry.version.clone(),
                metadata: None,
            };
            shards.push(shard(vec![file], Some(rows)));
            (first, rows, size) = (i + 1, 0, 0);
        }
    }
    // Metadata that other writers put there (pandas, Hugging Face) describes their columns, not ours.
    let schema = Arc::new(Schema::new(schema.fields().clone()));
    Ok((schema, shards))
}
