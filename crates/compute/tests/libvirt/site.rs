//! A vault's provider at a libvirt, and what tests ask of its machines.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use lifeboat_compute::{
    AccelerationChoice, DiskAddress, DiskFormat, LibvirtProvider, LibvirtSettings, MachineId, MachineSpec,
    MachineStatus, OffReason, Provider,
};
use lifeboat_model::VaultId;
use tempfile::TempDir;

use crate::daemon::{Daemon, processes_with, shared};
use crate::guests;
use crate::machine::{DISK_BYTES, spec, wait_for};

static NEXT_VAULT: AtomicU64 = AtomicU64::new(1);

pub struct Site<'a> {
    pub place: TempDir,
    pub daemon: &'a Daemon,
    pub vault: VaultId,
    /// None only while it is replaced.
    provider: Option<LibvirtProvider>,
}

impl Site<'static> {
    /// A vault of its own at the libvirt that tests share.
    pub async fn new() -> Self {
        Self::at(shared()).await
    }
}

impl<'a> Site<'a> {
    pub async fn at(daemon: &'a Daemon) -> Self {
        let place = tempfile::Builder::new().prefix("lv").tempdir().unwrap();
        let vault = VaultId::new(NEXT_VAULT.fetch_add(1, Ordering::Relaxed));
        let mut site = Self { place, daemon, vault, provider: None };
        site.open().await;
        site
    }

    async fn open(&mut self) {
        self.provider = Some(LibvirtProvider::open(self.settings()).await.unwrap());
    }

    /// TCG, since a trial of KVM a test would be too many.
    pub fn settings(&self) -> LibvirtSettings {
        let state = self.place.path().join("state");
        LibvirtSettings {
            acceleration: AccelerationChoice::Tcg,
            ..LibvirtSettings::new(state, self.daemon.uri(), self.vault)
        }
    }

    pub fn provider(&self) -> &LibvirtProvider {
        self.provider.as_ref().unwrap()
    }

    /// Ends the provider, as the end of the vault does, and opens another; `between` happens in between.
    pub async fn replace_provider(&mut self, between: impl FnOnce()) {
        drop(self.provider.take());
        between();
        self.open().await;
    }

    /// The name of a machine at libvirt.
    pub fn domain(&self, machine: MachineId) -> String {
        format!("lifeboat-{}-{machine}", self.vault)
    }

    /// The QEMU of a machine.
    pub fn processes(&self, machine: MachineId) -> Vec<i32> {
        processes_with(&format!("guest={},", self.domain(machine)))
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
        self.provider().console(machine, 0).await.unwrap().text
    }

    /// Waits until the guest has said something for which this holds.
    pub async fn hears(&self, machine: MachineId, what: impl Fn(&str) -> bool) -> String {
        let heard = wait_for(async || Some(self.said(machine).await).filter(|text| what(text))).await;
        match heard {
            Some(text) => text,
            None => panic!(
                "the guest only said {:?}; {:?}",
                self.said(machine).await,
                self.provider().status(machine).await
            ),
        }
    }

    /// Waits until the machine is off and says why.
    pub async fn off(&self, machine: MachineId) -> OffReason {
        let why = wait_for(async || match self.provider().status(machine).await.unwrap() {
            MachineStatus::Off { why } => Some(why),
            _ => None,
        });
        why.await.expect("it stays on")
    }

    /// Nothing is left at libvirt of the machines of this vault: no domain, process, pool or file.
    pub fn assert_nothing_left(&self) {
        let prefix = format!("lifeboat-{}", self.vault);
        let (_, domains) = self.daemon.virsh(&["list", "--all", "--name"]);
        assert!(!domains.contains(&prefix), "{domains}");
        let (_, pools) = self.daemon.virsh(&["pool-list", "--all"]);
        assert!(!pools.contains(&prefix), "{pools}");
        assert!(!self.daemon.kept_for(&self.vault.to_string()).exists());
        let nvram = self.daemon.place.path().join("var/lib/libvirt/qemu/nvram");
        let left: Vec<_> = std::fs::read_dir(nvram).into_iter().flatten().flatten().collect();
        assert!(left.iter().all(|entry| !entry.file_name().to_string_lossy().contains(&prefix)), "{left:?}");
        assert_eq!(processes_with(&prefix), [0; 0]);
        assert_eq!(crate::daemon::entries(&self.place.path().join("state/machines")), 0);
    }
}
