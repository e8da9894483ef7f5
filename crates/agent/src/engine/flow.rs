//! Rounds and points: when the changes of the disks in the flow are sent, and when a point ends them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use lifeboat_capture::CapturedPoint;
use lifeboat_model::{DiskNumber, Epoch, PointId, PointKind, ReplicationPolicy};
use lifeboat_wire::agent::{Outcome, SealDisk, SealPoint};
use lifeboat_wire::event::Severity;

use super::disk::{Link, Member};
use super::{
    Action, Engine, Failure, Notice, OpenEpoch, PointFailure, PointOrder, Round, RoundDone, RoundEnd, Way,
};
use crate::record::{DiskRecord, PendingSeal, Sent, Sync};

/// Optimistic points that may fail one after the other before file systems are frozen instead.
const FAILURES_MAX: u32 = 3;

/// Points in a freeze before it is tried without again.
const QUIESCED_POINTS: u32 = 12;

/// So many full rounds without a point are told.
const BEHIND_ROUNDS: u32 = 8;

/// Where the flow is.
#[derive(Debug)]
pub(super) enum Flow {
    /// Nothing under way.
    Idle,
    /// A round runs.
    Running(Purpose),
    /// A round is durable and on record; its blocks are to be acknowledged.
    Acknowledge(Option<Sealing>),
    /// They are being acknowledged.
    Acknowledging(Option<Sealing>),
    /// A point is to be sealed.
    Seal(Sealing),
    /// It is being sealed.
    Sealing(Sealing),
}

/// What a round is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Purpose {
    pub way: Option<Way>,
    /// The command that asked for it.
    pub asked: Option<(u64, PointKind)>,
    /// It is the policy's file-system-consistent point.
    pub filesystem: bool,
    /// Disks are compared with this point.
    pub collect: bool,
    /// It shows whether anything was written after the last point of a server that stands down.
    pub check: bool,
}

/// A point on its way to the process server.
#[derive(Debug)]
pub(super) struct Sealing {
    pub seal: SealPoint,
    pub purpose: Purpose,
}

/// When points are due, and in which way they are taken.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    interval: Duration,
    filesystem_interval: Option<Duration>,
    timeout: Duration,
    due: Option<Duration>,
    filesystem_due: Option<Duration>,
    /// How much earlier than due a round begins, from how long the last one took.
    lead: Duration,
    /// The last round had more to send than it could hold.
    more: bool,
    more_in_row: u32,
    /// Points that an operator asked for.
    pub asked: VecDeque<(u64, PointKind)>,
    failed_in_row: u32,
    /// Points in a freeze before it is tried without again; 0 while points are optimistic.
    quiesced_left: u32,
    quiesced_because: String,
}

impl Schedule {
    /// Follows a policy. `start`: the first point is due now.
    pub fn follow(&mut self, policy: &ReplicationPolicy, start: bool, now: Duration) {
        let interval = policy.interval.duration().max(Duration::from_millis(100));
        let filesystem = policy.filesystem_interval.map(|span| span.duration().max(Duration::from_secs(1)));
        if start || interval != self.interval {
            self.due = Some(now);
        }
        if filesystem != self.filesystem_interval {
            self.filesystem_due = filesystem.map(|interval| now + interval);
        }
        self.interval = interval;
        self.filesystem_interval = filesystem;
        self.timeout = policy.capture_timeout.duration().max(Duration::from_millis(100));
    }

    pub fn wake_at(&self) -> Option<Duration> {
        self.begin_at().into_iter().chain(self.filesystem_due).min()
    }

    pub fn quiesced_because(&self) -> Option<&str> {
        (self.quiesced_left > 0).then_some(self.quiesced_because.as_str())
    }

    fn begin_at(&self) -> Option<Duration> {
        self.due.map(|due| due.saturating_sub(self.lead.min(self.interval / 2)))
    }

    fn is_due(&self, now: Duration) -> bool {
        self.more || self.begin_at().is_some_and(|at| now >= at)
    }

    fn filesystem_is_due(&self, now: Duration) -> bool {
        self.filesystem_due.is_some_and(|at| now >= at)
    }

