//! The Batch API: many requests in one file, answered within a day at a lower price.
//!
//! Answers land in the same store under the same hashes as those of single requests. A batch that was submitted is never submitted again, whoever was killed when: its state is
//! in the store, and one whose id got lost between the server and us is found by the name that it carries.

mod lines;
mod state;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_openai::types::batches::{BatchCompletionWindow, BatchErrors, BatchRequest, BatchStatus};
pub(crate) use lines::read_line;
use lines::{Line, endpoint, request_line, upload};
use serde::Deserialize;
use serde_json::{Value, json};
use state::Held;

use crate::{
    backend::Outcome,
    budget::{Reserved, Spent},
    client::Client,
    error::LlmError,
    money::Money,
    request::{Request, RequestHash},
    store::{Reservation, Stored},
    transport::Transport,
    wire::{self, NoAnswer},
};

/// What a batch may hold (OpenAI: 50,000 requests and 200 MB).
const MOST_REQUESTS: usize = 50_000;
const MOST_BYTES: usize = 190 << 20;

/// How batches are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchOptions {
    /// How often the server is asked whether a batch is done.
    pub poll: Duration,
    /// The share of the list price that requests in a batch cost: a half at OpenAI and Azure.
    pub price_share: f64,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self { poll: Duration::from_secs(60), price_share: 0.5 }
    }
}

type Failures = HashMap<RequestHash, LlmError>;

/// The requests of a batch, and its lines.
type BatchFile = (Vec<RequestHash>, Vec<u8>);

/// One round: the requests that still need an answer.
struct Round<'a> {
    client: &'a Arc<Client>,
    transport: &'a Transport,
    options: BatchOptions,
    wanted: BTreeMap<RequestHash, &'a Request>,
    failures: Failures,
    last: HashMap<RequestHash, String>,
    /// What a line said that ends the run.
    over: Option<LlmError>,
}

impl Client {
    /// Sees to it that the store holds the answers to `requests`, through batches; those that have none are returned with the reason.
    ///
    /// Requests that were in the store, or in a batch that an earlier process submitted, are not submitted. What fails inside a batch is submitted again, as often as the
    /// client tries any request.
    ///
    /// # Errors
    /// What ends a run: the key, a limit, a batch that the server refuses as a whole.
    pub async fn answer_in_batches(
        self: &Arc<Self>,
        requests: &[&Request],
        options: BatchOptions,
    ) -> Result<HashMap<RequestHash, LlmError>, LlmError> {
        let mut wanted = BTreeMap::new();
        for request in requests {
            let hash = self.hash(request);
            if self.store().get(&hash)?.is_none() {
                wanted.insert(hash, *request);
            }
        }
        if self.is_offline() {
            return Ok(HashMap::new());
        }
        let transport = self.server()?;
        let (failures, last) = (Failures::new(), HashMap::new());
        let mut round = Round { client: self, transport, options, wanted, failures, last, over: None };
        round.collect_earlier().await?;
        for _ in 0..self.retry().attempts {
            if round.wanted.is_empty() {
                break;
            }
            round.submit_and_collect().await?;
        }
        let attempts = self.retry().attempts;
        for hash in round.wanted.keys() {
            let last = round.last.get(hash).cloned().unwrap_or_else(|| "the batch held no answer to it".into());
            round.failures.insert(*hash, LlmError::NoAnswer { attempts, last });
        }
        Ok(round.failures)
    }

    fn batches(&self) -> PathBuf {
        self.store().folder().join("batches")
    }
}

