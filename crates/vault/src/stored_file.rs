//! Reading stored HRL files where every byte is checked: for merging and for verification.
//!
//! Everything here blocks, and must not run on a thread of the runtime.

use std::ops::Range;

use bytes::Bytes;
use lifeboat_hrl::{
    DiskKey, FOOTER_BYTES, FileIdentity, Footer, HEADER_BYTES_MAX, Header, HrlError, Index, KeyId, Problem,
};
use lifeboat_model::{Digest, ServerId, VaultId};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use tokio::runtime::Handle;

use crate::background_pace::{Pace, Stopped};
use crate::catalog::StoredFile;
use crate::store::{Store, StoreError};

/// Bytes that are read at once from a file that is read whole.
const CHUNK_BYTES: u64 = 1 << 20;
/// Bytes of a file's end that are read at first: footer and, mostly, index.
const TAIL_BYTES: u64 = 64 << 10;

/// A stored file cannot be read, or is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum FileFault {
    /// It is not in the store.
    #[error("it is missing from the store")]
    Missing,
    /// It has another size.
    #[error("it has {found} bytes and should have {expected}: it was cut short or overwritten")]
    Size {
        /// By the catalog.
        expected: u64,
        /// In the store.
        found: u64,
    },
    /// It is whole in itself, but another one.
    #[error("its digest is {found} and should be {expected}: another file was put in its place")]
    Digest {
        /// By the catalog.
        expected: Digest,
        /// In the store.
        found: Digest,
    },
    /// It contradicts itself or its key, with the place.
    #[error("{0}")]
    Format(Box<HrlError>),
    /// The vault does not have its key.
    #[error("it was written with disk key {0}, which the catalog does not have")]
    NoKey(KeyId),
    /// The store could not be read. That says nothing about the file.
    #[error("{0}")]
    Store(Box<StoreError>),
    /// The vault is stopping. That says nothing about the file.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl From<HrlError> for FileFault {
    fn from(error: HrlError) -> Self {
        Self::Format(Box::new(error))
    }
}

impl From<StoreError> for FileFault {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}

impl FileFault {
    /// Whether the file is known to be bad, rather than not known to be good.
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        !matches!(self, Self::Store(_) | Self::Stopped(_))
    }
}

/// Whose file it is and with which keys it may have been written.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub vault: VaultId,
    pub server: ServerId,
    /// All keys of the disk.
    pub keys: Vec<DiskKey>,
}

/// Reads objects from a thread that may block.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    store: Store,
    runtime: Handle,
}

impl Reader {
    /// Called on the runtime.
    pub fn new(store: Store) -> Self {
        Self { store, runtime: Handle::current() }
    }

    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    fn size(&self, object: &str) -> Result<u64, FileFault> {
        self.runtime.block_on(self.store.size(object))?.ok_or(FileFault::Missing)
    }

    /// Bytes of an object that is as long as that.
    pub fn range(&self, object: &str, range: Range<u64>) -> Result<Bytes, FileFault> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let wanted = range.end - range.start;
        let read = self.runtime.block_on(self.store.objects().get_range(&Path::from(object), range));
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(object_store::Error::NotFound { .. }) => return Err(FileFault::Missing),
            Err(error) => return Err(self.store.read_error(object, error).into()),
        };
        if bytes.len() as u64 == wanted {
            return Ok(bytes);
        }
        Err(FileFault::Size { expected: wanted, found: bytes.len() as u64 })
    }
}

/// A stored file whose index was opened.
pub(crate) struct OpenFile {
    pub index: Index,
    object: String,
    /// The whole file, where it is small.
    whole: Option<Bytes>,
}

impl OpenFile {
    /// Opens a file: its header, footer and index are right and those of `file`. With `keep_whole`
    /// the file is read at once, and its digest is checked too.
    pub fn open(
        reader: &Reader,
        owner: &Owner,
        file: &StoredFile,
        keep_whole: bool,
    ) -> Result<Self, FileFault> {
        let found_bytes = reader.size(&file.object)?;
        let start = reader.range(&file.object, 0..found_bytes.min(HEADER_BYTES_MAX as u64))?;
        // First of all: is it the file at all? Exchanged files have other sizes too.
        let header = Header::parse(&start)?;
        header.expect(&expected(owner, file, &header.identity))?;
        if found_bytes != file.bytes {
            return Err(FileFault::Size { expected: file.bytes, found: found_bytes });
        }
        let tail_at = if keep_whole { 0 } else { file.bytes.saturating_sub(TAIL_BYTES) };
        let tail = reader.range(&file.object, tail_at..file.bytes)?;
        let footer = Footer::parse(&tail, file.bytes)?;
        if footer.header != header {
            return Err(HrlError { file: None, at: Some(0), problem: Problem::HeaderOfAnotherFile }.into());
        }
        if footer.digest != file.digest {
            return Err(FileFault::Digest { expected: file.digest, found: footer.digest });
        }
        let key_id = header.key_id;
        let key = owner.keys.iter().find(|key| key.id() == key_id).ok_or(FileFault::NoKey(key_id))?;
        let range = footer.index_range();
        let sealed = match range.start.checked_sub(tail_at).and_then(|at| usize::try_from(at).ok()) {
            Some(at) => tail.slice(at..tail.len() - FOOTER_BYTES),
            None => reader.range(&file.object, range)?,
        };
        let index = Index::open(&footer, &sealed, key)?;
        if keep_whole {
            check_content(&footer, Digest::of(&tail[..tail.len() - FOOTER_BYTES]))?;
        }
        Ok(Self { index, object: file.object.clone(), whole: keep_whole.then_some(tail) })
    }

