//! The training TSV of GrIT: what Kosmos-2's training code reads.
//!
//! One line a row, six columns: MD5 of the JPEG, caption, JPEG in base64, width, height, and a Python dict literal with `phrase` (`noun_chunks`) and `expression_v1` (`ref_exps`).
//! Source: `kosmos-2/data/prepare_grit.py` (writer) and `kosmos-2/unilm/data/vl/laion2b_obj_loader.py`, `obj_utils.py` (reader) in `microsoft/unilm`.
//!
//! Three things differ from the reference writer, each because the reference reader would lose the row otherwise or in effect:
//!
//! - Tabs and line breaks inside a caption become one space each, so that spans stay right. The reference writes them as they are, and its reader then cuts the line there.
//! - `start` and `end` are written as integers, since the reader slices the caption with them; the released Parquet holds them as floating-point numbers.
//! - Pictures are written upright (EXIF orientation applied), because boxes are relative to the upright picture.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{Array, AsArray},
    compute::cast,
    datatypes::{DataType, Field, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use groundloom_data::{
    MediaView,
    media::{DecodeLimits, decode_rgb},
};
use groundloom_spec::Config;
use image::codecs::jpeg::JpegEncoder;
use md5::{Digest, Md5};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    FormatError, PartWriter, Sink,
    grit::{self, Entry, Lists},
};

const IMAGE: &str = "image";
const CAPTION: &str = "caption";

/// Writes the TSV that Kosmos-2's training code reads: MD5, caption, JPEG in base64, width, height, and the boxes as a Python dict.
///
/// It needs the columns `image`, `caption`, `chunks`, `boxes` and `expressions`; other columns have no place in the format. Pictures are encoded anew as upright JPEGs. Tabs and line
/// breaks inside captions become spaces. A row without a picture or a caption stops the run: a `filter` keeps such rows away.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GritTsvSink {
    /// Folder (or URL) of the data set. Files go into `data/` inside it.
    pub path: String,
    /// JPEG quality, 1 to 100. 75 is what the reference writer (Pillow's default) uses.
    #[serde(default = "default_quality")]
    #[schemars(range(min = 1, max = 100))]
    pub quality: u8,
    /// Aim for files of this many bytes.
    #[serde(default = "default_file_bytes")]
    #[schemars(range(min = 1))]
    pub file_bytes: u64,
}

fn default_quality() -> u8 {
    75
}

fn default_file_bytes() -> u64 {
    256 << 20
}

impl Config for GritTsvSink {
    const NAME: &'static str = "grit_tsv";
    const SUMMARY: &'static str = "The TSV that Kosmos-2's training code reads";
    const EXAMPLE: &'static str = "training: { type: grit_tsv, path: out/grit-tsv }";
}

impl Sink for GritTsvSink {
    fn path(&self) -> &str {
        &self.path
    }

    /// The six columns of a line, in order.
    fn schema(&self, input: &Schema) -> Result<SchemaRef, FormatError> {
        grit::check(input)?;
        let image = input.field_with_name(IMAGE).map_err(|_| no_column(IMAGE, "there is none"))?;
        MediaView::check_type(image.data_type()).map_err(|e| no_column(IMAGE, e))?;
        let caption = input.field_with_name(CAPTION).map_err(|_| no_column(CAPTION, "there is none"))?;
        if !matches!(caption.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) {
            return Err(no_column(CAPTION, format_args!("expected text, found {}", caption.data_type())));
        }
        let columns = [
            ("md5", DataType::Utf8),
            (CAPTION, DataType::Utf8),
            (IMAGE, DataType::Utf8),
            ("width", DataType::UInt32),
            ("height", DataType::UInt32),
            ("boxes", DataType::Utf8),
        ];
        let fields: Vec<Field> =
            columns.into_iter().map(|(name, data_type)| Field::new(name, data_type, false)).collect();
        Ok(Arc::new(Schema::new(fields)))
    }

    /// `metadata` is not written: a TSV has no place for it.
    fn writer(
        &self,
        input: SchemaRef,
        file: File,
        _metadata: &[(String, String)],
    ) -> Result<Box<dyn PartWriter>, FormatError> {
        self.schema(&input)?;
        let file = BufWriter::with_capacity(256 << 10, file);
        Ok(Box::new(Part { location: self.path.clone(), quality: self.quality, file, replaced: 0 }))
    }

    /// Concatenates the parts' bytes.
    fn join(&self, parts: &[PathBuf], output: &Path) -> Result<(), FormatError> {
        let name = output.display().to_string();
        let mut out = File::create(output).map_err(|e| failed(&name, e))?;
        for part in parts {
            let mut part = File::open(part).map_err(|e| failed(&part.display().to_string(), e))?;
            io::copy(&mut part, &mut out).map_err(|e| failed(&name, e))?;
        }
        out.sync_all().map_err(|e| failed(&name, e))
    }

    fn extension(&self) -> &'static str {
        "tsv"
    }

    fn file_bytes(&self) -> u64 {
        self.file_bytes
    }
}

struct Part {
    location: String,
    quality: u8,
    file: BufWriter<File>,
    /// Tabs and line breaks of captions that became spaces.
    replaced: u64,
}

