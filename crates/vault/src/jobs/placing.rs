//! Which network a machine joins, and with which address.
//!
//! What the command says goes before what the target says, and that before the mapping of the network that
//! the server has at the protected site. Where nothing was said the machine gets a network of its own, in
//! which it is alone.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use lifeboat_api::MachinePurpose;
use lifeboat_compute::{Attachment, Forward, MacAddress, Nic, SharedNetwork};
use lifeboat_model::{Ipv4Subnet, ServerId};

use super::networks::OWN;
use super::up::Probes;
use super::{Conflict, JobError, JobRequest, Jobs, views};
use crate::catalog::{NetworkRow, NetworkWhat};
use crate::target::Derived;

/// The port of an SSH server, which operators want to reach in a machine without a network.
const SSH_PORT: u16 = 22;

impl Jobs {
    /// What the machine that a job starts is attached to, if nobody there has its address.
    pub(super) async fn attachment(
        &self,
        server: ServerId,
        request: &JobRequest,
        derived: &Derived,
    ) -> Result<Attachment, JobError> {
        let (catalog, target) = (self.vault.catalog(), &derived.target);
        if matches!(request, JobRequest::ChangePoint { .. })
            && let Some(former) = catalog.recovery(server).await?
            && let Some(attachment) = views::joined(&former.spec)
        {
            // The same machine from another point: others know it where it is.
            return Ok(attachment.clone());
        }
        let is_drill = super::steps::purpose(request) == MachinePurpose::Drill;
        let set = if is_drill { &target.test_network } else { &target.network };
        let own = || Attachment::Isolated { subnet: None, forwards: forwards(&Probes::ports(target)) };
        let attachment = match request.network().or(set.as_deref()) {
            Some(OWN) => return Ok(own()),
            Some(name) => self.joined(server, &self.find_network(name).await?, derived).await?,
            None if !is_drill && target.bridge.is_some() => Attachment::Bridge {
                name: target.bridge.clone().unwrap_or_default(),
                address: target.address,
            },
            None => match self.mapped(target.address, is_drill).await? {
                Some(network) => self.joined(server, &network, derived).await?,
                None => return Ok(own()),
            },
        };
        self.check_neighbours(server, views::mac(target.mac.as_deref(), server)?, &attachment).await?;
        Ok(attachment)
    }

    /// The network that stands in for the one in which the server has this address.
    async fn mapped(
        &self,
        address: Option<Ipv4Addr>,
        is_drill: bool,
    ) -> Result<Option<NetworkRow>, JobError> {
        let Some(address) = address else { return Ok(None) };
        let mappings = self.vault.catalog().network_mappings().await?;
        let Some(mapping) = mappings.into_iter().find(|mapping| mapping.subnet.has_host(address)) else {
            return Ok(None);
        };
        let Some(id) = (if is_drill { mapping.test } else { mapping.production }) else { return Ok(None) };
        let networks = self.vault.catalog().networks().await?;
        Ok(networks.into_iter().find(|network| network.id == id))
    }

    /// A network with an address of the server in it.
    async fn joined(
        &self,
        server: ServerId,
        network: &NetworkRow,
        derived: &Derived,
    ) -> Result<Attachment, JobError> {
        let wanted = derived.target.address;
        let (subnet, gateway, dhcp, outward) = match &network.what {
            NetworkWhat::Bridge { bridge } => {
                return Ok(Attachment::Bridge { name: bridge.clone(), address: wanted });
            }
            NetworkWhat::Made { subnet, gateway, dhcp, outward } => (*subnet, *gateway, *dhcp, *outward),
        };
        let (id, name) = (network.id, network.name.clone());
        let made = SharedNetwork { id, name, subnet, gateway, dhcp, outward };
        let address = match wanted {
            Some(address) if subnet.has_host(address) && address != gateway => Some(address),
            Some(_) if derived.changes_address => Some(self.free_address(server, &made).await?),
            // It gets another one here.
            Some(_) if dhcp => None,
            Some(address) => {
                let name = made.name;
                return Err(Conflict::AddressForeign { address, network: name, subnet, gateway }.into());
            }
            None => None,
        };
        Ok(Attachment::Shared { network: made, address })
    }

    /// The lowest address that no machine in a network has.
    async fn free_address(&self, server: ServerId, network: &SharedNetwork) -> Result<Ipv4Addr, JobError> {
        let mut taken = BTreeSet::from([network.gateway]);
        for recovery in self.vault.catalog().recoveries().await? {
            let joined = views::joined(&recovery.spec);
            let is_in =
                matches!(joined, Some(Attachment::Shared { network: other, .. }) if other.id == network.id);
            if recovery.server == server || !is_in {
                continue;
            }
            taken.extend(joined.and_then(address));
            // One that DHCP gave.
            taken.extend(self.provider.address(recovery.machine).await.ok().flatten());
        }
        lowest_free(network.subnet, &taken).ok_or_else(|| {
            Conflict::NetworkFull { network: network.name.clone(), subnet: network.subnet }.into()
        })
    }

    /// Refuses an address that another machine in the same network has.
    async fn check_neighbours(
        &self,
        server: ServerId,
        mac: MacAddress,
        attachment: &Attachment,
    ) -> Result<(), JobError> {
        for recovery in self.vault.catalog().recoveries().await? {
            if recovery.server == server {
                continue;
            }
            for Nic { mac: taken, attachment: theirs, .. } in &recovery.spec.nics {
                let Some(network) = in_common(attachment, theirs) else { continue };
                let address = match (address(attachment), address(theirs)) {
                    (Some(ours), Some(theirs)) if ours == theirs => ours.to_string(),
                    _ if mac == *taken => mac.to_string(),
                    _ => continue,
                };
                let conflict = Conflict::AddressTaken {
                    server: self.server_name(server).await?,
                    other: self.server_name(recovery.server).await?,
                    is_drill: recovery.purpose == MachinePurpose::Drill,
                    address,
                    network: network.to_owned(),
                };
                return Err(conflict.into());
            }
        }
        Ok(())
    }
}

fn lowest_free(subnet: Ipv4Subnet, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let hosts = subnet.first_host().to_bits()..=subnet.last_host().to_bits();
    hosts.map(Ipv4Addr::from_bits).find(|address| !taken.contains(address))
}

/// The network in which both are, if they are in one.
fn in_common<'a>(one: &'a Attachment, other: &Attachment) -> Option<&'a str> {
    match (one, other) {
        (Attachment::Shared { network, .. }, Attachment::Shared { network: other, .. }) => {
            (network.id == other.id).then_some(network.name.as_str())
        }
        (Attachment::Bridge { name, .. }, Attachment::Bridge { name: other, .. }) => {
            (name == other).then_some(name.as_str())
        }
        _ => None,
    }
}

fn address(attachment: &Attachment) -> Option<Ipv4Addr> {
    match attachment {
        Attachment::Shared { address, .. } | Attachment::Bridge { address, .. } => *address,
        Attachment::Isolated { .. } => None,
    }
}

/// The ports of a machine without a network that are reached from this machine, each at any port.
fn forwards(ports: &[u16]) -> Vec<Forward> {
    let mut ports = ports.to_vec();
    if !ports.contains(&SSH_PORT) {
        ports.push(SSH_PORT);
    }
    ports.into_iter().map(|guest_port| Forward { host_port: 0, guest_port }).collect()
}
