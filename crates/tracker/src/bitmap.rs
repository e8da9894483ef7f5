//! The operations on bitmaps whose order carries the promise; see the crate's essay.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use lifeboat_model::Extent;

use crate::layout::{Layout, REGION_WORDS};

/// A view of one bitmap of a disk.
#[derive(Clone, Copy)]
pub(crate) struct Bitmap<'a> {
    words: &'a [AtomicU64],
    layout: Layout,
}

impl<'a> Bitmap<'a> {
    /// `words` must be at least as long as the layout says.
    pub(crate) fn new(words: &'a [AtomicU64], layout: Layout) -> Self {
        Self { words: &words[..layout.words()], layout }
    }

    /// Sets the blocks of an extent, then the summary.
    pub(crate) fn set(self, extent: Extent) {
        for (word, bits) in self.layout.words_of(extent) {
            self.words[word].fetch_or(bits, SeqCst);
        }
        for region in self.layout.regions_of(extent) {
            self.set_summary(region);
        }
    }

    /// Marks every block of the disk.
    pub(crate) fn set_all(self) {
        for base in [self.layout.whole_base(), self.layout.summary_base()] {
            for word in 0..self.layout.region_words() {
                self.words[base + word].fetch_or(self.layout.valid_regions(word), SeqCst);
            }
        }
    }

    /// Clears the blocks of an extent, then the summaries of regions that are empty now.
    ///
    /// Only for a bitmap that nobody else sets bits in.
    pub(crate) fn clear(self, extent: Extent) {
        self.clear_blocks(extent);
        for region in self.layout.regions_of(extent) {
            if self.region(region).iter().all(|word| word.load(SeqCst) == 0) {
                let (word, bit) = place(self.layout.summary_base(), region);
                self.words[word].fetch_and(!bit, SeqCst);
            }
        }
    }

    /// Clears everything that the summary knows of. A writer that is in the midst of marking
    /// may leave its bits behind.
    pub(crate) fn clear_all(self) {
        for word in 0..self.layout.region_words() {
            let marked = self.words[self.layout.summary_base() + word].swap(0, SeqCst);
            if marked == 0 {
                continue;
            }
            self.words[self.layout.whole_base() + word].fetch_and(!marked, SeqCst);
            for region in regions_in(word, marked & self.layout.valid_regions(word)) {
                for word in self.region(region) {
                    word.store(0, SeqCst);
                }
            }
        }
    }

    /// Moves what is set here into `taken` and reports it by words: index, blocks in it.
    /// Returns the number of blocks moved.
    pub(crate) fn take(self, taken: Bitmap<'_>, report: &mut impl FnMut(usize, u64)) -> u64 {
        let summary_base = self.layout.summary_base();
        let mut moved = 0;
        for word in 0..self.layout.region_words() {
            let marked = self.words[summary_base + word].load(SeqCst);
            if marked == 0 {
                continue;
            }
            // From here on a crash leaves the mark in `taken`; `look_again` brings it back.
            taken.words[summary_base + word].fetch_or(marked, SeqCst);
            self.words[summary_base + word].fetch_and(!marked, SeqCst);
            for region in regions_in(word, marked & self.layout.valid_regions(word)) {
                moved += self.take_region(taken, region, report);
            }
        }
        moved
    }

    /// Reports only when the region's bits are cleared, so that a block may be read as soon as
    /// it is reported.
    fn take_region(self, taken: Bitmap<'_>, region: usize, report: &mut impl FnMut(usize, u64)) -> u64 {
        let (whole_word, whole_bit) = place(self.layout.whole_base(), region);
        let whole = self.words[whole_word].load(SeqCst) & whole_bit != 0;
        let first = region * REGION_WORDS;
        let mut moved = [0; REGION_WORDS];
        for (word, moved) in (first..).zip(&mut moved) {
            let seen = self.words[word].load(SeqCst);
            *moved = self.layout.valid_bits(word) & if whole { u64::MAX } else { seen };
            if *moved != 0 {
                taken.words[word].fetch_or(*moved, SeqCst);
            }
            if seen != 0 {
                // Only what was seen: a bit that was set meanwhile is for the next take.
                self.words[word].fetch_and(!seen, SeqCst);
            }
        }
        if whole {
            self.words[whole_word].fetch_and(!whole_bit, SeqCst);
        }
        for (word, bits) in (first..).zip(moved).filter(|(_, bits)| *bits != 0) {
            report(word, bits);
        }
        moved.iter().map(|bits| u64::from(bits.count_ones())).sum()
    }

