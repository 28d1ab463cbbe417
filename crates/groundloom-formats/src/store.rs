//! Local paths and object-store URLs behind one door.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    fs::{self, File},
    io::{self, ErrorKind, Read, Seek, SeekFrom},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use object_store::{
    ClientOptions, GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt, aws::AmazonS3Builder,
    azure::MicrosoftAzureBuilder, gcp::GoogleCloudStorageBuilder, http::HttpBuilder, path::Path as ObjectPath,
};

use crate::{FormatError, globs};

mod upload;
pub use upload::{Expected, Replaced};

/// Opens object stores by URL, once each; clones share what is open.
///
/// Understood are local paths (absolute, or relative to the current directory; also `file://`), `s3://bucket/…`, `gs://bucket/…`, `az://container/…` (and `abfs://`),
/// `http://…` and `https://…`. Credentials, regions and endpoints come from the environment (`AWS_*`, `GOOGLE_*`, `AZURE_*`). HTTP knows no listing, so only exact
/// URLs and brace ranges work there.
#[derive(Debug, Clone, Default)]
pub struct Stores {
    open: Arc<Mutex<HashMap<String, Arc<dyn ObjectStore>>>>,
}

/// A file that a pattern or a folder holds. A folder may hold millions: one takes its location and 56 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Absolute local path or URL.
    pub location: Box<str>,
    path: RelativePath,
    /// Bytes.
    pub size: u64,
    /// Changes with the content.
    pub version: Version,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum RelativePath {
    /// So many bytes at the end of the location.
    EndOfLocation(u32),
    /// Written another way there.
    Apart(Box<str>),
}

/// What changes with the content of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Version {
    /// The time of its last modification, in nanoseconds since 1970.
    Modified(u64),
    /// What its store says: an ETag, a version, or a time.
    Told(Box<str>),
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Modified(nanoseconds) => nanoseconds.fmt(f),
            Self::Told(text) => text.fmt(f),
        }
    }
}

impl Entry {
    fn new(location: String, path: &str, size: u64, version: Version) -> Self {
        Self { path: RelativePath::new(&location, path), location: location.into(), size, version }
    }

    /// Path relative to the root of the pattern or folder, `/`-separated.
    pub fn path(&self) -> &str {
        match &self.path {
            RelativePath::EndOfLocation(length) => &self.location[self.location.len() - *length as usize..],
            RelativePath::Apart(path) => path,
        }
    }

    fn with_path(self, path: &str) -> Self {
        Self { path: RelativePath::new(&self.location, path), ..self }
    }
}

impl RelativePath {
    fn new(location: &str, path: &str) -> Self {
        match u32::try_from(path.len()) {
            Ok(length) if location.ends_with(path) => Self::EndOfLocation(length),
            _ => Self::Apart(path.into()),
        }
    }
}

/// Local or not.
#[derive(Debug, Clone)]
enum Place {
    Local(PathBuf),
    Remote(Remote),
}

#[derive(Debug, Clone)]
struct Remote {
    /// Scheme and bucket or host, such as `s3://bucket`.
    base: String,
    /// The rest, without a leading slash.
    key: String,
}

fn place(location: &str) -> Result<Place, FormatError> {
    if let Some(path) = location.strip_prefix("file://") {
        return Ok(Place::Local(PathBuf::from(path)));
    }
    let Some((scheme, rest)) = location.split_once("://").filter(|(scheme, _)| {
        scheme.len() > 1 && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
    }) else {
        return Ok(Place::Local(PathBuf::from(location)));
    };
    if !matches!(scheme, "s3" | "s3a" | "gs" | "az" | "azure" | "abfs" | "abfss" | "http" | "https") {
        return Err(FormatError::Input {
            key: "path",
            message: format!("expected a local path or a URL of s3, gs, az, abfs, http or https, found `{location}`"),
        });
    }
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(FormatError::Input {
            key: "path",
            message: format!("expected a bucket or host after `{scheme}://`, found `{location}`"),
        });
    }
    Ok(Place::Remote(Remote { base: format!("{scheme}://{bucket}"), key: key.to_owned() }))
}

