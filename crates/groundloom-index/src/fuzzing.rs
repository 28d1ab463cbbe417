//! What `tests/fuzz` runs on any bytes; here it runs on the corpus.
#![allow(missing_docs, reason = "nothing here is for users")]

use std::{env, fs, path::Path, process};

use xxhash_rust::xxh3::xxh3_64;

use crate::{
    FileEntry, Manifest, exchange, lines,
    manifest::{self, BEFORE_HASH},
    segment::{Column, Effort},
    vector_file::{self, hex},
};

/// Writes a file, of which `read` gets the folder.
fn with_file(name: &str, bytes: &[u8], read: impl FnOnce(&Path)) {
    let folder = env::temp_dir().join(format!("groundloom-fuzz-{}-{name}", process::id()));
    if fs::create_dir_all(&folder).and_then(|()| fs::write(folder.join(name), bytes)).is_ok() {
        read(&folder);
    }
    // The next input replaces it; a folder that cannot be removed is no finding.
    let _ = fs::remove_file(folder.join(name)).and_then(|()| fs::remove_dir(&folder));
}

/// A vector file: a line with its header, then its sections. The checksum is put in, or nothing behind it was ever reached.
pub fn vector_file(bytes: &[u8]) {
    let at = bytes.iter().position(|b| *b == b'\n').unwrap_or(bytes.len());
    let (header, sections) = (&bytes[..at], bytes.get(at + 1..).unwrap_or_default());
    let file = [&vector_file::head(header), sections].concat();
    let name = "column.glv";
    let entry = FileEntry { name: name.to_owned(), bytes: file.len() as u64, xxh3: hex(xxh3_64(header)) };
    with_file(name, &file, |folder| {
        let Ok(column) = Column::open(folder, &entry) else { return };
        let _ = column.file().verify();
        for row in [0, 1, usize::MAX] {
            let _ = column.vector(row);
        }
        let query = vec![0.5; lines::padded(column.header().dims)];
        for (cost, exact) in [(0, false), (1, true)] {
            if let Ok((found, _)) =
                column.search(&query, 3, Effort { ef: 8, ef_within: 8, ef_elsewhere: 16, cost }, None, exact)
            {
                assert!(found.len() <= 3);
            }
        }
    });
}

/// A manifest behind its checksum, which is put in.
pub fn manifest(bytes: &[u8]) {
    let whole = [BEFORE_HASH.as_bytes(), hex(xxh3_64(bytes)).as_bytes(), bytes].concat();
    with_file(manifest::FILE, &whole, |folder| {
        let Ok(manifest) = Manifest::read(folder) else { return };
        let _ = manifest.column(None);
        assert!(manifest.files().count() >= manifest.segments.len());
    });
}

/// An array of NumPy.
pub fn npy(bytes: &[u8]) {
    with_file("x.npy", bytes, |folder| {
        if let Ok(matrix) = exchange::read_npy(&folder.join("x.npy")) {
            assert!(matrix.dims > 0 && matrix.values.len() % matrix.dims == 0);
        }
    });
}

/// Vectors of the benchmarks' format.
pub fn fvecs(bytes: &[u8]) {
    with_file("x.fvecs", bytes, |folder| {
        if let Ok(matrix) = exchange::read_fvecs(&folder.join("x.fvecs")) {
            assert_eq!(matrix.rows().len() * (matrix.dims + 1) * 4, bytes.len());
        }
    });
}

/// A flat index of FAISS.
pub fn faiss(bytes: &[u8]) {
    with_file("x.index", bytes, |folder| {
        if let Ok((matrix, _)) = exchange::read_faiss(&folder.join("x.index")) {
            assert_eq!(matrix.values.len() * 4 + 45, bytes.len());
        }
    });
}

/// A pickle of paths and embeddings.
pub fn pickle(bytes: &[u8]) {
    with_file("x.pkl", bytes, |folder| {
        if let Ok(fromage) = exchange::read_fromage(&folder.join("x.pkl")) {
            assert_eq!(fromage.paths.len(), fromage.embeddings.rows().len());
        }
    });
}

#[cfg(test)]
#[path = "../../../tests/fuzz/corpus.rs"]
#[allow(clippy::unwrap_used)]
mod corpus;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use xxhash_rust::xxh3::xxh3_64;

    use super::corpus::run;
    use crate::{
        FileEntry, IndexError,
        segment::Column,
        vector_file::{self, hex},
    };

    /// The header of the corpus with a number that no file can back, in every place that has one.
    #[test]
    fn headers_beyond_every_file_are_refused() {
        let path = format!("{}/../../tests/fuzz/corpus/vector_file/int8", env!("CARGO_MANIFEST_DIR"));
        let whole = std::fs::read(path).unwrap();
        let at = whole.iter().position(|b| *b == b'\n').unwrap();
        let folder = tempfile::tempdir().unwrap();
        let open = |header: &[u8]| {
            let file = [&vector_file::head(header), &whole[at + 1..]].concat();
            std::fs::write(folder.path().join("c.glv"), &file).unwrap();
            let entry = FileEntry { name: "c.glv".to_owned(), bytes: file.len() as u64, xxh3: hex(xxh3_64(header)) };
            Column::open(folder.path(), &entry)
        };
        let header: serde_json::Value = serde_json::from_slice(&whole[..at]).unwrap();
        open(&serde_json::to_vec(&header).unwrap()).unwrap();
        for key in ["dims", "m", "nodes", "rows"] {
            for number in [1_u64 << 62, u64::MAX, (1 << 32) + 8] {
                let mut header = header.clone();
                header[key] = number.into();
                if key == "nodes" {
                    header["levels"][0] = number.into();
                }
                let error = open(&serde_json::to_vec(&header).unwrap()).unwrap_err();
                assert!(matches!(error, IndexError::Damaged { .. }), "{key} = {number}: {error}");
            }
        }
    }

    #[test]
    fn every_corpus_is_read() {
        run("vector_file", super::vector_file);
        run("manifest", super::manifest);
        run("npy", super::npy);
        run("fvecs", super::fvecs);
        run("faiss", super::faiss);
        run("pickle", super::pickle);
    }
}
