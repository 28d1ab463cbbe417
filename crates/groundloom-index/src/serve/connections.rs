//! Connections within their limits, on hyper.

use std::{
    convert::Infallible,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    Limits,
    api::{Answered, Api, Asked, error},
};

/// Largest head of a request.
const HEAD: usize = 16 << 10;

/// Accepts connections until `stop`, then waits for the requests that have begun.
pub(crate) async fn serve(listener: TcpListener, api: Arc<Api>, limits: Limits, stop: CancellationToken) {
    let gate = Arc::new(Gate {
        requests: Semaphore::new(limits.requests),
        workers: Arc::new(Semaphore::new(limits.workers)),
        connections: Arc::new(Semaphore::new(limits.connections)),
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
        // One more than there is place for is told so; hyper itself would let any number in.
        let place = Arc::clone(&gate.connections).try_acquire_owned().ok();
        open.spawn(connection(stream, Arc::clone(&gate), Arc::clone(&api), stop.clone(), place));
    }
    drop(listener);
    while open.join_next().await.is_some() {}
}

struct Gate {
    requests: Semaphore,
    workers: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    limits: Limits,
}

async fn connection(
    stream: TcpStream,
    gate: Arc<Gate>,
    api: Arc<Api>,
    stop: CancellationToken,
    place: Option<OwnedSemaphorePermit>,
) {
    let _ = stream.set_nodelay(true);
    let full = place.is_none();
    let (patience, closing) = (gate.limits.patience, stop.clone());
    let answers = service_fn(move |request| {
        let (gate, api, closing) = (Arc::clone(&gate), Arc::clone(&api), closing.clone());
        async move { Ok::<_, Infallible>(gate.request(&api, request, full, &closing).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(stream), answers);
    let mut connection = std::pin::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            // A client that does not take its answer must not hold the server.
            timeout(patience.max(Duration::from_secs(1)) * 3, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(problem) = outcome {
        tracing::debug!("a connection ended: {problem}");
    }
}

impl Gate {
    async fn request(
        &self,
        api: &Arc<Api>,
        request: hyper::Request<Incoming>,
        full: bool,
        stop: &CancellationToken,
    ) -> Response<Full<Bytes>> {
        let begin = Instant::now();
        let route = api.route(request.uri().path());
        let answered = if full {
            error(503, "busy", "too many connections; try again later")
        } else {
            match self.read(request).await {
                Ok(asked) => self.answer(api, asked).await,
                Err(refused) => refused,
            }
        };
        api.metrics.answered(route, answered.status, begin.elapsed());
        // What was not read of a refused body would be taken for the next request.
        let close = full || stop.is_cancelled() || matches!(answered.status, 400 | 408 | 413);
        rendered(answered, close)
    }

    /// The request with its body, within the limits on size and time.
    async fn read(&self, request: hyper::Request<Incoming>) -> Result<Asked, Answered> {
        let (head, body) = request.into_parts();
        let text = |name: header::HeaderName| head.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let path = decoded(head.uri.path());
        let path = path.ok_or_else(|| error(400, "bad_request", "expected a path of percent-encoded UTF-8"))?;
        let most = self.limits.body;
        let patience = self.limits.patience;
        let body = match timeout(patience, collected(body, most)).await {
            Ok(Ok(Some(body))) => body,
            Ok(Ok(None)) => return Err(error(413, "too_large", &format!("expected a body of at most {most} bytes"))),
            Ok(Err(problem)) => return Err(error(400, "bad_request", &problem.to_string())),
            Err(_) => {
                let message = format!("expected a whole request within {} seconds", patience.as_secs_f32());
                return Err(error(408, "slow", &message));
            }
        };
        Ok(Asked {
            method: head.method.as_str().to_owned(),
            path,
            host: text(header::HOST),
            authorization: text(header::AUTHORIZATION),
            body,
        })
    }

    /// Answers on a thread that may block, within the limits on requests and time.
    async fn answer(&self, api: &Arc<Api>, asked: Asked) -> Answered {
        if let Some(answered) = api.at_once(&asked) {
            return answered;
        }
        let Ok(_place) = self.requests.try_acquire() else {
            let mut answered = error(429, "busy", "too many requests at once; try again in a second");
            answered.headers.push(("retry-after", "1"));
            return answered;
        };
        let work = async {
            let Ok(worker) = Arc::clone(&self.workers).acquire_owned().await else {
                return error(503, "stopping", "the server is stopping");
            };
            let api = Arc::clone(api);
            // The thread keeps its place until it is done, also when nobody waits for it any more.
            let done = tokio::task::spawn_blocking(move || {
                let _worker = worker;
                api.answer(&asked)
            });
            done.await.unwrap_or_else(|problem| {
                tracing::error!("a request failed: {problem}");
                error(500, "internal", "the request failed; the server's log says more")
            })
        };
        match timeout(self.limits.work, work).await {
            Ok(answered) => answered,
            Err(_) => error(503, "slow", "the work took too long; ask for less"),
        }
    }
}

/// Bytes of a body beyond the limit that are read and dropped, so that a client that is still sending gets to read its answer.
const DROPPED: usize = 64 << 20;

/// The whole body; `None` when it is longer than `most`.
async fn collected(mut body: Incoming, most: usize) -> Result<Option<Bytes>, hyper::Error> {
    let mut bytes = Vec::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        length += data.len();
        if length > most.saturating_add(DROPPED) {
            break;
        }
        if length <= most {
            bytes.extend_from_slice(&data);
        } else {
            bytes = Vec::new();
        }
    }
    Ok((length <= most).then(|| bytes.into()))
}

fn rendered(answered: Answered, close: bool) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(answered.body));
    *response.status_mut() = StatusCode::from_u16(answered.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(answered.content_type));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    for (name, value) in answered.headers {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if close {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Undoes percent-encoding.
fn decoded(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
                (digit(rest.next())? * 16 + digit(rest.next())?) as u8
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

/// Counts queries; here so that `api` needs no atomics of its own.
pub(crate) fn count(api: &Api, queries: usize) {
    api.metrics.queries.fetch_add(queries as u64, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::decoded;

    #[test]
    fn paths_are_decoded() {
        assert_eq!(decoded("/rows/a%20b%C3%A9").as_deref(), Some("/rows/a bé"));
        for bad in ["/%zz", "/%f", "/%", "/%ff"] {
            assert_eq!(decoded(bad), None, "{bad}");
        }
    }
}
