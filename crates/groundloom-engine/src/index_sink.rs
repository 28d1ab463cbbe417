//! The sink that publishes a vector index.

use std::{
    collections::HashSet,
    fs::{self, File},
    path::{Path, PathBuf},
};

use arrow::datatypes::{DataType, Schema, SchemaRef};
use groundloom_formats::{
    FormatError, PartWriter, Sink,
    parquet_sink::{Layout, ParquetCompression, ParquetSink},
    sink::Published,
};
use groundloom_index::{
    Builder, Coding, ColumnSettings, ColumnSpec, GraphSettings, IndexError, Metric, ModelIdentity, Writer,
};
use groundloom_models::describe_embedder;
use groundloom_spec::Config;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Builds a vector index over the rows, to be searched with `groundloom index query` and `serve`.
///
/// The folder holds the rows as Parquet (`rows-*.parquet`, vectors as fixed-size lists of f32), and for each vector column one file with vectors and graph that is
/// used where it is mapped. Searches are tuned on vectors that the graph has not seen; what was measured stands in `index.json`. Rows are identified by `row_id`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IndexSink {
    /// Folder of the index, on a local disk.
    pub path: String,
    /// The columns of vectors to index, as `embed` makes them.
    #[schemars(length(min = 1))]
    pub vectors: Vec<VectorColumn>,
    /// What graphs are walked with: a byte a dimension (`int8`), the vectors themselves (`f32`: slower, in a file that is smaller by the codes) or a bit (`binary`). Whatever codes find is scored again with the vectors.
    #[serde(default)]
    pub coding: Coding,
    /// The recall@10 that searches are tuned to.
    #[serde(default = "default_target_recall")]
    pub target_recall: f64,
    /// Links a node of the graph chooses: more make it better and larger.
    #[serde(default = "default_m")]
    #[schemars(range(min = 2, max = 128))]
    pub m: usize,
    /// Nodes in view while links are chosen: more make the graph better and slower to build.
    #[serde(default = "default_ef_construction")]
    #[schemars(range(min = 2, max = 4096))]
    pub ef_construction: usize,
    /// What builds graphs: batches of nodes on all threads (`batches`), or the crate hnsw_rs, one node after the other (`hnsw_rs`). Either gives the same graph every time.
    #[serde(default)]
    pub builder: Builder,
    /// Decides levels and order of the graph.
    #[serde(default = "default_seed")]
    pub seed: u64,
}

/// A column of vectors.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VectorColumn {
    /// Its name.
    pub column: String,
    /// The model that made it, so that texts and images can be asked for; questions embedded by other weights are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What close means.
    #[serde(default = "default_metric")]
    pub metric: Metric,
}

fn default_metric() -> Metric {
    Metric::Cosine
}
fn default_target_recall() -> f64 {
    ColumnSettings::default().target_recall
}
fn default_m() -> usize {
    GraphSettings::default().m
}
fn default_ef_construction() -> usize {
    GraphSettings::default().ef_construction
}
fn default_seed() -> u64 {
    GraphSettings::default().seed
}

impl Config for IndexSink {
    const NAME: &'static str = "index";
    const SUMMARY: &'static str = "Build a vector index that can be searched and served";
    const EXAMPLE: &'static str =
        "index: { type: index, path: out/index, vectors: [{ column: embedding, model: all-minilm-l6-v2 }] }";
}

impl IndexSink {
    /// The sink that writes the rows until they are indexed.
    fn rows(&self) -> ParquetSink {
        ParquetSink {
            path: self.path.clone(),
            form: None,
            columns: None,
            compression: ParquetCompression::Snappy,
            file_bytes: 1 << 30,
            layout: Layout::Data,
        }
    }

