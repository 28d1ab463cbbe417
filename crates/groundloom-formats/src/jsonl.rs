//! The `jsonl` source: one JSON object a line.

use std::{collections::BTreeMap, io::Read, ops::Range, sync::Arc};

use arrow::{
    array::ArrayRef,
    datatypes::{Schema, SchemaRef},
    record_batch::RecordBatch,
};
use async_trait::async_trait;
use futures::stream::BoxStream;
use groundloom_data::{Place, RowId, file_hash};
use groundloom_spec::Config;
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    FormatError, column_types,
    compression::{Compression, Decompressed},
    json_decoder::{JsonDecoder, MOST_OBJECTS, excerpt},
    json_types::JsonType,
    lines::{Line, Lines},
    shard_rows::{BatchShape, Batches, End, Fault, Rows, find_key, key_values, on_thread, shard_schema},
    shards,
    source::{BatchLimits, DiscoverOptions, Discovery, Reader, Shard, ShardFile, ShardReader, Source},
    store::{Entry, Stores, blocking, io_error},
};

/// Files of JSON objects, one a line.
///
/// Plain files are read in byte ranges at once, compressed ones whole. Blank lines, `\r\n` and a byte order mark are fine. A line that is not one object, or whose value
/// does not fit its column, goes to quarantine with its text and offset. Fields that are not among the columns are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JsonlSource {
    /// Files: a path, a pattern (`data/*.jsonl`, `part-{00000..00099}.jsonl.gz`), a folder, or a URL (s3, gs, az, https). `.gz` and `.zst` are unpacked.
    #[schemars(length(min = 1))]
    pub path: String,
    /// Columns and their types (`text`, `int`, `float`, `bool`, `list<…>`, `struct<name: …>`). Without it they are found in the first megabyte of each file (of 64 files
    /// spread evenly, if there are more), and files that disagree are an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<BTreeMap<String, String>>")]
    pub schema: Option<IndexMap<String, String>>,
    /// Column, or field such as `meta.id`, that identifies a row. Without it a row is identified by its file and place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// A longer line goes to quarantine.
    #[serde(default = "default_max_line_bytes")]
    #[schemars(range(min = 1))]
    pub max_line_bytes: u64,
}

fn default_max_line_bytes() -> u64 {
    64 << 20
}

impl Config for JsonlSource {
    const NAME: &'static str = "jsonl";
    const SUMMARY: &'static str = "JSON objects, one a line, plain or compressed";
    const EXAMPLE: &'static str = "texts: { type: jsonl, path: \"data/*.jsonl.gz\" }";
}

/// Ends of file names that a folder is searched for.
const EXTENSIONS: [&str; 8] =
    ["jsonl", "jsonl.gz", "jsonl.zst", "jsonl.zstd", "ndjson", "ndjson.gz", "ndjson.zst", "ndjson.zstd"];

/// Bytes of a file that column types are found in.
const SAMPLE_BYTES: u64 = 1 << 20;
/// Files that column types are found in.
const SAMPLE_FILES: usize = 64;

#[async_trait]
impl Source for JsonlSource {
    async fn discover(&self, stores: &Stores, options: &DiscoverOptions) -> Result<Discovery, FormatError> {
        let entries = stores.list(&self.path, &EXTENSIONS).await?;
        let schema = match &self.schema {
            Some(types) if types.is_empty() => {
                return Err(FormatError::Input { key: "schema", message: "expected at least one column".to_owned() });
            }
            Some(types) => Arc::new(Schema::new(column_types::parse_all("schema", types)?)),
            None => {
                let (stores, entries, most) = (stores.clone(), entries.clone(), self.max_line_bytes);
                blocking(move || infer(&stores, &entries, most)).await?
            }
        };
        let key = self.key.as_deref().map(|k| find_key(&schema, k)).transpose()?;
        let reader = JsonlReader {
            stores: stores.clone(),
            schema: Arc::clone(&schema),
            key,
            most: usize::try_from(self.max_line_bytes).unwrap_or(usize::MAX),
        };
        Ok(Discovery { schema, shards: cut(&entries, options), reader: Reader::Rows(Arc::new(reader)) })
    }

    fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }
}

