//! Asking a server: the store first, then within budget and pace, with retries, and the store again.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use serde_json::Value;
use tokio::sync::{Notify, Semaphore, oneshot};

use xxhash_rust::xxh3::xxh3_64;

use crate::{
    answer::{Answer, Usage},
    backend::{Backend, Outcome},
    budget::{Budget, Limits, Reserved, Spent},
    error::LlmError,
    gate::{Admitted, Gate, Pace},
    hedge::{Hedge, Latencies},
    money::Money,
    prices::{Price, PriceTable},
    request::{Request, RequestHash},
    spending::{Ledger, Spending},
    store::{Mark, Marking, Reservation, Store, Stored, budget_number},
    transport::{Endpoint, Transport},
    wire::{self, NoAnswer},
};

/// How often and how patiently one call is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Requests per call at most. Pauses that the server asks for, and times when it is down for everybody, do not count.
    pub attempts: u32,
    /// The wait before the second request; it doubles, and half of it is random.
    pub first_wait: Duration,
    /// The longest wait.
    pub longest_wait: Duration,
    /// Requests after which the run ends when all of them were refused in the same words and none was ever answered; 0: never.
    pub refusals: u32,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 8,
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(30),
            refusals: 100,
        }
    }
}

/// All that a client is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientConfig {
    /// The server. Of a model in this process only `url` counts, which names it.
    pub endpoint: Endpoint,
    /// See [`Request::hash`].
    pub namespace: String,
    /// How fast it may be asked.
    pub pace: Pace,
    /// How patiently.
    pub retry: Retry,
    /// When a call that is slow is asked a second time; never, if `None`.
    pub hedge: Option<Hedge>,
    /// What may be spent.
    pub limits: Limits,
    /// The name under which it is spent: what earlier processes spent under it counts against the limits.
    pub budget: String,
    /// Answer from the store only.
    pub offline: bool,
}

/// A client of one server. Share one per server and process: its pace and its budget are for all that use it.
#[derive(Debug)]
pub struct Client {
    /// What is asked.
    backend: Arc<dyn Backend>,
    /// The same where it is a server.
    server: Option<Arc<Transport>>,
    url: String,
    namespace: String,
    retry: Retry,
    hedge: Option<Hedge>,
    latencies: Latencies,
    limits: Limits,
    offline: bool,
    gate: Arc<Gate>,
    budget: Arc<Budget>,
    budget_number: u64,
    store: Arc<Store>,
    prices: PriceTable,
    ledger: Arc<Ledger>,
    /// The turns of rows that ask the same, with how many of them there are.
    alone: Mutex<HashMap<RequestHash, (usize, Turn)>>,
    /// Places for answers that go to the disk.
    storing: Semaphore,
    on_their_way: Arc<OnTheirWay>,
    refusals: Mutex<Refusals>,
    /// What ended the run, by the model that was asked: no further call to it goes out.
    ended: Mutex<HashMap<String, LlmError>>,
    /// Answers of batches that nobody has taken from the store yet: paid for just now, not saved by it.
    fresh: Mutex<HashSet<RequestHash>>,
}

/// An answer and where it came from.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The answer.
    pub answer: Answer,
    /// The request's identity.
    pub hash: RequestHash,
    /// Whether it was in the store already.
    pub from_store: bool,
}

/// What a call may and is likely to cost, before it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Input tokens to expect.
    pub prompt_tokens: u64,
    /// The most input tokens.
    pub most_prompt_tokens: u64,
    /// The most output tokens.
    pub most_completion_tokens: u64,
    /// The cost when the answer is as long as it may be; `None` when the price table does not know the model.
    pub most_cost: Option<Money>,
}

impl Estimate {
    /// What a request may cost by a price table.
    pub fn of(request: &Request, prices: &PriceTable) -> Self {
        let price = prices.price(&request.model);
        let most_prompt_tokens = request.most_prompt_tokens(price.tokenizer, price.image_tokens);
        let most = Usage {
            prompt_tokens: most_prompt_tokens,
            completion_tokens: request.max_output_tokens,
            cached_prompt_tokens: 0,
        };
        Self {
            prompt_tokens: request.expected_prompt_tokens(price.tokenizer, price.image_tokens),
            most_prompt_tokens,
            most_completion_tokens: request.max_output_tokens,
            most_cost: price.known.then(|| price.cost(&most)),
        }
    }
}

