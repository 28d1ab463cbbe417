//! The `webdataset` source: tar archives whose members belong together by name.

use std::{collections::HashSet, sync::Arc};

use arrow::{
    array::{ArrayRef, Int64Builder, RecordBatch, StringArray, StringBuilder},
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef},
};
use async_trait::async_trait;
use futures::stream::BoxStream;
use groundloom_data::{
    MediaBuilder, Place, RowId,
    columns::{ERROR, ROW_ID, media_type},
    file_hash,
};
use groundloom_spec::Config;
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    BatchLimits, DiscoverOptions, Discovery, FormatError, Reader, Shard, ShardFile, ShardReader, Source,
    compression::{Compression, Decompressed},
    json_decoder::{JsonDecoder, MOST_OBJECTS, excerpt},
    json_types::JsonType,
    quarantine_codes as codes,
    shard_rows::{BatchShape, Batches, End, Fault, Rows, on_thread, shard_schema},
    shards::{shard, whole_file},
    store::{Entry, Stores, blocking, io_error},
    tar_reader::{Member, Stop, TarReader},
};

/// Tar archives in which the members of one sample stand side by side and share a key: `0001.jpg`, `0001.txt`, `0001.json`.
///
/// A member's key is its name up to the first dot behind the last slash; the rest says what it is. Columns: `__key__`; `image` (jpg, jpeg, png, webp, gif, bmp, tif, tiff) and
/// `audio` (wav, flac, mp3, ogg), the file as it is and its name; `caption`, the text of `.txt`; `cls`, the whole number of `.cls`; then the fields of `.json`, each a column.
/// Left out are members with other endings, without a dot or hidden, JSON fields that have the name of one of these columns, and the fields `row_id` and `_error`. Which columns there
/// are is found in the first samples of the first archives; what turns up only later is left out. Archives may be gzip (`.tar.gz`, `.tgz`) or Zstandard files.
///
/// A sample that cannot be read goes to quarantine: its JSON is broken or does not fit, it has two members for one column, its key was there before in the same archive. Where an
/// archive ends early or is damaged, the samples before that are good and the one at that place, which may lack members, goes to quarantine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebDatasetSource {
    /// Archives: a path, a pattern (`data/{00000..00099}.tar`), a folder, or a URL (s3, gs, az, https).
    #[schemars(length(min = 1))]
    pub path: String,
}

impl Config for WebDatasetSource {
    const NAME: &'static str = "webdataset";
    const SUMMARY: &'static str = "WebDataset tars: media files, captions and JSON side by side";
    const EXAMPLE: &'static str = "pairs: { type: webdataset, path: \"data/{00000..00099}.tar\" }";
}

/// Ends of file names that a folder is searched for.
const EXTENSIONS: [&str; 5] = ["tar", "tar.gz", "tgz", "tar.zst", "tar.zstd"];

/// A larger member goes to quarantine unread: a column of a batch holds less than 2 GiB.
const LARGEST_MEMBER: u64 = 256 << 20;

/// Archives that columns are found in, damaged ones not counted.
const SAMPLE_ARCHIVES: usize = 4;
/// Samples of an archive that columns are found in.
const SAMPLE_ROWS: usize = 256;
/// No further sample of an archive is looked at behind so many bytes.
const SAMPLE_BYTES: u64 = 32 << 20;

/// The column of keys.
const KEY: &str = "__key__";

/// What a member is to its sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Image,
    Audio,
    Caption,
    Class,
    Json,
}

/// Parts that are columns of their own, in the order of the columns.
const PARTS: [Part; 4] = [Part::Image, Part::Audio, Part::Caption, Part::Class];

impl Part {
    fn of_extension(extension: &str) -> Option<Self> {
        Some(match extension.to_ascii_lowercase().as_str() {
            "jpg" | "jpeg" | "png" | "webp" | "gif" | "bmp" | "tif" | "tiff" => Self::Image,
            "wav" | "flac" | "mp3" | "ogg" => Self::Audio,
            "txt" => Self::Caption,
            "cls" => Self::Class,
            "json" => Self::Json,
            _ => return None,
        })
    }

    fn column(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Audio => "audio",
            Self::Caption => "caption",
            Self::Class => "cls",
            Self::Json => "json",
        }
    }

    fn data_type(self) -> DataType {
        match self {
            Self::Image | Self::Audio => media_type(),
            Self::Caption | Self::Json => DataType::Utf8,
            Self::Class => DataType::Int64,
        }
    }
}

/// The key of a member and what it is; `None` for one that is left out.
fn key_and_part(name: &str) -> Option<(&str, Part)> {
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = base + name[base..].find('.')?;
    let part = Part::of_extension(&name[dot + 1..])?;
    (dot > base).then(|| (&name[..dot], part))
}

