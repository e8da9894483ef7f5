//! The disks of the server, and the passes over their changes.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_model::{BlockSet, DiskNumber, Extent, PointKind, blocks_of_bytes};
use lifeboat_tracker::{DiskTracker, EpochSide, TrackerSet};
use lifeboat_wire::agent::CaptureFigures;

use crate::disks::Disks;
use crate::frame::{Emitted, emit, frames};
use crate::heat::{Heat, carve};
use crate::held::Held;
use crate::open::OpenBlocks;

use crate::{CaptureError, ChangeSink, ReadError, ReaderKind, SinkClosed, Unreadable};

/// Bounds of a capture.
#[derive(Clone, Copy, Debug)]
pub struct CaptureOptions {
    /// Changed blocks held in memory around a point, in bytes.
    pub held_bytes_max: usize,
    /// How disks are read; by default through io_uring where it is allowed.
    pub reader_kind: Option<ReaderKind>,
    /// Takes every attempt for valid. Only to show that the tests would notice.
    #[doc(hidden)]
    pub unchecked: bool,
    /// Waits before a switch, and again between the take after it and the reads. Only to make
    /// collisions likely.
    #[doc(hidden)]
    pub window_pause: Duration,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        Self { held_bytes_max: 32 << 20, reader_kind: None, unchecked: false, window_pause: Duration::ZERO }
    }
}

/// Reads at once.
const READ_DEPTH: u32 = 64;

/// Hot blocks that may wait for the next point.
const DEFERRED_BLOCKS_MAX: usize = 1024;

/// Extents that one pass handles; more are left for the next one.
const PASS_EXTENTS_MAX: usize = 1 << 18;

/// What one pass over the changes did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Precopied {
    /// Blocks handed to the sink as data.
    pub data_blocks: u64,
    /// Blocks handed to the sink as zeroes.
    pub zero_blocks: u64,
    /// Blocks that are rewritten again and again and wait for the point.
    pub deferred_blocks: u64,
    /// Blocks that could not be read. They count as written again.
    pub unreadable: Vec<Unreadable>,
}

/// A point in time: after all that was handed to the sink, the receiver has exactly this state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapturedPoint {
    /// The point in time T.
    pub time: Timestamp,
    /// `Crash`, or `Filesystem` for a quiesced point.
    pub kind: PointKind,
    /// How it went.
    pub figures: CaptureFigures,
    /// Sizes of all disks in bytes.
    pub disks: Vec<(DiskNumber, u64)>,
    /// Changed blocks that could not be read: there the copy is older than the point.
    pub unreadable: Vec<Unreadable>,
    /// Mount points that could not be frozen and were only synced, where that was allowed.
    pub not_frozen: Vec<String>,
}

/// A place in the flow of changes, see [`Capture::mark`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a mark that is dropped keeps blocks taken until Capture::resend_unacknowledged"]
pub struct Mark(u64);

/// All disks of the server under capture.
pub struct Capture {
    pub(crate) options: CaptureOptions,
    pub(crate) trackers: TrackerSet,
    pub(crate) disks: BTreeMap<DiskNumber, Captured>,
    pub(crate) reads: Disks,
    pub(crate) held: Held,
    pub(crate) heat: Heat,
    pub(crate) open: OpenBlocks,
    pub(crate) lists: Lists,
    marks: u64,
    open_mark: Option<u64>,
}

/// One disk and what became of its blocks.
pub(crate) struct Captured {
    pub tracker: DiskTracker,
    /// Taken since the open mark, or since the last acknowledgement when none is open.
    sent: BlockSet,
    /// Taken before the open mark.
    marked: Option<BlockSet>,
    collected: Option<BlockSet>,
}

/// Extents of several disks.
pub(crate) type Extents = Vec<(DiskNumber, Extent)>;

/// What one take gave, over all disks.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub extents: Extents,
    pub blocks: u64,
    /// There was more than one pass handles; it counts as written again.
    pub more: bool,
}

/// The lists that a window needs, kept from one to the next: while file systems are frozen no
/// memory is asked for, since the kernel may want to write to them before it gives any.
#[derive(Default)]
pub(crate) struct Lists {
    pub taken: Extents,
    /// What is to be read, the hottest first.
    pub ranked: Vec<(Reverse<u32>, DiskNumber, u64, u64)>,
    pub order: Extents,
}

impl Lists {
    /// Makes room for so many extents, in memory that is there from now on.
    pub fn prepare(&mut self, extents: usize) {
        let any = (DiskNumber(0), Extent { first: 0, blocks: 1 });
        for list in [&mut self.taken, &mut self.order] {
            list.resize(extents.max(list.capacity()), any);
            list.clear();
        }
        self.ranked.resize(extents.max(self.ranked.capacity()), (Reverse(0), any.0, 0, 0));
        self.ranked.clear();
    }
}

