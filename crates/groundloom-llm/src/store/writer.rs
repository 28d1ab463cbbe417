//! The thread that appends: everything that waits is written and synced together, then told so.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, Sender, channel},
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_64;
use zstd::bulk::Compressor;

use super::{
    Stored,
    index::SEGMENT_BYTES,
    record::{HEADER, Header, Kind},
};
use crate::{error::LlmError, money::Money, request::RequestHash};

/// Encoded records that wait to be written together hold at most about so many bytes.
const BATCH_BYTES: usize = 8 << 20;

/// What is appended.
pub(super) enum Record {
    /// An answer, and the budget that paid for it; 0 for none.
    Answer { hash: RequestHash, stored: Box<Stored>, budget: u64 },
    /// See [`super::Reservation::lost`].
    Loss([u8; HEADER]),
}

struct Append {
    record: Record,
    done: Done,
}

type Done = oneshot::Sender<Result<(), LlmError>>;

/// The door to the thread. The thread ends when the door is dropped.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    queue: Sender<Append>,
}

impl Writer {
    /// Starts the thread. It appends to `adopted` (a segment locked by us, cut to its last whole record), or to new files in `folder`.
    pub fn start(folder: PathBuf, adopted: Option<(PathBuf, File)>) -> Result<Self, LlmError> {
        let (queue, appends) = channel();
        let failed = folder.clone();
        std::thread::Builder::new()
            .name("answer-store".into())
            .spawn(move || Appender { folder, current: adopted, compressor: None }.run(&appends))
            .map_err(|e| LlmError::store(failed, e))?;
        Ok(Self { queue })
    }

    /// Appends an encoded record; returns when it is on the disk.
    pub async fn append(&self, record: Record) -> Result<(), LlmError> {
        let (done, result) = oneshot::channel();
        let gone = || LlmError::Setup("the answer store's writer has ended".into());
        self.queue.send(Append { record, done }).map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }
}

struct Appender {
    folder: PathBuf,
    current: Option<(PathBuf, File)>,
    /// Making one takes longer than using it.
    compressor: Option<Compressor<'static>>,
}

impl Appender {
    fn run(&mut self, appends: &Receiver<Append>) {
        while let Ok(first) = appends.recv() {
            let (mut bytes, mut waiting) = (Vec::new(), Vec::new());
            let mut next = Some(first);
            while let Some(Append { record, done }) = next {
                match self.encode(&record, &mut bytes) {
                    Ok(()) => waiting.push(done),
                    // Whoever asked may be gone.
                    Err(error) => drop(done.send(Err(error))),
                }
                next = if bytes.len() < BATCH_BYTES { appends.try_recv().ok() } else { None };
            }
            let result = if waiting.is_empty() { Ok(()) } else { self.write(&bytes) };
            for done in waiting {
                let _ = done.send(result.clone());
            }
        }
    }

    /// Puts a record behind `bytes`.
    fn encode(&mut self, record: &Record, bytes: &mut Vec<u8>) -> Result<(), LlmError> {
        let (hash, stored, budget) = match record {
            Record::Answer { hash, stored, budget } => (*hash, stored, *budget),
            Record::Loss(record) => {
                bytes.extend_from_slice(record);
                return Ok(());
            }
        };
        let json = serde_json::to_vec(stored).map_err(|e| LlmError::store(&self.folder, e))?;
        let payload = self.compress(&json).map_err(|e| LlmError::store(&self.folder, e))?;
        let payload_len = u32::try_from(payload.len()).map_err(|e| LlmError::store(&self.folder, e))?;
        let usage = stored.usage.unwrap_or_default();
        let header = Header {
            kind: Kind::Answer,
            hash,
            budget,
            cost: if budget == 0 { Money::ZERO } else { stored.cost },
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            payload_len,
            payload_sum: xxh3_64(&payload),
        };
        bytes.extend_from_slice(&header.encode());
        bytes.extend_from_slice(&payload);
        Ok(())
    }

    /// In one piece: an encoder that is not told the length clears tables of a megabyte first, which cost more than all the rest of a call.
    fn compress(&mut self, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut compressor = self.compressor.take().map_or_else(|| Compressor::new(3), Ok)?;
        let compressed = compressor.compress(bytes);
        self.compressor = Some(compressor);
        compressed
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), LlmError> {
        let (path, file) = self.segment()?;
        let before = file.metadata().map_err(|e| LlmError::store(&*path, e))?.len();
        let written = file.write_all(bytes).and_then(|()| file.sync_data());
        if let Err(error) = written {
            // A full disk: what was half written must not stand before later records.
            let message = format!("cannot append: {error}; answers that had just arrived are lost");
            let path = path.clone();
            if file.set_len(before).is_err() {
                self.current = None;
            }
            return Err(LlmError::store(path, message));
        }
        if before + bytes.len() as u64 >= SEGMENT_BYTES {
            self.current = None;
        }
        Ok(())
    }

    fn segment(&mut self) -> Result<&mut (PathBuf, File), LlmError> {
        if self.current.is_none() {
            self.current = Some(new_segment(&self.folder)?);
        }
        self.current.as_mut().ok_or_else(|| LlmError::Setup("no segment".into()))
    }
}

fn new_segment(folder: &Path) -> Result<(PathBuf, File), LlmError> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let path = folder.join(format!("{:020}-{}.seg", since.as_nanos(), std::process::id()));
    let error = |e| LlmError::store(&path, e);
    let file = OpenOptions::new().append(true).create_new(true).open(&path).map_err(error)?;
    file.try_lock().map_err(|e| LlmError::store(&path, e))?;
    // The name itself must survive too.
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| LlmError::store(folder, e))?;
    Ok((path, file))
}

/// A segment that nobody appends to any more and that has room, locked for us.
pub(super) fn adopt(folder: &Path) -> Result<Option<(PathBuf, File)>, LlmError> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| LlmError::store(folder, e))? {
        let path = entry.map_err(|e| LlmError::store(folder, e))?.path();
        if path.extension().is_some_and(|e| e == "seg") {
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths.into_iter().rev() {
        // One that we may not write to is none for us.
        let Ok(file) = OpenOptions::new().append(true).open(&path) else { continue };
        let room = file.metadata().is_ok_and(|m| m.len() < SEGMENT_BYTES);
        if room && file.try_lock().is_ok() {
            return Ok(Some((path, file)));
        }
    }
    Ok(None)
}
