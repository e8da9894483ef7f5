//! What each step of a job does, and how it is undone. Every one can be done twice: what is there
//! already is used, what is gone already is no error.

use base64::Engine as _;
use jiff::Timestamp;
use lifeboat_api::{DrillReport, MachinePurpose};
use lifeboat_compute::{
    Acceleration, Capabilities, CopyIdentity, DiskAddress, MachineDisk, MachineSpec, MachineStatus, Purpose,
};
use lifeboat_model::{AddressChange, MachineId, PointKind, ServerId, VolumeId};
use tokio::sync::watch;

use super::differences::{Drill, differences};
use super::request::Verdict;
use super::up::Probes;
use super::{JobError, JobRequest, Jobs, Order, Step, views};
use crate::catalog::{JobRow, RecoveryRow};
use crate::error::VaultError;
use crate::target::{self, Derived};

/// Bytes of the console that a report has.
const CONSOLE_BYTES: usize = 8 << 10;

/// What happens around steps, for tests: crashes and failures at every moment.
pub trait Interruption: Send + Sync {
    /// Before a step does anything.
    ///
    /// # Errors
    /// When the step is to fail.
    fn before(&self, _: Step) -> Result<(), JobError> {
        Ok(())
    }

    /// After a step has done all it does, before that is on record.
    ///
    /// # Errors
    /// When the step is to fail.
    fn after(&self, _: Step) -> Result<(), JobError> {
        Ok(())
    }
}

/// Nothing happens.
impl Interruption for () {}

impl Jobs {
    /// Does a step; answers what is to be told of it.
    pub(super) async fn run(
        &self,
        step: Step,
        job: &mut JobRow,
        order: watch::Receiver<Order>,
    ) -> Result<Option<String>, JobError> {
        match step {
            Step::LastPoint => unless(order, self.last_point(job)).await,
            Step::StandDown => unless(order, self.stand_down(job)).await,
            Step::Retire => self.retire(job).await,
            Step::Fence => {
                self.vault.fence(job.server, (self.clock)()).await?;
                Ok(None)
            }
            Step::ChoosePoint => self.choose_point(job).await,
            Step::OpenVolume => {
                let point = point_of(job)?;
                self.volumes.open_as(job.work.volume, job.server, point, (self.clock)()).await?;
                Ok(None)
            }
            Step::RemoveFormerMachine => {
                if let Some((machine, _)) = job.work.former {
                    self.provider.remove(machine).await?;
                }
                Ok(None)
            }
            Step::StartMachine => self.start_machine(job).await,
            Step::CloseFormerVolume => {
                if let Some((machine, volume)) = job.work.former {
                    self.forget(job, machine, volume).await?;
                }
                match &job.request {
                    JobRequest::CleanUp { note: Some(note) } => {
                        self.note_of_drill(job.server, note).await?;
                        Ok(Some(note.clone()))
                    }
                    _ => Ok(None),
                }
            }
            Step::AwaitUp => unless(order, self.await_up(job)).await,
            Step::Report => self.report(job).await,
            Step::RemoveMachine => {
                self.provider.remove(job.work.machine).await?;
                Ok(None)
            }
            Step::CloseVolume => {
                self.forget(job, job.work.machine, job.work.volume).await?;
                Ok(None)
            }
            Step::Commit => self.commit(job).await,
            Step::CopyDisks => unless(order, self.copy_disks(job)).await,
            Step::ReleaseVolume => self.release_volume(job).await,
        }
    }

    /// Removes what a step has made.
    pub(super) async fn undo(&self, step: Step, job: &JobRow) -> Result<(), JobError> {
        match step {
            Step::StandDown => self.stand_up(job).await,
            Step::Fence => Ok(self.vault.unfence(job.server, (self.clock)()).await?),
            Step::OpenVolume => self.forget(job, job.work.machine, job.work.volume).await,
            Step::StartMachine => Ok(self.provider.remove(job.work.machine).await?),
            Step::CopyDisks => self.end_copies(job).await,
            Step::LastPoint
            | Step::ReleaseVolume
            | Step::ChoosePoint
            | Step::RemoveFormerMachine
            | Step::CloseFormerVolume
            | Step::AwaitUp
            | Step::Report
            | Step::RemoveMachine
            | Step::CloseVolume
            | Step::Retire
            | Step::Commit => Ok(()),
        }
    }

