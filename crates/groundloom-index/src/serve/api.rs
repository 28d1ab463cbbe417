//! What each path answers.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{Kind, Limits, Questions, Settings, connections::count, loaded::Loaded, metrics::Metrics, openapi};
use crate::{
    IndexError,
    index::{Filter, Index, Search, sum_of_directions},
    table::as_json,
};

/// Conditions whose rows are kept at hand.
const FILTERS: usize = 64;

const PAGE_POLICY: (&str, &str) = (
    "content-security-policy",
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
);

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// Path without query, percent-encoding undone.
    pub(crate) path: String,
    pub(crate) host: Option<String>,
    pub(crate) authorization: Option<String>,
    pub(crate) body: Bytes,
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Answered {
    pub(crate) status: u16,
    pub(crate) content_type: &'static str,
    pub(crate) body: Bytes,
    /// Further headers, names in lower case.
    pub(crate) headers: Vec<(&'static str, &'static str)>,
}

/// Everything that answers have in common.
pub(crate) struct Api {
    pub(crate) loaded: Loaded,
    pub(crate) metrics: Metrics,
    limits: Limits,
    questions: Arc<dyn Questions>,
    /// SHA-256 of the token.
    token: Option<[u8; 32]>,
    /// Hosts that requests may name: a page of another host must not reach a server on loopback by a name of its own.
    hosts: Option<[String; 3]>,
    filters: Mutex<HashMap<(u64, String), Arc<Filter>>>,
}

