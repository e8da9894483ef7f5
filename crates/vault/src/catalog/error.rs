use std::path::PathBuf;

/// The catalog did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// It is not there.
    #[error("the catalog {} is missing; make it anew from the store with: lifeboat vault rebuild-catalog", path.display())]
    Missing {
        /// Its file.
        path: PathBuf,
    },
    /// It is no database any more, or one that contradicts itself.
    #[error(
        "the catalog {} is damaged ({why}); make it anew from the store with: lifeboat vault rebuild-catalog",
        path.display()
    )]
    Damaged {
        /// Its file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// A later release wrote it.
    #[error(
        "the catalog {} was written by a later release of Lifeboat (its version is {version}, this release knows \
         up to {known}): start that release; nothing is damaged",
        path.display()
    )]
    Newer {
        /// Its file.
        path: PathBuf,
        /// Its newest migration.
        version: i64,
        /// The newest migration of this release.
        known: i64,
    },
    /// It belongs to another vault.
    #[error("the catalog {} is not that of vault {vault}; make it anew from the store with: lifeboat vault rebuild-catalog", path.display())]
    NotOurs {
        /// Its file.
        path: PathBuf,
        /// Whose it should be.
        vault: lifeboat_model::VaultId,
    },
    /// No room.
    #[error("the catalog {} cannot be written: its file system is full; make room there", path.display())]
    Full {
        /// Its file.
        path: PathBuf,
    },
    /// It may not be written.
    #[error("the catalog {} cannot be written: it or its file system is read-only", path.display())]
    ReadOnly {
        /// Its file.
        path: PathBuf,
    },
    /// A value in it is none that the vault writes.
    #[error(
        "the catalog's {column} cannot be read ({why}); make the catalog anew from the store with: \
         lifeboat vault rebuild-catalog"
    )]
    Value {
        /// Which column.
        column: String,
        /// What is wrong with it.
        why: String,
    },
    /// A number is too large for a column.
    #[error("{0} is more than the catalog can hold")]
    TooLarge(u64),
    /// A time is beyond what the catalog holds.
    #[error("the time {0} is not between 1970 and 2262")]
    Time(jiff::Timestamp),
    /// What was read before has changed meanwhile.
    #[error("the newest point of server {server} changed while a commit was being made; try again")]
    Overtaken {
        /// Whose.
        server: lifeboat_model::ServerId,
    },
    /// A point of this id is in the catalog, or was until retention removed it.
    #[error(
        "there is or was a point {point} of server {owner}; take the point again, which gives it another id"
    )]
    PointTaken {
        /// The id.
        point: lifeboat_model::PointId,
        /// Whose it is.
        owner: lifeboat_model::ServerId,
    },
    /// Another failure.
    #[error("the catalog {} failed: {source}", path.display())]
    Failed {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: sqlx::Error,
    },
}
