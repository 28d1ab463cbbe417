//! What `groundloom index` accepts.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use groundloom_index::{Coding, Metric, serve::Limits};

use crate::arguments::OnDevice;

#[derive(Debug, Subcommand)]
pub enum IndexCommand {
    /// Build an index over rows with vectors, or embed them on the way.
    Build(Build),
    /// Build an index over a file of vectors: .npy, .fvecs, a flat FAISS index, or FROMAGe's embeddings.
    Import(Import),
    /// Add rows to an index; a row with the key of one that is there replaces it.
    Add(Add),
    /// Delete rows by their keys.
    Delete(Delete),
    /// Take the rows of other indices over, with their graphs.
    Merge(Merge),
    /// Build an index anew as one segment, without its deleted rows.
    Compact(Folder),
    /// Find the rows closest to a text, a picture, a row or a vector.
    Query(Query),
    /// Measure recall, and how well one column retrieves another.
    Eval(Eval),
    /// Show what an index holds and what it was tuned to.
    Stats(Stats),
    /// Print groups of near-duplicates.
    Dedup(Dedup),
    /// Write a column's vectors for other tools: .npy or flat FAISS beside the rows as Parquet, or FROMAGe's embeddings.
    Export(Export),
    /// Serve an index over HTTP, with a page to search it. A token in GROUNDLOOM_INDEX_TOKEN is asked of every request.
    Serve(Serve),
}

#[derive(Debug, Args)]
pub struct Folder {
    /// The index folder.
    pub index: PathBuf,
}

#[derive(Debug, Args)]
pub struct Rows {
    /// Parquet files, or data set folders with such files.
    #[arg(required = true, value_name = "ROWS")]
    pub rows: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Build {
    #[command(flatten)]
    pub rows: Rows,
    #[command(flatten)]
    pub graph: Graph,
    /// The folder to build the index in.
    #[arg(long, short)]
    pub output: PathBuf,
    /// The column that identifies a row.
    #[arg(long, default_value = groundloom_data::columns::ROW_ID)]
    pub key: String,
    /// A column of vectors, and the model that made them if it is known, such as
    /// image_embedding=models/clip. Default: every column of fixed-size lists of numbers.
    #[arg(long = "vector", value_name = "COLUMN[=MODEL]")]
    pub vectors: Vec<String>,
    /// Embed a column of texts or pictures by a model: adds COLUMN_embedding.
    #[arg(long = "embed", value_name = "COLUMN=MODEL", value_parser = assignment)]
    pub embed: Vec<(String, String)>,
    /// What close means: cosine, ip or l2.
    #[arg(long, default_value = "cosine")]
    pub metric: Metric,
    #[command(flatten)]
    pub on: OnDevice,
}

/// How graphs are built and walked.
#[derive(Debug, Args)]
pub struct Graph {
    /// What graphs are walked with: int8 (a byte a dimension), f32 (the vectors themselves, slower in a smaller file) or
    /// binary (a bit). What codes find is scored again with the vectors.
    #[arg(long, default_value = Coding::default().name())]
    pub coding: Coding,
    /// The recall@10 that searches are tuned to.
    #[arg(long, default_value_t = groundloom_index::ColumnSettings::default().target_recall)]
    pub target_recall: f64,
    /// Links a node of the graph chooses.
    #[arg(long, default_value_t = groundloom_index::GraphSettings::default().m)]
    pub m: usize,
    /// Nodes in view while links are chosen.
    #[arg(long, default_value_t = groundloom_index::GraphSettings::default().ef_construction)]
    pub ef_construction: usize,
    /// Decides levels and order of the graph.
    #[arg(long, default_value_t = groundloom_index::GraphSettings::default().seed)]
    pub seed: u64,
    /// What builds the graph: batches, on all threads, or hnsw_rs, on one.
    #[arg(long, default_value = "batches")]
    pub builder: groundloom_index::Builder,
}

#[derive(Debug, Args)]
pub struct Import {
    /// A file called .npy, .fvecs, .index or .faiss (flat FAISS), or .pkl (FROMAGe's embeddings).
    pub vectors: PathBuf,
    /// A Parquet file whose row i belongs to vector i, such as clip-retrieval's metadata_0.parquet.
    #[arg(long)]
    pub rows: Option<PathBuf>,
    #[command(flatten)]
    pub graph: Graph,
    /// The folder to build the index in.
    #[arg(long, short)]
    pub output: PathBuf,
    /// The column that identifies a row; rows without it get their number.
    #[arg(long, default_value = groundloom_data::columns::ROW_ID)]
    pub key: String,
    /// The name of the vector column.
    #[arg(long, default_value = "embedding")]
    pub column: String,
    /// The model that made the vectors, if it is known: texts and pictures can be asked for then.
    #[arg(long)]
    pub model: Option<String>,
    /// What close means: cosine, ip or l2; default: what a FAISS file says, else cosine.
    #[arg(long)]
    pub metric: Option<Metric>,
}

pub fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected COLUMN=MODEL".to_owned()),
    }
}

