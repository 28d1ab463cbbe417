//! The file of a segment's vectors: one header, then sections that start on cache lines and are used where they are
//! mapped.
//!
//! | part | what |
//! |---|---|
//! | 0..8 | `GLVECTOR` |
//! | 8..12 | version of the layout, u32 |
//! | 12..16 | length of the header, u32 |
//! | 16..24 | xxh3-64 of the header |
//! | 64.. | the header: JSON ([`Header`]) |
//! | then | the sections, each at a multiple of 64, with the offset, length and xxh3-64 that the header gives |
//!
//! All numbers are little-endian.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use bytemuck::AnyBitPattern;
use memmap2::{Advice, Mmap};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::{IndexError, codes::Coding, metric::Metric, rescoring::Stored};

#[cfg(target_endian = "big")]
compile_error!("index files are little-endian and used where they are mapped");

const MAGIC: &[u8; 8] = b"GLVECTOR";
const VERSION: u32 = 1;
const LINE: u64 = 64;
/// Bytes that are asked for at a time: the kernel takes a request for more than it likes to read ahead as one for less.
const WARMED: usize = 2 << 20;

/// What a vector file says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) dims: usize,
    pub(crate) metric: Metric,
    pub(crate) coding: Coding,
    /// Rows of the segment, with and without a vector.
    pub(crate) rows: usize,
    /// Different vectors.
    pub(crate) nodes: usize,
    /// Links a node chooses; 0 without a graph.
    pub(crate) m: usize,
    /// Nodes of each level, from 0 up; empty without a graph.
    pub(crate) levels: Vec<usize>,
    /// What byte code 127 stands for.
    pub(crate) scale: f32,
    pub(crate) sections: Vec<Section>,
}

/// Where a part of the file lies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Section {
    pub(crate) name: String,
    /// From the end of the header, rounded up to a line.
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) xxh3: String,
}

/// Size and checksum of a file that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name in the index folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// xxh3-64 of its header for vector files (the header holds those of the sections), of all of it for others.
    pub xxh3: String,
}

pub(crate) fn hex(hash: u64) -> String {
    format!("{hash:016x}")
}

/// What stands before the sections, given the header as JSON.
pub(crate) fn head(text: &[u8]) -> Vec<u8> {
    let mut head = Vec::new();
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&(text.len() as u32).to_le_bytes());
    head.extend_from_slice(&xxh3_64(text).to_le_bytes());
    head.resize(LINE as usize, 0);
    head.extend_from_slice(text);
    head.resize(head.len().next_multiple_of(LINE as usize), 0);
    head
}

/// Writes a vector file and makes it durable. `sections` are in order; offsets and checksums are computed here.
pub(crate) fn write(path: &Path, mut header: Header, sections: &[(&str, &[u8])]) -> Result<FileEntry, IndexError> {
    header.sections.clear();
    let mut offset = 0;
    for (name, bytes) in sections {
        header.sections.push(Section {
            name: (*name).to_owned(),
            offset,
            bytes: bytes.len() as u64,
            xxh3: hex(xxh3_64(bytes)),
        });
        offset += (bytes.len() as u64).next_multiple_of(LINE);
    }
    let text = serde_json::to_vec(&header).map_err(|e| IndexError::damaged(path, e.to_string()))?;
    let hash = xxh3_64(&text);
    let io = |e| IndexError::io(path, e);
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path).map_err(io)?);
    let head = head(&text);
    out.write_all(&head).map_err(io)?;
    let mut bytes = head.len() as u64;
    for (_, section) in sections {
        out.write_all(section).map_err(io)?;
        let padding = (section.len() as u64).next_multiple_of(LINE) - section.len() as u64;
        out.write_all(&[0; LINE as usize][..padding as usize]).map_err(io)?;
        bytes += section.len() as u64 + padding;
    }
    let file = out.into_inner().map_err(|e| IndexError::io(path, e.into_error()))?;
    file.sync_all().map_err(io)?;
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(FileEntry { name, bytes, xxh3: hex(hash) })
}

/// A mapped vector file.
#[derive(Debug)]
pub(crate) struct VectorFile {
    path: PathBuf,
    file: File,
    map: Mmap,
    pub(crate) header: Header,
    start: u64,
}

