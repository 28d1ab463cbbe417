//! A real HTTP server that speaks enough of OpenAI's interfaces, answers deterministically, fails as it is told, and counts what it would have charged.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// One way to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// 429 with `Retry-After`.
    RateLimit,
    /// This status, with an error body.
    Status(u16),
    /// The connection closes without an answer, after the work was done.
    Drop,
    /// Half of the body, then the connection closes.
    HalfBody,
    /// The answer comes after the client's patience.
    Slow,
    /// 200 and a body that is no JSON.
    Malformed,
    /// 200 and JSON without an answer in it.
    WrongShape,
    /// The answer twice: the second copy must not be taken for another request's.
    Duplicate,
}

impl Fault {
    /// All that pass by themselves.
    pub const PASSING: &[Self] = &[
        Self::RateLimit,
        Self::Status(500),
        Self::Status(503),
        Self::Status(408),
        Self::Status(409),
        Self::Drop,
        Self::HalfBody,
        Self::Slow,
        Self::Malformed,
        Self::WrongShape,
        Self::Duplicate,
    ];

    /// Whether the answer was generated, so that a provider would charge for it.
    fn charged(self) -> bool {
        !matches!(self, Self::RateLimit | Self::Status(_))
    }
}

/// How the server behaves.
#[derive(Debug, Clone)]
pub struct Behaviour {
    pub seed: u64,
    /// Share of requests that fail.
    pub fault_share: f64,
    /// The ways in which they do.
    pub faults: Vec<Fault>,
    /// Shortest and longest time to answer, milliseconds.
    pub latency: (u64, u64),
    /// How long `Slow` takes.
    pub slow: Duration,
    /// The key to ask for.
    pub key: Option<String>,
    /// How long a batch takes.
    pub batch_time: Duration,
    /// The answer to `POST /batches` never arrives.
    pub lose_batch_ids: bool,
    /// Extra headers of every answer.
    pub headers: Vec<(String, String)>,
    /// Answers by the last user text; others get a text made from it.
    pub answers: fn(&str) -> Option<String>,
    /// Whole bodies of successes, by the last user text, alone and in batches; others get one made of the text.
    pub bodies: fn(&str) -> Option<Value>,
    /// All bytes that are sent, by the last user text and how often it was asked, this time included; then the connection closes.
    pub bytes: fn(&str, u64) -> Option<Vec<u8>>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            seed: 1,
            fault_share: 0.0,
            faults: Fault::PASSING.to_vec(),
            latency: (0, 0),
            slow: Duration::from_secs(3),
            key: None,
            batch_time: Duration::from_millis(100),
            lose_batch_ids: false,
            headers: Vec::new(),
            answers: |_| None,
            bodies: |_| None,
            bytes: |_, _| None,
        }
    }
}

/// A request as it came in.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    /// With the query.
    pub target: String,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

/// A batch as the server keeps it.
#[derive(Debug, Clone)]
pub struct Batch {
    pub id: String,
    pub lines: usize,
    metadata: Value,
    made: std::time::Instant,
}

#[derive(Debug, Default)]
pub struct Counts {
    /// Requests by body.
    pub asked: HashMap<Vec<u8>, u64>,
    /// Requests that failed as they were told to, and ones that came while the server was down.
    pub failed: u64,
    /// What a provider would have charged for.
    pub charged_calls: u64,
    pub charged_prompt_tokens: u64,
    pub charged_completion_tokens: u64,
    /// Batches that were made, and lines in them.
    pub batches: Vec<Batch>,
    /// Uploaded files and results, by id.
    pub files: HashMap<String, Vec<u8>>,
    /// Most requests at the same time.
    pub most_at_once: usize,
    pub seen: Vec<Seen>,
}

impl Counts {
    pub fn requests(&self) -> u64 {
        self.asked.values().sum()
    }

    pub fn tokens(&self) -> u64 {
        self.charged_prompt_tokens + self.charged_completion_tokens
    }
}

pub struct Server {
    pub url: String,
    shared: Arc<Shared>,
    // Ends the server's threads when dropped.
    runtime: Option<tokio::runtime::Runtime>,
}

struct Shared {
    behaviour: Behaviour,
    counts: Mutex<Counts>,
    down: AtomicBool,
    keep: AtomicBool,
    at_once: AtomicUsize,
}

impl Server {
    /// Starts a server on a free port of this machine, on threads of its own.
    pub fn start(behaviour: Behaviour) -> Self {
        // Tests call this from inside their own runtime, in which another cannot be entered.
        std::thread::spawn(move || Self::start_here(behaviour)).join().unwrap()
    }

