//! The Batch API against a server: partial failures, lost ids, other processes, limits.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod client;
mod server;

use std::{path::Path, sync::Arc, time::Duration};

use client::{client, config, request};
use groundloom_llm::{BatchOptions, Client, Limits, LlmError, Money, Request};
use serde_json::{Value, json};
use server::{Behaviour, Server, answer_to};

const OPTIONS: BatchOptions = BatchOptions { poll: Duration::from_millis(20), price_share: 0.5 };

fn requests(rows: usize) -> Vec<Request> {
    (0..rows).map(|i| request(&format!("row {i} of a batch"))).collect()
}

async fn answered(client: &Arc<Client>, rows: usize) {
    for (i, request) in requests(rows).iter().enumerate() {
        let reply = client.ask(request).await.unwrap();
        assert!(reply.from_store);
        assert_eq!(reply.answer.text, answer_to(&format!("row {i} of a batch")));
    }
}

fn batch_states(store: &Path) -> usize {
    std::fs::read_dir(store.join("batches")).map_or(0, Iterator::count)
}

#[tokio::test]
async fn what_fails_in_a_batch_is_submitted_again_and_refusals_are_told() {
    let server = Server::start(Behaviour { fault_share: 0.3, ..Behaviour::default() });
    let folder = tempfile::tempdir().unwrap();
    let client = client(config(&server.url), folder.path()).unwrap();
    let mut all = requests(50);
    all.push(request("REFUSE this"));
    let all: Vec<&Request> = all.iter().collect();
    let failures = client.answer_in_batches(&all, OPTIONS).await.unwrap();
    assert_eq!(failures.len(), 1);
    let error = &failures[&client.hash(all[50])];
    assert!(
        matches!(error, LlmError::Refused { status: 400, message } if message.contains("against the rules")),
        "{error}"
    );
    answered(&client, 50).await;
    let (charged, asked, failed, lines, prompt, completion) = server.counts(|c| {
        let lines: Vec<usize> = c.batches.iter().map(|b| b.lines).collect();
        (c.charged_calls, c.requests(), c.failed, lines, c.charged_prompt_tokens, c.charged_completion_tokens)
    });
    assert_eq!((charged, asked), (50, 51 + failed), "{lines:?}");
    assert!(lines[0] == 51 && lines[1] < 25 && lines.len() < 8, "{lines:?}");
    let spending = client.spending();
    assert_eq!((spending.calls, spending.from_store), (50, 0), "paid for now, not saved by the store");
    assert_eq!(spending.cost, Money((prompt + 2 * completion) * 500_000), "half the list price");
    assert_eq!(batch_states(folder.path()), 0);

    assert!(client.answer_in_batches(&all[..50], OPTIONS).await.unwrap().is_empty());
    assert_eq!(server.requests(), asked);
}

#[tokio::test]
async fn a_batch_goes_on_in_another_process_and_is_never_submitted_twice() {
    let server = Server::start(Behaviour { batch_time: Duration::from_millis(600), ..Behaviour::default() });
    let folder = tempfile::tempdir().unwrap();
    let all = requests(30);
    let all: Vec<&Request> = all.iter().collect();
    let first = client(config(&server.url), folder.path()).unwrap();
    let gone = tokio::time::timeout(Duration::from_millis(250), first.answer_in_batches(&all, OPTIONS)).await;
    assert!(gone.is_err(), "the batch takes longer than that");
    drop(first);
    assert_eq!(batch_states(folder.path()), 2, "the state and its lock");

    let second = client(config(&server.url), folder.path()).unwrap();
    assert!(second.answer_in_batches(&all, OPTIONS).await.unwrap().is_empty());
    answered(&second, 30).await;
    assert_eq!(server.counts(|c| (c.batches.len(), c.charged_calls)), (1, 30));
    assert_eq!(batch_states(folder.path()), 0);
}

