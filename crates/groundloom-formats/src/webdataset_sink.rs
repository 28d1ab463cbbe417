//! The WebDataset sink: tar archives whose members belong together by name.

use std::{
    fmt::Display,
    fs::File,
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, StringArray},
    compute::cast,
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef},
    error::ArrowError,
    record_batch::{RecordBatch, RecordBatchOptions},
};
use groundloom_data::{
    MediaView,
    columns::{ROW_ID, is_media},
    media::ImageFormat,
};
use groundloom_spec::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    FormatError, PartWriter, Sink,
    grit::row_name,
    hugging_face::media_kind,
    json_rows::{JsonRows, MediaInJson},
    output_columns::{Form, OutputColumns},
    tar_writer::{END, extent, write_member},
};

/// The column that becomes a text file of its own, as image-text tars have it.
const CAPTION: &str = "caption";

/// Writes WebDataset tars: per row the media files, the caption as `KEY.txt` and everything else as `KEY.json`.
///
/// The first column of a kind of media gives `KEY.jpg` (the ending by the file's own content), further ones `KEY.COLUMN.jpg`; where a file came from stands in the JSON as `COLUMN_path`.
/// With `form: grit` the JSON has `noun_chunks` and `ref_exps`, and the tars look like those that img2dataset makes of the released GrIT.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebdatasetSink {
    /// Folder (or URL) of the data set. Files go into `data/` inside it.
    pub path: String,
    /// Columns to render in a data set's released form, beside the typed ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub form: Option<Form>,
    /// The columns to write, in that order; all of them if not given. `row_id` is always written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Vec<String>>,
    /// The column of text whose value names a row's members. Values must be unique; characters other than letters, digits, `-` and `_` are written as `%` and their hexadecimal bytes,
    /// since a dot ends the key and a slash would be a folder.
    #[serde(default = "default_key")]
    pub key: String,
    /// Aim for files of this many bytes.
    #[serde(default = "default_file_bytes")]
    #[schemars(range(min = 1))]
    pub file_bytes: u64,
}

fn default_key() -> String {
    ROW_ID.to_owned()
}

fn default_file_bytes() -> u64 {
    256 << 20
}

impl Config for WebdatasetSink {
    const NAME: &'static str = "webdataset";
    const SUMMARY: &'static str = "WebDataset tars: media files, captions and JSON side by side";
    const EXAMPLE: &'static str = "tars: { type: webdataset, path: out/tars, form: grit }";
}

impl WebdatasetSink {
    fn members(&self, input: &Schema) -> Result<Members, FormatError> {
        let output = OutputColumns::new(input, self.form, self.columns.as_deref())?;
        let Ok(key) = input.field_with_name(&self.key) else {
            let names: Vec<&str> = input.fields().iter().map(|f| f.name().as_str()).collect();
            return Err(FormatError::Column {
                column: self.key.clone(),
                message: format!(
                    "`key` names the column `{}`, and there is none; there are {}",
                    self.key,
                    names.join(", ")
                ),
            });
        };
        if !matches!(
            key.data_type(),
            DataType::Utf8
                | DataType::LargeUtf8
                | DataType::Utf8View
                | DataType::Int32
                | DataType::Int64
                | DataType::UInt64
        ) {
            return Err(FormatError::Column {
                column: self.key.clone(),
                message: format!(
                    "`key` names the column `{}` of type {}; a key is text or an integer",
                    self.key,
                    key.data_type()
                ),
            });
        }
        let schema = output.schema();
        let (mut media, mut json_fields, mut caption) = (Vec::<MediaColumn>::new(), Vec::new(), None);
        for (index, field) in schema.fields().iter().enumerate() {
            match field.data_type() {
                data_type if is_media(data_type) => {
                    let kind = media_kind(field.name());
                    let infix = match media.iter().any(|m| m.kind == kind) {
                        true => format!("{}.", encode_key(field.name())),
                        false => String::new(),
                    };
                    media.push(MediaColumn { index, kind, infix });
                }
                DataType::Utf8 | DataType::LargeUtf8 if field.name() == CAPTION => caption = Some(index),
                _ => json_fields.push((field.clone(), JsonColumn::Output(index))),
            }
        }
        for (i, column) in media.iter().enumerate() {
            let name = format!("{}_path", schema.field(column.index).name());
            if schema.column_with_name(&name).is_none() {
                json_fields.push((Arc::new(Field::new(name, DataType::Utf8, true)), JsonColumn::PathOf(i)));
            }
        }
        let (fields, json_columns): (Vec<FieldRef>, Vec<JsonColumn>) = json_fields.into_iter().unzip();
        let json = JsonRows::new(&Schema::new(fields), Some(MediaInJson::Base64))?;
        Ok(Members { output, media, caption, json_columns, json })
    }
}

