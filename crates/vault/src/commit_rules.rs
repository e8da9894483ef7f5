//! Which commits make a recovery point. Pure: what is known comes in, the judgement goes out.
//!
//! A server's points are one history. Each follows the one before it: every disk of it, each disk one
//! epoch further. Whoever brings anything else has another history (a spool that was put back, a
//! second process server, a server that was fenced), and to mix two histories would make points that
//! never existed.
//!
//! Times have no say in it: clocks jump. Which time a point gets is decided in
//! [`point_time`](crate::point_time).

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use lifeboat_model::{DiskNumber, Epoch, Part, PointId, ServerId};
use lifeboat_wire::process_server::CommitPoint;

/// The largest size of a disk or a file that is believed, in bytes: an exbibyte.
pub(crate) const BYTES_MAX: u64 = 1 << 60;

/// What is committed of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// The newest point.
    pub newest: Option<NewestPoint>,
    /// The newest committed epoch of each disk that any point has.
    pub epochs: BTreeMap<DiskNumber, Epoch>,
    /// All disks that are known, and whether each was removed.
    pub known: BTreeMap<DiskNumber, Removed>,
}

/// Whether an operator has taken a disk out of protection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// It has been: points need not have it.
    Yes,
    /// It is protected.
    No,
}

/// The newest point of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewestPoint {
    /// Its id.
    pub point: PointId,
    /// Its disks.
    pub disks: BTreeSet<DiskNumber>,
}

/// A commit that makes no point. Repeating it does not help, but for [`CommitRefusal::FileMissing`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitRefusal {
    /// The server is not known.
    #[error(
        "server {0} is not known to this vault; its disks must be registered before a point is committed"
    )]
    ServerUnknown(ServerId),
    /// The server has failed over.
    #[error(
        "server {server} has failed over at {since:.0} and its history goes on at the recovery site; its source \
         must send nothing until it is protected again"
    )]
    Fenced {
        /// The server.
        server: ServerId,
        /// Since when.
        since: Timestamp,
    },
    /// A disk is not known.
    #[error("disk {0} is not known to this vault; it must be registered before a point has it")]
    DiskUnknown(DiskNumber),
    /// The point has no disks.
    #[error("point {0} has no disks")]
    NoDisks(PointId),
    /// A disk twice.
    #[error("disk {0} is in the point more than once")]
    DiskTwice(DiskNumber),
    /// A disk without bytes, or with more than there can be.
    #[error("disk {disk} cannot have {bytes} bytes")]
    DiskBytes {
        /// The disk.
        disk: DiskNumber,
        /// Its size as it was given.
        bytes: u64,
    },
    /// A disk of the newest point is not in this one.
    #[error(
        "disk {disk} is in the server's newest point {newest} but not in this one; if it is not to be \
         protected any more, say so with: lifeboat server remove-disk SERVER {disk}"
    )]
    DiskMissing {
        /// The disk.
        disk: DiskNumber,
        /// The newest point.
        newest: PointId,
    },
    /// The epoch is not the one that follows.
    #[error(
        "disk {disk}: the point ends epoch {epoch}, but epoch {expected} comes next in this vault; \
         the process server has another history of this disk, which is not mixed in"
    )]
    Epoch {
        /// The disk.
        disk: DiskNumber,
        /// The epoch as it was given.
        epoch: Epoch,
        /// The epoch that would follow.
        expected: Epoch,
    },
    /// A file of another epoch, a part that the epoch does not have, or one twice.
    #[error("disk {disk}, epoch {epoch}, part {part}: the point has no such file, or has it twice")]
    FileUnexpected {
        /// The disk.
        disk: DiskNumber,
        /// The epoch.
        epoch: Epoch,
        /// The part.
        part: Part,
    },
    /// Not all parts are named.
    #[error("disk {disk}, epoch {epoch}: {found} of {parts} files are named")]
    FilesMissing {
        /// The disk.
        disk: DiskNumber,
        /// The epoch.
        epoch: Epoch,
        /// Files that are named.
        found: usize,
        /// Parts that the epoch has.
        parts: u32,
    },
    /// A named file is not stored.
    #[error("disk {disk}, epoch {epoch}, part {part}: the file is not stored; upload it and commit again")]
    FileMissing {
        /// The disk.
        disk: DiskNumber,
        /// The epoch.
        epoch: Epoch,
        /// The part.
        part: Part,
    },
    /// A stored file is not as the point has it.
    #[error(
        "disk {disk}, epoch {epoch}, part {part}: the stored file has another size or digest than the point says; \
         upload it anew"
    )]
    FileDiffers {
        /// The disk.
        disk: DiskNumber,
        /// The epoch.
        epoch: Epoch,
        /// The part.
        part: Part,
    },
    /// The same point was committed with another content.
    #[error("point {0} is committed already, with another content")]
    PointDiffers(PointId),
    /// Another server has a point of this id.
    #[error(
        "point {point} is one of server {owner} already; two servers cannot have points of one id: \
         if one was cloned from the other, give the agent of the clone a new id, then take the point again"
    )]
    PointTaken {
        /// The id.
        point: PointId,
        /// Whose it is.
        owner: ServerId,
    },
}

