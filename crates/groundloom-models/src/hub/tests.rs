#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::Mutex,
};

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Longer than one of hf-hub's ranges of 10 MB.
const LARGE: usize = 10_500_000;

/// How the server misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Answers everything with this status.
    Status(u16),
    /// Ends the second range of weights in the middle, so many times.
    CutWeights(usize),
    /// Ends small files without saying how long they are.
    CutText,
    /// Sends other bytes than it promised.
    OtherBytes,
    /// Says nothing.
    Silence,
    /// Says nothing where the weights lie.
    SilentStore,
    /// An ETag that leads out of the cache.
    Path,
}

/// A hub of one repository on a socket: it redirects large files to another place, names ETags and answers ranges.
struct Server {
    endpoint: String,
    fault: Arc<Mutex<Fault>>,
    /// The request lines, with the range asked for.
    asked: Arc<Mutex<Vec<String>>>,
}

fn files() -> BTreeMap<&'static str, Vec<u8>> {
    let weights = (0..LARGE).map(|i| (i * 31 % 251) as u8).collect();
    BTreeMap::from([
        ("config.json", b"{\"model_type\": \"bert\"}".to_vec()),
        ("README.md", b"---\nlicense: mit\n---\n".to_vec()),
        ("1_Pooling/config.json", b"{}".to_vec()),
        ("model.safetensors", weights),
        ("pytorch_model.bin", vec![1; 10]),
        ("onnx/model.safetensors", vec![1; 10]),
    ])
}

impl Server {
    fn start(fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (fault, asked) = (Arc::new(Mutex::new(fault)), Arc::new(Mutex::new(Vec::new())));
        let (shared, log) = (Arc::clone(&fault), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (shared, log) = (Arc::clone(&shared), Arc::clone(&log));
                std::thread::spawn(move || answer(stream.unwrap(), &shared, &log));
            }
        });
        Self { endpoint, fault, asked }
    }

    fn hub(&self, cache: &Path) -> Hub {
        Hub {
            cache: cache.to_owned(),
            endpoint: self.endpoint.clone(),
            token: Some("secret".to_owned()),
            offline: false,
            stall: Duration::from_secs(20),
        }
    }
}

