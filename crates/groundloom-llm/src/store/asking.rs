//! Marks of calls in flight: who asks what, so that two processes do not ask the same and a kill does not go unnoticed.
//!
//! A mark is a file `asking/HASH` that its process holds locked. The lock ends with the process however it ends; a mark that nobody holds is
//! a call that was in flight at a kill, and what it reserved counts as spent, since the server may have answered into the void.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{error::LlmError, money::Money, request::RequestHash};

/// What a call in flight may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Reservation {
    /// The budget it is taken from; 0 for none.
    pub budget: u64,
    /// The most it can cost.
    pub cost: Money,
    /// The most input tokens.
    pub prompt_tokens: u64,
    /// The most output tokens.
    pub completion_tokens: u64,
}

/// A mark that this process holds.
#[derive(Debug)]
pub(crate) struct Mark {
    path: PathBuf,
    // Holds the lock.
    _file: File,
}

impl Mark {
    /// Takes the mark away: the call has ended, and what is to be remembered of it is in the store.
    pub fn remove(self) -> Result<(), LlmError> {
        std::fs::remove_file(&self.path).map_err(|e| LlmError::store(&self.path, e))
    }
}

/// What became of an attempt to set a mark.
pub(crate) enum Marking {
    /// It is ours.
    Set(Mark),
    /// Another process asks the same right now.
    Taken,
}

/// Sets the mark of `hash`.
pub(crate) fn set(folder: &Path, hash: RequestHash, reservation: &Reservation) -> Result<Marking, LlmError> {
    let path = folder.join(hash.to_string());
    let error = |e: std::io::Error| LlmError::store(&path, e);
    loop {
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(error)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Marking::Taken),
            Err(TryLockError::Error(e)) => return Err(error(e)),
        }
        // Between opening and locking its holder may have removed it: then we hold a file without a name.
        if !is_still_there(&file, &path) {
            continue;
        }
        let text = serde_json::to_string(reservation).map_err(|e| LlmError::store(&path, e))?;
        file.set_len(0).and_then(|()| file.write_all(text.as_bytes())).map_err(error)?;
        return Ok(Marking::Set(Mark { path, _file: file }));
    }
}

fn is_still_there(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(held), Ok(named)) => (held.dev(), held.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// A mark that a killed process left behind; it is locked until it is removed.
pub(crate) struct Abandoned {
    pub hash: RequestHash,
    /// `None` when the kill came before it was written, that is, before the call.
    pub reservation: Option<Reservation>,
    mark: Mark,
}

impl Abandoned {
    /// As [`Mark::remove`].
    pub fn remove(self) -> Result<(), LlmError> {
        self.mark.remove()
    }
}

/// All marks that nobody holds.
pub(crate) fn abandoned(folder: &Path) -> Result<Vec<Abandoned>, LlmError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| LlmError::store(folder, e))? {
        let path = entry.map_err(|e| LlmError::store(folder, e))?.path();
        let Some(hash) = path.file_name().and_then(|n| n.to_str()).and_then(RequestHash::parse) else { continue };
        let Ok(mut file) = OpenOptions::new().read(true).write(true).open(&path) else { continue };
        if file.try_lock().is_err() || !is_still_there(&file, &path) {
            continue;
        }
        let mut text = String::new();
        let reservation = file.read_to_string(&mut text).ok().and_then(|_| serde_json::from_str(&text).ok());
        found.push(Abandoned { hash, reservation, mark: Mark { path, _file: file } });
    }
    Ok(found)
}
