//! Comparing the live disks with a committed point, while replication goes on.
//!
//! From the point on, everything that is taken is collected. A block that differs from the point
//! and was not written since is a finding: the copy was wrong. A write may be in flight while its
//! block is read and be marked only when it completes, so blocks that differ are looked at twice,
//! each time after what completed meanwhile was taken: by a round the first time, by a point the
//! second. Only a point also takes writes whose completion the kernel did not report, and without
//! it such a write would be taken for a damaged copy.

use std::collections::VecDeque;
use std::sync::Arc;

use lifeboat_model::{BlockSet, DiskNumber, Extent, PointId};
use lifeboat_wire::agent::{Comparison, Outcome};
use lifeboat_wire::event::Severity;

use super::copy::{CopyJob, Job};
use super::disk::Member;
use super::{Action, Engine, Failure, Notice};

/// Chunks in a piece of a comparison: 256 MiB.
const PIECE_CHUNKS: u64 = 1 << 10;

/// Rounds or points to wait for: the first may have begun before the blocks were read.
const WAIT_FOR: u32 = 2;

/// Later points that are remembered, to know when the compared one is committed.
const LATER_MAX: usize = 4096;

/// A comparison under way.
#[derive(Debug)]
pub(super) struct Compare {
    request: u64,
    phase: Phase,
    disks: VecDeque<DiskNumber>,
    results: Vec<Comparison>,
}

#[derive(Debug)]
enum Phase {
    /// The next point is the one to compare with.
    Point,
    /// It is sealed and must be committed.
    Commit { point: PointId, later: VecDeque<PointId> },
    /// The first disk of the queue is compared.
    Disk { point: PointId, stage: Stage },
}

#[derive(Debug)]
enum Stage {
    /// Chunks up to here are compared.
    Scan { next_chunk: u64 },
    /// Rounds are to take what completed meanwhile; then what was collected is asked for.
    Rounds { ended: u32 },
    /// Points are to take what was written meanwhile, also where no completion was reported.
    Points { found: Found, tried: u32, taken: u32 },
    /// What was collected is asked for.
    Ask { found: Option<Found>, asked: bool },
    /// The blocks that differed and were not written are to be looked at again.
    Settle { changed: Arc<BlockSet> },
}

#[derive(Debug)]
struct Found {
    changed: u64,
    still: BlockSet,
}

impl Engine {
    pub(super) fn begin_compare(&mut self, request: u64) {
        if self.compare.is_some() {
            let message = "Another comparison is under way; wait for its result.".into();
            return self.finish_request(request, Outcome::Failed { message });
        }
        if let Some(reason) = self.no_points_because() {
            let message = format!("The disks cannot be compared now. {reason}");
            return self.finish_request(request, Outcome::Failed { message });
        }
        let (disks, results) = (VecDeque::new(), Vec::new());
        self.compare = Some(Compare { request, phase: Phase::Point, disks, results });
    }

    pub(super) fn fail_compare(&mut self, why: &str) {
        if let Some(compare) = self.compare.take() {
            self.out.push_back(Action::CollectEnd);
            let message = format!("The comparison was given up: {why}. Ask for it again later.");
            self.finish_request(compare.request, Outcome::Failed { message });
        }
    }

    pub(super) fn compare_waits_for_point(&self) -> bool {
        matches!(self.compare, Some(Compare { phase: Phase::Point, .. }))
    }

    pub(super) fn compare_wants_round(&self) -> bool {
        matches!(self.compare_stage(), Some(Stage::Rounds { .. }))
    }

    /// Whether a point is wanted before one is due. When such points fail, those that are due will do.
    pub(super) fn compare_wants_point(&self) -> bool {
        matches!(self.compare_stage(), Some(Stage::Points { tried, .. }) if *tried < WAIT_FOR)
    }

    fn compare_stage(&self) -> Option<&Stage> {
        match &self.compare {
            Some(Compare { phase: Phase::Disk { stage, .. }, .. }) => Some(stage),
            _ => None,
        }
    }

