//! The client against a real HTTP server that fails in many ways.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod client;
mod server;

use std::{sync::Arc, time::Duration};

use client::{client, config, request};
use groundloom_llm::{AnswerSchema, Api, Client, ClientConfig, Limits, LlmError, Money, Pace, Retry, Store};
use serde_json::json;
use server::{Behaviour, Fault, Server, answer_to};

async fn ask_all(client: &Arc<Client>, rows: usize) -> Vec<Result<String, LlmError>> {
    let asked = (0..rows).map(|i| {
        let client = Arc::clone(client);
        tokio::spawn(async move { client.ask(&request(&format!("row {i} of many"))).await.map(|r| r.answer.text) })
    });
    let mut answers = Vec::new();
    for answer in asked.collect::<Vec<_>>() {
        answers.push(answer.await.unwrap());
    }
    answers
}

fn expected(rows: usize) -> Vec<String> {
    (0..rows).map(|i| answer_to(&format!("row {i} of many"))).collect()
}

fn texts(answers: Vec<Result<String, LlmError>>) -> Vec<String> {
    answers.into_iter().map(Result::unwrap).collect()
}

#[tokio::test]
async fn every_row_is_answered_through_faults_and_asked_once_beyond_them() {
    for fault in Fault::PASSING {
        let server = Server::start(Behaviour {
            fault_share: 0.25,
            faults: vec![*fault],
            latency: (0, 10),
            slow: Duration::from_millis(1500),
            ..Behaviour::default()
        });
        let folder = tempfile::tempdir().unwrap();
        let client = client(config(&server.url), folder.path()).unwrap();
        let rows = if *fault == Fault::Slow { 20 } else { 60 };
        assert_eq!(texts(ask_all(&client, rows).await), expected(rows), "{fault:?}");
        let (requests, failed) = server.counts(|c| (c.requests(), c.failed));
        assert_eq!(requests, rows as u64 + failed, "{fault:?}");
        let spending = client.spending();
        assert_eq!((spending.calls, spending.failed), (rows as u64, failed), "{fault:?}");

        // Again, in a new client on the same store: nothing is asked.
        drop(client);
        let again = client::client(config(&server.url), folder.path()).unwrap();
        assert_eq!(texts(ask_all(&again, rows).await), expected(rows), "{fault:?}");
        assert_eq!(server.requests(), requests, "{fault:?}");
        assert_eq!((again.spending().from_store, again.spending().interrupted), (rows as u64, 0));
        assert_eq!(again.spending().saved, spending.cost);
    }
}

#[tokio::test]
async fn a_server_that_is_down_for_a_while_costs_no_row() {
    let server = Server::start(Behaviour { latency: (5, 10), ..Behaviour::default() });
    let folder = tempfile::tempdir().unwrap();
    let client = client(config(&server.url), folder.path()).unwrap();
    server.set_down(true);
    let asking = tokio::spawn({
        let client = Arc::clone(&client);
        async move { ask_all(&client, 100).await }
    });
    tokio::time::sleep(Duration::from_millis(800)).await;
    let while_down = server.requests();
    assert!(while_down < 60, "the circuit breaker lets one call try at a time: {while_down}");
    server.set_down(false);
    assert_eq!(texts(asking.await.unwrap()), expected(100));
}

/// A failure in the server's words, behind which the connection closes as it says: the next request takes another.
fn failure(status: u16, words: &str) -> Vec<u8> {
    let close = [("connection".to_owned(), "close".to_owned())];
    server::response(status, &close, json!({"error": {"message": words}}).to_string().as_bytes())
}

/// llama.cpp answers 500 where it cannot read what its own model wrote, vLLM where it cannot read an image.
#[tokio::test]
async fn rows_that_always_fail_are_lost_alone_however_many_are_left_in_the_end() {
    let server = Server::start(Behaviour {
        latency: (1, 5),
        bytes: |text, _| {
            let poisoned = text.starts_with("row 1") || text.starts_with("row 3");
            poisoned.then(|| failure(500, "cannot read that"))
        },
        ..Behaviour::default()
    });
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&server.url);
    (config.retry.attempts, config.pace.give_up_after) = (4, Duration::from_secs(1));
    let client = client(config, folder.path()).unwrap();
    // Rows 1, 3, 10 to 19 and 30 to 39.
    let mut lost = 0;
    for (row, answer) in ask_all(&client, 100).await.into_iter().enumerate() {
        match answer {
            Ok(text) => assert_eq!(text, answer_to(&format!("row {row} of many"))),
            Err(error) => {
                assert!(error.is_of_one_row() && error.to_string().contains("cannot read that"), "{row}: {error}");
                lost += 1;
            }
        }
    }
    assert_eq!((lost, client.spending().calls), (22, 78));
}

