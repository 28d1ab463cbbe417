//! What is done: one entry per task, put there if absent, and the part files it names.
//!
//! An entry is the commit of its task. Part files have attempt-unique names, are synced before the entry exists, and mean nothing without it;
//! a task that ran twice commits once, and whoever loses removes its own files.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use groundloom_data::funnel::StageCounts;
use groundloom_formats::FormatError;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{error::EngineError, segment::Fingerprint};

/// What kind of rows a part holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartKind {
    /// Good rows.
    Data,
    /// Failed rows.
    Quarantine,
    /// Rows that a filter with `keep_rejected` dropped.
    Rejected,
    /// Ids of dropped rows, with why.
    Dropped,
    /// Ids of good rows, where the sink's format cannot be searched for them.
    Kept,
}

/// A committed part file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// What it holds.
    pub kind: PartKind,
    /// Name in the segment's `parts/`.
    pub file: String,
    /// Its rows.
    pub rows: u64,
    /// Its size, by which a torn file is recognised.
    pub bytes: u64,
}

/// The commit of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The task.
    pub task: Fingerprint,
    /// Rows that the task read.
    pub rows_in: u64,
    /// At most one of each kind, none where there are no such rows.
    pub parts: Vec<Part>,
    /// Counts per stage, in the segment's order.
    pub counts: Vec<StageCounts>,
    /// `SHARD:VERSIONS` of the files it read (16 digits each), where a file can be mended by itself; else empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub files: String,
    /// Whose failed rows it tried again, if it is a retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<Again>,
}

/// What a retry takes the place of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Again {
    /// The task whose quarantine it tried again.
    pub task: Fingerprint,
    /// Its rows.
    pub rows: u64,
    /// How many of them had failed in which stage with which code.
    pub failed: BTreeMap<String, BTreeMap<String, u64>>,
}

/// The entries without the quarantine of those that were tried again.
pub fn is_superseded(entry: &Entry, entries: &[Entry]) -> bool {
    entry.part(PartKind::Quarantine).is_some()
        && entries.iter().any(|e| e.again.as_ref().is_some_and(|a| a.task == entry.task))
}

impl Entry {
    /// The part of a kind.
    pub fn part(&self, kind: PartKind) -> Option<&Part> {
        self.parts.iter().find(|p| p.kind == kind)
    }

    /// Rows of a kind.
    pub fn rows(&self, kind: PartKind) -> u64 {
        self.part(kind).map_or(0, |p| p.rows)
    }
}

/// File of a ledger that says what its segment is.
const IDENTITY: &str = "segment.json";

/// The ledger of one segment.
#[derive(Debug, Clone)]
pub struct Ledger {
    folder: PathBuf,
}

impl Ledger {
    /// Opens (and makes) the ledger of a segment below the work folder.
    ///
    /// # Errors
    /// When the folders cannot be made.
    pub fn open(work: &Path, segment: &Fingerprint) -> Result<Self, EngineError> {
        let folder = work.join("segments").join(segment.as_str());
        for sub in ["entries", "parts"] {
            let sub = folder.join(sub);
            fs::create_dir_all(&sub).map_err(|e| EngineError::io(&sub, e))?;
        }
        Ok(Self { folder })
    }

    /// Notes what the segment is, for [`Ledger::described`].
    ///
    /// # Errors
    /// When the disk is full.
    pub fn describe(&self, identity: &Value) -> Result<(), EngineError> {
        let path = self.folder.join(IDENTITY);
        if path.exists() {
            return Ok(());
        }
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        let written = fs::write(&temporary, identity.to_string()).and_then(|()| fs::rename(&temporary, &path));
        written.map_err(|e| EngineError::io(&path, e))
    }

    /// What the segments were whose ledgers are in the work folder, the newest first. What cannot be read is left out.
    pub fn described(work: &Path) -> Vec<Value> {
        let folders = fs::read_dir(work.join("segments")).into_iter().flatten().flatten();
        let mut found: Vec<_> = folders
            .filter_map(|folder| {
                let path = folder.path().join(IDENTITY);
                let changed = fs::metadata(&path).and_then(|m| m.modified()).ok()?;
                Some((changed, serde_json::from_slice(&fs::read(&path).ok()?).ok()?))
            })
            .collect();
        found.sort_by_key(|(changed, _)| std::cmp::Reverse(*changed));
        found.into_iter().map(|(_, identity)| identity).collect()
    }

