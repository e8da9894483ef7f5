//! Changes that thin points out, and what needs to be looked through for that.

use std::collections::BTreeSet;

use jiff::Timestamp;
use lifeboat_model::{PointId, ServerId};
use sqlx::query;

use super::CatalogError;
use super::database::{Catalog, Connection};
use super::row::{RowValues, StoredFile, bigint, time_ns};

/// What retention changes at once.
#[derive(Clone, Debug)]
pub struct RetentionChange {
    /// Whose.
    pub server: ServerId,
    /// Points that go, with the names of their manifests.
    pub removed_points: Vec<(PointId, String)>,
    /// Files that nobody needs after it.
    pub removed_files: Vec<StoredFile>,
    /// Files in their place.
    pub added_files: Vec<StoredFile>,
    /// The time.
    pub now: Timestamp,
}

/// An object that nothing needs any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetiredObject {
    /// Its name.
    pub object: String,
    /// A file, or the manifest of a point.
    pub is_file: bool,
    /// Since when.
    pub retired: Timestamp,
}

impl Catalog {
    /// Removes points and replaces files by others that hold the same epochs, in one change. The
    /// order around it is the caller's: new objects and manifests are stored before it, retired ones
    /// are removed after it.
    ///
    /// # Errors
    /// [`CatalogError::Overtaken`] when a file to be replaced is not there any more, or a point to be
    /// removed is the newest or has an open volume; or when the catalog fails. Nothing is changed
    /// then.
    pub async fn apply(&self, change: &RetentionChange) -> Result<(), CatalogError> {
        let server = change.server;
        let overtaken = || CatalogError::Overtaken { server };
        let mut transaction = self.begin().await?;
        for (point, manifest) in &change.removed_points {
            let needed = query(
                "SELECT id FROM points WHERE id = $1 AND (EXISTS (SELECT 1 FROM volumes WHERE point = $1) \
                 OR number = (SELECT MAX(number) FROM points WHERE server = $2))",
            )
            .bind(point.to_string())
            .bind(server.to_string());
            if self.optional_within(&mut transaction, needed).await?.is_some() {
                return Err(overtaken());
            }
            self.remove_point(&mut transaction, *point, change.now).await?;
            self.retire(&mut transaction, change, manifest, None).await?;
        }
        for file in &change.removed_files {
            let statement = query("DELETE FROM files WHERE object = $1 AND server = $2")
                .bind(file.object.clone())
                .bind(server.to_string());
            if self.run(&mut transaction, statement).await? != 1 {
                return Err(overtaken());
            }
            self.count_file(&mut transaction, server, file, -1).await?;
            let statement = query("DELETE FROM file_checks WHERE object = $1").bind(file.object.clone());
            self.run(&mut transaction, statement).await?;
            self.retire(&mut transaction, change, &file.object, Some(file)).await?;
        }
        for file in &change.added_files {
            self.put_file(&mut transaction, server, file).await?;
            self.count_file(&mut transaction, server, file, 1).await?;
        }
        let statement = query("DELETE FROM unsettled_manifests WHERE server = $1").bind(server.to_string());
        self.run(&mut transaction, statement).await?;
        self.commit(transaction).await
    }

    /// Counts a file that comes or goes at the first point that needs it, if there is one.
    async fn count_file(
        &self,
        connection: &mut Connection,
        server: ServerId,
        file: &StoredFile,
        change: i64,
    ) -> Result<(), CatalogError> {
        let statement = query(
            "UPDATE point_disks SET files = files + $1 WHERE server = $2 AND disk = $3 AND epoch = \
             (SELECT MIN(epoch) FROM point_disks WHERE server = $2 AND disk = $3 AND epoch >= $4)",
        )
        .bind(change)
        .bind(server.to_string())
        .bind(i64::from(file.disk.0))
        .bind(bigint(file.last_epoch.0)?);
        self.run(connection, statement).await.map(drop)
    }

    async fn retire(
        &self,
        connection: &mut Connection,
        change: &RetentionChange,
        object: &str,
        file: Option<&StoredFile>,
    ) -> Result<(), CatalogError> {
        let statement = query(
            "INSERT INTO retired_objects (object, server, disk, last_epoch, retired_ns) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (object) DO NOTHING",
        )
        .bind(object.to_owned())
        .bind(change.server.to_string())
        .bind(file.map(|file| i64::from(file.disk.0)))
        .bind(file.map(|file| bigint(file.last_epoch.0)).transpose()?)
        .bind(time_ns(change.now)?);
        self.run(connection, statement).await?;
        let Some(file) = file else { return Ok(()) };
        // A volume's row is there before it lists its files, so whoever comes later has the new list.
        let statement = query(
            "INSERT INTO retired_held (object, volume) SELECT $1, v.id FROM volumes v JOIN point_disks pd \
             ON pd.point = v.point WHERE pd.server = $2 AND pd.disk = $3 AND pd.epoch >= $4 \
             ON CONFLICT (object, volume) DO NOTHING",
        )
        .bind(object.to_owned())
        .bind(change.server.to_string())
        .bind(i64::from(file.disk.0))
        .bind(bigint(file.last_epoch.0)?);
        self.run(connection, statement).await.map(drop)
    }

