//! One request over HTTP, and what its outcome means for money and for trying again.

use std::{
    fmt,
    io::Read,
    task::Poll,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::{Bytes, BytesMut};
use futures::{FutureExt, future::BoxFuture};
use reqwest::{
    StatusCode, Url,
    header::{HeaderMap, HeaderName, HeaderValue},
};

use serde_json::Value;

use crate::{
    backend::{Backend, Outcome},
    error::LlmError,
    http_date::seconds_since_1970,
    request::{Api, Request},
    wire::{Said, read_failure},
};

/// An answer larger than this is no answer.
const MOST_BODY: usize = 64 << 20;

/// A key that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// Wraps a key; surrounding white space, which files and shells add, is no part of it.
    pub fn new(key: &str) -> Self {
        Self(key.trim().to_owned())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// How the key is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyHeader {
    /// `Authorization: Bearer KEY`, as most servers have it.
    #[default]
    Bearer,
    /// `api-key: KEY`, as Azure has it.
    ApiKey,
}

/// Where a server is and how it is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The base URL, with its version: `https://api.openai.com/v1`.
    pub url: String,
    /// The key, if the server wants one.
    pub key: Option<Key>,
    /// How it is sent.
    pub key_header: KeyHeader,
    /// Query parameters of every request, such as Azure's `api-version`.
    pub query: Vec<(String, String)>,
    /// How long one request may take, from sending to the last byte of the answer.
    pub timeout: Duration,
}

impl Endpoint {
    /// The parsed base URL.
    ///
    /// # Errors
    /// [`LlmError::Setup`] for an address that is none.
    pub fn base(&self) -> Result<Url, LlmError> {
        let base = Url::parse(&self.url).ok().filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host());
        base.ok_or_else(|| {
            let expected = "expected a URL such as https://api.openai.com/v1";
            LlmError::Setup(format!("{expected}, found `{}`", self.url).into())
        })
    }
}

