//! Appends sealed frames to a file, in order.

use std::io::Write;
use std::sync::Arc;

use lifeboat_model::Extent;

use crate::ZERO_EXTENTS_MAX;
use crate::error::{Problem, Result};
use crate::footer::{Contents, FileSummary, Footer};
use crate::header::FRAMES_BEGIN;
use crate::index::{Content, Entry, Frame, codec};
use crate::key::TAG_BYTES;
use crate::sealer::{FrameSealer, SealedFrame, Shared, check_extent};

/// Writes one file. What it has not finished is no file: a reader refuses it.
///
/// The order of calls is the order of changes: where extents overlap, the later one holds. Nothing is
/// synced here; that is the business of whoever owns the `W`.
pub struct Writer<W> {
    inner: W,
    shared: Arc<Shared>,
    hasher: blake3::Hasher,
    /// Bytes written.
    offset: u64,
    entries: Vec<Entry>,
    contents: Contents,
    /// A write failed, so nobody knows how much of it is there.
    torn: bool,
}

impl<W: Write> Writer<W> {
    /// Begins the file that `sealer` seals for, by writing its header. One writer for a sealer.
    ///
    /// # Errors
    /// When writing fails.
    pub fn new(inner: W, sealer: &FrameSealer) -> Result<Self> {
        let mut writer = Self {
            inner,
            shared: sealer.shared(),
            hasher: blake3::Hasher::new(),
            offset: 0,
            entries: Vec::new(),
            contents: Contents::default(),
            torn: false,
        };
        let header = writer.shared.header.encode();
        writer.write(&header)?;
        Ok(writer)
    }

    /// Appends the next frame.
    ///
    /// # Errors
    /// When the frame is another file's or not the next one, or writing fails. After a failed write
    /// the file can only be thrown away.
    #[allow(clippy::needless_pass_by_value, reason = "a frame is appended once")]
    pub fn append(&mut self, frame: SealedFrame) -> Result<()> {
        if frame.file_id != self.shared.header.file_id {
            return Err(Problem::Misuse("the frame was sealed for another file").into());
        }
        let SealedFrame { place, bytes, .. } = &frame;
        if place.number != self.contents.frames {
            return Err(Problem::Misuse("frames are appended in the order of their numbers").into());
        }
        let stored_bytes =
            u32::try_from(bytes.len()).map_err(|_| Problem::Misuse("the frame is too long"))?;
        let stored = Frame {
            number: place.number,
            offset: self.offset,
            stored_bytes,
            compressed: place.compressed,
            digest: place.digest,
        };
        self.write(bytes)?;
        self.contents.frames += 1;
        self.contents.data_blocks += place.extent.blocks;
        self.entries.push(Entry { extent: place.extent, content: Content::Frame(stored) });
        Ok(())
    }

    /// Says that `extent`, of any length, is zeroes. Costs no bytes but an entry of the index.
    ///
    /// # Errors
    /// When the extent cannot be.
    pub fn zeroes(&mut self, extent: Extent) -> Result<()> {
        check_extent(extent, &self.shared.header.identity)?;
        let sum = self.contents.zero_blocks.checked_add(extent.blocks);
        let zero_blocks = sum.ok_or(Problem::Full("it counts no more zero blocks"))?;
        match self.entries.last_mut() {
            Some(Entry { extent: last, content: Content::Zeroes }) if last.end() == extent.first => {
                last.blocks += extent.blocks;
            }
            _ if self.contents.zero_extents == ZERO_EXTENTS_MAX => {
                return Err(Problem::Full("it has all the zero extents it may have").into());
            }
            _ => {
                self.contents.zero_extents += 1;
                self.entries.push(Entry { extent, content: Content::Zeroes });
            }
        }
        self.contents.zero_blocks = zero_blocks;
        Ok(())
    }

    /// Bytes written up to now, for deciding when to begin another part.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.offset
    }

    /// The number of the next frame.
    #[must_use]
    pub const fn next_frame(&self) -> u32 {
        self.contents.frames
    }

    /// Writes index and footer, flushes, and gives back what was written to.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(mut self) -> Result<(W, FileSummary)> {
        let mut index = codec::encode(&self.entries);
        self.contents.index_offset = self.offset;
        self.contents.index_bytes =
            u32::try_from(index.len() + TAG_BYTES).map_err(|_| Problem::Full("its index is too long"))?;
        self.shared.cipher.seal_index(&self.contents, &mut index);
        self.write(&index)?;
        let footer = Footer::new(self.shared.header, self.contents, self.hasher.finalize().into())?;
        self.write(&footer.encode())?;
        self.inner.flush().map_err(Problem::Io)?;
        Ok((self.inner, footer.summary()))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if self.torn {
            return Err(Problem::Misuse("a write to this file failed before: begin it anew").into());
        }
        debug_assert!(self.offset == 0 || self.offset >= FRAMES_BEGIN);
        if let Err(error) = self.inner.write_all(bytes) {
            self.torn = true;
            return Err(crate::HrlError::at(self.offset, Problem::Io(error)));
        }
        self.hasher.update(bytes);
        self.offset += bytes.len() as u64;
        Ok(())
    }
}
