//! The copier thread: first copies, resyncs, comparisons; one piece after the other.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use lifeboat_capture::{CaptureError, CopyOptions, DiskReader, ReadError, ZeroBlocks};
use lifeboat_model::{BlockDigest, BlockSet, DiskNumber, Extent, PointId, blocks_of_bytes};
use lifeboat_wire::agent::{CHUNK_BLOCKS, DigestRequest, DigestsOf, ZERO_DIGEST};

use crate::devices::Order;
use crate::engine::{CopyJob, CopyStep, DiskProblem, Event, Failure, Job, OpenEpoch};
use crate::replicator::Inbox;
use crate::sink::{PartSink, Traffic, Uplink};

/// Chunks whose blocks' digests are asked for at once: 256 KiB of them.
const CHUNKS_AT_ONCE: usize = 256;

/// Blocks that a comparison remembers; more differ only if the copy is wrong altogether.
const CANDIDATES_MAX: usize = 1 << 18;

/// A disk that is not read for so long is closed, and the memory for reading it is given back.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// The copier thread's own.
pub(crate) struct Copier {
    uplink: Arc<Uplink>,
    inbox: Inbox,
    devices: Sender<Order>,
    reader: Option<(DiskNumber, String, DiskReader)>,
    /// Blocks that differ from the compared point, with the point's digest.
    candidates: BTreeMap<u64, BlockDigest>,
}

enum Trouble {
    Lost(Failure),
    Disk(DiskProblem),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Lost(failure)
    }
}

impl From<ReadError> for Trouble {
    fn from(error: ReadError) -> Self {
        Self::Disk(match error {
            ReadError::SizeChanged { .. } => DiskProblem::SizeChanged,
            other => DiskProblem::Gone(other.to_string()),
        })
    }
}

impl Copier {
    pub fn new(uplink: Arc<Uplink>, inbox: Inbox, devices: Sender<Order>) -> Self {
        Self { uplink, inbox, devices, reader: None, candidates: BTreeMap::new() }
    }

    /// Does jobs, each with the path of its disk, until there can be no more.
    pub fn run(mut self, jobs: &Receiver<(Job, String)>) {
        loop {
            let (job, path) = match jobs.recv_timeout(IDLE_MAX) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) => {
                    self.reader = None;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let disk = job.disk;
            let step = self.step(job, &path).unwrap_or_else(|trouble| {
                // The next job opens the disk anew.
                self.reader = None;
                match trouble {
                    Trouble::Lost(failure) => CopyStep::Lost(failure),
                    Trouble::Disk(problem) => CopyStep::Disk(problem),
                }
            });
            self.inbox.send(Event::Copier(disk, step));
        }
    }

    fn step(&mut self, job: Job, path: &str) -> Result<CopyStep, Trouble> {
        let begun = Instant::now();
        let disk = job.disk;
        let mut reader = self.open(disk, path)?;
        let step = match job.what {
            CopyJob::Copy { epoch, part, range, send_zeroes } => {
                let mut sink = self.sink(OpenEpoch { disk, epoch, part });
                let zeroes = if send_zeroes { ZeroBlocks::Send } else { ZeroBlocks::Skip };
                let blocks = set_of(&reader, [range]);
                self.send(disk, &mut reader, &blocks, zeroes, &mut sink)?;
                self.sent(disk, sink, begun)?
            }
            CopyJob::Resync { epoch, part, first_chunk, chunks } => {
                let different = self.different_blocks(disk, &mut reader, None, first_chunk, chunks)?;
                let mut sink = self.sink(OpenEpoch { disk, epoch, part });
                let blocks =
                    set_of(&reader, different.iter().map(|(block, _)| Extent { first: *block, blocks: 1 }));
                self.send(disk, &mut reader, &blocks, ZeroBlocks::Send, &mut sink)?;
                self.sent(disk, sink, begun)?
            }
            CopyJob::Compare { point, first_chunk, chunks } => {
                if first_chunk == 0 {
                    self.candidates.clear();
                }
                let different = self.different_blocks(disk, &mut reader, Some(point), first_chunk, chunks)?;
                if self.candidates.len() + different.len() > CANDIDATES_MAX {
                    let why = format!("more than {CANDIDATES_MAX} blocks differ: ask for a resync instead");
                    return Err(Failure::Refused(why).into());
                }
                self.candidates.extend(different);
                CopyStep::Compared { candidates: self.candidates.len() as u64, took: begun.elapsed() }
            }
            CopyJob::Settle { changed } => self.settle(&mut reader, &changed)?,
        };
        self.reader = Some((disk, path.to_owned(), reader));
        Ok(step)
    }

    fn open(&mut self, disk: DiskNumber, path: &str) -> Result<DiskReader, ReadError> {
        match self.reader.take() {
            Some((number, name, reader)) if number == disk && name == path => Ok(reader),
            _ => DiskReader::open(disk, Path::new(path)),
        }
    }

    fn sink(&self, open: OpenEpoch) -> PartSink {
        PartSink::new(Arc::clone(&self.uplink), Traffic::Copy, &[open])
    }

    fn send(
        &self,
        disk: DiskNumber,
        reader: &mut DiskReader,
        blocks: &BlockSet,
        zeroes: ZeroBlocks,
        sink: &mut PartSink,
    ) -> Result<(), Trouble> {
        let options = CopyOptions { zeroes, bytes_per_second: None, stop: &self.uplink.stop };
        let copied = match reader.copy(blocks, sink, options, &mut |_| {}) {
            Ok(copied) => copied,
            Err(CaptureError::Sink(_)) => return Err(sink.take_failure().into()),
            Err(CaptureError::Read(error)) => return Err(error.into()),
            Err(other) => return Err(Trouble::Disk(DiskProblem::Gone(other.to_string()))),
        };
        if copied.stopped {
            return Err(Failure::Away("the agent stops".into()).into());
        }
        let unreadable: Vec<Extent> = copied.unreadable.iter().map(|bad| bad.extent).collect();
        if !unreadable.is_empty() {
            self.note_unreadable(disk, unreadable)?;
        }
        Ok(())
    }

