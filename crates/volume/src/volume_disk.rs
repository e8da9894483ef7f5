//! A point's disk with an overlay, as an export.

use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use lifeboat_model::{BLOCK_BYTES, Extent};
use lifeboat_nbd::{Export, ExportError, ReadChunk, StatusExtent, ZeroMode};

use crate::error::{OverlayError, VolumeError};
use crate::overlay::{BootId, Overlay, OverlayIdentity, State, WriteError};
use crate::point_disk::{PointDisk, push_status};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Reads up to this length are tried on the runtime's own thread if the kernel has them in memory.
const QUICK_READ_BYTES: u64 = 128 << 10;
/// Pieces of one read, from point and overlay, that are read at the same time.
const RUNS_SIDE_BY_SIDE: usize = 16;

/// A disk of a volume: what the point has, and over it what was written. Clones share everything.
#[derive(Clone)]
pub struct VolumeDisk {
    point: PointDisk,
    overlay: Option<Arc<Overlay>>,
    description: String,
}

impl VolumeDisk {
    /// The point's disk as it is; writing is refused.
    #[must_use]
    pub const fn read_only(point: PointDisk, description: String) -> Self {
        Self { point, overlay: None, description }
    }

    /// The point's disk with the overlay in `directory`, which is made if it is not there. Blocks.
    ///
    /// # Errors
    /// When the overlay cannot be used or belongs to something else.
    pub fn writable(
        point: PointDisk,
        description: String,
        directory: &Path,
        identity: OverlayIdentity,
        boot: BootId,
    ) -> Result<Self, OverlayError> {
        let overlay = Overlay::open(directory, identity, boot)?;
        Ok(Self { point, overlay: Some(Arc::new(overlay)), description })
    }

    /// The point under it.
    #[must_use]
    pub const fn point(&self) -> &PointDisk {
        &self.point
    }

    /// Bytes of blocks that were written.
    #[must_use]
    pub fn overlay_bytes(&self) -> u64 {
        self.overlay.as_ref().map_or(0, |overlay| overlay.written_bytes())
    }

    /// Bytes that are no zeroes, at most: what is written twice, in the point and over it, counts twice.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        let in_point = self.point.map().data_blocks().saturating_mul(BLOCK);
        in_point.saturating_add(self.overlay_bytes()).min(self.point.size_bytes())
    }

    fn overlay(&self) -> Result<&Arc<Overlay>, ExportError> {
        self.overlay.as_ref().ok_or_else(|| ExportError::NotPermitted("the volume is read-only".into()))
    }

    async fn read_point(&self, offset: u64, len: u32) -> Result<Vec<ReadChunk>, ExportError> {
        self.point.read(offset, len).await.map_err(|error| unreadable(&error))
    }

    async fn read_merged(
        &self,
        overlay: &Arc<Overlay>,
        offset: u64,
        len: u32,
    ) -> Result<Vec<ReadChunk>, ExportError> {
        let read_run = async |(from, until, state): (u64, u64, State)| {
            let run_bytes = u32::try_from(until - from).unwrap_or(u32::MAX);
            Ok::<_, ExportError>(match state {
                State::Base => self.read_point(from, run_bytes).await?,
                State::Zeroes => vec![ReadChunk::Zeroes(run_bytes)],
                State::Data => vec![ReadChunk::Data(read_overlay(overlay, from, until).await?)],
            })
        };
        // Side by side; a request has few runs unless it is long.
        let runs: Vec<_> = byte_runs(overlay, offset, len.into()).collect();
        if let [run] = runs.as_slice() {
            return read_run(*run).await;
        }
        let chunks = futures::stream::iter(runs).map(read_run).buffered(RUNS_SIDE_BY_SIDE);
        Ok(chunks.try_collect::<Vec<_>>().await?.concat())
    }

    /// What the point has of one block, filled up with zeroes where the disk ends within it.
    async fn base_block(&self, block: u64) -> Result<Vec<u8>, ExportError> {
        let offset = block * BLOCK;
        let len = (self.point.size_bytes() - offset).min(BLOCK);
        let mut content = Vec::with_capacity(BLOCK_BYTES);
        for chunk in self.read_point(offset, u32::try_from(len).unwrap_or(0)).await? {
            match chunk {
                ReadChunk::Data(data) => content.extend_from_slice(&data),
                ReadChunk::Zeroes(zeroes) => content.resize(content.len() + zeroes as usize, 0),
            }
        }
        content.resize(BLOCK_BYTES, 0);
        Ok(content)
    }

    async fn write_data(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), ExportError> {
        let overlay = Arc::clone(self.overlay()?);
        let mut edges = Vec::new();
        let mut whole = None;
        for piece in pieces(offset, data.len() as u64) {
            match piece {
                Piece::Whole(extent) => whole = Some(extent),
                Piece::Within { block, from, until } => {
                    // Not needed once the block was written; and the point never changes.
                    let base = match overlay.states(Extent { first: block, blocks: 1 }).as_slice() {
                        [(_, State::Base)] => self.base_block(block).await?,
                        _ => vec![0; BLOCK_BYTES],
                    };
                    edges.push((from, until, base));
                }
            }
        }
        blocking(move || {
            let part = |from: u64, until: u64| &data[to_usize(from - offset)..to_usize(until - offset)];
            if let Some(extent) = whole {
                let start = extent.offset_bytes();
                overlay.write_blocks(extent.first, part(start, start + extent.len_bytes()))?;
            }
            for (from, until, base) in edges {
                overlay.write_within_block(from, part(from, until), &base)?;
            }
            if fua { overlay.flush() } else { Ok(()) }
        })
        .await
    }

    async fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), ExportError> {
        if mode.fast && mode.no_hole {
            return Err(ExportError::NotSupported("zeroes that take space are not quick".into()));
        }
        for piece in pieces(offset, len) {
            match piece {
                Piece::Within { from, until, .. } => {
                    self.write_data(from, Bytes::from(vec![0; to_usize(until - from)]), false).await?;
                }
                Piece::Whole(extent) => {
                    let overlay = Arc::clone(self.overlay()?);
                    blocking(move || {
                        if mode.no_hole {
                            overlay.zero_blocks_allocated(extent)
                        } else {
                            overlay.zero_blocks(extent)
                        }
                    })
                    .await?;
                }
            }
        }
        if mode.fua { self.sync().await } else { Ok(()) }
    }

    async fn sync(&self) -> Result<(), ExportError> {
        match &self.overlay {
            Some(overlay) => {
                let overlay = Arc::clone(overlay);
                blocking(move || overlay.flush()).await
            }
            None => Ok(()),
        }
    }

    fn status(&self, offset: u64, len: u64, extents_max: usize) -> Vec<StatusExtent> {
        let Some(overlay) = &self.overlay else { return self.point.status(offset, len, extents_max) };
        let mut merged: Vec<StatusExtent> = Vec::new();
        for (from, until, state) in byte_runs(overlay, offset, len) {
            let here = match state {
                State::Base => self.point.status(from, until - from, extents_max),
                State::Zeroes => vec![StatusExtent { len: until - from, hole: true, zero: true }],
                State::Data => vec![StatusExtent { len: until - from, hole: false, zero: false }],
            };
            let described: u64 = here.iter().map(|run| run.len).sum();
            for run in here {
                if !push_status(&mut merged, run, extents_max) {
                    return merged;
                }
            }
            if described < until - from {
                break;
            }
        }
        merged
    }
}