fn answer(mut stream: TcpStream, fault: &Mutex<Fault>, log: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let request = lines.next().unwrap_or_default();
    let headers: Vec<String> =
        lines.take_while(|line| !line.is_empty()).map(|line| line.to_ascii_lowercase()).collect();
    let header = |name: &str| headers.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let path = request.split(' ').nth(1).unwrap_or_default();
    log.lock().unwrap().push(format!("{path} {}", header("range").unwrap_or("")));
    let state = *fault.lock().unwrap();
    let mut send = |head: String, body: &[u8]| {
        let _ = stream.write_all(format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n").as_bytes());
        let _ = stream.write_all(body);
    };
    if state == Fault::Silence
        || (state == Fault::SilentStore && path.starts_with("/store") && !is_probe(header("range")))
    {
        std::thread::sleep(Duration::from_secs(30));
        return;
    }
    if let Fault::Status(status) = state {
        return send(format!("{status} no\r\nContent-Length: 0"), b"");
    }
    if path.starts_with("/api/models/org/tiny/revision/") {
        let list: Vec<Value> = files().keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let body = serde_json::json!({ "sha": COMMIT, "siblings": list }).to_string();
        return send(format!("200 OK\r\nContent-Length: {}", body.len()), body.as_bytes());
    }
    let name = path.split(&format!("/{COMMIT}/")).nth(1).unwrap_or_default();
    let all = files();
    let Some(bytes) = all.get(name) else { return send("404 no\r\nContent-Length: 0".to_owned(), b"") };
    let large = name.ends_with(".safetensors");
    let sha256 = hexadecimal(&Sha256::digest(bytes));
    let etag = if large { sha256 } else { format!("{:040x}", bytes.len()) };
    let etag = if state == Fault::Path { "../../../x".to_owned() } else { etag };
    if large && path.starts_with("/org/tiny/resolve") {
        // Another address, so that the client asks there anew.
        let port = header("host").unwrap().split(':').nth(1).unwrap().to_owned();
        return send(
            format!(
                "302 Found\r\nLocation: http://localhost:{port}/store/{COMMIT}/{name}\r\nX-Repo-Commit: {COMMIT}\r\n\
                 X-Linked-Etag: \"{etag}\"\r\nETag: \"other\"\r\nContent-Length: 0"
            ),
            b"",
        );
    }
    let range = header("range").unwrap().trim_start_matches("bytes=").split_once('-').unwrap();
    let (from, to): (usize, usize) = (range.0.parse().unwrap(), range.1.parse::<usize>().unwrap().min(bytes.len() - 1));
    let mut part = bytes[from..=to].to_vec();
    let length = part.len();
    if large && length > 1 && state == Fault::OtherBytes {
        part[7] ^= 1;
    }
    if let Fault::CutWeights(left) = state
        && large
        && from > 0
        && left > 0
    {
        *fault.lock().unwrap() = Fault::CutWeights(left - 1);
        part.truncate(length / 2);
    }
    let cut = !large && length > 1 && state == Fault::CutText;
    if cut {
        part.truncate(length / 2);
    }
    let said = if cut { String::new() } else { format!("\r\nContent-Length: {length}") };
    send(
        format!(
            "206 Partial\r\nContent-Range: bytes {from}-{to}/{}\r\nX-Repo-Commit: {COMMIT}\r\nETag: \"{etag}\"{said}",
            bytes.len()
        ),
        &part,
    );
}

/// Whether a request asks for the first byte only, to learn the size.
fn is_probe(range: Option<&str>) -> bool {
    range == Some("bytes=0-0")
}

fn quiet() -> PullProgress {
    Arc::new(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_fetched_once_and_found_by_every_name() {
    let (server, cache) = (Server::start(Fault::None), tempfile::tempdir().unwrap());
    let hub = server.hub(cache.path());
    assert!(matches!(hub.folder("hf://org/tiny"), Err(ModelError::NotFetched { .. })));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let folder = hub.pull("hf://org/tiny", Arc::new(move |p| log.lock().unwrap().push(p.clone()))).await.unwrap();
    for (name, bytes) in files() {
        let wanted = !name.starts_with("pytorch") && !name.starts_with("onnx");
        assert_eq!(fs::read(folder.join(name)).ok(), wanted.then_some(bytes), "{name}");
    }
    let last = seen.lock().unwrap().last().cloned().unwrap();
    assert_eq!(last, Pulling { file: SINGLE.to_owned(), done: LARGE as u64, total: LARGE as u64 });
    assert_eq!(hub.folder(&format!("hf://org/tiny@{COMMIT}")).unwrap(), folder);
    assert!(matches!(hub.folder("hf://org/tiny@other"), Err(ModelError::NotFetched { .. })));
    // Without the network it is there; again with it, no body is fetched.
    let offline = Hub { offline: true, endpoint: "http://127.0.0.1:1".to_owned(), ..hub.clone() };
    assert_eq!(offline.pull("hf://org/tiny", quiet()).await.unwrap(), folder);
    server.asked.lock().unwrap().clear();
    assert_eq!(hub.pull("hf://org/tiny@main", quiet()).await.unwrap(), folder);
    let asked = server.asked.lock().unwrap().clone();
    assert!(
        asked.len() > 4 && asked.iter().all(|line| line.ends_with(' ') || line.ends_with("bytes=0-0")),
        "{asked:?}"
    );
    // What was damaged on the disk comes anew.
    fs::write(folder.join(SINGLE), "damaged").unwrap();
    hub.pull("hf://org/tiny", quiet()).await.unwrap();
    assert_eq!(fs::read(folder.join(SINGLE)).unwrap(), files()[SINGLE]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_download_goes_on_and_is_never_taken_for_whole() {
    let (server, cache) = (Server::start(Fault::CutWeights(3)), tempfile::tempdir().unwrap());
    let hub = server.hub(cache.path());
    let error = hub.pull("hf://org/tiny", quiet()).await.unwrap_err().to_string();
    assert!(error.contains("model.safetensors: the download failed") && error.contains("goes on where"), "{error}");
    assert!(!error.contains("secret"), "{error}");
    for name in ["hf://org/tiny".to_owned(), format!("hf://org/tiny@{COMMIT}")] {
        assert!(matches!(hub.folder(&name), Err(ModelError::NotFetched { .. })));
    }
    hub.pull("hf://org/tiny", quiet()).await.unwrap();
    let asked = server.asked.lock().unwrap().clone();
    // What was under way when the first pull gave up may have been asked later than its error came.
    let second = asked.iter().rposition(|line| line.contains("/api/models/")).unwrap();
    let bodies: Vec<&String> =
        asked[second..].iter().filter(|line| line.contains("/store/") && !line.ends_with("=0-0")).collect();
    // The first part comes again only if it was still under way when the second one failed; and one request of the first
    // pull may reach the server after the second pull has begun.
    assert!(bodies.iter().any(|line| line.contains("bytes=10000000-")), "{asked:?}");
    assert!(bodies.len() <= 3, "{asked:?}");
    // A connection that breaks once is no failure.
    let other = tempfile::tempdir().unwrap();
    *server.fault.lock().unwrap() = Fault::CutWeights(1);
    server.hub(other.path()).pull("hf://org/tiny", quiet()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_the_file_is_refused() {
    let cases = [
        (Fault::OtherBytes, "model.safetensors: expected the sha256"),
        (Fault::CutText, "expected text, found zeros at byte"),
        (Fault::Path, "expected an ETag of letters and digits, found \"../../../x\""),
        (Fault::Status(401), "set HF_TOKEN to a token"),
        (Fault::Status(403), "accept the model's terms"),
        (Fault::Status(404), "check the name and the revision \"main\""),
        (Fault::Status(503), "503"),
    ];
    for (fault, message) in cases {
        let (server, cache) = (Server::start(fault), tempfile::tempdir().unwrap());
        let hub = server.hub(cache.path());
        let error = hub.pull("hf://org/tiny", quiet()).await.unwrap_err().to_string();
        assert!(error.starts_with("hf://org/tiny: ") && error.contains(message), "{fault:?}: {error}");
        assert!(matches!(hub.folder("hf://org/tiny"), Err(ModelError::NotFetched { .. })), "{fault:?}");
        *server.fault.lock().unwrap() = Fault::None;
        hub.pull("hf://org/tiny", quiet()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_server_is_given_up() {
    for fault in [Fault::Silence, Fault::SilentStore] {
        let (server, cache) = (Server::start(fault), tempfile::tempdir().unwrap());
        let hub = Hub { stall: Duration::from_millis(300), ..server.hub(cache.path()) };
        let error = hub.pull("hf://org/tiny", quiet()).await.unwrap_err().to_string();
        assert!(error.contains("has sent nothing for 300ms; pull again"), "{fault:?}: {error}");
        assert!(matches!(hub.folder("hf://org/tiny"), Err(ModelError::NotFetched { .. })));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn offline_asks_nobody() {
    let (server, cache) = (Server::start(Fault::None), tempfile::tempdir().unwrap());
    let hub = Hub { offline: true, ..server.hub(cache.path()) };
    let error = hub.pull("hf://org/tiny", quiet()).await.unwrap_err().to_string();
    assert!(error.contains("HF_HUB_OFFLINE is set") && error.contains("models--org--tiny"), "{error}");
    assert!(server.asked.lock().unwrap().is_empty());
}

#[test]
fn the_environment_is_read_as_others_read_it() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("token"), " saved\n").unwrap();
    let hub = |set: &[(&str, &str)], user: Option<&str>| {
        let find = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Hub::from_variables(find, user.map(PathBuf::from))
    };
    let plain = hub(&[], Some("/home/me")).unwrap();
    assert_eq!(plain.cache, Path::new("/home/me/.cache/huggingface/hub"));
    assert_eq!((plain.endpoint.as_str(), plain.token, plain.offline), ("https://huggingface.co", None, false));
    assert_eq!(hub(&[("XDG_CACHE_HOME", "/x")], None).unwrap().cache, Path::new("/x/huggingface/hub"));
    let in_home = hub(&[("HF_HOME", home.path().to_str().unwrap()), ("HF_HUB_OFFLINE", "1")], None).unwrap();
    assert_eq!((in_home.cache, in_home.offline), (home.path().join("hub"), true));
    assert_eq!(in_home.token.as_deref(), Some("saved"));
    let all = [("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c"), ("HF_TOKEN", "t"), ("HF_ENDPOINT", "http://mirror/")];
    let all = hub(&all, None).unwrap();
    assert_eq!(
        (all.cache, all.endpoint.as_str(), all.token.as_deref()),
        (PathBuf::from("/c"), "http://mirror", Some("t"))
    );
    assert!(hub(&[], None).unwrap_err().to_string().contains("set HF_HOME"));
}

#[test]
fn names_lead_nowhere_else() {
    for name in
        ["hf://", "hf://a/b/c", "hf://../x", "hf://a/..", "hf://a/b@", "hf://a/b@../../x", "hf://a/b@/etc", "hf://a b"]
    {
        assert!(HubName::parse(name).unwrap_err().to_string().contains("expected hf://org/repo"), "{name}");
    }
    let name = HubName::parse("hf://org/repo@refs/pr/3").unwrap();
    assert_eq!((name.repo.as_str(), name.revision.as_str()), ("org/repo", "refs/pr/3"));
    assert_eq!(HubName::parse("hf://bert-base-uncased").unwrap().revision, "main");
}

#[test]
fn shards_are_all_needed_and_come_last() {
    let list = |names: &[&str]| wanted(names.iter().map(|name| (*name).to_owned()));
    let shards = [
        "model-1-of-2.safetensors",
        "model-2-of-2.safetensors",
        INDEX,
        "config.json",
        "tokenizer.json",
        "../vocab.json",
    ];
    assert_eq!(
        list(&shards).unwrap(),
        [INDEX, "config.json", "tokenizer.json", "model-1-of-2.safetensors", "model-2-of-2.safetensors"]
    );
    // open_clip's weights are read where its options are all there is; two layouts side by side are one model twice.
    let open_clip = ["open_clip_config.json", "open_clip_model.safetensors"];
    assert_eq!(list(&open_clip).unwrap(), open_clip);
    let both = ["config.json", "model.safetensors"];
    assert_eq!(
        list(&[both, open_clip].concat()).unwrap(),
        ["config.json", "open_clip_config.json", "model.safetensors"]
    );
    assert!(list(&["config.json", "pytorch_model.bin"]).unwrap_err().contains("another format"));
    assert!(list(&["model.safetensors"]).unwrap_err().contains("expected a config.json"));
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("config.json", "{}");
    write(INDEX, "{\"weight_map\": {\"a\": \"model-1-of-2.safetensors\", \"b\": \"model-2-of-2.safetensors\"}}");
    write("model-1-of-2.safetensors", "");
    assert!(!is_whole(folder.path()));
    write("model-2-of-2.safetensors", "");
    assert!(is_whole(folder.path()));
    let folder = tempfile::tempdir().unwrap();
    for (name, whole) in open_clip.into_iter().zip([false, true]) {
        fs::write(folder.path().join(name), "{}").unwrap();
        assert_eq!(is_whole(folder.path()), whole, "{name}");
    }
}
