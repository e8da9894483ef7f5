//! What must be true, as the simulation knows it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::rc::Rc;

use jiff::Timestamp;
use lifeboat_model::{Digest, DiskNumber, Epoch, PointId, ServerId, VolumeId};
use lifeboat_volume::PointDisk;

use crate::content::Image;
use crate::failover::Fences;

/// A point that an agent has captured and asked to be sealed.
#[derive(Clone, Debug)]
pub struct ExpectedPoint {
    pub server: ServerId,
    pub time: Timestamp,
    /// Disks that the operator had taken out of the agent's settings.
    pub removed: Vec<DiskNumber>,
    /// The disks at its time.
    pub images: BTreeMap<DiskNumber, Rc<Image>>,
}

/// A part that the process server has acknowledged and the vault has not committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartPlace {
    pub site: usize,
    pub server: ServerId,
    pub disk: DiskNumber,
    pub epoch: Epoch,
    pub part: u32,
}

/// What must be true.
#[derive(Default)]
pub struct Model {
    pub points: BTreeMap<PointId, ExpectedPoint>,
    /// Points for which the vault gave a receipt, or that it has listed.
    pub committed: BTreeMap<ServerId, BTreeMap<PointId, Timestamp>>,
    /// The newest committed epoch of each disk.
    pub committed_epochs: BTreeMap<(ServerId, DiskNumber), Epoch>,
    pub acknowledged: BTreeMap<PartPlace, Digest>,
    /// Disks of points that were compared, with the files that they had then.
    pub compared: HashSet<[u8; 32]>,
    /// Points that retention removed; they must not come back.
    pub removed: BTreeSet<PointId>,
    /// Servers of a site whose files in the spool were damaged.
    pub spool_damaged: BTreeSet<(usize, ServerId)>,
    /// Servers of a site whose points the vault refuses, since it has gone another way.
    pub stuck: BTreeSet<(usize, ServerId)>,
    pub volumes: Vec<OpenVolume>,
    pub fences: Fences,
    pub figures: Figures,
}

/// A volume that somebody has opened, as it is read.
pub struct OpenVolume {
    pub id: VolumeId,
    pub server: ServerId,
    pub point: PointId,
    /// Each disk with the objects that were its files when it was opened.
    pub disks: Vec<(DiskNumber, PointDisk, Vec<String>)>,
}

/// How far a run came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub sealed: u64,
    pub committed: u64,
    pub compared: u64,
    pub removed: u64,
    pub merged: u64,
    pub resyncs: u64,
    pub volumes: u64,
    pub failovers: u64,
}

impl std::ops::AddAssign for Figures {
    fn add_assign(&mut self, other: Self) {
        self.sealed += other.sealed;
        self.committed += other.committed;
        self.compared += other.compared;
        self.removed += other.removed;
        self.merged += other.merged;
        self.resyncs += other.resyncs;
        self.volumes += other.volumes;
        self.failovers += other.failovers;
    }
}

/// A sentence that a person can do something with.
pub fn check_sentence(text: &str) {
    let words = text.split_whitespace().count();
    assert!(words >= 4 && text.len() >= 20, "an error without a sentence: {text:?}");
    for trace in ["Some(", "None", "Err(", "unwrap", "RefCell", "Generic {"] {
        assert!(!text.contains(trace), "an error that shows the program and not what to do: {text:?}");
    }
}