    /// The next point is due at a fixed rate, leaving out those that are late. One that was asked for puts
    /// none off.
    fn advance(&mut self, purpose: &Purpose, now: Duration) {
        if purpose.filesystem {
            self.filesystem_due =
                self.filesystem_interval.map(|interval| next_after(self.filesystem_due, interval, now));
        }
        if purpose.asked.is_none() || self.due.is_none_or(|due| due <= now) {
            self.due = Some(next_after(self.due, self.interval, now));
        }
    }
}

/// The first of `due`, `due + interval`, … after `now`.
fn next_after(due: Option<Duration>, interval: Duration, now: Duration) -> Duration {
    let due = due.unwrap_or(now);
    let late = now.saturating_sub(due).as_nanos() / interval.as_nanos().max(1);
    let skipped = u32::try_from(late).unwrap_or(u32::MAX - 1);
    due + interval.saturating_mul(skipped + 1)
}

impl Engine {
    pub(super) fn next_of_flow(&mut self, now: Duration) -> Option<Action> {
        match std::mem::replace(&mut self.flow, Flow::Idle) {
            Flow::Acknowledge(sealing) => {
                self.flow = Flow::Acknowledging(sealing);
                Some(Action::Acknowledge)
            }
            Flow::Seal(sealing) if self.may_call(now) => {
                let seal = sealing.seal.clone();
                self.flow = Flow::Sealing(sealing);
                Some(Action::Seal(seal))
            }
            Flow::Idle => self.next_round(now),
            other => {
                self.flow = other;
                None
            }
        }
    }

    fn next_round(&mut self, now: Duration) -> Option<Action> {
        let settled = self.disks.values().all(|disk| {
            matches!(disk.member, Member::In | Member::Out)
                && (disk.member == Member::Out || disk.link == Link::Known)
        });
        let open = self.open_epochs();
        if !self.may_call(now) || !settled || open.is_empty() {
            return None;
        }
        if let Some(disk) = self.compare_asks_for() {
            return Some(Action::Collected(disk));
        }
        let (purpose, newest) = (self.next_purpose(now)?, self.record.last_point);
        let point = purpose.way.map(|way| PointOrder {
            way,
            timeout: self.schedule.timeout,
            newest,
            collect: purpose.collect,
        });
        self.flow = Flow::Running(purpose);
        Some(Action::Round(Round { open, point }))
    }

    fn open_epochs(&self) -> Vec<OpenEpoch> {
        let inside = self.disks.iter().filter(|(_, disk)| disk.member == Member::In);
        inside
            .filter_map(|(number, _)| {
                let Sent { epoch, parts } = self.record.disks.get(number)?.sent?;
                Some(OpenEpoch { disk: *number, epoch, part: parts })
            })
            .collect()
    }

    fn next_purpose(&mut self, now: Duration) -> Option<Purpose> {
        let points = self.no_points_because().is_none();
        let collect = self.compare_waits_for_point();
        let purpose = |way, asked, filesystem| Purpose { way, asked, filesystem, collect, check: false };
        if self.stand_down_wants_check() {
            return Some(Purpose { check: true, ..Purpose::default() });
        }
        if self.is_at_rest() {
            return None;
        }
        if points && let Some(asked) = self.schedule.asked.pop_front() {
            let way = if asked.1 == PointKind::Crash { self.crash_way() } else { Way::Quiesced };
            return Some(purpose(Some(way), Some(asked), false));
        }
        if points && self.schedule.filesystem_is_due(now) && self.stand_down.is_none() {
            return Some(purpose(Some(Way::Quiesced), None, true));
        }
        if points && (self.schedule.is_due(now) || self.compare_wants_point()) {
            return Some(purpose(Some(self.crash_way()), None, false));
        }
        if self.compare_wants_round() || (!points && self.schedule.is_due(now)) {
            return Some(Purpose::default());
        }
        None
    }

    fn crash_way(&self) -> Way {
        // What is held already cannot be frozen, and need not be.
        let freeze = self.schedule.quiesced_left > 0 && self.stand_down.is_none();
        if freeze { Way::QuiescedIfPossible } else { Way::Optimistic }
    }