    async fn choose_point(&self, job: &mut JobRow) -> Result<Option<String>, JobError> {
        let point = match job.work.point {
            Some((point, _)) => point,
            None => {
                let named = job.request.named_point().unwrap_or("latest");
                self.vault.find_point(job.server, named).await?
            }
        };
        let row = self.vault.catalog().point(point).await?;
        let Some(row) = row else {
            return Err(self.vault.no_such_point(job.server, &point.to_string()).await.into());
        };
        job.work.point = Some((point, row.time));
        Ok(Some(format!("{}-consistent point {point} of {:.3}", row.kind, row.time)))
    }

    async fn start_machine(&self, job: &mut JobRow) -> Result<Option<String>, JobError> {
        let catalog = self.vault.catalog();
        let capabilities = self.provider.capabilities().await?;
        job.work.compute = described(&capabilities);
        let one_at_a_time = self.placing.lock().await;
        let begun = catalog.recovery(job.server).await?.filter(|row| row.machine == job.work.machine);
        let running = match begun {
            Some(row) => match self.provider.status(row.machine).await? {
                MachineStatus::Running { .. } => Some(row.spec),
                // It could not be started before: what kept it from that may have been changed since.
                MachineStatus::Off { .. } | MachineStatus::Absent => None,
            },
            None => None,
        };
        let spec = match running {
            Some(spec) => spec,
            None => self.spec(job).await?,
        };
        let (point, point_time) = job.work.point.ok_or_else(no_point)?;
        // Its row first, so that it is known whatever happens.
        let recovery = RecoveryRow {
            server: job.server,
            purpose: purpose(&job.request),
            job: job.id,
            machine: job.work.machine,
            volume: job.work.volume,
            point,
            point_time,
            begun: (self.clock)(),
            committed: None,
            stopped: None,
            spec: spec.clone(),
        };
        catalog.put_recovery(&recovery).await?;
        drop(one_at_a_time);
        if let Err(error) = self.provider.start(&spec).await {
            return Err(self.with_drills(job.server, error).await);
        }
        if let MachineStatus::Running { first_instruction, since, .. } = self.provider.status(spec.id).await?
        {
            job.work.first_instruction = Some(first_instruction.unwrap_or(since));
        }
        job.work.spec = Some(spec);
        if recovery.purpose == MachinePurpose::Failover {
            // What was told of a machine that there was before is not told of this one.
            self.tell_started(&recovery, &format!("job {}", job.id)).await?;
        }
        Ok(Some(job.work.compute.clone()))
    }

    /// The machine that a server becomes.
    async fn spec(&self, job: &mut JobRow) -> Result<MachineSpec, JobError> {
        let derived = self.derived(job.server, purpose(&job.request)).await?;
        let target = &derived.target;
        for less in &derived.less {
            job.work.compute += &format!("; {less}");
        }
        let server = self.vault.catalog().server(job.server).await?;
        let name = server.map_or_else(|| job.server.to_string(), |server| server.name);
        let (point, _) = job.work.point.ok_or_else(no_point)?;
        let is_drill = purpose(&job.request) == MachinePurpose::Drill;
        let attachment = self.attachment(job.server, &job.request, &derived).await?;
        let mac = views::mac(target.mac.as_deref(), job.server)?;
        let (nics, changes) = target::nics(&derived, attachment, mac, views::nic_model(target.network_card));
        for AddressChange { from, to, .. } in changes.iter().filter_map(|change| change.address) {
            if from != to {
                job.work.compute += &format!("; the guest's fixed address {from} becomes {to}");
            }
        }
        let disks = self.volumes.local_disks(job.work.volume).await?;
        let disk = |local: crate::volumes::LocalDisk| MachineDisk {
            number: local.disk,
            source: DiskAddress::NbdUnix { socket: local.socket, export: local.export },
            bytes: local.bytes,
            bus: views::disk_bus(target.disk_bus),
        };
        Ok(MachineSpec {
            id: job.work.machine,
            name,
            cpus: target.cpus,
            memory_mib: target.memory_mib,
            firmware: views::firmware(target.firmware),
            disks: disks.into_iter().map(disk).collect(),
            nics,
            identity: CopyIdentity {
                vault: self.vault.id(),
                server: job.server,
                point,
                purpose: if is_drill { Purpose::Drill } else { Purpose::Failover },
            },
            changes,
        })
    }

