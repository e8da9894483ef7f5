//! Facts of a protected server: what has to be known of it so that its copy starts elsewhere.
//!
//! An agent sends them when it starts and when they change; the process server passes them on and
//! keeps nothing. Each fact is optional: one that could not be found out says why.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Bytes of the longest body of facts.
pub const FACTS_BYTES_MAX: usize = 1 << 20;

/// The drivers of which [`ServerFacts::drivers`] tells, by the kernel's names with underscores.
pub const DRIVERS: [&str; 8] =
    ["virtio_pci", "virtio_blk", "virtio_scsi", "virtio_net", "ahci", "sd_mod", "nvme", "e1000e"];

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fact<T> {
    /// It is known.
    Known(T),
    /// It is not, as this clause says.
    Unknown(String),
}

/// What an agent has found out about its server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerFacts {
    /// When it was found out, by the agent's clock.
    pub time: Timestamp,
    /// Which system it is.
    pub os: Fact<OperatingSystem>,
    /// The running kernel's release.
    pub kernel: String,
    /// The processor's architecture, such as `x86_64`.
    pub architecture: String,
    /// The running kernel's command line.
    pub kernel_command_line: Fact<String>,
    /// What started the boot loader.
    pub firmware: Fact<Firmware>,
    /// Processors that are on line.
    pub cpus: Fact<u32>,
    /// Memory in bytes, as it is installed where that is known.
    pub memory_bytes: Fact<u64>,
    /// From the kernel's first moment to the end of the last start, in milliseconds.
    pub boot_ms: Fact<u64>,
    /// Whole disks that are protected or that the system needs.
    pub disks: Vec<DiskFacts>,
    /// Mounted file systems on disks, and everything that a start mounts or swaps to.
    pub file_systems: Fact<Vec<FileSystem>>,
    /// Where the drivers [`DRIVERS`] are for the running kernel.
    pub drivers: BTreeMap<String, Fact<DriverPlace>>,
    /// Its physical network interfaces, in the kernel's order.
    pub interfaces: Fact<Vec<Interface>>,
    /// Whether this agent, inside a copy of the server, names network cards and changes fixed addresses as
    /// the machine orders.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fits_copies: bool,
}

/// Which system it is; see `os-release`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatingSystem {
    /// Its name for people, such as `Debian GNU/Linux 12 (bookworm)`.
    pub name: String,
    /// Its word, such as `debian`.
    pub id: String,
    /// The words of systems that it is like.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub like: Vec<String>,
}

/// What starts a boot loader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Firmware {
    /// The PC's BIOS.
    Bios,
    /// UEFI.
    Uefi {
        /// Whether it starts signed boot loaders alone.
        secure_boot: Fact<bool>,
        /// Whether the EFI system partition has the loader that is started without the firmware's
        /// variables, such as `EFI/BOOT/BOOTX64.EFI`.
        fallback_loader: Fact<bool>,
    },
}

/// A whole disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFacts {
    /// The kernel's name, such as `sda`.
    pub name: String,
    /// The path by which it is protected; none when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Size in bytes.
    pub bytes: u64,
    /// What the first 440 bytes start.
    pub boot_code: Fact<BootCode>,
    /// Its partition table; of a disk without one, none.
    pub partitions: Fact<Option<PartitionTable>>,
}

/// What the first bytes of a disk start under BIOS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootCode {
    /// Nothing: they are zero, or there is no boot signature.
    None,
    /// GRUB.
    Grub,
    /// A boot loader of another kind.
    Other,
}

/// How a disk is divided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionTable {
    /// How the table is kept.
    pub kind: TableKind,
    /// The partitions, by number.
    pub partitions: Vec<Partition>,
}

/// How a partition table is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TableKind {
    /// In the master boot record.
    Mbr,
    /// As a GUID partition table.
    Gpt,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Its number, as in `sda1`.
    pub number: u32,
    /// Its first byte.
    pub start: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// What it is for: a word where the type is well known, else the type itself.
    pub kind: String,
}

/// A file system, or swap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystem {
    /// Where it is mounted; `swap` for swap.
    pub mount_point: String,
    /// Its kind, such as `ext4`.
    pub kind: String,
    /// What is mounted, as `fstab` or the kernel names it.
    pub source: String,
    /// Whether the system's start waits for it: it is root, or `fstab` mounts it without `nofail` or `noauto`.
    pub needed: bool,
    /// The whole disks that it lies on, by the kernel's names. None for one that comes over the network.
    pub disks: Vec<String>,
    /// Those of them that are not protected.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unprotected: Vec<String>,
    /// What lies between it and the disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Layer>,
    /// Whether it comes over the network.
    #[serde(default)]
    pub network: bool,
}

/// What lies between a file system and its disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// A logical volume.
    Lvm,
    /// Linux software RAID.
    Raid,
    /// LUKS or another encryption: the start needs a key.
    Encryption,
    /// Multipath.
    Multipath,
    /// Another device mapper target.
    DeviceMapper,
    /// A file of another file system.
    File,
}

/// Where a driver is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriverPlace {
    /// In the kernel itself.
    BuiltIn,
    /// In the initramfs, with all that it needs.
    Initramfs,
    /// Among the modules on the root file system alone.
    RootFileSystem,
    /// Nowhere.
    Absent,
}

/// A physical network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name, such as `eno1`.
    pub name: String,
    /// The card's own address: six pairs of hexadecimal digits.
    pub mac: String,
    /// The bridge or bond that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_of: Option<String>,
    /// Addresses of it, or of what it belongs to.
    pub addresses: Vec<Address>,
    /// Its IPv4 gateway, when the default route leads through it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Where its configuration is, as far as that was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configured_by: Option<NetworkConfiguration>,
    /// Whether the configuration names it by its name, rather than by its address or not at all.
    #[serde(default)]
    pub named: bool,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// How many bits name the network.
    pub prefix: u8,
    /// Whether it is fixed, rather than given by DHCP or a router.
    pub fixed: bool,
}

/// What configures network interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkConfiguration {
    /// `/etc/network/interfaces`.
    Ifupdown,
    /// systemd-networkd.
    Networkd,
    /// netplan, whatever it uses below.
    Netplan,
    /// NetworkManager.
    NetworkManager,
    /// The `ifcfg` files of Red Hat and SUSE.
    Ifcfg,
}

impl<T> Fact<T> {
    /// The fact, where it is known.
    #[must_use]
    pub const fn known(&self) -> Option<&T> {
        match self {
            Self::Known(fact) => Some(fact),
            Self::Unknown(_) => None,
        }
    }
}

impl ServerFacts {
    /// Whether they say the same as others, whenever each was found out.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        Self { time: other.time, ..self.clone() } == *other
    }
}
