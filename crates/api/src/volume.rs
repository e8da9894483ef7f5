use jiff::Timestamp;
use lifeboat_model::{DiskNumber, PointId, ServerId, Span, VolumeId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Opens disks of a recovery point.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenVolume {
    /// `latest`, a point's id or a unique beginning of one, or a time (the newest point not after it).
    /// `latest` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point: Option<String>,
    /// The disk; all of them when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u16>)]
    pub disk: Option<DiskNumber>,
    /// Refuse writes; otherwise they go to an overlay that the volume keeps until it is closed.
    #[serde(default)]
    pub read_only: bool,
    /// Close it when no NBD client used it for so long, at least `10s`. Without it the volume stays
    /// until it is closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "1m")]
    pub lease: Option<Span>,
}

/// The answer to [`OpenVolume`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OpenedVolume {
    /// The volume's id.
    #[schema(value_type = String)]
    pub volume: VolumeId,
    /// Its disks.
    pub disks: Vec<VolumeDisk>,
}

/// One disk of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeDisk {
    /// The disk's number.
    #[schema(value_type = u16)]
    pub disk: DiskNumber,
    /// Where an NBD client finds it.
    pub nbd_uri: String,
    /// Where an NBD client elsewhere finds it, over TLS, when the vault listens for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbds_uri: Option<String>,
    /// Size in bytes.
    pub bytes: u64,
}

/// An open volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// The volume's id.
    #[schema(value_type = String)]
    pub id: VolumeId,
    /// Whose disks it shows.
    #[schema(value_type = String)]
    pub server: ServerId,
    /// That server's name.
    pub server_name: String,
    /// From which point.
    #[schema(value_type = String)]
    pub point: PointId,
    /// The point in time of it.
    #[schema(value_type = String, format = DateTime)]
    pub point_time: Timestamp,
    /// Whether writes are refused.
    pub read_only: bool,
    /// When it was opened.
    #[schema(value_type = String, format = DateTime)]
    pub opened: Timestamp,
    /// It closes when no NBD client used it for so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "1m")]
    pub lease: Option<Span>,
    /// Bytes that were written to it.
    pub overlay_bytes: u64,
    /// Its disks.
    pub disks: Vec<VolumeDisk>,
    /// Why it cannot be served now, when it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}
