//! What is known of batches that were submitted and not collected yet: files in the store, so that another process, hours later, goes on with them.

use std::{
    fs::File,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::{error::LlmError, request::RequestHash, store::Reservation};

/// A batch from the intention to submit it until its answers are in the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct BatchState {
    /// Our name for it, which the server keeps as metadata: so a batch is found again whose id we never got.
    pub name: String,
    /// The server's base URL.
    pub url: String,
    /// The server's id of it; none until it is submitted.
    pub batch_id: Option<String>,
    /// What it may cost together.
    pub reserved: Reservation,
    /// The requests in it.
    pub hashes: Vec<String>,
    /// When it was made, in milliseconds since 1970.
    pub made_ms: u64,
}

/// A state that this process works on; no other does at the same time.
#[derive(Debug)]
pub(super) struct Held {
    pub state: BatchState,
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

fn store_error(path: &Path) -> impl Fn(std::io::Error) -> LlmError + '_ {
    move |e| LlmError::store(path, e)
}

impl Held {
    /// Writes down the intention to submit a batch.
    pub fn begin(folder: &Path, url: &str, hashes: &[RequestHash], reserved: Reservation) -> Result<Self, LlmError> {
        std::fs::create_dir_all(folder).map_err(store_error(folder))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut seed: Vec<u8> = hashes.iter().flat_map(|h| h.0).collect();
        seed.extend(now.as_nanos().to_le_bytes());
        seed.extend(std::process::id().to_le_bytes());
        let state = BatchState {
            name: format!("{:032x}", xxh3_128(&seed)),
            url: url.to_owned(),
            batch_id: None,
            reserved,
            hashes: hashes.iter().map(RequestHash::to_string).collect(),
            made_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        };
        let lock_path = folder.join(format!("{}.lock", state.name));
        let lock = File::create(&lock_path).map_err(store_error(&lock_path))?;
        lock.try_lock().map_err(|e| LlmError::store(&lock_path, e))?;
        let held = Self { path: folder.join(format!("{}.json", state.name)), state, lock_path, _lock: lock };
        held.save()?;
        Ok(held)
    }

    /// Takes up the state in `path`; `None` when another process has it or it is gone.
    pub fn take(path: &Path) -> Result<Option<Self>, LlmError> {
        let lock_path = path.with_extension("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(store_error(&lock_path))?;
        if lock.try_lock().is_err() {
            return Ok(None);
        }
        let Some(state) = read(path)? else {
            // Its holder has just finished.
            let _ = std::fs::remove_file(&lock_path);
            return Ok(None);
        };
        Ok(Some(Self { state, path: path.to_owned(), lock_path, _lock: lock }))
    }

    /// Keeps what is known now, whole or not at all.
    pub fn save(&self) -> Result<(), LlmError> {
        let text = serde_json::to_vec(&self.state).map_err(|e| LlmError::store(&self.path, e))?;
        let new = self.path.with_extension("new");
        let error = store_error(&self.path);
        std::fs::write(&new, text).map_err(&error)?;
        File::open(&new).and_then(|f| f.sync_all()).map_err(&error)?;
        std::fs::rename(&new, &self.path).map_err(&error)
    }

    /// The answers are in the store: forgets the batch.
    pub fn end(self) -> Result<(), LlmError> {
        std::fs::remove_file(&self.path).map_err(store_error(&self.path))?;
        std::fs::remove_file(&self.lock_path).map_err(store_error(&self.lock_path))
    }
}

/// The state in a file; `None` when it is gone.
pub(super) fn read(path: &Path) -> Result<Option<BatchState>, LlmError> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| LlmError::store(path, e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(LlmError::store(path, e)),
    }
}

/// All states in a folder, in order of their names.
pub(super) fn all(folder: &Path) -> Result<Vec<PathBuf>, LlmError> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut paths: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "json")).collect();
    paths.sort();
    Ok(paths)
}
