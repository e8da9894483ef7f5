use jiff::Timestamp;
use lifeboat_model::{DiskNumber, PointId, ReplicationPolicy, RetentionRule, ServerId, Span};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Facts, Point, PreviousDrill};

/// Where a server is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Protection {
    /// Known, nothing received yet.
    Discovered,
    /// Its first full copy is being made.
    InitialCopy,
    /// It has recovery points and newer ones follow.
    Protected,
    /// Source and copy are being compared; the newest point stays usable.
    Resync,
    /// It has recovery points, but newer ones do not follow.
    Stalled,
    /// Nothing was heard of its agent for a minute or longer.
    Disconnected,
    /// It runs at the recovery site, and its source sends nothing any more.
    FailedOver,
}

/// How the server is being captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Capture {
    /// `starting`, `initial-copy`, `resync`, `optimistic`, `quiesced` or `stalled`.
    pub mode: String,
    /// Why it is captured so, when that is not the usual way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Progress of a full copy or a resync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CopyProgress {
    /// Bytes of the disk that are done.
    pub done_bytes: u64,
    /// Bytes of the disk.
    pub total_bytes: u64,
    /// Bytes that had to travel.
    pub sent_bytes: u64,
    /// Bytes a second now, of `done_bytes`.
    pub bytes_per_second: u64,
    /// Seconds that are left at this speed, when it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_seconds: Option<u64>,
}

/// A protected disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Disk {
    /// Counted from 0.
    #[schema(value_type = u16)]
    pub number: DiskNumber,
    /// The path on the server.
    pub path: String,
    /// Model and serial number, where the hardware has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware_id: Option<String>,
    /// Size in bytes.
    pub bytes: u64,
    /// Bytes written on the source that the process server does not have yet.
    pub waiting_bytes: u64,
    /// While there is a full copy or a resync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<CopyProgress>,
    /// Why this disk is not being replicated, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// How old the newest point is, and what that time was spent on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rpo {
    /// Age of the newest committed point now, in milliseconds: what a disaster would lose.
    pub age_ms: u64,
    /// Since the newest captured point: the agent has not captured a newer one yet.
    pub capture_ms: u64,
    /// Of a captured point that is not committed: until it was sealed on the process server.
    pub queue_ms: u64,
    /// Of it: until its files were stored in the vault.
    pub transfer_ms: u64,
    /// Of it: until it was committed.
    pub commit_ms: u64,
    /// What gates the RPO now, in a few words.
    pub gated_by: String,
}

/// A protected server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Server {
    /// The server's id.
    #[schema(value_type = String)]
    pub id: ServerId,
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub state: Protection,
    /// One sentence more about the state, when there is something to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How it is being captured.
    pub capture: Capture,
    /// None before the first point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo: Option<Rpo>,
    /// The newest committed point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_point: Option<Point>,
    /// How many points there are.
    pub points: u64,
    /// Bytes that they take in the store.
    pub stored_bytes: u64,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Bytes that wait on the process server.
    pub spool_bytes: u64,
    /// The process server that it replicates through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process_server: Option<String>,
    /// When its agent was last heard of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub heard: Option<Timestamp>,
    /// The agent's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// The running kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Its replication policy.
    pub policy: Policy,
    /// Bytes of memory that the agent holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_memory_bytes: Option<u64>,
    /// Processor time that the agent has used, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_cpu_ms: Option<u64>,
    /// The result of the last comparison of the live disks with a point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub compared_point: Option<PointId>,
    /// The newest drill that has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_drill: Option<PreviousDrill>,
    /// What its agent has found out about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<Facts>,
}

/// How a server is protected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Time between crash-consistent points.
    #[schema(value_type = String, example = "5s")]
    pub interval: Span,
    /// Time between file-system-consistent points; none when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "1h")]
    pub filesystem_interval: Option<Span>,
    /// How long the agent tries for one point.
    #[schema(value_type = String, example = "30s")]
    pub capture_timeout: Span,
    /// Bytes a second that initial copy and resync may send; no limit when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_bytes_per_second: Option<u64>,
    /// Which points are kept, from the newest rule to the oldest.
    pub retention: Vec<PolicyRule>,
}

/// Up to an age, one point in each span of `every` is kept; all of them when it is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyRule {
    /// The age up to which the rule holds.
    #[schema(value_type = String, example = "2h")]
    pub until: Span,
    /// The distance of the points that it keeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "1h")]
    pub every: Option<Span>,
}

impl From<ReplicationPolicy> for Policy {
    fn from(policy: ReplicationPolicy) -> Self {
        let rule = |rule: &RetentionRule| PolicyRule { until: rule.until, every: rule.every };
        Self {
            interval: policy.interval,
            filesystem_interval: policy.filesystem_interval,
            capture_timeout: policy.capture_timeout,
            copy_bytes_per_second: policy.copy_bytes_per_second,
            retention: policy.retention.iter().map(rule).collect(),
        }
    }
}

impl From<Policy> for ReplicationPolicy {
    fn from(policy: Policy) -> Self {
        let rule = |rule: &PolicyRule| RetentionRule { until: rule.until, every: rule.every };
        Self {
            interval: policy.interval,
            filesystem_interval: policy.filesystem_interval,
            capture_timeout: policy.capture_timeout,
            copy_bytes_per_second: policy.copy_bytes_per_second,
            retention: policy.retention.iter().map(rule).collect(),
        }
    }
}
