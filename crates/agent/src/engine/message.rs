//! What the engine is told and what it says: [`Event`]s in, [`Action`]s out.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_capture::CapturedPoint;
use lifeboat_model::{BlockSet, DiskNumber, Epoch, Extent, PointId};
use lifeboat_wire::agent::{Assignment, DescribeDisk, DiskState, RequestResult, SealPoint};
use lifeboat_wire::event::Severity;

use super::copy::{CopyStep, Job};
use crate::record::Record;

/// A disk that the settings name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedDisk {
    /// By which path.
    pub path: String,
    /// What it calls itself; absent when it is not there.
    pub identity: Option<String>,
}

/// A disk that is open and tracked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its size in bytes.
    pub bytes: u64,
    /// Model and serial number.
    pub hardware_id: Option<String>,
    /// What the tracking knows of the time before.
    pub tracking: Tracking,
    /// Something was written that no bit tells of: one sentence.
    pub unlocated: Option<String>,
}

/// What the tracking of a disk knows of the time before it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// Every write since.
    Continued,
    /// Every write since, and the disk is larger now.
    Grown,
    /// Nothing: one sentence says why.
    Fresh(String),
}

/// Why a request to the process server failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It cannot be reached, or says that it cannot do it now. One sentence.
    Away(String),
    /// It has another state than this request assumed.
    Conflict(String),
    /// It will not do it: one sentence.
    Refused(String),
}

/// Why a disk left its hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskProblem {
    /// It is gone; one sentence.
    Gone(String),
    /// It has another size.
    SizeChanged,
    /// Something was written that no bit tells of; one sentence.
    Unlocated(String),
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The settings name these disks.
    Wanted(Vec<WantedDisk>),
    /// [`Action::Save`] ended.
    Saved(Result<(), String>),
    /// [`Action::Open`] ended.
    Opened(DiskNumber, Result<Opened, String>),
    /// [`Action::Describe`] ended.
    Described(DiskNumber, Result<DiskState, Failure>),
    /// [`Action::Join`] ended.
    Joined(DiskNumber, Result<(), DiskProblem>),
    /// [`Action::Leave`] ended.
    Left(DiskNumber),
    /// [`Action::Round`] ended.
    Round(RoundEnd),
    /// [`Action::Acknowledge`] ended; the sets that were asked for.
    Acknowledged,
    /// [`Action::Collected`] ended.
    Collected(DiskNumber, Option<BlockSet>),
    /// [`Action::Copier`] ended.
    Copier(DiskNumber, CopyStep),
    /// [`Action::Seal`] ended.
    Sealed(Result<PointId, Failure>),
    /// Something about a disk that was not asked for.
    Problem(DiskNumber, DiskProblem),
    /// [`Action::StandDown`] ended; true when all file systems are clean.
    StoodDown(Result<bool, String>),
    /// [`Action::StandUp`] ended.
    StoodUp(Result<(), String>),
    /// [`Action::Retire`] ended.
    Retired(Result<(), String>),
    /// File systems are not held any more: one sentence.
    HoldLost(String),
    /// The process server says what to do.
    Assignment(Box<Assignment>),
    /// It could not be asked: one sentence.
    NoAssignment(String),
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Write the record durably, at once.
    Save(Box<Record>),
    /// Open and track the disk.
    Open(DiskNumber, String),
    /// Let go of the disk; with `untrack`, end its tracking.
    Close {
        /// The disk.
        disk: DiskNumber,
        /// Whether its pins are removed.
        untrack: bool,
    },
    /// Forget the writes that were not located: a resync is on record.
    Settle(DiskNumber),
    /// Describe the disk to the process server.
    Describe(DiskNumber, DescribeDisk),
    /// Give the disk to the flow.
    Join(DiskNumber),
    /// Take the disk from the flow.
    Leave(DiskNumber),
    /// Send what was written, and take a point if wanted.
    Round(Round),
    /// The last round is on record: its blocks need not be sent again.
    Acknowledge,
    /// Give the blocks that were taken since [`Round::collect`].
    Collected(DiskNumber),
    /// Collect no more.
    CollectEnd,
    /// Make blocks count as written.
    PutBack(DiskNumber, Vec<Extent>),
    /// Copy or compare a piece of a disk.
    Copier(Job),
    /// Seal the point.
    Seal(SealPoint),
    /// Stop the services and hold the file systems on these disks.
    StandDown(Vec<String>),
    /// Let the file systems go and start the services.
    StandUp,
    /// Let the file systems go; the copy has taken over.
    Retire,
    /// Post the result of a command.
    Result(RequestResult),
    /// Tell the operator.
    Tell(Notice),
}

/// An event for the operator, before it has a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// How much it matters.
    pub severity: Severity,
    /// A stable word for programs.
    pub code: &'static str,
    /// About which disk.
    pub disk: Option<DiskNumber>,
    /// What happened.
    pub message: String,
    /// What to do.
    pub next_step: String,
}

/// Where the parts of a disk go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenEpoch {
    /// The disk.
    pub disk: DiskNumber,
    /// Its open epoch.
    pub epoch: Epoch,
    /// The next part.
    pub part: u32,
}

/// One round of the flow: what was written is sent and acknowledged, perhaps up to a point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// All disks of the flow.
    pub open: Vec<OpenEpoch>,
    /// The point to take at the end.
    pub point: Option<PointOrder>,
}

/// A point to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointOrder {
    /// In which way.
    pub way: Way,
    /// How long to try.
    pub timeout: Duration,
    /// The time of the newest point before it, by which a clock that was set back is known.
    pub newest: Option<Timestamp>,
    /// Collect from then on what is written, to compare the disks with the point.
    pub collect: bool,
}

/// How a point is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Without a pause.
    Optimistic,
    /// In a freeze; a file system that cannot be frozen is synced and the point counts as crash-consistent.
    QuiescedIfPossible,
    /// In a freeze of every file system, or not at all.
    Quiesced,
}

/// How a round ended.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one at a time, and nearly all are done")]
pub enum RoundEnd {
    /// All of it is durable.
    Done(RoundDone),
    /// A part was lost; all blocks count as written again.
    Lost(Failure),
    /// A disk could not be read; all blocks count as written again.
    Disk(DiskNumber, DiskProblem),
    /// Something else: one sentence. All blocks count as written again.
    Broken(String),
}

/// A round whose parts are durable.
#[derive(Clone, Debug)]
pub struct RoundDone {
    /// The number of durable parts of the open epoch, for disks that sent any.
    pub parts: Vec<(DiskNumber, u32)>,
    /// Bytes of disk that were sent.
    pub sent_bytes: u64,
    /// Blocks that are often rewritten were left for the next round.
    pub deferred: bool,
    /// There is more to send; no point was tried.
    pub more: bool,
    /// How long it took until the point was begun.
    pub before_point: Duration,
    /// The point, if one was wanted and tried.
    pub point: Option<Result<CapturedPoint, PointFailure>>,
    /// What could not be read: by disk, in a few words where.
    pub unreadable: BTreeMap<DiskNumber, String>,
    /// Writes that were sent to each disk since its tracking began.
    pub writes: BTreeMap<DiskNumber, u64>,
}

/// Why no point was taken, though nothing was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PointFailure {
    /// The load left no moment for it; in numbers.
    NotTaken(String),
    /// File systems could not be frozen; one sentence.
    NotFrozen(String),
}
