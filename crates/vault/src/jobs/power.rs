//! The power of servers' machines: operators switch it, and it is told when a machine goes off by itself.
//!
//! The machine of a failover is somebody's server. It is to run, unless an operator had it stopped or its guest
//! has shut itself down: then it stays off until an operator starts it. One that went off by nobody's will, as when
//! its process is ended, is started again, here and by a vault that starts. A machine that a job begins or ends, or
//! has left half begun when it failed, is that job's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lifeboat_api::{self as api, MachinePurpose};
use lifeboat_compute::{ComputeError, MachineStatus, OffReason};
use lifeboat_model::{MachineId, ServerId};
use lifeboat_wire::event::{Event, Severity};

use super::{Conflict, JobError, Jobs, conflicts};
use crate::catalog::{Acknowledged, RecoveryRow};

/// Time between two looks at the machines.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A guest that was asked to shut down, and runs on for longer, was asked in vain.
const SHUT_DOWN_WITHIN: SignedDuration = SignedDuration::from_mins(10);
/// Time between two starts of a machine whose process ends again and again.
const START_AGAIN_AFTER: SignedDuration = SignedDuration::from_mins(5);
/// Jobs of a server, the newest first, among which the one is that has the machine in hand.
const JOBS_LOOKED_AT: u32 = 50;

/// What events say of a machine's power.
const OFF: &str = "machine_off";
const HALTED: &str = "machine_halted";
const RUNS: &str = "machine_runs";
const NOT_STOPPED: &str = "machine_not_stopped";
const STARTED: &str = "machine_started";
const RESTARTED: &str = "machine_restarted";
const POWER: [&str; 5] = [OFF, HALTED, RUNS, STARTED, RESTARTED];

/// What is done about a machine that is off.
const START_IT: &str = "Start it again: lifeboat machine start";

/// When machines were last started again whose process had ended.
pub type StartedAgain = BTreeMap<MachineId, Timestamp>;

/// What is told of a machine.
struct Told<'a> {
    severity: Severity,
    code: &'static str,
    /// The rest of a sentence about it.
    what: &'a str,
    /// Of a command's line: what is done about it, before the server's name.
    next_step: &'a str,
}

/// While it is there no job of the server begins or is ended.
struct Switching<'a> {
    jobs: &'a Jobs,
    server: ServerId,
}

impl Drop for Switching<'_> {
    fn drop(&mut self) {
        self.jobs.switching().remove(&self.server);
    }
}

impl Jobs {
    /// Starts a server's machine that is off. It has its disks as it left them, and as many processors and as much
    /// memory as an operator has set by now, or as before. Fine when it runs.
    ///
    /// # Errors
    /// When there is no machine, a job has it in hand, or catalog or provider fail.
    pub async fn start_again(self: &Arc<Self>, server: ServerId, by: &str) -> Result<api::Machine, JobError> {
        let (jobs, by) = (Arc::clone(self), by.to_owned());
        to_the_end(async move { jobs.switch_on(server, &by).await }).await
    }

    /// Has a server's machine stopped: its guest is asked to shut down, or its power is taken away. It stays off
    /// until it is started. Does not wait for the guest. Fine when it is off.
    ///
    /// # Errors
    /// When there is no machine, a job has it in hand, or catalog or provider fail.
    pub async fn stop_machine(
        self: &Arc<Self>,
        server: ServerId,
        force: bool,
        by: &str,
    ) -> Result<api::Machine, JobError> {
        let (jobs, by) = (Arc::clone(self), by.to_owned());
        to_the_end(async move { jobs.switch_off(server, force, &by).await }).await
    }

    async fn switch_on(&self, server: ServerId, by: &str) -> Result<api::Machine, JobError> {
        let (_switching, mut recovery) = self.switch(server).await?;
        let catalog = self.vault.catalog();
        if let Some(stopped) = recovery.stopped {
            catalog.clear_stopped(server, recovery.machine, stopped).await?;
        }
        let status = self.provider.status(recovery.machine).await?;
        let is_off = matches!(status, MachineStatus::Off { .. } | MachineStatus::Absent);
        if is_off {
            // Not what would be derived now: that depends on how much memory is free at the moment.
            let set = catalog.target(server).await?.unwrap_or_default();
            recovery.spec.cpus = set.cpus.unwrap_or(recovery.spec.cpus);
            recovery.spec.memory_mib = set.memory_mib.unwrap_or(recovery.spec.memory_mib);
            catalog.set_spec(server, &recovery.spec).await?;
        }
        if is_off || is_unfinished(&status) {
            if let Err(error) = self.provider.start(&recovery.spec).await {
                return Err(self.with_drills(server, error).await);
            }
            self.tell_started(&recovery, by).await?;
        }
        self.vault.changed();
        self.machine(server).await
    }

