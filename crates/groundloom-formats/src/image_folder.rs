//! The `image_folder` source: a folder of pictures and what is said about them.

use std::{
    collections::{HashMap, HashSet},
    io::BufRead,
    ops::Range,
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, RecordBatch, StringArray},
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef},
};
use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use groundloom_data::{MediaBuilder, Place, RowId, columns::media_type, file_hash};
use groundloom_spec::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    BatchLimits, DiscoverOptions, Discovery, FormatError, Reader, Shard, ShardFile, ShardReader, Source,
    json_lines::{Lines, infer},
    jsonl::unreadable,
    read_rows::{Fault, codes, rows},
    shards::runs_of_files,
    store::{Entry, Stores},
};

const IMAGE_EXTENSIONS: [&str; 8] = ["jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff"];

/// A folder of pictures, each a row, with captions from a metadata file or from a text file beside each picture.
///
/// Columns: `image` (the file as it is, and its path), `file_name` (path relative to the folder), and
/// with `metadata` the columns of that file, whose rows name their picture in `file_name`;
/// without it `caption`, the text of `NAME.txt` beside `NAME.jpg`, if there is any such file.
/// A picture without a metadata row, a metadata row without a picture and a second row for the same picture go to quarantine.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageFolder {
    /// The folder, or a URL of one.
    pub path: String,
    /// File in the folder with one row per picture: JSON lines (`.jsonl`) or CSV with a header (`.csv`, all columns text).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<String>,
    /// Look into folders inside the folder too.
    #[serde(default = "yes")]
    pub recursive: bool,
    /// Endings of picture files, without the dot.
    #[serde(default = "image_extensions")]
    pub extensions: Vec<String>,
}

fn yes() -> bool {
    true
}

fn image_extensions() -> Vec<String> {
    IMAGE_EXTENSIONS.iter().map(|e| (*e).to_owned()).collect()
}

impl Config for ImageFolder {
    const NAME: &'static str = "image_folder";
    const SUMMARY: &'static str = "a folder of pictures with captions";
    const EXAMPLE: &'static str = "pairs: { type: image_folder, path: examples/photos, metadata: captions.jsonl }";
}

#[async_trait]
impl Source for ImageFolder {
    async fn discover(&self, stores: &Stores, options: &DiscoverOptions) -> Result<Discovery, FormatError> {
        let entries = stores.list_folder(&self.path, self.recursive).await?;
        let pictures: Vec<&Entry> = entries.iter().filter(|e| self.is_picture(&e.path)).collect();
        if pictures.is_empty() {
            return Err(FormatError::Input {
                key: "path",
                message: format!(
                    "no picture in `{}`: expected files that end in {}",
                    self.path,
                    self.extensions.join(", ")
                ),
            });
        }
        let described = match &self.metadata {
            Some(name) => Described::ByFile(self.metadata(stores, name, &entries).await?),
            None => Described::BySidecar(sidecars(&entries)),
        };
        let files = described.files(&pictures, &self.path);
        let mut fields: Vec<FieldRef> = vec![
            Arc::new(Field::new("image", media_type(), true)),
            Arc::new(Field::new("file_name", DataType::Utf8, true)),
        ];
        let metadata_schema = described.schema();
        for field in metadata_schema.fields() {
            if fields.iter().any(|f| f.name() == field.name()) {
                return Err(FormatError::Input {
                    key: "metadata",
                    message: format!(
                        "the metadata has a column `{}`, which is the picture's own; rename it",
                        field.name()
                    ),
                });
            }
            fields.push(Arc::clone(field));
        }
        let schema = Arc::new(Schema::new(fields));
        let reader = FolderReader {
            stores: stores.clone(),
            schema: Arc::clone(&schema),
            metadata_schema,
            described: Arc::new(described),
        };
        Ok(Discovery { schema, shards: runs_of_files(files, options), reader: Reader::Rows(Arc::new(reader)) })
    }
}

impl ImageFolder {
    fn is_picture(&self, path: &str) -> bool {
        path.rsplit_once('.').is_some_and(|(_, ending)| self.extensions.iter().any(|e| e.eq_ignore_ascii_case(ending)))
    }

    async fn metadata(&self, stores: &Stores, name: &str, entries: &[Entry]) -> Result<Metadata, FormatError> {
        let Some(entry) = entries.iter().find(|e| e.path == name).cloned() else {
            return Err(FormatError::Input {
                key: "metadata",
                message: format!(
                    "there is no `{name}` in `{}`; leave `metadata` out to take captions from text files beside the pictures",
                    self.path
                ),
            });
        };
        let stores = stores.clone();
        tokio::task::spawn_blocking(move || Metadata::read(&stores, &entry))
            .await
            .map_err(|e| FormatError::Input { key: "metadata", message: format!("reading it failed: {e}") })?
    }
}

