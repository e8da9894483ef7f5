//! Open volumes.

use jiff::Timestamp;
use lifeboat_model::{DiskNumber, PointId, ServerId, Span, VolumeId};
use sqlx::query;

use super::CatalogError;
use super::database::Catalog;
use super::row::{RowValues, bigint, json_text, time_ns};

/// An open volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRow {
    /// Its id.
    pub id: VolumeId,
    /// Whose disks it shows.
    pub server: ServerId,
    /// From which point.
    pub point: PointId,
    /// Whether writes are refused.
    pub read_only: bool,
    /// When it was opened.
    pub opened: Timestamp,
    /// Its disks.
    pub disks: Vec<DiskNumber>,
    /// It is closed when no client used it for so long.
    pub lease: Option<Span>,
}

impl Catalog {
    /// Notes an open volume. From then on its point and the files of it are kept.
    ///
    /// # Errors
    /// When the point is not there any more, or the catalog fails.
    pub async fn put_volume(&self, volume: &VolumeRow) -> Result<(), CatalogError> {
        let statement = query(
            "INSERT INTO volumes (id, server, point, read_only, opened_ns, disks, lease_ms) \
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(volume.id.to_string())
        .bind(volume.server.to_string())
        .bind(volume.point.to_string())
        .bind(volume.read_only)
        .bind(time_ns(volume.opened)?)
        .bind(json_text("disks", &volume.disks)?)
        .bind(volume.lease.map(|lease| bigint(lease.milliseconds())).transpose()?);
        self.run_alone(statement).await.map(drop)
    }

    /// Forgets a volume; what it held is no longer kept for it.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn remove_volume(&self, volume: VolumeId) -> Result<(), CatalogError> {
        let statement = query("DELETE FROM volumes WHERE id = $1").bind(volume.to_string());
        self.run_alone(statement).await.map(drop)
    }

    /// All open volumes, the oldest first.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn volumes(&self) -> Result<Vec<VolumeRow>, CatalogError> {
        let statement = query(
            "SELECT id, server, point, read_only, opened_ns, disks, lease_ms FROM volumes ORDER BY opened_ns, id",
        );
        let rows = self.all(statement).await?;
        rows.iter()
            .map(|row| {
                Ok(VolumeRow {
                    id: row.parsed("id")?,
                    server: row.parsed("server")?,
                    point: row.parsed("point")?,
                    read_only: row.flag("read_only")?,
                    opened: row.time("opened_ns")?,
                    disks: row.json("disks")?,
                    lease: match row.optional_integer("lease_ms")? {
                        Some(_) => Some(Span::of_milliseconds(row.number("lease_ms")?)),
                        None => None,
                    },
                })
            })
            .collect()
    }
}
