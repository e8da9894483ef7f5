//! One tracked disk.

use std::sync::atomic::Ordering::SeqCst;

use lifeboat_model::Extent;

use crate::bitmap::Bitmap;
use crate::device::{DiskIdentity, DiskKey};
use crate::instance::Instance;
use crate::object::{COPIES, Variant};
use crate::set::EpochSide;

/// Slots of the statistics, in the order of the program's `enum counter`.
#[derive(Clone, Copy)]
enum Counter {
    Issues,
    Completions,
    PassThrough,
    Opaque,
    BeyondEnd,
    Failed,
    MultiRange,
    WholeRegions,
}

/// Slots that each copy of the programs has.
const COPY_SLOTS: usize = 16;

/// Where user space counts the writes whose completion was never reported.
const UNREPORTED_SLOT: usize = 49;

/// Where user space keeps the mark up to which a resync has settled what was not located.
const SETTLED_SLOT: usize = 48;

/// The bits of a disk. Dropping it ends nothing: the programs go on marking.
#[derive(Debug)]
pub struct DiskTracker {
    key: DiskKey,
    identity: DiskIdentity,
    instance: Instance,
}

/// What a take moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Blocks that were reported.
    pub blocks: u64,
    /// Extents that were reported.
    pub extents: u64,
}

/// What happened to a disk since tracking began. Each event is seen by up to three copies of
/// the programs; these are the counts of the copy that saw most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Writes that were sent to the device.
    pub issues: u64,
    /// Writes that completed, in whole or in part.
    pub completions: u64,
    /// Pass-through commands to the device that may have written; see [`ResyncWanted`].
    pub pass_through: u64,
    /// Writes whose extent is not known, such as zone resets; see [`ResyncWanted`].
    pub opaque: u64,
    /// Writes beyond the end that the disk had when tracking began; see [`ResyncWanted`].
    pub beyond_end: u64,
    /// Writes that ended with an error; they are marked as the others.
    pub failed: u64,
    /// Discards of several ranges.
    pub multi_range: u64,
    /// Writes so long that whole regions of 16 MiB were marked.
    pub whole_regions: u64,
    /// Blocks with a write whose completion the kernel never reported; they were captured all
    /// the same, see [`DiskTracker::open_before`].
    pub unreported: u64,
}

/// Something was written that no bit tells of: compare the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResyncWanted {
    /// The counts until now.
    pub stats: Stats,
    mark: u64,
}

impl DiskTracker {
    pub(crate) fn new(key: DiskKey, identity: DiskIdentity, instance: Instance) -> Self {
        let tracker = Self { key, identity, instance };
        tracker.done().look_again(tracker.taken());
        tracker
    }

    /// The disk's key.
    #[must_use]
    pub fn key(&self) -> &DiskKey {
        &self.key
    }

    /// Which disk it is.
    #[must_use]
    pub fn identity(&self) -> &DiskIdentity {
        &self.identity
    }

    /// Which programs mark its blocks.
    #[must_use]
    pub fn variant(&self) -> Variant {
        self.instance.variant
    }

    /// Takes what was written since it was last taken, reporting it in order, in extents.
    ///
    /// A block must be read after it is reported, not before. All stay on record as taken until they are
    /// acknowledged or put back, even if this process is killed meanwhile.
    pub fn take(&mut self, mut report: impl FnMut(Extent)) -> Taken {
        let mut taken = Taken::default();
        let mut join = Joiner::new(|extent: Extent| {
            taken.extents += 1;
            report(extent);
        });
        let blocks = self.done().take(self.taken(), &mut |word, bits| join.word(word, bits));
        join.finish();
        taken.blocks = blocks;
        taken
    }

    /// Marks blocks as written again, so that a later take finds them; they are no longer taken.
    pub fn put_back(&mut self, extent: Extent) {
        self.done().set(extent);
        self.taken().clear(extent);
    }

    /// Puts back all that was taken and never acknowledged: the first thing to do after
    /// [`crate::Attached::Continued`]. Returns how many blocks there were.
    pub fn put_back_all(&mut self) -> u64 {
        let extents = self.taken_extents();
        for extent in &extents {
            self.put_back(*extent);
        }
        extents.iter().map(|extent| extent.blocks).sum()
    }

    /// Forgets that blocks were taken: their content is durable elsewhere.
    ///
    /// A block that was taken **again** since that content was read must be left out, or a
    /// crash before its newer content is durable would lose it.
    pub fn acknowledge(&mut self, extent: Extent) {
        self.taken().clear(extent);
    }

    /// What was taken and neither acknowledged nor put back.
    #[must_use]
    pub fn taken_extents(&self) -> Vec<Extent> {
        let mut extents = Vec::new();
        let mut join = Joiner::new(|extent| extents.push(extent));
        self.taken().visit(&mut |word, bits| join.word(word, bits));
        join.finish();
        extents
    }

    /// How many blocks wait to be taken. Quick unless very many do.
    #[must_use]
    pub fn waiting_blocks(&self) -> u64 {
        self.done().count()
    }

