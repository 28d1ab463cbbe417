//! The record of one run: what was run, on what, how long it took, what came of it. `runs/ID/run.json` in the work folder, one per run that did any work.
//!
//! Records hold clocks and machine facts, so they stand beside the data set and never in it.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Instant, SystemTime},
};

use chrono::{DateTime, SecondsFormat, Utc};
use groundloom_data::funnel::StageCounts;
use serde::{Deserialize, Serialize};

use crate::{
    error::EngineError,
    run::{Plan, RunOptions, Summary},
    segment::{Fingerprint, kernel_class},
    telemetry::Reading,
};

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunOutcome {
    /// It works, or its process was killed and no other run has looked since.
    Running,
    /// Every sink is published.
    Finished,
    /// The user or the batch system stopped it.
    Stopped,
    /// An error ended it.
    Failed,
    /// Its process went away without a word.
    Killed,
}

/// A run, as `run.json` holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Name of the record's folder: when the run began, and its process.
    pub run: String,
    /// The pipeline's name.
    pub pipeline: String,
    /// Version of Groundloom.
    pub version: String,
    /// Class of CPU kernels.
    pub kernels: String,
    /// Devices that models computed on: `cpu`, `cuda:0`, ….
    #[serde(default)]
    pub devices: Vec<String>,
    /// The kind and model of those devices, where they are no CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<String>,
    /// Tasks at the same time.
    pub threads: usize,
    /// `--memory`, if it was set.
    pub memory_bytes: Option<usize>,
    /// When it began, UTC.
    pub started: String,
    /// When the record was written last, UTC.
    pub written: String,
    /// Seconds from its beginning to the last writing.
    pub seconds: f64,
    /// How it ended.
    pub outcome: RunOutcome,
    /// What ended it, if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its sinks.
    pub sinks: Vec<SinkRecord>,
    /// What was measured.
    pub measured: Reading,
}

/// One sink of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SinkRecord {
    /// Its name in the pipeline file.
    pub sink: String,
    /// Where the data set stands.
    pub target: String,
    /// The generation that the run works on.
    pub fingerprint: Fingerprint,
    /// Rows of the published data set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Counts per stage, in the pipeline's order; empty until it is published.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub funnel: Vec<StageCounts>,
}

/// The record of the run that works now.
#[derive(Debug)]
pub struct OpenRecord {
    path: PathBuf,
    record: RunRecord,
    started: Instant,
}

impl OpenRecord {
    /// Begins a record in the work folder, whose lock the caller holds: records of runs that are still said to work are those of dead ones.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn begin(work: &Path, plan: &Plan, options: &RunOptions) -> Result<Self, EngineError> {
        let runs = work.join("runs");
        fs::create_dir_all(&runs).map_err(|e| EngineError::io(&runs, e))?;
        sweep(&runs)?;
        for mut dead in records(work)?.into_iter().filter(|r| r.outcome == RunOutcome::Running) {
            dead.outcome = RunOutcome::Killed;
            write(&runs.join(&dead.run).join("run.json"), &dead)?;
        }
        let now = now();
        let run = format!("{}-{}", now.format("%Y%m%dT%H%M%S%.3fZ"), std::process::id());
        let sinks = plan.sinks().map(|(segment, node, sink)| SinkRecord {
            sink: plan.graph.nodes[node].name.to_string(),
            target: sink.path().to_owned(),
            fingerprint: plan.generation(segment),
            rows: None,
            funnel: Vec::new(),
        });
        let record = RunRecord {
            run: run.clone(),
            pipeline: plan.graph.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernels: kernel_class(),
            devices: plan.graph.devices.all().iter().map(ToString::to_string).collect(),
            hardware: plan.graph.devices.hardware().map(str::to_owned),
            threads: options.threads.get(),
            memory_bytes: options.memory_bytes,
            started: text(now),
            written: text(now),
            seconds: 0.0,
            outcome: RunOutcome::Running,
            error: None,
            sinks: sinks.collect(),
            measured: Reading::default(),
        };
        let folder = runs.join(run);
        fs::create_dir_all(&folder).map_err(|e| EngineError::io(&folder, e))?;
        let open = Self { path: folder.join("run.json"), record, started: Instant::now() };
        write(&open.path, &open.record)?;
        Ok(open)
    }

    /// Ends the record.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn end(mut self, outcome: &Result<Summary, EngineError>, measured: Reading) -> Result<(), EngineError> {
        self.record.measured = measured;
        self.record.seconds = self.started.elapsed().as_secs_f64();
        self.record.written = text(now());
        match outcome {
            Ok(summary) => {
                self.record.outcome = RunOutcome::Finished;
                for (sink, done) in self.record.sinks.iter_mut().zip(&summary.sinks) {
                    sink.rows = Some(done.manifest.rows);
                    sink.funnel = done.manifest.funnel.clone();
                }
            }
            Err(EngineError::Stopped) => self.record.outcome = RunOutcome::Stopped,
            Err(error) => {
                self.record.outcome = RunOutcome::Failed;
                self.record.error = Some(error.to_string());
            }
        }
        write(&self.path, &self.record)
    }
}

/// The records of a work folder, oldest first. One that was torn by a crash is left out.
///
/// # Errors
/// When the folder cannot be read.
pub fn records(work: &Path) -> Result<Vec<RunRecord>, EngineError> {
    let runs = work.join("runs");
    let items = match fs::read_dir(&runs) {
        Ok(items) => items,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(EngineError::io(&runs, e)),
    };
    let mut found = Vec::new();
    for item in items {
        let path = item.map_err(|e| EngineError::io(&runs, e))?.path().join("run.json");
        if let Ok(record) = fs::read(&path).map_err(drop).and_then(|t| serde_json::from_slice(&t).map_err(drop)) {
            found.push(record);
        }
    }
    found.sort_by(|a: &RunRecord, b| a.run.cmp(&b.run));
    Ok(found)
}

/// Whether a run of this very plan was killed, as its record says, and none has begun since. One that still works says the same of itself: only who gets the lock knows.
///
/// # Errors
/// When the records cannot be read.
pub fn was_cut(work: &Path, plan: &Plan) -> Result<bool, EngineError> {
    let generations: Vec<Fingerprint> = plan.sinks().map(|(segment, ..)| plan.generation(segment)).collect();
    let same = |record: &RunRecord| record.sinks.iter().map(|s| &s.fingerprint).eq(&generations);
    Ok(records(work)?.iter().any(|record| record.outcome == RunOutcome::Running && same(record)))
}

/// Removes what killed runs left of records that they were writing.
fn sweep(runs: &Path) -> Result<(), EngineError> {
    for item in fs::read_dir(runs).map_err(|e| EngineError::io(runs, e))? {
        let folder = item.map_err(|e| EngineError::io(runs, e))?.path();
        let temporary = temporary(&folder.join("run.json"));
        match fs::remove_file(&temporary) {
            Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(EngineError::io(&temporary, e));
            }
            // Goes only where it is empty: no record was written.
            _ => drop(fs::remove_dir(&folder)),
        }
    }
    Ok(())
}

fn temporary(path: &Path) -> PathBuf {
    path.with_extension("json.tmp")
}

fn write(path: &Path, record: &RunRecord) -> Result<(), EngineError> {
    let text = serde_json::to_vec_pretty(record).map_err(|e| EngineError::Internal(e.to_string()))?;
    let temporary = temporary(path);
    fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(&text))
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(|e| EngineError::io(path, e))
}

fn now() -> DateTime<Utc> {
    SystemTime::now().into()
}

fn text(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}
