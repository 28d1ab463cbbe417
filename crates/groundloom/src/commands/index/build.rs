//! `groundloom index build`, `import`, `add`, `delete`, `merge`, `compact`.

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, FixedSizeListArray, RecordBatch, StringArray},
    compute::cast,
    datatypes::{DataType, Field, Float32Type, Schema, SchemaRef},
};
use groundloom_data::{DecodeLimits, MediaView, Place, RowId, columns::is_media, file_hash, media::decode_rgb};
use groundloom_index::{ColumnSettings, ColumnSpec, GraphSettings, IndexError, Metric, ModelIdentity, Writer};
use groundloom_models::Embedder;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rayon::prelude::*;
use serde_json::json;

use super::{arguments, encoders::Encoders, failure, open};
use crate::failure::Failure;

/// Rows that are read and embedded at a time: what is in memory beside the vectors.
const BATCH: usize = 256;
/// Rows that a model gets at once. Fixed, so that vectors do not depend on threads.
const WINDOW: usize = 32;

/// What is done to rows on their way into an index.
struct Preparation {
    key: String,
    /// Column to embed, the vectors' column, the model.
    embed: Vec<(String, String, Arc<dyn Embedder>)>,
}

pub fn build(command: &arguments::Build) -> Result<(), Failure> {
    let files = parquet_files(&command.rows.rows)?;
    let schema = schema_of(&files[0])?;
    let encoders = Encoders::on(command.on.open()?);
    let settings = settings_of(&command.graph);
    let mut columns = Vec::new();
    let mut embed = Vec::new();
    for (column, model) in &command.embed {
        let model = encoders.get(model).map_err(Failure::Usage)?;
        embeddable(&schema, column, model.as_ref())?;
        let info = model.info();
        let identity = ModelIdentity { name: info.name.clone(), weights: info.weights_sha256.clone() };
        let name = format!("{column}_embedding");
        if schema.field_with_name(&name).is_ok() || columns.iter().any(|c: &ColumnSpec| c.name == name) {
            return Err(Failure::Usage(format!(
                "there is a column {name:?} already; index it with --vector {name}=MODEL"
            )));
        }
        columns.push(ColumnSpec {
            name: name.clone(),
            dims: info.dims,
            metric: command.metric,
            model: Some(identity),
            settings,
        });
        embed.push((column.clone(), name, model));
    }
    for (name, model) in named_vectors(command, &schema)? {
        let dims = dims_of(&files, &schema, &name)?;
        let model = model.map(|model| identity_of(&encoders, &model, dims)).transpose()?;
        columns.push(ColumnSpec { name, dims, metric: command.metric, model, settings });
    }
    if columns.is_empty() {
        return Err(Failure::Usage(format!(
            "{} has no columns of fixed-size lists of numbers; embed one with --embed COLUMN=MODEL, or name one with --vector",
            files[0].display()
        )));
    }
    let preparation = Preparation { key: command.key.clone(), embed };
    let mut writer = Writer::create(&command.output, &command.key, columns).map_err(failure)?;
    let changed = writer.add(prepared(&files, &preparation)).map_err(failure)?;
    if changed.added == 0 {
        writer.publish_empty().map_err(failure)?;
    }
    warn_of_recall(&writer);
    print(json!({ "index": command.output.display().to_string(), "rows": changed.added }))
}

/// The model called `name`, which made vectors of `dims` dimensions.
fn identity_of(encoders: &Encoders, name: &str, dims: usize) -> Result<ModelIdentity, Failure> {
    let name = name.to_owned();
    // A model that is not here may still be named: the index can be asked by vector and row.
    match encoders.get(&name) {
        Ok(model) if model.info().dims != dims => Err(Failure::Usage(format!(
            "{name} makes vectors of {} dimensions, the column has {dims}",
            model.info().dims
        ))),
        Ok(model) => Ok(ModelIdentity { weights: model.info().weights_sha256.clone(), name }),
        Err(problem) => {
            say!("warning: {problem}; the index keeps the name, without a hash of weights");
            Ok(ModelIdentity { name, weights: String::new() })
        }
    }
}

