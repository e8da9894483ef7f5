//! Recovery points and the files that they need.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lifeboat_model::{Digest, DiskNumber, Epoch, Part, PointId, PointKind, ServerId};
use sqlx::{AssertSqlSafe, query};

use super::CatalogError;
use super::database::{Catalog, Connection, DatabaseRow};
use super::row::{
    LostFiles, PointDiskRow, PointRow, RemovedPoint, RowValues, StoredFile, bigint, json_text, time_ns,
};

/// Which points [`Catalog::points`] gives.
#[derive(Clone, Copy, Debug)]
pub enum PointFilter {
    /// This one.
    Id(PointId),
    /// The newest of a server, at most so many.
    Newest(ServerId, u32),
    /// All of a server with at least this number.
    From(ServerId, u64),
}

/// What the next commit of a server has to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newest {
    /// The point.
    pub point: PointId,
    /// Its number.
    pub number: u64,
    /// Its time T.
    pub time: Timestamp,
    /// When it was committed.
    pub committed: Timestamp,
    /// Its disks.
    pub disks: Vec<DiskNumber>,
}

impl Catalog {
    /// Points, newest first.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn points(&self, filter: PointFilter) -> Result<Vec<PointRow>, CatalogError> {
        let (condition, rest, key, number) = match filter {
            PointFilter::Id(point) => ("id = $1 AND $2 = 0", "", point.to_string(), 0),
            PointFilter::Newest(server, limit) => {
                ("server = $1", "ORDER BY number DESC LIMIT $2", server.to_string(), i64::from(limit))
            }
            PointFilter::From(server, number) => {
                ("server = $1 AND number >= $2", "ORDER BY number DESC", server.to_string(), bigint(number)?)
            }
        };
        // One statement sees one state: with two, a commit or a removal in between would leave a point out. Only the
        // constants above are put together here.
        let statement = format!(
            "SELECT p.id, p.server, p.number, p.time_ns, p.kind, p.capture, p.sealed_ns, p.uploaded_ns, \
             p.committed_ns, p.commit_digest, pd.disk, pd.epoch, pd.bytes, pd.files, \
             (SELECT CAST(COALESCE(SUM(f.bytes), 0) AS BIGINT) FROM files f \
             WHERE f.server = pd.server AND f.disk = pd.disk AND f.last_epoch = pd.epoch) AS stored \
             FROM (SELECT * FROM points WHERE {condition} {rest}) p JOIN point_disks pd ON pd.point = p.id \
             ORDER BY p.number DESC, pd.disk"
        );
        let rows = self.all(query(AssertSqlSafe(statement)).bind(key).bind(number)).await?;
        let mut points: Vec<PointRow> = Vec::new();
        for row in &rows {
            let id = row.parsed("id")?;
            if points.last().is_none_or(|point| point.id != id) {
                points.push(point_row(row)?);
            }
            if let Some(point) = points.last_mut() {
                point.disks.push(point_disk_row(row)?);
                point.bytes += row.number::<u64>("stored")?;
            }
        }
        Ok(points)
    }

    /// One point.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn point(&self, point: PointId) -> Result<Option<PointRow>, CatalogError> {
        Ok(self.points(PointFilter::Id(point)).await?.pop())
    }

    /// The ids of a server's points that begin with `beginning`, newest first, at most eight.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn points_beginning(
        &self,
        server: ServerId,
        beginning: &str,
    ) -> Result<Vec<PointId>, CatalogError> {
        let statement = query(
            "SELECT id FROM points WHERE server = $1 AND substr(id, 1, $2) = $3 ORDER BY number DESC LIMIT 8",
        )
        .bind(server.to_string())
        .bind(i64::try_from(beginning.len()).unwrap_or(i64::MAX))
        .bind(beginning.to_owned());
        self.all(statement).await?.iter().map(|row| row.parsed("id")).collect()
    }

    /// The newest point of a server whose time T is not after `time`. Newest in the order of commits: where
    /// a clock was set back, points before may have later times.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn point_at(&self, server: ServerId, time: Timestamp) -> Result<Option<PointId>, CatalogError> {
        let statement =
            query("SELECT id FROM points WHERE server = $1 AND time_ns <= $2 ORDER BY number DESC LIMIT 1")
                .bind(server.to_string())
                .bind(time_ns(time)?);
        self.optional(statement).await?.map(|row| row.parsed("id")).transpose()
    }

    /// The newest point of a server that guarantees just this, with its time T.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn newest_of_kind(
        &self,
        server: ServerId,
        kind: PointKind,
    ) -> Result<Option<(PointId, Timestamp)>, CatalogError> {
        let statement = query(
            "SELECT id, time_ns FROM points WHERE server = $1 AND kind = $2 ORDER BY number DESC LIMIT 1",
        )
        .bind(server.to_string())
        .bind(kind.as_str());
        let row = self.optional(statement).await?;
        row.map(|row| Ok((row.parsed("id")?, row.time("time_ns")?))).transpose()
    }

    /// What the next commit of a server has to follow; none before the first.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn newest(&self, server: ServerId) -> Result<Option<Newest>, CatalogError> {
        let point = self.points(PointFilter::Newest(server, 1)).await?.pop();
        Ok(point.map(|point| Newest {
            point: point.id,
            number: point.number,
            time: point.time,
            committed: point.committed,
            disks: point.disks.iter().map(|disk| disk.disk).collect(),
        }))
    }

    /// The newest committed epoch of each disk of a server, with its point and the disk's size in it.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn committed_epochs(
        &self,
        server: ServerId,
    ) -> Result<BTreeMap<DiskNumber, (PointId, PointDiskRow)>, CatalogError> {
        let rows = self
            .all(
                query(
                    "SELECT pd.point, pd.disk, pd.epoch, pd.bytes, pd.files FROM point_disks pd WHERE pd.server = $1 \
                     AND pd.epoch = (SELECT MAX(epoch) FROM point_disks x \
                     WHERE x.server = pd.server AND x.disk = pd.disk)",
                )
                .bind(server.to_string()),
            )
            .await?;
        rows.iter()
            .map(|row| {
                let disk = point_disk_row(row)?;
                Ok((disk.disk, (row.parsed("point")?, disk)))
            })
            .collect()
    }

    /// Whose a point is, when it was committed, and the digest of what was; also of one that retention
    /// removed.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn commit_of(
        &self,
        point: PointId,
    ) -> Result<Option<(ServerId, Timestamp, Digest)>, CatalogError> {
        let row = self
            .optional(
                query(
                    "SELECT server, committed_ns, commit_digest FROM points WHERE id = $1 UNION ALL \
                     SELECT server, committed_ns, commit_digest FROM removed_points WHERE id = $1",
                )
                .bind(point.to_string()),
            )
            .await?;
        row.map(|row| Ok((row.parsed("server")?, row.time("committed_ns")?, row.parsed("commit_digest")?)))
            .transpose()
    }

    /// The first gap among the rows of a server's files: between two points there are not as many as
    /// were put there. `disk` alone and up to an epoch, when it is given.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn lost_files(
        &self,
        server: ServerId,
        disk: Option<(DiskNumber, Epoch)>,
    ) -> Result<Option<LostFiles>, CatalogError> {
        let (condition, number, until) = match disk {
            Some((disk, epoch)) => ("AND disk = $2 AND epoch <= $3", i64::from(disk.0), bigint(epoch.0)?),
            None => ("AND $2 <= $3", 0, 0),
        };
        // Only the constants above are put together here.
        let statement = format!(
            "SELECT disk, epoch_before, epoch, files, found FROM (SELECT disk, epoch_before, epoch, files, \
             (SELECT COUNT(*) FROM files f WHERE f.server = $1 AND f.disk = pd.disk \
             AND f.last_epoch > pd.epoch_before AND f.last_epoch <= pd.epoch) AS found \
             FROM (SELECT disk, epoch, files, \
             COALESCE(LAG(epoch) OVER (PARTITION BY disk ORDER BY epoch), 0) AS epoch_before \
             FROM point_disks WHERE server = $1 {condition}) pd) counted \
             WHERE found <> files ORDER BY disk, epoch LIMIT 1"
        );
        let statement = query(AssertSqlSafe(statement)).bind(server.to_string()).bind(number).bind(until);
        let row = self.optional(statement).await?;
        row.map(|row| {
            Ok(LostFiles {
                disk: row.disk("disk")?,
                first: Epoch(row.number("epoch_before")?).next(),
                last: Epoch(row.number("epoch")?),
                expected: row.number("files")?,
                found: row.number("found")?,
            })
        })
        .transpose()
    }

    /// Points that retention removed and whose id begins with `beginning`, at most two.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn removed_beginning(
        &self,
        server: ServerId,
        beginning: &str,
    ) -> Result<Vec<RemovedPoint>, CatalogError> {
        let statement = query(
            "SELECT id, time_ns, removed_ns FROM removed_points \
             WHERE server = $1 AND substr(id, 1, $2) = $3 ORDER BY removed_ns DESC LIMIT 2",
        )
        .bind(server.to_string())
        .bind(i64::try_from(beginning.len()).unwrap_or(i64::MAX))
        .bind(beginning.to_owned());
        self.all(statement).await?.iter().map(removed_row).collect()
    }

    /// The newest point whose time T is not after `time`, of those that retention removed.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn removed_at(
        &self,
        server: ServerId,
        time: Timestamp,
    ) -> Result<Option<RemovedPoint>, CatalogError> {
        let statement = query(
            "SELECT id, time_ns, removed_ns FROM removed_points WHERE server = $1 AND time_ns <= $2 \
             ORDER BY time_ns DESC LIMIT 1",
        )
        .bind(server.to_string())
        .bind(time_ns(time)?);
        self.optional(statement).await?.as_ref().map(removed_row).transpose()
    }

    /// The oldest and the newest point of a server, with their times.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn ends(&self, server: ServerId) -> Result<Option<[(PointId, Timestamp); 2]>, CatalogError> {
        let statement = query(
            "SELECT id, time_ns FROM points p WHERE server = $1 AND number IN \
             ((SELECT MIN(number) FROM points x WHERE x.server = $1), \
             (SELECT MAX(number) FROM points x WHERE x.server = $1)) ORDER BY number",
        )
        .bind(server.to_string());
        let rows = self.all(statement).await?;
        let end = |row: &DatabaseRow| Ok::<_, CatalogError>((row.parsed("id")?, row.time("time_ns")?));
        match (rows.first(), rows.last()) {
            (Some(oldest), Some(newest)) => Ok(Some([end(oldest)?, end(newest)?])),
            _ => Ok(None),
        }
    }

    /// All files that a disk needs at the end of `epoch`, in the order in which they apply: later
    /// ones override earlier ones.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn files_up_to(
        &self,
        server: ServerId,
        disk: DiskNumber,
        epoch: Epoch,
    ) -> Result<Vec<StoredFile>, CatalogError> {
        self.files_between(server, disk, Epoch(0), epoch).await
    }

    /// The files of a disk whose last epoch is after `after` and not after `last`, in order.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn files_between(
        &self,
        server: ServerId,
        disk: DiskNumber,
        after: Epoch,
        last: Epoch,
    ) -> Result<Vec<StoredFile>, CatalogError> {
        let rows = self
            .all(
                query(
                    "SELECT object, disk, first_epoch, last_epoch, part, bytes, digest, plain_bytes FROM files \
                     WHERE server = $1 AND disk = $2 AND last_epoch > $3 AND last_epoch <= $4 \
                     ORDER BY last_epoch, part",
                )
                .bind(server.to_string())
                .bind(i64::from(disk.0))
                .bind(bigint(after.0)?)
                .bind(bigint(last.0)?),
            )
            .await?;
        rows.iter().map(file_row).collect()
    }

    /// One file by its object's name.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn file(&self, object: &str) -> Result<Option<StoredFile>, CatalogError> {
        let row = self
            .optional(
                query(
                    "SELECT object, disk, first_epoch, last_epoch, part, bytes, digest, plain_bytes FROM files \
                     WHERE object = $1",
                )
                .bind(object.to_owned()),
            )
            .await?;
        row.as_ref().map(file_row).transpose()
    }

    /// Makes a point and its files exist, all or nothing. Ends the requests that waited for it.
    ///
    /// # Errors
    /// [`CatalogError::Overtaken`] when the server's newest point is not number `point.number - 1`
    /// (or an older one, after retention) any more; [`CatalogError::PointTaken`] when there is or was
    /// a point of this id; or when the catalog fails.
    pub async fn insert_point(
        &self,
        point: &PointRow,
        files: &[StoredFile],
        newest: Option<PointId>,
    ) -> Result<(), CatalogError> {
        let mut transaction = self.begin().await?;
        let now_newest = self
            .optional_within(
                &mut transaction,
                query("SELECT id FROM points WHERE server = $1 ORDER BY number DESC LIMIT 1")
                    .bind(point.server.to_string()),
            )
            .await?;
        let now_newest: Option<PointId> = now_newest.map(|row| row.parsed("id")).transpose()?;
        if now_newest != newest {
            return Err(CatalogError::Overtaken { server: point.server });
        }
        let taken = self
            .optional_within(
                &mut transaction,
                query(
                    "SELECT server FROM points WHERE id = $1 UNION ALL \
                     SELECT server FROM removed_points WHERE id = $1",
                )
                .bind(point.id.to_string()),
            )
            .await?;
        if let Some(taken) = taken {
            return Err(CatalogError::PointTaken { point: point.id, owner: taken.parsed("server")? });
        }
        self.put_point(&mut transaction, point).await?;
        for file in files {
            self.put_file(&mut transaction, point.server, file).await?;
            let statement = query("DELETE FROM uploads WHERE object = $1").bind(file.object.clone());
            self.run(&mut transaction, statement).await?;
        }
        let statement = query(
            "UPDATE requests SET state = 'done', answered = $3, ended_ns = $2 \
             WHERE point = $1 AND state = 'running' AND kind IN ('take-point', 'stand-down')",
        )
        .bind(point.id.to_string())
        .bind(time_ns(point.committed)?)
        .bind(true);
        self.run(&mut transaction, statement).await?;
        self.commit(transaction).await
    }

    pub(crate) async fn put_point(
        &self,
        connection: &mut Connection,
        point: &PointRow,
    ) -> Result<(), CatalogError> {
        let statement = query(
            "INSERT INTO points (id, server, number, time_ns, kind, capture, sealed_ns, uploaded_ns, \
             committed_ns, commit_digest) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(point.id.to_string())
        .bind(point.server.to_string())
        .bind(bigint(point.number)?)
        .bind(time_ns(point.time)?)
        .bind(point.kind.as_str())
        .bind(json_text("capture", &point.capture)?)
        .bind(time_ns(point.sealed)?)
        .bind(time_ns(point.uploaded)?)
        .bind(time_ns(point.committed)?)
        .bind(point.commit_digest.to_string());
        self.run(connection, statement).await?;
        for disk in &point.disks {
            let statement = query(
                "INSERT INTO point_disks (point, server, disk, epoch, bytes, files) \
                 VALUES ($1, $2, $3, $4, $5, $6)",
            )
            .bind(point.id.to_string())
            .bind(point.server.to_string())
            .bind(i64::from(disk.disk.0))
            .bind(bigint(disk.epoch.0)?)
            .bind(bigint(disk.bytes)?)
            .bind(bigint(disk.files)?);
            self.run(connection, statement).await?;
        }
        Ok(())
    }

    pub(crate) async fn put_file(
        &self,
        connection: &mut Connection,
        server: ServerId,
        file: &StoredFile,
    ) -> Result<(), CatalogError> {
        let statement = query(
            "INSERT INTO files (object, server, disk, first_epoch, last_epoch, part, bytes, digest, \
             plain_bytes) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(file.object.clone())
        .bind(server.to_string())
        .bind(i64::from(file.disk.0))
        .bind(bigint(file.first_epoch.0)?)
        .bind(bigint(file.last_epoch.0)?)
        .bind(i64::from(file.part.0))
        .bind(bigint(file.bytes)?)
        .bind(file.digest.to_string())
        .bind(bigint(file.plain_bytes)?);
        self.run(connection, statement).await.map(drop)
    }
}

/// A point, as yet without its disks.
fn point_row(row: &DatabaseRow) -> Result<PointRow, CatalogError> {
    Ok(PointRow {
        id: row.parsed("id")?,
        server: row.parsed("server")?,
        number: row.number("number")?,
        time: row.time("time_ns")?,
        kind: row.parsed("kind")?,
        capture: row.json("capture")?,
        sealed: row.time("sealed_ns")?,
        uploaded: row.time("uploaded_ns")?,
        committed: row.time("committed_ns")?,
        commit_digest: row.parsed("commit_digest")?,
        disks: Vec::new(),
        bytes: 0,
    })
}

fn removed_row(row: &DatabaseRow) -> Result<RemovedPoint, CatalogError> {
    Ok(RemovedPoint {
        id: row.parsed("id")?,
        time: row.optional_time("time_ns")?,
        removed: row.time("removed_ns")?,
    })
}

fn point_disk_row(row: &DatabaseRow) -> Result<PointDiskRow, CatalogError> {
    Ok(PointDiskRow {
        disk: row.disk("disk")?,
        epoch: Epoch(row.number("epoch")?),
        bytes: row.number("bytes")?,
        files: row.number("files")?,
    })
}

fn file_row(row: &DatabaseRow) -> Result<StoredFile, CatalogError> {
    Ok(StoredFile {
        disk: row.disk("disk")?,
        first_epoch: Epoch(row.number("first_epoch")?),
        last_epoch: Epoch(row.number("last_epoch")?),
        part: Part(row.number("part")?),
        object: row.text("object")?,
        bytes: row.number("bytes")?,
        digest: row.parsed("digest")?,
        plain_bytes: row.number("plain_bytes")?,
    })
}