/// Where the words about a picture come from.
#[derive(Debug)]
enum Described {
    ByFile(Metadata),
    /// Text files by the picture's path without its ending; empty where there are none.
    BySidecar(HashMap<String, Entry>),
}

fn stem(path: &str) -> &str {
    path.rsplit_once('.').map_or(path, |(stem, _)| stem)
}

fn sidecars(entries: &[Entry]) -> HashMap<String, Entry> {
    entries.iter().filter(|e| e.path.ends_with(".txt")).map(|e| (stem(&e.path).to_owned(), e.clone())).collect()
}

impl Described {
    fn schema(&self) -> SchemaRef {
        match self {
            Self::ByFile(metadata) => Arc::clone(&metadata.schema),
            Self::BySidecar(files) if files.is_empty() => Arc::new(Schema::empty()),
            Self::BySidecar(_) => Arc::new(Schema::new(vec![Field::new("caption", DataType::Utf8, true)])),
        }
    }

    /// Pictures in order of their paths, then (in place of a picture each) rows of the metadata that have none or a taken one.
    fn files(&self, pictures: &[&Entry], folder: &str) -> Vec<ShardFile> {
        let file = |e: &Entry, metadata: Option<Range<u64>>, version: String| ShardFile {
            location: e.location.clone(),
            path: e.path.clone(),
            size: e.size,
            range: None,
            version,
            metadata,
        };
        let mut files: Vec<ShardFile> = pictures
            .iter()
            .map(|e| match self {
                Self::ByFile(metadata) => {
                    let place = metadata.rows.get(&e.path).cloned();
                    let words = place.as_ref().map_or(0, |p| p.hash);
                    file(e, place.map(|p| p.range), format!("{}-{words:x}", e.version))
                }
                Self::BySidecar(texts) => {
                    let version = texts.get(stem(&e.path)).map_or_else(String::new, |t| t.version.clone());
                    file(e, None, format!("{}-{version}", e.version))
                }
            })
            .collect();
        if let Self::ByFile(metadata) = self {
            let known: HashSet<&str> = pictures.iter().map(|e| e.path.as_str()).collect();
            let missing = metadata.rows.iter().filter(|(name, _)| !known.contains(name.as_str()));
            let more = missing
                .map(|(name, place)| (name, place))
                .chain(metadata.again.iter().map(|(name, place)| (name, place)));
            files.extend(more.map(|(name, place)| ShardFile {
                location: format!("{}/{name}", folder.trim_end_matches('/')),
                path: name.clone(),
                size: 0,
                range: None,
                version: format!("{:x}", place.hash),
                metadata: Some(place.range.clone()),
            }));
        }
        files.sort_by(|a, b| {
            (&a.path, a.metadata.as_ref().map(|m| m.start)).cmp(&(&b.path, b.metadata.as_ref().map(|m| m.start)))
        });
        files
    }
}

/// Where a metadata row stands, and the hash of its text.
#[derive(Debug, Clone)]
struct RowPlace {
    range: Range<u64>,
    hash: u64,
}

/// The metadata file: where each picture's row stands. The rows themselves are read when they are needed.
#[derive(Debug)]
struct Metadata {
    location: String,
    /// Without `file_name`.
    schema: SchemaRef,
    csv_header: Option<Vec<String>>,
    rows: HashMap<String, RowPlace>,
    /// Second rows for a name that is taken, in the order of the file; rows without a name have an empty one.
    again: Vec<(String, RowPlace)>,
}

impl Metadata {
    fn read(stores: &Stores, entry: &Entry) -> Result<Self, FormatError> {
        let mut metadata = Self {
            location: entry.location.clone(),
            schema: Arc::new(Schema::empty()),
            csv_header: None,
            rows: HashMap::new(),
            again: Vec::new(),
        };
        if entry.path.ends_with(".csv") {
            metadata.read_csv(stores)?;
        } else {
            metadata.read_jsonl(stores)?;
        }
        Ok(metadata)
    }

    fn put(&mut self, name: Option<String>, range: Range<u64>, text: &[u8]) {
        let place = RowPlace { range, hash: xxhash_rust::xxh3::xxh3_64(text) };
        match name {
            Some(name) if !self.rows.contains_key(&name) => {
                self.rows.insert(name, place);
            }
            name => self.again.push((name.unwrap_or_default(), place)),
        }
    }

    fn malformed(&self, message: impl Into<String>) -> FormatError {
        FormatError::Malformed { location: self.location.clone(), message: message.into() }
    }

