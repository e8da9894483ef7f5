//! Standing down in a planned failover: the services stop, the file systems are held, and the last point
//! is taken. Then a round shows that nothing was written after it; if something was, there is a later
//! point to take.

use std::collections::BTreeMap;

use lifeboat_model::{DiskNumber, Epoch, PointId, PointKind};
use lifeboat_wire::agent::{LastWrite, Outcome, SealPoint};
use lifeboat_wire::event::Severity;

use super::disk::Member;
use super::flow::Purpose;
use super::{Action, Engine, Notice, RoundDone};

/// Points that may each be followed by another write.
const TRIES_MAX: u32 = 5;

/// A server that stands down, or is about to.
#[derive(Debug)]
pub(super) struct StandDown {
    /// The command; none once it is answered.
    request: Option<u64>,
    phase: Phase,
    /// All file systems are frozen in a clean state.
    clean: bool,
    tries: u32,
    /// Writes that each disk had seen when the last point was taken.
    writes: BTreeMap<DiskNumber, u64>,
}

#[derive(Debug)]
enum Phase {
    /// Services are being stopped.
    Stopping,
    /// The last point is to be taken.
    Point,
    /// It is sealed, and these epochs ended with it. Was anything written after it?
    Check(PointId, Vec<(DiskNumber, Epoch)>),
    /// Nothing was, and nothing more is sent.
    Rest,
    /// The services are being started again, or never will be.
    Ending(Option<u64>),
}

impl Engine {
    pub(super) fn begin_stand_down(&mut self, request: u64) {
        if let Some(reason) = self.no_points_because() {
            let message =
                format!("The server does not stand down, since no last point can be taken. {reason}");
            return self.finish_request(request, Outcome::Failed { message });
        }
        let inside = self.disks.iter().filter(|(_, disk)| disk.member == Member::In);
        let paths = inside.filter_map(|(number, _)| Some(self.record.disks.get(number)?.path.clone()));
        let paths = paths.collect();
        let writes = BTreeMap::new();
        self.stand_down = Some(StandDown {
            request: Some(request),
            phase: Phase::Stopping,
            clean: false,
            tries: 0,
            writes,
        });
        self.out.push_back(Action::StandDown(paths));
    }

    pub(super) fn stood_down(&mut self, result: Result<bool, String>) {
        let Some(stand_down) = &mut self.stand_down else { return };
        let Some(request) = stand_down.request else { return };
        if !matches!(stand_down.phase, Phase::Stopping) {
            return;
        }
        match result {
            Ok(clean) => {
                (stand_down.phase, stand_down.clean) = (Phase::Point, clean);
                self.schedule.asked.push_front((request, PointKind::Crash));
            }
            Err(why) => {
                // It has undone itself.
                self.stand_down = None;
                let message = format!("The server does not stand down: {why}.");
                self.finish_request(request, Outcome::Failed { message });
            }
        }
    }

    pub(super) fn is_last_point(&self, request: u64) -> bool {
        self.stand_down.as_ref().is_some_and(|stand_down| {
            stand_down.request == Some(request) && matches!(stand_down.phase, Phase::Point)
        })
    }

    pub(super) fn note_writes(&mut self, purpose: &Purpose, writes: &BTreeMap<DiskNumber, u64>) {
        if let Some((request, _)) = purpose.asked
            && self.is_last_point(request)
            && let Some(stand_down) = &mut self.stand_down
        {
            stand_down.writes.clone_from(writes);
        }
    }

    pub(super) fn check_last(&mut self, seal: &SealPoint) {
        if let Some(stand_down) = &mut self.stand_down {
            let epochs = seal.disks.iter().map(|disk| (disk.disk, disk.epoch)).collect();
            stand_down.phase = Phase::Check(seal.point, epochs);
        }
    }

    pub(super) fn stand_down_wants_check(&self) -> bool {
        self.stand_down.as_ref().is_some_and(|stand_down| matches!(stand_down.phase, Phase::Check(..)))
    }

    /// Nothing more is sent: the last point stays the last.
    pub(super) fn is_at_rest(&self) -> bool {
        self.stand_down.as_ref().is_some_and(|stand_down| matches!(stand_down.phase, Phase::Rest))
    }

    pub(super) fn is_clean(&self) -> bool {
        self.stand_down
            .as_ref()
            .is_some_and(|stand_down| stand_down.clean && matches!(stand_down.phase, Phase::Point))
    }

