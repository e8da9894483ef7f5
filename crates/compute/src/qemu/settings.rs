//! Where QEMU and its parts are, and how it may be used.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How the QEMU on this machine is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QemuSettings {
    /// Where machines are kept. One provider at a time uses it.
    pub state_directory: PathBuf,
    /// Where it is kept what QEMU can do here, for all that use it; a directory that a restart of this machine
    /// empties. Who may not write there finds it out once for each state directory.
    #[serde(default = "findings")]
    pub findings: PathBuf,
    /// The emulator: a name that is looked up, or an absolute path.
    #[serde(default = "program")]
    pub program: PathBuf,
    /// iproute2's `ip`, for machines on bridges.
    #[serde(default = "ip")]
    pub ip: PathBuf,
    /// dnsmasq, for networks that give addresses.
    #[serde(default = "dnsmasq")]
    pub dnsmasq: PathBuf,
    /// slirp4netns, for networks from which machines reach out.
    #[serde(default = "slirp4netns")]
    pub slirp4netns: PathBuf,
    /// OVMF's code, for machines with UEFI.
    #[serde(default = "ovmf_code")]
    pub ovmf_code: PathBuf,
    /// OVMF's variables as they are at first.
    #[serde(default = "ovmf_variables")]
    pub ovmf_variables: PathBuf,
    /// Whether KVM is tried.
    #[serde(default)]
    pub acceleration: AccelerationChoice,
    /// How many seconds a guest waits for an NBD server that went away before it gets an error.
    #[serde(default = "nbd_wait_seconds")]
    pub nbd_wait_seconds: u32,
}

/// Whether KVM is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccelerationChoice {
    /// If a trial guest does well under it.
    #[default]
    Try,
    /// Without a trial.
    Kvm,
    /// Never.
    Tcg,
}

/// How long an answer of QEMU is waited for.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// How long QEMU may take to be there after it was started, on a busy machine.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(60);
/// How long QEMU may take to bring what the guest wrote to its disks before it is killed.
pub(crate) const FLUSH_LIMIT: Duration = Duration::from_secs(20);
/// How long the kernel may take to end a process that was killed.
pub(crate) const KILL_LIMIT: Duration = Duration::from_secs(20);

impl QemuSettings {
    /// Debian's QEMU, with machines kept in this directory.
    #[must_use]
    pub fn new(state_directory: impl Into<PathBuf>) -> Self {
        Self {
            state_directory: state_directory.into(),
            findings: findings(),
            program: program(),
            ip: ip(),
            dnsmasq: dnsmasq(),
            slirp4netns: slirp4netns(),
            ovmf_code: ovmf_code(),
            ovmf_variables: ovmf_variables(),
            acceleration: AccelerationChoice::default(),
            nbd_wait_seconds: nbd_wait_seconds(),
        }
    }
}

fn findings() -> PathBuf {
    "/run/lifeboat-qemu".into()
}

fn program() -> PathBuf {
    "qemu-system-x86_64".into()
}

fn ip() -> PathBuf {
    "ip".into()
}

fn dnsmasq() -> PathBuf {
    "dnsmasq".into()
}

fn slirp4netns() -> PathBuf {
    "slirp4netns".into()
}

fn ovmf_code() -> PathBuf {
    "/usr/share/OVMF/OVMF_CODE_4M.fd".into()
}

fn ovmf_variables() -> PathBuf {
    "/usr/share/OVMF/OVMF_VARS_4M.fd".into()
}

/// A week: longer than any restart or repair of a vault.
const fn nbd_wait_seconds() -> u32 {
    7 * 24 * 3600
}
