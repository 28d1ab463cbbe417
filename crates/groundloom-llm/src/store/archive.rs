//! Stores as Parquet files: to look at, to share, to carry to another machine.

use std::{fs::File, path::Path, sync::Arc};

use arrow::{
    array::{Array, AsArray, RecordBatch, StringBuilder, UInt64Builder},
    datatypes::{DataType, Field, Schema, UInt64Type},
};
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};

use super::{Store, Stored};
use crate::{answer::Usage, error::LlmError, money::Money, request::RequestHash};

/// Rows of one batch.
const ROWS: usize = 1024;

/// What an export or import did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Archived {
    /// Answers written.
    pub written: u64,
    /// Answers that were there already.
    pub known: u64,
}

fn schema() -> Schema {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    let number = |name: &str, nullable| Field::new(name, DataType::UInt64, nullable);
    Schema::new(vec![
        text("request_hash"),
        text("path"),
        text("model"),
        text("request"),
        text("response"),
        number("prompt_tokens", true),
        number("completion_tokens", true),
        number("cached_prompt_tokens", true),
        text("cost"),
        number("asked_ms", false),
        number("took_ms", false),
    ])
}

impl Store {
    /// Writes all answers to a Parquet file, ordered by hash: `request_hash`, `path`, `model`, `request` and `response` (JSON texts), token counts (null where the
    /// server gave none), `cost` (a decimal text), `asked_ms` (since 1970) and `took_ms`.
    ///
    /// # Errors
    /// [`LlmError::Store`] when the store cannot be read or the file not be written.
    pub fn export(&self, path: &Path) -> Result<Archived, LlmError> {
        let error = |e: &dyn std::fmt::Display| LlmError::store(path, e);
        let schema = Arc::new(schema());
        let level = ZstdLevel::try_new(3).map_err(|e| error(&e))?;
        let properties = WriterProperties::builder().set_compression(Compression::ZSTD(level)).build();
        let file = File::create(path).map_err(|e| error(&e))?;
        let mut writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties)).map_err(|e| error(&e))?;
        self.index().refresh(&self.folder.join("segments"))?;
        let mut archived = Archived::default();
        for hashes in self.hashes().chunks(ROWS) {
            let mut texts: Vec<StringBuilder> = (0..6).map(|_| StringBuilder::new()).collect();
            let mut numbers: Vec<UInt64Builder> = (0..5).map(|_| UInt64Builder::new()).collect();
            for hash in hashes {
                let Some(stored) = self.get(hash)? else { continue };
                let model = stored.request["model"].as_str().unwrap_or_default();
                let values = [
                    hash.to_string(),
                    stored.path.clone(),
                    model.to_owned(),
                    stored.request.to_string(),
                    stored.response.to_string(),
                    stored.cost.into(),
                ];
                texts.iter_mut().zip(values).for_each(|(builder, value)| builder.append_value(value));
                let usage = stored.usage;
                numbers[0].append_option(usage.map(|u| u.prompt_tokens));
                numbers[1].append_option(usage.map(|u| u.completion_tokens));
                numbers[2].append_option(usage.map(|u| u.cached_prompt_tokens));
                numbers[3].append_value(stored.asked_ms);
                numbers[4].append_value(stored.took_ms);
                archived.written += 1;
            }
            let mut texts = texts.into_iter().map(|mut b| Arc::new(b.finish()) as _);
            let mut numbers = numbers.into_iter().map(|mut b| Arc::new(b.finish()) as _);
            let mut columns: Vec<arrow::array::ArrayRef> = texts.by_ref().take(5).collect();
            columns.extend(numbers.by_ref().take(3));
            columns.extend(texts);
            columns.extend(numbers);
            let batch = RecordBatch::try_new(Arc::clone(&schema), columns).map_err(|e| error(&e))?;
            writer.write(&batch).map_err(|e| error(&e))?;
        }
        writer.close().map_err(|e| error(&e))?;
        Ok(archived)
    }

    /// Takes the answers of a Parquet file that [`Store::export`] wrote into this store. They count against no budget here.
    ///
    /// # Errors
    /// [`LlmError::Store`] for a file that cannot be read, is none of ours, or holds a broken row.
    pub async fn import(&self, path: &Path) -> Result<Archived, LlmError> {
        let error = |e: &dyn std::fmt::Display| LlmError::store(path, e);
        let file = File::open(path).map_err(|e| error(&e))?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| error(&e))?;
        let names: Vec<&str> = builder.schema().fields().iter().map(|f| f.name().as_str()).collect();
        let expected: Vec<String> = schema().fields().iter().map(|f| f.name().clone()).collect();
        if names != expected {
            return Err(error(&format!("expected the columns {}, found {}", expected.join(", "), names.join(", "))));
        }
        let mut archived = Archived::default();
        for batch in builder.with_batch_size(ROWS).build().map_err(|e| error(&e))? {
            let batch = batch.map_err(|e| error(&e))?;
            for (hash, stored) in read_batch(&batch).map_err(|e| error(&e))? {
                if self.get(&hash)?.is_some() {
                    archived.known += 1;
                } else {
                    self.put(hash, &stored, None).await?;
                    archived.written += 1;
                }
            }
        }
        Ok(archived)
    }
}

fn read_batch(batch: &RecordBatch) -> Result<Vec<(RequestHash, Stored)>, String> {
    // Other writers may have chosen other string and integer types.
    let types = schema();
    let columns = batch.columns().iter().zip(types.fields());
    let columns = columns
        .map(|(column, field)| arrow::compute::cast(column, field.data_type()).map_err(|e| e.to_string()))
        .collect::<Result<Vec<_>, _>>()?;
    let text = |column: usize, row: usize| columns[column].as_string::<i32>().value(row).to_owned();
    let number = |column: usize, row: usize| {
        columns[column].is_valid(row).then(|| columns[column].as_primitive::<UInt64Type>().value(row))
    };
    let json = |column, row| -> Result<serde_json::Value, String> {
        serde_json::from_str(&text(column, row)).map_err(|e| format!("row {row}: {e}"))
    };
    let mut rows = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let hash = RequestHash::parse(&text(0, row)).ok_or_else(|| format!("row {row}: no request hash"))?;
        let usage = match (number(5, row), number(6, row)) {
            (Some(prompt_tokens), Some(completion_tokens)) => {
                Some(Usage { prompt_tokens, completion_tokens, cached_prompt_tokens: number(7, row).unwrap_or(0) })
            }
            _ => None,
        };
        let stored = Stored {
            path: text(1, row),
            request: json(3, row)?,
            response: json(4, row)?,
            usage,
            cost: text(8, row).parse::<Money>().map_err(|e| format!("row {row}: {e}"))?,
            asked_ms: number(9, row).unwrap_or(0),
            took_ms: number(10, row).unwrap_or(0),
        };
        rows.push((hash, stored));
    }
    Ok(rows)
}
