//! Machines at the recovery site.
//!
//! [`Provider`] is all that the vault's jobs know of whatever runs machines: a [`MachineSpec`] goes in, a
//! [`MachineStatus`] comes out, every operation may be repeated. [`QemuProvider`] is the embedded default,
//! QEMU on the vault's own machine; [`LibvirtProvider`] has libvirt run them, here or on another host. [`Probe`]
//! decides from outside whether a guest is up.
//!
//! What must hold of every provider:
//!
//! - Machines outlive whoever started them. A provider that is opened anew has them again.
//! - A guest whose disks are served by somebody who is gone for a while waits; it gets no errors.
//! - [`Provider::remove`] leaves nothing of a machine, however far its making had got.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod address;
mod console;
mod directory;
mod error;
mod forward;
mod hydration;
mod libvirt;
mod machines;
mod network;
mod places;
mod probe;
mod provider;
mod qemu;
mod spec;

pub use error::ComputeError;
pub use hydration::{DiskHydration, HydrationState, HydrationTarget};
pub use libvirt::{LibvirtProvider, LibvirtSettings, NbdOverTls};
pub use lifeboat_model::{
    CardChange, CopyIdentity, Ipv4Subnet, MacAddress, MacAddressError, MachineId, NetworkId, Purpose,
};
pub use network::{Attachment, Forward, Nic, NicModel, SharedNetwork, Subnet};
pub use probe::{Probe, SshAccess, Waiting};
pub use provider::{
    Acceleration, CONSOLE_BYTES_KEPT, Capabilities, ConsoleText, HostSize, MachineStatus, OffReason,
    Provider, Reached,
};
pub use qemu::{AccelerationChoice, QemuProvider, QemuSettings};
pub use spec::{DiskAddress, DiskBus, DiskFormat, Firmware, MachineDisk, MachineSpec};
