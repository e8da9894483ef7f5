//! Why a machine cannot be had, each as one sentence for the operator.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use lifeboat_model::{DiskNumber, MachineId};

/// Why something could not be done with machines.
#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    /// A program is missing.
    #[error(
        "{program} is not installed on this machine: install the Debian package {package}, then try again"
    )]
    ProgramMissing {
        /// Which.
        program: String,
        /// What brings it.
        package: &'static str,
    },
    /// The hypervisor is there and does not work.
    #[error("{program} does not work: {why}")]
    Hypervisor {
        /// Which.
        program: String,
        /// What it said.
        why: String,
    },
    /// UEFI is asked for and not there.
    #[error(
        "machine {machine} starts with UEFI, whose firmware {} is not there: install the Debian package ovmf, then try again", path.display()
    )]
    FirmwareMissing {
        /// Which machine.
        machine: MachineId,
        /// The file.
        path: PathBuf,
    },
    /// Another process has the state directory.
    #[error("{} is in use by another process: only one may run the machines in it", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What is stored about a machine is not as it was written.
    #[error("{} is damaged: {why}; remove the machine and start it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// No machine can be like that.
    #[error("machine {machine} cannot be made: {why}")]
    Spec {
        /// Which machine.
        machine: MachineId,
        /// One clause.
        why: String,
    },
    /// Too little memory.
    #[error(
        "machine {machine} needs {needed_mib} MiB of memory and this machine has {free_mib} MiB left: give it less, or stop another machine"
    )]
    Memory {
        /// Which machine.
        machine: MachineId,
        /// Its memory and what running it takes.
        needed_mib: u64,
        /// What there is.
        free_mib: u64,
    },
    /// The machine runs, and differently.
    #[error("machine {machine} runs already with other settings: power it off before starting it with these")]
    OtherSpec {
        /// Which machine.
        machine: MachineId,
    },
    /// The machine has local copies of disks and the new spec has other disks.
    #[error(
        "machine {machine} runs from local copies of its disks, so its disks cannot change: remove it and start it again"
    )]
    LocalDisks {
        /// Which machine.
        machine: MachineId,
    },
    /// There is none.
    #[error("there is no machine {machine}")]
    NoMachine {
        /// Which.
        machine: MachineId,
    },
    /// It is off.
    #[error("machine {machine} is off: {why}")]
    Off {
        /// Which.
        machine: MachineId,
        /// Why it is off.
        why: String,
    },
    /// The hypervisor did not stay.
    #[error("machine {machine} did not start: {why}")]
    DidNotStart {
        /// Which machine.
        machine: MachineId,
        /// The last that its process said.
        why: String,
    },
    /// No answer.
    #[error(
        "the process of machine {machine} did not answer {question} within {} s: power the machine off if this lasts", limit.as_secs()
    )]
    Silent {
        /// Which machine.
        machine: MachineId,
        /// What was asked.
        question: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// An answer that is a refusal.
    #[error("the process of machine {machine} refused {question}: {why}")]
    Refused {
        /// Which machine.
        machine: MachineId,
        /// What was asked.
        question: &'static str,
        /// What it said.
        why: String,
    },
    /// The process does not end.
    #[error(
        "the process {process} of machine {machine} does not end, although it was killed: it waits for this machine's kernel"
    )]
    Immortal {
        /// Which machine.
        machine: MachineId,
        /// Its process.
        process: i32,
    },
    /// Trouble with a device or bridge of the host.
    #[error("machine {machine} cannot be attached to the bridge {bridge}: {why}")]
    Bridge {
        /// Which machine.
        machine: MachineId,
        /// Which bridge.
        bridge: String,
        /// What `ip` said.
        why: String,
    },
    /// A network cannot be made, or not joined.
    #[error("the network {network} cannot be had: {why}")]
    Network {
        /// Its name.
        network: String,
        /// What was said.
        why: String,
    },
    /// A tap device stays.
    #[error("cannot remove the network device {device} of machine {machine}: {why}")]
    Tap {
        /// Which machine.
        machine: MachineId,
        /// Which device.
        device: String,
        /// What `ip` said.
        why: String,
    },
    /// No such disk.
    #[error("machine {machine} has no disk {disk}")]
    NoDisk {
        /// Which machine.
        machine: MachineId,
        /// Which number.
        disk: DiskNumber,
    },
    /// A disk cannot be copied, or copying it cannot be ended.
    #[error("disk {disk} of machine {machine} {why}")]
    Hydration {
        /// Which machine.
        machine: MachineId,
        /// Which disk.
        disk: DiskNumber,
        /// The rest of the sentence.
        why: String,
    },
    /// A host that is not there.
    #[error(
        "cannot reach libvirt at {uri}: {why}; see that libvirtd runs there and that the vault's user may use it"
    )]
    Unreachable {
        /// Where.
        uri: String,
        /// What the connection met.
        why: String,
    },
    /// A host that does not answer.
    #[error("libvirt at {uri} did not answer {question} within {} s: see whether its host is well", limit.as_secs())]
    HostSilent {
        /// Where.
        uri: String,
        /// What was asked.
        question: String,
        /// How long was waited.
        limit: Duration,
    },
    /// libvirt says no.
    #[error("libvirt at {uri} refused {question}: {why}")]
    HostRefused {
        /// Where.
        uri: String,
        /// What was asked.
        question: String,
        /// What it said.
        why: String,
    },
    /// No address of a libvirt.
    #[error("{uri:?} is no address of a libvirt that runs machines for Lifeboat: {why}")]
    Uri {
        /// What was given.
        uri: String,
        /// Why not, and what would do.
        why: String,
    },
    /// The provider has no way to do it.
    #[error("not possible for machine {machine}: {why}")]
    NotSupported {
        /// Which machine.
        machine: MachineId,
        /// One clause, with what to do instead.
        why: String,
    },
    /// Nobody reads what is typed.
    #[error(
        "the guest of machine {machine} has not read what was typed on its serial console within {} s, and the rest \
         is dropped: see whether a login runs there (serial-getty@ttyS0)", limit.as_secs()
    )]
    ConsoleNotRead {
        /// Which machine.
        machine: MachineId,
        /// How long was waited.
        limit: Duration,
    },
    /// A screenshot that is none.
    #[error("the screenshot of machine {machine} is damaged: {why}")]
    Screenshot {
        /// Which machine.
        machine: MachineId,
        /// What is wrong.
        why: String,
    },
}

impl ComputeError {
    /// For `map_err`: what was tried with which file.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// No forward leads to a port of the guest.
    pub(crate) fn no_forward(machine: MachineId, guest_port: u16) -> Self {
        Self::Spec { machine, why: format!("none of its forwards leads to port {guest_port} of the guest") }
    }

    /// Whether doing the same again later may work without anybody changing something.
    #[must_use]
    pub fn retry_may_help(&self) -> bool {
        matches!(
            self,
            Self::Silent { .. }
                | Self::Memory { .. }
                | Self::Io { .. }
                | Self::Tap { .. }
                | Self::Immortal { .. }
                | Self::Unreachable { .. }
                | Self::HostSilent { .. }
        )
    }
}
