//! One disk: opened, described, decided about, handed on.

use std::time::Duration;

use lifeboat_model::{BLOCK_BYTES, DiskNumber, Epoch, blocks_of_bytes};
use lifeboat_wire::agent::{DescribeDisk, DiskDescription, DiskState};
use lifeboat_wire::event::Severity;

use super::copy::{Job, Progress};
use super::flow::Flow;
use super::{Action, DiskProblem, Engine, Failure, Notice, Opened, REOPEN_EVERY, Tracking, WantedDisk};
use crate::record::{DiskRecord, PendingSeal, Record, Sent, Sync};

/// What is known of a disk while the agent runs; the rest is in the record.
#[derive(Debug)]
pub(super) struct Disk {
    pub open: Open,
    pub link: Link,
    pub member: Member,
    /// Why it cannot be replicated: one sentence.
    pub trouble: Option<String>,
    /// Blocks of it cannot be read: a few words say where.
    pub unreadable: Option<String>,
    pub progress: Progress,
    /// What the copier does for it.
    pub job: Option<Job>,
    /// It is closed only to be opened anew.
    pub reopen: bool,
    /// Descriptions in this life, and the newest one whose answer was taken in.
    pub attempts: u64,
    pub heard: u64,
    /// A settled count is due once the record is saved.
    pub settle: bool,
    /// The settings name it no longer.
    pub unwanted: bool,
}

/// Whether a disk is open.
#[derive(Debug)]
pub(super) enum Open {
    Closed { retry_at: Duration },
    Opening,
    Opened(Opened),
}

/// Whether the process server's state of a disk is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Unknown,
    Asking,
    Known,
}

/// Whether a disk is in the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Member {
    Out,
    Joining,
    In,
    Leaving,
}

impl Disk {
    fn new() -> Self {
        Self {
            open: Open::Closed { retry_at: Duration::ZERO },
            link: Link::Unknown,
            member: Member::Out,
            trouble: None,
            unreadable: None,
            progress: Progress::default(),
            job: None,
            reopen: false,
            attempts: 0,
            heard: 0,
            settle: false,
            unwanted: false,
        }
    }

    pub fn opened(&self) -> Option<&Opened> {
        match &self.open {
            Open::Opened(opened) => Some(opened),
            _ => None,
        }
    }
}

/// What is to be done about a disk whose state the process server told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// There is no copy: make one.
    CopyAll,
    /// Copy and record agree: go on where it was.
    GoOn,
    /// They do not: compare. One sentence says why.
    Resync(String),
}

/// Compares what the agent remembers with what the process server has.
#[must_use]
pub fn decide(record: &DiskRecord, pending: Option<(&PendingSeal, Epoch)>, state: &DiskState) -> Decision {
    // A disk of zeroes has no parts and so no copy, without anything being wrong.
    let nothing = state.copy_bytes.is_none();
    if nothing && matches!(record.sync, Sync::New | Sync::Resync { .. }) {
        return Decision::CopyAll;
    }
    if state.other_writer {
        return Decision::Resync(
            "another agent with this server's certificate has written to its copy".into(),
        );
    }
    if record.sync == Sync::New {
        return Decision::Resync("there is a copy, but this agent has no record of what it sent".into());
    }
    let as_recorded = state.sealed == record.sealed
        && record.sent.is_some_and(|sent| sent.epoch == state.epoch && sent.parts <= state.next_part.0);
    let as_sealed_last = pending.is_some_and(|(seal, epoch)| {
        record.sent.is_some_and(|sent| sent.epoch == epoch)
            && state.sealed == Some(seal.point)
            && state.epoch == epoch.next()
    });
    if as_recorded || as_sealed_last {
        return Decision::GoOn;
    }
    if nothing {
        return Decision::CopyAll;
    }
    let name = |point: Option<_>| {
        point.map_or_else(|| "none".to_owned(), |point: lifeboat_model::PointId| point.to_string())
    };
    Decision::Resync(format!(
        "the process server has another state than this agent sent (its newest point is {}, the agent's {})",
        name(state.sealed),
        name(record.sealed)
    ))
}

