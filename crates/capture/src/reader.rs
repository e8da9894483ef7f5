//! Reading one whole disk: for the first copy, and for comparing it with its copy.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lifeboat_model::{BLOCK_BYTES, BlockDigest, BlockSet, DiskNumber, Extent, FRAME_BYTES, blocks_of_bytes};
use lifeboat_wire::agent::{CHUNK_BLOCKS, ZERO_DIGEST};

use crate::disks::Disks;
use crate::frame::{emit, frames, is_zero};
use crate::{CaptureError, ChangeSink, ReadError, SinkClosed, Unreadable};

/// How disks are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReaderKind {
    /// Through io_uring.
    Ring,
    /// By threads, since io_uring is not allowed here.
    Threads,
}

/// What a copy does about blocks of zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroBlocks {
    /// Nothing: the copy is fresh and has zeroes there.
    Skip,
    /// Hands them to the sink as zeroes.
    Send,
}

/// How a disk is copied.
#[derive(Clone, Copy, Debug)]
pub struct CopyOptions<'a> {
    /// What to do about zeroes.
    pub zeroes: ZeroBlocks,
    /// Bytes read a second at most; no limit when absent.
    pub bytes_per_second: Option<u64>,
    /// Ends the copy early when it becomes true.
    pub stop: &'a AtomicBool,
}

/// A piece of a copy is done: sent, or skipped as zero. Pieces are in no order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyStep {
    /// The piece.
    pub extent: Extent,
    /// Blocks of it that were handed to the sink as data.
    pub data_blocks: u64,
}

/// How a copy ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Blocks read, or found unreadable.
    pub done_blocks: u64,
    /// Blocks handed to the sink as data.
    pub data_blocks: u64,
    /// Blocks that could not be read and are not in the copy.
    pub unreadable: Vec<Unreadable>,
    /// It was stopped, perhaps before its end.
    pub stopped: bool,
}

/// Reads at once: 8 MiB in flight keep a disk busy.
const READ_DEPTH: u32 = 32;

/// So far may a copy fall behind its limit and catch up later.
const CATCH_UP_MAX: Duration = Duration::from_millis(100);

/// A limited copy reads in so many batches a second.
const BATCHES_PER_SECOND: u64 = 20;

/// A limit near zero means: a frame an hour.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// One disk, opened for reading with `O_DIRECT`, with memory and a queue of its own.
pub struct DiskReader {
    reads: Disks,
    number: DiskNumber,
    bytes: u64,
}

impl DiskReader {
    /// Opens the disk at `path`; `number` is its name in errors and towards the sink.
    ///
    /// # Errors
    /// When it cannot be opened or read directly.
    pub fn open(number: DiskNumber, path: &Path) -> Result<Self, ReadError> {
        Self::open_with(number, path, None)
    }

