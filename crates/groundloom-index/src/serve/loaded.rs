//! The index that a server answers from, and taking up the next generation.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, RwLock, atomic::Ordering},
    time::Duration,
};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::api::Api;
use crate::{IndexError, index::Index, manifest::Manifest};

/// The open index. A request keeps the one it began with.
#[derive(Debug)]
pub(crate) struct Loaded {
    folder: PathBuf,
    index: RwLock<Arc<Index>>,
}

impl Loaded {
    pub(crate) fn open(folder: &Path) -> Result<Self, IndexError> {
        let index = Arc::new(Index::open(folder)?);
        warm(&index);
        Ok(Self { folder: folder.to_owned(), index: RwLock::new(index) })
    }

    pub(crate) fn get(&self) -> Arc<Index> {
        match self.index.read() {
            Ok(index) => Arc::clone(&index),
            // Nothing panics while it is held; what is inside is whole in any case.
            Err(poisoned) => Arc::clone(&poisoned.into_inner()),
        }
    }

    /// Opens a newer generation if there is one; whether there was. The old one stays when the new one cannot be opened.
    pub(crate) fn refresh(&self) -> Result<bool, IndexError> {
        let now = self.get();
        if Manifest::read(&self.folder)? == *now.manifest() {
            return Ok(false);
        }
        let next = Arc::new(Index::open(&self.folder)?);
        warm(&next);
        match self.index.write() {
            Ok(mut index) => *index = next,
            Err(poisoned) => *poisoned.into_inner() = next,
        }
        Ok(true)
    }
}

/// Warms the index beside whatever is asked of it.
fn warm(index: &Arc<Index>) {
    let index = Arc::clone(index);
    // Nobody waits for it: without it, the first queries are slower.
    let _ = std::thread::Builder::new().name("index warm-up".to_owned()).spawn(move || index.warm());
}

/// Looks for a new generation every `pause`.
pub(crate) fn watch(api: Arc<Api>, pause: Duration, stop: CancellationToken) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut last = String::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            let looking = Arc::clone(&api);
            let outcome = tokio::task::spawn_blocking(move || looking.loaded.refresh()).await;
            match outcome {
                Ok(Ok(true)) => {
                    api.metrics.reloads.fetch_add(1, Ordering::Relaxed);
                    api.forget_filters();
                    tracing::info!(generation = api.loaded.get().manifest().generation, "took up a new generation");
                    last.clear();
                }
                Ok(Ok(false)) => last.clear(),
                Ok(Err(error)) => {
                    api.metrics.failed_reloads.fetch_add(1, Ordering::Relaxed);
                    // Once for each message, not once a second.
                    if last != error.to_string() {
                        last = error.to_string();
                        tracing::warn!("the old generation stays: {error}");
                    }
                }
                Err(error) => tracing::warn!("{error}"),
            }
        }
    })
}
