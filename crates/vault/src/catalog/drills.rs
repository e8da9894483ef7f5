//! When the vault drills servers by itself. What it means is in [`crate::jobs`].

use jiff::Timestamp;
use lifeboat_model::{ServerId, Span};
use sqlx::query;

use super::CatalogError;
use super::database::{Catalog, DatabaseRow};
use super::row::{RowValues, bigint, time_ns};

/// When a server is drilled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrillScheduleRow {
    /// The server.
    pub server: ServerId,
    /// Time between two drills.
    pub every: Span,
    /// When the next one is due.
    pub due: Timestamp,
    /// When it is tried: later than `due` once it was put off.
    pub try_at: Timestamp,
    /// Why the one that is due has not begun.
    pub waiting: Option<String>,
    /// That it is long overdue was told.
    pub told: bool,
}

impl Catalog {
    /// Notes when a server is drilled, instead of what was noted before.
    ///
    /// # Errors
    /// When there is no such server, or the catalog fails.
    pub async fn put_drill_schedule(&self, schedule: &DrillScheduleRow) -> Result<(), CatalogError> {
        let statement = query(
            "INSERT INTO drill_schedules (server, every_ms, due_ns, try_ns, waiting, told) \
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (server) DO UPDATE SET \
             every_ms = excluded.every_ms, due_ns = excluded.due_ns, try_ns = excluded.try_ns, \
             waiting = excluded.waiting, told = excluded.told",
        )
        .bind(schedule.server.to_string())
        .bind(bigint(schedule.every.milliseconds())?)
        .bind(time_ns(schedule.due)?)
        .bind(time_ns(schedule.try_at)?)
        .bind(schedule.waiting.clone())
        .bind(schedule.told);
        self.run_alone(statement).await.map(drop)
    }

    /// A server is not drilled any more; says whether it was.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn remove_drill_schedule(&self, server: ServerId) -> Result<bool, CatalogError> {
        let statement = query("DELETE FROM drill_schedules WHERE server = $1").bind(server.to_string());
        Ok(self.run_alone(statement).await? == 1)
    }

    /// When servers are drilled, the one that is due first at first.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn drill_schedules(&self) -> Result<Vec<DrillScheduleRow>, CatalogError> {
        let statement = query(
            "SELECT server, every_ms, due_ns, try_ns, waiting, told FROM drill_schedules \
             ORDER BY due_ns, server",
        );
        self.all(statement).await?.iter().map(schedule_row).collect()
    }
}

fn schedule_row(row: &DatabaseRow) -> Result<DrillScheduleRow, CatalogError> {
    Ok(DrillScheduleRow {
        server: row.parsed("server")?,
        every: Span::of_milliseconds(row.number("every_ms")?),
        due: row.time("due_ns")?,
        try_at: row.time("try_ns")?,
        waiting: row.optional_text("waiting")?,
        told: row.flag("told")?,
    })
}
