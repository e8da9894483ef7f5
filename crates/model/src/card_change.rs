//! What the system in a copy is to change about a network card, so that it starts in its machine as the
//! original did in its own.
//!
//! The machine's firmware orders it: an OEM string (SMBIOS type 11) for each card, beside the one that
//! says which copy the machine is. The agent inside obeys.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::MacAddress;
use crate::smbios::oem_strings;

const OEM_PREFIX: &str = "lifeboat-card:";
/// More cards than any machine has.
const CARDS_MAX: usize = 64;
/// Bytes of a name, as the kernel has it.
const NAME_MAX: usize = 15;

/// What is to be changed about one network card. As text it is an OEM string of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardChange {
    /// Which card.
    pub mac: MacAddress,
    /// The name that it shall have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<InterfaceName>,
    /// Another address in the place of its fixed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<AddressChange>,
}

/// A fixed address that becomes another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressChange {
    /// The address in the system's configuration.
    pub from: Ipv4Addr,
    /// The one that it shall have. May be the same, where only what follows differs.
    pub to: Ipv4Addr,
    /// How many bits name the new network.
    pub prefix: u8,
    /// The gateway in the configuration and the new one; none where it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<(Ipv4Addr, Ipv4Addr)>,
}

/// The name of a network interface: letters, digits, `.`, `_` and `-`, at most 15 of them. The kernel takes
/// others too, but no configuration means a card by such a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(String);

/// The text orders no change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no change of a network card: {0:?}")]
pub struct CardChangeError(String);

/// The text is no name that a card can be given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a network card cannot be named {0:?}: a name has letters, digits, '.', '_' and '-', at most {NAME_MAX}"
)]
pub struct InterfaceNameError(String);

impl CardChange {
    /// Finds the changes in the SMBIOS tables of a machine (the content of
    /// `/sys/firmware/dmi/tables/DMI`), of several for one card the first. Empty when they have none.
    #[must_use]
    pub fn all_from_smbios(tables: &[u8]) -> Vec<Self> {
        let mut seen = BTreeSet::new();
        let changes = oem_strings(tables).filter_map(|text| text.parse::<Self>().ok());
        changes.filter(|change| seen.insert(change.mac)).take(CARDS_MAX).collect()
    }
}