    /// How a server's machine is to look: what was set, and the rest from the server's facts.
    pub(super) async fn derived(
        &self,
        server: ServerId,
        purpose: MachinePurpose,
    ) -> Result<Derived, JobError> {
        let set = self.vault.catalog().target(server).await?.unwrap_or_default();
        let facts = self.vault.catalog().facts(server).await?;
        let host = self.provider.capabilities().await.ok();
        Ok(target::derive(server, &set, facts.as_ref().map(|row| &row.facts), host.as_ref(), purpose))
    }

    async fn await_up(&self, job: &mut JobRow) -> Result<Option<String>, JobError> {
        let target = self.derived(job.server, purpose(&job.request)).await?.target;
        let spec = job.work.spec.as_ref().ok_or_else(no_point)?;
        let begun = job.work.first_instruction.unwrap_or(job.begun);
        // An operator who has it waited for again, or has started it anew since, gives it its whole time.
        let started = match self.provider.status(spec.id).await? {
            MachineStatus::Running { since, .. } => since,
            _ => begun,
        };
        let since = begun.max(started).max(job.work.awaited_since.unwrap_or(begun));
        let (provider, within) = (self.provider.as_ref(), target.up_within.duration());
        let access = self.ssh.access(job.server, Probes::need_key(&target)).await?;
        let probes = Probes::of(&target, &access);
        let verdict = probes.until_up(provider, spec, since, within, self.clock).await?;
        let (is_up, sentence) = (verdict.up, verdict.sentence.clone());
        job.work.verdict = Some(verdict);
        if !is_up && purpose(&job.request) != MachinePurpose::Drill {
            // Its console and screen are gone with it when it is removed.
            self.report(job).await?;
        }
        // A drill goes on to its report, which says so.
        if is_up || purpose(&job.request) == MachinePurpose::Drill {
            Ok(Some(sentence))
        } else {
            Err(JobError::NotUp(sentence.trim_end_matches('.').to_owned()))
        }
    }

    async fn report(&self, job: &mut JobRow) -> Result<Option<String>, JobError> {
        let (point, point_time) = job.work.point.ok_or_else(no_point)?;
        let kind = self.vault.catalog().point(point).await?.map_or(PointKind::Crash, |row| row.kind);
        let console = self.provider.console(job.work.machine, 0).await?.text;
        let mut cut = console.ceil_char_boundary(console.len().saturating_sub(CONSOLE_BYTES));
        if cut > 0 {
            // From the first whole line on.
            cut += console[cut..].find('\n').map_or(0, |end| end + 1);
        }
        let screenshot = match self.provider.screenshot(job.work.machine).await {
            Ok(png) => Some(base64::engine::general_purpose::STANDARD.encode(png)),
            Err(error) => {
                tracing::info!(job = %job.id, %error, "the report is without a screenshot");
                None
            }
        };
        let verdict = job.work.verdict.clone().unwrap_or(Verdict {
            up: false,
            is_off: false,
            sentence: "The machine was not waited for.".to_owned(),
            probes: Vec::new(),
            boot_ms: None,
        });
        let server_name = job.work.spec.as_ref().map(|spec| spec.name.clone()).unwrap_or_default();
        let before = self.vault.catalog().newest_report(job.server, job.id).await?;
        let mut report = DrillReport {
            server_name,
            point,
            point_time,
            point_kind: kind,
            point_age_ms: millis(point_time, job.begun),
            up: verdict.up,
            verdict: verdict.sentence,
            probes: verdict.probes,
            first_instruction_ms: job.work.first_instruction.map(|first| millis(job.begun, first)),
            boot_ms: verdict.boot_ms,
            compute: job.work.compute.clone(),
            console: console[cut..].to_owned(),
            screenshot,
            previous: before.as_ref().map(views::in_short),
            differences: Vec::new(),
            note: None,
        };
        if let Some(JobRow { report: Some(shown), work, .. }) = &before {
            let now = Drill { report: &report, machine: job.work.spec.as_ref() };
            report.differences = differences(now, Drill { report: shown, machine: work.spec.as_ref() });
        }
        job.report = Some(report);
        Ok(None)
    }