impl Sink for WebdatasetSink {
    fn path(&self) -> &str {
        &self.path
    }

    fn schema(&self, input: &Schema) -> Result<SchemaRef, FormatError> {
        Ok(self.members(input)?.output.schema().clone())
    }

    /// `metadata` is not written: a tar has no place for it but PAX headers, which some readers stumble over.
    fn writer(
        &self,
        input: SchemaRef,
        file: File,
        _metadata: &[(String, String)],
    ) -> Result<Box<dyn PartWriter>, FormatError> {
        let members = self.members(&input)?;
        let file = BufWriter::with_capacity(256 << 10, file);
        Ok(Box::new(Part {
            location: self.path.clone(),
            key: self.key.clone(),
            members,
            file,
            last_key: String::new(),
        }))
    }

    fn join(&self, parts: &[PathBuf], output: &Path) -> Result<(), FormatError> {
        join(parts, output)
    }

    fn extension(&self) -> &'static str {
        "tar"
    }

    fn file_bytes(&self) -> u64 {
        self.file_bytes
    }
}

/// A media column and how its members are named.
struct MediaColumn {
    /// Index among the output columns.
    index: usize,
    /// `Image`, `Audio` or `Video`.
    kind: &'static str,
    /// What stands between key and ending: nothing for the first column of its kind, else the column's name and a dot.
    infix: String,
}

/// Where a key of the JSON comes from.
enum JsonColumn {
    /// The output column of that index.
    Output(usize),
    /// The paths of the media column of that index among the media columns.
    PathOf(usize),
}

/// How a row's columns become members.
struct Members {
    output: OutputColumns,
    media: Vec<MediaColumn>,
    caption: Option<usize>,
    json_columns: Vec<JsonColumn>,
    json: JsonRows,
}

struct Part {
    location: String,
    key: String,
    members: Members,
    file: BufWriter<File>,
    last_key: String,
}