    async fn switch_off(&self, server: ServerId, force: bool, by: &str) -> Result<api::Machine, JobError> {
        let (_switching, recovery) = self.switch(server).await?;
        // First, so that nobody takes it for a machine that went off by itself.
        self.vault.catalog().set_stopped(server, recovery.machine, (self.clock)()).await?;
        let told = match self.provider.status(recovery.machine).await {
            Ok(MachineStatus::Off { .. } | MachineStatus::Absent) => None,
            // Also one that gives no answer.
            Ok(MachineStatus::Running { .. }) | Err(_) if force => {
                self.provider.power_off(recovery.machine).await?;
                Some(("machine_powered_off", "was powered off"))
            }
            Ok(MachineStatus::Running { .. }) => {
                self.provider.shut_down(recovery.machine).await?;
                Some(("machine_told_to_stop", "was told to shut down"))
            }
            Err(error) => return Err(error.into()),
        };
        if let Some((code, what)) = told {
            self.tell(&recovery, &Told::plainly(code, &format!("{what} by {by}"))).await?;
        }
        self.vault.changed();
        self.machine(server).await
    }

    /// A server's machine that no job has in hand, and none gets while it is switched.
    async fn switch(&self, server: ServerId) -> Result<(Switching<'_>, RecoveryRow), JobError> {
        let _guard = self.beginning.lock().await;
        if let Some(why) = self.in_hand(server).await? {
            return Err(why.into());
        }
        let recovery = self.recovery(server).await?;
        if !self.switching().insert(server) {
            return Err(Conflict::PowerSwitched.into());
        }
        Ok((Switching { jobs: self, server }, recovery))
    }

    /// Which job has a server's machine in hand, if one does: it begins or ends it, or has failed midway.
    pub(super) async fn in_hand(&self, server: ServerId) -> Result<Option<Conflict>, JobError> {
        let catalog = self.vault.catalog();
        let under_way = catalog.jobs_under_way().await?;
        let at_work = under_way.iter().find(|job| job.server == server && job.request.starts_or_removes());
        if let Some(job) = at_work {
            return Ok(Some(Conflict::under_way(job)));
        }
        let mut jobs = catalog.jobs(Some(server), 1).await?;
        // A change of point that came to nothing hides no job before it.
        if jobs.first().is_some_and(conflicts::has_touched_nothing) {
            jobs = catalog.jobs(Some(server), JOBS_LOOKED_AT).await?;
        }
        let last = jobs.iter().position(|job| !conflicts::has_touched_nothing(job));
        let open = last
            .map(|place| (&jobs[place], place == 0))
            .filter(|(job, _)| conflicts::leaves_machine_open(job));
        Ok(open.map(|(job, is_newest)| Conflict::machine_open(job, is_newest)))
    }

    fn switching(&self) -> MutexGuard<'_, BTreeSet<ServerId>> {
        self.switching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses what would come between the one who switches a server's machine and the machine.
    pub(super) fn refuse_while_switched(&self, server: ServerId) -> Result<(), Conflict> {
        if self.switching().contains(&server) { Err(Conflict::PowerSwitched) } else { Ok(()) }
    }

