//! The server under good, bad, huge, slow and many requests, and with a new generation in the middle.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod vectors;

use std::{
    collections::HashSet,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::{array::RecordBatch, datatypes::Schema};
use groundloom_index::{
    Bitmap, ColumnSettings, ColumnSpec, Index, IndexError, Manifest, Metric, Predicate, Search, Writer,
    serve::{Kind, Limits, Questions, Server, Settings},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;
use vectors::{Numbers, Random, clustered, column, key, rows};

const DIMS: usize = 8;

/// Texts are lists of numbers, pictures their bytes, conditions `number < N`.
struct Plain;

impl Questions for Plain {
    fn column(&self, manifest: &Manifest, name: Option<&str>, _: &[Kind]) -> Result<usize, String> {
        manifest.column(name).map_err(|e| e.to_string())
    }
    fn text(&self, _: &ColumnSpec, text: &str) -> Result<Vec<f32>, String> {
        if text == "slow" {
            std::thread::sleep(Duration::from_millis(900));
        }
        if text == "panic" {
            panic!("a model that panics");
        }
        let mut random = Random(text.len() as u64);
        Ok(random.vector(DIMS))
    }
    fn image(&self, _: &ColumnSpec, bytes: &[u8]) -> Result<Vec<f32>, String> {
        bytes.first().map(|b| vec![f32::from(*b); DIMS]).ok_or("an empty picture".into())
    }
    fn predicate(&self, text: &str, _: &Schema) -> Result<Box<dyn Predicate>, IndexError> {
        let most = text.strip_prefix("number < ").and_then(|n| n.parse().ok());
        let most: usize = most.ok_or(IndexError::BadPredicate { predicate: text.into(), problem: "no".into() })?;
        Ok(Box::new(Numbers(Bitmap::from_fn(100_000, |i| i < most))))
    }
}

struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

fn data(count: usize) -> Vec<Vec<f32>> {
    clustered(count, DIMS, 20, 0.5, 3)
}

fn build(folder: &Path, count: usize) -> Writer {
    let settings = ColumnSettings { graph_from: 500, ..ColumnSettings::default() };
    let mut writer = Writer::create(folder, "row_id", vec![column(DIMS, Metric::Cosine, settings)]).unwrap();
    writer.add([Ok(rows(0, &data(count), DIMS))]).unwrap();
    writer
}

async fn start(folder: &Path, limits: Limits, token: Option<&str>) -> Running {
    let settings = Settings {
        index: folder.to_owned(),
        limits,
        token: token.map(str::to_owned),
        questions: Arc::new(Plain),
        reload: Duration::from_millis(30),
    };
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), settings).await.unwrap();
    let (address, stop) = (server.address(), CancellationToken::new());
    let server = tokio::spawn(server.run(stop.clone()));
    Running { address, stop, server }
}

impl Running {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes and reads the answers until the server closes.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        // A server that refuses early may close while we still send.
        let _ = stream.write_all(bytes).await;
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said).await;
        String::from_utf8_lossy(&said).into_owned()
    }

    async fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
        let address = self.address;
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
            body.len()
        );
        let said = self.raw(text.as_bytes()).await;
        let (head, body) = said.split_once("\r\n\r\n").unwrap_or((&said, ""));
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        (status, body.to_owned())
    }

    async fn ask(&self, body: &Value) -> (u16, Value) {
        let (status, body) = self.send("POST", "/search", "", &body.to_string()).await;
        (status, serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body:?}")))
    }
}

fn expected(index: &Index, query: &[f32], k: usize) -> Vec<String> {
    let search = Search { column: 0, k, ef: None, exact: true, filter: None };
    let hits = index.search(query, &search).unwrap().hits;
    hits.iter().map(|h| key(h.position.row as usize)).collect()
}

