//! What answers requests: a server over HTTP, or a model in this process.

use std::{fmt::Debug, time::Duration};

use async_openai::types::chat::{
    ChatChoice, ChatCompletionResponseMessage, CompletionUsage, CreateChatCompletionResponse, FinishReason, Role,
};
use bytes::Bytes;
use futures::future::BoxFuture;
use serde_json::{Value, json};

use crate::{
    answer::{Finish, Usage},
    error::LlmError,
    request::Request,
};

/// Answers requests. The client that asks it does the rest: the store, limits, pace, retries, checks.
pub trait Backend: Debug + Send + Sync {
    /// Answers `request`, whose JSON body is `body`, once.
    ///
    /// It is polled by a task of its own; long computation belongs on a thread.
    fn answer<'a>(&'a self, request: &'a Request, body: &'a Bytes) -> BoxFuture<'a, Outcome>;

    /// Whether a request is waited for when whoever asked has gone: yes where it is paid all the same. Otherwise the
    /// future of [`Backend::answer`] is dropped, and with it the work should end.
    fn outlives_its_asker(&self) -> bool {
        true
    }
}

/// How a request ended, and what that means for money and for trying again.
#[derive(Debug)]
pub enum Outcome {
    /// There is an answer (over HTTP: 2xx and a JSON body).
    Answered {
        /// Its body, in the form of the request's interface.
        body: Value,
        /// Nothing is left of a limit until then, the server says.
        pause: Option<Duration>,
    },
    /// It never reached the server, or the server says that it did not do it: nothing was paid.
    Failed {
        /// What happened.
        what: String,
        /// How long the server asks to be left alone.
        pause: Option<Duration>,
        /// The server cannot be reached, or something in front of it says so: it would be the same with any request.
        away: bool,
    },
    /// 429: too much at once.
    Throttled {
        /// What happened.
        what: String,
        /// How long the server asks to be left alone.
        pause: Option<Duration>,
    },
    /// The connection broke or timed out behind the request, or the body was cut or no JSON: it may have been paid.
    Lost {
        /// What happened.
        what: String,
    },
    /// It is turned down for good.
    Refused(LlmError),
}

/// The body of a chat completion, for models that are no server.
pub fn chat_completion(model: &str, text: String, finish: &Finish, usage: Usage) -> Value {
    let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    // Some fields are deprecated, and the struct has no other constructor.
    #[allow(deprecated)]
    let message = ChatCompletionResponseMessage {
        content: Some(text),
        role: Role::Assistant,
        refusal: None,
        tool_calls: None,
        annotations: None,
        function_call: None,
        audio: None,
    };
    let finish_reason = Some(if *finish == Finish::Length { FinishReason::Length } else { FinishReason::Stop });
    json!(CreateChatCompletionResponse {
        object: "chat.completion".into(),
        model: model.to_owned(),
        choices: vec![ChatChoice { index: 0, message, finish_reason, logprobs: None }],
        usage: Some(CompletionUsage {
            prompt_tokens: count(usage.prompt_tokens),
            completion_tokens: count(usage.completion_tokens),
            total_tokens: count(usage.total()),
            ..CompletionUsage::default()
        }),
        ..CreateChatCompletionResponse::default()
    })
}
