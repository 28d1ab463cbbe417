//! Where every answer lies: built from the headers of all segments, brought up to date when other processes have appended.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use xxhash_rust::xxh3::xxh3_64;

use super::record::{HEADER, Header, Kind, MAGIC};
use crate::{budget::Spent, error::LlmError, request::RequestHash};

/// A segment that has grown to this size gets no more records.
pub(super) const SEGMENT_BYTES: u64 = 256 << 20;

/// A record larger than this is damage, not data.
const MOST_PAYLOAD: u32 = 256 << 20;

#[derive(Debug)]
struct Segment {
    path: PathBuf,
    file: File,
    /// Everything before is in the index.
    scanned: u64,
    /// Full, and read to its end: nothing will change.
    sealed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    segment: u32,
    /// Of the payload.
    offset: u64,
    len: u32,
    sum: u64,
}

#[derive(Debug, Default)]
pub(super) struct Index {
    segments: Vec<Segment>,
    known: HashSet<PathBuf>,
    /// When the folder had last changed, if it would show another time had it changed since it was listed.
    listed: Option<SystemTime>,
    places: HashMap<RequestHash, Place>,
    spent: HashMap<u64, Spent>,
    /// Records whose bytes are damaged; their requests count as never answered.
    pub damaged: u64,
}

impl Index {
    pub fn contains(&self, hash: &RequestHash) -> bool {
        self.places.contains_key(hash)
    }

    pub fn hashes(&self) -> Vec<RequestHash> {
        let mut hashes: Vec<RequestHash> = self.places.keys().copied().collect();
        hashes.sort_unstable();
        hashes
    }

    pub fn len(&self) -> usize {
        self.places.len()
    }

    pub fn spent(&self, budget: u64) -> Spent {
        self.spent.get(&budget).copied().unwrap_or_default()
    }

    /// The compressed payload of an answer; a damaged one is dropped from the index and is `None`.
    pub fn payload(&mut self, hash: &RequestHash) -> Result<Option<Vec<u8>>, LlmError> {
        let Some(place) = self.places.get(hash) else { return Ok(None) };
        let segment = &self.segments[place.segment as usize];
        let mut payload = vec![0; place.len as usize];
        segment.file.read_exact_at(&mut payload, place.offset).map_err(|e| LlmError::store(&segment.path, e))?;
        if xxh3_64(&payload) != place.sum {
            self.places.remove(hash);
            self.damaged += 1;
            return Ok(None);
        }
        Ok(Some(payload))
    }

    /// Takes up segments and records that appeared since the last time.
    pub fn refresh(&mut self, folder: &Path) -> Result<(), LlmError> {
        let changed = std::fs::metadata(folder).and_then(|m| m.modified()).map_err(|e| LlmError::store(folder, e))?;
        let new = if self.listed == Some(changed) { Vec::new() } else { self.list(folder, changed)? };
        for path in new {
            let file = File::open(&path).map_err(|e| LlmError::store(&path, e))?;
            self.known.insert(path.clone());
            self.segments.push(Segment { path, file, scanned: 0, sealed: false });
        }
        for i in 0..self.segments.len() {
            if !self.segments[i].sealed {
                self.scan(i)?;
            }
        }
        Ok(())
    }

    /// Segments in `folder` that are not known yet; it last changed at `changed`.
    fn list(&mut self, folder: &Path, changed: SystemTime) -> Result<Vec<PathBuf>, LlmError> {
        let now = SystemTime::now();
        let mut new = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(|e| LlmError::store(folder, e))? {
            let path = entry.map_err(|e| LlmError::store(folder, e))?.path();
            if path.extension().is_some_and(|e| e == "seg") && !self.known.contains(&path) {
                new.push(path);
            }
        }
        new.sort();
        self.listed = tells(changed, now).then_some(changed);
        Ok(new)
    }

