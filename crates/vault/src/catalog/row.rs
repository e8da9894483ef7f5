//! What the rows of the tables are, and how columns are read.

use std::fmt::Display;
use std::str::FromStr;

use jiff::Timestamp;
use lifeboat_hrl::WrappedKey;
use lifeboat_model::{Digest, DiskNumber, Epoch, Part, PointId, PointKind, ReplicationPolicy, ServerId};
use lifeboat_wire::agent::CaptureFigures;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sqlx::Row;

use super::CatalogError;
use super::database::DatabaseRow;

/// A protected server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerRow {
    /// Its id.
    pub id: ServerId,
    /// Its name; no two servers have the same.
    pub name: String,
    /// How it is protected.
    pub policy: ReplicationPolicy,
    /// When its first disk was registered.
    pub registered: Timestamp,
    /// Through which process server it was last seen.
    pub process_server: Option<String>,
    /// The point of the last comparison with the live disks.
    pub compared_point: Option<PointId>,
    /// Since when its source may not go on with its history.
    pub fenced: Option<Timestamp>,
    /// When its agent was last heard of, as far as that was noted.
    pub heard: Option<Timestamp>,
}

/// A disk of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRow {
    /// Its number.
    pub disk: DiskNumber,
    /// The path on the server.
    pub path: String,
    /// What the hardware calls itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware_id: Option<String>,
    /// Size in bytes as last described.
    pub bytes: u64,
    /// It is not protected any more; its points stay.
    pub removed: bool,
}

/// A key of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskKeyRow {
    /// Whose.
    pub disk: DiskNumber,
    /// The key, encrypted by the master key.
    pub wrapped: WrappedKey,
    /// When it was made; the newest is in use.
    pub created: Timestamp,
}

/// A recovery point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointRow {
    /// Its id.
    pub id: PointId,
    /// Whose.
    pub server: ServerId,
    /// Counted from 1 in the order of commits.
    pub number: u64,
    /// The point in time T.
    pub time: Timestamp,
    /// What it guarantees.
    pub kind: PointKind,
    /// How its capture went.
    pub capture: CaptureFigures,
    /// When it was sealed on the process server.
    pub sealed: Timestamp,
    /// When its last file was stored.
    pub uploaded: Timestamp,
    /// When it was committed.
    pub committed: Timestamp,
    /// Of what was committed, to know the same commit again.
    pub commit_digest: Digest,
    /// Its disks, by number.
    pub disks: Vec<PointDiskRow>,
    /// Bytes of the files that end with its epochs. Computed; not stored.
    pub bytes: u64,
}

/// One disk of a recovery point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PointDiskRow {
    /// The disk.
    pub disk: DiskNumber,
    /// The epoch that the point ends.
    pub epoch: Epoch,
    /// Size of the disk in bytes.
    pub bytes: u64,
    /// Files that it needs and no point before it.
    pub files: u64,
}

/// A point that retention removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedPoint {
    /// Its id.
    pub id: PointId,
    /// Its time T; not known of points that an old version removed.
    pub time: Option<Timestamp>,
    /// When it was removed.
    pub removed: Timestamp,
}

/// Rows of files that are not there, though points need them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostFiles {
    /// Of which disk.
    pub disk: DiskNumber,
    /// The first epoch that they can be of.
    pub first: Epoch,
    /// The last one.
    pub last: Epoch,
    /// How many files there should be of these epochs.
    pub expected: u64,
    /// How many there are.
    pub found: u64,
}

/// A file that points need.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StoredFile {
    /// Whose changes it holds.
    pub disk: DiskNumber,
    /// The first epoch of them.
    pub first_epoch: Epoch,
    /// The last epoch of them.
    pub last_epoch: Epoch,
    /// The part of the epoch, or of the merged epochs.
    pub part: Part,
    /// Its name in the store.
    pub object: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// The digest of the whole file.
    pub digest: Digest,
    /// Bytes of disk whose content it holds, zeroes not counted.
    pub plain_bytes: u64,
}

