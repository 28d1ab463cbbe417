//! What the command line accepts.

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use groundloom_models::{Device, DeviceChoice};

use crate::{commands::index::arguments::IndexCommand, failure::Failure};

/// Makes multimodal data sets from declarative pipeline files.
#[derive(Debug, Parser)]
#[command(name = "groundloom", version, about, propagate_version = true)]
pub struct Arguments {
    /// Tasks and model threads at the same time. It changes no byte of the output.
    #[arg(long, global = true, default_value_t = default_threads(), hide_default_value = true)]
    pub threads: NonZeroUsize,
    /// Memory that joins, sorts, aggregates, dedup and shuffle keep the process near by spilling to disk, such as 4GiB; models and what they compute come on top, but weights that no stage uses any more are given back when all together pass it. Queries that order nothing leave their rows in another order under a limit. Default: no limit.
    #[arg(long, global = true, value_parser = bytes)]
    pub memory: Option<u64>,
    /// Serve the run's metrics in Prometheus' form at this address, such as 127.0.0.1:9464 (path /metrics).
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub metrics: Option<SocketAddr>,
    /// How messages and progress are written to standard error.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log: LogFormat,
    #[command(subcommand)]
    pub command: Command,
}

/// What a run may use of this machine.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    pub threads: NonZeroUsize,
    pub memory: Option<u64>,
    pub metrics: Option<SocketAddr>,
    pub log: LogFormat,
}

impl Machine {
    /// Whether set stages must spill.
    pub fn is_limited(&self) -> bool {
        self.memory.is_some()
    }
}

impl Arguments {
    pub fn machine(&self) -> Machine {
        Machine { threads: self.threads, memory: self.memory, metrics: self.metrics, log: self.log }
    }
}

fn default_threads() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Reads `512MiB`, `4GiB`, `2GB`, `1048576`.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim().trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.trim()[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        other => return Err(format!("`{other}` is no unit; write 512MiB or 4GiB")),
    };
    let number: f64 = digits.trim().parse().map_err(|_| "expected a size such as 4GiB".to_owned())?;
    if number <= 0.0 || !number.is_finite() {
        return Err("expected a size such as 4GiB".to_owned());
    }
    Ok((number * unit as f64) as u64)
}

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a pipeline file, going on where an earlier run stopped.
    Run(RunFile),
    /// Check a pipeline file: names, types, columns. Nothing is written.
    Check(PipelineFile),
    /// Show what a run would do: columns after every stage, segments, shards, what is reused.
    Plan(PlanFile),
    /// List the sources, stages and sinks, or show the page of one.
    Stages(Stages),
    /// Say what became of a row: kept, dropped by which stage and with which values, in quarantine, or not reached yet.
    Why(Why),
    /// Compare two data sets row by row: gained, lost, changed, and by which stage.
    Diff(Diff),
    /// Show the rows that failed, or try them again.
    Quarantine {
        #[command(subcommand)]
        command: Quarantine,
    },
    /// Parse English texts and print tokens and noun chunks as JSON lines.
    Parse(Parse),
    /// Detect objects in pictures and print them as JSON lines.
    Detect(Detect),
    /// Build, search and change vector indices.
    #[command(subcommand)]
    Index(IndexCommand),
    /// Turn texts, pictures and sounds into vectors and print them as JSON lines.
    Embed(Embed),
    /// List the models, or compare one with its reference.
    #[command(subcommand)]
    Models(Models),
    /// Look at what language models are asked, and at the store of their answers.
    #[command(subcommand)]
    Prompt(Prompt),
    /// Print the JSON Schema of pipeline files, for editors; or, of one pipeline file, the columns that its sinks write.
    Schema(SchemaOf),
}

/// A pipeline file and its params.
#[derive(Debug, Args)]
pub struct PipelineFile {
    /// The pipeline file.
    pub file: PathBuf,
    /// Set a param of the file, such as --set min_score=0.5.
    #[arg(long = "set", value_name = "PARAM=VALUE", value_parser = assignment)]
    pub params: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub struct RunFile {
    #[command(flatten)]
    pub pipeline: PipelineFile,
    /// Ask no language model: answers come from the store, and one that is not there ends the run.
    #[arg(long)]
    pub offline: bool,
}

/// What language models are asked.
#[derive(Debug, Subcommand)]
pub enum Prompt {
    /// Show the exact requests for the first rows, with their tokens and cost. Nothing is asked.
    Preview(Preview),
    /// Print the price table that is built in, to copy and correct.
    Prices,
    /// Write the answers of a store to a Parquet file.
    Export(Archive),
    /// Take the answers of a Parquet file into a store.
    Import(Archive),
}

#[derive(Debug, Args)]
pub struct Preview {
    #[command(flatten)]
    pub pipeline: PipelineFile,
    /// The `generate` stage. Default: the first.
    #[arg(long)]
    pub stage: Option<String>,
    /// How many rows.
    #[arg(long, default_value_t = 1)]
    pub rows: usize,
    /// Print images in full instead of their hash.
    #[arg(long)]
    pub full: bool,
}

#[derive(Debug, Args)]
pub struct Archive {
    /// The Parquet file.
    pub file: PathBuf,
    /// The store's folder.
    #[arg(long, default_value = ".groundloom/answers")]
    pub store: PathBuf,
}

fn assignment(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(name, value)| (name.trim().to_owned(), value.to_owned()))
        .ok_or_else(|| "expected PARAM=VALUE".to_owned())
}

#[derive(Debug, Args)]
pub struct SchemaOf {
    /// The pipeline file whose rows are described.
    pub file: Option<PathBuf>,
    /// Set a param of the file.
    #[arg(long = "set", value_name = "PARAM=VALUE", value_parser = assignment, requires = "file")]
    pub params: Vec<(String, String)>,
}

