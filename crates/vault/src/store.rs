//! The object store: where files and manifests lie.
//!
//! What is acknowledged must survive a power cut, so a local store syncs each object and its
//! directories before the object becomes visible ([`LocalFileSystem::with_fsync`]). Stores behind
//! a network promise that of themselves.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use futures::TryStreamExt;
use futures::stream::BoxStream;
use lifeboat_hrl::{FileHasher, FileVerifier, HrlError, Verified};
use lifeboat_model::Digest;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, WriteMultipart,
};

mod error;

pub use error::StoreError;

/// Bytes of an upload that are handed to the store at once.
const CHUNK_BYTES: usize = 8 << 20;

/// The object store of a vault.
#[derive(Clone, Debug)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    url: String,
    local_root: Option<PathBuf>,
}

/// Whether [`Store::create`] made the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// It did.
    New,
    /// There was one by that name; it was left alone.
    Exists,
}

impl Store {
    /// Opens the store that `url` names: `file:///directory`, or what the program was built with.
    ///
    /// # Errors
    /// When the URL names no store that this program can use, or a local directory is missing.
    pub fn open(url: &str) -> Result<Self, StoreError> {
        let refused = |why: String| StoreError::Url { url: url.to_owned(), why };
        let parsed = url::Url::parse(url).map_err(|error| refused(error.to_string()))?;
        if parsed.scheme() == "file" {
            let root = parsed.to_file_path().map_err(|()| refused("it names no local directory".into()))?;
            return Self::local(&root);
        }
        let (objects, prefix) =
            object_store::parse_url(&parsed).map_err(|error| refused(error.to_string()))?;
        let objects: Arc<dyn ObjectStore> = Arc::new(PrefixStore::new(objects, prefix));
        Ok(Self { objects, url: url.to_owned(), local_root: None })
    }

    /// A store in a local directory, which exists.
    ///
    /// # Errors
    /// When the directory is missing.
    pub fn local(root: &FilePath) -> Result<Self, StoreError> {
        let url = format!("file://{}", root.display());
        let objects = LocalFileSystem::new_with_prefix(root).map_err(|error| StoreError::Url {
            url: url.clone(),
            why: format!("the directory cannot be used: {error}"),
        })?;
        let objects = Arc::new(objects.with_fsync(true));
        Ok(Self { objects, url, local_root: Some(root.to_owned()) })
    }

    /// Any store, such as one in a simulation; `name` stands for it in messages.
    #[must_use]
    pub fn new(objects: Arc<dyn ObjectStore>, name: &str) -> Self {
        Self { objects, url: name.to_owned(), local_root: None }
    }

