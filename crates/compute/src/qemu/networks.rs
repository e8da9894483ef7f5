//! Networks that machines share: made for the first machine with power, removed with the last.
//!
//! A network is a bridge in a network namespace of its own ([`namespace`]). Nothing else is in it but the
//! machines' tap devices, so no packet leaves; and since the namespace has its own addresses and routes, a
//! network may have the very addresses of the site that it stands in for, which this host may be talking to.
//! The bridge has the gateway's address: from there the host reaches guests, and DHCP answers ([`dhcp`]).
//! What may reach out does so through a process outside ([`uplink`]).
//!
//! Bridge, devices, addresses and rules end with the namespace, and the namespace ends with the last process
//! in it. So to remove a network is to end its processes, and what is left after any crash is processes
//! that are found again by the network's directory, in which they work.
//!
//! A machine is in a network while its stored state says that it should be running: it is stored before the
//! network is made, and changed before the network is looked through for removal.

mod dhcp;
mod namespace;
mod uplink;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use lifeboat_model::{MacAddress, NetworkId};
use tokio::sync::Mutex;

use super::Host;
use super::process::Process;
use super::taps;
use crate::directory::MachineState;
use crate::error::ComputeError;
use crate::network::{Attachment, Nic, SharedNetwork};
use crate::spec::MachineSpec;

pub(crate) use namespace::Namespace;

/// The bridge in a network's namespace.
const BRIDGE: &str = "lifeboat";
const DEVICES: &str = "/sys/class/net";

/// Where networks are kept, each in a directory.
#[derive(Debug)]
pub(crate) struct Networks {
    path: PathBuf,
    /// One change at a time: whether a network is still needed depends on all machines.
    changing: Mutex<()>,
}

/// Which machines count as being in their networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Members {
    /// Those that should be running.
    Wanted,
    /// Those that run, when nothing is being started.
    Running,
}

impl Networks {
    /// The networks in this directory, which is made if it is not there.
    pub(crate) fn open(path: &Path) -> Result<Self, ComputeError> {
        fs::create_dir_all(path).map_err(ComputeError::io("create", path))?;
        let path = fs::canonicalize(path).map_err(ComputeError::io("find", path))?;
        Ok(Self { path, changing: Mutex::default() })
    }

    fn directory(&self, network: NetworkId) -> PathBuf {
        self.path.join(network.to_string())
    }

    /// Those that there is something of.
    fn list(&self) -> Result<Vec<NetworkId>, ComputeError> {
        let entries = fs::read_dir(&self.path).map_err(ComputeError::io("list", &self.path))?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }
}

impl Host {
    /// Makes the networks of a machine whose state is stored, as far as they are not there.
    pub(crate) async fn make_networks(&self, spec: &MachineSpec) -> Result<(), ComputeError> {
        let _one_at_a_time = self.networks.changing.lock().await;
        for (network, _) in shared(&spec.nics) {
            self.make_network(network).await?;
        }
        Ok(())
    }

    async fn make_network(&self, network: &SharedNetwork) -> Result<(), ComputeError> {
        let directory = self.networks.directory(network.id);
        fs::create_dir_all(&directory)
            .and_then(|()| fs::set_permissions(&directory, Permissions::from_mode(0o700)))
            .map_err(ComputeError::io("create", &directory))?;
        let failed = |why| ComputeError::Network { network: network.name.clone(), why };
        if Namespace::find(&directory)?.is_none() {
            // What is left serves a namespace whose holder was ended by somebody.
            end([dhcp::process(&directory)?, uplink::process(&directory)?]).await.map_err(failed)?;
        }
        let namespace = Namespace::find_or_make(&directory).await?.map_err(failed)?;
        let ip = &self.settings.ip;
        if namespace.run(ip, &["link", "show", "dev", BRIDGE]).await?.is_err() {
            // A fixed address of the bridge: it would otherwise have that of one port or another.
            let mac = MacAddress::local(network.id.number()).to_string();
            let add = ["link", "add", "name", BRIDGE, "address", &mac, "type", "bridge"];
            namespace.run(ip, &add).await?.map_err(failed)?;
        }
        let address = format!("{}/{}", network.gateway, network.subnet.prefix());
        for arguments in [
            &["address", "replace", &address, "dev", BRIDGE][..],
            &["link", "set", "dev", "lo", "up"],
            &["link", "set", "dev", BRIDGE, "up"],
        ] {
            namespace.run(ip, arguments).await?.map_err(failed)?;
        }
        if network.outward {
            uplink::make(&namespace, &self.settings, &directory, network.subnet).await?.map_err(failed)?;
        }
        if network.dhcp {
            let reserved = self.reserved(network.id)?;
            dhcp::serve(&namespace, &self.settings, &directory, network, &reserved).await?.map_err(failed)?;
        }
        Ok(())
    }

