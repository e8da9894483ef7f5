//! Networks at the recovery site, as operators name, list and map them. A network is a row in the
//! catalog; the machines' provider makes it when the first machine joins it.

use std::net::Ipv4Addr;

use lifeboat_api as api;
use lifeboat_compute::{Attachment, MachineSpec};
use lifeboat_model::{Ipv4Subnet, NetworkId};

use super::{Conflict, JobError, Jobs};
use crate::catalog::{NetworkMappingRow, NetworkRow, NetworkWhat, RecoveryRow};
use crate::error::{LookupError, VaultError};
use crate::vault::unknown;

/// Bytes of a name.
const NAME_MAX: usize = 64;
/// Bytes of a bridge's name, as the kernel has it.
const BRIDGE_MAX: usize = 15;
/// The addresses of a network for which none were said: 10.9.0.0/24.
const SUBNET: &str = "10.9.0.0/24";
/// In the place of a network's name: a network of the machine's own.
pub(super) const OWN: &str = "own";
/// What commands take for "no network is set".
const NONE: &str = "none";

impl Jobs {
    /// Makes a network known.
    ///
    /// # Errors
    /// When it cannot be meant, its name is taken, or the catalog fails.
    pub async fn create_network(&self, create: &api::CreateNetwork) -> Result<api::Network, JobError> {
        let what = checked(create)?;
        let id = crate::random::number(self.vault.randomness()).map_err(VaultError::from)?;
        let network = NetworkRow { id: NetworkId::new(id), name: create.name.clone(), what };
        if !self.vault.catalog().insert_network(&network).await? {
            return Err(Conflict::NetworkNameTaken { name: network.name }.into());
        }
        self.network_view(network, &[]).await
    }

    /// All networks, by name, with the machines in them.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn networks(&self) -> Result<Vec<api::Network>, JobError> {
        let recoveries = self.vault.catalog().recoveries().await?;
        let mut networks = Vec::new();
        for row in self.vault.catalog().networks().await? {
            networks.push(self.network_view(row, &recoveries).await?);
        }
        Ok(networks)
    }

    /// The network that an operator means: by its name, its id or a unique beginning of either.
    ///
    /// # Errors
    /// When there is none or more than one, or the catalog fails.
    pub async fn network(&self, text: &str) -> Result<api::Network, JobError> {
        let row = self.find_network(text).await?;
        let recoveries = self.vault.catalog().recoveries().await?;
        self.network_view(row, &recoveries).await
    }

    /// Forgets a network.
    ///
    /// # Errors
    /// When a machine is in it, a target or a mapping names it, there is none, or the catalog fails.
    pub async fn delete_network(&self, text: &str) -> Result<(), JobError> {
        let _guard = self.beginning.lock().await;
        let network = self.find_network(text).await?;
        let catalog = self.vault.catalog();
        let mut users = Vec::new();
        for recovery in catalog.recoveries().await? {
            if joins(&recovery.spec, &network) {
                users.push(format!("the machine of {}", self.server_name(recovery.server).await?));
            }
        }
        for (server, target) in catalog.targets().await? {
            if [&target.network, &target.test_network].into_iter().flatten().any(|name| *name == network.name)
            {
                users.push(format!("the target of {}", self.server_name(server).await?));
            }
        }
        for mapping in catalog.network_mappings().await? {
            if [mapping.production, mapping.test].contains(&Some(network.id)) {
                users.push(format!("the mapping of {}", mapping.subnet));
            }
        }
        if !users.is_empty() {
            let users = users.join(", ");
            return Err(Conflict::NetworkInUse { name: network.name, users }.into());
        }
        Ok(catalog.remove_network(network.id).await?)
    }

    /// Which networks stand in for those of the protected site, the narrowest subnet first.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn network_mappings(&self) -> Result<Vec<api::NetworkMapping>, JobError> {
        let networks = self.vault.catalog().networks().await?;
        let name = |id: Option<NetworkId>| {
            Some(networks.iter().find(|network| Some(network.id) == id)?.name.clone())
        };
        let rows = self.vault.catalog().network_mappings().await?;
        Ok(rows
            .into_iter()
            .map(|row| api::NetworkMapping {
                subnet: row.subnet,
                production: name(row.production),
                test: name(row.test),
            })
            .collect())
    }

    /// Sets which networks stand in for one of the protected site.
    ///
    /// # Errors
    /// When there is no such network, or the catalog fails.
    pub async fn map_network(&self, mapping: &api::NetworkMapping) -> Result<(), JobError> {
        let _guard = self.beginning.lock().await;
        let mut row = NetworkMappingRow { subnet: mapping.subnet, production: None, test: None };
        if let Some(name) = &mapping.production {
            row.production = Some(self.find_network(name).await?.id);
        }
        if let Some(name) = &mapping.test {
            row.test = Some(self.find_network(name).await?.id);
        }
        Ok(self.vault.catalog().put_network_mapping(&row).await?)
    }

    pub(super) async fn find_network(&self, text: &str) -> Result<NetworkRow, VaultError> {
        let networks = self.vault.catalog().networks().await?;
        if let Some(network) = networks.iter().find(|row| row.name == text || row.id.to_string() == text) {
            return Ok(network.clone());
        }
        let is_beginning = |row: &&NetworkRow| {
            !text.is_empty() && (row.id.to_string().starts_with(text) || row.name.starts_with(text))
        };
        let matching: Vec<&NetworkRow> = networks.iter().filter(is_beginning).collect();
        match matching.as_slice() {
            [network] => Ok((*network).clone()),
            [] => Err(unknown("network", text, networks.iter().map(|row| row.name.clone()).collect())),
            several => {
                let matching = several.iter().map(|row| row.name.clone()).collect();
                Err(LookupError::Ambiguous { what: "network", text: text.to_owned(), matching }.into())
            }
        }
    }

    async fn network_view(
        &self,
        row: NetworkRow,
        recoveries: &[RecoveryRow],
    ) -> Result<api::Network, JobError> {
        let mut machines = Vec::new();
        for recovery in recoveries.iter().filter(|recovery| joins(&recovery.spec, &row)) {
            machines.push(api::NetworkMember {
                server: recovery.server,
                server_name: self.server_name(recovery.server).await?,
                purpose: recovery.purpose,
                address: self.provider.address(recovery.machine).await.unwrap_or_default(),
            });
        }
        let (bridge, subnet, gateway, dhcp) = match &row.what {
            NetworkWhat::Bridge { bridge } => (Some(bridge.clone()), None, None, false),
            NetworkWhat::Made { subnet, gateway, dhcp, .. } => (None, Some(*subnet), Some(*gateway), *dhcp),
        };
        Ok(api::Network {
            id: row.id,
            kind: row.kind(),
            bridge,
            subnet,
            gateway,
            dhcp,
            machines,
            entrance: self.provider.entrance(row.id).await?,
            name: row.name,
        })
    }
}

