//! What the copier does: first copies, resyncs and comparisons, one piece at a time.
//!
//! One disk after the other, in the order of their numbers: reading two disks at once would be no
//! faster through one link, and one that is done is worth more than two that are half done.

use std::sync::Arc;
use std::time::Duration;

use lifeboat_model::{BlockSet, ByteCount, DiskNumber, Epoch, Extent, PointId, blocks_of_bytes};
use lifeboat_wire::agent::{CHUNK_BLOCKS, CopyProgress, Outcome};
use lifeboat_wire::event::Severity;

use super::disk::{Link, Member};
use super::{Action, DiskProblem, Engine, Failure, Notice, RETRY_MAX};
use crate::record::{Sent, Sync};

/// How long a piece should take: what an agent that is killed has to do again.
const PIECE_MS: u64 = 5_000;

/// Blocks in the smallest, the first and the largest piece of a copy: 4, 16 and 256 MiB.
const COPY_BLOCKS: [u64; 3] = [1 << 10, 1 << 12, 1 << 16];

/// Chunks in the smallest, the first and the largest piece of a comparison: 16 and 256 MiB, 4 GiB.
/// Each has the process server wait for the vault once, so they are larger.
const RESYNC_CHUNKS: [u64; 3] = [1 << 6, 1 << 10, 1 << 14];

/// A piece of work for the copier.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// The disk.
    pub disk: DiskNumber,
    /// Tells the answer to this job from that to an earlier one.
    pub generation: u64,
    /// What to do.
    pub what: CopyJob,
}

/// What the copier is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum CopyJob {
    /// Send a range for the first time.
    Copy {
        /// The open epoch.
        epoch: Epoch,
        /// Its next part.
        part: u32,
        /// The range.
        range: Extent,
        /// Whether to send zeroes too.
        send_zeroes: bool,
    },
    /// Compare chunks with the newest copy and send the blocks that differ.
    Resync {
        /// The open epoch.
        epoch: Epoch,
        /// Its next part.
        part: u32,
        /// The first chunk.
        first_chunk: u64,
        /// How many.
        chunks: u64,
    },
    /// Compare chunks with a point, and remember the blocks that differ.
    Compare {
        /// The point.
        point: PointId,
        /// The first chunk; 0 forgets what was remembered.
        first_chunk: u64,
        /// How many.
        chunks: u64,
    },
    /// Look again at the blocks that differed and were not written since.
    Settle {
        /// What was written since.
        changed: Arc<BlockSet>,
    },
}

/// How a piece of work ended.
#[derive(Clone, Debug)]
pub enum CopyStep {
    /// [`CopyJob::Copy`] or [`CopyJob::Resync`]: the piece is durable.
    Sent {
        /// The next part of the epoch.
        next_part: u32,
        /// Bytes of disk that were sent.
        sent_bytes: u64,
        /// How long it took.
        took: Duration,
    },
    /// [`CopyJob::Compare`]: so many blocks differ so far.
    Compared {
        /// Blocks that differ.
        candidates: u64,
        /// How long it took.
        took: Duration,
    },
    /// [`CopyJob::Settle`]: what still differs.
    Settled {
        /// Blocks that were written since the point.
        changed: u64,
        /// Blocks that differ still and were not written as far as is known.
        still: BlockSet,
    },
    /// The process server is away or has another state.
    Lost(Failure),
    /// The disk cannot be read.
    Disk(DiskProblem),
    /// It was stopped.
    Stopped,
}

/// Figures of a copy or resync under way.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub generation: u64,
    pub sent_bytes: u64,
    pub bytes_per_second: u64,
    /// Blocks or chunks in the next piece; 0 for the first.
    piece: u64,
}

impl Progress {
    /// Another copy begins: answers to jobs of the one before mean nothing.
    pub fn restart(&mut self) {
        *self = Self { generation: self.generation + 1, ..Self::default() };
    }

    fn piece(&self, [least, first, most]: [u64; 3]) -> u64 {
        if self.piece == 0 { first } else { self.piece.clamp(least, most) }
    }

    fn took(&mut self, units: u64, unit_bytes: u64, took: Duration) {
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
        self.bytes_per_second = (units * unit_bytes).saturating_mul(1000) / ms;
        // At most four times as much at once: a fast beginning may be zeroes.
        let aimed = units.saturating_mul(PIECE_MS) / ms;
        self.piece = aimed.min(units * 4).max(1);
    }
}

impl Engine {
    pub(super) fn next_of_copier(&mut self, now: Duration) -> Option<Action> {
        if self.copying.is_some() || !self.may_call(now) || now < self.copier_retry.1 {
            return None;
        }
        let number = self.disks.keys().copied().find(|number| self.is_ready_to_copy(*number));
        let job = match number {
            Some(number) => self.copy_job(number)?,
            None => self.compare_job()?,
        };
        self.copying = Some(job.disk);
        if let Some(disk) = self.disks.get_mut(&job.disk) {
            disk.job = Some(job.clone());
        }
        Some(Action::Copier(job))
    }

    fn is_ready_to_copy(&self, number: DiskNumber) -> bool {
        let lacks = self.record.disks.get(&number).map(|record| &record.sync);
        let ready = self.disks.get(&number).is_some_and(|disk| {
            disk.member == Member::Out
                && disk.link == Link::Known
                && disk.opened().is_some()
                && disk.trouble.is_none()
                && !disk.unwanted
        });
        ready && matches!(lacks, Some(Sync::Copy { .. } | Sync::Resync { .. }))
    }

