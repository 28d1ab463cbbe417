//! Vector files of other tools as rows for an index.

use std::{fs::File, path::Path, sync::Arc};

use arrow::{
    array::{ArrayRef, FixedSizeListArray, Float32Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema},
    error::ArrowError,
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{Matrix, PART, read_faiss, read_fromage, read_fvecs, read_npy};
use crate::{IndexError, metric::Metric};

/// What a vector file holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Vectors {
    /// The vectors.
    pub matrix: Matrix,
    /// A path or address each, where the file has them.
    pub paths: Option<Vec<String>>,
    /// How they are compared, where the file says so.
    pub metric: Option<Metric>,
}

/// Reads a vector file by its name: `.npy`, `.fvecs`, `.index` or `.faiss` (flat FAISS), `.pkl` (FROMAGe's embeddings).
///
/// # Errors
/// [`IndexError::BadSetting`] for other names, and those of the readers.
pub fn read_vectors(path: &Path) -> Result<Vectors, IndexError> {
    let plain = |matrix| Vectors { matrix, paths: None, metric: None };
    match path.extension().and_then(|e| e.to_str()) {
        Some("npy") => read_npy(path).map(plain),
        Some("fvecs") => read_fvecs(path).map(plain),
        Some("index" | "faiss") => {
            read_faiss(path).map(|(matrix, metric)| Vectors { metric: Some(metric), ..plain(matrix) })
        }
        Some("pkl") => read_fromage(path).map(|read| Vectors { paths: Some(read.paths), ..plain(read.embeddings) }),
        _ => Err(IndexError::BadSetting {
            setting: "a vector file",
            expected: "called .npy, .fvecs, .index, .faiss or .pkl",
            found: path.display().to_string(),
        }),
    }
}

impl Vectors {
    /// The vectors as rows with a column `column`, and beside them what the file or a table has: row `i` of the Parquet file
    /// `table` belongs to vector `i`, as clip-retrieval keeps them. Rows without a column `key` get their number as key.
    ///
    /// # Errors
    /// In the iterator: [`IndexError::BadRows`] for a table that cannot be read or has another number of rows.
    pub fn rows<'a>(
        &'a self,
        table: Option<&Path>,
        key: &'a str,
        column: &'a str,
    ) -> Result<impl Iterator<Item = Result<RecordBatch, IndexError>> + use<'a>, IndexError> {
        let origin = table.map_or_else(|| "vectors".to_owned(), |t| t.display().to_string());
        let bad = move |problem: String| IndexError::BadRows { origin: origin.clone(), problem };
        let expected = self.matrix.rows().len();
        let reader = match table {
            None => None,
            Some(path) => {
                let file = File::open(path).map_err(|e| IndexError::io(path, e))?;
                let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| bad(e.to_string()))?;
                let found = reader.metadata().file_metadata().num_rows();
                if usize::try_from(found) != Ok(expected) {
                    return Err(bad(format!("expected a row for each of {expected} vectors, found {found} rows")));
                }
                Some(reader.with_batch_size(PART).build().map_err(|e| bad(e.to_string()))?)
            }
        };
        let beside: Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>> + 'a> = match reader {
            Some(reader) => Box::new(reader),
            None => Box::new((0..expected).step_by(PART).map(move |first| self.own(first, key))),
        };
        let mut first = 0;
        Ok(beside.map(move |batch| {
            let made = batch.and_then(|batch| {
                let from = first;
                first += batch.num_rows();
                self.with_vectors(&batch, from, key, column)
            });
            made.map_err(|e| bad(e.to_string()))
        }))
    }

    /// Keys, and paths if there are some, of a part of the vectors.
    fn own(&self, first: usize, key: &str) -> Result<RecordBatch, ArrowError> {
        let last = (first + PART).min(self.matrix.rows().len());
        let keys: StringArray = (first..last).map(|row| Some(row.to_string())).collect();
        let paths = self.paths.as_ref().and_then(|paths| paths.get(first..last));
        let paths: Option<ArrayRef> = paths.map(|p| Arc::new(p.iter().map(Some).collect::<StringArray>()) as ArrayRef);
        let columns = [(key, Arc::new(keys) as ArrayRef)].into_iter().chain(paths.map(|p| ("path", p)));
        RecordBatch::try_from_iter(columns.collect::<Vec<_>>())
    }

    fn with_vectors(
        &self,
        batch: &RecordBatch,
        first: usize,
        key: &str,
        column: &str,
    ) -> Result<RecordBatch, ArrowError> {
        let dims = self.matrix.dims;
        let rows = first..first + batch.num_rows();
        let mut fields = batch.schema_ref().fields().to_vec();
        let mut columns = batch.columns().to_vec();
        let mut add = |name: &str, values: ArrayRef| {
            fields.push(Arc::new(Field::new(name, values.data_type().clone(), true)));
            columns.push(values);
        };
        if batch.column_by_name(key).is_none() {
            add(key, Arc::new(rows.clone().map(|row| Some(row.to_string())).collect::<StringArray>()));
        }
        let values = Float32Array::from(self.matrix.values[rows.start * dims..rows.end * dims].to_vec());
        let item = Arc::new(Field::new("item", DataType::Float32, true));
        let length = i32::try_from(dims).map_err(|e| ArrowError::InvalidArgumentError(e.to_string()))?;
        add(column, Arc::new(FixedSizeListArray::try_new(item, length, Arc::new(values), None)?));
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
    }
}
