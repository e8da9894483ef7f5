//! Events, and the process servers that were heard of.

use jiff::{SignedDuration, Timestamp};
use lifeboat_api as api;
use lifeboat_model::ServerId;
use lifeboat_wire::event::{Event, Severity};
use sqlx::query;

use super::CatalogError;
use super::database::{Catalog, DatabaseRow};
use super::row::{RowValues, bigint, time_ns};

/// So many events are kept, the newest.
const EVENTS_MAX: i64 = 10_000;
/// The same thing within this time is told once.
const REPEATED_WITHIN: SignedDuration = SignedDuration::from_secs(60);
/// Of these each message is a thing of its own: they name what they are about.
macro_rules! own_things {
    () => {
        "('stored_file_damaged', 'volume_opened', 'volume_closed', 'vault_started', \
         'process_server_started', 'agent_started')"
    };
}

impl Catalog {
    /// Stores events that say something new; says how many did.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn put_events(&self, events: &[Event]) -> Result<u64, CatalogError> {
        if events.is_empty() {
            return Ok(0);
        }
        let mut transaction = self.begin().await?;
        let mut stored = 0;
        for event in events {
            let around = |sign| event.time.saturating_add(REPEATED_WITHIN * sign).unwrap_or(event.time);
            let statement = query(concat!(
                "INSERT INTO events (number, time_ns, severity, code, server, disk, message, next_step) \
                 SELECT (SELECT COALESCE(MAX(number), 0) + 1 FROM events), $1, $2, $3, $4, $5, $6, $7 \
                 WHERE NOT EXISTS (SELECT 1 FROM events WHERE code = $3 AND severity = $2 \
                 AND time_ns > $8 AND time_ns < $9 \
                 AND COALESCE(server, '') = COALESCE($4, '') AND COALESCE(disk, -1) = COALESCE($5, -1) \
                 AND (code NOT IN ",
                own_things!(),
                " OR message = $6))",
            ))
            .bind(time_ns(event.time)?)
            .bind(severity_word(event.severity))
            .bind(event.code.clone())
            .bind(event.server.map(|server| server.to_string()))
            .bind(event.disk.map(|disk| i64::from(disk.0)))
            .bind(event.message.clone())
            .bind(event.next_step.clone())
            .bind(time_ns(around(-1).max(Timestamp::UNIX_EPOCH))?)
            .bind(time_ns(around(1))?);
            stored += self.run(&mut transaction, statement).await?;
        }
        let statement = query("DELETE FROM events WHERE number <= (SELECT MAX(number) FROM events) - $1")
            .bind(EVENTS_MAX);
        self.run(&mut transaction, statement).await?;
        self.commit(transaction).await?;
        Ok(stored)
    }

    /// The newest events, newest first: at least as severe, of one server or all, at most `limit`.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn events(
        &self,
        severity: Severity,
        server: Option<ServerId>,
        limit: u32,
    ) -> Result<Vec<api::Event>, CatalogError> {
        let rows = self
            .all(
                query(
                    "SELECT number, time_ns, severity, code, server, disk, message, next_step FROM events \
                     WHERE (severity = $1 OR severity = $2 OR severity = $3) \
                     AND ($4 = '' OR server = $4) ORDER BY number DESC LIMIT $5",
                )
                .bind(severity_word(severity))
                .bind(severity_word(severity.max(Severity::Warning)))
                .bind(severity_word(Severity::Critical))
                .bind(server.map(|server| server.to_string()).unwrap_or_default())
                .bind(i64::from(limit)),
            )
            .await?;
        rows.iter().map(event_row).collect()
    }

    /// Notes that a process server was heard of, and when the agents behind it were.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn put_heard(
        &self,
        process_server: &api::ProcessServer,
        agents: &[(ServerId, Timestamp)],
    ) -> Result<(), CatalogError> {
        let mut transaction = self.begin().await?;
        let statement = query(
            "INSERT INTO process_servers (name, version, heard_ns, spool_state, spool_total_bytes, \
             spool_free_bytes) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (name) DO UPDATE SET \
             version = excluded.version, heard_ns = excluded.heard_ns, spool_state = excluded.spool_state, \
             spool_total_bytes = excluded.spool_total_bytes, spool_free_bytes = excluded.spool_free_bytes",
        )
        .bind(process_server.name.clone())
        .bind(process_server.version.clone())
        .bind(time_ns(process_server.heard)?)
        .bind(process_server.spool_state.clone())
        .bind(bigint(process_server.spool_total_bytes)?)
        .bind(bigint(process_server.spool_free_bytes)?);
        self.run(&mut transaction, statement).await?;
        for (server, heard) in agents {
            // By a clock that is not the vault's: what cannot be meant is not worth refusing a report.
            let Ok(heard) = time_ns(*heard) else { continue };
            let statement =
                query("UPDATE servers SET heard_ns = $2 WHERE id = $1").bind(server.to_string()).bind(heard);
            self.run(&mut transaction, statement).await?;
        }
        self.commit(transaction).await
    }

    /// All process servers that were ever heard of, by name.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn process_servers(&self) -> Result<Vec<api::ProcessServer>, CatalogError> {
        let rows = self
            .all(query(
                "SELECT name, version, heard_ns, spool_state, spool_total_bytes, spool_free_bytes \
                 FROM process_servers ORDER BY name",
            ))
            .await?;
        rows.iter()
            .map(|row| {
                Ok(api::ProcessServer {
                    name: row.text("name")?,
                    version: row.text("version")?,
                    heard: row.time("heard_ns")?,
                    spool_state: row.text("spool_state")?,
                    spool_total_bytes: row.number("spool_total_bytes")?,
                    spool_free_bytes: row.number("spool_free_bytes")?,
                })
            })
            .collect()
    }

    /// How many volumes are open.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn open_volumes(&self) -> Result<u64, CatalogError> {
        self.one(query("SELECT COUNT(*) AS volumes FROM volumes")).await?.number("volumes")
    }
}

/// A severity as programs read it.
pub(crate) fn severity_word(severity: Severity) -> &'static str {
    match severity {
        Severity::Information => "information",
        Severity::Warning => "warning",
        Severity::Critical => "critical",
    }
}

fn event_row(row: &DatabaseRow) -> Result<api::Event, CatalogError> {
    Ok(api::Event {
        number: row.number("number")?,
        time: row.time("time_ns")?,
        severity: row.text("severity")?,
        code: row.text("code")?,
        server: row.optional_parsed("server")?,
        disk: row.optional_integer("disk")?.map(|_| row.disk("disk")).transpose()?,
        message: row.text("message")?,
        next_step: row.text("next_step")?,
    })
}
