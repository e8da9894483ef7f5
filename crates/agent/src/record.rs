//! What the agent remembers across restarts, in one small file that is replaced durably.
//!
//! The file never makes a copy look better than it is. Everything that could be lost is noted
//! before it can be: that a disk is about to be attached, that a resync is needed, that a point
//! is about to be sealed. A file that is missing, damaged or older than the copy leads to a
//! resync, which compares everything, never to trust.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lifeboat_model::{DiskNumber, Epoch, PointId};
use lifeboat_trust::private_file::{FileError, read_public, write_durably};
use serde::{Deserialize, Serialize};

/// Changes whenever an older file could be misunderstood.
const VERSION: u32 = 1;

/// Everything that the agent remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    version: u32,
    /// Every disk that was ever protected; numbers are never given twice.
    pub disks: BTreeMap<DiskNumber, DiskRecord>,
    /// The point that is being sealed, or was when this was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<PendingSeal>,
    /// The time T of the newest point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_point: Option<Timestamp>,
    /// The agent's last life: a number drawn at its start; 0 before the first.
    #[serde(default, skip_serializing_if = "is_none")]
    pub life: u64,
    /// The operator's request for a resync that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resync_request: Option<u64>,
}

const fn is_none(life: &u64) -> bool {
    *life == 0
}

/// What is remembered of one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRecord {
    /// What the disk calls itself, see [`crate::device`].
    pub identity: String,
    /// The path by which it was named last.
    pub path: String,
    /// Its size in bytes when `sync` was decided; 0 before the first time.
    pub bytes: u64,
    /// Whether the settings name it.
    pub protected: bool,
    /// Tracking is being attached. Found set at a start, it means that nobody knows whether the
    /// tracking that is there now is the one that was there before.
    pub attaching: bool,
    /// The open epoch and how many parts of it are known to be durable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<Sent>,
    /// The life whose answer about this disk was taken in last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writer: Option<u64>,
    /// The newest sealed point that has this disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<PointId>,
    /// What the copy lacks.
    pub sync: Sync,
}

/// Parts of an epoch that are durable on the process server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sent {
    /// The open epoch.
    pub epoch: Epoch,
    /// Its durable parts.
    pub parts: u32,
}

/// What the copy of a disk lacks, apart from what the tracker marks as written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Sync {
    /// Not decided yet: the process server has not been asked.
    New,
    /// A range is being copied for the first time.
    Copy {
        /// The first block that is not acknowledged.
        next_block: u64,
        /// The block after the last one.
        end_block: u64,
        /// Whether the copy may hold something else than zeroes there.
        send_zeroes: bool,
    },
    /// The copy is being compared with the disk.
    Resync {
        /// One sentence: why.
        reason: String,
        /// The first chunk that is not known to be equal.
        next_chunk: u64,
    },
    /// Nothing.
    Following,
}

/// A point whose seal may or may not have arrived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PendingSeal {
    /// The point.
    pub point: PointId,
    /// The epoch that it ends on each disk.
    pub epochs: BTreeMap<DiskNumber, Epoch>,
}

/// The record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// It was written by a later version.
    #[error(
        "{} was written by a newer agent (version {version}); start that one, or remove the file, which means a resync",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

impl Default for Record {
    fn default() -> Self {
        Self {
            version: VERSION,
            disks: BTreeMap::new(),
            pending: None,
            last_point: None,
            life: 0,
            resync_request: None,
        }
    }
}

impl DiskRecord {
    /// A disk that is protected from now on.
    #[must_use]
    pub fn new(identity: String, path: String) -> Self {
        Self {
            identity,
            path,
            bytes: 0,
            protected: true,
            attaching: false,
            sent: None,
            writer: None,
            sealed: None,
            sync: Sync::New,
        }
    }
}

impl Record {
    /// Reads the record; an empty one when there is none or what is there cannot be understood,
    /// the latter with the reason.
    ///
    /// # Errors
    /// When the file is there but cannot be read, or is of a later version.
    pub fn load(path: &Path) -> Result<(Self, Option<String>), RecordError> {
        let bytes = match read_public(path) {
            Ok(bytes) => bytes,
            Err(FileError::Missing { .. }) => return Ok((Self::default(), None)),
            Err(error) => return Err(error.into()),
        };
        #[derive(Deserialize)]
        struct Envelope {
            version: u32,
        }
        match serde_json::from_slice::<Envelope>(&bytes) {
            Ok(Envelope { version }) if version > VERSION => {
                return Err(RecordError::Newer { path: path.to_owned(), version });
            }
            _ => {}
        }
        match serde_json::from_slice(&bytes) {
            Ok(record) => Ok((record, None)),
            Err(error) => {
                let why = format!("{} cannot be understood ({error})", path.display());
                Ok((Self::default(), Some(why)))
            }
        }
    }