/// What the server refused before it answered anything.
#[derive(Debug, Default)]
struct Refusals {
    /// Something was answered, or something else refused: it is not all requests.
    apart: bool,
    times: u32,
    words: String,
}

/// Requests that have been sent and not ended.
#[derive(Debug, Default)]
struct OnTheirWay {
    count: AtomicUsize,
    changed: Notify,
}

/// One of them; counts until dropped, however its task ends.
struct Underway(Arc<OnTheirWay>);

impl Underway {
    fn begin(all: &Arc<OnTheirWay>) -> Self {
        all.count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(all))
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::AcqRel);
        self.0.changed.notify_waiters();
    }
}

impl Client {
    /// A client that keeps its answers in `store`.
    ///
    /// # Errors
    /// [`LlmError::Setup`] for an address that is none; [`LlmError::Store`] when the budget's lock is held by another process.
    pub fn new(config: ClientConfig, store: Arc<Store>, prices: PriceTable) -> Result<Arc<Self>, LlmError> {
        let gate = Gate::new(config.pace, config.endpoint.url.clone());
        let budget = Budget::new(store.spent(budget_number(&config.budget)));
        Self::sharing(config, None, store, prices, gate, budget)
    }

    /// As [`Client::new`], at the pace of a gate and from a budget that other clients share; it asks `model` where there is one, else the server.
    pub(crate) fn sharing(
        config: ClientConfig,
        model: Option<Arc<dyn Backend>>,
        store: Arc<Store>,
        prices: PriceTable,
        gate: Arc<Gate>,
        budget: Arc<Budget>,
    ) -> Result<Arc<Self>, LlmError> {
        let number = budget_number(&config.budget);
        let limits = if config.offline { Limits::default() } else { config.limits };
        if limits.any() {
            budget.hold(&store.folder().join("budgets"), number)?;
        }
        let ledger = Arc::new(Ledger::new(store.interrupted()));
        let url = config.endpoint.url.clone();
        let (backend, server): (Arc<dyn Backend>, _) = match model {
            Some(model) => (model, None),
            None => {
                let server = Arc::new(Transport::new(config.endpoint)?);
                (Arc::clone(&server) as _, Some(server))
            }
        };
        Ok(Arc::new(Self {
            backend,
            server,
            url,
            namespace: config.namespace,
            retry: config.retry,
            hedge: config.hedge,
            latencies: Latencies::default(),
            limits,
            offline: config.offline,
            gate,
            budget,
            budget_number: number,
            store,
            prices,
            ledger,
            alone: Mutex::default(),
            storing: Semaphore::new(config.pace.max_concurrency.clamp(1, Semaphore::MAX_PERMITS)),
            on_their_way: Arc::default(),
            refusals: Mutex::default(),
            ended: Mutex::default(),
            fresh: Mutex::default(),
        }))
    }

    /// What was spent and saved through this client.
    pub fn spending(&self) -> Spending {
        self.ledger.total()
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The server, for what only servers have.
    pub(crate) fn server(&self) -> Result<&Transport, LlmError> {
        let no_server = || LlmError::Setup(format!("expected a server with a Batch API, found {}", self.url).into());
        self.server.as_deref().ok_or_else(no_server)
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) const fn retry(&self) -> Retry {
        self.retry
    }

    pub(crate) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    pub(crate) const fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) const fn budget_number(&self) -> u64 {
        self.budget_number
    }

    pub(crate) const fn is_offline(&self) -> bool {
        self.offline
    }

    pub(crate) fn price(&self, model: &str) -> Price {
        self.prices.price(model)
    }

    /// What a request may cost, or the refusal of a cost limit that cannot be kept.
    pub(crate) fn priced_estimate(&self, request: &Request) -> Result<Estimate, LlmError> {
        if self.limits.max_cost.is_some() && !self.price(&request.model).known {
            return Err(LlmError::NoPrice { model: request.model.clone() });
        }
        Ok(self.estimate(request))
    }

    /// Keeps an answer that came in a batch; one that is there already was counted before.
    pub(crate) async fn keep(&self, hash: RequestHash, stored: Stored, priced: bool) -> Result<(), LlmError> {
        if self.store.get(&hash)?.is_none() {
            let (usage, cost) = (stored.usage, stored.cost);
            self.store.put_for(hash, stored, self.budget_number).await?;
            self.ledger.answered(usage, cost, priced);
            self.fresh.lock().unwrap_or_else(PoisonError::into_inner).insert(hash);
        }
        Ok(())
    }

