//! Jobs and machines as operators see them, and what they set in the words of the provider.

use lifeboat_api as api;
use lifeboat_compute::{
    Attachment, ConsoleText, DiskBus, Firmware, Forward, HydrationState, MacAddress, MachineSpec,
    MachineStatus, NicModel,
};
use lifeboat_model::{JobId, ServerId};

use super::{JobError, Jobs};
use crate::catalog::{JobRow, RecoveryRow};
use crate::error::{LookupError, VaultError};
use crate::readiness;
use crate::vault::{Vault, unknown};

/// Bounds of what an operator can set.
const CPUS_MAX: u32 = 1024;
const MEMORY_MIB: std::ops::RangeInclusive<u64> = 64..=64 << 20;
const PROBES_MAX: usize = 32;
const COMMAND_MAX: usize = 2000;
const USER_MAX: usize = 256;
const DAY_SECONDS: u64 = 86_400;

impl Jobs {
    /// The job that an operator means: by its id or a unique beginning of it.
    ///
    /// # Errors
    /// When there is none or more than one, or the catalog fails.
    pub async fn find_job(&self, text: &str) -> Result<JobId, JobError> {
        let matching = match text {
            "" => Vec::new(),
            beginning => self.vault.catalog().jobs_beginning(beginning).await?,
        };
        match matching.as_slice() {
            [job] => Ok(*job),
            [] => Err(unknown("job", text, Vec::new()).into()),
            several => {
                let matching = several.iter().map(ToString::to_string).collect();
                let error = LookupError::Ambiguous { what: "job", text: text.to_owned(), matching };
                Err(VaultError::from(error).into())
            }
        }
    }

    /// A job.
    ///
    /// # Errors
    /// When there is none, or the catalog fails.
    pub async fn job(&self, job: JobId) -> Result<api::Job, JobError> {
        let row = self.row(job).await?;
        self.view(row).await
    }