    /// Notes that manifests of points are about to be written anew. All notes of a server go with
    /// [`Catalog::apply`].
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn unsettle_manifests(&self, server: ServerId, points: &[PointId]) -> Result<(), CatalogError> {
        let mut transaction = self.begin().await?;
        for point in points {
            let statement = query(
                "INSERT INTO unsettled_manifests (point, server) VALUES ($1, $2) ON CONFLICT (point) DO NOTHING",
            )
            .bind(point.to_string())
            .bind(server.to_string());
            self.run(&mut transaction, statement).await?;
        }
        self.commit(transaction).await
    }

    /// Points whose manifest may differ from the catalog.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn unsettled_manifests(&self, server: ServerId) -> Result<BTreeSet<PointId>, CatalogError> {
        let statement =
            query("SELECT point FROM unsettled_manifests WHERE server = $1").bind(server.to_string());
        self.all(statement).await?.iter().map(|row| row.parsed("point")).collect()
    }

    /// Notes that all manifests of a server are as the catalog has them.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn manifests_settled(&self, server: ServerId) -> Result<(), CatalogError> {
        let statement = query("DELETE FROM unsettled_manifests WHERE server = $1").bind(server.to_string());
        self.run_alone(statement).await.map(drop)
    }

    /// Points that open volumes show.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn held_points(&self, server: ServerId) -> Result<BTreeSet<PointId>, CatalogError> {
        let statement = query("SELECT point FROM volumes WHERE server = $1").bind(server.to_string());
        self.all(statement).await?.iter().map(|row| row.parsed("point")).collect()
    }

    /// Objects that nothing needs any more and that are not deleted yet. A file is left out while a
    /// volume is open that was opened over it.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn retired_objects(&self) -> Result<Vec<RetiredObject>, CatalogError> {
        let rows = self
            .all(query(
                "SELECT object, last_epoch, retired_ns FROM retired_objects r WHERE NOT EXISTS \
                 (SELECT 1 FROM retired_held h JOIN volumes v ON v.id = h.volume WHERE h.object = r.object) \
                 ORDER BY last_epoch IS NOT NULL, retired_ns, object",
            ))
            .await?;
        rows.iter()
            .map(|row| {
                Ok(RetiredObject {
                    object: row.text("object")?,
                    is_file: row.optional_integer("last_epoch")?.is_some(),
                    retired: row.time("retired_ns")?,
                })
            })
            .collect()
    }

    /// Notes of what was retired by a clock that was ahead that it was `now`.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn retired_not_after(&self, now: Timestamp) -> Result<(), CatalogError> {
        let statement =
            query("UPDATE retired_objects SET retired_ns = $1 WHERE retired_ns > $1").bind(time_ns(now)?);
        self.run_alone(statement).await.map(drop)
    }

    /// Forgets a retired object, which is deleted.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn forget_retired(&self, object: &str) -> Result<(), CatalogError> {
        let statement = query("DELETE FROM retired_objects WHERE object = $1").bind(object.to_owned());
        self.run_alone(statement).await.map(drop)
    }

    /// Every object of a server's files that the catalog has a word on: needed, received or retired.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn known_objects(&self, server: ServerId) -> Result<BTreeSet<String>, CatalogError> {
        let statement = query(
            "SELECT object FROM files WHERE server = $1 UNION SELECT object FROM uploads WHERE server = $1 \
             UNION SELECT object FROM retired_objects WHERE server = $1",
        )
        .bind(server.to_string());
        self.all(statement).await?.iter().map(|row| row.text("object")).collect()
    }

    /// Keeps of a point only what answers a late repetition of its commit.
    async fn remove_point(
        &self,
        connection: &mut Connection,
        point: PointId,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let statement = query(
            "INSERT INTO removed_points (id, server, committed_ns, commit_digest, removed_ns, time_ns) \
             SELECT id, server, committed_ns, commit_digest, $2, time_ns FROM points WHERE id = $1",
        )
        .bind(point.to_string())
        .bind(time_ns(now)?);
        self.run(connection, statement).await?;
        // Its files are those of the next point that has the disk. Not counted anew: a row that is
        // lost would not be missed any more.
        let statement = query(
            "UPDATE point_disks SET files = files + (SELECT gone.files FROM point_disks gone \
             WHERE gone.point = $1 AND gone.disk = point_disks.disk) \
             WHERE (server, disk, epoch) IN (SELECT gone.server, gone.disk, (SELECT MIN(n.epoch) \
             FROM point_disks n WHERE n.server = gone.server AND n.disk = gone.disk AND n.epoch > gone.epoch) \
             FROM point_disks gone WHERE gone.point = $1)",
        )
        .bind(point.to_string());
        self.run(connection, statement).await?;
        for statement in ["DELETE FROM point_disks WHERE point = $1", "DELETE FROM points WHERE id = $1"] {
            self.run(connection, query(statement).bind(point.to_string())).await?;
        }
        Ok(())
    }

    /// Forgets points that were removed before `before`.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn forget_removed_points(&self, before: Timestamp) -> Result<u64, CatalogError> {
        self.run_alone(query("DELETE FROM removed_points WHERE removed_ns < $1").bind(time_ns(before)?)).await
    }
}
