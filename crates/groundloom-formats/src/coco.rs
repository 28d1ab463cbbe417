//! The `coco` source: pictures with the captions and boxes of COCO annotation files.
//!
//! Format: <https://cocodataset.org/#format-data>. An annotation file is one JSON document, so it is read once, before any work; what is kept of it is the names, captions and
//! boxes, not the outlines of objects.

use std::{
    collections::HashMap,
    fmt,
    io::{BufReader, Read},
    marker::PhantomData,
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder},
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef},
};
use async_trait::async_trait;
use futures::stream::BoxStream;
use groundloom_data::{
    Box2d, BoxesBuilder, GroundedBox, MediaBuilder, Place, RowId,
    columns::{boxes_type, column, media_type},
    file_hash,
};
use groundloom_spec::Config;
use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use xxhash_rust::xxh3::Xxh3;

use crate::{
    BatchLimits, DiscoverOptions, Discovery, FormatError, Reader, Shard, ShardFile, ShardReader, Source,
    compression::{Compression, Decompressed},
    folder_metadata::FILE_NAME,
    picture_files::{next_batch, read_picture, read_size},
    quarantine_codes as codes,
    shard_rows::{BatchShape, Batches, End, Fault, Rows, on_thread, shard_schema},
    shards::runs_of_files,
    store::{Entry, Stores, blocking, io_error},
};

/// Pictures with the captions and boxes of COCO annotation files (`captions_train2017.json`, `instances_train2017.json`, or of other data sets in that form).
///
/// A row for every entry of `images` in the files, sorted by file name; files that speak of the same image ids are put together. Columns: `id` (the image's id, as text), `file_name`,
/// `width`, `height`, `captions` (a list, in the files' order; where a file has captions), `boxes` (normalised `xyxy` with the category's name as `label`; where a file has boxes), and with
/// `images` the `image` itself. An image of which the folder has no file, an annotation of an image that no file lists, and a box that lies outside its image go to quarantine; pictures that
/// no annotation file lists are left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Coco {
    /// The annotation files: one path, pattern or URL, or several.
    #[schemars(length(min = 1))]
    pub annotations: OneOrMore,
    /// The folder of the pictures, or a URL of one (s3, gs, az). Without it rows have no column `image`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<String>,
    /// Keep boxes around crowds (`iscrowd`: many objects of one category in one region).
    #[serde(default)]
    pub crowd: bool,
}

/// One text or a list of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum OneOrMore {
    /// One.
    One(String),
    /// Several, in order.
    More(Vec<String>),
}

impl OneOrMore {
    fn all(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::More(all) => all,
        }
    }
}

impl Config for Coco {
    const NAME: &'static str = "coco";
    const SUMMARY: &'static str = "pictures with COCO captions and boxes";
    const EXAMPLE: &'static str =
        "scenes: { type: coco, annotations: [captions_train2017.json, instances_train2017.json], images: train2017 }";
}

#[async_trait]
impl Source for Coco {
    async fn discover(&self, stores: &Stores, options: &DiscoverOptions) -> Result<Discovery, FormatError> {
        let mut entries = Vec::new();
        for pattern in self.annotations.all() {
            entries.extend(
                stores.list(pattern, &["json", "json.gz", "json.zst"]).await.map_err(|e| e.for_key("annotations"))?,
            );
        }
        let (own, crowd) = (stores.clone(), self.crowd);
        let mut scenes = blocking(move || Scenes::read(&own, &entries, crowd)).await?;
        let pictures = match &self.images {
            Some(folder) => {
                let listed = stores.list_folder(folder, true).await.map_err(|e| e.for_key("images"))?;
                Some(listed.into_iter().map(|entry| (entry.path().to_owned(), entry)).collect::<HashMap<_, _>>())
            }
            None => None,
        };
        let files = scenes.files(pictures.as_ref(), self.images.as_deref());
        let schema = scenes.schema(self.images.is_some());
        let reader = CocoReader { stores: stores.clone(), schema: Arc::clone(&schema), scenes: Arc::new(scenes) };
        Ok(Discovery { schema, shards: runs_of_files(files, options), reader: Reader::Rows(Arc::new(reader)) })
    }
}

/// What the annotation files say, one scene for every image, sorted by path.
#[derive(Debug, Default)]
struct Scenes {
    all: Vec<Scene>,
    categories: Vec<String>,
    has_captions: bool,
    has_boxes: bool,
    /// Where the first annotation file is, for rows without a picture.
    location: String,
}