/// An index over a vector file of another tool.
pub fn import(command: &arguments::Import) -> Result<(), Failure> {
    let vectors = groundloom_index::exchange::read_vectors(&command.vectors).map_err(failure)?;
    let dims = vectors.matrix.dims;
    let model = command.model.as_ref().map(|model| identity_of(&Encoders::default(), model, dims)).transpose()?;
    let spec = ColumnSpec {
        name: command.column.clone(),
        dims,
        metric: command.metric.or(vectors.metric).unwrap_or(Metric::Cosine),
        model,
        settings: settings_of(&command.graph),
    };
    let rows = vectors.rows(command.rows.as_deref(), &command.key, &command.column).map_err(failure)?;
    let mut writer = Writer::create(&command.output, &command.key, vec![spec]).map_err(failure)?;
    let changed = writer.add(rows).map_err(failure)?;
    if changed.added == 0 {
        writer.publish_empty().map_err(failure)?;
    }
    warn_of_recall(&writer);
    print(json!({ "index": command.output.display().to_string(), "rows": changed.added }))
}

fn settings_of(graph: &arguments::Graph) -> ColumnSettings {
    ColumnSettings {
        coding: graph.coding,
        graph: GraphSettings {
            m: graph.m,
            ef_construction: graph.ef_construction,
            seed: graph.seed,
            builder: graph.builder,
        },
        target_recall: graph.target_recall,
        ..ColumnSettings::default()
    }
}

/// Says which columns do not reach the recall they were to be tuned to.
fn warn_of_recall(writer: &Writer) {
    for entry in &writer.manifest().segments {
        for (column, segment) in writer.manifest().columns.iter().zip(&entry.columns) {
            if let Some(tuning) = segment.tuning.filter(|t| t.recall < t.target) {
                say!(
                    "warning: {:?} reaches recall {:.3} of {:.3} around the {} closest nodes; raise --m or --ef-construction",
                    column.name,
                    tuning.recall,
                    tuning.target,
                    tuning.ef
                );
            }
        }
    }
}

pub fn add(command: &arguments::Add) -> Result<(), Failure> {
    let files = parquet_files(&command.rows.rows)?;
    let mut writer = Writer::open(&command.index).map_err(failure)?;
    let schema = schema_of(&files[0])?;
    let encoders = Encoders::on(command.on.open()?);
    let mut embed = Vec::new();
    for column in writer.manifest().columns.iter().filter(|c| schema.field_with_name(&c.name).is_err()) {
        // The rows have no vectors: make them as the index's own were made.
        let source = column.name.strip_suffix("_embedding").unwrap_or_default();
        let model = encoders.of(&column.name, column.model.as_ref()).map_err(Failure::Usage)?;
        embeddable(&schema, source, model.as_ref())?;
        embed.push((source.to_owned(), column.name.clone(), model));
    }
    let preparation = Preparation { key: writer.manifest().key.clone(), embed };
    let changed = writer.add(prepared(&files, &preparation)).map_err(failure)?;
    print(json!({ "added": changed.added, "replaced": changed.replaced }))
}

pub fn delete(command: &arguments::Delete) -> Result<(), Failure> {
    let keys = command.keys.iter().cloned().collect();
    let deleted = Writer::open(&command.index).and_then(|mut w| w.delete(&keys)).map_err(failure)?;
    print(json!({ "deleted": deleted }))
}

pub fn merge(command: &arguments::Merge) -> Result<(), Failure> {
    let mut writer = Writer::open(&command.index).map_err(failure)?;
    for other in &command.others {
        let changed = writer.merge(&open(other)?).map_err(failure)?;
        print(json!({ "merged": other.display().to_string(), "added": changed.added, "replaced": changed.replaced }))?;
    }
    Ok(())
}

pub fn compact(folder: &Path) -> Result<(), Failure> {
    let compacted = Writer::open(folder).and_then(|mut w| w.compact()).map_err(failure)?;
    print(json!({ "compacted": compacted }))
}

fn print(line: serde_json::Value) -> Result<(), Failure> {
    use std::io::Write;
    Ok(writeln!(std::io::stdout().lock(), "{line}")?)
}

