//! The target of a sink: a work folder beside it, a lock, and generations that are published whole.
//!
//! Readers of the target see the old generation whole or the new one whole, at every moment: a generation is built in the work folder
//! and exchanged with the target by one system call.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Component, Path, PathBuf},
};

use groundloom_data::funnel::StageCounts;
use groundloom_formats::store::Stores;
use serde::{Deserialize, Serialize};

use crate::{contract::Column, error::EngineError, ledger::sync_folder, segment::Fingerprint};

/// Where a generation says what it is, relative to the target.
pub const MANIFEST: &str = "_manifest/manifest.json";

/// What a published generation says of itself. It holds no clock, host name or speed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this layout.
    pub layout: u32,
    /// The pipeline's name.
    pub pipeline: String,
    /// The sink's name in it.
    pub sink: String,
    /// Version of Groundloom that wrote it.
    pub version: String,
    /// Decides all bytes of the generation.
    pub fingerprint: Fingerprint,
    /// The names, types and configs of all nodes behind it: what a person declared, inputs left out.
    #[serde(default)]
    pub declared: Option<Fingerprint>,
    /// The columns that its readers can count on.
    #[serde(default)]
    pub columns: Vec<Column>,
    /// Rows of the data set.
    pub rows: u64,
    /// Rows in quarantine, by code.
    pub quarantined: BTreeMap<String, u64>,
    /// Rows that filters dropped and kept aside.
    pub rejected: u64,
    /// Files with their rows and sizes, in order.
    pub files: Vec<PublishedFile>,
    /// Counts per stage, in the pipeline's order.
    pub funnel: Vec<StageCounts>,
}

/// A file of a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedFile {
    /// Path relative to the target, `/`-separated.
    pub path: String,
    /// Its rows; 0 for the card and the report.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
}

/// The target folder of a sink.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    work: PathBuf,
    /// Where the generation is copied to, if the sink names an object store.
    url: Option<String>,
}

/// Where data sets for object stores are put together, below the current directory.
const STAGING: &str = ".groundloom";

impl Target {
    /// The target of a sink's `path:`. A URL's generation is put together on the local disk, in `.groundloom/SCHEME/BUCKET/KEY`, and copied from there
    /// ([`crate::mirror`]).
    ///
    /// # Errors
    /// As [`Target::at`], and for an unknown scheme.
    pub fn of(path: &str) -> Result<Self, EngineError> {
        if !Stores::is_remote(path)? {
            return Self::at(Path::new(path.strip_prefix("file://").unwrap_or(path)));
        }
        let (base, key) = Stores::object_url(path)?;
        let (scheme, bucket) = base.split_once("://").unwrap_or(("", &base));
        let staged = Path::new(STAGING).join(scheme).join(bucket).join(key.as_ref());
        Ok(Self { url: Some(path.trim_end_matches('/').to_owned()), ..Self::at(&staged)? })
    }

    /// The target at `path`. Nothing is made.
    ///
    /// # Errors
    /// [`EngineError::ForeignTarget`] when the folder holds something else; an I/O error when it cannot be looked at.
    pub fn at(path: &Path) -> Result<Self, EngineError> {
        let path = std::path::absolute(path).map_err(|e| EngineError::io(path, e))?;
        let path = normal(&path);
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
        let (Some(parent), Some(name)) = (path.parent(), name) else {
            return Err(EngineError::io(
                &path,
                io::Error::new(io::ErrorKind::InvalidInput, "a data set needs a folder of its own"),
            ));
        };
        let work = parent.join(format!(".{name}.groundloom"));
        let target = Self { path, work, url: None };
        match fs::read_dir(&target.path) {
            Ok(mut items) => {
                if items.next().is_some() && !target.path.join(MANIFEST).is_file() {
                    return Err(EngineError::ForeignTarget(target.path));
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(EngineError::io(&target.path, e)),
        }
        Ok(target)
    }

    /// The target folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The URL that the data set is copied to, if it is not for the local disk.
    pub fn url(&self) -> Option<&str> {
        self.url.as_deref()
    }

    /// Where its readers find the data set: its URL or its folder.
    pub fn shown(&self) -> String {
        self.url.clone().unwrap_or_else(|| self.path.display().to_string())
    }

    /// The work folder beside it.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// The published generation's manifest, if there is one.
    ///
    /// # Errors
    /// [`EngineError::Damaged`] when it cannot be read.
    pub fn published(&self) -> Result<Option<Manifest>, EngineError> {
        let path = self.path.join(MANIFEST);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|e| EngineError::Damaged { path, message: e.to_string() }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(EngineError::io(path, e)),
        }
    }

    /// Whether the published generation is this one, with every file in place.
    ///
    /// # Errors
    /// As [`Target::published`].
    pub fn is_current(&self, fingerprint: &Fingerprint) -> Result<Option<Manifest>, EngineError> {
        let whole = |m: &Manifest| {
            m.files.iter().all(|f| fs::metadata(self.path.join(&f.path)).is_ok_and(|meta| meta.len() == f.bytes))
        };
        Ok(self.published()?.filter(|m| m.fingerprint == *fingerprint && whole(m)))
    }

    /// Makes the work folder and takes its lock. The lock goes with the process, however it ends.
    ///
    /// # Errors
    /// [`EngineError::Locked`] when another run holds it; an I/O error when the folder cannot be written.
    pub fn lock(&self) -> Result<Lock, EngineError> {
        fs::create_dir_all(&self.work).map_err(|e| EngineError::io(&self.work, e))?;
        let path = self.work.join("lock");
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| EngineError::io(&path, e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut process = String::new();
                let _ = file.read_to_string(&mut process);
                return Err(EngineError::Locked { path: self.path.clone(), process: process.trim().to_owned() });
            }
            Err(TryLockError::Error(e)) => return Err(EngineError::io(&path, e)),
        }
        let written = file
            .set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| writeln!(file, "{}", std::process::id()));
        written.map_err(|e| EngineError::io(&path, e))?;
        // A run that died between the two renames of a system without exchange left the old generation here.
        let old = self.work.join("old");
        if old.is_dir() && !self.path.exists() {
            fs::rename(&old, &self.path).map_err(|e| EngineError::io(&self.path, e))?;
        }
        remove_folder(&old)?;
        // What a killed run was building, or the generation that it had just replaced.
        remove_folder(&self.work.join("next"))?;
        Ok(Lock { _file: file })
    }

    /// An empty folder in which the next generation is built; what an earlier run left there is removed.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn next(&self) -> Result<PathBuf, EngineError> {
        let next = self.work.join("next");
        remove_folder(&next)?;
        fs::create_dir_all(&next).map_err(|e| EngineError::io(&next, e))?;
        Ok(next)
    }

    /// Publishes the folder of [`Target::next`] as the target, in one step, and removes the old generation.
    ///
    /// # Errors
    /// When the exchange fails; the old generation is in place then.
    pub fn publish(&self, next: &Path) -> Result<(), EngineError> {
        sync_tree(next)?;
        let parent = self.path.parent().unwrap_or(&self.path);
        match exchange(next, &self.path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                fs::rename(next, &self.path).map_err(|e| EngineError::io(&self.path, e))?;
            }
            Err(e) => return Err(EngineError::io(&self.path, e)),
        }
        sync_folder(parent)?;
        // What stands at `next` now is the old generation.
        remove_folder(next)
    }
}