impl Round<'_> {
    /// Goes on with batches of earlier processes that hold what we want, and waits for those of other processes.
    async fn collect_earlier(&mut self) -> Result<(), LlmError> {
        for path in state::all(&self.client.batches())? {
            while let Some(known) = state::read(&path)? {
                let ours = |h: &String| RequestHash::parse(h).is_some_and(|h| self.wanted.contains_key(&h));
                if known.url != self.client.url() || !known.hashes.iter().any(ours) {
                    break;
                }
                if let Some(held) = Held::take(&path)? {
                    let reserved =
                        self.client.budget().reserve(spent(&held.state.reserved), self.client.limits()).await.ok();
                    self.finish(held, reserved).await?;
                    break;
                }
                tokio::time::sleep(self.options.poll.min(Duration::from_secs(5))).await;
            }
        }
        let mut answered = Vec::new();
        for hash in self.wanted.keys() {
            if self.client.store().get(hash)?.is_some() {
                answered.push(*hash);
            }
        }
        for hash in &answered {
            self.wanted.remove(hash);
        }
        Ok(())
    }

    /// Submits all that is wanted, at most so much at a time as a batch holds.
    async fn submit_and_collect(&mut self) -> Result<(), LlmError> {
        for (hashes, file) in self.files()? {
            let mut most = Reservation { budget: self.client.budget_number(), ..Reservation::default() };
            for hash in &hashes {
                if let Some(request) = self.wanted.get(hash) {
                    let one = self.reservation(request)?;
                    most.cost = most.cost.plus(one.cost);
                    most.prompt_tokens += one.prompt_tokens;
                    most.completion_tokens += one.completion_tokens;
                }
            }
            let asked = Spent { calls: hashes.len() as u64, ..spent(&most) };
            let reserved = self.client.budget().reserve(asked, self.client.limits()).await?;
            let held = Held::begin(&self.client.batches(), self.client.url(), &hashes, most)?;
            self.submit(held, &file, Some(reserved)).await?;
        }
        Ok(())
    }

    /// What one request of a batch can cost.
    fn reservation(&self, request: &Request) -> Result<Reservation, LlmError> {
        let estimate = self.client.priced_estimate(request)?;
        Ok(Reservation {
            budget: self.client.budget_number(),
            cost: self.discounted(estimate.most_cost.unwrap_or_default()),
            prompt_tokens: estimate.most_prompt_tokens,
            completion_tokens: estimate.most_completion_tokens,
        })
    }

    /// What is wanted as files of lines. A batch has one endpoint, and all requests of a stage go to one.
    fn files(&self) -> Result<Vec<BatchFile>, LlmError> {
        let mut files: Vec<BatchFile> = Vec::new();
        for (hash, request) in &self.wanted {
            let line = request_line(*hash, request)?;
            let fits =
                |(hashes, file): &&mut BatchFile| hashes.len() < MOST_REQUESTS && file.len() + line.len() <= MOST_BYTES;
            match files.last_mut().filter(fits) {
                Some((hashes, file)) => {
                    hashes.push(*hash);
                    file.extend_from_slice(line.as_bytes());
                }
                None => files.push((vec![*hash], line.into_bytes())),
            }
        }
        Ok(files)
    }

    async fn submit(&mut self, mut held: Held, file: &[u8], reserved: Option<Reserved>) -> Result<(), LlmError> {
        let (body, content_type) = upload(file);
        let uploaded = self.post("/files", body.into(), &content_type).await?;
        let file_id = text(&uploaded, "id", "/files")?;
        let body = BatchRequest {
            input_file_id: file_id,
            endpoint: self.wanted.values().next().map_or_else(Default::default, |r| endpoint(r)),
            completion_window: BatchCompletionWindow::W24H,
            metadata: Some(HashMap::from([("groundloom".to_owned(), json!(held.state.name))])),
            output_expires_after: None,
        };
        let mut body = json!(body);
        // The type writes a null, which servers that do not know the field refuse.
        body.as_object_mut().map(|fields| fields.remove("output_expires_after"));
        let transport = self.transport;
        let mut tried = 0;
        let created = loop {
            let request = transport.http().post(transport.url("/batches")).body(body.to_string());
            match transport.exchange(request).await {
                Ok(answer) => break parse(&answer, "/batches")?,
                // It may have been made: look for it before making another.
                Err(Outcome::Lost { .. }) if self.find(&held.state.name).await?.is_some() => {
                    break self.find(&held.state.name).await?.unwrap_or_default();
                }
                Err(outcome) => self.wait_after(outcome, &mut tried).await?,
            }
        };
        held.state.batch_id = Some(text(&created, "id", "/batches")?);
        held.save()?;
        self.finish(held, reserved).await
    }

    /// The batch that carries our name, if the server has it.
    async fn find(&self, name: &str) -> Result<Option<Value>, LlmError> {
        let mut url = self.transport.url("/batches");
        url.query_pairs_mut().append_pair("limit", "100");
        let listed = self.get_url(url, "/batches").await?;
        let batches = listed["data"].as_array().into_iter().flatten();
        Ok(batches.into_iter().find(|b| b["metadata"]["groundloom"] == name).cloned())
    }

    /// Waits for a batch and takes its answers into the store.
    async fn finish(&mut self, mut held: Held, reserved: Option<Reserved>) -> Result<(), LlmError> {
        let id = match held.state.batch_id.clone() {
            Some(id) => id,
            // Its process was killed between submitting and hearing the id.
            None => match self.find(&held.state.name).await? {
                Some(batch) => {
                    let id = text(&batch, "id", "/batches")?;
                    held.state.batch_id = Some(id.clone());
                    held.save()?;
                    id
                }
                None => return held.end(),
            },
        };
        let batch = loop {
            // Its status is all that has to be there: Azure's batches lack fields that the type of the whole wants, and a status that is new is one to wait through.
            let batch = self.get(&format!("/batches/{id}")).await?;
            match BatchStatus::deserialize(&batch["status"]) {
                Ok(BatchStatus::Failed) => {
                    held.end()?;
                    let said = BatchErrors::deserialize(&batch["errors"]).map_or_else(
                        |_| batch["errors"].to_string(),
                        |errors| errors.data.into_iter().map(|e| e.message).collect::<Vec<_>>().join("; "),
                    );
                    return Err(LlmError::Setup(format!("the server refused the batch {id}: {said}").into()));
                }
                Ok(BatchStatus::Completed | BatchStatus::Expired | BatchStatus::Cancelled) => break batch,
                _ => tokio::time::sleep(self.options.poll).await,
            }
        };
        let (mut used, mut seen) = (Spent::default(), HashSet::new());
        for key in ["output_file_id", "error_file_id"] {
            let Some(file) = batch[key].as_str() else { continue };
            let path = format!("/files/{file}/content");
            let content = self.fetch(self.transport.url(&path), &path).await?;
            let content = String::from_utf8_lossy(&content);
            for (hash, line) in content.lines().filter_map(|line| read_line(line, self.client.url())) {
                if seen.insert(hash) {
                    self.take(hash, line, &held.state, &mut used).await?;
                }
            }
        }
        if let Some(reserved) = reserved {
            reserved.settle(used);
        }
        // Only now: the other lines' answers are kept, and the batch is not read again by the next run.
        held.end()?;
        self.over.take().map_or(Ok(()), Err)
    }

    /// One line of a batch's results.
    async fn take(
        &mut self,
        hash: RequestHash,
        line: Line,
        state: &state::BatchState,
        used: &mut Spent,
    ) -> Result<(), LlmError> {
        // A line of a batch that holds more than we want has no request here, but was paid for: it is kept all the same.
        let request = self.wanted.get(&hash).copied();
        match line {
            Line::Answered(body) => {
                let api = request.map_or_else(Default::default, |r| r.api);
                let answer = match wire::read_whole_answer(api, &body) {
                    Ok(answer) => answer,
                    Err(why) => return self.no_answer(hash, why, used).await,
                };
                let model = request.map_or_else(|| answer.model.clone(), |r| r.model.clone());
                let price = self.client.price(&model);
                // A server that does not count is taken at its most where money is at stake.
                let most = request.map(|request| self.reservation(request)).transpose()?.unwrap_or_default();
                let cost = answer.usage.map_or(most.cost, |usage| self.discounted(price.cost(&usage)));
                let stored = Stored {
                    path: api.path().into(),
                    request: request.map_or(Value::Null, Request::digest_body),
                    response: body,
                    usage: answer.usage,
                    cost,
                    asked_ms: state.made_ms,
                    took_ms: 0,
                };
                self.client.keep(hash, stored, price.known).await?;
                used.add(cost, answer.usage.map_or(spent(&most).tokens, |u| u.total()));
                self.wanted.remove(&hash);
            }
            Line::Failed(what) => {
                self.client.count_failed();
                self.last.insert(hash, what);
            }
            Line::Refused(error) => {
                self.client.count_failed();
                self.wanted.remove(&hash);
                if error.is_of_one_row() {
                    self.failures.insert(hash, error);
                } else {
                    self.over.get_or_insert(error);
                }
            }
        }
        Ok(())
    }

    /// A success that is no answer, as for single requests: it is submitted again, and counts at its most where it may have been paid.
    async fn no_answer(&mut self, hash: RequestHash, why: NoAnswer, used: &mut Spent) -> Result<(), LlmError> {
        self.client.count_failed();
        let (NoAnswer::Nothing(what) | NoAnswer::Broken(what)) = &why;
        self.last.insert(hash, what.clone());
        if let (NoAnswer::Broken(_), Some(request)) = (&why, self.wanted.get(&hash)) {
            let most = self.reservation(request)?;
            self.client.lose(hash, &most).await?;
            used.add(most.cost, spent(&most).tokens);
        }
        Ok(())
    }

    fn discounted(&self, cost: Money) -> Money {
        Money((cost.0 as f64 * self.options.price_share).ceil() as u64)
    }

    async fn get(&self, path: &str) -> Result<Value, LlmError> {
        self.get_url(self.transport.url(path), path).await
    }

    async fn get_url(&self, url: reqwest::Url, path: &str) -> Result<Value, LlmError> {
        parse(&self.fetch(url, path).await?, path)
    }

    async fn fetch(&self, url: reqwest::Url, _path: &str) -> Result<bytes::Bytes, LlmError> {
        let transport = self.transport;
        let mut tried = 0;
        loop {
            match transport.exchange(transport.http().get(url.clone())).await {
                Ok(body) => return Ok(body),
                Err(outcome) => self.wait_after(outcome, &mut tried).await?,
            }
        }
    }

    async fn post(&self, path: &str, body: bytes::Bytes, content_type: &str) -> Result<Value, LlmError> {
        let transport = self.transport;
        let mut tried = 0;
        loop {
            let request = transport.http().post(transport.url(path)).header("content-type", content_type);
            match transport.exchange(request.body(body.clone())).await {
                Ok(answer) => return parse(&answer, path),
                Err(outcome) => self.wait_after(outcome, &mut tried).await?,
            }
        }
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// When there have been enough, or trying again is no use.
    async fn wait_after(&self, outcome: Outcome, tried: &mut u32) -> Result<(), LlmError> {
        let (what, pause) = match outcome {
            Outcome::Refused(error @ LlmError::Refused { .. }) => {
                return Err(LlmError::Setup(format!("the Batch API: {error}").into()));
            }
            Outcome::Refused(error) => return Err(error),
            Outcome::Failed { what, pause, .. } | Outcome::Throttled { what, pause } => (what, pause),
            Outcome::Lost { what } => (what, None),
            Outcome::Answered { .. } => return Ok(()),
        };
        *tried += 1;
        let retry = self.client.retry();
        if *tried >= retry.attempts {
            return Err(LlmError::Setup(format!("the Batch API does not answer: {what}; run again later").into()));
        }
        let wait = retry.first_wait.saturating_mul(1 << (*tried - 1).min(20)).min(retry.longest_wait);
        tokio::time::sleep(pause.unwrap_or(wait)).await;
        Ok(())
    }
}

fn spent(reservation: &Reservation) -> Spent {
    Spent {
        calls: 0,
        tokens: reservation.prompt_tokens.saturating_add(reservation.completion_tokens),
        cost: reservation.cost,
    }
}

fn parse(body: &[u8], path: &str) -> Result<Value, LlmError> {
    serde_json::from_slice(body).map_err(|e| LlmError::Setup(format!("the Batch API: {path}: no JSON: {e}").into()))
}

fn text(value: &Value, key: &str, path: &str) -> Result<String, LlmError> {
    value[key]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| LlmError::Setup(format!("the Batch API: {path}: expected `{key}`, found {value}").into()))
}
