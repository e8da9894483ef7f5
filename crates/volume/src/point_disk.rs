//! A disk as it was at a recovery point.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use lifeboat_model::{BLOCK_BYTES, Extent};
use lifeboat_nbd::{ReadChunk, StatusExtent};

use crate::error::VolumeError;
use crate::extent_map::{ExtentMap, Layer, Place, Span};
use crate::frame_cache::{Fetched, Flight, FrameCache};
use crate::opened_file::OpenedFile;
use crate::read_ahead::ReadAhead;
use crate::source::{DiskSource, Objects};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// A disk as it was at a recovery point, for reading. Clones share everything.
#[derive(Clone)]
pub struct PointDisk(Arc<Shared>);

struct Shared {
    map: ExtentMap,
    files: Vec<Arc<OpenedFile>>,
    objects: Objects,
    cache: Arc<FrameCache>,
    read_ahead: Mutex<ReadAhead>,
    disk_bytes: u64,
}

/// A piece of an answer: there, or on its way.
enum Part {
    Zeroes(u64),
    Ready(Bytes),
    Loading { flight: Flight, skip: usize, take: usize },
}

impl PointDisk {
    /// Reads the indexes of all files and lays them over each other.
    ///
    /// # Errors
    /// When a file is missing, damaged, or another one than the catalog says.
    pub async fn open(
        source: DiskSource,
        objects: Objects,
        cache: Arc<FrameCache>,
    ) -> Result<Self, Arc<VolumeError>> {
        source.check_order()?;
        let disk_bytes = source.disk_bytes;
        let disk_blocks = lifeboat_model::blocks_of_bytes(disk_bytes);
        let source = Arc::new(source);
        let opening = (0..source.files.len()).map(|place| {
            let (source, objects) = (Arc::clone(&source), objects.clone());
            let opened =
                cache.workers().run(move || OpenedFile::open(&source, &source.files[place], &objects));
            async { opened.await.unwrap_or(Err(VolumeError::GivenUp)) }
        });
        let side_by_side = 2 * cache.workers().count();
        let opened: Vec<_> = futures::stream::iter(opening).buffered(side_by_side).try_collect().await?;
        let mut files = Vec::with_capacity(opened.len());
        let mut layers = Vec::with_capacity(opened.len());
        for (file, covered) in opened {
            layers.push(Layer { covered, disk_blocks: file.disk_blocks() });
            files.push(Arc::new(file));
        }
        let building = cache.workers().run(move || ExtentMap::new(&layers, disk_blocks));
        let map = building.await.map_err(|_| VolumeError::GivenUp)?;
        let read_ahead = Mutex::default();
        let disk = Self(Arc::new(Shared { map, files, objects, cache, read_ahead, disk_bytes }));
        let (files, pieces, memory) = (disk.0.files.len(), disk.0.map.pieces(), disk.memory_bytes());
        tracing::debug!(files, pieces, memory, "disk of a point opened");
        Ok(disk)
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.0.disk_bytes
    }