    fn read_jsonl(&mut self, stores: &Stores) -> Result<(), FormatError> {
        let location = self.location.clone();
        let mut reader = std::io::BufReader::with_capacity(1 << 18, stores.reader(&location, None)?);
        let (mut line, mut offset, mut objects) = (Vec::new(), 0u64, Vec::new());
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).map_err(|e| unreadable(&location, e))? as u64;
            if read == 0 {
                break;
            }
            let start = if offset == 0 && line.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
            let text = line[start as usize..].trim_ascii();
            if !text.is_empty() {
                let value: Option<serde_json::Value> =
                    serde_json::from_slice(text).ok().filter(serde_json::Value::is_object);
                let name = value.as_ref().and_then(|v| v.get("file_name")).and_then(|n| n.as_str()).map(str::to_owned);
                self.put(name, offset + start..offset + read, text);
                // Types are inferred from the first rows; memory stays bounded on large files.
                if let Some(value) = value.filter(|_| objects.len() < 100_000) {
                    objects.push(value);
                }
            }
            offset += read;
        }
        if self.rows.is_empty() {
            return Err(self.malformed(
                "no line names a picture: expected lines like {\"file_name\": \"a.jpg\", \"caption\": \"…\"}",
            ));
        }
        let schema = infer(objects.into_iter())
            .map_err(|e| self.malformed(format!("a key holds values of several types ({e})")))?;
        self.schema = Arc::new(Schema::new(
            schema.fields().iter().filter(|f| f.name() != "file_name").cloned().collect::<Vec<_>>(),
        ));
        Ok(())
    }

    fn read_csv(&mut self, stores: &Stores) -> Result<(), FormatError> {
        let location = self.location.clone();
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(stores.reader(&location, None)?);
        let header: Vec<String> =
            reader.headers().map_err(|e| self.malformed(e.to_string()))?.iter().map(str::to_owned).collect();
        let Some(name_at) = header.iter().position(|h| h.trim_start_matches('\u{feff}') == "file_name") else {
            return Err(self.malformed(format!("the header has no column `file_name`, only {}", header.join(", "))));
        };
        let mut record = csv::ByteRecord::new();
        loop {
            match reader.read_byte_record(&mut record) {
                Ok(true) => {}
                Ok(false) => break,
                Err(e) => return Err(self.malformed(e.to_string())),
            }
            let start = record.position().map_or(0, csv::Position::byte);
            let name = record.get(name_at).map(|n| String::from_utf8_lossy(n).into_owned()).filter(|n| !n.is_empty());
            let range = start..reader.position().byte();
            self.put(name, range, record.as_slice());
        }
        let fields: Vec<Field> = header
            .iter()
            .enumerate()
            .filter(|(i, _)| *i != name_at)
            .map(|(_, h)| Field::new(h, DataType::Utf8, true))
            .collect();
        self.schema = Arc::new(Schema::new(fields));
        self.csv_header = Some(header);
        Ok(())
    }

    /// A row's text as a JSON line that decodes under [`Metadata::schema`].
    fn line(&self, text: &[u8]) -> Result<Vec<u8>, String> {
        let Some(header) = &self.csv_header else { return Ok(text.trim_ascii().to_vec()) };
        let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text);
        let mut record = csv::StringRecord::new();
        reader.read_record(&mut record).map_err(|e| e.to_string())?;
        if record.len() != header.len() {
            return Err(format!("expected {} fields as in the header, found {}", header.len(), record.len()));
        }
        let object: serde_json::Map<String, serde_json::Value> =
            header.iter().zip(record.iter()).map(|(h, v)| (h.clone(), serde_json::Value::from(v))).collect();
        serde_json::to_vec(&object).map_err(|e| e.to_string())
    }
}

#[derive(Debug)]
struct FolderReader {
    stores: Stores,
    schema: SchemaRef,
    metadata_schema: SchemaRef,
    described: Arc<Described>,
}

impl ShardReader for FolderReader {
    fn read(
        &self,
        shard: &Shard,
        columns: &[usize],
        limits: BatchLimits,
    ) -> BoxStream<'static, Result<RecordBatch, FormatError>> {
        let work = Folder {
            stores: self.stores.clone(),
            described: Arc::clone(&self.described),
            schema: Arc::clone(&self.schema),
            metadata_schema: Arc::clone(&self.metadata_schema),
            columns: columns.to_vec(),
            limits,
        };
        let files: std::collections::VecDeque<ShardFile> = shard.files.iter().cloned().collect();
        futures::stream::try_unfold((files, work), |(mut files, work)| async move {
            if files.is_empty() {
                return Ok(None);
            }
            let batch = work.batch(&mut files).await?;
            Ok(Some((batch, (files, work))))
        })
        .boxed()
    }
}