    /// The newest jobs, newest first.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn list(&self, server: Option<ServerId>, limit: u32) -> Result<Vec<api::Job>, JobError> {
        let mut jobs = Vec::new();
        for row in self.vault.catalog().jobs(server, limit).await? {
            jobs.push(self.view(row).await?);
        }
        Ok(jobs)
    }

    /// As [`Jobs::job`], but waits up to `wait` for its end.
    ///
    /// # Errors
    /// When there is no such job, or the catalog fails.
    pub async fn job_within(&self, job: JobId, wait: std::time::Duration) -> Result<api::Job, JobError> {
        let mut changes = self.vault.changes();
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            changes.mark_unchanged();
            let view = self.job(job).await?;
            let is_under_way = matches!(view.state, api::JobState::Running | api::JobState::RollingBack);
            if !is_under_way
                || !matches!(tokio::time::timeout_at(deadline, changes.changed()).await, Ok(Ok(())))
            {
                return Ok(view);
            }
        }
    }

    /// A job as an operator sees it.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn view(&self, row: JobRow) -> Result<api::Job, JobError> {
        let step = |row: crate::catalog::StepRow| api::JobStep {
            name: row.step.name().to_owned(),
            state: row.state,
            attempts: row.attempts,
            begun: row.begun,
            ended: row.ended,
            message: row.message,
        };
        Ok(api::Job {
            id: row.id,
            server: row.server,
            server_name: self.server_name(row.server).await?,
            kind: row.request.kind(),
            state: row.state,
            begun: row.begun,
            ended: row.ended,
            message: row.message,
            point: row.work.point.map(|(point, _)| point),
            steps: row.steps.into_iter().map(step).collect(),
            report: row.report,
            next: row.work.next.filter(|_| row.state == api::JobState::Done).map(|next| next.job),
        })
    }

    /// Every machine, the oldest first.
    ///
    /// # Errors
    /// When catalog or provider fail.
    pub async fn machines(&self) -> Result<Vec<api::Machine>, JobError> {
        let mut machines = Vec::new();
        for row in self.vault.catalog().recoveries().await? {
            machines.push(self.machine_of(row).await?);
        }
        Ok(machines)
    }

    /// A server's machine.
    ///
    /// # Errors
    /// When there is none, or catalog or provider fail.
    pub async fn machine(&self, server: ServerId) -> Result<api::Machine, JobError> {
        let row = self.recovery(server).await?;
        self.machine_of(row).await
    }

    /// What a server's machine has written to its serial console, from an offset in bytes.
    ///
    /// # Errors
    /// When there is no machine, or catalog or provider fail.
    pub async fn console(&self, server: ServerId, from: u64) -> Result<api::Console, JobError> {
        let row = self.recovery(server).await?;
        let ConsoleText { next, text, .. } = self.provider.console(row.machine, from).await?;
        Ok(api::Console { next, text })
    }

    /// Types on the serial console of a server's machine, and waits until its guest has read it.
    ///
    /// # Errors
    /// When there is no machine, it does not run or its guest does not read, or catalog or provider fail.
    pub async fn write_console(&self, server: ServerId, input: &[u8]) -> Result<(), JobError> {
        let row = self.recovery(server).await?;
        Ok(self.provider.write_console(row.machine, input).await?)
    }

    /// The screen of a server's machine, as PNG.
    ///
    /// # Errors
    /// When there is no machine or it does not run, or catalog or provider fail.
    pub async fn screenshot(&self, server: ServerId) -> Result<Vec<u8>, JobError> {
        let row = self.recovery(server).await?;
        Ok(self.provider.screenshot(row.machine).await?)
    }

    /// How a server's machine is to look.
    ///
    /// # Errors
    /// When there is no such server, or the catalog fails.
    pub async fn target_of(&self, server: ServerId) -> Result<api::Target, JobError> {
        self.server_name(server).await?;
        Ok(self.derived(server, api::MachinePurpose::Failover).await?.target)
    }

    /// Sets how a server's machine is to look the next time it is started; what is absent comes from the
    /// server's facts.
    ///
    /// # Errors
    /// When it cannot be meant, there is no such server, or the catalog fails.
    pub async fn set_target(&self, server: ServerId, target: &api::TargetSettings) -> Result<(), JobError> {
        self.server_name(server).await?;
        check_target(target, server)?;
        let mut target = target.clone();
        for name in [&mut target.network, &mut target.test_network].into_iter().flatten() {
            // By its whole name, since a beginning may be another one's some day.
            if name != super::networks::OWN {
                *name = self.find_network(name).await?.name;
            }
        }
        self.vault.set_target(server, &target).await?;
        Ok(self.ssh.forget_host(server)?)
    }

    /// The key with which the vault logs in to servers' machines. It is made when there is none.
    ///
    /// # Errors
    /// When it cannot be made or read.
    pub async fn ssh_key(&self) -> Result<api::SshKey, JobError> {
        Ok(api::SshKey { public_key: self.ssh.public_key().await? })
    }

    /// Whether a server would start here.
    ///
    /// # Errors
    /// When there is no such server, or the catalog fails.
    pub async fn readiness(&self, server: ServerId) -> Result<api::Readiness, JobError> {
        let now = (self.clock)();
        let described = self.vault.server(server, now).await?;
        let facts = self.vault.catalog().facts(server).await?;
        let target = self.derived(server, api::MachinePurpose::Failover).await?.target;
        let host = self.provider.capabilities().await.map_err(|error| error.to_string());
        let findings = readiness::judge(&readiness::Observed {
            now,
            server: &described,
            facts: facts.as_ref(),
            target: &target,
            host: host.as_ref().map_err(String::as_str),
            free_bytes: free_bytes(self.vault.state_path()),
        });
        Ok(api::Readiness {
            server,
            server_name: described.name,
            time: now,
            verdict: readiness::verdict(&findings),
            findings,
            target,
        })
    }

    pub(super) async fn recovery(&self, server: ServerId) -> Result<RecoveryRow, JobError> {
        match self.vault.catalog().recovery(server).await? {
            Some(row) => Ok(row),
            None => Err(unknown("machine of server", &self.server_name(server).await?, Vec::new()).into()),
        }
    }

    async fn machine_of(&self, row: RecoveryRow) -> Result<api::Machine, JobError> {
        let (state, reason, forwards) = match self.provider.status(row.machine).await? {
            MachineStatus::Running { halted, forwards, .. } => (api::MachineState::Running, halted, forwards),
            MachineStatus::Off { why } => (api::MachineState::Off, Some(why.to_string()), Vec::new()),
            MachineStatus::Absent => (api::MachineState::Absent, None, Vec::new()),
        };
        let (network, id) = match joined(&row.spec) {
            Some(Attachment::Shared { network, .. }) => (Some(network.name.clone()), Some(network.id)),
            Some(Attachment::Bridge { name, .. }) => (Some(name.clone()), None),
            Some(Attachment::Isolated { .. }) | None => (None, None),
        };
        let entrance = match id {
            Some(id) => self.provider.entrance(id).await?,
            None => None,
        };
        let mut copies = self.provider.hydration(row.machine).await.unwrap_or_default();
        copies.retain(|copy| copy.state == HydrationState::Local);
        let is_on_volume = copies.len() < row.spec.disks.len();
        let forward = |forward: Forward| api::Forward { port: forward.host_port, to: forward.guest_port };
        Ok(api::Machine {
            id: row.machine,
            server: row.server,
            server_name: self.server_name(row.server).await?,
            purpose: row.purpose,
            state,
            reason,
            point: row.point,
            point_time: row.point_time,
            volume: is_on_volume.then_some(row.volume),
            disk_files: copies
                .into_iter()
                .map(|copy| api::DiskFile { disk: copy.disk, path: copy.path })
                .collect(),
            job: row.job,
            begun: row.begun,
            committed: row.committed,
            stopped: row.stopped,
            cpus: row.spec.cpus,
            memory_mib: row.spec.memory_mib,
            forwards: forwards.into_iter().map(forward).collect(),
            network,
            address: self.provider.address(row.machine).await.unwrap_or_default(),
            entrance,
        })
    }

    pub(super) async fn server_name(&self, server: ServerId) -> Result<String, JobError> {
        let row = self.vault.catalog().server(server).await?;
        Ok(row.ok_or_else(|| unknown("server", &server.to_string(), Vec::new()))?.name)
    }
}