#[async_trait]
impl Source for WebDatasetSource {
    async fn discover(&self, stores: &Stores, _options: &DiscoverOptions) -> Result<Discovery, FormatError> {
        let entries = stores.list(&self.path, &EXTENSIONS).await?;
        let shards = entries.iter().map(|entry| shard(vec![whole_file(entry.clone())], None)).collect();
        let sampled = stores.clone();
        let columns = blocking(move || Columns::infer(&sampled, &entries)).await?;
        let schema = Arc::clone(&columns.schema);
        let reader = WebDatasetReader { stores: stores.clone(), columns: Arc::new(columns) };
        Ok(Discovery { schema, shards, reader: Reader::Rows(Arc::new(reader)) })
    }
}

/// The columns of a data set and where each comes from: `__key__`, one for each of the parts, then JSON fields.
#[derive(Debug)]
struct Columns {
    schema: SchemaRef,
    parts: Vec<Part>,
}

impl Columns {
    fn infer(stores: &Stores, entries: &[Entry]) -> Result<Self, FormatError> {
        let (mut present, mut types) = ([false; PARTS.len()], JsonType::Struct(IndexMap::new()));
        let (mut archives, mut damage) = (0, None);
        for entry in entries {
            if archives == SAMPLE_ARCHIVES {
                break;
            }
            let mut samples = Samples::open(stores, &whole_file(entry.clone()), vec![Part::Json])?;
            let mut rows = 0;
            while rows < SAMPLE_ROWS && (rows == 0 || samples.tar.offset() < SAMPLE_BYTES) {
                let Some(sample) = samples.next()? else { break };
                // What is wrong with a sample is for the quarantine, not for the columns.
                if let Some(fault) = sample.fault {
                    damage.get_or_insert(fault.message);
                    continue;
                }
                rows += 1;
                for (present, part) in present.iter_mut().zip(PARTS) {
                    *present |= sample.member(part).is_some();
                }
                let json = sample.member(Part::Json).and_then(|json| json.bytes.as_deref()).unwrap_or_default();
                let Some(value) = serde_json::from_slice(json).ok().filter(serde_json::Value::is_object) else {
                    continue;
                };
                let before = std::mem::replace(&mut types, JsonType::Null);
                types = JsonType::of(&value).and_then(|row| before.merge(row, "")).map_err(|conflict| {
                    FormatError::Malformed {
                        location: entry.location.to_string(),
                        message: format!(
                            "the JSON of `{}`: {conflict}; make the field's values one type",
                            sample.key.unwrap_or_default()
                        ),
                    }
                })?;
            }
            archives += usize::from(rows > 0);
        }
        let JsonType::Struct(types) = types else { unreachable!("rows are objects") };
        let parts: Vec<Part> = PARTS.into_iter().zip(present).filter(|(_, present)| *present).map(|(p, _)| p).collect();
        let mut fields: Vec<FieldRef> = vec![Arc::new(Field::new(KEY, DataType::Utf8, true))];
        fields.extend(parts.iter().map(|p| Arc::new(Field::new(p.column(), p.data_type(), true))));
        let own: Vec<String> =
            fields.iter().map(|f| f.name().clone()).chain([ROW_ID, ERROR].map(str::to_owned)).collect();
        let json = JsonType::fields(&types);
        fields.extend(json.iter().filter(|f| !own.contains(f.name())).cloned());
        if archives == 0 {
            let why = damage.map(|message| format!(" ({message})")).unwrap_or_default();
            return Err(FormatError::Malformed {
                location: entries.first().map(|e| e.location.to_string()).unwrap_or_default(),
                message: format!(
                    "expected an archive with members such as `0001.jpg`, `0001.txt` or `0001.json`, found none{why}"
                ),
            });
        }
        Ok(Self { schema: Arc::new(Schema::new(fields)), parts })
    }

    /// Columns before those of the JSON.
    fn own(&self) -> usize {
        1 + self.parts.len()
    }
}

/// A member of a sample.
#[derive(Debug)]
struct File {
    part: Part,
    name: String,
    /// `None` where it was not asked for, or is too long.
    bytes: Option<Vec<u8>>,
}

/// The members of one key that stand side by side.
#[derive(Debug)]
struct Sample {
    /// `None` where an archive is damaged outside any sample.
    key: Option<String>,
    /// Where its first member begins.
    offset: u64,
    /// At most one of a part.
    files: Vec<File>,
    fault: Option<Fault>,
    /// Whether its key was there before.
    again: bool,
}

impl Sample {
    fn new(key: Option<String>, offset: u64) -> Self {
        Self { key, offset, files: Vec::new(), fault: None, again: false }
    }

