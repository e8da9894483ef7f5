//! Whose changes a file holds.

use std::fmt;

use lifeboat_model::{DiskNumber, Epoch, Part, ServerId, VaultId, blocks_of_bytes};
use serde::{Deserialize, Serialize};

use crate::error::Problem;

/// The text is no identifier of 16 bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is 32 hexadecimal digits, not {text:?}")]
pub struct HexError {
    what: &'static str,
    text: String,
}

macro_rules! hex_ids {
    ($($(#[$doc:meta])* $name:ident = $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub [u8; 16]);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                $crate::hex::write(f, &self.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::identity::HexError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                $crate::hex::parse(text).map(Self).ok_or_else(|| $crate::identity::HexError::new($what, text))
            }
        }

        impl TryFrom<String> for $name {
            type Error = $crate::identity::HexError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
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
pub(crate) use hex_ids;

impl HexError {
    pub(crate) fn new(what: &'static str, text: &str) -> Self {
        Self { what, text: text.chars().take(80).collect() }
    }
}

hex_ids! {
    /// A file, drawn at random for each attempt to write one. Never used twice: see the crate's page.
    FileId = "a file's id";
}

/// Which changes a file holds: the one who asks for a file says what he expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileIdentity {
    /// The vault that the file is for.
    pub vault: VaultId,
    /// The server that the disk belongs to.
    pub server: ServerId,
    /// The disk.
    pub disk: DiskNumber,
    /// The first epoch whose changes are in the file, from 1.
    pub first_epoch: Epoch,
    /// The last one; the same where the file holds one epoch.
    pub last_epoch: Epoch,
    /// Which piece of these epochs.
    pub part: Part,
    /// Bytes of the disk at the last epoch.
    pub disk_bytes: u64,
}

impl FileIdentity {
    /// Blocks of the disk.
    #[must_use]
    pub const fn disk_blocks(&self) -> u64 {
        blocks_of_bytes(self.disk_bytes)
    }

    /// The rules that every header keeps.
    pub(crate) fn check(&self) -> Result<(), Problem> {
        if self.first_epoch.0 == 0 || self.first_epoch > self.last_epoch {
            return Err(Problem::Malformed("epochs count from 1 and the first is not after the last"));
        }
        if self.disk_bytes == 0 {
            return Err(Problem::Malformed("a disk has at least one byte"));
        }
        Ok(())
    }
}

impl fmt::Display for FileIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vault, server, disk, first_epoch, last_epoch, part, disk_bytes } = self;
        write!(f, "vault {vault}, server {server}, disk {disk} of {disk_bytes} bytes, ")?;
        if first_epoch == last_epoch {
            write!(f, "epoch {first_epoch}, part {part}")
        } else {
            write!(f, "epochs {first_epoch} to {last_epoch}, part {part}")
        }
    }
}
