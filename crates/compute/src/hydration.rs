//! Copying the disks of a running machine to local files: what is asked and what is answered.

use std::fs;
use std::path::PathBuf;

use lifeboat_model::DiskNumber;
use serde::{Deserialize, Serialize};

use crate::directory::{MachineState, Stage};
use crate::error::ComputeError;
use crate::spec::{DiskFormat, MachineDisk};

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

/// What asking for a copy means for a machine.
pub(crate) enum Asked {
    /// A new copy of this disk, to a file that is not there yet.
    New(MachineDisk),
    /// The copy that is being made.
    Copying,
    /// The copy that the machine runs on.
    Local,
}

/// What asking for this copy of a machine's disk means, or why it cannot be had.
pub(crate) fn asked(
    state: &MachineState,
    disk: DiskNumber,
    target: &HydrationTarget,
) -> Result<Asked, ComputeError> {
    let machine = state.spec.id;
    let path = target.path.display();
    let refused = |why: String| Err(ComputeError::Hydration { machine, disk, why });
    let spec = state.spec.disks.iter().find(|known| known.number == disk).cloned();
    let spec = spec.ok_or(ComputeError::NoDisk { machine, disk })?;
    if let Some(copy) = state.copy_of(disk).filter(|copy| !matches!(copy.stage, Stage::Failed { .. })) {
        if (&copy.target.path, copy.target.format) != (&target.path, target.format) {
            return refused(format!("has a copy in {} already", copy.target.path.display()));
        }
        return Ok(if copy.stage == Stage::Copying { Asked::Copying } else { Asked::Local });
    }
    if !target.path.is_absolute() || target.path.to_str().is_none() {
        return refused(format!("cannot be copied to {path}, which is no absolute path in UTF-8"));
    }
    if fs::symlink_metadata(&target.path).is_ok() {
        return refused(format!("cannot be copied to {path}, which exists already"));
    }
    Ok(Asked::New(spec))
}