    fn member(&self, part: Part) -> Option<&File> {
        self.files.iter().find(|f| f.part == part)
    }

    fn bytes(&self, part: Part) -> Option<&[u8]> {
        self.member(part)?.bytes.as_deref()
    }

    /// Memory that it holds, about.
    fn held(&self) -> usize {
        let files = self.files.iter().map(|f| f.name.len() + f.bytes.as_ref().map_or(0, Vec::len) + size_of::<File>());
        files.sum::<usize>() + self.key.as_ref().map_or(0, String::len) + size_of::<Self>()
    }

    fn fail(&mut self, code: &'static str, message: String) {
        self.fault.get_or_insert_with(|| Fault::new(code, message));
    }
}

/// The samples of an archive, in order.
struct Samples {
    tar: TarReader,
    /// Parts of which the content is read.
    wanted: Vec<Part>,
    pending: Option<Sample>,
    ended: bool,
    /// Hashes of the keys so far. Keys of one hash would have the same row id, so they are as good as equal.
    seen: HashSet<u64>,
}

impl Samples {
    fn open(stores: &Stores, file: &ShardFile, wanted: Vec<Part>) -> Result<Self, FormatError> {
        let source = stores.reader(&file.location, None)?;
        let reader = Decompressed::new(source, Compression::of_path(&file.path));
        let reader = reader.map_err(|e| io_error(&file.location, e))?;
        let tar = TarReader::new(reader, &file.location);
        Ok(Self { tar, wanted, pending: None, ended: false, seen: HashSet::new() })
    }

    fn next(&mut self) -> Result<Option<Sample>, FormatError> {
        while !self.ended {
            match self.step() {
                Ok(Some(sample)) => return Ok(Some(self.checked(sample))),
                Ok(None) => {}
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Damaged(fault)) => {
                    self.ended = true;
                    let offset = self.tar.offset();
                    // Its remaining members may be behind the damage.
                    self.pending.get_or_insert_with(|| Sample::new(None, offset)).fault.get_or_insert(fault);
                }
            }
        }
        Ok(self.pending.take().map(|sample| self.checked(sample)))
    }

    /// Reads one member; the sample before it if it begins a new one.
    fn step(&mut self) -> Result<Option<Sample>, Stop> {
        let Some(member) = self.tar.next()? else {
            self.ended = true;
            return Ok(None);
        };
        let Some((key, part)) = key_and_part(&member.name) else { return Ok(None) };
        let mut done = None;
        if self.pending.as_ref().is_none_or(|sample| sample.key.as_deref() != Some(key)) {
            done = self.pending.replace(Sample::new(Some(key.to_owned()), member.offset));
        }
        match (self.add(member, part), done) {
            (Ok(()), done) => Ok(done),
            (Err(Stop::Damaged(fault)), Some(done)) => {
                // The sample before is whole; the fault is the next one's.
                self.ended = true;
                if let Some(sample) = &mut self.pending {
                    sample.fault.get_or_insert(fault);
                }
                Ok(Some(done))
            }
            (Err(stop), _) => Err(stop),
        }
    }

    fn add(&mut self, member: Member, part: Part) -> Result<(), Stop> {
        let Some(sample) = &mut self.pending else { return Ok(()) };
        if let Some(first) = sample.member(part) {
            let message =
                format!("expected one member for `{}`, found {} and {}", part.column(), first.name, member.name);
            sample.fail(codes::MALFORMED_ARCHIVE, message);
            return Ok(());
        }
        let mut bytes = None;
        if member.size > LARGEST_MEMBER {
            let message = format!(
                "expected at most {LARGEST_MEMBER} bytes in a member, found {} in {}",
                member.size, member.name
            );
            sample.fail(codes::TOO_LONG, message);
        } else if self.wanted.contains(&part) {
            bytes = Some(self.tar.content()?);
        }
        sample.files.push(File { part, name: member.name, bytes });
        Ok(())
    }

    fn checked(&mut self, mut sample: Sample) -> Sample {
        if let Some(key) = &sample.key
            && !self.seen.insert(xxh3_64(key.as_bytes()))
        {
            sample.fail(
                codes::DUPLICATE_KEY,
                "the key was there before in this archive; the first sample is used".to_owned(),
            );
            sample.again = true;
        }
        sample
    }
}

#[derive(Debug)]
struct WebDatasetReader {
    stores: Stores,
    columns: Arc<Columns>,
}