struct Folder {
    stores: Stores,
    described: Arc<Described>,
    schema: SchemaRef,
    metadata_schema: SchemaRef,
    columns: Vec<usize>,
    limits: BatchLimits,
}

impl Folder {
    async fn batch(&self, files: &mut std::collections::VecDeque<ShardFile>) -> Result<RecordBatch, FormatError> {
        let (mut ids, mut names, mut lines, mut faults) = (Vec::new(), Vec::new(), Lines::default(), Vec::new());
        let mut images = MediaBuilder::new();
        let mut bytes = 0;
        while ids.len() < self.limits.rows && bytes < self.limits.bytes {
            let Some(file) = files.pop_front() else { break };
            let row = ids.len();
            let mut fault = |code, message| faults.push(Fault { row, code, message });
            let again = self.is_again(&file);
            let hash = file_hash(&file.path);
            ids.push(match &file.metadata {
                Some(place) if again => RowId::in_file(hash, Place::Offset(place.start)),
                _ => RowId::in_file(hash, Place::WholeFile),
            });
            if again {
                let message = if file.path.is_empty() {
                    "the metadata row has no `file_name`".to_owned()
                } else {
                    format!("{}: a second metadata row for this picture; the first one is used", file.path)
                };
                fault(if file.path.is_empty() { codes::MALFORMED_ROW } else { codes::DUPLICATE_KEY }, message);
                images.append(None, Some(&file.path));
            } else if file.size == 0 && file.metadata.is_some() && self.stores.entry(&file.location).await?.is_none() {
                fault(codes::MISSING_FILE, format!("{}: the metadata names this file, and it is not there", file.path));
                images.append(None, Some(&file.path));
            } else {
                match self.stores.read(&file.location, None).await {
                    Ok(content) => {
                        bytes += content.len();
                        images.append(Some(&content), Some(&file.path));
                    }
                    Err(error) => {
                        fault(codes::UNREADABLE_FILE, error.to_string());
                        images.append(None, Some(&file.path));
                    }
                }
            }
            match self.words(&file).await? {
                Ok(line) => lines.push(&line),
                Err((code, message)) => {
                    fault(code, message);
                    lines.push(b"{}");
                }
            }
            names.push(file.path);
        }
        let (metadata, bad) = lines.decode(&self.metadata_schema);
        faults.extend(bad.into_iter().map(|(row, message)| Fault {
            row,
            code: codes::MALFORMED_ROW,
            message: format!("{}: its metadata row is bad: {message}", names[row]),
        }));
        let image: ArrayRef = Arc::new(images.finish());
        let name: ArrayRef = Arc::new(StringArray::from(names));
        let columns = self.columns.iter().map(|i| {
            let array = match *i {
                0 => Arc::clone(&image),
                1 => Arc::clone(&name),
                i => Arc::clone(metadata.column(i - 2)),
            };
            (Arc::clone(&self.schema.fields()[*i]), array)
        });
        rows(ImageFolder::NAME, &ids, columns.collect(), &faults)
    }

    /// Whether the row is a second one for its picture (or has no name at all).
    fn is_again(&self, file: &ShardFile) -> bool {
        match (&*self.described, &file.metadata) {
            (Described::ByFile(metadata), Some(place)) => {
                metadata.rows.get(&file.path).is_none_or(|first| first.range != *place)
            }
            _ => false,
        }
    }

    /// What is said about a picture, as a JSON line.
    async fn words(&self, file: &ShardFile) -> Result<Result<Vec<u8>, (&'static str, String)>, FormatError> {
        match (&*self.described, &file.metadata) {
            (Described::ByFile(metadata), Some(place)) => {
                let text = self.stores.read(&metadata.location, Some(place.clone())).await?;
                Ok(metadata
                    .line(&text)
                    .map_err(|e| (codes::MALFORMED_ROW, format!("{}: its metadata row is bad: {e}", file.path))))
            }
            (Described::ByFile(metadata), None) => Ok(Err((
                codes::MISSING_METADATA,
                format!("{}: no row in {} names this picture", file.path, metadata.location),
            ))),
            (Described::BySidecar(texts), _) => {
                let Some(text) = texts.get(stem(&file.path)) else { return Ok(Ok(b"{}".to_vec())) };
                let bytes = self.stores.read(&text.location, None).await?;
                let Ok(caption) = std::str::from_utf8(&bytes) else {
                    return Ok(Err((codes::MALFORMED_ROW, format!("{}: expected UTF-8 text", text.path))));
                };
                // Editors end a file with a line break that is no part of the caption.
                let line = serde_json::json!({ "caption": caption.trim_start_matches('\u{feff}').trim_end_matches(['\n', '\r']) });
                Ok(Ok(line.to_string().into_bytes()))
            }
        }
    }
}
