//! The `image_folder` source: a folder of pictures and what is said about them.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, StringBuilder},
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef},
};
use async_trait::async_trait;
use futures::stream::BoxStream;
use groundloom_data::{MediaBuilder, Place, RowId, columns::media_type, file_hash};
use groundloom_spec::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    BatchLimits, DiscoverOptions, Discovery, FormatError, Reader, Shard, ShardFile, ShardReader, Source,
    folder_metadata::{FILE_NAME, Metadata, RowIndex, RowPlace, read_ranges},
    json_decoder::excerpt,
    picture_files::{LARGEST_FILE, next_batch, read_file, read_picture, read_size},
    quarantine_codes as codes,
    shard_rows::{BatchShape, Batches, End, Fault, Rows, on_thread, shard_schema},
    shards::{runs_of_files, whole_file},
    store::{Entry, Stores, blocking, has_extension},
};

/// A folder of pictures, each a row, with captions from a metadata file or from a text file beside each picture.
///
/// Columns: `image` (the file as it is, and its path), `file_name` (path relative to the folder), and with `metadata` the columns of that file, whose rows name their
/// picture in `file_name`; without it `caption`, the text of `NAME.txt` beside `NAME.jpg`, if there is any such file (null for a picture that has none). Rows are sorted
/// by path; hidden files are left out. A picture without a metadata row, a metadata row without a picture and a second row for the same picture go to quarantine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageFolder {
    /// The folder, or a URL of one (s3, gs, az).
    #[schemars(length(min = 1))]
    pub path: String,
    /// File in the folder with one row per picture: JSON lines, or CSV with a header (`.csv`). Its column types are found over all of its rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<String>,
    /// Look into folders inside the folder too.
    #[serde(default = "yes")]
    pub recursive: bool,
    /// Endings of picture files, without the dot.
    #[serde(default = "image_extensions")]
    #[schemars(length(min = 1))]
    pub extensions: Vec<String>,
}

fn yes() -> bool {
    true
}

fn image_extensions() -> Vec<String> {
    ["jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff"].map(str::to_owned).to_vec()
}

impl Config for ImageFolder {
    const NAME: &'static str = "image_folder";
    const SUMMARY: &'static str = "a folder of pictures with captions";
    const EXAMPLE: &'static str = "pairs: { type: image_folder, path: examples/photos, metadata: captions.jsonl }";
}

/// Columns before those of the metadata: `image` and `file_name`.
const OWN_COLUMNS: usize = 2;

#[async_trait]
impl Source for ImageFolder {
    async fn discover(&self, stores: &Stores, options: &DiscoverOptions) -> Result<Discovery, FormatError> {
        let mut pictures = stores.list_folder(&self.path, self.recursive).await?;
        // Of a hundred million pictures no second list is held.
        let others: Vec<Entry> = pictures.extract_if(.., |e| !has_extension(e.path(), &self.extensions)).collect();
        if pictures.is_empty() {
            let message =
                format!("no picture in `{}`: expected files that end in .{}", self.path, self.extensions.join(", ."));
            return Err(FormatError::Input { key: "path", message });
        }
        let (words, shards) = match &self.metadata {
            Some(name) => {
                let name = name.trim_start_matches("./");
                let Some(entry) = others.iter().chain(&pictures).find(|e| e.path() == name).cloned() else {
                    let message = format!(
                        "there is no `{name}` in `{}`; without `metadata` captions come from text files beside the pictures",
                        self.path
                    );
                    return Err(FormatError::Input { key: "metadata", message });
                };
                let stores = stores.clone();
                let (metadata, index) = blocking(move || Metadata::read(&stores, &entry)).await?;
                let files = described(pictures, &metadata, index);
                (Words::Metadata(Arc::new(metadata)), runs_of_files(files, options))
            }
            None => {
                let sidecars = Sidecars::new(&others);
                let words =
                    if pictures.iter().any(|p| sidecars.of(p).is_some()) { Words::Sidecars } else { Words::None };
                (words, runs_of_files(pictures.into_iter().map(|p| sidecars.beside(p)), options))
            }
        };
        let schema = self.schema(&words)?;
        let reader = FolderReader { stores: stores.clone(), schema: Arc::clone(&schema), words };
        Ok(Discovery { schema, shards, reader: Reader::Rows(Arc::new(reader)) })
    }
}

