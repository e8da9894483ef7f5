//! The footer: where the index is, and the digest of the whole file.

use std::ops::Range;

use lifeboat_model::{BLOCK_BYTES, Digest, FRAME_BLOCKS};
use serde::{Deserialize, Serialize};

use crate::error::{HrlError, Piece, Problem, Result};
use crate::field::{bytes_at, put, u16_at, u32_at, u32_of, u64_at};
use crate::header::{FRAMES_BEGIN, HEADER_BYTES, Header};
use crate::key::TAG_BYTES;
use crate::version::Version;
use crate::{FRAMES_MAX, INDEX_BYTES_MAX, ZERO_EXTENTS_MAX};

/// Bytes of the footer, the last of every file.
pub const FOOTER_BYTES: usize = 256;

const MAGIC: [u8; 8] = *b"LBHRLEND";
const CONTENTS_AT: usize = HEADER_BYTES;
const CONTENTS_BYTES: usize = 40;
const CHECKSUM_AT: usize = 208;
const TRAILER_AT: usize = 240;

/// The footer of a file, checked against itself and against the length of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// The header, which the footer repeats.
    pub header: Header,
    /// Where the index is and what it counts.
    pub contents: Contents,
    /// Bytes of the file, footer included.
    pub file_bytes: u64,
    /// BLAKE3 of everything before the footer.
    pub digest: Digest,
}

/// Where the index is and what it counts. Known as the writer's own once the index was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Where the index begins, which is where the frames end.
    pub index_offset: u64,
    /// Bytes of the sealed index.
    pub index_bytes: u32,
    /// Frames in the file.
    pub frames: u32,
    /// Zero extents in the index.
    pub zero_extents: u32,
    /// Blocks in frames; one that is there twice counts twice.
    pub data_blocks: u64,
    /// Blocks in zero extents, counted likewise.
    pub zero_blocks: u64,
}

/// What was written, for a catalog or a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSummary {
    /// Bytes of the file.
    pub bytes: u64,
    /// BLAKE3 of everything before the footer.
    pub digest: Digest,
    /// Frames in the file.
    pub frames: u32,
    /// Zero extents in the index.
    pub zero_extents: u32,
    /// Blocks in frames.
    pub data_blocks: u64,
    /// Blocks in zero extents.
    pub zero_blocks: u64,
    /// Bytes of plain data in frames.
    pub plain_bytes: u64,
}