impl Engine {
    /// An agent that was killed while it attached cannot tell whether tracking went on.
    pub(super) fn doubt_what_was_being_attached(&mut self) {
        for disk in self.record.disks.values_mut().filter(|disk| disk.attaching) {
            disk.attaching = false;
            if disk.sync != Sync::New {
                disk.sync = Sync::Resync {
                    reason: "the agent was stopped while it began to track the disk".into(),
                    next_chunk: 0,
                };
            }
            self.save_needed = true;
        }
    }

    pub(super) fn wanted(&mut self, wanted: &[WantedDisk]) {
        self.wanted_known = true;
        let before = self.record.clone();
        let mut numbers = Vec::new();
        for one in wanted {
            let number = self.record.number_of(&one.path, one.identity.as_deref());
            if numbers.contains(&number) {
                continue;
            }
            numbers.push(number);
            let new = !self.disks.contains_key(&number);
            self.disks.entry(number).or_insert_with(Disk::new).unwanted = false;
            if new && before.disks.get(&number).is_some_and(|disk| !disk.protected) {
                self.resync(number, "the disk was not protected for a while");
            }
        }
        // Also what the settings named when the agent ran last: its tracking goes on until it is ended.
        let were_protected =
            before.disks.iter().filter(|(_, disk)| disk.protected).map(|(number, _)| *number);
        for number in were_protected {
            self.disks.entry(number).or_insert_with(Disk::new);
        }
        for (number, disk) in &mut self.disks {
            if !numbers.contains(number) {
                disk.unwanted = true;
            }
        }
        for (number, disk) in &mut self.record.disks {
            disk.protected = numbers.contains(number);
        }
        self.save_needed |= self.record != before;
    }

    /// The next thing to do for any disk.
    pub(super) fn next_of_disks(&mut self, now: Duration) -> Option<Action> {
        let numbers: Vec<_> = self.disks.keys().copied().collect();
        numbers.into_iter().find_map(|number| self.next_of_disk(number, now))
    }

    fn next_of_disk(&mut self, number: DiskNumber, now: Duration) -> Option<Action> {
        let may_call = self.may_call(now);
        let flow_idle = matches!(self.flow, Flow::Idle);
        let record = self.record.disks.get_mut(&number)?;
        let disk = self.disks.get_mut(&number)?;
        if disk.settle && disk.opened().is_some() {
            disk.settle = false;
            return Some(Action::Settle(number));
        }
        let following = record.sync == Sync::Following;
        let stays = following && !disk.unwanted && disk.opened().is_some() && disk.trouble.is_none();
        if disk.member == Member::In && !stays {
            if !flow_idle {
                return None;
            }
            disk.member = Member::Leaving;
            return Some(Action::Leave(number));
        }
        if disk.member == Member::Out && self.copying != Some(number) {
            if disk.unwanted {
                return Some(self.forget(number));
            }
            if disk.trouble.is_some() && disk.opened().is_some() {
                let wait = if std::mem::take(&mut disk.reopen) { Duration::ZERO } else { REOPEN_EVERY };
                disk.open = Open::Closed { retry_at: now + wait };
                return Some(Action::Close { disk: number, untrack: false });
            }
        }
        match &disk.open {
            Open::Closed { retry_at } if now >= *retry_at && !disk.unwanted => {
                // On record first: see `doubt_what_was_being_attached`.
                if !record.attaching {
                    record.attaching = true;
                    self.save_needed = true;
                    return Some(Action::Save(Box::new(self.take_record_to_save())));
                }
                disk.open = Open::Opening;
                return Some(Action::Open(number, record.path.clone()));
            }
            Open::Opened(opened)
                if may_call && disk.link == Link::Unknown && flow_idle && self.copying != Some(number) =>
            {
                disk.link = Link::Asking;
                let description = DiskDescription {
                    server_name: self.server_name.clone(),
                    path: record.path.clone(),
                    hardware_id: opened.hardware_id.clone(),
                    bytes: opened.bytes,
                };
                let writer = self.record.life;
                let follows = record.writer.or(self.former_life).filter(|life| *life != writer);
                disk.attempts += 1;
                let (attempt, heard) = (disk.attempts, disk.heard);
                let described = DescribeDisk { description, writer, follows, attempt, heard };
                return Some(Action::Describe(number, described));
            }
            _ => {}
        }
        if stays && disk.member == Member::Out && disk.link == Link::Known && flow_idle {
            disk.member = Member::Joining;
            return Some(Action::Join(number));
        }
        None
    }

