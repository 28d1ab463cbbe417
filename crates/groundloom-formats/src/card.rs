//! The data-set card: the `README.md` that is published with a data set, in the form that the Hugging Face Hub reads.
//!
//! Front matter tells `datasets` where the files are and which columns hold media; the text tells a person what the rows are, how many were lost where, and how this run differs
//! from what the recipe's authors did. It holds neither a clock nor a host name: the same data set has the same card.

use std::{collections::BTreeSet, fmt::Write as _};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use groundloom_data::{
    columns::{self, ROW_ID},
    funnel::StageCounts,
};
use serde_json::{Value, json};

use crate::{funnel_steps::steps, grit, hugging_face, hugging_face::Feature};

/// What a card says.
#[derive(Debug, Clone)]
pub struct CardFacts {
    /// Name of the data set: the pipeline's.
    pub name: String,
    /// What the pipeline file says about it, or empty.
    pub description: String,
    /// SPDX-like licence identifier for the front matter (`cc-by-4.0`), where the pipeline names one.
    pub license: Option<String>,
    /// The columns as they were written.
    pub schema: SchemaRef,
    /// Rows in the data set.
    pub rows: u64,
    /// The files of the data set, relative to its folder, `/`-separated: `data/train-00000-of-00002.parquet`.
    pub files: Vec<String>,
    /// What each stage did with the rows, in order.
    pub funnel: Vec<StageCounts>,
    /// The sources, each a line: name, type and location as the pipeline file gives it.
    pub sources: Vec<String>,
    /// Rows in quarantine.
    pub quarantined: u64,
    /// Sentences from the stages: where this run differs from the recipe's authors.
    pub notes: Vec<String>,
    /// Weights that decided the output, as `name@sha256`.
    pub models: Vec<String>,
    /// The pipeline file, secrets redacted.
    pub pipeline: String,
    /// Fingerprint of the run: settings, stage versions, models and inputs.
    pub fingerprint: String,
    /// Version of Groundloom.
    pub version: String,
}

/// Renders the card as Markdown with YAML front matter.
pub fn render(facts: &CardFacts) -> String {
    let mut card = String::new();
    card.push_str("---\n");
    write_yaml(&mut card, &front_matter(facts), 0);
    card.push_str("---\n\n");
    for section in [what_it_is, funnel, column_table, notes, loading, origin] {
        section(&mut card, facts);
    }
    card
}

// ------------------------------------------------------------------------------------------------ front matter

fn front_matter(facts: &CardFacts) -> Value {
    let mut front = serde_json::Map::new();
    if let Some(license) = &facts.license {
        front.insert("license".into(), json!(license));
    }
    front.insert("pretty_name".into(), json!(facts.name));
    let tasks = task_categories(&facts.schema);
    if !tasks.is_empty() {
        front.insert("task_categories".into(), json!(tasks));
    }
    let mut tags = vec!["groundloom"];
    if facts.schema.column_with_name(grit::REF_EXPS).is_some() {
        tags.push("grit");
    }
    front.insert("tags".into(), json!(tags));
    front.insert("size_categories".into(), json!([size_category(facts.rows)]));
    let data_files: Vec<Value> =
        splits(&facts.files).into_iter().map(|(split, path)| json!({ "split": split, "path": path })).collect();
    if !data_files.is_empty() {
        front.insert("configs".into(), json!([{ "config_name": "default", "data_files": data_files }]));
    }
    // Other formats store other types than the schema's (JSON has no 32-bit floats), and `datasets` finds those itself.
    if facts.files.iter().all(|file| file.ends_with(".parquet"))
        && let Some(features) = hugging_face::features(&facts.schema)
    {
        front.insert("dataset_info".into(), json!({ "features": Feature::fields_to_yaml(&features) }));
    }
    Value::Object(front)
}

/// Split and glob of the files: `data/train-00000-of-00002.parquet` belongs to `train`, found by `data/train-*.parquet`.
fn splits(files: &[String]) -> BTreeSet<(String, String)> {
    let split = |file: &String| {
        let (folder, name) = file.rsplit_once('/').map_or(("", file.as_str()), |(folder, name)| (folder, name));
        let (split, _) = name.split_once('-')?;
        let (_, ending) = name.split_once('.')?;
        let slash = if folder.is_empty() { "" } else { "/" };
        Some((split.to_owned(), format!("{folder}{slash}{split}-*.{ending}")))
    };
    files.iter().filter_map(split).collect()
}

