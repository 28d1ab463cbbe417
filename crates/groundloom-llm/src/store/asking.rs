//! Marks of calls in flight: who asks what, so that two processes do not ask the same and a kill does not go unnoticed.
//!
//! A mark is a file `asking/HASH` that its process holds locked. The lock ends with the process however it ends; a mark that nobody holds is
//! a call that was in flight at a kill, and what it reserved counts as spent, since the server may have answered into the void.
//! A second request for a call that is slow has the mark `asking/HASH.2`, and the first one's gets a second line: of two such, one may be in flight when the other's answer
//! is in the store already.

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
    set_at(folder.join(hash.to_string()), reservation)
}

/// Sets the mark of a second request for a call that is in flight.
pub(crate) fn set_second(folder: &Path, hash: RequestHash, reservation: &Reservation) -> Result<Marking, LlmError> {
    // One byte behind the first one's reservation, so that no kill leaves it half written. If its call has just ended, there is no mark, and need not be.
    match OpenOptions::new().append(true).open(folder.join(hash.to_string())) {
        Ok(mut first) => first.write_all(b"\n").map_err(|e| LlmError::store(folder, e))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(LlmError::store(folder, e)),
    }
    set_at(folder.join(format!("{hash}{SECOND}")), reservation)
}

/// What the name of a second request's mark ends with.
const SECOND: &str = ".2";

fn set_at(path: PathBuf, reservation: &Reservation) -> Result<Marking, LlmError> {
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
    /// It was one of two requests for one call.
    pub twice: bool,
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
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        let second = name.strip_suffix(SECOND);
        let Some(hash) = RequestHash::parse(second.unwrap_or(name)) else { continue };
        let second = second.is_some();
        let Ok(mut file) = OpenOptions::new().read(true).write(true).open(&path) else { continue };
        if file.try_lock().is_err() || !is_still_there(&file, &path) {
            continue;
        }
        let mut text = String::new();
        let reservation = file.read_to_string(&mut text).ok().and_then(|_| serde_json::from_str(&text).ok());
        let twice = second || text.ends_with('\n');
        found.push(Abandoned { hash, reservation, twice, mark: Mark { path, _file: file } });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_kill_leaves_the_marks_of_both_requests_of_a_call() {
        let folder = tempfile::tempdir().unwrap();
        let hash = RequestHash([3; 32]);
        let reservation = Reservation { budget: 1, prompt_tokens: 5, ..Reservation::default() };
        let held = |marking| match marking {
            Ok(Marking::Set(mark)) => mark,
            _ => panic!("the mark is free"),
        };
        let first = held(set(folder.path(), hash, &reservation));
        let second = held(set_second(folder.path(), hash, &reservation));
        assert!(matches!(set_second(folder.path(), hash, &reservation), Ok(Marking::Taken)));
        assert!(abandoned(folder.path()).unwrap().is_empty());
        // As by a kill: the locks go, the files stay.
        drop((first, second));
        let found = abandoned(folder.path()).unwrap();
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|m| m.twice && m.hash == hash && m.reservation == Some(reservation)));
        drop(found);
        std::fs::remove_file(folder.path().join(format!("{hash}{SECOND}"))).unwrap();
        // The call of a single request: set anew, its mark says nothing of the one before.
        drop(held(set(folder.path(), hash, &reservation)));
        assert!(abandoned(folder.path()).unwrap().iter().all(|m| !m.twice));
    }
}