    /// Counts a request of a batch that failed.
    pub(crate) fn count_failed(&self) {
        self.ledger.failed();
    }

    /// Books a request of a batch that was paid, as far as anybody knows, and has no answer that is of use.
    pub(crate) async fn lose(&self, hash: RequestHash, reservation: &Reservation) -> Result<(), LlmError> {
        self.store.put_loss(hash, reservation).await?;
        self.ledger.lost(reservation.cost);
        Ok(())
    }

    /// The identity of a request to this client's server.
    pub fn hash(&self, request: &Request) -> RequestHash {
        request.hash(&self.namespace)
    }

    /// What a request may cost.
    pub fn estimate(&self, request: &Request) -> Estimate {
        Estimate::of(request, &self.prices)
    }

    /// Waits until the requests that are on their way have ended, so that their answers are kept.
    pub async fn settled(&self) {
        loop {
            let changed = self.on_their_way.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.on_their_way.count.load(Ordering::Acquire) == 0 {
                return;
            }
            changed.await;
        }
    }

    /// The answer to `request`: from the store if it was ever answered, else from the server.
    ///
    /// It may be dropped at any time: a request that is on its way is then still waited for, and its answer kept; a model in this process stops.
    ///
    /// # Errors
    /// [`LlmError`]; [`LlmError::is_of_one_row`] says whether only this request is lost.
    pub async fn ask(self: &Arc<Self>, request: &Request) -> Result<Reply, LlmError> {
        let digest_body = request.digest_body();
        let hash = request.hash_of(&digest_body, &self.namespace);
        if let Some(stored) = self.store.get(&hash)? {
            return self.reply_from_store(request, hash, &stored);
        }
        if self.offline {
            return Err(LlmError::NotInStore { store: self.store.folder().display().to_string(), hash });
        }
        let estimate = self.priced_estimate(request)?;
        // Rows that ask the same wait for the first of them.
        let alone = self.alone(hash);
        let _alone = alone.turn.lock().await;
        let body = if request.shows_images() { request.body().to_string() } else { digest_body.to_string() };
        let call = Arc::new(Call {
            hash,
            request: request.clone(),
            body: body.into(),
            digest_body,
            price: self.prices.price(&request.model),
            first_failure: OnceLock::new(),
            reservation: Reservation {
                budget: self.budget_number,
                cost: estimate.most_cost.unwrap_or_default(),
                prompt_tokens: estimate.most_prompt_tokens,
                completion_tokens: estimate.most_completion_tokens,
            },
        });
        let most = call.most();
        let mut attempts = 0;
        loop {
            let admitted = self.gate.admit(most.tokens).await?;
            if let Some(error) = self.ended().get(&request.model) {
                return Err(error.clone());
            }
            let reserved = self.budget.reserve(most, &self.limits).await?;
            let Marking::Set(mark) = self.store.mark(hash, &call.reservation)? else {
                drop((admitted, reserved));
                tokio::time::sleep(Duration::from_millis(50)).await;
                if let Some(stored) = self.store.get(&hash)? {
                    return self.reply_from_store(request, hash, &stored);
                }
                continue;
            };
            if let Some(stored) = self.store.get(&hash)? {
                mark.remove()?;
                return self.reply_from_store(request, hash, &stored);
            }
            let first = self.launch(&call, Attempt { mark, reserved, admitted });
            let sent = match self.hedge.and_then(|hedge| self.latencies.wait(hedge)) {
                Some(wait) => {
                    let second = async {
                        tokio::time::sleep(wait).await;
                        self.ask_again(&call).await
                    };
                    first_of(first, second).await?
                }
                None => first.await?,
            };
            match sent {
                Sent::Answered(answer) => return Ok(Reply { answer, hash, from_store: false }),
                Sent::TryAgain => {}
                Sent::Failed(last) => {
                    attempts += 1;
                    if attempts >= self.retry.attempts {
                        return Err(LlmError::NoAnswer { attempts, last });
                    }
                    tokio::time::sleep(self.wait(hash, attempts)).await;
                }
            }
        }
    }

