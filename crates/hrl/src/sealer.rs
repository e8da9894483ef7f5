//! Frames are checked, compressed and encrypted here, on as many threads as there are.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lifeboat_model::{Digest, Extent, FRAME_BLOCKS};

use crate::FRAMES_MAX;
use crate::cipher::{FileCipher, FramePlace};
use crate::compress;
use crate::error::{Problem, Result};
use crate::header::Header;
use crate::identity::{FileId, FileIdentity};
use crate::key::{DiskKey, TAG_BYTES};
use crate::version::Version;

/// The zstd levels that a sealer takes.
pub const LEVELS: RangeInclusive<i32> = 1..=19;

/// The zstd level that is used unless an operator says otherwise.
pub const LEVEL_DEFAULT: i32 = 1;

/// Seals the frames of one file. Clones share everything; threads may seal at the same time.
#[derive(Clone)]
pub struct FrameSealer(Arc<Shared>);

pub(crate) struct Shared {
    pub header: Header,
    pub cipher: FileCipher,
    level: i32,
    /// One bit for each number that was sealed: a number twice would be a nonce twice.
    sealed: Vec<AtomicU64>,
}

/// A frame on its way from a [`FrameSealer`] to the [`crate::Writer`] of the same file.
pub struct SealedFrame {
    pub(crate) place: FramePlace,
    pub(crate) file_id: FileId,
    pub(crate) bytes: Vec<u8>,
}

impl SealedFrame {
    /// Its number in the file.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.place.number
    }

    /// The blocks that it holds.
    #[must_use]
    pub const fn extent(&self) -> Extent {
        self.place.extent
    }

    /// Bytes that it takes in the file.
    #[must_use]
    pub fn stored_bytes(&self) -> usize {
        self.bytes.len()
    }
}

impl fmt::Debug for SealedFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedFrame({}, {}, {} bytes)", self.number(), self.extent(), self.stored_bytes())
    }
}

impl fmt::Debug for FrameSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrameSealer({})", self.0.header.file_id)
    }
}

impl FrameSealer {
    /// A sealer for one new file. `file_id` must be fresh from the system's random numbers, also when
    /// the same changes are written a second time.
    ///
    /// # Errors
    /// When the identity or the level cannot be.
    pub fn new(identity: FileIdentity, file_id: FileId, key: &DiskKey, level: i32) -> Result<Self> {
        identity.check()?;
        if !LEVELS.contains(&level) {
            return Err(Problem::Misuse("a compression level is 1 to 19").into());
        }
        let header = Header { version: Version::CURRENT, identity, file_id, key_id: key.id() };
        let cipher = FileCipher::new(&header, key)?;
        let sealed = (0..FRAMES_MAX / 64).map(|_| AtomicU64::new(0)).collect();
        Ok(Self(Arc::new(Shared { header, cipher, level, sealed })))
    }

    /// The header of the file.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.0.header
    }

    /// Checks `plain` against the digest that its reader computed, compresses and encrypts it.
    ///
    /// Numbers begin at 0 and leave no gap. A number is used up only by success; after a data
    /// mismatch the blocks can be sent again and sealed under the same number.
    ///
    /// # Errors
    /// When data and digest differ, the extent cannot be, or the number was sealed before.
    pub fn seal(&self, number: u32, extent: Extent, plain: &[u8], digest: Digest) -> Result<SealedFrame> {
        let shared = &*self.0;
        check_extent(extent, &shared.header.identity)?;
        if extent.blocks > FRAME_BLOCKS {
            return Err(Problem::BadExtent { extent, why: "a frame has at most 64 blocks" }.into());
        }
        if plain.len() as u64 != extent.len_bytes() {
            return Err(Problem::BadExtent { extent, why: "its data has another length" }.into());
        }
        if Digest::of(plain) != digest {
            return Err(Problem::DataMismatch(extent).into());
        }
        let (mut bytes, compressed) =
            compress::pack(shared.level, plain, TAG_BYTES).map_err(Problem::Compression)?;
        let place = FramePlace { number, extent, compressed, digest };
        self.use_up(number)?;
        shared.cipher.seal_frame(&place, &mut bytes);
        Ok(SealedFrame { place, file_id: shared.header.file_id, bytes })
    }

    /// Marks a number as sealed. This comes before the encryption and is never taken back.
    fn use_up(&self, number: u32) -> Result<()> {
        let Some(word) = self.0.sealed.get(number as usize / 64) else {
            return Err(Problem::Full("it has all the frames it may have").into());
        };
        let bit = 1 << (number % 64);
        if word.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
            return Err(
                Problem::Misuse("a frame of this number was sealed before: numbers are used once").into()
            );
        }
        Ok(())
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.0)
    }
}

/// The rules for everything that is written.
pub(crate) fn check_extent(extent: Extent, identity: &FileIdentity) -> Result<(), Problem> {
    if Extent::new(extent.first, extent.blocks).is_none() {
        return Err(Problem::BadExtent {
            extent: Extent { blocks: 0, ..extent },
            why: "it is empty or has no end",
        });
    }
    if extent.end() > identity.disk_blocks() {
        return Err(Problem::BadExtent { extent, why: "it reaches beyond the disk" });
    }
    Ok(())
}
