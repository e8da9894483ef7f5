use jiff::Timestamp;
use lifeboat_model::ServerId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Firmware, Target};

/// What a server's agent has found out about it, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Facts {
    /// When the vault received it.
    #[schema(value_type = String, format = DateTime)]
    pub received: Timestamp,
    /// The system's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// The processor's architecture, such as `x86_64`.
    pub architecture: String,
    /// Processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Memory in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// How it boots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<Firmware>,
    /// What its root file system is and lies on, such as `ext4 on LVM on sda`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// How long its last start took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_ms: Option<u64>,
    /// Its physical network interfaces.
    pub interfaces: Vec<Interface>,
    /// What could not be found out, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
}

/// A physical network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The card's address.
    pub mac: String,
    /// Its addresses with the lengths of their prefixes.
    pub addresses: Vec<String>,
    /// Whether an IPv4 address is fixed.
    pub fixed: bool,
}

/// Whether a server would start at the recovery site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    /// The server.
    #[schema(value_type = String)]
    pub server: ServerId,
    /// Its name.
    pub server_name: String,
    /// When it was judged.
    #[schema(value_type = String, format = DateTime)]
    pub time: Timestamp,
    /// All in one word.
    pub verdict: ReadinessVerdict,
    /// What speaks against it or should be known, the gravest first.
    pub findings: Vec<Finding>,
    /// The machine that it would become.
    pub target: Target,
}

/// Whether a server would start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReadinessVerdict {
    /// Nothing speaks against it.
    Ready,
    /// It would start, and something should be known.
    ReadyWithRemarks,
    /// It would not start, or not with all that it needs.
    NotReady,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// A stable word for programs, such as `disk_driver_missing`.
    pub code: String,
    /// Whether the server would not start because of it.
    pub prevents: bool,
    /// One sentence: what was found.
    pub what: String,
    /// One sentence: why that matters.
    pub why: String,
    /// What to do about it; empty when there is nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub next_step: String,
}
