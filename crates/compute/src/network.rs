//! A machine's network interfaces and what they are attached to.

use std::net::Ipv4Addr;

use lifeboat_model::{Ipv4Subnet, MacAddress, NetworkId};
use serde::{Deserialize, Serialize};

/// A network interface of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Its address.
    pub mac: MacAddress,
    /// Which device the guest sees.
    pub model: NicModel,
    /// What is at the other end of the wire.
    pub attachment: Attachment,
}

/// Which network device the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NicModel {
    /// The fastest, if the guest has the driver.
    Virtio,
    /// Intel's 82574L, known to every system.
    E1000e,
}

/// What a network interface is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Attachment {
    /// A network that this machine has for itself: DHCP answers, but no packet leaves.
    Isolated {
        /// The addresses in it; QEMU's usual 10.0.2.0/24 when there is none.
        subnet: Option<Subnet>,
        /// Ports on this machine's loopback that reach the guest.
        forwards: Vec<Forward>,
    },
    /// A network that machines share. The provider makes it for the first of them, and removes it with the
    /// last one that has power.
    Shared {
        /// Which.
        network: SharedNetwork,
        /// The guest's address in it, where that is known: fixed inside, or given to it by DHCP.
        address: Option<Ipv4Addr>,
    },
    /// A bridge on this machine. The provider makes a tap device for it, and removes it.
    Bridge {
        /// The bridge's name.
        name: String,
        /// The guest's address, where that is known.
        #[serde(default)]
        address: Option<Ipv4Addr>,
    },
}

/// A network that machines share. No packet leaves it, unless it is `outward`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedNetwork {
    /// Its id: machines with the same one are in one network.
    pub id: NetworkId,
    /// Its name for people.
    pub name: String,
    /// The addresses in it.
    pub subnet: Ipv4Subnet,
    /// The address of the host's end, which guests have as their gateway.
    pub gateway: Ipv4Addr,
    /// Whether guests get addresses.
    pub dhcp: bool,
    /// Whether guests may open connections to the world outside, in the host's name.
    pub outward: bool,
}

/// The addresses of an isolated network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// Its first address.
    pub network: Ipv4Addr,
    /// How many bits name the network, 8 to 29.
    pub prefix: u8,
    /// Where the guest finds its gateway.
    pub gateway: Ipv4Addr,
    /// The guest's address: what DHCP gives it and where forwards go. It may just as well be fixed inside.
    pub guest: Ipv4Addr,
}

/// A port on this machine's loopback that reaches a port of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// The port on 127.0.0.1; 0 takes any that is free, and the machine's status says which.
    pub host_port: u16,
    /// The guest's TCP port.
    pub guest_port: u16,
}

impl Subnet {
    fn holds(self, address: Ipv4Addr) -> bool {
        let mask = self.mask();
        let (address, network) = (address.to_bits(), self.network.to_bits());
        address & mask == network && address != network && address != network | !mask
    }

    fn mask(self) -> u32 {
        u32::MAX.checked_shl(u32::from(32 - self.prefix.min(32))).unwrap_or(0)
    }

    fn check(self) -> Result<(), String> {
        let Self { network, prefix, gateway, guest } = self;
        if !(8..=29).contains(&prefix) || network.to_bits() & !self.mask() != 0 {
            return Err(format!("{network}/{prefix} is no network with a prefix between 8 and 29"));
        }
        if !self.holds(gateway) || !self.holds(guest) || gateway == guest {
            return Err(format!(
                "the gateway {gateway} and the guest {guest} are not two addresses in {network}/{prefix}"
            ));
        }
        Ok(())
    }

    /// An address in it that is neither the gateway's nor the guest's, for the name server that QEMU
    /// wants to place somewhere.
    pub(crate) fn spare(self) -> Ipv4Addr {
        (1..=3)
            .map(|offset| Ipv4Addr::from_bits(self.network.to_bits() + offset))
            .find(|address| *address != self.gateway && *address != self.guest)
            .unwrap_or(self.gateway)
    }
}

impl SharedNetwork {
    fn check(&self, address: Option<Ipv4Addr>) -> Result<(), String> {
        let Self { name, subnet, gateway, .. } = self;
        if !subnet.has_host(*gateway) {
            return Err(format!("the gateway {gateway} of the network {name} is no address in {subnet}"));
        }
        match address {
            Some(address) if !subnet.has_host(address) => {
                Err(format!("its address {address} is not in {subnet}, which the network {name} has"))
            }
            Some(address) if address == *gateway => {
                Err(format!("its address {address} is that of the gateway of the network {name}"))
            }
            _ => Ok(()),
        }
    }
}

impl Nic {
    pub(crate) fn check(&self) -> Result<(), String> {
        match &self.attachment {
            Attachment::Isolated { subnet, forwards } => {
                subnet.map_or(Ok(()), Subnet::check)?;
                match forwards.iter().find(|forward| forward.guest_port == 0) {
                    Some(_) => Err("a forward leads to port 0 of the guest, which is none".into()),
                    None => Ok(()),
                }
            }
            Attachment::Shared { network, address } => network.check(*address),
            Attachment::Bridge { name, .. } => {
                let fits = (1..=15).contains(&name.len())
                    && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
                    && !name.starts_with(['-', '.']);
                if fits { Ok(()) } else { Err(format!("{name:?} is no name of a bridge")) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(network: &str, prefix: u8, gateway: &str, guest: &str) -> Subnet {
        Subnet {
            network: network.parse().unwrap(),
            prefix,
            gateway: gateway.parse().unwrap(),
            guest: guest.parse().unwrap(),
        }
    }

    #[test]
    fn a_subnet_holds_its_gateway_and_its_guest() {
        assert_eq!(subnet("192.168.7.0", 24, "192.168.7.1", "192.168.7.30").check(), Ok(()));
        assert_eq!(subnet("10.1.0.8", 29, "10.1.0.9", "10.1.0.10").spare(), Ipv4Addr::new(10, 1, 0, 11));
        for wrong in [
            subnet("192.168.7.1", 24, "192.168.7.1", "192.168.7.30"),
            subnet("192.168.7.0", 24, "192.168.7.1", "192.168.8.30"),
            subnet("192.168.7.0", 24, "192.168.7.255", "192.168.7.30"),
            subnet("192.168.7.0", 24, "192.168.7.30", "192.168.7.30"),
            subnet("192.168.7.0", 31, "192.168.7.0", "192.168.7.1"),
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
    }
}
