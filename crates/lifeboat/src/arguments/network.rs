//! The words of networks at the recovery site.

use std::net::Ipv4Addr;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use lifeboat_model::Ipv4Subnet;

#[derive(Subcommand)]
pub enum NetworkCommand {
    /// Make a network known. It is built when the first machine joins it, and taken down when the last one leaves.
    Create(NetworkSettings),
    /// All networks, with the machines in them.
    List,
    /// One network.
    Show {
        /// Name, id or unique beginning of one.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        network: String,
    },
    /// Delete a network that nothing uses.
    Delete {
        /// Name, id or unique beginning of one.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        network: String,
    },
    /// Say which networks stand in for one of the protected site; without a subnet, show what was said.
    ///
    /// A server whose target has an address in the subnet joins them, unless the command or its target
    /// names another network. What is not named stays as it is.
    Map {
        /// The addresses at the protected site, such as 10.5.0.0/24.
        #[arg(value_name = "SOURCE-SUBNET")]
        subnet: Option<Ipv4Subnet>,
        /// The network that a failover joins.
        #[arg(long, value_name = "NETWORK", requires = "subnet")]
        production: Option<String>,
        /// The network that a drill joins.
        #[arg(long, value_name = "NETWORK", requires = "subnet")]
        test: Option<String>,
        /// Nothing stands in for it any more.
        #[arg(long, requires = "subnet", conflicts_with_all = ["production", "test"])]
        off: bool,
    },
}

#[derive(Args)]
pub struct NetworkSettings {
    /// Its name: letters, digits, `.`, `_` and `-`.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// Its machines reach each other, and no packet leaves. This is so when nothing else is said.
    #[arg(long, conflicts_with_all = ["nat", "bridge"])]
    pub isolated: bool,
    /// Its machines also reach the world, in the name of the vault's machine; nothing reaches in.
    #[arg(long, conflicts_with = "bridge")]
    pub nat: bool,
    /// It is this bridge of the vault's machine, with whatever is behind it.
    #[arg(long, value_name = "BRIDGE", conflicts_with_all = ["subnet", "gateway", "dhcp"])]
    pub bridge: Option<String>,
    /// Its addresses, such as 10.5.0.0/24; they may be those of the protected site. 10.9.0.0/24 when
    /// absent.
    #[arg(long)]
    pub subnet: Option<Ipv4Subnet>,
    /// The address that machines have as their gateway; the first one when absent.
    #[arg(long, value_name = "ADDRESS")]
    pub gateway: Option<Ipv4Addr>,
    /// Machines get addresses by DHCP.
    #[arg(long)]
    pub dhcp: bool,
}
