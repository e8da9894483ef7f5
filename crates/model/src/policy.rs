//! Replication policies: how often points are taken and how long they are kept.

use serde::{Deserialize, Serialize};

use crate::Span;

/// How a server is protected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplicationPolicy {
    /// Time between crash-consistent points.
    pub interval: Span,
    /// Time between file-system-consistent points; none when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filesystem_interval: Option<Span>,
    /// How long the agent tries for one point before it reports that it could not.
    pub capture_timeout: Span,
    /// Bytes a second that initial copy and resync may send; no limit when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy_bytes_per_second: Option<u64>,
    /// Which points are kept, from the newest rule to the oldest.
    pub retention: Vec<RetentionRule>,
}

/// Up to an age, one point in each span of `every` is kept; all of them when `every` is absent.
/// The newest point of a server is always kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetentionRule {
    /// The age up to which the rule holds.
    pub until: Span,
    /// The distance of the points that it keeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<Span>,
}

impl Default for ReplicationPolicy {
    fn default() -> Self {
        const HOUR: u64 = 3600;
        let rule = |hours: u64, every_hours: Option<u64>| RetentionRule {
            until: Span::seconds(hours * HOUR),
            every: every_hours.map(|hours| Span::seconds(hours * HOUR)),
        };
        Self {
            interval: Span::seconds(5),
            filesystem_interval: None,
            capture_timeout: Span::seconds(30),
            copy_bytes_per_second: None,
            retention: vec![rule(2, None), rule(24, Some(1)), rule(7 * 24, Some(2)), rule(15 * 24, Some(4))],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_policy_reads_back() {
        let text = serde_json::to_string(&ReplicationPolicy::default()).unwrap();
        assert!(text.contains(r#"{"until":"2h"},{"until":"1d","every":"1h"}"#), "{text}");
        assert_eq!(serde_json::from_str::<ReplicationPolicy>(&text).unwrap(), ReplicationPolicy::default());
    }
}
