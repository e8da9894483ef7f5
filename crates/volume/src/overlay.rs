//! Where the writes to a volume go: a sparse file beside the point, which itself never changes.
//!
//! This page is the specification of the format.
//!
//! # Layout, version 1
//!
//! An overlay is a directory of four files for one disk. Numbers are little endian.
//!
//! | file | content |
//! | --- | --- |
//! | `header` | what the overlay belongs to |
//! | `data` | the written blocks, each at the offset that it has on the disk; sparse |
//! | `current` | two bits for each block: its state now |
//! | `flushed` | the same as at the last flush |
//!
//! A block is 4,096 bytes. The state of block `b` is in byte `b / 4`, bits `2 * (b % 4)` and the next
//! higher one: 0 as the point has it, 1 in `data`, 2 zeroes. 3 is never written. Both state
//! files have `blocks / 4` bytes, rounded up to 4,096; they are sparse.
//!
//! The header has 128 bytes:
//!
//! | at | type | field |
//! | --- | --- | --- |
//! | 0 | u8\[8\] | magic: `89 4c 42 4f 56 4c 0d 0a` |
//! | 8 | u16 | version: 1 |
//! | 10 | u16 | length of the header: 128 |
//! | 12 | u32 | bytes of a block: 4096 |
//! | 16 | u64 | vault |
//! | 24 | u64 | server |
//! | 32 | u64 | point |
//! | 40 | u64 | bytes of the disk |
//! | 48 | u16 | disk |
//! | 50 | u8\[14\] | zero |
//! | 64 | u8\[16\] | the kernel's boot id when `current` was last known to be whole; zero when it is not |
//! | 80 | u8\[16\] | zero |
//! | 96 | u8\[32\] | BLAKE3 of bytes 0 to 96 |
//!
//! # What survives what
//!
//! A write goes into `data`, then its blocks' states into `current`, then it is answered. Neither is
//! synced, so both are in the kernel's memory: they survive the death of this process, but not of
//! the machine. A flush takes a copy of the states that have changed since the last one, syncs `data`,
//! writes the copy to `flushed` and syncs that. The copy is taken first, for a state must not be
//! durable before its data.
//!
//! Whoever opens the overlay compares the boot id. If it is this boot's, `current` holds, and with it
//! everything that was ever answered. If it is another, the machine went down in between and nobody
//! knows which pages of `current` and `data` reached the disk: `flushed` is copied over `current`. What
//! was written after the last flush is then there or not, block by block, as on any disk.
//!
//! When a sync fails, the kernel may have dropped what it could not write. From then on the overlay
//! takes no more writes and its boot id is erased, so that opening it anew begins with `flushed`.

mod header;
mod states;

use std::fs::{self, File, TryLockError};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use lifeboat_model::{BLOCK_BYTES, DiskNumber, Extent, PointId, ServerId, VaultId, blocks_of_bytes};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::error::OverlayError;
pub use header::BootId;
use header::Header;
use states::BlockStates;
pub(crate) use states::State;

/// Panics when a header that is read is not written back as it was.
#[cfg(feature = "fuzz")]
pub(crate) fn check_header(bytes: &[u8]) {
    if let Ok(header) = Header::decode(bytes, Path::new("header")) {
        assert_eq!(header.encode()[..], *bytes);
    }
}

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Blocks that share a lock against lost updates.
const STRIPE_BLOCKS: u64 = 1024;
const STRIPES: usize = 64;

/// Which disk of which point an overlay lies over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverlayIdentity {
    /// The vault.
    pub vault: VaultId,
    /// Whose disk.
    pub server: ServerId,
    /// The point.
    pub point: PointId,
    /// The disk.
    pub disk: DiskNumber,
    /// Its size in bytes at that point.
    pub disk_bytes: u64,
}

impl std::fmt::Display for OverlayIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { vault, server, point, disk, disk_bytes } = self;
        write!(f, "vault {vault}, server {server}, point {point}, disk {disk} of {disk_bytes} bytes")
    }
}

/// A write that did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error("the overlay's file system is full")]
    NoSpace,
    #[error("an earlier sync of the overlay failed; close the volume and open it anew")]
    Broken,
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The overlay of one disk. Its methods block on files; every one may be called from many threads.
pub(crate) struct Overlay {
    directory: PathBuf,
    header: Header,
    data: File,
    states: BlockStates,
    /// Shared by writers of whole blocks, exclusive for who reads a block, changes it and writes it back.
    stripes: Vec<RwLock<()>>,
    flushing: Mutex<()>,
    /// Flushes that have begun, and the number of the newest that has succeeded.
    flushes_begun: AtomicU64,
    flushes_done: AtomicU64,
    broken: AtomicBool,
}