    /// Looks again and again at the machines of failovers.
    pub async fn watch_machines(&self) {
        let mut started = StartedAgain::new();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if let Err(error) = self.look_at_machines(&mut started, (self.clock)()).await {
                tracing::warn!(%error, "machines could not be looked at");
            }
        }
    }

    /// Tells of each machine of a failover that does not run as it should, once, and starts those again that did
    /// not go off by anybody's will.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn look_at_machines(&self, started: &mut StartedAgain, now: Timestamp) -> Result<(), JobError> {
        let catalog = self.vault.catalog();
        for listed in catalog.recoveries().await? {
            if listed.purpose != MachinePurpose::Failover {
                continue;
            }
            let status = self.provider.status(listed.machine).await;
            // Only now: what a job or an operator did before the status is known here.
            let current = catalog.recovery(listed.server).await?.filter(|row| row.machine == listed.machine);
            let Some(recovery) = current else { continue };
            let is_switched = self.refuse_while_switched(recovery.server).is_err();
            if is_switched || self.in_hand(recovery.server).await?.is_some() {
                continue;
            }
            match status {
                Ok(MachineStatus::Running { .. }) if recovery.stopped.is_some() => {
                    self.still_runs(&recovery, now).await?;
                }
                Ok(status) if is_unfinished(&status) && may_start(started, &recovery, now) => {
                    let what = "stands still: its start was cut short".to_owned();
                    self.start_or_tell(started, &recovery, what, now).await?;
                }
                Ok(MachineStatus::Running { halted: None, .. }) => self.runs(&recovery).await?,
                Ok(MachineStatus::Running { halted: Some(why), .. }) => {
                    self.tell_halted(&recovery, &why).await?;
                }
                Err(error @ ComputeError::Silent { .. }) => {
                    self.tell_halted(&recovery, &error.to_string()).await?;
                }
                Ok(MachineStatus::Off { .. } | MachineStatus::Absent) if recovery.stopped.is_some() => {
                    self.settle_power(recovery.server, "the operator who had it stopped").await?;
                }
                Ok(MachineStatus::Off {
                    why: why @ (OffReason::Ended { .. } | OffReason::NotStarted { .. }),
                }) => {
                    self.start_or_tell(started, &recovery, format!("is off: {why}"), now).await?;
                }
                Ok(MachineStatus::Off { why: why @ OffReason::GuestShutDown }) => {
                    self.tell_off(&recovery, Severity::Warning, &format!("is off: {why}")).await?;
                }
                Ok(MachineStatus::Off { why: why @ OffReason::PoweredOff }) => {
                    self.tell_off(&recovery, Severity::Critical, &format!("is off: {why}")).await?;
                }
                Ok(MachineStatus::Absent) => self.tell_off(&recovery, Severity::Critical, "is gone").await?,
                // Jobs and operators who need the provider are told by it.
                Err(error) => {
                    tracing::debug!(machine = %recovery.machine, %error, "a machine could not be looked at");
                }
            }
        }
        Ok(())
    }

    /// An operator wants it off.
    async fn still_runs(&self, recovery: &RecoveryRow, now: Timestamp) -> Result<(), JobError> {
        let (server, catalog) = (recovery.server, self.vault.catalog());
        if let Some(asked) = recovery.stopped
            && now.duration_since(asked) > SHUT_DOWN_WITHIN
            && catalog.clear_stopped(server, recovery.machine, asked).await?
        {
            let told = Told {
                severity: Severity::Warning,
                code: NOT_STOPPED,
                what: &format!("was told to shut down at {asked:.0}, and still runs"),
                next_step: "Shut it down from inside, or take its power away: lifeboat machine stop --force",
            };
            self.tell(recovery, &told).await?;
        }
        Ok(())
    }

    async fn runs(&self, recovery: &RecoveryRow) -> Result<(), JobError> {
        if matches!(self.last_told(recovery).await?.as_deref(), Some(OFF | HALTED)) {
            self.settle_power(recovery.server, "the machine, which runs again").await?;
            self.tell(recovery, &Told::plainly(RUNS, "runs again")).await?;
        }
        Ok(())
    }

    /// Starts a machine that does not run against everybody's will, but not again and again.
    async fn start_or_tell(
        &self,
        started: &mut StartedAgain,
        recovery: &RecoveryRow,
        what: String,
        now: Timestamp,
    ) -> Result<(), JobError> {
        if !may_start(started, recovery, now) {
            return self.tell_off(recovery, Severity::Critical, &what).await;
        }
        started.insert(recovery.machine, now);
        let (_switching, current) = match self.switch(recovery.server).await {
            Ok(switched) => switched,
            // Somebody else decides by now.
            Err(JobError::Conflict(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        if current.machine != recovery.machine || current.stopped.is_some() {
            return Ok(());
        }
        match self.provider.start(&current.spec).await {
            Ok(()) => {
                if let Ok(MachineStatus::Running { halted: Some(why), .. }) =
                    self.provider.status(recovery.machine).await
                {
                    return self.tell_halted(recovery, &why).await;
                }
                let told = Told {
                    severity: Severity::Warning,
                    code: RESTARTED,
                    what: &format!("{what}; it was started again"),
                    next_step: "See whether it came up: lifeboat machine console",
                };
                self.settle_power(recovery.server, "the machine, which was started again").await?;
                self.tell(recovery, &told).await
            }
            Err(error) => {
                let what = format!("{what}; it could not be started again: {error}");
                self.tell_off(recovery, Severity::Critical, &what).await
            }
        }
    }

    /// Starts the machines that ended with this host or its vault, when no job is to do that.
    pub(super) async fn start_all_again(&self) -> Result<(), JobError> {
        for recovery in self.vault.catalog().recoveries().await? {
            if recovery.stopped.is_some() || self.in_hand(recovery.server).await?.is_some() {
                continue;
            }
            let result = match self.provider.status(recovery.machine).await {
                Ok(MachineStatus::Off { why: OffReason::GuestShutDown } | MachineStatus::Absent) => Ok(()),
                Ok(status) if is_unfinished(&status) || matches!(status, MachineStatus::Off { .. }) => {
                    tracing::info!(machine = %recovery.machine, server = %recovery.server, "starts a machine again");
                    self.provider.start(&recovery.spec).await
                }
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                let what = format!("could not be started again when the vault started: {error}");
                self.tell_off(&recovery, Severity::Critical, &what).await?;
            }
        }
        Ok(())
    }

    async fn tell_halted(&self, recovery: &RecoveryRow, why: &str) -> Result<(), JobError> {
        let told = Told {
            severity: Severity::Critical,
            code: HALTED,
            what: &format!("stands still: {why}"),
            next_step: "If it does not go on when the cause is mended, take its power away, and then start it: \
                        lifeboat machine stop --force",
        };
        self.tell_once(recovery, &told).await
    }

    async fn tell_off(&self, recovery: &RecoveryRow, severity: Severity, what: &str) -> Result<(), JobError> {
        self.tell_once(recovery, &Told { severity, code: OFF, what, next_step: START_IT }).await
    }

    /// Tells it unless it was the last that was told of the machine's power.
    async fn tell_once(&self, recovery: &RecoveryRow, told: &Told<'_>) -> Result<(), JobError> {
        if self.last_told(recovery).await?.as_deref() == Some(told.code) {
            return Ok(());
        }
        self.tell(recovery, told).await
    }

    async fn last_told(&self, recovery: &RecoveryRow) -> Result<Option<String>, JobError> {
        Ok(self.vault.catalog().newest_code(recovery.server, POWER).await?)
    }

    async fn tell(&self, recovery: &RecoveryRow, told: &Told<'_>) -> Result<(), JobError> {
        let name = self.server_name(recovery.server).await?;
        let next_step =
            if told.next_step.is_empty() { String::new() } else { format!("{} {name}", told.next_step) };
        let event = Event {
            time: (self.clock)(),
            severity: told.severity,
            code: told.code.to_owned(),
            server: Some(recovery.server),
            disk: None,
            message: format!("The machine of {name} {}.", told.what),
            next_step,
        };
        Ok(self.vault.note(event).await?)
    }

    /// The machine runs, so that what was told before is over.
    pub(super) async fn tell_started(&self, recovery: &RecoveryRow, by: &str) -> Result<(), JobError> {
        self.settle_power(recovery.server, by).await?;
        self.tell(recovery, &Told::plainly(STARTED, &format!("was started by {by}"))).await
    }

    /// What was told of the power of a server's machine is over.
    pub(super) async fn settle_power(&self, server: ServerId, by: &str) -> Result<(), JobError> {
        let which = Acknowledged::Of { server, codes: &[OFF, HALTED, NOT_STOPPED] };
        self.vault.catalog().acknowledge(&which, by, (self.clock)()).await?;
        Ok(())
    }
}

impl<'a> Told<'a> {
    /// Nothing is to be done about it.
    const fn plainly(code: &'static str, what: &'a str) -> Self {
        Self { severity: Severity::Information, code, what, next_step: "" }
    }
}

/// Whether it has power and was never let run: somebody who started it ended meanwhile.
const fn is_unfinished(status: &MachineStatus) -> bool {
    matches!(status, MachineStatus::Running { first_instruction: None, halted: Some(_), .. })
}

/// Whether a machine that does not run is started by the vault at this look.
fn may_start(started: &StartedAgain, recovery: &RecoveryRow, now: Timestamp) -> bool {
    started.get(&recovery.machine).is_none_or(|last| now.duration_since(*last) > START_AGAIN_AFTER)
}

/// Does it to its end, although whoever asked for it may not wait for that.
async fn to_the_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