impl Stores {
    /// No store is open yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The files that `pattern` names, sorted by relative path: one file, or a pattern of `*`, `?`, `[a-z]`, `**` and braces ([`crate::globs`]).
    /// Relative paths start where the pattern begins to vary. A folder stands for the files anywhere in it with one of the `extensions` (without the dot, `[]` = all),
    /// except names that begin with `.` or `_`.
    ///
    /// # Errors
    /// A [`FormatError`] when nothing matches (it names the nearest folder that exists), a folder cannot be read or a store cannot be reached.
    pub async fn list(&self, pattern: &str, extensions: &[&str]) -> Result<Vec<Entry>, FormatError> {
        let found = match place(pattern)? {
            Place::Local(path) => {
                let (pattern, extensions) = (local_text(&path)?, owned(extensions));
                blocking(move || list_local(&pattern, &extensions)).await?
            }
            Place::Remote(remote) => self.list_remote(pattern, &remote, extensions).await?,
        };
        Ok(sorted(found))
    }

    /// The files of a folder (of its folders too, if `recursive`), sorted by relative path; hidden ones are left out.
    ///
    /// # Errors
    /// A [`FormatError`] when the folder does not exist or cannot be read.
    pub async fn list_folder(&self, folder: &str, recursive: bool) -> Result<Vec<Entry>, FormatError> {
        let found = match place(folder)? {
            Place::Local(path) => {
                let shown = folder.to_owned();
                blocking(move || {
                    match fs::metadata(&path) {
                        Ok(m) if m.is_dir() => {}
                        Ok(_) => {
                            return Err(FormatError::Input {
                                key: "path",
                                message: format!("expected a folder, found the file `{shown}`"),
                            });
                        }
                        Err(e) if e.kind() == ErrorKind::NotFound => return Err(nothing_at(&path, &shown)),
                        Err(e) => return Err(io_error(&path.to_string_lossy(), e)),
                    }
                    let mut found = Vec::new();
                    walk(
                        &absolute(&path)?,
                        "",
                        recursive,
                        &|name| !name.starts_with('.'),
                        &mut HashSet::new(),
                        &mut found,
                    )?;
                    Ok(found)
                })
                .await?
            }
            Place::Remote(remote) => {
                let prefix = with_slash(&remote.key);
                let mut found = self.list_prefix(folder, &remote, &prefix).await?;
                found.retain(|e| {
                    (recursive || !e.path().contains('/')) && !e.path().split('/').any(|name| name.starts_with('.'))
                });
                found
            }
        };
        Ok(sorted(found))
    }

    /// One file's entry; `Ok(None)` if there is none.
    ///
    /// # Errors
    /// A [`FormatError`] when it cannot be looked up.
    pub async fn entry(&self, location: &str) -> Result<Option<Entry>, FormatError> {
        match place(location)? {
            Place::Local(path) => {
                blocking(move || match fs::metadata(&path) {
                    Ok(m) if m.is_file() => local_entry(&absolute(&path)?, &file_name(&path), &m).map(Some),
                    Ok(_) => Ok(None),
                    Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
                    Err(e) => Err(io_error(&path.to_string_lossy(), e)),
                })
                .await
            }
            Place::Remote(remote) => {
                let (store, path) = self.remote(location, &remote)?;
                let head = again(|| async {
                    match store.head(&path).await {
                        Ok(meta) => {
                            Ok(Some(remote_entry(&remote.base, &meta, meta.location.filename().unwrap_or_default())))
                        }
                        Err(object_store::Error::NotFound { .. }) => Ok(None),
                        Err(e) => Err(store_error(location, e)),
                    }
                });
                head.await
            }
        }
    }