    /// Sends a request in a task of its own: whoever asked may go away, the money is spent all the same, where any is.
    fn launch(self: &Arc<Self>, call: &Arc<Call>, attempt: Attempt) -> Sending {
        let (client, call) = (Arc::clone(self), Arc::clone(call));
        let underway = Underway::begin(&self.on_their_way);
        let (asker, gone) = oneshot::channel();
        let task = tokio::spawn(async move {
            let _underway = underway;
            client.send(&call, attempt, gone).await
        });
        async move {
            // Dropped with this future, also where it was never polled.
            let _asker: oneshot::Sender<()> = asker;
            task.await.map_err(|e| LlmError::Setup(format!("a call ended without a result: {e}").into()))?
        }
        .boxed()
    }

    /// A second request for a call in flight; `None` when a limit leaves no room for it.
    async fn ask_again(self: &Arc<Self>, call: &Arc<Call>) -> Option<Sending> {
        let most = call.most();
        let admitted = self.gate.admit(most.tokens).await.ok()?;
        let reserved = self.budget.try_reserve(most, &self.limits).ok()?;
        let mark = self.store.mark_second(call.hash, &call.reservation).ok()?;
        self.ledger.hedged();
        Some(self.launch(call, Attempt { mark, reserved, admitted }))
    }

    async fn send(&self, call: &Call, attempt: Attempt, gone: oneshot::Receiver<()>) -> Result<Sent, LlmError> {
        let Attempt { mark, reserved, admitted } = attempt;
        let Call { hash, request, reservation, price, .. } = call;
        let (asked, started) = (SystemTime::now(), Instant::now());
        let outcome = tokio::select! {
            biased;
            outcome = self.backend.answer(request, &call.body) => outcome,
            _ = gone, if !self.backend.outlives_its_asker() => {
                mark.remove()?;
                admitted.refused();
                return Ok(Sent::TryAgain);
            }
        };
        let outcome = match outcome {
            Outcome::Answered { body, pause } => match wire::read_whole_answer(request.api, &body) {
                Ok(answer) => {
                    let usage = answer.usage;
                    // A server that does not count is taken at its most where money is at stake.
                    let cost = usage.map_or(reservation.cost, |usage| price.cost(&usage));
                    let tokens = usage.map_or(call.most().tokens, |usage| usage.total());
                    // The server has a place for the next call while this answer goes to the disk; a slow disk holds calls up all the same.
                    let _storing = self.storing.acquire().await;
                    let took = started.elapsed();
                    self.latencies.note(took);
                    admitted.succeeded(usage.map(|usage| usage.total()), pause);
                    let stored = Stored {
                        path: request.api.path().into(),
                        request: call.digest_body.clone(),
                        response: body,
                        usage,
                        cost,
                        asked_ms: asked.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64),
                        took_ms: took.as_millis() as u64,
                    };
                    self.store.put_for(*hash, stored, self.budget_number).await?;
                    mark.remove()?;
                    reserved.settle(Spent { calls: 1, tokens, cost });
                    self.ledger.answered(usage, cost, price.known);
                    self.refusals().apart = true;
                    return Ok(Sent::Answered(answer));
                }
                Err(NoAnswer::Nothing(what)) => Outcome::Failed { what, pause, away: false },
                Err(NoAnswer::Broken(what)) => Outcome::Lost { what },
            },
            other => other,
        };
        self.ledger.failed();
        match outcome {
            Outcome::Lost { what } => {
                self.store.put_loss(*hash, reservation).await?;
                mark.remove()?;
                reserved.settle_as_lost();
                self.ledger.lost(reservation.cost);
                let down = admitted.failed(None, &what, false, &call.first_failure);
                Ok(if down { Sent::TryAgain } else { Sent::Failed(what) })
            }
            Outcome::Failed { what, pause, away } => {
                mark.remove()?;
                let down = admitted.failed(pause, &what, away, &call.first_failure);
                Ok(if down { Sent::TryAgain } else { Sent::Failed(what) })
            }
            Outcome::Throttled { what, pause } => {
                mark.remove()?;
                admitted.throttled(pause, &what);
                Ok(Sent::TryAgain)
            }
            Outcome::Refused(error) => {
                mark.remove()?;
                let error = self.refused(error);
                if !error.is_of_one_row() {
                    self.ended().entry(request.model.clone()).or_insert_with(|| error.clone());
                }
                admitted.refused();
                Err(error)
            }
            Outcome::Answered { .. } => Err(LlmError::Setup("an answer was read twice".into())),
        }
    }

    fn reply_from_store(&self, request: &Request, hash: RequestHash, stored: &Stored) -> Result<Reply, LlmError> {
        let answer = wire::read_answer(request.api, &stored.response).map_err(|message| {
            LlmError::store(self.store.folder(), format!("the answer to {hash} cannot be read: {message}"))
        })?;
        if !self.fresh.lock().unwrap_or_else(PoisonError::into_inner).remove(&hash) {
            self.ledger.found(stored.cost);
        }
        self.refusals().apart = true;
        Ok(Reply { answer, hash, from_store: true })
    }

    fn refusals(&self) -> MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A refusal, or what ends the run where everything is refused.
    fn refused(&self, error: LlmError) -> LlmError {
        let LlmError::Refused { status, message } = &error else { return error };
        let mut all = self.refusals();
        if all.times == 0 {
            message.clone_into(&mut all.words);
        }
        all.times += 1;
        all.apart |= all.words != *message;
        match !all.apart && all.times == self.retry.refusals {
            true => LlmError::RefusedAll { requests: all.times, status: *status, message: message.clone() },
            false => error,
        }
    }

    fn ended(&self) -> MutexGuard<'_, HashMap<String, LlmError>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self, hash: RequestHash) -> Alone<'_> {
        let mut all = self.alone.lock().unwrap_or_else(PoisonError::into_inner);
        let (rows, turn) = all.entry(hash).or_default();
        *rows += 1;
        Alone { client: self, hash, turn: Arc::clone(turn) }
    }

    /// Doubles with every attempt; half of it is drawn by the request, so that calls that failed together do not come back together.
    fn wait(&self, hash: RequestHash, attempts: u32) -> Duration {
        let doubled = self.retry.first_wait.saturating_mul(1 << (attempts - 1).min(20));
        let longest = doubled.min(self.retry.longest_wait);
        let mut seed = hash.0.to_vec();
        seed.extend(attempts.to_le_bytes());
        seed.extend(std::process::id().to_le_bytes());
        let share = (xxh3_64(&seed) >> 11) as f64 / (1_u64 << 53) as f64;
        longest.mul_f64(0.5 + share / 2.0)
    }
}