#[tokio::test]
async fn nothing_more_is_asked_once_the_run_has_to_end() {
    let streams = |_: &str, _| {
        let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
        Some([&head[..], b"data: {\"choices\": []}\n\ndata: [DONE]\n\n"].concat())
    };
    let server = Server::start(Behaviour { bytes: streams, ..Behaviour::default() });
    let folder = tempfile::tempdir().unwrap();
    let client = client(config(&server.url), folder.path()).unwrap();
    for answer in ask_all(&client, 500).await {
        let error = answer.unwrap_err();
        assert!(!error.is_of_one_row() && error.to_string().contains(r#"`extra: '{"stream": false}'`"#), "{error}");
    }
    let requests = server.requests();
    assert!(requests <= 32, "those that were in flight when the first answer came: {requests}");
}

/// LiteLLM answers 400 to a model that it does not know, and without a database to a wrong key too.
#[tokio::test]
async fn a_server_that_refuses_everything_in_the_same_words_ends_the_run() {
    let refusing = |text: &str, _: u64| {
        let words = if text.starts_with("row 7 ") { "too long" } else { "Invalid model name" };
        Some(failure(400, words))
    };
    let server = Server::start(Behaviour { bytes: refusing, ..Behaviour::default() });
    let folder = tempfile::tempdir().unwrap();
    // One that is refused for another reason is enough to go on.
    for (refusals, first, goes_on) in [(20, 0, true), (20, 8, false), (0, 8, true)] {
        let mut config = config(&server.url);
        config.retry.refusals = refusals;
        let client = client(config, folder.path()).unwrap();
        for row in first..first + 19 {
            let error = client.ask(&request(&format!("row {row} of many"))).await.unwrap_err();
            assert!(error.is_of_one_row(), "{row}: {error}");
        }
        let before = server.requests();
        for row in 100..103 {
            let error = client.ask(&request(&format!("row {row} of many"))).await.unwrap_err();
            assert_eq!(error.is_of_one_row(), goes_on, "{error}");
            assert!(error.to_string().contains("(400): Invalid model name"), "{error}");
        }
        assert_eq!(server.requests() - before, if goes_on { 3 } else { 1 });
    }
}

#[tokio::test]
async fn a_server_that_stays_away_ends_the_run() {
    let mut config = config("http://127.0.0.1:9/v1");
    config.pace.give_up_after = Duration::from_millis(300);
    let folder = tempfile::tempdir().unwrap();
    let error = client(config, folder.path()).unwrap().ask(&request("x")).await.unwrap_err();
    assert!(!error.is_of_one_row());
    let text = error.to_string();
    assert!(text.starts_with("http://127.0.0.1:9/v1 has been failing") && text.contains("refused"), "{text}");
}

#[tokio::test]
async fn what_cannot_be_mended_is_not_tried_again_and_told_in_the_servers_words() {
    let server = Server::start(Behaviour { key: Some("right".into()), ..Behaviour::default() });
    let folder = tempfile::tempdir().unwrap();
    let wrong_key = client(config(&server.url), folder.path()).unwrap();
    let error = wrong_key.ask(&request("x")).await.unwrap_err();
    assert!(!error.is_of_one_row() && error.to_string().contains("Incorrect API key provided"), "{error}");
    assert_eq!(server.requests(), 1);

    let server = Server::start(Behaviour::default());
    let asking = client(config(&server.url), folder.path()).unwrap();
    let error = asking.ask(&request("REFUSE this")).await.unwrap_err();
    assert!(error.is_of_one_row() && error.to_string().contains("against the rules"), "{error}");
    let mut lost = request("x");
    lost.model = "no-such-model".into();
    let error = asking.ask(&lost).await.unwrap_err();
    assert!(!error.is_of_one_row() && error.to_string().contains("does not exist"), "{error}");
    assert_eq!(server.requests(), 2);
    assert_eq!(asking.ask(&request("still fine")).await.unwrap().answer.text, answer_to("still fine"));

    let always =
        Server::start(Behaviour { fault_share: 1.0, faults: vec![Fault::Status(500)], ..Behaviour::default() });
    let mut patient = config(&always.url);
    (patient.retry.attempts, patient.pace.give_up_after) = (3, Duration::from_secs(5));
    let error = client(patient, folder.path()).unwrap().ask(&request("never")).await.unwrap_err();
    assert!(error.is_of_one_row() && error.to_string().contains("something is wrong here"), "{error}");
    assert_eq!(always.requests(), 3);
}

#[tokio::test]
async fn rows_that_ask_the_same_are_asked_once() {
    let server = Server::start(Behaviour { latency: (30, 30), ..Behaviour::default() });
    let folder = tempfile::tempdir().unwrap();
    // Two clients with stores of their own on one folder, as two processes have.
    let clients: Vec<_> = (0..2)
        .map(|i| {
            let mut config = config(&server.url);
            config.budget = format!("budget {i}");
            client(config, folder.path()).unwrap()
        })
        .collect();
    let asked: Vec<_> = (0..40)
        .map(|i| {
            let client = Arc::clone(&clients[i % 2]);
            tokio::spawn(async move { client.ask(&request(&format!("one of {}", i / 8))).await.unwrap().answer.text })
        })
        .collect();
    for (i, answer) in asked.into_iter().enumerate() {
        assert_eq!(answer.await.unwrap(), answer_to(&format!("one of {}", i / 8)));
    }
    assert_eq!(server.requests(), 5);
}

#[tokio::test]
async fn the_cap_is_never_passed_whatever_fails() {
    let behaviour =
        Behaviour { fault_share: 0.3, latency: (0, 20), slow: Duration::from_millis(1500), ..Behaviour::default() };
    for (limits, seed) in [
        (Limits { max_calls: Some(30), ..Limits::default() }, 1),
        (Limits { max_tokens: Some(400), ..Limits::default() }, 2),
        (Limits { max_cost: Some(Money(500_000_000)), ..Limits::default() }, 3),
    ] {
        let server = Server::start(Behaviour { seed, ..behaviour.clone() });
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(&server.url);
        config.limits = limits;
        for _ in 0..2 {
            // The second client is another process of the same run: what the first spent counts.
            let client = client(config.clone(), folder.path()).unwrap();
            let answers = ask_all(&client, 80).await;
            let stopped = answers.iter().filter(|a| matches!(a, Err(LlmError::Limit { .. }))).count();
            assert!(stopped > 0 && answers.iter().any(Result::is_ok), "{limits:?}: {stopped}");
        }
        server.counts(|c| {
            let cost = c.charged_prompt_tokens * 1_000_000 + c.charged_completion_tokens * 2_000_000;
            assert!(c.charged_calls <= limits.max_calls.unwrap_or(u64::MAX));
            assert!(c.tokens() <= limits.max_tokens.unwrap_or(u64::MAX));
            assert!(cost <= limits.max_cost.map_or(u64::MAX, |m| m.0), "{cost}");
        });
    }
}

#[tokio::test]
async fn a_cost_limit_without_a_price_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config("http://127.0.0.1:9/v1");
    config.limits.max_cost = Some(Money::ONE);
    let mut request = request("x");
    request.model = "unknown".into();
    let error = client(config, folder.path()).unwrap().ask(&request).await.unwrap_err();
    assert!(matches!(error, LlmError::NoPrice { .. }) && !error.is_of_one_row(), "{error}");
}

#[tokio::test]
async fn a_dropped_question_is_still_paid_once() {
    let server = Server::start(Behaviour { latency: (80, 80), ..Behaviour::default() });
    let folder = tempfile::tempdir().unwrap();
    let client = client(config(&server.url), folder.path()).unwrap();
    let gone = tokio::time::timeout(Duration::from_millis(30), client.ask(&request("wait"))).await;
    assert!(gone.is_err());
    assert_eq!(client.ask(&request("wait")).await.unwrap().answer.text, answer_to("wait"));
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn offline_replays_and_asks_nobody() {
    let server = Server::start(Behaviour::default());
    let (folder, carried) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let online = client(config(&server.url), folder.path()).unwrap();
    ask_all(&online, 10).await;
    let archive = carried.path().join("answers.parquet");
    let written = Store::open_read_only(folder.path()).unwrap().export(&archive).unwrap();
    drop((server, online));

    // Another machine, another address, no network.
    let store = Store::open(&carried.path().join("store")).unwrap();
    let imported = store.import(&archive).await.unwrap();
    assert_eq!((written.written, imported.written, imported.known), (10, 10, 0));
    assert_eq!(store.import(&archive).await.unwrap().known, 10);
    let mut config = config("http://nowhere.invalid/v1");
    config.offline = true;
    let store = Store::open_read_only(&carried.path().join("store")).unwrap();
    let offline = Client::new(config, store, client::prices()).unwrap();
    assert_eq!(texts(ask_all(&offline, 10).await), expected(10));
    let error = offline.ask(&request("new")).await.unwrap_err();
    assert!(
        matches!(error, LlmError::NotInStore { .. }) && error.to_string().contains("no answer to request"),
        "{error}"
    );
}

#[tokio::test]
async fn limits_per_minute_and_pauses_are_kept() {
    let headers = vec![
        ("x-ratelimit-remaining-requests".to_owned(), "0".to_owned()),
        ("x-ratelimit-reset-requests".to_owned(), "40ms".to_owned()),
    ];
    let server = Server::start(Behaviour { headers, ..Behaviour::default() });
    let folder = tempfile::tempdir().unwrap();
    let mut paused = config(&server.url);
    paused.pace.max_concurrency = 1;
    let start = std::time::Instant::now();
    texts(ask_all(&client(paused, folder.path()).unwrap(), 6).await);
    assert!(start.elapsed() >= Duration::from_millis(5 * 40));

    let server = Server::start(Behaviour { latency: (20, 20), ..Behaviour::default() });
    let folder = tempfile::tempdir().unwrap();
    let mut limited = config(&server.url);
    limited.pace = Pace { max_concurrency: 5, requests_per_minute: Some(3_000), ..limited.pace };
    let start = std::time::Instant::now();
    texts(ask_all(&client(limited, folder.path()).unwrap(), 26).await);
    assert!(start.elapsed() >= Duration::from_millis(25 * 20));
    assert!(server.counts(|c| c.most_at_once) <= 5);
}

#[tokio::test]
async fn slow_calls_are_asked_twice_where_that_is_wanted_and_both_are_kept_and_counted() {
    let behaviour = Behaviour {
        fault_share: 0.3,
        faults: vec![Fault::Slow],
        slow: Duration::from_millis(300),
        ..Behaviour::default()
    };
    let server = Server::start(behaviour.clone());
    let folder = tempfile::tempdir().unwrap();
    let hedge = Some("60ms".parse().unwrap());
    let hedged = client(ClientConfig { hedge, ..config(&server.url) }, folder.path()).unwrap();
    assert_eq!(texts(ask_all(&hedged, 40).await), expected(40));
    hedged.settled().await;
    let spending = hedged.spending();
    assert!(spending.hedged >= 3, "{spending}");
    assert_eq!(server.requests(), 40 + spending.hedged);
    assert_eq!(
        (spending.calls, spending.failed),
        (40 + spending.hedged, 0),
        "every answer is counted, also the later one"
    );
    assert_eq!(
        hedged.spending().cost,
        server.counts(|c| Money(c.charged_prompt_tokens * 1_000_000 + c.charged_completion_tokens * 2_000_000))
    );
    drop(hedged);
    assert_eq!(Store::open(folder.path()).unwrap().interrupted(), 0);

    // Everything is slow, and there is room for one call only.
    let server = Server::start(Behaviour { fault_share: 1.0, ..behaviour });
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { max_calls: Some(1), ..Limits::default() };
    let capped = client(ClientConfig { hedge, limits, ..config(&server.url) }, folder.path()).unwrap();
    assert_eq!(texts(ask_all(&capped, 1).await), expected(1));
    capped.settled().await;
    assert_eq!((server.requests(), capped.spending().hedged), (1, 0));
}

#[tokio::test]
async fn clients_of_one_budget_share_its_limits() {
    let server = Server::start(Behaviour::default());
    let folder = tempfile::tempdir().unwrap();
    let clients = groundloom_llm::Clients::new(false);
    let limits = Limits { max_calls: Some(3), ..Limits::default() };
    let client = |attempts| {
        let config = config(&server.url);
        let config = ClientConfig { limits, retry: Retry { attempts, ..config.retry }, ..config };
        clients.client(config, folder.path(), client::prices()).unwrap()
    };
    let (one, other) = (client(3), client(4));
    for (client, text) in [(&one, "a"), (&other, "b"), (&one, "c"), (&other, "a")] {
        client.ask(&request(text)).await.unwrap();
    }
    for (client, text) in [(&one, "d"), (&other, "e")] {
        let error = client.ask(&request(text)).await.unwrap_err().to_string();
        assert!(error.contains("`max_calls: 3`"), "{error}");
    }
    assert_eq!(server.requests(), 3);
}

#[tokio::test]
async fn answers_in_the_wrong_form_are_repaired_a_bounded_number_of_times() {
    let server = Server::start(Behaviour {
        answers: |last| {
            Some(match last {
                "colour" => "It is red.".into(),
                t if t.contains("the answer is no JSON") => "```json\n{\"colour\": 5}\n```".into(),
                t if t.contains("/colour: expected string, found 5") => r#"{"colour": "red"}"#.into(),
                _ => "never right".into(),
            })
        },
        ..Behaviour::default()
    });
    let folder = tempfile::tempdir().unwrap();
    let client = client(config(&server.url), folder.path()).unwrap();
    let form = json!({"type": "object", "required": ["colour"], "properties": {"colour": {"type": "string"}}});
    let schema = AnswerSchema::new(form).unwrap();
    for api in [Api::ChatCompletions, Api::Responses] {
        let mut request = request("colour");
        request.api = api;
        let reply = client.ask_for(&request, &schema, 2).await.unwrap();
        assert_eq!((reply.value, reply.repairs), (json!({"colour": "red"}), 2));
        let error = client.ask_for(&request, &schema, 1).await.unwrap_err();
        assert!(
            matches!(&error, LlmError::Form { text, .. } if text.contains('5')) && error.is_of_one_row(),
            "{error}"
        );
    }
    let before = server.requests();
    let other = json!({"type": "object", "required": ["size"]});
    assert!(client.ask_for(&request("never"), &AnswerSchema::new(other).unwrap(), 2).await.is_err());
    assert_eq!(server.requests(), before + 3);
}

#[tokio::test]
async fn a_cut_or_damaged_store_loses_only_what_is_damaged() {
    let server = Server::start(Behaviour::default());
    let folder = tempfile::tempdir().unwrap();
    let first = client(config(&server.url), folder.path()).unwrap();
    // One after the other, so that the records lie in this order.
    for i in 0..10 {
        first.ask(&request(&format!("row {i} of many"))).await.unwrap();
    }
    drop(first);
    let segment = std::fs::read_dir(folder.path().join("segments")).unwrap().next().unwrap().unwrap().path();
    let whole = std::fs::read(&segment).unwrap();
    let starts: Vec<usize> = whole.windows(4).enumerate().filter(|(_, w)| *w == b"GLR1").map(|(i, _)| i).collect();
    assert_eq!(starts.len(), 10);

    // Cut behind every byte of the last record and of the one before: whole records stay.
    for cut in (starts[8]..whole.len()).step_by(7).chain([whole.len() - 1]) {
        std::fs::write(&segment, &whole[..cut]).unwrap();
        let kept = if cut >= starts[9] { 9 } else { 8 };
        assert_eq!(Store::open_read_only(folder.path()).unwrap().len(), kept, "cut at {cut}");
    }
    let again = client(config(&server.url), folder.path()).unwrap();
    assert_eq!(texts(ask_all(&again, 10).await), expected(10));
    assert_eq!(server.requests(), 11);
    drop(again);
    assert_eq!(Store::open_read_only(folder.path()).unwrap().len(), 10, "what came after the cut is readable");

    // A flipped bit in a header and one in a payload, in the middle of the file.
    let mut damaged = whole.clone();
    damaged[starts[3] + 20] ^= 1;
    damaged[starts[6] - 3] ^= 1;
    std::fs::write(&segment, &damaged).unwrap();
    let again = client(config(&server.url), folder.path()).unwrap();
    assert_eq!(texts(ask_all(&again, 10).await), expected(10));
    assert_eq!(server.requests(), 13, "two records are damaged, two rows are asked again");
}
