//! QEMU on the vault's machine.
//!
//! A machine is a directory, and while it has power a process that works in it ([`process`]). The spec is
//! stored before the process starts, and everything else that matters is asked of the process itself through
//! its socket ([`qmp`]), so a provider holds nothing that would be lost with it: opening one on the same
//! directory takes all machines over. The process has no tie to its starter but its parent's number, which
//! nobody uses; it lives on when the starter is killed.
//!
//! QEMU starts with the guest standing still and the guest goes when QEMU answers, so the time of its first
//! instruction is known. A start that was cut short at any point is finished, or begun again, by the next.

pub(crate) mod acceleration;
pub(crate) mod command_line;
mod console_input;
pub(crate) mod mirror;
mod networks;
mod process;
mod programs;
mod qmp;
mod reach;
pub(crate) mod screen;
pub(crate) mod settings;
pub(crate) mod start;
mod status;
mod taps;

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lifeboat_model::{DiskNumber, MachineId, NetworkId};
use qapi::qmp::{quit, system_powerdown};
use tokio::sync::{Mutex, OnceCell};
use tokio::task::JoinHandle;

use crate::console;
use crate::directory::{CONSOLE, MachineDirectory};
use crate::error::ComputeError;
use crate::hydration::{DiskHydration, HydrationTarget};
use crate::machines::Machines;
use crate::provider::{Capabilities, ConsoleText, MachineStatus, OffReason, Provider, Reached};
use crate::spec::{DiskFormat, Firmware, MachineSpec};

use acceleration::Found;
use mirror::Hydrating;
use networks::{Members, Networks};
use process::Process;
use qmp::Qmp;
use settings::FLUSH_LIMIT;
pub use settings::{AccelerationChoice, QemuSettings};
use status::{Live, Observed};

/// Runs machines with the QEMU on this machine.
#[derive(Debug)]
pub struct QemuProvider {
    host: Arc<Host>,
    /// Moves machines over to copies of their disks once those are complete.
    mover: JoinHandle<()>,
    _lock: File,
}

/// The machines, and what runs them.
#[derive(Debug)]
pub(crate) struct Host {
    settings: QemuSettings,
    machines: Machines,
    networks: Networks,
    found: OnceCell<Found>,
    /// A start counts the memory of all processes and then makes one more: one start at a time does that.
    memory: Mutex<()>,
    hydrating: Hydrating,
}

impl QemuProvider {
    /// Opens the state directory, which is made if it is not there, with all machines in it.
    ///
    /// # Errors
    ///
    /// When another provider has it, or it cannot be used.
    pub async fn open(settings: QemuSettings) -> Result<Self, ComputeError> {
        let state = settings.state_directory.clone();
        let (machines, lock) = Machines::open(&state)?;
        let networks = Networks::open(&state.join("networks"))?;
        let (found, memory, hydrating) = (OnceCell::new(), Mutex::new(()), Hydrating::default());
        let host = Arc::new(Host { settings, machines, networks, found, memory, hydrating });
        // Nothing is being started yet: a network without a running machine was left by a crash.
        host.remove_unused_networks(Members::Running).await?;
        host.resume_hydration()?;
        let mover = tokio::spawn(mirror::move_machines(Arc::clone(&host)));
        Ok(Self { host, mover, _lock: lock })
    }
}

impl Drop for QemuProvider {
    fn drop(&mut self) {
        self.mover.abort();
    }
}

impl Host {
    async fn found(&self) -> Result<&Found, ComputeError> {
        self.found.get_or_try_init(|| acceleration::find_out(&self.settings)).await
    }

    /// The running machine, or why it is none.
    async fn live(&self, machine: MachineId) -> Result<Live, ComputeError> {
        match self.observe(&self.machines.directory(machine)).await? {
            Observed::Live(live) => Ok(live),
            Observed::Absent => Err(ComputeError::NoMachine { machine }),
            Observed::HalfMade => {
                Err(ComputeError::Off { machine, why: OffReason::NotStarted { why: None }.to_string() })
            }
            Observed::Off(state) => Err(ComputeError::Off {
                machine,
                why: state.off.map(|why| why.to_string()).unwrap_or_default(),
            }),
        }
    }

    /// Ends the process of a machine, if there is one, after it brought everything to the disks or this
    /// much time has passed, and then removes its devices.
    async fn end_process(&self, directory: &MachineDirectory, flush: Duration) -> Result<bool, ComputeError> {
        let process = Process::find(directory)?;
        if let Some(process) = &process {
            let asked = async {
                let qmp = Qmp::connect(directory).await.ok()?;
                qmp.ask_within(quit {}, flush).await.ok()
            };
            // Without an answer the process is killed all the same, after its time.
            let _ = tokio::time::timeout(flush, asked).await;
            if !process.ended_within(flush).await {
                tracing::warn!(machine = %directory.machine, "QEMU did not end when asked, killing it");
                process.kill(directory).await?;
            }
        }
        taps::remove(&self.settings.ip, directory.machine).await?;
        Ok(process.is_some())
    }
}