/// Held by the one of several rows that asks for all of them.
type Turn = Arc<tokio::sync::Mutex<()>>;

/// A row's place among those that ask the same.
struct Alone<'a> {
    client: &'a Client,
    hash: RequestHash,
    turn: Turn,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        let mut all = self.client.alone.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut same) = all.entry(self.hash) {
            same.get_mut().0 -= 1;
            if same.get().0 == 0 {
                same.remove();
            }
        }
    }
}

/// A request with all that its attempts need.
struct Call {
    hash: RequestHash,
    request: Request,
    /// As it is sent; several attempts share it.
    body: Bytes,
    /// As it is stored.
    digest_body: Value,
    price: Price,
    reservation: Reservation,
    /// See [`Admitted::failed`].
    first_failure: OnceLock<u64>,
}

impl Call {
    fn most(&self) -> Spent {
        let Reservation { cost, prompt_tokens, completion_tokens, .. } = self.reservation;
        Spent { calls: 1, tokens: prompt_tokens.saturating_add(completion_tokens), cost }
    }
}

/// What one request of a call holds while it is in flight.
struct Attempt {
    mark: Mark,
    reserved: Reserved,
    admitted: Admitted,
}

enum Sent {
    Answered(Answer),
    /// Not this call's fault.
    TryAgain,
    Failed(String),
}

/// A request on its way.
type Sending = BoxFuture<'static, Result<Sent, LlmError>>;

/// The first answer of a request and of a second one, which comes into being when the first is slow. What failed waits for the other.
async fn first_of(mut first: Sending, second: impl Future<Output = Option<Sending>>) -> Result<Sent, LlmError> {
    let second = tokio::select! {
        biased;
        sent = &mut first => return sent,
        second = second => second,
    };
    let Some(second) = second else { return first.await };
    let (sent, other) = futures::future::select(first, second).await.factor_first();
    match sent {
        Ok(Sent::Answered(_)) => sent,
        _ => match other.await {
            Ok(Sent::Answered(answer)) => Ok(Sent::Answered(answer)),
            _ => sent,
        },
    }
}