impl Capture {
    /// A capture without disks.
    ///
    /// # Errors
    /// When neither a ring nor threads for reading can be had.
    pub fn new(trackers: TrackerSet, options: CaptureOptions) -> Result<Self, ReadError> {
        Ok(Self {
            options,
            trackers,
            disks: BTreeMap::new(),
            reads: Disks::new(READ_DEPTH, options.reader_kind)?,
            held: Held::new(options.held_bytes_max),
            heat: Heat::new(),
            open: OpenBlocks::new(),
            lists: Lists::default(),
            marks: 0,
            open_mark: None,
        })
    }

    /// The pins of the trackers, to attach and detach disks with.
    pub fn trackers(&mut self) -> &mut TrackerSet {
        &mut self.trackers
    }

    /// Captures one more disk from now on. `path` is read with `O_DIRECT`; name the whole disk.
    ///
    /// # Errors
    /// When it cannot be opened, is captured already, or its size is not the tracked one. The
    /// tracker is dropped then; tracking itself goes on, and attaching again continues it.
    pub fn add_disk(
        &mut self,
        number: DiskNumber,
        path: &Path,
        tracker: DiskTracker,
    ) -> Result<(), CaptureError> {
        if self.disks.contains_key(&number) {
            return Err(CaptureError::DiskTwice { disk: number });
        }
        let blocks = blocks_of_bytes(self.reads.open(number, path)?);
        let tracked_blocks = tracker.identity().blocks;
        if blocks != tracked_blocks {
            self.reads.close(number);
            return Err(CaptureError::TrackedSize { disk: number, blocks, tracked_blocks });
        }
        let sent = BlockSet::new(blocks);
        self.disks.insert(number, Captured { tracker, sent, marked: None, collected: None });
        Ok(())
    }

    /// Captures a disk no longer, and gives its tracker back. Its blocks that were sent and not
    /// acknowledged stay taken in the tracker.
    pub fn remove_disk(&mut self, number: DiskNumber) -> Option<DiskTracker> {
        self.reads.close(number);
        self.disks.remove(&number).map(|disk| disk.tracker)
    }

    /// The disks with their sizes in bytes, by number.
    #[must_use]
    pub fn disks(&self) -> Vec<(DiskNumber, u64)> {
        self.reads.sizes().collect()
    }

    /// The tracker of a disk, for what waits there and for what calls for a resync.
    pub fn tracker(&mut self, number: DiskNumber) -> Option<&mut DiskTracker> {
        self.disks.get_mut(&number).map(|disk| &mut disk.tracker)
    }

    /// How disks are read.
    #[must_use]
    pub fn reader_kind(&self) -> ReaderKind {
        self.reads.kind()
    }

    /// Sends what was written since the last pass. Blocks that are rewritten in pass after pass
    /// stay behind, to be sent once, with the point.
    ///
    /// # Errors
    /// When a disk or the sink fails. What was not handed over counts as written again.
    pub fn precopy(&mut self, sink: &mut dyn ChangeSink) -> Result<Precopied, CaptureError> {
        self.put_back_held();
        self.reads.check_sizes()?;
        let taken = self.take_all();
        let (wanted, deferred) = carve(&taken.extents, &self.heat.hot(DEFERRED_BLOCKS_MAX));
        self.put_back(&deferred);
        let mut unreadable = Vec::new();
        let Emitted { data_blocks, zero_blocks } = self.stream(&wanted, sink, &mut unreadable)?;
        for bad in &unreadable {
            self.put_back(&[(bad.disk, bad.extent)]);
        }
        Ok(Precopied { data_blocks, zero_blocks, deferred_blocks: deferred.len() as u64, unreadable })
    }

    /// Remembers that everything up to now was handed to the sink; `None` while an earlier mark is
    /// neither acknowledged nor resent. Call it after a point, and [`Self::acknowledge`] it when
    /// all that the sink had before the mark is durable on the process server.
    pub fn mark(&mut self) -> Option<Mark> {
        if self.open_mark.is_some() {
            return None;
        }
        for disk in self.disks.values_mut() {
            let empty = BlockSet::new(disk.sent.disk_blocks());
            disk.marked = Some(std::mem::replace(&mut disk.sent, empty));
        }
        self.marks += 1;
        self.open_mark = Some(self.marks);
        Some(Mark(self.marks))
    }

    /// Clears the *taken* bits of what was sent before the mark and not again since. A mark that
    /// [`Self::resend_unacknowledged`] dropped does nothing.
    #[allow(clippy::needless_pass_by_value, reason = "a mark is good for one acknowledgement")]
    pub fn acknowledge(&mut self, mark: Mark) {
        if self.open_mark != Some(mark.0) {
            return;
        }
        self.open_mark = None;
        for disk in self.disks.values_mut() {
            let Some(mut durable) = disk.marked.take() else { continue };
            for extent in disk.sent.extents() {
                durable.remove(extent);
            }
            for extent in durable.extents() {
                disk.tracker.acknowledge(extent);
            }
        }
    }

    /// Makes everything that was sent and not acknowledged count as written again, for an agent
    /// that lost parts on the way. Drops an open mark.
    pub fn resend_unacknowledged(&mut self) {
        self.open_mark = None;
        for disk in self.disks.values_mut() {
            if let Some(marked) = disk.marked.take() {
                disk.sent.union_with(&marked);
            }
            for extent in disk.sent.extents() {
                disk.tracker.put_back(extent);
            }
            disk.sent.clear();
        }
    }