    pub(super) fn checked(&mut self, done: &RoundDone) {
        let Some(stand_down) = &mut self.stand_down else { return };
        let Phase::Check(point, epochs) = &stand_down.phase else { return };
        let Some(request) = stand_down.request else { return };
        let nothing = done.sent_bytes == 0
            && done.parts.iter().all(|(_, parts)| *parts == 0)
            && !done.deferred
            && !done.more
            && done.unreadable.is_empty()
            && done.writes == stand_down.writes;
        if nothing {
            let writes_of = |disk: &DiskNumber| done.writes.get(disk).copied().unwrap_or(0);
            let last = |(disk, epoch): &(DiskNumber, Epoch)| LastWrite {
                disk: *disk,
                epoch: *epoch,
                writes: writes_of(disk),
            };
            let outcome = Outcome::StoodDown { point: *point, disks: epochs.iter().map(last).collect() };
            (stand_down.phase, stand_down.request) = (Phase::Rest, None);
            return self.finish_request(request, outcome);
        }
        stand_down.tries += 1;
        if stand_down.tries < TRIES_MAX {
            stand_down.phase = Phase::Point;
            return self.schedule.asked.push_front((request, PointKind::Crash));
        }
        let changed = done.writes.iter().find(|(disk, writes)| stand_down.writes.get(disk) != Some(*writes));
        let disk = changed.map_or_else(|| "a disk".to_owned(), |(disk, _)| format!("disk {disk}"));
        let message = format!(
            "The server does not stand down: although its services were stopped and its file systems held, \
             something goes on writing to {disk}. Add what writes past the file systems to planned_failover.stop."
        );
        self.finish_request(request, Outcome::Failed { message });
    }

    /// Whatever made the command fail: the server is not left half down.
    pub(super) fn give_up_stand_down(&mut self, request: u64) {
        if let Some(stand_down) = &mut self.stand_down
            && stand_down.request == Some(request)
        {
            (stand_down.request, stand_down.phase) = (None, Phase::Ending(None));
            self.schedule.asked.retain(|asked| asked.0 != request);
            self.out.push_back(Action::StandUp);
        }
    }

    /// Goes on as before, or for good without its services.
    pub(super) fn end_stand_down(&mut self, request: u64, action: Action) {
        if let Some(StandDown { request: Some(asked), .. }) = self.stand_down {
            self.stand_down = None;
            self.schedule.asked.retain(|waiting| waiting.0 != asked);
            let message = "The planned failover was given up.".to_owned();
            self.finish_request(asked, Outcome::Failed { message });
        }
        self.stand_down = Some(StandDown {
            request: None,
            phase: Phase::Ending(Some(request)),
            clean: false,
            tries: 0,
            writes: BTreeMap::new(),
        });
        self.out.push_back(action);
    }

    pub(super) fn stands_again(&mut self, result: Result<(), String>) {
        let Some(StandDown { phase: Phase::Ending(request), .. }) = &self.stand_down else { return };
        let request = *request;
        self.stand_down = None;
        // It was not saved while the file systems were held.
        self.save_needed = true;
        if let Err(why) = &result {
            self.tell(Notice {
                severity: Severity::Critical,
                code: "services_not_as_wanted",
                disk: None,
                message: format!("In a planned failover of this server, {why}."),
                next_step: "Start or stop the services by hand.".into(),
            });
        }
        if let Some(request) = request {
            let outcome = match result {
                Ok(()) => Outcome::Done,
                Err(why) => Outcome::Failed { message: format!("On the source, {why}.") },
            };
            self.finish_request(request, outcome);
        }
    }

    /// The point after the last write may not be that any more.
    pub(super) fn hold_lost(&mut self, why: &str) {
        self.save_needed = true;
        let Some(stand_down) = &mut self.stand_down else { return };
        let request = stand_down.request.take();
        self.stand_down = None;
        self.tell(Notice {
            severity: Severity::Warning,
            code: "file_systems_let_go",
            disk: None,
            message: format!("This server stood down for a planned failover, but {why}. Its services are stopped."),
            next_step: "See with `lifeboat job list` what became of the planned failover; start the services by hand \
                        if this server is to go on."
                .into(),
        });
        if let Some(request) = request {
            self.schedule.asked.retain(|waiting| waiting.0 != request);
            let message = format!("The server does not stand down: {why}.");
            self.finish_request(request, Outcome::Failed { message });
        }
    }
}