impl Overlay {
    /// Opens the overlay in `directory`, or makes a new one there. Durable when it returns.
    pub fn open(directory: &Path, identity: OverlayIdentity, boot: BootId) -> Result<Self, OverlayError> {
        fs::create_dir_all(directory).map_err(OverlayError::io("create", directory))?;
        let data_path = directory.join("data");
        let data = open_file(&data_path)?;
        match data.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OverlayError::InUse { path: data_path }),
            Err(TryLockError::Error(error)) => return Err(OverlayError::io("lock", data_path)(error)),
        }
        let blocks = blocks_of_bytes(identity.disk_bytes);
        let (current, flushed) =
            (open_file(&directory.join("current"))?, open_file(&directory.join("flushed"))?);
        let path = directory.join("header");
        let header = match Header::read(&path)? {
            None => {
                // An attempt to make one that was interrupted has left files without content at most.
                let metadata = data.metadata().map_err(OverlayError::io("read", &data_path))?;
                if metadata.blocks() > 0 {
                    return Err(OverlayError::Damaged { path, why: "it is missing" });
                }
                for (file, length) in [
                    (&data, blocks * BLOCK),
                    (&current, states::file_bytes(blocks)),
                    (&flushed, states::file_bytes(blocks)),
                ] {
                    let made =
                        file.set_len(0).and_then(|()| file.set_len(length)).and_then(|()| file.sync_all());
                    made.map_err(OverlayError::io("write", directory))?;
                }
                Header { identity, boot }.create(directory)?
            }
            Some(header) if header.identity != identity => {
                let (expected, found) = (identity.to_string(), header.identity.to_string());
                return Err(OverlayError::Foreign { path, expected, found });
            }
            Some(header) => {
                check_lengths(directory, &[(&data, blocks * BLOCK), (&current, states::file_bytes(blocks))])?;
                check_lengths(directory, &[(&flushed, states::file_bytes(blocks))])?;
                if header.boot == boot {
                    header
                } else {
                    let rolled_back = states::roll_back(&current, &flushed, blocks);
                    rolled_back.map_err(OverlayError::io("write", directory.join("current")))?;
                    let overlay = directory.display();
                    tracing::info!(%overlay, "the machine was restarted; the overlay is as of its last flush");
                    // Only now: if this is interrupted, it is done again.
                    Header { boot, ..header }.update(directory)?
                }
            }
        };
        let states = BlockStates::load(current, flushed, blocks, &directory.join("current"))?;
        Ok(Self {
            directory: directory.to_owned(),
            header,
            data,
            states,
            stripes: (0..STRIPES).map(|_| RwLock::new(())).collect(),
            flushing: Mutex::new(()),
            flushes_begun: AtomicU64::new(0),
            flushes_done: AtomicU64::new(0),
            broken: AtomicBool::new(false),
        })
    }

    /// Bytes of blocks that are in `data`.
    pub fn written_bytes(&self) -> u64 {
        self.states.in_data() * BLOCK
    }

    /// The states of blocks, as runs in order.
    pub fn states(&self, extent: Extent) -> Vec<(Extent, State)> {
        self.states.runs(extent)
    }

    /// Reads bytes that a state said are in `data`.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.data.read_exact_at(buffer, offset)
    }

    /// The same if it takes no waiting for a disk; says whether it did not.
    pub fn read_cached(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let mut slices = [io::IoSliceMut::new(buffer)];
        let flags = rustix::io::ReadWriteFlags::NOWAIT;
        let wanted = slices[0].len();
        matches!(rustix::io::preadv2(&self.data, &mut slices, offset, flags), Ok(read) if read == wanted)
    }

    /// Writes whole blocks.
    pub fn write_blocks(&self, first: u64, content: &[u8]) -> Result<(), WriteError> {
        debug_assert!(content.len().is_multiple_of(BLOCK_BYTES));
        self.check()?;
        let extent = Extent { first, blocks: content.len() as u64 / BLOCK };
        let mut rest = content;
        for piece in stripes_of(extent) {
            let (here, after) = rest.split_at(usize::try_from(piece.len_bytes()).unwrap_or(rest.len()));
            rest = after;
            let _shared = self.stripe(piece.first).read().unwrap_or_else(PoisonError::into_inner);
            self.data.write_all_at(here, piece.offset_bytes())?;
            self.states.set(piece, State::Data)?;
        }
        Ok(())
    }

    /// Writes part of one block. `base` is what the point has there, used if nothing was written yet.
    pub fn write_within_block(&self, offset: u64, content: &[u8], base: &[u8]) -> Result<(), WriteError> {
        self.check()?;
        let block = offset / BLOCK;
        let start = usize::try_from(offset % BLOCK).unwrap_or(0);
        debug_assert!(start + content.len() <= BLOCK_BYTES && base.len() == BLOCK_BYTES);
        let _alone = self.stripe(block).write().unwrap_or_else(PoisonError::into_inner);
        let extent = Extent { first: block, blocks: 1 };
        if self.states.get(block) == State::Data {
            return Ok(self.data.write_all_at(content, offset)?);
        }
        let mut whole = match self.states.get(block) {
            State::Base => base.to_vec(),
            State::Zeroes | State::Data => vec![0; BLOCK_BYTES],
        };
        whole[start..start + content.len()].copy_from_slice(content);
        self.data.write_all_at(&whole, extent.offset_bytes())?;
        Ok(self.states.set(extent, State::Data)?)
    }

    /// Makes blocks read as zeroes and gives their space back where the file system can.
    pub fn zero_blocks(&self, extent: Extent) -> Result<(), WriteError> {
        self.check()?;
        for piece in stripes_of(extent) {
            let _shared = self.stripe(piece.first).read().unwrap_or_else(PoisonError::into_inner);
            let had_data = self.states.runs(piece).iter().any(|(_, state)| *state == State::Data);
            self.states.set(piece, State::Zeroes)?;
            if had_data {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                if let Err(errno) = fallocate(&self.data, flags, piece.offset_bytes(), piece.len_bytes()) {
                    // The state alone makes them zeroes; only the space stays taken.
                    tracing::debug!(%errno, "no hole was made in an overlay");
                }
            }
        }
        Ok(())
    }

    /// Makes blocks read as zeroes that take space, so that later writes to them find it.
    pub fn zero_blocks_allocated(&self, extent: Extent) -> Result<(), WriteError> {
        self.check()?;
        for piece in stripes_of(extent) {
            let _shared = self.stripe(piece.first).read().unwrap_or_else(PoisonError::into_inner);
            let (offset, len) = (piece.offset_bytes(), piece.len_bytes());
            match fallocate(&self.data, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, offset, len) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    let zeroes = vec![0; usize::try_from(len).unwrap_or(0)];
                    self.data.write_all_at(&zeroes, offset)?;
                }
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
            self.states.set(piece, State::Data)?;
        }
        Ok(())
    }

    /// Makes everything durable that was written before the call. Callers that come together share one.
    pub fn flush(&self) -> Result<(), WriteError> {
        let begun = self.flushes_begun.load(Ordering::SeqCst);
        let _alone = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        // One that has begun since then has done it.
        if self.flushes_done.load(Ordering::SeqCst) > begun {
            return Ok(());
        }
        let number = self.flushes_begun.fetch_add(1, Ordering::SeqCst) + 1;
        let changed = self.states.take_changed();
        let written = self.flush_states(&changed);
        if let Err(error) = written {
            self.states.put_back_changed(changed.iter().map(|(page, _)| *page));
            return Err(error);
        }
        self.flushes_done.store(number, Ordering::SeqCst);
        Ok(())
    }

    fn flush_states(&self, changed: &[(usize, Vec<u8>)]) -> Result<(), WriteError> {
        self.data.sync_data().map_err(|error| self.give_up(&error))?;
        if changed.is_empty() {
            return Ok(());
        }
        self.states.write_flushed(changed)?;
        self.states.sync_flushed().map_err(|error| self.give_up(&error))
    }

    /// After a failed sync nobody knows what is in the files; see the module's page.
    fn give_up(&self, error: &io::Error) -> WriteError {
        tracing::error!(overlay = %self.directory.display(), %error, "an overlay cannot be synced; it takes no more writes");
        self.broken.store(true, Ordering::SeqCst);
        if let Err(error) = (Header { boot: BootId::NONE, ..self.header }).update(&self.directory) {
            tracing::error!(%error, "nor can its header be written");
        }
        WriteError::Broken
    }

    fn check(&self) -> Result<(), WriteError> {
        if self.broken.load(Ordering::SeqCst) { Err(WriteError::Broken) } else { Ok(()) }
    }

    #[allow(clippy::cast_possible_truncation, reason = "the remainder is below 64")]
    fn stripe(&self, block: u64) -> &RwLock<()> {
        &self.stripes[(block / STRIPE_BLOCKS % STRIPES as u64) as usize]
    }
}

