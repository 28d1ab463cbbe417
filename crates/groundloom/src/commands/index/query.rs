//! `groundloom index query`.

use std::{
    collections::HashSet,
    fs::File,
    io::{BufWriter, Write},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, Float32Array, RecordBatch},
    datatypes::{DataType, Field, Schema},
};
use groundloom_engine::predicate::SqlPredicate;
use groundloom_index::{Answer, Index, Search, serve::Kind, sum_of_directions};
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};

use super::{
    arguments::{Query, Question},
    encoders::{self, Encoders},
    failure, open,
};
use crate::failure::Failure;

pub fn run(command: &Query) -> Result<(), Failure> {
    let index = open(&command.index)?;
    let encoders = Encoders::on(command.on.open()?);
    let question = &command.question;
    let mut kinds = Vec::new();
    kinds.extend(question.text.first().map(|_| Kind::Text));
    kinds.extend(question.image.first().map(|_| Kind::Image));
    let column = encoders.column(index.manifest(), command.column.as_deref(), &kinds).map_err(Failure::Usage)?;
    let vector = vector(&index, column, question, &encoders)?;
    let filter = match &command.condition {
        Some(text) => {
            let schema = index.schema().cloned().unwrap_or_else(|| Arc::new(Schema::empty()));
            let predicate = SqlPredicate::parse(text, &schema).map_err(failure)?;
            Some(index.filter(&predicate).map_err(failure)?)
        }
        None => None,
    };
    let search = Search { column, k: command.k, ef: command.ef, exact: command.exact, filter: filter.as_ref() };
    let answer = index.search(&vector, &search).map_err(failure)?;
    let positions: Vec<_> = answer.hits.iter().map(|h| h.position).collect();
    if positions.is_empty() {
        say!("no row {}", if filter.is_some() { "matches the condition" } else { "has a vector" });
        return Ok(());
    }
    if let Some(columns) = &command.columns {
        let known = index.schema().map(|s| s.fields().clone()).unwrap_or_default();
        if let Some(unknown) = columns.iter().find(|c| !known.iter().any(|f| f.name() == *c)) {
            let known: Vec<&str> = known.iter().map(|f| f.name().as_str()).collect();
            return Err(Failure::Usage(format!("--columns {unknown}: the rows have {}", known.join(", "))));
        }
    }
    let columns = command.columns.clone().unwrap_or_else(|| index.readable_columns());
    let rows = index.rows_at(&positions, Some(&columns)).map_err(failure)?;
    match &command.output {
        Some(path) => {
            let write = || -> Result<(), Box<dyn std::error::Error>> {
                let batch = with_scores(&rows, &answer)?;
                let mut writer = ArrowWriter::try_new(File::create(path)?, batch.schema(), None)?;
                writer.write(&batch)?;
                writer.close()?;
                Ok(())
            };
            write().map_err(|e| Failure::Failed(format!("{}: {e}", path.display())))
        }
        None => {
            let mut out = BufWriter::new(std::io::stdout().lock());
            for (hit, row) in answer.hits.iter().zip(groundloom_index::as_json(&rows).map_err(failure)?) {
                let mut line = serde_json::Map::from_iter([("score".to_owned(), json!(hit.score))]);
                line.extend(row);
                serde_json::to_writer(&mut out, &Value::Object(line))?;
                out.write_all(b"\n")?;
            }
            Ok(out.flush()?)
        }
    }
}

fn vector(index: &Index, column: usize, question: &Question, encoders: &Encoders) -> Result<Vec<f32>, Failure> {
    let spec = &index.manifest().columns[column];
    let mut vectors: Vec<Vec<f32>> = Vec::new();
    if !question.text.is_empty() || !question.image.is_empty() {
        let model = encoders.of(&spec.name, spec.model.as_ref()).map_err(Failure::Usage)?;
        for text in &question.text {
            vectors.push(encoders::text(model.as_ref(), text).map_err(Failure::Usage)?);
        }
        for path in &question.image {
            let named = |problem: String| Failure::Usage(format!("{}: {problem}", path.display()));
            let bytes = std::fs::read(path).map_err(|e| named(e.to_string()))?;
            vectors.push(encoders::image(model.as_ref(), &bytes).map_err(named)?);
        }
    }
    if !question.row.is_empty() {
        let keys: HashSet<String> = question.row.iter().cloned().collect();
        let found = index.find(&keys).map_err(failure)?;
        for key in &question.row {
            let position = found.iter().find(|f| f.0 == *key).map(|f| f.1);
            let position = position.ok_or_else(|| Failure::Usage(format!("the index has no row {key:?}")))?;
            let vector = index.vector(position, column).map_err(failure)?;
            vectors.push(vector.ok_or_else(|| Failure::Usage(format!("row {key:?} has no {:?}", spec.name)))?.to_vec());
        }
    }
    for text in &question.vector {
        let vector = serde_json::from_str(text);
        vectors.push(vector.map_err(|e| Failure::Usage(format!("--vector: expected a JSON list of numbers: {e}")))?);
    }
    if let Some(wrong) = vectors.iter().find(|v| v.len() != spec.dims) {
        let problem = format!("{:?} has vectors of {} dimensions, found {}", spec.name, spec.dims, wrong.len());
        return Err(Failure::Usage(problem));
    }
    Ok(sum_of_directions(vectors))
}

fn with_scores(rows: &RecordBatch, answer: &Answer) -> Result<RecordBatch, arrow::error::ArrowError> {
    let scores: Float32Array = answer.hits.iter().map(|h| Some(h.score)).collect();
    let mut fields = vec![Arc::new(Field::new("score", DataType::Float32, false))];
    fields.extend(rows.schema_ref().fields().iter().cloned());
    let mut columns: Vec<ArrayRef> = vec![Arc::new(scores)];
    columns.extend(rows.columns().iter().cloned());
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}