/// Parquet files: those named, and those in the folders named, but not in parts of them that begin with `_` or `.`.
fn parquet_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    fn below(folder: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
        let mut items = std::fs::read_dir(folder)?.map(|i| i.map(|i| i.path())).collect::<Result<Vec<_>, _>>()?;
        items.sort();
        for path in items {
            let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(['_', '.']));
            if hidden {
                continue;
            }
            if path.is_dir() {
                below(&path, found)?;
            } else if path.extension().is_some_and(|e| e == "parquet") {
                found.push(path);
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    for path in paths {
        let before = found.len();
        if path.is_dir() {
            below(path, &mut found).map_err(|e| Failure::Usage(format!("{}: {e}", path.display())))?;
        } else if path.is_file() {
            found.push(path.clone());
        }
        if found.len() == before {
            return Err(Failure::Usage(format!("{}: expected a Parquet file or a folder with some", path.display())));
        }
    }
    Ok(found)
}

fn reader(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>, IndexError> {
    let bad = |problem: String| IndexError::BadRows { origin: path.display().to_string(), problem };
    let file = File::open(path).map_err(|e| bad(e.to_string()))?;
    ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| bad(e.to_string()))
}

fn schema_of(path: &Path) -> Result<SchemaRef, Failure> {
    reader(path).map(|r| Arc::clone(r.schema())).map_err(failure)
}

/// Vector columns as the arguments name them, or all that look like vectors.
fn named_vectors(command: &arguments::Build, schema: &Schema) -> Result<Vec<(String, Option<String>)>, Failure> {
    if command.vectors.is_empty() && command.embed.is_empty() {
        let vectors = schema
            .fields()
            .iter()
            .filter(|f| matches!(f.data_type(), DataType::FixedSizeList(i, _) if i.data_type().is_floating()));
        return Ok(vectors.map(|f| (f.name().clone(), None)).collect());
    }
    let mut named = Vec::new();
    for text in &command.vectors {
        let (name, model) = match text.split_once('=') {
            Some((name, model)) => (name.to_owned(), Some(model.to_owned())),
            None => (text.clone(), None),
        };
        if schema.field_with_name(&name).is_err() {
            let known: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
            return Err(Failure::Usage(format!(
                "--vector {name}: the rows have no such column; they have {}",
                known.join(", ")
            )));
        }
        named.push((name, model));
    }
    Ok(named)
}

/// Length of the vectors of a column: of its type, or of the first that is there.
fn dims_of(files: &[PathBuf], schema: &Schema, name: &str) -> Result<usize, Failure> {
    match schema.field_with_name(name).map(Field::data_type) {
        Ok(DataType::FixedSizeList(_, dims)) => return Ok(*dims as usize),
        Ok(DataType::List(_) | DataType::LargeList(_)) => {}
        _ => return Err(Failure::Usage(format!("--vector {name}: expected lists of numbers"))),
    }
    for path in files {
        let rows = reader(path).and_then(|r| {
            r.with_batch_size(BATCH)
                .build()
                .map_err(|e| IndexError::BadRows { origin: path.display().to_string(), problem: e.to_string() })
        });
        for batch in rows.map_err(failure)? {
            let batch = batch.map_err(|e| Failure::Failed(format!("{}: {e}", path.display())))?;
            let Some(column) = batch.column_by_name(name) else { continue };
            let list = cast(column, &DataType::List(Arc::new(Field::new("item", DataType::Float32, true))));
            let list = list.map_err(|e| Failure::Failed(e.to_string()))?;
            let list = list.as_list::<i32>();
            if let Some(row) = (0..list.len()).find(|row| list.is_valid(*row)) {
                return Ok(list.value(row).len());
            }
        }
    }
    Err(Failure::Usage(format!("--vector {name}: all rows are null, so the length of the vectors is unknown")))
}

fn embeddable(schema: &Schema, column: &str, model: &dyn Embedder) -> Result<(), Failure> {
    let info = model.info();
    let known: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    let Ok(field) = schema.field_with_name(column) else {
        return Err(Failure::Usage(format!(
            "there is no column {column:?} to embed; the rows have {}",
            known.join(", ")
        )));
    };
    let (kind, takes) = if is_media(field.data_type()) {
        ("pictures", info.images)
    } else if matches!(field.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) {
        ("texts", info.texts)
    } else {
        return Err(Failure::Usage(format!("{column:?}: expected texts or pictures, found {}", field.data_type())));
    };
    if takes {
        Ok(())
    } else {
        Err(Failure::Usage(format!("{column:?} holds {kind}, which {} does not take", info.name)))
    }
}

/// The rows of the files, with keys and vectors.
fn prepared<'a>(
    files: &'a [PathBuf],
    preparation: &'a Preparation,
) -> impl Iterator<Item = Result<RecordBatch, IndexError>> + 'a {
    files.iter().flat_map(move |path| {
        let bad = move |problem: String| IndexError::BadRows { origin: path.display().to_string(), problem };
        let mut at = 0;
        let (batches, failed) =
            match reader(path).and_then(|r| r.with_batch_size(BATCH).build().map_err(|e| bad(e.to_string()))) {
                Ok(batches) => (Some(batches), None),
                Err(e) => (None, Some(Err(e))),
            };
        let rows = batches.into_iter().flatten().map(move |batch| {
            let batch = batch.map_err(|e| bad(e.to_string()))?;
            let first = at;
            at += batch.num_rows() as u64;
            let batch = with_keys(batch, preparation, path, first)?;
            preparation.embed.iter().try_fold(batch, |batch, (column, name, model)| {
                let vectors = embedded(&batch, column, model.as_ref()).map_err(|(row, problem)| {
                    bad(format!("row {}, column {column:?}: {problem}", first + row as u64))
                })?;
                with_column(&batch, name, vectors).map_err(|e| bad(e.to_string()))
            })
        });
        failed.into_iter().chain(rows)
    })
}