/// A query of `/search`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Query {
    text: Option<OneOrMore>,
    /// Base64 of a picture file.
    image: Option<OneOrMore>,
    row: Option<OneOrMore>,
    vector: Option<Vec<f32>>,
    column: Option<String>,
    k: Option<usize>,
    #[serde(rename = "where")]
    condition: Option<String>,
    ef: Option<usize>,
    #[serde(default)]
    exact: bool,
    columns: Option<Vec<String>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    fn all(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::More(more) => more,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch {
    queries: Vec<Query>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Embed {
    text: Option<String>,
    image: Option<String>,
    column: Option<String>,
}

/// An answer that is no success.
#[derive(Debug)]
struct Problem(u16, &'static str, String);

type Answer<T> = Result<T, Problem>;

fn unprocessable(message: impl ToString) -> Problem {
    Problem(422, "unprocessable", message.to_string())
}

impl From<IndexError> for Problem {
    fn from(error: IndexError) -> Self {
        match error {
            IndexError::Io { .. } | IndexError::Damaged { .. } | IndexError::BadRows { .. } => {
                tracing::error!("{error}");
                Self(500, "internal", error.to_string())
            }
            other => unprocessable(other),
        }
    }
}

/// An error as JSON.
pub(crate) fn error(status: u16, code: &str, message: &str) -> Answered {
    json_answer(status, &json!({ "error": { "code": code, "message": message } }))
}

fn json_answer(status: u16, value: &Value) -> Answered {
    let body = serde_json::to_vec(value).unwrap_or_default().into();
    Answered { status, content_type: "application/json", body, headers: vec![("cache-control", "no-store")] }
}

fn file(content_type: &'static str, body: &'static [u8]) -> Answered {
    Answered {
        status: 200,
        content_type,
        body: Bytes::from_static(body),
        headers: vec![PAGE_POLICY, ("cache-control", "no-cache")],
    }
}

impl Api {
    pub(crate) fn new(settings: &Settings, address: SocketAddr) -> Result<Self, IndexError> {
        let port = address.port();
        let loopback = address.ip().is_loopback();
        Ok(Self {
            loaded: Loaded::open(&settings.index)?,
            metrics: Metrics::default(),
            limits: settings.limits.clone(),
            questions: Arc::clone(&settings.questions),
            token: settings.token.as_ref().map(|t| Sha256::digest(t.as_bytes()).into()),
            hosts: loopback.then(|| {
                let mine = match address {
                    SocketAddr::V4(_) => format!("127.0.0.1:{port}"),
                    SocketAddr::V6(_) => format!("[::1]:{port}"),
                };
                [address.to_string(), mine, format!("localhost:{port}")]
            }),
            filters: Mutex::default(),
        })
    }

    /// The route of a path, for counting.
    pub(crate) fn route(&self, path: &str) -> &'static str {
        match path {
            "/" | "/search.js" | "/search.css" => "/",
            "/search" => "/search",
            "/embed" => "/embed",
            "/index" => "/index",
            "/healthz" => "/healthz",
            "/readyz" => "/readyz",
            "/metrics" => "/metrics",
            "/openapi.json" => "/openapi.json",
            path if path.starts_with("/rows/") => "/rows/{id}",
            _ => "",
        }
    }

    /// The answers that need no work: refusals, health, the page.
    pub(crate) fn at_once(&self, request: &Asked) -> Option<Answered> {
        let reads = matches!(request.method.as_str(), "GET" | "HEAD");
        if request.path == "/healthz" && reads {
            return Some(json_answer(200, &json!({ "ok": true })));
        }
        if let Some(hosts) = &self.hosts
            && !request.host.as_ref().is_some_and(|host| hosts.contains(&host.to_ascii_lowercase()))
        {
            let message = format!("expected the Host {}, found {:?}", hosts[0], request.host.as_deref().unwrap_or(""));
            return Some(error(403, "forbidden", &message));
        }
        // The page itself holds nothing; what it asks for needs the token.
        let page = match request.path.as_str() {
            "/" => Some(file("text/html; charset=utf-8", include_bytes!("page/search.html"))),
            "/search.js" => Some(file("text/javascript; charset=utf-8", include_bytes!("page/search.js"))),
            "/search.css" => Some(file("text/css; charset=utf-8", include_bytes!("page/search.css"))),
            _ => None,
        };
        if let Some(page) = page.filter(|_| reads) {
            return Some(page);
        }
        if !self.may(request.authorization.as_deref()) {
            let mut response = error(401, "unauthorized", "expected the header Authorization: Bearer TOKEN");
            response.headers.push(("www-authenticate", "Bearer"));
            return Some(response);
        }
        let expected = match request.path.as_str() {
            "/search" | "/embed" => "POST",
            "/" | "/search.js" | "/search.css" | "/healthz" | "/readyz" | "/metrics" | "/openapi.json" | "/index" => {
                "GET"
            }
            path if path.starts_with("/rows/") => "GET",
            _ => {
                let message =
                    "expected /search, /embed, /rows/{id}, /index, /healthz, /readyz, /metrics or /openapi.json";
                return Some(error(404, "not_found", message));
            }
        };
        if request.method != expected && !(expected == "GET" && reads) {
            let mut response = error(405, "method", &format!("expected {expected}, found {}", request.method));
            response.headers.push(("allow", if expected == "POST" { "POST" } else { "GET, HEAD" }));
            return Some(response);
        }
        let index = self.loaded.get();
        match request.path.as_str() {
            "/readyz" => Some(json_answer(
                200,
                &json!({ "ready": true, "generation": index.manifest().generation, "rows": index.rows() }),
            )),
            "/metrics" => Some(Answered {
                status: 200,
                content_type: "text/plain; version=0.0.4; charset=utf-8",
                body: self.metrics.render(index.rows(), index.manifest().generation).into(),
                headers: Vec::new(),
            }),
            "/openapi.json" => Some(json_answer(200, &openapi::document(&self.limits, self.token.is_some()))),
            _ => None,
        }
    }

    /// Whether a request carries the token. The comparison takes the same time wherever the first difference is.
    fn may(&self, authorization: Option<&str>) -> bool {
        let Some(expected) = &self.token else { return true };
        let given = authorization.and_then(|a| a.split_once(' ')).filter(|a| a.0.eq_ignore_ascii_case("bearer"));
        let found: [u8; 32] = Sha256::digest(given.map_or("", |g| g.1.trim()).as_bytes()).into();
        found.iter().zip(expected).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }

    /// The answers that need work.
    pub(crate) fn answer(&self, request: &Asked) -> Answered {
        let index = self.loaded.get();
        let answer = match request.path.as_str() {
            "/search" => self.search(&index, &request.body),
            "/embed" => self.embed(&index, &request.body),
            "/index" => Ok(describe(&index)),
            path => match path.strip_prefix("/rows/").map(|rest| rest.split_once("/media/").unwrap_or((rest, ""))) {
                Some((key, "")) => row(&index, key),
                Some((key, column)) => match media(&index, key, column) {
                    Ok(response) => return response,
                    Err(problem) => Err(problem),
                },
                None => Err(Problem(404, "not_found", "there is nothing here".to_owned())),
            },
        };
        match answer {
            Ok(value) => json_answer(200, &value),
            Err(Problem(status, code, message)) => error(status, code, &message),
        }
    }

    fn search(&self, index: &Index, body: &[u8]) -> Answer<Value> {
        let generation = index.manifest().generation;
        let value: Value = parse(body)?;
        if value.get("queries").is_none() {
            let query: Query = typed(value)?;
            count(self, 1);
            let mut answer = self.one(index, &query)?;
            answer.insert("generation".into(), generation.into());
            return Ok(Value::Object(answer));
        }
        let batch: Batch = typed(value)?;
        if batch.queries.len() > self.limits.queries {
            let (most, found) = (self.limits.queries, batch.queries.len());
            return Err(unprocessable(format!("expected at most {most} queries, found {found}")));
        }
        count(self, batch.queries.len());
        let answers = batch.queries.iter().enumerate().map(|(i, query)| {
            let named = |Problem(status, code, message)| Problem(status, code, format!("query {i}: {message}"));
            self.one(index, query).map(Value::Object).map_err(named)
        });
        Ok(json!({ "answers": answers.collect::<Answer<Vec<Value>>>()?, "generation": generation }))
    }

    fn one(&self, index: &Index, query: &Query) -> Answer<Map<String, Value>> {
        let k = query.k.unwrap_or(10);
        if !(1..=self.limits.k).contains(&k) {
            return Err(unprocessable(format!("expected k from 1 to {}, found {k}", self.limits.k)));
        }
        if query.ef.is_some_and(|ef| ef > 100 * self.limits.k) {
            return Err(unprocessable(format!("expected ef up to {}", 100 * self.limits.k)));
        }
        let mut kinds = Vec::new();
        kinds.extend(query.text.as_ref().map(|_| Kind::Text));
        kinds.extend(query.image.as_ref().map(|_| Kind::Image));
        let column = self.questions.column(index.manifest(), query.column.as_deref(), &kinds).map_err(unprocessable)?;
        let vector = self.vector(index, column, query)?;
        let filter = query.condition.as_deref().filter(|c| !c.trim().is_empty());
        let filter = filter.map(|text| self.filter(index, text)).transpose()?;
        let search = Search { column, k, ef: query.ef, exact: query.exact, filter: filter.as_deref() };
        let found = index.search(&vector, &search)?;
        let columns = match &query.columns {
            Some(columns) => {
                let known = index.readable_columns();
                if let Some(unknown) = columns.iter().find(|c| !known.contains(c)) {
                    return Err(unprocessable(format!(
                        "there is no column {unknown:?}; there are {}",
                        known.join(", ")
                    )));
                }
                columns.clone()
            }
            None => index.readable_columns(),
        };
        let positions: Vec<_> = found.hits.iter().map(|h| h.position).collect();
        let rows =
            if positions.is_empty() { Vec::new() } else { as_json(&index.rows_at(&positions, Some(&columns))?)? };
        let hits: Vec<Value> =
            found.hits.iter().zip(rows).map(|(hit, row)| json!({ "score": hit.score, "row": row })).collect();
        let mut answer = Map::new();
        answer.insert("column".into(), index.manifest().columns[column].name.clone().into());
        answer.insert("hits".into(), hits.into());
        answer.insert("plans".into(), json!(found.plans));
        if let Some(filter) = filter {
            answer.insert("matching".into(), filter.count().into());
        }
        Ok(answer)
    }

    fn vector(&self, index: &Index, column: usize, query: &Query) -> Answer<Vec<f32>> {
        let spec = &index.manifest().columns[column];
        let mut parts: Vec<Vec<f32>> = Vec::new();
        for text in query.text.iter().flat_map(OneOrMore::all) {
            parts.push(self.questions.text(spec, text).map_err(unprocessable)?);
        }
        for image in query.image.iter().flat_map(OneOrMore::all) {
            parts.push(self.questions.image(spec, &base64(image)?).map_err(unprocessable)?);
        }
        let keys: Vec<&String> = query.row.iter().flat_map(OneOrMore::all).collect();
        if !keys.is_empty() {
            let found = index.find(&keys.iter().map(|k| (*k).clone()).collect())?;
            for key in keys {
                let position = found.iter().find(|f| f.0 == *key).map(|f| f.1);
                let position = position.ok_or_else(|| Problem(404, "no_row", format!("there is no row {key:?}")))?;
                let vector = index.vector(position, column)?;
                let vector = vector.ok_or_else(|| unprocessable(format!("the row {key:?} has no {:?}", spec.name)))?;
                parts.push(vector.to_vec());
            }
        }
        parts.extend(query.vector.clone());
        if parts.is_empty() {
            return Err(unprocessable("expected one of text, image, row, vector"));
        }
        if let Some(wrong) = parts.iter().find(|v| v.len() != spec.dims) {
            return Err(unprocessable(format!(
                "{:?} has vectors of {} dimensions, found {}",
                spec.name,
                spec.dims,
                wrong.len()
            )));
        }
        Ok(sum_of_directions(parts))
    }

    /// The rows of a condition, kept for the next request with the same.
    fn filter(&self, index: &Index, text: &str) -> Answer<Arc<Filter>> {
        let key = (index.manifest().generation, text.to_owned());
        if let Ok(filters) = self.filters.lock()
            && let Some(filter) = filters.get(&key)
        {
            return Ok(Arc::clone(filter));
        }
        let schema = index.schema().cloned().unwrap_or_else(|| Arc::new(arrow::datatypes::Schema::empty()));
        let predicate = self.questions.predicate(text, &schema)?;
        let filter = Arc::new(index.filter(predicate.as_ref())?);
        if let Ok(mut filters) = self.filters.lock() {
            if filters.len() >= FILTERS {
                filters.clear();
            }
            filters.insert(key, Arc::clone(&filter));
        }
        Ok(filter)
    }

    /// Filters of an older generation are no use.
    pub(crate) fn forget_filters(&self) {
        if let Ok(mut filters) = self.filters.lock() {
            filters.clear();
        }
    }

    fn embed(&self, index: &Index, body: &[u8]) -> Answer<Value> {
        let asked: Embed = typed(parse(body)?)?;
        let kind = match (&asked.text, &asked.image) {
            (Some(_), None) => Kind::Text,
            (None, Some(_)) => Kind::Image,
            _ => return Err(unprocessable("expected one of text, image")),
        };
        let column =
            self.questions.column(index.manifest(), asked.column.as_deref(), &[kind]).map_err(unprocessable)?;
        let spec = &index.manifest().columns[column];
        let vector = match (&asked.text, &asked.image) {
            (Some(text), _) => self.questions.text(spec, text),
            (None, Some(image)) => self.questions.image(spec, &base64(image)?),
            (None, None) => Err("expected one of text, image".to_owned()),
        };
        let vector = vector.map_err(unprocessable)?;
        Ok(json!({ "column": spec.name, "model": spec.model, "vector": vector }))
    }
}

fn parse(body: &[u8]) -> Answer<Value> {
    serde_json::from_slice(body).map_err(|e| Problem(400, "bad_json", format!("expected a JSON object: {e}")))
}

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> Answer<T> {
    serde_json::from_value(value).map_err(unprocessable)
}

fn base64(text: &str) -> Answer<Vec<u8>> {
    // Pages send data URLs.
    let text = text.split_once(";base64,").map_or(text, |t| t.1);
    BASE64_STANDARD.decode(text).map_err(|e| unprocessable(format!("expected the image as base64: {e}")))
}

fn position(index: &Index, key: &str) -> Answer<crate::Position> {
    let found = index.find(&HashSet::from([key.to_owned()]))?;
    found.first().map(|f| f.1).ok_or_else(|| Problem(404, "no_row", format!("there is no row {key:?}")))
}

fn row(index: &Index, key: &str) -> Answer<Value> {
    let rows = index.rows_at(&[position(index, key)?], Some(&index.readable_columns()))?;
    Ok(Value::Object(as_json(&rows)?.pop().unwrap_or_default()))
}

/// The bytes of a media column, when they are a picture that browsers show and that cannot hold a script.
fn media(index: &Index, key: &str, column: &str) -> Answer<Answered> {
    use arrow::array::{Array, AsArray};
    let at = position(index, key)?;
    let nothing = || Problem(404, "no_media", format!("the row {key:?} has no picture in {column:?}"));
    if !index.metadata_columns().iter().any(|c| c == column) {
        return Err(nothing());
    }
    let rows = index.rows_at(&[at], Some(&[column.to_owned()]))?;
    let column = rows.column_by_name(column).ok_or_else(nothing)?;
    let bytes = column.as_struct_opt().and_then(|s| s.column_by_name("bytes")).unwrap_or(column);
    let bytes = arrow::compute::cast(bytes, &arrow::datatypes::DataType::LargeBinary).map_err(|_| nothing())?;
    let bytes = bytes.as_binary_opt::<i64>().filter(|b| b.len() == 1 && b.is_valid(0)).ok_or_else(nothing)?.value(0);
    let content_type = match bytes {
        [0xFF, 0xD8, 0xFF, ..] => "image/jpeg",
        [0x89, b'P', b'N', b'G', ..] => "image/png",
        [b'G', b'I', b'F', b'8', ..] => "image/gif",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "image/webp",
        _ => return Err(nothing()),
    };
    Ok(Answered {
        status: 200,
        content_type,
        body: Bytes::copy_from_slice(bytes),
        headers: vec![("cache-control", "private, max-age=60")],
    })
}

fn describe(index: &Index) -> Value {
    let m = index.manifest();
    let columns: Vec<Value> = m
        .columns
        .iter()
        .map(|c| json!({ "name": c.name, "dims": c.dims, "metric": c.metric, "model": c.model }))
        .collect();
    let schema = index.schema().map(|s| s.fields().clone()).unwrap_or_default();
    let readable = index.readable_columns();
    let media: Vec<&str> = schema
        .iter()
        .map(|f| f.name().as_str())
        .filter(|f| !readable.iter().any(|r| r == f) && !m.columns.iter().any(|c| c.name == *f))
        .collect();
    json!({ "rows": index.rows(), "generation": m.generation, "key": m.key, "vectors": columns, "columns": readable, "media": media })
}
