//! Writing to object stores: whole objects, and one that is replaced only if nobody else did.

use std::path::Path;

use bytes::Bytes;
use object_store::{
    MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion, WriteMultipart,
    path::Path as ObjectPath,
};
use tokio::io::AsyncReadExt;

use super::{Place, Stores, again, io_error, is_transient, place, store_error};
use crate::FormatError;

/// Objects up to this size are put at once, larger ones in parts of it.
const PART_BYTES: usize = 8 << 20;
/// Parts of one object under way at the same time.
const PARTS_IN_FLIGHT: usize = 4;

/// What an object must be for it to be replaced.
#[derive(Debug, Clone)]
pub enum Expected {
    /// It is not there.
    Absent,
    /// It is still the one that was read.
    Unchanged(UpdateVersion),
}

/// What became of a replacement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replaced {
    /// The new content stands.
    Done,
    /// Somebody else changed the object since it was looked at; nothing was written.
    ChangedMeanwhile,
}

impl Stores {
    /// Whether a location is on an object store or web server rather than a local disk.
    ///
    /// # Errors
    /// A [`FormatError`] for an unknown scheme.
    pub fn is_remote(location: &str) -> Result<bool, FormatError> {
        Ok(matches!(place(location)?, Place::Remote(_)))
    }

    /// Scheme and bucket or host of a URL (`s3://bucket`), and the path in it.
    ///
    /// # Errors
    /// A [`FormatError`] for an unknown scheme or a local path.
    pub fn object_url(location: &str) -> Result<(String, ObjectPath), FormatError> {
        match place(location)? {
            Place::Remote(remote) => {
                let path = ObjectPath::from_url_path(&remote.key).map_err(|e| store_error(location, e.into()))?;
                Ok((remote.base, path))
            }
            Place::Local(_) => {
                Err(FormatError::Input { key: "path", message: format!("expected a URL, found `{location}`") })
            }
        }
    }

    /// Puts a local file at a URL. Readers see the old object or the new one whole.
    ///
    /// # Errors
    /// A [`FormatError`] when the file cannot be read or the store refuses.
    pub async fn put_file(&self, file: &Path, location: &str) -> Result<(), FormatError> {
        again(|| self.put_file_once(file, location)).await
    }

    async fn put_file_once(&self, file: &Path, location: &str) -> Result<(), FormatError> {
        let (store, path) = self.object(location)?;
        let unreadable = |e| io_error(&file.to_string_lossy(), e);
        let refused = |e| store_error(location, e);
        let mut source = tokio::fs::File::open(file).await.map_err(unreadable)?;
        let size = source.metadata().await.map_err(unreadable)?.len();
        if size <= PART_BYTES as u64 {
            let mut bytes = Vec::new();
            source.read_to_end(&mut bytes).await.map_err(unreadable)?;
            store.put(&path, bytes.into()).await.map_err(refused)?;
            return Ok(());
        }
        let upload: Box<dyn MultipartUpload> = store.put_multipart(&path).await.map_err(refused)?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        let copied = async {
            let mut buffer = vec![0; 1 << 20];
            loop {
                let read = source.read(&mut buffer).await.map_err(unreadable)?;
                if read == 0 {
                    return Ok(());
                }
                upload.wait_for_capacity(PARTS_IN_FLIGHT).await.map_err(refused)?;
                upload.write(&buffer[..read]);
            }
        };
        match copied.await {
            Ok(()) => upload.finish().await.map(drop).map_err(refused),
            Err(e) => {
                // The parts that are there would cost money for ever.
                let _ = upload.abort().await;
                Err(e)
            }
        }
    }

    /// An object's bytes and what tells whether it changed; `None` where there is none.
    ///
    /// # Errors
    /// A [`FormatError`] when the store cannot be asked.
    pub async fn read_versioned(&self, location: &str) -> Result<Option<(Bytes, UpdateVersion)>, FormatError> {
        let (store, path) = self.object(location)?;
        let got = again(|| async {
            let found = match store.get(&path).await {
                Ok(found) => found,
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                Err(e) => return Err(store_error(location, e)),
            };
            let version = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
            let bytes = found.bytes().await.map_err(|e| store_error(location, e))?;
            Ok(Some((bytes, version)))
        });
        got.await
    }

    /// Replaces an object if it is as `expected`. A store that knows no such condition replaces it in any case.
    ///
    /// # Errors
    /// A [`FormatError`] when the store refuses.
    pub async fn replace(&self, location: &str, bytes: Bytes, expected: Expected) -> Result<Replaced, FormatError> {
        let (store, path) = self.object(location)?;
        let mode = || match &expected {
            Expected::Absent => PutMode::Create,
            Expected::Unchanged(version) => PutMode::Update(version.clone()),
        };
        let put = |mode| put_as(store.as_ref(), &path, bytes.clone(), mode);
        let put_once = again(|| async {
            match put(mode()).await {
                Err(e) if is_transient(&e) => Err(store_error(location, e)),
                answer => Ok(answer),
            }
        });
        match put_once.await? {
            Ok(()) => Ok(Replaced::Done),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                // The answer to an attempt that succeeded may have been lost on the way.
                let now = self.read_versioned(location).await?;
                Ok(if now.is_some_and(|(found, _)| found == bytes) {
                    Replaced::Done
                } else {
                    Replaced::ChangedMeanwhile
                })
            }
            Err(object_store::Error::NotImplemented { .. }) => {
                put(PutMode::Overwrite).await.map_err(|e| store_error(location, e))?;
                Ok(Replaced::Done)
            }
            Err(e) => Err(store_error(location, e)),
        }
    }

    /// Deletes an object, if it is there.
    ///
    /// # Errors
    /// A [`FormatError`] when the store refuses.
    pub async fn delete(&self, location: &str) -> Result<(), FormatError> {
        let (store, path) = self.object(location)?;
        let gone = again(|| async {
            match store.delete(&path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(e) => Err(store_error(location, e)),
            }
        });
        gone.await
    }
}

async fn put_as(
    store: &dyn ObjectStore,
    path: &ObjectPath,
    bytes: Bytes,
    mode: PutMode,
) -> Result<(), object_store::Error> {
    let options = PutOptions { mode, ..PutOptions::default() };
    store.put_opts(path, PutPayload::from_bytes(bytes), options).await.map(drop)
}
