//! Vectors for other tools: NumPy's `.npy` beside Parquet, as clip-retrieval lays them out, and the fvecs files of the
//! approximate nearest neighbour benchmarks, FAISS' flat indices, FROMAGe's embeddings, and tables of captions as CC3M's.

mod captions;
mod faiss;
mod fromage;
mod import;

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
    sync::Arc,
};

use arrow::{
    array::{AsArray, Float16Array},
    buffer::{Buffer, ScalarBuffer},
    compute::cast,
    datatypes::{DataType, Float32Type},
};

pub use captions::{Captioned, Captions, Missing, read_captions};
pub use faiss::read_faiss;
pub use fromage::{Fromage, read_fromage};
pub use import::{Vectors, read_vectors};

use crate::{
    IndexError,
    index::{Index, Position},
    metric::Metric,
    table::TableWriter,
};

/// Rows of numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Length of a row.
    pub dims: usize,
    /// All rows, one after the other.
    pub values: Vec<f32>,
}

impl Matrix {
    /// The rows.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.dims.max(1))
    }
}

/// Rows that are read and written at a time.
const PART: usize = 8192;

/// The dictionary of a NumPy header, padded so that the numbers begin at a multiple of 64 (NumPy's format 1.0).
fn npy_header(rows: usize, dims: usize) -> Vec<u8> {
    let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dims}), }}");
    let end = (10 + text.len() + 1).next_multiple_of(64);
    text.extend(std::iter::repeat_n(' ', end - 10 - text.len() - 1));
    text.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&(text.len() as u16).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// Reads a matrix of `<f4` or `<f2` from a `.npy` file.
///
/// # Errors
/// [`IndexError::Damaged`] for other types, orders and shapes, and for a file that is not as long as its shape says.
pub fn read_npy(path: &Path) -> Result<Matrix, IndexError> {
    let bytes = fs::read(path).map_err(|e| IndexError::io(path, e))?;
    let bad = |problem: &str| IndexError::damaged(path, problem);
    let not_numpy = || bad("expected a NumPy file, which begins with \\x93NUMPY");
    let version = bytes.strip_prefix(b"\x93NUMPY").and_then(|b| b.first()).ok_or_else(not_numpy)?;
    let (length, start) = match (version, bytes.get(8..12)) {
        (1, Some(l)) => (usize::from(u16::from_le_bytes([l[0], l[1]])), 10),
        (2 | 3, Some(l)) => (u32::from_le_bytes([l[0], l[1], l[2], l[3]]) as usize, 12),
        _ => return Err(not_numpy()),
    };
    let end = start + length;
    let header =
        bytes.get(start..end).and_then(|h| str::from_utf8(h).ok()).ok_or_else(|| bad("the header is cut off"))?;
    let after = |key: &str| header.split_once(&format!("'{key}':")).map(|h| h.1.trim_start());
    let width = match after("descr") {
        Some(rest) if rest.starts_with("'<f4'") => 4,
        Some(rest) if rest.starts_with("'<f2'") => 2,
        _ => return Err(bad("expected numbers of the type '<f4' or '<f2'; save them with .astype('<f4')")),
    };
    if !after("fortran_order").is_some_and(|rest| rest.starts_with("False")) {
        return Err(bad("expected rows one after the other; save numpy.ascontiguousarray(…)"));
    }
    let shape = after("shape").and_then(|s| s.strip_prefix('(')).and_then(|s| s.split_once(')')).map(|s| s.0);
    let shape: Option<Vec<usize>> =
        shape.map(|s| s.split(',').map(str::trim).filter(|n| !n.is_empty()).map_while(|n| n.parse().ok()).collect());
    let Some([rows, dims]) = shape.as_deref() else {
        return Err(bad("expected a shape of two numbers: rows and dimensions"));
    };
    let expected = rows.checked_mul(*dims).and_then(|n| n.checked_mul(width));
    let data = bytes.get(end..).filter(|d| Some(d.len()) == expected && *dims > 0);
    let data = data.ok_or_else(|| bad("the file is not as long as its shape says"))?;
    let values = if width == 4 {
        data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    } else {
        let halves = Float16Array::new(ScalarBuffer::new(Buffer::from(data), 0, rows * dims), None);
        let floats = cast(&halves, &DataType::Float32).map_err(|e| bad(&e.to_string()))?;
        floats.as_primitive::<Float32Type>().values().to_vec()
    };
    Ok(Matrix { dims: *dims, values })
}