    /// Whether any block waits to be taken.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.done().any()
    }

    /// Marks every block as written, for a full copy or when nothing is known.
    pub fn mark_all(&mut self) {
        self.done().set_all();
    }

    /// Forgets which blocks were sent in an epoch; not for the epoch that is running.
    pub fn clear_issued(&mut self, side: EpochSide) {
        self.issued(side).clear_all();
    }

    /// Whether a write to any of these blocks was sent to the device in this epoch.
    #[must_use]
    pub fn issued_since(&self, side: EpochSide, extent: Extent) -> bool {
        self.issued(side).any_in(extent)
    }

    /// Whether any write was sent in this epoch.
    #[must_use]
    pub fn issued_any(&self, side: EpochSide) -> bool {
        self.issued(side).any()
    }

    /// Reports the blocks with a write that was sent and has not completed, as far as the programs
    /// were told: it is in flight, or its completion was not reported. None with
    /// [`Variant::PlainBytes`], and without writes longer than 16 MiB and discards.
    pub fn open_now(&mut self, report: impl FnMut(Extent)) {
        self.visit_open(None, report);
    }

    /// As [`Self::open_now`], without the blocks that a write was sent to in the epoch of `side`.
    pub fn open_before(&mut self, side: EpochSide, report: impl FnMut(Extent)) {
        self.visit_open(Some(self.issued(side)), report);
    }

    fn visit_open(&self, issued: Option<Bitmap<'_>>, report: impl FnMut(Extent)) {
        let mut join = Joiner::new(report);
        self.open().visit_open(issued, &mut |word, bits| join.word(word, bits));
        join.finish();
    }

    /// Takes blocks that are open, as [`Self::take`] would have taken them had they completed.
    pub fn take_open(&mut self, extent: Extent) {
        self.taken().set(extent);
    }

    /// Gives up waiting for a completion of these blocks, which must have been read since.
    pub fn forget_open(&mut self, extent: Extent) {
        self.open().clear_blocks(extent);
        self.instance.stats[UNREPORTED_SLOT].fetch_add(extent.blocks, SeqCst);
    }

    /// What happened since tracking began.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let most = |counter| self.copies(counter).max().unwrap_or_default();
        Stats {
            issues: most(Counter::Issues),
            completions: most(Counter::Completions),
            pass_through: most(Counter::PassThrough),
            opaque: most(Counter::Opaque),
            beyond_end: most(Counter::BeyondEnd),
            failed: most(Counter::Failed),
            multi_range: most(Counter::MultiRange),
            whole_regions: most(Counter::WholeRegions),
            unreported: self.instance.stats[UNREPORTED_SLOT].load(SeqCst),
        }
    }

    /// Whether something was written that no bit tells of. Ask **before** the comparison
    /// begins, and settle with that answer when it is done: what comes meanwhile counts anew.
    #[must_use]
    pub fn resync_wanted(&self) -> Option<ResyncWanted> {
        let mark = self.resync_mark();
        let settled = self.instance.stats[SETTLED_SLOT].load(SeqCst);
        (mark != settled).then(|| ResyncWanted { stats: self.stats(), mark })
    }

    /// Records, beside the bits, that a comparison has found whatever `wanted` warned of.
    pub fn settle_resync(&mut self, wanted: &ResyncWanted) {
        self.instance.stats[SETTLED_SLOT].store(wanted.mark, SeqCst);
    }

    /// A sum that grows with every event, whichever of the copies saw it.
    fn resync_mark(&self) -> u64 {
        let counters = [Counter::PassThrough, Counter::Opaque, Counter::BeyondEnd];
        counters.into_iter().flat_map(|counter| self.copies(counter)).fold(0, u64::wrapping_add)
    }

    fn copies(&self, counter: Counter) -> impl Iterator<Item = u64> + '_ {
        (0..COPIES).map(move |copy| self.instance.stats[copy * COPY_SLOTS + counter as usize].load(SeqCst))
    }

    fn done(&self) -> Bitmap<'_> {
        Bitmap::new(&self.instance.done, self.instance.layout)
    }

    fn taken(&self) -> Bitmap<'_> {
        Bitmap::new(&self.instance.taken, self.instance.layout)
    }

    fn open(&self) -> Bitmap<'_> {
        Bitmap::new(&self.instance.open, self.instance.layout)
    }

    fn issued(&self, side: EpochSide) -> Bitmap<'_> {
        Bitmap::new(&self.instance.issued[side.slot()], self.instance.layout)
    }
}

/// Makes extents of the words that a bitmap reports in order.
struct Joiner<F> {
    open: Option<Extent>,
    report: F,
}

impl<F: FnMut(Extent)> Joiner<F> {
    fn new(report: F) -> Self {
        Self { open: None, report }
    }

    fn word(&mut self, word: usize, mut bits: u64) {
        let mut first = word as u64 * 64;
        while bits != 0 {
            let gap = bits.trailing_zeros();
            bits >>= gap;
            let run = bits.trailing_ones();
            bits = bits.checked_shr(run).unwrap_or(0);
            first += u64::from(gap);
            self.run(Extent { first, blocks: u64::from(run) });
            first += u64::from(run);
        }
    }

    fn run(&mut self, next: Extent) {
        match &mut self.open {
            Some(open) if open.end() == next.first => open.blocks += next.blocks,
            open => {
                if let Some(extent) = open.replace(next) {
                    (self.report)(extent);
                }
            }
        }
    }

    fn finish(mut self) {
        if let Some(extent) = self.open.take() {
            (self.report)(extent);
        }
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_model::BlockSet;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn words_join_to_the_same_extents_as_a_set_has(words in prop::collection::vec(
            prop_oneof![Just(0), Just(u64::MAX), any::<u64>()], 1..8)
        ) {
            let mut set = BlockSet::new(words.len() as u64 * 64);
            let mut extents = Vec::new();
            let mut join = Joiner::new(|extent| extents.push(extent));
            for (index, bits) in words.iter().enumerate() {
                set.insert_word(index, *bits);
                join.word(index, *bits);
            }
            join.finish();
            prop_assert_eq!(extents, set.extents().collect::<Vec<_>>());
        }
    }
}
