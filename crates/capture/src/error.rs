//! What can go wrong, and whom it concerns.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use lifeboat_model::{DiskNumber, Extent};

use crate::{QuiesceError, SinkClosed};

/// A disk cannot be read as a whole.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be opened.
    #[error("cannot open {path}: {source}")]
    Open {
        /// The disk.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its sectors are of a size that cannot be read.
    #[error("{path} has sectors of {sector_bytes} bytes; up to 65536 can be read")]
    Sectors {
        /// The disk.
        path: PathBuf,
        /// Logical sector size.
        sector_bytes: u64,
    },
    /// Nothing on it can be read any more.
    #[error("disk {disk} is gone: {source}; look at the kernel log and at its cables")]
    DiskGone {
        /// The disk.
        disk: DiskNumber,
        /// What the last read said.
        source: io::Error,
    },
    /// It is larger or smaller than it was when it was opened.
    #[error("disk {disk} had {was_bytes} bytes and has {is_bytes} now; open it anew and resync it")]
    SizeChanged {
        /// The disk.
        disk: DiskNumber,
        /// Before.
        was_bytes: u64,
        /// Now.
        is_bytes: u64,
    },
    /// No disk has this number.
    #[error("no disk {disk} is open for reading")]
    NoSuchDisk {
        /// The number.
        disk: DiskNumber,
    },
    /// The machinery of reading failed, not a disk.
    #[error("reading broke down: {0}")]
    Engine(io::Error),
}

/// A pass over the changes could not be finished. Nothing is lost: what was not handed to the
/// sink counts as written again.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// A disk failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The receiver closed.
    #[error(transparent)]
    Sink(#[from] SinkClosed),
    /// The tracker follows a disk of another size.
    #[error("disk {disk} has {blocks} blocks but {tracked_blocks} are tracked; attach it anew")]
    TrackedSize {
        /// The disk.
        disk: DiskNumber,
        /// Blocks of the disk.
        blocks: u64,
        /// Blocks that the tracker knows.
        tracked_blocks: u64,
    },
    /// The number is taken.
    #[error("disk {disk} is being captured already")]
    DiskTwice {
        /// The disk.
        disk: DiskNumber,
    },
}

/// No point was taken. Nothing is lost, and the next try begins where this one ended.
#[derive(Debug, thiserror::Error)]
pub enum PointError {
    /// The load left no moment for it until the deadline.
    #[error(transparent)]
    NotTaken(#[from] NotTaken),
    /// The file systems could not be frozen.
    #[error(transparent)]
    Quiesce(#[from] QuiesceError),
    /// A disk, the receiver or the tracker failed.
    #[error(transparent)]
    Capture(#[from] CaptureError),
}

/// Why no attempt at a point was valid, in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotTaken {
    /// Switches of epoch.
    pub attempts: u32,
    /// How long it was tried.
    pub elapsed: Duration,
    /// Blocks that had to be read in the last attempt's window.
    pub blocks_in_window: u64,
    /// Attempts that failed because too many blocks changed before the switch to hold them.
    pub too_many: u32,
    /// Blocks that were written inside a window, with how often, the worst first; at most eight.
    pub hottest: Vec<HotBlock>,
}

/// A block that was written while a point was being taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotBlock {
    /// On which disk.
    pub disk: DiskNumber,
    /// Which block.
    pub block: u64,
    /// In how many attempts it was written inside the window.
    pub collisions: u32,
}

impl std::error::Error for NotTaken {}

impl std::fmt::Display for NotTaken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { attempts, elapsed, blocks_in_window, too_many, hottest } = self;
        write!(
            f,
            "no point in {attempts} attempts over {elapsed:.1?}: {blocks_in_window} blocks had to be read \
             in the last one, {too_many} attempts had too many"
        )?;
        for (index, hot) in hottest.iter().enumerate() {
            let lead = if index == 0 { "; written meanwhile:" } else { "," };
            write!(f, "{lead} disk {} block {} ({} times)", hot.disk, hot.block, hot.collisions)?;
        }
        f.write_str("; the load is too high for the disk's speed, or take quiesced points")
    }
}

/// Blocks that the disk cannot read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// On which disk.
    pub disk: DiskNumber,
    /// Which blocks.
    pub extent: Extent,
    /// The kernel's error number.
    pub errno: i32,
}
