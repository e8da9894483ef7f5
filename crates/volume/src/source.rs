//! What a disk of a point is made of, and how its files are read.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use lifeboat_hrl::{DiskKey, FileIdentity, KeyId};
use lifeboat_model::{Digest, DiskNumber, Epoch, Part, ServerId, VaultId};
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt};
use tokio::runtime::Handle;

use crate::error::VolumeError;

/// A file as the catalog has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSource {
    /// Its name in the store.
    pub object: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// The digest of everything before its footer, as in [`lifeboat_hrl::FileSummary::digest`].
    pub digest: Digest,
    /// The first epoch whose changes it holds.
    pub first_epoch: Epoch,
    /// The last one.
    pub last_epoch: Epoch,
    /// Which piece of these epochs.
    pub part: Part,
}

/// A disk at one point in time: all files up to there.
#[derive(Clone, Debug)]
pub struct DiskSource {
    /// The vault.
    pub vault: VaultId,
    /// Whose disk.
    pub server: ServerId,
    /// Which disk.
    pub disk: DiskNumber,
    /// Its size in bytes at that point.
    pub disk_bytes: u64,
    /// Its files, oldest first: by last epoch, then part.
    pub files: Vec<FileSource>,
    /// The disk's keys, in any order.
    pub keys: Vec<DiskKey>,
}

impl DiskSource {
    /// What a file must say that it is. How large the disk was at its last epoch is not known here;
    /// the file's digest, which is, stands for that too.
    pub(crate) fn identity(&self, file: &FileSource, found: &FileIdentity) -> FileIdentity {
        FileIdentity {
            vault: self.vault,
            server: self.server,
            disk: self.disk,
            first_epoch: file.first_epoch,
            last_epoch: file.last_epoch,
            part: file.part,
            disk_bytes: found.disk_bytes,
        }
    }

    pub(crate) fn key(&self, id: KeyId) -> Option<&DiskKey> {
        self.keys.iter().find(|key| key.id() == id)
    }

    /// Refuses a list with a hole that would show as stale or missing data. Epochs in which nothing
    /// changed have no file (the first one neither, of a disk that was all zeroes), so only the
    /// parts before a part can be missed here; whoever makes the list knows how many files there
    /// must be, and counts them.
    pub(crate) fn check_order(&self) -> Result<(), VolumeError> {
        let mut before: Option<&FileSource> = None;
        for file in &self.files {
            let goes_on = before.is_some_and(|before| {
                (before.first_epoch, before.last_epoch) == (file.first_epoch, file.last_epoch)
            });
            let expected = match before {
                Some(before) if goes_on => Part(before.part.0.wrapping_add(1)),
                Some(before) if before.last_epoch >= file.first_epoch => {
                    return Err(VolumeError::OutOfOrder { object: file.object.clone() });
                }
                _ => Part(0),
            };
            if file.part != expected {
                return Err(VolumeError::Gap { epoch: file.last_epoch, part: expected });
            }
            before = Some(file);
        }
        Ok(())
    }
}

/// The store that files are read from.
#[derive(Clone, Debug)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    /// Where objects are files, by the same names.
    local_root: Option<PathBuf>,
    runtime: Handle,
}

thread_local! {
    static SEALED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Objects {
    /// Reads through `store`. With `local_root`, the directory of a local store, files are read directly.
    /// Must be called within a Tokio runtime.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, local_root: Option<PathBuf>) -> Self {
        Self { store, local_root, runtime: Handle::current() }
    }

    pub(crate) const fn is_local(&self) -> bool {
        self.local_root.is_some()
    }

    pub(crate) const fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// The last bytes of an object, at most `tail_bytes`; the object must have `bytes` bytes. Blocks, and
    /// must not be called on a thread of the runtime.
    pub(crate) fn read_tail(
        &self,
        object: &str,
        bytes: u64,
        tail_bytes: u64,
    ) -> Result<Vec<u8>, VolumeError> {
        let range = bytes.saturating_sub(tail_bytes)..bytes;
        if let Some(root) = &self.local_root {
            let failed = |source| read_error(object, range.start, source);
            let file = File::open(root.join(object)).map_err(failed)?;
            check_length(object, bytes, file.metadata().map_err(failed)?.len())?;
            let mut tail = vec![0; length(&range)];
            file.read_exact_at(&mut tail, range.start).map_err(failed)?;
            return Ok(tail);
        }
        self.runtime.block_on(async {
            let options = GetOptions::new().with_range(Some(range));
            let got = self.store.get_opts(&Path::from(object), options).await;
            let got = got.map_err(|source| store_error(object, source))?;
            check_length(object, bytes, got.meta.size)?;
            Ok(got.bytes().await.map_err(|source| store_error(object, source))?.into())
        })
    }

    /// Hands a range of an object to `take`, which may change the bytes. Blocks like [`Self::read_tail`].
    pub(crate) fn with_range<T>(
        &self,
        object: &str,
        range: Range<u64>,
        take: impl FnOnce(&mut [u8]) -> T,
    ) -> Result<T, VolumeError> {
        let Some(root) = &self.local_root else {
            let fetched = self.runtime.block_on(self.fetch_range(object, range))?;
            return Ok(take(&mut Vec::from(fetched)));
        };
        let failed = |source| read_error(object, range.start, source);
        // Opening costs a hundredth of what decoding a frame does, and spares a table of handles.
        let file = File::open(root.join(object)).map_err(failed)?;
        SEALED.with_borrow_mut(|buffer| {
            let wanted = length(&range);
            if buffer.len() < wanted {
                buffer.resize(wanted, 0);
            }
            let bytes = &mut buffer[..wanted];
            file.read_exact_at(bytes, range.start).map_err(failed)?;
            Ok(take(bytes))
        })
    }

    /// A range of an object, through the store.
    pub(crate) async fn fetch_range(&self, object: &str, range: Range<u64>) -> Result<Bytes, VolumeError> {
        let got = self.store.get_range(&Path::from(object), range).await;
        got.map_err(|source| store_error(object, source))
    }
}

fn check_length(object: &str, expected: u64, found: u64) -> Result<(), VolumeError> {
    if expected == found {
        return Ok(());
    }
    Err(VolumeError::Length { object: object.to_owned(), expected, found })
}

/// Ranges are pieces of files that were checked: an index or a frame.
fn length(range: &Range<u64>) -> usize {
    usize::try_from(range.end - range.start).unwrap_or(usize::MAX)
}

fn read_error(object: &str, at: u64, source: io::Error) -> VolumeError {
    let object = object.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => VolumeError::Missing { object },
        _ => VolumeError::Read { object, at, source },
    }
}

fn store_error(object: &str, source: object_store::Error) -> VolumeError {
    let object = object.to_owned();
    match source {
        object_store::Error::NotFound { .. } => VolumeError::Missing { object },
        source => VolumeError::Store { object, source },
    }
}
