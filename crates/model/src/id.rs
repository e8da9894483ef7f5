//! Identifiers, each a type of its own.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The text is no identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is 16 hexadecimal digits, not {text:?}")]
pub struct IdError {
    what: &'static str,
    text: String,
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(u64);

        impl $name {
            /// The identifier with this number; a new one takes a random number from its caller.
            #[must_use]
            pub const fn new(number: u64) -> Self {
                Self(number)
            }

            /// The number, for formats that store it in eight bytes.
            #[must_use]
            pub const fn number(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let error = || IdError { what: $what, text: text.chars().take(80).collect() };
                if text.len() != 16 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                    return Err(error());
                }
                u64::from_str_radix(text, 16).map(Self).map_err(|_| error())
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }
    )*};
}

ids! {
    /// A vault, drawn when it is created.
    VaultId = "a vault's id";
    /// A protected server, drawn when it is enrolled and named in its certificate.
    ServerId = "a server's id";
    /// A recovery point of one server, drawn by the agent that takes it.
    PointId = "a recovery point's id";
    /// A volume, drawn by the vault that opens it.
    VolumeId = "a volume's id";
    /// A virtual machine at the recovery site, drawn by the vault that starts it.
    MachineId = "a machine's id";
    /// A job of a vault, drawn when it is asked for.
    JobId = "a job's id";
    /// A network at the recovery site, drawn when it is created.
    NetworkId = "a network's id";
}

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident($inner:ty);)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    )*};
}

numbers! {
    /// A disk of a server, counted from 0 in the order in which disks were protected.
    DiskNumber(u16);
    /// The changes of one disk between two recovery points, counted from 1.
    Epoch(u64);
    /// A piece of an epoch that is acknowledged on its own, counted from 0.
    Part(u32);
}

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_id_turn_into_each_other() {
        let id = ServerId::new(0xbeef);
        assert_eq!(id.to_string(), "000000000000beef");
        assert_eq!("000000000000beef".parse(), Ok(id));
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"000000000000beef\"");
    }

    #[test]
    fn other_spellings_are_refused() {
        for text in ["", "beef", "000000000000BEEF", "+00000000000beef", "000000000000beefs"] {
            let error = text.parse::<PointId>().unwrap_err();
            assert!(error.to_string().starts_with("a recovery point's id is 16"), "{error}");
        }
    }
}
