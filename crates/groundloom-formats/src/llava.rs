//! LLaVA's training file, and the same rows as ShareGPT-style JSON lines.
//!
//! Each row is `{"id", "image", "conversations": [{"from": "human" | "gpt", "value"}]}`; a row of text only has no `image` key.
//! Source: `docs/Finetune_Custom_Data.md` and the reader `llava/train/train.py` in `haotian-liu/LLaVA`.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, StringArray},
    compute::cast,
    datatypes::{DataType, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use groundloom_data::{
    ConversationsView,
    columns::{self, ROW_ID, is_media},
};
use groundloom_spec::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{FormatError, PartWriter, Sink};

const START: &[u8] = b"[\n";
const END: &[u8] = b"\n]\n";
const BETWEEN: &[u8] = b",\n";

/// Writes LLaVA's training file: one JSON list of `{id, image, conversations}`, or the same objects as JSON lines (ShareGPT style).
///
/// `image` is the path that the image column carries, relative to the folder you give the trainer; pictures themselves are not copied. A dialogue must begin with a
/// `human` turn, take turns, and name `<image>` exactly once where the row has an image: the trainer skips or misreads others, so a row like that stops the run here.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LlavaSink {
    /// Folder (or URL) of the data set. Files go into `data/` inside it.
    pub path: String,
    /// One JSON list, or JSON lines.
    #[serde(default)]
    pub layout: LlavaLayout,
    /// Column with the turns, as `dialogue` and `instruct` write it.
    #[serde(default = "default_conversations")]
    pub conversations: String,
    /// Column with the image (its path is written), or a text column with file names. Rows without a value are rows of text only; so are all where there is no such column.
    #[serde(default = "default_image")]
    pub image: String,
    /// Column with the id.
    #[serde(default = "default_id")]
    pub id: String,
}

/// How rows stand in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LlavaLayout {
    /// One JSON list in one file, as LLaVA's trainer reads it.
    #[default]
    Json,
    /// One object a line.
    Jsonl,
}

fn default_conversations() -> String {
    "conversations".to_owned()
}
fn default_image() -> String {
    "image".to_owned()
}
fn default_id() -> String {
    ROW_ID.to_owned()
}

impl Config for LlavaSink {
    const NAME: &'static str = "llava";
    const SUMMARY: &'static str = "LLaVA's training JSON, or ShareGPT-style JSON lines";
    const EXAMPLE: &'static str = "training: { type: llava, path: out/llava }";
}

impl LlavaSink {
    fn texts(&self, rows: &RecordBatch, name: &str) -> Result<Option<StringArray>, FormatError> {
        let Some(column) = rows.column_by_name(name) else { return Ok(None) };
        let column: ArrayRef = match column.as_struct_opt().filter(|_| is_media(column.data_type())) {
            Some(media) => {
                let path = media.column_by_name("path").ok_or_else(|| no_column(name, "it has no paths"))?;
                // A null image may still carry a path.
                let masked =
                    arrow::compute::nullif(path, &arrow::compute::is_null(media).map_err(|e| no_column(name, e))?);
                masked.map_err(|e| no_column(name, e))?
            }
            None => Arc::clone(column),
        };
        let texts = cast(&column, &DataType::Utf8).map_err(|e| no_column(name, e))?;
        Ok(Some(texts.as_string::<i32>().clone()))
    }
}

impl Sink for LlavaSink {
    fn path(&self) -> &str {
        &self.path
    }