    /// Blocks that cannot be read count as written, in the pinned bits, before the piece counts as
    /// done: the flow tries them again and says so.
    fn note_unreadable(&self, disk: DiskNumber, extents: Vec<Extent>) -> Result<(), Failure> {
        let (done, noted) = channel();
        let stops = |_| Failure::Away("the agent stops".into());
        self.devices
            .send(Order::PutBack(disk, extents, Some(done)))
            .map_err(|_| Failure::Away("the agent stops".into()))?;
        noted.recv().map_err(stops)
    }

    fn sent(&self, disk: DiskNumber, sink: PartSink, begun: Instant) -> Result<CopyStep, Failure> {
        let sent_bytes = sink.sent_bytes();
        let parts = sink.finish()?;
        let next_part = parts.iter().find(|(number, _)| *number == disk).map_or(0, |(_, part)| *part);
        Ok(CopyStep::Sent { next_part, sent_bytes, took: begun.elapsed() })
    }

    /// The blocks of chunks that differ from the copy, with the copy's digests. Blocks that cannot
    /// be read are among them.
    fn different_blocks(
        &self,
        disk: DiskNumber,
        reader: &mut DiskReader,
        point: Option<PointId>,
        first_chunk: u64,
        chunks: u64,
    ) -> Result<Vec<(u64, BlockDigest)>, Trouble> {
        let count = usize::try_from(chunks).unwrap_or(usize::MAX);
        let of = DigestsOf::Chunks { first: first_chunk, count: chunks };
        let theirs = self.digests(disk, point, of, count)?;
        let ours = reader.digest_chunks(first_chunk..first_chunk + chunks)?;
        // A copy that is shorter than the disk has zeroes beyond its end.
        let zero = BlockDigest(ZERO_DIGEST);
        let differ: Vec<u64> = (first_chunk..)
            .zip(&ours)
            .enumerate()
            .filter(|(index, (_, ours))| **ours != Some(theirs.get(*index).copied().unwrap_or(zero)))
            .map(|(_, (chunk, _))| chunk)
            .collect();
        let mut different = Vec::new();
        for chunks in differ.chunks(CHUNKS_AT_ONCE) {
            self.different_in(disk, reader, point, chunks, &mut different)?;
        }
        Ok(different)
    }

    fn different_in(
        &self,
        disk: DiskNumber,
        reader: &mut DiskReader,
        point: Option<PointId>,
        chunks: &[u64],
        different: &mut Vec<(u64, BlockDigest)>,
    ) -> Result<(), Trouble> {
        let end = blocks_of_bytes(reader.bytes());
        let ours = reader.digest_blocks(chunks)?;
        let theirs = self.digests(disk, point, DigestsOf::Blocks { chunks: chunks.to_vec() }, ours.len())?;
        let zero = BlockDigest(ZERO_DIGEST);
        let blocks = chunks.iter().flat_map(|chunk| {
            let first = chunk * CHUNK_BLOCKS;
            first..(first + CHUNK_BLOCKS).min(end)
        });
        for (index, (block, ours)) in blocks.zip(ours).enumerate() {
            let theirs = theirs.get(index).copied().unwrap_or(zero);
            if ours != Some(theirs) {
                different.push((block, theirs));
            }
        }
        Ok(())
    }

    fn digests(
        &self,
        disk: DiskNumber,
        point: Option<PointId>,
        of: DigestsOf,
        count: usize,
    ) -> Result<Vec<BlockDigest>, Failure> {
        let request = DigestRequest { point, of };
        self.uplink.runtime.block_on(self.uplink.server.digests(disk, &request, count))
    }

    fn settle(&mut self, reader: &mut DiskReader, changed: &BlockSet) -> Result<CopyStep, Trouble> {
        let end = blocks_of_bytes(reader.bytes());
        let before = self.candidates.len();
        self.candidates.retain(|block, _| !changed.contains(*block));
        let written = (before - self.candidates.len()) as u64;
        let mut still = BlockSet::new(end);
        let mut chunks: Vec<u64> = self.candidates.keys().map(|block| block / CHUNK_BLOCKS).collect();
        chunks.dedup();
        for chunks in chunks.chunks(CHUNKS_AT_ONCE) {
            let ours = reader.digest_blocks(chunks)?;
            let blocks = chunks.iter().flat_map(|chunk| {
                let first = chunk * CHUNK_BLOCKS;
                first..(first + CHUNK_BLOCKS).min(end)
            });
            for (block, ours) in blocks.zip(ours) {
                // What cannot be read says nothing about the copy.
                if let (Some(theirs), Some(ours)) = (self.candidates.get(&block), ours)
                    && *theirs != ours
                {
                    still.insert(Extent { first: block, blocks: 1 });
                }
            }
        }
        Ok(CopyStep::Settled { changed: written, still })
    }
}

fn set_of(reader: &DiskReader, extents: impl IntoIterator<Item = Extent>) -> BlockSet {
    let mut set = BlockSet::new(blocks_of_bytes(reader.bytes()));
    extents.into_iter().for_each(|extent| set.insert(extent));
    set
}