impl PartWriter for Part {
    fn write(&mut self, rows: &RecordBatch) -> Result<(), FormatError> {
        let column =
            |name: &'static str| rows.column_by_name(name).ok_or_else(|| no_column(name, "the batch lacks it"));
        let images = MediaView::try_new(column(IMAGE)?).map_err(|e| no_column(IMAGE, e))?;
        let captions = cast(column(CAPTION)?, &DataType::Utf8).map_err(|e| no_column(CAPTION, e))?;
        let captions = captions.as_string::<i32>();
        grit::lists_of(rows, |row, lists| {
            let wrong = |message: String| FormatError::Malformed {
                location: format!("row {}", grit::row_name(rows, row)),
                message,
            };
            let missing = |name: &str| {
                wrong(format!(
                    "the TSV needs a value in the column `{name}`, and there is none; drop such rows with a `filter`"
                ))
            };
            if captions.is_null(row) {
                return Err(missing(CAPTION));
            }
            let bytes = images.bytes(row).ok_or_else(|| missing(IMAGE))?;
            let picture = Jpeg::new(bytes, self.quality).map_err(|e| wrong(format!("column `{IMAGE}`: {e}")))?;
            let (line, replaced) = line(&picture, captions.value(row), &lists);
            self.replaced += replaced;
            self.file.write_all(line.as_bytes()).map_err(|e| failed(&self.location, e))
        })
    }

    fn finish(self: Box<Self>) -> Result<File, FormatError> {
        if self.replaced > 0 {
            tracing::warn!(replaced = self.replaced, "tabs and line breaks in captions became spaces");
        }
        let location = self.location;
        self.file.into_inner().map_err(|e| failed(&location, e.into_error()))
    }
}

/// A picture as the TSV holds it.
struct Jpeg {
    bytes: Vec<u8>,
    width: u32,
    height: u32,
}

impl Jpeg {
    fn new(encoded: &[u8], quality: u8) -> Result<Self, String> {
        let pixels = decode_rgb(encoded, &DecodeLimits::default()).map_err(|e| e.to_string())?;
        let mut bytes = Vec::new();
        JpegEncoder::new_with_quality(&mut bytes, quality)
            .encode_image(&pixels)
            .map_err(|e| format!("the picture cannot be written as JPEG: {e}"))?;
        Ok(Self { bytes, width: pixels.width(), height: pixels.height() })
    }
}

/// One line with its line break, and how many characters of the caption became spaces.
fn line(picture: &Jpeg, caption: &str, lists: &Lists) -> (String, u64) {
    let mut line = String::with_capacity(picture.bytes.len() * 4 / 3 + caption.len() + 256);
    for byte in Md5::digest(&picture.bytes) {
        let _ = write!(line, "{byte:02x}");
    }
    line.push('\t');
    let mut replaced = 0;
    for c in caption.chars() {
        let breaks = matches!(c, '\t' | '\n' | '\r');
        replaced += u64::from(breaks);
        line.push(if breaks { ' ' } else { c });
    }
    line.push('\t');
    STANDARD.encode_string(&picture.bytes, &mut line);
    let _ = write!(line, "\t{}\t{}\t{{'phrase': ", picture.width, picture.height);
    push_entries(&mut line, &lists.noun_chunks);
    line.push_str(", 'expression_v1': ");
    push_entries(&mut line, &lists.ref_exps);
    line.push_str("}\n");
    (line, replaced)
}

/// A Python list of lists. Rust's shortest float notation (`0.25`, `1e-7`) is Python's too.
fn push_entries(line: &mut String, entries: &[Entry]) {
    line.push('[');
    for (i, entry) in entries.iter().enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        let _ = write!(line, "{comma}[{}, {}", entry.span.start, entry.span.end);
        for number in &entry.numbers()[2..] {
            let _ = write!(line, ", {number:?}");
        }
        line.push(']');
    }
    line.push(']');
}

fn no_column(column: &str, error: impl std::fmt::Display) -> FormatError {
    FormatError::Column {
        column: column.to_owned(),
        message: format!("the GrIT TSV needs the column `{column}`: {error}"),
    }
}

fn failed(location: &str, error: io::Error) -> FormatError {
    FormatError::Io {
        location: location.to_owned(),
        message: format!("writing a TSV failed: {error}"),
        source: Some(Box::new(error)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use groundloom_data::CharSpan;
    use proptest::prelude::*;

    fn entry(start: usize, end: usize, score: f32) -> Entry {
        Entry { span: CharSpan { start, end }, xyxy: [0.25, 0.0, 1.0, 0.5], score }
    }

    fn picture() -> Jpeg {
        Jpeg { bytes: b"jpeg".to_vec(), width: 640, height: 480 }
    }

    #[test]
    fn a_line_is_what_the_reference_writes() {
        let lists =
            Lists { noun_chunks: vec![entry(0, 5, 0.75), entry(9, 16, 0.5)], ref_exps: vec![entry(0, 16, 0.75)] };
        let (line, replaced) = line(&picture(), "a dog in a field", &lists);
        assert_eq!(
            line,
            "ab4f3ccba74857c5f2ba0d5b7dbf65e1\ta dog in a field\tanBlZw==\t640\t480\t\
             {'phrase': [[0, 5, 0.25, 0.0, 1.0, 0.5, 0.75], [9, 16, 0.25, 0.0, 1.0, 0.5, 0.5]], 'expression_v1': [[0, 16, 0.25, 0.0, 1.0, 0.5, 0.75]]}\n"
        );
        assert_eq!(replaced, 0);
    }

    proptest! {
        #[test]
        fn a_caption_never_breaks_the_line(caption in prop_oneof![any::<String>(), "[a\t\r\n ]{0,20}"]) {
            let (line, replaced) = line(&picture(), &caption, &Lists::default());
            let line = line.strip_suffix('\n').unwrap();
            prop_assert!(!line.contains(['\n', '\r']));
            let columns: Vec<&str> = line.split('\t').collect();
            prop_assert_eq!(columns.len(), 6);
            prop_assert_eq!(columns[1].chars().count(), caption.chars().count(), "spans stay right");
            let changed = columns[1].chars().zip(caption.chars()).filter(|(a, b)| a != b).count();
            prop_assert_eq!(changed as u64, replaced);
        }
    }
}