    pub(super) fn round_ended(&mut self, end: RoundEnd, now: Duration) {
        let Flow::Running(purpose) = std::mem::replace(&mut self.flow, Flow::Idle) else { return };
        match end {
            RoundEnd::Done(done) => self.round_done(done, purpose, now),
            RoundEnd::Lost(failure) => {
                self.again_later(purpose);
                self.ask_again_about_all();
                self.not_reached(failure, now);
            }
            RoundEnd::Disk(disk, problem) => {
                self.again_later(purpose);
                self.ask_again_about_all();
                self.problem(disk, problem);
            }
            RoundEnd::Broken(message) => {
                self.again_later(purpose);
                self.ask_again_about_all();
                self.not_reached(Failure::Away(message), now);
            }
        }
    }

    /// A round came to nothing; what asked for it is still asked for.
    fn again_later(&mut self, purpose: Purpose) {
        if let Some(asked) = purpose.asked {
            self.schedule.asked.push_front(asked);
        }
    }

    fn round_done(&mut self, done: RoundDone, purpose: Purpose, now: Duration) {
        for (disk, parts) in &done.parts {
            if let Some(sent) = self.record.disks.get_mut(disk).and_then(|disk| disk.sent.as_mut()) {
                sent.parts = *parts;
                self.save_needed = true;
            }
        }
        if done.sent_bytes > 0 {
            self.reached();
        }
        self.note_behind(done.more);
        self.schedule.lead = done.before_point + done.before_point / 4;
        self.note_unreadable(&done.unreadable);
        if purpose.check {
            self.checked(&done);
            self.flow = Flow::Acknowledge(None);
            return;
        }
        let mut sealing = None;
        match done.point {
            _ if done.more => self.again_later(purpose),
            None => {
                self.compare_had_round();
                if let Some((request, _)) = purpose.asked {
                    let message = format!(
                        "The point could not be taken. {}",
                        self.no_points_because().unwrap_or_default()
                    );
                    self.finish_request(request, Outcome::Failed { message });
                } else if purpose.way.is_some() {
                    self.again_later(purpose);
                } else if self.schedule.is_due(now) {
                    self.schedule.advance(&purpose, now);
                }
            }
            Some(Ok(captured)) => {
                self.compare_had_point(true);
                self.schedule.advance(&purpose, now);
                self.note_writes(&purpose, &done.writes);
                sealing = self.captured(&captured, purpose);
                if sealing.is_none() {
                    self.again_later(purpose);
                }
            }
            Some(Err(failure)) => {
                self.compare_had_point(false);
                self.schedule.advance(&purpose, now);
                self.not_captured(&failure, &purpose);
            }
        }
        self.flow = Flow::Acknowledge(sealing);
    }

    /// Says it once when changes come faster than they can be sent.
    fn note_behind(&mut self, more: bool) {
        self.schedule.more = more;
        self.schedule.more_in_row = if more { self.schedule.more_in_row.saturating_add(1) } else { 0 };
        if self.schedule.more_in_row == BEHIND_ROUNDS {
            self.tell(Notice {
                severity: Severity::Warning,
                code: "falling_behind",
                disk: None,
                message: "There is so much to send that points wait for it.".into(),
                next_step:
                    "It may pass. If it comes again, the link or the process server is too slow for the load."
                        .into(),
            });
        }
    }

