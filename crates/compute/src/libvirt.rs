//! Machines that libvirt runs, on the vault's machine or on another host.
//!
//! A machine is a libvirt domain, whose name has the vault's id and its own, and a directory of the vault in which
//! the spec and the text of its console are kept. The domain carries the spec too, so a vault that lost the
//! directory has its machines again. libvirt keeps domains running whatever becomes of the vault; whether and
//! how one runs is asked of libvirt each time ([`virsh`]).
//!
//! Disks on the vault's machine are the same Unix sockets as for QEMU itself. Another host speaks NBD over TLS to
//! the vault. What belongs to machines on libvirt's host lies in one directory there, which is reached through
//! libvirt too ([`pool`]).

mod acceleration;
mod blockcopy;
mod domain;
mod follow;
mod pool;
mod resume;
mod settings;
mod start;
mod status;
mod uri;
mod virsh;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use lifeboat_model::{DiskNumber, MachineId};
use tokio::sync::{Mutex, OnceCell};
use tokio::task::JoinHandle;

use crate::address::{self, NO_ADDRESS};
use crate::console;
use crate::directory::{CONSOLE, MachineState, SCREEN};
use crate::error::ComputeError;
use crate::forward::{self, LIST_CONNECTIONS};
use crate::hydration::{DiskHydration, HydrationTarget};
use crate::machines::Machines;
use crate::network::Forward;
use crate::provider::{Capabilities, ConsoleText, MachineStatus, OffReason, Provider, Reached};
use crate::qemu;
use crate::qemu::mirror::remove_copies;
use crate::spec::{DiskFormat, MachineSpec};

use acceleration::Found;
use pool::Pool;
use settings::ANSWER_LIMIT;
pub use settings::{LibvirtSettings, NbdOverTls};
use status::{Observed, Run};
use uri::Uri;
use virsh::{Virsh, is_absent};

/// What libvirt's host gives machines a directory in, unless the settings say something else.
const HOST_DIRECTORY: &str = "/var/lib/libvirt";

/// Runs machines with a libvirt.
#[derive(Debug)]
pub struct LibvirtProvider {
    host: Arc<Host>,
    /// Lets guests go on that were stopped for lack of a disk, and copies of disks.
    resumer: JoinHandle<()>,
    _lock: File,
}

/// The machines, and what runs them.
#[derive(Debug)]
pub(crate) struct Host {
    settings: LibvirtSettings,
    virsh: Virsh,
    pool: Pool,
    machines: Machines,
    found: OnceCell<Found>,
    /// One start at a time counts memory and takes it.
    memory: Mutex<()>,
}

impl LibvirtProvider {
    /// Opens the state directory, which is made if it is not there. libvirt is not asked for anything yet: a
    /// vault starts also while its host is away.
    ///
    /// # Errors
    ///
    /// When the address is none, another provider has the directory, or it cannot be used.
    #[allow(clippy::unused_async, reason = "other providers connect to something")]
    pub async fn open(settings: LibvirtSettings) -> Result<Self, ComputeError> {
        let uri =
            Uri::parse(&settings.uri).map_err(|why| ComputeError::Uri { uri: settings.uri.clone(), why })?;
        let (machines, lock) = Machines::open(&settings.state_directory)?;
        let pool = pool(&settings, &uri)?;
        let virsh = Virsh::new(settings.program.clone(), uri);
        let (found, memory) = (OnceCell::new(), Mutex::new(()));
        let host = Arc::new(Host { settings, virsh, pool, machines, found, memory });
        let resumer = tokio::spawn(resume::look_after_guests(Arc::clone(&host)));
        Ok(Self { host, resumer, _lock: lock })
    }
}

impl Drop for LibvirtProvider {
    fn drop(&mut self) {
        self.resumer.abort();
    }
}

/// The pool for what belongs to machines on libvirt's host.
fn pool(settings: &LibvirtSettings, uri: &Uri) -> Result<Pool, ComputeError> {
    let name = format!("lifeboat-{}", settings.vault);
    let wrong = |why: &str| ComputeError::Uri { uri: uri.shown.clone(), why: why.into() };
    let directory = match &settings.host_directory {
        Some(directory) => directory.clone(),
        None if !uri.is_session => HOST_DIRECTORY.into(),
        None if uri.is_local => std::path::absolute(settings.state_directory.join("host"))
            .map_err(ComputeError::io("find", "."))?,
        None => return Err(wrong("a session on another host needs a directory there: set host_directory")),
    };
    match directory.to_str().filter(|text| text.starts_with('/') && !text.contains([';', '\n'])) {
        Some(text) => Ok(Pool::new(name.clone(), format!("{}/{name}", text.trim_end_matches('/')))),
        None => Err(wrong("host_directory is no absolute path")),
    }
}

impl Host {
    fn name_of(&self, machine: MachineId) -> String {
        domain::name_of(self.settings.vault, machine)
    }

    async fn found(&self) -> Result<&Found, ComputeError> {
        self.found.get_or_try_init(|| self.find_out()).await
    }