/// An image and what is said about it.
#[derive(Debug, Default)]
struct Scene {
    /// The file's name, or, where that names no row, the annotation file and the image's id.
    path: String,
    id: String,
    file_name: Option<String>,
    size: Option<(i64, i64)>,
    captions: Vec<String>,
    /// Number of the category, and normalised `xyxy`.
    boxes: Vec<(u32, Box2d)>,
    fault: Option<Fault>,
}

/// An entry of `images`.
#[derive(Deserialize)]
struct RawImage {
    id: Id,
    file_name: Option<String>,
    width: Option<f64>,
    height: Option<f64>,
}

/// An entry of `annotations`: of captions or of instances.
#[derive(Deserialize)]
struct RawAnnotation {
    image_id: Id,
    caption: Option<String>,
    /// `x, y, width, height` in pixels from the upper left corner.
    bbox: Option<Vec<f64>>,
    category_id: Option<Id>,
    #[serde(default)]
    iscrowd: Option<Flag>,
}

#[derive(Deserialize)]
struct RawCategory {
    id: Id,
    name: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Flag {
    Number(f64),
    Boolean(bool),
}

impl Flag {
    fn is_set(&self) -> bool {
        match self {
            Self::Number(number) => *number != 0.0,
            Self::Boolean(set) => *set,
        }
    }
}

/// Ids are numbers in COCO, texts elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Id(String);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IdVisitor;
        impl Visitor<'_> for IdVisitor {
            type Value = Id;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an id: a whole number or a text")
            }
            fn visit_u64<E>(self, id: u64) -> Result<Id, E> {
                Ok(Id(id.to_string()))
            }
            fn visit_i64<E>(self, id: i64) -> Result<Id, E> {
                Ok(Id(id.to_string()))
            }
            fn visit_str<E>(self, id: &str) -> Result<Id, E> {
                Ok(Id(id.to_owned()))
            }
        }
        deserializer.deserialize_any(IdVisitor)
    }
}

/// The three lists of an annotation file; the rest of it is passed over.
#[derive(Default)]
struct Document {
    images: Vec<RawImage>,
    annotations: Vec<RawAnnotation>,
    categories: Vec<RawCategory>,
    lists: usize,
}

/// A list whose elements are taken one by one, without one in between that holds them all as JSON.
struct Each<'a, T>(&'a mut Vec<T>, PhantomData<T>);

