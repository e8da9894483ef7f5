//! Copying the disks of a running machine to local files: what is asked and what is answered.

use std::path::PathBuf;

use lifeboat_model::DiskNumber;
use serde::{Deserialize, Serialize};

use crate::spec::DiskFormat;

/// Where a disk is copied to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HydrationTarget {
    /// A file that is not there yet. It belongs to the machine: cancelling or removing the machine removes it.
    pub path: PathBuf,
    /// How the disk is kept in it.
    pub format: DiskFormat,
    /// At most so many bytes a second; as fast as it goes if none.
    pub bytes_per_second: Option<u64>,
}

/// How far the copying of one disk is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskHydration {
    /// Which disk.
    pub disk: DiskNumber,
    /// The file.
    pub path: PathBuf,
    /// How far.
    pub state: HydrationState,
}

/// How far the copying of a disk is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum HydrationState {
    /// It is being copied.
    Copying {
        /// Bytes copied so far, including what the guest wrote meanwhile.
        done_bytes: u64,
        /// Bytes to copy as known so far; the guest's writes add to it.
        total_bytes: u64,
    },
    /// The machine runs on the copy and let its source go: only now its server may end for good.
    Local,
    /// It was not copied; the machine goes on with its source.
    Failed {
        /// One clause.
        why: String,
    },
}