    /// A frame's blocks, as the agent read them.
    pub fn frame(&self, reader: &Reader, number: u32) -> Result<Vec<u8>, FileFault> {
        let Some((_, frame)) = self.index.frame(number) else {
            let frames = self.index.footer().contents.frames;
            return Err(
                HrlError { file: None, at: None, problem: Problem::NoSuchFrame { number, frames } }.into()
            );
        };
        let range = frame.range();
        let sealed = match &self.whole {
            Some(whole) => slice(whole, &range),
            None => reader.range(&self.object, range)?,
        };
        Ok(self.index.open_frame(number, &sealed)?)
    }
}

fn slice(whole: &Bytes, range: &Range<u64>) -> Bytes {
    // The index was checked against the length of the file.
    let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(whole.len());
    whole.slice(place(range.start)..place(range.end))
}

fn expected(owner: &Owner, file: &StoredFile, found: &FileIdentity) -> FileIdentity {
    FileIdentity {
        vault: owner.vault,
        server: owner.server,
        disk: file.disk,
        first_epoch: file.first_epoch,
        last_epoch: file.last_epoch,
        part: file.part,
        // The catalog does not have it; the digest stands for it.
        disk_bytes: found.disk_bytes,
    }
}

/// Compares the content with the digest in the footer, which is the catalog's.
fn check_content(footer: &Footer, found: Digest) -> Result<(), FileFault> {
    if found == footer.digest {
        return Ok(());
    }
    let problem = Problem::FileDigest { expected: footer.digest, found };
    Err(HrlError { file: None, at: None, problem }.into())
}

/// Reads a whole file and checks everything: that it is the one that is meant, its digest, and
/// that every frame holds what the agent read. `progress` is told of bytes as they are read.
pub(crate) fn check(
    reader: &Reader,
    owner: &Owner,
    file: &StoredFile,
    pace: &mut Pace,
    mut progress: impl FnMut(u64),
) -> Result<(), FileFault> {
    let open = OpenFile::open(reader, owner, file, false)?;
    let footer = open.index.footer();
    let mut hasher = blake3::Hasher::new();
    let mut take = |range: Range<u64>, hasher: &mut blake3::Hasher| -> Result<Bytes, FileFault> {
        pace.spend(range.end - range.start)?;
        let bytes = reader.range(&file.object, range)?;
        progress(bytes.len() as u64);
        hasher.update(&bytes);
        Ok(bytes)
    };
    let mut at = 0;
    let mut number = 0;
    while at < footer.contents.index_offset {
        let end = frames_end(&open.index, number, at, footer.contents.index_offset);
        let bytes = take(at..end, &mut hasher)?;
        while let Some((_, frame)) = open.index.frame(number)
            && frame.range().end <= end
        {
            let range = frame.range();
            open.index.open_frame(number, &slice(&bytes, &(range.start - at..range.end - at)))?;
            number += 1;
        }
        at = end;
    }
    let footer_at = footer.index_range().end;
    while at < footer_at {
        let end = (at + CHUNK_BYTES).min(footer_at);
        take(at..end, &mut hasher)?;
        at = end;
    }
    progress(FOOTER_BYTES as u64);
    check_content(footer, hasher.finalize().into())
}

/// Where a chunk that begins with frame `number` ends: after whole frames.
fn frames_end(index: &Index, number: u32, at: u64, index_offset: u64) -> u64 {
    let mut end = at;
    let mut next = number;
    while let Some((_, frame)) = index.frame(next) {
        let frame_end = frame.range().end;
        if frame_end - at > CHUNK_BYTES && end > at {
            return end;
        }
        end = frame_end;
        next += 1;
    }
    if end == at { index_offset } else { end }
}
