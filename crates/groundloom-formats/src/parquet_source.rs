//! The `parquet` source: what the footers say. Rows are read by the engine's own Parquet scan.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use groundloom_spec::Config;
use parquet::{
    arrow::parquet_to_arrow_schema,
    file::metadata::{ParquetMetaData, ParquetMetaDataReader},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    DiscoverOptions, Discovery, FormatError, Reader, Shard, ShardFile, Source,
    shard_rows::find_key,
    shards::{shard, whole_file},
    store::{Entry, Stores},
};

/// Parquet files.
///
/// All files must have the same columns. They are cut into shards between row groups; filters right behind the source skip row groups by their statistics. A row's id is
/// its file and row number, or its `row_id` where the files carry one (as every data set of Groundloom does).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ParquetSource {
    /// A file, a folder or a pattern (`data/train-*.parquet`).
    #[schemars(length(min = 1))]
    pub path: String,
    /// Column, or field such as `meta.id`, that identifies a row. Without it a row is identified by its file and number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl Config for ParquetSource {
    const NAME: &'static str = "parquet";
    const SUMMARY: &'static str = "Parquet files";
    const EXAMPLE: &'static str = "pairs: { type: parquet, path: \"data/train-*.parquet\" }";
}

#[async_trait]
impl Source for ParquetSource {
    async fn discover(&self, stores: &Stores, options: &DiscoverOptions) -> Result<Discovery, FormatError> {
        let entries = stores.list(&self.path, &["parquet"]).await?;
        let footers =
            stream::iter(entries.clone()).map(|entry| async move { footer(stores, &entry).await }).buffered(16);
        let footers: Vec<(SchemaRef, ParquetMetaData)> = footers.try_collect().await?;
        let Some((schema, _)) = footers.first() else {
            return Err(FormatError::Input { key: "path", message: format!("nothing matches `{}`", self.path) });
        };
        for (entry, (other, _)) in entries.iter().zip(&footers).skip(1) {
            if let Some(difference) = difference(schema, other) {
                let message = format!(
                    "{difference}, unlike in {}; files of one source have the same columns",
                    entries[0].location
                );
                return Err(FormatError::Malformed { location: entry.location.to_string(), message });
            }
        }
        if let Some(key) = &self.key {
            find_key(schema, key)?;
        }
        let mut shards = Vec::new();
        for (entry, (_, metadata)) in entries.iter().zip(&footers) {
            shards.extend(cut(entry, metadata, options.shard_bytes)?);
        }
        Ok(Discovery { schema: Arc::clone(schema), shards, reader: Reader::Parquet })
    }

    fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }
}

/// How the second schema differs from the first in names and types, in words.
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
    let more = found.fields().iter().find(|f| expected.index_of(f.name()).is_err());
    more.map(|f| format!("there is a column `{}`", f.name()))
}

/// Bytes of a file's end that are read at first: most footers are in them.
const TAIL: u64 = 64 << 10;

async fn footer(stores: &Stores, entry: &Entry) -> Result<(SchemaRef, ParquetMetaData), FormatError> {
    let malformed = |what: String| FormatError::Malformed {
        location: entry.location.to_string(),
        message: format!("expected a Parquet file, but {what}"),
    };
    // Magic at both ends, and the footer's length.
    if entry.size < 12 {
        return Err(malformed(format!("it has only {} bytes", entry.size)));
    }
    let tail = stores.read(&entry.location, Some(entry.size.saturating_sub(TAIL)..entry.size)).await?;
    let end = tail.get(tail.len().saturating_sub(8)..).unwrap_or_default();
    let (Ok(length), b"PAR1") = (<[u8; 4]>::try_from(&end[..4]), &end[4..]) else {
        let hint =
            if &end[4..] == b"PARE" { "its footer is encrypted" } else { "it does not end as one; is it cut off?" };
        return Err(malformed(hint.to_owned()));
    };
    let length = u64::from(u32::from_le_bytes(length));
    if length + 12 > entry.size {
        return Err(malformed(format!("its footer of {length} bytes is longer than the file")));
    }
    let bytes = match tail.len() as u64 >= length + 8 {
        true => tail.slice(tail.len() - 8 - length as usize..tail.len() - 8),
        false => stores.read(&entry.location, Some(entry.size - 8 - length..entry.size - 8)).await?,
    };
    // The decoders of footers panic on some damaged ones.
    let decoded =
        std::panic::catch_unwind(|| decode_footer(&bytes)).unwrap_or_else(|_| Err("it is damaged".to_owned()));
    let (schema, metadata) = decoded.map_err(|e| malformed(format!("its footer is not understood: {e}")))?;
    // Metadata that other writers put there (pandas, Hugging Face) describes their columns, not ours.
    Ok((Arc::new(Schema::new(schema.fields().clone())), metadata))
}

fn decode_footer(bytes: &[u8]) -> Result<(Schema, ParquetMetaData), String> {
    let metadata = ParquetMetaDataReader::decode_metadata(bytes).map_err(|e| e.to_string())?;
    let file = metadata.file_metadata();
    let schema = parquet_to_arrow_schema(file.schema_descr(), file.key_value_metadata()).map_err(|e| e.to_string())?;
    Ok((schema, metadata))
}

/// A shard of Parquet ends at so many rows, however well they are compressed: a thread has something to do until the end, and a kill costs little.
const SHARD_ROWS: u64 = 1 << 20;

/// Shards of whole row groups of about `bytes` (uncompressed) or [`SHARD_ROWS`] each, as the byte ranges in which their first pages begin: DataFusion's own test of which range a row group belongs to.
fn cut(entry: &Entry, metadata: &ParquetMetaData, bytes: u64) -> Result<Vec<Shard>, FormatError> {
    let groups = metadata.row_groups();
    let mut starts = Vec::with_capacity(groups.len() + 1);
    for (i, group) in groups.iter().enumerate() {
        let first = group.columns().first().map(|c| c.dictionary_page_offset().unwrap_or_else(|| c.data_page_offset()));
        match first.and_then(|start| u64::try_from(start).ok()) {
            Some(start) if start < entry.size && starts.last().is_none_or(|before| *before < start) => {
                starts.push(start)
            }
            _ => {
                let message = format!(
                    "row group {i} does not begin behind the one before it, inside the file; the footer is damaged"
                );
                return Err(FormatError::Malformed { location: entry.location.to_string(), message });
            }
        }
    }
    starts.push(entry.size);
    let (mut shards, mut first, mut rows, mut size) = (Vec::new(), 0, 0u64, 0u64);
    for (i, group) in groups.iter().enumerate() {
        rows += u64::try_from(group.num_rows()).unwrap_or(0);
        size += u64::try_from(group.total_byte_size()).unwrap_or(0);
        // Another group like this one would be one too many.
        let full = size >= bytes || rows + u64::try_from(group.num_rows()).unwrap_or(0) > SHARD_ROWS;
        if full || i + 1 == groups.len() {
            let file = ShardFile { range: Some(starts[first]..starts[i + 1]), ..whole_file(entry.clone()) };
            shards.push(shard(vec![file], Some(rows)));
            (first, rows, size) = (i + 1, 0, 0);
        }
    }
    Ok(shards)
}
