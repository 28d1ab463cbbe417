//! Rows that failed: read for a person.

use std::{fs::File, path::Path, sync::Arc};

use groundloom_formats::json_rows;
use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};
use serde_json::{Map, Value};

use crate::{error::EngineError, nodes::shuffle::is_heavy};

/// Rows of a quarantine file as JSON objects, without media bytes, batch by batch.
pub type Batches = Box<dyn Iterator<Item = Result<Vec<Map<String, Value>>, EngineError>>>;

/// Reads a quarantine file.
///
/// # Errors
/// When it is gone or damaged.
pub fn rows(path: &Path) -> Result<Batches, EngineError> {
    let path = path.to_owned();
    let damaged = {
        let path = path.clone();
        move |e: &dyn std::fmt::Display| EngineError::Damaged { path: path.clone(), message: e.to_string() }
    };
    let file = File::open(&path).map_err(|e| EngineError::io(&path, e))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| damaged(&e))?;
    let schema = Arc::clone(builder.schema());
    let light: Vec<usize> = (0..schema.fields().len()).filter(|i| !is_heavy(schema.field(*i).data_type())).collect();
    let mask = ProjectionMask::roots(builder.parquet_schema(), light);
    let reader = builder.with_projection(mask).build().map_err(|e| damaged(&e))?;
    Ok(Box::new(reader.map(move |batch| Ok(json_rows::objects(&batch.map_err(|e| damaged(&e))?)?))))
}
