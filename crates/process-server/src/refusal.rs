//! Why an agent's request was refused.

use std::path::PathBuf;
use std::time::Duration;

use lifeboat_model::{ByteCount, DiskNumber, Epoch, Part, PointId};
use lifeboat_wire::agent::DiskState;
use lifeboat_wire::stream::StreamError;

use crate::link::LinkError;
use crate::state_dir::StateError;

/// Why an agent's request was refused, in one sentence with what to do.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum Refusal {
    #[error("disk {disk} is not known here: describe it first")]
    UnknownDisk { disk: DiskNumber },
    #[error("epoch {epoch} of disk {disk} takes no changes now, epoch {} does: go on with part {} of it", state.epoch, state.next_part)]
    WrongEpoch { disk: DiskNumber, epoch: Epoch, state: Box<DiskState> },
    #[error("part {part} of epoch {epoch} of disk {disk} is not the next one: go on with part {}", state.next_part)]
    WrongPart { disk: DiskNumber, epoch: Epoch, part: Part, state: Box<DiskState> },
    #[error(
        "another agent with this server's certificate has described disk {disk} since: it goes on after it has \
         described and compared the disk again"
    )]
    OtherWriter { disk: DiskNumber },
    #[error("part {part} of epoch {epoch} of disk {disk} is durable already: go on with epoch {}, part {}", state.epoch, state.next_part)]
    AlreadyDurable { disk: DiskNumber, epoch: Epoch, part: Part, state: Box<DiskState> },
    #[error(
        "epoch {epoch} of disk {disk} has {durable} durable parts, the point counts {claimed}: send the others before sealing"
    )]
    PartsDiffer { disk: DiskNumber, epoch: Epoch, claimed: u32, durable: u32, state: Box<DiskState> },
    #[error(
        "disk {disk} was described with {described} bytes and the point says {claimed}: describe the disk again"
    )]
    SizeDiffers { disk: DiskNumber, described: u64, claimed: u64, state: Box<DiskState> },
    #[error("point {point} was sealed before with other disks or epochs: draw a new id for a new point")]
    PointDiffers { point: PointId },
    #[error("a point names each of its disks once and at least one: {why}")]
    MalformedPoint { why: String },
    #[error("a disk has at least one block and a name: {why}")]
    MalformedDescription { why: String },
    #[error(
        "the vault's key {key_id:?} for disk {disk} is none, or another one than its id says: check the vault"
    )]
    UnusableKey { disk: DiskNumber, key_id: String },
    #[error("disk {disk} is busy with the request before this one: send it again in a moment")]
    Busy { disk: DiskNumber },
    #[error("a later connection of this agent took over disk {disk}: what came over this one was discarded")]
    Superseded { disk: DiskNumber },
    #[error("this server sends nothing now: {reason}")]
    NotReplicating { reason: String },
    #[error("the spool is full ({} free): keep the changes and send them later; it empties as files reach the vault", ByteCount(*free_bytes))]
    SpoolFull { free_bytes: u64 },
    #[error(
        "the spool {} is on a file system that is read-only: keep the changes and send them when it is writable again",
        path.display()
    )]
    SpoolReadOnly { path: PathBuf },
    #[error("the spool is damaged, so nothing of this server is accepted: {why}")]
    SpoolDamaged { why: String },
    #[error("{0}")]
    Stream(#[from] StreamError),
    #[error("the connection was cut in the middle of a part: {0}")]
    CutOff(String),
    #[error("no byte of the part came for {} s: send it again", .0.as_secs())]
    Stalled(Duration),
    #[error("{0}")]
    Data(#[source] lifeboat_hrl::HrlError),
    #[error("a part has at most {messages_max} messages: send the rest in another part")]
    TooLong { messages_max: u64 },
    #[error("the state of the process server could not be written: {0}")]
    State(#[from] StateError),
    #[error("the part could not be written to the spool: {0}")]
    Write(#[source] lifeboat_hrl::HrlError),
    #[error("the process server is stopping: send it again in a moment")]
    Stopping,
    #[error("the vault is needed for this and did not answer: {0}")]
    Vault(#[source] LinkError),
    #[error("{files} files ({}) and {points} points of this disk have not reached the vault yet: ask again later", ByteCount(*bytes))]
    UploadBehind { files: u64, bytes: u64, points: u64 },
    #[error("the list of results is full: the vault has taken none for long; send it again later")]
    OutboxFull,
}

impl Refusal {
    /// The HTTP status of the answer.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::UnknownDisk { .. } => 404,
            Self::WrongEpoch { .. }
            | Self::WrongPart { .. }
            | Self::OtherWriter { .. }
            | Self::AlreadyDurable { .. }
            | Self::PartsDiffer { .. }
            | Self::SizeDiffers { .. }
            | Self::PointDiffers { .. }
            | Self::Superseded { .. }
            | Self::SpoolDamaged { .. }
            | Self::NotReplicating { .. } => 409,
            Self::MalformedPoint { .. }
            | Self::MalformedDescription { .. }
            | Self::Stream(_)
            | Self::CutOff(_) => 400,
            Self::Data(_) => 422,
            Self::TooLong { .. } => 413,
            Self::Stalled(_) => 408,
            Self::SpoolFull { .. } => 507,
            Self::State(_) | Self::Write(_) => 500,
            Self::Vault(LinkError::Refused { .. }) | Self::UnusableKey { .. } => 502,
            Self::Busy { .. }
            | Self::SpoolReadOnly { .. }
            | Self::Stopping
            | Self::Vault(_)
            | Self::UploadBehind { .. }
            | Self::OutboxFull => 503,
        }
    }

    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::UnknownDisk { .. } => "unknown_disk",
            Self::WrongEpoch { .. } => "wrong_epoch",
            Self::WrongPart { .. } => "wrong_part",
            Self::OtherWriter { .. } => "other_writer",
            Self::AlreadyDurable { .. } => "part_already_durable",
            Self::PartsDiffer { .. } => "parts_differ",
            Self::SizeDiffers { .. } => "size_differs",
            Self::PointDiffers { .. } => "point_differs",
            Self::MalformedPoint { .. } => "malformed_point",
            Self::MalformedDescription { .. } => "malformed_description",
            Self::UnusableKey { .. } => "unusable_key",
            Self::Busy { .. } => "busy",
            Self::Superseded { .. } => "superseded",
            Self::NotReplicating { .. } => "not_replicating",
            Self::SpoolFull { .. } => "spool_full",
            Self::SpoolReadOnly { .. } => "spool_read_only",
            Self::SpoolDamaged { .. } => "spool_damaged",
            Self::Stream(_) => "stream_damaged",
            Self::CutOff(_) => "cut_off",
            Self::Stalled(_) => "stalled",
            Self::Data(_) => "data_damaged",
            Self::TooLong { .. } => "part_too_long",
            Self::State(_) | Self::Write(_) => "spool_failed",
            Self::Stopping => "stopping",
            Self::Vault(LinkError::Refused { .. }) => "vault_refused",
            Self::Vault(_) => "vault_unreachable",
            Self::UploadBehind { .. } => "upload_behind",
            Self::OutboxFull => "results_full",
        }
    }

    /// Where the disk stands, for an agent that asked for the wrong place.
    #[must_use]
    pub fn state(&self) -> Option<&DiskState> {
        match self {
            Self::WrongEpoch { state, .. }
            | Self::WrongPart { state, .. }
            | Self::AlreadyDurable { state, .. }
            | Self::PartsDiffer { state, .. }
            | Self::SizeDiffers { state, .. } => Some(state),
            _ => None,
        }
    }

    /// Whether the same request can succeed later without anybody's doing.
    #[must_use]
    pub fn retry_helps(&self) -> bool {
        matches!(self.status(), 408 | 500 | 503 | 507) || matches!(self, Self::CutOff(_) | Self::Data(_))
    }
}