    /// Adds to the report of the drill that is cleaned up what somebody found in the copy.
    async fn note_of_drill(&self, server: ServerId, note: &str) -> Result<(), JobError> {
        let catalog = self.vault.catalog();
        if let Some(mut drill) = catalog.newest_drill(server).await?
            && let Some(report) = &mut drill.report
        {
            report.note = Some(note.to_owned());
            catalog.update_job(&drill).await?;
        }
        Ok(())
    }

    async fn commit(&self, job: &mut JobRow) -> Result<Option<String>, JobError> {
        let catalog = self.vault.catalog();
        let Some(recovery) = catalog.recovery(job.server).await? else { return Ok(None) };
        catalog.set_committed(job.server, (self.clock)()).await?;
        self.after_commit(job, &recovery).await.map(Some)
    }

    /// Closes a machine's volume, and forgets the machine.
    async fn forget(&self, job: &JobRow, machine: MachineId, volume: VolumeId) -> Result<(), JobError> {
        self.volumes.close_as(volume).await?;
        if self.vault.catalog().remove_recovery(job.server, machine).await? {
            self.settle_power(job.server, &format!("job {}, which has removed the machine", job.id)).await?;
        }
        Ok(())
    }
}

/// What a future gives, unless the job is to do something else.
async fn unless<T>(
    mut order: watch::Receiver<Order>,
    work: impl Future<Output = Result<T, JobError>>,
) -> Result<T, JobError> {
    tokio::select! {
        result = work => result,
        _ = order.wait_for(|order| *order != Order::GoOn) => Err(JobError::Interrupted),
    }
}

pub(super) fn purpose(request: &JobRequest) -> MachinePurpose {
    match request {
        JobRequest::Drill { .. } | JobRequest::CleanUp { .. } => MachinePurpose::Drill,
        JobRequest::Failover { .. }
        | JobRequest::PlannedFailover { .. }
        | JobRequest::ChangePoint { .. }
        | JobRequest::Commit
        | JobRequest::Hydrate { .. } => MachinePurpose::Failover,
    }
}

fn point_of(job: &JobRow) -> Result<lifeboat_model::PointId, JobError> {
    Ok(job.work.point.ok_or_else(no_point)?.0)
}

/// Only for a job whose record was altered: the step before has chosen it.
fn no_point() -> VaultError {
    VaultError::Invalid("the job's record has no point and no machine; begin a new job".to_owned())
}

fn millis(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.duration_since(from).as_millis()).unwrap_or(0)
}

fn described(capabilities: &Capabilities) -> String {
    match &capabilities.acceleration {
        Acceleration::Kvm => format!("{} with KVM", capabilities.version),
        Acceleration::Tcg { why_not_kvm } => format!(
            "{} in emulation, five to twenty times slower than the source, because KVM cannot be used: {why_not_kvm}",
            capabilities.version
        ),
    }
}