    /// As [`Self::open`], reading in the given way; through a ring only where that is allowed.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(number: DiskNumber, path: &Path, kind: Option<ReaderKind>) -> Result<Self, ReadError> {
        let mut reads = Disks::new(READ_DEPTH, kind)?;
        let bytes = reads.open(number, path)?;
        Ok(Self { reads, number, bytes })
    }

    /// Size of the disk in bytes when it was opened.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How it is read.
    #[must_use]
    pub fn reader_kind(&self) -> ReaderKind {
        self.reads.kind()
    }

    /// Copies `blocks` to the sink, as fast as the disk, the limit and the sink allow. `progress`
    /// hears of every piece after the sink has it.
    ///
    /// # Errors
    /// When the disk is gone, changed its size, or the sink closed. Unreadable blocks are no error.
    pub fn copy(
        &mut self,
        blocks: &BlockSet,
        sink: &mut dyn ChangeSink,
        options: CopyOptions<'_>,
        progress: &mut dyn FnMut(CopyStep),
    ) -> Result<Copied, CaptureError> {
        self.reads.check_sizes()?;
        let disk = Extent::new(0, blocks_of_bytes(self.bytes));
        let extents = blocks.extents().filter_map(|extent| extent.intersection(disk?));
        let mut frames = extents.flat_map(frames).peekable();
        let mut pace = Pace::new(options.bytes_per_second);
        let mut copied = Copied::default();
        while frames.peek().is_some() && !copied.stopped {
            self.copy_batch(&mut frames, &mut pace, sink, options, progress, &mut copied)?;
        }
        Ok(copied)
    }

    /// Copies as many frames as the pace allows at once.
    fn copy_batch(
        &mut self,
        frames: &mut dyn Iterator<Item = Extent>,
        pace: &mut Pace,
        sink: &mut dyn ChangeSink,
        options: CopyOptions<'_>,
        progress: &mut dyn FnMut(CopyStep),
        copied: &mut Copied,
    ) -> Result<(), CaptureError> {
        let number = self.number;
        let mut stopped = false;
        let mut frames = frames.take(pace.batch_frames());
        let mut wanted = std::iter::from_fn(|| {
            // Before a frame is taken off the list: what is off it is read.
            stopped = stopped || options.stop.load(Ordering::Relaxed);
            let frame = if stopped { None } else { frames.next() }?;
            pace.wait(frame.len_bytes(), options.stop);
            Some((number, frame))
        });
        let end = self.reads.read(&mut wanted, &mut |read| {
            let send_zeroes = options.zeroes == ZeroBlocks::Send;
            let Ok(emitted) = emit(sink, number, read.extent, read.bytes, send_zeroes) else {
                return ControlFlow::Break(());
            };
            copied.done_blocks += read.extent.blocks;
            copied.data_blocks += emitted.data_blocks;
            progress(CopyStep { extent: read.extent, data_blocks: emitted.data_blocks });
            ControlFlow::Continue(())
        })?;
        if end.broken_off {
            return Err(SinkClosed.into());
        }
        copied.done_blocks += end.unreadable.iter().map(|bad| bad.extent.blocks).sum::<u64>();
        copied.unreadable.extend(end.unreadable);
        copied.stopped = stopped;
        Ok(())
    }

    /// Digests of chunks of 64 blocks in order, cut at the end of the disk; `None` where a chunk
    /// could not be read in one piece. An all-zero chunk has the wire's `ZERO_DIGEST`.
    ///
    /// # Errors
    /// When the disk is gone.
    pub fn digest_chunks(&mut self, chunks: Range<u64>) -> Result<Vec<Option<BlockDigest>>, ReadError> {
        let number = self.number;
        let end = blocks_of_bytes(self.bytes);
        let chunks = chunks.start..chunks.end.min(end.div_ceil(CHUNK_BLOCKS));
        let mut digests = vec![None; index_of(chunks.end.saturating_sub(chunks.start))];
        let mut wanted = chunks.clone().filter_map(|chunk| Some((number, chunk_extent(chunk, end)?)));
        self.reads.read(&mut wanted, &mut |read| {
            let chunk = read.extent.first / CHUNK_BLOCKS;
            if chunk_extent(chunk, end) == Some(read.extent) {
                digests[index_of(chunk - chunks.start)] = Some(digest_of(read.bytes));
            }
            ControlFlow::Continue(())
        })?;
        Ok(digests)
    }

    /// Digests of every block of these chunks, in the order of the chunks; the last chunk of a
    /// disk may be shorter, one beyond its end has no blocks. `None` for unreadable blocks.
    ///
    /// # Errors
    /// When the disk is gone.
    pub fn digest_blocks(&mut self, chunks: &[u64]) -> Result<Vec<Option<BlockDigest>>, ReadError> {
        let number = self.number;
        let end = blocks_of_bytes(self.bytes);
        let extents = chunks.iter().filter_map(|chunk| chunk_extent(*chunk, end));
        // Where the digests of a block begin; a chunk that is named twice is read once.
        let mut places: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        let mut count = 0;
        for extent in extents {
            places.entry(extent.first).or_default().push(count);
            count += index_of(extent.blocks);
        }
        let mut digests = vec![None; count];
        let mut wanted =
            places.keys().filter_map(|first| Some((number, chunk_extent(first / CHUNK_BLOCKS, end)?)));
        self.reads.read(&mut wanted, &mut |read| {
            let chunk_first = read.extent.first - read.extent.first % CHUNK_BLOCKS;
            for (block, bytes) in (read.extent.first..).zip(read.bytes.chunks(BLOCK_BYTES)) {
                let digest = digest_of(bytes);
                for place in places.get(&chunk_first).into_iter().flatten() {
                    digests[place + index_of(block - chunk_first)] = Some(digest);
                }
            }
            ControlFlow::Continue(())
        })?;
        Ok(digests)
    }
}

/// The blocks of a chunk, on a disk of `end` blocks.
fn chunk_extent(chunk: u64, end: u64) -> Option<Extent> {
    let first = chunk.checked_mul(CHUNK_BLOCKS).filter(|first| *first < end)?;
    Extent::new(first, CHUNK_BLOCKS.min(end - first))
}

fn digest_of(bytes: &[u8]) -> BlockDigest {
    if is_zero(bytes) { BlockDigest(ZERO_DIGEST) } else { BlockDigest::of(bytes) }
}

#[allow(clippy::cast_possible_truncation, reason = "places in lists that the caller asked for")]
fn index_of(number: u64) -> usize {
    number as usize
}

/// Holds a copy to its limit.
struct Pace {
    bytes_per_second: Option<u64>,
    next: Instant,
}

impl Pace {
    fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, next: Instant::now() }
    }

    /// Frames to begin before their content is looked at: those of a moment, so that a slow copy
    /// does not wait for a whole queue before it hands the first one over.
    fn batch_frames(&self) -> usize {
        let of_a_moment = |rate: u64| index_of(rate / BATCHES_PER_SECOND / FRAME_BYTES as u64);
        self.bytes_per_second.map_or(usize::MAX, |rate| of_a_moment(rate).clamp(1, READ_DEPTH as usize))
    }

    /// Waits until `bytes` more may be read, or it is stopped.
    fn wait(&mut self, bytes: u64, stop: &AtomicBool) {
        let Some(rate) = self.bytes_per_second else { return };
        loop {
            let now = Instant::now();
            let ahead = self.next.saturating_duration_since(now);
            if ahead.is_zero() || stop.load(Ordering::Relaxed) {
                let earliest = now.checked_sub(CATCH_UP_MAX).unwrap_or(now);
                let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
                let cost = u64::try_from(nanos).map_or(LONGEST_WAIT, Duration::from_nanos);
                self.next = self.next.max(earliest) + cost.min(LONGEST_WAIT);
                return;
            }
            // Short, so that a stop is heard.
            std::thread::sleep(ahead.min(Duration::from_millis(50)));
        }
    }
}
