//! Requests of an agent to its process server.
//!
//! The conversation of one disk: the agent describes the disk and learns the open epoch
//! ([`DiskState`]); it sends the epoch's changes in parts, each acknowledged when it is durable;
//! it seals all disks' open epochs into a recovery point. Sealing opens the next epoch. An agent
//! that was cut off asks for the state again and goes on with the part that it names: blocks
//! whose acknowledgement was lost are sent once more, later parts override earlier ones.

use jiff::Timestamp;
use lifeboat_model::{DiskNumber, Epoch, Part, PointId, PointKind, ReplicationPolicy};
use serde::{Deserialize, Serialize};

use crate::event::Event;

/// Blocks in the chunk that [`DigestRequest`] compares first.
pub const CHUNK_BLOCKS: u64 = 64;

/// The digest that stands for a chunk or block of zeroes only.
pub const ZERO_DIGEST: [u8; 16] = [0; 16];

/// A disk as its agent sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskDescription {
    /// The server's name, for people.
    pub server_name: String,
    /// The path by which the operator named the disk.
    pub path: String,
    /// What the hardware calls itself: model and serial number, where it has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware_id: Option<String>,
    /// Size in bytes.
    pub bytes: u64,
}

/// A disk as an agent describes it, with who the agent is.
///
/// Two agents may have one certificate: a server was restored from a backup, or copied, and both run. Each
/// life of an agent therefore has a number of its own, and the process server remembers whose the last
/// one was that described the disk: parts and points of others are refused. An agent whose turn was taken
/// is told so when it describes the disk again, and compares it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribeDisk {
    /// The disk.
    #[serde(flatten)]
    pub description: DiskDescription,
    /// The life of the agent, drawn at its start.
    #[serde(default)]
    pub writer: u64,
    /// The life that this one goes on from, if it has not described the disk before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follows: Option<u64>,
    /// Counts the descriptions of this disk in this life, from 1.
    #[serde(default)]
    pub attempt: u64,
    /// The newest attempt whose answer was taken in; 0 for none. An answer may have been lost that said that
    /// another agent had been there.
    #[serde(default)]
    pub heard: u64,
}

/// What the process server has of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskState {
    /// The epoch that takes changes now.
    pub epoch: Epoch,
    /// The next part of that epoch; the parts before it are durable.
    pub next_part: Part,
    /// The last sealed point that has this disk; none before the first one.
    pub sealed: Option<PointId>,
    /// The size in bytes that the copy was made with; none before the first part.
    pub copy_bytes: Option<u64>,
    /// Another agent with this server's certificate has described the disk since, and may have written to
    /// its copy.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub other_writer: bool,
}

/// A part is durable on the process server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartReceipt {
    /// Bytes of the part's HRL file.
    pub stored_bytes: u64,
    /// Blocks with data in it.
    pub data_blocks: u64,
    /// Blocks of zeroes in it.
    pub zero_blocks: u64,
}

/// How the server is being captured, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "kebab-case")]
pub enum CaptureMode {
    /// Not started yet.
    Starting,
    /// Full copy; no point exists before it ends.
    InitialCopy,
    /// Copy and source are being compared by digests, since tracking was interrupted.
    Resync {
        /// One sentence: what interrupted it.
        reason: String,
    },
    /// Points without a pause.
    Optimistic,
    /// Points in a short freeze of the file systems.
    Quiesced {
        /// One sentence: why not optimistic.
        reason: String,
    },
    /// Tracking goes on, but no point can be taken.
    Stalled {
        /// One sentence: why, and what to do.
        reason: String,
    },
}

/// How the capture of one point went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureFigures {
    /// From the beginning of the capture to its valid end, in microseconds.
    pub duration_us: u64,
    /// From the point in time T to the last check, in microseconds.
    pub window_us: u64,
    /// How long file systems were frozen, in microseconds; 0 without a freeze.
    pub frozen_us: u64,
    /// Switches of epoch that it took; 1 when the first was valid.
    pub attempts: u32,
    /// Blocks read after T in the valid attempt.
    pub blocks_in_window: u64,
}

/// The open epoch of one disk, to be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealDisk {
    /// The disk.
    pub disk: DiskNumber,
    /// The epoch that the point ends.
    pub epoch: Epoch,
    /// How many parts the epoch has; 0 when nothing changed.
    pub parts: u32,
    /// Size of the disk in bytes at the point.
    pub bytes: u64,
}

/// Ends the open epoch of every disk of the server in one recovery point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealPoint {
    /// Drawn by the agent; sealing the same point twice is answered the same.
    pub point: PointId,
    /// The point in time T.
    pub time: Timestamp,
    /// What it guarantees.
    pub kind: PointKind,
    /// All disks of the server.
    pub disks: Vec<SealDisk>,
    /// Disks that the operator took out of the agent's settings: neither this point nor later ones need
    /// to have them. Said with every point, so that it is known wherever a point is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<DiskNumber>,
    /// How its capture went.
    pub capture: CaptureFigures,
}

/// The point is durable on the process server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealReceipt {
    /// The sealed point.
    pub point: PointId,
}

