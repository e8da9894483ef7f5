//! Digests of a disk's content, by which source and copy are compared.
//!
//! The last block of a disk whose length is no multiple of 4,096 counts with the zeroes that fill it
//! up. All data is read and checked; nothing is answered from an index alone.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use lifeboat_model::{BLOCK_BYTES, BlockDigest, Extent, FRAME_BLOCKS};

use crate::error::VolumeError;
use crate::extent_map::Place;
use crate::point_disk::PointDisk;

/// Blocks in a chunk: as many as in the largest frame.
pub const CHUNK_BLOCKS: u64 = FRAME_BLOCKS;

/// Chunks that one job digests.
const JOB_CHUNKS: u64 = 8;
/// Chunks of zeroes that one answer covers.
const ZERO_CHUNKS_MAX: u64 = 4096;
/// Decoded frames that a job keeps, for frames that reach across chunks.
const KEPT_FRAMES: usize = 4;

/// Pieces of a stream of digests, 16 bytes each.
pub type DigestStream = BoxStream<'static, Result<Bytes, VolumeError>>;

/// What is digested: whole chunks or each of their blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Chunk,
    Block,
}

/// How many chunks a disk has.
#[must_use]
pub fn chunk_count(disk: &PointDisk) -> u64 {
    disk.map().disk_blocks().div_ceil(CHUNK_BLOCKS)
}

/// The digest of each of `count` chunks from `first` on, as far as the disk reaches; sixteen zero
/// bytes for one that is all zero. Memory is bounded; several chunks are decoded at once.
#[must_use]
pub fn chunk_digests(disk: &PointDisk, first: u64, count: u64) -> DigestStream {
    let end = first.saturating_add(count).min(chunk_count(disk));
    let mut at = first;
    let map_of = disk.clone();
    let runs = std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let data = map_of.map().next_data(at * CHUNK_BLOCKS).map_or(end, |block| block / CHUNK_BLOCKS);
        let run = match data.min(end) {
            data if data > at => at..data.min(at + ZERO_CHUNKS_MAX),
            _ => at..end.min(at + JOB_CHUNKS),
        };
        at = run.end;
        Some((run.end <= data, vec![run]))
    });
    digests(disk, runs, Unit::Chunk)
}

/// The digests of all blocks of `chunks`, in that order, as [`chunk_digests`].
#[must_use]
pub fn block_digests(disk: &PointDisk, chunks: Vec<u64>) -> DigestStream {
    let count = chunk_count(disk);
    let mut chunks = chunks.into_iter().filter(move |chunk| *chunk < count).peekable();
    let runs = std::iter::from_fn(move || {
        chunks.peek()?;
        let run = chunks.by_ref().take(usize::try_from(JOB_CHUNKS).unwrap_or(1));
        Some((false, run.map(|chunk| chunk..chunk + 1).collect()))
    });
    digests(disk, runs, Unit::Block)
}

/// Each run of chunks is a job, or is known to be zeroes.
fn digests(
    disk: &PointDisk,
    runs: impl Iterator<Item = (bool, Vec<Range<u64>>)> + Send + 'static,
    unit: Unit,
) -> DigestStream {
    let side_by_side = disk.cache().workers().count();
    let disk = disk.clone();
    let jobs = stream::iter(runs).map(move |(zeroes, run)| {
        let disk = disk.clone();
        async move {
            if zeroes {
                let chunks: u64 = run.iter().map(|run| run.end - run.start).sum();
                return Ok(vec![0; 16 * usize::try_from(chunks).unwrap_or(0)].into());
            }
            let cache = disk.cache().clone();
            let done = cache.workers().run(move || Job::new(&disk).digests(run, unit));
            done.await.unwrap_or(Err(VolumeError::GivenUp))
        }
    });
    jobs.buffered(side_by_side).boxed()
}

struct Job<'a> {
    disk: &'a PointDisk,
    kept: VecDeque<((u32, u32), Bytes)>,
    content: Vec<u8>,
}

impl<'a> Job<'a> {
    const fn new(disk: &'a PointDisk) -> Self {
        Self { disk, kept: VecDeque::new(), content: Vec::new() }
    }

    fn digests(mut self, runs: Vec<Range<u64>>, unit: Unit) -> Result<Bytes, VolumeError> {
        let mut out = Vec::new();
        for chunk in runs.into_iter().flatten() {
            self.fill(chunk)?;
            match unit {
                Unit::Chunk => out.extend_from_slice(&digest(&self.content)),
                Unit::Block => {
                    self.content.chunks(BLOCK_BYTES).for_each(|block| out.extend_from_slice(&digest(block)));
                }
            }
        }
        Ok(out.into())
    }

    /// Puts a chunk together in `content`.
    fn fill(&mut self, chunk: u64) -> Result<(), VolumeError> {
        self.content.clear();
        let extent = Extent { first: chunk * CHUNK_BLOCKS, blocks: CHUNK_BLOCKS };
        for span in self.disk.map().spans(extent) {
            let bytes = usize::try_from(span.extent.len_bytes()).unwrap_or(0);
            match span.place {
                Place::Zeroes => self.content.resize(self.content.len() + bytes, 0),
                Place::Frame { file, frame, skip_blocks } => {
                    let skip = usize::try_from(skip_blocks).unwrap_or(0) * BLOCK_BYTES;
                    let frame = self.frame(file, frame)?;
                    self.content.extend_from_slice(&frame[skip..skip + bytes]);
                }
            }
        }
        Ok(())
    }

    fn frame(&mut self, file: u32, frame: u32) -> Result<Bytes, VolumeError> {
        if let Some((_, kept)) = self.kept.iter().find(|(key, _)| *key == (file, frame)) {
            return Ok(kept.clone());
        }
        let loaded = self.disk.load_frame(file, frame)?;
        if self.kept.len() == KEPT_FRAMES {
            self.kept.pop_front();
        }
        self.kept.push_back(((file, frame), loaded.clone()));
        Ok(loaded)
    }
}

fn digest(content: &[u8]) -> [u8; 16] {
    if content.iter().all(|byte| *byte == 0) { [0; 16] } else { BlockDigest::of(content).0 }
}
