use jiff::Timestamp;
use lifeboat_model::{DiskNumber, PointId, ServerId, VaultId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Server;

/// The state of a site at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The vault.
    #[schema(value_type = String)]
    pub vault: VaultId,
    /// The vault's version.
    pub version: String,
    /// The vault's clock.
    #[schema(value_type = String, format = DateTime)]
    pub time: Timestamp,
    /// Where recovery points are stored.
    pub store: String,
    /// Free bytes there, when it can be known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_free_bytes: Option<u64>,
    /// Bytes that all recovery points take.
    pub stored_bytes: u64,
    /// All protected servers.
    pub servers: Vec<Server>,
    /// All process servers.
    pub process_servers: Vec<ProcessServer>,
    /// Volumes that are open.
    pub open_volumes: u64,
    /// The newest warnings and critical events, newest first.
    pub attention: Vec<Event>,
}

/// A process server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessServer {
    /// Its name, from its certificate.
    pub name: String,
    /// Its version.
    pub version: String,
    /// When it was last heard of.
    #[schema(value_type = String, format = DateTime)]
    pub heard: Timestamp,
    /// `good`, `warning`, `critical`, `throttling`, `full` or `read-only`.
    pub spool_state: String,
    /// Bytes of the file system that holds its spool.
    pub spool_total_bytes: u64,
    /// Free bytes of it.
    pub spool_free_bytes: u64,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Counted from 1 in the order in which the vault learned of them.
    pub number: u64,
    /// When it happened.
    #[schema(value_type = String, format = DateTime)]
    pub time: Timestamp,
    /// `information`, `warning` or `critical`.
    pub severity: String,
    /// A stable word for programs.
    pub code: String,
    /// The server that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub server: Option<ServerId>,
    /// The disk that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u16>)]
    pub disk: Option<DiskNumber>,
    /// What happened, to what, and why.
    pub message: String,
    /// What to do about it; empty when there is nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub next_step: String,
    /// When it was seen to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub acknowledged: Option<Timestamp>,
    /// Which operator has seen to it, or what shows that it is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged_by: Option<String>,
}

/// Events that were seen to: those that are named, or all up to one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AcknowledgeEvents {
    /// Numbers of events. What happened before about the same things is seen to as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub numbers: Vec<u64>,
    /// All up to this number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_to: Option<u64>,
}

/// How many events were seen to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AcknowledgedEvents {
    /// Those that had not been before.
    pub acknowledged: u64,
}

/// Events, newest first.
pub type EventList = Vec<Event>;

/// Something that an operator asked for and that takes a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Request {
    /// Its id.
    pub id: String,
    /// The server.
    #[schema(value_type = String)]
    pub server: ServerId,
    /// `take-point`, `compare`, `resync` or `verify`.
    pub kind: String,
    /// How far it is.
    pub state: RequestState,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub asked: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended: Option<Timestamp>,
    /// One sentence about the end; when it failed, with what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The point that was taken or compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub point: Option<PointId>,
    /// What a verification found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<VerifyReport>,
}

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RequestState {
    /// Not ended.
    Running,
    /// Ended as asked. For `take-point`: the point is committed.
    Done,
    /// It could not be done.
    Failed,
}

/// What is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VerifyKind {
    /// Every stored file of every point: digests, keys, every frame.
    Stored,
    /// The copy against the live disks.
    AgainstSource,
}

/// Asks for a verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Verify {
    /// What to verify.
    pub kind: VerifyKind,
}

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerifyReport {
    /// What was verified.
    pub kind: VerifyKind,
    /// True when nothing is wrong.
    pub good: bool,
    /// Files that were read.
    pub files: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Blocks found equal to the source.
    pub equal_blocks: u64,
    /// Blocks that differ from the source though nobody wrote them since the point.
    pub different_blocks: u64,
    /// Blocks written since the point, so that they say nothing.
    pub changed_blocks: u64,
    /// What is wrong, one entry a file.
    pub faults: Vec<VerifyFault>,
}

/// A stored file that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerifyFault {
    /// The file's name in the store.
    pub file: String,
    /// What is wrong, and where in the file.
    pub message: String,
    /// Points that need the file.
    #[schema(value_type = Vec<String>)]
    pub points: Vec<PointId>,
}

/// A certificate that the site's authority has issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Certificate {
    /// Its serial number in hexadecimal.
    pub serial: String,
    /// For whom, such as `lifeboat://agent/0123456789abcdef`.
    pub identity: String,
    /// When it ends.
    #[schema(value_type = String, format = DateTime)]
    pub not_after: Timestamp,
    /// Whether it is revoked.
    pub revoked: bool,
}

/// The body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// An error as programs and people read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorDetail {
    /// A stable word for programs.
    pub code: String,
    /// One sentence: what, which, why, and what to do.
    pub message: String,
    /// Finds the request in the vault's log.
    pub request_id: String,
}