/// Reads an fvecs file: each row is its length as i32 and as many f32, little-endian.
///
/// # Errors
/// [`IndexError::Damaged`] for rows of different lengths and a file that is cut off.
pub fn read_fvecs(path: &Path) -> Result<Matrix, IndexError> {
    let bytes = fs::read(path).map_err(|e| IndexError::io(path, e))?;
    let (words, rest) = bytes.as_chunks::<4>();
    let bad = |problem: String| IndexError::damaged(path, problem);
    let dims = words.first().map_or(0, |w| i32::from_le_bytes(*w).max(0) as usize);
    if dims == 0 || !rest.is_empty() || words.len() % (dims + 1) != 0 {
        return Err(bad(format!("expected rows of a length and {dims} numbers each, found {} bytes", bytes.len())));
    }
    let mut values = Vec::with_capacity(words.len());
    for (row, words) in words.chunks_exact(dims + 1).enumerate() {
        let found = i32::from_le_bytes(words[0]);
        if found != dims as i32 {
            return Err(bad(format!("row {row}: expected {dims} numbers as in the first row, found {found}")));
        }
        values.extend(words[1..].iter().map(|w| f32::from_le_bytes(*w)));
    }
    Ok(Matrix { dims, values })
}

impl Index {
    /// Writes the rows that have a vector in clip-retrieval's layout: `NAME/NAME_0.npy` and `metadata/metadata_0.parquet` in
    /// `folder`, row by row the same. Vectors are as stored (unit length for cosine); how many rows.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn export_npy(&self, column: usize, name: &str, folder: &Path) -> Result<usize, IndexError> {
        let rows = self.rows_with_vectors(column)?;
        let vectors = folder.join(name);
        fs::create_dir_all(&vectors).map_err(|e| IndexError::io(&vectors, e))?;
        let head = npy_header(rows.len(), self.dims(column));
        self.write_vectors(column, &rows, &vectors.join(format!("{name}_0.npy")), |out| out.write_all(&head), &[])?;
        self.write_metadata(&rows, folder)
    }

    /// Writes the rows that have a vector as a flat FAISS index `NAME.index` and `metadata/metadata_0.parquet` in `folder`,
    /// row by row the same. Vectors are as stored (unit length for cosine, whose scores are then inner products); how many
    /// rows.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn export_faiss(&self, column: usize, name: &str, folder: &Path) -> Result<usize, IndexError> {
        let rows = self.rows_with_vectors(column)?;
        let (dims, metric) = (self.dims(column), self.manifest().columns.get(column).map_or(Metric::Ip, |c| c.metric));
        fs::create_dir_all(folder).map_err(|e| IndexError::io(folder, e))?;
        let head = |out: &mut BufWriter<File>| faiss::write_header(out, rows.len(), dims, metric);
        self.write_vectors(column, &rows, &folder.join(format!("{name}.index")), head, &[])?;
        self.write_metadata(&rows, folder)
    }

    /// Writes the rows that have a vector as FROMAGe's precomputed embeddings to the file `path`, which FROMAGe finds when it
    /// is called `cc3m_embeddings*.pkl`; the texts of `paths` are the addresses of its pictures. How many rows.
    ///
    /// # Errors
    /// [`IndexError::BadRows`] when `paths` is no column of texts or a row lacks one; files that cannot be read or written.
    pub fn export_fromage(&self, column: usize, paths: &str, path: &Path) -> Result<usize, IndexError> {
        let rows = self.rows_with_vectors(column)?;
        let bad = |problem: String| IndexError::BadRows { origin: format!("column {paths:?}"), problem };
        let mut addresses: Vec<String> = Vec::with_capacity(rows.len());
        for part in rows.chunks(PART) {
            let batch = self.rows_at(part, Some(&[paths.to_owned()]))?;
            let texts = batch.column_by_name(paths).ok_or_else(|| bad("the index has no such column".into()))?;
            let is_text = matches!(texts.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
            if !is_text {
                return Err(bad(format!("expected texts, found {}", texts.data_type())));
            }
            let texts = cast(texts, &DataType::Utf8).map_err(|e| bad(e.to_string()))?;
            for text in texts.as_string::<i32>() {
                let text =
                    text.ok_or_else(|| bad("expected a text in every row that has a vector, found null".into()))?;
                addresses.push(text.to_owned());
            }
        }
        if i32::try_from(rows.len()).is_err() {
            return Err(bad(format!("expected at most {} rows in one file, found {}", i32::MAX, rows.len())));
        }
        let head = |out: &mut BufWriter<File>| fromage::write_head(out, &addresses, self.dims(column));
        self.write_vectors(column, &rows, path, head, fromage::TAIL)?;
        Ok(rows.len())
    }

    fn dims(&self, column: usize) -> usize {
        self.manifest().columns.get(column).map_or(0, |c| c.dims)
    }

    fn rows_with_vectors(&self, column: usize) -> Result<Vec<Position>, IndexError> {
        let mut rows = Vec::new();
        for position in self.positions() {
            if self.vector(position, column)?.is_some() {
                rows.push(position);
            }
        }
        Ok(rows)
    }

    /// A file of the rows' vectors as f32, between a head and a tail.
    fn write_vectors(
        &self,
        column: usize,
        rows: &[Position],
        path: &Path,
        head: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
        tail: &[u8],
    ) -> Result<(), IndexError> {
        let io = |e| IndexError::io(path, e);
        let mut out = BufWriter::new(File::create(path).map_err(io)?);
        head(&mut out).map_err(io)?;
        for position in rows {
            let vector = self.vector(*position, column)?.unwrap_or_default();
            out.write_all(bytemuck::cast_slice(vector)).map_err(io)?;
        }
        out.write_all(tail).map_err(io)?;
        out.into_inner().map_err(|e| io(e.into_error()))?.sync_all().map_err(io)
    }

    /// `metadata/metadata_0.parquet` in `folder`: all columns of the rows but vectors. How many rows.
    fn write_metadata(&self, rows: &[Position], folder: &Path) -> Result<usize, IndexError> {
        let metadata = folder.join("metadata");
        fs::create_dir_all(&metadata).map_err(|e| IndexError::io(&metadata, e))?;
        let columns = self.readable_columns();
        let mut table: Option<TableWriter> = None;
        for part in rows.chunks(PART) {
            let batch = self.rows_at(part, Some(&columns))?;
            let mut writer = match table.take() {
                Some(writer) => writer,
                None => TableWriter::create(&metadata.join("metadata_0.parquet"), &Arc::clone(batch.schema_ref()))?,
            };
            writer.write(&batch)?;
            table = Some(writer);
        }
        if let Some(writer) = table {
            writer.finish()?;
        }
        Ok(rows.len())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn files_of_other_tools_are_read_and_wrong_ones_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let read = |bytes: &[u8], by: fn(&Path) -> Result<Matrix, IndexError>| {
            fs::write(&path, bytes).unwrap();
            by(&path)
        };
        let whole: Vec<u8> =
            npy_header(2, 3).into_iter().chain((0..6_u8).flat_map(|i| f32::from(i).to_le_bytes())).collect();
        assert_eq!(npy_header(2, 3).len() % 64, 0);
        let matrix = Matrix { dims: 3, values: vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0] };
        assert_eq!(read(&whole, read_npy).unwrap(), matrix);
        assert_eq!(matrix.rows().len(), 2);
        // Halves, as NumPy writes them.
        let header = String::from_utf8_lossy(&npy_header(1, 2)[10..]).replace("<f4", "<f2");
        let mut halves = npy_header(1, 2)[..10].to_vec();
        halves.extend(header.as_bytes());
        halves.extend([0x00, 0x3C, 0x00, 0xC0]);
        assert_eq!(read(&halves, read_npy).unwrap(), Matrix { dims: 2, values: vec![1.0, -2.0] });
        let text = |from: &str, to: &str| String::from_utf8_lossy(&whole[10..]).replace(from, to).into_bytes();
        let with = |from: &str, to: &str| [&whole[..10], &text(from, to)].concat();
        for (bytes, words) in [
            (whole[..whole.len() - 1].to_vec(), "not as long"),
            (whole[..20].to_vec(), "cut off"),
            (b"PK".to_vec(), "NumPy"),
            (with("<f4", "<i8"), "'<f4' or '<f2'"),
            (with("False", "True "), "one after the other"),
            (with("(2, 3)", "(6,)  "), "two numbers"),
            (with("(2, 3)", "(9, 3)"), "not as long"),
        ] {
            let error = read(&bytes, read_npy).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let rows = [2_i32.to_le_bytes(), 1_f32.to_le_bytes(), 2_f32.to_le_bytes()].concat();
        let twice = [rows.clone(), rows.clone()].concat();
        assert_eq!(read(&twice, read_fvecs).unwrap(), Matrix { dims: 2, values: vec![1.0, 2.0, 1.0, 2.0] });
        let other = [rows.clone(), 3_i32.to_le_bytes().to_vec(), vec![0; 8]].concat();
        for bad in [&rows[..11], &[][..], &other, &(-1_i32).to_le_bytes()] {
            assert!(read(bad, read_fvecs).is_err());
        }
    }
}
