//! A few component types, as a program would define them, for the tests.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use groundloom_spec::{ComponentType, Config, Diagnostics, Role, Secret, SourceFile, Spec, parse_partial, render};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Reads a folder of images, and the captions beside them.
///
/// Subfolders are read too.
#[derive(Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageFolder {
    /// The folder; a glob or a URL.
    pub path: String,
    /// A file with one row of metadata for each image.
    pub metadata: Option<String>,
}

impl Config for ImageFolder {
    const NAME: &'static str = "image_folder";
    const SUMMARY: &'static str = "Read images and captions from a folder";
    const EXAMPLE: &'static str = "pairs: { type: image_folder, path: examples/photos }";
}

/// Finds the noun chunks of a caption.
#[derive(Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NounChunks {
    /// The column that holds the caption.
    pub text: String,
}

impl Config for NounChunks {
    const NAME: &'static str = "noun_chunks";
    const SUMMARY: &'static str = "Find noun chunks";
    const EXAMPLE: &'static str = "chunks: { type: noun_chunks, text: caption }";
}

/// Where boxes overlap, which of them stay.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Suppression {
    /// Across all phrases.
    AcrossPhrases,
    /// Within each phrase.
    PerPhrase,
    /// All stay.
    Off,
}

/// Keeps the boxes that a threshold and NMS leave.
#[derive(Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilterBoxes {
    /// The smallest score that is kept.
    #[schemars(range(min = 0, max = 1))]
    #[serde(default = "default_score")]
    pub min_score: f32,
    /// Above this overlap, the box with the smaller score goes.
    #[schemars(range(min = 0, max = 1))]
    pub nms_iou: Option<f64>,
    /// Which boxes compete.
    #[serde(default = "across")]
    pub nms: Suppression,
    /// The most boxes of one image.
    #[schemars(range(min = 1))]
    pub limit: Option<u32>,
    /// Whether boxes that go are kept in a column of their own.
    #[serde(default)]
    pub keep_rejected: bool,
    /// Phrases whose boxes always stay.
    #[serde(default)]
    pub always: Vec<String>,
}

fn default_score() -> f32 {
    0.65
}

fn across() -> Suppression {
    Suppression::AcrossPhrases
}

impl Config for FilterBoxes {
    const NAME: &'static str = "filter_boxes";
    const SUMMARY: &'static str = "Keep confident boxes";
    const EXAMPLE: &'static str = "confident:\n  type: filter_boxes\n  min_score: 0.5";
}

/// A width and a height in pixels.
#[derive(Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "(u32, u32)")]
pub struct Size(u32, u32);

impl TryFrom<(u32, u32)> for Size {
    type Error = String;

    fn try_from((width, height): (u32, u32)) -> Result<Self, String> {
        if width == 0 || height == 0 {
            return Err(format!("a size of {width}×{height} has no pixels"));
        }
        Ok(Self(width, height))
    }
}

/// How often a request is repeated.
#[derive(Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Retries {
    /// At most so many times.
    pub times: u8,
    /// Seconds before the first repetition.
    #[schemars(range(min = 0.1))]
    #[serde(default = "one")]
    pub wait: f64,
}

fn one() -> f64 {
    1.0
}

/// Where answers are stored.
#[derive(Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Store {
    /// Nowhere.
    None,
    /// In a folder.
    Folder {
        /// The folder.
        path: String,
    },
    /// In a bucket.
    Bucket {
        /// The bucket's URL.
        url: String,
        /// The access key.
        key: Option<Secret>,
    },
}

/// When a caption is taken.
#[derive(Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Choice {
    /// The first answer.
    First,
    /// One of so many answers.
    BestOf(u8),
    /// By a model's score.
    Scored {
        /// The model.
        model: String,
    },
}

/// A share or a number of rows.
#[derive(Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Amount {
    /// So many rows.
    Rows(u64),
    /// A share like `1%`.
    Share(String),
}