/// How much a server has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerTotals {
    /// Recovery points.
    pub points: u64,
    /// Bytes of their files.
    pub stored_bytes: u64,
}

/// Reads columns as what they mean.
pub(crate) trait RowValues {
    fn text(&self, column: &str) -> Result<String, CatalogError>;
    fn optional_text(&self, column: &str) -> Result<Option<String>, CatalogError>;
    fn integer(&self, column: &str) -> Result<i64, CatalogError>;
    fn optional_integer(&self, column: &str) -> Result<Option<i64>, CatalogError>;
    fn flag(&self, column: &str) -> Result<bool, CatalogError>;

    fn parsed<T: FromStr<Err: Display>>(&self, column: &str) -> Result<T, CatalogError> {
        self.text(column)?.parse().map_err(|error| value(column, error))
    }

    fn optional_parsed<T: FromStr<Err: Display>>(&self, column: &str) -> Result<Option<T>, CatalogError> {
        let text = self.optional_text(column)?;
        text.map(|text| text.parse().map_err(|error| value(column, error))).transpose()
    }

    fn json<T: DeserializeOwned>(&self, column: &str) -> Result<T, CatalogError> {
        serde_json::from_str(&self.text(column)?).map_err(|error| value(column, error))
    }

    fn number<T: TryFrom<i64, Error: Display>>(&self, column: &str) -> Result<T, CatalogError> {
        T::try_from(self.integer(column)?).map_err(|error| value(column, error))
    }

    fn time(&self, column: &str) -> Result<Timestamp, CatalogError> {
        from_ns(column, self.integer(column)?)
    }

    fn optional_time(&self, column: &str) -> Result<Option<Timestamp>, CatalogError> {
        self.optional_integer(column)?.map(|ns| from_ns(column, ns)).transpose()
    }

    fn disk(&self, column: &str) -> Result<DiskNumber, CatalogError> {
        Ok(DiskNumber(self.number(column)?))
    }
}

impl RowValues for DatabaseRow {
    fn text(&self, column: &str) -> Result<String, CatalogError> {
        self.try_get(column).map_err(|error| value(column, error))
    }

    fn optional_text(&self, column: &str) -> Result<Option<String>, CatalogError> {
        self.try_get(column).map_err(|error| value(column, error))
    }

    fn integer(&self, column: &str) -> Result<i64, CatalogError> {
        self.try_get(column).map_err(|error| value(column, error))
    }

    fn optional_integer(&self, column: &str) -> Result<Option<i64>, CatalogError> {
        self.try_get(column).map_err(|error| value(column, error))
    }

    fn flag(&self, column: &str) -> Result<bool, CatalogError> {
        self.try_get(column).map_err(|error| value(column, error))
    }
}

fn value(column: &str, why: impl Display) -> CatalogError {
    CatalogError::Value { column: column.to_owned(), why: why.to_string() }
}

fn from_ns(column: &str, ns: i64) -> Result<Timestamp, CatalogError> {
    Timestamp::from_nanosecond(i128::from(ns)).map_err(|error| value(column, error))
}

/// A time as the catalog holds it.
pub(crate) fn time_ns(time: Timestamp) -> Result<i64, CatalogError> {
    i64::try_from(time.as_nanosecond()).ok().filter(|ns| *ns >= 0).ok_or(CatalogError::Time(time))
}

/// A number as the catalog holds it.
pub(crate) fn bigint(number: u64) -> Result<i64, CatalogError> {
    i64::try_from(number).map_err(|_| CatalogError::TooLarge(number))
}

/// JSON as the catalog holds it. Only for types whose JSON cannot fail: no maps with odd keys.
pub(crate) fn json_text<T: Serialize>(column: &str, content: &T) -> Result<String, CatalogError> {
    serde_json::to_string(content).map_err(|error| value(column, error))
}