    fn copy_job(&self, number: DiskNumber) -> Option<Job> {
        let (disk, record) = (self.disks.get(&number)?, self.record.disks.get(&number)?);
        let Sent { epoch, parts: part } = record.sent?;
        let what = match record.sync {
            Sync::Copy { next_block, end_block, send_zeroes } => {
                let left = end_block.saturating_sub(next_block).max(1);
                let range = Extent { first: next_block, blocks: disk.progress.piece(COPY_BLOCKS).min(left) };
                CopyJob::Copy { epoch, part, range, send_zeroes }
            }
            Sync::Resync { next_chunk, .. } => {
                let chunks =
                    disk.progress.piece(RESYNC_CHUNKS).min(self.chunks_of(number).saturating_sub(next_chunk));
                CopyJob::Resync { epoch, part, first_chunk: next_chunk, chunks: chunks.max(1) }
            }
            Sync::New | Sync::Following => return None,
        };
        Some(Job { disk: number, generation: disk.progress.generation, what })
    }

    pub(super) fn chunks_of(&self, number: DiskNumber) -> u64 {
        let bytes = self.record.disks.get(&number).map_or(0, |record| record.bytes);
        blocks_of_bytes(bytes).div_ceil(CHUNK_BLOCKS)
    }

    pub(super) fn copier_ended(&mut self, number: DiskNumber, step: CopyStep, now: Duration) {
        self.copying = None;
        match step {
            CopyStep::Sent { next_part, sent_bytes, took } => {
                self.piece_sent(number, next_part, sent_bytes, took);
            }
            CopyStep::Compared { candidates, took } => {
                let chunks = self.compare_scanned(number, candidates);
                if let Some(disk) = self.disks.get_mut(&number) {
                    disk.progress.took(chunks, CHUNK_BLOCKS * 4096, took);
                }
            }
            CopyStep::Settled { changed, still } => self.compare_settled(number, changed, still),
            CopyStep::Lost(failure) => {
                if let Some(disk) = self.disks.get_mut(&number)
                    && disk.member == Member::Out
                {
                    disk.link = Link::Unknown;
                }
                self.compare_lost(number, &failure);
                // The disk is described before the next try, which tells an outage from a wait for the vault.
                let wait = Duration::from_millis(500).saturating_mul(1 << self.copier_retry.0.min(5));
                self.copier_retry = (self.copier_retry.0 + 1, now + wait.min(RETRY_MAX));
            }
            CopyStep::Disk(problem) => self.problem(number, problem),
            CopyStep::Stopped => {}
        }
    }

    fn piece_sent(&mut self, number: DiskNumber, next_part: u32, sent_bytes: u64, took: Duration) {
        let chunks_total = self.chunks_of(number);
        let (Some(disk), Some(record)) = (self.disks.get_mut(&number), self.record.disks.get_mut(&number))
        else {
            return;
        };
        let Some(job) = disk.job.take() else { return };
        self.copier_retry = (0, Duration::ZERO);
        if let Some(sent) = &mut record.sent {
            sent.parts = next_part;
        }
        self.save_needed = true;
        // What was sent is durable in any case; whether it counts as progress is another question.
        let progress = &mut disk.progress;
        if job.generation != progress.generation {
            return;
        }
        progress.sent_bytes += sent_bytes;
        let done = match (job.what, &mut record.sync) {
            (CopyJob::Copy { range, .. }, Sync::Copy { next_block, end_block, .. }) => {
                progress.took(range.blocks, 4096, took);
                *next_block = range.end();
                range.end() >= *end_block
            }
            (CopyJob::Resync { first_chunk, chunks, .. }, Sync::Resync { next_chunk, .. }) => {
                progress.took(chunks, CHUNK_BLOCKS * 4096, took);
                *next_chunk = first_chunk + chunks;
                *next_chunk >= chunks_total
            }
            _ => false,
        };
        if sent_bytes > 0 {
            self.reached();
        }
        if done {
            self.copy_done(number);
        }
    }

    fn copy_done(&mut self, number: DiskNumber) {
        let (Some(disk), Some(record)) = (self.disks.get_mut(&number), self.record.disks.get_mut(&number))
        else {
            return;
        };
        let sent = ByteCount(disk.progress.sent_bytes);
        let total = ByteCount(record.bytes);
        let before = std::mem::replace(&mut record.sync, Sync::Following);
        disk.progress.restart();
        let (code, message) = match before {
            Sync::Resync { .. } => (
                "resync_finished",
                format!(
                    "The resync of disk {number} is finished: {total} compared, {sent} ({} bytes) differed and were sent.",
                    sent.0
                ),
            ),
            _ => (
                "copy_finished",
                format!("Disk {number} is copied: {total} read, {sent} ({} bytes) sent.", sent.0),
            ),
        };
        self.tell(Notice {
            severity: Severity::Information,
            code,
            disk: Some(number),
            message,
            next_step: String::new(),
        });
        let resyncing =
            self.record.disks.values().any(|disk| matches!(disk.sync, Sync::Resync { .. }) && disk.protected);
        if !resyncing && let Some(request) = self.record.resync_request.take() {
            self.finish_request(request, Outcome::Done);
        }
    }

    /// Progress of a copy or resync, while there is one.
    pub(super) fn progress_of(&self, number: DiskNumber) -> Option<CopyProgress> {
        let (disk, record) = (self.disks.get(&number)?, self.record.disks.get(&number)?);
        let done_bytes = match record.sync {
            Sync::Copy { next_block, .. } => next_block * 4096,
            Sync::Resync { next_chunk, .. } => next_chunk * CHUNK_BLOCKS * 4096,
            Sync::New | Sync::Following => return None,
        };
        Some(CopyProgress {
            done_bytes: done_bytes.min(record.bytes),
            total_bytes: record.bytes,
            sent_bytes: disk.progress.sent_bytes,
            bytes_per_second: if self.copying == Some(number) { disk.progress.bytes_per_second } else { 0 },
        })
    }
}
