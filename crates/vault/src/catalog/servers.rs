//! Servers, disks and their keys.

use jiff::Timestamp;
use lifeboat_model::{DiskNumber, PointId, ReplicationPolicy, ServerId};
use sqlx::query;

use super::CatalogError;
use super::database::{Catalog, Connection, DatabaseRow};
use super::row::{DiskKeyRow, DiskRow, RowValues, ServerRow, ServerTotals, bigint, json_text, time_ns};

macro_rules! select_servers {
    ($rest:literal) => {
        concat!(
            "SELECT id, name, policy, registered_ns, process_server, compared_point, heard_ns, fenced_ns FROM servers ",
            $rest
        )
    };
}

impl Catalog {
    /// All servers, by name.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn servers(&self) -> Result<Vec<ServerRow>, CatalogError> {
        let rows = self.all(query(select_servers!("ORDER BY name"))).await?;
        rows.iter().map(server_row).collect()
    }

    /// One server.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn server(&self, server: ServerId) -> Result<Option<ServerRow>, CatalogError> {
        let row = self.optional(query(select_servers!("WHERE id = $1")).bind(server.to_string())).await?;
        row.as_ref().map(server_row).transpose()
    }

    /// A server's disks by number, removed ones too.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn disks(&self, server: ServerId) -> Result<Vec<DiskRow>, CatalogError> {
        let rows = self
            .all(
                query(
                    "SELECT disk, path, hardware_id, bytes, removed FROM disks WHERE server = $1 ORDER BY disk",
                )
                .bind(server.to_string()),
            )
            .await?;
        rows.iter().map(disk_row).collect()
    }

    /// The keys of a server's disks, by disk and age, the oldest first.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn disk_keys(&self, server: ServerId) -> Result<Vec<DiskKeyRow>, CatalogError> {
        let rows = self
            .all(
                query(
                    "SELECT disk, wrapped, created_ns FROM disk_keys WHERE server = $1 \
                     ORDER BY disk, created_ns, key_id",
                )
                .bind(server.to_string()),
            )
            .await?;
        rows.iter()
            .map(|row| {
                Ok(DiskKeyRow {
                    disk: row.disk("disk")?,
                    wrapped: row.parsed("wrapped")?,
                    created: row.time("created_ns")?,
                })
            })
            .collect()
    }

    /// How many points a server has, and what their files take.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn totals(&self, server: ServerId) -> Result<ServerTotals, CatalogError> {
        let row = self
            .one(
                query(
                    "SELECT (SELECT COUNT(*) FROM points WHERE server = $1) AS points, \
                     (SELECT CAST(COALESCE(SUM(bytes), 0) AS BIGINT) FROM files WHERE server = $1) AS stored",
                )
                .bind(server.to_string()),
            )
            .await?;
        Ok(ServerTotals { points: row.number("points")?, stored_bytes: row.number("stored")? })
    }

    /// Notes through which process server a server is seen.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn route(&self, server: ServerId, process_server: &str) -> Result<(), CatalogError> {
        let statement = query("UPDATE servers SET process_server = $2 WHERE id = $1")
            .bind(server.to_string())
            .bind(process_server.to_owned());
        self.run_alone(statement).await.map(drop)
    }

    /// Replaces a server's policy; says whether there is such a server.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn set_policy(
        &self,
        server: ServerId,
        policy: &ReplicationPolicy,
    ) -> Result<bool, CatalogError> {
        let statement = query("UPDATE servers SET policy = $2 WHERE id = $1")
            .bind(server.to_string())
            .bind(json_text("policy", policy)?);
        Ok(self.run_alone(statement).await? == 1)
    }

    /// Notes whether a disk is protected; says whether there is such a disk.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn set_disk_removed(
        &self,
        server: ServerId,
        disk: DiskNumber,
        removed: bool,
    ) -> Result<bool, CatalogError> {
        let statement = query("UPDATE disks SET removed = $3 WHERE server = $1 AND disk = $2")
            .bind(server.to_string())
            .bind(i64::from(disk.0))
            .bind(removed);
        Ok(self.run_alone(statement).await? == 1)
    }

    /// Notes which point the live disks were last compared with.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn set_compared_point(&self, server: ServerId, point: PointId) -> Result<(), CatalogError> {
        let statement = query("UPDATE servers SET compared_point = $2 WHERE id = $1")
            .bind(server.to_string())
            .bind(point.to_string());
        self.run_alone(statement).await.map(drop)
    }

    /// Makes a server known or changes its name, and its policy if that is given.
    pub(crate) async fn put_server(
        &self,
        connection: &mut Connection,
        server: ServerId,
        name: &str,
        policy: &ReplicationPolicy,
        registered: Timestamp,
    ) -> Result<(), CatalogError> {
        let statement = query(
            "INSERT INTO servers (id, name, policy, registered_ns) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (id) DO UPDATE SET name = excluded.name",
        )
        .bind(server.to_string())
        .bind(name.to_owned())
        .bind(json_text("policy", policy)?)
        .bind(time_ns(registered)?);
        self.run(connection, statement).await.map(drop)
    }

    /// Makes a disk known or describes it anew.
    pub(crate) async fn put_disk(
        &self,
        connection: &mut Connection,
        server: ServerId,
        disk: &DiskRow,
    ) -> Result<(), CatalogError> {
        let statement = query(
            "INSERT INTO disks (server, disk, path, hardware_id, bytes, removed) \
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (server, disk) DO UPDATE SET \
             path = excluded.path, hardware_id = excluded.hardware_id, bytes = excluded.bytes, \
             removed = excluded.removed",
        )
        .bind(server.to_string())
        .bind(i64::from(disk.disk.0))
        .bind(disk.path.clone())
        .bind(disk.hardware_id.clone())
        .bind(bigint(disk.bytes)?)
        .bind(disk.removed);
        self.run(connection, statement).await.map(drop)
    }

    /// Adds a key of a disk.
    pub(crate) async fn put_disk_key(
        &self,
        connection: &mut Connection,
        server: ServerId,
        key: &DiskKeyRow,
    ) -> Result<(), CatalogError> {
        let statement = query(
            "INSERT INTO disk_keys (server, disk, key_id, wrapped, created_ns) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(server.to_string())
        .bind(i64::from(key.disk.0))
        .bind(key.wrapped.id().to_string())
        .bind(key.wrapped.to_string())
        .bind(time_ns(key.created)?);
        self.run(connection, statement).await.map(drop)
    }
}

fn server_row(row: &DatabaseRow) -> Result<ServerRow, CatalogError> {
    Ok(ServerRow {
        id: row.parsed("id")?,
        name: row.text("name")?,
        policy: row.json("policy")?,
        registered: row.time("registered_ns")?,
        process_server: row.optional_text("process_server")?,
        compared_point: row.optional_parsed("compared_point")?,
        fenced: row.optional_time("fenced_ns")?,
        heard: row.optional_time("heard_ns")?,
    })
}

fn disk_row(row: &DatabaseRow) -> Result<DiskRow, CatalogError> {
    Ok(DiskRow {
        disk: row.disk("disk")?,
        path: row.text("path")?,
        hardware_id: row.optional_text("hardware_id")?,
        bytes: row.number("bytes")?,
        removed: row.flag("removed")?,
    })
}
