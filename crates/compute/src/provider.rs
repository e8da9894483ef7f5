//! What the vault's jobs ask of whatever runs machines.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_model::{DiskNumber, MachineId, NetworkId};
use serde::{Deserialize, Serialize};

use crate::error::ComputeError;
use crate::hydration::{DiskHydration, HydrationTarget};
use crate::network::Forward;
use crate::spec::{DiskFormat, Firmware, MachineSpec};

/// Runs machines. Every operation may be repeated: jobs go on after a crash by doing a step again.
#[async_trait]
pub trait Provider: Send + Sync + fmt::Debug {
    /// What it can do, here and now.
    ///
    /// # Errors
    ///
    /// When the hypervisor is not installed or does not work.
    async fn capabilities(&self) -> Result<Capabilities, ComputeError>;

    /// How large the host is on which machines run: this machine, unless the provider knows better.
    ///
    /// # Errors
    ///
    /// When the host cannot be asked.
    fn host_size(&self) -> Result<HostSize, ComputeError> {
        HostSize::of_this_machine()
    }

    /// Makes the machine and starts it. Starting one that runs already with the same spec is no error. One
    /// that is off starts again with what it had: its disks that moved to local copies, its firmware's
    /// variables.
    ///
    /// # Errors
    ///
    /// When the machine cannot be made or does not start, and when it runs with another spec.
    async fn start(&self, spec: &MachineSpec) -> Result<(), ComputeError>;

    /// How the machine is.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    async fn status(&self, machine: MachineId) -> Result<MachineStatus, ComputeError>;

    /// What the guest wrote to its first serial port, from a byte on. It stays until the machine is
    /// removed, except that only the last [`CONSOLE_BYTES_KEPT`] bytes are kept.
    ///
    /// # Errors
    ///
    /// When there is no such machine, or its text cannot be read.
    async fn console(&self, machine: MachineId, from: u64) -> Result<ConsoleText, ComputeError>;

    /// Types on the guest's serial console, and waits until the guest has read it.
    ///
    /// # Errors
    ///
    /// When the machine does not run, its guest does not read (what it has not read is dropped), or the
    /// provider has no way to it.
    async fn write_console(&self, machine: MachineId, input: &[u8]) -> Result<(), ComputeError>;

    /// What the guest's screen shows, as a PNG.
    ///
    /// # Errors
    ///
    /// When the machine does not run or does not answer.
    async fn screenshot(&self, machine: MachineId) -> Result<Vec<u8>, ComputeError>;

    /// Presses the power button, and does not wait for the guest to do something about it. Fine when the
    /// machine is off.
    ///
    /// # Errors
    ///
    /// When there is no such machine, or it does not answer.
    async fn shut_down(&self, machine: MachineId) -> Result<(), ComputeError>;

    /// Takes its power away, after what the guest wrote reached its disks. Fine when it is off or absent.
    ///
    /// # Errors
    ///
    /// When it cannot be ended.
    async fn power_off(&self, machine: MachineId) -> Result<(), ComputeError>;

    /// Takes its power away and removes all that the provider made for it: process, files, network devices,
    /// and the local copies of its disks. Fine when it is absent.
    ///
    /// # Errors
    ///
    /// When something cannot be removed; the rest is removed by trying again.
    async fn remove(&self, machine: MachineId) -> Result<(), ComputeError>;

    /// Every machine that it has, also those that are half made.
    ///
    /// # Errors
    ///
    /// When they cannot be listed.
    async fn machines(&self) -> Result<Vec<MachineId>, ComputeError>;

    /// Connects to a TCP port of the guest, through a forward or at its address, and says whether the guest took the connection.
    /// A connection to the forward alone says nothing: it is open while the machine runs.
    ///
    /// # Errors
    ///
    /// When the machine does not answer.
    async fn reach(
        &self,
        machine: MachineId,
        guest_port: u16,
        limit: Duration,
    ) -> Result<Reached, ComputeError>;

    /// Why it copies no machine's disks to local files, as one clause; none when it does.
    fn why_no_copies(&self) -> Option<String> {
        Some("this provider copies no disks".into())
    }

    /// The file in which a copy of a machine's disk would be kept.
    ///
    /// # Errors
    ///
    /// When the provider keeps no copies.
    fn place_of_copy(
        &self,
        machine: MachineId,
        disk: DiskNumber,
        format: DiskFormat,
    ) -> Result<PathBuf, ComputeError> {
        let why = format!("cannot be kept as {format:?}: this provider copies no disks");
        Err(ComputeError::Hydration { machine, disk, why })
    }

    /// The address at which the host reaches the guest, where it is known: the one that it was given, or one
    /// that it got by DHCP.
    ///
    /// # Errors
    ///
    /// When there is no such machine.
    async fn address(&self, _machine: MachineId) -> Result<Option<Ipv4Addr>, ComputeError> {
        Ok(None)
    }