    /// Every entry that is whole, in no particular order; none where there is no ledger.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn all(&self) -> Result<Vec<Entry>, EngineError> {
        let folder = self.folder.join("entries");
        let items = match fs::read_dir(&folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            items => items.map_err(|e| EngineError::io(&folder, e))?,
        };
        let mut all = Vec::new();
        for item in items {
            let path = item.map_err(|e| EngineError::io(&folder, e))?.path();
            let Ok(text) = fs::read(&path) else { continue };
            if let Ok(entry) = serde_json::from_slice::<Entry>(&text) {
                all.extend(self.whole(&text, &entry.task));
            }
        }
        Ok(all)
    }

    /// The ledger of a segment, whether it exists or not; for looking only.
    pub fn existing(work: &Path, segment: &Fingerprint) -> Self {
        Self { folder: work.join("segments").join(segment.as_str()) }
    }

    /// The entry of a task if it is committed and whole; changes nothing.
    pub fn peek(&self, task: &Fingerprint) -> Option<Entry> {
        let text = fs::read(self.entry_path(task)).ok()?;
        self.whole(&text, task)
    }

    fn whole(&self, text: &[u8], task: &Fingerprint) -> Option<Entry> {
        let entry: Entry = serde_json::from_slice(text).ok()?;
        let there = |p: &Part| fs::metadata(self.part_path(p)).is_ok_and(|m| m.len() == p.bytes);
        (entry.task == *task && entry.parts.iter().all(there)).then_some(entry)
    }

    /// Removes the ledgers of segments that are none of `kept`.
    ///
    /// # Errors
    /// When the work folder cannot be read or a ledger not removed.
    pub fn remove_others<'a>(work: &Path, kept: impl Iterator<Item = &'a Fingerprint>) -> Result<(), EngineError> {
        let kept: Vec<&str> = kept.map(Fingerprint::as_str).collect();
        let folder = work.join("segments");
        for item in fs::read_dir(&folder).map_err(|e| EngineError::io(&folder, e))? {
            let item = item.map_err(|e| EngineError::io(&folder, e))?;
            if !kept.contains(&item.file_name().to_string_lossy().as_ref()) {
                fs::remove_dir_all(item.path()).map_err(|e| EngineError::io(item.path(), e))?;
            }
        }
        Ok(())
    }

    fn entry_path(&self, task: &Fingerprint) -> PathBuf {
        self.folder.join("entries").join(format!("{task}.json"))
    }

    /// Path of a part file.
    pub fn part_path(&self, part: &Part) -> PathBuf {
        self.folder.join("parts").join(&part.file)
    }

    /// The entry of a task, if it is committed and whole.
    ///
    /// An entry that cannot be read, or whose parts are missing or torn (a file system that lost data after a crash), is removed: the task is done again.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn committed(&self, task: &Fingerprint) -> Result<Option<Entry>, EngineError> {
        let path = self.entry_path(task);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(EngineError::io(&path, e)),
        };
        let whole = self.whole(&text, task);
        if whole.is_none() {
            tracing::warn!(entry = %path.display(), "torn ledger entry: the task is done again");
            fs::remove_file(&path).map_err(|e| EngineError::io(&path, e))?;
        }
        Ok(whole)
    }

    /// Starts a part file with an attempt-unique name; it vanishes again unless it is committed.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn start_part(
        &self,
        task: &Fingerprint,
        kind: PartKind,
        extension: &str,
    ) -> Result<(OpenPart, File), EngineError> {
        static ATTEMPT: AtomicU64 = AtomicU64::new(0);
        let attempt = ATTEMPT.fetch_add(1, Ordering::Relaxed);
        let kind_name = match kind {
            PartKind::Data => "data",
            PartKind::Quarantine => "quarantine",
            PartKind::Rejected => "rejected",
            PartKind::Dropped => "dropped",
            PartKind::Kept => "kept",
        };
        let file = format!("{task}.{}-{attempt}.{kind_name}.{extension}", std::process::id());
        let path = self.folder.join("parts").join(&file);
        let handle = File::options().read(true).write(true).create_new(true).open(&path);
        let handle = handle.map_err(|e| EngineError::io(&path, e))?;
        Ok((OpenPart { path, file, kind, written: None, committed: false }, handle))
    }

    /// Commits a task: syncs its parts and their folder and puts its entry there if absent. Waits for the disk. Returns the entry that counts, which is another attempt's if that was faster.
    ///
    /// # Errors
    /// When the disk is full or fails; nothing is committed then.
    pub fn commit(&self, entry: Entry, mut parts: Vec<OpenPart>) -> Result<Entry, EngineError> {
        parts.iter().try_for_each(OpenPart::sync)?;
        sync_folder(&self.folder.join("parts"))?;
        let path = self.entry_path(&entry.task);
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        let text = serde_json::to_vec_pretty(&entry).map_err(|e| EngineError::Internal(e.to_string()))?;
        let written = File::create(&temporary)
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
            // Unlike a rename, a link fails where the name exists.
            .and_then(|()| fs::hard_link(&temporary, &path));
        let _ = fs::remove_file(&temporary);
        match written {
            Ok(()) => {
                for part in &mut parts {
                    part.committed = true;
                }
                sync_folder(&self.folder.join("entries"))?;
                Ok(entry)
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => self
                .committed(&entry.task)?
                .ok_or_else(|| EngineError::Internal("a committed task has vanished".into())),
            Err(e) => Err(EngineError::io(&path, e)),
        }
    }

    /// Removes every file that belongs to none of `kept`: remains of killed attempts, tasks of inputs that are gone.
    ///
    /// # Errors
    /// When the folder cannot be read or a file not removed.
    pub fn sweep(&self, kept: &[Entry]) -> Result<(), EngineError> {
        let entries: std::collections::HashSet<String> = kept.iter().map(|e| format!("{}.json", e.task)).collect();
        let parts: std::collections::HashSet<&str> =
            kept.iter().flat_map(|e| e.parts.iter().map(|p| p.file.as_str())).collect();
        // Entries first: an entry must never outlive its parts.
        remove_others(&self.folder.join("entries"), |name| entries.contains(name))?;
        remove_others(&self.folder.join("parts"), |name| parts.contains(name))?;
        remove_others(&self.folder, |name| [IDENTITY, "entries", "parts"].contains(&name))
    }
}

