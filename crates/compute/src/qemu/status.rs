//! How a machine is: what is stored about it, held against what its process says.

use std::time::Duration;

use qapi::qmp::{RunState, query_status, quit};

use super::networks::Members;
use super::process::Process;
use super::qmp::Qmp;
use super::settings::{ANSWER_LIMIT, FLUSH_LIMIT};
use super::taps;
use super::{Host, mirror};
use crate::directory::{MachineDirectory, MachineState};
use crate::error::ComputeError;
use crate::provider::{MachineStatus, OffReason};

/// How a machine was found.
pub(crate) enum Observed {
    /// Nothing of it.
    Absent,
    /// A directory in which nothing is stored.
    HalfMade,
    /// Without a process; its `off` says why.
    Off(MachineState),
    /// With a process that answers.
    Live(Live),
}

/// A machine with a process that answers.
pub(crate) struct Live {
    pub state: MachineState,
    pub qmp: Qmp,
    pub run: RunState,
}

impl From<Observed> for MachineStatus {
    fn from(observed: Observed) -> Self {
        match observed {
            Observed::Absent => Self::Absent,
            Observed::HalfMade => Self::Off { why: OffReason::NotStarted { why: None } },
            Observed::Off(state) => {
                Self::Off { why: state.off.unwrap_or(OffReason::NotStarted { why: None }) }
            }
            Observed::Live(live) => Self::Running {
                since: live.state.since,
                first_instruction: live.state.first_instruction,
                halted: halted(live.run),
                forwards: live.state.forwards,
            },
        }
    }
}

fn halted(run: RunState) -> Option<String> {
    let why = match run {
        RunState::running => return None,
        RunState::prelaunch => "its start was cut short before the first instruction",
        RunState::paused => "it was paused through its process's socket",
        RunState::io_error => "one of its disks gave an error",
        RunState::internal_error => "QEMU or KVM met something in the guest that it cannot execute",
        RunState::guest_panicked => "the guest panicked",
        RunState::suspended => "the guest sleeps",
        RunState::watchdog => "the guest's watchdog expired",
        _ => "QEMU is about to change its state",
    };
    Some(why.into())
}

impl Host {
    /// Looks at a machine, and writes down what became of it when that is new. The caller holds the
    /// machine's lock.
    pub(crate) async fn observe(&self, directory: &MachineDirectory) -> Result<Observed, ComputeError> {
        if !directory.exists() {
            return Ok(Observed::Absent);
        }
        let Some(mut state) = directory.load()? else { return Ok(Observed::HalfMade) };
        let Some(process) = Process::find(directory)? else {
            if state.off.is_none() {
                self.found_off(directory, &mut state, ended(directory)).await?;
            }
            return Ok(Observed::Off(state));
        };
        let Some(qmp) = connect(directory, &process).await? else {
            self.found_off(directory, &mut state, ended(directory)).await?;
            return Ok(Observed::Off(state));
        };
        let run = qmp.ask(query_status {}).await?.status;
        if run == RunState::shutdown {
            // The guest is done, and so is its process.
            qmp.ask_within(quit {}, FLUSH_LIMIT).await?;
            drop(qmp);
            if !process.ended_within(FLUSH_LIMIT).await {
                process.kill(directory).await?;
            }
            self.found_off(directory, &mut state, OffReason::GuestShutDown).await?;
            return Ok(Observed::Off(state));
        }
        Ok(Observed::Live(Live { state, qmp, run }))
    }

    /// Writes down that a machine was found without a process, and removes what is left of its wires.
    async fn found_off(
        &self,
        directory: &MachineDirectory,
        state: &mut MachineState,
        why: OffReason,
    ) -> Result<(), ComputeError> {
        set_off(directory, state, why)?;
        taps::remove(&self.settings.ip, directory.machine).await?;
        self.remove_unused_networks(Members::Wanted).await
    }
}

/// Connects to a process, which may be just starting. None when it ended meanwhile.
async fn connect(directory: &MachineDirectory, process: &Process) -> Result<Option<Qmp>, ComputeError> {
    let deadline = tokio::time::Instant::now() + ANSWER_LIMIT;
    loop {
        match Qmp::connect(directory).await {
            Ok(qmp) => return Ok(Some(qmp)),
            Err(_) if process.ended_within(Duration::from_millis(20)).await => return Ok(None),
            Err(error) if tokio::time::Instant::now() > deadline => {
                tracing::debug!(machine = %directory.machine, %error, "no answer");
                let (machine, limit) = (directory.machine, ANSWER_LIMIT);
                return Err(ComputeError::Silent { machine, question: "a connection", limit });
            }
            Err(_) => {}
        }
    }
}

/// Why a machine is off whose process is gone and that nobody turned off.
pub(crate) fn ended(directory: &MachineDirectory) -> OffReason {
    OffReason::Ended { why: directory.last_words() }
}

/// Writes down that a machine is off. Copies of its disks that were not complete are gone with that.
pub(crate) fn set_off(
    directory: &MachineDirectory,
    state: &mut MachineState,
    why: OffReason,
) -> Result<(), ComputeError> {
    tracing::info!(machine = %directory.machine, %why, "a machine is off");
    mirror::give_up(&mut state.copies)?;
    state.off = Some(why);
    directory.store(state)
}
