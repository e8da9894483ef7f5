//! A provider with a directory of its own, and what tests ask of its machines.

use std::fs;
use std::path::{Path, PathBuf};

use lifeboat_compute::{
    AccelerationChoice, DiskAddress, DiskFormat, MachineId, MachineSpec, MachineStatus, Provider,
    QemuProvider, QemuSettings,
};
use tempfile::TempDir;

use crate::guests;
use crate::machine::{DISK_BYTES, spec, wait_for};

/// A directory for a provider and what its machines need.
pub struct Site {
    pub place: TempDir,
    pub provider: QemuProvider,
}

impl Site {
    pub async fn new() -> Self {
        let place = TempDir::new().unwrap();
        let provider = QemuProvider::open(settings(place.path())).await.unwrap();
        Self { place, provider }
    }

    /// Ends the provider, as the end of the vault does, and opens another.
    pub async fn replace_provider(&mut self) {
        let place = self.place.path().join("nobody");
        let nobody = QemuProvider::open(settings(&place)).await.unwrap();
        drop(std::mem::replace(&mut self.provider, nobody));
        self.provider = QemuProvider::open(settings(self.place.path())).await.unwrap();
    }

    /// A disk image that starts this guest.
    pub fn image(&self, guest: &str, text: &str) -> PathBuf {
        let path = self.place.path().join("image");
        guests::disk(&path, guest, DISK_BYTES, text);
        path
    }

    /// A machine that starts this guest from a file.
    pub fn spec(&self, id: u64, guest: &str) -> MachineSpec {
        let path = self.image(guest, "");
        spec(id, DiskAddress::File { path, format: DiskFormat::Raw })
    }

    /// All that the guest has said so far.
    pub async fn said(&self, machine: MachineId) -> String {
        self.provider.console(machine, 0).await.unwrap().text
    }

    /// Waits until the guest has said something for which this holds.
    pub async fn hears(&self, machine: MachineId, what: impl Fn(&str) -> bool) -> String {
        let heard = wait_for(async || Some(self.said(machine).await).filter(|text| what(text))).await;
        match heard {
            Some(text) => text,
            None => panic!(
                "the guest only said {:?}; {:?}",
                self.said(machine).await,
                self.provider.status(machine).await
            ),
        }
    }

    /// Waits until the machine is off and says why.
    pub async fn off(&self, machine: MachineId) -> lifeboat_compute::OffReason {
        let why = wait_for(async || match self.provider.status(machine).await.unwrap() {
            MachineStatus::Off { why } => Some(why),
            _ => None,
        });
        why.await.expect("it stays on")
    }
}

/// The settings of a site. TCG, since a trial of KVM a test would be too many.
pub fn settings(place: &Path) -> QemuSettings {
    QemuSettings {
        acceleration: AccelerationChoice::Tcg,
        findings: place.join("findings"),
        ..QemuSettings::new(place.join("state"))
    }
}

/// The numbers of the processes that work in this directory or below, or give addresses from files there.
pub fn processes_in(place: &Path) -> Vec<i32> {
    let place = fs::canonicalize(place).unwrap();
    let leases = format!("--dhcp-leasefile={}/", place.display());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let works_there = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(&place));
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if works_there || String::from_utf8_lossy(&arguments).contains(&leases) {
            found.push(pid);
        }
    }
    found
}

impl Drop for Site {
    fn drop(&mut self) {
        // Machines outlive their provider, but not a test that failed.
        for pid in processes_in(self.place.path()) {
            kill(pid);
        }
    }
}

pub fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}
