//! Models of the Hugging Face hub, `hf://org/repo@revision`: where they lie in the cache that other programs share, and
//! how they get there.
//!
//! A file is fetched beside the cache, checked, and only then moved into it: the weights last, the revision's name
//! behind them. So whatever ends a download, the cache never shows half a model.

use std::{
    fmt::Display,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hf_hub::{
    Cache, Repo, RepoType,
    api::{
        RepoInfo,
        tokio::{Api, ApiBuilder, ApiError, ApiRepo, Metadata, Progress},
    },
};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{
    ModelError, config,
    folder::hexadecimal,
    weights::{INDEX, SINGLE, single},
};

/// What the name of a hub's model begins with.
pub(crate) const SCHEME: &str = "hf://";
/// Where files lie until they are checked, in the cache.
const STAGING: &str = ".groundloom";
/// How long a server may be silent.
const STALL: Duration = Duration::from_secs(60);
/// How often a file is asked for while the connection breaks.
const ATTEMPTS: u64 = 3;

/// A hub of models and its cache on this machine.
#[derive(Debug, Clone)]
pub struct Hub {
    /// The folder of `models--ORG--REPO`.
    cache: PathBuf,
    endpoint: String,
    token: Option<String>,
    offline: bool,
    /// A server that sends nothing for so long is given up.
    stall: Duration,
}

/// How far the download of a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulling {
    /// Its name in the repository.
    pub file: String,
    /// Bytes that are here; a connection that broke may have brought some of them twice.
    pub done: u64,
    /// Bytes of the file.
    pub total: u64,
}

/// What is told of a download while it runs.
pub type PullProgress = Arc<dyn Fn(&Pulling) + Send + Sync>;

/// `hf://org/repo@revision`, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HubName {
    name: String,
    repo: String,
    revision: String,
}

impl HubName {
    /// Reads `hf://repo`, `hf://org/repo` or either with `@revision` (a branch, a tag or a commit; `main` without).
    fn parse(name: &str) -> Result<Self, ModelError> {
        let rest = name.strip_prefix(SCHEME).unwrap_or(name);
        let (repo, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let part = |part: &str| {
            let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            !part.is_empty() && !part.starts_with('.') && !part.contains("..") && part.chars().all(known)
        };
        if repo.split('/').count() > 2 || !repo.split('/').chain(revision.split('/')).all(part) {
            let problem = "expected hf://org/repo or hf://org/repo@revision, of letters, digits and . _ -".to_owned();
            return Err(ModelError::Hub { name: name.to_owned(), problem });
        }
        Ok(Self { name: name.to_owned(), repo: repo.to_owned(), revision: revision.to_owned() })
    }

    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.repo.clone(), RepoType::Model, revision.to_owned())
    }

    fn error(&self, problem: impl Display) -> ModelError {
        ModelError::Hub { name: self.name.clone(), problem: problem.to_string() }
    }
}

impl Hub {
    /// The hub and the cache that the environment names, as Hugging Face's own programs read it: `HF_HUB_CACHE`, or
    /// `hub` in `HF_HOME`, or in `huggingface` of the user's cache; `HF_ENDPOINT`; `HF_TOKEN`, or the file `token` in
    /// `HF_HOME`; `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// [`ModelError::Hub`] where there is no home directory either.
    pub fn from_env() -> Result<Self, ModelError> {
        Self::from_variables(|name| std::env::var(name).ok(), std::env::home_dir())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>, user: Option<PathBuf>) -> Result<Self, ModelError> {
        let set = |name: &str| variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let user_cache = || set("XDG_CACHE_HOME").map(PathBuf::from).or(user.map(|home| home.join(".cache")));
        let home = set("HF_HOME").map(PathBuf::from).or_else(|| Some(user_cache()?.join("huggingface")));
        let cache = set("HF_HUB_CACHE").map(PathBuf::from).or_else(|| Some(home.as_ref()?.join("hub")));
        let Some(cache) = cache else {
            let problem = "expected a place for models, found no home directory; set HF_HOME to a folder".to_owned();
            return Err(ModelError::Hub { name: "the cache of models".to_owned(), problem });
        };
        let saved = || fs::read_to_string(home.as_ref()?.join("token")).ok().map(|token| token.trim().to_owned());
        let offline = set("HF_HUB_OFFLINE").map(|value| value.to_ascii_lowercase());
        Ok(Self {
            // Links in the cache are relative to each other, and hf-hub asks for absolute paths.
            cache: std::path::absolute(&cache).unwrap_or(cache),
            endpoint: set("HF_ENDPOINT")
                .map_or("https://huggingface.co".to_owned(), |it| it.trim_end_matches('/').into()),
            token: set("HF_TOKEN").or_else(saved).filter(|token| !token.is_empty()),
            offline: offline.is_some_and(|value| matches!(value.as_str(), "1" | "true" | "yes" | "on")),
            stall: STALL,
        })
    }