impl InterfaceName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CardChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Fields are separated by colons.
        write!(f, "{OEM_PREFIX}mac={}", self.mac.to_string().replace(':', "-"))?;
        if let Some(name) = &self.name {
            write!(f, ":name={name}")?;
        }
        if let Some(AddressChange { from, to, prefix, gateway }) = &self.address {
            write!(f, ":address={from}:new-address={to}/{prefix}")?;
            if let Some((from, to)) = gateway {
                write!(f, ":gateway={from}:new-gateway={to}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for CardChange {
    type Err = CardChangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || CardChangeError(text.chars().take(200).collect());
        let fields = text.strip_prefix(OEM_PREFIX).ok_or_else(error)?;
        let field =
            |name: &str| fields.split(':').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        let address = |name: &str| match field(name) {
            Some(text) => text.parse::<Ipv4Addr>().map(Some).map_err(|_| error()),
            None => Ok(None),
        };
        let mac = field("mac").ok_or_else(error)?.replace('-', ":").parse().map_err(|_| error())?;
        let name = field("name").map(str::parse).transpose().map_err(|_| error())?;
        let gateway = match (address("gateway")?, address("new-gateway")?) {
            (Some(from), Some(to)) => Some((from, to)),
            (None, None) => None,
            _ => return Err(error()),
        };
        let address = match (address("address")?, field("new-address")) {
            (Some(from), Some(to)) => {
                let (to, prefix) = to.split_once('/').ok_or_else(error)?;
                let prefix = prefix.parse().ok().filter(|prefix| (1..=32).contains(prefix));
                let (to, prefix) = (to.parse().map_err(|_| error())?, prefix.ok_or_else(error)?);
                Some(AddressChange { from, to, prefix, gateway })
            }
            (None, None) => None,
            _ => return Err(error()),
        };
        Ok(Self { mac, name, address })
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for InterfaceName {
    type Err = InterfaceNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = (1..=NAME_MAX).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
            && !text.starts_with(['.', '-'])
            && !["lo", "all", "default"].contains(&text);
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(InterfaceNameError(text.chars().take(80).collect()))
        }
    }
}

impl TryFrom<String> for InterfaceName {
    type Error = InterfaceNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<InterfaceName> for String {
    fn from(name: InterfaceName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::smbios::tests::tables;

    fn change(number: u64) -> CardChange {
        CardChange {
            mac: MacAddress::local(number),
            name: Some("eno1".parse().unwrap()),
            address: Some(AddressChange {
                from: [192, 0, 2, 7].into(),
                to: [10, 5, 0, 2].into(),
                prefix: 16,
                gateway: Some(([192, 0, 2, 1].into(), [10, 5, 0, 1].into())),
            }),
        }
    }

    #[test]
    fn the_text_reads_back_as_the_change() {
        let whole = change(7);
        let text = whole.to_string();
        assert_eq!(
            text,
            "lifeboat-card:mac=52-00-00-00-00-07:name=eno1:address=192.0.2.7:new-address=10.5.0.2/16:\
             gateway=192.0.2.1:new-gateway=10.5.0.1"
        );
        assert_eq!(text.parse(), Ok(whole.clone()));
        assert_eq!(format!("{text}:later=field").parse(), Ok(whole.clone()));
        let bare = CardChange { name: None, address: None, ..whole };
        assert_eq!(bare.to_string().parse(), Ok(bare));
    }

    #[test]
    fn other_text_orders_nothing() {
        for text in [
            "",
            "lifeboat-card:",
            "lifeboat-card:name=eno1",
            "lifeboat-card:mac=52-00-00-00-00-07:name=../eno1",
            "lifeboat-card:mac=52-00-00-00-00-07:address=192.0.2.7",
            "lifeboat-card:mac=52-00-00-00-00-07:address=192.0.2.7:new-address=10.5.0.2/33",
            "lifeboat-card:mac=52-00-00-00-00-07:address=192.0.2.7:new-address=10.5.0.2/24:gateway=192.0.2.1",
            "lifeboat-copy:mac=52-00-00-00-00-07",
        ] {
            assert!(text.parse::<CardChange>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_tables_of_a_machine_order_one_change_for_each_card() {
        let (first, second) = (change(1), change(2));
        let again = CardChange { name: None, ..first.clone() };
        let texts = [first.to_string(), "no order".into(), again.to_string(), second.to_string()];
        let texts: Vec<_> = texts.iter().map(String::as_str).collect();
        assert_eq!(CardChange::all_from_smbios(&tables(&texts)), [first, second]);
        assert_eq!(CardChange::all_from_smbios(&tables(&["nothing"])), []);
    }

    #[test]
    fn a_name_is_one_that_a_configuration_can_mean() {
        for name in ["eth0", "enp0s31f6", "enx525400000001", "lan-1.2_a", "abcdefghijklmno"] {
            assert_eq!(name.parse::<InterfaceName>().unwrap().as_str(), name);
        }
        for name in ["", ".", "..", "-x", "a/b", "a b", "a:1", "a,b", "lo", "abcdefghijklmnop", "ä"] {
            assert!(name.parse::<InterfaceName>().is_err(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_harm_and_what_it_orders_has_one_meaning(
            text in "lifeboat-card:(mac=[0-9a-f-]{0,18}|(name|address|new-address|gateway|new-gateway)=[ -~]{0,20}|:){0,8}",
        ) {
            if let Ok(change) = text.parse::<CardChange>() {
                prop_assert_eq!(change.to_string().parse::<CardChange>(), Ok(change));
            }
        }

        #[test]
        fn any_change_reads_back(number: u64, from: u32, to: u32, prefix in 1..=32_u8, gateway: Option<(u32, u32)>) {
            let gateway = gateway.map(|(from, to)| (from.into(), to.into()));
            let address = Some(AddressChange { from: from.into(), to: to.into(), prefix, gateway });
            let change = CardChange { mac: MacAddress::local(number), name: None, address };
            prop_assert_eq!(change.to_string().parse::<CardChange>(), Ok(change));
        }
    }
}
