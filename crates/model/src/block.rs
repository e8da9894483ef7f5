//! Blocks and extents: how a disk is counted.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes of a block, the unit of tracking.
pub const BLOCK_BYTES: usize = 4096;

/// Blocks in the largest frame: what is compressed and encrypted as one.
pub const FRAME_BLOCKS: u64 = 64;

/// Bytes of plain data in the largest frame.
pub const FRAME_BYTES: usize = 64 * BLOCK_BYTES;

/// Blocks that cover `bytes`, the last one perhaps in part.
#[must_use]
pub const fn blocks_of_bytes(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES as u64)
}

/// A run of blocks of one disk. Never empty where a constructor checked it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Extent {
    /// The first block.
    pub first: u64,
    /// How many blocks.
    pub blocks: u64,
}

impl Extent {
    /// The extent of `blocks` blocks from `first`; `None` if it is empty or its end overflows.
    #[must_use]
    pub const fn new(first: u64, blocks: u64) -> Option<Self> {
        if blocks == 0 || first.checked_add(blocks).is_none() {
            return None;
        }
        Some(Self { first, blocks })
    }

    /// The block after the last one.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.first + self.blocks
    }

    /// Where it starts, in bytes.
    #[must_use]
    pub const fn offset_bytes(self) -> u64 {
        self.first * BLOCK_BYTES as u64
    }

    /// How long it is, in bytes.
    #[must_use]
    pub const fn len_bytes(self) -> u64 {
        self.blocks * BLOCK_BYTES as u64
    }

    /// What both extents cover.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        let first = self.first.max(other.first);
        let end = self.end().min(other.end());
        (first < end).then(|| Self { first, blocks: end - first })
    }

    /// Cut into pieces of at most `blocks_max` blocks, in order.
    pub fn pieces(self, blocks_max: u64) -> impl Iterator<Item = Self> {
        let end = self.end();
        let mut first = self.first;
        std::iter::from_fn(move || {
            let blocks = (end - first).min(blocks_max);
            let piece = Self::new(first, blocks)?;
            first += blocks;
            Some(piece)
        })
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocks {}..{}", self.first, self.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_extent_once_and_in_order() {
        let extent = Extent { first: 10, blocks: 150 };
        let pieces: Vec<_> = extent.pieces(FRAME_BLOCKS).collect();
        assert_eq!(pieces.len(), 3);
        assert_eq!(pieces[0], Extent { first: 10, blocks: 64 });
        assert_eq!(pieces[2], Extent { first: 138, blocks: 22 });
    }

    #[test]
    fn empty_and_overflowing_extents_are_refused() {
        assert_eq!(Extent::new(7, 0), None);
        assert_eq!(Extent::new(u64::MAX, 1), None);
    }
}
