//! Marks of calls in flight: who asks what, so that two processes do not ask the same and a kill does not go unnoticed.
//!
//! Every open store that asks has a file of its own, `asking/NAME.calls`, which it holds locked: one slot per call in flight, with the record of what the call is lost for
//! should its answer never arrive, and empty when the call has ended. The lock ends with the process however it ends; a slot that is taken in a file that nobody holds
//! is a call that was in flight at a kill, and what it reserved counts as spent, since the server may have answered into the void.
//! A second request for a call that is slow has a slot of its own, and both say so: of two such, one may be in flight when the other's answer is in the store already.
//!
//! `asking/lock` is held by whoever takes a slot or a file, for that moment, so that of two processes that want to ask the same one sees the other. It grows by a byte with every
//! file that comes into being: who finds it as long as before knows all others.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions, TryLockError},
    io::{ErrorKind, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::record::{HEADER, Header, Kind, MAGIC};
use crate::{error::LlmError, money::Money, request::RequestHash};

/// Bytes of a slot. Slots never lie across two pages, so a kill leaves none half written.
const SLOT: u64 = 128;
/// Where a slot says that it is one of two for one call.
const TWICE: usize = HEADER;
/// Where the hash is in a slot.
const HASH: std::ops::Range<usize> = 12..44;
/// What the names of files with slots end with.
const EXTENSION: &str = "calls";

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

impl Reservation {
    /// The record of a call that was paid, as far as anybody knows, and whose answer never arrived.
    pub fn lost(&self, hash: RequestHash) -> [u8; HEADER] {
        let header = Header {
            kind: Kind::Loss,
            hash,
            budget: self.budget,
            cost: self.cost,
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            payload_len: 0,
            payload_sum: 0,
        };
        header.encode()
    }
}

/// The calls in flight of one open store.
#[derive(Debug)]
pub(super) struct Asking {
    folder: PathBuf,
    /// Made when the first call is.
    own: Mutex<Option<Slots>>,
}

/// Our own file, and what we know of those of others.
#[derive(Debug)]
struct Slots {
    path: PathBuf,
    file: File,
    /// The slots of first requests.
    taken: HashMap<RequestHash, u64>,
    free: Vec<u64>,
    /// Slots that there are, taken or free.
    len: u64,
    /// `asking/lock`, and its length when `others` were looked for.
    lock: Arc<File>,
    known: u64,
    others: Vec<File>,
}

/// A slot that is taken. It stays so when this is dropped.
#[derive(Debug)]
pub(crate) struct Mark {
    asking: Arc<Asking>,
    hash: RequestHash,
    slot: u64,
    second: bool,
}

impl Mark {
    /// Empties the slot: the call has ended, and what is to be remembered of it is in the store.
    pub fn remove(self) -> Result<(), LlmError> {
        let mut own = self.asking.own();
        let Some(slots) = &mut *own else { return Ok(()) };
        empty(&slots.file, self.slot).map_err(|e| LlmError::store(&slots.path, e))?;
        if !self.second {
            slots.taken.remove(&self.hash);
        }
        slots.free.push(self.slot);
        Ok(())
    }
}

/// What became of an attempt to set a mark.
pub(crate) enum Marking {
    /// It is ours.
    Set(Mark),
    /// Somebody else asks the same right now.
    Taken,
}

impl Asking {
    /// The calls in flight of a store whose marks are in `folder`.
    pub fn new(folder: PathBuf) -> Arc<Self> {
        Arc::new(Self { folder, own: Mutex::default() })
    }

    /// Sets the mark of `hash`.
    pub fn set(self: &Arc<Self>, hash: RequestHash, reservation: &Reservation) -> Result<Marking, LlmError> {
        let error = |e| LlmError::store(&self.folder, e);
        let mut own = self.own();
        let slots = Slots::open(&mut own, &self.folder).map_err(error)?;
        // Clients that share a store learn of each other's calls here only.
        if slots.taken.contains_key(&hash) {
            return Ok(Marking::Taken);
        }
        let _held = Held::lock(&slots.lock).map_err(error)?;
        if slots.others_ask(hash, &self.folder).map_err(error)? {
            return Ok(Marking::Taken);
        }
        let slot = slots.take(hash, reservation, false).map_err(error)?;
        slots.taken.insert(hash, slot);
        Ok(Marking::Set(Mark { asking: Arc::clone(self), hash, slot, second: false }))
    }

    /// Sets the mark of a second request for a call of ours that is in flight, or has just ended.
    pub fn set_second(self: &Arc<Self>, hash: RequestHash, reservation: &Reservation) -> Result<Mark, LlmError> {
        let error = |e| LlmError::store(&self.folder, e);
        let mut own = self.own();
        let slots = Slots::open(&mut own, &self.folder).map_err(error)?;
        if let Some(first) = slots.taken.get(&hash) {
            slots.file.write_all_at(&[1], first * SLOT + TWICE as u64).map_err(error)?;
        }
        let slot = slots.take(hash, reservation, true).map_err(error)?;
        Ok(Mark { asking: Arc::clone(self), hash, slot, second: true })
    }

    fn own(&self) -> MutexGuard<'_, Option<Slots>> {
        // A thread that died in here left a slot taken at worst.
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        // A call whose task was dropped may have been paid: whoever opens the store next finds its slot.
        if let Some(slots) = &*self.own()
            && slots.free.len() as u64 == slots.len
        {
            // If that fails, an empty file stays, which whoever opens the store next removes.
            let _ = std::fs::remove_file(&slots.path);
        }
    }
}

