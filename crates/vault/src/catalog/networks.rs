//! Networks at the recovery site. What they mean is in [`crate::jobs`].

use std::net::Ipv4Addr;

use lifeboat_api::{NetworkKind, TargetSettings};
use lifeboat_model::{Ipv4Subnet, NetworkId, ServerId};
use sqlx::query;

use super::CatalogError;
use super::database::{Catalog, DatabaseRow};
use super::row::RowValues;

/// A network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkRow {
    /// Its id.
    pub id: NetworkId,
    /// Its name; no two networks have the same.
    pub name: String,
    /// What it is.
    pub what: NetworkWhat,
}

/// What a network is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkWhat {
    /// A bridge of the host.
    Bridge {
        /// Its name.
        bridge: String,
    },
    /// A network that the vault makes.
    Made {
        /// Its addresses.
        subnet: Ipv4Subnet,
        /// The address of the host's end.
        gateway: Ipv4Addr,
        /// Whether machines get addresses.
        dhcp: bool,
        /// Whether machines reach the world.
        outward: bool,
    },
}

/// Which networks stand in for a source's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkMappingRow {
    /// The addresses at the protected site.
    pub subnet: Ipv4Subnet,
    /// What a failover joins.
    pub production: Option<NetworkId>,
    /// What a drill joins.
    pub test: Option<NetworkId>,
}

impl NetworkRow {
    /// What it is, in one word.
    #[must_use]
    pub const fn kind(&self) -> NetworkKind {
        match self.what {
            NetworkWhat::Bridge { .. } => NetworkKind::Bridge,
            NetworkWhat::Made { outward: true, .. } => NetworkKind::Nat,
            NetworkWhat::Made { outward: false, .. } => NetworkKind::Isolated,
        }
    }
}

impl Catalog {
    /// Notes a new network; says whether its name was free.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn insert_network(&self, network: &NetworkRow) -> Result<bool, CatalogError> {
        let (bridge, subnet, gateway, dhcp) = match &network.what {
            NetworkWhat::Bridge { bridge } => (Some(bridge.clone()), None, None, false),
            NetworkWhat::Made { subnet, gateway, dhcp, .. } => {
                (None, Some(subnet.to_string()), Some(gateway.to_string()), *dhcp)
            }
        };
        let statement = query(
            "INSERT INTO networks (id, name, kind, bridge, subnet, gateway, dhcp) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (name) DO NOTHING",
        )
        .bind(network.id.to_string())
        .bind(network.name.clone())
        .bind(kind_word(network.kind()))
        .bind(bridge)
        .bind(subnet)
        .bind(gateway)
        .bind(dhcp);
        Ok(self.run_alone(statement).await? == 1)
    }

    /// Forgets a network.
    ///
    /// # Errors
    /// When a mapping names it, or the catalog fails.
    pub async fn remove_network(&self, network: NetworkId) -> Result<(), CatalogError> {
        let statement = query("DELETE FROM networks WHERE id = $1").bind(network.to_string());
        self.run_alone(statement).await.map(drop)
    }

    /// All networks, by name.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn networks(&self) -> Result<Vec<NetworkRow>, CatalogError> {
        let statement =
            query("SELECT id, name, kind, bridge, subnet, gateway, dhcp FROM networks ORDER BY name");
        self.all(statement).await?.iter().map(network_row).collect()
    }

    /// Notes which networks stand in for a source's, instead of those before; without any there is no
    /// mapping.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn put_network_mapping(&self, mapping: &NetworkMappingRow) -> Result<(), CatalogError> {
        if mapping.production.is_none() && mapping.test.is_none() {
            let statement =
                query("DELETE FROM network_mappings WHERE subnet = $1").bind(mapping.subnet.to_string());
            return self.run_alone(statement).await.map(drop);
        }
        let statement = query(
            "INSERT INTO network_mappings (subnet, production, test) VALUES ($1, $2, $3) \
             ON CONFLICT (subnet) DO UPDATE SET production = excluded.production, test = excluded.test",
        )
        .bind(mapping.subnet.to_string())
        .bind(mapping.production.map(|network| network.to_string()))
        .bind(mapping.test.map(|network| network.to_string()));
        self.run_alone(statement).await.map(drop)
    }

    /// All mappings, the narrowest subnet first.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn network_mappings(&self) -> Result<Vec<NetworkMappingRow>, CatalogError> {
        let rows = self.all(query("SELECT subnet, production, test FROM network_mappings")).await?;
        let mut mappings: Vec<_> = rows.iter().map(mapping_row).collect::<Result<_, _>>()?;
        mappings.sort_by_key(|mapping| (std::cmp::Reverse(mapping.subnet.prefix()), mapping.subnet));
        Ok(mappings)
    }

    /// How the machines of all servers are to look for which that was said.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn targets(&self) -> Result<Vec<(ServerId, TargetSettings)>, CatalogError> {
        let rows = self.all(query("SELECT server, target FROM targets ORDER BY server")).await?;
        rows.iter().map(|row| Ok((row.parsed("server")?, row.json("target")?))).collect()
    }
}

const fn kind_word(kind: NetworkKind) -> &'static str {
    match kind {
        NetworkKind::Isolated => "isolated",
        NetworkKind::Nat => "nat",
        NetworkKind::Bridge => "bridge",
    }
}

fn network_row(row: &DatabaseRow) -> Result<NetworkRow, CatalogError> {
    let kind = row.text("kind")?;
    let what = if kind == kind_word(NetworkKind::Bridge) {
        NetworkWhat::Bridge { bridge: row.text("bridge")? }
    } else {
        NetworkWhat::Made {
            subnet: row.parsed("subnet")?,
            gateway: row.parsed("gateway")?,
            dhcp: row.flag("dhcp")?,
            outward: kind == kind_word(NetworkKind::Nat),
        }
    };
    Ok(NetworkRow { id: row.parsed("id")?, name: row.text("name")?, what })
}

fn mapping_row(row: &DatabaseRow) -> Result<NetworkMappingRow, CatalogError> {
    Ok(NetworkMappingRow {
        subnet: row.parsed("subnet")?,
        production: row.optional_parsed("production")?,
        test: row.optional_parsed("test")?,
    })
}
