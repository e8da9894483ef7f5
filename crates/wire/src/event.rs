//! Events: what happened that an operator may want to know.

use jiff::Timestamp;
use lifeboat_model::{DiskNumber, ServerId};
use serde::{Deserialize, Serialize};

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth keeping, nothing to do.
    Information,
    /// Protection goes on, but something wants attention.
    Warning,
    /// Something is not protected, or a recovery point is not usable.
    Critical,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, by the clock of the role that saw it.
    pub time: Timestamp,
    /// How much it matters.
    pub severity: Severity,
    /// A stable word for programs, such as `point_not_taken`.
    pub code: String,
    /// The server that it is about; none when it is about a role of the site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerId>,
    /// The disk that it is about, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskNumber>,
    /// One sentence: what happened, to what, and why.
    pub message: String,
    /// What to do about it; empty when there is nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub next_step: String,
}
