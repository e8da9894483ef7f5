//! Points in time without a pause.
//!
//! # The protocol
//!
//! An *attempt* is:
//!
//! 1. **Settle.** Take `done` and read those blocks into memory, again and again, until few
//!    remain or their number no longer falls.
//! 2. **Switch.** The tracker clears `issued` of the other epoch, makes it the current one, and
//!    fences. This moment is T, one for all disks.
//! 3. **Take and read.** Take `done` once more and read those blocks, all in parallel, the most
//!    often rewritten first. With them, the blocks of writes that are with the device around T:
//!    why, is in [`crate::open`].
//! 4. **Check.** Right after the read of a block has ended, look whether a write to it was
//!    issued in the new epoch. If so for any block, the attempt has failed. If for none, the
//!    point is valid and everything in memory goes to the sink.
//!
//! # Why the image is a state that a power cut at T could have left
//!
//! Such a state holds, of the writes in flight at T, any subset and any of them torn; of the
//! writes complete at T, all; and no write sent after T. That is the same as: for every write in
//! the image, all writes that were complete before it was sent are in the image, or later ones
//! to the same block that are in it too.
//!
//! Each block of the image of a valid attempt, with switch T, is of one of two sorts.
//!
//! *Read after the take of this attempt, and checked.* The tracker sets the issue bit before the
//! device sees the write. So had the read seen a write sent after T, the bit would have been set
//! before the read ended, and the check comes after that. What other blocks do meanwhile does
//! not matter: the check says that **this** content has nothing newer than T in it. That is why
//! each block has a window of its own, from T to the end of its own read.
//!
//! *Read before T, and not taken after T.* Its read had ended before T, so what it saw had been
//! sent before T. And it saw every write that was complete at T: completion sets `done`; the bit
//! was taken before the read began and was clear at the take after T, so no write completed in
//! between, and those that completed earlier are seen by the read.
//!
//! So nothing sent after T is in the image. And of two writes, where the first was complete
//! before the second was sent, and the second is in the image: the second was sent before T, so
//! it read the old epoch, and before that the first one's completion had set its `done` bit. The
//! switch is followed by a fence and then by the take. So the take of this attempt found the bit,
//! unless an earlier take had, and in both cases a read after that take saw the first write.
//!
//! # Attempts that fail leave their blocks behind
//!
//! The second sort asks only that a read ended before T and began after the take that cleared the
//! bit. It does not ask why the block was read. So every block that a failed attempt j has read is
//! of this sort for a later attempt k, and stays in memory as read:
//!
//! - A write sent after T_j that the read saw was sent before T_k, since the read ended before
//!   T_k. What was wrong for the image at T_j is right for the one at T_k.
//! - A write that had been sent but not completed when the read saw all, a part or nothing of it
//!   sets `done` when it completes. If that is before the take of attempt k, the block is read
//!   again. If not, it was in flight at T_k, and any part of it may be there.
//!
//! This holds for the blocks that collided too. They need not be put back to be read again: the
//! write that they collided with sets their bit by itself, and if it has not by the take of
//! attempt k, it is still in flight. A block that is read again replaces what was held of it.
//!
//! For the same reason the held blocks may be handed to the sink at any time *before* the switch,
//! as ordinary pre-copy, when memory runs short: later messages override earlier ones. After a
//! valid check they are all handed over before anything else is taken.
//!
//! # When it does not work out
//!
//! A block that is sent again before a read of it can end collides every time. Then the deadline
//! passes, everything held is put back, and [`NotTaken`] names the blocks.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_model::{DiskNumber, Extent, PointKind};
use lifeboat_tracker::EpochSide;
use lifeboat_wire::agent::CaptureFigures;

use crate::capture::{Extents, Taken, in_frames};
use crate::{
    Capture, CaptureError, CapturedPoint, ChangeSink, HotBlock, NotTaken, PointError, ReadError, Unreadable,
};

/// So few blocks are read in one go; settling for less gains nothing.
const SETTLED_BLOCKS: u64 = 8;

/// Passes of settling before one attempt at most.
const SETTLE_PASSES_MAX: u32 = 16;

/// The longest pause between two attempts, so that a busy disk is not kept busier.
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// Blocks whose collisions are counted, at most.
const COLLIDING_BLOCKS_MAX: usize = 1024;

/// One try for a point, over all its attempts.
pub(crate) struct Run {
    pub begun: Instant,
    pub deadline: Instant,
    pub attempts: u32,
    pub too_many: u32,
    pub blocks_in_window: u64,
    pub unreadable: Vec<Unreadable>,
    collisions: HashMap<(DiskNumber, u64), u32>,
}

/// The moment of a switch.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    pub time: Timestamp,
    pub at: Instant,
    pub(crate) side: EpochSide,
}

impl Run {
    pub fn new(deadline: Instant) -> Self {
        Self {
            begun: Instant::now(),
            deadline,
            attempts: 0,
            too_many: 0,
            blocks_in_window: 0,
            unreadable: Vec::new(),
            collisions: HashMap::with_capacity(COLLIDING_BLOCKS_MAX),
        }
    }