    fn schema(&self, input: &Schema) -> Result<SchemaRef, FormatError> {
        let conversations = input
            .field_with_name(&self.conversations)
            .map_err(|_| no_column(&self.conversations, "there is none; `dialogue` or `instruct` makes it"))?;
        ConversationsView::check_type(conversations.data_type()).map_err(|e| no_column(&self.conversations, e))?;
        let id = input.field_with_name(&self.id).map_err(|_| no_column(&self.id, "there is none"))?;
        if !is_text(id.data_type()) {
            return Err(no_column(&self.id, format_args!("expected text, found {}", id.data_type())));
        }
        let mut fields = vec![columns::column("id", DataType::Utf8)];
        if let Ok(image) = input.field_with_name(&self.image) {
            if !is_text(image.data_type()) && !is_media(image.data_type()) {
                return Err(no_column(
                    &self.image,
                    format_args!("expected images or text, found {}", image.data_type()),
                ));
            }
            fields.push(columns::column("image", DataType::Utf8));
        }
        fields.push(columns::column("conversations", columns::conversations_type()));
        Ok(Arc::new(Schema::new(fields)))
    }

    /// `metadata` is not written: the format has no place for it.
    fn writer(
        &self,
        input: SchemaRef,
        file: File,
        _metadata: &[(String, String)],
    ) -> Result<Box<dyn PartWriter>, FormatError> {
        self.schema(&input)?;
        let mut file = BufWriter::with_capacity(256 << 10, file);
        if self.layout == LlavaLayout::Json {
            file.write_all(START).map_err(|e| failed(&self.path, e))?;
        }
        Ok(Box::new(Part { sink: self.clone(), file, rows: 0 }))
    }

    fn join(&self, parts: &[PathBuf], output: &Path) -> Result<(), FormatError> {
        let name = output.display().to_string();
        let list = self.layout == LlavaLayout::Json;
        let mut out = BufWriter::new(File::create(output).map_err(|e| failed(&name, e))?);
        let mut write = |bytes: &[u8]| out.write_all(bytes).map_err(|e| failed(&name, e));
        let mut first = true;
        if list {
            write(START)?;
        }
        for path in parts {
            let location = path.display().to_string();
            let mut part = File::open(path).map_err(|e| failed(&location, e))?;
            let length = part.metadata().map_err(|e| failed(&location, e))?.len();
            let (start, around) = if list { (START.len() as u64, (START.len() + END.len()) as u64) } else { (0, 0) };
            // An empty list has no line break between its brackets.
            let Some(inside) = length.checked_sub(around).filter(|n| *n > 0) else { continue };
            if list && !std::mem::replace(&mut first, false) {
                write(BETWEEN)?;
            }
            part.seek(SeekFrom::Start(start)).map_err(|e| failed(&location, e))?;
            let mut rest = part.take(inside);
            let mut buffer = vec![0; 256 << 10];
            loop {
                let n = rest.read(&mut buffer).map_err(|e| failed(&location, e))?;
                if n == 0 {
                    break;
                }
                write(&buffer[..n])?;
            }
        }
        if list {
            write(if first { &END[1..] } else { END })?;
        }
        let file = out.into_inner().map_err(|e| failed(&name, e.into_error()))?;
        file.sync_all().map_err(|e| failed(&name, e))
    }

    fn extension(&self) -> &'static str {
        match self.layout {
            LlavaLayout::Json => "json",
            LlavaLayout::Jsonl => "jsonl",
        }
    }

    fn file_bytes(&self) -> u64 {
        match self.layout {
            // The trainer takes one file.
            LlavaLayout::Json => u64::MAX,
            LlavaLayout::Jsonl => 256 << 20,
        }
    }
}

struct Part {
    sink: LlavaSink,
    file: BufWriter<File>,
    rows: u64,
}