impl From<WriteError> for lifeboat_nbd::ExportError {
    fn from(error: WriteError) -> Self {
        let text = error.to_string();
        match error {
            WriteError::NoSpace => Self::NoSpace(text),
            WriteError::Io(error) if is_no_space(&error) => Self::NoSpace(WriteError::NoSpace.to_string()),
            WriteError::Broken | WriteError::Io(_) => Self::Io(text),
        }
    }
}

fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// An extent cut at the borders of stripes.
fn stripes_of(extent: Extent) -> impl Iterator<Item = Extent> {
    let Range { start, end } = extent.first..extent.end();
    let mut at = start;
    std::iter::from_fn(move || {
        let until = ((at / STRIPE_BLOCKS + 1) * STRIPE_BLOCKS).min(end);
        let piece = Extent::new(at, until.checked_sub(at)?)?;
        at = until;
        Some(piece)
    })
}

fn open_file(path: &Path) -> Result<File, OverlayError> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map_err(OverlayError::io("open", path))
}

fn check_lengths(directory: &Path, files: &[(&File, u64)]) -> Result<(), OverlayError> {
    for (file, expected) in files {
        let found = file.metadata().map_err(OverlayError::io("read", directory))?.len();
        if found != *expected {
            return Err(OverlayError::Damaged {
                path: directory.to_owned(),
                why: "a file of it has another length than it was made with",
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