    fn specs(&self, input: &Schema) -> Result<Vec<ColumnSpec>, FormatError> {
        let settings = ColumnSettings {
            coding: self.coding,
            graph: GraphSettings {
                m: self.m,
                ef_construction: self.ef_construction,
                seed: self.seed,
                builder: self.builder,
            },
            target_recall: self.target_recall,
            ..ColumnSettings::default()
        };
        settings.check().map_err(|e| FormatError::Input { key: "target_recall", message: e.to_string() })?;
        let mut seen = HashSet::new();
        let of = |vector: &VectorColumn| {
            let column = |message: String| FormatError::Column { column: vector.column.clone(), message };
            let field = input.field_with_name(&vector.column).map_err(|_| {
                let known: Vec<&str> = input.fields().iter().map(|f| f.name().as_str()).collect();
                column(format!("there is no column {:?} to index; the rows have {}", vector.column, known.join(", ")))
            })?;
            let dims = match field.data_type() {
                DataType::FixedSizeList(item, dims) if item.data_type().is_numeric() => *dims as usize,
                other => {
                    return Err(column(format!(
                        "expected fixed-size lists of numbers in {:?}, as the stage `embed` makes them, found {other}",
                        vector.column
                    )));
                }
            };
            if !seen.insert(vector.column.clone()) {
                return Err(column(format!("{:?} is named twice in `vectors`", vector.column)));
            }
            let model = vector.model.as_ref().map(|name| {
                let info = describe_embedder(name)
                    .map_err(|e| FormatError::Input { key: "vectors", message: e.to_string() })?;
                if info.dims != dims {
                    let message =
                        format!("{name} makes vectors of {} dimensions, {:?} has {dims}", info.dims, vector.column);
                    return Err(FormatError::Input { key: "vectors", message });
                }
                Ok(ModelIdentity { name: name.clone(), weights: info.weights_sha256 })
            });
            Ok(ColumnSpec {
                name: vector.column.clone(),
                dims,
                metric: vector.metric,
                model: model.transpose()?,
                settings,
            })
        };
        self.vectors.iter().map(of).collect()
    }

    fn build(&self, folder: &Path, files: &[PathBuf]) -> Result<Vec<Published>, FormatError> {
        let malformed =
            |path: &Path, message: String| FormatError::Malformed { location: path.display().to_string(), message };
        let failed = |e: IndexError| malformed(folder, e.to_string());
        let open = |path: &Path| {
            let file = File::open(path).map_err(|e| malformed(path, e.to_string()))?;
            ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| malformed(path, e.to_string()))
        };
        let Some(first) = files.first() else { return Ok(Vec::new()) };
        let specs = self.specs(open(first)?.schema())?;
        let building = folder.join("building");
        let mut writer = Writer::create(&building, groundloom_data::columns::ROW_ID, specs).map_err(failed)?;
        let bad = |path: &Path, e: String| IndexError::BadRows { origin: path.display().to_string(), problem: e };
        let batches = files.iter().flat_map(|path| {
            let rows = open(path).map_err(|e| e.to_string()).and_then(|r| r.build().map_err(|e| e.to_string()));
            let (rows, failed) = match rows {
                Ok(rows) => (Some(rows), None),
                Err(e) => (None, Some(Err(bad(path, e)))),
            };
            failed.into_iter().chain(rows.into_iter().flatten().map(move |b| b.map_err(|e| bad(path, e.to_string()))))
        });
        writer.add(batches).map_err(failed)?;
        let mut published = vec![Published { name: groundloom_index::manifest::FILE.to_owned(), rows: 0 }];
        for segment in &writer.manifest().segments {
            published.push(Published { name: segment.table.name.clone(), rows: segment.rows as u64 });
            published.extend(segment.columns.iter().map(|c| Published { name: c.file.name.clone(), rows: 0 }));
        }
        drop(writer);
        for file in &published {
            let from = building.join(&file.name);
            fs::rename(&from, folder.join(&file.name)).map_err(|e| malformed(&from, e.to_string()))?;
        }
        fs::remove_dir_all(&building).map_err(|e| malformed(&building, e.to_string()))?;
        for path in files {
            fs::remove_file(path).map_err(|e| malformed(path, e.to_string()))?;
        }
        Ok(published)
    }
}

impl Sink for IndexSink {
    fn path(&self) -> &str {
        &self.path
    }

    fn schema(&self, input: &Schema) -> Result<SchemaRef, FormatError> {
        if self.path.contains("://") {
            let message = format!(
                "expected a folder on a local disk, found {:?}: indices are used where they are mapped",
                self.path
            );
            return Err(FormatError::Input { key: "path", message });
        }
        self.specs(input)?;
        self.rows().schema(input)
    }

    fn writer(
        &self,
        input: SchemaRef,
        file: File,
        metadata: &[(String, String)],
    ) -> Result<Box<dyn PartWriter>, FormatError> {
        self.rows().writer(input, file, metadata)
    }

    fn join(&self, parts: &[PathBuf], output: &Path) -> Result<(), FormatError> {
        self.rows().join(parts, output)
    }

    fn extension(&self) -> &'static str {
        "parquet"
    }

    fn folder(&self) -> &'static str {
        ""
    }

    fn file_bytes(&self) -> u64 {
        self.rows().file_bytes()
    }

    fn complete(&self, folder: &Path, files: &[PathBuf]) -> Option<Result<Vec<Published>, FormatError>> {
        Some(self.build(folder, files))
    }
}

/// For the catalogue: sinks that live here and not with the formats.
pub(crate) fn sink_types() -> Vec<groundloom_formats::sink::SinkType> {
    let mut all = groundloom_formats::sink::sink_types();
    all.push(groundloom_formats::sink::SinkType::of::<IndexSink>());
    all
}