impl PartWriter for Part {
    fn write(&mut self, rows: &RecordBatch) -> Result<(), FormatError> {
        let sink = &self.sink;
        let name = &sink.conversations;
        let column = rows.column_by_name(name).ok_or_else(|| no_column(name, "the batch lacks it"))?;
        let conversations = ConversationsView::try_new(column).map_err(|e| no_column(name, e))?;
        let ids = sink.texts(rows, &sink.id)?.ok_or_else(|| no_column(&sink.id, "the batch lacks it"))?;
        let images = sink.texts(rows, &sink.image)?;
        for row in 0..rows.num_rows() {
            let id = ids.value(row);
            let wrong = |message: String| FormatError::Malformed { location: format!("row {id}"), message };
            let turns = conversations.row(row).map_err(|e| wrong(format!("column `{name}`, {e}")))?.unwrap_or_default();
            let image = images.as_ref().filter(|i| i.is_valid(row)).map(|i| i.value(row));
            check(&turns, image.is_some()).map_err(|what| {
                wrong(format!("column `{name}`: {what}; drop such rows with a `filter`, or make dialogues with `dialogue` or `instruct`"))
            })?;
            let turns: Vec<_> = turns.iter().map(|t| json!({"from": t.from, "value": t.value})).collect();
            let line = match image {
                Some(image) => json!({"id": id, "image": image, "conversations": turns}),
                None => json!({"id": id, "conversations": turns}),
            };
            let between: &[u8] = match (sink.layout, self.rows) {
                (_, 0) => b"",
                (LlavaLayout::Json, _) => BETWEEN,
                (LlavaLayout::Jsonl, _) => b"",
            };
            let end: &[u8] = if sink.layout == LlavaLayout::Jsonl { b"\n" } else { b"" };
            self.rows += 1;
            let written = [between, line.to_string().as_bytes(), end].iter().try_for_each(|b| self.file.write_all(b));
            written.map_err(|e| failed(&sink.path, e))?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<File, FormatError> {
        let location = self.sink.path.clone();
        if self.sink.layout == LlavaLayout::Json {
            let end = if self.rows == 0 { &END[1..] } else { END };
            self.file.write_all(end).map_err(|e| failed(&location, e))?;
        }
        self.file.into_inner().map_err(|e| failed(&location, e.into_error()))
    }
}

/// What the trainer needs of a dialogue.
fn check(turns: &[groundloom_data::Turn<'_>], has_image: bool) -> Result<(), String> {
    let speakers: Vec<&str> = turns.iter().map(|t| t.from).filter(|from| *from != "system").collect();
    if speakers.is_empty() || speakers.len() % 2 == 1 {
        return Err(format!("expected questions with their answers, found {} turns", speakers.len()));
    }
    if let Some(i) = speakers.iter().enumerate().position(|(i, s)| *s != if i % 2 == 0 { "human" } else { "gpt" }) {
        return Err(format!("expected `human` and `gpt` in turns, found `{}` in turn {}", speakers[i], i + 1));
    }
    let marks: usize = turns.iter().map(|t| t.value.matches("<image>").count()).sum();
    if marks != usize::from(has_image) {
        return Err(format!("expected `<image>` {} times, found it {marks} times", usize::from(has_image)));
    }
    Ok(())
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn no_column(column: &str, error: impl std::fmt::Display) -> FormatError {
    FormatError::Column {
        column: column.to_owned(),
        message: format!("LLaVA's file needs the column `{column}`: {error}"),
    }
}

fn failed(location: &str, error: io::Error) -> FormatError {
    FormatError::Io {
        location: location.to_owned(),
        message: format!("writing LLaVA's file failed: {error}"),
        source: Some(Box::new(error)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use groundloom_data::{ConversationsBuilder, MediaBuilder, Turn};
    use serde_json::Value;

    use super::*;

    fn sink(layout: LlavaLayout) -> LlavaSink {
        serde_json::from_value(json!({"path": "x", "layout": layout})).unwrap()
    }

    fn turns<'a>(image: bool, n: usize, text: &'a str) -> Vec<Turn<'a>> {
        let question = if image { "<image>\nWhat?" } else { "What?" };
        (0..2 * n)
            .map(|i| match i {
                0 => Turn { from: "human", value: question },
                i if i % 2 == 0 => Turn { from: "human", value: "And?" },
                _ => Turn { from: "gpt", value: text },
            })
            .collect()
    }

    fn batch(rows: &[(&str, Option<&str>, Vec<Turn<'_>>)]) -> RecordBatch {
        let (mut images, mut conversations) = (MediaBuilder::new(), ConversationsBuilder::new());
        for (_, image, turns) in rows {
            match image {
                Some(path) => images.append(Some(b"bytes"), Some(path)),
                None => images.append_null(),
            }
            conversations.append_row(turns);
        }
        let ids: ArrayRef = Arc::new(rows.iter().map(|(id, ..)| Some(*id)).collect::<StringArray>());
        RecordBatch::try_from_iter([
            (ROW_ID, ids),
            ("image", Arc::new(images.finish()) as ArrayRef),
            ("conversations", Arc::new(conversations.finish()) as ArrayRef),
        ])
        .unwrap()
    }

    fn part(sink: &LlavaSink, folder: &Path, name: &str, rows: &RecordBatch) -> Result<PathBuf, FormatError> {
        let path = folder.join(name);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        let mut writer = sink.writer(rows.schema(), file, &[])?;
        writer.write(rows)?;
        writer.finish()?;
        Ok(path)
    }

    #[test]
    fn parts_join_to_the_file_that_the_trainer_reads() {
        let folder = tempfile::tempdir().unwrap();
        let rows = batch(&[
            ("a", Some("dir/a.jpg"), turns(true, 2, "Two \"dogs\"\n– ok")),
            ("b", None, turns(false, 1, "Text only.")),
            ("c", Some("c.jpg"), turns(true, 1, "x")),
        ]);
        let expected = json!([
            {"id": "a", "image": "dir/a.jpg", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Two \"dogs\"\n– ok"},
                {"from": "human", "value": "And?"}, {"from": "gpt", "value": "Two \"dogs\"\n– ok"}]},
            {"id": "b", "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Text only."}]},
            {"id": "c", "image": "c.jpg", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "x"}]},
        ]);
        for layout in [LlavaLayout::Json, LlavaLayout::Jsonl] {
            let sink = sink(layout);
            let whole = part(&sink, folder.path(), "whole", &rows).unwrap();
            for cuts in [vec![0, 3], vec![0, 0, 1, 3, 3], vec![0, 2, 3], vec![0, 1, 2, 3]] {
                let parts: Vec<PathBuf> = cuts
                    .windows(2)
                    .enumerate()
                    .map(|(i, w)| part(&sink, folder.path(), &i.to_string(), &rows.slice(w[0], w[1] - w[0])).unwrap())
                    .collect();
                let joined = folder.path().join("joined");
                sink.join(&parts, &joined).unwrap();
                assert_eq!(std::fs::read(&joined).unwrap(), std::fs::read(&whole).unwrap(), "{layout:?} {cuts:?}");
            }
            let text = std::fs::read_to_string(&whole).unwrap();
            let read: Value = match layout {
                LlavaLayout::Json => serde_json::from_str(&text).unwrap(),
                LlavaLayout::Jsonl => text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()).collect(),
            };
            assert_eq!(read, expected);
            let empty = part(&sink, folder.path(), "empty", &rows.slice(0, 0)).unwrap();
            let joined = folder.path().join("joined");
            sink.join(&[empty.clone(), empty], &joined).unwrap();
            assert_eq!(
                std::fs::read_to_string(&joined).unwrap(),
                if layout == LlavaLayout::Json { "[\n]\n" } else { "" }
            );
        }
    }

    #[test]
    fn dialogues_that_the_trainer_would_misread_stop_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let turn = |from, value| Turn { from, value };
        for (image, turns, said) in [
            (None, vec![], "0 turns"),
            (None, vec![turn("human", "a")], "1 turns"),
            (None, vec![turn("gpt", "a"), turn("human", "b")], "`gpt` in turn 1"),
            (Some("a.jpg"), turns(false, 1, "x"), "found it 0 times"),
            (None, turns(true, 1, "x"), "found it 1 times"),
            (Some("a.jpg"), turns(true, 1, "<image>"), "found it 2 times"),
        ] {
            let rows = batch(&[("r7", image, turns)]);
            let error = part(&sink(LlavaLayout::Json), folder.path(), "p", &rows).unwrap_err().to_string();
            assert!(error.contains("row r7") && error.contains(said), "{error}");
        }
    }
}
