//! Connections within their limits.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    Limits,
    api::{Api, error},
    http::{Connection, Refusal, Request, Response},
};

/// How long a connection without a request stays open.
const IDLE: Duration = Duration::from_secs(60);

/// Accepts connections until `stop`, then waits for the requests that have begun.
pub(crate) async fn serve(listener: TcpListener, api: Arc<Api>, limits: Limits, stop: CancellationToken) {
    let gate = Arc::new(Gate {
        requests: Semaphore::new(limits.requests),
        workers: Arc::new(Semaphore::new(limits.workers)),
        limits,
    });
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            // Ends of connections are taken note of as they come.
            Some(_) = open.join_next(), if !open.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(problem) => {
                // Out of file descriptors, say: the next attempt may do better.
                tracing::warn!("cannot accept a connection: {problem}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (gate, api, stop) = (Arc::clone(&gate), Arc::clone(&api), stop.clone());
        let full = open.len() >= gate.limits.connections;
        open.spawn(async move {
            let _ = stream.set_nodelay(true);
            gate.connection(stream, &api, &stop, full).await;
        });
    }
    drop(listener);
    while open.join_next().await.is_some() {}
}

struct Gate {
    requests: Semaphore,
    workers: Arc<Semaphore>,
    limits: Limits,
}

impl Gate {
    async fn connection(&self, stream: TcpStream, api: &Arc<Api>, stop: &CancellationToken, full: bool) {
        let mut connection = Connection::new(stream);
        let patience = self.limits.patience;
        if full {
            let response = error(503, "busy", "too many connections; try again later");
            let _ = timeout(patience, connection.answer(&response, false, false)).await;
            let _ = timeout(Duration::from_secs(1), connection.end()).await;
            return;
        }
        loop {
            // A request that has begun is still read and answered.
            let waiting = !connection.has_begun();
            let begun = tokio::select! {
                begun = timeout(IDLE, connection.begins()) => begun,
                () = stop.cancelled(), if waiting => return,
            };
            if !matches!(begun, Ok(Ok(true))) {
                return;
            }
            let read = timeout(patience, connection.request(self.limits.body)).await;
            let begin = Instant::now();
            let (response, head_only, keep_alive, route) = match read {
                Ok(Ok(request)) => {
                    let head_only = request.method == "HEAD";
                    let keep_alive = request.keep_alive && !stop.is_cancelled();
                    let route = api.route(&request.path);
                    (self.answer(api, request).await, head_only, keep_alive, route)
                }
                Ok(Err(Refusal::Answer(status, message))) => (error(status, "bad_request", &message), false, false, ""),
                Ok(Err(Refusal::Gone)) => return,
                Err(_) => {
                    let message = format!("expected a whole request within {} seconds", patience.as_secs_f32());
                    (error(408, "slow", &message), false, false, "")
                }
            };
            api.metrics.answered(route, response.status, begin.elapsed());
            let sent = timeout(patience, connection.answer(&response, head_only, keep_alive)).await;
            if !matches!(sent, Ok(Ok(()))) {
                return;
            }
            if !keep_alive {
                let _ = timeout(Duration::from_secs(1), connection.end()).await;
                return;
            }
        }
    }

    /// Answers on a thread that may block, within the limits on requests and time.
    async fn answer(&self, api: &Arc<Api>, request: Request) -> Response {
        if let Some(response) = api.at_once(&request) {
            return response;
        }
        let Ok(_place) = self.requests.try_acquire() else {
            let mut response = error(429, "busy", "too many requests at once; try again in a second");
            response.headers.push("Retry-After: 1");
            return response;
        };
        let work = async {
            let Ok(worker) = Arc::clone(&self.workers).acquire_owned().await else {
                return error(503, "stopping", "the server is stopping");
            };
            let api = Arc::clone(api);
            // The thread keeps its place until it is done, also when nobody waits for it any more.
            let done = tokio::task::spawn_blocking(move || {
                let _worker = worker;
                api.answer(&request)
            });
            done.await.unwrap_or_else(|problem| {
                tracing::error!("a request failed: {problem}");
                error(500, "internal", "the request failed; the server's log says more")
            })
        };
        match timeout(self.limits.work, work).await {
            Ok(response) => response,
            Err(_) => error(503, "slow", "the work took too long; ask for less"),
        }
    }
}

/// Counts queries; here so that `api` needs no atomics of its own.
pub(crate) fn count(api: &Api, queries: usize) {
    api.metrics.queries.fetch_add(queries as u64, Ordering::Relaxed);
}
