//! Writes that are with the device at T, among them those whose completion was not reported.
//!
//! A point rests on one report: that the completion of a write sets its block's bit before the
//! application hears of it. Kernels can withhold that report: since 6.2 a program that is already
//! running is skipped, and hardened ones run no program at all in the context of a process that
//! they protect, so that an interrupt that arrives there is not seen. A write missed in that way
//! would be missing from every point until its block is written again.
//!
//! So the tracker also keeps, for every block, whether a write is with the device: *open*. At T
//! such a write is in flight, and any part of it may be in the image, or it was not reported as
//! complete, and must be. Nobody can tell which, but both may be read: after the switch, and
//! checked, together with what the take has found. Then they are of the first sort of
//! [`crate::optimistic`].
//!
//! # Two looks
//!
//! What is open is looked up twice, before the switch and right after it. The look after it
//! finds all that was open at T, but for blocks that a write was sent to in the new epoch, which
//! cannot be told from those that had nothing open before, and for blocks whose last write ended
//! in between. The look before the switch has those too, and the check after the read finds that
//! they were written.
//!
//! # What is not found
//!
//! Between the two looks lie a few microseconds. A write that is sent in them, completes in them
//! without a report, and whose block is written once more in them is missing from this point; the
//! report about the next write covers it. Nothing is known of discards, of single writes of more
//! than 16 MiB, and of anything on kernels that cannot keep the bitmap.
//!
//! # When many are open
//!
//! Some hundred blocks are as quickly read as waited for. When there are more (long writes at a
//! great depth), those that are in flight get a moment to complete after the others were read,
//! and the blocks that are still open then are read. What that saves in reads it loses in the
//! second look: a block that had a write without a report and is written again in that moment is
//! missed by this point, as above.

use std::collections::HashMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lifeboat_model::{DiskNumber, Extent};

use crate::capture::{Extents, in_frames};
use crate::optimistic::{Moment, Run};
use crate::{Capture, CaptureError};

/// So many open blocks are read without waiting for their writes.
const AT_ONCE_BLOCKS_MAX: usize = 256;

/// So long may more than that take to become fewer.
const PATIENCE: Duration = Duration::from_millis(20);

const LOOK_AGAIN: Duration = Duration::from_micros(200);

/// No write is in flight for so long: the kernel's own limit is half a minute.
const LOST_AFTER: Duration = Duration::from_mins(2);

type Block = (DiskNumber, u64);

/// The blocks that are open, as the two looks of an attempt have found them.
pub(crate) struct OpenBlocks {
    found: Vec<Block>,
    /// There are too many to be read at once.
    many: bool,
    /// The blocks of the last look after a switch, and since when the same write is open.
    since: HashMap<Block, Instant>,
    /// Switches since that look.
    switches: u32,
}

impl OpenBlocks {
    pub fn new() -> Self {
        let capacity = 2 * AT_ONCE_BLOCKS_MAX;
        Self {
            found: Vec::with_capacity(capacity),
            many: false,
            since: HashMap::with_capacity(capacity),
            switches: 0,
        }
    }

    fn begin(&mut self) {
        self.found.clear();
        self.many = false;
        self.switches += 1;
    }

    fn add(&mut self, disk: DiskNumber, extent: Extent) {
        let fits = self.found.len() as u64 + extent.blocks <= 2 * AT_ONCE_BLOCKS_MAX as u64;
        self.many |= !fits;
        if fits {
            self.found.extend((extent.first..extent.end()).map(|block| (disk, block)));
        }
    }

    /// What both looks have found, each block once; nothing when that is too much.
    fn settle(&mut self) {
        self.found.sort_unstable();
        self.found.dedup();
        self.many |= self.found.len() > AT_ONCE_BLOCKS_MAX;
        if self.many {
            self.found.clear();
        }
    }

    /// Adds the blocks to be read at once that are not in `taken`, which is in order.
    pub fn besides(&self, taken: &[(DiskNumber, Extent)], wanted: &mut Extents) {
        let is_taken = |(disk, block): &Block| {
            let after = taken.partition_point(|(other, extent)| (*other, extent.first) <= (*disk, *block));
            after.checked_sub(1).is_some_and(|at| taken[at].0 == *disk && taken[at].1.end() > *block)
        };
        let besides = self.found.iter().filter(|block| !is_taken(block));
        wanted.extend(besides.map(|(disk, block)| (*disk, Extent { first: *block, blocks: 1 })));
    }

    /// Remembers the blocks that are open now, and forgets the others. A block that was written
    /// in the epoch that has ended may have had one write after the other; what was written in
    /// epochs before that is not known any more.
    fn note(&mut self, open: &[Block], written: impl Fn(Block) -> bool, now: Instant) {
        let missed = std::mem::take(&mut self.switches) > 1;
        self.since.retain(|block, _| open.binary_search(block).is_ok());
        for block in open {
            let since = self.since.entry(*block).or_insert(now);
            if missed || written(*block) {
                *since = now;
            }
        }
    }

    /// The blocks with a write that has been open for too long; they are forgotten here.
    fn overdue(&mut self, now: Instant) -> Vec<Block> {
        let overdue = self.since.extract_if(|_, since| now.duration_since(*since) >= LOST_AFTER);
        overdue.map(|(block, _)| block).collect()
    }
}