/// The Hub's size buckets.
fn size_category(rows: u64) -> &'static str {
    const CATEGORIES: [(u64, &str); 10] = [
        (1_000, "n<1K"),
        (10_000, "1K<n<10K"),
        (100_000, "10K<n<100K"),
        (1_000_000, "100K<n<1M"),
        (10_000_000, "1M<n<10M"),
        (100_000_000, "10M<n<100M"),
        (1_000_000_000, "100M<n<1B"),
        (10_000_000_000, "1B<n<10B"),
        (100_000_000_000, "10B<n<100B"),
        (1_000_000_000_000, "100B<n<1T"),
    ];
    CATEGORIES.iter().find(|(below, _)| rows < *below).map_or("n>1T", |(_, name)| name)
}

/// The Hub's task names for what the columns allow.
fn task_categories(schema: &Schema) -> Vec<&'static str> {
    let has = |name: &str| schema.column_with_name(name).is_some();
    let media = |kind: &str| {
        schema.fields().iter().any(|f| columns::is_media(f.data_type()) && hugging_face::media_kind(f.name()) == kind)
    };
    let text = schema
        .fields()
        .iter()
        .any(|f| matches!(f.data_type(), DataType::Utf8 | DataType::LargeUtf8) && f.name() != ROW_ID);
    let mut tasks = Vec::new();
    if media("Image") && text {
        tasks.push("image-to-text");
    }
    if media("Image") && has("boxes") {
        tasks.extend(["object-detection", "zero-shot-object-detection"]);
    }
    if media("Audio") && text {
        tasks.push("automatic-speech-recognition");
    }
    if tasks.is_empty() && text {
        tasks.push("text-generation");
    }
    tasks
}

/// Block-style YAML of maps, lists and scalars.
fn write_yaml(out: &mut String, value: &Value, indent: usize) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) => {
            for (i, (key, value)) in map.iter().enumerate() {
                // The first key of a map in a list stands behind the dash.
                let pad = if i == 0 && out.ends_with("- ") { "" } else { &pad };
                let _ = write!(out, "{pad}{}:", yaml_scalar(&json!(key)));
                write_yaml_value(out, value, indent);
            }
        }
        Value::Array(items) => {
            for item in items {
                let _ = write!(out, "{pad}- ");
                match item {
                    Value::Object(_) => write_yaml(out, item, indent + 2),
                    other => {
                        let _ = writeln!(out, "{}", yaml_scalar(other));
                    }
                }
            }
        }
        scalar => {
            let _ = writeln!(out, "{pad}{}", yaml_scalar(scalar));
        }
    }
}

fn write_yaml_value(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            write_yaml(out, value, indent + 2);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            write_yaml(out, value, indent);
        }
        scalar => {
            let _ = writeln!(out, " {}", yaml_scalar(scalar));
        }
    }
}

