//! What to do next: a state machine without input, output, clock or threads.
//!
//! [`Engine::apply`] takes in what happened, [`Engine::next`] gives the next thing to do, one at
//! a time, until there is nothing left to do now. Whoever drives it does what it is told and
//! reports how that went. So the rules that keep a copy true are in one place, and tests drive
//! them through losses and restarts that no real machine would produce in a year.
//!
//! # The rules
//!
//! 1. A change of the record is saved before anything else is done ([`Action::Save`] comes first).
//!    A tracker is attached only after the record says so, bits are acknowledged only after the
//!    record says which parts are durable, and a point is sealed only after the record names it.
//! 2. Each disk is in one of three hands: nobody's (it is asked about), the copier's (first copy,
//!    resync), the flow's (it follows its source). Only the flow takes points.
//! 3. After any loss the process server is asked for its state, and [`disk::decide`] compares that
//!    with the record. If they do not agree, the disk is resynced. Nothing is ever assumed.
//! 4. A point has all disks, or it is not taken. A disk that has its first copy while others have
//!    points already joins them when that is done.

mod compare;
mod copy;
mod disk;
mod flow;
mod message;
mod report;
#[cfg(test)]
mod simulation;
mod stand_down;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use lifeboat_model::{DiskNumber, PointKind};
use lifeboat_wire::agent::{Assignment, CommandKind, Outcome, RequestResult};
use lifeboat_wire::event::Severity;

use crate::record::Record;
use compare::Compare;
use disk::{Disk, Link, Open};
use flow::{Flow, Schedule};
use stand_down::StandDown;

pub use copy::{CopyJob, CopyStep, Job};
pub use message::{
    Action, DiskProblem, Event, Failure, Notice, OpenEpoch, Opened, PointFailure, PointOrder, Round,
    RoundDone, RoundEnd, Tracking, WantedDisk, Way,
};
pub use report::Summary;

/// The longest wait between two tries to reach the process server.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// How often a disk that cannot be opened is tried again.
const REOPEN_EVERY: Duration = Duration::from_secs(5);

/// Requests whose result is remembered, so that they are not carried out twice.
const DONE_REQUESTS_MAX: usize = 256;

/// What decides what is done next. See the module.
pub struct Engine {
    record: Record,
    /// The life before this one.
    former_life: Option<u64>,
    save_needed: bool,
    save_error: Option<(String, Duration)>,
    server_name: String,
    draw_id: Box<dyn FnMut() -> u64 + Send>,
    disks: BTreeMap<DiskNumber, Disk>,
    wanted_known: bool,
    out: VecDeque<Action>,
    flow: Flow,
    schedule: Schedule,
    copying: Option<DiskNumber>,
    /// Failures of the copier in a row, and when it may go on.
    copier_retry: (u32, Duration),
    compare: Option<Compare>,
    assignment: Option<Assignment>,
    done_requests: VecDeque<u64>,
    begun_requests: BTreeSet<u64>,
    stand_down: Option<StandDown>,
    reach: Reach,
}

/// Whether the process server can be reached.
#[derive(Debug, Default)]
struct Reach {
    failures: u32,
    retry_at: Duration,
    error: Option<String>,
    told: bool,
}

impl Engine {
    /// Goes on from a record. `draw_id` gives random numbers for the ids of points and of this life.
    #[must_use]
    pub fn new(mut record: Record, server_name: String, mut draw_id: Box<dyn FnMut() -> u64 + Send>) -> Self {
        let former_life = Some(record.life).filter(|life| *life != 0);
        record.life = draw_id().max(1);
        let mut engine = Self {
            record,
            former_life,
            // On record before anybody hears of it.
            save_needed: true,
            save_error: None,
            server_name,
            draw_id,
            disks: BTreeMap::new(),
            wanted_known: false,
            out: VecDeque::new(),
            flow: Flow::Idle,
            schedule: Schedule::default(),
            copying: None,
            copier_retry: (0, Duration::ZERO),
            compare: None,
            assignment: None,
            done_requests: VecDeque::new(),
            begun_requests: BTreeSet::new(),
            stand_down: None,
            reach: Reach::default(),
        };
        engine.doubt_what_was_being_attached();
        engine
    }

