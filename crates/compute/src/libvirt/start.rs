//! Starting a machine, or finishing a start that was cut short.

use std::io::Write;
use std::path::Path;

use jiff::Timestamp;
use lifeboat_model::MachineId;

use super::Host;
use super::acceleration::Found;
use super::domain::{Surroundings, domain, target_of};
use super::follow::file_of;
use super::settings::{ANSWER_LIMIT, START_LIMIT};
use super::status::{Observed, Run};
use super::virsh::{is_absent, is_off};
use crate::directory::{MachineDirectory, MachineState, Stage, private_file};
use crate::error::ComputeError;
use crate::forward::{PORT_ATTEMPTS, PORT_TAKEN, draws_a_port, free_forwards};
use crate::network::Attachment;
use crate::provider::{Acceleration, OffReason};
use crate::qemu::start::OVERHEAD_MIB;
use crate::spec::{DiskAddress, Firmware, MachineSpec};

/// What libvirt is given, kept for whoever wants to see it.
const DOMAIN_XML: &str = "domain.xml";

impl Host {
    /// The caller holds the machine's lock.
    pub(crate) async fn start_machine(&self, spec: &MachineSpec) -> Result<(), ComputeError> {
        let machine = spec.id;
        spec.check().map_err(|why| ComputeError::Spec { machine, why })?;
        let directory = self.machines.directory(machine);
        let copies = match self.observe(&directory).await? {
            Observed::Live(state, run) => return self.go_on(&directory, state, &run, spec).await,
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
        let found = self.found().await?;
        self.check_host(spec, found)?;
        self.check_memory(spec).await?;
        directory.create()?;
        let mut state = MachineState::new(spec.clone(), copies, Timestamp::now());
        directory.store(&state)?;
        let mut outcome = Ok(());
        for _ in 0..PORT_ATTEMPTS {
            outcome = self.launch(&directory, &mut state, found).await;
            let taken = |error: &ComputeError| matches!(error, ComputeError::DidNotStart { why, .. } if why.contains(PORT_TAKEN));
            if !(outcome.as_ref().is_err_and(taken) && draws_a_port(&spec.nics)) {
                break;
            }
        }
        if let Err(error) = &outcome {
            // What is left is a directory with the reason; this must not hide it.
            let _ = self.take_power(machine).await;
            state.off = Some(OffReason::NotStarted { why: Some(error.to_string()) });
            directory.store(&state)?;
        }
        outcome
    }

    /// The machine has power already.
    async fn go_on(
        &self,
        directory: &MachineDirectory,
        state: MachineState,
        run: &Run,
        spec: &MachineSpec,
    ) -> Result<(), ComputeError> {
        if state.spec != *spec {
            return Err(ComputeError::OtherSpec { machine: spec.id });
        }
        if *run == Run::NotBegun {
            self.check_disks(&state).await?;
            return self.go(directory, state).await;
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
        let name = self.name_of(machine);
        self.pool.ensure(&self.virsh).await?;
        if self.virsh.uri().is_local {
            let forwards = free_forwards(&state.spec.nics);
            state.forwards = forwards.map_err(ComputeError::io("find", "a free port"))?;
        }
        let around = Surroundings {
            vault: self.settings.vault,
            name: &name,
            kvm: found.acceleration == Acceleration::Kvm,
            console: &self.pool.path_of(&file_of(&name)),
            forwards: &state.forwards,
            nbd: self.nbd_over_tls(),
            owner: self.owner(),
        };
        let xml = domain(&state.spec, &state.disks(), &around)
            .map_err(|why| ComputeError::Spec { machine, why })?;
        let path = directory.file(DOMAIN_XML);
        private_file(&path)
            .and_then(|mut file| file.write_all(xml.as_bytes()))
            .map_err(ComputeError::io("write", &path))?;
        state.off = None;
        directory.store(state)?;
        let did_not_start = |why| ComputeError::DidNotStart { machine, why };
        let define = ["define", DOMAIN_XML];
        self.virsh.ask_in(directory.path(), &define, ANSWER_LIMIT).await?.map_err(did_not_start)?;
        // One at a time counts the memory of all machines and makes one more.
        let one_at_a_time = self.memory.lock().await;
        self.check_memory(&state.spec).await?;
        let start = ["start", name.as_str(), "--paused"];
        self.virsh.ask_in(directory.path(), &start, START_LIMIT).await?.map_err(did_not_start)?;
        drop(one_at_a_time);
        self.check_disks(state).await?;
        self.go(directory, state.clone()).await
    }

    /// Lets the guest execute its first instruction.
    async fn go(&self, directory: &MachineDirectory, mut state: MachineState) -> Result<(), ComputeError> {
        self.virsh.must(&["resume", &self.name_of(directory.machine)]).await?;
        let first_instruction = Timestamp::now();
        let took = first_instruction.duration_since(state.since);
        tracing::info!(machine = %directory.machine, %first_instruction, ?took, "a guest began to execute");
        state.off = None;
        state.first_instruction = Some(first_instruction);
        directory.store(&state)
    }

    /// Whether the disks have the sizes that they should: another size is another disk.
    async fn check_disks(&self, state: &MachineState) -> Result<(), ComputeError> {
        let machine = state.spec.id;
        let table = self.virsh.must(&["domblkinfo", &self.name_of(machine), "--all"]).await?;
        for disk in &state.spec.disks {
            let target = target_of(&state.spec.disks, disk.number).unwrap_or_default();
            let bytes = capacity(&table, &target).unwrap_or(0);
            if bytes != disk.bytes {
                return Err(ComputeError::Spec {
                    machine,
                    why: format!(
                        "its disk {} should have {} bytes and what is served has {bytes}",
                        disk.number, disk.bytes
                    ),
                });
            }
        }
        Ok(())
    }

    /// Whether libvirt's host can have such a machine.
    fn check_host(&self, spec: &MachineSpec, found: &Found) -> Result<(), ComputeError> {
        let machine = spec.id;
        if spec.firmware == Firmware::Uefi && !found.firmwares.contains(&Firmware::Uefi) {
            return Err(ComputeError::FirmwareMissing { machine, path: "OVMF".into() });
        }
        let shared = spec.nics.iter().find_map(|nic| match &nic.attachment {
            Attachment::Shared { network, .. } => Some(network),
            _ => None,
        });
        if let Some(network) = shared {
            let why = format!(
                "the network {} is made on the vault's machine, which machines at libvirt do not join: use a network \
                 that is a bridge of libvirt's host",
                network.name
            );
            return Err(ComputeError::Spec { machine, why });
        }
        let uri = self.virsh.uri();
        for nic in spec.nics.iter().filter(|_| uri.is_local) {
            if let Attachment::Bridge { name: bridge, .. } = &nic.attachment
                && !Path::new("/sys/class/net").join(bridge).join("bridge").is_dir()
            {
                let why = "there is no such bridge on this machine".into();
                return Err(ComputeError::Bridge { machine, bridge: bridge.clone(), why });
            }
        }
        for disk in spec.disks.iter().filter(|_| !uri.is_local) {
            let why = match &disk.source {
                DiskAddress::File { path, .. } => {
                    format!("{} is on the vault's machine, and {} is another", path.display(), uri.shown)
                }
                DiskAddress::NbdUnix { .. } if self.nbd_over_tls().is_none() => format!(
                    "{} reaches its disks over TLS only, and the vault offers none: set listen in [nbd]",
                    uri.shown
                ),
                DiskAddress::NbdUnix { .. } => continue,
            };
            return Err(ComputeError::Spec { machine, why });
        }
        Ok(())
    }

    async fn check_memory(&self, spec: &MachineSpec) -> Result<(), ComputeError> {
        let (needed_mib, free_mib) = (spec.memory_mib + OVERHEAD_MIB, self.memory_mib_free().await?);
        if needed_mib > free_mib {
            return Err(ComputeError::Memory { machine: spec.id, needed_mib, free_mib });
        }
        Ok(())
    }

    /// Memory of libvirt's host that is left when every machine that runs there has taken all of its own.
    pub(crate) async fn memory_mib_free(&self) -> Result<u64, ComputeError> {
        let node = self.virsh.must(&["nodememstats"]).await?;
        let available_kib: u64 =
            ["free", "buffers", "cached"].iter().filter_map(|name| number_after(&node, name)).sum();
        let machines = self.virsh.must(&["domstats", "--balloon", "--list-active"]).await?;
        let promised_kib: u64 = machines
            .split("Domain:")
            .filter_map(|domain| {
                let all = number_after(domain, "balloon.maximum")?;
                Some(all.saturating_sub(number_after(domain, "balloon.rss").unwrap_or(0)))
            })
            .sum();
        Ok(available_kib.saturating_sub(promised_kib) >> 10)
    }

    /// Takes a machine's power, if it has any; what the guest wrote is brought to its disks. Whether it had.
    pub(crate) async fn take_power(&self, machine: MachineId) -> Result<bool, ComputeError> {
        let name = self.name_of(machine);
        let ask = async |arguments: &[&str]| self.virsh.ask_in(Path::new("/"), arguments, START_LIMIT).await;
        match ask(&["destroy", &name, "--graceful"]).await? {
            Ok(_) => return Ok(true),
            Err(why) if is_absent(&why) || is_off(&why) => return Ok(false),
            Err(why) => tracing::warn!(%machine, %why, "QEMU did not end when asked, killing it"),
        }
        match ask(&["destroy", &name]).await? {
            Ok(_) => Ok(true),
            Err(why) if is_absent(&why) || is_off(&why) => Ok(true),
            Err(why) => Err(self.virsh.refused(&["destroy"], why)),
        }
    }
}

/// The capacity in bytes of a disk in the table of `domblkinfo`, whose rows begin with target and capacity.
fn capacity(table: &str, target: &str) -> Option<u64> {
    let mut rows = table.lines().map(str::split_whitespace);
    rows.find_map(|mut row| if row.next() == Some(target) { row.next()?.parse().ok() } else { None })
}

/// The number in a line such as `free  : 123 KiB` or `balloon.rss=123`.
fn number_after(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let value = line.trim().strip_prefix(name)?.trim_start().strip_prefix([':', '='])?;
        value.split_whitespace().next()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_in_what_libvirt_says() {
        let table =
            " Target   Capacity   Allocation   Physical\n-----\n vda   4194304   0   0\n sda   512   -   -\n";
        assert_eq!((capacity(table, "vda"), capacity(table, "sda")), (Some(4_194_304), Some(512)));
        assert_eq!(capacity(table, "vdb"), None);
        let node = "total  :              8152908 KiB\nfree   :               123456 KiB\n";
        assert_eq!(number_after(node, "free"), Some(123_456));
        assert_eq!(number_after("'x'\n  balloon.maximum=65536\n", "balloon.maximum"), Some(65536));
    }
}
