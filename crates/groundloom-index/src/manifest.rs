//! What an index says of itself: one JSON file, replaced by a rename, that names every other file.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    IndexError,
    metric::Metric,
    segment::ColumnSettings,
    tuning::Tuning,
    vector_file::{FileEntry, hex},
};

/// Name of the manifest in an index folder.
pub const FILE: &str = "index.json";

/// Version of the folder's layout.
pub const LAYOUT: u32 = 1;

/// The model that made the vectors of a column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelIdentity {
    /// Its name, as pipelines name it.
    pub name: String,
    /// SHA-256 of its weights, hexadecimal; empty when it is not known.
    #[serde(default)]
    pub weights: String,
}

/// A vector column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ColumnSpec {
    /// Its name in the rows.
    pub name: String,
    /// Length of its vectors.
    pub dims: usize,
    /// What a score means.
    pub metric: Metric,
    /// The model that made its vectors, when it is known.
    #[serde(default)]
    pub model: Option<ModelIdentity>,
    /// How its segments are built.
    pub settings: ColumnSettings,
}

/// Rows that were added together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SegmentEntry {
    /// Unique in the index.
    pub id: u64,
    /// Its rows, deleted ones too.
    pub rows: usize,
    /// Parquet file of the rows.
    pub table: FileEntry,
    /// Rows that were deleted.
    #[serde(default)]
    pub deleted: Option<Deleted>,
    /// One for each column of the manifest, in its order.
    pub columns: Vec<SegmentColumn>,
}

/// Deleted rows of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// A bitmap over the rows.
    pub file: FileEntry,
    /// How many.
    pub rows: usize,
}

/// A column of a segment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SegmentColumn {
    /// Vectors, codes and graph.
    pub file: FileEntry,
    /// What a search of it was tuned to; absent without a graph.
    #[serde(default)]
    pub tuning: Option<Tuning>,
}

/// The manifest. It holds no clock, host name or speed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the layout.
    pub layout: u32,
    /// Version of Groundloom that wrote it.
    pub version: String,
    /// Grows by one with every change.
    pub generation: u64,
    /// The column that identifies a row.
    pub key: String,
    /// The id of the next segment.
    pub next_segment: u64,
    /// Vector columns.
    pub columns: Vec<ColumnSpec>,
    /// Segments, oldest first.
    pub segments: Vec<SegmentEntry>,
}

impl Manifest {
    /// Names of all files of the index but the manifest.
    pub fn files(&self) -> impl Iterator<Item = &FileEntry> {
        self.segments.iter().flat_map(|s| {
            let columns = s.columns.iter().map(|c| &c.file);
            std::iter::once(&s.table).chain(s.deleted.as_ref().map(|d| &d.file)).chain(columns)
        })
    }

    /// Place of the column called `name`; without a name, that of the only one.
    ///
    /// # Errors
    /// [`IndexError::UnknownColumn`] when there is none, or several to choose from.
    pub fn column(&self, name: Option<&str>) -> Result<usize, IndexError> {
        let found = match name {
            Some(name) => self.columns.iter().position(|c| c.name == name),
            None => (self.columns.len() == 1).then_some(0),
        };
        found.ok_or_else(|| IndexError::UnknownColumn {
            name: name.unwrap_or_default().to_owned(),
            known: self.columns.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    /// Reads the manifest of an index folder.
    ///
    /// # Errors
    /// [`IndexError::NoIndex`] when there is none, [`IndexError::Damaged`] when it is not whole or of another layout.
    pub fn read(folder: &Path) -> Result<Self, IndexError> {
        let path = folder.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(IndexError::NoIndex { path: folder.to_owned() });
            }
            Err(e) => return Err(IndexError::io(&path, e)),
        };
        let rest = text.strip_prefix(BEFORE_HASH).and_then(|t| t.split_at_checked(16));
        let Some((expected, rest)) = rest else {
            return Err(IndexError::damaged(&path, "expected an index manifest, which begins with its checksum"));
        };
        let found = hex(xxh3_64(rest.as_bytes()));
        if found != expected {
            return Err(IndexError::damaged(&path, format!("expected text of checksum {expected}, found {found}")));
        }
        let manifest: Self = serde_json::from_str(&text).map_err(|e| IndexError::damaged(&path, e.to_string()))?;
        if manifest.layout != LAYOUT {
            return Err(IndexError::damaged(&path, format!("expected layout {LAYOUT}, found {}", manifest.layout)));
        }
        if manifest.segments.iter().any(|s| s.columns.len() != manifest.columns.len()) {
            return Err(IndexError::damaged(&path, "a segment has other columns than the index"));
        }
        Ok(manifest)
    }

    /// Replaces the manifest of an index folder in one step and makes it durable. Whoever opens the index sees the old one
    /// or the new one.
    pub(crate) fn publish(&self, folder: &Path) -> Result<(), IndexError> {
        let path = folder.join(FILE);
        let io = |e| IndexError::io(&path, e);
        let text = serde_json::to_string_pretty(self).map_err(|e| IndexError::damaged(&path, e.to_string()))?;
        let rest = format!("\",{}\n", text.trim_start_matches('{'));
        let text = format!("{BEFORE_HASH}{}{rest}", hex(xxh3_64(rest.as_bytes())));
        let next = folder.join("index.json.next");
        let mut file = File::create(&next).map_err(io)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io)?;
        sync_folder(folder)?;
        fs::rename(&next, &path).map_err(io)?;
        sync_folder(folder)
    }
}

/// How a manifest begins; then come the 16 digits of its checksum.
pub(crate) const BEFORE_HASH: &str = "{\n  \"xxh3\": \"";

pub(crate) fn sync_folder(folder: &Path) -> Result<(), IndexError> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| IndexError::io(folder, e))
}
