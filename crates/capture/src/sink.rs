//! Where captured blocks go.

use bytes::Bytes;
use lifeboat_model::{Digest, DiskNumber, Extent};

/// Receives what was read. A sink that blocks slows the reader down; nothing is queued in between.
///
/// Later calls override earlier ones for the same blocks. A call that returned `Ok` has taken the
/// blocks over: losing them after that is the sink's fault.
pub trait ChangeSink {
    /// New content: `bytes` is `extent` whole, at most 64 blocks, with its BLAKE3 digest. The
    /// part of a last block that lies beyond the disk is filled up with zeroes.
    ///
    /// # Errors
    /// When the sink takes no more.
    fn data(
        &mut self,
        disk: DiskNumber,
        extent: Extent,
        digest: Digest,
        bytes: Bytes,
    ) -> Result<(), SinkClosed>;

    /// `extent`, of any length, reads as zeroes now.
    ///
    /// # Errors
    /// When the sink takes no more.
    fn zeroes(&mut self, disk: DiskNumber, extent: Extent) -> Result<(), SinkClosed>;
}

/// The sink takes no more: its owner stopped it or lost the way to the process server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the receiver of captured blocks takes no more of them")]
pub struct SinkClosed;
