//! A set of blocks as a bitmap.

use crate::Extent;

/// A set of blocks of a disk of fixed size: one bit a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSet {
    words: Vec<u64>,
    blocks: u64,
}

impl BlockSet {
    /// The empty set for a disk of `blocks` blocks.
    ///
    /// # Panics
    /// When the disk is larger than this machine can address.
    #[must_use]
    pub fn new(blocks: u64) -> Self {
        let words = usize::try_from(blocks.div_ceil(64)).expect("a disk's bitmap fits in memory");
        Self { words: vec![0; words], blocks }
    }

    /// Blocks of the disk, not of the set.
    #[must_use]
    pub fn disk_blocks(&self) -> u64 {
        self.blocks
    }

    /// How many blocks are in the set.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether no block is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Whether `block` is in the set; a block beyond the disk is not.
    #[must_use]
    pub fn contains(&self, block: u64) -> bool {
        block < self.blocks && self.words[word_of(block)] & bit_of(block) != 0
    }

    /// Adds the blocks of `extent` that the disk has.
    pub fn insert(&mut self, extent: Extent) {
        self.each_word(extent, |word, mask| *word |= mask);
    }

    /// Removes the blocks of `extent`.
    pub fn remove(&mut self, extent: Extent) {
        self.each_word(extent, |word, mask| *word &= !mask);
    }

    /// Adds all blocks of `other` that this disk has.
    pub fn union_with(&mut self, other: &Self) {
        for extent in other.extents() {
            self.insert(extent);
        }
    }

    /// Adds the blocks of one word: bit `i` of `bits` is block `64 * index + i`.
    pub fn insert_word(&mut self, index: usize, bits: u64) {
        let kept = self.blocks.saturating_sub(index as u64 * 64);
        let mask = if kept >= 64 { u64::MAX } else { (1 << kept) - 1 };
        if let Some(word) = self.words.get_mut(index) {
            *word |= bits & mask;
        }
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// The set as extents, in order, each as long as it can be.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        let mut next = 0;
        std::iter::from_fn(move || {
            let first = self.seek(next, true)?;
            let end = self.seek(first, false).unwrap_or(self.blocks);
            next = end;
            Extent::new(first, end - first)
        })
    }

    /// The first block from `from` on that is in the set (`wanted`) or is not.
    fn seek(&self, from: u64, wanted: bool) -> Option<u64> {
        if from >= self.blocks {
            return None;
        }
        let flip = if wanted { 0 } else { u64::MAX };
        let mut index = word_of(from);
        let mut word = (self.words[index] ^ flip) & (u64::MAX << (from % 64));
        while word == 0 {
            index += 1;
            word = *self.words.get(index)? ^ flip;
        }
        let block = index as u64 * 64 + u64::from(word.trailing_zeros());
        (block < self.blocks).then_some(block)
    }

    fn each_word(&mut self, extent: Extent, mut apply: impl FnMut(&mut u64, u64)) {
        let end = extent.end().min(self.blocks);
        let mut block = extent.first;
        while block < end {
            let count = (64 - block % 64).min(end - block);
            let ones = if count == 64 { u64::MAX } else { (1 << count) - 1 };
            apply(&mut self.words[word_of(block)], ones << (block % 64));
            block += count;
        }
    }
}

#[allow(clippy::cast_possible_truncation, reason = "BlockSet::new checked that the index fits")]
fn word_of(block: u64) -> usize {
    (block / 64) as usize
}

fn bit_of(block: u64) -> u64 {
    1 << (block % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set_of_numbers(
            blocks in 1u64..400,
            steps in prop::collection::vec((any::<bool>(), 0u64..420, 1u64..150), 0..20),
        ) {
            let mut set = BlockSet::new(blocks);
            let mut model = BTreeSet::new();
            for (add, first, len) in steps {
                let extent = Extent { first, blocks: len };
                if add {
                    set.insert(extent);
                    model.extend((first..first + len).filter(|block| *block < blocks));
                } else {
                    set.remove(extent);
                    model.retain(|block| !(first..first + len).contains(block));
                }
            }
            prop_assert_eq!(set.len(), model.len() as u64);
            prop_assert_eq!(set.is_empty(), model.is_empty());
            let listed: Vec<u64> = set.extents().flat_map(|e| e.first..e.end()).collect();
            prop_assert_eq!(&listed, &model.iter().copied().collect::<Vec<_>>());
            let extents: Vec<_> = set.extents().collect();
            for pair in extents.windows(2) {
                prop_assert!(pair[0].end() < pair[1].first, "extents touch: {:?}", pair);
            }
            prop_assert!((0..blocks + 70).all(|b| set.contains(b) == model.contains(&b)));
        }
    }

    #[test]
    fn a_word_beyond_the_end_is_cut() {
        let mut set = BlockSet::new(70);
        set.insert_word(1, u64::MAX);
        set.insert_word(9, u64::MAX);
        assert_eq!(set.len(), 6);
    }
}
