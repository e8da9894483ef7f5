//! What operators asked for once.

use jiff::Timestamp;
use lifeboat_api::{RequestState, VerifyReport};
use lifeboat_model::{PointId, ServerId};
use lifeboat_wire::agent::CommandKind;
use sqlx::query;

use super::CatalogError;
use super::database::{Catalog, DatabaseRow};
use super::row::{RowValues, json_text, time_ns};

/// Something that an operator asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRow {
    /// Drawn by the vault.
    pub id: u64,
    /// The server.
    pub server: ServerId,
    /// `take-point`, `compare`, `resync` or `verify`.
    pub kind: String,
    /// What the agent is told; none when the vault itself does it.
    pub command: Option<CommandKind>,
    /// How far it is.
    pub state: RequestState,
    /// The agent has given its result.
    pub answered: bool,
    /// When it was asked for.
    pub asked: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// One sentence about the end.
    pub message: Option<String>,
    /// The point that was taken or compared with.
    pub point: Option<PointId>,
    /// What a verification found.
    pub report: Option<VerifyReport>,
}

macro_rules! select_requests {
    ($rest:literal) => {
        concat!(
            "SELECT id, server, kind, command, state, answered, asked_ns, ended_ns, message, point, report \
             FROM requests ",
            $rest
        )
    };
}

impl Catalog {
    /// Stores a request, or its new state.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn put_request(&self, request: &RequestRow) -> Result<(), CatalogError> {
        let command = request.command.as_ref().map(|command| json_text("command", command)).transpose()?;
        let report = request.report.as_ref().map(|report| json_text("report", report)).transpose()?;
        let statement = query(
            "INSERT INTO requests (id, server, kind, command, state, answered, asked_ns, ended_ns, message, \
             point, report) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT (id) DO UPDATE \
             SET state = excluded.state, answered = excluded.answered, ended_ns = excluded.ended_ns, \
             message = excluded.message, point = excluded.point, report = excluded.report",
        )
        .bind(id_text(request.id))
        .bind(request.server.to_string())
        .bind(request.kind.clone())
        .bind(command)
        .bind(state_word(request.state))
        .bind(request.answered)
        .bind(time_ns(request.asked)?)
        .bind(request.ended.map(time_ns).transpose()?)
        .bind(request.message.clone())
        .bind(request.point.map(|point| point.to_string()))
        .bind(report);
        self.run_alone(statement).await.map(drop)
    }

    /// One request.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn request(&self, id: u64) -> Result<Option<RequestRow>, CatalogError> {
        let row = self.optional(query(select_requests!("WHERE id = $1")).bind(id_text(id))).await?;
        row.as_ref().map(request_row).transpose()
    }

    /// Requests that have not ended, oldest first.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn running_requests(&self) -> Result<Vec<RequestRow>, CatalogError> {
        let rows = self.all(query(select_requests!("WHERE state = 'running' ORDER BY asked_ns, id"))).await?;
        rows.iter().map(request_row).collect()
    }

    /// Forgets requests that ended before `before`.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn forget_requests(&self, before: Timestamp) -> Result<u64, CatalogError> {
        self.run_alone(query("DELETE FROM requests WHERE ended_ns < $1").bind(time_ns(before)?)).await
    }
}

/// A request's id as programs read it.
pub(crate) fn id_text(id: u64) -> String {
    format!("{id:016x}")
}

fn state_word(state: RequestState) -> &'static str {
    match state {
        RequestState::Running => "running",
        RequestState::Done => "done",
        RequestState::Failed => "failed",
    }
}

fn request_row(row: &DatabaseRow) -> Result<RequestRow, CatalogError> {
    let id = row.text("id")?;
    let damaged = |column: &str, why: String| CatalogError::Value { column: column.to_owned(), why };
    Ok(RequestRow {
        id: u64::from_str_radix(&id, 16).map_err(|error| damaged("id", error.to_string()))?,
        server: row.parsed("server")?,
        kind: row.text("kind")?,
        command: row.optional_text("command")?.map(|_| row.json("command")).transpose()?,
        state: match row.text("state")?.as_str() {
            "running" => RequestState::Running,
            "done" => RequestState::Done,
            "failed" => RequestState::Failed,
            other => return Err(damaged("state", format!("{other:?} is no state of a request"))),
        },
        answered: row.flag("answered")?,
        asked: row.time("asked_ns")?,
        ended: row.optional_time("ended_ns")?,
        message: row.optional_text("message")?,
        point: row.optional_parsed("point")?,
        report: row.optional_text("report")?.map(|_| row.json("report")).transpose()?,
    })
}
