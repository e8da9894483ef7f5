//! Writes whose completion was not reported.
//!
//! A point rests on one report: that the completion of a write sets its block's bit before the
//! application hears of it. Kernels can withhold that report: since 6.2 a program that is already
//! running is skipped, and hardened ones run no program at all in the context of a process that
//! they protect, so that an interrupt that arrives there is not seen. A write missed in that way
//! would be missing from every point until its block is written again.
//!
//! So the tracker also keeps, for every block, whether a write is with the device. Before an
//! attempt counts as valid, the blocks that are open since before T are given a moment: what was
//! truly in flight at T completes, and need not be in the image. What is still open then is
//! either slow or was not reported. Both are read and checked like the blocks of the window: they
//! are of the first sort of [`crate::optimistic`], which may hold any part of what was in flight.
//!
//! A block that is written again before it is looked at is not found in this way; its next
//! report covers it, and only the point in between would be without the first write.

use std::collections::HashMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lifeboat_model::{DiskNumber, Extent};

use crate::capture::{Extents, in_frames};
use crate::optimistic::{Moment, Run};
use crate::{Capture, CaptureError};

/// So long may writes that were in flight at T take before they are read as they are.
const PATIENCE: Duration = Duration::from_millis(20);

const LOOK_AGAIN: Duration = Duration::from_micros(200);

/// No write is in flight for so long: the kernel's own limit is half a minute.
const LOST_AFTER: Duration = Duration::from_mins(2);

/// Blocks that were found open, and since when.
#[derive(Debug, Default)]
pub(crate) struct OpenBlocks(HashMap<(DiskNumber, u64), Instant>);

impl OpenBlocks {
    /// Whether all of an extent was found open by the last point.
    fn has(&self, (disk, extent): &(DiskNumber, Extent)) -> bool {
        extent.pieces(1).all(|block| self.0.contains_key(&(*disk, block.first)))
    }

    /// Remembers what is open now, forgets what no longer is, and gives what was for too long.
    fn overdue(&mut self, open: &[(DiskNumber, Extent)], now: Instant) -> Extents {
        let mut before = std::mem::take(&mut self.0);
        let mut overdue = Extents::new();
        for (disk, extent) in open {
            for block in extent.pieces(1) {
                let since = before.remove(&(*disk, block.first)).unwrap_or(now);
                if now.duration_since(since) >= LOST_AFTER {
                    overdue.push((*disk, block));
                } else {
                    self.0.insert((*disk, block.first), since);
                }
            }
        }
        overdue
    }
}

impl Capture {
    /// The last step of an attempt: reads what was sent before the switch and has not completed.
    /// Whether the attempt is still valid.
    pub(crate) fn read_open(&mut self, run: &mut Run, moment: Moment) -> Result<bool, CaptureError> {
        let patience = Instant::now() + PATIENCE;
        let mut open = self.open_before(moment);
        // Those that an earlier point has waited for in vain are not waited for again.
        while open.iter().any(|found| !self.open.has(found)) && Instant::now() < patience {
            sleep(LOOK_AGAIN);
            open = self.open_before(moment);
        }
        let blocks: u64 = open.iter().map(|(_, extent)| extent.blocks).sum();
        if blocks > self.held.room() {
            run.too_many += 1;
            return Ok(false);
        }
        let order: Extents = in_frames(&open).collect();
        self.take_open(&order);
        if self.read_held(run, &order, Some(moment.side))? > 0 && !self.options.unchecked {
            return Ok(false);
        }
        for (disk, extent) in self.open.overdue(&order, Instant::now()) {
            tracing::debug!(%disk, %extent, "no completion was reported for a write; it is in the point");
            if let Some(tracker) = self.tracker(disk) {
                tracker.forget_open(extent);
            }
        }
        Ok(true)
    }

    fn open_before(&mut self, moment: Moment) -> Extents {
        let disks = self.disks.iter_mut();
        let open = disks.flat_map(|(number, disk)| {
            disk.tracker.open_before(moment.side).into_iter().map(|extent| (*number, extent))
        });
        open.collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;

    #[test]
    fn a_block_is_overdue_when_it_was_open_all_the_time() {
        let disk = DiskNumber(1);
        let extent = |first, blocks| (disk, Extent::new(first, blocks).unwrap());
        let begin = Instant::now();
        let mut open = OpenBlocks::default();
        assert_eq!(open.overdue(&[extent(5, 2)], begin), []);
        assert!(open.has(&extent(5, 2)) && !open.has(&extent(5, 3)) && !open.has(&extent(8, 1)));
        assert_eq!(open.overdue(&[extent(6, 2)], begin + LOST_AFTER / 2), []);
        assert!(!open.has(&extent(5, 2)));
        assert_eq!(open.overdue(&[extent(5, 3)], begin + LOST_AFTER), [extent(6, 1)]);
        assert_eq!(open.overdue(&[extent(5, 3)], begin + LOST_AFTER), []);
    }
}
