use std::fmt;

use jiff::Timestamp;
use lifeboat_hrl::KeyError;
use lifeboat_model::PointId;
use lifeboat_trust::GrantError;

use crate::catalog::{CatalogError, LostFiles, RemovedPoint};
use crate::commit_rules::CommitRefusal;
use crate::manifest::ManifestError;
use crate::random::NoRandomness;
use crate::state_directory::StateError;
use crate::store::StoreError;

/// The vault did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The catalog failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The object store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A manifest is not believed.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The commit makes no point.
    #[error(transparent)]
    Commit(#[from] CommitRefusal),
    /// An upload is refused.
    #[error(transparent)]
    Upload(#[from] UploadRefusal),
    /// What was named is not there, or not one thing.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// What was sent cannot be meant.
    #[error("{0}")]
    Invalid(String),
    /// A disk key cannot be had.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A disk has no key in the catalog.
    #[error("disk {disk} of server {server} has no key in the catalog; run: lifeboat vault rebuild-catalog")]
    NoKey {
        /// The server.
        server: lifeboat_model::ServerId,
        /// The disk.
        disk: lifeboat_model::DiskNumber,
    },
    /// The catalog has lost rows of files: the disk would read as if they had never been.
    #[error(
        "the catalog has {} instead of {} files of epochs {} to {} of disk {} of server {server}: rows of it \
         are lost, and the disk would read wrong; see with `lifeboat verify` what else is wrong, then stop \
         the vault and run: lifeboat vault rebuild-catalog",
        lost.found, lost.expected, lost.first, lost.last, lost.disk
    )]
    FilesLost {
        /// The server.
        server: lifeboat_model::ServerId,
        /// Which files.
        lost: LostFiles,
    },
    /// No random numbers.
    #[error(transparent)]
    Random(#[from] NoRandomness),
}

/// An upload that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UploadRefusal {
    /// The grant is not honoured.
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// The grant was given to another process server.
    #[error("the grant was given to the process server {granted}, not to {caller}")]
    Foreign {
        /// To whom it was given.
        granted: String,
        /// Who came with it.
        caller: String,
    },
    /// More bytes than the grant names.
    #[error("{object} was sent with more than its {bytes} bytes")]
    TooLong {
        /// The object.
        object: String,
        /// Its size by the grant.
        bytes: u64,
    },
    /// Fewer bytes than the grant names.
    #[error("{object} was cut off after {received} of {bytes} bytes; send it again")]
    CutOff {
        /// The object.
        object: String,
        /// Its size by the grant.
        bytes: u64,
        /// What came.
        received: u64,
    },
    /// Not the file that the grant names.
    #[error("{object} did not arrive as the file that its grant names: {why}")]
    Damaged {
        /// The object.
        object: String,
        /// What is wrong with it.
        why: String,
    },
    /// Another content lies under the same name.
    #[error("{object} is part of a committed point with another content; it is not written over")]
    Taken {
        /// The object.
        object: String,
    },
}

/// What was named is not there, or not one thing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// No such thing.
    #[error("there is no {what} {text:?}{}", listed("; there is: ", known))]
    Unknown {
        /// `server`, `point`, `disk` or `request`.
        what: &'static str,
        /// As it was named.
        text: String,
        /// What there is, as far as it is worth telling.
        known: Vec<String>,
    },
    /// No such point, any more or at all.
    #[error(
        "{}{}",
        removed.as_ref().map_or_else(|| format!("there is no point {text:?}"), |removed| removed.sentence(text)),
        match ends.as_deref() {
            Some([oldest, newest]) => format!(
                "; the oldest point is {oldest}, the newest is {newest}; name one by its id, or by a time such as \
                 2026-11-24T19:13:00Z"
            ),
            None => "; the server has no points yet: the first one follows the end of its first copy".to_owned(),
        }
    )]
    NoPoint {
        /// As it was named.
        text: String,
        /// The point that is meant, when retention removed it.
        removed: Option<Box<Removal>>,
        /// The oldest and the newest point of the server.
        ends: Option<Box<[PointAt; 2]>>,
    },
    /// No point that the server's applications have prepared.
    #[error(
        "{server} has no application-consistent point, since this version's agents take none; {}",
        match filesystem {
            Some(point) => format!(
                "its newest file-system-consistent one is {point}: take that with --point {}, or latest-processed \
                 for the newest of any kind",
                point.id
            ),
            None => format!(
                "take latest-processed, its newest point of any kind, or have file-system-consistent ones taken \
                 with `lifeboat server set-policy {server} --filesystem-interval 1h`"
            ),
        }
    )]
    NoAppPoint {
        /// The server's name.
        server: String,
        /// Its newest point for which all file systems were at rest.
        filesystem: Option<PointAt>,
    },
    /// More than one.
    #[error("{text:?} is the beginning of more than one {what}{}; say more of it", listed(": ", matching))]
    Ambiguous {
        /// `server` or `point`.
        what: &'static str,
        /// As it was named.
        text: String,
        /// What it could be.
        matching: Vec<String>,
    },
}

/// A point as it is told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointAt {
    /// Its id.
    pub id: PointId,
    /// Its time T.
    pub time: Timestamp,
}

impl fmt::Display for PointAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:.3})", self.id, self.time)
    }
}

/// A point that was asked for and that retention removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// The point.
    pub point: RemovedPoint,
    /// It was asked for by a time, for which it was the newest point.
    pub by_time: bool,
}