    fn start_here(behaviour: Behaviour) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            behaviour,
            counts: Mutex::default(),
            down: AtomicBool::new(false),
            keep: AtomicBool::new(false),
            at_once: AtomicUsize::new(0),
        });
        let accepting = Arc::clone(&shared);
        runtime.spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let _ = stream.set_nodelay(true);
                tokio::spawn(connection(stream, Arc::clone(&accepting)));
            }
        });
        Self { url, shared, runtime: Some(runtime) }
    }

    pub fn counts<T>(&self, read: impl FnOnce(&Counts) -> T) -> T {
        read(&self.shared.counts.lock().unwrap())
    }

    pub fn requests(&self) -> u64 {
        self.counts(Counts::requests)
    }

    /// Down: every connection closes as soon as something is asked.
    pub fn set_down(&self, down: bool) {
        self.shared.down.store(down, Ordering::SeqCst);
    }

    /// Keeps whole requests from now on, for tests that look at them.
    pub fn keep_requests(&self) {
        self.shared.keep.store(true, Ordering::SeqCst);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What the server answers to a text unless told otherwise.
pub fn answer_to(text: &str) -> String {
    format!("answer {:016x}", xxh3_64_with_seed(text.as_bytes(), 7))
}

/// Tokens that the server counts for a text: its words.
pub fn tokens_of(text: &str) -> u64 {
    text.split_whitespace().count() as u64
}

async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Seen> {
    let mut chunk = [0; 16 << 10];
    let head_end = loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        let n = stream.read(&mut chunk).await.ok().filter(|n| *n > 0)?;
        buffer.extend_from_slice(&chunk[..n]);
    };
    let head = String::from_utf8(buffer[..head_end].to_vec()).ok()?;
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: HashMap<String, String> =
        lines.filter_map(|l| l.split_once(':')).map(|(k, v)| (k.to_ascii_lowercase(), v.trim().to_owned())).collect();
    let length: usize = headers.get("content-length").map_or(0, |v| v.parse().unwrap());
    while buffer.len() < head_end + 4 + length {
        let n = stream.read(&mut chunk).await.ok().filter(|n| *n > 0)?;
        buffer.extend_from_slice(&chunk[..n]);
    }
    let body = buffer[head_end + 4..head_end + 4 + length].to_vec();
    buffer.drain(..head_end + 4 + length);
    Some(Seen { method, target, headers, body })
}

pub fn response(status: u16, headers: &[(String, String)], body: &[u8]) -> Vec<u8> {
    let mut out =
        format!("HTTP/1.1 {status} Said\r\ncontent-type: application/json\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        out.push_str(&format!("{name}: {value}\r\n"));
    }
    out.push_str("\r\n");
    let mut out = out.into_bytes();
    out.extend_from_slice(body);
    out
}

async fn connection(mut stream: TcpStream, shared: Arc<Shared>) {
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut buffer).await {
        let at_once = shared.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        let keep_alive = serve(&mut stream, request, &shared, at_once).await;
        shared.at_once.fetch_sub(1, Ordering::SeqCst);
        if !keep_alive {
            break;
        }
    }
}