    /// About how much memory indexes and map hold.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let files: usize = self.0.files.iter().map(|file| file.memory_bytes()).sum();
        files + self.0.map.memory_bytes()
    }

    /// Where each block is.
    #[must_use]
    pub fn map(&self) -> &ExtentMap {
        &self.0.map
    }

    pub(crate) fn cache(&self) -> &Arc<FrameCache> {
        &self.0.cache
    }

    /// Reads `len` bytes at `offset`, which are within the disk. Ready at once if all is cached.
    ///
    /// # Errors
    /// When a file that is needed cannot be read or is not what was written.
    pub async fn read(&self, offset: u64, len: u32) -> Result<Vec<ReadChunk>, Arc<VolumeError>> {
        let mut parts = Vec::with_capacity(4);
        self.begin(offset, u64::from(len), &mut parts);
        let ahead = self.0.read_ahead.lock().unwrap_or_else(PoisonError::into_inner).note(offset, len.into());
        if let Some(range) = ahead {
            self.prefetch(range.start, range.end - range.start);
        }
        let mut chunks = Vec::with_capacity(parts.len());
        for part in parts {
            chunks.push(match part {
                Part::Zeroes(len) => ReadChunk::Zeroes(u32::try_from(len).unwrap_or(u32::MAX)),
                Part::Ready(bytes) => ReadChunk::Data(bytes),
                Part::Loading { flight, skip, take } => {
                    let frame = flight.await.unwrap_or_else(|_| Err(Arc::new(VolumeError::GivenUp)))?;
                    ReadChunk::Data(frame.slice(skip..skip + take))
                }
            });
        }
        Ok(chunks)
    }

    /// Sets all frames of a range going, so that they are decoded side by side.
    fn begin(&self, offset: u64, len: u64, parts: &mut Vec<Part>) {
        for (span, skip, take) in self.byte_spans(offset, len) {
            let Place::Frame { file, frame, skip_blocks } = span.place else {
                match parts.last_mut() {
                    Some(Part::Zeroes(len)) => *len += take,
                    _ => parts.push(Part::Zeroes(take)),
                }
                continue;
            };
            let skip = to_usize(skip_blocks * BLOCK + skip);
            let take = to_usize(take);
            let file = &self.0.files[file as usize];
            parts.push(match self.0.cache.fetch(&self.0.objects, file, frame) {
                Fetched::Ready(bytes) => Part::Ready(bytes.slice(skip..skip + take)),
                Fetched::Loading(flight) => Part::Loading { flight, skip, take },
            });
        }
    }

    /// The spans of a range of bytes, with the bytes of each that come before the range and those in it.
    fn byte_spans(&self, offset: u64, len: u64) -> impl Iterator<Item = (Span, u64, u64)> + '_ {
        let end = offset + len;
        let first = offset / BLOCK;
        let extent = Extent { first, blocks: end.div_ceil(BLOCK) - first };
        self.0.map.spans(extent).map(move |span| {
            let start = span.extent.offset_bytes();
            let from = start.max(offset);
            let until = (start + span.extent.len_bytes()).min(end);
            (span, from - start, until - from)
        })
    }

    /// Whether the bytes of a range are data or zeroes, in order, at most `extents_max` runs.
    pub fn status(&self, offset: u64, len: u64, extents_max: usize) -> Vec<StatusExtent> {
        let mut runs: Vec<StatusExtent> = Vec::new();
        for (span, _, len) in self.byte_spans(offset, len) {
            let zero = span.place == Place::Zeroes;
            if !push_status(&mut runs, StatusExtent { len, hole: zero, zero }, extents_max) {
                break;
            }
        }
        runs
    }

    /// Begins to decode the frames of a range, as far as the disk reaches, the cache has room, and nothing
    /// else is to be done.
    pub fn prefetch(&self, offset: u64, len: u64) {
        let rest = self.0.disk_bytes.saturating_sub(offset);
        let len = len.min(rest).min(self.0.cache.ahead_bytes_max());
        let mut last = None;
        for (span, _, _) in self.byte_spans(offset, len) {
            if let Place::Frame { file, frame, .. } = span.place
                && last != Some((file, frame))
            {
                last = Some((file, frame));
                self.0.cache.prefetch(&self.0.objects, &self.0.files[file as usize], frame);
            }
        }
    }

    /// A frame, from the cache or decoded on this thread without keeping it. Blocks.
    pub(crate) fn load_frame(&self, file: u32, frame: u32) -> Result<Bytes, VolumeError> {
        let file = &self.0.files[file as usize];
        match self.0.cache.peek(file, frame) {
            Some(frame) => Ok(frame),
            None => file.load(&self.0.objects, frame),
        }
    }
}

/// Appends a run, or lengthens the last one; says whether there was room.
pub(crate) fn push_status(runs: &mut Vec<StatusExtent>, run: StatusExtent, extents_max: usize) -> bool {
    let full = runs.len() == extents_max;
    match runs.last_mut() {
        Some(last) if last.zero == run.zero => last.len += run.len,
        _ if full => return false,
        _ => runs.push(run),
    }
    true
}

/// Bytes within a request or a frame.
fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