impl Removal {
    fn sentence(&self, text: &str) -> String {
        let RemovedPoint { id, time, removed } = &self.point;
        let of = time.map_or_else(String::new, |time| format!(" ({time:.3})"));
        let before =
            if self.by_time { format!("there is no point at or before {text}: ") } else { String::new() };
        format!("{before}point {id}{of} was removed by retention at {removed:.0}")
    }
}

fn listed(before: &str, names: &[String]) -> String {
    const SHOWN: usize = 8;
    if names.is_empty() {
        return String::new();
    }
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if names.len() > SHOWN { ", …" } else { "" };
    format!("{before}{shown}{more}")
}

impl VaultError {
    /// The status of HTTP that it is answered with.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            Self::Invalid(_) => 400,
            Self::Upload(UploadRefusal::Grant(_) | UploadRefusal::Foreign { .. }) => 403,
            Self::Lookup(
                LookupError::Unknown { .. } | LookupError::NoPoint { .. } | LookupError::NoAppPoint { .. },
            )
            | Self::Commit(CommitRefusal::ServerUnknown(_) | CommitRefusal::DiskUnknown(_)) => 404,
            Self::Lookup(LookupError::Ambiguous { .. })
            | Self::Commit(_)
            | Self::Upload(UploadRefusal::Taken { .. })
            | Self::Catalog(CatalogError::Overtaken { .. } | CatalogError::PointTaken { .. }) => 409,
            Self::Upload(_) => 422,
            Self::Store(StoreError::Full { .. }) | Self::Catalog(CatalogError::Full { .. }) => 507,
            Self::Store(
                StoreError::Unreachable { .. } | StoreError::ReadOnly { .. } | StoreError::Denied { .. },
            )
            | Self::Catalog(CatalogError::ReadOnly { .. }) => 503,
            Self::Catalog(CatalogError::TooLarge(_) | CatalogError::Time(_)) => 400,
            Self::State(_)
            | Self::Catalog(_)
            | Self::Store(_)
            | Self::Manifest(_)
            | Self::Key(_)
            | Self::NoKey { .. }
            | Self::FilesLost { .. }
            | Self::Random(_) => 500,
        }
    }

    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::State(_) => "state_directory",
            Self::Catalog(error) => match error {
                CatalogError::Full { .. } => "catalog_full",
                CatalogError::ReadOnly { .. } => "catalog_read_only",
                CatalogError::Newer { .. } => "catalog_newer",
                CatalogError::Overtaken { .. } => "overtaken",
                CatalogError::PointTaken { .. } => "point_taken",
                CatalogError::TooLarge(_) | CatalogError::Time(_) => "invalid",
                CatalogError::Failed { .. } => "catalog_failed",
                _ => "catalog_damaged",
            },
            Self::Store(error) => match error {
                StoreError::Full { .. } => "store_full",
                StoreError::ReadOnly { .. } => "store_read_only",
                StoreError::Denied { .. } => "store_denied",
                StoreError::Unreachable { .. } => "store_unreachable",
                _ => "store_failed",
            },
            Self::Manifest(_) => "manifest_refused",
            Self::Commit(refusal) => commit_code(refusal),
            Self::Upload(refusal) => match refusal {
                UploadRefusal::Grant(GrantError::Expired(_)) => "grant_expired",
                UploadRefusal::Grant(_) | UploadRefusal::Foreign { .. } => "grant_refused",
                UploadRefusal::TooLong { .. } => "upload_too_long",
                UploadRefusal::CutOff { .. } => "upload_cut_off",
                UploadRefusal::Damaged { .. } => "upload_damaged",
                UploadRefusal::Taken { .. } => "object_taken",
            },
            Self::Lookup(LookupError::NoPoint { removed: Some(_), .. }) => "point_removed",
            Self::Lookup(LookupError::Unknown { .. } | LookupError::NoPoint { .. }) => "not_found",
            Self::Lookup(LookupError::NoAppPoint { .. }) => "no_app_point",
            Self::Lookup(LookupError::Ambiguous { .. }) => "ambiguous",
            Self::Invalid(_) => "invalid",
            Self::Key(_) | Self::NoKey { .. } => "key_refused",
            Self::FilesLost { .. } => "catalog_damaged",
            Self::Random(_) => "no_random_numbers",
        }
    }

    /// Whether the same request can succeed later without anything else being done differently.
    #[must_use]
    pub const fn can_retry(&self) -> bool {
        matches!(self.status(), 500 | 503 | 507)
            || matches!(
                self,
                Self::Commit(CommitRefusal::FileMissing { .. })
                    | Self::Catalog(CatalogError::Overtaken { .. })
            )
    }
}

const fn commit_code(refusal: &CommitRefusal) -> &'static str {
    match refusal {
        CommitRefusal::ServerUnknown(_) => "server_unknown",
        CommitRefusal::Fenced { .. } => "fenced",
        CommitRefusal::DiskUnknown(_) => "disk_unknown",
        CommitRefusal::DiskMissing { .. } => "disk_missing",
        CommitRefusal::Epoch { .. } => "other_history",
        CommitRefusal::FileMissing { .. } => "file_missing",
        CommitRefusal::FileDiffers { .. } => "file_differs",
        CommitRefusal::PointDiffers(_) => "point_differs",
        CommitRefusal::PointTaken { .. } => "point_taken",
        CommitRefusal::NoDisks(_)
        | CommitRefusal::DiskTwice(_)
        | CommitRefusal::DiskBytes { .. }
        | CommitRefusal::FileUnexpected { .. }
        | CommitRefusal::FilesMissing { .. } => "invalid",
    }
}
