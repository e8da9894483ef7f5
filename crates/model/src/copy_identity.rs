//! How a machine at the recovery site tells the system inside it that it is a copy.
//!
//! The machine's firmware (SMBIOS) says it: type 1 names [`SMBIOS_MANUFACTURER`] and [`SMBIOS_PRODUCT`],
//! with the server's id as serial number, and an OEM string (type 11) says which copy it is. Linux shows
//! the first as `/sys/class/dmi/id/sys_vendor` and `product_name`, and all of it, to root, as
//! `/sys/firmware/dmi/tables/DMI`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::smbios::oem_strings;
use crate::{PointId, ServerId, VaultId};

/// SMBIOS type 1, manufacturer, of every machine that runs a copy.
pub const SMBIOS_MANUFACTURER: &str = "Lifeboat";
/// SMBIOS type 1, product name, of every machine that runs a copy.
pub const SMBIOS_PRODUCT: &str = "Recovery copy";

const OEM_PREFIX: &str = "lifeboat-copy:";

/// Whether the machine with this manufacturer and product name (as SMBIOS type 1 has them) is one that
/// Lifeboat started. True also when the rest cannot be read: such a system is no original.
#[must_use]
pub fn is_recovery_copy(manufacturer: &str, product: &str) -> bool {
    manufacturer.trim() == SMBIOS_MANUFACTURER && product.trim() == SMBIOS_PRODUCT
}

/// What a copy was started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// A rehearsal beside the running original.
    Drill,
    /// In place of the original.
    Failover,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drill => "drill",
            Self::Failover => "failover",
        })
    }
}

/// Which copy a machine is. As text it is the machine's OEM string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyIdentity {
    /// The vault that started it.
    pub vault: VaultId,
    /// The server that it is a copy of.
    pub server: ServerId,
    /// The recovery point that it was started from.
    pub point: PointId,
    /// What for.
    pub purpose: Purpose,
}

/// The text is no identity of a copy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this names no copy: {0:?}")]
pub struct CopyIdentityError(String);

impl CopyIdentity {
    /// Finds the identity in the SMBIOS tables of a machine (the content of
    /// `/sys/firmware/dmi/tables/DMI`). None when they have none, or end too early.
    #[must_use]
    pub fn from_smbios(tables: &[u8]) -> Option<Self> {
        oem_strings(tables).find_map(|text| text.parse().ok())
    }
}

impl fmt::Display for CopyIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vault, server, point, purpose } = self;
        write!(f, "{OEM_PREFIX}vault={vault}:server={server}:point={point}:purpose={purpose}")
    }
}

impl FromStr for CopyIdentity {
    type Err = CopyIdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || CopyIdentityError(text.chars().take(160).collect());
        let fields = text.strip_prefix(OEM_PREFIX).ok_or_else(error)?;
        let field = |name: &str| {
            fields.split(':').find_map(|field| field.strip_prefix(name)?.strip_prefix('=')).ok_or_else(error)
        };
        Ok(Self {
            vault: field("vault")?.parse().map_err(|_| error())?,
            server: field("server")?.parse().map_err(|_| error())?,
            point: field("point")?.parse().map_err(|_| error())?,
            purpose: match field("purpose")? {
                "drill" => Purpose::Drill,
                "failover" => Purpose::Failover,
                _ => return Err(error()),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smbios::tests::tables;

    fn identity() -> CopyIdentity {
        CopyIdentity {
            vault: VaultId::new(1),
            server: ServerId::new(0xbeef),
            point: PointId::new(3),
            purpose: Purpose::Drill,
        }
    }

    #[test]
    fn the_text_reads_back_as_the_identity() {
        let text = identity().to_string();
        assert_eq!(
            text,
            "lifeboat-copy:vault=0000000000000001:server=000000000000beef:point=0000000000000003:purpose=drill"
        );
        assert_eq!(text.parse(), Ok(identity()));
        assert_eq!(format!("{text}:later=field").parse(), Ok(identity()));
    }

    #[test]
    fn other_text_is_no_identity() {
        for text in ["", "lifeboat-copy:", "vault=1", "lifeboat-copy:vault=0000000000000001:purpose=drill"] {
            assert!(text.parse::<CopyIdentity>().is_err(), "{text}");
        }
        let unknown = identity().to_string().replace("drill", "theft");
        assert!(unknown.parse::<CopyIdentity>().is_err());
    }

    #[test]
    fn the_tables_of_a_machine_tell_which_copy_it_is() {
        assert_eq!(CopyIdentity::from_smbios(&tables(&[&identity().to_string()])), Some(identity()));
        assert_eq!(CopyIdentity::from_smbios(&tables(&["nothing"])), None);
    }

    #[test]
    fn tables_that_are_cut_off_anywhere_do_no_harm() {
        let whole = tables(&[&identity().to_string()]);
        for len in 0..whole.len() {
            let _ = CopyIdentity::from_smbios(&whole[..len]);
        }
        assert_eq!(CopyIdentity::from_smbios(&[11, 0, 0, 0]), None);
    }

    #[test]
    fn a_copy_is_known_by_its_manufacturer_and_product() {
        assert!(is_recovery_copy("Lifeboat\n", "Recovery copy\n"));
        assert!(!is_recovery_copy("Lifeboat", "Boat"));
        assert!(!is_recovery_copy("QEMU", "Recovery copy"));
    }
}