    /// A round ended; everything that had completed before it is collected.
    pub(super) fn compare_had_round(&mut self) {
        if let Some(Compare { phase: Phase::Disk { stage, .. }, .. }) = &mut self.compare
            && let Stage::Rounds { ended } = stage
        {
            *ended += 1;
            if *ended >= WAIT_FOR {
                *stage = Stage::Ask { found: None, asked: false };
            }
        }
    }

    /// A round ended with a point, or with none though one was tried.
    pub(super) fn compare_had_point(&mut self, was_taken: bool) {
        self.compare_had_round();
        if let Some(Compare { phase: Phase::Disk { stage, .. }, .. }) = &mut self.compare
            && let Stage::Points { found, tried, taken } = stage
        {
            *tried += 1;
            *taken += u32::from(was_taken);
            if *taken >= WAIT_FOR {
                let still = std::mem::replace(&mut found.still, BlockSet::new(0));
                let found = Some(Found { changed: found.changed, still });
                *stage = Stage::Ask { found, asked: false };
            }
        }
    }

    pub(super) fn compare_asks_for(&mut self) -> Option<DiskNumber> {
        let compare = self.compare.as_mut()?;
        let disk = *compare.disks.front()?;
        match &mut compare.phase {
            Phase::Disk { stage: Stage::Ask { asked: asked @ false, .. }, .. } => {
                *asked = true;
                Some(disk)
            }
            _ => None,
        }
    }

    pub(super) fn compare_point_sealed(&mut self, sealed: PointId, collected: bool) {
        let Some(compare) = &mut self.compare else { return };
        match &mut compare.phase {
            Phase::Point if collected => {
                compare.phase = Phase::Commit { point: sealed, later: VecDeque::new() };
                let inside = self.disks.iter().filter(|(_, disk)| disk.member == Member::In);
                compare.disks = inside.map(|(number, _)| *number).collect();
            }
            Phase::Commit { later, .. } => {
                later.push_back(sealed);
                if later.len() > LATER_MAX {
                    self.fail_compare("its point was not committed for thousands of points");
                }
            }
            _ => {}
        }
    }

    /// The next piece, if a comparison has one for the copier.
    pub(super) fn compare_job(&mut self) -> Option<Job> {
        let committed = self.assignment.as_ref()?.committed;
        let compare = self.compare.as_mut()?;
        if let Phase::Commit { point, later } = &compare.phase
            && committed.is_some_and(|committed| committed == *point || later.contains(&committed))
        {
            compare.phase = Phase::Disk { point: *point, stage: Stage::Scan { next_chunk: 0 } };
        }
        let disk = *compare.disks.front()?;
        let Phase::Disk { point, stage } = &compare.phase else { return None };
        let what = match stage {
            Stage::Scan { next_chunk } => {
                let (point, first_chunk) = (*point, *next_chunk);
                let chunks = PIECE_CHUNKS.min(self.chunks_of(disk).saturating_sub(first_chunk)).max(1);
                CopyJob::Compare { point, first_chunk, chunks }
            }
            Stage::Settle { changed } => CopyJob::Settle { changed: changed.clone() },
            Stage::Rounds { .. } | Stage::Points { .. } | Stage::Ask { .. } => return None,
        };
        let generation = self.disks.get(&disk)?.progress.generation;
        Some(Job { disk, generation, what })
    }

    /// A piece was scanned, and so many blocks differ so far. Gives the number of chunks in the piece.
    pub(super) fn compare_scanned(&mut self, disk: DiskNumber, candidates: u64) -> u64 {
        let total = self.chunks_of(disk);
        let Some(Compare { phase: Phase::Disk { stage, .. }, disks, .. }) = &mut self.compare else {
            return 0;
        };
        let Stage::Scan { next_chunk } = stage else { return 0 };
        if disks.front() != Some(&disk) {
            return 0;
        }
        let chunks = PIECE_CHUNKS.min(total.saturating_sub(*next_chunk));
        *next_chunk += chunks;
        if *next_chunk >= total {
            if candidates == 0 {
                self.compare_disk_done(disk, None);
            } else {
                *stage = Stage::Rounds { ended: 0 };
            }
        }
        chunks
    }