impl VectorFile {
    /// Maps the file and checks its header and the places of its sections. Their contents are not read; see [`VectorFile::verify`].
    pub(crate) fn open(folder: &Path, entry: &FileEntry) -> Result<Self, IndexError> {
        let path = folder.join(&entry.name);
        let damaged = |problem: String| IndexError::damaged(&path, problem);
        let file = File::open(&path).map_err(|e| IndexError::io(&path, e))?;
        // SAFETY: index files are never changed in place: writers make new ones and remove old names, which leaves
        // mappings whole. A file that another program truncates while it is mapped ends the process, as with any map.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| IndexError::io(&path, e))?;
        if map.len() as u64 != entry.bytes {
            return Err(damaged(format!("expected {} bytes as the manifest says, found {}", entry.bytes, map.len())));
        }
        let head = map.get(..LINE as usize).ok_or_else(|| damaged("the file is shorter than a header".into()))?;
        if &head[..8] != MAGIC {
            return Err(damaged("expected a vector file, which begins with GLVECTOR".into()));
        }
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if word(8) != VERSION {
            return Err(damaged(format!("expected layout {VERSION}, found {}", word(8))));
        }
        let end = LINE as usize + word(12) as usize;
        let text = map.get(LINE as usize..end).ok_or_else(|| damaged("the header is cut off".into()))?;
        let found = hex(xxh3_64(text));
        if found != entry.xxh3 {
            return Err(damaged(format!(
                "expected a header of checksum {} as the manifest says, found {found}",
                entry.xxh3
            )));
        }
        let header: Header = serde_json::from_slice(text).map_err(|e| damaged(e.to_string()))?;
        let start = (end as u64).next_multiple_of(LINE);
        for s in &header.sections {
            if s.offset % LINE != 0
                || start.checked_add(s.offset).and_then(|o| o.checked_add(s.bytes)).is_none_or(|end| end > entry.bytes)
            {
                return Err(damaged(format!("the section {:?} lies outside the file", s.name)));
            }
        }
        Ok(Self { file, map, header, start, path })
    }

    /// Reads everything and compares the checksums.
    pub(crate) fn verify(&self) -> Result<(), IndexError> {
        for section in &self.header.sections {
            let mut hash = Xxh3::new();
            hash.update(self.bytes(section));
            let found = hex(hash.digest());
            if found != section.xxh3 {
                return Err(self.damaged(format!(
                    "expected the section {:?} of checksum {}, found {found}",
                    section.name, section.xxh3
                )));
            }
        }
        Ok(())
    }

    fn bytes(&self, section: &Section) -> &[u8] {
        let start = (self.start + section.offset) as usize;
        self.map.get(start..start + section.bytes as usize).unwrap_or_default()
    }

    fn named(&self, name: &str) -> Result<&Section, IndexError> {
        let section = self.header.sections.iter().find(|s| s.name == name);
        section.ok_or_else(|| self.damaged(format!("the section {name:?} is missing")))
    }

    /// A section to be read piece by piece.
    pub(crate) fn stored(&self, name: &str) -> Result<Stored<'_>, IndexError> {
        Ok(Stored { owner: self, file: &self.file, start: self.start + self.named(name)?.offset })
    }

    /// Asks the operating system to have the file in its cache soon. The process itself does not grow by it.
    pub(crate) fn warm(&self) {
        for start in (0..self.map.len()).step_by(WARMED) {
            let length = WARMED.min(self.map.len() - start);
            if self.map.advise_range(Advice::WillNeed, start, length).is_err() {
                return;
            }
        }
    }

    /// The values of a section, of which there must be `expected`.
    pub(crate) fn section<T: AnyBitPattern>(&self, name: &str, expected: usize) -> Result<&[T], IndexError> {
        let section = self.named(name)?;
        let values: &[T] = bytemuck::try_cast_slice(self.bytes(section))
            .map_err(|e| self.damaged(format!("the section {name:?}: {e}")))?;
        if values.len() != expected {
            return Err(
                self.damaged(format!("the section {name:?}: expected {expected} values, found {}", values.len()))
            );
        }
        Ok(values)
    }

    pub(crate) fn io(&self, error: io::Error) -> IndexError {
        IndexError::io(&self.path, error)
    }

    pub(crate) fn damaged(&self, problem: impl Into<String>) -> IndexError {
        IndexError::damaged(&self.path, problem)
    }
}