impl PartWriter for Part {
    fn write(&mut self, rows: &RecordBatch) -> Result<(), FormatError> {
        let keys = rows.column_by_name(&self.key).ok_or_else(|| no_column(&self.key, "the batch lacks it"))?;
        let keys = texts(&self.key, keys)?;
        let output = self.members.output.apply(rows)?;
        let media = self.members.media.iter().map(|m| {
            MediaView::try_new(output.column(m.index))
                .map_err(|e| no_column(output.schema_ref().field(m.index).name(), e))
        });
        let media = media.collect::<Result<Vec<_>, _>>()?;
        let captions = self.members.caption.map(|index| texts(CAPTION, output.column(index))).transpose()?;
        let (json, ends) = self.members.json(&output, &media).map_err(|e| arrow_failed(&self.location, e))?;

        for row in 0..rows.num_rows() {
            let key = self.next_key(&keys, row).map_err(|message| FormatError::Malformed {
                location: format!("row {}", row_name(rows, row)),
                message: format!("column `{}`: {message}", self.key),
            })?;
            let mut member = |name: &str, content: &[u8]| {
                write_member(&mut self.file, name, content).map_err(|e| failed(&self.location, e))
            };
            for (column, view) in self.members.media.iter().zip(&media) {
                if let Some(bytes) = view.bytes(row) {
                    let ending = ending(bytes, view.path(row));
                    member(&format!("{key}.{}{ending}", column.infix), bytes)?;
                }
            }
            if let Some(captions) = &captions
                && captions.is_valid(row)
            {
                member(&format!("{key}.txt"), captions.value(row).as_bytes())?;
            }
            let start = if row == 0 { 0 } else { ends[row - 1] };
            member(&format!("{key}.json"), &json[start..ends[row]])?;
            self.last_key = key;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<File, FormatError> {
        self.file.write_all(&END).map_err(|e| failed(&self.location, e))?;
        self.file.into_inner().map_err(|e| failed(&self.location, e.into_error()))
    }
}

impl Part {
    /// The row's key as it stands in member names.
    fn next_key(&self, keys: &StringArray, row: usize) -> Result<String, String> {
        if keys.is_null(row) || keys.value(row).is_empty() {
            return Err("expected a key, found none".to_owned());
        }
        let key = encode_key(keys.value(row));
        if key == self.last_key {
            return Err(format!(
                "expected keys that are unique, found {:?} twice in a row: readers would take both rows for one",
                keys.value(row)
            ));
        }
        Ok(key)
    }
}

impl Members {
    /// The rows' JSON one after the other, and where each ends.
    fn json(&self, output: &RecordBatch, media: &[MediaView]) -> Result<(Vec<u8>, Vec<usize>), ArrowError> {
        let columns = self.json_columns.iter().map(|column| match column {
            JsonColumn::Output(index) => output.column(*index).clone(),
            JsonColumn::PathOf(index) => {
                Arc::new((0..output.num_rows()).map(|row| media[*index].path(row)).collect::<StringArray>()) as ArrayRef
            }
        });
        let options = RecordBatchOptions::new().with_row_count(Some(output.num_rows()));
        let rows = RecordBatch::try_new_with_options(self.json.schema().clone(), columns.collect(), &options)?;
        let (mut json, mut ends) = (Vec::new(), Vec::with_capacity(rows.num_rows()));
        self.json.write(&rows, &mut json, b"", |_, json| {
            ends.push(json.len());
            Ok::<(), ArrowError>(())
        })?;
        Ok((json, ends))
    }
}

fn texts(name: &str, column: &ArrayRef) -> Result<StringArray, FormatError> {
    let column = cast(column, &DataType::Utf8).map_err(|e| no_column(name, e))?;
    Ok(column.as_string::<i32>().clone())
}

/// A key that is one path segment without a dot: letters and digits of any script, `-` and `_` stay, every other byte becomes `%` and two hexadecimal digits. Different texts give
/// different keys.
fn encode_key(text: &str) -> String {
    let mut key = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_alphanumeric() || c == '-' || c == '_' {
            key.push(c);
        } else {
            c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| key.push_str(&format!("%{byte:02X}")));
        }
    }
    key
}

/// File ending by content; for what is not recognised the ending of the path it came from, or `bin`.
fn ending(bytes: &[u8], path: Option<&str>) -> String {
    if let Some(format) = ImageFormat::sniff(bytes) {
        return format.extension().to_owned();
    }
    let known = match bytes {
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'A', b'V', b'E', ..] => Some("wav"),
        [b'f', b'L', b'a', b'C', ..] => Some("flac"),
        [b'O', b'g', b'g', b'S', ..] => Some("ogg"),
        [b'I', b'D', b'3', ..] | [0xff, 0xfb | 0xf3 | 0xf2, ..] => Some("mp3"),
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => Some("mp4"),
        [0x1a, 0x45, 0xdf, 0xa3, ..] => Some("webm"),
        _ => None,
    };
    let of_path = || {
        let (_, ending) = path?.rsplit('/').next()?.rsplit_once('.')?;
        let plain = (1..=5).contains(&ending.len()) && ending.bytes().all(|b| b.is_ascii_alphanumeric());
        // These would be taken for the row's own text and JSON.
        (plain && !["txt", "json"].contains(&ending.to_ascii_lowercase().as_str())).then(|| ending.to_ascii_lowercase())
    };
    known.map(str::to_owned).or_else(of_path).unwrap_or_else(|| "bin".to_owned())
}

