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
/// The same thing within this time is told once, unless it was seen to meanwhile, or is about a machine's power:
/// going off, on and off again within it are three things.
const REPEATED_WITHIN: SignedDuration = SignedDuration::from_secs(60);

/// What a reader sees of an event.
macro_rules! select_events {
    ($rest:expr) => {
        concat!(
            "SELECT number, time_ns, severity, code, server, disk, message, next_step, acknowledged_ns, \
             acknowledged_by FROM events ",
            $rest
        )
    };
}

/// Notes that those events were seen to that were not yet; `$1` is when, `$2` by whom or what.
macro_rules! acknowledge {
    ($which:expr) => {
        concat!(
            "UPDATE events SET acknowledged_ns = $1, acknowledged_by = $2 \
             WHERE acknowledged_ns IS NULL AND severity <> 'information' AND ",
            $which
        )
    };
}

/// Of these each message is a thing of its own: they name what they are about.
macro_rules! own_things {
    () => {
        "('stored_file_damaged', 'volume_opened', 'volume_closed', 'vault_started', \
         'process_server_started', 'agent_started', 'certificate_ends_soon')"
    };
}

/// Events that are acknowledged.
#[derive(Clone, Copy, Debug)]
pub enum Acknowledged<'a> {
    /// These, by number, and what happened before about the same things.
    Named(&'a [u64]),
    /// All up to this number.
    UpTo(u64),
    /// What happened to a server with these codes.
    Of {
        /// The server.
        server: ServerId,
        /// The codes.
        codes: &'a [&'a str],
    },
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
                 AND (time_ns = $1 OR (acknowledged_ns IS NULL AND code NOT LIKE 'machine%')) \
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
                query(select_events!(
                    "WHERE (severity = $1 OR severity = $2 OR severity = $3) \
                     AND ($4 = '' OR server = $4) ORDER BY number DESC LIMIT $5"
                ))
                .bind(severity_word(severity))
                .bind(severity_word(severity.max(Severity::Warning)))
                .bind(severity_word(Severity::Critical))
                .bind(server.map(|server| server.to_string()).unwrap_or_default())
                .bind(i64::from(limit)),
            )
            .await?;
        rows.iter().map(event_row).collect()
    }

    /// What wants attention, newest first, at most `limit`: of the events that are more than information
    /// and were not acknowledged, the newest about each thing.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn attention(&self, limit: u32) -> Result<Vec<api::Event>, CatalogError> {
        let statement = query(select_events!(concat!(
            "WHERE number IN (SELECT MAX(number) FROM events \
             WHERE acknowledged_ns IS NULL AND severity <> 'information' \
             GROUP BY code, COALESCE(server, ''), COALESCE(disk, -1), \
             CASE WHEN code IN ",
            own_things!(),
            " THEN message ELSE '' END) ORDER BY number DESC LIMIT $1"
        )));
        let rows = self.all(statement.bind(i64::from(limit))).await?;
        rows.iter().map(event_row).collect()
    }

    /// The newest of these codes that was told of a server.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn newest_code(
        &self,
        server: ServerId,
        codes: [&'static str; 5],
    ) -> Result<Option<String>, CatalogError> {
        let mut statement = query(
            "SELECT code FROM events WHERE server = $1 AND code IN ($2, $3, $4, $5, $6) \
             ORDER BY number DESC LIMIT 1",
        )
        .bind(server.to_string());
        for code in codes {
            statement = statement.bind(code);
        }
        self.optional(statement).await?.map(|row| row.text("code")).transpose()
    }

    /// Whether there is an event with this number.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn has_event(&self, number: u64) -> Result<bool, CatalogError> {
        let statement = query("SELECT number FROM events WHERE number = $1").bind(bigint(number)?);
        Ok(self.optional(statement).await?.is_some())
    }

    /// Notes that events were seen to; says how many had not been. What is known to be seen to stays so, with
    /// whoever was first.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn acknowledge(
        &self,
        which: &Acknowledged<'_>,
        by: &str,
        now: Timestamp,
    ) -> Result<u64, CatalogError> {
        let mut transaction = self.begin().await?;
        let now = time_ns(now)?;
        let mut acknowledged = 0;
        match which {
            Acknowledged::Named(numbers) => {
                for number in *numbers {
                    let statement = query(acknowledge!(concat!(
                        "number <= $3 AND EXISTS (SELECT 1 FROM events AS named WHERE named.number = $3 \
                         AND named.code = events.code \
                         AND COALESCE(named.server, '') = COALESCE(events.server, '') \
                         AND COALESCE(named.disk, -1) = COALESCE(events.disk, -1) AND (named.code NOT IN ",
                        own_things!(),
                        " OR named.message = events.message))"
                    )))
                    .bind(now)
                    .bind(by)
                    .bind(bigint(*number)?);
                    acknowledged += self.run(&mut transaction, statement).await?;
                }
            }
            Acknowledged::UpTo(number) => {
                let statement = query(acknowledge!("number <= $3")).bind(now).bind(by).bind(bigint(*number)?);
                acknowledged += self.run(&mut transaction, statement).await?;
            }
            Acknowledged::Of { server, codes } => {
                for code in *codes {
                    let statement = query(acknowledge!("server = $3 AND code = $4"))
                        .bind(now)
                        .bind(by)
                        .bind(server.to_string())
                        .bind(*code);
                    acknowledged += self.run(&mut transaction, statement).await?;
                }
            }
        }
        self.commit(transaction).await?;
        Ok(acknowledged)
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
        acknowledged: row.optional_time("acknowledged_ns")?,
        acknowledged_by: row.optional_text("acknowledged_by")?,
    })
}