/// What stands between the source and its newest point on the way through the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// The disk.
    pub disk: DiskNumber,
    /// The path by which it is protected.
    pub path: String,
    /// Size in bytes; 0 when the disk is gone.
    pub bytes: u64,
    /// Bytes written on the source and not yet acknowledged.
    pub waiting_bytes: u64,
    /// Progress of a full copy or a resync, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<CopyProgress>,
    /// One sentence when this disk is not being replicated: why, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// Progress of a full copy or a resync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyProgress {
    /// Bytes of the disk that are done: sent, skipped as zero, or found equal.
    pub done_bytes: u64,
    /// Bytes of the disk.
    pub total_bytes: u64,
    /// Bytes that had to travel.
    pub sent_bytes: u64,
    /// Bytes a second now, of `done_bytes`.
    pub bytes_per_second: u64,
}

/// The state of an agent, sent every few seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentReport {
    /// The agent's clock.
    pub time: Timestamp,
    /// The server's name, for people.
    pub server_name: String,
    /// The agent's version.
    pub version: String,
    /// The running kernel's release.
    pub kernel: String,
    /// The kernel's boot id.
    pub boot_id: String,
    /// How the server is being captured.
    pub capture: CaptureMode,
    /// The time T of the newest point that the agent has captured, acknowledged or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captured: Option<Timestamp>,
    /// All protected disks.
    pub disks: Vec<DiskReport>,
    /// Processor time that the agent has used, in milliseconds.
    pub cpu_ms: u64,
    /// Bytes of memory that the agent holds.
    pub memory_bytes: u64,
    /// What happened since the last report.
    pub events: Vec<Event>,
}

/// Something that an operator asked for once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum CommandKind {
    /// Take a point now.
    TakePoint {
        /// The kind that was asked for.
        kind: PointKind,
    },
    /// Compare the live disks with the copy at the next point.
    Compare,
    /// Compare and mend: a resync of all disks.
    Resync,
    /// A planned failover begins: stop the services as the settings say, hold the file systems still,
    /// and take the last point after the last write.
    StandDown,
    /// It is given up: let the file systems go and start the services.
    StandUp,
    /// It has succeeded: let the file systems go, and do what the settings say for then.
    Retire,
    /// Something that came after this version; an agent says so.
    #[serde(other)]
    Unknown,
}

/// A command with the id by which its result is reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Drawn by the vault.
    pub request: u64,
    /// What to do.
    #[serde(flatten)]
    pub kind: CommandKind,
}

/// What an agent is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Changes whenever anything else in it does.
    pub revision: u64,
    /// How the server is protected.
    pub policy: ReplicationPolicy,
    /// False while the server is fenced or protection is paused: track, but send nothing.
    pub replicate: bool,
    /// One sentence: why `replicate` is false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Commands without a result yet, oldest first.
    pub commands: Vec<Command>,
    /// The newest point of this server that the vault has committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed: Option<PointId>,
    /// Free part of the process server's spool below which agents slow down, reached: send at most this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle_bytes_per_second: Option<u64>,
}

/// What one comparison of a disk with its copy found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    /// The disk.
    pub disk: DiskNumber,
    /// Blocks found equal.
    pub equal_blocks: u64,
    /// Blocks that differ though nobody wrote them since the point: the copy was wrong.
    pub different_blocks: u64,
    /// Blocks that were written since the point, so that they say nothing.
    pub changed_blocks: u64,
}

/// That a disk has no write after a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastWrite {
    /// The disk.
    pub disk: DiskNumber,
    /// The epoch that the point ended; the next one is empty.
    pub epoch: Epoch,
    /// Writes that were sent to the device since its tracking began, at the point and ever since.
    pub writes: u64,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// The point was captured and sealed.
    PointTaken {
        /// The new point.
        point: PointId,
    },
    /// The server stands down, and this is the point after its last write.
    StoodDown {
        /// The last point, captured and sealed.
        point: PointId,
        /// One entry a disk.
        disks: Vec<LastWrite>,
    },
    /// The comparison ended.
    Compared {
        /// The point that was compared with.
        point: PointId,
        /// One entry a disk.
        disks: Vec<Comparison>,
    },
    /// Done, nothing to tell.
    Done,
    /// It could not be done.
    Failed {
        /// One sentence: why, and what to do.
        message: String,
    },
}

/// The result of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestResult {
    /// Of which command.
    pub request: u64,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Which digests of the copy the agent wants.
///
/// The copy is what the process server has of the disk: everything acknowledged, also in the
/// open epoch; or, with `point`, exactly that point. The process server first waits until all of
/// that has reached the vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestRequest {
    /// Compare with this point rather than with the newest state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point: Option<PointId>,
    /// What to digest.
    #[serde(flatten)]
    pub of: DigestsOf,
}

/// What is digested, in order: 16 bytes of BLAKE3 each, [`ZERO_DIGEST`] where all is zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "kebab-case")]
pub enum DigestsOf {
    /// Chunks of [`CHUNK_BLOCKS`] blocks; the last one of a disk may be shorter.
    Chunks {
        /// The first chunk.
        first: u64,
        /// How many, cut at the end of the copy.
        count: u64,
    },
    /// Every block of these chunks; at most 4096 chunks a request.
    Blocks {
        /// The chunks.
        chunks: Vec<u64>,
    },
}