#[async_trait]
impl Provider for QemuProvider {
    async fn capabilities(&self) -> Result<Capabilities, ComputeError> {
        let found = self.host.found().await?;
        let uefi = self.host.settings.ovmf_code.exists() && self.host.settings.ovmf_variables.exists();
        let cpus = std::thread::available_parallelism().map_err(ComputeError::io("count", "processors"))?;
        Ok(Capabilities {
            acceleration: found.acceleration.clone(),
            firmwares: if uefi { vec![Firmware::Bios, Firmware::Uefi] } else { vec![Firmware::Bios] },
            version: found.version.clone(),
            cpus: u32::try_from(cpus.get()).unwrap_or(u32::MAX),
            memory_mib_free: self.host.memory_mib_free()?,
        })
    }

    async fn start(&self, spec: &MachineSpec) -> Result<(), ComputeError> {
        let lock = self.host.machines.lock_of(spec.id);
        let _one_at_a_time = lock.lock().await;
        self.host.start_machine(spec).await
    }

    async fn status(&self, machine: MachineId) -> Result<MachineStatus, ComputeError> {
        let lock = self.host.machines.lock_of(machine);
        let _one_at_a_time = lock.lock().await;
        let directory = self.host.machines.directory(machine);
        let observed = self.host.observe(&directory).await?;
        console::trim(&directory.file(CONSOLE)).map_err(ComputeError::io("trim", directory.file(CONSOLE)))?;
        Ok(observed.into())
    }

    async fn console(&self, machine: MachineId, from: u64) -> Result<ConsoleText, ComputeError> {
        let directory = self.host.machines.directory(machine);
        if !directory.exists() {
            return Err(ComputeError::NoMachine { machine });
        }
        let path = directory.file(CONSOLE);
        console::trim(&path).and_then(|()| console::read(&path, from)).map_err(ComputeError::io("read", path))
    }

    async fn write_console(&self, machine: MachineId, input: &[u8]) -> Result<(), ComputeError> {
        self.host.write_console(machine, input).await
    }

    async fn screenshot(&self, machine: MachineId) -> Result<Vec<u8>, ComputeError> {
        let lock = self.host.machines.lock_of(machine);
        let _one_at_a_time = lock.lock().await;
        let live = self.host.live(machine).await?;
        screen::take(&self.host.machines.directory(machine), &live.qmp).await
    }

    async fn shut_down(&self, machine: MachineId) -> Result<(), ComputeError> {
        let lock = self.host.machines.lock_of(machine);
        let _one_at_a_time = lock.lock().await;
        match self.host.live(machine).await {
            Ok(live) => live.qmp.ask(system_powerdown {}).await.map(drop),
            Err(ComputeError::Off { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn power_off(&self, machine: MachineId) -> Result<(), ComputeError> {
        let lock = self.host.machines.lock_of(machine);
        let _one_at_a_time = lock.lock().await;
        let directory = self.host.machines.directory(machine);
        if !directory.exists() {
            return Ok(());
        }
        let had_power = self.host.end_process(&directory, FLUSH_LIMIT).await?;
        if let Some(mut state) = directory.load()?
            && (had_power || state.off.is_none())
        {
            let why = if had_power { OffReason::PoweredOff } else { status::ended(&directory) };
            status::set_off(&directory, &mut state, why)?;
        }
        self.host.remove_unused_networks(Members::Wanted).await
    }

    async fn remove(&self, machine: MachineId) -> Result<(), ComputeError> {
        let lock = self.host.machines.lock_of(machine);
        let _one_at_a_time = lock.lock().await;
        let directory = self.host.machines.directory(machine);
        self.host.end_process(&directory, Duration::from_secs(5)).await?;
        match directory.load() {
            Ok(state) => mirror::remove_copies(&state.map(|state| state.copies).unwrap_or_default())?,
            // What cannot be read must not keep the machine from going.
            Err(error) => tracing::warn!(%machine, %error, "local copies of its disks may be left"),
        }
        directory.remove()?;
        self.host.remove_unused_networks(Members::Wanted).await
    }

    async fn machines(&self) -> Result<Vec<MachineId>, ComputeError> {
        self.host.machines.list()
    }

    async fn reach(
        &self,
        machine: MachineId,
        guest_port: u16,
        limit: Duration,
    ) -> Result<Reached, ComputeError> {
        self.host.reach_guest(machine, guest_port, limit).await
    }

    fn why_no_copies(&self) -> Option<String> {
        None
    }

    fn place_of_copy(
        &self,
        machine: MachineId,
        disk: DiskNumber,
        format: DiskFormat,
    ) -> Result<PathBuf, ComputeError> {
        Ok(self.host.machines.directory(machine).place_of_copy(disk, format))
    }

    async fn address(&self, machine: MachineId) -> Result<Option<Ipv4Addr>, ComputeError> {
        match self.host.machines.directory(machine).load()? {
            Some(state) => Ok(self.host.guest_address(&state.spec)),
            None => Err(ComputeError::NoMachine { machine }),
        }
    }

    async fn entrance(&self, network: NetworkId) -> Result<Option<String>, ComputeError> {
        self.host.entrance_of(network)
    }

    async fn hydrate(
        &self,
        machine: MachineId,
        disk: DiskNumber,
        target: &HydrationTarget,
    ) -> Result<(), ComputeError> {
        self.host.hydrate(machine, disk, target).await
    }

    async fn hydration(&self, machine: MachineId) -> Result<Vec<DiskHydration>, ComputeError> {
        self.host.hydration(machine).await
    }

    async fn cancel_hydration(&self, machine: MachineId, disk: DiskNumber) -> Result<(), ComputeError> {
        self.host.cancel_hydration(machine, disk).await
    }
}