    /// Where it is, for people.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The store itself, for ranged reads.
    #[must_use]
    pub const fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.objects
    }

    /// The directory of a local store.
    #[must_use]
    pub fn local_root(&self) -> Option<&FilePath> {
        self.local_root.as_deref()
    }

    /// Free bytes, when that can be known.
    #[must_use]
    pub fn free_bytes(&self) -> Option<u64> {
        let status = rustix::fs::statvfs(self.local_root.as_ref()?).ok()?;
        status.f_bavail.checked_mul(status.f_frsize)
    }

    /// The size of an object; none when there is no such object.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn size(&self, object: &str) -> Result<Option<u64>, StoreError> {
        match self.objects.head(&Path::from(object)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.error("look for", object, error)),
        }
    }

    /// A whole object of at most `bytes_max` bytes; none when there is no such object.
    ///
    /// # Errors
    /// When it is larger or cannot be read.
    pub async fn read(&self, object: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let got = match self.objects.get(&Path::from(object)).await {
            Ok(got) => got,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(self.error("read", object, error)),
        };
        if got.meta.size > bytes_max {
            let object = object.to_owned();
            return Err(StoreError::TooLarge { object, bytes: got.meta.size, bytes_max });
        }
        let bytes = got.bytes().await.map_err(|error| self.error("read", object, error))?;
        Ok(Some(bytes.into()))
    }

    /// Reads an HRL file whole for its size and the digest by which it is known; none when there is
    /// no such object.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn digest(&self, object: &str) -> Result<Option<(u64, Digest)>, StoreError> {
        let got = match self.objects.get(&Path::from(object)).await {
            Ok(got) => got,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(self.error("read", object, error)),
        };
        let mut hasher = FileHasher::new();
        let mut bytes = 0;
        let mut stream = got.into_stream();
        while let Some(piece) = stream.try_next().await.map_err(|error| self.error("read", object, error))? {
            hasher.update(&piece);
            bytes += piece.len() as u64;
        }
        Ok(Some((bytes, hasher.digest())))
    }

    /// Reads an HRL file whole and checks all of it that can be checked without a key; none when
    /// there is no such object.
    ///
    /// # Errors
    /// The outer one when it cannot be read, the inner one when it is not a whole HRL file.
    pub async fn verify(&self, object: &str) -> Result<Option<Result<Verified, HrlError>>, StoreError> {
        let got = match self.objects.get(&Path::from(object)).await {
            Ok(got) => got,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(self.error("read", object, error)),
        };
        let mut verifier = FileVerifier::new();
        let mut stream = got.into_stream();
        while let Some(piece) = stream.try_next().await.map_err(|error| self.error("read", object, error))? {
            if let Err(fault) = verifier.update(&piece) {
                return Ok(Some(Err(fault)));
            }
        }
        Ok(Some(verifier.finish()))
    }

    /// Stores an object durably unless there is one by that name.
    ///
    /// # Errors
    /// When the store refuses.
    pub async fn create(&self, object: &str, bytes: Vec<u8>) -> Result<Created, StoreError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let payload = PutPayload::from(bytes);
        match self.objects.put_opts(&Path::from(object), payload, options).await {
            Ok(_) => Ok(Created::New),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(Created::Exists),
            Err(error) => Err(self.error("write", object, error)),
        }
    }

    /// Stores an object durably in place of the one by that name, if there is one. A reader sees
    /// the old or the new one.
    ///
    /// # Errors
    /// When the store refuses; the old one is then still there.
    pub async fn replace(&self, object: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        let put = self.objects.put(&Path::from(object), PutPayload::from(bytes)).await;
        put.map(drop).map_err(|error| self.error("write", object, error))
    }

    /// Begins an object of unknown length. Nothing is visible before [`ObjectWriter::finish`].
    ///
    /// # Errors
    /// When the store refuses.
    pub async fn begin(&self, object: &str) -> Result<ObjectWriter, StoreError> {
        let upload = self.objects.put_multipart(&Path::from(object)).await;
        let upload = upload.map_err(|error| self.error("write", object, error))?;
        Ok(ObjectWriter {
            writer: WriteMultipart::new_with_chunk_size(upload, CHUNK_BYTES),
            object: object.to_owned(),
            store: self.clone(),
        })
    }

    /// Removes an object; it is no error when there is none.
    ///
    /// # Errors
    /// When the store refuses.
    pub async fn delete(&self, object: &str) -> Result<(), StoreError> {
        match self.objects.delete(&Path::from(object)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.error("remove", object, error)),
        }
    }

    /// All objects in a folder and below it, in no order.
    pub fn list(&self, folder: &str) -> BoxStream<'static, Result<ObjectMeta, StoreError>> {
        let store = self.clone();
        let folder = folder.to_owned();
        let listed = self.objects.list(Some(&Path::from(folder.as_str())));
        Box::pin(listed.map_err(move |error| store.error("list", &folder, error)))
    }

    /// The names of the objects of a folder that sort after `after`, sorted.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn names_after(&self, folder: &str, after: &str) -> Result<Vec<String>, StoreError> {
        let listed = self.objects.list_with_offset(Some(&Path::from(folder)), &Path::from(after));
        let listed: Vec<ObjectMeta> =
            listed.try_collect().await.map_err(|error| self.error("list", folder, error))?;
        let mut names: Vec<String> = listed.into_iter().map(|meta| meta.location.to_string()).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// The names of the folders directly in a folder, without their path, sorted.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn folders(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let listed = self.objects.list_with_delimiter(Some(&Path::from(folder))).await;
        let listed = listed.map_err(|error| self.error("list", folder, error))?;
        let mut names: Vec<String> =
            listed.common_prefixes.iter().filter_map(|path| path.filename().map(str::to_owned)).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Removes what uploads to a local store left behind when the vault was killed. Only before
    /// the first upload. Says how many files that were.
    ///
    /// # Errors
    /// When a directory cannot be read or a file not removed.
    pub async fn remove_leftovers(&self) -> Result<u64, StoreError> {
        let Some(root) = self.local_root.clone() else { return Ok(0) };
        let removed = tokio::task::spawn_blocking(move || remove_staged(&root)).await;
        match removed {
            Ok(removed) => removed.map_err(|source| StoreError::from_io("tidy", &self.url, "", source)),
            Err(join) => Err(StoreError::Failed {
                action: "tidy",
                object: String::new(),
                store: self.url.clone(),
                source: Box::new(join),
            }),
        }
    }

    pub(crate) fn read_error(&self, object: &str, error: object_store::Error) -> StoreError {
        self.error("read", object, error)
    }

    fn error(&self, action: &'static str, object: &str, error: object_store::Error) -> StoreError {
        StoreError::new(action, object, &self.url, self.local_root.is_some(), error)
    }
}

/// Removes files named `NAME#NUMBER`, which is how [`LocalFileSystem`] names an unfinished object.
fn remove_staged(root: &FilePath) -> std::io::Result<u64> {
    let mut removed = 0;
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let staged = name.to_str().and_then(|name| name.rsplit_once('#')).is_some_and(|(_, number)| {
                !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())
            });
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            } else if staged {
                std::fs::remove_file(entry.path())?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

/// An object that is being written. Dropped before [`ObjectWriter::finish`], it leaves nothing.
#[derive(Debug)]
pub struct ObjectWriter {
    writer: WriteMultipart,
    object: String,
    store: Store,
}

impl ObjectWriter {
    /// Appends `bytes`; waits while two chunks are on their way to the store.
    ///
    /// # Errors
    /// When the store refuses.
    pub async fn write(&mut self, bytes: bytes::Bytes) -> Result<(), StoreError> {
        let room = self.writer.wait_for_capacity(2).await;
        room.map_err(|error| self.store.error("write", &self.object, error))?;
        self.writer.put(bytes);
        Ok(())
    }

    /// Makes the object visible, durably.
    ///
    /// # Errors
    /// When the store refuses; nothing is visible then.
    pub async fn finish(self) -> Result<(), StoreError> {
        let finished = self.writer.finish().await;
        finished.map(drop).map_err(|error| self.store.error("write", &self.object, error))
    }

    /// Gives up.
    pub async fn abort(self) {
        if let Err(error) = self.writer.abort().await {
            tracing::debug!(object = self.object, %error, "an upload that was given up left something behind");
        }
    }
}
