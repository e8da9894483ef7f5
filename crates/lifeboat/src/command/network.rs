//! `lifeboat network …`.

use lifeboat_api::{CreateNetwork, MachinePurpose, Network, NetworkKind, NetworkMapping, NetworkMember};
use lifeboat_client::Vault;

use crate::arguments::{NetworkCommand, NetworkSettings, Output, SiteArguments};
use crate::failure::{Answer, Failure};
use crate::site;
use crate::table::{print_json, print_line, print_table};

pub async fn run(arguments: &SiteArguments, command: NetworkCommand) -> Result<Answer, Failure> {
    let vault = site::connect(arguments)?;
    let json = arguments.output == Output::Json;
    match command {
        NetworkCommand::Create(settings) => {
            let network = vault.create_network(&wanted(settings)).await?;
            if json { print_json(&network)? } else { print_network(&network) }
        }
        NetworkCommand::List => {
            let networks = vault.networks().await?;
            if json { print_json(&networks)? } else { print_networks(&networks) }
        }
        NetworkCommand::Show { network } => {
            let network = vault.network(&network).await?;
            if json { print_json(&network)? } else { print_network(&network) }
        }
        NetworkCommand::Delete { network } => {
            vault.delete_network(&network).await?;
            if json {
                print_json(&serde_json::json!({ "deleted": network }))?;
            } else {
                print_line(&format!("The network {network} is gone."));
            }
        }
        NetworkCommand::Map { subnet, production, test, off } => {
            let mut mappings = vault.network_mappings().await?;
            if let Some(subnet) = subnet
                && (off || production.is_some() || test.is_some())
            {
                let before = mappings.into_iter().find(|mapping| mapping.subnet == subnet && !off);
                let (before_production, before_test) =
                    before.map_or((None, None), |before| (before.production, before.test));
                let (production, test) = (production.or(before_production), test.or(before_test));
                mappings = map(&vault, NetworkMapping { subnet, production, test }).await?;
            } else if let Some(subnet) = subnet {
                mappings.retain(|mapping| mapping.subnet == subnet);
            }
            if json { print_json(&mappings)? } else { print_mappings(&mappings) }
        }
    }
    Ok(Answer::Done)
}

async fn map(vault: &Vault, mapping: NetworkMapping) -> Result<Vec<NetworkMapping>, Failure> {
    Ok(vault.map_network(&mapping).await?)
}

fn wanted(settings: NetworkSettings) -> CreateNetwork {
    let NetworkSettings { name, isolated: _, nat, bridge, subnet, gateway, dhcp } = settings;
    let kind = match (nat, &bridge) {
        (_, Some(_)) => NetworkKind::Bridge,
        (true, None) => NetworkKind::Nat,
        (false, None) => NetworkKind::Isolated,
    };
    CreateNetwork { name, kind, bridge, subnet, gateway, dhcp }
}

fn kind_words(network: &Network) -> String {
    match (network.kind, &network.bridge) {
        (NetworkKind::Bridge, Some(bridge)) => format!("bridge {bridge}"),
        (NetworkKind::Bridge, None) => "bridge".to_owned(),
        (NetworkKind::Nat, _) => "NAT".to_owned(),
        (NetworkKind::Isolated, _) => "isolated".to_owned(),
    }
}

fn addresses(network: &Network) -> String {
    let Some(subnet) = network.subnet else { return String::new() };
    format!("{subnet}{}", if network.dhcp { ", DHCP" } else { "" })
}

fn member(member: &NetworkMember) -> String {
    let purpose = match member.purpose {
        MachinePurpose::Drill => "drill",
        MachinePurpose::Failover => "failover",
    };
    match member.address {
        Some(address) => format!("{} ({purpose}, {address})", member.server_name),
        None => format!("{} ({purpose})", member.server_name),
    }
}

fn members(network: &Network) -> String {
    network.machines.iter().map(member).collect::<Vec<_>>().join(", ")
}

fn print_networks(networks: &[Network]) {
    if networks.is_empty() {
        print_line(
            "There is no network: every machine gets one of its own. See `lifeboat network create --help`.",
        );
        return;
    }
    let rows: Vec<_> = networks
        .iter()
        .map(|network| [network.name.clone(), kind_words(network), addresses(network), members(network)])
        .collect();
    print_table(["NETWORK", "KIND", "ADDRESSES", "MACHINES"], &rows);
}

fn print_network(network: &Network) {
    print_line(&format!("{} ({})", network.name, network.id));
    print_line(&format!("Kind       {}", kind_words(network)));
    if let (Some(subnet), Some(gateway)) = (network.subnet, network.gateway) {
        let dhcp = if network.dhcp { "given by DHCP" } else { "fixed in the machines" };
        print_line(&format!("Addresses  {subnet}, {dhcp}; the gateway is {gateway}"));
    }
    for machine in &network.machines {
        print_line(&format!("Machine    {}", member(machine)));
    }
    if let Some(entrance) = &network.entrance {
        print_line(&format!("Enter by   `{entrance} COMMAND` on the vault's machine"));
    }
}

fn print_mappings(mappings: &[NetworkMapping]) {
    if mappings.is_empty() {
        print_line("No network stands in for one of the protected site.");
        return;
    }
    let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "a network of its own".to_owned());
    let rows: Vec<_> = mappings
        .iter()
        .map(|mapping| [mapping.subnet.to_string(), name(&mapping.production), name(&mapping.test)])
        .collect();
    print_table(["SOURCE SUBNET", "AT A FAILOVER", "AT A DRILL"], &rows);
}
