//! The power of servers' machines: operators switch it, and it is told when a machine goes off by itself.
//!
//! The machine of a failover is somebody's server. It is to run, unless an operator had it stopped or its guest
//! has shut itself down: then it stays off until an operator starts it. One whose process was ended is started
//! again, here and by a vault that starts.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lifeboat_api::{self as api, MachinePurpose};
use lifeboat_compute::{ComputeError, MachineStatus, OffReason};
use lifeboat_model::{MachineId, ServerId};
use lifeboat_wire::event::{Event, Severity};

use super::{Conflict, JobError, Jobs};
use crate::catalog::{Acknowledged, JobRow, RecoveryRow};

/// Time between two looks at the machines.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A guest that was asked to shut down, and runs on for longer, was asked in vain.
const SHUT_DOWN_WITHIN: SignedDuration = SignedDuration::from_mins(10);
/// Time between two starts of a machine whose process ends again and again.
const START_AGAIN_AFTER: SignedDuration = SignedDuration::from_mins(5);

/// What events say of a machine's power.
const OFF: &str = "machine_off";
const HALTED: &str = "machine_halted";
const RUNS: &str = "machine_runs";
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

impl Jobs {
    /// Starts a server's machine that is off. It has its disks as it left them, and as many processors and as much
    /// memory as an operator has set by now, or as before. Fine when it runs.
    ///
    /// # Errors
    /// When there is no machine, a job starts or removes it, or catalog or provider fail.
    pub async fn start_again(&self, server: ServerId, by: &str) -> Result<api::Machine, JobError> {
        let _guard = self.beginning.lock().await;
        let mut recovery = self.machine_at_rest(server).await?;
        let catalog = self.vault.catalog();
        if let MachineStatus::Off { .. } | MachineStatus::Absent =
            self.provider.status(recovery.machine).await?
        {
            // Not what would be derived now: that depends on how much memory is free at the moment.
            let set = catalog.target(server).await?.unwrap_or_default();
            recovery.spec.cpus = set.cpus.unwrap_or(recovery.spec.cpus);
            recovery.spec.memory_mib = set.memory_mib.unwrap_or(recovery.spec.memory_mib);
            catalog.put_recovery(&recovery).await?;
            if let Err(error) = self.provider.start(&recovery.spec).await {
                return Err(self.with_drills(server, error).await);
            }
            self.tell(&recovery, &Told::plainly(STARTED, &format!("was started by {by}"))).await?;
            self.acknowledge_off(&recovery, by).await?;
        }
        catalog.set_stopped(server, recovery.machine, None).await?;
        self.vault.changed();
        self.machine(server).await
    }

    /// Has a server's machine stopped: its guest is asked to shut down, or its power is taken away. It stays off
    /// until it is started. Does not wait for the guest. Fine when it is off.
    ///
    /// # Errors
    /// When there is no machine, a job starts or removes it, or catalog or provider fail.
    pub async fn stop_machine(
        &self,
        server: ServerId,
        force: bool,
        by: &str,
    ) -> Result<api::Machine, JobError> {
        let _guard = self.beginning.lock().await;
        let recovery = self.machine_at_rest(server).await?;
        // First, so that nobody takes it for a machine that went off by itself.
        self.vault.catalog().set_stopped(server, recovery.machine, Some((self.clock)())).await?;
        if let MachineStatus::Running { .. } = self.provider.status(recovery.machine).await? {
            let (code, what) = if force {
                self.provider.power_off(recovery.machine).await?;
                ("machine_powered_off", "was powered off")
            } else {
                self.provider.shut_down(recovery.machine).await?;
                ("machine_told_to_stop", "was told to shut down")
            };
            self.tell(&recovery, &Told::plainly(code, &format!("{what} by {by}"))).await?;
        }
        self.vault.changed();
        self.machine(server).await
    }

    /// A server's machine that no job starts or removes. The caller keeps jobs from beginning.
    async fn machine_at_rest(&self, server: ServerId) -> Result<RecoveryRow, JobError> {
        let under_way = self.vault.catalog().jobs_under_way().await?;
        let at_work = under_way.iter().find(|job| job.server == server && job.request.starts_or_removes());
        if let Some(job) = at_work {
            return Err(Conflict::under_way(job).into());
        }
        self.recovery(server).await
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

    /// Tells of each machine of a failover that does not run as it should, once, and starts those again whose
    /// process has ended.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn look_at_machines(&self, started: &mut StartedAgain, now: Timestamp) -> Result<(), JobError> {
        let catalog = self.vault.catalog();
        let (recoveries, under_way) = (catalog.recoveries().await?, catalog.jobs_under_way().await?);
        for recovery in recoveries {
            if recovery.purpose != MachinePurpose::Failover || is_at_work(&under_way, recovery.server) {
                continue;
            }
            match self.provider.status(recovery.machine).await {
                Ok(MachineStatus::Running { halted: None, .. }) => self.runs(&recovery, now).await?,
                Ok(MachineStatus::Running { halted: Some(why), .. }) => {
                    let told = Told {
                        severity: Severity::Critical,
                        code: HALTED,
                        what: &format!("stands still: {why}"),
                        next_step: "When the cause is mended, begin it anew from its disks: lifeboat machine stop \
                                    --force, and then lifeboat machine start",
                    };
                    self.tell_once(&recovery, &told).await?;
                }
                Ok(MachineStatus::Off { why }) => self.is_off(started, &recovery, &why, now).await?,
                Ok(MachineStatus::Absent) => self.tell_off(&recovery, Severity::Critical, "is gone").await?,
                // Jobs and operators who need the provider are told by it.
                Err(error) => {
                    tracing::debug!(machine = %recovery.machine, %error, "a machine could not be looked at");
                }
            }
        }
        Ok(())
    }