    fn take_record_to_save(&mut self) -> Record {
        self.save_needed = false;
        self.record.clone()
    }

    /// A disk that the settings name no longer: its number stays taken.
    fn forget(&mut self, number: DiskNumber) -> Action {
        self.disks.remove(&number);
        if let Some(record) = self.record.disks.get_mut(&number) {
            record.protected = false;
            record.attaching = false;
        }
        self.save_needed = true;
        self.fail_compare("a disk was removed meanwhile");
        self.tell(Notice {
            severity: Severity::Information,
            code: "disk_removed",
            disk: Some(number),
            message: format!("Disk {number} is not protected any more; its points stay."),
            next_step: String::new(),
        });
        Action::Close { disk: number, untrack: true }
    }

    pub(super) fn opened(&mut self, number: DiskNumber, result: Result<Opened, String>, now: Duration) {
        let (Some(disk), Some(record)) = (self.disks.get_mut(&number), self.record.disks.get_mut(&number))
        else {
            return;
        };
        self.save_needed |= record.attaching;
        record.attaching = false;
        let opened = match result {
            Ok(opened) => opened,
            Err(message) => {
                disk.open = Open::Closed { retry_at: now + REOPEN_EVERY };
                let new = disk.trouble.is_none();
                disk.trouble = Some(message.clone());
                if new {
                    self.tell_trouble(number, &message);
                }
                return;
            }
        };
        let (was, is) = (record.bytes, opened.bytes);
        let tracking = opened.tracking.clone();
        let unlocated = opened.unlocated.clone();
        disk.trouble = None;
        disk.link = Link::Unknown;
        disk.open = Open::Opened(opened);
        let decided = record.sync != Sync::New;
        record.bytes = is;
        if !decided {
            self.save_needed = true;
            if unlocated.is_some() {
                disk.settle = true;
            }
            return;
        }
        match tracking {
            Tracking::Fresh(_) if is != was => {
                self.resync(number, &format!("its size changed from {was} to {is} bytes"));
            }
            Tracking::Fresh(why) => self.resync(number, &format!("its tracking was interrupted: {why}")),
            Tracking::Grown if is > was => self.grown(number, was, is),
            Tracking::Continued | Tracking::Grown if is != was => {
                self.resync(number, &format!("its size changed from {was} to {is} bytes"));
            }
            Tracking::Continued | Tracking::Grown => {}
        }
        if let Some(what) = unlocated {
            self.resync(number, &what);
        }
    }

    fn grown(&mut self, number: DiskNumber, was: u64, is: u64) {
        let Some(record) = self.record.disks.get_mut(&number) else { return };
        // The last block of the old size may have been filled up.
        let first_new = was / BLOCK_BYTES as u64;
        let end_block = blocks_of_bytes(is);
        match &mut record.sync {
            sync @ Sync::Following => {
                *sync = Sync::Copy { next_block: first_new, end_block, send_zeroes: true };
            }
            Sync::Copy { end_block: end, send_zeroes, .. } => {
                *end = end_block;
                *send_zeroes = true;
            }
            Sync::New | Sync::Resync { .. } => {}
        }
        if let Some(disk) = self.disks.get_mut(&number) {
            disk.progress.restart();
        }
        self.save_needed = true;
        self.tell(Notice {
            severity: Severity::Information,
            code: "disk_grown",
            disk: Some(number),
            message: format!(
                "Disk {number} grew from {was} to {is} bytes; points go on when the new area is copied."
            ),
            next_step: String::new(),
        });
    }