    /// The folder of the model `name` in the cache. Nothing is fetched.
    ///
    /// # Errors
    /// [`ModelError::NotFetched`] where it isn't there, or not all of it; [`ModelError::Hub`] for what is no name.
    pub fn folder(&self, name: &str) -> Result<PathBuf, ModelError> {
        let model = HubName::parse(name)?;
        let repo = self.of(&model);
        let named = || fs::read_to_string(repo.join("refs").join(&model.revision)).ok();
        let commit = if is_commit(&model.revision) {
            Some(model.revision.clone())
        } else {
            named().map(|it| it.trim().to_owned())
        };
        let snapshot = commit.filter(|commit| is_commit(commit)).map(|commit| repo.join("snapshots").join(commit));
        snapshot
            .filter(|snapshot| is_whole(snapshot))
            .ok_or_else(|| ModelError::NotFetched { name: name.to_owned(), cache: self.cache.display().to_string() })
    }

    /// Fetches the model `name` into the cache, and gives its folder. What is there already is checked and stays. A
    /// download that was cut goes on where it stopped. Runs on tokio.
    ///
    /// # Errors
    /// [`ModelError::Hub`] says what the server, the network or the disk did and what to do about it.
    pub async fn pull(&self, name: &str, progress: PullProgress) -> Result<PathBuf, ModelError> {
        let model = HubName::parse(name)?;
        if self.offline {
            return self.folder(name).map_err(|_| {
                model.error(format!(
                    "not in the cache {}, and HF_HUB_OFFLINE is set; unset it, copy {} from a machine that has it, or put \
                     the model's files into a folder and give the folder's path as the model's name",
                    self.cache.display(),
                    self.of(&model).display()
                ))
            });
        }
        let (hub, wanted) = (self.clone(), model.clone());
        // A task of its own: hf-hub panics where a redirect leads nowhere.
        let task = tokio::spawn(async move { hub.fetch(&wanted, &progress).await });
        task.await.map_err(|e| model.error(format!("the server's answer could not be followed ({e})")))??;
        self.folder(name)
    }

    async fn fetch(&self, model: &HubName, progress: &PullProgress) -> Result<(), ModelError> {
        let api = ApiBuilder::from_cache(Cache::new(self.cache.join(STAGING)))
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_progress(false)
            .with_user_agent("groundloom", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|e| self.failed(model, None, &e))?;
        let info = self.info(model, &api).await?;
        if !is_commit(&info.sha) {
            return Err(model.error(format!("expected the server to name a commit, found {:.60?}", info.sha)));
        }
        let files = wanted(info.siblings.into_iter().map(|file| file.rfilename)).map_err(|e| model.error(e))?;
        // By the commit: a branch that moves meanwhile can't mix two versions.
        let repo = api.repo(model.repo(&info.sha));
        for file in &files {
            self.file(model, &api, &repo, &info.sha, file, progress).await?;
        }
        if model.revision != info.sha {
            let named = self.of(model).join("refs").join(&model.revision);
            write_whole(&named, &info.sha).map_err(|e| model.error(disk(&named, &e)))?;
        }
        Ok(())
    }