impl ShardReader for WebDatasetReader {
    fn read(
        &self,
        shard: &Shard,
        columns: &[usize],
        limits: BatchLimits,
    ) -> BoxStream<'static, Result<RecordBatch, FormatError>> {
        let schema = &self.columns.schema;
        let shape = BatchShape { schema: shard_schema(schema, columns), source: WebDatasetSource::NAME };
        let own = self.columns.own();
        let mut json: Vec<FieldRef> =
            columns.iter().filter(|c| **c >= own).map(|c| Arc::clone(&schema.fields()[*c])).collect();
        // JSON is checked even where no field of it is asked for.
        if json.is_empty() {
            json.extend(schema.fields().get(own).cloned());
        }
        let archive = Archive {
            columns: Arc::clone(&self.columns),
            asked: columns.to_vec(),
            decoder: (!json.is_empty()).then(|| JsonDecoder::new(Arc::new(Schema::new(json)))),
            shape,
            limits,
        };
        let (stores, files) = (self.stores.clone(), shard.files.clone());
        on_thread(move |batches| {
            let mut archive = archive;
            files.iter().try_for_each(|file| archive.read(&stores, &file, batches))
        })
    }
}

/// The reading of one shard.
struct Archive {
    columns: Arc<Columns>,
    asked: Vec<usize>,
    /// Of the asked JSON fields; `None` where the data set has none.
    decoder: Option<JsonDecoder>,
    shape: BatchShape,
    limits: BatchLimits,
}

impl Archive {
    fn read(&mut self, stores: &Stores, file: &ShardFile, batches: &Batches) -> Result<(), End> {
        let parts = self.columns.parts.iter().enumerate();
        let mut wanted: Vec<Part> = parts.filter(|(i, _)| self.asked.contains(&(i + 1))).map(|(_, p)| *p).collect();
        wanted.extend(self.decoder.is_some().then_some(Part::Json));
        let mut samples = Samples::open(stores, file, wanted)?;
        let hash = file_hash(&file.path);
        let most = self.limits.rows.clamp(1, MOST_OBJECTS);
        loop {
            let (mut rows, mut held) = (Vec::new(), 0);
            while rows.len() < most && (rows.is_empty() || held < self.limits.bytes) {
                let Some(sample) = samples.next()? else { break };
                held += sample.held();
                rows.push(sample);
            }
            if rows.is_empty() {
                return Ok(());
            }
            batches.send(self.batch(file, hash, rows)?)?;
        }
    }

    fn batch(&mut self, file: &ShardFile, hash: u64, mut samples: Vec<Sample>) -> Result<RecordBatch, FormatError> {
        let mut own: Vec<ArrayRef> = vec![Arc::new(samples.iter().map(|s| s.key.as_deref()).collect::<StringArray>())];
        own.extend(self.columns.parts.iter().map(|part| part_column(*part, &mut samples)));
        let fields = self.json(&mut samples);
        let mut rows = Rows::new();
        for sample in samples {
            let place = match &sample.key {
                Some(key) if !sample.again => Place::Member(key),
                _ => Place::Offset(sample.offset),
            };
            let fault = sample.fault.map(|f| {
                let at = match &sample.key {
                    Some(key) => format!("sample `{}` at byte {}", excerpt(key.as_bytes()), sample.offset),
                    None => format!("byte {}", sample.offset),
                };
                Fault { message: format!("{}, {at}: {}", file.path, f.message), ..f }
            });
            rows.push_with(RowId::in_file(hash, place), fault);
        }
        let fields = rows.spread(&fields);
        let mut fields =
            fields.map_err(|source| FormatError::Arrow { location: file.location.clone(), source })?.into_iter();
        let columns = self.asked.iter().filter_map(|c| own.get(*c).cloned().or_else(|| fields.next())).collect();
        rows.finish(&self.shape, columns, None)
    }

    /// The JSON fields of the good samples, and what is wrong with those of others.
    fn json(&mut self, samples: &mut [Sample]) -> Vec<ArrayRef> {
        let Some(decoder) = &mut self.decoder else { return Vec::new() };
        let texts: Vec<&[u8]> = samples
            .iter()
            .filter(|s| s.fault.is_none())
            // A sample without JSON is one whose fields are null.
            .map(|s| s.bytes(Part::Json).unwrap_or(b"{}"))
            .collect();
        let (columns, faults) = decoder.decode(&texts);
        let names: Vec<String> =
            faults.iter().zip(&texts).map(|(f, t)| if f.is_some() { excerpt(t) } else { String::new() }).collect();
        let good = samples.iter_mut().filter(|s| s.fault.is_none());
        for ((sample, fault), text) in good.zip(faults).zip(names) {
            sample.fault = fault.map(|f| Fault { message: format!("{}; the JSON is: {text}", f.message), ..f });
        }
        columns
    }
}