impl SchemaOf {
    pub fn pipeline(self) -> Option<PipelineFile> {
        Some(PipelineFile { file: self.file?, params: self.params })
    }
}

#[derive(Debug, Args)]
pub struct PlanFile {
    #[command(flatten)]
    pub pipeline: PipelineFile,
    /// Print the plan as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Stages {
    /// The `type:` to show; all are listed without it.
    pub name: Option<String>,
}

#[derive(Debug, Args)]
pub struct Why {
    /// The row: a `row_id`, its key, its file (photos/1.jpg), or its place in a file (a.parquet#7, a.jsonl#OFFSET, a.tar#KEY).
    pub row: String,
    /// A data set's folder, or a pipeline file, which also knows of unfinished runs.
    pub target: PathBuf,
    /// Set a param of the pipeline file.
    #[arg(long = "set", value_name = "PARAM=VALUE", value_parser = assignment)]
    pub params: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub struct Diff {
    /// The earlier data set.
    pub old: PathBuf,
    /// The later one.
    pub new: PathBuf,
    /// Print every row that differs as a JSON line.
    #[arg(long)]
    pub rows: bool,
}

#[derive(Debug, Subcommand)]
pub enum Quarantine {
    /// Print the rows that failed as JSON lines, and how many failed where and why.
    Show(QuarantineShow),
    /// Try the rows that failed again, and publish the data set with those that succeed now. Nothing else is done again.
    Retry(RunFile),
}

#[derive(Debug, Args)]
pub struct QuarantineShow {
    /// The data set's folder.
    pub output: PathBuf,
    /// Only rows that failed with this code.
    #[arg(long)]
    pub code: Option<String>,
    /// Only rows that failed in this stage or source.
    #[arg(long)]
    pub stage: Option<String>,
    /// Print at most so many rows.
    #[arg(long, value_name = "ROWS")]
    pub limit: Option<usize>,
}

#[derive(Debug, Args)]
pub struct Parse {
    /// A file with one text a line. Default: standard input.
    pub file: Option<PathBuf>,
    /// The lines are JSON objects; parse this key of each.
    #[arg(long, value_name = "COLUMN")]
    pub jsonl: Option<String>,
    /// Print noun chunks only.
    #[arg(long)]
    pub chunks: bool,
    /// A spaCy 3.7/3.8 model folder to use instead of the embedded en_core_web_sm 3.8.0.
    #[arg(long, value_name = "FOLDER")]
    pub model: Option<PathBuf>,
}

/// Where models compute that a command runs itself; pipeline files say it in their `settings`.
#[derive(Debug, Args)]
pub struct OnDevice {
    /// Where the model computes: cpu, cuda, cuda:1, metal, or auto for the first GPU that is there, else the CPU. GPUs are
    /// built in with `cargo build --release --features cuda` (or metal).
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::default())]
    pub device: DeviceChoice,
}

impl OnDevice {
    /// The device, which is there.
    pub fn open(&self) -> Result<Device, Failure> {
        self.device.device().map_err(|e| Failure::Usage(format!("--device: {e}")))
    }
}

#[derive(Debug, Args)]
pub struct Detect {
    /// The pictures.
    #[arg(required = true)]
    pub images: Vec<PathBuf>,
    /// An embedded detector's name or a local model folder.
    #[arg(long, default_value = groundloom_models::DEFAULT_DETECTOR)]
    pub model: String,
    /// Find only these phrases, each ending in a full stop: "a cat . a dog ." A model of open vocabulary (Grounding
    /// DINO, OWL-ViT, OWLv2) looks for them as they are, and needs them; one of fixed classes for the class that each names.
    #[arg(long)]
    pub phrases: Option<String>,
    /// Find what this picture shows, instead of phrases (OWL-ViT and OWLv2).
    #[arg(long, value_name = "PICTURE", conflicts_with = "phrases")]
    pub like: Option<PathBuf>,
    /// The smallest score that is printed, from 0 to 1.
    #[arg(long, default_value_t = groundloom_models::DetectOptions::default().min_score)]
    pub min_score: f32,
    #[command(flatten)]
    pub on: OnDevice,
}

#[derive(Debug, Args)]
pub struct Embed {
    /// A text; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub text: Vec<String>,
    /// A picture; may be given several times, and names several files.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub image: Vec<PathBuf>,
    /// A sound (WAV, FLAC, MP3, Ogg); may be given several times, and names several files.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub audio: Vec<PathBuf>,
    /// An embedded model's name or a local model folder.
    #[arg(long, default_value = groundloom_models::DEFAULT_SENTENCE_ENCODER)]
    pub model: String,
    #[command(flatten)]
    pub on: OnDevice,
}

#[derive(Debug, Subcommand)]
pub enum Models {
    /// List the models that are part of this program, and the architectures that it loads from folders.
    List,
    /// Fetch a model from the Hugging Face hub into its cache, where hf:// names are looked up. HF_HOME, HF_HUB_CACHE,
    /// HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are heeded.
    Pull {
        /// The model, such as hf://openai/clip-vit-base-patch32 or hf://org/repo@revision.
        #[arg(value_name = "HF_NAME")]
        name: String,
    },
    /// Compare a model with its reference: every output of a fixture folder (a model folder with expected.safetensors).
    Verify {
        /// The folder.
        folder: PathBuf,
        #[command(flatten)]
        on: OnDevice,
    },
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(bytes("4GiB").unwrap(), 4 << 30);
        assert_eq!(bytes("1.5 mb").unwrap(), 1_500_000);
        assert!(bytes("4 parsecs").is_err() && bytes("-1GiB").is_err() && bytes("GiB").is_err());
    }
}