impl<'de, T: DeserializeOwned> DeserializeSeed<'de> for Each<'_, T> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, T: DeserializeOwned> Visitor<'de> for Each<'_, T> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(element) = list.next_element()? {
            self.0.push(element);
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for &mut Document {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a COCO file: an object with `images` and `annotations`")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            self.lists += usize::from(matches!(key.as_str(), "images" | "annotations"));
            match key.as_str() {
                "images" => map.next_value_seed(Each(&mut self.images, PhantomData))?,
                "annotations" => map.next_value_seed(Each(&mut self.annotations, PhantomData))?,
                "categories" => map.next_value_seed(Each(&mut self.categories, PhantomData))?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

impl Document {
    fn read(stores: &Stores, entry: &Entry) -> Result<Self, FormatError> {
        let malformed = |message: String| FormatError::Malformed { location: entry.location.to_string(), message };
        let source = stores.reader(&entry.location, None)?;
        let reader = Decompressed::new(source, Compression::of_path(entry.path()));
        let reader = BufReader::with_capacity(1 << 20, reader.map_err(|e| io_error(&entry.location, e))?);
        let document = Self::parse(reader).map_err(|e| match e.io_error_kind() {
            Some(kind) => io_error(&entry.location, kind.into()),
            None => malformed(format!("expected a COCO annotation file, found something else: {e}")),
        })?;
        if document.lists == 0 {
            return Err(malformed(
                "expected a COCO annotation file with `images` and `annotations`, found neither".to_owned(),
            ));
        }
        Ok(document)
    }

    fn parse(reader: impl Read) -> Result<Self, serde_json::Error> {
        let mut document = Self::default();
        let mut json = serde_json::Deserializer::from_reader(reader);
        json.deserialize_map(&mut document)?;
        json.end()?;
        Ok(document)
    }
}

impl Scenes {
    /// Reads the annotation files. Blocks.
    fn read(stores: &Stores, entries: &[Entry], crowd: bool) -> Result<Self, FormatError> {
        let mut scenes =
            Self { location: entries.first().map(|e| e.location.to_string()).unwrap_or_default(), ..Self::default() };
        let mut by_id: HashMap<Id, usize> = HashMap::new();
        for entry in entries {
            scenes.add(Document::read(stores, entry)?, entry.path(), crowd, &mut by_id);
        }
        scenes.name();
        Ok(scenes)
    }

    fn add(&mut self, document: Document, file: &str, crowd: bool, by_id: &mut HashMap<Id, usize>) {
        let before = self.all.len();
        for image in document.images {
            let size = |side: Option<f64>| side.filter(|s| *s >= 1.0).map(|s| s as i64);
            let mut scene = Scene {
                path: format!("{file}#{}", image.id.0),
                id: image.id.0.clone(),
                file_name: image
                    .file_name
                    .map(|name| name.trim_start_matches("./").to_owned())
                    .filter(|n| !n.is_empty()),
                size: size(image.width).zip(size(image.height)),
                ..Scene::default()
            };
            match by_id.get(&image.id) {
                // Captions and instances of the same images list them both.
                Some(&known) if known < before && self.all[known].file_name == scene.file_name => {
                    let known = &mut self.all[known];
                    known.size = known.size.or(scene.size);
                    continue;
                }
                Some(&known) => {
                    let other = self.all[known].file_name.as_deref().unwrap_or("no file");
                    let message = format!("{file}: image {} is there already, as {other}, which is used", scene.id);
                    scene.fault = Some(Fault::new(codes::DUPLICATE_KEY, message));
                }
                None => {
                    by_id.insert(image.id, self.all.len());
                }
            }
            if scene.file_name.is_none() {
                let message = format!("{file}: expected a `file_name` in the entry of image {}, found none", scene.id);
                scene.fault.get_or_insert(Fault::new(codes::MISSING_FILE, message));
            }
            self.all.push(scene);
        }
        let mut categories: HashMap<Id, u32> = HashMap::new();
        for category in document.categories {
            let number = self.categories.iter().position(|name| *name == category.name).unwrap_or_else(|| {
                self.categories.push(category.name.clone());
                self.categories.len() - 1
            });
            categories.insert(category.id, number as u32);
        }
        for annotation in document.annotations {
            let at = *by_id.entry(annotation.image_id.clone()).or_insert_with(|| {
                let id = annotation.image_id.0.clone();
                let message = format!("{file}: an annotation names image {id}, which no file lists under `images`");
                let fault = Some(Fault::new(codes::MISSING_METADATA, message));
                self.all.push(Scene { path: format!("{file}#{id}"), id, fault, ..Scene::default() });
                self.all.len() - 1
            });
            let scene = &mut self.all[at];
            if let Some(caption) = annotation.caption {
                self.has_captions = true;
                scene.captions.push(caption);
            }
            let Some(bbox) = annotation.bbox.filter(|b| !b.is_empty()) else { continue };
            self.has_boxes = true;
            if annotation.iscrowd.is_some_and(|flag| flag.is_set()) && !crowd {
                continue;
            }
            match normalised(&bbox, scene.size, annotation.category_id.as_ref(), &categories) {
                Ok(found) => scene.boxes.push(found),
                Err(message) => {
                    let message = format!("{file}: image {}: {message}", scene.id);
                    scene.fault.get_or_insert(Fault::new(codes::TYPE_MISMATCH, message));
                }
            }
        }
    }

    /// Gives every scene a path of its own, the file's name where no scene before it has it, and sorts them by it.
    fn name(&mut self) {
        let mut taken: HashMap<String, String> = HashMap::new();
        let mut others = Vec::new();
        for (at, scene) in self.all.iter_mut().enumerate() {
            let is_again = scene.fault.as_ref().is_some_and(|fault| fault.code == codes::DUPLICATE_KEY);
            match scene.file_name.clone().filter(|_| !is_again) {
                Some(name) if !taken.contains_key(&name) => {
                    taken.insert(name.clone(), scene.id.clone());
                    scene.path = name;
                }
                Some(name) => {
                    let message = format!(
                        "{}: `{name}` is the file of image {} already, which is used",
                        scene.path, taken[&name]
                    );
                    scene.fault = Some(Fault::new(codes::DUPLICATE_KEY, message));
                    others.push(at);
                }
                None => others.push(at),
            }
        }
        for at in others {
            let scene = &mut self.all[at];
            while taken.contains_key(&scene.path) {
                scene.path.push('#');
            }
            taken.insert(scene.path.clone(), scene.id.clone());
        }
        self.all.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    }

    /// The scenes as files of shards; those whose picture the folder lacks get their fault.
    fn files(&mut self, pictures: Option<&HashMap<String, Entry>>, folder: Option<&str>) -> Vec<ShardFile> {
        let mut files = Vec::with_capacity(self.all.len());
        for scene in &mut self.all {
            let picture = match (&scene.file_name, pictures) {
                (Some(name), Some(pictures)) => {
                    let found = pictures.get(name);
                    if found.is_none() {
                        let folder = folder.unwrap_or_default();
                        let message =
                            format!("image {}: expected `{name}` in `{folder}`, found no such file", scene.id);
                        scene.fault.get_or_insert(Fault::new(codes::MISSING_FILE, message));
                    }
                    found
                }
                _ => None,
            };
            let said = scene.hash(&self.categories);
            files.push(ShardFile {
                location: picture.map_or_else(|| self.location.clone(), |p| p.location.to_string()),
                path: scene.path.clone(),
                size: picture.map_or(1, |p| p.size),
                range: None,
                version: picture.map_or_else(|| format!("{said:016x}"), |p| format!("{}-{said:016x}", p.version)),
                metadata: None,
            });
        }
        files
    }

    fn schema(&self, images: bool) -> SchemaRef {
        let mut fields: Vec<FieldRef> = ["id", FILE_NAME].map(|name| column(name, DataType::Utf8)).to_vec();
        fields.extend(["width", "height"].map(|name| column(name, DataType::Int64)));
        if self.has_captions {
            let item = Arc::new(Field::new("item", DataType::Utf8, true));
            fields.push(column("captions", DataType::List(item)));
        }
        if self.has_boxes {
            fields.push(column("boxes", boxes_type()));
        }
        if images {
            fields.push(column("image", media_type()));
        }
        Arc::new(Schema::new(fields))
    }

    fn of(&self, path: &str) -> Option<&Scene> {
        self.all.binary_search_by(|scene| scene.path.as_str().cmp(path)).ok().map(|at| &self.all[at])
    }
}

impl Scene {
    /// Changes with everything that the annotation files say of the image.
    fn hash(&self, categories: &[String]) -> u64 {
        let mut hash = Xxh3::new();
        let mut text = |text: &str| {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        };
        text(&self.id);
        text(self.file_name.as_deref().unwrap_or_default());
        self.captions.iter().for_each(|caption| text(caption));
        self.boxes.iter().for_each(|(category, _)| text(&categories[*category as usize]));
        text(self.fault.as_ref().map_or("", |fault| &fault.message));
        for (_, rect) in &self.boxes {
            rect.xyxy().iter().for_each(|value| hash.update(&value.to_le_bytes()));
        }
        let (width, height) = self.size.unwrap_or_default();
        hash.update(&width.to_le_bytes());
        hash.update(&height.to_le_bytes());
        hash.digest()
    }
}

/// A box of pixels in fractions of the image, with the number of its category.
fn normalised(
    bbox: &[f64],
    size: Option<(i64, i64)>,
    category: Option<&Id>,
    categories: &HashMap<Id, u32>,
) -> Result<(u32, Box2d), String> {
    let &[x, y, w, h] = bbox else {
        return Err(format!("expected four numbers in a bbox, found {}", bbox.len()));
    };
    let Some((width, height)) = size else {
        return Err("expected `width` and `height` beside its boxes, found none".to_owned());
    };
    let id = category.map_or("none", |id| id.0.as_str());
    let Some(&category) = category.and_then(|id| categories.get(id)) else {
        return Err(format!("expected a `category_id` that `categories` lists, found {id}"));
    };
    let (width, height) = (width as f64, height as f64);
    let rect = Box2d::new((x / width) as f32, (y / height) as f32, ((x + w) / width) as f32, ((y + h) / height) as f32);
    let rect = rect.map_err(|_| {
        format!("expected a bbox [x, y, width, height] inside the image of {width} x {height} pixels, found {bbox:?}")
    })?;
    Ok((category, rect))
}

#[derive(Debug)]
struct CocoReader {
    stores: Stores,
    schema: SchemaRef,
    scenes: Arc<Scenes>,
}

impl ShardReader for CocoReader {
    fn read(
        &self,
        shard: &Shard,
        columns: &[usize],
        limits: BatchLimits,
    ) -> BoxStream<'static, Result<RecordBatch, FormatError>> {
        let reading = Reading {
            stores: self.stores.clone(),
            scenes: Arc::clone(&self.scenes),
            names: columns.iter().map(|c| self.schema.field(*c).name().clone()).collect(),
            shape: BatchShape { schema: shard_schema(&self.schema, columns), source: Coco::NAME },
            limits,
        };
        let files: Vec<ShardFile> = shard.files.iter().collect();
        on_thread(move |batches| reading.read(&files, batches))
    }
}

/// The reading of one shard.
struct Reading {
    stores: Stores,
    scenes: Arc<Scenes>,
    names: Vec<String>,
    shape: BatchShape,
    limits: BatchLimits,
}

impl Reading {
    fn read(&self, mut files: &[ShardFile], batches: &Batches) -> Result<(), End> {
        let images = self.names.iter().any(|name| name == "image");
        while !files.is_empty() {
            let end = next_batch(files, self.limits, |file| if images { read_size(file) } else { 0 });
            let (now, later) = files.split_at(end);
            batches.send(self.batch(now)?)?;
            files = later;
        }
        Ok(())
    }

    fn batch(&self, files: &[ShardFile]) -> Result<RecordBatch, FormatError> {
        let scenes: Vec<&Scene> = files
            .iter()
            .map(|file| {
                self.scenes.of(&file.path).ok_or_else(|| FormatError::Malformed {
                    location: file.location.clone(),
                    message: format!("expected an image `{}` in the annotation files, found none", file.path),
                })
            })
            .collect::<Result<_, _>>()?;
        let mut faults: Vec<Option<Fault>> = scenes.iter().map(|scene| scene.fault.clone()).collect();
        let columns = self.names.iter().map(|name| self.column(name, files, &scenes, &mut faults));
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let mut rows = Rows::new();
        for (scene, fault) in scenes.iter().zip(faults) {
            rows.push_with(RowId::in_file(file_hash(&scene.path), Place::WholeFile), fault);
        }
        rows.finish(&self.shape, columns, None)
    }

    fn column(
        &self,
        name: &str,
        files: &[ShardFile],
        scenes: &[&Scene],
        faults: &mut [Option<Fault>],
    ) -> Result<ArrayRef, FormatError> {
        Ok(match name {
            "id" => Arc::new(StringArray::from_iter_values(scenes.iter().map(|s| &s.id))),
            FILE_NAME => Arc::new(StringArray::from_iter(scenes.iter().map(|s| s.file_name.as_deref()))),
            "width" => Arc::new(Int64Array::from_iter(scenes.iter().map(|s| s.size.map(|(width, _)| width)))),
            "height" => Arc::new(Int64Array::from_iter(scenes.iter().map(|s| s.size.map(|(_, height)| height)))),
            "captions" => {
                let mut captions = ListBuilder::new(StringBuilder::new());
                for scene in scenes {
                    scene.captions.iter().for_each(|caption| captions.values().append_value(caption));
                    captions.append(true);
                }
                Arc::new(captions.finish())
            }
            "boxes" => {
                let mut boxes = BoxesBuilder::new();
                for scene in scenes {
                    let of = |&(category, rect): &(u32, Box2d)| GroundedBox {
                        chunk: None,
                        span: None,
                        phrase: None,
                        label: self.scenes.categories.get(category as usize).map(String::as_str),
                        score: 1.0,
                        rect,
                    };
                    boxes.append_row(&scene.boxes.iter().map(of).collect::<Vec<_>>());
                }
                Arc::new(boxes.finish())
            }
            _ => {
                let bytes = files.iter().map(read_size).sum();
                let mut images = MediaBuilder::with_capacity(files.len(), bytes);
                for ((file, scene), fault) in files.iter().zip(scenes).zip(faults) {
                    let picture = match fault {
                        Some(_) => None,
                        None => match read_picture(&self.stores, file)? {
                            Ok(bytes) => Some(bytes),
                            Err(why) => {
                                *fault = Some(why);
                                None
                            }
                        },
                    };
                    images.append(picture.as_deref(), scene.file_name.as_deref());
                }
                Arc::new(images.finish())
            }
        })
    }
}

/// For `fuzzing`.
#[cfg(any(fuzzing, test))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let (mut scenes, mut by_id) = (Scenes::default(), HashMap::new());
    for file in ["a.json", "b.json"] {
        let Ok(document) = Document::parse(bytes) else { return };
        scenes.add(document, file, true, &mut by_id);
    }
    scenes.name();
    let files = scenes.files(None, None);
    assert!(files.windows(2).all(|w| w[0].path < w[1].path), "every scene has a path of its own");
    assert!(files.iter().all(|file| scenes.of(&file.path).is_some()));
}
