//! Whether there is room for a drill's machine beside the others.
//!
//! Machines may take a part of the host's memory and processors together. Drills keep to it; a failover
//! does not: it is for the disaster, and only what the host truly lacks stops it.

use std::fmt;

use lifeboat_api::{MachinePurpose, StepState};
use lifeboat_compute::{ComputeError, HostSize, MachineStatus};
use lifeboat_model::ServerId;

use super::{Conflict, JobError, JobRequest, Jobs, Step};
use crate::catalog::JobRow;

/// How much machines may take together; without a figure half of what the host has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineLimits {
    /// Memory in MiB.
    pub memory_mib: Option<u64>,
    /// Processors.
    pub cpus: Option<u32>,
}

/// What one machine takes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Taken {
    server: String,
    purpose: MachinePurpose,
    memory_mib: u64,
    cpus: u32,
}

/// There is no room for a drill's machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoRoom {
    /// What is short: `memory` or `processors`.
    what: &'static str,
    unit: &'static str,
    setting: &'static str,
    needed: u64,
    limit: u64,
    /// Who has how much, and whether it is a drill that can be ended.
    taken: Vec<(String, MachinePurpose, u64)>,
}

impl NoRoom {
    /// It does not even fit when nothing else runs.
    pub(super) fn is_for_good(&self) -> bool {
        self.needed > self.limit
    }
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, unit, setting, needed, limit, .. } = self;
        write!(
            f,
            "a drill of this server needs {needed}{unit} of {what}, and machines may have {limit}{unit}"
        )?;
        let mut drills = Vec::new();
        if self.taken.is_empty() {
            f.write_str(" together")?;
        } else {
            f.write_str(" together, of which ")?;
        }
        for (number, (server, purpose, amount)) in self.taken.iter().enumerate() {
            let comma = if number > 0 { ", " } else { "" };
            write!(f, "{comma}{server} has {amount}{unit}")?;
            if *purpose == MachinePurpose::Drill {
                drills.push(server.as_str());
            }
        }
        f.write_str("; ")?;
        if let (Some(drill), false) = (drills.first(), self.is_for_good()) {
            write!(f, "wait for the end of a drill, or end one (`lifeboat failover cleanup {drill}`), or ")?;
        }
        write!(f, "give the machine less (`lifeboat target set`), or raise {setting} in the vault's settings")
    }
}

impl MachineLimits {
    fn check(self, host: HostSize, needed: &Taken, taken: &[Taken]) -> Result<(), NoRoom> {
        let memory = self.memory_mib.unwrap_or(host.memory_mib / 2);
        let amounts = |amount: fn(&Taken) -> u64| {
            taken.iter().map(|taken| (taken.server.clone(), taken.purpose, amount(taken))).collect::<Vec<_>>()
        };
        let sum: u64 = taken.iter().map(|taken| taken.memory_mib).sum();
        if sum.saturating_add(needed.memory_mib) > memory {
            return Err(NoRoom {
                what: "memory",
                unit: " MiB",
                setting: "memory_mib_max",
                needed: needed.memory_mib,
                limit: memory,
                taken: amounts(|taken| taken.memory_mib),
            });
        }
        let cpus = u64::from(self.cpus.unwrap_or((host.cpus / 2).max(1)));
        let sum: u64 = taken.iter().map(|taken| u64::from(taken.cpus)).sum();
        // Processors are shared: a machine that runs alone may have more of them than there are.
        if !taken.is_empty() && sum + u64::from(needed.cpus) > cpus {
            return Err(NoRoom {
                what: "processors",
                unit: "",
                setting: "cpus_max",
                needed: needed.cpus.into(),
                limit: cpus,
                taken: amounts(|taken| taken.cpus.into()),
            });
        }
        Ok(())
    }
}

impl Jobs {
    /// Refuses a drill of a server whose machine would find no room. The caller sees to it that no
    /// other job begins meanwhile.
    pub(super) async fn check_room(&self, server: ServerId, under_way: &[JobRow]) -> Result<(), JobError> {
        let target = self.target_of(server).await?;
        let needed = Taken {
            server: String::new(),
            purpose: MachinePurpose::Drill,
            memory_mib: target.memory_mib,
            cpus: target.cpus,
        };
        let taken = self.taken(under_way).await?;
        let host = self.provider.host_size()?;
        self.limits()
            .check(host, &needed, &taken)
            .map_err(|no_room| Conflict::NoRoom(Box::new(no_room)).into())
    }

