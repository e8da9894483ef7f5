//! What libvirt's host can do, found out by trying.
//!
//! A host may offer KVM and be too slow under it for any kernel. As QEMU on the vault's machine is tried, so is
//! a host: a guest of one sector does under KVM what kernels do first.

use std::time::Duration;

use lifeboat_model::{CopyIdentity, DiskNumber, MachineId, PointId, Purpose, ServerId};
use tokio::time::Instant;

use super::Host;
use super::domain::{Surroundings, domain};
use super::virsh::is_absent;
use crate::error::ComputeError;
use crate::provider::Acceleration;
use crate::qemu::AccelerationChoice;
use crate::qemu::acceleration::{TRIAL_DISK_BYTES, TRIAL_GUEST, TRIAL_LIMIT, got_to};
use crate::spec::{DiskAddress, DiskBus, DiskFormat, Firmware, MachineDisk, MachineSpec};

const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// The directory of the trial, among the machines and no machine itself.
const PLACE: &str = "kvm-trial";
/// Its disk on libvirt's host, and the file from which that is made.
const DISK: &str = "disk";

/// What libvirt's host can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub acceleration: Acceleration,
    pub firmwares: Vec<Firmware>,
    /// Name and version of libvirt and its hypervisor.
    pub version: String,
    /// Processors of the host.
    pub cpus: u32,
}

impl Host {
    pub(crate) async fn find_out(&self) -> Result<Found, ComputeError> {
        let uri = &self.virsh.uri().shown;
        let broken = |why: String| ComputeError::Hypervisor { program: format!("libvirt at {uri}"), why };
        let no_qemu =
            |why: String| broken(format!("{why}; install the Debian package qemu-system-x86 there"));
        let versions = self.virsh.ask(&["version"]).await?.map_err(no_qemu)?;
        let tcg = self.virsh.ask(&domcapabilities("qemu")).await?.map_err(no_qemu)?;
        let node = self.virsh.must(&["nodeinfo"]).await?;
        let acceleration = match self.settings.acceleration {
            AccelerationChoice::Kvm => Acceleration::Kvm,
            AccelerationChoice::Tcg => {
                Acceleration::Tcg { why_not_kvm: "the settings say that KVM is not used".into() }
            }
            AccelerationChoice::Try => match self.virsh.ask(&domcapabilities("kvm")).await? {
                Ok(_) => self.try_kvm().await?,
                Err(why) => Acceleration::Tcg { why_not_kvm: format!("libvirt offers no KVM: {why}") },
            },
        };
        let mut firmwares = vec![Firmware::Bios];
        firmwares.extend(tcg.contains("<value>efi</value>").then_some(Firmware::Uefi));
        let found = Found {
            acceleration,
            firmwares,
            version: version(&versions).ok_or_else(|| broken(format!("it says of itself {versions:?}")))?,
            cpus: cpus(&node).ok_or_else(|| broken(format!("it says of its host {node:?}")))?,
        };
        tracing::info!(%uri, version = found.version, acceleration = ?found.acceleration, "found out what libvirt's host can do");
        Ok(found)
    }

    async fn try_kvm(&self) -> Result<Acceleration, ComputeError> {
        let place = self.settings.state_directory.join(PLACE);
        let failed = |error| ComputeError::io("prepare the trial of KVM in", &place)(error);
        std::fs::create_dir_all(&place).map_err(failed)?;
        let domain = format!("lifeboat-{}.trial", self.settings.vault);
        self.remove_trial(&domain).await?;
        let outcome = self.trial(&domain, &place).await;
        self.remove_trial(&domain).await?;
        std::fs::remove_dir_all(&place).map_err(failed)?;
        self.drop_pool_after(None).await?;
        Ok(match outcome? {
            Ok(()) => Acceleration::Kvm,
            Err(why_not_kvm) => Acceleration::Tcg { why_not_kvm },
        })
    }

    async fn remove_trial(&self, domain: &str) -> Result<(), ComputeError> {
        match self.virsh.ask(&["destroy", domain]).await? {
            Err(why) if !is_absent(&why) => return Err(self.virsh.refused(&["destroy"], why)),
            _ => {}
        }
        self.pool.remove(&self.virsh, domain).await
    }

    /// Runs the trial guest. The inner error is a sentence that says why KVM is not used.
    async fn trial(&self, name: &str, place: &std::path::Path) -> Result<Result<(), String>, ComputeError> {
        std::fs::write(place.join(DISK), TRIAL_GUEST).map_err(ComputeError::io("write", place.join(DISK)))?;
        let (disk, console) = (format!("{name}.{DISK}"), format!("{name}.console"));
        self.pool.write(&self.virsh, &disk, TRIAL_DISK_BYTES, place, DISK).await?;
        let spec = self.trial_spec(&self.pool.path_of(&disk));
        let around = Surroundings {
            vault: self.settings.vault,
            name,
            kvm: true,
            console: &self.pool.path_of(&console),
            forwards: &[],
            nbd: None,
            owner: self.owner(),
        };
        let xml = domain(&spec, &spec.disks, &around)
            .map_err(|why| ComputeError::Spec { machine: spec.id, why })?;
        std::fs::write(place.join("domain.xml"), xml).map_err(ComputeError::io("write", place))?;
        // A domain that is not kept: it is gone when it ends.
        let create = self.virsh.ask_in(place, &["create", "domain.xml"], TRIAL_LIMIT * 3).await?;
        if let Err(why) = create {
            return Ok(Err(format!("libvirt cannot start a guest under KVM: {why}")));
        }
        let deadline = Instant::now() + TRIAL_LIMIT;
        loop {
            let said = self.pool.read(&self.virsh, &console, 0, place).await?.unwrap_or_default();
            if said.contains(&b'C') {
                return Ok(Ok(()));
            }
            if Instant::now() > deadline {
                return Ok(Err(format!(
                    "libvirt's host offers KVM, but a trial guest under it {} within {} s",
                    got_to(&said),
                    TRIAL_LIMIT.as_secs()
                )));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn trial_spec(&self, disk: &str) -> MachineSpec {
        MachineSpec {
            id: MachineId::new(self.settings.vault.number()),
            name: "a trial of KVM".into(),
            cpus: 1,
            memory_mib: 128,
            firmware: Firmware::Bios,
            disks: vec![MachineDisk {
                number: DiskNumber(0),
                source: DiskAddress::File { path: disk.into(), format: DiskFormat::Raw },
                bytes: TRIAL_DISK_BYTES,
                bus: DiskBus::Virtio,
            }],
            nics: Vec::new(),
            identity: CopyIdentity {
                vault: self.settings.vault,
                server: ServerId::new(0),
                point: PointId::new(0),
                purpose: Purpose::Drill,
            },
            changes: Vec::new(),
        }
    }
}

fn domcapabilities(kind: &'static str) -> [&'static str; 7] {
    ["domcapabilities", "--virttype", kind, "--arch", "x86_64", "--machine", "q35"]
}

/// From lines such as `Using library: libvirt 9.0.0` and `Running hypervisor: QEMU 7.2.9`.
fn version(said: &str) -> Option<String> {
    let after = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    Some(format!("{} with {}", after("Using library")?, after("Running hypervisor")?))
}

/// From a line such as `CPU(s):              2`.
fn cpus(said: &str) -> Option<u32> {
    said.lines().find_map(|line| line.strip_prefix("CPU(s):")?.trim().parse().ok())
}