    /// Bytes of a file: all of them, or a range.
    ///
    /// # Errors
    /// A [`FormatError`] when the file vanished, is shorter than the range or cannot be read.
    pub async fn read(&self, location: &str, range: Option<Range<u64>>) -> Result<Bytes, FormatError> {
        match place(location)? {
            Place::Local(path) => {
                blocking(move || read_local(&path, range).map_err(|e| io_error(&path.to_string_lossy(), e))).await
            }
            Place::Remote(remote) => {
                let (store, path) = self.remote(location, &remote)?;
                let expected = range.as_ref().map(|r| r.end - r.start);
                if expected == Some(0) {
                    return Ok(Bytes::new());
                }
                let got = again(|| async {
                    let options = GetOptions { range: range.clone().map(Into::into), ..GetOptions::default() };
                    let found = store.get_opts(&path, options).await.map_err(|e| store_error(location, e))?;
                    found.bytes().await.map_err(|e| store_error(location, e))
                });
                let bytes = got.await?;
                match expected {
                    Some(expected) if expected != bytes.len() as u64 => {
                        Err(io_error(location, ErrorKind::UnexpectedEof.into()))
                    }
                    _ => Ok(bytes),
                }
            }
        }
    }

    /// The store of a URL and the path in it, for readers of their own (Parquet).
    ///
    /// # Errors
    /// A [`FormatError`] for an unknown scheme, credentials that are missing, or a local path that cannot be made absolute.
    pub fn object(&self, location: &str) -> Result<(Arc<dyn ObjectStore>, ObjectPath), FormatError> {
        match place(location)? {
            Place::Local(path) => {
                let path =
                    ObjectPath::from_absolute_path(absolute(&path)?).map_err(|e| store_error(location, e.into()))?;
                Ok((Arc::new(object_store::local::LocalFileSystem::new()), path))
            }
            Place::Remote(remote) => self.remote(location, &remote),
        }
    }

    /// A file, or a range of it, as a blocking reader. Call it, and read, on a thread that may block and that knows its Tokio runtime (`spawn_blocking`).
    ///
    /// # Errors
    /// A [`FormatError`] when the file vanished or cannot be opened.
    pub fn reader(&self, location: &str, range: Option<Range<u64>>) -> Result<Box<dyn Read + Send>, FormatError> {
        match place(location)? {
            Place::Local(path) => {
                let fault = |e| io_error(&path.to_string_lossy(), e);
                let mut file = File::open(&path).map_err(fault)?;
                let Some(range) = range else { return Ok(Box::new(file)) };
                file.seek(SeekFrom::Start(range.start)).map_err(fault)?;
                Ok(Box::new(file.take(range.end.saturating_sub(range.start))))
            }
            Place::Remote(remote) => {
                let (store, path) = self.remote(location, &remote)?;
                let runtime = tokio::runtime::Handle::try_current().map_err(|e| FormatError::Io {
                    location: location.to_owned(),
                    message: "a remote file is read outside a Tokio runtime".to_owned(),
                    source: Some(Box::new(e)),
                })?;
                let range = range.unwrap_or(0..u64::MAX);
                Ok(Box::new(RemoteReader {
                    store,
                    path,
                    runtime,
                    next: range.start,
                    end: range.end,
                    version: None,
                    stream: None,
                    chunk: Bytes::new(),
                }))
            }
        }
    }

    fn remote(&self, location: &str, remote: &Remote) -> Result<(Arc<dyn ObjectStore>, ObjectPath), FormatError> {
        let path = ObjectPath::from_url_path(&remote.key).map_err(|e| store_error(location, e.into()))?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = open.get(&remote.base) {
            return Ok((Arc::clone(store), path));
        }
        let store = connect(&remote.base).map_err(|e| store_error(location, e))?;
        open.insert(remote.base.clone(), Arc::clone(&store));
        Ok((store, path))
    }

