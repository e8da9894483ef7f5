//! Where the bits of a disk are in its maps.
//!
//! A tracked bitmap is one array of 64-bit words with three sections, each starting at a
//! word: a bit for every block; a bit for every region that was written as a whole; a bit
//! for every region in which anything is set (the summary). `bpf/tracker.bpf.c` is told
//! where the sections begin and counts the same way.

use lifeboat_model::Extent;

use crate::TrackerError;

/// Changes whenever maps of an older version could no longer be understood.
pub(crate) const LAYOUT_VERSION: u64 = 2;

pub(crate) const REGION_BLOCKS: u64 = 4096;
pub(crate) const REGION_WORDS: usize = 64;

/// Words of the small maps (statistics, identity, control).
pub(crate) const SMALL_MAP_WORDS: u32 = 64;

/// The sections of a disk's bitmaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    blocks: u64,
    regions: usize,
    region_words: usize,
}

impl Layout {
    pub(crate) fn new(blocks: u64) -> Result<Self, TrackerError> {
        // 256 TiB: four gigabytes of bits in each map, and every index fits in 32 bits.
        if blocks == 0 || blocks > 1 << 36 {
            return Err(TrackerError::BadSize { blocks });
        }
        let regions = index(blocks.div_ceil(REGION_BLOCKS));
        Ok(Self { blocks, regions, region_words: regions.div_ceil(64) })
    }

    /// Words of a section that has one bit for every region.
    pub(crate) fn region_words(self) -> usize {
        self.region_words
    }

    pub(crate) fn whole_base(self) -> usize {
        self.regions * REGION_WORDS
    }

    pub(crate) fn summary_base(self) -> usize {
        self.whole_base() + self.region_words
    }

    pub(crate) fn words(self) -> usize {
        self.summary_base() + self.region_words
    }

    /// As the kernel counts the entries of a map.
    #[allow(clippy::cast_possible_truncation, reason = "Layout::new bounds the blocks, so all words fit")]
    pub(crate) fn map_entries(self) -> u32 {
        self.words() as u32
    }

    /// The bits of a word of the first section that are blocks of the disk.
    pub(crate) fn valid_bits(self, word: usize) -> u64 {
        let left = self.blocks.saturating_sub(word as u64 * 64);
        if left >= 64 { u64::MAX } else { (1 << left) - 1 }
    }

    /// The bits of a word of a region section that are regions of the disk.
    pub(crate) fn valid_regions(self, word: usize) -> u64 {
        let left = self.regions.saturating_sub(word * 64);
        if left >= 64 { u64::MAX } else { (1 << left) - 1 }
    }

    /// The words that an extent touches, each with the bits that are in it.
    pub(crate) fn words_of(self, extent: Extent) -> impl Iterator<Item = (usize, u64)> {
        let end = extent.first.saturating_add(extent.blocks).min(self.blocks);
        let mut block = extent.first;
        std::iter::from_fn(move || {
            if block >= end {
                return None;
            }
            let count = (64 - block % 64).min(end - block);
            let ones = if count == 64 { u64::MAX } else { (1 << count) - 1 };
            let item = (index(block / 64), ones << (block % 64));
            block += count;
            Some(item)
        })
    }

    /// The regions that an extent touches.
    pub(crate) fn regions_of(self, extent: Extent) -> std::ops::Range<usize> {
        let end = extent.first.saturating_add(extent.blocks).min(self.blocks);
        if extent.first >= end {
            return 0..0;
        }
        index(extent.first / REGION_BLOCKS)..index(end.div_ceil(REGION_BLOCKS))
    }
}

#[allow(clippy::cast_possible_truncation, reason = "the crate refuses to compile where usize is not 64 bits")]
pub(crate) const fn index(number: u64) -> usize {
    number as usize
}