    /// Takes in what happened at `now`, on a clock that never jumps.
    pub fn apply(&mut self, event: Event, now: Duration) {
        match event {
            Event::Wanted(wanted) => self.wanted(&wanted),
            Event::Saved(Ok(())) => self.save_error = None,
            Event::Saved(Err(message)) => self.save_failed(message, now),
            Event::Opened(disk, result) => self.opened(disk, result, now),
            Event::Described(disk, result) => self.described(disk, result, now),
            Event::Joined(disk, result) => self.joined(disk, result),
            Event::Left(disk) => self.left(disk),
            Event::Round(end) => self.round_ended(end, now),
            Event::Acknowledged => self.acknowledged(),
            Event::Collected(disk, set) => self.collected(disk, set),
            Event::Copier(disk, step) => self.copier_ended(disk, step, now),
            Event::Sealed(result) => self.sealed(result, now),
            Event::Problem(disk, problem) => self.problem(disk, problem),
            Event::StoodDown(result) => self.stood_down(result),
            Event::StoodUp(result) | Event::Retired(result) => self.stands_again(result),
            Event::HoldLost(why) => self.hold_lost(&why),
            Event::Assignment(assignment) => self.assigned(*assignment, now),
            Event::NoAssignment(why) => {
                // Later on, the requests that matter say it.
                if self.assignment.is_none() {
                    self.not_reached(Failure::Away(why), now);
                }
            }
        }
    }

    /// The next thing to do; `None` when there is nothing to do before [`Self::wake_at`] or the
    /// next event.
    pub fn next(&mut self, now: Duration) -> Option<Action> {
        if self.save_needed {
            if let Some((_, retry_at)) = &self.save_error
                && now < *retry_at
            {
                return None;
            }
            self.save_needed = false;
            return Some(Action::Save(Box::new(self.record.clone())));
        }
        if let Some(action) = self.out.pop_front() {
            return Some(action);
        }
        self.next_of_disks(now).or_else(|| self.next_of_flow(now)).or_else(|| self.next_of_copier(now))
    }

    /// When [`Self::next`] may have something to do although nothing happened.
    #[must_use]
    pub fn wake_at(&self, now: Duration) -> Option<Duration> {
        let mut times = vec![self.schedule.wake_at()];
        times.push((self.reach.failures > 0).then_some(self.reach.retry_at));
        times.push((self.copier_retry.0 > 0).then_some(self.copier_retry.1));
        times.push(self.save_error.as_ref().map(|(_, at)| *at));
        times.extend(self.disks.values().map(|disk| match disk.open {
            Open::Closed { retry_at } => Some(retry_at),
            _ => None,
        }));
        // What was due before is waiting for something else than time.
        times.into_iter().flatten().filter(|at| *at > now).min()
    }

    /// The number of this life, by which the process server tells agents with one certificate apart.
    #[must_use]
    pub fn life(&self) -> u64 {
        self.record.life
    }

    /// What is remembered now.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The policy in force, and whether to replicate; `None` before the first assignment.
    #[must_use]
    pub fn assignment(&self) -> Option<&Assignment> {
        self.assignment.as_ref()
    }

    fn save_failed(&mut self, message: String, now: Duration) {
        self.save_needed = true;
        if self.save_error.is_none() {
            self.tell(Notice {
                severity: Severity::Critical,
                code: "record_not_saved",
                disk: None,
                message: format!(
                    "The agent cannot save what it must remember, so nothing is sent: {message}."
                ),
                next_step: "See that the file system of the state directory has room and is writable.".into(),
            });
        }
        self.save_error = Some((message, now + REOPEN_EVERY));
    }