/// Rows that lack the key `row_id` are identified by file and place, as everywhere in Groundloom.
fn with_keys(
    batch: RecordBatch,
    preparation: &Preparation,
    path: &Path,
    first: u64,
) -> Result<RecordBatch, IndexError> {
    if batch.column_by_name(&preparation.key).is_some() || preparation.key != groundloom_data::columns::ROW_ID {
        return Ok(batch);
    }
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let hash = file_hash(&name);
    let keys: StringArray = (0..batch.num_rows() as u64)
        .map(|row| Some(RowId::in_file(hash, Place::Row(first + row)).to_string()))
        .collect();
    with_column(&batch, &preparation.key, Arc::new(keys))
        .map_err(|e| IndexError::BadRows { origin: path.display().to_string(), problem: e.to_string() })
}

fn with_column(batch: &RecordBatch, name: &str, column: ArrayRef) -> Result<RecordBatch, arrow::error::ArrowError> {
    let mut fields = batch.schema_ref().fields().to_vec();
    fields.push(Arc::new(Field::new(name, column.data_type().clone(), true)));
    let mut columns = batch.columns().to_vec();
    columns.push(column);
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// The vectors of a column; null stays null. An error names the row.
fn embedded(batch: &RecordBatch, column: &str, model: &dyn Embedder) -> Result<ArrayRef, (usize, String)> {
    let source = batch.column_by_name(column).ok_or((0, format!("there is no column {column:?}")))?;
    let rows: Vec<usize> = (0..batch.num_rows()).collect();
    let windows: Vec<HashMap<usize, Vec<f32>>> = if is_media(source.data_type()) {
        let media = MediaView::try_new(source).map_err(|e| (0, e.to_string()))?;
        rows.par_chunks(WINDOW)
            .map(|window| {
                let mut pictures = Vec::new();
                for row in window {
                    let Some(bytes) = media.bytes(*row) else { continue };
                    let pixels = decode_rgb(bytes, &DecodeLimits::default()).map_err(|e| (*row, e.to_string()))?;
                    pictures.push((*row, pixels));
                }
                let answers = model.embed_images(&pictures.iter().map(|p| &p.1).collect::<Vec<_>>());
                by_row(pictures.iter().map(|p| p.0), answers)
            })
            .collect::<Result<_, _>>()?
    } else {
        let texts = cast(source, &DataType::Utf8).map_err(|e| (0, e.to_string()))?;
        let texts = texts.as_string::<i32>();
        rows.par_chunks(WINDOW)
            .map(|window| {
                let there: Vec<usize> = window.iter().copied().filter(|row| texts.is_valid(*row)).collect();
                let answers = model.embed_texts(&there.iter().map(|row| texts.value(*row)).collect::<Vec<_>>());
                by_row(there.into_iter(), answers)
            })
            .collect::<Result<_, _>>()?
    };
    let all: HashMap<usize, Vec<f32>> = windows.into_iter().flatten().collect();
    let lists = rows.iter().map(|row| all.get(row).map(|v| v.iter().map(|x| Some(*x)).collect::<Vec<_>>()));
    Ok(Arc::new(FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(lists, model.info().dims as i32)))
}

fn by_row(
    rows: impl Iterator<Item = usize>,
    answers: Vec<Result<Vec<f32>, groundloom_models::ModelError>>,
) -> Result<HashMap<usize, Vec<f32>>, (usize, String)> {
    rows.zip(answers).map(|(row, answer)| answer.map(|v| (row, v)).map_err(|e| (row, e.to_string()))).collect()
}