    async fn runs(&self, recovery: &RecoveryRow, now: Timestamp) -> Result<(), JobError> {
        let (server, catalog) = (recovery.server, self.vault.catalog());
        if let Some(asked) = recovery.stopped {
            if now.duration_since(asked) > SHUT_DOWN_WITHIN {
                catalog.set_stopped(server, recovery.machine, None).await?;
                let told = Told {
                    severity: Severity::Warning,
                    code: "machine_not_stopped",
                    what: &format!("was told to shut down at {asked:.0}, and still runs"),
                    next_step: "Shut it down from inside, or take its power away: lifeboat machine stop --force",
                };
                self.tell(recovery, &told).await?;
            }
            return Ok(());
        }
        if matches!(catalog.newest_code(server, POWER).await?.as_deref(), Some(OFF | HALTED)) {
            self.tell(recovery, &Told::plainly(RUNS, "runs again")).await?;
            self.acknowledge_off(recovery, "the machine, which runs again").await?;
        }
        Ok(())
    }

    async fn is_off(
        &self,
        started: &mut StartedAgain,
        recovery: &RecoveryRow,
        why: &OffReason,
        now: Timestamp,
    ) -> Result<(), JobError> {
        // Read again: an operator may have had it stopped since.
        let current = self.vault.catalog().recovery(recovery.server).await?;
        if current.is_none_or(|row| row.machine != recovery.machine || row.stopped.is_some()) {
            return Ok(());
        }
        let mut what = format!("is off: {why}");
        let is_new = |last: &Timestamp| now.duration_since(*last) > START_AGAIN_AFTER;
        if matches!(why, OffReason::Ended { .. }) && started.get(&recovery.machine).is_none_or(is_new) {
            started.insert(recovery.machine, now);
            match self.start_ended(recovery).await? {
                Some(Ok(())) => {
                    let told = Told {
                        severity: Severity::Warning,
                        code: RESTARTED,
                        what: &format!("went off ({why}) and was started again"),
                        next_step: "See whether it came up: lifeboat machine console",
                    };
                    self.tell(recovery, &told).await?;
                    return self.acknowledge_off(recovery, "the machine, which was started again").await;
                }
                Some(Err(error)) => what += &format!("; it could not be started again: {error}"),
                None => return Ok(()),
            }
        }
        let is_usual = *why == OffReason::GuestShutDown;
        self.tell_off(recovery, if is_usual { Severity::Warning } else { Severity::Critical }, &what).await
    }

    /// Starts a machine whose process has ended; none if it is another's to decide by now.
    async fn start_ended(
        &self,
        recovery: &RecoveryRow,
    ) -> Result<Option<Result<(), ComputeError>>, JobError> {
        let _guard = self.beginning.lock().await;
        match self.machine_at_rest(recovery.server).await {
            Ok(row) if row.machine == recovery.machine && row.stopped.is_none() => {
                Ok(Some(self.provider.start(&row.spec).await))
            }
            Ok(_) | Err(JobError::Conflict(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Starts the machines that ended with this host or its vault, when no job is to do that.
    pub(super) async fn start_all_again(&self, under_way: &[JobRow]) -> Result<(), JobError> {
        for recovery in self.vault.catalog().recoveries().await? {
            if is_at_work(under_way, recovery.server) || recovery.stopped.is_some() {
                continue;
            }
            let result = match self.provider.status(recovery.machine).await {
                Ok(MachineStatus::Off { why: OffReason::PoweredOff | OffReason::Ended { .. } }) => {
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

    async fn tell_off(&self, recovery: &RecoveryRow, severity: Severity, what: &str) -> Result<(), JobError> {
        self.tell_once(recovery, &Told { severity, code: OFF, what, next_step: START_IT }).await
    }

    /// Tells it unless it was the last that was told of the machine's power.
    async fn tell_once(&self, recovery: &RecoveryRow, told: &Told<'_>) -> Result<(), JobError> {
        let newest = self.vault.catalog().newest_code(recovery.server, POWER).await?;
        if newest.as_deref() == Some(told.code) { Ok(()) } else { self.tell(recovery, told).await }
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

    async fn acknowledge_off(&self, recovery: &RecoveryRow, by: &str) -> Result<(), JobError> {
        let which = Acknowledged::Of { server: recovery.server, codes: &[OFF, HALTED] };
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

/// Whether a job that begins or ends a machine works on the server.
fn is_at_work(under_way: &[JobRow], server: ServerId) -> bool {
    under_way.iter().any(|job| job.server == server && job.request.starts_or_removes())
}