impl ImageFolder {
    fn schema(&self, words: &Words) -> Result<SchemaRef, FormatError> {
        let mut fields: Vec<FieldRef> = vec![
            Arc::new(Field::new("image", media_type(), true)),
            Arc::new(Field::new(FILE_NAME, DataType::Utf8, true)),
        ];
        match words {
            Words::Metadata(metadata) => fields.extend(metadata.schema.fields().iter().cloned()),
            Words::Sidecars => fields.push(Arc::new(Field::new("caption", DataType::Utf8, true))),
            Words::None => {}
        }
        if let Some(twice) = fields.iter().enumerate().find(|(i, f)| fields[..*i].iter().any(|b| b.name() == f.name()))
        {
            let message = format!("the metadata has a column `{}` that is there already; rename it", twice.1.name());
            return Err(FormatError::Input { key: "metadata", message });
        }
        Ok(Arc::new(Schema::new(fields)))
    }
}

/// Where the words about a picture come from.
#[derive(Debug, Clone)]
enum Words {
    None,
    Sidecars,
    Metadata(Arc<Metadata>),
}

fn stem(path: &str) -> &str {
    path.rsplit_once('.').map_or(path, |(stem, _)| stem)
}

/// The text files among what is no picture, by their path without the ending.
struct Sidecars<'a>(HashMap<&'a str, &'a Entry>);

impl<'a> Sidecars<'a> {
    fn new(others: &'a [Entry]) -> Self {
        Self(others.iter().filter(|e| e.path().ends_with(".txt")).map(|e| (stem(e.path()), e)).collect())
    }

    fn of(&self, picture: &Entry) -> Option<&'a Entry> {
        self.0.get(stem(picture.path())).copied()
    }

    /// The picture; `ShardFile::metadata` is all of the text file beside it.
    fn beside(&self, picture: Entry) -> ShardFile {
        let text = self.of(&picture);
        let mut file = whole_file(picture);
        if let Some(text) = text {
            file.metadata = Some(0..text.size);
            file.version = format!("{}-{}", file.version, text.version);
        }
        file
    }
}

/// The pictures with their metadata rows, in the order of their paths, and in the same order the rows that have no picture of their own: parts of the metadata file,
/// of which [`row_fault`] tells what is wrong with them.
fn described(pictures: Vec<Entry>, metadata: &Metadata, mut index: RowIndex) -> Vec<ShardFile> {
    let orphan = |name: &str, place: &RowPlace, first: Option<&RowPlace>| ShardFile {
        location: metadata.location.clone(),
        path: name.to_owned(),
        size: place.range.end - place.range.start,
        range: Some(place.range.clone()),
        version: format!("{:016x}", place.hash),
        metadata: first.map(|f| f.range.clone()),
    };
    let mut files: Vec<ShardFile> =
        index.again.iter().map(|(name, place)| orphan(name, place, index.rows.get(name))).collect();
    files.extend(index.nameless.iter().map(|place| orphan("", place, None)));
    for picture in pictures {
        let mut file = whole_file(picture);
        if let Some(place) = index.rows.remove(&file.path) {
            file.version = format!("{}-{:016x}", file.version, place.hash);
            file.metadata = Some(place.range);
        }
        files.push(file);
    }
    // What is left names no picture.
    files.extend(index.rows.iter().map(|(name, place)| orphan(name, place, None)));
    files.sort_by(|a, b| {
        let place = |f: &ShardFile| f.range.as_ref().map(|r| r.start);
        (&a.path, place(a)).cmp(&(&b.path, place(b)))
    });
    files
}

