//! Every answer that was ever paid for, by what was asked.
//!
//! A store is a folder. `segments/` holds append-only files of records, each file written by one process at a time; `asking/` marks every call in flight. Any number of processes may use one store at the same time. A record counts only when it is whole (checksums), and
//! an answer is used only after its record is on the disk: so a kill between any two bytes loses no answer that anybody has seen.
//! The folder must be on a local disk (file locks).

mod archive;
mod asking;
mod index;
mod record;
mod writer;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub use archive::Archived;
use asking::Asking;
pub(crate) use asking::{Mark, Marking, Reservation};
use index::Index;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use writer::{Record, Writer};
use xxhash_rust::xxh3::xxh3_64;

use crate::{answer::Usage, budget::Spent, error::LlmError, money::Money, request::RequestHash};

/// An answer as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    /// The path of the interface, `/chat/completions`.
    pub path: String,
    /// The body that was sent, images replaced by their hashes.
    pub request: Value,
    /// The body that came back.
    pub response: Value,
    /// The server's count of tokens, where it gives one.
    pub usage: Option<Usage>,
    /// What it cost by the price table of that day.
    pub cost: Money,
    /// When it was asked, in milliseconds since 1970.
    pub asked_ms: u64,
    /// How long the answer took.
    pub took_ms: u64,
}

/// An open store.
pub struct Store {
    folder: PathBuf,
    index: Mutex<Index>,
    /// `None` when the store is only read.
    writer: Option<Writer>,
    asking: Arc<Asking>,
    interrupted: u64,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// The number that stands for a budget's name in the store.
pub(crate) fn budget_number(name: &str) -> u64 {
    xxh3_64(name.as_bytes()).max(1)
}

impl Store {
    /// Opens the store in `folder`, making it when it is not there, and settles what earlier processes left in flight.
    ///
    /// # Errors
    /// [`LlmError::Store`] when the folder cannot be made, read or written.
    pub fn open(folder: &Path) -> Result<Arc<Self>, LlmError> {
        let (segments, asking) = (folder.join("segments"), folder.join("asking"));
        for path in [&segments, &asking] {
            std::fs::create_dir_all(path).map_err(|e| LlmError::store(path, e))?;
        }
        let adopted = writer::adopt(&segments)?;
        let mut index = Index::default();
        index.refresh(&segments)?;
        if let Some((path, file)) = &adopted
            && let Some(end) = index.end_of(path)
        {
            file.set_len(end).map_err(|e| LlmError::store(path, e))?;
        }
        let writer = Writer::start(segments.clone(), adopted)?;
        let mut store = Self::of(folder, index);
        store.settle(&writer)?;
        store.writer = Some(writer);
        Ok(Arc::new(store))
    }

    /// Opens the store in `folder` for reading only: nothing is asked, nothing changes.
    ///
    /// # Errors
    /// [`LlmError::Store`] when it is not there or cannot be read.
    pub fn open_read_only(folder: &Path) -> Result<Arc<Self>, LlmError> {
        let mut index = Index::default();
        index.refresh(&folder.join("segments"))?;
        Ok(Arc::new(Self::of(folder, index)))
    }

    fn of(folder: &Path, index: Index) -> Self {
        let asking = Asking::new(folder.join("asking"));
        Self { folder: folder.to_owned(), index: Mutex::new(index), writer: None, asking, interrupted: 0 }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// How many answers it holds.
    pub fn len(&self) -> usize {
        self.index().len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls that earlier processes had in flight when they were killed, found when this store was opened. They may have to be asked again.
    pub const fn interrupted(&self) -> u64 {
        self.interrupted
    }

    /// Records that were found damaged so far; their requests count as never answered.
    pub fn damaged(&self) -> u64 {
        self.index().damaged
    }

    /// What has been paid for under a budget's name, answers and calls whose answer never arrived.
    pub fn spent_under(&self, budget: &str) -> Spent {
        self.spent(budget_number(budget))
    }

    /// What a budget has paid for, answers and calls whose answer never arrived.
    pub(crate) fn spent(&self, budget: u64) -> Spent {
        self.index().spent(budget)
    }

    /// The hashes of all answers, in order.
    pub fn hashes(&self) -> Vec<RequestHash> {
        self.index().hashes()
    }

    /// The answer to a request, also one that another process has just stored.
    ///
    /// # Errors
    /// [`LlmError::Store`] when the files cannot be read.
    pub fn get(&self, hash: &RequestHash) -> Result<Option<Stored>, LlmError> {
        let payload = {
            let mut index = self.index();
            if !index.contains(hash) {
                index.refresh(&self.folder.join("segments"))?;
            }
            index.payload(hash)?
        };
        let Some(payload) = payload else { return Ok(None) };
        let json = zstd::decode_all(payload.as_slice()).map_err(|e| LlmError::store(&self.folder, e))?;
        serde_json::from_slice(&json).map(Some).map_err(|e| LlmError::store(&self.folder, e))
    }

    /// Keeps an answer; returns when it is on the disk. `budget` is the name of what paid for it, or nothing for answers that came from elsewhere.
    ///
    /// # Errors
    /// [`LlmError::Store`] when it cannot be written.
    pub async fn put(&self, hash: RequestHash, stored: &Stored, budget: Option<&str>) -> Result<(), LlmError> {
        self.put_for(hash, stored.clone(), budget.map_or(0, budget_number)).await
    }

    /// As [`Store::put`]. The answer is packed by the thread that writes, so that whoever has more to ask is not kept from it.
    pub(crate) async fn put_for(&self, hash: RequestHash, stored: Stored, budget: u64) -> Result<(), LlmError> {
        self.writer()?.append(Record::Answer { hash, stored: Box::new(stored), budget }).await
    }

    /// Remembers what an answer that never arrived may have cost.
    pub(crate) async fn put_loss(&self, hash: RequestHash, reservation: &Reservation) -> Result<(), LlmError> {
        self.writer()?.append(Record::Loss(reservation.lost(hash))).await
    }

    /// Marks a call as in flight.
    pub(crate) fn mark(&self, hash: RequestHash, reservation: &Reservation) -> Result<Marking, LlmError> {
        self.asking.set(hash, reservation)
    }

    /// Marks a second request for a call that is in flight.
    pub(crate) fn mark_second(&self, hash: RequestHash, reservation: &Reservation) -> Result<Mark, LlmError> {
        self.asking.set_second(hash, reservation)
    }

    fn settle(&mut self, writer: &Writer) -> Result<(), LlmError> {
        let abandoned = asking::abandoned(&self.folder.join("asking"))?;
        if abandoned.is_empty() {
            return Ok(());
        }
        // Only now are all answers in the index that their processes had stored before they ended.
        self.index().refresh(&self.folder.join("segments"))?;
        for file in abandoned {
            for call in &file.calls {
                if call.twice || !self.index().contains(&call.hash) {
                    self.interrupted += 1;
                    futures::executor::block_on(writer.append(Record::Loss(call.lost)))?;
                }
                // Each by itself: a kill in here counts one of them twice at worst.
                file.forget(call)?;
            }
            file.remove()?;
        }
        let segments = self.folder.join("segments");
        self.index().refresh(&segments)
    }

    fn writer(&self) -> Result<&Writer, LlmError> {
        self.writer.as_ref().ok_or_else(|| LlmError::store(&self.folder, "is open for reading only"))
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // The index is consistent after every step, so a thread that died in it left nothing half done.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