/// What a machine has joined, by whichever of its cards; none when each has a network of its own.
pub(super) fn joined(spec: &MachineSpec) -> Option<&Attachment> {
    let mut attachments = spec.nics.iter().map(|nic| &nic.attachment);
    attachments.find(|attachment| !matches!(attachment, Attachment::Isolated { .. }))
}

/// Room on the file system of a directory; none when that is not told.
pub(super) fn free_bytes(directory: &std::path::Path) -> Option<u64> {
    let found = rustix::fs::statvfs(directory).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

fn check_target(target: &api::TargetSettings, server: ServerId) -> Result<(), VaultError> {
    let refused = |why: String| Err(VaultError::Invalid(why));
    if let Some(cpus) = target.cpus.filter(|cpus| *cpus == 0 || *cpus > CPUS_MAX) {
        return refused(format!("a machine has 1 to {CPUS_MAX} virtual processors, not {cpus}"));
    }
    if target.memory_mib.is_some_and(|memory_mib| !MEMORY_MIB.contains(&memory_mib)) {
        return refused(format!("a machine has at least {} MiB of memory", MEMORY_MIB.start()));
    }
    let is_time = |span: &lifeboat_model::Span| (1..=DAY_SECONDS).contains(&span.duration().as_secs());
    if let Some(within) = target.up_within.filter(|within| !is_time(within)) {
        return refused(format!("a machine comes up within 1s to 1d, not {within}"));
    }
    if target.probes.len() > PROBES_MAX {
        return refused(format!("at most {PROBES_MAX} probes decide whether a machine is up"));
    }
    for probe in &target.probes {
        check_probe(probe)?;
    }
    if target.bridge.as_ref().is_some_and(|bridge| bridge.is_empty() || bridge.len() > 15) {
        return refused("the name of a bridge has 1 to 15 characters".to_owned());
    }
    mac(target.mac.as_deref(), server).map(drop)
}

fn check_probe(probe: &api::Probe) -> Result<(), VaultError> {
    let api::Probe::Run { command, user, port } = probe else { return Ok(()) };
    let refused = |why: String| Err(VaultError::Invalid(why));
    if !(1..=COMMAND_MAX).contains(&command.len()) || command.contains('\0') {
        return refused(format!("a command that is run over SSH has 1 to {COMMAND_MAX} bytes"));
    }
    let is_of_name = |c: char| c.is_alphanumeric() || "._-@\\".contains(c);
    if user.is_empty() || user.len() > USER_MAX || user.starts_with('-') || !user.chars().all(is_of_name) {
        return refused(format!("{user:?} is no name of a user by which one logs in over SSH"));
    }
    if *port == 0 {
        return refused("an SSH server listens on port 1 to 65535".to_owned());
    }
    Ok(())
}

/// The address of a server's network card: the one that was set, or one that stays the same.
pub(super) fn mac(set: Option<&str>, server: ServerId) -> Result<MacAddress, VaultError> {
    match set {
        Some(text) => text.parse().map_err(|error| VaultError::Invalid(format!("{error}"))),
        // The same at every start, so that the guest knows its card again.
        None => Ok(MacAddress::local(server.number())),
    }
}

pub(super) const fn disk_bus(bus: api::DiskBus) -> DiskBus {
    match bus {
        api::DiskBus::Virtio => DiskBus::Virtio,
        api::DiskBus::Sata => DiskBus::Sata,
        api::DiskBus::Nvme => DiskBus::Nvme,
    }
}

pub(super) const fn firmware(firmware: api::Firmware) -> Firmware {
    match firmware {
        api::Firmware::Bios => Firmware::Bios,
        api::Firmware::Uefi => Firmware::Uefi,
    }
}

pub(super) const fn nic_model(card: api::NetworkCard) -> NicModel {
    match card {
        api::NetworkCard::Virtio => NicModel::Virtio,
        api::NetworkCard::E1000e => NicModel::E1000e,
    }
}

impl Vault {
    /// The newest drill of a server that has ended, whether or not it came to a report.
    pub(crate) async fn last_drill(
        &self,
        server: ServerId,
    ) -> Result<Option<api::PreviousDrill>, VaultError> {
        Ok(self.catalog.newest_drill(server).await?.as_ref().map(in_short))
    }
}

pub(super) fn in_short(job: &JobRow) -> api::PreviousDrill {
    let report = job.report.as_ref();
    api::PreviousDrill {
        job: job.id,
        begun: job.begun,
        up: report.is_some_and(|report| report.up),
        boot_ms: report.and_then(|report| report.boot_ms),
        point: job.work.point.map(|(point, _)| point),
        note: report.and_then(|report| report.note.clone()),
        verdict: report.map(|report| &report.verdict).or(job.message.as_ref()).cloned(),
    }
}