/// Answers one request; whether the connection stays open.
async fn serve(stream: &mut TcpStream, request: Seen, shared: &Shared, at_once: usize) -> bool {
    let behaviour = &shared.behaviour;
    if request.target.contains("/files") || request.target.contains("/batches") {
        return match serve_batches(&request, shared) {
            Some(answer) => stream.write_all(&answer).await.is_ok(),
            None => false,
        };
    }
    let time = {
        let mut counts = shared.counts.lock().unwrap();
        counts.most_at_once = counts.most_at_once.max(at_once);
        let time = counts.asked.entry(request.body.clone()).or_default();
        *time += 1;
        let time = *time;
        if shared.keep.load(Ordering::SeqCst) {
            counts.seen.push(request.clone());
        }
        time
    };
    if shared.down.load(Ordering::SeqCst) {
        shared.counts.lock().unwrap().failed += 1;
        return false;
    }
    let say = |status: u16, message: &str| {
        let body = json!({"error": {"message": message, "type": "test", "code": null}}).to_string();
        response(status, &behaviour.headers, body.as_bytes())
    };
    let bearer = behaviour.key.as_ref().map(|k| format!("Bearer {k}"));
    if bearer.is_some() && request.headers.get("authorization") != bearer.as_ref() {
        return stream.write_all(&say(401, "Incorrect API key provided")).await.is_ok();
    }
    let Ok(body) = serde_json::from_slice::<Value>(&request.body) else {
        return stream.write_all(&say(400, "the body is no JSON")).await.is_ok();
    };
    let path = request.target.split('?').next().unwrap_or_default();
    let chat = path.ends_with("/chat/completions");
    if !chat && !path.ends_with("/responses") {
        return stream.write_all(&say(404, &format!("no such path {path}"))).await.is_ok();
    }
    if body["model"] == "no-such-model" {
        return stream.write_all(&say(404, "The model `no-such-model` does not exist")).await.is_ok();
    }
    let turns = if chat { &body["messages"] } else { &body["input"] };
    let texts: Vec<String> = turns.as_array().into_iter().flatten().map(text_of).collect();
    let last = texts.last().cloned().unwrap_or_default();
    if last.contains("REFUSE") {
        return stream.write_all(&say(400, "This request is against the rules")).await.is_ok();
    }

    if let Some(bytes) = (behaviour.bytes)(&last, time) {
        let _ = stream.write_all(&bytes).await;
        return false;
    }

    let draw = xxh3_64_with_seed(&[&request.body[..], &time.to_le_bytes()].concat(), behaviour.seed);
    let (low, high) = behaviour.latency;
    tokio::time::sleep(Duration::from_millis(low + draw % (high - low + 1))).await;
    let faulty = (draw >> 11) as f64 / ((1_u64 << 53) as f64) < behaviour.fault_share;
    let fault = faulty.then(|| behaviour.faults[(draw % behaviour.faults.len() as u64) as usize]);

    let text = (behaviour.answers)(&last).unwrap_or_else(|| answer_to(&last));
    let (prompt, completion) = (texts.iter().map(|t| tokens_of(t)).sum::<u64>(), tokens_of(&text));
    {
        let mut counts = shared.counts.lock().unwrap();
        counts.failed += u64::from(fault.is_some_and(|f| f != Fault::Duplicate));
        if fault.is_none_or(Fault::charged) {
            counts.charged_calls += 1;
            counts.charged_prompt_tokens += prompt;
            counts.charged_completion_tokens += completion;
        }
    }
    let model = &body["model"];
    let answer = if let Some(body) = (behaviour.bodies)(&last) {
        body
    } else if chat {
        json!({"id": "chatcmpl-test", "object": "chat.completion", "created": 1, "model": model,
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}})
    } else {
        json!({"id": "resp-test", "object": "response", "created_at": 1, "model": model, "status": "completed",
            "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}],
            "usage": {"input_tokens": prompt, "output_tokens": completion, "total_tokens": prompt + completion}})
    };
    let good = response(200, &behaviour.headers, answer.to_string().as_bytes());
    match fault {
        None => stream.write_all(&good).await.is_ok(),
        Some(Fault::RateLimit) => {
            let mut headers = behaviour.headers.clone();
            headers.push(("retry-after".into(), "0.02".into()));
            let body = json!({"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded"}}).to_string();
            stream.write_all(&response(429, &headers, body.as_bytes())).await.is_ok()
        }
        Some(Fault::Status(status)) => stream.write_all(&say(status, "something is wrong here")).await.is_ok(),
        Some(Fault::Drop) => false,
        Some(Fault::HalfBody) => {
            let _ = stream.write_all(&good[..good.len() - 40]).await;
            false
        }
        Some(Fault::Slow) => {
            tokio::time::sleep(behaviour.slow).await;
            let _ = stream.write_all(&good).await;
            false
        }
        Some(Fault::Malformed) => {
            stream.write_all(&response(200, &[], br#"{"choices": [{"message": {"con"#)).await.is_ok()
        }
        Some(Fault::WrongShape) => {
            stream.write_all(&response(200, &[], br#"{"object": "list", "data": []}"#)).await.is_ok()
        }
        Some(Fault::Duplicate) => {
            let twice = [good.as_slice(), good.as_slice()].concat();
            stream.write_all(&twice).await.is_ok()
        }
    }
}

/// The Batch API; `None` closes the connection without an answer.
fn serve_batches(request: &Seen, shared: &Shared) -> Option<Vec<u8>> {
    let behaviour = &shared.behaviour;
    let mut counts = shared.counts.lock().unwrap();
    if shared.keep.load(Ordering::SeqCst) {
        counts.seen.push(request.clone());
    }
    let ok = |value: Value| Some(response(200, &[], value.to_string().as_bytes()));
    let described = |batch: &Batch, files: &HashMap<String, Vec<u8>>| {
        let done = batch.made.elapsed() >= behaviour.batch_time;
        let file = |kind: &str| Some(format!("{kind}-{}", batch.id)).filter(|f| done && files.contains_key(f));
        json!({"id": batch.id, "status": if done { "completed" } else { "in_progress" }, "metadata": batch.metadata,
            "output_file_id": file("out"), "error_file_id": file("err")})
    };
    let path = request.target.split('?').next().unwrap().trim_start_matches("/v1").to_owned();
    match (request.method.as_str(), path.split('/').collect::<Vec<_>>().as_slice()) {
        ("POST", ["", "files"]) => {
            let text = String::from_utf8(request.body.clone()).unwrap();
            let boundary = request.headers["content-type"].split("boundary=").nth(1).unwrap().to_owned();
            let part = text.split(&format!("--{boundary}")).find(|p| p.contains("filename=")).unwrap();
            let content = part.split_once("\r\n\r\n").unwrap().1.trim_end_matches("\r\n").to_owned();
            let id = format!("file-{}", counts.files.len());
            counts.files.insert(id.clone(), content.into_bytes());
            ok(json!({"id": id, "object": "file", "purpose": "batch"}))
        }
        ("POST", ["", "batches"]) => {
            let body: Value = serde_json::from_slice(&request.body).unwrap();
            let input = String::from_utf8(counts.files[body["input_file_id"].as_str().unwrap()].clone()).unwrap();
            let id = format!("batch-{}", counts.batches.len());
            let (mut out, mut err) = (String::new(), String::new());
            // Results come in another order than requests.
            for line in input.lines().rev() {
                let line: Value = serde_json::from_str(line).unwrap();
                let asked = line["body"].to_string().into_bytes();
                let time = counts.asked.entry(asked.clone()).or_default();
                *time += 1;
                let draw = xxh3_64_with_seed(&[&asked[..], &time.to_le_bytes()].concat(), behaviour.seed);
                let last = line["body"]["messages"].as_array().unwrap().last().map(text_of).unwrap();
                let reply = |to: &mut String, status: u16, body: Value| {
                    let result = json!({"id": "r", "custom_id": line["custom_id"], "response": {"status_code": status, "body": body}, "error": null});
                    to.push_str(&format!("{result}\n"));
                };
                if last.contains("REFUSE") {
                    reply(&mut err, 400, json!({"error": {"message": "This request is against the rules"}}));
                } else if (draw >> 11) as f64 / ((1_u64 << 53) as f64) < behaviour.fault_share {
                    counts.failed += 1;
                    reply(&mut err, 500, json!({"error": {"message": "something is wrong here"}}));
                } else {
                    let text = (behaviour.answers)(&last).unwrap_or_else(|| answer_to(&last));
                    let (prompt, completion) = (tokens_of(&last), tokens_of(&text));
                    counts.charged_calls += 1;
                    counts.charged_prompt_tokens += prompt;
                    counts.charged_completion_tokens += completion;
                    let made = || {
                        json!({"model": line["body"]["model"], "choices": [{"finish_reason": "stop", "message": {"content": text}}],
                            "usage": {"prompt_tokens": prompt, "completion_tokens": completion}})
                    };
                    reply(&mut out, 200, (behaviour.bodies)(&last).unwrap_or_else(made));
                }
            }
            for (kind, content) in [("out", out), ("err", err)] {
                if !content.is_empty() {
                    counts.files.insert(format!("{kind}-{id}"), content.into_bytes());
                }
            }
            let lines = input.lines().count();
            counts.batches.push(Batch {
                id,
                lines,
                metadata: body["metadata"].clone(),
                made: std::time::Instant::now(),
            });
            if behaviour.lose_batch_ids {
                return None;
            }
            ok(described(counts.batches.last().unwrap(), &counts.files))
        }
        ("GET", ["", "batches"]) => {
            let all: Vec<Value> = counts.batches.iter().rev().map(|b| described(b, &counts.files)).collect();
            ok(json!({"object": "list", "data": all}))
        }
        ("GET", ["", "batches", id]) => {
            let batch = counts.batches.iter().find(|b| b.id == *id).unwrap();
            ok(described(batch, &counts.files))
        }
        ("GET", ["", "files", id, "content"]) => Some(response(200, &[], &counts.files[*id])),
        other => panic!("{other:?}"),
    }
}

fn text_of(turn: &Value) -> String {
    match &turn["content"] {
        Value::String(text) => text.clone(),
        parts => {
            parts.as_array().into_iter().flatten().filter_map(|p| p["text"].as_str()).collect::<Vec<_>>().join(" ")
        }
    }
}