    /// Replaces the file durably.
    ///
    /// # Errors
    /// When the system refuses; the old content is then still there.
    pub fn save(&self, path: &Path) -> Result<(), RecordError> {
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        Ok(write_durably(path, &bytes)?)
    }

    /// The number of the disk that `path` names now: the one that its identity had before, or a
    /// new one. Without an identity, since the disk is not there, the one that the path had.
    pub fn number_of(&mut self, path: &str, identity: Option<&str>) -> DiskNumber {
        let found = match identity {
            Some(identity) => self
                .find(|disk| disk.identity == identity)
                .or_else(|| self.find(|disk| disk.path == path && disk.identity == unseen(path))),
            None => self
                .find(|disk| disk.path == path && disk.protected)
                .or_else(|| self.find(|disk| disk.path == path)),
        };
        let identity = identity.map_or_else(|| unseen(path), str::to_owned);
        let number = found.unwrap_or_else(|| self.next_number());
        let disk =
            self.disks.entry(number).or_insert_with(|| DiskRecord::new(identity.clone(), path.to_owned()));
        disk.path = path.to_owned();
        if disk.identity == unseen(path) {
            disk.identity = identity;
        }
        number
    }

    fn find(&self, wanted: impl Fn(&DiskRecord) -> bool) -> Option<DiskNumber> {
        self.disks.iter().find(|(_, disk)| wanted(disk)).map(|(number, _)| *number)
    }

    fn next_number(&self) -> DiskNumber {
        self.disks.keys().next_back().map_or(DiskNumber(0), |last| DiskNumber(last.0.saturating_add(1)))
    }
}

/// The identity of a disk that was never seen: that of its name.
fn unseen(path: &str) -> String {
    format!("unseen:{path}")
}

#[cfg(test)]
mod golden;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.json");
        assert_eq!(Record::load(&path).unwrap(), (Record::default(), None));
        let mut record = Record::default();
        for (index, sync) in [
            Sync::New,
            Sync::Copy { next_block: 7, end_block: 9, send_zeroes: true },
            Sync::Resync { reason: "asked for".into(), next_chunk: 3 },
            Sync::Following,
        ]
        .into_iter()
        .enumerate()
        {
            let number = record.number_of(&format!("/dev/{index}"), Some(&format!("serial {index}")));
            record.disks.get_mut(&number).unwrap().sync = sync;
        }
        record.pending =
            Some(PendingSeal { point: PointId::new(5), epochs: [(DiskNumber(1), Epoch(2))].into() });
        record.save(&path).unwrap();
        assert_eq!(Record::load(&path).unwrap(), (record, None));
    }

    #[test]
    fn a_damaged_record_is_not_trusted_and_a_newer_one_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.json");
        std::fs::write(&path, b"{\"version\":1,\"disks\":{\"0\":").unwrap();
        let (record, why) = Record::load(&path).unwrap();
        assert_eq!(record, Record::default());
        assert!(why.unwrap().contains("record.json"));
        std::fs::write(&path, b"{\"version\":9}").unwrap();
        assert!(matches!(Record::load(&path), Err(RecordError::Newer { version: 9, .. })));
    }

    #[test]
    fn a_disk_keeps_its_number_under_another_name() {
        let mut record = Record::default();
        assert_eq!(record.number_of("/dev/sda", Some("wwid:a")), DiskNumber(0));
        assert_eq!(record.number_of("/dev/sdb", Some("wwid:b")), DiskNumber(1));
        // The kernel named them the other way round.
        assert_eq!(record.number_of("/dev/sda", Some("wwid:b")), DiskNumber(1));
        assert_eq!(record.number_of("/dev/sdb", Some("wwid:a")), DiskNumber(0));
        // Another disk in the same place is another disk.
        assert_eq!(record.number_of("/dev/sda", Some("wwid:c")), DiskNumber(2));
    }

    #[test]
    fn a_disk_that_is_away_is_known_by_its_path() {
        let mut record = Record::default();
        assert_eq!(record.number_of("/dev/sda", None), DiskNumber(0));
        assert_eq!(record.number_of("/dev/sda", Some("wwid:a")), DiskNumber(0));
        assert_eq!(record.disks[&DiskNumber(0)].identity, "wwid:a");
        assert_eq!(record.number_of("/dev/sda", None), DiskNumber(0));
        assert_eq!(record.disks[&DiskNumber(0)].identity, "wwid:a");
    }
}