    /// Where libvirt's host reaches disks, if it does not have their sockets.
    fn nbd_over_tls(&self) -> Option<&NbdOverTls> {
        if self.virsh.uri().is_local { None } else { self.settings.nbd.as_ref() }
    }

    /// Whom QEMU runs as, if libvirt is to be told.
    fn owner(&self) -> Option<(u32, u32)> {
        let uri = self.virsh.uri();
        let user = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        (uri.is_local && !uri.is_session).then_some(user)
    }

    /// The vault's machines in a list of names of domains.
    fn machines_among(&self, names: &str) -> Vec<MachineId> {
        let prefix = domain::prefix_of(self.settings.vault);
        names.lines().filter_map(|name| name.trim().strip_prefix(&prefix)?.parse().ok()).collect()
    }

    /// The running machine, or why it is none.
    async fn live(&self, machine: MachineId) -> Result<(MachineState, Run), ComputeError> {
        match self.observe(&self.machines.directory(machine)).await? {
            Observed::Live(state, run) => Ok((state, run)),
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

    /// Removes the directory on libvirt's host when no machine but this one may need it.
    async fn drop_pool_after(&self, machine: Option<MachineId>) -> Result<(), ComputeError> {
        let others = || Ok(self.machines.list()?.into_iter().any(|other| Some(other) != machine));
        self.pool.remove_if_empty(&self.virsh, others).await
    }

    async fn remove_machine(&self, machine: MachineId) -> Result<(), ComputeError> {
        let name = self.name_of(machine);
        self.take_power(machine).await?;
        let undefine = [
            "undefine",
            &name,
            "--nvram",
            "--managed-save",
            "--snapshots-metadata",
            "--checkpoints-metadata",
        ];
        match self.virsh.ask(&undefine).await? {
            Err(why) if !is_absent(&why) => return Err(self.virsh.refused(&undefine, why)),
            _ => {}
        }
        self.pool.remove(&self.virsh, &format!("{name}.")).await?;
        let directory = self.machines.directory(machine);
        match directory.load() {
            Ok(state) => remove_copies(&state.map(|state| state.copies).unwrap_or_default())?,
            // What cannot be read must not keep the machine from going.
            Err(error) => tracing::warn!(%machine, %error, "local copies of its disks may be left"),
        }
        // The directory goes last: while it is there, what is left elsewhere is known to be left.
        self.drop_pool_after(Some(machine)).await?;
        directory.remove()
    }

    async fn reach_guest(
        &self,
        machine: MachineId,
        guest_port: u16,
        limit: Duration,
    ) -> Result<Reached, ComputeError> {
        let (state, _) = self.live(machine).await?;
        let Uri { shown, is_local, .. } = self.virsh.uri();
        // Where a bridge is does not matter for an address: this machine has a route there or not.
        if let Some(address) = address::on_bridge(&state.spec.nics) {
            let to = SocketAddrV4::new(address, guest_port);
            return Ok(address::reached(to, address::connect(to, limit).await));
        }
        if !is_local {
            let why = format!(
                "the ports of guests at {shown} are reached from the vault's machine only where they are on a bridge \
                 and have an address that is known (`lifeboat target set --address`); use a probe of the console"
            );
            return Err(ComputeError::NotSupported { machine, why });
        }
        if address::is_on_wire(&state.spec.nics) {
            return Ok(Reached::No(NO_ADDRESS.into()));
        }
        let Some(host_port) = forward::host_port(&state.forwards, guest_port) else {
            return Err(ComputeError::no_forward(machine, guest_port));
        };
        let name = self.name_of(machine);
        let question = ["qemu-monitor-command", &name, "--hmp", LIST_CONNECTIONS];
        let list = || self.virsh.must(&question).boxed();
        forward::reach(Forward { host_port, guest_port }, limit, list).await
    }

    async fn take_screenshot(&self, machine: MachineId) -> Result<Vec<u8>, ComputeError> {
        self.live(machine).await?;
        let directory = self.machines.directory(machine);
        let ask = ["screenshot", &self.name_of(machine), SCREEN];
        let answer = self.virsh.ask_in(directory.path(), &ask, ANSWER_LIMIT).await?;
        answer.map_err(|why| self.virsh.refused(&ask, why))?;
        let path = directory.file(SCREEN);
        let image = fs::read(&path).map_err(ComputeError::io("read", &path))?;
        fs::remove_file(&path).map_err(ComputeError::io("remove", &path))?;
        qemu::screen::png_of(image).map_err(|why| ComputeError::Screenshot { machine, why })
    }
}

#[async_trait]
impl Provider for LibvirtProvider {
    fn why_no_copies(&self) -> Option<String> {
        self.host.why_no_copies()
    }

    fn place_of_copy(
        &self,
        machine: MachineId,
        disk: DiskNumber,
        format: DiskFormat,
    ) -> Result<PathBuf, ComputeError> {
        Ok(self.host.machines.directory(machine).place_of_copy(disk, format))
    }

    async fn capabilities(&self) -> Result<Capabilities, ComputeError> {
        let Found { acceleration, firmwares, version, cpus } = self.host.found().await?.clone();
        let memory_mib_free = self.host.memory_mib_free().await?;
        Ok(Capabilities { acceleration, firmwares, version, cpus, memory_mib_free })
    }

    async fn start(&self, spec: &MachineSpec) -> Result<(), ComputeError> {
        let lock = self.host.machines.lock_of(spec.id);
        let _one_at_a_time = lock.lock().await;
        self.host.start_machine(spec).await
    }

    async fn status(&self, machine: MachineId) -> Result<MachineStatus, ComputeError> {
        let lock = self.host.machines.lock_of(machine);
        let _one_at_a_time = lock.lock().await;
        Ok(self.host.observe(&self.host.machines.directory(machine)).await?.into())
    }

    async fn console(&self, machine: MachineId, from: u64) -> Result<ConsoleText, ComputeError> {
        let lock = self.host.machines.lock_of(machine);
        let _one_at_a_time = lock.lock().await;
        let directory = self.host.machines.directory(machine);
        // A machine that the vault forgot has no directory until it is looked at.
        if !directory.exists() && matches!(self.host.observe(&directory).await?, Observed::Absent) {
            return Err(ComputeError::NoMachine { machine });
        }
        if directory.exists() {
            let Host { virsh, pool, .. } = &*self.host;
            follow::bring(virsh, pool, &self.host.name_of(machine), &directory).await?;
        }
        let path = directory.file(CONSOLE);
        console::trim(&path).and_then(|()| console::read(&path, from)).map_err(ComputeError::io("read", path))
    }

    async fn write_console(&self, machine: MachineId, _input: &[u8]) -> Result<(), ComputeError> {
        let why = "libvirt keeps its console in a file, so it can only be read; log in to the guest over SSH, or press \
                   keys with `virsh send-key` on libvirt's host";
        Err(ComputeError::NotSupported { machine, why: why.into() })
    }

    async fn screenshot(&self, machine: MachineId) -> Result<Vec<u8>, ComputeError> {
        let lock = self.host.machines.lock_of(machine);
        let _one_at_a_time = lock.lock().await;
        self.host.take_screenshot(machine).await
    }

    async fn shut_down(&self, machine: MachineId) -> Result<(), ComputeError> {
        let lock = self.host.machines.lock_of(machine);
        let _one_at_a_time = lock.lock().await;
        match self.host.live(machine).await {
            Ok(_) => {
                let shutdown = ["shutdown", &self.host.name_of(machine), "--mode", "acpi"];
                self.host.virsh.must(&shutdown).await.map(drop)
            }
            Err(ComputeError::Off { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn power_off(&self, machine: MachineId) -> Result<(), ComputeError> {
        let lock = self.host.machines.lock_of(machine);
        let _one_at_a_time = lock.lock().await;
        let directory = self.host.machines.directory(machine);
        if let Observed::Live(mut state, _) = self.host.observe(&directory).await? {
            self.host.take_power(machine).await?;
            state.off = None;
            status::set_off(&directory, state, OffReason::PoweredOff)?;
        }
        Ok(())
    }

    async fn remove(&self, machine: MachineId) -> Result<(), ComputeError> {
        let lock = self.host.machines.lock_of(machine);
        let _one_at_a_time = lock.lock().await;
        self.host.remove_machine(machine).await
    }

    async fn machines(&self) -> Result<Vec<MachineId>, ComputeError> {
        let names = self.host.virsh.must(&["list", "--all", "--name"]).await?;
        let all: BTreeSet<_> =
            self.host.machines_among(&names).into_iter().chain(self.host.machines.list()?).collect();
        Ok(all.into_iter().collect())
    }

    async fn reach(
        &self,
        machine: MachineId,
        guest_port: u16,
        limit: Duration,
    ) -> Result<Reached, ComputeError> {
        let lock = self.host.machines.lock_of(machine);
        let _one_at_a_time = lock.lock().await;
        self.host.reach_guest(machine, guest_port, limit).await
    }

    async fn address(&self, machine: MachineId) -> Result<Option<Ipv4Addr>, ComputeError> {
        match self.host.machines.directory(machine).load()? {
            Some(state) => Ok(address::on_bridge(&state.spec.nics)),
            None => Err(ComputeError::NoMachine { machine }),
        }
    }

    async fn hydrate(
        &self,
        machine: MachineId,
        disk: DiskNumber,
        target: &HydrationTarget,
    ) -> Result<(), ComputeError> {
        let lock = self.host.machines.lock_of(machine);
        let _one_at_a_time = lock.lock().await;
        self.host.begin_copy(machine, disk, target).await
    }

    async fn hydration(&self, machine: MachineId) -> Result<Vec<DiskHydration>, ComputeError> {
        let lock = self.host.machines.lock_of(machine);
        let _one_at_a_time = lock.lock().await;
        self.host.copies(machine).await
    }

    async fn cancel_hydration(&self, machine: MachineId, disk: DiskNumber) -> Result<(), ComputeError> {
        let lock = self.host.machines.lock_of(machine);
        let _one_at_a_time = lock.lock().await;
        self.host.end_copy(machine, disk).await
    }
}
