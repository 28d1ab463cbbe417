//! The JSON Lines sink.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use arrow::{
    datatypes::{Schema, SchemaRef},
    error::ArrowError,
    record_batch::RecordBatch,
};
use flate2::{Compression as Level, GzBuilder, write::GzEncoder};
use groundloom_spec::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    FormatError, PartWriter, Sink,
    json_rows::{JsonRows, MediaInJson},
    output_columns::{Form, OutputColumns},
};

/// Lines are handed to the file (or compressor) when this many bytes have gathered.
const BUFFER_BYTES: usize = 256 << 10;
/// Level of zstd: its default.
const ZSTD_LEVEL: i32 = 3;

/// Writes one JSON object per row and line, with every column in every row (nulls spelled out).
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JsonlSink {
    /// Folder (or URL) of the data set. Files go into `data/` inside it.
    pub path: String,
    /// Columns to render in a data set's released form, beside the typed ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub form: Option<Form>,
    /// The columns to write, in that order; all of them if not given. `row_id` is always written, and first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Vec<String>>,
    /// How files are compressed.
    #[serde(default)]
    pub compression: JsonlCompression,
    /// What becomes of bytes (pictures, sound), for which JSON has no type. A pipeline with a column of bytes needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media: Option<MediaInJson>,
    /// Aim for files of this many bytes.
    #[serde(default = "default_file_bytes")]
    #[schemars(range(min = 1))]
    pub file_bytes: u64,
}

/// How JSON Lines files are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JsonlCompression {
    /// Not at all.
    #[default]
    None,
    /// gzip, which everything reads.
    Gzip,
    /// Zstandard: smaller and many times faster than gzip.
    Zstd,
}

fn default_file_bytes() -> u64 {
    256 << 20
}

impl JsonlSink {
    fn output(&self, input: &Schema) -> Result<(OutputColumns, JsonRows), FormatError> {
        let columns = OutputColumns::new(input, self.form, self.columns.as_deref())?;
        let json = JsonRows::new(columns.schema(), self.media)?;
        Ok((columns, json))
    }
}

impl Config for JsonlSink {
    const NAME: &'static str = "jsonl";
    const SUMMARY: &'static str = "JSON Lines, plain or compressed";
    const EXAMPLE: &'static str = "captions: { type: jsonl, path: out/captions, compression: zstd, media: drop }";
}

impl Sink for JsonlSink {
    fn path(&self) -> &str {
        &self.path
    }

    fn schema(&self, input: &Schema) -> Result<SchemaRef, FormatError> {
        Ok(self.output(input)?.1.schema().clone())
    }

    /// `metadata` is not written: JSON Lines have no place for it.
    fn writer(
        &self,
        input: SchemaRef,
        file: File,
        _metadata: &[(String, String)],
    ) -> Result<Box<dyn PartWriter>, FormatError> {
        let (columns, json) = self.output(&input)?;
        let file = match self.compression {
            JsonlCompression::None => Encoder::Plain(file),
            JsonlCompression::Gzip => Encoder::Gzip(GzBuilder::new().mtime(0).write(file, Level::default())),
            JsonlCompression::Zstd => {
                let mut encoder = zstd::Encoder::new(file, ZSTD_LEVEL).map_err(|e| failed(&self.path, e))?;
                encoder.include_checksum(true).map_err(|e| failed(&self.path, e))?;
                Encoder::Zstd(encoder)
            }
        };
        Ok(Box::new(Part {
            location: self.path.clone(),
            columns,
            json,
            buffer: Vec::with_capacity(BUFFER_BYTES * 2),
            file,
        }))
    }

    /// Concatenates the parts' bytes: lines follow lines, and gzip and zstd readers read member after member.
    fn join(&self, parts: &[PathBuf], output: &Path) -> Result<(), FormatError> {
        let name = output.display().to_string();
        let mut out = File::create(output).map_err(|e| failed(&name, e))?;
        for part in parts {
            let location = part.display().to_string();
            let mut part = File::open(part).map_err(|e| failed(&location, e))?;
            io::copy(&mut part, &mut out).map_err(|e| failed(&name, e))?;
        }
        out.sync_all().map_err(|e| failed(&name, e))
    }

    fn extension(&self) -> &'static str {
        match self.compression {
            JsonlCompression::None => "jsonl",
            JsonlCompression::Gzip => "jsonl.gz",
            JsonlCompression::Zstd => "jsonl.zst",
        }
    }

    fn file_bytes(&self) -> u64 {
        self.file_bytes
    }
}

enum Encoder {
    Plain(File),
    Gzip(GzEncoder<File>),
    Zstd(zstd::Encoder<'static, File>),
}

impl Encoder {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Encoder::Plain(file) => file.write_all(bytes),
            Encoder::Gzip(encoder) => encoder.write_all(bytes),
            Encoder::Zstd(encoder) => encoder.write_all(bytes),
        }
    }

    fn finish(self) -> io::Result<File> {
        match self {
            Encoder::Plain(file) => Ok(file),
            Encoder::Gzip(encoder) => encoder.finish(),
            Encoder::Zstd(encoder) => encoder.finish(),
        }
    }
}

struct Part {
    location: String,
    columns: OutputColumns,
    json: JsonRows,
    buffer: Vec<u8>,
    file: Encoder,
}

/// Either of the two ways in which writing fails.
enum WriteError {
    Arrow(ArrowError),
    Io(io::Error),
}

impl From<ArrowError> for WriteError {
    fn from(error: ArrowError) -> Self {
        Self::Arrow(error)
    }
}

impl PartWriter for Part {
    fn write(&mut self, rows: &RecordBatch) -> Result<(), FormatError> {
        let rows = self.columns.apply(rows)?;
        let file = &mut self.file;
        let flush_when_full = |_: usize, buffer: &mut Vec<u8>| {
            if buffer.len() >= BUFFER_BYTES {
                file.write_all(buffer).map_err(WriteError::Io)?;
                buffer.clear();
            }
            Ok(())
        };
        self.json.write(&rows, &mut self.buffer, b"\n", flush_when_full).map_err(|error| match error {
            WriteError::Arrow(source) => FormatError::Arrow { location: self.location.clone(), source },
            WriteError::Io(e) => failed(&self.location, e),
        })
    }

    fn finish(mut self: Box<Self>) -> Result<File, FormatError> {
        self.file.write_all(&self.buffer).map_err(|e| failed(&self.location, e))?;
        self.file.finish().map_err(|e| failed(&self.location, e))
    }
}

fn failed(location: &str, error: io::Error) -> FormatError {
    FormatError::Io {
        location: location.to_owned(),
        message: format!("writing JSON Lines failed: {error}"),
        source: Some(Box::new(error)),
    }
}
