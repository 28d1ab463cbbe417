//! Clients and requests for tests.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{path::Path, sync::Arc, time::Duration};

use groundloom_llm::{
    Api, Client, ClientConfig, Endpoint, Key, KeyHeader, Limits, LlmError, Message, Pace, PriceTable, Request, Retry,
    Role, Sampling, Store,
};

/// A price of 1 per million input and 2 per million output tokens for `test-model`, one token a byte.
pub const PRICES: &str = "model,input,cached_input,output,tokenizer,image_tokens\ntest-model,1.00,,2.00,bytes,100\n";

pub fn prices() -> PriceTable {
    PriceTable::parse("test prices", PRICES).unwrap()
}

pub fn config(url: &str) -> ClientConfig {
    ClientConfig {
        endpoint: Endpoint {
            url: url.to_owned(),
            key: Some(Key::new("k")),
            key_header: KeyHeader::Bearer,
            query: Vec::new(),
            timeout: Duration::from_millis(600),
        },
        namespace: String::new(),
        pace: Pace { max_concurrency: 32, give_up_after: Duration::from_secs(60), ..Pace::default() },
        retry: Retry {
            attempts: 12,
            first_wait: Duration::from_millis(5),
            longest_wait: Duration::from_millis(50),
            ..Retry::default()
        },
        hedge: None,
        limits: Limits::default(),
        budget: "test".into(),
        offline: false,
    }
}

pub fn client(config: ClientConfig, store: &Path) -> Result<Arc<Client>, LlmError> {
    Client::new(config, Store::open(store)?, prices())
}

pub fn request(text: &str) -> Request {
    Request {
        api: Api::ChatCompletions,
        model: "test-model".into(),
        messages: vec![Message::text(Role::User, text)],
        sampling: Sampling::default(),
        max_output_tokens: 8,
        form: None,
        extra: serde_json::Map::new(),
    }
}
