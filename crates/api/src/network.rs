use std::net::Ipv4Addr;

use lifeboat_model::{Ipv4Subnet, NetworkId, ServerId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::MachinePurpose;

/// Makes a network at the recovery site. It takes nothing until a machine is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateNetwork {
    /// Its name: letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// What it is.
    pub kind: NetworkKind,
    /// The host's bridge; of kind `bridge`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// Its addresses, `10.9.0.0/24` when absent; not of kind `bridge`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "10.5.0.0/24")]
    pub subnet: Option<Ipv4Subnet>,
    /// The address of the host's end, which machines have as their gateway; the first one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "10.5.0.1")]
    pub gateway: Option<Ipv4Addr>,
    /// Whether machines get addresses in it; not of kind `bridge`.
    #[serde(default)]
    pub dhcp: bool,
}

/// What a network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkKind {
    /// Its machines reach each other, and no packet leaves.
    Isolated,
    /// Its machines reach each other and, in the host's name, the world; nothing reaches in.
    Nat,
    /// A bridge of the host, with whatever is behind it.
    Bridge,
}

/// A network at the recovery site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Network {
    /// Its id.
    #[schema(value_type = String)]
    pub id: NetworkId,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: NetworkKind,
    /// The host's bridge; of kind `bridge`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// Its addresses; not of kind `bridge`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub subnet: Option<Ipv4Subnet>,
    /// The address of the host's end; not of kind `bridge`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub gateway: Option<Ipv4Addr>,
    /// Whether machines get addresses in it.
    pub dhcp: bool,
    /// The machines that are in it.
    pub machines: Vec<NetworkMember>,
    /// What stands before a command on the vault's machine that is to run inside the network, such as
    /// `nsenter --target 4711 --net`, while a machine is in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrance: Option<String>,
}

/// A machine in a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkMember {
    /// The server that it is a copy of.
    #[schema(value_type = String)]
    pub server: ServerId,
    /// That server's name.
    pub server_name: String,
    /// What the machine is for.
    pub purpose: MachinePurpose,
    /// Its address, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
}

/// Which networks stand in for one of the protected site: a server with an address in the subnet joins
/// them, where neither the command nor its target says otherwise. Without either there is no mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkMapping {
    /// The addresses at the protected site.
    #[schema(value_type = String, example = "10.5.0.0/24")]
    pub subnet: Ipv4Subnet,
    /// The network that a failover joins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub production: Option<String>,
    /// The network that a drill joins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<String>,
}