    async fn info(&self, model: &HubName, api: &Api) -> Result<RepoInfo, ModelError> {
        let answer = async {
            let response = api.repo(model.repo(&model.revision)).info_request().send().await?;
            response.error_for_status()?.json().await.map_err(ApiError::from)
        };
        let answer = tokio::time::timeout(self.stall, answer).await.map_err(|_| self.stalled(model))?;
        answer.map_err(|e| self.failed(model, None, &e))
    }

    /// Brings one file into the cache's snapshot of `commit`.
    async fn file(
        &self,
        model: &HubName,
        api: &Api,
        repo: &ApiRepo,
        commit: &str,
        file: &str,
        progress: &PullProgress,
    ) -> Result<(), ModelError> {
        let url = repo.url(file);
        let metadata = api.metadata(&url);
        let metadata = tokio::time::timeout(self.stall, metadata).await.map_err(|_| self.stalled(model))?;
        let remote = Remote::read(metadata.map_err(|e| self.failed(model, Some(file), &e))?);
        let remote = remote.map_err(|e| model.error(format!("{file}: {e}")))?;
        let here = self.of(model);
        let blob = here.join("blobs").join(&remote.etag);
        if !blob.exists() || remote.check(&blob).await.is_err() {
            let staged = self.download(model, repo, commit, file, &remote, progress).await?;
            let moved = in_parent(&blob).and_then(|()| fs::rename(&staged, &blob));
            moved.map_err(|e| model.error(disk(&blob, &e)))?;
        }
        let link = here.join("snapshots").join(commit).join(file);
        place(&blob, &link, file).map_err(|e| model.error(disk(&link, &e)))
    }

    /// Downloads one file beside the cache, and gives the checked file.
    async fn download(
        &self,
        model: &HubName,
        repo: &ApiRepo,
        commit: &str,
        file: &str,
        remote: &Remote,
        progress: &PullProgress,
    ) -> Result<PathBuf, ModelError> {
        let staging = Cache::new(self.cache.join(STAGING)).repo(model.repo(commit));
        // A link of an earlier download would be kept, wherever it leads.
        let _ = fs::remove_file(staging.pointer_path(commit).join(file));
        let mut attempt = 0;
        let pointer = loop {
            attempt += 1;
            let bytes = Bytes { file: file.to_owned(), total: 0, done: Arc::default(), progress: Arc::clone(progress) };
            let problem = tokio::select! {
                found = repo.download_with_progress(file, bytes.clone()) => match found {
                    Ok(path) => break path,
                    Err(e) if is_answer(&e) => return Err(self.failed(model, Some(file), &e)),
                    Err(e) => self.failed(model, Some(file), &e),
                },
                () = bytes.stop(self.stall) => self.stalled(model),
            };
            if attempt == ATTEMPTS {
                return Err(problem);
            }
            tokio::time::sleep(Duration::from_millis(300 * attempt)).await;
        };
        let staged = fs::canonicalize(&pointer).map_err(|e| model.error(disk(&pointer, &e)))?;
        let _ = fs::remove_file(&pointer);
        if let Err(problem) = remote.check(&staged).await {
            let _ = fs::remove_file(&staged);
            return Err(model.error(format!("{file}: {problem}; pull it again")));
        }
        Ok(staged)
    }

    fn stalled(&self, model: &HubName) -> ModelError {
        model.error(format!(
            "{} has sent nothing for {:?}; pull again: the download goes on where it stopped",
            self.endpoint, self.stall
        ))
    }

    /// `models--ORG--REPO` in the cache.
    fn of(&self, model: &HubName) -> PathBuf {
        self.cache.join(model.repo(&model.revision).folder_name())
    }