    /// From now on collects every block of `disk` that is taken, to know what was written while
    /// the live disk is compared with a point. Starts anew when it was collecting already.
    ///
    /// Started after a point and before anything else is taken, the set covers every write that
    /// was not complete at T: those complete have been taken by the point.
    pub fn collect_changes(&mut self, disk: DiskNumber) {
        if let Some(disk) = self.disks.get_mut(&disk) {
            disk.collected = Some(BlockSet::new(disk.sent.disk_blocks()));
        }
    }

    /// What was collected: the blocks taken since [`Self::collect_changes`]. Those written and
    /// not taken yet are not among them, nor is a write still in flight that a read of the live
    /// disk may have seen. So when a block differs: run [`Self::precopy`], look here, and when it
    /// is not here read it once more before calling the copy wrong.
    #[must_use]
    pub fn collected_changes(&self, disk: DiskNumber) -> Option<&BlockSet> {
        self.disks.get(&disk)?.collected.as_ref()
    }

    /// Stops collecting and gives the set.
    pub fn stop_collecting(&mut self, disk: DiskNumber) -> Option<BlockSet> {
        self.disks.get_mut(&disk)?.collected.take()
    }

    /// Takes what was written on all disks.
    pub(crate) fn take_all(&mut self) -> Taken {
        let mut taken = Taken { extents: std::mem::take(&mut self.lists.taken), ..Taken::default() };
        taken.extents.clear();
        for (number, disk) in &mut self.disks {
            let Captured { tracker, sent, collected, .. } = disk;
            let mut beyond: Option<BlockSet> = None;
            tracker.take(|extent| {
                sent.insert(extent);
                if let Some(collected) = collected {
                    collected.insert(extent);
                }
                if taken.extents.len() < PASS_EXTENTS_MAX {
                    taken.extents.push((*number, extent));
                    taken.blocks += extent.blocks;
                } else {
                    beyond.get_or_insert_with(|| BlockSet::new(sent.disk_blocks())).insert(extent);
                }
            });
            if let Some(beyond) = beyond {
                taken.more = true;
                beyond.extents().for_each(|extent| tracker.put_back(extent));
            }
        }
        self.heat.pass(&taken.extents, taken.blocks);
        taken
    }

    /// Takes blocks that are open and not marked as written, as if they were.
    pub(crate) fn take_open(&mut self, extents: &[(DiskNumber, Extent)]) {
        for (number, extent) in extents {
            let Some(disk) = self.disks.get_mut(number) else { continue };
            disk.tracker.take_open(*extent);
            disk.sent.insert(*extent);
            if let Some(collected) = &mut disk.collected {
                collected.insert(*extent);
            }
        }
    }

    /// Makes extents count as written again.
    pub(crate) fn put_back(&mut self, extents: &[(DiskNumber, Extent)]) {
        for (number, extent) in extents {
            if let Some(disk) = self.disks.get_mut(number) {
                disk.tracker.put_back(*extent);
            }
        }
    }

    /// Makes what is held count as written again. Between runs nothing is held, unless one ended
    /// in a panic that a caller caught; then older content must not follow newer.
    pub(crate) fn put_back_held(&mut self) {
        if self.held.len() > 0 {
            let held = self.held.extents();
            self.put_back(&held);
            self.held.clear();
        }
    }

    /// Reads what was taken and hands it straight to the sink. All of it counts as written again
    /// when that fails. What cannot be read is added to `unreadable`.
    pub(crate) fn stream(
        &mut self,
        taken: &[(DiskNumber, Extent)],
        sink: &mut dyn ChangeSink,
        unreadable: &mut Vec<Unreadable>,
    ) -> Result<Emitted, CaptureError> {
        let mut total = Emitted::default();
        let mut wanted = in_frames(taken);
        let result = self.reads.read(&mut wanted, &mut |blocks| {
            let Ok(emitted) = emit(sink, blocks.disk, blocks.extent, blocks.bytes, true) else {
                return ControlFlow::Break(());
            };
            total.data_blocks += emitted.data_blocks;
            total.zero_blocks += emitted.zero_blocks;
            ControlFlow::Continue(())
        });
        match result {
            Ok(end) if !end.broken_off => {
                unreadable.extend(end.unreadable);
                Ok(total)
            }
            other => {
                self.put_back(taken);
                other?;
                Err(SinkClosed.into())
            }
        }
    }

    /// Whether a write to `extent` was sent in the epoch of `side`.
    pub(crate) fn issued(
        disks: &BTreeMap<DiskNumber, Captured>,
        side: EpochSide,
        disk: DiskNumber,
        extent: Extent,
    ) -> bool {
        disks.get(&disk).is_none_or(|disk| disk.tracker.issued_since(side, extent))
    }
}

/// The extents cut into frames.
pub(crate) fn in_frames(extents: &[(DiskNumber, Extent)]) -> impl Iterator<Item = (DiskNumber, Extent)> + '_ {
    extents.iter().flat_map(|(disk, extent)| frames(*extent).map(move |frame| (*disk, frame)))
}
