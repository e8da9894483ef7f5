//! How a machine is: what the vault keeps about it, held against what libvirt says.

use jiff::Timestamp;

use super::Host;
use super::domain::{METADATA, spec_in};
use super::virsh::is_absent;
use crate::directory::{MachineDirectory, MachineState};
use crate::error::ComputeError;
use crate::provider::{MachineStatus, OffReason};
use crate::qemu::mirror::give_up;

/// How a machine was found.
pub(crate) enum Observed {
    /// Nothing of it.
    Absent,
    /// A directory in which nothing is stored, or a domain that says nothing of itself.
    HalfMade,
    /// Without power; its `off` says why.
    Off(MachineState),
    /// With power.
    Live(MachineState, Run),
}

/// What a machine with power does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Run {
    /// Its guest executes.
    Executing,
    /// Its guest never began.
    NotBegun,
    /// A disk gave no answer, and the guest stands still until it does.
    WaitsForDisk,
    /// It stands still for another reason, which is a sentence.
    Halted(String),
}

/// What libvirt says about a domain: its state and the reason, in the words of `virsh`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct DomainState {
    state: String,
    reason: String,
}

impl DomainState {
    /// From a line such as `shut off (destroyed)`.
    fn parse(line: &str) -> Self {
        let (state, reason) = line.trim().split_once(" (").unwrap_or((line.trim(), ""));
        Self { state: state.to_owned(), reason: reason.trim_end_matches(')').to_owned() }
    }

    fn has_power(&self) -> bool {
        self.state != "shut off"
    }

    fn run(&self, began: bool, held: bool) -> Run {
        match (self.state.as_str(), self.reason.as_str()) {
            ("running" | "idle" | "no state", _) => Run::Executing,
            ("paused", "I/O error") => Run::WaitsForDisk,
            // For a moment, while a disk moves.
            ("paused", _) if held => Run::Executing,
            ("paused", _) if !began => Run::NotBegun,
            ("paused", "crashed" | "guest crashed") | ("crashed", _) => {
                Run::Halted("the guest panicked".into())
            }
            ("paused", reason) => Run::Halted(format!("it was paused through libvirt ({reason})")),
            ("pmsuspended", _) => Run::Halted("the guest sleeps".into()),
            _ => Run::Halted("libvirt is about to change its state".into()),
        }
    }

    /// Why it is off when nobody but libvirt knows.
    fn off(&self, domain: &str, began: bool) -> OffReason {
        match self.reason.as_str() {
            "shutdown" => OffReason::GuestShutDown,
            "destroyed" => OffReason::PoweredOff,
            "failed" => OffReason::NotStarted { why: None },
            "unknown" if !began => OffReason::NotStarted { why: None },
            "crashed" => {
                OffReason::Ended { why: format!("see /var/log/libvirt/qemu/{domain}.log on libvirt's host") }
            }
            _ => OffReason::Ended { why: "libvirt or its host was started anew".into() },
        }
    }
}

impl From<Observed> for MachineStatus {
    fn from(observed: Observed) -> Self {
        match observed {
            Observed::Absent => Self::Absent,
            Observed::HalfMade => Self::Off { why: OffReason::NotStarted { why: None } },
            Observed::Off(state) => {
                Self::Off { why: state.off.unwrap_or(OffReason::NotStarted { why: None }) }
            }
            Observed::Live(state, run) => Self::Running {
                since: state.since,
                first_instruction: state.first_instruction,
                halted: match run {
                    Run::Executing => None,
                    Run::NotBegun => Some("its start was cut short before the first instruction".into()),
                    Run::WaitsForDisk => {
                        Some("one of its disks gives no answer, and it goes on when that does".into())
                    }
                    Run::Halted(why) => Some(why),
                },
                forwards: state.forwards,
            },
        }
    }
}