/// Large plain files in byte ranges, the others in runs of files.
pub(crate) fn cut(entries: &[Entry], options: &DiscoverOptions) -> Vec<Shard> {
    let (mut shards, mut run) = (Vec::new(), Vec::new());
    for entry in entries.iter().filter(|e| e.size > 0) {
        let file = shards::whole_file(entry.clone());
        if entry.size <= options.shard_bytes || Compression::of_path(entry.path()) != Compression::None {
            run.push(file);
            continue;
        }
        shards.extend(shards::runs_of_files(std::mem::take(&mut run), options));
        let ranges = shards::ranges(entry.size, options.shard_bytes).into_iter();
        shards.extend(ranges.map(|range| shards::shard(vec![ShardFile { range: Some(range), ..file.clone() }], None)));
    }
    shards.extend(shards::runs_of_files(run, options));
    shards
}

fn infer(stores: &Stores, entries: &[Entry], most: u64) -> Result<SchemaRef, FormatError> {
    let mut columns = JsonType::Struct(IndexMap::new());
    let files = entries.len().min(SAMPLE_FILES);
    for i in 0..files {
        let entry = &entries[i * entries.len() / files];
        for (number, text) in sample(stores, entry, most)? {
            // Bad lines are for the quarantine, not for the types.
            let Ok(value) = serde_json::from_slice::<serde_json::Value>(&text) else { continue };
            if !value.is_object() {
                continue;
            }
            let before = std::mem::replace(&mut columns, JsonType::Null);
            let merged = JsonType::of(&value).and_then(|row| before.merge(row, ""));
            columns = merged.map_err(|conflict| FormatError::Malformed {
                location: entry.location.to_string(),
                message: format!("line {number}: {conflict}; state the columns and their types in `schema:`"),
            })?;
        }
    }
    let JsonType::Struct(types) = columns else { unreachable!("rows are objects") };
    if types.is_empty() {
        let location = entries.first().map(|e| e.location.to_string()).unwrap_or_default();
        return Err(FormatError::Malformed {
            location,
            message: "expected lines of JSON objects with fields, found none in the first megabyte".to_owned(),
        });
    }
    Ok(Arc::new(Schema::new(JsonType::fields(&types))))
}

/// The first lines of a file and their numbers, from 1.
fn sample(stores: &Stores, entry: &Entry, most: u64) -> Result<Vec<(usize, Vec<u8>)>, FormatError> {
    let compression = Compression::of_path(entry.path());
    let source = stores.reader(&entry.location, None)?;
    let mut reader = Decompressed::new(source, compression).map_err(|e| io_error(&entry.location, e))?;
    let mut bytes = Vec::new();
    let mut wanted = SAMPLE_BYTES;
    let cut = loop {
        match reader.by_ref().take(wanted - bytes.len() as u64).read_to_end(&mut bytes) {
            Err(e) if reader.source_failed() => return Err(io_error(&entry.location, e)),
            // A damaged file says no more; its damage is a matter for the quarantine.
            Err(_) => break false,
            Ok(_) if (bytes.len() as u64) < wanted => break false,
            // A first line that is longer than the sample is read to its end.
            Ok(_) if wanted < most && memchr::memchr(b'\n', &bytes).is_none() => wanted = most.min(wanted * 2),
            Ok(_) => break true,
        }
    };
    let mut text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    if cut {
        // The last line may go on.
        text = memchr::memrchr(b'\n', text).map_or(text, |at| &text[..at]);
    }
    let lines = text.split(|b| *b == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty());
    Ok(lines.map(|(i, line)| (i + 1, line.to_vec())).collect())
}

#[derive(Debug)]
struct JsonlReader {
    stores: Stores,
    schema: SchemaRef,
    key: Option<(usize, Vec<String>)>,
    most: usize,
}

/// The columns that are decoded: those asked for, then the key's if it is not among them.
#[derive(Debug, Clone)]
pub(crate) struct Projection {
    pub(crate) decoded: Vec<usize>,
    pub(crate) asked: usize,
    key: Option<(usize, Vec<String>)>,
}

impl Projection {
    pub(crate) fn new(columns: &[usize], key: Option<&(usize, Vec<String>)>) -> Self {
        let mut decoded = columns.to_vec();
        let key = key.map(|(column, path)| {
            let place = decoded.iter().position(|c| c == column).unwrap_or_else(|| {
                decoded.push(*column);
                decoded.len() - 1
            });
            (place, path.clone())
        });
        // Rows are counted and checked even where no column is asked for.
        if decoded.is_empty() {
            decoded.push(0);
        }
        Self { decoded, asked: columns.len(), key }
    }