/// A scalar, quoted as JSON (which is YAML) unless it is a plain word that YAML takes for nothing else.
fn yaml_scalar(value: &Value) -> String {
    let plain = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./*<[]".contains(c))
            && !matches!(
                text.to_ascii_lowercase().as_str(),
                "true" | "false" | "yes" | "no" | "on" | "off" | "null" | "y" | "n" | "nan" | "inf"
            )
    };
    match value {
        Value::String(text) if plain(text) => text.clone(),
        other => other.to_string(),
    }
}

// ------------------------------------------------------------------------------------------------ text

fn what_it_is(card: &mut String, facts: &CardFacts) {
    let _ = writeln!(card, "# {}\n", line(&facts.name));
    if !facts.description.trim().is_empty() {
        let _ = writeln!(card, "{}\n", facts.description.trim());
    }
    let files = match facts.files.len() {
        1 => "1 file".to_owned(),
        n => format!("{} files", count(n as u64)),
    };
    let _ = writeln!(
        card,
        "{} in {files}, made by [Groundloom](https://github.com/groundloom/groundloom) {} from:\n",
        rows(facts.rows),
        line(&facts.version)
    );
    for source in &facts.sources {
        let _ = writeln!(card, "- {}", line(source));
    }
    card.push('\n');
}

fn funnel(card: &mut String, facts: &CardFacts) {
    card.push_str("## What became of the rows\n\n| stage | type | rows in | dropped | quarantined | rows on | it counted |\n|---|---|---:|---:|---:|---:|---|\n");
    for step in steps(&facts.funnel) {
        let stage = step.stage;
        let reason = if step.dropped > 0 && !stage.reason.is_empty() {
            format!(" ({})", line(&stage.reason))
        } else {
            String::new()
        };
        let _ = writeln!(
            card,
            "| `{}` | {} | {} | {}{reason} | {} | {} | {} |",
            code(&stage.stage),
            line(&stage.kind),
            count(step.reached),
            count(step.dropped),
            by_name(step.failed, stage.failed.iter()),
            count(step.passed),
            stage
                .counts
                .iter()
                .map(|(what, n)| format!("{} {}", words(what), count(*n)))
                .collect::<Vec<_>>()
                .join(", "),
        );
    }
    card.push('\n');
    match facts.quarantined {
        0 => card.push_str("No row is in quarantine.\n\n"),
        n => {
            let _ = writeln!(
                card,
                "{} could not be processed and {} in quarantine (`_quarantine/`), each with its reason: `groundloom quarantine show` lists them.\n",
                rows(n),
                if n == 1 { "is" } else { "are" }
            );
        }
    }
}

/// `3 (undecodable_image 2, missing_value 1)`; just the number if it is 0.
fn by_name<'a>(total: u64, parts: impl Iterator<Item = (&'a String, &'a u64)>) -> String {
    match total {
        0 => "0".to_owned(),
        _ => format!(
            "{} ({})",
            count(total),
            parts.map(|(code, n)| format!("{} {}", words(code), count(*n))).collect::<Vec<_>>().join(", ")
        ),
    }
}

fn column_table(card: &mut String, facts: &CardFacts) {
    card.push_str("## Columns\n\n| column | type | meaning |\n|---|---|---|\n");
    for field in facts.schema.fields() {
        let _ = writeln!(card, "| `{}` | `{}` | {} |", code(field.name()), code(&type_name(field)), meaning(field));
    }
    card.push('\n');
}

/// What a column means, for those that Groundloom's own stages and sources write.
fn meaning(field: &Field) -> &'static str {
    match field.name().as_str() {
        ROW_ID => "Identity of the row, the same in every run over the same input",
        _ if columns::is_media(field.data_type()) => "The encoded file (`bytes`) and where it came from (`path`)",
        "caption" => "The text that goes with the image",
        "file_name" => "Path of the file, relative to the source's folder",
        "width" => "Width of the image in pixels, after its EXIF orientation",
        "height" => "Height of the image in pixels, after its EXIF orientation",
        "chunks" => {
            "Noun chunks of the caption in text order; offsets are characters, the end exclusive; `subtree_start` and `subtree_end` span the head noun's whole subtree"
        }
        "boxes" => {
            "Boxes of the image, normalised `xyxy` in [0, 1] of the oriented image; `chunk` is the index of the chunk that a box answers"
        }
        "expressions" => {
            "Referring expressions in text order; `chunk` is the index of the chunk whose boxes they inherit"
        }
        grit::NOUN_CHUNKS => {
            "GrIT's released form: [start, end, x1, y1, x2, y2, score] for every box of a chunk, by score"
        }
        grit::REF_EXPS => {
            "GrIT's released form: [start, end, x1, y1, x2, y2, score] for every box of an expression, in the same order"
        }
        "clip_similarity_vitb32" => "Cosine of image and text by CLIP ViT-B/32",
        "clip_similarity_vitl14" => "Cosine of image and text by CLIP ViT-L/14",
        "url" => "Where the image was published",
        "key" => "Name of the image file",
        _ => "",
    }
}

/// `list<struct<start: int32, end: int32>>`.
pub fn type_name(field: &Field) -> String {
    match field.data_type() {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            format!("list<{}>", type_name(item))
        }
        DataType::Struct(fields) => {
            let fields: Vec<String> = fields.iter().map(|f| format!("{}: {}", f.name(), type_name(f))).collect();
            format!("struct<{}>", fields.join(", "))
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "string".to_owned(),
        other => other.to_string().to_lowercase(),
    }
}

fn notes(card: &mut String, facts: &CardFacts) {
    if !facts.notes.is_empty() {
        card.push_str("## How this run differs from the recipe\n\n");
        for note in &facts.notes {
            let _ = writeln!(card, "- {}", line(note));
        }
        card.push('\n');
    }
    if !facts.models.is_empty() {
        card.push_str("## Models\n\n| model | SHA-256 of the weights |\n|---|---|\n");
        for model in &facts.models {
            let (name, hash) = model.rsplit_once('@').unwrap_or((model, ""));
            let _ = writeln!(card, "| {} | `{}` |", line(name), code(hash));
        }
        card.push('\n');
    }
}

fn loading(card: &mut String, facts: &CardFacts) {
    let ending = facts
        .files
        .first()
        .and_then(|file| file.rsplit('/').next())
        .and_then(|name| name.split_once('.'))
        .map_or("", |(_, ending)| ending);
    let example = match ending {
        "parquet" => {
            "```python\nfrom datasets import load_dataset\n\nrows = load_dataset(\"path/to/this/folder\", split=\"train\")  # media columns come decoded\n```\n\n\
             ```python\nimport pyarrow.dataset\n\ntable = pyarrow.dataset.dataset(\"path/to/this/folder/data\").to_table()\n```\n"
        }
        "tar" => {
            "```python\nimport glob\nimport webdataset\n\nrows = webdataset.WebDataset(sorted(glob.glob(\"path/to/this/folder/data/*.tar\")), shardshuffle=False).decode(\"pil\")\n```\n"
        }
        "tsv" => {
            "```python\nimport ast, base64\n\nfor line in open(\"path/to/this/folder/FILE.tsv\", encoding=\"utf8\", newline=\"\\n\"):\n    \
             md5, caption, jpeg, width, height, spans = line.rstrip(\"\\n\").split(\"\\t\")\n    jpeg, spans = base64.b64decode(jpeg), ast.literal_eval(spans)\n```\n"
        }
        _ => {
            "```python\nfrom datasets import load_dataset\n\nrows = load_dataset(\"path/to/this/folder\", split=\"train\")\n```\n"
        }
    };
    let _ = write!(
        card,
        "## Loading it\n\n{example}\n`groundloom why ROW_ID` tells where a row came from and what each stage did with it, also for a row that is not here.\n\n"
    );
}

fn origin(card: &mut String, facts: &CardFacts) {
    let longest = facts.pipeline.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    let _ = write!(
        card,
        "## The pipeline\n\nFingerprint `{}`: the same file over the same input gives the same bytes.\n\n{fence}yaml\n{}\n{fence}\n",
        code(&facts.fingerprint),
        facts.pipeline.trim_end(),
    );
}

// ------------------------------------------------------------------------------------------------ wording

/// `1 row`, `12,345 rows`.
fn rows(n: u64) -> String {
    format!("{} {}", count(n), if n == 1 { "row" } else { "rows" })
}

/// With thousands separators.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A counter's name in words: `phrase_outside_vocabulary` → `phrase outside vocabulary`.
pub(crate) fn words(name: &str) -> String {
    line(&name.replace('_', " "))
}

/// Text for one line or table cell of Markdown: markup in it is shown, not obeyed.
fn line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '|' => out.push_str("\\|"),
            '<' => out.push_str("&lt;"),
            '\n' | '\r' | '\t' => out.push(' '),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Text between backticks in a table cell.
fn code(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c == '`' {
                '\''
            } else if c.is_control() {
                ' '
            } else {
                c
            }
        })
        .collect::<String>()
        .replace('|', "\\|")
}

/// Rows that stages dropped, by the reason they give (or their name).
pub fn dropped_by_reason(funnel: &[groundloom_data::funnel::StageCounts]) -> std::collections::BTreeMap<String, u64> {
    let mut dropped = std::collections::BTreeMap::new();
    for stage in funnel.iter().filter(|s| s.dropped() > 0) {
        let reason = if stage.reason.is_empty() { &stage.stage } else { &stage.reason };
        *dropped.entry(reason.clone()).or_default() += stage.dropped();
    }
    dropped
}