    async fn list_remote(
        &self,
        pattern: &str,
        remote: &Remote,
        extensions: &[&str],
    ) -> Result<Vec<Entry>, FormatError> {
        let http = remote.base.starts_with("http");
        if http && remote.key.contains(['*', '?', '[']) {
            return Err(FormatError::Input {
                key: "path",
                message: format!(
                    "HTTP has no listing: expected one URL or a range such as {{00000..00099}}, found `{pattern}`"
                ),
            });
        }
        let root = globs::root(&remote.key).to_owned();
        let keys = globs::expand_braces(&remote.key).map_err(pattern_error)?;
        let (patterns, exact): (Vec<String>, Vec<String>) = keys.into_iter().partition(|k| globs::is_pattern(k));
        let several = exact.len() > 1;
        let lookups = stream::iter(exact.into_iter().map(|key| {
            let location = format!("{}/{key}", remote.base);
            async move { Ok::<_, FormatError>((self.entry(&location).await?, location, key)) }
        }));
        let looked_up: Vec<_> = lookups.buffered(32).try_collect().await?;
        let mut found = Vec::new();
        for (entry, location, key) in looked_up {
            match entry {
                Some(entry) => found.push(entry.with_path(key.strip_prefix(&root).unwrap_or(&key))),
                None if http || several => {
                    return Err(FormatError::Input {
                        key: "path",
                        message: format!("there is no `{location}`, which `{pattern}` names"),
                    });
                }
                None => {
                    // Not an object: a prefix that stands for a folder.
                    let mut below = self.list_prefix(pattern, remote, &with_slash(&key)).await?;
                    below.retain(|e| {
                        has_extension(e.path(), extensions)
                            && !e.path().split('/').any(|name| name.starts_with(['.', '_']))
                    });
                    if below.is_empty() {
                        return Err(FormatError::Input {
                            key: "path",
                            message: format!(
                                "there is no `{location}`, neither a file nor a folder with files of this source"
                            ),
                        });
                    }
                    found.extend(below);
                }
            }
        }
        if !patterns.is_empty() {
            let all = self.list_prefix(pattern, remote, &root).await?;
            let matching =
                all.into_iter().filter(|e| patterns.iter().any(|p| globs::path_matches(&p[root.len()..], e.path())));
            found.extend(matching);
        }
        if found.is_empty() {
            return Err(FormatError::Input {
                key: "path",
                message: format!("nothing matches `{pattern}` in `{}/{root}`", remote.base),
            });
        }
        Ok(found)
    }

    /// Everything below a prefix, with paths relative to it.
    async fn list_prefix(&self, location: &str, remote: &Remote, prefix: &str) -> Result<Vec<Entry>, FormatError> {
        if remote.base.starts_with("http") {
            return Err(FormatError::Input {
                key: "path",
                message: format!("HTTP has no listing: expected the URL of a file, found `{location}`"),
            });
        }
        let (store, path) = self.remote(location, &Remote { base: remote.base.clone(), key: prefix.to_owned() })?;
        let prefix_path = (!prefix.is_empty()).then_some(&path);
        let listed = again(|| async {
            store.list(prefix_path).try_collect::<Vec<_>>().await.map_err(|e| store_error(location, e))
        });
        let mut found = Vec::new();
        for meta in listed.await? {
            let full = meta.location.to_string();
            let Some(relative) = full.strip_prefix(path.as_ref()).map(|r| r.trim_start_matches('/')) else {
                continue;
            };
            if !relative.is_empty() {
                found.push(remote_entry(&remote.base, &meta, relative));
            }
        }
        Ok(found)
    }
}

fn connect(base: &str) -> Result<Arc<dyn ObjectStore>, object_store::Error> {
    let scheme = base.split("://").next().unwrap_or_default();
    Ok(match scheme {
        "s3" | "s3a" => Arc::new(AmazonS3Builder::from_env().with_url(base).build()?),
        "gs" => Arc::new(GoogleCloudStorageBuilder::from_env().with_url(base).build()?),
        "http" | "https" => {
            let options = ClientOptions::new().with_allow_http(true);
            Arc::new(HttpBuilder::new().with_url(base).with_client_options(options).build()?)
        }
        _ => Arc::new(MicrosoftAzureBuilder::from_env().with_url(base).build()?),
    })
}

