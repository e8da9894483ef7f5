//! Tap devices, by which machines are on bridges of this machine and in networks that they share.
//!
//! A device's name comes from the machine's id and the interface's place, so that whoever removes a machine
//! finds its devices whatever became of its files. The alias says whose they are: a device of that name
//! without it is somebody else's and left alone.
//!
//! A device in a shared network is made by the machine's process, and ends with it.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use lifeboat_model::MachineId;
use tokio::process::Command;

use crate::error::ComputeError;
use crate::network::{Attachment, Nic};

const DEVICES: &str = "/sys/class/net";

/// The name of the tap device of a machine's interface.
pub(crate) fn tap_name(machine: MachineId, place: usize) -> String {
    format!("{}{place:x}", prefix(machine))
}

fn prefix(machine: MachineId) -> String {
    // A name has at most 15 bytes. Ids are random, so their lower part tells machines apart.
    format!("lb{:011x}.", machine.number() & 0xfff_ffff_ffff)
}

pub(crate) fn alias(machine: MachineId) -> String {
    format!("lifeboat machine {machine}")
}

/// Makes the devices for all interfaces that are on bridges.
pub(crate) async fn create(ip: &Path, machine: MachineId, nics: &[Nic]) -> Result<(), ComputeError> {
    for (place, nic) in nics.iter().enumerate() {
        let Attachment::Bridge { name: bridge, .. } = &nic.attachment else { continue };
        let failed = |why| ComputeError::Bridge { machine, bridge: bridge.clone(), why };
        if !Path::new(DEVICES).join(bridge).join("bridge").is_dir() {
            return Err(failed("there is no such bridge on this machine".into()));
        }
        let tap = tap_name(machine, place);
        run(ip, &["tuntap", "add", "dev", &tap, "mode", "tap"]).await?.map_err(failed)?;
        // The alias first: only with it can the device be found again and removed.
        run(ip, &["link", "set", "dev", &tap, "alias", &alias(machine)]).await?.map_err(failed)?;
        run(ip, &["link", "set", "dev", &tap, "master", bridge, "up"]).await?.map_err(failed)?;
    }
    Ok(())
}

/// Removes all devices of the machine.
pub(crate) async fn remove(ip: &Path, machine: MachineId) -> Result<(), ComputeError> {
    let prefix = prefix(machine);
    let devices = fs::read_dir(DEVICES).map_err(ComputeError::io("list", DEVICES))?;
    for device in devices.flatten() {
        let Some(name) = device.file_name().to_str().map(str::to_owned) else { continue };
        let owner = fs::read_to_string(device.path().join("ifalias")).unwrap_or_default();
        // Between making and naming it a device has no alias yet.
        let ours = owner.trim().is_empty() || owner.trim() == alias(machine);
        if !name.starts_with(&prefix) || !ours || !device.path().join("tun_flags").exists() {
            continue;
        }
        let removed = run(ip, &["link", "delete", "dev", &name]).await?;
        removed.map_err(|why| ComputeError::Tap { machine, device: name.clone(), why })?;
    }
    Ok(())
}

/// Runs `ip`. The inner error is what it said.
pub(crate) async fn run(ip: &Path, arguments: &[&str]) -> Result<Result<(), String>, ComputeError> {
    let mut command = Command::new(ip);
    command.args(arguments).kill_on_drop(true).stdin(Stdio::null());
    match command.output().await {
        Ok(output) if output.status.success() => Ok(Ok(())),
        Ok(output) => Ok(Err(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(ComputeError::ProgramMissing { program: ip.display().to_string(), package: "iproute2" })
        }
        Err(error) => Err(ComputeError::io("run", ip)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_fit_and_differ() {
        let machine = MachineId::new(u64::MAX);
        assert_eq!(tap_name(machine, 0), "lbfffffffffff.0");
        assert!(tap_name(machine, 7).len() <= 15);
        assert_ne!(tap_name(machine, 0), tap_name(MachineId::new(1), 0));
    }
}
