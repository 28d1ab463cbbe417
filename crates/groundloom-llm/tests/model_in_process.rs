//! A model in this process behind the client: answers kept and found again, work that ends when nobody waits.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod client;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use client::{config, request};
use futures::{FutureExt, future::BoxFuture};
use groundloom_llm::{
    AnswerForm, AnswerSchema, Backend, BatchOptions, Client, ClientConfig, Clients, Finish, LlmError, Outcome,
    PriceTable, Request, Store, Usage, chat_completion,
};
use serde_json::json;

/// Says `text` to everything; never, where it is empty.
#[derive(Debug)]
struct Parrot {
    text: &'static str,
    asked: AtomicUsize,
}

impl Parrot {
    fn saying(text: &'static str) -> Arc<Self> {
        Arc::new(Self { text, asked: AtomicUsize::new(0) })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Backend for Parrot {
    fn answer<'a>(&'a self, request: &'a Request, _body: &'a Bytes) -> BoxFuture<'a, Outcome> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        async move {
            if self.text.is_empty() {
                std::future::pending::<()>().await;
            }
            if self.text == "no" {
                let error = LlmError::Unanswerable { model: "parrot".into(), message: "too long".into() };
                return Outcome::Refused(error);
            }
            let usage = Usage { prompt_tokens: 3, completion_tokens: 2, cached_prompt_tokens: 0 };
            let body = chat_completion(&request.model, self.text.to_owned(), &Finish::Length, usage);
            Outcome::Answered { body, pause: None }
        }
        .boxed()
    }

    fn outlives_its_asker(&self) -> bool {
        false
    }
}

fn client(store: &Path, weights: &str, parrot: &Arc<Parrot>) -> Arc<Client> {
    let config = ClientConfig { namespace: weights.to_owned(), ..config("parrot") };
    let model = Arc::clone(parrot) as Arc<dyn Backend>;
    Clients::new(false).client_of_model(config, model, store, PriceTable::free("test-model")).unwrap()
}

#[tokio::test]
async fn answers_are_kept_by_weights() {
    let folder = tempfile::tempdir().unwrap();
    let (first, other) = (Parrot::saying("hello"), Parrot::saying("good bye"));
    for _ in 0..2 {
        let asking = client(folder.path(), "weights 1", &first);
        let reply = asking.ask(&request("hi")).await.unwrap();
        assert_eq!((reply.answer.text.as_str(), &reply.answer.finish), ("hello", &Finish::Length));
        let usage = reply.answer.usage.unwrap();
        assert_eq!((usage.prompt_tokens, usage.completion_tokens, reply.answer.model.as_str()), (3, 2, "test-model"));
    }
    assert_eq!(first.asked(), 1);
    let reply = client(folder.path(), "weights 2", &other).ask(&request("hi")).await.unwrap();
    assert_eq!((reply.answer.text.as_str(), reply.from_store), ("good bye", false));
}

#[tokio::test]
async fn a_form_is_asked_for_a_bounded_number_of_times() {
    let folder = tempfile::tempdir().unwrap();
    let stop = Parrot::saying("no JSON");
    let asking = client(folder.path(), "w", &stop);
    let schema = AnswerSchema::new(json!({"type": "object", "properties": {}, "additionalProperties": false})).unwrap();
    let form = AnswerForm { name: "answer".into(), schema: schema.value().clone(), strict: true };
    let error = asking.ask_for(&Request { form: Some(form), ..request("hi") }, &schema, 2).await.unwrap_err();
    assert!(error.is_of_one_row() && matches!(error, LlmError::Form { .. }), "{error}");
    let batch = BatchOptions { poll: Duration::from_millis(1), price_share: 0.5 };
    let error = asking.answer_in_batches(&[&request("new")], batch).await.unwrap_err().to_string();
    assert!(error.contains("expected a server with a Batch API, found parrot"), "{error}");
    let other = tempfile::tempdir().unwrap();
    let refusing = client(other.path(), "w", &Parrot::saying("no"));
    assert!(refusing.ask(&request("hi")).await.unwrap_err().is_of_one_row());
}

#[tokio::test]
async fn work_ends_with_whoever_waits_for_it_and_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let silent = Parrot::saying("");
    {
        let asking = client(folder.path(), "w", &silent);
        let waited = tokio::time::timeout(Duration::from_millis(50), asking.ask(&request("hi"))).await;
        assert!(waited.is_err() && silent.asked() == 1);
        tokio::time::timeout(Duration::from_secs(5), asking.settled()).await.expect("the work should have ended");
        assert_eq!(asking.spending(), groundloom_llm::Spending::default());
    }
    assert_eq!(Store::open(folder.path()).unwrap().interrupted(), 0);
}