/// Exchanges two folders atomically, where the system can; both must exist.
#[cfg(target_os = "linux")]
fn exchange(next: &Path, target: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, next, CWD, target, RenameFlags::EXCHANGE) {
        // Some network file systems do not know the exchange.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::NOTSUP) => {
            exchange_by_steps(next, target)
        }
        other => Ok(other?),
    }
}

#[cfg(not(target_os = "linux"))]
fn exchange(next: &Path, target: &Path) -> io::Result<()> {
    exchange_by_steps(next, target)
}

/// Two renames: for an instant the target is absent, never mixed.
fn exchange_by_steps(next: &Path, target: &Path) -> io::Result<()> {
    let old = next.with_file_name("old");
    fs::rename(target, &old)?;
    fs::rename(next, target)?;
    fs::rename(&old, next)
}

/// The lock of a work folder; dropping it releases it.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Removes a folder, if it is there.
///
/// # Errors
/// When something in it cannot be removed.
pub fn remove_folder(folder: &Path) -> Result<(), EngineError> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(EngineError::io(folder, e)),
        _ => Ok(()),
    }
}

fn sync_tree(folder: &Path) -> Result<(), EngineError> {
    for item in fs::read_dir(folder).map_err(|e| EngineError::io(folder, e))? {
        let path = item.map_err(|e| EngineError::io(folder, e))?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path).and_then(|f| f.sync_all()).map_err(|e| EngineError::io(&path, e))?;
        }
    }
    sync_folder(folder)
}

/// The path without `.` and `..`, by its text alone.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn generation(target: &Target, text: &str) {
        let next = target.next().unwrap();
        fs::create_dir_all(next.join("_manifest")).unwrap();
        fs::write(next.join(MANIFEST), text).unwrap();
        target.publish(&next).unwrap();
    }

    #[test]
    fn generations_replace_each_other_whole() {
        let dir = tempfile::tempdir().unwrap();
        let target = Target::at(&dir.path().join("a/../out")).unwrap();
        assert_eq!(target.path(), dir.path().join("out"));
        let _lock = target.lock().unwrap();
        generation(&target, "1");
        generation(&target, "2");
        assert_eq!(fs::read_to_string(dir.path().join("out").join(MANIFEST)).unwrap(), "2");
        assert!(!target.work().join("next").exists(), "the old generation is gone");
    }

    #[test]
    fn a_second_run_is_refused_and_a_dead_ones_lock_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let target = Target::at(&dir.path().join("out")).unwrap();
        let lock = target.lock().unwrap();
        let refused = target.lock().unwrap_err();
        assert!(
            matches!(&refused, EngineError::Locked { process, .. } if *process == std::process::id().to_string()),
            "{refused}"
        );
        drop(lock);
        target.lock().unwrap();
    }

    #[test]
    fn a_folder_with_other_things_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("out")).unwrap();
        fs::write(dir.path().join("out/thesis.tex"), "").unwrap();
        assert!(matches!(Target::at(&dir.path().join("out")), Err(EngineError::ForeignTarget(_))));
    }
}