#[derive(Debug, Args)]
pub struct Add {
    /// The index folder.
    pub index: PathBuf,
    #[command(flatten)]
    pub rows: Rows,
    #[command(flatten)]
    pub on: OnDevice,
}

#[derive(Debug, Args)]
pub struct Delete {
    /// The index folder.
    pub index: PathBuf,
    /// Keys of rows.
    #[arg(required = true)]
    pub keys: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Merge {
    /// The index that takes the rows.
    pub index: PathBuf,
    /// The indices that they are taken from.
    #[arg(required = true)]
    pub others: Vec<PathBuf>,
}

#[derive(Debug, Args)]
#[group(skip)]
pub struct Query {
    /// The index folder.
    pub index: PathBuf,
    #[command(flatten)]
    pub question: Question,
    /// The vector column to search; default: one whose model takes the question.
    #[arg(long)]
    pub column: Option<String>,
    /// How many rows to find.
    #[arg(short, default_value_t = 10)]
    pub k: usize,
    /// Only rows for which this SQL condition holds, such as "width > 300".
    #[arg(long = "where", value_name = "CONDITION")]
    pub condition: Option<String>,
    /// How many of the closest nodes the walk looks around of before it ends; default: as the index was tuned.
    #[arg(long)]
    pub ef: Option<usize>,
    /// Compare with every row.
    #[arg(long)]
    pub exact: bool,
    /// Columns to print, comma-separated; default: all but vectors and media.
    #[arg(long, value_delimiter = ',')]
    pub columns: Option<Vec<String>>,
    /// Write the rows found, with their scores, to this Parquet file instead of printing them.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub on: OnDevice,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct Question {
    /// A text; may stand several times, and beside pictures: the vectors are added.
    #[arg(long)]
    pub text: Vec<String>,
    /// A picture file.
    #[arg(long)]
    pub image: Vec<PathBuf>,
    /// The key of a row of the index.
    #[arg(long)]
    pub row: Vec<String>,
    /// A vector as a JSON list.
    #[arg(long)]
    pub vector: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Eval {
    /// The index folder.
    pub index: PathBuf,
    /// Answers that recall is measured on.
    #[arg(short, default_value_t = 10)]
    pub k: usize,
    /// Rows whose vectors are searched for.
    #[arg(long, default_value_t = 1000)]
    pub queries: usize,
    /// Also rank the rows of the second column for each vector of the first, both ways.
    #[arg(long, value_name = "COLUMN,COLUMN", value_delimiter = ',', num_args = 2)]
    pub pair: Option<Vec<String>>,
}

#[derive(Debug, Args)]
pub struct Stats {
    /// The index folder.
    pub index: PathBuf,
    /// Read every file and compare it with its checksum.
    #[arg(long)]
    pub verify: bool,
}

#[derive(Debug, Args)]
pub struct Dedup {
    /// The index folder.
    pub index: PathBuf,
    /// The vector column; needed when there are several.
    #[arg(long)]
    pub column: Option<String>,
    /// Rows at least this close are duplicates.
    #[arg(long, default_value_t = 0.95)]
    pub score: f32,
    /// Compare all rows instead of searching.
    #[arg(long)]
    pub exact: bool,
}

/// Files of other tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportForm {
    /// NAME/NAME_0.npy and metadata/metadata_0.parquet, as clip-retrieval has them.
    Npy,
    /// NAME.index, a flat FAISS index, and metadata/metadata_0.parquet.
    Faiss,
    /// cc3m_embeddings.pkl, as FROMAGe loads it.
    Fromage,
}

#[derive(Debug, Args)]
pub struct Export {
    /// The index folder.
    pub index: PathBuf,
    /// The vector column; needed when there are several.
    #[arg(long)]
    pub column: Option<String>,
    /// Which files to write.
    #[arg(long = "as", value_enum, default_value_t = ExportForm::Npy)]
    pub form: ExportForm,
    /// The column of addresses that FROMAGe's embeddings stand beside.
    #[arg(long, default_value = "path")]
    pub paths: String,
    /// Name of the vectors' folder and file: img_emb or text_emb for clip-retrieval.
    #[arg(long, default_value = "img_emb")]
    pub name: String,
    /// The folder to write to.
    #[arg(long, short)]
    pub output: PathBuf,
}

#[derive(Debug, Args)]
pub struct Serve {
    /// The index folder.
    pub index: PathBuf,
    /// The port; 0 takes a free one, which is printed.
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// The address to listen at. Others than loopback need a token.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: std::net::IpAddr,
    /// Largest body of a request, in bytes.
    #[arg(long, default_value_t = Limits::default().body)]
    pub max_body: usize,
    /// Most answers of one search.
    #[arg(long, default_value_t = Limits::default().k)]
    pub max_k: usize,
    /// Requests that are worked on or wait; more are answered 429.
    #[arg(long, default_value_t = Limits::default().requests)]
    pub max_requests: usize,
    /// Seconds for the work of a request.
    #[arg(long, default_value_t = Limits::default().work.as_secs())]
    pub timeout: u64,
    #[command(flatten)]
    pub on: OnDevice,
}
