//! What can go wrong with a call, and what is lost by it: one row, or the run.

use std::{path::PathBuf, sync::Arc};

use crate::{money::Money, request::RequestHash};

/// Why a call has no answer.
///
/// Clonable, since one failure can answer several rows that asked the same.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LlmError {
    /// The server refuses this very request (400, 413, 422): asking again cannot help.
    #[error("the server refused the request ({status}): {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The server's words.
        message: String,
    },
    /// The server has refused everything that it was asked, in the same words: it is what all requests have in common.
    #[error(
        "the server refused the first {requests} requests in the same words ({status}): {message}; check `url`, `model` and what else every request holds"
    )]
    RefusedAll {
        /// Requests sent.
        requests: u32,
        /// The HTTP status.
        status: u16,
        /// The server's words.
        message: String,
    },
    /// A model in this process cannot answer this very request: asking again cannot help.
    #[error("the model {model} cannot answer the request: {message}")]
    Unanswerable {
        /// The model.
        model: String,
        /// Why.
        message: String,
    },
    /// The last of several attempts failed, while the server answered other requests.
    #[error("no answer after {attempts} attempts; the last one: {last}")]
    NoAnswer {
        /// Requests sent.
        attempts: u32,
        /// What happened to the last.
        last: String,
    },
    /// The key is missing or not accepted (401, 403).
    #[error(
        "the server at {url} does not accept the key ({status}): {message}; set the environment variable that `key_env` names"
    )]
    Key {
        /// The server.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The server's words.
        message: String,
    },
    /// The server has no such model or path (404).
    #[error("{url} is not there ({status}): {message}; check `url` and `model`")]
    NotFound {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The server's words.
        message: String,
    },
    /// The account is out of money or quota: waiting does not help.
    #[error("the server says that the account has no quota left: {message}")]
    Quota {
        /// The server's words.
        message: String,
    },
    /// The next call could pass a limit that the user set.
    #[error(
        "stopped before a call that could pass {limit}: {spent}; raise the limit and run again, answers that arrived are kept"
    )]
    Limit {
        /// Which limit, with its value.
        limit: String,
        /// What is spent so far.
        spent: String,
    },
    /// A cost limit needs a price.
    #[error(
        "`max_cost` is set, but the price table has no line for the model `{model}`; add one (`groundloom prompt prices` prints the table)"
    )]
    NoPrice {
        /// The model.
        model: String,
    },
    /// Nothing has been heard of the server for a long time.
    #[error(
        "{url} has been failing for {seconds} s; the last failure: {last}; run again when it is back, answers that arrived are kept"
    )]
    Down {
        /// The server.
        url: String,
        /// Since when, in seconds.
        seconds: u64,
        /// What happened last.
        last: String,
    },
    /// Working without network, and the answer is not in the store.
    #[error(
        "offline, and the store {store} has no answer to request {hash}; run without `--offline`, or import the answers"
    )]
    NotInStore {
        /// The store's folder.
        store: String,
        /// The request.
        hash: RequestHash,
    },
    /// The answer is not in the form that was asked for, also after repairs.
    #[error("the answer is not in the form that was asked for: {message}")]
    Form {
        /// What is wrong with it.
        message: String,
        /// The answer.
        text: String,
    },
    /// The store cannot be read or written.
    #[error("the answer store {path}: {message}")]
    Store {
        /// The file or folder.
        path: PathBuf,
        /// What happened.
        message: String,
    },
    /// The price table is wrong.
    #[error("{file}: {message}")]
    Prices {
        /// The table.
        file: String,
        /// Where and what.
        message: String,
    },
    /// A prompt file is wrong.
    #[error("{file}:{line}: {message}")]
    Prompt {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong and what to do.
        message: String,
    },
    /// A JSON Schema is wrong, or uses words that are not checked here.
    #[error("the schema at {place}: {message}")]
    Schema {
        /// A JSON pointer into the schema.
        place: String,
        /// What is wrong.
        message: String,
    },
    /// The client cannot be set up.
    #[error("{0}")]
    Setup(Arc<str>),
}

impl LlmError {
    /// Whether only the row is lost. Everything else ends the run: the next row would fare no better, and answers that arrived are kept.
    pub const fn is_of_one_row(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Unanswerable { .. } | Self::NoAnswer { .. } | Self::Form { .. })
    }

    pub(crate) fn store(path: impl Into<PathBuf>, error: impl std::fmt::Display) -> Self {
        Self::Store { path: path.into(), message: error.to_string() }
    }
}

/// An amount against its limit, for [`LlmError::Limit`].
pub(crate) fn spent_sentence(calls: u64, tokens: u64, cost: Money) -> String {
    format!("{calls} calls, {tokens} tokens and {cost} are spent or reserved by calls in flight")
}
