//! Which tasks had failed rows that are tried again: kept in the work folder, so that every later run knows the same tasks.
//!
//! A retry is a task of its own beside the one it mends: it reads the same shard, but only the rows that stand in that task's quarantine, and its parts come right behind that task's.
//! What was done is not done again, and what lies downstream gets a new, small part of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use groundloom_data::row_id::file_hash;
use groundloom_formats::{Reader, Shard};
use serde::{Deserialize, Serialize};
use serde_json::json;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    error::EngineError,
    graph::Work,
    ledger::{Entry, Ledger, PartKind, sync_folder},
    quarantine,
    run::{Plan, PlannedTask, TaskInput, shard_identity},
    segment::{Base, Fingerprint, SegmentWork},
};

/// Name of the file in the work folder.
const FILE: &str = "retries.json";

/// The retries of a pipeline's tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retries {
    /// By the task as the listing of the inputs gives it.
    tasks: BTreeMap<Fingerprint, Retried>,
}

/// A task whose failed rows were tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Retried {
    /// The task that stands for it: itself, or one over the same files before some of them were mended.
    stands: Fingerprint,
    /// The retries, each over the quarantine of the one before.
    rounds: Vec<Fingerprint>,
}

/// What a retry sets out to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Prepared {
    /// Rows that are tried again.
    pub rows: u64,
    /// Tasks that do it.
    pub tasks: usize,
}

impl Retries {
    /// Reads the retries of a work folder; none where there is no file.
    ///
    /// # Errors
    /// [`EngineError::Damaged`] when the file cannot be understood.
    pub fn read(work: &Path) -> Result<Self, EngineError> {
        let path = work.join(FILE);
        match fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).map_err(|e| EngineError::Damaged { path, message: e.to_string() })
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(EngineError::io(path, e)),
        }
    }

    /// Replaces the file, whole.
    fn write(&self, work: &Path) -> Result<(), EngineError> {
        let path = work.join(FILE);
        let next = work.join(format!("{FILE}.tmp"));
        let text = serde_json::to_vec_pretty(self).map_err(|e| EngineError::Internal(e.to_string()))?;
        File::create(&next)
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&next, &path))
            .map_err(|e| EngineError::io(&path, e))?;
        sync_folder(work)
    }

    /// A planned task with the retries that mend it behind it.
    pub(crate) fn expand(&self, planned: PlannedTask) -> Vec<PlannedTask> {
        let Some(retried) = self.tasks.get(&planned.listed) else { return vec![planned] };
        let mut all = vec![PlannedTask { task: retried.stands.clone(), ..planned.clone() }];
        let mut before = &retried.stands;
        for round in &retried.rounds {
            all.push(PlannedTask { task: round.clone(), again: Some(before.clone()), ..planned.clone() });
            before = round;
        }
        all
    }
}

/// The files of a shard with their versions, 16 hexadecimal digits each, where its rows' ids tell which file a row is from; else empty.
pub(crate) fn file_versions(shard: &Shard) -> String {
    shard
        .files
        .iter()
        .map(|f| {
            let version = json!([f.size, f.version, f.range.as_ref().map(|r| [r.start, r.end])]);
            format!("{:016x}", xxh3_64(version.to_string().as_bytes()))
        })
        .collect()
}