    fn assigned(&mut self, assignment: Assignment, now: Duration) {
        let first = self.assignment.is_none();
        if first {
            self.reached();
        }
        let resumed =
            self.assignment.as_ref().is_some_and(|before| !before.replicate && assignment.replicate);
        self.schedule.follow(&assignment.policy, first || resumed, now);
        if resumed {
            // Another agent or a failback may have written the copy meanwhile.
            self.ask_again_about_all();
        }
        let commands = assignment.commands.clone();
        let is_off = !assignment.replicate;
        self.assignment = Some(assignment);
        if is_off {
            self.fail_compare("replication was switched off");
        }
        for command in commands {
            if self.done_requests.contains(&command.request) || !self.begun_requests.insert(command.request) {
                continue;
            }
            match command.kind {
                CommandKind::TakePoint { kind } => self.take_point(command.request, kind),
                CommandKind::Compare => self.begin_compare(command.request),
                CommandKind::Resync => self.begin_resync(command.request),
                CommandKind::StandDown => self.begin_stand_down(command.request),
                CommandKind::StandUp => self.end_stand_down(command.request, Action::StandUp),
                CommandKind::Retire => self.end_stand_down(command.request, Action::Retire),
                CommandKind::Unknown => {
                    let version = env!("CARGO_PKG_VERSION");
                    let message = format!(
                        "The agent ({version}) is older than the vault and does not know this command: upgrade it."
                    );
                    self.finish_request(command.request, Outcome::Failed { message });
                }
            }
        }
    }

    fn begin_resync(&mut self, request: u64) {
        if self.record.resync_request != Some(request) {
            self.record.resync_request = Some(request);
            self.save_needed = true;
            let all: Vec<_> = self.disks.keys().copied().collect();
            for disk in all {
                self.resync(disk, "an operator asked for it");
            }
        }
    }

    fn take_point(&mut self, request: u64, kind: PointKind) {
        if kind == PointKind::Application {
            let message =
                "There are no application adapters in this version: ask for a file-system-consistent \
                           point."
                    .into();
            return self.finish_request(request, Outcome::Failed { message });
        }
        if let Some(reason) = self.no_points_because() {
            let message = format!("No point can be taken now. {reason}");
            return self.finish_request(request, Outcome::Failed { message });
        }
        self.schedule.asked.push_back((request, kind));
    }

    fn finish_request(&mut self, request: u64, outcome: Outcome) {
        if matches!(outcome, Outcome::Failed { .. }) {
            self.give_up_stand_down(request);
        }
        self.begun_requests.remove(&request);
        self.done_requests.push_back(request);
        while self.done_requests.len() > DONE_REQUESTS_MAX {
            self.done_requests.pop_front();
        }
        self.out.push_back(Action::Result(RequestResult { request, outcome }));
    }

    /// Whether changes may be sent.
    fn may_send(&self) -> bool {
        self.assignment.as_ref().is_some_and(|assignment| assignment.replicate)
    }

    fn may_call(&self, now: Duration) -> bool {
        self.may_send() && (self.reach.failures == 0 || now >= self.reach.retry_at)
    }

    fn reached(&mut self) {
        if self.reach.told {
            self.tell(Notice {
                severity: Severity::Information,
                code: "process_server_back",
                disk: None,
                message: "The process server takes data again.".into(),
                next_step: String::new(),
            });
        }
        self.reach = Reach::default();
    }

    fn not_reached(&mut self, failure: Failure, now: Duration) {
        let (Failure::Away(message) | Failure::Refused(message) | Failure::Conflict(message)) = failure;
        let wait = Duration::from_millis(250).saturating_mul(1 << self.reach.failures.min(8));
        self.reach.failures += 1;
        self.reach.retry_at = now + wait.min(RETRY_MAX);
        self.reach.error = Some(message.clone());
        if self.reach.failures == 3 && !self.reach.told {
            self.reach.told = true;
            self.tell(Notice {
                severity: Severity::Warning,
                code: "process_server_lost",
                disk: None,
                message: format!("Nothing can be sent: {message}."),
                next_step: "Changes are still tracked and follow later. Look at the process server and the \
                            network."
                    .into(),
            });
        }
    }

    fn tell(&mut self, notice: Notice) {
        self.out.push_back(Action::Tell(notice));
    }

    /// The link of every disk is unknown again: each is described before anything is sent.
    fn ask_again_about_all(&mut self) {
        for disk in self.disks.values_mut() {
            if !matches!(disk.link, Link::Asking) {
                disk.link = Link::Unknown;
            }
        }
    }
}