    fn captured(&mut self, captured: &CapturedPoint, purpose: Purpose) -> Option<Sealing> {
        if purpose.way == Some(Way::Optimistic) {
            if self.schedule.failed_in_row >= FAILURES_MAX {
                self.tell(Notice {
                    severity: Severity::Information,
                    code: "capture_optimistic",
                    disk: None,
                    message: "Points are taken without a pause again.".into(),
                    next_step: String::new(),
                });
            }
            self.schedule.failed_in_row = 0;
        }
        if purpose.way == Some(Way::QuiescedIfPossible) {
            self.schedule.quiesced_left = self.schedule.quiesced_left.saturating_sub(1);
        }
        let sizes: BTreeMap<DiskNumber, u64> = captured.disks.iter().copied().collect();
        let disks: Vec<SealDisk> = self
            .open_epochs()
            .into_iter()
            .filter_map(|open| {
                let bytes = *sizes.get(&open.disk)?;
                Some(SealDisk { disk: open.disk, epoch: open.epoch, parts: open.part, bytes })
            })
            .collect();
        let removed = self.removed_disks();
        // Such as one that was taken out of the settings and is named again, since this point was begun.
        let lacks = |(number, disk): (&DiskNumber, &DiskRecord)| {
            disk.sealed.is_some() && !sizes.contains_key(number) && !removed.contains(number)
        };
        if disks.len() != sizes.len() || disks.is_empty() || self.record.disks.iter().any(lacks) {
            // A disk left or came while the point was taken: it would not have all disks.
            return None;
        }
        let point = PointId::new((self.draw_id)());
        let epochs = disks.iter().map(|disk| (disk.disk, disk.epoch)).collect();
        self.record.pending = Some(PendingSeal { point, epochs });
        self.record.last_point = Some(captured.time);
        self.save_needed = true;
        let seal = SealPoint {
            point,
            time: captured.time,
            kind: if self.is_clean() { PointKind::Filesystem } else { captured.kind },
            disks,
            removed,
            capture: captured.figures.clone(),
        };
        Some(Sealing { seal, purpose })
    }

    fn not_captured(&mut self, failure: &PointFailure, purpose: &Purpose) {
        let (PointFailure::NotTaken(why) | PointFailure::NotFrozen(why)) = failure;
        let freeze = purpose.way != Some(Way::Optimistic);
        let code = if purpose.filesystem { "filesystem_point_not_taken" } else { "point_not_taken" };
        self.tell(Notice {
            severity: Severity::Warning,
            code,
            disk: None,
            message: format!("A point could not be taken: {why}."),
            next_step: "The next one is tried when it is due; changes are sent all the same.".into(),
        });
        if let Some((request, _)) = purpose.asked {
            self.finish_request(
                request,
                Outcome::Failed { message: format!("The point could not be taken: {why}.") },
            );
        }
        if freeze {
            if purpose.way == Some(Way::QuiescedIfPossible) {
                // Freezing does not work either: go on trying without.
                self.schedule.quiesced_left = 0;
                self.schedule.failed_in_row = 0;
            }
            return;
        }
        self.schedule.failed_in_row = self.schedule.failed_in_row.saturating_add(1);
        if self.schedule.failed_in_row >= FAILURES_MAX {
            self.schedule.quiesced_left = QUIESCED_POINTS;
            self.schedule.quiesced_because =
                format!("{FAILURES_MAX} points without a pause failed; the last: {why}");
            self.tell(Notice {
                severity: Severity::Warning,
                code: "capture_quiesced",
                disk: None,
                message: format!("Points are taken in a short freeze of the file systems for a while: {why}."),
                next_step: "Lengthen the policy's interval or capture timeout (lifeboat server set-policy SERVER --capture-timeout 1m), or give the agent more memory (memory_bytes).".into(),
            });
        }
    }

    fn note_unreadable(&mut self, unreadable: &BTreeMap<DiskNumber, String>) {
        let mut notices = Vec::new();
        for (number, disk) in self.disks.iter_mut().filter(|(_, disk)| disk.member == Member::In) {
            let found = unreadable.get(number);
            if disk.unreadable.as_ref() == found {
                continue;
            }
            let (severity, code, message, next_step) = match found {
                Some(place) => (
                    Severity::Critical,
                    "unreadable_sectors",
                    format!("Disk {number} cannot be read at {place}; no points are taken until it can."),
                    "Look at the kernel log; replace the disk, or write to the place so that it remaps the sector.",
                ),
                None => (
                    Severity::Information,
                    "readable_again",
                    format!("Disk {number} can be read whole again."),
                    "",
                ),
            };
            disk.unreadable = found.cloned();
            notices.push(Notice {
                severity,
                code,
                disk: Some(*number),
                message,
                next_step: next_step.into(),
            });
        }
        notices.into_iter().for_each(|notice| self.tell(notice));
    }

    pub(super) fn acknowledged(&mut self) {
        let Flow::Acknowledging(sealing) = std::mem::replace(&mut self.flow, Flow::Idle) else { return };
        if let Some(sealing) = sealing {
            self.flow = Flow::Seal(sealing);
        }
    }