/// Sets out to try again every row that stands in the quarantine of a finished task of `plan`; the next run over a plan made anew does it.
///
/// A task whose inputs changed is done again in whole by any run. But where only files of failed rows changed, the old task stands, and only these rows are tried.
///
/// # Errors
/// When the ledger cannot be read or the list not be written; [`EngineError::Locked`] when a run is under way.
pub fn prepare(plan: &Plan) -> Result<Prepared, EngineError> {
    let targets = plan.targets()?;
    let Some(work) = targets.first().map(|t| t.work().to_owned()) else { return Ok(Prepared::default()) };
    let _locks = targets.iter().map(crate::generation::Target::lock).collect::<Result<Vec<_>, _>>()?;
    let before = Retries::read(&work)?;
    // Records of inputs that are gone are left out.
    let mut retries = Retries::default();
    let mut prepared = Prepared::default();
    for (segment, tasks) in plan.segments.all.iter().zip(&plan.tasks) {
        let SegmentWork::Rows { base, .. } = &segment.work else { continue };
        let ledger = Ledger::existing(&work, &segment.fingerprint);
        let mut old: Option<BTreeMap<String, Vec<Entry>>> = None;
        for (i, planned) in tasks.iter().enumerate() {
            // The last round of each task decides.
            if tasks.get(i + 1).is_some_and(|next| next.listed == planned.listed) {
                continue;
            }
            let mut retried = before.tasks.get(&planned.listed).cloned();
            let mut entry = ledger.peek(&planned.task);
            if entry.is_none()
                && retried.is_none()
                && let (Base::Source(source), TaskInput::Shard(shard)) = (base, &planned.input)
                && let Work::Source { source, discovery } = &plan.graph.nodes[*source].work
                && source.key().is_none()
                && matches!(discovery.reader, Reader::Rows(_))
            {
                let old = match &mut old {
                    Some(old) => old,
                    none => none.insert(by_shard(&ledger)?),
                };
                let entries = old.get(&shard.id).map(Vec::as_slice).unwrap_or_default();
                entry = entries.iter().find(|e| only_failed_files_changed(&ledger, e, shard)).cloned();
            }
            if let Some(entry) = entry.filter(|e| e.rows(PartKind::Quarantine) > 0) {
                let shard = match &planned.input {
                    TaskInput::Shard(shard) => Some(shard_identity(shard)),
                    _ => None,
                };
                let round = Fingerprint::of(&json!({ "again": entry.task, "shard": shard }));
                prepared.rows += entry.rows(PartKind::Quarantine);
                prepared.tasks += 1;
                retried.get_or_insert(Retried { stands: entry.task.clone(), rounds: Vec::new() }).rounds.push(round);
            }
            if let Some(retried) = retried {
                retries.tasks.insert(planned.listed.clone(), retried);
            }
        }
    }
    if retries != before {
        retries.write(&work)?;
    }
    Ok(prepared)
}

/// The entries of a ledger that say which files they read, by shard.
fn by_shard(ledger: &Ledger) -> Result<BTreeMap<String, Vec<Entry>>, EngineError> {
    let mut all: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
    for entry in ledger.all()? {
        if let Some((shard, _)) = entry.files.split_once(':').filter(|_| entry.again.is_none()) {
            all.entry(shard.to_owned()).or_default().push(entry);
        }
    }
    Ok(all)
}

/// Whether the entry read the same files, those that changed since have only failed rows, and at least one changed.
fn only_failed_files_changed(ledger: &Ledger, entry: &Entry, shard: &Shard) -> bool {
    let Some((_, was)) = entry.files.split_once(':') else { return false };
    let is = file_versions(shard);
    if was.len() != is.len() {
        return false;
    }
    let changed: BTreeSet<String> = shard
        .files
        .iter()
        .zip(was.as_bytes().chunks(16).zip(is.as_bytes().chunks(16)))
        .filter(|(_, (was, is))| was != is)
        .map(|(file, _)| format!("{:016x}", file_hash(&file.path)))
        .collect();
    let from_changed = |kind: PartKind| -> Option<usize> {
        let Some(part) = entry.part(kind) else { return Some(0) };
        let ids = quarantine::row_ids(&ledger.part_path(part)).ok()?;
        Some(ids.iter().filter(|id| id.get(..16).is_some_and(|file| changed.contains(file))).count())
    };
    // A part in another format than Parquet cannot be asked; its ids are listed beside it.
    let data = if entry.part(PartKind::Kept).is_some() { PartKind::Kept } else { PartKind::Data };
    !changed.is_empty()
        && [data, PartKind::Rejected, PartKind::Dropped].into_iter().all(|kind| from_changed(kind) == Some(0))
        && from_changed(PartKind::Quarantine).is_some_and(|rows| rows > 0)
}
