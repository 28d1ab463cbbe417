//! A generation on an object store: objects of names that only it has, then the manifest, by which readers know it.
//!
//! Stores have no exchange of folders. So data files carry the generation in their path (`data/1f6c…/train-00000-of-00012.parquet`) and are there before
//! anything names them; the manifest is replaced by one conditional write, after which the new generation is the data set; the card and the report follow; what
//! only older generations had goes last. A reader of the manifest or of the card therefore finds one generation whole at every moment, also while a run dies.

use std::{collections::HashSet, path::Path};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use groundloom_formats::{
    FormatError,
    store::{Expected, Replaced, Stores},
};

use crate::{
    error::EngineError,
    generation::{MANIFEST, Manifest},
    segment::Fingerprint,
};

/// Objects on their way at the same time.
const IN_FLIGHT: usize = 8;

/// A data set on an object store.
#[derive(Debug)]
pub struct Mirror<'a> {
    stores: &'a Stores,
    url: &'a str,
}

/// The folder of a generation's files inside `data/` (and `_quarantine/`, `_rejected/`) on an object store.
pub fn generation_folder(fingerprint: &Fingerprint) -> &str {
    &fingerprint.as_str()[..16]
}

impl<'a> Mirror<'a> {
    /// The data set at `url`; nothing is asked yet.
    pub fn new(stores: &'a Stores, url: &'a str) -> Self {
        Self { stores, url }
    }

    fn at(&self, path: &str) -> String {
        format!("{}/{path}", self.url)
    }

    /// Refuses a place that holds something else.
    ///
    /// # Errors
    /// [`EngineError::ForeignTarget`], or when the store cannot be asked.
    pub async fn check(&self) -> Result<(), EngineError> {
        if self.manifest().await?.is_none() && self.objects().await?.iter().any(|o| !is_ours(&o.0)) {
            return Err(EngineError::ForeignTarget(self.url.into()));
        }
        Ok(())
    }

    /// The manifest of the published generation, if there is one.
    ///
    /// # Errors
    /// When the store cannot be asked, or the manifest is damaged.
    pub async fn published(&self) -> Result<Option<Manifest>, EngineError> {
        Ok(self.manifest().await?.map(|(manifest, _)| manifest))
    }

    /// Whether the store holds this generation, every object in place, and nothing of an older one. Remains go last, so where there are some, a run died before
    /// it had replaced the card and the report, or while it cleared up.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn is_current(&self, fingerprint: &Fingerprint) -> Result<bool, EngineError> {
        let Some((manifest, _)) = self.manifest().await? else { return Ok(false) };
        if manifest.fingerprint != *fingerprint {
            return Ok(false);
        }
        let there = self.objects().await?;
        let known: HashSet<&(String, u64)> = there.iter().collect();
        let whole = manifest.files.iter().all(|f| known.contains(&(f.path.clone(), f.bytes)));
        Ok(whole && remains(&there, &manifest).next().is_none())
    }

    /// Copies a generation from the local folder and makes it the data set. Objects that are there already from an attempt that died are not sent again.
    ///
    /// # Errors
    /// When the store refuses, or another run has published to the same place meanwhile.
    pub async fn publish(&self, local: &Path, manifest: &Manifest) -> Result<(), EngineError> {
        let before = self.manifest().await?;
        let there = self.objects().await?;
        let known: HashSet<&(String, u64)> = there.iter().collect();
        let (own, shared): (Vec<_>, Vec<_>) =
            manifest.files.iter().partition(|f| belongs_to(&f.path, &manifest.fingerprint));
        // A name that only this generation has, and the size it must have: the bytes are the same.
        let missing = own.iter().filter(|f| !known.contains(&(f.path.clone(), f.bytes)));
        self.send(local, missing.map(|f| f.path.as_str())).await?;
        let text = std::fs::read(local.join(MANIFEST)).map_err(|e| EngineError::io(local.join(MANIFEST), e))?;
        let expected = before.map_or(Expected::Absent, |(_, version)| Expected::Unchanged(version));
        let manifest_url = self.at(MANIFEST);
        if self.stores.replace(&manifest_url, Bytes::from(text), expected).await? == Replaced::ChangedMeanwhile {
            return Err(EngineError::Locked { path: self.url.into(), process: "on another machine".to_owned() });
        }
        self.send(local, shared.iter().map(|f| f.path.as_str())).await?;
        let deletions = stream::iter(remains(&there, manifest).map(|path| {
            let url = self.at(path);
            async move { self.stores.delete(&url).await }
        }));
        deletions.buffer_unordered(IN_FLIGHT).try_collect::<()>().await?;
        Ok(())
    }

    async fn send(&self, local: &Path, paths: impl Iterator<Item = &str>) -> Result<(), FormatError> {
        let files: Vec<_> = paths.map(|path| (local.join(path), self.at(path))).collect();
        let sent = stream::iter(files.iter().map(|(file, url)| self.stores.put_file(file, url)));
        sent.buffer_unordered(IN_FLIGHT).try_collect::<()>().await
    }

    async fn manifest(&self) -> Result<Option<(Manifest, object_store::UpdateVersion)>, EngineError> {
        let url = self.at(MANIFEST);
        let Some((text, version)) = self.stores.read_versioned(&url).await? else { return Ok(None) };
        let manifest = serde_json::from_slice(&text)
            .map_err(|e| EngineError::Damaged { path: url.into(), message: e.to_string() })?;
        Ok(Some((manifest, version)))
    }

    /// Paths and sizes of all objects below the URL.
    async fn objects(&self) -> Result<Vec<(String, u64)>, EngineError> {
        Ok(self.stores.list_folder(self.url, true).await?.into_iter().map(|e| (e.path().to_owned(), e.size)).collect())
    }
}

/// The objects that older generations and dead runs left.
fn remains<'a>(there: &'a [(String, u64)], manifest: &'a Manifest) -> impl Iterator<Item = &'a str> {
    let kept: HashSet<&str> = manifest.files.iter().map(|f| f.path.as_str()).chain([MANIFEST]).collect();
    there.iter().map(|(path, _)| path.as_str()).filter(move |path| !kept.contains(path) && is_ours(path))
}

/// Whether a path is one that no other generation has; the card and the report are replaced in place.
fn belongs_to(path: &str, generation: &Fingerprint) -> bool {
    path.rsplit('/').nth(1) == Some(generation_folder(generation))
}

/// Whether a path looks like one of ours, so that remains of dead runs are known from other people's files.
fn is_ours(path: &str) -> bool {
    let generation = |name: &str| name.len() == 16 && name.bytes().all(|b| b.is_ascii_hexdigit());
    matches!(path, "README.md" | "report.html")
        || path.starts_with("_manifest/")
        || path.rsplit('/').nth(1).is_some_and(generation)
}
