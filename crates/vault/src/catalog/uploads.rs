//! Objects that were received whole and that no point has yet.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lifeboat_model::{Digest, ServerId};
use sqlx::query;

use super::CatalogError;
use super::database::Catalog;
use super::row::{RowValues, bigint, time_ns};

/// An object that was received whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadRow {
    /// Its size in bytes.
    pub bytes: u64,
    /// Its digest, computed by the vault.
    pub digest: Digest,
    /// When it was stored.
    pub stored: Timestamp,
}

impl Catalog {
    /// Notes an object that is durable and whose content was checked.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn put_upload(
        &self,
        server: ServerId,
        object: &str,
        upload: &UploadRow,
    ) -> Result<(), CatalogError> {
        let statement = query(
            "INSERT INTO uploads (object, server, bytes, digest, stored_ns) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (object) DO UPDATE SET bytes = excluded.bytes, digest = excluded.digest, \
             stored_ns = excluded.stored_ns",
        )
        .bind(object.to_owned())
        .bind(server.to_string())
        .bind(bigint(upload.bytes)?)
        .bind(upload.digest.to_string())
        .bind(time_ns(upload.stored)?);
        self.run_alone(statement).await.map(drop)
    }

    /// A server's uploads that no point has yet, by object.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn uploads(&self, server: ServerId) -> Result<BTreeMap<String, UploadRow>, CatalogError> {
        let rows = self
            .all(
                query("SELECT object, bytes, digest, stored_ns FROM uploads WHERE server = $1")
                    .bind(server.to_string()),
            )
            .await?;
        rows.iter().map(|row| Ok((row.text("object")?, upload_row(row)?))).collect()
    }

    /// One upload.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn upload(&self, object: &str) -> Result<Option<UploadRow>, CatalogError> {
        let row = self
            .optional(
                query("SELECT bytes, digest, stored_ns FROM uploads WHERE object = $1")
                    .bind(object.to_owned()),
            )
            .await?;
        row.as_ref().map(upload_row).transpose()
    }

    /// Forgets an upload whose object is removed or not what it was.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn forget_upload(&self, object: &str) -> Result<(), CatalogError> {
        self.run_alone(query("DELETE FROM uploads WHERE object = $1").bind(object.to_owned())).await.map(drop)
    }
}

fn upload_row(row: &super::database::DatabaseRow) -> Result<UploadRow, CatalogError> {
    Ok(UploadRow {
        bytes: row.number("bytes")?,
        digest: row.parsed("digest")?,
        stored: row.time("stored_ns")?,
    })
}