    /// What stands before a command on the host that is to run inside a network that machines share; none
    /// when no machine is in it, or the provider's hosts have no such thing.
    ///
    /// # Errors
    ///
    /// When the network cannot be looked for.
    async fn entrance(&self, _network: NetworkId) -> Result<Option<String>, ComputeError> {
        Ok(None)
    }

    /// Begins to copy a disk of a running machine to a local file. When all is copied the machine moves
    /// over to it; the guest notices a pause of some tenths of a second at most. Asking again for the same
    /// target goes on with it, at the new speed.
    ///
    /// # Errors
    ///
    /// When the machine is off, the target exists already, or the disk has another target.
    async fn hydrate(
        &self,
        machine: MachineId,
        disk: DiskNumber,
        target: &HydrationTarget,
    ) -> Result<(), ComputeError>;

    /// How far the copying of each disk is, in the order of the disks. Disks that nobody asked to copy are
    /// not in it.
    ///
    /// # Errors
    ///
    /// When there is no such machine, or it does not answer.
    async fn hydration(&self, machine: MachineId) -> Result<Vec<DiskHydration>, ComputeError>;

    /// Ends the copying of a disk and removes what was copied. Fine when nothing is copied.
    ///
    /// # Errors
    ///
    /// When the machine has moved to the copy already.
    async fn cancel_hydration(&self, machine: MachineId, disk: DiskNumber) -> Result<(), ComputeError>;
}

/// How large a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostSize {
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// Its processors.
    pub cpus: u32,
}

impl HostSize {
    /// The size of the machine that this runs on.
    ///
    /// # Errors
    ///
    /// When its processors cannot be counted.
    pub fn of_this_machine() -> Result<Self, ComputeError> {
        let memory = rustix::system::sysinfo();
        // The field has another type on other architectures.
        #[allow(clippy::useless_conversion)]
        let bytes = u64::from(memory.totalram).saturating_mul(memory.mem_unit.into());
        let cpus = std::thread::available_parallelism().map_err(ComputeError::io("count", "processors"))?;
        Ok(Self { memory_mib: bytes >> 20, cpus: u32::try_from(cpus.get()).unwrap_or(u32::MAX) })
    }
}

/// How much of the end of a console's text is kept.
pub const CONSOLE_BYTES_KEPT: u64 = 16 << 20;

/// What a provider can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// How guests' instructions are executed.
    pub acceleration: Acceleration,
    /// The firmwares that machines can have.
    pub firmwares: Vec<Firmware>,
    /// Name and version of the hypervisor.
    pub version: String,
    /// Processors of the host.
    pub cpus: u32,
    /// Memory in MiB that new machines can have, given that those that run may take all of theirs.
    pub memory_mib_free: u64,
}

/// How guests' instructions are executed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Acceleration {
    /// By the processor.
    Kvm,
    /// Translated by QEMU: five to twenty times slower.
    Tcg {
        /// One sentence.
        why_not_kvm: String,
    },
}

/// How a machine is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum MachineStatus {
    /// The provider has none.
    Absent,
    /// It has one, without power.
    Off {
        /// Why.
        why: OffReason,
    },
    /// It has power.
    Running {
        /// Since when.
        since: Timestamp,
        /// When the guest executed its first instruction; none in a start that was cut short, or when whoever
        /// started it ended before writing it down.
        first_instruction: Option<Timestamp>,
        /// Why the guest stands still although it has power, if it does.
        halted: Option<String>,
        /// Its forwards with the host ports that they got.
        forwards: Vec<Forward>,
    },
}

/// Why a machine is off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum OffReason {
    /// Its start was cut short, or failed as this says.
    NotStarted {
        /// One sentence, where known.
        why: Option<String>,
    },
    /// The guest shut down.
    GuestShutDown,
    /// It was told to power off.
    PoweredOff,
    /// Its process ended by itself or was ended by somebody else.
    Ended {
        /// The last that its process said.
        why: String,
    },
}

impl fmt::Display for OffReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted { why: None } => f.write_str("its start was cut short"),
            Self::NotStarted { why: Some(why) } => write!(f, "it could not be started: {why}"),
            Self::GuestShutDown => f.write_str("the guest shut down"),
            Self::PoweredOff => f.write_str("it was powered off"),
            Self::Ended { why } if why.is_empty() => f.write_str("its process ended without a word"),
            Self::Ended { why } => write!(f, "its process ended: {why}"),
        }
    }
}

/// A part of a console's text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleText {
    /// Where it begins, in bytes. Later than asked for when the beginning is no longer kept.
    pub from: u64,
    /// The text. What is no UTF-8 is replaced by �.
    pub text: String,
    /// Where to go on.
    pub next: u64,
}

/// Whether a guest took a connection.
#[derive(Debug)]
pub enum Reached {
    /// It did, and this is the connection.
    Yes(tokio::net::TcpStream),
    /// It did not, as this clause says.
    No(String),
}