    pub(super) fn collected(&mut self, disk: DiskNumber, set: Option<BlockSet>) {
        let Some(changed) = set else {
            return self.fail_compare("the blocks written meanwhile were not collected to the end");
        };
        let Some(Compare { phase: Phase::Disk { stage, .. }, .. }) = &mut self.compare else { return };
        let Stage::Ask { found, .. } = stage else { return };
        match found.take() {
            None => *stage = Stage::Settle { changed: Arc::new(changed) },
            Some(Found { changed: before, mut still }) => {
                let all = still.len();
                changed.extents().for_each(|extent| still.remove(extent));
                let written = before + all - still.len();
                self.compare_disk_done(disk, Some(Found { changed: written, still }));
            }
        }
    }

    pub(super) fn compare_settled(&mut self, disk: DiskNumber, changed: u64, still: BlockSet) {
        let Some(Compare { phase: Phase::Disk { stage, .. }, .. }) = &mut self.compare else { return };
        let found = Found { changed, still };
        if found.still.is_empty() {
            self.compare_disk_done(disk, Some(found));
        } else {
            *stage = Stage::Points { found, tried: 0, taken: 0 };
        }
    }

    fn compare_disk_done(&mut self, disk: DiskNumber, found: Option<Found>) {
        let blocks =
            self.record.disks.get(&disk).map_or(0, |record| lifeboat_model::blocks_of_bytes(record.bytes));
        let (changed_blocks, different_blocks) =
            found.as_ref().map_or((0, 0), |found| (found.changed, found.still.len()));
        if let Some(found) = found.filter(|found| !found.still.is_empty()) {
            let places: Vec<Extent> = found.still.extents().collect();
            let shown: Vec<String> = places.iter().take(5).map(ToString::to_string).collect();
            self.tell(Notice {
                severity: Severity::Critical,
                code: "copy_differs",
                disk: Some(disk),
                message: format!(
                    "{different_blocks} blocks of the copy of disk {disk} differ from the disk though nobody wrote \
                     them since the point: {}.",
                    shown.join(", ")
                ),
                next_step: "They are sent again with the next point. Points before it may be damaged there: \
                            boot-test one before you rely on it, and look for the cause."
                    .into(),
            });
            self.out.push_back(Action::PutBack(disk, places));
        }
        let Some(compare) = &mut self.compare else { return };
        let equal_blocks = blocks.saturating_sub(changed_blocks + different_blocks);
        compare.results.push(Comparison { disk, equal_blocks, different_blocks, changed_blocks });
        compare.disks.pop_front();
        let Phase::Disk { point, stage } = &mut compare.phase else { return };
        if compare.disks.is_empty() {
            let outcome = Outcome::Compared { point: *point, disks: std::mem::take(&mut compare.results) };
            let request = compare.request;
            self.compare = None;
            self.out.push_back(Action::CollectEnd);
            self.finish_request(request, outcome);
        } else {
            *stage = Stage::Scan { next_chunk: 0 };
        }
    }

    /// The copier lost the process server. A comparison waits for one that is away, and ends otherwise.
    pub(super) fn compare_lost(&mut self, disk: DiskNumber, failure: &Failure) {
        let comparing = self.compare.as_ref().is_some_and(|compare| {
            matches!(compare.phase, Phase::Disk { .. }) && compare.disks.front() == Some(&disk)
        });
        if let Failure::Refused(why) | Failure::Conflict(why) = failure
            && comparing
        {
            self.fail_compare(&format!("the copy of disk {disk} could not be read: {why}"));
        }
    }
}
