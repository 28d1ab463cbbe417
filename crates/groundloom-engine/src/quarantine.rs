//! Rows that failed: read for a person, or to be tried again.

use std::{collections::BTreeMap, fs::File, path::Path, sync::Arc};

use arrow::{array::AsArray, compute::cast, datatypes::DataType, error::ArrowError, record_batch::RecordBatch};
use groundloom_data::columns::ROW_ID;
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

/// The ids of a part's rows.
///
/// # Errors
/// When it is gone, damaged or in another format than Parquet.
pub fn row_ids(path: &Path) -> Result<Vec<String>, EngineError> {
    let mut ids = Vec::new();
    read(path, &[ROW_ID], |batch| {
        let column = cast(batch.column(0), &DataType::Utf8)?;
        ids.extend(column.as_string::<i32>().iter().map(|id| id.unwrap_or_default().to_owned()));
        Ok(())
    })?;
    Ok(ids)
}

/// How many rows of a quarantine part failed in which stage with which code.
///
/// # Errors
/// As [`row_ids`].
pub fn failures(path: &Path) -> Result<BTreeMap<String, BTreeMap<String, u64>>, EngineError> {
    let mut all: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    read(path, &["stage", "code"], |batch| {
        let (stages, codes) = (cast(batch.column(0), &DataType::Utf8)?, cast(batch.column(1), &DataType::Utf8)?);
        for (stage, code) in stages.as_string::<i32>().iter().zip(codes.as_string::<i32>().iter()) {
            let stage = all.entry(stage.unwrap_or_default().to_owned()).or_default();
            *stage.entry(code.unwrap_or_default().to_owned()).or_default() += 1;
        }
        Ok(())
    })?;
    Ok(all)
}

fn read(
    path: &Path,
    columns: &[&str],
    mut each: impl FnMut(&RecordBatch) -> Result<(), ArrowError>,
) -> Result<(), EngineError> {
    let damaged = |e: &dyn std::fmt::Display| EngineError::Damaged { path: path.to_owned(), message: e.to_string() };
    let file = File::open(path).map_err(|e| EngineError::io(path, e))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| damaged(&e))?;
    let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
    for batch in builder.with_projection(mask).build().map_err(|e| damaged(&e))? {
        batch.and_then(|batch| each(&batch)).map_err(|e| damaged(&e))?;
    }
    Ok(())
}
