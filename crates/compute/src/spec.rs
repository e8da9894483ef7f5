//! What a machine is to look like. Plain data; [`MachineSpec::check`] says what no provider can make.

use std::collections::BTreeSet;
use std::path::PathBuf;

use lifeboat_model::{CardChange, CopyIdentity, DiskNumber, MachineId};
use serde::{Deserialize, Serialize};

use crate::network::Nic;

/// A machine as a provider makes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Its id, drawn by the vault.
    pub id: MachineId,
    /// Its name for people.
    pub name: String,
    /// Processors that the guest sees.
    pub cpus: u32,
    /// The guest's memory in MiB.
    pub memory_mib: u64,
    /// What starts the guest's boot loader.
    pub firmware: Firmware,
    /// Its disks; the firmware tries them in this order.
    pub disks: Vec<MachineDisk>,
    /// Its network interfaces.
    pub nics: Vec<Nic>,
    /// What the firmware tells the guest about itself.
    pub identity: CopyIdentity,
    /// What its firmware orders the guest to change about the network cards.
    #[serde(default)]
    pub changes: Vec<CardChange>,
}

/// What starts the guest's boot loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// The PC's BIOS.
    Bios,
    /// UEFI, with variables of the machine's own.
    Uefi,
}

/// A disk of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineDisk {
    /// Its number on the server.
    pub number: DiskNumber,
    /// Where its content is.
    pub source: DiskAddress,
    /// Its size in bytes, which the source must have.
    pub bytes: u64,
    /// How the guest reaches it.
    pub bus: DiskBus,
}

/// Where a disk's content is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum DiskAddress {
    /// An export of an NBD server on the same machine. A provider whose machines run elsewhere reaches the same
    /// export over TLS, where its settings say.
    NbdUnix {
        /// The server's socket.
        socket: PathBuf,
        /// The export's name.
        export: String,
    },
    /// A file on the same machine, which belongs to its owner: a provider never removes it.
    File {
        /// Which.
        path: PathBuf,
        /// How the content is in it.
        format: DiskFormat,
    },
}

/// How a disk is kept in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// Byte for byte.
    Raw,
    /// QEMU's format, which holds only what was written.
    Qcow2,
}

/// How a guest reaches a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskBus {
    /// The fastest, if the guest's initramfs has the driver.
    Virtio,
    /// Known to every system.
    Sata,
    /// Known to systems since about 2014.
    Nvme,
}

impl MachineSpec {
    /// One clause that says what is wrong with it, if something is.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !(1..=255).contains(&self.cpus) {
            return Err(format!("{} processors are not between 1 and 255", self.cpus));
        }
        if self.memory_mib < 4 {
            return Err(format!("{} MiB are no memory that a guest starts in", self.memory_mib));
        }
        if self.name.chars().any(char::is_control) {
            return Err(format!("the name {:?} has control characters", self.name));
        }
        let numbers: BTreeSet<_> = self.disks.iter().map(|disk| disk.number).collect();
        if numbers.len() != self.disks.len() {
            return Err("two of its disks have the same number".into());
        }
        self.disks.iter().try_for_each(MachineDisk::check)?;
        let macs: BTreeSet<_> = self.nics.iter().map(|nic| nic.mac).collect();
        if macs.len() != self.nics.len() {
            return Err("two of its network interfaces have the same MAC address".into());
        }
        if let Some(change) = self.changes.iter().find(|change| !macs.contains(&change.mac)) {
            return Err(format!(
                "a change is ordered of {}, which is no network interface of it",
                change.mac
            ));
        }
        self.nics.iter().try_for_each(Nic::check)
    }
}

impl MachineDisk {
    fn check(&self) -> Result<(), String> {
        let number = self.number;
        if self.bytes == 0 || !self.bytes.is_multiple_of(512) {
            return Err(format!("disk {number} has {} bytes, which is no number of sectors", self.bytes));
        }
        let path = match &self.source {
            DiskAddress::NbdUnix { socket, .. } => socket,
            DiskAddress::File { path, .. } => path,
        };
        if !path.is_absolute() || path.to_str().is_none() {
            return Err(format!("{} of disk {number} is no absolute path in UTF-8", path.display()));
        }
        if matches!(self.source, DiskAddress::NbdUnix { .. }) && path.as_os_str().len() > 107 {
            return Err(format!(
                "{}, the socket of disk {number}, has more than 107 bytes, which no Unix socket may have",
                path.display()
            ));
        }
        Ok(())
    }
}