/// A column of the members of one part, and what is wrong with them.
fn part_column(part: Part, samples: &mut [Sample]) -> ArrayRef {
    match part {
        Part::Image | Part::Audio => {
            let mut column = MediaBuilder::new();
            for sample in samples {
                match sample.member(part) {
                    Some(file) => column.append(file.bytes.as_deref(), Some(&file.name)),
                    None => column.append_null(),
                }
            }
            Arc::new(column.finish())
        }
        Part::Caption | Part::Json => {
            let mut column = StringBuilder::new();
            for sample in samples {
                let text = sample.bytes(part).map(str::from_utf8).transpose();
                match text {
                    Ok(text) => column.append_option(text.map(plain)),
                    Err(e) => {
                        column.append_null();
                        let message =
                            format!("expected UTF-8 in .txt, found other bytes from byte {} on", e.valid_up_to());
                        sample.fail(codes::INVALID_UTF8, message);
                    }
                }
            }
            Arc::new(column.finish())
        }
        Part::Class => {
            let mut column = Int64Builder::new();
            for sample in samples {
                let text = sample.bytes(part);
                let class = text.and_then(|t| str::from_utf8(t).ok()).and_then(|t| t.trim().parse().ok());
                column.append_option(class);
                if let (Some(text), None) = (text, class) {
                    let message = format!("expected a whole number in .cls, found `{}`", excerpt(text));
                    sample.fail(codes::TYPE_MISMATCH, message);
                }
            }
            Arc::new(column.finish())
        }
    }
}

