//! What a run measures about itself while it works: rates, times, queues. Nothing of it is data-set bytes.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use groundloom_models::{ModelMetrics, ModelPool};
use serde::{Deserialize, Serialize};

use crate::ledger::{Entry, PartKind};

/// The meters of one run. Cheap to share; read at any time.
#[derive(Default)]
pub struct Telemetry {
    stages: Mutex<BTreeMap<Arc<str>, Arc<StageMeter>>>,
    tasks: AtomicU64,
    tasks_reused: AtomicU64,
    tasks_done: AtomicU64,
    rows_read: AtomicU64,
    rows_kept: AtomicU64,
    quarantined: Mutex<BTreeMap<String, u64>>,
    models: Mutex<Option<Arc<ModelPool>>>,
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.read().fmt(f)
    }
}

/// The meter of one stage, over all of its tasks.
#[derive(Debug, Default)]
pub struct StageMeter {
    rows: AtomicU64,
    busy_ns: AtomicU64,
    windows: AtomicU64,
    in_flight: AtomicU64,
}

/// A window that a stage works on; it counts as in flight until it is dropped.
#[derive(Debug)]
pub struct OpenWindow<'a> {
    meter: &'a StageMeter,
    started: Instant,
    rows: u64,
}

impl StageMeter {
    /// Starts a window of `rows` rows.
    pub fn window(&self, rows: u64) -> OpenWindow<'_> {
        self.in_flight.fetch_add(1, Relaxed);
        OpenWindow { meter: self, started: Instant::now(), rows }
    }
}

impl OpenWindow<'_> {
    /// Ends a window whose rows are done.
    pub fn done(self) {
        self.meter.rows.fetch_add(self.rows, Relaxed);
        self.meter.windows.fetch_add(1, Relaxed);
        self.meter.busy_ns.fetch_add(self.started.elapsed().as_nanos() as u64, Relaxed);
    }
}

impl Drop for OpenWindow<'_> {
    fn drop(&mut self) {
        self.meter.in_flight.fetch_sub(1, Relaxed);
    }
}

/// A reading of one stage's meter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageTiming {
    /// The stage's name in the pipeline file.
    pub stage: String,
    /// Rows that it worked on in this run, those of attempts that were lost included.
    pub rows: u64,
    /// Windows of rows that it finished.
    pub windows: u64,
    /// Seconds from a window's start to its end, added up over windows that may have run side by side: waiting for models is part of it.
    pub seconds: f64,
    /// Windows under way at this moment: the depth of its queue.
    pub in_flight: u64,
}

/// A reading of one model of the pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelTiming {
    /// The model.
    pub model: String,
    /// Batches submitted and not answered yet.
    pub waiting: u64,
    /// Items answered.
    pub items: u64,
    /// Items answered with an error.
    pub failed: u64,
    /// Batches computed; `items / batches` is the batch fill.
    pub batches: u64,
    /// Seconds that its threads computed.
    pub busy_seconds: f64,
    /// Seconds that batches waited for a thread.
    pub wait_seconds: f64,
    /// How often its weights were loaded: under a memory limit, models that no stage uses any more are given back.
    #[serde(default)]
    pub loads: u64,
    /// Bytes of its weights while they are loaded.
    #[serde(default)]
    pub weights_bytes: u64,
    /// How often a batch did not fit into its device's memory and was computed in halves.
    #[serde(default)]
    pub did_not_fit: u64,
    /// Where it computes, or did last: `cpu`, `cuda:0`, ….
    #[serde(default)]
    pub devices: Vec<String>,
}

impl From<ModelMetrics> for ModelTiming {
    fn from(m: ModelMetrics) -> Self {
        Self {
            model: m.model,
            waiting: m.waiting,
            items: m.items,
            failed: m.failed,
            batches: m.batches,
            busy_seconds: m.busy.as_secs_f64(),
            wait_seconds: m.wait.as_secs_f64(),
            loads: m.loads,
            weights_bytes: m.weights_bytes,
            did_not_fit: m.did_not_fit,
            devices: m.devices.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Everything that is measured, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// Tasks of the plan.
    pub tasks: u64,
    /// Tasks that an earlier run had committed.
    pub tasks_reused: u64,
    /// Tasks committed by this run.
    pub tasks_done: u64,
    /// Rows read from sources by this run.
    pub rows_read: u64,
    /// Good rows in committed parts of this run, those that stay inside the run included.
    pub rows_kept: u64,
    /// Failed rows in committed tasks of this run, by code.
    pub quarantined: BTreeMap<String, u64>,
    /// Per stage, by name.
    pub stages: Vec<StageTiming>,
    /// Per model of the pool.
    pub models: Vec<ModelTiming>,
}

impl Telemetry {
    /// The meter of a stage.
    pub fn stage(&self, name: &Arc<str>) -> Arc<StageMeter> {
        Arc::clone(lock(&self.stages).entry(Arc::clone(name)).or_default())
    }

    pub(crate) fn watch(&self, models: &Arc<ModelPool>) {
        *lock(&self.models) = Some(Arc::clone(models));
    }

    pub(crate) fn planned(&self, tasks: usize, reused: usize) {
        self.tasks.store(tasks as u64, Relaxed);
        self.tasks_reused.store(reused as u64, Relaxed);
    }

    pub(crate) fn committed(&self, entry: &Entry, from_source: bool) {
        self.tasks_done.fetch_add(1, Relaxed);
        if from_source {
            self.rows_read.fetch_add(entry.rows_in, Relaxed);
        }
        self.rows_kept.fetch_add(entry.rows(PartKind::Data), Relaxed);
        let mut quarantined = lock(&self.quarantined);
        for (code, n) in entry.counts.iter().flat_map(|c| &c.failed) {
            *quarantined.entry(code.clone()).or_default() += n;
        }
    }

    /// What the meters show now.
    pub fn read(&self) -> Reading {
        let stages = lock(&self.stages)
            .iter()
            .map(|(name, m)| StageTiming {
                stage: name.to_string(),
                rows: m.rows.load(Relaxed),
                windows: m.windows.load(Relaxed),
                seconds: Duration::from_nanos(m.busy_ns.load(Relaxed)).as_secs_f64(),
                in_flight: m.in_flight.load(Relaxed),
            })
            .collect();
        let models = lock(&self.models).as_ref().map(|pool| pool.metrics()).unwrap_or_default();
        Reading {
            tasks: self.tasks.load(Relaxed),
            tasks_reused: self.tasks_reused.load(Relaxed),
            tasks_done: self.tasks_done.load(Relaxed),
            rows_read: self.rows_read.load(Relaxed),
            rows_kept: self.rows_kept.load(Relaxed),
            quarantined: lock(&self.quarantined).clone(),
            stages,
            models: models.into_iter().map(ModelTiming::from).collect(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A poisoned lock means a panic elsewhere, which ends the run anyway: readings stay usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
