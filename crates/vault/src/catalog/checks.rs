//! When stored files were read whole, and what was found.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lifeboat_model::{DiskNumber, Epoch, PointId, ServerId};
use sqlx::query;

use super::CatalogError;
use super::database::Catalog;
use super::row::{RowValues, StoredFile, bigint, time_ns};

/// The file whose check is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueFile {
    /// Whose.
    pub server: ServerId,
    /// The file.
    pub file: StoredFile,
    /// When it was last checked; none when it never was.
    pub checked: Option<Timestamp>,
    /// What was wrong with it then.
    pub fault: Option<String>,
}

/// A file that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedFile {
    /// Its name.
    pub object: String,
    /// Whose disk.
    pub disk: DiskNumber,
    /// The last epoch in it: points from there on need it.
    pub last_epoch: Epoch,
    /// What is wrong with it.
    pub fault: String,
}

impl Catalog {
    /// The file that was not checked for the longest time.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn file_due(&self) -> Result<Option<DueFile>, CatalogError> {
        let row = self
            .optional(query(
                "SELECT f.object, f.server, c.checked_ns, c.fault FROM files f LEFT JOIN file_checks c \
                 ON c.object = f.object ORDER BY COALESCE(c.checked_ns, -1), f.object LIMIT 1",
            ))
            .await?;
        let Some(row) = row else { return Ok(None) };
        let Some(file) = self.file(&row.text("object")?).await? else { return Ok(None) };
        Ok(Some(DueFile {
            server: row.parsed("server")?,
            file,
            checked: row.optional_time("checked_ns")?,
            fault: row.optional_text("fault")?,
        }))
    }

    /// Notes what a check of a file found; says what was known to be wrong with it before.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn put_check(
        &self,
        object: &str,
        checked: Timestamp,
        fault: Option<&str>,
    ) -> Result<Option<String>, CatalogError> {
        let mut transaction = self.begin().await?;
        let before = self
            .optional_within(
                &mut transaction,
                query("SELECT fault FROM file_checks WHERE object = $1").bind(object.to_owned()),
            )
            .await?;
        let before = before.map(|row| row.optional_text("fault")).transpose()?.flatten();
        // Only of files that there are: a merge may have taken it away meanwhile.
        let statement = query(
            "INSERT INTO file_checks (object, checked_ns, fault) SELECT object, $2, $3 FROM files \
             WHERE object = $1 ON CONFLICT (object) DO UPDATE SET checked_ns = excluded.checked_ns, \
             fault = excluded.fault",
        )
        .bind(object.to_owned())
        .bind(time_ns(checked)?)
        .bind(fault.map(str::to_owned));
        self.run(&mut transaction, statement).await?;
        self.commit(transaction).await?;
        Ok(before)
    }

    /// The files of a server that are known to be damaged.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn damaged_files(&self, server: ServerId) -> Result<Vec<DamagedFile>, CatalogError> {
        let rows = self
            .all(
                query(
                    "SELECT f.object, f.disk, f.last_epoch, c.fault FROM file_checks c JOIN files f \
                     ON f.object = c.object WHERE f.server = $1 AND c.fault IS NOT NULL \
                     ORDER BY f.disk, f.last_epoch, f.part",
                )
                .bind(server.to_string()),
            )
            .await?;
        rows.iter()
            .map(|row| {
                Ok(DamagedFile {
                    object: row.text("object")?,
                    disk: row.disk("disk")?,
                    last_epoch: Epoch(row.number("last_epoch")?),
                    fault: row.text("fault")?,
                })
            })
            .collect()
    }

    /// Points that need a file of a disk whose last epoch is that, oldest first.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn points_needing(
        &self,
        server: ServerId,
        disk: DiskNumber,
        last_epoch: Epoch,
    ) -> Result<Vec<PointId>, CatalogError> {
        let statement = query(
            "SELECT point FROM point_disks WHERE server = $1 AND disk = $2 AND epoch >= $3 ORDER BY epoch",
        )
        .bind(server.to_string())
        .bind(i64::from(disk.0))
        .bind(bigint(last_epoch.0)?);
        self.all(statement).await?.iter().map(|row| row.parsed("point")).collect()
    }

    /// The point before the one of a number.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn point_before(&self, server: ServerId, number: u64) -> Result<Option<PointId>, CatalogError> {
        let statement =
            query("SELECT id FROM points WHERE server = $1 AND number < $2 ORDER BY number DESC LIMIT 1")
                .bind(server.to_string())
                .bind(bigint(number)?);
        self.optional(statement).await?.map(|row| row.parsed("id")).transpose()
    }

    /// The epoch of the last point before the one that ends `epoch` of a disk; 0 when there is none.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn epoch_before(
        &self,
        server: ServerId,
        disk: DiskNumber,
        epoch: Epoch,
    ) -> Result<Epoch, CatalogError> {
        let statement = query(
            "SELECT COALESCE(MAX(epoch), 0) AS epoch FROM point_disks \
             WHERE server = $1 AND disk = $2 AND epoch < $3",
        )
        .bind(server.to_string())
        .bind(i64::from(disk.0))
        .bind(bigint(epoch.0)?);
        Ok(Epoch(self.one(statement).await?.number("epoch")?))
    }

    /// All files of a server, by disk, in the order in which they apply.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn files_of_server(
        &self,
        server: ServerId,
    ) -> Result<BTreeMap<DiskNumber, Vec<StoredFile>>, CatalogError> {
        let mut files = BTreeMap::new();
        for disk in self.disks(server).await? {
            let all = self.files_up_to(server, disk.disk, Epoch(i64::MAX.unsigned_abs())).await?;
            files.insert(disk.disk, all);
        }
        Ok(files)
    }
}