/// What is wrong with a metadata row that has no picture of its own.
fn row_fault(file: &ShardFile, metadata: &Metadata, text: &[u8]) -> Fault {
    let offset = file.range.as_ref().map_or(0, |r| r.start);
    let at = format!("{}, the row at byte {offset}", metadata.path);
    match (&file.metadata, file.path.is_empty()) {
        (_, true) => Fault::new(
            codes::MALFORMED_JSON,
            format!("{at}: expected an object with a `{FILE_NAME}`, found {}", excerpt(text)),
        ),
        (Some(first), _) => Fault::new(
            codes::DUPLICATE_KEY,
            format!("{at}: `{}` has a row already, at byte {}, which is used", file.path, first.start),
        ),
        (None, _) => {
            Fault::new(codes::MISSING_FILE, format!("{at}: it names `{}`, which the folder does not hold", file.path))
        }
    }
}

#[derive(Debug)]
struct FolderReader {
    stores: Stores,
    schema: SchemaRef,
    words: Words,
}

impl ShardReader for FolderReader {
    fn read(
        &self,
        shard: &Shard,
        columns: &[usize],
        limits: BatchLimits,
    ) -> BoxStream<'static, Result<RecordBatch, FormatError>> {
        let folder = Folder {
            stores: self.stores.clone(),
            words: self.words.clone(),
            shape: BatchShape { schema: shard_schema(&self.schema, columns), source: ImageFolder::NAME },
            columns: columns.to_vec(),
            limits,
        };
        let files: Vec<ShardFile> = shard.files.iter().collect();
        on_thread(move |batches| folder.read(&files, batches))
    }
}

/// The reading of one shard.
struct Folder {
    stores: Stores,
    words: Words,
    shape: BatchShape,
    columns: Vec<usize>,
    limits: BatchLimits,
}

impl Folder {
    fn read(&self, mut files: &[ShardFile], batches: &Batches) -> Result<(), End> {
        while !files.is_empty() {
            let (now, later) = files.split_at(next_batch(files, self.limits, |file| self.size(file)));
            batches.send(self.batch(now)?)?;
            files = later;
        }
        Ok(())
    }

    /// Bytes of the file that become part of its row.
    fn size(&self, file: &ShardFile) -> usize {
        if self.columns.contains(&0) && !self.is_orphan(file) { read_size(file) } else { 0 }
    }

    /// Whether the file is a row of the metadata without a picture of its own.
    fn is_orphan(&self, file: &ShardFile) -> bool {
        matches!(&self.words, Words::Metadata(metadata) if file.range.is_some() && file.location == metadata.location)
    }

    /// The file's bytes, `None` where nobody asked for them, or what is wrong with it.
    fn picture(&self, file: &ShardFile) -> Result<Result<Option<Vec<u8>>, Fault>, FormatError> {
        if self.is_orphan(file) || !self.columns.contains(&0) {
            return Ok(Ok(None));
        }
        Ok(read_picture(&self.stores, file)?.map(Some))
    }

    fn batch(&self, files: &[ShardFile]) -> Result<RecordBatch, FormatError> {
        // Of the right size at once: a column that doubles as it grows takes up to three times its bytes.
        let bytes = files.iter().map(|file| self.size(file)).sum();
        let (mut images, mut names) = (MediaBuilder::with_capacity(files.len(), bytes), StringBuilder::new());
        let mut faults: Vec<Option<Fault>> = Vec::with_capacity(files.len());
        for file in files {
            let (picture, fault) = match self.picture(file)? {
                Ok(picture) => (picture, None),
                Err(fault) => (None, Some(fault)),
            };
            match self.is_orphan(file) {
                true => images.append_null(),
                false => images.append(picture.as_deref(), Some(&file.path)),
            }
            names.append_option((!file.path.is_empty()).then_some(&file.path));
            faults.push(fault);
        }
        let words: Vec<usize> = self.columns.iter().filter_map(|c| c.checked_sub(OWN_COLUMNS)).collect();
        let words = self.words(files, &words, &mut faults)?;
        let mut words = words.into_iter();
        let (images, names): (ArrayRef, ArrayRef) = (Arc::new(images.finish()), Arc::new(names.finish()));
        let columns = self.columns.iter().filter_map(|c| match c {
            0 => Some(Arc::clone(&images)),
            1 => Some(Arc::clone(&names)),
            _ => words.next(),
        });
        let columns = columns.collect();
        let mut rows = Rows::new();
        for (file, fault) in files.iter().zip(faults) {
            rows.push_with(self.id(file), fault);
        }
        rows.finish(&self.shape, columns, None)
    }

