use jiff::Timestamp;
use lifeboat_model::{ServerId, Span};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::PreviousDrill;

/// Lets the vault begin a server's drills by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScheduleDrills {
    /// Time between two drills, 1h to 366d.
    #[schema(value_type = String, example = "7d")]
    pub every: Span,
}

/// When the vault drills a server by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrillSchedule {
    /// The server.
    #[schema(value_type = String)]
    pub server: ServerId,
    /// Its name.
    pub server_name: String,
    /// Time between two drills.
    #[schema(value_type = String, example = "7d")]
    pub every: Span,
    /// When the next one is due; past when it waits.
    #[schema(value_type = String, format = DateTime)]
    pub next: Timestamp,
    /// Why the one that is due has not begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
    /// The newest drill that has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<PreviousDrill>,
}
