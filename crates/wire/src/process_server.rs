//! Requests of a process server to the vault.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lifeboat_model::{Digest, DiskNumber, Epoch, Part, PointId, ServerId, VaultId};
use serde::{Deserialize, Serialize};

use crate::agent::{AgentReport, Assignment, DigestsOf, DiskDescription, RequestResult, SealPoint};

/// Makes the vault know a disk, or describes it anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterDisk {
    /// As the agent described it.
    pub description: DiskDescription,
}

/// What the vault knows of a disk, and what is needed to write its HRL files.
#[derive(Clone, Serialize, Deserialize)]
pub struct DiskRegistration {
    /// The vault.
    pub vault: VaultId,
    /// Which key encrypts the disk now: 32 hexadecimal digits.
    pub key_id: String,
    /// The key: 64 hexadecimal digits. Kept in private files only.
    pub key: String,
    /// The newest committed point that has this disk, and the epoch that it ends.
    pub committed: Option<(PointId, Epoch)>,
    /// Size of the disk in bytes at that point.
    pub committed_bytes: Option<u64>,
}

impl std::fmt::Debug for DiskRegistration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskRegistration")
            .field("vault", &self.vault)
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

/// A file that waits in the spool or lies in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDescription {
    /// The disk whose changes it holds.
    pub disk: DiskNumber,
    /// The epoch.
    pub epoch: Epoch,
    /// The part of the epoch.
    pub part: Part,
    /// Its size in bytes.
    pub bytes: u64,
    /// The digest by which the file is known: BLAKE3 of all of it but its footer.
    pub digest: Digest,
    /// Bytes of disk whose content it holds, before compression, zeroes not counted.
    pub plain_bytes: u64,
}

/// Asks for leave to upload a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantRequest {
    /// The server whose disk it is.
    pub server: ServerId,
    /// The file.
    pub file: FileDescription,
}

/// Leave to upload one file, to one place, for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The file is stored already: nothing to upload.
    pub stored: bool,
    /// Where to `PUT` it: a whole URL, or a path on the vault.
    pub url: String,
    /// Headers to send with it.
    pub headers: BTreeMap<String, String>,
    /// After this the grant is refused.
    pub expires: Timestamp,
}

/// Makes a recovery point exist. All of its files are stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitPoint {
    /// The server.
    pub server: ServerId,
    /// The point as its agent sealed it.
    pub seal: SealPoint,
    /// All files of the epochs that the point ends, by disk, epoch and part.
    pub files: Vec<FileDescription>,
    /// When the process server had sealed it durably.
    pub sealed_at: Timestamp,
    /// When its last file had been uploaded.
    pub uploaded_at: Timestamp,
}

/// The point is in the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitReceipt {
    /// The point.
    pub point: PointId,
    /// When it was committed; the first time, when it was committed before.
    pub committed_at: Timestamp,
}

/// What waits on a process server for one server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolReport {
    /// Files that are durable in the spool and not yet committed.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The time T of the oldest sealed point that is not committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_sealed: Option<Timestamp>,
    /// The time T of the newest sealed point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_sealed: Option<Timestamp>,
    /// Bytes a second received from the agent, over the last ten seconds.
    pub received_bytes_per_second: u64,
    /// Bytes a second uploaded, over the last ten seconds.
    pub uploaded_bytes_per_second: u64,
    /// One sentence while uploading does not succeed: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload_trouble: Option<String>,
}

/// How full a process server's spool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpoolState {
    /// Enough room.
    Good,
    /// Less room than the warning threshold.
    Warning,
    /// Less room than the critical threshold.
    Critical,
    /// So little room that agents are slowed down.
    Throttling,
    /// No room: parts are refused until there is.
    Full,
    /// Its file system may not be written: parts are refused until it may.
    #[serde(rename = "read-only")]
    ReadOnly,
}

/// The state of a process server and of the agents behind it, sent every few seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessServerReport {
    /// The process server's clock.
    pub time: Timestamp,
    /// Its version.
    pub version: String,
    /// Bytes of the file system that holds the spool.
    pub spool_total_bytes: u64,
    /// Free bytes of it.
    pub spool_free_bytes: u64,
    /// What that means.
    pub spool_state: SpoolState,
    /// The newest report of each agent that is connected, and what the spool holds for it.
    pub servers: Vec<ServerReport>,
}

/// What a process server knows of one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerReport {
    /// The server.
    pub server: ServerId,
    /// Its agent's newest report; its events are sent apart, as events. None while the agent is silent.
    pub agent: Option<AgentReport>,
    /// When the agent was last heard of.
    pub heard: Option<Timestamp>,
    /// What the spool holds for it.
    pub spool: SpoolReport,
}

/// The vault's answer to a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultHello {
    /// The vault.
    pub vault: VaultId,
    /// The vault's clock.
    pub time: Timestamp,
    /// Serial numbers of certificates that must be refused, in hexadecimal.
    pub revoked: Vec<String>,
}

/// What the agents behind a process server are to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignments {
    /// Changes whenever one of them does.
    pub revision: u64,
    /// One for each server.
    pub servers: BTreeMap<ServerId, Assignment>,
}

/// An agent's result, passed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerResult {
    /// The server.
    pub server: ServerId,
    /// The result.
    #[serde(flatten)]
    pub result: RequestResult,
}

/// Which digests the agent wants; the process server adds the files that no point has yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestRequest {
    /// With this point rather than with the newest one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point: Option<PointId>,
    /// Files of the open epoch that are stored but belong to no point yet, in order.
    #[serde(default)]
    pub open_files: Vec<FileDescription>,
    /// What to digest.
    #[serde(flatten)]
    pub of: DigestsOf,
}
