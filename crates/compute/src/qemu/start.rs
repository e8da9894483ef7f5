//! Starting a machine, or finishing a start that was cut short.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use jiff::Timestamp;
use qapi::qmp::{RunState, cont};
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};

use super::Host;
use super::acceleration::{Found, not_run};
use super::command_line::{Surroundings, arguments, source_node};
use super::networks::Members;
use super::process::{Process, marker};
use super::qmp::Qmp;
use super::settings::START_LIMIT;
use super::status::{Live, Observed};
use super::taps;
use crate::directory::{CONSOLE, LOG, MachineDirectory, MachineState, Stage, VARIABLES, private_file};
use crate::error::ComputeError;
use crate::forward::{PORT_ATTEMPTS, PORT_TAKEN, draws_a_port, free_forwards};
use crate::provider::OffReason;
use crate::spec::{Firmware, MachineSpec};

/// What QEMU takes for itself beside the guest's memory, in MiB.
pub(crate) const OVERHEAD_MIB: u64 = 96;
impl Host {
    /// The caller holds the machine's lock.
    pub(crate) async fn start_machine(&self, spec: &MachineSpec) -> Result<(), ComputeError> {
        let machine = spec.id;
        spec.check().map_err(|why| ComputeError::Spec { machine, why })?;
        let directory = self.machines.directory(machine);
        let copies = match self.observe(&directory).await? {
            Observed::Live(live) => return self.go_on(&directory, live, spec).await,
            Observed::Absent | Observed::HalfMade => Vec::new(),
            Observed::Off(before) => {
                let copies: Vec<_> =
                    before.copies.into_iter().filter(|copy| copy.stage == Stage::Local).collect();
                if !copies.is_empty() && before.spec.disks != spec.disks {
                    return Err(ComputeError::LocalDisks { machine });
                }
                copies
            }
        };
        let found = self.found().await?.clone();
        self.check_firmware(spec)?;
        self.check_memory(spec)?;
        directory.create()?;
        let mut state = MachineState::new(spec.clone(), copies, Timestamp::now());
        directory.store(&state)?;
        let mut outcome = Ok(());
        for _ in 0..PORT_ATTEMPTS {
            outcome = self.launch(&directory, &mut state, &found).await;
            let taken = |error: &ComputeError| matches!(error, ComputeError::DidNotStart { why, .. } if why.contains(PORT_TAKEN));
            if !(outcome.as_ref().is_err_and(taken) && draws_a_port(&spec.nics)) {
                break;
            }
        }
        if let Err(error) = &outcome {
            // What is left is a directory with the reason; this must not hide it.
            let _ = self.end_process(&directory, Duration::from_secs(1)).await;
            state.off = Some(OffReason::NotStarted { why: Some(error.to_string()) });
            directory.store(&state)?;
            if let Err(error) = self.remove_unused_networks(Members::Wanted).await {
                tracing::warn!(%machine, %error, "a network may be left");
            }
        }
        outcome
    }

    /// The machine has a process already.
    async fn go_on(
        &self,
        directory: &MachineDirectory,
        live: Live,
        spec: &MachineSpec,
    ) -> Result<(), ComputeError> {
        if live.state.spec != *spec {
            return Err(ComputeError::OtherSpec { machine: spec.id });
        }
        if live.run == RunState::prelaunch {
            self.check_disks(spec, &live.qmp).await?;
            self.make_networks(spec).await?;
            self.plug_in(spec).await?;
            return go(directory, live.state, &live.qmp).await;
        }
        Ok(())
    }

    async fn launch(
        &self,
        directory: &MachineDirectory,
        state: &mut MachineState,
        found: &Found,
    ) -> Result<(), ComputeError> {
        let machine = directory.machine;
        taps::remove(&self.settings.ip, machine).await?;
        self.prepare_files(directory, &state.spec)?;
        state.forwards = free_forwards(&state.spec.nics).map_err(ComputeError::io("find", "a free port"))?;
        let around = Surroundings {
            marker: marker(directory),
            acceleration: found.arguments(),
            sandbox: found.sandbox,
            ovmf_code: self.settings.ovmf_code.to_str().unwrap_or_default(),
            forwards: &state.forwards,
            nbd_wait_seconds: self.settings.nbd_wait_seconds,
        };
        let arguments = arguments(&state.spec, &state.disks(), &around)
            .map_err(|why| ComputeError::Spec { machine, why })?;
        taps::create(&self.settings.ip, machine, &state.spec.nics).await?;
        state.off = None;
        directory.store(state)?;
        self.make_networks(&state.spec).await?;
        let one_at_a_time = self.memory.lock().await;
        self.check_memory(&state.spec)?;
        let child = self.spawn(directory, &arguments)?;
        drop(one_at_a_time);
        let qmp = first_answer(directory, child).await?;
        self.check_disks(&state.spec, &qmp).await?;
        self.plug_in(&state.spec).await?;
        go(directory, state.clone(), &qmp).await
    }

    fn prepare_files(&self, directory: &MachineDirectory, spec: &MachineSpec) -> Result<(), ComputeError> {
        let variables = directory.file(VARIABLES);
        if spec.firmware == Firmware::Uefi && !variables.exists() {
            let new = directory.file("uefi-variables.new");
            let copy = || {
                fs::copy(&self.settings.ovmf_variables, &new)?;
                fs::set_permissions(&new, Permissions::from_mode(0o600))?;
                fs::rename(&new, &variables)
            };
            copy().map_err(ComputeError::io("make", &variables))?;
        }
        // QEMU would make it readable to all. What an earlier run wrote stays.
        let console = directory.file(CONSOLE);
        if !console.exists() {
            private_file(&console).map_err(ComputeError::io("create", &console))?;
        }
        Ok(())
    }