/// Judges a commit by everything but what is stored.
///
/// # Errors
/// When it makes no point.
pub fn check(history: &History, commit: &CommitPoint) -> Result<(), CommitRefusal> {
    let seal = &commit.seal;
    if seal.disks.is_empty() {
        return Err(CommitRefusal::NoDisks(seal.point));
    }
    let mut parts = BTreeMap::new();
    for sealed in &seal.disks {
        let disk = sealed.disk;
        if !history.known.contains_key(&disk) {
            return Err(CommitRefusal::DiskUnknown(disk));
        }
        if sealed.bytes == 0 || sealed.bytes > BYTES_MAX {
            return Err(CommitRefusal::DiskBytes { disk, bytes: sealed.bytes });
        }
        let expected = history.epochs.get(&disk).map_or(Epoch(1), |epoch| epoch.next());
        if sealed.epoch != expected {
            return Err(CommitRefusal::Epoch { disk, epoch: sealed.epoch, expected });
        }
        if parts.insert(disk, (sealed.epoch, sealed.parts)).is_some() {
            return Err(CommitRefusal::DiskTwice(disk));
        }
    }
    if let Some(newest) = &history.newest {
        let left_out = newest
            .disks
            .iter()
            .find(|disk| !parts.contains_key(disk) && !is_removed(history, commit, **disk));
        if let Some(disk) = left_out {
            return Err(CommitRefusal::DiskMissing { disk: *disk, newest: newest.point });
        }
    }
    check_files(commit, &parts)
}

/// Whether a disk need not be in a point: an operator removed it here, or took it out of the agent's settings.
fn is_removed(history: &History, commit: &CommitPoint, disk: DiskNumber) -> bool {
    history.known.get(&disk) == Some(&Removed::Yes) || commit.seal.removed.contains(&disk)
}

/// Disks whose protection a commit changes, and how.
#[must_use]
pub fn changed_disks(history: &History, commit: &CommitPoint) -> Vec<(DiskNumber, Removed)> {
    let has = |disk: &DiskNumber| commit.seal.disks.iter().any(|sealed| sealed.disk == *disk);
    let had = |disk: &DiskNumber| history.newest.as_ref().is_some_and(|newest| newest.disks.contains(disk));
    let change = |(disk, removed): (&DiskNumber, &Removed)| match removed {
        Removed::No if commit.seal.removed.contains(disk) && !has(disk) => Some((*disk, Removed::Yes)),
        // It is back. One that is still in points from before it was removed is not.
        Removed::Yes if has(disk) && !had(disk) => Some((*disk, Removed::No)),
        _ => None,
    };
    history.known.iter().filter_map(change).collect()
}

fn check_files(
    commit: &CommitPoint,
    parts: &BTreeMap<DiskNumber, (Epoch, u32)>,
) -> Result<(), CommitRefusal> {
    let mut named: BTreeMap<DiskNumber, BTreeSet<Part>> = BTreeMap::new();
    for file in &commit.files {
        let has_part =
            parts.get(&file.disk).is_some_and(|(epoch, parts)| *epoch == file.epoch && file.part.0 < *parts);
        if !has_part || !named.entry(file.disk).or_default().insert(file.part) {
            return Err(CommitRefusal::FileUnexpected {
                disk: file.disk,
                epoch: file.epoch,
                part: file.part,
            });
        }
    }
    for (disk, (epoch, parts)) in parts {
        let found = named.get(disk).map_or(0, BTreeSet::len);
        if found as u64 != u64::from(*parts) {
            return Err(CommitRefusal::FilesMissing { disk: *disk, epoch: *epoch, found, parts: *parts });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