    pub(super) fn sealed(&mut self, result: Result<PointId, Failure>, now: Duration) {
        let Flow::Sealing(sealing) = std::mem::replace(&mut self.flow, Flow::Idle) else { return };
        match result {
            Ok(_) => {
                self.note_sealed(&sealing.seal);
                self.reached();
                let point = sealing.seal.point;
                self.compare_point_sealed(point, sealing.purpose.collect);
                match sealing.purpose.asked {
                    Some((request, _)) if self.is_last_point(request) => self.check_last(&sealing.seal),
                    Some((request, _)) => self.finish_request(request, Outcome::PointTaken { point }),
                    None => {}
                }
            }
            Err(failure @ Failure::Away(_)) => {
                self.flow = Flow::Seal(sealing);
                self.not_reached(failure, now);
            }
            Err(failure) => {
                let (Failure::Conflict(why) | Failure::Refused(why) | Failure::Away(why)) = &failure;
                self.tell(Notice {
                    severity: Severity::Warning,
                    code: "point_refused",
                    disk: None,
                    message: format!("The process server refused a point: {why}."),
                    next_step: "The next one is taken when the states of both ends are clear again.".into(),
                });
                if let Some((request, _)) = sealing.purpose.asked {
                    let message = format!("The process server refused the point: {why}.");
                    self.finish_request(request, Outcome::Failed { message });
                }
                self.ask_again_about_all();
                self.not_reached(failure, now);
            }
        }
    }

    /// Disks that were protected once and that the settings name no longer.
    fn removed_disks(&self) -> Vec<DiskNumber> {
        let named = |number: &DiskNumber| self.disks.get(number).is_some_and(|disk| !disk.unwanted);
        let known = self.record.disks.iter().filter(|(number, disk)| !disk.protected && !named(number));
        known.filter(|(_, disk)| disk.sync != Sync::New).map(|(number, _)| *number).collect()
    }

    /// Not saved at once: until it is, the pending point in the saved record tells as much.
    fn note_sealed(&mut self, seal: &SealPoint) {
        self.record.pending = None;
        for disk in &seal.disks {
            if let Some(record) = self.record.disks.get_mut(&disk.disk) {
                record.sealed = Some(seal.point);
                record.sent = Some(Sent { epoch: disk.epoch.next(), parts: 0 });
            }
        }
    }

    /// Why no point can be taken now; one sentence.
    pub(super) fn no_points_because(&self) -> Option<String> {
        let Some(assignment) = &self.assignment else {
            return Some("The agent waits for the process server to say what to do.".into());
        };
        if !assignment.replicate {
            let why = assignment.reason.clone().unwrap_or_else(|| "no reason was given".into());
            return Some(format!("Replication is off: {why}."));
        }
        if let Some((message, _)) = &self.save_error {
            return Some(format!("The agent cannot save what it must remember: {message}."));
        }
        if self.disks.is_empty() {
            return Some("The settings name no disk to protect: add one to `disks`.".into());
        }
        let has_points = self.disks.keys().any(|disk| self.sealed_epoch(*disk).is_some());
        self.disks.iter().find_map(|(number, disk)| {
            if disk.unwanted && disk.member == Member::Out {
                return None;
            }
            if let Some(trouble) = &disk.trouble {
                return Some(format!("Disk {number}: {trouble}."));
            }
            if let Some(place) = &disk.unreadable {
                return Some(format!(
                    "Disk {number} cannot be read at {place}: replace the disk or mend the place."
                ));
            }
            let record = self.record.disks.get(number)?;
            match &record.sync {
                Sync::New | Sync::Copy { .. } if has_points && record.sealed.is_none() => None,
                Sync::New => Some(format!("The process server has not been asked about disk {number} yet.")),
                Sync::Copy { .. } => Some(format!("The copy of disk {number} is not complete yet.")),
                Sync::Resync { reason, .. } => Some(format!("Disk {number} is being compared: {reason}.")),
                Sync::Following if disk.member == Member::In => None,
                Sync::Following => Some(format!("Disk {number} is about to be followed.")),
            }
        })
    }

    pub(super) fn sealed_epoch(&self, disk: DiskNumber) -> Option<(PointId, Epoch)> {
        let record = self.record.disks.get(&disk)?;
        Some((record.sealed?, record.sent?.epoch))
    }
}