    fn failed(&self, model: &HubName, file: Option<&str>, error: &ApiError) -> ModelError {
        let file = file.map(|file| format!("{file}: ")).unwrap_or_default();
        let page = format!("{}/{}", self.endpoint, model.repo);
        let status = match error {
            ApiError::RequestError(e) => e.status().map(|status| status.as_u16()),
            _ => None,
        };
        let problem = match status {
            Some(401) => {
                "the server asks who you are (401): the repository is private or does not exist; check the name, or set \
                 HF_TOKEN to a token that may read it"
                    .to_owned()
            }
            Some(403) => format!(
                "your token may not read it (403): accept the model's terms on {page}, or set HF_TOKEN to a token that may"
            ),
            Some(404) => format!("not found (404): check the name and the revision {:?} on {page}", model.revision),
            Some(429) => "the server answers no more for now (429, too many requests): wait, or set HF_TOKEN".to_owned(),
            _ => format!(
                "the download failed ({}); check the connection to {} (HF_ENDPOINT names another server), and pull again: \
                 it goes on where it stopped",
                with_sources(error),
                self.endpoint
            ),
        };
        model.error(format!("{file}{problem}"))
    }
}

/// What the server says a file is.
struct Remote {
    /// The file's name in the cache: the sha256 of a large file, the git object of a small one.
    etag: String,
    size: u64,
}

impl Remote {
    fn read(metadata: Metadata) -> Result<Self, String> {
        let etag = metadata.etag().trim_start_matches("W/").to_owned();
        // It becomes the name of a file.
        if etag.is_empty() || !etag.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_') {
            return Err(format!("expected an ETag of letters and digits, found {etag:.80?}"));
        }
        Ok(Self { etag, size: metadata.size() as u64 })
    }

    /// Whether `path` is the file: size and sha256 of a large one; size, and no hole in a small one, which is text.
    async fn check(&self, path: &Path) -> Result<(), String> {
        let (path, size, etag) = (path.to_owned(), self.size, self.etag.clone());
        let checked = tokio::task::spawn_blocking(move || {
            let mut file = fs::File::open(&path).map_err(|e| disk(&path, &e))?;
            let found = file.metadata().map_err(|e| disk(&path, &e))?.len();
            if found != size {
                return Err(format!("expected {size} bytes, found {found}"));
            }
            if etag.len() != 64 {
                let text = fs::read(&path).map_err(|e| disk(&path, &e))?;
                let hole = text.iter().position(|&byte| byte == 0);
                return hole.map_or(Ok(()), |at| Err(format!("expected text, found zeros at byte {at}; it came cut")));
            }
            let mut hash = Sha256::new();
            let mut buffer = vec![0; 1 << 20];
            loop {
                match io::Read::read(&mut file, &mut buffer).map_err(|e| disk(&path, &e))? {
                    0 => break,
                    count => hash.update(&buffer[..count]),
                }
            }
            let found = hexadecimal(&hash.finalize());
            if found == etag { Ok(()) } else { Err(format!("expected the sha256 {etag}, found {found}")) }
        });
        checked.await.map_err(|e| e.to_string())?
    }
}

/// Counts the bytes of a download, for the user and against a server that stops sending.
#[derive(Clone)]
struct Bytes {
    file: String,
    total: u64,
    done: Arc<AtomicU64>,
    progress: PullProgress,
}

impl Bytes {
    /// Returns when nothing has come for as long as `stall`.
    async fn stop(&self, stall: Duration) {
        loop {
            let before = self.done.load(Ordering::Relaxed);
            tokio::time::sleep(stall).await;
            if self.done.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }
}

impl Progress for Bytes {
    async fn init(&mut self, size: usize, _file: &str) {
        self.total = size as u64;
    }

    async fn update(&mut self, size: usize) {
        let done = self.done.fetch_add(size as u64, Ordering::Relaxed) + size as u64;
        (self.progress)(&Pulling { file: self.file.clone(), done, total: self.total });
    }