/// Reads an object as a stream, and asks again where the connection broke.
struct RemoteReader {
    store: Arc<dyn ObjectStore>,
    path: ObjectPath,
    runtime: tokio::runtime::Handle,
    next: u64,
    end: u64,
    /// The ETag of the first answer: a file that changes while it is read is an error.
    version: Option<String>,
    stream: Option<BoxStream<'static, object_store::Result<Bytes>>>,
    chunk: Bytes,
}

/// Times that a broken connection is taken up again without a byte in between.
const RETRIES: u32 = 4;

impl RemoteReader {
    async fn fetch(&mut self) -> io::Result<Option<Bytes>> {
        let mut failures = 0;
        loop {
            if self.next >= self.end {
                return Ok(None);
            }
            let step = match self.stream.take() {
                Some(mut stream) => match stream.next().await {
                    Some(Ok(chunk)) => {
                        self.stream = Some(stream);
                        Ok(Some(chunk))
                    }
                    Some(Err(e)) => Err(e),
                    None => Ok(None),
                },
                None => match self.request().await {
                    Ok(()) => continue,
                    Err(e) => Err(e),
                },
            };
            match step {
                Ok(Some(chunk)) if chunk.is_empty() => {}
                Ok(Some(chunk)) => {
                    self.next += chunk.len() as u64;
                    return Ok(Some(chunk));
                }
                Ok(None) if self.next >= self.end => return Ok(None),
                Ok(None) => failures += 1,
                Err(e) => {
                    failures += 1;
                    if failures >= RETRIES {
                        return Err(io::Error::other(e));
                    }
                }
            }
            if failures >= RETRIES {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            tokio::time::sleep(std::time::Duration::from_millis(200 << failures)).await;
        }
    }

    async fn request(&mut self) -> object_store::Result<()> {
        let range = match (self.next, self.end) {
            (0, u64::MAX) => None,
            (next, u64::MAX) => Some(object_store::GetRange::Offset(next)),
            (next, end) => Some((next..end).into()),
        };
        let options = GetOptions { range, if_match: self.version.clone(), ..GetOptions::default() };
        let answer = self.store.get_opts(&self.path, options).await?;
        self.version = self.version.take().or_else(|| answer.meta.e_tag.clone());
        self.end = self.end.min(answer.meta.size);
        self.stream = Some(answer.into_stream());
        Ok(())
    }
}

impl Read for RemoteReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.chunk.is_empty() {
            let runtime = self.runtime.clone();
            match runtime.block_on(self.fetch())? {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(0),
            }
        }
        let n = buffer.len().min(self.chunk.len());
        buffer[..n].copy_from_slice(&self.chunk.split_to(n));
        Ok(n)
    }
}

/// Runs file work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FormatError> + Send + 'static,
) -> Result<T, FormatError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| {
        Err(FormatError::Io {
            location: "a background task".to_owned(),
            message: "it did not finish".to_owned(),
            source: Some(Box::new(e)),
        })
    })
}

fn sorted(mut found: Vec<Entry>) -> Vec<Entry> {
    // Not the stable sort, which would hold half of the list once more.
    found.sort_unstable_by(|a, b| (a.path(), &a.location).cmp(&(b.path(), &b.location)));
    found.dedup();
    found
}

fn owned(extensions: &[&str]) -> Vec<String> {
    extensions.iter().map(|e| (*e).to_owned()).collect()
}