/// Writes captions with a remote model.
#[derive(Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Caption {
    /// The prompt; `{column}` stands for a column.
    #[schemars(length(min = 1, max = 2000))]
    pub prompt: String,
    /// The key of the service.
    pub api_key: Secret,
    /// What is repeated when the service fails.
    pub retries: Option<Retries>,
    /// Where answers are stored.
    pub store: Option<Store>,
    /// Which answer is taken.
    pub choice: Option<Choice>,
    /// How many rows are captioned.
    pub amount: Option<Amount>,
    /// The size that images are sent in.
    pub size: Option<Size>,
    /// More HTTP headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Names of classes by number.
    #[serde(default)]
    pub classes: BTreeMap<u32, String>,
    /// Anything else that the service takes.
    #[serde(default)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl Config for Caption {
    const NAME: &'static str = "caption";
    const SUMMARY: &'static str = "Write captions with a remote model";
    const EXAMPLE: &'static str = "captions: { type: caption, prompt: Describe it., api_key: \"${env:API_KEY}\" }";
}

/// Writes Parquet files.
#[derive(Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parquet {
    /// The folder of the data set.
    pub path: String,
    /// The columns that are written; all without it.
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub columns: Option<Vec<String>>,
}

impl Config for Parquet {
    const NAME: &'static str = "parquet";
    const SUMMARY: &'static str = "Write Parquet files";
    const EXAMPLE: &'static str = "grit: { type: parquet, path: out/grit }";
}

/// How a run behaves.
#[derive(Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The most rows that may be bad.
    #[serde(default = "one_percent")]
    pub max_bad: Amount,
    /// Rows of one shard.
    #[serde(default = "shard_rows")]
    #[schemars(range(min = 1))]
    pub shard_rows: u64,
}

fn one_percent() -> Amount {
    Amount::Share("1%".to_owned())
}

fn shard_rows() -> u64 {
    10_000
}

pub fn types() -> Vec<ComponentType> {
    vec![
        ComponentType::of::<ImageFolder>(Role::Source),
        ComponentType::of::<NounChunks>(Role::Stage),
        ComponentType::of::<FilterBoxes>(Role::Stage),
        ComponentType::of::<Caption>(Role::Stage),
        ComponentType::of::<Parquet>(Role::Sink),
    ]
}

/// The environment of the tests.
pub fn env(name: &str) -> Option<String> {
    matches!(name, "API_KEY" | "BUCKET_KEY").then(|| "hunter2-never-shown".to_owned())
}

/// Everything that is found in a pipeline file, as `groundloom check` would find it.
pub fn findings(text: &str, sets: &[(&str, &str)]) -> (Option<Spec>, Diagnostics, Arc<SourceFile>) {
    let file = Arc::new(SourceFile::new("p.yaml", text));
    let sets: Vec<(String, String)> =
        sets.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let (spec, mut found) = parse_partial(file.clone(), &sets, &env);
    if let Some(spec) = &spec {
        found.extend(spec.warnings.clone());
        found.collect(spec.check_types(&types()));
        if let Some(graph) = found.collect(spec.check_graph()) {
            found.extend(graph.warnings);
        }
        for component in spec.components() {
            match component.kind.as_str() {
                "image_folder" => drop(found.collect(component.decode::<ImageFolder>())),
                "noun_chunks" => drop(found.collect(component.decode::<NounChunks>())),
                "filter_boxes" => drop(found.collect(component.decode::<FilterBoxes>())),
                "caption" => drop(found.collect(component.decode::<Caption>())),
                "parquet" => drop(found.collect(component.decode::<Parquet>())),
                _ => {}
            }
        }
        found.collect(spec.decode_settings::<Settings>());
    }
    (spec, found, file)
}

/// What is printed about a pipeline file.
pub fn messages(text: &str) -> String {
    messages_with(text, &[])
}

/// The same with `--set` arguments.
pub fn messages_with(text: &str, sets: &[(&str, &str)]) -> String {
    let (_, found, file) = findings(text, sets);
    let shown = render(&file, &found, false);
    assert!(!shown.contains("hunter2"), "a secret is shown:\n{shown}");
    shown.trim_end().to_owned()
}

/// What is printed about the keys of one `filter_boxes` stage.
pub fn boxes(config: &str) -> String {
    messages(&pipeline(&format!("kept: {{ type: filter_boxes, {config} }}")))
}

/// What is printed about the keys of one `caption` stage, beside those that it needs.
pub fn caption(config: &str) -> String {
    messages(&pipeline(&format!("captions: {{ type: caption, prompt: p, api_key: \"${{env:API_KEY}}\", {config} }}")))
}

/// A pipeline around one stage.
pub fn pipeline(stage: &str) -> String {
    format!(
        "sources: {{ pairs: {{ type: image_folder, path: in }} }}\nstages:\n  {stage}\nsinks: {{ out: {{ type: parquet, path: out }} }}\n"
    )
}
