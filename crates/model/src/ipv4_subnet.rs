//! Ranges of IPv4 addresses that one network has.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The addresses of one network, written as `10.5.0.0/24`. 8 to 29 bits name the network.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Subnet {
    network: Ipv4Addr,
    prefix: u8,
}

/// The text is no subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a subnet is its first address and a prefix of 8 to 29 bits such as 10.5.0.0/24, not {0:?}")]
pub struct Ipv4SubnetError(String);

impl Ipv4Subnet {
    /// Its first address, which no host has.
    #[must_use]
    pub const fn network(self) -> Ipv4Addr {
        self.network
    }

    /// How many bits name the network.
    #[must_use]
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// The mask of those bits.
    #[must_use]
    pub const fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX << (32 - self.prefix))
    }

    /// The first address that a host can have.
    #[must_use]
    pub const fn first_host(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() + 1)
    }

    /// The last address that a host can have.
    #[must_use]
    pub const fn last_host(self) -> Ipv4Addr {
        Ipv4Addr::from_bits((self.network.to_bits() | !self.mask().to_bits()) - 1)
    }

    /// Whether a host in it can have this address.
    #[must_use]
    pub fn has_host(self, address: Ipv4Addr) -> bool {
        (self.first_host()..=self.last_host()).contains(&address)
    }

    /// Whether the two have addresses in common.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        let (wider, narrower) = if self.prefix <= other.prefix { (self, other) } else { (other, self) };
        narrower.network.to_bits() & wider.mask().to_bits() == wider.network.to_bits()
    }
}

impl FromStr for Ipv4Subnet {
    type Err = Ipv4SubnetError;

    fn from_str(text: &str) -> Result<Self, Ipv4SubnetError> {
        let error = || Ipv4SubnetError(text.chars().take(80).collect());
        let (network, prefix) = text.split_once('/').ok_or_else(error)?;
        let network: Ipv4Addr = network.parse().map_err(|_| error())?;
        let is_digits = prefix.bytes().all(|digit| digit.is_ascii_digit());
        let prefix = prefix.parse().ok().filter(|prefix| is_digits && (8..=29).contains(prefix));
        let subnet = Self { network, prefix: prefix.ok_or_else(error)? };
        if network.to_bits() & !subnet.mask().to_bits() != 0 {
            return Err(error());
        }
        Ok(subnet)
    }
}

impl fmt::Display for Ipv4Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl fmt::Debug for Ipv4Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl TryFrom<String> for Ipv4Subnet {
    type Error = Ipv4SubnetError;

    fn try_from(text: String) -> Result<Self, Ipv4SubnetError> {
        text.parse()
    }
}

impl From<Ipv4Subnet> for String {
    fn from(subnet: Ipv4Subnet) -> Self {
        subnet.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Ipv4Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn a_subnet_reads_back_and_knows_its_hosts() {
        let small = subnet("10.1.0.8/29");
        assert_eq!(small.to_string(), "10.1.0.8/29");
        assert_eq!(small.mask(), Ipv4Addr::new(255, 255, 255, 248));
        assert_eq!((small.first_host(), small.last_host()), ([10, 1, 0, 9].into(), [10, 1, 0, 14].into()));
        for (last, is_host) in [(8, false), (9, true), (14, true), (15, false), (16, false)] {
            assert_eq!(small.has_host([10, 1, 0, last].into()), is_host, "{last}");
        }
        assert_eq!(subnet("10.0.0.0/8").last_host(), Ipv4Addr::new(10, 255, 255, 254));
    }

    #[test]
    fn subnets_overlap_when_one_is_in_the_other() {
        assert!(subnet("10.0.0.0/8").overlaps(subnet("10.5.0.0/24")));
        assert!(subnet("10.5.0.0/24").overlaps(subnet("10.0.0.0/8")));
        assert!(!subnet("10.5.0.0/24").overlaps(subnet("10.5.1.0/24")));
    }

    #[test]
    fn what_is_no_subnet_is_refused() {
        for text in [
            "",
            "10.5.0.0",
            "10.5.0.1/24",
            "10.5.0.0/30",
            "10.0.0.0/7",
            "10.5.0.0/+24",
            "10.5.0/24",
            "10.5.0.0/",
        ] {
            assert!(text.parse::<Ipv4Subnet>().is_err(), "{text:?}");
        }
    }
}