    async fn finish(&mut self) {}
}

/// The files of a repository that this crate reads, its weights last.
///
/// # Errors
/// Says what is missing.
fn wanted(files: impl Iterator<Item = String>) -> Result<Vec<String>, String> {
    let files: Vec<String> = files.collect();
    let has = |name: &str| files.iter().any(|file| file == name);
    if !has("config.json") && !has(config::OPEN_CLIP) {
        return Err("expected a config.json, found none; the repository is no model that groundloom reads".to_owned());
    }
    // Whatever the index calls them: model-00001-of-00002, pytorch_model-00001-of-00002, …
    let is_shard = |file: &str| file.contains("-of-") && file.ends_with(".safetensors");
    let single = single(has);
    if !has(single) && !has(INDEX) {
        return Err(format!(
            "expected {SINGLE} or {INDEX}, found neither; the weights are in another format: look for a revision with \
             safetensors (hf://org/repo@refs/pr/N), or convert them"
        ));
    }
    if !has(single) && !files.iter().any(|file| is_shard(file)) {
        return Err(format!("expected the shards …-of-….safetensors that {INDEX} names, found none"));
    }
    let small = |file: &str| {
        const NAMES: &[&str] = &[
            "config.json",
            "preprocessor_config.json",
            "modules.json",
            "sentence_bert_config.json",
            "1_Pooling/config.json",
            "generation_config.json",
            "chat_template.jinja",
            config::OPEN_CLIP,
            "merges.txt",
            "README.md",
            INDEX,
        ];
        let tokenizer = (file.starts_with("tokenizer") && file.ends_with(".json")) || file == "tokenizer.model";
        let vocabulary = file.starts_with("vocab") && (file.ends_with(".json") || file.ends_with(".txt"));
        NAMES.contains(&file) || (!file.contains(['/', '\\']) && (tokenizer || vocabulary))
    };
    let weights = |file: &str| !file.contains(['/', '\\']) && if has(single) { file == single } else { is_shard(file) };
    let (small, large) = (files.iter().filter(|file| small(file)), files.iter().filter(|file| weights(file)));
    Ok(small.filter(|file| *file != INDEX || !has(single)).chain(large).cloned().collect())
}

/// Whether a snapshot has its options and all its weights, which come last.
fn is_whole(snapshot: &Path) -> bool {
    let has = |name: &str| snapshot.join(name).is_file();
    let shards = || -> Option<bool> {
        let index: Value = serde_json::from_slice(&fs::read(snapshot.join(INDEX)).ok()?).ok()?;
        let mut files = index.get("weight_map")?.as_object()?.values();
        Some(files.all(|file| file.as_str().is_some_and(has)))
    };
    (has("config.json") || has(config::OPEN_CLIP)) && (has(single(has)) || shards().unwrap_or(false))
}

/// Whether `revision` is a commit: 40 hexadecimal digits.
fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|c| c.is_ascii_hexdigit())
}

/// Whether the server has answered, so that asking again gives the same.
fn is_answer(error: &ApiError) -> bool {
    matches!(error, ApiError::RequestError(e) if e.status().is_some_and(|status| status.as_u16() < 500))
}

fn disk(path: &Path, error: &io::Error) -> String {
    format!("cannot use {}: {error}", path.display())
}

fn with_sources(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn in_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// Writes a file that others see whole or not at all.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    in_parent(path)?;
    let part = path.with_added_extension(format!("{}.part", std::process::id()));
    fs::write(&part, text)?;
    fs::rename(part, path)
}

/// Shows `blob` as `file` of a snapshot: by a relative link, as the cache's other users do, or by a copy where the
/// system has no links.
fn place(blob: &Path, at: &Path, file: &str) -> io::Result<()> {
    in_parent(at)?;
    let part = at.with_added_extension(format!("{}.part", std::process::id()));
    let _ = fs::remove_file(&part);
    #[cfg(unix)]
    {
        let up = "../".repeat(2 + file.matches('/').count());
        let target = format!("{up}blobs/{}", blob.file_name().unwrap_or_default().to_string_lossy());
        std::os::unix::fs::symlink(target, &part)?;
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        fs::copy(blob, &part)?;
    }
    fs::rename(part, at)
}

#[cfg(test)]
mod tests;
