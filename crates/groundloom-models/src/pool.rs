//! The pool: every model of the process, each loaded once, on threads of its own.
//!
//! Async code hands in a *window* of items and awaits one answer per item. The queue of a model is bounded, so a fast
//! reader waits instead of filling memory. What is computed together is decided by the window alone ([`Work::batch`]),
//! never by who else is asking, so answers do not depend on timing. An item that panics is answered with an error and
//! no other item notices. Under a budget for weights ([`ModelPool::within`]) models that nobody uses are given back.
//!
//! On several devices ([`ModelPool::on`]) a model is there once on each, and its batches go to whichever is idle: devices of
//! one pool are alike, so that it does not matter which it is.
//!
//! A batch that does not fit into its device's memory is computed in halves, and no later one of the model is larger than
//! what did fit. Only an item that does not fit while nothing else of its model is computed is answered with
//! [`ModelError::DeviceMemory`].

mod detection;
mod embedding;
mod metrics;

use std::{
    any::Any,
    collections::{BTreeMap, HashMap},
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use tokio::sync::{OnceCell, mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use crate::{Device, Devices, ModelError};
pub use detection::{DetectRequest, DetectorWork};
pub use embedding::{EmbedRequest, EmbedderWork};
use metrics::Meter;
pub use metrics::ModelMetrics;

/// What a model does with items. One value is shared by all of the model's threads.
pub trait Work: Send + Sync + 'static {
    /// What goes in.
    type Item: Send + 'static;
    /// What comes out.
    type Output: Send + 'static;

    /// Most items of one [`Work::run`]. A window is cut into consecutive batches of this size, which idle threads
    /// share. For work whose last bits depend on what is computed together, this size is part of a run's fingerprint.
    /// Where a device has no memory for so many, fewer are computed together.
    fn batch(&self) -> NonZeroUsize {
        NonZeroUsize::MIN
    }

    /// Bytes that the model's weights take while it is loaded, by which the pool decides what may stay.
    fn weights_bytes(&self) -> u64 {
        0
    }

    /// Whether it computes on the CPU, whatever device it was loaded for: then one of it is enough.
    fn stays_on_cpu(&self) -> bool {
        false
    }

    /// Answers `items` one for one, in order. Blocking and long computation are fine: this runs on the pool's own
    /// threads.
    fn run(&self, items: &[Self::Item]) -> Vec<Result<Self::Output, ModelError>>;
}

/// Batches that wait for a thread, per thread: enough to keep it busy, few enough to bound memory.
const QUEUE_PER_THREAD: usize = 4;

struct Batch<W: Work> {
    items: Vec<W::Item>,
    queued: Instant,
    reply: oneshot::Sender<Answers<W>>,
}

/// The models of this process.
pub struct ModelPool {
    threads: NonZeroUsize,
    devices: Devices,
    budget: Option<u64>,
    models: Mutex<Models>,
}

#[derive(Default)]
struct Models {
    slots: HashMap<String, Slot>,
    /// Of models that were given back too.
    meters: BTreeMap<String, Arc<Meter>>,
    /// Counts the askings.
    clock: u64,
}

/// A key of the pool.
#[derive(Clone)]
struct Slot {
    /// `OnceCell<PooledModel<W>>` behind `Any`, so that models of any work live in one map.
    cell: Arc<dyn Any + Send + Sync>,
    /// The same model once it is loaded.
    loaded: Arc<OnceLock<Weak<dyn Loaded>>>,
    meter: Arc<Meter>,
    /// When it was asked for last, by the pool's clock.
    asked: u64,
}

/// What can be asked of any loaded model.
trait Loaded: Send + Sync {
    fn weights_bytes(&self) -> u64;
}

impl Slot {
    /// Bytes of its weights, while they are loaded.
    fn bytes(&self) -> u64 {
        self.loaded.get().and_then(Weak::upgrade).map_or(0, |model| model.weights_bytes())
    }

    /// Whether it is loaded and nobody but the pool holds it.
    fn is_idle(&self) -> bool {
        let only_the_pool = |model: &Weak<dyn Loaded>| model.strong_count() == 1 && Arc::strong_count(&self.cell) == 1;
        self.loaded.get().is_some_and(only_the_pool)
    }
}

impl ModelPool {
    /// A pool whose models run on `threads` threads each, and on the CPU.
    pub fn new(threads: NonZeroUsize) -> Self {
        Self { threads, devices: Devices::default(), budget: None, models: Mutex::default() }
    }

    /// The same pool with models on `devices`. Their threads serve the devices in turn; there is at least one for each.
    #[must_use]
    pub fn on(self, devices: Devices) -> Self {
        Self { devices, ..self }
    }

    /// The same pool with a limit on weights: when all that is loaded takes more than `bytes`, models that nobody holds
    /// are given back, the one that was not asked for longest first. They load again when they are asked for.
    /// What is held stays, whatever it takes.
    #[must_use]
    pub fn within(self, bytes: Option<u64>) -> Self {
        Self { budget: bytes, ..self }
    }

    /// The model under `key`, which computes on the CPU. The first caller loads it with `load`, on a thread where blocking
    /// is allowed; others wait for that. After a failed load the next caller tries again. Needs a tokio runtime.
    ///
    /// # Errors
    /// What `load` says, [`ModelError::KeyTaken`] where `key` holds a model of other work, [`ModelError::NoThread`].
    pub async fn get<W, F>(&self, key: &str, load: F) -> Result<PooledModel<W>, ModelError>
    where
        W: Work,
        F: FnOnce() -> Result<W, ModelError> + Send + 'static,
    {
        self.loaded(key, move || load().map(|work| vec![(Device::Cpu, work)])).await
    }

    /// As [`ModelPool::get`], on the pool's devices: `load` is asked for a replica on each.
    ///
    /// # Errors
    /// As [`ModelPool::get`].
    pub async fn get_on_devices<W, F>(&self, key: &str, load: F) -> Result<PooledModel<W>, ModelError>
    where
        W: Work,
        F: Fn(Device) -> Result<W, ModelError> + Send + 'static,
    {
        let devices = self.devices.clone();
        let replicas = move || {
            let mut replicas = Vec::with_capacity(devices.all().len());
            for &device in devices.all() {
                let replica = load(device)?;
                if replica.stays_on_cpu() {
                    return Ok(vec![(Device::Cpu, replica)]);
                }
                replicas.push((device, replica));
            }
            Ok(replicas)
        };
        self.loaded(key, replicas).await
    }

    async fn loaded<W, F>(&self, key: &str, load: F) -> Result<PooledModel<W>, ModelError>
    where
        W: Work,
        F: FnOnce() -> Result<Vec<(Device, W)>, ModelError> + Send + 'static,
    {
        let Slot { cell, loaded, meter, .. } = self.slot::<W>(key);
        let cell =
            cell.downcast::<OnceCell<PooledModel<W>>>().map_err(|_| ModelError::KeyTaken { key: key.to_owned() })?;
        let start = || async {
            let replicas = tokio::task::spawn_blocking(move || catch_unwind(AssertUnwindSafe(load))).await;
            let replicas = match replicas {
                Ok(Ok(replicas)) => replicas?,
                Ok(Err(panic)) => {
                    return Err(ModelError::Panicked { model: key.to_owned(), message: message_of(&*panic) });
                }
                Err(_) => return Err(ModelError::ShutDown { model: key.to_owned() }),
            };
            let (devices, replicas): (Vec<Device>, Vec<W>) = replicas.into_iter().unzip();
            tracing::debug!(model = key, threads = self.threads, ?devices, "model loaded");
            let model = PooledModel::start(key, replicas, self.threads, meter.clone())?;
            meter.loaded(model.inner.weights_bytes(), &devices);
            let inner: Arc<dyn Loaded> = model.inner.clone();
            let _ = loaded.set(Arc::downgrade(&inner));
            Ok(model)
        };
        let model = cell.get_or_try_init(start).await.cloned()?;
        drop(self.surplus());
        Ok(model)
    }

    /// The slot of `key`, made where there is none.
    fn slot<W: Work>(&self, key: &str) -> Slot {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        models.clock += 1;
        let asked = models.clock;
        let meter = models.meters.entry(key.to_owned()).or_insert_with(|| Arc::new(Meter::new(key))).clone();
        let slot = models.slots.entry(key.to_owned()).or_insert_with(|| Slot {
            cell: Arc::new(OnceCell::<PooledModel<W>>::new()),
            loaded: Arc::default(),
            meter,
            asked,
        });
        slot.asked = asked;
        slot.clone()
    }

    /// Takes idle models out until the rest is within the budget.
    fn surplus(&self) -> Vec<Slot> {
        let Some(budget) = self.budget else { return Vec::new() };
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        let mut loaded: u64 = models.slots.values().map(Slot::bytes).sum();
        let mut surplus = Vec::new();
        while loaded > budget {
            let idle = models.slots.iter().filter(|(_, slot)| slot.is_idle());
            let Some(key) = idle.min_by_key(|(_, slot)| slot.asked).map(|(key, _)| key.clone()) else { break };
            surplus.extend(models.slots.remove(&key).inspect(|slot| {
                loaded -= slot.bytes();
                slot.meter.given_back();
                tracing::debug!(model = key, "given back to stay within the budget for weights");
            }));
        }
        surplus
    }

    /// What every model has done so far, by key.
    pub fn metrics(&self) -> Vec<ModelMetrics> {
        let models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        models.meters.values().map(|meter| meter.read()).collect()
    }
}

/// A handle to a model of the pool; clones share the model. When the pool and all handles are gone, its threads end.
pub struct PooledModel<W: Work> {
    inner: Arc<Inner<W>>,
}

struct Inner<W: Work> {
    key: Arc<str>,
    /// At least one.
    replicas: Vec<Arc<W>>,
    queue: mpsc::Sender<Batch<W>>,
    room: Arc<Room>,
    meter: Arc<Meter>,
}

/// What the devices of a model have memory for.
struct Room {
    /// Most items computed together.
    batch: AtomicUsize,
    /// Held for reading by each thread that computes; for writing by one whose item did not fit beside the others.
    computing: RwLock<()>,
}

impl Room {
    fn of(batch: NonZeroUsize) -> Self {
        Self { batch: AtomicUsize::new(batch.get()), computing: RwLock::new(()) }
    }

    /// Never 0.
    fn batch(&self) -> usize {
        self.batch.load(Relaxed)
    }

    /// Notes that so many items did not fit.
    fn halve(&self, items: usize) {
        self.batch.fetch_min(items.div_ceil(2), Relaxed);
    }
}

impl<W: Work> Loaded for Inner<W> {
    fn weights_bytes(&self) -> u64 {
        self.replicas.iter().map(|replica| replica.weights_bytes()).sum()
    }
}

impl<W: Work> Clone for PooledModel<W> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<W: Work> PooledModel<W> {
    fn start(key: &str, replicas: Vec<W>, threads: NonZeroUsize, meter: Arc<Meter>) -> Result<Self, ModelError> {
        let threads = threads.get().max(replicas.len());
        let (queue, batches) = mpsc::channel(threads * QUEUE_PER_THREAD);
        let (key, replicas): (Arc<str>, Vec<Arc<W>>) = (key.into(), replicas.into_iter().map(Arc::new).collect());
        let batches = Arc::new(Mutex::new(batches));
        // There is at least one.
        let room = Arc::new(Room::of(replicas[0].batch()));
        for (thread, work) in replicas.iter().cycle().take(threads).enumerate() {
            let worker = Worker {
                key: key.clone(),
                work: work.clone(),
                batches: batches.clone(),
                room: room.clone(),
                meter: meter.clone(),
            };
            std::thread::Builder::new()
                .name(format!("{key}-{thread}"))
                .spawn(move || worker.run())
                .map_err(|e| ModelError::NoThread { model: key.to_string(), reason: e.to_string() })?;
        }
        Ok(Self { inner: Arc::new(Inner { key, replicas, queue, room, meter }) })
    }

    /// The model itself, for what needs no thread of its own (names, labels).
    pub fn work(&self) -> &W {
        // There is at least one.
        &self.inner.replicas[0]
    }

    /// Answers a window of items, in order. Waits while the queue is full. Dropping the future withdraws what no
    /// thread has begun. Needs a tokio runtime.
    ///
    /// A future that is made but not polled takes no place in the queue from one that is: the wait happens in a task
    /// of its own.
    pub async fn submit(&self, items: Vec<W::Item>) -> Vec<Result<W::Output, ModelError>> {
        let expected = items.len();
        let Inner { key, queue, room, meter, .. } = &*self.inner;
        let shut_down = || (0..expected).map(|_| Err(ModelError::ShutDown { model: key.to_string() })).collect();
        let window = Self::enqueue(queue.clone(), meter.clone(), room.batch(), items);
        AbortOnDropHandle::new(tokio::spawn(window)).await.ok().flatten().unwrap_or_else(shut_down)
    }

    /// `None` when the model's threads are gone.
    async fn enqueue(
        queue: mpsc::Sender<Batch<W>>,
        meter: Arc<Meter>,
        size: usize,
        items: Vec<W::Item>,
    ) -> Option<Vec<Result<W::Output, ModelError>>> {
        let mut answers = Vec::with_capacity(items.len());
        let mut replies = Vec::with_capacity(items.len().div_ceil(size));
        let mut items = items.into_iter();
        loop {
            let items: Vec<W::Item> = items.by_ref().take(size).collect();
            if items.is_empty() {
                break;
            }
            let (reply, answer) = oneshot::channel();
            let waiting = meter.waiting();
            queue.send(Batch { items, queued: Instant::now(), reply }).await.ok()?;
            replies.push((waiting, answer));
        }
        for (_waiting, answer) in replies {
            answers.extend(answer.await.ok()?);
        }
        Some(answers)
    }
}

/// One thread of a model.
struct Worker<W: Work> {
    key: Arc<str>,
    work: Arc<W>,
    batches: Arc<Mutex<mpsc::Receiver<Batch<W>>>>,
    room: Arc<Room>,
    meter: Arc<Meter>,
}

impl<W: Work> Worker<W> {
    fn run(self) {
        loop {
            // The lock is held while waiting: one idle thread waits for the queue, the others for the lock.
            let next = self.batches.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
            let Some(Batch { items, queued, reply }) = next else { return };
            if reply.is_closed() {
                self.meter.cancelled(items.len());
                continue;
            }
            let begun = Instant::now();
            let answers = self.answer(&items);
            let failed = answers.iter().filter(|answer| answer.is_err()).count();
            self.meter.done(items.len(), failed, begun - queued, begun.elapsed());
            // The caller may have gone meanwhile.
            let _ = reply.send(answers);
        }
    }

    /// Runs a batch: in halves where the device has no memory for it, and when it panics each of its items by itself, so
    /// that only the culprit fails.
    fn answer(&self, items: &[W::Item]) -> Answers<W> {
        let mut answers = Vec::with_capacity(items.len());
        while let rest @ [_, ..] = &items[answers.len()..] {
            // Since it was queued an earlier one may not have fitted.
            answers.extend(self.answer_together(&rest[..rest.len().min(self.room.batch())]));
        }
        answers
    }

    fn answer_together(&self, items: &[W::Item]) -> Answers<W> {
        let computing = self.room.computing.read().unwrap_or_else(PoisonError::into_inner);
        let answers = self.attempt(items);
        drop(computing);
        match answers {
            Ok(answers) if answers.iter().any(is_out_of_memory) => {
                self.meter.did_not_fit();
                if items.len() == 1 {
                    let _alone = self.room.computing.write().unwrap_or_else(PoisonError::into_inner);
                    self.attempt(items).unwrap_or_else(|error| vec![Err(error)])
                } else {
                    self.room.halve(items.len());
                    tracing::warn!(model = &*self.key, items = items.len(), "the device has no memory for a batch");
                    self.answer(items)
                }
            }
            Ok(answers) => answers,
            Err(error) if items.len() == 1 => vec![Err(error)],
            Err(_) => items.chunks(1).flat_map(|item| self.answer_together(item)).collect(),
        }
    }

    fn attempt(&self, items: &[W::Item]) -> Result<Answers<W>, ModelError> {
        let model = || self.key.to_string();
        let answers = catch_unwind(AssertUnwindSafe(|| self.work.run(items)))
            .map_err(|panic| ModelError::Panicked { model: model(), message: message_of(&*panic) })?;
        if answers.len() == items.len() {
            Ok(answers)
        } else {
            Err(ModelError::WrongAnswerCount { model: model(), expected: items.len(), found: answers.len() })
        }
    }
}

/// One for each item of a batch.
type Answers<W> = Vec<Result<<W as Work>::Output, ModelError>>;

fn is_out_of_memory<T>(answer: &Result<T, ModelError>) -> bool {
    matches!(answer, Err(ModelError::DeviceMemory { .. }))
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests;