    pub(crate) fn schema(&self, schema: &Schema) -> SchemaRef {
        Arc::new(Schema::new(self.decoded.iter().map(|c| Arc::clone(&schema.fields()[*c])).collect::<Vec<_>>()))
    }

    /// The batch of `rows`, whose decoded columns hold one value per row.
    pub(crate) fn finish(
        &self,
        rows: Rows,
        shape: &BatchShape,
        mut columns: Vec<ArrayRef>,
    ) -> Result<RecordBatch, FormatError> {
        let key = self.key.as_ref().and_then(|(column, path)| key_values(&columns[*column], path));
        columns.truncate(self.asked);
        rows.finish(shape, columns, key.as_ref())
    }
}

impl ShardReader for JsonlReader {
    fn read(
        &self,
        shard: &Shard,
        columns: &[usize],
        limits: BatchLimits,
    ) -> BoxStream<'static, Result<RecordBatch, FormatError>> {
        let projection = Projection::new(columns, self.key.as_ref());
        let shape = BatchShape { schema: shard_schema(&self.schema, columns), source: JsonlSource::NAME };
        let (stores, schema, most) = (self.stores.clone(), projection.schema(&self.schema), self.most);
        let files = shard.files.clone();
        on_thread(move |batches| {
            let mut decoder = JsonDecoder::new(schema);
            files
                .iter()
                .try_for_each(|f| read_file(&stores, &f, most, &mut decoder, &projection, &shape, limits, batches))
        })
    }
}

/// Bytes of lines that are decoded at once: enough to be worth the call, few enough to stay in the cache.
const BLOCK_BYTES: usize = 2 << 20;

#[allow(clippy::too_many_arguments)]
fn read_file(
    stores: &Stores,
    file: &ShardFile,
    most: usize,
    decoder: &mut JsonDecoder,
    projection: &Projection,
    shape: &BatchShape,
    limits: BatchLimits,
    batches: &Batches,
) -> Result<(), End> {
    let hash = file_hash(&file.path);
    let compression = Compression::of_path(&file.path);
    let range: Range<u64> = match (&file.range, compression) {
        (Some(range), _) => range.clone(),
        (None, Compression::None) => 0..file.size,
        (None, _) => 0..u64::MAX,
    };
    // From the byte before the range, which tells whether a line begins with it, to the end of its last line.
    let part = (range.start > 0).then(|| range.start - 1..file.size);
    let source = stores.reader(&file.location, part)?;
    let reader = Decompressed::new(source, compression).map_err(|e| io_error(&file.location, e))?;
    let mut lines = Lines::new(reader, &file.location, range, most)?;
    let (row_limit, byte_limit) = (limits.rows.clamp(1, MOST_OBJECTS), limits.bytes.clamp(1, BLOCK_BYTES));
    let mut block: Vec<Line> = Vec::new();
    loop {
        lines.next_block(row_limit, byte_limit, &mut block)?;
        if block.is_empty() {
            return Ok(());
        }
        let whole: Vec<&[u8]> =
            block.iter().filter(|l| l.fault.is_none()).map(|l| &lines.text()[l.place.clone()]).collect();
        let (columns, faults) = decoder.decode(&whole);
        let mut decoded = whole.into_iter().zip(faults);
        let mut rows = Rows::new();
        for line in &block {
            let fault = match &line.fault {
                Some(fault) => Some(fault.clone()),
                None => decoded.next().and_then(|(text, fault)| {
                    fault.map(|f| Fault { message: format!("{}; the line is: {}", f.message, excerpt(text)), ..f })
                }),
            };
            let fault =
                fault.map(|f| Fault { message: format!("{} at byte {}: {}", file.path, line.offset, f.message), ..f });
            rows.push_with(RowId::in_file(hash, Place::Offset(line.offset)), fault);
        }
        let columns =
            rows.spread(&columns).map_err(|source| FormatError::Arrow { location: file.location.clone(), source })?;
        batches.send(projection.finish(rows, shape, columns)?)?;
    }
}