#[tokio::test]
async fn a_batch_whose_id_got_lost_is_found_by_its_name() {
    let server = Server::start(Behaviour { lose_batch_ids: true, ..Behaviour::default() });
    let folder = tempfile::tempdir().unwrap();
    let client = client(config(&server.url), folder.path()).unwrap();
    let all = requests(10);
    let all: Vec<&Request> = all.iter().collect();
    assert!(client.answer_in_batches(&all, OPTIONS).await.unwrap().is_empty());
    answered(&client, 10).await;
    assert_eq!(server.counts(|c| c.batches.len()), 1);
}

#[tokio::test]
async fn a_batch_that_could_pass_the_cap_is_not_submitted() {
    let server = Server::start(Behaviour::default());
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&server.url);
    config.limits = Limits { max_calls: Some(9), ..Limits::default() };
    let client = client(config, folder.path()).unwrap();
    let all = requests(10);
    let error = client.answer_in_batches(&all.iter().collect::<Vec<_>>(), OPTIONS).await.unwrap_err();
    assert!(matches!(error, LlmError::Limit { .. }), "{error}");
    assert!(server.counts(|c| c.batches.is_empty()));
    assert!(client.answer_in_batches(&all[..9].iter().collect::<Vec<_>>(), OPTIONS).await.unwrap().is_empty());
}

/// Cut off, nothing said, not readable, and never an answer.
fn useless(text: &str) -> Option<Value> {
    let usage = |completion: u64| json!({"prompt_tokens": 3, "completion_tokens": completion});
    match text {
        "abort" => {
            Some(json!({"choices": [{"finish_reason": "abort", "message": {"content": "fi"}}], "usage": usage(1)}))
        }
        "nothing" => {
            Some(json!({"choices": [{"finish_reason": "stop", "message": {"content": null}}], "usage": usage(0)}))
        }
        "quota" => Some(json!({"error": {"code": 403, "message": "no such project"}})),
        _ => None,
    }
}

#[tokio::test]
async fn what_is_no_answer_is_submitted_again_and_counts_where_it_may_be_paid() {
    let server = Server::start(Behaviour { bodies: useless, ..Behaviour::default() });
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&server.url);
    config.retry.attempts = 3;
    let client = client(config, folder.path()).unwrap();
    let all = [request("abort"), request("nothing"), request("row 0 of a batch")];
    let failures = client.answer_in_batches(&all.iter().collect::<Vec<_>>(), OPTIONS).await.unwrap();
    for (request, words) in [(&all[0], "broke off (`abort`)"), (&all[1], "without a word")] {
        let error = &failures[&client.hash(request)];
        let LlmError::NoAnswer { attempts: 3, last } = error else { panic!("{error}") };
        assert!(last.contains(words), "{last}");
    }
    assert_eq!(failures.len(), 2);
    answered(&client, 1).await;
    assert_eq!(server.counts(|c| c.batches.iter().map(|b| b.lines).collect::<Vec<_>>()), [3, 2, 2]);
    // Three answers that broke off may each be charged at their most, at half the price.
    let most = client.estimate(&all[0]);
    let spending = client.spending();
    assert_eq!((spending.calls, spending.failed, spending.lost), (1, 6, 3));
    assert_eq!(spending.lost_cost, Money(most.most_cost.unwrap().0.div_ceil(2) * 3));
    let spent = groundloom_llm::Store::open_read_only(folder.path()).unwrap().spent_under("test");
    assert_eq!((spent.calls, spent.cost), (4, spending.cost.plus(spending.lost_cost)));
}

#[tokio::test]
async fn a_line_that_no_other_request_would_fare_better_than_ends_the_run_when_the_rest_is_kept() {
    let server = Server::start(Behaviour { bodies: useless, ..Behaviour::default() });
    let folder = tempfile::tempdir().unwrap();
    let client = client(config(&server.url), folder.path()).unwrap();
    let all = [request("quota"), request("row 0 of a batch")];
    let error = client.answer_in_batches(&all.iter().collect::<Vec<_>>(), OPTIONS).await.unwrap_err();
    assert!(matches!(&error, LlmError::Key { status: 403, .. }), "{error}");
    assert_eq!(batch_states(folder.path()), 0);
    answered(&client, 1).await;
}