impl Host {
    /// Looks at a machine, and writes down what became of it when that is new. The caller holds the
    /// machine's lock.
    pub(crate) async fn observe(&self, directory: &MachineDirectory) -> Result<Observed, ComputeError> {
        let machine = directory.machine;
        let domain = self.name_of(machine);
        let found = match self.virsh.ask(&["domstate", &domain, "--reason"]).await? {
            Ok(line) => Some(DomainState::parse(&line)),
            Err(why) if is_absent(&why) => None,
            Err(why) => return Err(self.virsh.refused(&["domstate"], why)),
        };
        let stored = if directory.exists() { directory.load()? } else { None };
        match (found, stored) {
            (None, None) if directory.exists() => Ok(Observed::HalfMade),
            (None, None) => Ok(Observed::Absent),
            (None, Some(state)) => {
                let why = OffReason::Ended { why: "libvirt no longer has it".into() };
                set_off(directory, state, why).map(Observed::Off)
            }
            (Some(found), stored) => {
                let Some(state) = self.known(directory, &domain, stored).await? else {
                    return Ok(Observed::HalfMade);
                };
                if !found.has_power() {
                    let why = found.off(&domain, state.first_instruction.is_some());
                    return set_off(directory, state, why).map(Observed::Off);
                }
                let run = found.run(state.first_instruction.is_some(), state.held);
                Ok(Observed::Live(state, run))
            }
        }
    }

    /// What is stored or, where the vault lost it, what the domain itself says.
    async fn known(
        &self,
        directory: &MachineDirectory,
        domain: &str,
        stored: Option<MachineState>,
    ) -> Result<Option<MachineState>, ComputeError> {
        if let Some(state) = stored {
            return Ok(Some(state));
        }
        let Ok(metadata) = self.virsh.ask(&["metadata", domain, "--uri", METADATA]).await? else {
            return Ok(None);
        };
        let Some(spec) = spec_in(&metadata).filter(|spec| spec.id == directory.machine) else {
            return Ok(None);
        };
        tracing::warn!(machine = %directory.machine, "took a machine over from libvirt that the vault had forgotten");
        let mut state = MachineState::new(spec, Vec::new(), Timestamp::now());
        state.off = None;
        directory.create()?;
        directory.store(&state)?;
        Ok(Some(state))
    }
}

/// Writes down that a machine is off, unless that is known already. Copies of its disks that were not complete
/// are worth nothing with that.
pub(crate) fn set_off(
    directory: &MachineDirectory,
    mut state: MachineState,
    why: OffReason,
) -> Result<MachineState, ComputeError> {
    if state.off.is_none() {
        tracing::info!(machine = %directory.machine, %why, "a machine is off");
        give_up(&mut state.copies)?;
        state.held = false;
        state.off = Some(why);
        directory.store(&state)?;
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_libvirt_are_understood() {
        let parsed = |line| DomainState::parse(line);
        assert!(parsed("running (booted)\n\n").has_power());
        assert_eq!(parsed("running (unpaused)").run(true, false), Run::Executing);
        assert_eq!(parsed("paused (user)").run(false, false), Run::NotBegun);
        assert!(
            matches!(parsed("paused (user)").run(true, false), Run::Halted(why) if why.contains("(user)"))
        );
        assert_eq!(parsed("paused (user)").run(true, true), Run::Executing);
        assert_eq!(parsed("paused (I/O error)").run(true, false), Run::WaitsForDisk);
        assert!(!parsed("shut off (crashed)").has_power());
        assert_eq!(parsed("shut off (shutdown)").off("d", true), OffReason::GuestShutDown);
        assert_eq!(parsed("shut off (destroyed)").off("d", true), OffReason::PoweredOff);
        assert_eq!(parsed("shut off (unknown)").off("d", false), OffReason::NotStarted { why: None });
        assert!(matches!(parsed("shut off (unknown)").off("d", true), OffReason::Ended { .. }));
        assert!(
            matches!(parsed("shut off (crashed)").off("d", true), OffReason::Ended { why } if why.contains("d.log"))
        );
    }
}