    pub(super) fn described(
        &mut self,
        number: DiskNumber,
        result: Result<DiskState, Failure>,
        now: Duration,
    ) {
        let (Some(disk), Some(record)) = (self.disks.get_mut(&number), self.record.disks.get_mut(&number))
        else {
            return;
        };
        let state = match result {
            Ok(state) => state,
            Err(failure) => {
                disk.link = Link::Unknown;
                return self.not_reached(failure, now);
            }
        };
        let Some(opened) = disk.opened() else {
            disk.link = Link::Unknown;
            return;
        };
        let blocks = blocks_of_bytes(opened.bytes);
        let pending = self.record.pending.as_ref();
        let pending = pending.and_then(|seal| Some((seal, *seal.epochs.get(&number)?)));
        let decision = decide(record, pending, &state);
        let was_other = state.other_writer && record.writer.is_some();
        record.writer = Some(self.record.life);
        disk.heard = disk.attempts;
        record.sent = Some(Sent { epoch: state.epoch, parts: state.next_part.0 });
        record.sealed = state.sealed;
        disk.link = Link::Known;
        self.save_needed = true;
        if was_other {
            self.out.push_back(Action::Tell(Notice {
                severity: Severity::Critical,
                code: "other_agent",
                disk: Some(number),
                message: format!(
                    "Another agent with this server's certificate, or this one through another process server, has \
                     written to the copy of disk {number}."
                ),
                next_step: "The disk is compared. If this server was copied or restored elsewhere, stop the agent there \
                            and give that machine a certificate of its own."
                    .into(),
            }));
        }
        match decision {
            Decision::GoOn => {}
            Decision::CopyAll => {
                let begun = matches!(record.sync, Sync::Copy { .. });
                record.sync = Sync::Copy { next_block: 0, end_block: blocks, send_zeroes: false };
                disk.progress.restart();
                if !begun {
                    self.tell(Notice {
                        severity: Severity::Information,
                        code: "copy_started",
                        disk: Some(number),
                        message: format!("The first copy of disk {number} ({blocks} blocks of 4 KiB) began."),
                        next_step: String::new(),
                    });
                }
            }
            Decision::Resync(why) => {
                // Decided now, so no longer new.
                record.sync = Sync::Following;
                self.resync(number, &why);
            }
        }
        self.reached();
    }

    /// Puts on record that copy and disk must be compared from the start.
    pub(super) fn resync(&mut self, number: DiskNumber, reason: &str) {
        let Some(record) = self.record.disks.get_mut(&number) else { return };
        if let Some(disk) = self.disks.get_mut(&number) {
            disk.settle = true;
            disk.progress.restart();
        }
        if record.sync == Sync::New {
            return;
        }
        record.sync = Sync::Resync { reason: reason.to_owned(), next_chunk: 0 };
        self.save_needed = true;
        self.fail_compare("a resync began");
        self.tell(Notice {
            severity: Severity::Warning,
            code: "resync_started",
            disk: Some(number),
            message: format!("Disk {number} and its copy are being compared: {reason}."),
            next_step: "Nothing to do; points go on when all differences are sent.".into(),
        });
    }

    pub(super) fn problem(&mut self, number: DiskNumber, problem: DiskProblem) {
        let Some(disk) = self.disks.get_mut(&number) else { return };
        match problem {
            DiskProblem::Unlocated(what) => self.resync(number, &what),
            DiskProblem::SizeChanged => {
                // Closed and opened again at once, which looks at the size.
                disk.reopen = true;
                disk.trouble
                    .get_or_insert_with(|| format!("Disk {number} changed its size and is opened again."));
            }
            DiskProblem::Gone(message) => {
                let new = disk.trouble.is_none();
                disk.trouble = Some(message.clone());
                if new {
                    self.resync(number, "the disk was away for a while");
                    self.tell_trouble(number, &message);
                }
            }
        }
    }

    pub(super) fn joined(&mut self, number: DiskNumber, result: Result<(), DiskProblem>) {
        let Some(disk) = self.disks.get_mut(&number) else { return };
        match result {
            Ok(()) => disk.member = Member::In,
            Err(problem) => {
                disk.member = Member::Out;
                self.problem(number, problem);
            }
        }
    }

    pub(super) fn left(&mut self, number: DiskNumber) {
        if let Some(disk) = self.disks.get_mut(&number) {
            disk.member = Member::Out;
        }
    }

    fn tell_trouble(&mut self, number: DiskNumber, message: &str) {
        self.tell(Notice {
            severity: Severity::Critical,
            code: "disk_trouble",
            disk: Some(number),
            message: format!("Disk {number} cannot be replicated: {message}."),
            next_step: "No points are taken until it can, or until the settings do not name it any more."
                .into(),
        });
    }
}
