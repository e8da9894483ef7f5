//! A disk of a recovery point, read straight from its files, and written to beside them.
//!
//! [`PointDisk`] opens the HRL files up to a point ([`DiskSource`]): it reads their footers and indexes,
//! checks that each file is the one that the catalog means, and lays them over each other
//! ([`ExtentMap`]). From then on each read finds its frames, which the vault's [`FrameCache`] decodes,
//! checks against the digest that the agent computed, and keeps for a while. A file that is not what was
//! written is named, and gives no data.
//!
//! [`VolumeDisk`] is what NBD clients see: the point's disk, and for a writable volume an
//! overlay that takes the writes. [`overlay`] says how it survives what.
//!
//! [`chunk_digests`] and [`block_digests`] serve the comparison of source and copy.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod digests;
mod error;
mod extent_map;
mod frame_cache;
mod opened_file;
pub mod overlay;
mod point_disk;
mod read_ahead;
mod source;
mod volume_disk;
mod workers;

pub use digests::{CHUNK_BLOCKS, DigestStream, block_digests, chunk_count, chunk_digests};
pub use error::{OverlayError, VolumeError};
pub use extent_map::{ExtentMap, Layer, Place, Span};
pub use frame_cache::{CacheFigures, FrameCache};
pub use overlay::{BootId, OverlayIdentity};
pub use point_disk::PointDisk;
pub use source::{DiskSource, FileSource, Objects};
pub use volume_disk::VolumeDisk;

/// For the fuzz targets.
#[cfg(feature = "fuzz")]
pub mod fuzz {
    /// Reads the header of an overlay.
    ///
    /// # Panics
    /// When what was read is not written back as it was.
    pub fn overlay_header(bytes: &[u8]) {
        crate::overlay::check_header(bytes);
    }
}