/// Concatenates tars: each without its end blocks, then the end blocks once.
///
/// # Errors
/// A part that is damaged or cut off, two parts whose rows at the seam have one key, a full disk.
pub fn join(parts: &[PathBuf], output: &Path) -> Result<(), FormatError> {
    let name = output.display().to_string();
    let mut out = File::create(output).map_err(|e| failed(&name, e))?;
    let mut last_key: Option<String> = None;
    for path in parts {
        let location = path.display().to_string();
        let mut part = File::open(path).map_err(|e| failed(&location, e))?;
        let extent = extent(&mut part).map_err(|e| match e.kind() {
            io::ErrorKind::InvalidData => FormatError::Malformed { location: location.clone(), message: e.to_string() },
            _ => failed(&location, e),
        })?;
        if let Some((first, last)) = extent.names {
            let key = |name: &str| name.split_once('.').map_or(name, |(key, _)| key).to_owned();
            if last_key.as_ref() == Some(&key(&first)) {
                let message = format!(
                    "expected keys that are unique, found {:?} here and at the end of the part before: readers would take both rows for one",
                    key(&first)
                );
                return Err(FormatError::Malformed { location, message });
            }
            last_key = Some(key(&last));
        }
        part.seek(SeekFrom::Start(0)).map_err(|e| failed(&location, e))?;
        io::copy(&mut part.take(extent.end), &mut out).map_err(|e| failed(&name, e))?;
    }
    out.write_all(&END).map_err(|e| failed(&name, e))?;
    out.sync_all().map_err(|e| failed(&name, e))
}

fn no_column(column: &str, error: impl Display) -> FormatError {
    FormatError::Column { column: column.to_owned(), message: format!("column `{column}`: {error}") }
}

fn arrow_failed(location: &str, source: ArrowError) -> FormatError {
    FormatError::Arrow { location: location.to_owned(), source }
}

fn failed(location: &str, error: io::Error) -> FormatError {
    FormatError::Io {
        location: location.to_owned(),
        message: format!("writing a tar failed: {error}"),
        source: Some(Box::new(error)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_one_path_segment() {
        let cases = [
            ("000000042", "000000042"),
            ("../../etc/passwd", "%2E%2E%2F%2E%2E%2Fetc%2Fpasswd"),
            ("photos/a b.jpg", "photos%2Fa%20b%2Ejpg"),
            ("שלום_1-é", "שלום_1-é"),
            (r"a\b\0", "a%5Cb%5C0"),
        ];
        for (text, key) in cases {
            assert_eq!(encode_key(text), key);
        }
    }

    #[test]
    fn endings_come_from_content_first() {
        let cases: [(&[u8], Option<&str>, &str); 6] = [
            (b"\xff\xd8\xff\xe0", Some("a.png"), "jpg"),
            (b"RIFF\0\0\0\0WAVEfmt ", None, "wav"),
            (b"????", Some("clips/a.AVIF"), "avif"),
            (b"????", Some("a.json"), "bin"),
            (b"????", Some("a/b.c/d"), "bin"),
            (b"", None, "bin"),
        ];
        for (bytes, path, expected) in cases {
            assert_eq!(ending(bytes, path), expected);
        }
    }

    proptest! {
        #[test]
        fn keys_are_safe_and_distinct(a in any::<String>(), b in any::<String>()) {
            let key = encode_key(&a);
            prop_assert!(!key.contains(['.', '/', '\\', '\0']));
            prop_assert_eq!(a == b, key == encode_key(&b));
        }
    }
}