impl Slots {
    fn open<'a>(own: &'a mut Option<Self>, folder: &Path) -> std::io::Result<&'a mut Self> {
        let slots = match own.take() {
            Some(slots) => slots,
            None => Self::new(folder)?,
        };
        Ok(own.insert(slots))
    }

    fn new(folder: &Path) -> std::io::Result<Self> {
        let lock = lock_of(folder)?;
        let _held = Held::lock(&lock)?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let path = folder.join(format!("{:020}-{}.{EXTENSION}", since.as_nanos(), std::process::id()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        file.try_lock()?;
        let others = others(folder, &path)?;
        (&*lock).write_all(&[0])?;
        let known = lock.metadata()?.len();
        Ok(Self { path, file, taken: HashMap::new(), free: Vec::new(), len: 0, lock, known, others })
    }

    /// Whether another open store asks the same; `lock` is held.
    fn others_ask(&mut self, hash: RequestHash, folder: &Path) -> std::io::Result<bool> {
        let len = self.lock.metadata()?.len();
        if len != self.known {
            self.others = others(folder, &self.path)?;
            self.known = len;
        }
        // Those that have gone, and perhaps left calls: whoever opens the store next counts them.
        self.others.retain(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)));
        for file in &self.others {
            let asks = |slot: &[u8]| slot.starts_with(&MAGIC) && slot[HASH] == hash.0;
            if read(file)?.chunks_exact(SLOT as usize).any(asks) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn take(&mut self, hash: RequestHash, reservation: &Reservation, second: bool) -> std::io::Result<u64> {
        let mut bytes = [0; SLOT as usize];
        bytes[..HEADER].copy_from_slice(&reservation.lost(hash));
        bytes[TWICE] = second.into();
        let slot = self.free.last().copied().unwrap_or(self.len);
        self.file.write_all_at(&bytes, slot * SLOT)?;
        if self.free.pop().is_none() {
            self.len += 1;
        }
        Ok(slot)
    }
}

/// `asking/lock`, held for a moment.
struct Held(Arc<File>);

impl Held {
    fn lock(file: &Arc<File>) -> std::io::Result<Self> {
        file.lock()?;
        Ok(Self(Arc::clone(file)))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // It cannot fail for a file that is open, and would end with the process.
        let _ = self.0.unlock();
    }
}

fn lock_of(folder: &Path) -> std::io::Result<Arc<File>> {
    OpenOptions::new().create(true).append(true).open(folder.join("lock")).map(Arc::new)
}

/// All files with slots in `folder`.
fn files(folder: &Path) -> std::io::Result<Vec<(PathBuf, File)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == EXTENSION) {
            match OpenOptions::new().read(true).write(true).open(&path) {
                Ok(file) => files.push((path, file)),
                // Its store has been closed meanwhile.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(files)
}

fn others(folder: &Path, own: &Path) -> std::io::Result<Vec<File>> {
    let others = files(folder)?.into_iter().filter(|(path, _)| path != own);
    Ok(others.map(|(_, file)| file).collect())
}

fn read(file: &File) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn empty(file: &File, slot: u64) -> std::io::Result<()> {
    file.write_all_at(&[0; MAGIC.len()], slot * SLOT)
}

/// What a killed process left behind; nobody else takes it up while this lives.
pub(super) struct Abandoned {
    path: PathBuf,
    file: File,
    pub calls: Vec<AbandonedCall>,
}

/// A call that was in flight at a kill.
pub(super) struct AbandonedCall {
    slot: u64,
    pub hash: RequestHash,
    /// See [`Reservation::lost`].
    pub lost: [u8; HEADER],
    /// It was one of two requests for one call.
    pub twice: bool,
}

impl Abandoned {
    /// Forgets one of its calls: it has been counted, or needs not be.
    pub fn forget(&self, call: &AbandonedCall) -> Result<(), LlmError> {
        empty(&self.file, call.slot).map_err(|e| LlmError::store(&self.path, e))
    }

    /// Takes the file away, when all of its calls are forgotten.
    pub fn remove(self) -> Result<(), LlmError> {
        std::fs::remove_file(&self.path).map_err(|e| LlmError::store(&self.path, e))
    }
}

/// The files that nobody holds.
pub(super) fn abandoned(folder: &Path) -> Result<Vec<Abandoned>, LlmError> {
    let error = |e| LlmError::store(folder, e);
    let lock = lock_of(folder).map_err(error)?;
    let _held = Held::lock(&lock).map_err(error)?;
    let mut found = Vec::new();
    for (path, file) in files(folder).map_err(error)? {
        if file.try_lock().is_err() {
            continue;
        }
        let bytes = read(&file).map_err(|e| LlmError::store(&path, e))?;
        let calls = bytes.chunks(SLOT as usize).zip(0..).filter_map(|(bytes, slot)| {
            // One that is damaged was cut off by the kill, before the call.
            let hash = Header::decode(bytes)?.hash;
            Some(AbandonedCall { slot, hash, lost: *bytes.first_chunk()?, twice: bytes.get(TWICE) == Some(&1) })
        });
        let calls = calls.collect();
        found.push(Abandoned { path, file, calls });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    const RESERVATION: Reservation = Reservation { budget: 1, cost: Money(7), prompt_tokens: 5, completion_tokens: 3 };

    fn hash(n: u8) -> RequestHash {
        RequestHash([n; 32])
    }

    fn set(asking: &Arc<Asking>, n: u8) -> Option<Mark> {
        match asking.set(hash(n), &RESERVATION).unwrap() {
            Marking::Set(mark) => Some(mark),
            Marking::Taken => None,
        }
    }

    fn left_behind(folder: &Path) -> Vec<(RequestHash, bool)> {
        let found = abandoned(folder).unwrap();
        let calls = found.iter().flat_map(|file| &file.calls);
        assert!(calls.clone().all(|call| call.lost == RESERVATION.lost(call.hash)));
        let mut calls: Vec<_> = calls.map(|call| (call.hash, call.twice)).collect();
        calls.sort_unstable();
        calls
    }

    #[test]
    fn one_store_at_a_time_asks_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let stores: Vec<_> = (0..3).map(|_| Asking::new(folder.path().to_owned())).collect();
        let first = set(&stores[0], 1).unwrap();
        for store in &stores {
            assert!(set(store, 1).is_none(), "also not those that came later");
        }
        let other = set(&stores[1], 2).unwrap();
        assert!(set(&stores[0], 2).is_none(), "nor what only those know that came later");
        first.remove().unwrap();
        let again = set(&stores[2], 1).unwrap();
        assert!(set(&stores[0], 1).is_none() && set(&stores[1], 1).is_none());
        assert_eq!(left_behind(folder.path()), []);
        again.remove().unwrap();
        other.remove().unwrap();
        drop(stores);
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["lock"], "who ends in peace leaves nothing");
    }

    #[test]
    fn of_many_threads_that_want_to_ask_the_same_one_does() {
        let folder = tempfile::tempdir().unwrap();
        let won: usize = std::thread::scope(|scope| {
            let asks = (0..8).map(|_| {
                let path = folder.path().to_owned();
                scope.spawn(move || {
                    let asking = Asking::new(path);
                    let won: Vec<_> = (0..200).map(|n| set(&asking, n)).collect();
                    // Held until everybody has tried.
                    (asking, won)
                })
            });
            let all: Vec<_> = asks.collect::<Vec<_>>().into_iter().map(|t| t.join().unwrap()).collect();
            all.iter().map(|(_, won)| won.iter().flatten().count()).sum()
        });
        assert_eq!(won, 200);
    }

    #[test]
    fn a_kill_leaves_the_calls_that_were_in_flight() {
        let folder = tempfile::tempdir().unwrap();
        let asking = Asking::new(folder.path().to_owned());
        let marks: Vec<_> = (0..100).map(|n| set(&asking, n).unwrap()).collect();
        for mark in marks {
            if mark.hash.0[0] % 10 != 3 {
                mark.remove().unwrap();
            }
        }
        // Slots are used again, and nothing of the call before is left in them.
        let second = asking.set_second(hash(13), &RESERVATION).unwrap();
        second.remove().unwrap();
        let single = set(&asking, 200).unwrap();
        assert!(asking.own().as_ref().unwrap().len == 100);
        // As by a kill: the lock goes, the file stays.
        drop((single, asking));
        let expected = [3, 13, 23, 33, 43, 53, 63, 73, 83, 93, 200].map(|n| (hash(n), n == 13));
        assert_eq!(left_behind(folder.path()), expected);
        let other = Asking::new(folder.path().to_owned());
        assert!(set(&other, 3).is_some(), "nobody waits for the dead");
        let found = abandoned(folder.path()).unwrap();
        assert_eq!(left_behind(folder.path()), [], "one store at a time takes them up");
        found[0].forget(&found[0].calls[0]).unwrap();
        drop(found);
        assert_eq!(left_behind(folder.path()), expected[1..]);
        abandoned(folder.path()).unwrap().into_iter().for_each(|file| file.remove().unwrap());
        assert_eq!(left_behind(folder.path()), []);
    }

    #[test]
    fn both_requests_of_a_call_are_left() {
        let folder = tempfile::tempdir().unwrap();
        let asking = Asking::new(folder.path().to_owned());
        let first = set(&asking, 1).unwrap();
        let second = asking.set_second(hash(1), &RESERVATION).unwrap();
        drop((first, second, asking));
        assert_eq!(left_behind(folder.path()), [(hash(1), true); 2]);
        let asking = Asking::new(folder.path().to_owned());
        let first = set(&asking, 2).unwrap();
        let second = asking.set_second(hash(2), &RESERVATION).unwrap();
        first.remove().unwrap();
        drop((second, asking));
        assert_eq!(left_behind(folder.path()), [(hash(1), true), (hash(1), true), (hash(2), true)]);
    }

    #[test]
    fn slots_that_are_damaged_or_cut_count_as_empty() {
        let folder = tempfile::tempdir().unwrap();
        let asking = Asking::new(folder.path().to_owned());
        let marks: Vec<_> = (0..3).map(|n| set(&asking, n).unwrap()).collect();
        let path = asking.own().as_ref().unwrap().path.clone();
        drop((marks, asking));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[HASH.start] ^= 1;
        bytes.truncate(2 * SLOT as usize + 50);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(left_behind(folder.path()), [(hash(1), false)]);
    }
}
