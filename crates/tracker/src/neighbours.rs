//! Other agents on this machine, as far as their pins and locks tell.
//!
//! An agent that runs holds a lock on its directory of pins, and the directory names the disks that
//! it tracks. One that does not run left its pins behind: that is no reason to refuse a disk, since
//! it may never come back, and it is refused itself when it does.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::device::{DiskDevice, DiskIdentity};
use crate::instance::Instance;
use crate::support::is_bpffs;
use crate::{TrackerError, TrackerSet};

/// Where agents keep their pins unless the settings say otherwise.
const BPFFS: &str = "/sys/fs/bpf";

/// How deep below the mount point directories of pins are looked for.
const DEPTH_MAX: u32 = 3;

/// An agent that tracks a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningTracker {
    /// Its process.
    pub process: u32,
    /// Its directory of pins.
    pub directory: PathBuf,
}

impl DiskDevice {
    /// The agent that runs on this machine and tracks this disk, if there is one; `but` is a
    /// directory of pins that does not count. Agents of other versions, and in other mount
    /// namespaces, may not be found.
    #[must_use]
    pub fn tracked_by(&self, but: Option<&Path>) -> Option<RunningTracker> {
        let mut directories = Vec::new();
        let own_root = but.and_then(root_of);
        for root in own_root.iter().map(PathBuf::as_path).chain([Path::new(BPFFS)]) {
            if is_bpffs(root).unwrap_or(false) {
                find_directories(root, DEPTH_MAX, &mut directories);
            }
        }
        let same = |other: &DiskIdentity| {
            (other.major, other.minor, other.diskseq)
                == (self.identity.major, self.identity.minor, self.identity.diskseq)
        };
        directories.into_iter().filter(|directory| Some(directory.as_path()) != but).find_map(|directory| {
            let pinned = Instance::list(&directory).ok()?;
            let tracks = pinned.iter().any(|instance| instance.identity.as_ref().is_some_and(same));
            let process = tracks.then(|| lock_holder(&directory))??;
            Some(RunningTracker { process, directory })
        })
    }
}

impl TrackerSet {
    /// Refuses a disk that another agent on this machine tracks.
    ///
    /// # Errors
    /// [`TrackerError::TrackedElsewhere`], which names the other.
    pub fn refuse_tracked_elsewhere(&self, device: &DiskDevice) -> Result<(), TrackerError> {
        let Some(RunningTracker { process, directory }) = device.tracked_by(Some(self.directory())) else {
            return Ok(());
        };
        Err(TrackerError::TrackedElsewhere { name: device.name.clone(), process, directory })
    }
}

/// The mount point of the BPF file system that a directory is on.
fn root_of(directory: &Path) -> Option<PathBuf> {
    directory.ancestors().take_while(|path| is_bpffs(path).unwrap_or(false)).last().map(Path::to_owned)
}

/// Directories that look like those of a tracker set, each once.
fn find_directories(folder: &Path, depth: u32, found: &mut Vec<PathBuf>) {
    let mut is_set = false;
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name().to_string_lossy().starts_with("disk-") {
            is_set = true;
        } else if depth > 0 {
            find_directories(&entry.path(), depth - 1, found);
        }
    }
    if is_set && !found.iter().any(|other| other == folder) {
        found.push(folder.to_owned());
    }
}

/// The process that holds the lock on a directory.
fn lock_holder(directory: &Path) -> Option<u32> {
    let metadata = fs::metadata(directory).ok()?;
    let locks = fs::read_to_string("/proc/locks").unwrap_or_else(|error| {
        tracing::debug!(%error, "cannot see which agents run");
        String::new()
    });
    holder_in(&locks, metadata.dev(), metadata.ino())
}

/// From lines such as `1: FLOCK  ADVISORY  WRITE 8705 00:1c:11149330 0 EOF`; the device numbers are
/// hexadecimal. A process of another namespace is shown as 0 or below.
fn holder_in(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let place = format!("{:02x}:{:02x}:{inode}", rustix::fs::major(device), rustix::fs::minor(device));
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, process, at, ..] = words.as_slice() else { return None };
        (*at == place).then(|| process.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_found_by_device_and_inode() {
        let locks = "1: FLOCK  ADVISORY  WRITE 8705 fe:00:11149330 0 EOF\n\
                     1: -> FLOCK  ADVISORY  WRITE 9 fe:00:11149330 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 23294 00:1c:77 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 42 00:1c:77 0 EOF\n";
        assert_eq!(holder_in(locks, rustix::fs::makedev(0, 0x1c), 77), Some(42));
        assert_eq!(holder_in(locks, rustix::fs::makedev(0xfe, 0), 11_149_330), Some(8705));
        assert_eq!(holder_in(locks, rustix::fs::makedev(0xfe, 0), 77), None);
    }
}