    fn id(&self, file: &ShardFile) -> RowId {
        match (&self.words, &file.range) {
            (Words::Metadata(metadata), Some(range)) if self.is_orphan(file) => {
                RowId::in_file(file_hash(&metadata.path), Place::Offset(range.start))
            }
            _ => RowId::in_file(file_hash(&file.path), Place::WholeFile),
        }
    }

    /// The columns at `wanted` of what is said about the files, and what is wrong with it, where nothing else is.
    fn words(
        &self,
        files: &[ShardFile],
        wanted: &[usize],
        faults: &mut [Option<Fault>],
    ) -> Result<Vec<ArrayRef>, FormatError> {
        match &self.words {
            Words::None => Ok(Vec::new()),
            Words::Sidecars if wanted.is_empty() => Ok(Vec::new()),
            Words::Sidecars => {
                let mut captions = StringBuilder::new();
                for (file, fault) in files.iter().zip(faults) {
                    match self.caption(file)? {
                        Ok(caption) => captions.append_option(caption),
                        Err(why) => {
                            captions.append_null();
                            fault.get_or_insert(why);
                        }
                    }
                }
                let captions: ArrayRef = Arc::new(captions.finish());
                Ok(vec![captions; wanted.len()])
            }
            Words::Metadata(metadata) => {
                let places: Vec<_> = files.iter().map(|f| f.range.clone().or_else(|| f.metadata.clone())).collect();
                let texts = read_ranges(&self.stores, &metadata.location, &places)?;
                let texts: Vec<Option<&[u8]>> = texts.iter().map(Option::as_deref).collect();
                let (columns, wrong) = metadata.columns(wanted, &texts)?;
                for (i, (file, why)) in files.iter().zip(wrong).enumerate() {
                    let at =
                        || format!("{}, the row at byte {}", metadata.path, places[i].as_ref().map_or(0, |r| r.start));
                    let why = why.map(|f| Fault { message: format!("{}: {}", at(), f.message), ..f });
                    let why = match texts[i] {
                        _ if file.path.is_empty() && why.is_some() => why,
                        Some(text) if self.is_orphan(file) => Some(row_fault(file, metadata, text)),
                        None => Some(Fault::new(
                            codes::MISSING_METADATA,
                            format!("{}: no row of {} names it", file.path, metadata.path),
                        )),
                        _ => why,
                    };
                    if faults[i].is_none() {
                        faults[i] = why;
                    }
                }
                Ok(columns)
            }
        }
    }

    /// The text beside a picture, without a byte order mark and the line breaks at its end.
    fn caption(&self, file: &ShardFile) -> Result<Result<Option<String>, Fault>, FormatError> {
        let Some(range) = &file.metadata else { return Ok(Ok(None)) };
        let (location, path) = (format!("{}.txt", stem(&file.location)), format!("{}.txt", stem(&file.path)));
        if range.end > LARGEST_FILE {
            let message = format!("{path}: expected at most {LARGEST_FILE} bytes in a file, found {}", range.end);
            return Ok(Err(Fault::new(codes::TOO_LONG, message)));
        }
        Ok(match read_file(&self.stores, &location, range.end)? {
            Err(message) => Err(Fault::new(codes::UNREADABLE_FILE, format!("{path}: {message}"))),
            Ok(bytes) => match str::from_utf8(&bytes) {
                Ok(text) => Ok(Some(text.trim_start_matches('\u{feff}').trim_end_matches(['\n', '\r']).to_owned())),
                Err(e) => Err(Fault::new(
                    codes::INVALID_UTF8,
                    format!("{path}: expected UTF-8, found other bytes from byte {} on", e.valid_up_to()),
                )),
            },
        })
    }
}