fn keys(answer: &Value) -> Vec<String> {
    answer["hits"].as_array().unwrap().iter().map(|h| h["row"]["row_id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_those_of_the_index() {
    let folder = tempfile::tempdir().unwrap();
    build(folder.path(), 300);
    let index = Index::open(folder.path()).unwrap();
    let server = start(folder.path(), Limits::default(), None).await;
    let query = &data(300)[7];
    let (status, answer) = server.ask(&json!({ "vector": query, "k": 5 })).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(keys(&answer), expected(&index, query, 5));
    assert_eq!(answer["hits"][0]["row"], json!({ "row_id": key(7), "number": 7 }));
    let (_, same) = server.ask(&json!({ "row": key(7), "k": 5 })).await;
    assert_eq!(keys(&same), keys(&answer));
    let (_, filtered) =
        server.ask(&json!({ "vector": query, "k": 50, "where": "number < 20", "columns": ["row_id"] })).await;
    assert_eq!((keys(&filtered).len(), &filtered["matching"]), (20, &json!(20)));
    let (_, batch) = server.ask(&json!({ "queries": [{ "vector": query, "k": 5 }, { "text": "abc", "k": 1 }, { "image": "AQ==", "k": 2 }] })).await;
    assert_eq!(keys(&batch["answers"][0]), keys(&answer));
    assert_eq!(batch["answers"][2]["hits"].as_array().unwrap().len(), 2);
    let (status, row) = server.send("GET", &format!("/rows/{}", key(3)), "", "").await;
    assert_eq!((status, serde_json::from_str::<Value>(&row).unwrap()), (200, json!({ "row_id": key(3), "number": 3 })));
    let (_, embedded) = server.send("POST", "/embed", "", r#"{"image": "data:image/png;base64,BQ=="}"#).await;
    assert_eq!(serde_json::from_str::<Value>(&embedded).unwrap()["vector"], json!(vec![5.0; DIMS]));
    for (path, words) in [
        ("/", "<title>"),
        ("/search.js", "use strict"),
        ("/healthz", "true"),
        ("/readyz", "\"rows\":300"),
        ("/metrics", "groundloom_index_queries_total"),
        ("/openapi.json", "\"3.1.0\""),
        ("/index", "embedding"),
    ] {
        let (status, body) = server.send("GET", path, "", "").await;
        assert!(status == 200 && body.contains(words), "{path}: {status} {body}");
        let (status, body) = server.send("HEAD", path, "", "").await;
        assert_eq!((status, body.as_str()), (200, ""), "{path}");
    }
    // Several requests on one connection, one of them in chunks.
    let host = server.address;
    let said = server
        .raw(format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\nPOST /search HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{{\"text\":\"ab\",\"k\"\r\n3\r\n:1}}\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())
        .await;
    assert_eq!(said.matches("HTTP/1.1 200 OK").count(), 3, "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_requests_say_what_was_expected() {
    let folder = tempfile::tempdir().unwrap();
    build(folder.path(), 100);
    let limits = Limits { body: 1000, k: 20, queries: 2, patience: Duration::from_millis(300), ..Limits::default() };
    let server = start(folder.path(), limits, None).await;
    for (body, status, words) in [
        ("{", 400, "expected a JSON object"),
        ("[]", 422, ""),
        ("{}", 422, "expected one of text, image, row, vector"),
        (r#"{"txt": "a"}"#, 422, "txt"),
        (r#"{"text": "a", "k": 0}"#, 422, "k from 1 to 20, found 0"),
        (r#"{"text": "a", "k": 21}"#, 422, "found 21"),
        (r#"{"text": "a", "k": -1}"#, 422, ""),
        (r#"{"text": "a", "ef": 1000000}"#, 422, "ef"),
        (r#"{"vector": [1, 2]}"#, 422, "8 dimensions, found 2"),
        (r#"{"vector": [0, 0, 0, 0, 0, 0, 0, 0]}"#, 422, "zero"),
        (r#"{"vector": [1e39, 0, 0, 0, 0, 0, 0, 0]}"#, 422, ""),
        (r#"{"image": "?"}"#, 422, "base64"),
        (r#"{"image": ""}"#, 422, "empty"),
        (r#"{"row": "nobody"}"#, 404, "no row \\\"nobody\\\""),
        (r#"{"text": "a", "column": "x"}"#, 422, "it has embedding"),
        (r#"{"text": "a", "where": "DROP"}"#, 422, "--where"),
        (r#"{"text": "a", "columns": ["embedding"]}"#, 422, "embedding"),
        (r#"{"queries": [{}, {}, {}]}"#, 422, "at most 2"),
        (r#"{"queries": [{"text": "a"}, {}]}"#, 422, "query 1"),
        (r#"{"text": "panic"}"#, 500, "the server's log"),
    ] {
        let (found, said) = server.send("POST", "/search", "", body).await;
        assert!(found == status && said.contains(words), "{body}: {found} {said}");
        assert!(serde_json::from_str::<Value>(&said).unwrap()["error"]["message"].is_string());
    }
    for (method, path, status) in [
        ("GET", "/search", 405),
        ("POST", "/healthz", 405),
        ("GET", "/../etc/passwd", 404),
        ("GET", "/rows/x", 404),
        ("GET", "/rows/x/media/image", 404),
        ("DELETE", "/rows/x", 405),
    ] {
        assert_eq!(server.send(method, path, "", "").await.0, status, "{method} {path}");
    }
    let huge = "x".repeat(2_000_000);
    assert_eq!(server.send("POST", "/search", "", &huge).await.0, 413);
    // A head that never ends, and a body that never comes.
    let begin = Instant::now();
    let slow = server
        .raw(format!("POST /search HTTP/1.1\r\nHost: {}\r\nContent-Length: 5\r\n\r\n{{", server.address).as_bytes())
        .await;
    assert!(slow.starts_with("HTTP/1.1 408") && begin.elapsed() < Duration::from_secs(5), "{slow}");
    let foreign = server.raw(b"GET /readyz HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").await;
    assert!(foreign.starts_with("HTTP/1.1 403"), "{foreign}");
    assert_eq!(server.send("GET", "/readyz", "", "").await.0, 200, "it still lives");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_asked_of_everything_but_health_and_the_page() {
    let folder = tempfile::tempdir().unwrap();
    build(folder.path(), 10);
    let server = start(folder.path(), Limits::default(), Some("s3cret")).await;
    for (header, status) in [
        ("", 401),
        ("Authorization: Bearer s3cre\r\n", 401),
        ("Authorization: Basic s3cret\r\n", 401),
        ("Authorization: Bearer s3cret\r\n", 200),
        ("authorization: bearer  s3cret\r\n", 200),
    ] {
        assert_eq!(server.send("POST", "/search", header, r#"{"text":"a"}"#).await.0, status, "{header}");
        assert_eq!(server.send("GET", "/metrics", header, "").await.0, status);
    }
    for path in ["/healthz", "/", "/search.js"] {
        assert_eq!(server.send("GET", path, "", "").await.0, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_at_once_are_told_so_and_stopping_waits_for_what_has_begun() {
    let folder = tempfile::tempdir().unwrap();
    build(folder.path(), 10);
    let limits = Limits { requests: 2, workers: 1, ..Limits::default() };
    let server = Arc::new(start(folder.path(), limits, None).await);
    let slow: Vec<_> = (0..4)
        .map(|_| {
            let server = Arc::clone(&server);
            tokio::spawn(async move { server.ask(&json!({ "text": "slow" })).await.0 })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(server.send("GET", "/healthz", "", "").await.0, 200, "health is answered all the same");
    server.stop.cancel();
    let mut found = Vec::new();
    for task in slow {
        found.push(task.await.unwrap());
    }
    found.sort_unstable();
    assert_eq!(found, [200, 200, 429, 429]);
    let mut server = Arc::into_inner(server).unwrap();
    (&mut server.server).await.unwrap();
    assert!(TcpStream::connect(server.address).await.is_err(), "nobody listens any more");
}

/// Many requests of every kind over few connections, while rows come and go.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn mixed_requests_through_new_generations_get_no_wrong_answer() {
    const EACH: usize = 1250;
    let folder = tempfile::tempdir().unwrap();
    let mut writer = build(folder.path(), 600);
    let all = data(600);
    let limits = Limits { patience: Duration::from_millis(500), body: 20_000, requests: 1000, ..Limits::default() };
    let server = Arc::new(start(folder.path(), limits, None).await);
    let clients: Vec<_> = (0..8_u64)
        .map(|client| {
            let (server, all) = (Arc::clone(&server), all.clone());
            tokio::spawn(async move {
                let mut random = Random(client);
                let mut generations = HashSet::new();
                for _ in 0..EACH {
                    match random.below(10) {
                        0 => assert_eq!(server.send("POST", "/search", "", "{\"text\"").await.0, 400),
                        1 => assert_eq!(server.send("POST", "/search", "", &"y".repeat(30_000)).await.0, 413),
                        2 => {
                            // A client that goes away in the middle.
                            let mut stream = server.connect().await;
                            let _ = stream.write_all(b"POST /search HTTP/1.1\r\nHost: a\r\nContent-Le").await;
                        }
                        3 => {
                            let (status, answer) =
                                server.ask(&json!({ "text": "x", "k": 5, "where": "number < 3" })).await;
                            assert_eq!((status, keys(&answer).len()), (200, 3), "{answer}");
                        }
                        _ => {
                            // Rows below 500 are always there, with the vector they have.
                            let row = random.below(500);
                            let (status, answer) = server.ask(&json!({ "vector": all[row], "k": 3 })).await;
                            assert_eq!(status, 200, "{answer}");
                            assert_eq!(keys(&answer)[0], key(row), "{answer}");
                            assert!(answer["hits"][0]["score"].as_f64().unwrap() > 0.9999);
                            generations.insert(answer["generation"].as_u64().unwrap());
                        }
                    }
                }
                generations
            })
        })
        .collect();
    let changing = tokio::task::spawn_blocking(move || {
        for round in 0..8 {
            writer.delete(&(500..600).map(key).collect()).unwrap();
            writer
                .add([Ok::<RecordBatch, IndexError>(rows(500, &clustered(100, DIMS, 5, 0.5, 100 + round), DIMS))])
                .unwrap();
            if round % 3 == 0 {
                writer.compact().unwrap();
            }
            std::thread::sleep(Duration::from_millis(40));
        }
        writer.manifest().generation
    });
    let last = changing.await.unwrap();
    let mut seen = HashSet::new();
    for client in clients {
        seen.extend(client.await.unwrap());
    }
    assert!(seen.len() > 2, "answers came from several generations: {seen:?}");
    let mut now = 0;
    for _ in 0..200 {
        let (_, ready) = server.send("GET", "/readyz", "", "").await;
        now = serde_json::from_str::<Value>(&ready).unwrap()["generation"].as_u64().unwrap();
        if now == last {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(now, last, "the last generation is served");
    #[cfg(target_os = "linux")]
    {
        // Every closed connection and every dropped generation has given its files back.
        let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
        assert!(open < 100, "{open} files are open");
    }
}