/// A text without a byte order mark and the line breaks at its end.
fn plain(text: &str) -> &str {
    text.trim_start_matches('\u{feff}').trim_end_matches(['\n', '\r'])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::tar_writer::{END, write_member};
    use arrow::{
        array::{Array, AsArray},
        compute::concat_batches,
        datatypes::Int64Type,
    };
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use flate2::write::GzEncoder;
    use futures::TryStreamExt;
    use groundloom_data::MediaView;
    use proptest::prelude::*;
    use std::{fs, io::Write};

    fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = Vec::new();
        members.iter().for_each(|(name, content)| write_member(&mut tar, name, content).unwrap());
        tar.extend_from_slice(&END);
        tar
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut writer = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    /// What is discovered in a folder of these archives, which lives until the rows are read.
    fn discover(archives: &[(&str, &[u8])]) -> (tempfile::TempDir, Result<Discovery, FormatError>) {
        let folder = tempfile::tempdir().unwrap();
        archives.iter().for_each(|(name, bytes)| fs::write(folder.path().join(name), bytes).unwrap());
        let source = WebDatasetSource { path: folder.path().to_str().unwrap().to_owned() };
        let discovery = runtime().block_on(source.discover(&Stores::new(), &DiscoverOptions::default()));
        (folder, discovery)
    }

    fn read_columns(discovery: &Discovery, columns: &[usize], limits: BatchLimits) -> Vec<RecordBatch> {
        let Reader::Rows(reader) = &discovery.reader else { panic!("a reader of rows") };
        runtime().block_on(async {
            let mut all = Vec::new();
            for shard in &discovery.shards {
                all.extend(reader.read(shard, columns, limits).try_collect::<Vec<_>>().await.unwrap());
            }
            all
        })
    }

    fn read(archives: &[(&str, &[u8])]) -> RecordBatch {
        let (_folder, discovery) = discover(archives);
        let discovery = discovery.unwrap();
        let columns: Vec<usize> = (0..discovery.schema.fields().len()).collect();
        let batches = read_columns(&discovery, &columns, BatchLimits::default());
        concat_batches(&shard_schema(&discovery.schema, &columns), &batches).unwrap()
    }

    fn texts(batch: &RecordBatch, column: &str) -> Vec<Option<String>> {
        batch.column_by_name(column).unwrap().as_string::<i32>().iter().map(|t| t.map(str::to_owned)).collect()
    }

    fn keys(batch: &RecordBatch) -> Vec<String> {
        texts(batch, KEY).into_iter().map(Option::unwrap_or_default).collect()
    }

    fn errors(batch: &RecordBatch, part: &str) -> Vec<String> {
        let errors = batch.column_by_name(ERROR).unwrap().as_struct();
        let parts = errors.column_by_name(part).unwrap().as_string::<i32>();
        (0..batch.num_rows())
            .map(|i| if errors.is_null(i) { String::new() } else { parts.value(i).to_owned() })
            .collect()
    }

    #[test]
    fn members_become_columns() {
        let first = tar(&[
            ("a/0.d/1.jpg", b"picture"),
            ("a/0.d/1.txt", "\u{feff}a dog\r\n".as_bytes()),
            ("a/0.d/1.cls", b"7\n"),
            ("a/0.d/1.seg.npy", b"left out"),
            (
                "a/0.d/1.json",
                b"{\n \"caption\": \"not this\", \"score\": 1, \"row_id\": \"x\", \"meta\": {\"w\": 5}\n}\n",
            ),
            (".hidden.jpg", b""),
            ("README", b""),
            ("2.PNG", b"other"),
            ("2.json", b"{\"score\": 0.5, \"later\": null}"),
        ]);
        let second = gzip(&tar(&[("1.mp3", b"sound"), ("1.txt", b"")]));
        let batch = read(&[("0.tar", &first), ("1.tar.gz", &second)]);
        let names: Vec<String> = batch.schema().fields().iter().map(|f| f.name().clone()).collect();
        assert_eq!(
            names,
            ["row_id", "__key__", "image", "audio", "caption", "cls", "score", "meta", "later", "_error"]
        );
        assert_eq!(errors(&batch, "message"), ["", "", ""]);
        assert_eq!(keys(&batch), ["a/0.d/1", "2", "1"]);
        let id = |file: &str, key| RowId::in_file(file_hash(file), Place::Member(key)).to_string();
        assert_eq!(texts(&batch, "row_id"), [id("0.tar", "a/0.d/1"), id("0.tar", "2"), id("1.tar.gz", "1")].map(Some));
        let media = |name: &str| MediaView::try_new(batch.column_by_name(name).unwrap()).unwrap();
        let (images, sounds) = (media("image"), media("audio"));
        assert_eq!((images.bytes(0), images.path(0)), (Some(&b"picture"[..]), Some("a/0.d/1.jpg")));
        assert_eq!((images.bytes(1), images.bytes(2)), (Some(&b"other"[..]), None));
        assert_eq!((sounds.bytes(0), sounds.bytes(2)), (None, Some(&b"sound"[..])));
        assert_eq!(texts(&batch, "caption"), [Some("a dog".to_owned()), None, Some(String::new())]);
        let classes = batch.column_by_name("cls").unwrap().as_primitive::<Int64Type>();
        assert_eq!(classes.iter().collect::<Vec<_>>(), [Some(7), None, None]);
        let scores = batch.column_by_name("score").unwrap().as_primitive::<arrow::datatypes::Float64Type>();
        assert_eq!(scores.iter().collect::<Vec<_>>(), [Some(1.0), Some(0.5), None]);
    }

    #[test]
    fn archives_of_pythons_tarfile_are_read() {
        // A folder, `FOLDER/n…/k….jpg` (600 times `x`), `FOLDER/1.txt`, `FOLDER/1.json` and a symbolic link, as Python 3's `tarfile` packs them in its three formats.
        let archives = [
            (
                "päx",
                "H4sIAAAAAAACA+3ZQU7CQBTG8VlzigkHaN9MpzSaEF269ApNIAhIaaAmjcbbeBMvZosaC5XoplNN/78NAyy6mL73vWmDMAivb9PyZp7O5jvVCXl37lPETL7W9e9GrLFKl8qDh32R7qrLq2EyTudpcTfNX1/KcKQwMPlVGXZ9jbqoJ86dr//WeuISUTqm/jsX/IH+b03S7v8x/d9L/4+kEQBZZ8L1N4JVvhiZSG+K5WY+NUFMAPXR/7ve9R/6v6nuwUb9WyVRJLFTWqj/zpVAB+iszH+/Pv87ac1/kjD/eZn/LhrjnwmKsmAgG9r8d9j2Xs//8fH8J0mUGOY/H1I92y4oA/K/1/w37ec/Qv77YOUo/1f7bcYAMLj8r7e9x/w3cpr/sUnIfx+extn4UptnKoH87+39T+Ta+e/Ify/5bxv5f7/M1h+PAJyuvxz+euwJo4en/P/c9v7O/ydrJxJV53/r4y4beP0DAAAAAAAAAAAAAAAAAADgf3kDFX8olABQAAA=",
            ),
            (
                "päx",
                "H4sIAAAAAAACA+3Y0QqCMBgF4D3K6AE2fzcVuuo+X0IIJI0paSBFb9Ob9GItL6JEiC6mxs53M8HL33M2V99vnWRuBVasdb9aw3XkOSG78IhN4NS02ZFz5ikhhdyklcnTvSkdzn9k7q+ZU0LD+SeRZjzF/J2rn/k3zshyhCjqnIE38//S/0Tqvf9tFyilyPZ/gPw71wE4gGb9o/4n0XbtnOf/6LP/qX+N/p9AxncVDmPe579oKjNf/ikY5p/CGPmfwmVlVmtOVyQB9z+Luv9RjG+Rf+fOM0HyFrT/H2z2Hf4C/Hz/rwOtifFwig/R8/wDAAAAAACAHx7OIiTDACgAAA==",
            ),
            (
                "pax",
                "H4sIAAAAAAACA+3XzQqCQBSG4XMpgxdgc+ZP6G6EQNIYJQ2k6N6bWpW4KRpl8Hs2407h8B61K8cdRSYDZ8zrDKbnzLWzWpGwtIBLP5TncEvapmZGXnfVgvNn1u/zZ5LaFSrMX6Y8/y6E5aP522OOABEQJOG5pjgfxmHV97/93P+yMDr1/Z+IUhzaChlsvP+6b/2K/bOc9m+dRP9LuGU+2wu+o4Tt9n86+ibmJ8DX//8sDVsS6or+AQAAAAAAAAAAAAB+8QDsERzVACgAAA==",
            ),
        ];
        for (folder, packed) in archives {
            let batch = read(&[("a.tar.gz", &STANDARD.decode(packed).unwrap())]);
            assert_eq!(errors(&batch, "message"), ["", ""]);
            assert_eq!(
                keys(&batch),
                [format!("{folder}/{}/{}", "n".repeat(90), "k".repeat(20)), format!("{folder}/1")]
            );
            let images = MediaView::try_new(batch.column_by_name("image").unwrap()).unwrap();
            assert_eq!(images.bytes(0), Some(&[b'x'; 600][..]));
            assert_eq!(texts(&batch, "caption"), [None, Some("a dog".to_owned())]);
            assert_eq!(batch.column_by_name("n").unwrap().as_primitive::<Int64Type>().value(1), 1);
        }
    }

    #[test]
    fn bad_samples_go_to_quarantine() {
        let archive = tar(&[
            ("0.json", b"{\"n\": 1}"),
            ("0.txt", b"good"),
            ("0.cls", b"1"),
            ("1.json", b"{\"n\": "),
            ("1.txt", b"kept"),
            ("2.json", b"{\"n\": 2}"),
            ("0.json", b"{\"n\": 3}"),
            ("3.txt", b"\xff\xfe"),
            ("4.cls", b"cat"),
            ("5.jpg", b"x"),
            ("5.png", b"y"),
            ("6.json", b"[1]"),
            ("7.json", b"{\"n\": 4}"),
        ]);
        let batch = read(&[("a.tar", &archive)]);
        assert_eq!(keys(&batch), ["0", "1", "2", "0", "3", "4", "5", "6", "7"]);
        assert_eq!(
            errors(&batch, "code"),
            [
                "",
                codes::MALFORMED_JSON,
                "",
                codes::DUPLICATE_KEY,
                codes::INVALID_UTF8,
                codes::TYPE_MISMATCH,
                codes::MALFORMED_ARCHIVE,
                codes::MALFORMED_JSON,
                ""
            ]
        );
        let message = &errors(&batch, "message")[1];
        assert!(message.starts_with("a.tar, sample `1` at byte 3072: "), "{message}");
        let n = batch.column_by_name("n").unwrap().as_primitive::<Int64Type>();
        assert_eq!(n.iter().collect::<Vec<_>>(), [Some(1), None, Some(2), None, None, None, None, None, Some(4)]);
        let ids: HashSet<_> = texts(&batch, "row_id").into_iter().collect();
        assert_eq!(ids.len(), 9, "the second sample of a key has an id of its own");
    }

    #[test]
    fn a_value_of_another_type_behind_the_sample_goes_to_quarantine() {
        let names: Vec<String> = (0..=SAMPLE_ROWS).map(|i| format!("{i:04}.json")).collect();
        let mut members: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), &b"{\"n\": 1}"[..])).collect();
        members[SAMPLE_ROWS].1 = b"{\"n\": \"one\", \"new\": 1}";
        let codes_of = errors(&read(&[("a.tar", &tar(&members))]), "code");
        assert_eq!(codes_of[SAMPLE_ROWS], codes::TYPE_MISMATCH);
        assert!(codes_of[..SAMPLE_ROWS].iter().all(String::is_empty));
        members[0].1 = b"{\"n\": {}}";
        let message = discover(&[("a.tar", &tar(&members))]).1.unwrap_err().to_string();
        assert!(message.contains("the JSON of `0001`: `n` is a whole number here"), "{message}");
    }

    #[test]
    fn batches_are_bounded_and_columns_are_chosen() {
        let names: Vec<String> = (0..10).flat_map(|i| [format!("{i}.jpg"), format!("{i}.json")]).collect();
        let picture = vec![1; 1000];
        let members: Vec<(&str, &[u8])> = names
            .iter()
            .map(|n| (n.as_str(), if n.ends_with("jpg") { picture.as_slice() } else { b"{\"a\":1,\"b\":\"x\"}" }))
            .collect();
        let mut archive = tar(&members);
        // The last sample's JSON is damaged, which shows whatever columns are asked for.
        let at = archive.len() - END.len() - 512;
        archive[at] = b'[';
        let (_folder, discovery) = discover(&[("a.tar", &archive)]);
        let discovery = discovery.unwrap();
        for (columns, rows, bytes, batches) in [
            (&[1, 0][..], 100, 2000, 5),
            (&[3, 2, 1, 0], 3, 1 << 20, 4),
            (&[0], 100, 1 << 20, 1),
            (&[], 1, 1, 10),
            (&[2], 0, 0, 10),
        ] {
            let found = read_columns(&discovery, columns, BatchLimits { rows, bytes });
            assert_eq!(found.len(), batches, "{columns:?}");
            let all = concat_batches(&shard_schema(&discovery.schema, columns), &found).unwrap();
            let expected: Vec<&str> = (0..10).map(|i| if i == 9 { codes::MALFORMED_JSON } else { "" }).collect();
            assert_eq!(errors(&all, "code"), expected, "{columns:?}");
        }
    }

    #[test]
    fn archives_without_samples_are_errors() {
        for archive in [&[][..], &END, b"no archive", &tar(&[("README", b"x"), ("a.npy", b"x")])] {
            let error = discover(&[("a.tar", archive)]).1.unwrap_err().to_string();
            assert!(error.contains("expected an archive with members such as"), "{error}");
        }
        // Beside a good one they are rows of the quarantine.
        let good = tar(&[("0.txt", b"good")]);
        let batch = read(&[("0.tar", b""), ("1.tar", &good), ("2.tgz", b"no gzip"), ("3.tar", &[b'x'; 600])]);
        assert_eq!(
            errors(&batch, "code"),
            [codes::TRUNCATED_ARCHIVE, "", codes::DAMAGED_FILE, codes::MALFORMED_ARCHIVE]
        );
    }

    #[test]
    fn a_damaged_gzip_keeps_what_came_before() {
        let noise: Vec<u8> = (0u32..200_000).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let members: Vec<(String, &[u8])> = (0..20).map(|i| (format!("{i}.jpg"), noise.as_slice())).collect();
        let members: Vec<(&str, &[u8])> = members.iter().map(|(n, c)| (n.as_str(), *c)).collect();
        let archive = gzip(&tar(&members));
        let batch = read(&[("a.tar.gz", &archive[..archive.len() / 2])]);
        let codes_of = errors(&batch, "code");
        let (last, before) = codes_of.split_last().unwrap();
        assert_eq!(last, codes::DAMAGED_FILE);
        assert!((5..15).contains(&before.len()) && before.iter().all(String::is_empty), "{codes_of:?}");
    }

    fn archive_of(samples: usize) -> (Vec<u8>, Vec<usize>) {
        let (mut archive, mut begins) = (Vec::new(), Vec::new());
        for i in 0..samples {
            begins.push(archive.len());
            write_member(&mut archive, &format!("{i}.jpg"), &vec![1; 700]).unwrap();
            write_member(&mut archive, &format!("{i}.json"), b"{\"a\":1}").unwrap();
        }
        begins.push(archive.len());
        archive.extend_from_slice(&END);
        (archive, begins)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn a_cut_archive_keeps_the_samples_before(cut in 0usize..=11_000) {
            let (archive, begins) = archive_of(4);
            let cut = cut.min(archive.len());
            let whole = tar(&[("w.jpg", b""), ("w.json", b"{\"a\":1}")]);
            let batch = read(&[("0.tar", &whole), ("1.tar", &archive[..cut])]);
            let codes_of = errors(&batch, "code");
            // A sample is known to be whole when the header behind it was read.
            let good = begins[1..].iter().filter(|begin| **begin + 512 <= cut).count();
            let mut expected: Vec<&str> = vec![""; 1 + good];
            expected.extend((cut < begins[4] + 512).then_some(codes::TRUNCATED_ARCHIVE));
            prop_assert_eq!(codes_of, expected);
        }

        #[test]
        fn flipped_and_random_bytes_are_tried(at in 0usize..9000, flip in 1u8..=255, noise in prop::collection::vec(any::<u8>(), 0..2000)) {
            let (mut archive, begins) = archive_of(4);
            let at = at.min(archive.len() - 1);
            archive[at] ^= flip;
            let whole = tar(&[("w.jpg", b""), ("w.json", b"{\"a\":1}")]);
            let batch = read(&[("0.tar", &whole), ("1.tar", &archive), ("2.tar", &noise), ("3.tgz", &noise)]);
            // The damage of a header is also that of the sample before, which may lack members.
            let untouched = begins[1..].iter().filter(|begin| **begin + 512 <= at).count();
            prop_assert!(errors(&batch, "code").iter().take(1 + untouched).all(String::is_empty));
            prop_assert_eq!(&keys(&batch)[1..1 + untouched], &["0", "1", "2", "3"][..untouched]);
        }
    }
}
