//! What a model of the pool has done.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::Device;

/// A reading of one model's counters. Times are sums over batches; nothing of this is data-set bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModelMetrics {
    /// The model's key in the pool.
    pub model: String,
    /// Batches submitted and not yet answered: waiting for a place in the queue, in it, or being computed.
    pub waiting: u64,
    /// Items answered, failed ones included.
    pub items: u64,
    /// Items answered with an error.
    pub failed: u64,
    /// Items whose caller had gone before a thread took them.
    pub cancelled: u64,
    /// Batches computed.
    pub batches: u64,
    /// Time that threads spent computing.
    pub busy: Duration,
    /// Time that batches spent waiting for a thread.
    pub wait: Duration,
    /// How often its weights were loaded.
    pub loads: u64,
    /// Bytes of its weights while they are loaded, on all devices together, else 0.
    pub weights_bytes: u64,
    /// How often a batch did not fit into its device's memory and was computed in halves, or a single item alone.
    pub did_not_fit: u64,
    /// Where it computes, or did last.
    pub devices: Vec<Device>,
}

#[derive(Debug, Default)]
pub(super) struct Meter {
    model: String,
    waiting: AtomicU64,
    items: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
    batches: AtomicU64,
    busy_ns: AtomicU64,
    wait_ns: AtomicU64,
    loads: AtomicU64,
    weights_bytes: AtomicU64,
    did_not_fit: AtomicU64,
    devices: Mutex<Vec<Device>>,
}

/// Counts one batch as waiting for as long as it lives.
pub(super) struct Waiting(Arc<Meter>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

impl Meter {
    pub(super) fn new(model: &str) -> Self {
        Self { model: model.to_owned(), ..Self::default() }
    }

    pub(super) fn waiting(self: &Arc<Self>) -> Waiting {
        self.waiting.fetch_add(1, Relaxed);
        Waiting(self.clone())
    }

    pub(super) fn cancelled(&self, items: usize) {
        self.cancelled.fetch_add(items as u64, Relaxed);
    }

    pub(super) fn done(&self, items: usize, failed: usize, wait: Duration, busy: Duration) {
        self.items.fetch_add(items as u64, Relaxed);
        self.failed.fetch_add(failed as u64, Relaxed);
        self.batches.fetch_add(1, Relaxed);
        self.wait_ns.fetch_add(wait.as_nanos() as u64, Relaxed);
        self.busy_ns.fetch_add(busy.as_nanos() as u64, Relaxed);
    }

    pub(super) fn did_not_fit(&self) {
        self.did_not_fit.fetch_add(1, Relaxed);
    }

    pub(super) fn loaded(&self, weights_bytes: u64, devices: &[Device]) {
        *self.devices.lock().unwrap_or_else(PoisonError::into_inner) = devices.to_vec();
        self.loads.fetch_add(1, Relaxed);
        self.weights_bytes.store(weights_bytes, Relaxed);
    }

    pub(super) fn given_back(&self) {
        self.weights_bytes.store(0, Relaxed);
    }

    pub(super) fn read(&self) -> ModelMetrics {
        ModelMetrics {
            model: self.model.clone(),
            waiting: self.waiting.load(Relaxed),
            items: self.items.load(Relaxed),
            failed: self.failed.load(Relaxed),
            cancelled: self.cancelled.load(Relaxed),
            batches: self.batches.load(Relaxed),
            busy: Duration::from_nanos(self.busy_ns.load(Relaxed)),
            wait: Duration::from_nanos(self.wait_ns.load(Relaxed)),
            loads: self.loads.load(Relaxed),
            weights_bytes: self.weights_bytes.load(Relaxed),
            did_not_fit: self.did_not_fit.load(Relaxed),
            devices: self.devices.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}