    pub fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    pub fn not_taken(&self) -> NotTaken {
        let mut hottest: Vec<_> = self
            .collisions
            .iter()
            .map(|((disk, block), collisions)| HotBlock {
                disk: *disk,
                block: *block,
                collisions: *collisions,
            })
            .collect();
        hottest.sort_unstable_by_key(|hot| (Reverse(hot.collisions), hot.disk, hot.block));
        hottest.truncate(8);
        NotTaken {
            attempts: self.attempts,
            elapsed: self.begun.elapsed(),
            blocks_in_window: self.blocks_in_window,
            too_many: self.too_many,
            hottest,
        }
    }

    /// A growing pause after a failed attempt.
    pub fn pause(&self) {
        let pause = Duration::from_micros(50).saturating_mul(self.attempts).min(PAUSE_MAX);
        std::thread::sleep(pause.min(self.deadline.saturating_duration_since(Instant::now())));
    }

    pub fn figures(&self, moment: Moment, checked: Instant, frozen: Duration) -> CaptureFigures {
        CaptureFigures {
            duration_us: micros(checked - self.begun),
            window_us: micros(checked - moment.at),
            frozen_us: micros(frozen),
            attempts: self.attempts,
            blocks_in_window: self.blocks_in_window,
        }
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

impl Capture {
    /// Takes a crash-consistent point of all disks without stopping anything. `clock` is read once
    /// a switch. Sends changes before the point too; when this returns `Ok`, the sink has had all
    /// of the point and nothing after it.
    ///
    /// # Errors
    /// [`PointError::NotTaken`] when the load left no moment for it until `deadline`. What was
    /// not handed to the sink counts as written again.
    pub fn optimistic_point(
        &mut self,
        sink: &mut dyn ChangeSink,
        deadline: Instant,
        clock: &dyn Fn() -> Timestamp,
    ) -> Result<CapturedPoint, PointError> {
        let mut run = Run::new(deadline);
        let result = self.attempts(&mut run, sink, clock);
        self.end_run(&run);
        let (moment, checked) = result?;
        Ok(CapturedPoint {
            time: moment.time,
            kind: PointKind::Crash,
            figures: run.figures(moment, checked, Duration::ZERO),
            disks: self.disks(),
            unreadable: run.unreadable,
            not_frozen: Vec::new(),
        })
    }

    fn attempts(
        &mut self,
        run: &mut Run,
        sink: &mut dyn ChangeSink,
        clock: &dyn Fn() -> Timestamp,
    ) -> Result<(Moment, Instant), PointError> {
        self.put_back_held();
        self.reads.check_sizes().map_err(CaptureError::from)?;
        loop {
            self.settle(run, sink)?;
            let moment = self.switch(run, clock);
            match self.take_after_switch(run, moment) {
                Err(taken) => self.absorb(&taken, run, sink)?,
                Ok(order) => {
                    let clean = self.read_and_check(run, moment, &order)?;
                    self.lists.order = order;
                    if clean && self.read_open(run, moment)? {
                        let checked = Instant::now();
                        self.held.emit_all(sink).map_err(CaptureError::from)?;
                        return Ok((moment, checked));
                    }
                }
            }
            if run.is_over() {
                return Err(run.not_taken().into());
            }
            run.pause();
        }
    }

    /// Puts back what a run did not hand over, on success what it could not read.
    pub(crate) fn end_run(&mut self, run: &Run) {
        self.put_back_held();
        let unreadable: Vec<_> = run.unreadable.iter().map(|bad| (bad.disk, bad.extent)).collect();
        self.put_back(&unreadable);
        self.heat.cool();
    }

    /// Step 1: reads what was written into memory until few blocks remain.
    pub(crate) fn settle(&mut self, run: &mut Run, sink: &mut dyn ChangeSink) -> Result<(), CaptureError> {
        let mut before = u64::MAX;
        for _ in 0..SETTLE_PASSES_MAX {
            let taken = self.take_all();
            let blocks = taken.blocks;
            self.absorb(&taken, run, sink)?;
            let falls = blocks < before - before / 4;
            if !taken.more && (blocks <= SETTLED_BLOCKS || !falls || run.is_over()) {
                break;
            }
            before = blocks;
        }
        if self.held.room() < self.held.blocks_max() / 2 {
            self.held.emit_all(sink)?;
            // Emitting may have taken long; what came meanwhile is few, or the attempt says so.
            let taken = self.take_all();
            self.absorb(&taken, run, sink)?;
        }
        Ok(())
    }

    /// Reads what was taken into memory, or straight to the sink if it is too much for that.
    pub(crate) fn absorb(
        &mut self,
        taken: &Taken,
        run: &mut Run,
        sink: &mut dyn ChangeSink,
    ) -> Result<(), CaptureError> {
        if taken.blocks > self.held.room() {
            // Older content must not reach the sink after newer content of the same block.
            if let Err(closed) = self.held.emit_all(sink) {
                self.put_back(&taken.extents);
                return Err(closed.into());
            }
        }
        if taken.blocks > self.held.blocks_max() / 2 {
            forget_unreadable(run, &taken.extents);
            self.stream(&taken.extents, sink, &mut run.unreadable)?;
            return Ok(());
        }
        self.read_held(run, &taken.extents, None)?;
        Ok(())
    }

    /// Step 2.
    pub(crate) fn switch(&mut self, run: &mut Run, clock: &dyn Fn() -> Timestamp) -> Moment {
        run.attempts += 1;
        self.pause_for_tests();
        self.find_open();
        // Read before the switch: all that was complete at this time is in the point.
        let time = clock();
        let trackers = self.disks.values_mut().map(|disk| &mut disk.tracker);
        let side = self.trackers.switch_epoch(trackers);
        Moment { time, at: Instant::now(), side }
    }

    fn pause_for_tests(&self) {
        if !self.options.window_pause.is_zero() {
            std::thread::sleep(self.options.window_pause);
        }
    }

    /// Step 3, the take: what is to be read, the hottest first. `Err` has what was taken when it
    /// is too much for the point; the caller owes it to [`Self::absorb`].
    pub(crate) fn take_after_switch(&mut self, run: &mut Run, moment: Moment) -> Result<Extents, Taken> {
        self.find_open_before(moment);
        let taken = self.take_all();
        let mut order = std::mem::take(&mut self.lists.order);
        order.clear();
        self.open.besides(&taken.extents, &mut order);
        run.blocks_in_window = taken.blocks + order.len() as u64;
        if taken.more || run.blocks_in_window > self.held.room() {
            run.too_many += 1;
            self.lists.order = order;
            return Err(taken);
        }
        self.take_open(&order);
        order.extend(in_frames(&taken.extents));
        self.lists.taken = taken.extents;
        self.rank(&mut order);
        Ok(order)
    }

    /// Puts the most often rewritten extents first.
    fn rank(&mut self, order: &mut Extents) {
        let Self { heat, lists, .. } = self;
        lists.ranked.clear();
        lists.ranked.extend(order.drain(..).map(|(disk, extent)| {
            (Reverse(heat.of_extent(disk, extent)), disk, extent.first, extent.blocks)
        }));
        lists.ranked.sort_unstable();
        order.extend(
            lists
                .ranked
                .iter()
                .map(|(_, disk, first, blocks)| (*disk, Extent { first: *first, blocks: *blocks })),
        );
    }

    /// Steps 3 and 4: reads and checks. Whether no block was written after the switch.
    pub(crate) fn read_and_check(
        &mut self,
        run: &mut Run,
        moment: Moment,
        order: &[(DiskNumber, Extent)],
    ) -> Result<bool, CaptureError> {
        self.pause_for_tests();
        let collided = self.read_held(run, order, Some(moment.side))?;
        Ok(collided == 0 || self.options.unchecked)
    }

    /// Reads extents into memory; with a side, checks each right after it was read and gives the
    /// number of blocks that were written in that epoch. On failure all of it is put back.
    pub(crate) fn read_held(
        &mut self,
        run: &mut Run,
        extents: &[(DiskNumber, Extent)],
        side: Option<EpochSide>,
    ) -> Result<u64, CaptureError> {
        forget_unreadable(run, extents);
        let Self { reads, held, disks, .. } = self;
        let mut collided = 0;
        let mut overflow = false;
        let result = reads.read(&mut in_frames(extents), &mut |read| {
            if let Some(side) = side
                && Self::issued(disks, side, read.disk, read.extent)
            {
                for block in read.extent.pieces(1) {
                    if Self::issued(disks, side, read.disk, block) {
                        collided += 1;
                        run.count_collision(read.disk, block.first);
                    }
                }
            }
            overflow |= !held.insert(read.disk, read.extent, read.bytes);
            if overflow { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match result {
            Ok(end) if !end.broken_off => {
                run.unreadable.extend(end.unreadable);
                Ok(collided)
            }
            other => {
                self.put_back(extents);
                other?;
                // The callers have made sure that there is room.
                Err(ReadError::Engine(io::Error::other("more blocks were read than can be held")).into())
            }
        }
    }
}

/// Blocks that are about to be read again may be readable now: takes them off the list.
fn forget_unreadable(run: &mut Run, extents: &[(DiskNumber, Extent)]) {
    for (disk, extent) in extents {
        if run.unreadable.is_empty() {
            return;
        }
        for bad in std::mem::take(&mut run.unreadable) {
            let Some(common) = bad.extent.intersection(*extent).filter(|_| bad.disk == *disk) else {
                run.unreadable.push(bad);
                continue;
            };
            let before = Extent::new(bad.extent.first, common.first - bad.extent.first);
            let after = Extent::new(common.end(), bad.extent.end() - common.end());
            let rest = before.into_iter().chain(after);
            run.unreadable.extend(rest.map(|extent| Unreadable { extent, ..bad }));
        }
    }
}

impl Run {
    fn count_collision(&mut self, disk: DiskNumber, block: u64) {
        let full = self.collisions.len() >= COLLIDING_BLOCKS_MAX;
        if !full || self.collisions.contains_key(&(disk, block)) {
            *self.collisions.entry((disk, block)).or_insert(0) += 1;
        }
    }
}