impl Capture {
    /// The look before the switch.
    pub(crate) fn find_open(&mut self) {
        let Self { open, disks, .. } = self;
        open.begin();
        for (number, disk) in disks {
            disk.tracker.open_now(|extent| open.add(*number, extent));
        }
    }

    /// The look after it.
    pub(crate) fn find_open_before(&mut self, moment: Moment) {
        let Self { open, disks, .. } = self;
        let before = open.found.len();
        for (number, disk) in disks.iter_mut() {
            disk.tracker.open_before(moment.side, |extent| open.add(*number, extent));
        }
        if !open.many {
            let found = std::mem::take(&mut open.found);
            let written = |(disk, block)| {
                let extent = Extent { first: block, blocks: 1 };
                Self::issued(disks, moment.side.other(), disk, extent)
            };
            open.note(&found[before..], written, moment.at);
            open.found = found;
        }
        open.settle();
    }

    /// The last step of an attempt: the open blocks that were too many before. Whether the attempt
    /// is still valid.
    pub(crate) fn read_open(&mut self, run: &mut Run, moment: Moment) -> Result<bool, CaptureError> {
        if self.open.many && !self.read_many_open(run, moment)? {
            return Ok(false);
        }
        for (disk, block) in self.open.overdue(Instant::now()) {
            tracing::debug!(%disk, block, "no completion was reported for a write; it is in the point");
            if let Some(tracker) = self.tracker(disk) {
                tracker.forget_open(Extent { first: block, blocks: 1 });
            }
        }
        Ok(true)
    }

    fn read_many_open(&mut self, run: &mut Run, moment: Moment) -> Result<bool, CaptureError> {
        let patience = Instant::now() + PATIENCE;
        let mut open = self.open_before(moment);
        while blocks_of(&open) > AT_ONCE_BLOCKS_MAX as u64 && Instant::now() < patience {
            sleep(LOOK_AGAIN);
            open = self.open_before(moment);
        }
        if blocks_of(&open) > self.held.room() {
            run.too_many += 1;
            return Ok(false);
        }
        let blocks: Vec<Block> = open
            .iter()
            .flat_map(|(disk, extent)| (extent.first..extent.end()).map(|block| (*disk, block)))
            .collect();
        let disks = &self.disks;
        let written = |(disk, block)| {
            Self::issued(disks, moment.side.other(), disk, Extent { first: block, blocks: 1 })
        };
        self.open.note(&blocks, written, moment.at);
        let order: Extents = in_frames(&open).collect();
        self.take_open(&order);
        Ok(self.read_held(run, &order, Some(moment.side))? == 0 || self.options.unchecked)
    }

    fn open_before(&mut self, moment: Moment) -> Extents {
        let mut open = Extents::new();
        for (number, disk) in &mut self.disks {
            disk.tracker.open_before(moment.side, |extent| open.push((*number, extent)));
        }
        open
    }
}

fn blocks_of(extents: &[(DiskNumber, Extent)]) -> u64 {
    extents.iter().map(|(_, extent)| extent.blocks).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;

    const DISK: DiskNumber = DiskNumber(1);

    fn extent(first: u64, blocks: u64) -> (DiskNumber, Extent) {
        (DISK, Extent::new(first, blocks).unwrap())
    }

    #[test]
    fn a_block_is_overdue_when_one_write_was_open_all_the_time() {
        let begin = Instant::now();
        let (half, whole) = (begin + LOST_AFTER / 2, begin + LOST_AFTER);
        let look = |open: &mut OpenBlocks, blocks: &[u64], written: u64, now| {
            open.begin();
            let blocks: Vec<_> = blocks.iter().map(|block| (DISK, *block)).collect();
            open.note(&blocks, |block| block == (DISK, written), now);
        };
        let mut open = OpenBlocks::new();
        look(&mut open, &[5, 6, 7], 0, begin);
        assert_eq!(open.overdue(half), []);
        // Block 5 completes, block 7 is written anew; both are open again later.
        look(&mut open, &[6, 7], 7, half);
        look(&mut open, &[5, 6, 7], 0, whole);
        assert_eq!(open.overdue(whole), [(DISK, 6)]);
        assert_eq!(open.overdue(whole), []);
        // After a switch without a look nobody knows whether block 7 was written.
        open.begin();
        look(&mut open, &[7], 0, whole);
        assert_eq!(open.overdue(half + LOST_AFTER), []);
    }

    #[test]
    fn both_looks_count_and_what_was_taken_is_not_read_twice() {
        let mut open = OpenBlocks::new();
        open.begin();
        for (disk, extent) in [extent(5, 3), extent(90, 1), extent(6, 4)] {
            open.add(disk, extent);
        }
        open.settle();
        let taken = [(DiskNumber(0), Extent::new(0, 100).unwrap()), extent(2, 4), extent(8, 1)];
        let mut wanted = Vec::new();
        open.besides(&taken, &mut wanted);
        assert_eq!(wanted, [extent(6, 1), extent(7, 1), extent(9, 1), extent(90, 1)]);
        assert!(!open.many);
    }

    #[test]
    fn too_many_are_left_for_later() {
        let mut open = OpenBlocks::new();
        for blocks in [AT_ONCE_BLOCKS_MAX as u64 + 1, 1 << 40] {
            open.begin();
            open.add(DISK, extent(5, blocks).1);
            open.settle();
            let mut wanted = Vec::new();
            open.besides(&[], &mut wanted);
            assert!(open.many && wanted.is_empty());
        }
    }
}