    /// Sets the summary of every region in which `taken` has something: a take that was cut
    /// short had cleared it and not yet looked at all blocks.
    pub(crate) fn look_again(self, taken: Bitmap<'_>) {
        let summary_base = self.layout.summary_base();
        for word in summary_base..summary_base + self.layout.region_words() {
            let marked = taken.words[word].load(SeqCst);
            if marked != 0 {
                self.words[word].fetch_or(marked, SeqCst);
            }
        }
    }

    /// Reports what is set by words: index, blocks in it.
    pub(crate) fn visit(self, report: &mut impl FnMut(usize, u64)) {
        for word in 0..self.layout.region_words() {
            let marked = self.words[self.layout.summary_base() + word].load(SeqCst);
            for region in regions_in(word, marked & self.layout.valid_regions(word)) {
                let whole = self.is_whole(region);
                let first = region * REGION_WORDS;
                for (offset, word) in self.region(region).iter().enumerate() {
                    let seen = if whole { u64::MAX } else { word.load(SeqCst) };
                    let bits = seen & self.layout.valid_bits(first + offset);
                    if bits != 0 {
                        report(first + offset, bits);
                    }
                }
            }
        }
    }

    /// Of `open`: reports what is set here and not in `issued`, by words; all of it without
    /// `issued`. The programs set blocks, then the summary, and clear blocks alone; the summary is
    /// tidied here, in the order of a take: cleared, then looked, then set again where something
    /// is left.
    pub(crate) fn visit_open(self, issued: Option<Bitmap<'_>>, report: &mut impl FnMut(usize, u64)) {
        let summary_base = self.layout.summary_base();
        for word in 0..self.layout.region_words() {
            let marked = self.words[summary_base + word].load(SeqCst);
            if marked == 0 {
                continue;
            }
            self.words[summary_base + word].fetch_and(!marked, SeqCst);
            for region in regions_in(word, marked & self.layout.valid_regions(word)) {
                let mut left = 0;
                for (word, open) in (region * REGION_WORDS..).zip(self.region(region)) {
                    let open = open.load(SeqCst);
                    left |= open;
                    // The program sets the bit in `issued` first.
                    let after = issued.map_or(0, |issued| issued.word_of(region, word));
                    let before = open & !after & self.layout.valid_bits(word);
                    if before != 0 {
                        report(word, before);
                    }
                }
                if left != 0 {
                    self.set_summary(region);
                }
            }
        }
    }

    /// Clears the blocks of an extent and leaves the summary.
    pub(crate) fn clear_blocks(self, extent: Extent) {
        for (word, bits) in self.layout.words_of(extent) {
            self.words[word].fetch_and(!bits, SeqCst);
        }
    }

    /// How many blocks are set.
    pub(crate) fn count(self) -> u64 {
        let mut blocks = 0;
        self.visit(&mut |_, bits| blocks += u64::from(bits.count_ones()));
        blocks
    }

    /// Whether a block of the extent is set; does not rely on the summary.
    pub(crate) fn any_in(self, extent: Extent) -> bool {
        self.layout.regions_of(extent).any(|region| self.is_whole(region))
            || self.layout.words_of(extent).any(|(word, bits)| self.words[word].load(SeqCst) & bits != 0)
    }

    /// Whether anything is set. A bit that is just being set may not count yet.
    pub(crate) fn any(self) -> bool {
        let summary_base = self.layout.summary_base();
        self.words[summary_base..].iter().any(|word| word.load(SeqCst) != 0)
    }

    /// The blocks of a word, all of them when the whole region is marked.
    fn word_of(self, region: usize, word: usize) -> u64 {
        if self.is_whole(region) { u64::MAX } else { self.words[word].load(SeqCst) }
    }

    fn set_summary(self, region: usize) {
        let (word, bit) = place(self.layout.summary_base(), region);
        self.words[word].fetch_or(bit, SeqCst);
    }

    fn is_whole(self, region: usize) -> bool {
        let (word, bit) = place(self.layout.whole_base(), region);
        self.words[word].load(SeqCst) & bit != 0
    }

    fn region(self, region: usize) -> &'a [AtomicU64] {
        &self.words[region * REGION_WORDS..(region + 1) * REGION_WORDS]
    }
}

fn place(base: usize, region: usize) -> (usize, u64) {
    (base + region / 64, 1 << (region % 64))
}

fn regions_in(word: usize, mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if bits == 0 {
            return None;
        }
        let bit = bits.trailing_zeros() as usize;
        bits &= bits - 1;
        Some(word * 64 + bit)
    })
}

#[cfg(test)]
mod tests;