impl Contents {
    pub(crate) fn encode(&self) -> [u8; CONTENTS_BYTES] {
        let mut bytes = [0; CONTENTS_BYTES];
        put(&mut bytes, 0, &self.index_offset.to_le_bytes());
        put(&mut bytes, 8, &self.index_bytes.to_le_bytes());
        put(&mut bytes, 12, &self.frames.to_le_bytes());
        put(&mut bytes, 16, &self.zero_extents.to_le_bytes());
        put(&mut bytes, 24, &self.data_blocks.to_le_bytes());
        put(&mut bytes, 32, &self.zero_blocks.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, Problem> {
        if u32_at(bytes, 20) != 0 {
            return Err(Problem::Malformed("a field that must be zero is not"));
        }
        let contents = Self {
            index_offset: u64_at(bytes, 0),
            index_bytes: u32_at(bytes, 8),
            frames: u32_at(bytes, 12),
            zero_extents: u32_at(bytes, 16),
            data_blocks: u64_at(bytes, 24),
            zero_blocks: u64_at(bytes, 32),
        };
        contents.check()?;
        Ok(contents)
    }

    fn check(&self) -> Result<(), Problem> {
        let frames = u64::from(self.frames);
        if self.frames > FRAMES_MAX || self.zero_extents > ZERO_EXTENTS_MAX {
            return Err(Problem::Malformed("there are more entries than a file may have"));
        }
        if self.data_blocks < frames || self.data_blocks > frames * FRAME_BLOCKS {
            return Err(Problem::Malformed("a frame has 1 to 64 blocks"));
        }
        if self.zero_blocks < u64::from(self.zero_extents) {
            return Err(Problem::Malformed("a zero extent has at least one block"));
        }
        if (self.index_bytes as usize) < TAG_BYTES || self.index_bytes as usize > INDEX_BYTES_MAX {
            return Err(Problem::Malformed("the index is shorter or longer than an index can be"));
        }
        if self.index_offset < FRAMES_BEGIN + frames * TAG_BYTES as u64 {
            return Err(Problem::Malformed("the frames overlap the index"));
        }
        Ok(())
    }

    /// Where the file ends; `None` if nowhere.
    const fn file_bytes(&self) -> Option<u64> {
        self.index_offset.checked_add(self.index_bytes as u64 + FOOTER_BYTES as u64)
    }
}

impl Footer {
    /// The footer of a file with these contents and this digest.
    pub(crate) fn new(header: Header, contents: Contents, digest: Digest) -> Result<Self> {
        contents.check()?;
        let file_bytes = contents.file_bytes().ok_or(Problem::Full("its length exceeds 64 bits"))?;
        Ok(Self { header, contents, file_bytes, digest })
    }

    /// Reads the footer from the last bytes of a file of `file_bytes` bytes; what precedes it is
    /// ignored. One read of a tail that holds the index too is enough to open a file.
    ///
    /// # Errors
    /// When the bytes do not end with a footer, or it is not as it was written, or it speaks of a file
    /// of another length, or it is of a newer version.
    pub fn parse(tail: &[u8], file_bytes: u64) -> Result<Self> {
        let Some(bytes) = tail.last_chunk::<FOOTER_BYTES>() else {
            let (needs, has) = (FOOTER_BYTES as u64, tail.len() as u64);
            return Err(HrlError::at(file_bytes, Problem::Truncated { piece: Piece::Footer, needs, has }));
        };
        let at = file_bytes.saturating_sub(FOOTER_BYTES as u64);
        if bytes_at::<8>(bytes, 248) != MAGIC {
            return Err(HrlError::at(at, Problem::Torn));
        }
        match Version::of_number(u16_at(bytes, 244), at + 244)? {
            Version::V1 => Self::parse_v1(bytes, file_bytes).map_err(|problem| HrlError::at(at, problem)),
        }
    }

    fn parse_v1(bytes: &[u8; FOOTER_BYTES], file_bytes: u64) -> Result<Self, Problem> {
        if checksum(bytes).0 != bytes_at::<32>(bytes, CHECKSUM_AT) {
            return Err(Problem::Altered(Piece::Footer));
        }
        if u32_at(bytes, TRAILER_AT) as usize != FOOTER_BYTES || u16_at(bytes, 246) != 0 {
            return Err(Problem::Malformed("the trailer is not that of version 1"));
        }
        let header = Header::parse(&bytes[..HEADER_BYTES]).map_err(|error| error.problem)?;
        let contents = Contents::decode(&bytes[CONTENTS_AT..CONTENTS_AT + CONTENTS_BYTES])?;
        let written = u64_at(bytes, 168);
        if contents.file_bytes() != Some(written) {
            return Err(Problem::Malformed("the index does not end where the footer begins"));
        }
        if written != file_bytes {
            return Err(Problem::Truncated { piece: Piece::Footer, needs: written, has: file_bytes });
        }
        Ok(Self { header, contents, file_bytes, digest: Digest(bytes_at(bytes, 176)) })
    }

    pub(crate) fn encode(&self) -> [u8; FOOTER_BYTES] {
        let mut bytes = [0; FOOTER_BYTES];
        put(&mut bytes, 0, &self.header.encode());
        put(&mut bytes, CONTENTS_AT, &self.contents.encode());
        put(&mut bytes, 168, &self.file_bytes.to_le_bytes());
        put(&mut bytes, 176, &self.digest.0);
        put(&mut bytes, TRAILER_AT, &u32_of(FOOTER_BYTES).to_le_bytes());
        put(&mut bytes, 244, &self.header.version.number().to_le_bytes());
        put(&mut bytes, 248, &MAGIC);
        let checksum = checksum(&bytes);
        put(&mut bytes, CHECKSUM_AT, &checksum.0);
        bytes
    }

    /// Which bytes of the file are the sealed index.
    #[must_use]
    pub const fn index_range(&self) -> Range<u64> {
        let first = self.contents.index_offset;
        first..first + self.contents.index_bytes as u64
    }

    /// The same facts as the writer's.
    #[must_use]
    pub const fn summary(&self) -> FileSummary {
        let contents = &self.contents;
        FileSummary {
            bytes: self.file_bytes,
            digest: self.digest,
            frames: contents.frames,
            zero_extents: contents.zero_extents,
            data_blocks: contents.data_blocks,
            zero_blocks: contents.zero_blocks,
            plain_bytes: contents.data_blocks * BLOCK_BYTES as u64,
        }
    }
}

fn checksum(footer: &[u8; FOOTER_BYTES]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&footer[..CHECKSUM_AT]).update(&footer[TRAILER_AT..]);
    hasher.finalize().into()
}