/// Whether a file name ends in one of the extensions, whatever the case; no extensions = any file.
pub(crate) fn has_extension<E: AsRef<str>>(path: &str, extensions: &[E]) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    extensions.is_empty()
        || extensions
            .iter()
            .any(|e| name.strip_suffix(&e.as_ref().to_ascii_lowercase()).is_some_and(|stem| stem.ends_with('.')))
}

fn with_slash(prefix: &str) -> String {
    if prefix.is_empty() || prefix.ends_with('/') { prefix.to_owned() } else { format!("{prefix}/") }
}

fn absolute(path: &Path) -> Result<PathBuf, FormatError> {
    std::path::absolute(path).map_err(|e| io_error(&path.to_string_lossy(), e))
}

fn local_text(path: &Path) -> Result<String, FormatError> {
    path.to_str().map(str::to_owned).ok_or_else(|| not_utf8(path))
}

fn not_utf8(path: &Path) -> FormatError {
    FormatError::Io {
        location: path.to_string_lossy().into_owned(),
        message: "expected a file name in UTF-8, since row ids are made from it; rename the file".to_owned(),
        source: None,
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

fn local_entry(location: &Path, path: &str, metadata: &fs::Metadata) -> Result<Entry, FormatError> {
    let modified = metadata.modified().ok().and_then(|m| m.duration_since(UNIX_EPOCH).ok()).map_or(0, |d| d.as_nanos());
    // Nanoseconds of 64 bits last until 2554.
    let version = Version::Modified(u64::try_from(modified).unwrap_or(u64::MAX));
    Ok(Entry::new(local_text(location)?, path, metadata.len(), version))
}

fn remote_entry(base: &str, meta: &ObjectMeta, path: &str) -> Entry {
    let version =
        meta.e_tag.clone().or_else(|| meta.version.clone()).unwrap_or_else(|| meta.last_modified.to_rfc3339());
    Entry::new(format!("{base}/{}", meta.location), path, meta.size, Version::Told(version.into()))
}

fn list_local(pattern: &str, extensions: &[String]) -> Result<Vec<Entry>, FormatError> {
    let whole = Path::new(pattern);
    // A file whose name holds pattern characters is still a file.
    match fs::metadata(whole) {
        Ok(m) if m.is_file() => return Ok(vec![local_entry(&absolute(whole)?, &file_name(whole), &m)?]),
        Ok(m) if m.is_dir() => {
            let mut found = Vec::new();
            walk(&absolute(whole)?, "", true, &|name| !name.starts_with(['.', '_']), &mut HashSet::new(), &mut found)?;
            found.retain(|e| has_extension(e.path(), extensions));
            if found.is_empty() {
                let endings = if extensions.is_empty() {
                    "files".to_owned()
                } else {
                    format!("files ending in .{}", extensions.join(", ."))
                };
                return Err(FormatError::Input {
                    key: "path",
                    message: format!("the folder `{pattern}` holds no {endings}"),
                });
            }
            return Ok(found);
        }
        Err(e) if e.kind() == ErrorKind::PermissionDenied => return Err(io_error(pattern, e)),
        _ => {}
    }
    if !globs::is_pattern(pattern) {
        return Err(nothing_at(whole, pattern));
    }
    let root = globs::root(pattern);
    let mut found = BTreeMap::new();
    for expanded in globs::expand_braces(pattern).map_err(pattern_error)? {
        let before = found.len();
        match_components(Path::new(root), "", &expanded[root.len()..], &mut found)?;
        if found.len() == before && !globs::is_pattern(&expanded) && !found.contains_key(&expanded[root.len()..]) {
            return Err(FormatError::Input {
                key: "path",
                message: format!("there is no `{expanded}`, which `{pattern}` names"),
            });
        }
    }
    if found.is_empty() {
        return Err(nothing_at(whole, pattern));
    }
    Ok(found.into_values().collect())
}

/// Adds the files below `folder` that the rest of a pattern names; `relative` is the path of `folder` from the pattern's root.
fn match_components(
    folder: &Path,
    relative: &str,
    rest: &str,
    found: &mut BTreeMap<String, Entry>,
) -> Result<(), FormatError> {
    let join = |name: &str| if relative.is_empty() { name.to_owned() } else { format!("{relative}/{name}") };
    if rest.contains("**") {
        let mut all = Vec::new();
        walk(&absolute(folder)?, "", true, &|name| !name.starts_with('.'), &mut HashSet::new(), &mut all)?;
        for entry in all.into_iter().filter(|e| globs::path_matches(rest, e.path())) {
            let path = join(entry.path());
            let entry = entry.with_path(&path);
            found.insert(path, entry);
        }
        return Ok(());
    }
    let (component, rest) = rest.split_once('/').map_or((rest, None), |(c, r)| (c, Some(r)));
    let names = if component.contains(['*', '?', '[']) {
        let readable = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let listing = match fs::read_dir(readable) {
            Ok(listing) => listing,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
            Err(e) => return Err(io_error(&readable.to_string_lossy(), e)),
        };
        let mut names = Vec::new();
        for item in listing {
            let item = item.map_err(|e| io_error(&readable.to_string_lossy(), e))?;
            match item.file_name().into_string() {
                Ok(name) if globs::component_matches(component, &name) => names.push(name),
                Ok(_) => {}
                Err(_) => return Err(not_utf8(&item.path())),
            }
        }
        names
    } else {
        vec![component.to_owned()]
    };
    for name in names {
        let (path, below) = (folder.join(&name), join(&name));
        match (rest, fs::metadata(&path)) {
            (Some(rest), Ok(m)) if m.is_dir() => match_components(&path, &below, rest, found)?,
            (None, Ok(m)) if m.is_file() => {
                let entry = local_entry(&absolute(&path)?, &below, &m)?;
                found.insert(below, entry);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Adds the files of a folder whose names, and whose folders' names, are `wanted`. Links are followed, a loop of them once.
fn walk(
    folder: &Path,
    relative: &str,
    recursive: bool,
    wanted: &dyn Fn(&str) -> bool,
    seen: &mut HashSet<PathBuf>,
    found: &mut Vec<Entry>,
) -> Result<(), FormatError> {
    if !seen.insert(fs::canonicalize(folder).map_err(|e| io_error(&folder.to_string_lossy(), e))?) {
        return Ok(());
    }
    let fault = |e| io_error(&folder.to_string_lossy(), e);
    for item in fs::read_dir(folder).map_err(fault)? {
        let item = item.map_err(fault)?;
        let Ok(name) = item.file_name().into_string() else { return Err(not_utf8(&item.path())) };
        if !wanted(&name) {
            continue;
        }
        let path = if relative.is_empty() { name } else { format!("{relative}/{name}") };
        let Ok(metadata) = fs::metadata(item.path()) else {
            // A link that leads nowhere is found, so that whoever reads it says so. What is gone by now is no file.
            if let Ok(link) = fs::symlink_metadata(item.path()) {
                found.push(Entry { size: 0, ..local_entry(&item.path(), &path, &link)? });
            }
            continue;
        };
        if metadata.is_file() {
            found.push(local_entry(&item.path(), &path, &metadata)?);
        } else if metadata.is_dir() && recursive {
            walk(&item.path(), &path, recursive, wanted, seen, found)?;
        }
    }
    Ok(())
}

fn read_local(path: &Path, range: Option<Range<u64>>) -> io::Result<Bytes> {
    let mut file = File::open(path)?;
    let mut bytes = Vec::new();
    match range {
        None => {
            file.read_to_end(&mut bytes)?;
        }
        Some(range) => {
            let length = range.end.saturating_sub(range.start);
            file.seek(SeekFrom::Start(range.start))?;
            file.take(length).read_to_end(&mut bytes)?;
            if (bytes.len() as u64) < length {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, "the file is shorter than it was"));
            }
        }
    }
    Ok(bytes.into())
}

/// The error for a path or pattern that names nothing: says how far the path exists.
fn nothing_at(path: &Path, shown: &str) -> FormatError {
    let exists = path.ancestors().skip(1).find(|p| p.is_dir() || p.as_os_str().is_empty());
    let folder = exists.filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut names: Vec<String> = fs::read_dir(folder)
        .map(|l| {
            l.filter_map(Result::ok)
                .filter_map(|i| i.file_name().into_string().ok())
                .filter(|n| !n.starts_with('.'))
                .collect()
        })
        .unwrap_or_default();
    names.sort();
    let what =
        if globs::is_pattern(shown) { format!("nothing matches `{shown}`") } else { format!("there is no `{shown}`") };
    let folder =
        if folder == Path::new(".") { "the current directory".to_owned() } else { format!("`{}`", folder.display()) };
    let held = match names.len() {
        0 => "is empty".to_owned(),
        1..=5 => format!("holds {}", names.join(", ")),
        n => format!("holds {}, … ({n} in all)", names[..5].join(", ")),
    };
    FormatError::Input { key: "path", message: format!("{what}; {folder} {held}") }
}

fn pattern_error(error: globs::PatternError) -> FormatError {
    FormatError::Input { key: "path", message: error.message }
}

/// A file error in words that say what to do.
pub(crate) fn io_error(location: &str, error: io::Error) -> FormatError {
    let message = match error.kind() {
        ErrorKind::NotFound => "it does not exist (or no longer)".to_owned(),
        ErrorKind::PermissionDenied => "permission denied; allow reading for the user who runs this".to_owned(),
        ErrorKind::UnexpectedEof => "it ended early; was it changed while it was read?".to_owned(),
        _ => error.to_string(),
    };
    FormatError::Io { location: location.to_owned(), message, source: Some(Box::new(error)) }
}

/// Does a request again, a few times, where the connection broke in its answer: the store's own retries end with the answer's first byte.
async fn again<T, F: Future<Output = Result<T, FormatError>>>(request: impl Fn() -> F) -> Result<T, FormatError> {
    let mut pause = Duration::from_millis(100);
    for _ in 0..RETRIES {
        match request().await {
            Err(FormatError::Io { source: Some(source), .. })
                if source.downcast_ref::<object_store::Error>().is_some_and(is_transient) =>
            {
                tokio::time::sleep(pause).await;
                pause *= 3;
            }
            answer => return answer,
        }
    }
    request().await
}

/// Whether an error may be gone the next time.
fn is_transient(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::Generic { .. })
}

fn store_error(location: &str, error: object_store::Error) -> FormatError {
    let message = match &error {
        object_store::Error::NotFound { .. } => "it does not exist (or no longer)".to_owned(),
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            "access denied; check the credentials in the environment (AWS_*, GOOGLE_*, AZURE_*)".to_owned()
        }
        other => other.to_string(),
    };
    FormatError::Io { location: location.to_owned(), message, source: Some(Box::new(error)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_what_it_was_given_as_and_takes_no_room_where_the_location_ends_in_it() {
        let entry = |location: &str, path: &str| Entry::new(location.to_owned(), path, 1, Version::Modified(7));
        for (location, path) in [("/d/a/b.jpg", "a/b.jpg"), ("s3://b/a%20b.jpg", "a b.jpg"), ("/d/é.png", "é.png")] {
            let entry = entry(location, path);
            assert_eq!((&*entry.location, entry.path()), (location, path));
            assert_eq!(entry.clone().with_path("x/y").path(), "x/y");
        }
        assert_eq!(entry("/d/b.jpg", "x").with_path("d/b.jpg"), entry("/d/b.jpg", "d/b.jpg"));
        assert_eq!([Version::Modified(7).to_string(), Version::Told("\"e\"".into()).to_string()], ["7", "\"e\""]);
        assert_eq!(size_of::<Entry>(), 56);
    }
}
