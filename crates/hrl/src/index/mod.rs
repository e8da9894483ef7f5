//! The index: which blocks a file holds and where.

pub(crate) mod codec;
mod effective;

use std::fmt;
use std::ops::Range;

use lifeboat_model::{Digest, Extent, FRAME_BYTES};

use crate::cipher::{FileCipher, FramePlace};
use crate::compress;
use crate::error::{HrlError, Piece, Problem, Result};
use crate::footer::Footer;
use crate::key::{DiskKey, TAG_BYTES};
use crate::{FRAMES_MAX, ZERO_EXTENTS_MAX};

/// Bytes of the largest sealed index that a reader accepts.
pub const INDEX_BYTES_MAX: usize = FRAMES_MAX as usize * codec::FRAME_ENTRY_BYTES_MAX
    + ZERO_EXTENTS_MAX as usize * codec::ZERO_ENTRY_BYTES_MAX
    + TAG_BYTES;

/// One entry, as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The blocks.
    pub extent: Extent,
    /// What is in them.
    pub content: Content,
}

/// What is in the blocks of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Zeroes; nothing is stored.
    Zeroes,
    /// A frame of data.
    Frame(Frame),
}

/// Where a frame is and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its number, from 0.
    pub number: u32,
    /// Where it begins in the file.
    pub offset: u64,
    /// Bytes that it takes in the file.
    pub stored_bytes: u32,
    /// Whether it is compressed.
    pub compressed: bool,
    /// BLAKE3 of the plain data, computed by the agent.
    pub digest: Digest,
}

impl Frame {
    /// Which bytes of the file it is.
    #[must_use]
    pub const fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.stored_bytes as u64
    }
}

/// Blocks and where their content is, with all that was overridden left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Covered {
    /// The blocks.
    pub extent: Extent,
    /// Where their content is.
    pub source: Source,
}

/// Where the content of blocks is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// They are zeroes.
    Zeroes,
    /// In a frame, after so many other blocks of it.
    Frame {
        /// The frame's number.
        number: u32,
        /// Blocks of the frame that come first.
        skip_blocks: u64,
    },
}

/// The opened index of a file, which also opens its frames.
pub struct Index {
    footer: Footer,
    cipher: FileCipher,
    entries: Vec<Entry>,
    /// For each frame the place of its entry.
    frames: Vec<u32>,
}

impl Index {
    /// Decrypts and checks the index. `sealed` is what stands at [`Footer::index_range`].
    ///
    /// From here on the header's identity and the footer's counts are known to be the writer's.
    ///
    /// # Errors
    /// When the key is another one, the bytes are not the index of this file, or contradict themselves.
    pub fn open(footer: &Footer, sealed: &[u8], key: &DiskKey) -> Result<Self> {
        let contents = &footer.contents;
        let cipher = FileCipher::new(&footer.header, key)?;
        let here = |problem| HrlError::at(contents.index_offset, problem);
        check_length(Piece::Index, u64::from(contents.index_bytes), sealed).map_err(here)?;
        let mut buffer = sealed.to_vec();
        let text = cipher.open_index(contents, &mut buffer).map_err(here)?;
        let disk_blocks = footer.header.identity.disk_blocks();
        let (entries, frames) = codec::decode(text, contents, disk_blocks).map_err(here)?;
        Ok(Self { footer: *footer, cipher, entries, frames })
    }

    /// The footer that came with it.
    #[must_use]
    pub const fn footer(&self) -> &Footer {
        &self.footer
    }

    /// All entries, in the order in which they were written.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What a block holds once all entries were applied: in block order, without overlaps.
    #[must_use]
    pub fn effective(&self) -> Vec<Covered> {
        effective::effective(&self.entries)
    }

    /// The blocks of a frame and where it is.
    #[must_use]
    pub fn frame(&self, number: u32) -> Option<(Extent, &Frame)> {
        let entry = self.entries.get(*self.frames.get(number as usize)? as usize)?;
        match &entry.content {
            Content::Frame(frame) => Some((entry.extent, frame)),
            Content::Zeroes => None,
        }
    }

    /// Decrypts, decompresses and checks a frame. `sealed` is what stands at [`Frame::range`].
    ///
    /// The result has [`Extent::len_bytes`] bytes.
    ///
    /// # Errors
    /// When the bytes are not this frame's, or not what the agent read.
    pub fn open_frame(&self, number: u32, sealed: &[u8]) -> Result<Vec<u8>> {
        compress::with_copy(sealed, |copy| self.open_frame_in_place(number, copy))
    }

    /// As [`Self::open_frame`], for a caller that has no further use for the sealed bytes: they are
    /// decrypted where they stand, which spares a copy.
    ///
    /// # Errors
    /// As [`Self::open_frame`].
    pub fn open_frame_in_place(&self, number: u32, sealed: &mut [u8]) -> Result<Vec<u8>> {
        let frames = self.footer.contents.frames;
        let (extent, frame) = self.frame(number).ok_or(Problem::NoSuchFrame { number, frames })?;
        self.open_checked(extent, frame, sealed).map_err(|problem| HrlError::at(frame.offset, problem))
    }

    fn open_checked(&self, extent: Extent, frame: &Frame, sealed: &mut [u8]) -> Result<Vec<u8>, Problem> {
        let Frame { number, compressed, digest, .. } = *frame;
        let piece = Piece::Frame(number, extent);
        check_length(piece, u64::from(frame.stored_bytes), sealed)?;
        let place = FramePlace { number, extent, compressed, digest };
        let plain_bytes = usize::try_from(extent.len_bytes()).unwrap_or(FRAME_BYTES).min(FRAME_BYTES);
        let text = self.cipher.open_frame(&place, sealed).ok_or(Problem::NotAuthentic(piece))?;
        let plain = if compressed {
            compress::unpack(text, plain_bytes).ok_or(Problem::WrongData(piece))?
        } else {
            text[..plain_bytes.min(text.len())].to_vec()
        };
        // The end of the chain that began where the agent read the disk.
        if Digest::of(&plain) == digest { Ok(plain) } else { Err(Problem::WrongData(piece)) }
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index").field("footer", &self.footer).field("entries", &self.entries).finish()
    }
}

fn check_length(piece: Piece, needs: u64, bytes: &[u8]) -> Result<(), Problem> {
    let has = bytes.len() as u64;
    if needs == has { Ok(()) } else { Err(Problem::Truncated { piece, needs, has }) }
}

/// The decoder behind the authentication, which random bytes would never reach.
#[cfg(feature = "fuzz")]
pub mod fuzz {
    use super::{codec, effective};
    use crate::footer::Contents;

    /// Decodes `text` as an index, with these counts and with those that fit it. What is accepted must
    /// read back after writing, and must not overlap once it is effective.
    pub fn index(text: &[u8], contents: &Contents, disk_blocks: u64) {
        check(text, contents, disk_blocks);
        if let Some(contents) = codec::count(text, disk_blocks) {
            assert!(check(text, &contents, disk_blocks), "the counts that fit are refused");
        }
    }

    fn check(text: &[u8], contents: &Contents, disk_blocks: u64) -> bool {
        let Ok((entries, _)) = codec::decode(text, contents, disk_blocks) else { return false };
        let again = codec::decode(&codec::encode(&entries), contents, disk_blocks);
        assert_eq!(again.ok().map(|(entries, _)| entries).as_ref(), Some(&entries));
        let covered = effective::effective(&entries);
        assert!(covered.windows(2).all(|pair| pair[0].extent.end() <= pair[1].extent.first));
        true
    }
}

#[cfg(test)]
mod tests;
