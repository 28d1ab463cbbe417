#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::{
    Barrier,
    atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    mpsc as std_mpsc,
};

use super::*;

/// Squares numbers, in batches of `batch`; panics on 13, fails on 7.
struct Squares {
    batch: usize,
    calls: AtomicUsize,
}

impl Squares {
    fn of(batch: usize) -> Self {
        Self { batch, calls: AtomicUsize::new(0) }
    }
}

fn refused() -> ModelError {
    ModelError::BadOption { option: "seven", found: 7.0 }
}

impl Work for Squares {
    type Item = u64;
    type Output = (u64, usize);

    fn batch(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.batch).unwrap()
    }

    fn run(&self, items: &[u64]) -> Vec<Result<(u64, usize), ModelError>> {
        self.calls.fetch_add(1, SeqCst);
        let answer = |&item: &u64| match item {
            7 => Err(refused()),
            13 => panic!("unlucky {item}"),
            _ => Ok((item * item, items.len())),
        };
        items.iter().map(answer).collect()
    }
}

fn pool(threads: usize) -> ModelPool {
    ModelPool::new(NonZeroUsize::new(threads).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_come_in_order_one_for_one() {
    let model = pool(3).get("squares", || Ok(Squares::of(4))).await.unwrap();
    let windows: Vec<_> = (0..20_u64)
        .map(|w| {
            tokio::spawn({
                let model = model.clone();
                async move { model.submit((w * 100 + 20..w * 100 + 30).collect()).await }
            })
        })
        .collect();
    for (w, window) in windows.into_iter().enumerate() {
        let answers = window.await.unwrap();
        // Ten items in batches of four: the batches are 4, 4 and 2 whoever else is asking.
        for (i, answer) in answers.into_iter().enumerate() {
            let item = (w * 100 + 20 + i) as u64;
            assert_eq!(answer.unwrap(), (item * item, if i < 8 { 4 } else { 2 }));
        }
    }
    assert!(model.submit(Vec::new()).await.is_empty());
}

/// Says on which device it is, once as many batches are computed as there are devices.
struct Replica {
    device: Device,
    together: Arc<Barrier>,
    alone: bool,
}

impl Work for Replica {
    type Item = u64;
    type Output = (u64, Device);

    fn weights_bytes(&self) -> u64 {
        10
    }

    fn stays_on_cpu(&self) -> bool {
        self.alone
    }

    fn run(&self, items: &[u64]) -> Vec<Result<(u64, Device), ModelError>> {
        self.together.wait();
        items.iter().map(|item| Ok((item * item, self.device))).collect()
    }
}

fn two_gpus() -> Devices {
    Devices::of(vec![Device::Cuda(0), Device::Cuda(1)], vec!["cuda (A)".to_owned(); 2]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_device_has_a_replica_and_answers_come_in_order() {
    // Fewer threads than devices are not enough.
    for threads in [1, 2] {
        let (pool, together) = (pool(threads).on(two_gpus()), Arc::new(Barrier::new(2)));
        let load = move |device| Ok(Replica { device, together: together.clone(), alone: false });
        let model = pool.get_on_devices("m", load).await.unwrap();
        let answers = model.submit((0..6).collect()).await;
        let answers: Vec<(u64, Device)> = answers.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers.iter().map(|answer| answer.0).collect::<Vec<_>>(), [0, 1, 4, 9, 16, 25]);
        // Two at a time, of which neither can end without the other.
        for device in two_gpus().all() {
            assert_eq!(answers.iter().filter(|answer| answer.1 == *device).count(), 3);
        }
        let metrics = pool.metrics();
        assert_eq!((metrics[0].weights_bytes, metrics[0].devices.as_slice()), (20, two_gpus().all()));
    }
}

#[tokio::test]
async fn work_of_the_cpu_is_loaded_once() {
    let (pool, loads) = (pool(2).on(two_gpus()), Arc::new(AtomicUsize::new(0)));
    let counted = loads.clone();
    let load = move |device| {
        counted.fetch_add(1, SeqCst);
        Ok(Replica { device, together: Arc::new(Barrier::new(1)), alone: true })
    };
    let model = pool.get_on_devices("m", load).await.unwrap();
    assert_eq!(model.submit(vec![3]).await[0].as_ref().unwrap().0, 9);
    assert_eq!((loads.load(SeqCst), pool.metrics()[0].devices.as_slice()), (1, &[Device::Cpu][..]));
    let failing = |device: Device| match device {
        Device::Cuda(1) => Err(refused()),
        _ => Ok(Replica { device, together: Arc::new(Barrier::new(1)), alone: false }),
    };
    let error = pool.get_on_devices("n", failing).await.err().unwrap();
    assert_eq!(error.to_string(), refused().to_string());
}

#[tokio::test]
async fn a_bad_item_fails_alone() {
    let pool = pool(2);
    let model = pool.get("squares", || Ok(Squares::of(8))).await.unwrap();
    let answers = model.submit(vec![1, 7, 13, 2]).await;
    assert_eq!(answers[0].as_ref().unwrap().0, 1);
    assert_eq!(answers[1].as_ref().unwrap_err().to_string(), refused().to_string());
    assert_eq!(answers[2].as_ref().unwrap_err().to_string(), "the model squares panicked on this item: unlucky 13");
    assert_eq!(answers[3].as_ref().unwrap().0, 4);
    // The threads live on.
    assert_eq!(model.submit(vec![3]).await[0].as_ref().unwrap().0, 9);
    let [metrics] = &pool.metrics()[..] else { panic!("one model") };
    assert_eq!(
        (metrics.model.as_str(), metrics.items, metrics.failed, metrics.batches, metrics.waiting),
        ("squares", 5, 2, 2, 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_model_loads_once_and_a_failed_load_is_tried_again() {
    let (pool, loads) = (Arc::new(pool(1)), Arc::new(AtomicUsize::new(0)));
    let failing = pool.get("squares", || Err::<Squares, _>(refused())).await;
    assert!(failing.is_err());
    let panicking = pool.get("squares", || -> Result<Squares, ModelError> { panic!("no weights") }).await;
    assert_eq!(panicking.err().unwrap().to_string(), "the model squares panicked on this item: no weights");
    let users: Vec<_> = (0..8)
        .map(|_| {
            let (pool, loads) = (pool.clone(), loads.clone());
            tokio::spawn(async move {
                let load = move || {
                    loads.fetch_add(1, SeqCst);
                    Ok(Squares::of(1))
                };
                pool.get("squares", load).await.unwrap().submit(vec![5]).await[0].as_ref().unwrap().0
            })
        })
        .collect();
    for user in users {
        assert_eq!(user.await.unwrap(), 25);
    }
    assert_eq!(loads.load(SeqCst), 1);
    let taken = pool.get("squares", || Ok(Miscounting)).await;
    assert!(matches!(taken.err().unwrap(), ModelError::KeyTaken { key } if key == "squares"));
}

/// Answers one item too few.
struct Miscounting;

impl Work for Miscounting {
    type Item = ();
    type Output = ();

    fn run(&self, items: &[()]) -> Vec<Result<(), ModelError>> {
        items.iter().skip(1).map(|()| Ok(())).collect()
    }
}

#[tokio::test]
async fn a_miscounting_model_is_told_apart() {
    let model = pool(1).get("short", || Ok(Miscounting)).await.unwrap();
    let error = model.submit(vec![()]).await.remove(0).unwrap_err();
    assert!(matches!(error, ModelError::WrongAnswerCount { expected: 1, found: 0, .. }), "{error}");
}

/// Holds its thread until the test lets go, and reports what it was given.
struct Gate {
    open: Mutex<std_mpsc::Receiver<()>>,
    seen: Arc<Mutex<Vec<u32>>>,
}

impl Work for Gate {
    type Item = u32;
    type Output = u32;

    fn run(&self, items: &[u32]) -> Vec<Result<u32, ModelError>> {
        self.open.lock().unwrap().recv().unwrap();
        self.seen.lock().unwrap().extend(items);
        items.iter().map(|&item| Ok(item)).collect()
    }
}

/// A gated model, the key to the gate, and what the model has seen.
async fn gated(pool: &ModelPool) -> (PooledModel<Gate>, std_mpsc::Sender<()>, Arc<Mutex<Vec<u32>>>) {
    let (key, open) = std_mpsc::channel();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let gate = Gate { open: Mutex::new(open), seen: seen.clone() };
    (pool.get("gate", || Ok(gate)).await.unwrap(), key, seen)
}

async fn until(what: impl Fn() -> bool) {
    while !what() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_queue_is_bounded_and_a_dropped_window_is_withdrawn() {
    let pool = pool(1);
    let (model, key, seen) = gated(&pool).await;
    let first = tokio::spawn({
        let model = model.clone();
        async move { model.submit(vec![1]).await }
    });
    until(|| pool.metrics()[0].waiting == 1).await;
    let dropped = tokio::spawn({
        let model = model.clone();
        async move { model.submit((100..200).collect()).await }
    });
    // One batch may be with the thread, four in the queue; the next one waits for a place, the rest of the window is
    // not yet offered.
    until(|| model.inner.queue.capacity() == 0).await;
    assert!(pool.metrics()[0].waiting <= 1 + QUEUE_PER_THREAD as u64 + 1);
    dropped.abort();
    assert!(dropped.await.unwrap_err().is_cancelled());
    // Its withdrawal reaches the queue through the task that feeds it.
    until(|| pool.metrics()[0].waiting == 1).await;
    let last = tokio::spawn({
        let model = model.clone();
        async move { model.submit(vec![2]).await }
    });
    for _ in 0..2 {
        key.send(()).unwrap();
    }
    assert_eq!(first.await.unwrap()[0], Ok(1));
    assert_eq!(last.await.unwrap()[0], Ok(2));
    assert_eq!(*seen.lock().unwrap(), [1, 2]);
    assert!(pool.metrics()[0].cancelled >= 1);
}

#[tokio::test]
async fn an_unpolled_window_keeps_no_place_from_others() {
    let pool = pool(1);
    let (model, key, _) = gated(&pool).await;
    // Fill the queue, start waiting for a place once, and never poll again.
    let mut idle = Box::pin(model.submit((0..50).collect()));
    tokio::select! {
        biased;
        _ = &mut idle => panic!("the gate is shut"),
        () = until(|| model.inner.queue.capacity() == 0) => {}
    }
    for _ in 0..51 {
        key.send(()).unwrap();
    }
    // On a bare channel this send would wait for ever behind the idle one.
    assert_eq!(model.submit(vec![7]).await[0], Ok(7));
    assert_eq!(idle.await.len(), 50);
}

#[tokio::test]
async fn threads_end_with_the_last_handle() {
    struct Ends(Arc<AtomicBool>);
    impl Drop for Ends {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }
    impl Work for Ends {
        type Item = ();
        type Output = ();
        fn run(&self, items: &[()]) -> Vec<Result<(), ModelError>> {
            items.iter().map(|()| Ok(())).collect()
        }
    }
    let (pool, ended) = (pool(2), Arc::new(AtomicBool::new(false)));
    let flag = ended.clone();
    let model = pool.get("ends", move || Ok(Ends(flag))).await.unwrap();
    drop(pool);
    assert!(model.submit(vec![()]).await[0].is_ok());
    assert!(!ended.load(SeqCst));
    drop(model);
    until(|| ended.load(SeqCst)).await;
}

#[tokio::test]
async fn a_window_uses_all_threads() {
    /// Meets two items at a time: ends only if two threads run.
    struct Meeting(Barrier);
    impl Work for Meeting {
        type Item = ();
        type Output = ();
        fn run(&self, items: &[()]) -> Vec<Result<(), ModelError>> {
            self.0.wait();
            items.iter().map(|()| Ok(())).collect()
        }
    }
    let model = pool(2).get("meeting", || Ok(Meeting(Barrier::new(2)))).await.unwrap();
    assert_eq!(model.submit(vec![(); 6]).await.len(), 6);
}

/// A device with memory for so many items, shared by all threads of the model.
struct Narrow {
    batch: usize,
    memory: usize,
    taken: AtomicUsize,
}

impl Narrow {
    fn load(batch: usize, memory: usize) -> impl FnOnce() -> Result<Self, ModelError> + Send + 'static {
        move || Ok(Self { batch, memory, taken: AtomicUsize::new(0) })
    }
}

impl Work for Narrow {
    type Item = usize;
    type Output = (usize, usize);

    fn batch(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.batch).unwrap()
    }

    fn run(&self, items: &[usize]) -> Vec<Result<(usize, usize), ModelError>> {
        // An item's number is how much memory it takes.
        let needed: usize = items.iter().sum();
        let fits = self.taken.fetch_add(needed, SeqCst) + needed <= self.memory;
        std::thread::yield_now();
        self.taken.fetch_sub(needed, SeqCst);
        let answer = |&item| match fits {
            true => Ok((item, items.len())),
            false => Err(ModelError::DeviceMemory { operation: "a product", reason: "out of memory".to_owned() }),
        };
        items.iter().map(answer).collect()
    }
}

#[tokio::test]
async fn a_batch_without_memory_is_halved_and_later_ones_stay_as_small() {
    let pool = pool(1);
    let model = pool.get("m", Narrow::load(16, 5)).await.unwrap();
    let sizes = |answers: Vec<Result<(usize, usize), ModelError>>| -> Vec<usize> {
        answers.into_iter().map(|answer| answer.unwrap().1).collect()
    };
    // 16 do not fit, nor do 8.
    let answers = model.submit(vec![1; 18]).await;
    assert_eq!(sizes(answers), [[4; 16].as_slice(), &[2; 2]].concat());
    assert_eq!(pool.metrics()[0].did_not_fit, 2);
    assert_eq!(sizes(model.submit(vec![1; 7]).await), [4, 4, 4, 4, 3, 3, 3]);
    assert_eq!(pool.metrics()[0].did_not_fit, 2, "what did not fit is not tried again");
    // One that fits nowhere fails alone.
    let answers = model.submit(vec![1, 6, 1, 1]).await;
    assert_eq!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true, true]);
    assert!(matches!(answers[1], Err(ModelError::DeviceMemory { .. })));
    let metrics = &pool.metrics()[0];
    assert_eq!((metrics.items, metrics.failed), (29, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_that_fits_alone_is_answered_whatever_the_threads() {
    let model = pool(4).get("m", Narrow::load(4, 10)).await.unwrap();
    let windows: Vec<_> = (0..50)
        .map(|_| {
            let model = model.clone();
            tokio::spawn(async move { model.submit((1..=10).collect()).await })
        })
        .collect();
    for window in windows {
        let answers: Vec<usize> = window.await.unwrap().into_iter().map(|answer| answer.unwrap().0).collect();
        assert_eq!(answers, (1..=10).collect::<Vec<_>>());
    }
}

/// Counts how many of it are alive.
struct Heavy {
    bytes: u64,
    alive: Arc<AtomicUsize>,
}

impl Heavy {
    fn load(bytes: u64, alive: &Arc<AtomicUsize>) -> impl FnOnce() -> Result<Self, ModelError> + Send + 'static {
        let alive = alive.clone();
        move || {
            alive.fetch_add(1, SeqCst);
            Ok(Self { bytes, alive })
        }
    }
}

impl Drop for Heavy {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, SeqCst);
    }
}

impl Work for Heavy {
    type Item = u64;
    type Output = u64;
    fn weights_bytes(&self) -> u64 {
        self.bytes
    }
    fn run(&self, items: &[u64]) -> Vec<Result<u64, ModelError>> {
        items.iter().map(|item| Ok(item + self.bytes)).collect()
    }
}

#[tokio::test]
async fn models_that_nobody_holds_go_first_asked_first_where_weights_pass_the_budget() {
    let (pool, alive) = (pool(2).within(Some(100)), Arc::new(AtomicUsize::new(0)));
    let loaded = |pool: &ModelPool| -> Vec<(String, u64, u64)> {
        pool.metrics().into_iter().map(|m| (m.model, m.weights_bytes, m.loads)).collect()
    };
    let of = |name: &str, bytes, loads| (name.to_owned(), bytes, loads);
    let a = pool.get("a", Heavy::load(40, &alive)).await.unwrap();
    drop(pool.get("b", Heavy::load(40, &alive)).await.unwrap());
    drop(pool.get("c", Heavy::load(20, &alive)).await.unwrap());
    assert_eq!(alive.load(SeqCst), 3, "as much as the budget allows");
    // Asked for again: `c` is now the one that was not asked for longest.
    drop(pool.get("b", Heavy::load(40, &alive)).await.unwrap());
    let d = pool.get("d", Heavy::load(10, &alive)).await.unwrap();
    until(|| alive.load(SeqCst) == 3).await;
    assert_eq!(loaded(&pool), [of("a", 40, 1), of("b", 40, 1), of("c", 0, 1), of("d", 10, 1)]);
    // What is held stays, though it alone is more than the budget.
    let e = pool.get("e", Heavy::load(90, &alive)).await.unwrap();
    until(|| alive.load(SeqCst) == 3).await;
    assert_eq!(loaded(&pool), [of("a", 40, 1), of("b", 0, 1), of("c", 0, 1), of("d", 10, 1), of("e", 90, 1)]);
    for (model, bytes) in [(&a, 40), (&d, 10), (&e, 90)] {
        assert_eq!(model.submit(vec![1]).await, [Ok(bytes + 1)]);
    }
    // What was given back is loaded again, and goes on counting.
    drop((a, d, e));
    let b = pool.get("b", Heavy::load(40, &alive)).await.unwrap();
    assert_eq!(b.submit(vec![2]).await, [Ok(42)]);
    until(|| alive.load(SeqCst) == 1).await;
    assert_eq!(loaded(&pool), [of("a", 0, 1), of("b", 40, 2), of("c", 0, 1), of("d", 0, 1), of("e", 0, 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_the_same_under_a_budget_that_holds_no_two_models() {
    let (pool, alive) = (Arc::new(pool(2).within(Some(50))), Arc::new(AtomicUsize::new(0)));
    let askers: Vec<_> = (0..4_u64)
        .map(|asker| {
            let (pool, alive) = (pool.clone(), alive.clone());
            tokio::spawn(async move {
                for turn in 0..50_u64 {
                    let bytes = 30 + (asker + turn) % 3;
                    let model = pool.get(&format!("m{bytes}"), Heavy::load(bytes, &alive)).await.unwrap();
                    assert_eq!(model.submit(vec![turn; 5]).await, vec![Ok(turn + bytes); 5]);
                }
            })
        })
        .collect();
    for asker in askers {
        asker.await.unwrap();
    }
    drop(pool.get("m30", Heavy::load(30, &alive)).await.unwrap());
    until(|| alive.load(SeqCst) == 1).await;
}