impl Export for VolumeDisk {
    fn size_bytes(&self) -> u64 {
        self.point.size_bytes()
    }

    fn read_only(&self) -> bool {
        self.overlay.is_none()
    }

    fn description(&self) -> String {
        self.description.clone()
    }

    fn read(&self, offset: u64, len: u32) -> BoxFuture<'_, Result<Vec<ReadChunk>, ExportError>> {
        match &self.overlay {
            None => self.read_point(offset, len).boxed(),
            Some(overlay) => self.read_merged(overlay, offset, len).boxed(),
        }
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<'_, Result<(), ExportError>> {
        self.write_data(offset, data, fua).boxed()
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> BoxFuture<'_, Result<(), ExportError>> {
        self.zero(offset, len, mode).boxed()
    }

    fn trim(&self, offset: u64, len: u64, fua: bool) -> BoxFuture<'_, Result<(), ExportError>> {
        async move {
            for piece in pieces(offset, len) {
                // Of a block that is only trimmed in part there is nothing to give back.
                if let Piece::Whole(extent) = piece {
                    let overlay = Arc::clone(self.overlay()?);
                    blocking(move || overlay.zero_blocks(extent)).await?;
                }
            }
            if fua { self.sync().await } else { Ok(()) }
        }
        .boxed()
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), ExportError>> {
        self.sync().boxed()
    }

    fn prefetch(&self, offset: u64, len: u64) -> BoxFuture<'_, Result<(), ExportError>> {
        self.point.prefetch(offset, len);
        Box::pin(async { Ok(()) })
    }

    fn block_status(
        &self,
        offset: u64,
        len: u64,
        extents_max: usize,
    ) -> BoxFuture<'_, Result<Vec<StatusExtent>, ExportError>> {
        let status = self.status(offset, len, extents_max);
        Box::pin(async move { Ok(status) })
    }
}

/// A range of bytes as blocks: at most one piece within a block at either end.
enum Piece {
    Within { block: u64, from: u64, until: u64 },
    Whole(Extent),
}

fn pieces(offset: u64, len: u64) -> Vec<Piece> {
    let end = offset + len;
    let within = |from: u64, until: u64| Piece::Within { block: from / BLOCK, from, until };
    let (first, last) = (offset.div_ceil(BLOCK), end / BLOCK);
    if first > last {
        return vec![within(offset, end)];
    }
    let mut pieces = Vec::with_capacity(3);
    if offset < first * BLOCK {
        pieces.push(within(offset, first * BLOCK));
    }
    pieces.extend(Extent::new(first, last - first).map(Piece::Whole));
    if last * BLOCK < end {
        pieces.push(within(last * BLOCK, end));
    }
    pieces
}

/// The runs of blocks with one state in a range, cut to the range: from, until, state.
fn byte_runs(overlay: &Overlay, offset: u64, len: u64) -> impl Iterator<Item = (u64, u64, State)> + use<> {
    let end = offset + len;
    let first = offset / BLOCK;
    let runs = overlay.states(Extent { first, blocks: end.div_ceil(BLOCK) - first });
    runs.into_iter().map(move |(extent, state)| {
        let start = extent.offset_bytes();
        (start.max(offset), (start + extent.len_bytes()).min(end), state)
    })
}

async fn read_overlay(overlay: &Arc<Overlay>, from: u64, until: u64) -> Result<Bytes, ExportError> {
    let mut buffer = BytesMut::zeroed(to_usize(until - from));
    if until - from <= QUICK_READ_BYTES && overlay.read_cached(from, &mut buffer) {
        return Ok(buffer.freeze());
    }
    let overlay = Arc::clone(overlay);
    blocking(move || {
        overlay.read(from, &mut buffer)?;
        Ok(buffer.freeze())
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, WriteError> + Send + 'static,
) -> Result<T, ExportError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(ExportError::Io("the write was given up; the log of the server says why".into())),
    }
}

fn unreadable(error: &VolumeError) -> ExportError {
    tracing::error!(%error, "a volume cannot be read");
    ExportError::Io(error.to_string())
}

/// Bytes within a request.
fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
