use std::io;
use std::path::PathBuf;

use lifeboat_hrl::{HrlError, KeyId};
use lifeboat_model::{Digest, Epoch, Part};

/// A point's disk cannot be read. No data comes with it.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A file is not what was written, or not the one that was asked for.
    #[error(transparent)]
    File(#[from] HrlError),
    /// A file is not in the store.
    #[error("{object} is missing in the store; put it back from a copy, or use another point")]
    Missing {
        /// Its name in the store.
        object: String,
    },
    /// A file is longer or shorter than when it was stored.
    #[error(
        "{object} has {found} bytes in the store and had {expected} when it was stored: it was cut short or replaced"
    )]
    Length {
        /// Its name in the store.
        object: String,
        /// What the catalog says.
        expected: u64,
        /// What the store says.
        found: u64,
    },
    /// A file is whole, but another one than the catalog means.
    #[error(
        "{object} holds the content {found} and the catalog says {expected}: it was replaced by another file"
    )]
    Digest {
        /// Its name in the store.
        object: String,
        /// What the catalog says.
        expected: Digest,
        /// What the file's footer says.
        found: Digest,
    },
    /// The key that a file needs was not given.
    #[error("{object} was written with disk key {key}, which the catalog does not have")]
    NoKey {
        /// Its name in the store.
        object: String,
        /// The key.
        key: KeyId,
    },
    /// The list of files has a gap, so the disk would read wrong.
    #[error("part {part} of epoch {epoch} is not in the catalog although later parts or epochs are")]
    Gap {
        /// The last epoch of the file that is not there.
        epoch: Epoch,
        /// Which part of it.
        part: Part,
    },
    /// The list of files is not in order.
    #[error("{object} is listed out of order; this is a fault of the program")]
    OutOfOrder {
        /// The file that comes too late.
        object: String,
    },
    /// The store did not give a file's bytes.
    #[error("{object} cannot be read from the store: {source}")]
    Store {
        /// Its name in the store.
        object: String,
        /// What the store said.
        source: object_store::Error,
    },
    /// The operating system did not give a file's bytes.
    #[error("{object}, byte {at}: it cannot be read: {source}")]
    Read {
        /// Its name in the store.
        object: String,
        /// The byte of the file at which reading began.
        at: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The work was given up: the program is stopping, or has a fault that its log shows.
    #[error("reading was given up; the log says why")]
    GivenUp,
}

/// An overlay cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A later release wrote it.
    #[error("{} has version {version} and was written by a newer Lifeboat: upgrade this vault", path.display())]
    NewerVersion {
        /// Its header.
        path: PathBuf,
        /// The version.
        version: u16,
    },
    /// It is not as it was written.
    #[error("{} is damaged: {why}; what was written to the volume is lost, close it and open the point anew", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
    /// It holds the writes to another disk or point.
    #[error("{} belongs to {found}, not to {expected}; it was left alone", path.display())]
    Foreign {
        /// Its header.
        path: PathBuf,
        /// What was asked for.
        expected: String,
        /// What it says that it is.
        found: String,
    },
    /// Somebody has it open.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// The file that is locked.
        path: PathBuf,
    },
}

impl OverlayError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