    /// What machines take that run, or that a job is about to start.
    async fn taken(&self, under_way: &[JobRow]) -> Result<Vec<Taken>, JobError> {
        let recoveries = self.vault.catalog().recoveries().await?;
        let mut taken = Vec::new();
        for recovery in &recoveries {
            let status = self.provider.status(recovery.machine).await;
            let is_started_later =
                under_way.iter().any(|job| job.server == recovery.server && starts_later(job));
            // What does not answer may well run.
            if matches!(status, Ok(MachineStatus::Running { .. }) | Err(_)) || is_started_later {
                taken.push(Taken {
                    server: self.server_name(recovery.server).await?,
                    purpose: recovery.purpose,
                    memory_mib: recovery.spec.memory_mib,
                    cpus: recovery.spec.cpus,
                });
            }
        }
        for job in under_way.iter().filter(|job| starts_later(job)) {
            if recoveries.iter().any(|recovery| recovery.server == job.server) {
                continue;
            }
            let target = self.target_of(job.server).await?;
            let purpose = match job.request {
                JobRequest::Drill { .. } => MachinePurpose::Drill,
                _ => MachinePurpose::Failover,
            };
            let server = self.server_name(job.server).await?;
            taken.push(Taken { server, purpose, memory_mib: target.memory_mib, cpus: target.cpus });
        }
        Ok(taken)
    }

    /// An error at the start of a machine, with the drills that could make room for it.
    pub(super) async fn with_drills(&self, server: ServerId, error: ComputeError) -> JobError {
        if !matches!(error, ComputeError::Memory { .. }) {
            return error.into();
        }
        let Ok(recoveries) = self.vault.catalog().recoveries().await else { return error.into() };
        let mut drills = Vec::new();
        for recovery in recoveries {
            if recovery.purpose == MachinePurpose::Drill
                && recovery.server != server
                && let Ok(name) = self.server_name(recovery.server).await
            {
                let memory_mib = recovery.spec.memory_mib;
                drills.push(format!("`lifeboat failover cleanup {name}` makes room of {memory_mib} MiB"));
            }
        }
        if drills.is_empty() { error.into() } else { JobError::Memory { error, drills: drills.join(", ") } }
    }
}

/// A job whose machine is yet to be started.
fn starts_later(job: &JobRow) -> bool {
    job.state == lifeboat_api::JobState::Running
        && job.steps.iter().any(|row| row.step == Step::StartMachine && row.state != StepState::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: HostSize = HostSize { memory_mib: 16_384, cpus: 8 };

    fn machine(server: &str, purpose: MachinePurpose, memory_mib: u64, cpus: u32) -> Taken {
        Taken { server: server.into(), purpose, memory_mib, cpus }
    }

    fn drill(memory_mib: u64, cpus: u32) -> Taken {
        machine("db1", MachinePurpose::Drill, memory_mib, cpus)
    }

    #[test]
    fn half_of_the_host_is_for_machines() {
        let limits = MachineLimits::default();
        let running = [drill(4096, 2), machine("web", MachinePurpose::Failover, 2048, 1)];
        assert_eq!(limits.check(HOST, &drill(2048, 1), &running), Ok(()));
        let why = limits.check(HOST, &drill(2049, 1), &running).unwrap_err();
        assert!(!why.is_for_good());
        assert_eq!(
            why.to_string(),
            "a drill of this server needs 2049 MiB of memory, and machines may have 8192 MiB together, of which \
             db1 has 4096 MiB, web has 2048 MiB; wait for the end of a drill, or end one (`lifeboat failover \
             cleanup db1`), or give the machine less (`lifeboat target set`), or raise memory_mib_max in the \
             vault's settings"
        );
        let why = limits.check(HOST, &drill(64, 2), &running).unwrap_err();
        assert!(why.to_string().contains("needs 2 of processors, and machines may have 4 together"), "{why}");
    }

    #[test]
    fn settings_hold_and_what_never_fits_is_told_apart() {
        let limits = MachineLimits { memory_mib: Some(1000), cpus: Some(3) };
        assert_eq!(limits.check(HOST, &drill(600, 2), &[drill(400, 1)]), Ok(()));
        assert!(limits.check(HOST, &drill(1001, 1), &[]).unwrap_err().is_for_good());
        // A failover takes room from drills, and nobody is told to end it.
        let failover = machine("web", MachinePurpose::Failover, 900, 1);
        let why = limits.check(HOST, &drill(600, 1), &[failover]).unwrap_err().to_string();
        assert!(why.contains("web has 900 MiB; give the machine less"), "{why}");
        // More processors than there are is slow, not impossible, for one machine alone.
        assert_eq!(limits.check(HOST, &drill(600, 16), &[]), Ok(()));
    }
}
