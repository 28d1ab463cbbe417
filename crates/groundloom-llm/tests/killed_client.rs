//! A client process that is killed again and again: every row is answered once, nothing that arrived is asked again, and the cap holds.
//!
//! The client is this test binary itself, started again as another process. `GROUNDLOOM_LLM_ROWS=10000` makes it as large as you like.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod client;
mod server;

use std::{
    io::Read,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use client::{client, config, request};
use groundloom_llm::{LlmError, Money, Retry};
use server::{Behaviour, Server, answer_to, tokens_of};

const STORE: &str = "GROUNDLOOM_TEST_STORE";
const URL: &str = "GROUNDLOOM_TEST_URL";
const ROWS: &str = "GROUNDLOOM_TEST_ROWS";
const CAP: &str = "GROUNDLOOM_TEST_CAP";
const OFFLINE: &str = "GROUNDLOOM_TEST_OFFLINE";

fn text(row: usize) -> String {
    format!("describe picture number {row} in a few words")
}

/// Not a test of its own: what the killed process does. It ends with one line per row, and says how it ended.
#[test]
fn client_process() {
    let Ok(store) = std::env::var(STORE) else { return };
    let var = |name: &str| std::env::var(name).unwrap();
    let rows: usize = var(ROWS).parse().unwrap();
    let mut config = config(&var(URL));
    config.limits.max_cost = Some(Money(var(CAP).parse().unwrap()));
    config.offline = var(OFFLINE) == "1";
    config.retry = Retry { attempts: 30, ..config.retry };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let client = client(config, Path::new(&store)).unwrap();
        println!("\ninterrupted {}", client.spending().interrupted);
        let asked: Vec<_> = (0..rows)
            .map(|row| {
                let client = Arc::clone(&client);
                tokio::spawn(async move { client.ask(&request(&text(row))).await })
            })
            .collect();
        let (mut lines, mut limited) = (String::new(), 0);
        for (row, answer) in asked.into_iter().enumerate() {
            match answer.await.unwrap() {
                Ok(reply) => lines.push_str(&format!("row {row} {}\n", reply.answer.text)),
                Err(LlmError::Limit { .. }) => limited += 1,
                Err(error) => panic!("row {row}: {error}"),
            }
        }
        println!("{lines}limited {limited}\nended");
    });
}

struct Run<'a> {
    server: &'a Server,
    store: &'a Path,
    rows: usize,
    interrupted: u64,
}

impl Run<'_> {
    fn start(&self, cap: u64, offline: bool) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["client_process", "--exact", "--nocapture", "--test-threads=1"])
            .env(STORE, self.store)
            .env(URL, &self.server.url)
            .env(ROWS, self.rows.to_string())
            .env(CAP, cap.to_string())
            .env(OFFLINE, if offline { "1" } else { "0" })
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Starts the client and kills it as soon as the server has been asked so often.
    fn kill_at(&mut self, cap: u64, requests: u64) {
        let mut child = self.start(cap, false);
        while self.server.requests() < requests && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        self.output(child);
    }

    /// Waits for the client's end; its lines.
    fn output(&mut self, mut child: Child) -> Vec<String> {
        let mut output = String::new();
        child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        child.wait().unwrap();
        let lines: Vec<String> = output.lines().map(str::to_owned).collect();
        let interrupted = lines.iter().find_map(|l| l.strip_prefix("interrupted "));
        self.interrupted += interrupted.map_or(0, |n| n.parse::<u64>().unwrap());
        lines
    }
}

#[test]
fn every_row_once_nothing_paid_twice_and_the_cap_holds() {
    let rows: usize = std::env::var("GROUNDLOOM_LLM_ROWS").map_or(400, |n| n.parse().unwrap());
    let server = Server::start(Behaviour {
        seed: 11,
        fault_share: 0.2,
        latency: (1, 20),
        slow: Duration::from_millis(1500),
        ..Behaviour::default()
    });
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run { server: &server, store: folder.path(), rows, interrupted: 0 };
    let cost = |server: &Server| {
        server.counts(|c| c.charged_prompt_tokens * 1_000_000 + c.charged_completion_tokens * 2_000_000)
    };
    // By the server's count; the client reserves several times as much per call.
    let needed =
        (0..rows).map(|r| tokens_of(&text(r)) * 1_000_000 + tokens_of(&answer_to(&text(r))) * 2_000_000).sum::<u64>();

    // With a cap below what is needed: killed twice, then stopped by the cap.
    let cap = needed * 6 / 10;
    let n = rows as u64;
    run.kill_at(cap, n / 10);
    run.kill_at(cap, n / 5);
    let child = run.start(cap, false);
    let lines = run.output(child);
    assert_eq!(lines.iter().filter(|l| *l == "ended").count(), 1, "{lines:?}");
    assert!(!lines.contains(&"limited 0".to_owned()), "the cap stops the run");
    assert!(cost(&server) <= cap, "{} of {cap}", cost(&server));
    let paid = cost(&server);

    // With room enough: killed several times more, then done.
    let cap = needed * 100;
    for i in 3..8 {
        run.kill_at(cap, server.requests() + n / (2 * i));
    }
    let child = run.start(cap, false);
    let lines = run.output(child);
    let answers: Vec<&str> = lines.iter().filter(|l| l.starts_with("row ")).map(String::as_str).collect();
    let expected: Vec<String> = (0..rows).map(|r| format!("row {r} {}", answer_to(&text(r)))).collect();
    assert_eq!(answers, expected);
    assert!(cost(&server) > paid && cost(&server) <= cap);

    let (requests, failed) = server.counts(|c| (c.requests(), c.failed));
    println!(
        "{rows} rows, {requests} requests, {failed} failures of the server, {} in flight at 7 kills",
        run.interrupted
    );
    assert!(requests <= n + failed + run.interrupted, "{requests} > {n} + {failed} + {}", run.interrupted);
    // 32 at the server at most, and as many whose answer is on its way to the disk.
    assert!(run.interrupted <= 7 * 64, "{}", run.interrupted);

    // And once more without the server.
    let child = run.start(0, true);
    let lines = run.output(child);
    let answers: Vec<&str> = lines.iter().filter(|l| l.starts_with("row ")).map(String::as_str).collect();
    assert_eq!(answers, expected);
    assert_eq!(server.requests(), requests);
}