    fn spawn(&self, directory: &MachineDirectory, arguments: &[String]) -> Result<Child, ComputeError> {
        let log = directory.file(LOG);
        let log = private_file(&log).map_err(ComputeError::io("create", log))?;
        tracing::debug!(machine = %directory.machine, ?arguments, "starting QEMU");
        // A process group of its own: what is sent to the vault's terminal or group does not reach it.
        Command::new(&self.settings.program)
            .args(arguments)
            .current_dir(directory.path())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| not_run(&self.settings, &error))
    }

    /// Whether the disks have the sizes that they should: another size is another disk.
    async fn check_disks(&self, spec: &MachineSpec, qmp: &Qmp) -> Result<(), ComputeError> {
        let nodes = qmp.ask(QueryNodes { flat: true }).await?;
        for disk in &spec.disks {
            let node = source_node(disk.number);
            let found = nodes.iter().find(|found| found.name.as_ref() == Some(&node));
            let bytes = found.map_or(0, |found| found.image.virtual_size);
            if bytes != disk.bytes {
                return Err(ComputeError::Spec {
                    machine: spec.id,
                    why: format!(
                        "its disk {} should have {} bytes and what is served has {bytes}",
                        disk.number, disk.bytes
                    ),
                });
            }
        }
        Ok(())
    }

    fn check_firmware(&self, spec: &MachineSpec) -> Result<(), ComputeError> {
        if spec.firmware == Firmware::Bios {
            return Ok(());
        }
        let missing =
            [&self.settings.ovmf_code, &self.settings.ovmf_variables].into_iter().find(|path| !path.exists());
        match missing {
            Some(path) => Err(ComputeError::FirmwareMissing { machine: spec.id, path: path.clone() }),
            None => Ok(()),
        }
    }

    fn check_memory(&self, spec: &MachineSpec) -> Result<(), ComputeError> {
        let (needed_mib, free_mib) = (spec.memory_mib + OVERHEAD_MIB, self.memory_mib_free()?);
        if needed_mib > free_mib {
            return Err(ComputeError::Memory { machine: spec.id, needed_mib, free_mib });
        }
        Ok(())
    }

    /// Memory that is left when every machine that runs has taken all of its own.
    pub(crate) fn memory_mib_free(&self) -> Result<u64, ComputeError> {
        let meminfo = Path::new("/proc/meminfo");
        let text = fs::read_to_string(meminfo).map_err(ComputeError::io("read", meminfo))?;
        let available_kib = text
            .lines()
            .find_map(|line| {
                line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok()
            })
            .ok_or_else(|| {
                ComputeError::io("find MemAvailable in", meminfo)(io::ErrorKind::NotFound.into())
            })?;
        let mut promised_mib = 0;
        for entry in fs::read_dir(self.machines.path())
            .map_err(ComputeError::io("list", self.machines.path()))?
            .flatten()
        {
            let Some(machine) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let directory = self.machines.directory(machine);
            let Ok(Some(state)) = directory.load() else { continue };
            if let Some(process) = Process::find(&directory)? {
                let resident_mib = process.resident_bytes().unwrap_or(0) >> 20;
                promised_mib += (state.spec.memory_mib + OVERHEAD_MIB).saturating_sub(resident_mib);
            }
        }
        Ok((available_kib >> 10).saturating_sub(promised_mib))
    }
}

/// Lets the guest execute its first instruction.
async fn go(directory: &MachineDirectory, mut state: MachineState, qmp: &Qmp) -> Result<(), ComputeError> {
    qmp.ask(cont {}).await?;
    let first_instruction = qmp.resumed().unwrap_or_else(Timestamp::now);
    let took = first_instruction.duration_since(state.since);
    tracing::info!(machine = %directory.machine, %first_instruction, ?took, "a guest began to execute");
    state.off = None;
    state.first_instruction = Some(first_instruction);
    directory.store(&state)
}

/// Waits for a new process to answer, and says what it said if it ends instead.
async fn first_answer(directory: &MachineDirectory, mut child: Child) -> Result<Qmp, ComputeError> {
    let machine = directory.machine;
    let deadline = tokio::time::Instant::now() + START_LIMIT;
    loop {
        match child.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => {
                let words = directory.last_words();
                let why = if words.is_empty() { format!("QEMU ended with {status}") } else { words };
                return Err(ComputeError::DidNotStart { machine, why });
            }
            Err(error) => return Err(ComputeError::io("watch", directory.path())(error)),
        }
        match Qmp::connect(directory).await {
            Ok(qmp) => return Ok(qmp),
            Err(_) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(_) => {
                return Err(ComputeError::Silent { machine, question: "a connection", limit: START_LIMIT });
            }
        }
    }
}

/// `query-named-block-nodes` with as much of its answer as is needed: the rest differs among QEMU's versions.
#[derive(Debug, Serialize)]
pub(crate) struct QueryNodes {
    pub flat: bool,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Node {
    #[serde(rename = "node-name")]
    pub name: Option<String>,
    pub image: NodeImage,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct NodeImage {
    pub virtual_size: u64,
}

impl qapi::Command for QueryNodes {
    const NAME: &'static str = "query-named-block-nodes";
    const ALLOW_OOB: bool = false;
    type Ok = Vec<Node>;
}

impl qapi::qmp::QmpCommand for QueryNodes {}