#[derive(Debug)]
pub(crate) struct Transport {
    http: reqwest::Client,
    endpoint: Endpoint,
    base: Url,
    /// Of each interface: an address is parsed once, not for each call.
    urls: [(&'static str, Url); 2],
}

impl Transport {
    pub fn new(endpoint: Endpoint) -> Result<Self, LlmError> {
        let setup = |message: String| LlmError::Setup(message.into());
        let base = endpoint.base()?;
        let mut headers = HeaderMap::new();
        headers.insert("accept", HeaderValue::from_static("application/json"));
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        if let Some(Key(key)) = &endpoint.key {
            let (name, value) = match endpoint.key_header {
                KeyHeader::Bearer => ("authorization", format!("Bearer {key}")),
                KeyHeader::ApiKey => ("api-key", key.clone()),
            };
            let mut value = HeaderValue::from_str(&value)
                .map_err(|_| setup("the key holds characters that no HTTP header can".into()))?;
            value.set_sensitive(true);
            headers.insert(HeaderName::from_static(name), value);
        }
        let http = reqwest::Client::builder()
            .default_headers(headers)
            .user_agent(concat!("groundloom/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10).min(endpoint.timeout))
            .timeout(endpoint.timeout)
            // A redirect would carry the key somewhere else.
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(usize::MAX)
            .tcp_nodelay(true)
            .build()
            .map_err(|e| setup(format!("cannot set up HTTP: {e}")))?;
        let urls =
            [Api::ChatCompletions, Api::Responses].map(|api| (api.path(), address(&base, &endpoint, api.path())));
        Ok(Self { http, endpoint, base, urls })
    }

    /// The address of `path`, with the query parameters.
    pub fn url(&self, path: &str) -> Url {
        match self.urls.iter().find(|(known, _)| *known == path) {
            Some((_, url)) => url.clone(),
            None => address(&self.base, &self.endpoint, path),
        }
    }

    /// Posts a JSON body.
    pub async fn post(&self, path: &str, body: Bytes) -> Outcome {
        let url = self.url(path);
        let response = match self.http.post(url.clone()).body(body).send().await {
            Ok(response) => response,
            Err(e) => return without_response(&e),
        };
        let (status, headers) = (response.status(), response.headers().clone());
        let body = match read_body(response).await {
            Ok(body) => body,
            Err(what) if status.is_success() => return Outcome::Lost { what },
            Err(_) => Bytes::new(),
        };
        others_first().await;
        if !status.is_success() {
            return judge(url.as_str(), status, &headers, &body);
        }
        match serde_json::from_slice::<Value>(&body) {
            Ok(answer) => match failure_inside(&answer) {
                Some(said) => judge(url.as_str(), said, &headers, &body),
                None => Outcome::Answered { body: answer, pause: exhausted_until(&headers) },
            },
            // Every answer would come like this and be paid.
            Err(_) if body.trim_ascii_start().starts_with(b"data:") => Outcome::Refused(LlmError::Setup(
                format!(r#"{url} streams its answers though they are asked for whole; turn streaming off there, or say so in the request with `extra: '{{"stream": false}}'`"#).into(),
            )),
            Err(e) => Outcome::Lost { what: format!("{status} with a body that is no JSON: {e}") },
        }
    }
}

impl Transport {
    /// For requests of other kinds than [`Transport::post`]'s.
    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// Sends any request; the body of a success, or what went wrong.
    pub async fn exchange(&self, request: reqwest::RequestBuilder) -> Result<Bytes, Outcome> {
        let response = request.send().await.map_err(|e| without_response(&e))?;
        let (status, headers, url) = (response.status(), response.headers().clone(), response.url().to_string());
        match (status.is_success(), read_body(response).await) {
            (true, Ok(body)) => Ok(body),
            (true, Err(what)) => Err(Outcome::Lost { what }),
            (false, body) => Err(judge(&url, status, &headers, &body.unwrap_or_default())),
        }
    }
}

impl Backend for Transport {
    fn answer<'a>(&'a self, request: &'a Request, body: &'a Bytes) -> BoxFuture<'a, Outcome> {
        self.post(request.api.path(), body.clone()).boxed()
    }
}

/// Lets tasks that are ready go first. One of them puts the connection of an answer that is in back where the next call finds it, which would otherwise make another.
async fn others_first() {
    let mut went = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut went, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn address(base: &Url, endpoint: &Endpoint, path: &str) -> Url {
    let mut url = base.clone();
    let joined = format!("{}{path}", url.path().trim_end_matches('/'));
    url.set_path(&joined);
    if !endpoint.query.is_empty() {
        url.query_pairs_mut().extend_pairs(&endpoint.query);
    }
    url
}

/// The failure that some relays (OpenRouter) send as a success: what its code means, or a failure of the server where it has none.
pub(crate) fn failure_inside(body: &Value) -> Option<StatusCode> {
    let answered = ["choices", "output"].iter().any(|key| body[key].as_array().is_some_and(|items| !items.is_empty()));
    // What was counted may be charged, and OpenAI's own failed responses too.
    let counted = body["usage"].is_object() || body["object"] == "response";
    if answered || counted || body["error"].is_null() {
        return None;
    }
    let code = body["error"]["code"].as_u64().and_then(|code| u16::try_from(code).ok());
    let status = code
        .and_then(|code| StatusCode::from_u16(code).ok())
        .filter(|status| status.is_client_error() || status.is_server_error());
    Some(status.unwrap_or(StatusCode::BAD_GATEWAY))
}

/// What a status other than success means.
pub(crate) fn judge(url: &str, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Outcome {
    let Said { message, code, flagged } = read_failure(body);
    let what = if message.is_empty() { status.to_string() } else { format!("{status}: {message}") };
    let pause = retry_after(headers, SystemTime::now());
    let number = status.as_u16();
    let url = url.to_owned();
    match number {
        429 if code.as_deref() == Some("insufficient_quota") => Outcome::Refused(LlmError::Quota { message }),
        429 => Outcome::Throttled { what, pause: pause.or_else(|| exhausted_until(headers)) },
        // Cloudflare's from 520 on and Anthropic's 529 among them.
        502..=504 | 520..=530 => Outcome::Failed { what, pause, away: true },
        // 424 is TGI's word for a generation that broke off.
        408 | 409 | 424 | 425 | 500.. => Outcome::Failed { what, pause, away: false },
        // OpenRouter and DeepSeek.
        402 => Outcome::Refused(LlmError::Quota { message }),
        403 if flagged => Outcome::Refused(LlmError::Refused { status: number, message }),
        401 | 403 => Outcome::Refused(LlmError::Key { url, status: number, message }),
        404 => Outcome::Refused(LlmError::NotFound { url, status: number, message }),
        300..=399 => {
            let place = headers.get("location").and_then(|v| v.to_str().ok()).unwrap_or("elsewhere");
            let message = format!("the server sends us to {place}, and redirects are not followed; name that address");
            Outcome::Refused(LlmError::NotFound { url, status: number, message })
        }
        _ => Outcome::Refused(LlmError::Refused { status: number, message }),
    }
}

async fn read_body(mut response: reqwest::Response) -> Result<Bytes, String> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| causes(&e))? {
        body.extend_from_slice(&chunk);
        if body.len() > MOST_BODY {
            return Err(format!("a body of more than {MOST_BODY} bytes"));
        }
    }
    let encoding = response.headers().get("content-encoding").and_then(|v| v.to_str().ok()).unwrap_or_default();
    match encoding.trim().to_ascii_lowercase().as_str() {
        // We do not ask for it, and some relays do it all the same.
        "gzip" | "x-gzip" => {
            let mut plain = Vec::new();
            let most = MOST_BODY as u64 + 1;
            flate2::read::MultiGzDecoder::new(&body[..])
                .take(most)
                .read_to_end(&mut plain)
                .map_err(|e| format!("a body that is no gzip though it says so: {e}"))?;
            match plain.len() as u64 == most {
                true => Err(format!("a body of more than {MOST_BODY} bytes")),
                false => Ok(plain.into()),
            }
        }
        _ => Ok(body.freeze()),
    }
}

/// A request to which nothing came back: it never reached the server, or nobody knows.
fn without_response(error: &reqwest::Error) -> Outcome {
    match error.is_connect() {
        true => Outcome::Failed { what: causes(error), pause: None, away: true },
        false => Outcome::Lost { what: causes(error) },
    }
}

/// An error with what lies behind it, which is where the useful words are, and without the address, which may hold secrets.
fn causes(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() { "timed out".to_owned() } else { "the connection failed".to_owned() };
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// How long the server asks to be left alone: `retry-after-ms`, or `Retry-After` in seconds or as a date (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let number = |name: &str| text(name)?.parse::<f64>().ok();
    if let Some(seconds) = number("retry-after-ms").map(|ms| ms / 1000.0).or_else(|| number("retry-after")) {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
    let date = |name: &str| seconds_since_1970(text(name)?, now);
    // The server's own clock counts, where it shows it: ours may be set otherwise. A date that has passed asks for no pause.
    let seconds = date("retry-after")?.saturating_sub(date("date").unwrap_or(now));
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// When the headers say that no request or token is left: how long until there is.
fn exhausted_until(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: String| headers.get(name)?.to_str().ok().map(str::to_owned);
    ["requests", "tokens"]
        .into_iter()
        .filter(|what| text(format!("x-ratelimit-remaining-{what}")).as_deref() == Some("0"))
        .filter_map(|what| parse_span(&text(format!("x-ratelimit-reset-{what}"))?))
        .max()
}

/// A span of time as OpenAI writes it: `1s`, `6m0s`, `20ms`, `1h2m3.5s`; a bare number is seconds.
pub(crate) fn parse_span(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if let Ok(seconds) = rest.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += number
            * match &rest[..unit] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    Duration::try_from_secs_f64(total).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn spans_and_pauses_are_read() {
        for (text, millis) in [
            ("1s", Some(1000)),
            ("6m0s", Some(360_000)),
            ("20ms", Some(20)),
            ("1h2m3.5s", Some(3_723_500)),
            ("2", Some(2000)),
            ("soon", None),
            ("1y", None),
            ("-1", None),
        ] {
            assert_eq!(parse_span(text).map(|d| d.as_millis()), millis, "{text}");
        }
        let headers = |pairs: &[(&'static str, &'static str)]| {
            pairs.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect::<HeaderMap>()
        };
        let now = UNIX_EPOCH + Duration::from_secs(784_111_770);
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        for (pairs, millis) in [
            (&[("retry-after", "1.5")][..], Some(1500)),
            (&[("retry-after-ms", "40"), ("retry-after", "1")], Some(40)),
            (&[("retry-after", date)], Some(7_000)),
            (&[("retry-after", "Sunday, 06-Nov-94 08:49:37 GMT")], Some(7_000)),
            (&[("retry-after", date), ("date", "Sun, 06 Nov 1994 08:49:07 GMT")], Some(30_000)),
            (&[("retry-after", date), ("date", "Sun, 06 Nov 1994 09:49:07 GMT")], Some(0)),
            (&[("retry-after", "never")], None),
            (&[("retry-after", "-1")], None),
            (&[("retry-after-ms", "soon"), ("retry-after", date)], Some(7_000)),
        ] {
            let pause = retry_after(&headers(pairs), now);
            assert_eq!(pause.map(|d| d.as_millis()), millis, "{pairs:?}");
        }
        let none_left = headers(&[
            ("x-ratelimit-remaining-requests", "0"),
            ("x-ratelimit-reset-requests", "12ms"),
            ("x-ratelimit-remaining-tokens", "5"),
            ("x-ratelimit-reset-tokens", "1h"),
        ]);
        assert_eq!(exhausted_until(&none_left), Some(Duration::from_millis(12)));
    }

    #[test]
    fn addresses_keep_their_prefix_and_query() {
        let endpoint = |url: &str, query: Vec<(String, String)>| Endpoint {
            url: url.into(),
            key: Some(Key::new(" secret\n")),
            key_header: KeyHeader::ApiKey,
            query,
            timeout: Duration::from_secs(1),
        };
        let url =
            |url: &str, query| Transport::new(endpoint(url, query)).map(|t| t.url("/chat/completions").to_string());
        assert_eq!(url("https://api.openai.com/v1/", vec![]).unwrap(), "https://api.openai.com/v1/chat/completions");
        let azure = vec![("api-version".to_owned(), "2024-10-21".to_owned())];
        assert_eq!(
            url("https://x.openai.azure.com/openai/deployments/d", azure).unwrap(),
            "https://x.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-10-21"
        );
        for wrong in ["", "localhost:8000", "ftp://x/v1", "/v1"] {
            assert!(url(wrong, vec![]).is_err(), "{wrong}");
        }
        assert!(!format!("{:?}", endpoint("http://h", vec![])).contains("secret"));
    }

    #[test]
    fn every_status_has_its_meaning() {
        let quota = br#"{"error": {"message": "m", "code": "insufficient_quota"}}"#;
        let kind =
            |status: u16, body: &[u8]| match judge("u", StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), body)
            {
                Outcome::Failed { .. } => "failed",
                Outcome::Throttled { .. } => "throttled",
                Outcome::Refused(error) if error.is_of_one_row() => "row",
                Outcome::Refused(_) => "run",
                Outcome::Lost { .. } | Outcome::Answered { .. } => "other",
            };
        for (status, meaning) in [
            (400, "row"),
            (401, "run"),
            (402, "run"),
            (403, "run"),
            (404, "run"),
            (408, "failed"),
            (409, "failed"),
            (424, "failed"),
            (413, "row"),
            (422, "row"),
            (429, "throttled"),
            (500, "failed"),
            (502, "failed"),
            (503, "failed"),
            (529, "failed"),
            (301, "run"),
        ] {
            assert_eq!(kind(status, b""), meaning, "{status}");
        }
        assert_eq!(kind(429, quota), "run");
        // OpenRouter's moderation.
        let flagged =
            br#"{"error": {"code": 403, "message": "m", "metadata": {"reasons": ["violence"], "flagged_input": "x"}}}"#;
        assert_eq!(kind(403, flagged), "row");
    }
}
