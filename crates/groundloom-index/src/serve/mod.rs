//! An index behind HTTP: JSON in and out, limits on everything, a page to try it.
//!
//! `connections` speaks HTTP/1.1 with hyper and keeps the limits, `api` answers, `loaded` holds the index and takes up new
//! generations. Texts, pictures and conditions are understood by [`Questions`], which the command line brings.

mod api;
mod connections;
mod loaded;
mod metrics;
mod openapi;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use arrow::datatypes::Schema;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    IndexError,
    index::Predicate,
    manifest::{ColumnSpec, Manifest},
};

/// What a question is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A text.
    Text,
    /// An encoded picture.
    Image,
}

/// What turns questions into vectors and conditions. Errors are texts for the person who asked.
pub trait Questions: Send + Sync + 'static {
    /// The column to search for questions of these kinds: `name`, or the first whose model takes them.
    ///
    /// # Errors
    /// When there is none.
    fn column(&self, manifest: &Manifest, name: Option<&str>, kinds: &[Kind]) -> Result<usize, String>;

    /// The vector of a text, by the model that made the column.
    ///
    /// # Errors
    /// When the model is another one or does not take texts.
    fn text(&self, column: &ColumnSpec, text: &str) -> Result<Vec<f32>, String>;

    /// The vector of an encoded picture, by the model that made the column.
    ///
    /// # Errors
    /// When the bytes are no picture, or the model is another one or does not take pictures.
    fn image(&self, column: &ColumnSpec, bytes: &[u8]) -> Result<Vec<f32>, String>;

    /// A condition on rows of `schema`.
    ///
    /// # Errors
    /// [`IndexError::BadPredicate`].
    fn predicate(&self, text: &str, schema: &Schema) -> Result<Box<dyn Predicate>, IndexError>;
}

/// How much a server takes.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Largest body, in bytes.
    pub body: usize,
    /// Most answers of one search.
    pub k: usize,
    /// Most queries of one request.
    pub queries: usize,
    /// Requests that are worked on or wait for it; more are answered 429.
    pub requests: usize,
    /// Requests that are worked on at the same time.
    pub workers: usize,
    /// Open connections; more are answered 503.
    pub connections: usize,
    /// Time for a request's head, for its body, and for an answer to be taken by the client.
    pub patience: Duration,
    /// Time for the work.
    pub work: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 16 << 20,
            k: 1000,
            queries: 64,
            requests: 64,
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            connections: 1024,
            patience: Duration::from_secs(15),
            work: Duration::from_secs(30),
        }
    }
}

/// What a server needs to begin.
pub struct Settings {
    /// The index folder.
    pub index: PathBuf,
    /// What the server takes.
    pub limits: Limits,
    /// Bearer token that every request but `/healthz` must carry.
    pub token: Option<String>,
    /// What understands questions.
    pub questions: Arc<dyn Questions>,
    /// How often a new generation of the index is looked for.
    pub reload: Duration,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("index", &self.index).field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// A server that listens.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    api: Arc<api::Api>,
    settings: Settings,
}

impl Server {
    /// Opens the index and listens at `address`.
    ///
    /// # Errors
    /// An index that cannot be opened, an address that is taken.
    pub async fn bind(address: SocketAddr, settings: Settings) -> Result<Self, IndexError> {
        let name = PathBuf::from(address.to_string());
        let listener = TcpListener::bind(address).await.map_err(|e| IndexError::io(&name, e))?;
        let address = listener.local_addr().map_err(|e| IndexError::io(&name, e))?;
        let api = Arc::new(api::Api::new(&settings, address)?);
        Ok(Self { listener, address, api, settings })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop`, then lets the requests that have begun finish.
    pub async fn run(self, stop: CancellationToken) {
        let reloading = loaded::watch(Arc::clone(&self.api), self.settings.reload, stop.clone());
        connections::serve(self.listener, self.api, self.settings.limits, stop).await;
        reloading.abort();
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}
