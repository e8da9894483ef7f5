//! What is SQLite's own: opening, settings, errors.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_model::VaultId;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Row, SqliteConnection, SqlitePool};

use super::CatalogError;
use super::row::{RowValues, time_ns};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// A connection to the database.
pub(crate) type Connection = SqliteConnection;
/// A row that was read.
pub(crate) type DatabaseRow = sqlx::sqlite::SqliteRow;
/// A change that is being made; dropped, it never was.
pub(crate) type Transaction = sqlx::Transaction<'static, sqlx::Sqlite>;

const READERS: u32 = 4;

/// The catalog of one vault.
#[derive(Clone, Debug)]
pub struct Catalog {
    readers: SqlitePool,
    /// One connection: SQLite has one writer at a time, and waiting for it here is fair.
    writer: SqlitePool,
    path: PathBuf,
}

impl Catalog {
    /// Makes the catalog of a new vault. What an interrupted attempt has left is used.
    ///
    /// # Errors
    /// When it cannot be written, or is another vault's.
    pub async fn create(path: &Path, vault: VaultId, created: Timestamp) -> Result<Self, CatalogError> {
        let catalog = Self::connect(path, true).await?;
        catalog.migrate().await?;
        let mut transaction = catalog.begin().await?;
        sqlx::query(
            "INSERT INTO vault (id, created_ns) SELECT $1, $2 WHERE NOT EXISTS (SELECT 1 FROM vault)",
        )
        .bind(vault.to_string())
        .bind(time_ns(created)?)
        .execute(&mut *transaction)
        .await
        .map_err(|error| catalog.error(error))?;
        catalog.commit(transaction).await?;
        catalog.check_vault(vault).await?;
        Ok(catalog)
    }

    /// Opens the catalog, checks it, and brings its tables up to date.
    ///
    /// # Errors
    /// When it is missing, damaged or another vault's.
    pub async fn open(path: &Path, vault: VaultId) -> Result<Self, CatalogError> {
        if !path.exists() {
            return Err(CatalogError::Missing { path: path.to_owned() });
        }
        let catalog = Self::connect(path, false).await?;
        let row = sqlx::query("PRAGMA quick_check(1)").fetch_one(&catalog.writer).await;
        let found: String = row.and_then(|row| row.try_get(0)).map_err(|error| catalog.error(error))?;
        if found != "ok" {
            return Err(CatalogError::Damaged { path: path.to_owned(), why: found });
        }
        catalog.migrate().await?;
        catalog.check_vault(vault).await?;
        Ok(catalog)
    }

    async fn connect(path: &Path, create: bool) -> Result<Self, CatalogError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(create)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(30));
        let failed = |source| database_error(path, source);
        let pool = |connections| SqlitePoolOptions::new().max_connections(connections);
        let writer = pool(1).connect_with(options.clone()).await.map_err(failed)?;
        let readers = pool(READERS).connect_with(options.pragma("query_only", "ON")).await.map_err(failed)?;
        Ok(Self { readers, writer, path: path.to_owned() })
    }

    async fn migrate(&self) -> Result<(), CatalogError> {
        MIGRATIONS.run(&self.writer).await.map_err(|error| match error {
            MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) => self.error(source),
            MigrateError::VersionMissing(version) if version > newest_known() => {
                CatalogError::Newer { path: self.path.clone(), version, known: newest_known() }
            }
            other => CatalogError::Damaged { path: self.path.clone(), why: other.to_string() },
        })
    }

    async fn check_vault(&self, vault: VaultId) -> Result<(), CatalogError> {
        let rows = self.all(sqlx::query("SELECT id FROM vault")).await?;
        let ours = match rows.as_slice() {
            [row] => row.parsed::<VaultId>("id")? == vault,
            _ => false,
        };
        if ours { Ok(()) } else { Err(CatalogError::NotOurs { path: self.path.clone(), vault }) }
    }

    /// When the vault was made.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn created(&self) -> Result<Timestamp, CatalogError> {
        self.one(sqlx::query("SELECT created_ns FROM vault")).await?.time("created_ns")
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Closes all connections, so that the file alone is the whole catalog.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    /// Begins a change. Only one is being made at a time; the next waits here.
    pub(crate) async fn begin(&self) -> Result<Transaction, CatalogError> {
        self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(|error| self.error(error))
    }

    /// Ends a change: it is on the disk when this returns.
    pub(crate) async fn commit(&self, transaction: Transaction) -> Result<(), CatalogError> {
        transaction.commit().await.map_err(|error| self.error(error))
    }

    pub(crate) async fn all(&self, query: Query<'_>) -> Result<Vec<DatabaseRow>, CatalogError> {
        query.fetch_all(&self.readers).await.map_err(|error| self.error(error))
    }

    pub(crate) async fn one(&self, query: Query<'_>) -> Result<DatabaseRow, CatalogError> {
        query.fetch_one(&self.readers).await.map_err(|error| self.error(error))
    }

    pub(crate) async fn optional(&self, query: Query<'_>) -> Result<Option<DatabaseRow>, CatalogError> {
        query.fetch_optional(&self.readers).await.map_err(|error| self.error(error))
    }

    /// Runs a statement within a change; says how many rows it concerned.
    pub(crate) async fn run(
        &self,
        connection: &mut Connection,
        query: Query<'_>,
    ) -> Result<u64, CatalogError> {
        Ok(query.execute(connection).await.map_err(|error| self.error(error))?.rows_affected())
    }

    /// Reads within a change.
    pub(crate) async fn optional_within(
        &self,
        connection: &mut Connection,
        query: Query<'_>,
    ) -> Result<Option<DatabaseRow>, CatalogError> {
        query.fetch_optional(connection).await.map_err(|error| self.error(error))
    }

    /// Runs one statement as a change of its own.
    pub(crate) async fn run_alone(&self, query: Query<'_>) -> Result<u64, CatalogError> {
        let mut transaction = self.begin().await?;
        let rows = self.run(&mut transaction, query).await?;
        self.commit(transaction).await?;
        Ok(rows)
    }

    pub(crate) fn error(&self, source: sqlx::Error) -> CatalogError {
        database_error(&self.path, source)
    }
}

/// The newest migration of this release.
fn newest_known() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// A statement with its values.
pub(crate) type Query<'q> = sqlx::query::Query<'q, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

fn database_error(path: &Path, source: sqlx::Error) -> CatalogError {
    let path = path.to_owned();
    // The low byte of SQLite's code is the kind, the rest says more.
    let code = source.as_database_error().and_then(|error| error.code()?.parse::<u32>().ok());
    match code.map(|code| code & 0xff) {
        Some(11 | 26) => CatalogError::Damaged { path, why: source.to_string() },
        Some(13) => CatalogError::Full { path },
        Some(8) => CatalogError::ReadOnly { path },
        _ => CatalogError::Failed { path, source },
    }
}
