use jiff::Timestamp;
use lifeboat_model::{DiskNumber, Epoch, PointId, PointKind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A recovery point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Point {
    /// The point's id.
    #[schema(value_type = String)]
    pub id: PointId,
    /// The point in time that it shows.
    #[schema(value_type = String, format = DateTime)]
    pub time: Timestamp,
    /// What it guarantees: `crash`, `filesystem` or `application`.
    #[schema(value_type = String)]
    pub kind: PointKind,
    /// The epoch that it ends, for each disk.
    pub disks: Vec<PointDisk>,
    /// Bytes that its own changes take in the store.
    pub bytes: u64,
    /// How long its capture took, in microseconds.
    pub capture_us: u64,
    /// From the point in time to the last check of it, in microseconds.
    pub window_us: u64,
    /// How long file systems were frozen for it, in microseconds.
    pub frozen_us: u64,
    /// Attempts that its capture took.
    pub attempts: u32,
    /// When it was sealed on the process server.
    #[schema(value_type = String, format = DateTime)]
    pub sealed: Timestamp,
    /// When its last file was stored.
    #[schema(value_type = String, format = DateTime)]
    pub uploaded: Timestamp,
    /// When it was committed.
    #[schema(value_type = String, format = DateTime)]
    pub committed: Timestamp,
    /// What is known to be wrong with its stored files, whose blocks cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
}

/// One disk of a recovery point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PointDisk {
    /// The disk.
    #[schema(value_type = u16)]
    pub disk: DiskNumber,
    /// The epoch that the point ends.
    #[schema(value_type = u64)]
    pub epoch: Epoch,
    /// Size of the disk in bytes.
    pub bytes: u64,
}

/// Asks for a recovery point now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TakePoint {
    /// What it has to guarantee: `crash` or `filesystem`.
    #[schema(value_type = String)]
    pub kind: PointKind,
}

/// The format of an exported disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExportFormat {
    /// The bytes of the disk.
    Raw,
    /// QEMU's own.
    Qcow2,
    /// Microsoft's older format, with a fixed size as Azure wants it.
    Vhd,
    /// VMware's.
    Vmdk,
}
