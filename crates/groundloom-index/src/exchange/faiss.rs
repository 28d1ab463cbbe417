//! FAISS' flat indices: `IndexFlatIP` and `IndexFlatL2`, as `faiss.write_index` writes them.
//!
//! | part | what |
//! |---|---|
//! | 0..4 | `IxFI` for the inner product, `IxF2` for L2 |
//! | 4..8 | dimensions, i32 |
//! | 8..16 | vectors, i64 |
//! | 16..32 | two numbers that are not used, i64 |
//! | 32 | whether it is trained: 1 |
//! | 33..37 | metric, i32: 0 for the inner product, 1 for L2 |
//! | 37..45 | how many numbers follow, u64 |
//! | 45.. | the vectors, f32 |

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use super::Matrix;
use crate::{IndexError, metric::Metric};

const HEADER: usize = 45;
/// What FAISS writes where nothing is used.
const UNUSED: i64 = 1 << 20;

/// Reads a flat index: its vectors and whether they are compared by [`Metric::Ip`] or [`Metric::L2`].
///
/// # Errors
/// [`IndexError::Damaged`] for other kinds of FAISS index, other metrics, and a file that is not as long as it says.
pub fn read_faiss(path: &Path) -> Result<(Matrix, Metric), IndexError> {
    let bytes = fs::read(path).map_err(|e| IndexError::io(path, e))?;
    let bad = |problem: String| IndexError::damaged(path, problem);
    let (header, data) = bytes.split_first_chunk::<HEADER>().ok_or_else(|| {
        bad(format!("expected a flat FAISS index, found {} bytes, which is less than its header", bytes.len()))
    })?;
    let kind = &header[..4];
    let number = |at: usize| i32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let long = |at: usize| header[at..at + 8].iter().rev().fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
    let metric = match (kind, number(33)) {
        (b"IxFI", 0) => Metric::Ip,
        (b"IxF2", 1) => Metric::L2,
        (b"IxFI" | b"IxF2" | b"IxFl", metric) => {
            return Err(bad(format!("expected the inner product (0) or L2 (1) as metric, found {metric}")));
        }
        _ => {
            return Err(bad(format!(
                "expected a flat FAISS index (IxFI or IxF2), found {:?}; write one with faiss.IndexFlatIP or faiss.IndexFlatL2",
                String::from_utf8_lossy(kind)
            )));
        }
    };
    let dims = usize::try_from(number(4)).ok().filter(|d| *d > 0);
    let dims = dims.ok_or_else(|| bad(format!("expected dimensions above 0, found {}", number(4))))?;
    let numbers = long(8).checked_mul(dims as u64);
    let (values, rest) = data.as_chunks::<4>();
    if numbers != Some(long(37)) || numbers != Some(values.len() as u64) || !rest.is_empty() {
        return Err(bad(format!(
            "expected {} vectors of {dims} numbers after the header, found {} bytes",
            long(8),
            data.len()
        )));
    }
    Ok((Matrix { dims, values: values.iter().map(|v| f32::from_le_bytes(*v)).collect() }, metric))
}

/// The header of a flat index. Cosine is the inner product of vectors that are unit length already.
pub(super) fn write_header(out: &mut impl Write, rows: usize, dims: usize, metric: Metric) -> io::Result<()> {
    let (kind, number) = if metric == Metric::L2 { (b"IxF2", 1_i32) } else { (b"IxFI", 0) };
    out.write_all(kind)?;
    out.write_all(&(dims as i32).to_le_bytes())?;
    out.write_all(&(rows as i64).to_le_bytes())?;
    out.write_all(&UNUSED.to_le_bytes())?;
    out.write_all(&UNUSED.to_le_bytes())?;
    out.write_all(&[1])?;
    out.write_all(&number.to_le_bytes())?;
    out.write_all(&((rows * dims) as u64).to_le_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn flat_indices_are_read_and_others_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.faiss");
        let read = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read_faiss(&path)
        };
        // What faiss-cpu 1.15 writes for IndexFlatL2(3) with the vectors 0 1 2 and 3 4 5.
        let hex = "4978463203000000020000000000000000001000000000000000100000000000\
                   01010000000600000000000000000000000000803f0000004000004040000080400000a040";
        let whole: Vec<u8> =
            (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
        let matrix = Matrix { dims: 3, values: vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0] };
        assert_eq!(read(&whole).unwrap(), (matrix, Metric::L2));
        let mut header = Vec::new();
        write_header(&mut header, 2, 3, Metric::L2).unwrap();
        assert_eq!(header, whole[..HEADER]);
        let with = |at: usize, bytes: &[u8]| {
            let mut changed = whole.clone();
            changed[at..at + bytes.len()].copy_from_slice(bytes);
            changed
        };
        for (bytes, words) in [
            (whole[..40].to_vec(), "less than its header"),
            (whole[..whole.len() - 4].to_vec(), "expected 2 vectors of 3 numbers"),
            (with(0, b"IHNf"), "found \"IHNf\""),
            (with(33, &[2]), "found 2"),
            (with(4, &[0]), "dimensions above 0"),
            (with(8, &[0xFF; 8]), "vectors of 3"),
            (with(37, &[5]), "expected 2 vectors"),
        ] {
            let error = read(&bytes).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
