//! The plain text of the index: entries to bytes and back.

use lifeboat_model::{BLOCK_BYTES, Digest, Extent, FRAME_BLOCKS};

use super::{Content, Entry, Frame};
use crate::cipher::{FLAG_COMPRESSED, FLAG_ZEROES};
use crate::error::{Problem, Result};
use crate::field::{push_varint, take_varint, unzigzag, zigzag};
use crate::footer::Contents;
use crate::header::FRAMES_BEGIN;
use crate::key::TAG_BYTES;

/// Flags, first block, blocks, stored bytes, digest at their longest.
pub(super) const FRAME_ENTRY_BYTES_MAX: usize = 1 + 10 + 1 + 3 + 32;
/// The same at their shortest.
const FRAME_ENTRY_BYTES_MIN: usize = 1 + 1 + 1 + 1 + 32;
/// Flags, first block, blocks at their longest.
pub(super) const ZERO_ENTRY_BYTES_MAX: usize = 1 + 10 + 10;
/// The same at their shortest.
const ZERO_ENTRY_BYTES_MIN: usize = 3;

/// The entries as they stand in the file before encryption.
pub(crate) fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.len() * (FRAME_ENTRY_BYTES_MIN + 4) + TAG_BYTES);
    let mut end = 0u64;
    for Entry { extent, content } in entries {
        let flags = match content {
            Content::Zeroes => FLAG_ZEROES,
            Content::Frame(frame) if frame.compressed => FLAG_COMPRESSED,
            Content::Frame(_) => 0,
        };
        out.push(flags);
        // Blocks of a disk are below 2^52, so the difference fits.
        push_varint(&mut out, zigzag(extent.first.wrapping_sub(end).cast_signed()));
        push_varint(&mut out, extent.blocks);
        if let Content::Frame(frame) = content {
            push_varint(&mut out, u64::from(frame.stored_bytes));
            out.extend_from_slice(&frame.digest.0);
        }
        end = extent.end();
    }
    out
}

/// The entries, and for each frame the place of its entry. `contents` says what must come out.
pub(crate) fn decode(
    text: &[u8],
    contents: &Contents,
    disk_blocks: u64,
) -> Result<(Vec<Entry>, Vec<u32>), Problem> {
    let (frames, zero_extents) = (contents.frames as usize, contents.zero_extents as usize);
    if frames * FRAME_ENTRY_BYTES_MIN + zero_extents * ZERO_ENTRY_BYTES_MIN > text.len() {
        return Err(Problem::Malformed("the index is too short for its entries"));
    }
    let decoder = Decoder::run(text, disk_blocks, frames + zero_extents)?;
    let found = Contents { index_bytes: contents.index_bytes, ..decoder.found };
    if !decoder.rest.is_empty() || found != *contents {
        return Err(Problem::Malformed("the index holds other entries than the footer counts"));
    }
    Ok((decoder.entries, decoder.frames))
}

/// The counts with which `text` would be accepted, if there are any.
#[cfg(feature = "fuzz")]
pub(super) fn count(text: &[u8], disk_blocks: u64) -> Option<Contents> {
    let decoder = Decoder::run(text, disk_blocks, text.len() / ZERO_ENTRY_BYTES_MIN).ok()?;
    decoder.rest.is_empty().then_some(decoder.found)
}

struct Decoder<'a> {
    rest: &'a [u8],
    disk_blocks: u64,
    /// The end of the extent before.
    end: u64,
    entries: Vec<Entry>,
    frames: Vec<u32>,
    /// What was counted; `index_offset` is where the next frame begins.
    found: Contents,
}

impl<'a> Decoder<'a> {
    /// Decodes up to `entries_max` entries, so that what follows them cannot make it grow.
    fn run(text: &'a [u8], disk_blocks: u64, entries_max: usize) -> Result<Self, Problem> {
        let mut decoder = Self {
            rest: text,
            disk_blocks,
            end: 0,
            entries: Vec::with_capacity(entries_max),
            frames: Vec::new(),
            found: Contents { index_offset: FRAMES_BEGIN, ..Contents::default() },
        };
        while !decoder.rest.is_empty() && decoder.entries.len() < entries_max {
            decoder.entry()?;
        }
        Ok(decoder)
    }

    fn entry(&mut self) -> Result<(), Problem> {
        let flags = self.byte()?;
        let extent = self.extent()?;
        let content = match flags {
            FLAG_ZEROES => {
                self.found.zero_extents += 1;
                let sum = self.found.zero_blocks.checked_add(extent.blocks);
                self.found.zero_blocks = sum.ok_or(Problem::Malformed("too many zero blocks"))?;
                Content::Zeroes
            }
            0 | FLAG_COMPRESSED => Content::Frame(self.frame(extent, flags == FLAG_COMPRESSED)?),
            _ => return Err(Problem::Malformed("an entry has unknown flags")),
        };
        self.entries.push(Entry { extent, content });
        Ok(())
    }

    fn extent(&mut self) -> Result<Extent, Problem> {
        let step = unzigzag(self.varint()?);
        let blocks = self.varint()?;
        let first = self.end.checked_add_signed(step);
        let extent = first.and_then(|first| Extent::new(first, blocks));
        match extent {
            Some(extent) if extent.end() <= self.disk_blocks => {
                self.end = extent.end();
                Ok(extent)
            }
            _ => Err(Problem::Malformed("an entry is empty or reaches beyond the disk")),
        }
    }

    fn frame(&mut self, extent: Extent, compressed: bool) -> Result<Frame, Problem> {
        if extent.blocks > FRAME_BLOCKS {
            return Err(Problem::Malformed("a frame has at most 64 blocks"));
        }
        let stored_bytes = u32::try_from(self.varint()?).unwrap_or(u32::MAX);
        let raw_bytes = extent.blocks * BLOCK_BYTES as u64 + TAG_BYTES as u64;
        let fits = if compressed {
            (stored_bytes as usize) > TAG_BYTES && u64::from(stored_bytes) < raw_bytes
        } else {
            u64::from(stored_bytes) == raw_bytes
        };
        if !fits {
            return Err(Problem::Malformed("a frame's length does not fit its blocks"));
        }
        let Some((digest, rest)) = self.rest.split_first_chunk::<32>() else { return Err(CUT_SHORT) };
        self.rest = rest;
        let frame = Frame {
            number: self.found.frames,
            offset: self.found.index_offset,
            stored_bytes,
            compressed,
            digest: Digest(*digest),
        };
        let place = u32::try_from(self.entries.len()).map_err(|_| Problem::Malformed("too many entries"))?;
        self.frames.push(place);
        self.found.frames += 1;
        self.found.data_blocks += extent.blocks;
        self.found.index_offset += u64::from(stored_bytes);
        Ok(frame)
    }

    fn byte(&mut self) -> Result<u8, Problem> {
        let (&byte, rest) = self.rest.split_first().ok_or(CUT_SHORT)?;
        self.rest = rest;
        Ok(byte)
    }

    fn varint(&mut self) -> Result<u64, Problem> {
        take_varint(&mut self.rest).ok_or(CUT_SHORT)
    }
}

const CUT_SHORT: Problem = Problem::Malformed("an entry is cut short");

#[cfg(test)]
mod tests;
