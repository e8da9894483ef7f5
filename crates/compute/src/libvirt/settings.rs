//! Which libvirt runs machines, and how.

use std::path::PathBuf;
use std::time::Duration;

use lifeboat_model::VaultId;

use crate::qemu::AccelerationChoice;

/// How machines are run by a libvirt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LibvirtSettings {
    /// What the vault keeps about its machines. One provider at a time uses it.
    pub state_directory: PathBuf,
    /// The address of the libvirt: `qemu:///system` or `qemu:///session` on the vault's machine, or
    /// `qemu+ssh://…` or `qemu+tls://…` elsewhere.
    pub uri: String,
    /// Whose machines they are. Machines of others on the same host are neither seen nor touched.
    pub vault: VaultId,
    /// libvirt's `virsh`: a name that is looked up, or an absolute path.
    pub program: PathBuf,
    /// A directory on libvirt's host for what belongs to machines there; one that fits when absent.
    pub host_directory: Option<PathBuf>,
    /// Whether KVM is tried.
    pub acceleration: AccelerationChoice,
    /// Where libvirt's host reaches the NBD server whose Unix sockets machines name; needed when the host is
    /// not the vault's own.
    pub nbd: Option<NbdOverTls>,
}

/// An NBD server that offers the exports of a Unix socket over TLS too, to clients with a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdOverTls {
    /// Its name, as in its certificate.
    pub host: String,
    /// Its TCP port.
    pub port: u16,
}

/// How long an answer of libvirt is waited for.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long libvirt may take to start a machine, or to end one that writes to a slow disk.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(90);

impl LibvirtSettings {
    /// The libvirt at this address, for machines of this vault, about which this directory is kept.
    #[must_use]
    pub fn new(state_directory: impl Into<PathBuf>, uri: impl Into<String>, vault: VaultId) -> Self {
        Self {
            state_directory: state_directory.into(),
            uri: uri.into(),
            vault,
            program: "virsh".into(),
            host_directory: None,
            acceleration: AccelerationChoice::default(),
            nbd: None,
        }
    }
}