/// Whether a machine is in a network.
pub(super) fn joins(spec: &MachineSpec, network: &NetworkRow) -> bool {
    spec.nics.iter().any(|nic| match (&nic.attachment, &network.what) {
        (Attachment::Shared { network: joined, .. }, _) => joined.id == network.id,
        (Attachment::Bridge { name, .. }, NetworkWhat::Bridge { bridge }) => name == bridge,
        _ => false,
    })
}

fn checked(create: &api::CreateNetwork) -> Result<NetworkWhat, VaultError> {
    let refused = |why: String| Err(VaultError::Invalid(why));
    let name = &create.name;
    let is_plain = |text: &str, bytes_max: usize| {
        (1..=bytes_max).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
            && !text.starts_with(['-', '.'])
    };
    if !is_plain(name, NAME_MAX) || [OWN, NONE].contains(&name.as_str()) {
        return refused(format!(
            "a network's name has letters, digits, '.', '_' and '-' and at most {NAME_MAX} of them, and is \
             neither {OWN} nor {NONE}; {name:?} is none"
        ));
    }
    if create.kind == api::NetworkKind::Bridge {
        if create.subnet.is_some() || create.gateway.is_some() || create.dhcp {
            return refused("a bridge of the host has the addresses that are behind it: leave out subnet, gateway and DHCP, or make an isolated network or one with NAT".to_owned());
        }
        return match &create.bridge {
            Some(bridge) if is_plain(bridge, BRIDGE_MAX) => {
                Ok(NetworkWhat::Bridge { bridge: bridge.clone() })
            }
            Some(bridge) => refused(format!("{bridge:?} is no name of a bridge")),
            None => refused("say which bridge of the host the network is".to_owned()),
        };
    }
    if create.bridge.is_some() {
        return refused("only a network of kind bridge is a bridge of the host".to_owned());
    }
    let subnet = match create.subnet {
        Some(subnet) => subnet,
        None => SUBNET.parse::<Ipv4Subnet>().map_err(|error| VaultError::Invalid(error.to_string()))?,
    };
    let gateway: Ipv4Addr = create.gateway.unwrap_or(subnet.first_host());
    if !subnet.has_host(gateway) {
        return refused(format!("the gateway {gateway} is no address of a host in {subnet}"));
    }
    let outward = create.kind == api::NetworkKind::Nat;
    Ok(NetworkWhat::Made { subnet, gateway, dhcp: create.dhcp, outward })
}