fn remove_others(folder: &Path, keep: impl Fn(&str) -> bool) -> Result<(), EngineError> {
    for item in fs::read_dir(folder).map_err(|e| EngineError::io(folder, e))? {
        let item = item.map_err(|e| EngineError::io(folder, e))?;
        if !keep(&item.file_name().to_string_lossy()) {
            fs::remove_file(item.path()).map_err(|e| EngineError::io(item.path(), e))?;
        }
    }
    Ok(())
}

/// Makes the names in a folder durable.
///
/// # Errors
/// When the disk fails.
pub fn sync_folder(folder: &Path) -> Result<(), EngineError> {
    #[cfg(unix)]
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| EngineError::io(folder, e))?;
    Ok(())
}

/// A part file of an attempt that is not committed yet; dropped, it removes its file.
#[derive(Debug)]
pub struct OpenPart {
    path: PathBuf,
    file: String,
    kind: PartKind,
    /// Its file, once that is complete.
    written: Option<File>,
    committed: bool,
}

impl OpenPart {
    /// A writer's error with the part's name in it: writers know their file, not its path.
    pub fn failed(&self, error: FormatError) -> EngineError {
        let (message, source) = match error {
            FormatError::Io { message, source, .. } => (message, source),
            other => return other.into(),
        };
        let cause = source.as_deref().and_then(|s| s.downcast_ref::<io::Error>());
        match cause.and_then(io::Error::raw_os_error) {
            Some(code) => EngineError::io(&self.path, io::Error::from_raw_os_error(code)),
            None => FormatError::Io { location: self.path.display().to_string(), message, source }.into(),
        }
    }

    /// The part as an entry names it, now that its file is complete; [`Ledger::commit`] makes it durable.
    ///
    /// # Errors
    /// When the file cannot be looked at.
    pub fn complete(&mut self, file: File, rows: u64) -> Result<Part, EngineError> {
        let bytes = file.metadata().map_err(|e| EngineError::io(&self.path, e))?.len();
        self.written = Some(file);
        Ok(Part { kind: self.kind, file: self.file.clone(), rows, bytes })
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.written.as_ref().map_or(Ok(()), File::sync_all).map_err(|e| EngineError::io(&self.path, e))
    }
}

impl Drop for OpenPart {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn task(n: u32) -> Fingerprint {
        Fingerprint::of(&serde_json::json!(n))
    }

    fn write(ledger: &Ledger, task: &Fingerprint, text: &str) -> (Entry, Vec<OpenPart>) {
        let (mut open, mut file) = ledger.start_part(task, PartKind::Data, "txt").unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let part = open.complete(file, 1).unwrap();
        (
            Entry {
                task: task.clone(),
                rows_in: 1,
                parts: vec![part],
                counts: vec![],
                files: String::new(),
                again: None,
            },
            vec![open],
        )
    }

    #[test]
    fn a_task_commits_once_and_the_loser_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), &task(0)).unwrap();
        let (first, first_parts) = write(&ledger, &task(1), "first");
        let (second, second_parts) = write(&ledger, &task(1), "second");
        assert_eq!(ledger.commit(first.clone(), first_parts).unwrap(), first);
        assert_eq!(ledger.commit(second, second_parts).unwrap(), first, "the first attempt counts");
        let parts = fs::read_dir(dir.path().join("segments").join(task(0).as_str()).join("parts")).unwrap().count();
        assert_eq!(parts, 1);
        assert_eq!(ledger.committed(&task(1)).unwrap(), Some(first));
    }

    #[test]
    fn what_is_torn_is_done_again() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), &task(0)).unwrap();
        let (entry, parts) = write(&ledger, &task(1), "whole");
        let entry = ledger.commit(entry, parts).unwrap();
        File::options().write(true).open(ledger.part_path(&entry.parts[0])).unwrap().set_len(2).unwrap();
        assert_eq!(ledger.committed(&task(1)).unwrap(), None);
        assert_eq!(ledger.committed(&task(1)).unwrap(), None, "the torn entry is gone");
        ledger.sweep(&[]).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("segments").join(task(0).as_str()).join("parts")).unwrap().count(), 0);
    }
}