    /// Where the last whole record of `path` ends: what lies behind was cut off by a kill.
    pub fn end_of(&self, path: &Path) -> Option<u64> {
        self.segments.iter().find(|s| s.path == path).map(|s| s.scanned)
    }

    fn scan(&mut self, i: usize) -> Result<(), LlmError> {
        let error = |path: &Path, e: std::io::Error| LlmError::store(path, e);
        loop {
            let segment = &self.segments[i];
            let len = segment.file.metadata().map_err(|e| error(&segment.path, e))?.len();
            let at = segment.scanned;
            if at + HEADER as u64 > len {
                self.segments[i].sealed = at == len && len >= SEGMENT_BYTES;
                return Ok(());
            }
            let mut header = [0; HEADER];
            segment.file.read_exact_at(&mut header, at).map_err(|e| error(&segment.path, e))?;
            let Some(header) = Header::decode(&header).filter(|h| h.payload_len <= MOST_PAYLOAD) else {
                // A record that is being written right now, one that was cut off by a kill, or damage in the middle.
                match self.next_header(i, at, len)? {
                    Some(next) => {
                        self.segments[i].scanned = next;
                        self.damaged += 1;
                        continue;
                    }
                    None => return Ok(()),
                }
            };
            let offset = at + HEADER as u64;
            if offset + u64::from(header.payload_len) > len {
                return Ok(());
            }
            self.segments[i].scanned = offset + u64::from(header.payload_len);
            let spent = self.spent.entry(header.budget).or_default();
            spent.add(header.cost, header.prompt_tokens.saturating_add(header.completion_tokens));
            if header.kind == Kind::Answer {
                let (len, sum) = (header.payload_len, header.payload_sum);
                // The first answer is the one that was used.
                self.places.entry(header.hash).or_insert(Place { segment: i as u32, offset, len, sum });
            }
        }
    }

    fn next_header(&self, i: usize, at: u64, len: u64) -> Result<Option<u64>, LlmError> {
        let segment = &self.segments[i];
        let mut rest = vec![0; (len - at) as usize];
        segment.file.read_exact_at(&mut rest, at).map_err(|e| LlmError::store(&segment.path, e))?;
        let starts = rest.windows(MAGIC.len()).enumerate().skip(1).filter(|(_, w)| *w == MAGIC);
        Ok(starts.map(|(i, _)| i).find(|i| Header::decode(&rest[*i..]).is_some()).map(|i| at + i as u64))
    }
}

/// Whether a folder that last changed at `changed` would show another time if it changed at `now` or later.
fn tells(changed: SystemTime, now: SystemTime) -> bool {
    // File systems that keep more than whole seconds take the time from a clock that ticks every 10 ms at most.
    let whole = changed.duration_since(UNIX_EPOCH).is_ok_and(|since| since.subsec_nanos() == 0);
    let tick = if whole { Duration::from_secs(2) } else { Duration::from_millis(100) };
    now.duration_since(changed).is_ok_and(|age| age > tick)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_folder_that_has_just_changed_is_listed_again() {
        let at = |millis: u64| UNIX_EPOCH + Duration::from_millis(1_800_000_000_000 + millis);
        for (changed, now, expected) in
            [(1, 50, false), (1, 150, true), (0, 150, false), (0, 2_001, true), (2_001, 0, false)]
        {
            assert_eq!(tells(at(changed), at(now)), expected, "{changed} {now}");
        }
        let folder = tempfile::tempdir().unwrap();
        let mut index = Index::default();
        for n in 0..300 {
            // Also those that come while the folder's time may stand still, and those that come after it has been believed.
            if n % 100 == 50 {
                std::thread::sleep(Duration::from_millis(130));
                index.refresh(folder.path()).unwrap();
                assert!(index.listed.is_some() || n == 0);
            }
            std::fs::write(folder.path().join(format!("{n}.seg")), []).unwrap();
            index.refresh(folder.path()).unwrap();
            assert_eq!(index.segments.len(), n + 1);
        }
    }
}