    /// Attaches a machine to its networks: its process has made the tap devices outside of them. Doing it
    /// again changes nothing.
    pub(crate) async fn plug_in(&self, spec: &MachineSpec) -> Result<(), ComputeError> {
        for (place, nic) in spec.nics.iter().enumerate() {
            let Attachment::Shared { network, .. } = &nic.attachment else { continue };
            let failed = |why| ComputeError::Network { network: network.name.clone(), why };
            let Some(namespace) = Namespace::find(&self.networks.directory(network.id))? else {
                return Err(failed("its processes have ended; start the machine again".into()));
            };
            let tap = taps::tap_name(spec.id, place);
            let ip = &self.settings.ip;
            if Path::new(DEVICES).join(&tap).exists() {
                let holder = namespace.number().to_string();
                let alias = taps::alias(spec.id);
                taps::run(ip, &["link", "set", "dev", &tap, "alias", &alias]).await?.map_err(failed)?;
                taps::run(ip, &["link", "set", "dev", &tap, "netns", &holder]).await?.map_err(failed)?;
            }
            let join = ["link", "set", "dev", &tap, "master", BRIDGE, "up"];
            namespace.run(ip, &join).await?.map_err(failed)?;
        }
        Ok(())
    }

    /// Removes the networks in which no machine is any more.
    pub(crate) async fn remove_unused_networks(&self, members: Members) -> Result<(), ComputeError> {
        let _one_at_a_time = self.networks.changing.lock().await;
        let made = self.networks.list()?;
        if made.is_empty() {
            return Ok(());
        }
        // What cannot be read may well be a machine that needs its network.
        let Some(states) = self.states(members)? else { return Ok(()) };
        for network in made {
            let is_used =
                states.iter().any(|state| shared(&state.spec.nics).any(|(used, _)| used.id == network));
            if !is_used {
                self.remove_network(network).await?;
            }
        }
        Ok(())
    }

    async fn remove_network(&self, network: NetworkId) -> Result<(), ComputeError> {
        let directory = self.networks.directory(network);
        let processes =
            [dhcp::process(&directory)?, uplink::process(&directory)?, Namespace::holder(&directory)?];
        let failed = |why| ComputeError::Network { network: network.to_string(), why };
        end(processes).await.map_err(failed)?;
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ComputeError::io("remove", directory)(error))
            }
            _ => {
                tracing::info!(%network, "removed a network that no machine is in any more");
                Ok(())
            }
        }
    }

    /// The states of the machines that count as being in their networks; none when one cannot be read.
    fn states(&self, members: Members) -> Result<Option<Vec<MachineState>>, ComputeError> {
        let mut states = Vec::new();
        for machine in self.machines.list()? {
            let directory = self.machines.directory(machine);
            let state = match directory.load() {
                Ok(Some(state)) => state,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(%machine, %error, "networks stay as they are, since this machine may be in one");
                    return Ok(None);
                }
            };
            let is_in = match members {
                Members::Wanted => state.off.is_none(),
                Members::Running => Process::find(&directory)?.is_some(),
            };
            if is_in {
                states.push(state);
            }
        }
        Ok(Some(states))
    }

    /// The addresses that guests in a network have, by the address of their interface.
    fn reserved(&self, network: NetworkId) -> Result<BTreeMap<MacAddress, Ipv4Addr>, ComputeError> {
        let states = self.states(Members::Wanted)?.unwrap_or_default();
        let nics = states.iter().flat_map(|state| &state.spec.nics);
        Ok(nics
            .filter_map(|nic| match &nic.attachment {
                Attachment::Shared { network: joined, address: Some(address) } if joined.id == network => {
                    Some((nic.mac, *address))
                }
                _ => None,
            })
            .collect())
    }

    /// The address of a guest: as it was said, or as DHCP has given it.
    pub(crate) fn guest_address(&self, spec: &MachineSpec) -> Option<Ipv4Addr> {
        spec.nics.iter().find_map(|nic| match &nic.attachment {
            Attachment::Bridge { address, .. } => *address,
            Attachment::Shared { address: Some(address), .. } => Some(*address),
            Attachment::Shared { network, .. } => dhcp::leased(&self.networks.directory(network.id), nic.mac),
            Attachment::Isolated { .. } => None,
        })
    }

    /// The namespace from which a guest is reached; none when that is the host's own.
    pub(crate) fn namespace_of(&self, spec: &MachineSpec) -> Result<Option<Namespace>, ComputeError> {
        match shared(&spec.nics).next() {
            Some((network, _)) => Namespace::find(&self.networks.directory(network.id)),
            None => Ok(None),
        }
    }

    /// What stands before a command that is to run in a network.
    pub(crate) fn entrance_of(&self, network: NetworkId) -> Result<Option<String>, ComputeError> {
        let namespace = Namespace::find(&self.networks.directory(network))?;
        Ok(namespace.map(|namespace| format!("nsenter --target {} --net", namespace.number())))
    }
}

/// Ends those processes that there are; what is wrong is one clause.
async fn end(processes: impl IntoIterator<Item = Option<Process>>) -> Result<(), String> {
    for process in processes.into_iter().flatten() {
        if !process.is_killed().await {
            let number = process.number();
            return Err(format!("its process {number} does not end, although it was killed"));
        }
    }
    Ok(())
}

/// The networks that interfaces are in.
fn shared(nics: &[Nic]) -> impl Iterator<Item = (&SharedNetwork, &Nic)> {
    nics.iter().filter_map(|nic| match &nic.attachment {
        Attachment::Shared { network, .. } => Some((network, nic)),
        Attachment::Isolated { .. } | Attachment::Bridge { .. } => None,
    })
}
