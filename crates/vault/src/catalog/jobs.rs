//! Jobs and their steps. What they mean is in [`crate::jobs`].

use jiff::Timestamp;
use lifeboat_api::{DrillReport, JobState, StepState};
use lifeboat_model::{JobId, ServerId};
use sqlx::query;

use super::CatalogError;
use super::database::{Catalog, Connection, DatabaseRow};
use super::row::{RowValues, json_text, time_ns};
use crate::jobs::{JobRequest, Step, Work};

/// How the stored request of a drill begins: its kind stands first.
const DRILL: &str = r#"{"kind":"drill""#;

/// A job.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRow {
    /// Its id.
    pub id: JobId,
    /// The server that it is about.
    pub server: ServerId,
    /// What was asked for.
    pub request: JobRequest,
    /// What its steps have found and made so far.
    pub work: Work,
    /// How far it is.
    pub state: JobState,
    /// Somebody wants it to end.
    pub cancel: bool,
    /// When it was asked for.
    pub begun: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// One sentence about the end.
    pub message: Option<String>,
    /// What a drill has shown.
    pub report: Option<DrillReport>,
    /// Its steps, in their order.
    pub steps: Vec<StepRow>,
}

impl JobRow {
    /// How far its step of this kind is; none when it has no such step.
    #[must_use]
    pub fn state_of(&self, step: Step) -> Option<StepState> {
        self.steps.iter().find(|row| row.step == step).map(|row| row.state)
    }
}

/// A step of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepRow {
    /// Which.
    pub step: Step,
    /// How far it is.
    pub state: StepState,
    /// How often it was begun.
    pub attempts: u32,
    /// When it was begun last.
    pub begun: Option<Timestamp>,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// What it found, or why it failed.
    pub message: Option<String>,
}

impl StepRow {
    /// A step whose turn has not come.
    #[must_use]
    pub const fn new(step: Step) -> Self {
        Self { step, state: StepState::Waiting, attempts: 0, begun: None, ended: None, message: None }
    }
}

macro_rules! select_jobs {
    ($rest:literal) => {
        concat!(
            "SELECT id, server, request, work, state, cancel, begun_ns, ended_ns, message, report FROM jobs ",
            $rest
        )
    };
}

impl Catalog {
    /// Stores a job that begins now.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn insert_job(&self, job: &JobRow) -> Result<(), CatalogError> {
        let mut transaction = self.begin().await?;
        self.put_new_job(&mut transaction, job).await?;
        self.commit(transaction).await
    }

    /// Stores that a job has ended, and together with that the one that follows it, if one does.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn end_job(&self, job: &JobRow, next: Option<&JobRow>) -> Result<(), CatalogError> {
        let mut transaction = self.begin().await?;
        self.put_job(&mut transaction, job).await?;
        if let Some(next) = next {
            self.put_new_job(&mut transaction, next).await?;
        }
        self.commit(transaction).await
    }

    async fn put_new_job(&self, connection: &mut Connection, job: &JobRow) -> Result<(), CatalogError> {
        let statement = query(
            "INSERT INTO jobs (id, number, server, request, work, state, cancel, begun_ns) SELECT $1, \
             (SELECT COALESCE(MAX(number), 0) + 1 FROM jobs), $2, $3, $4, $5, $6, $7",
        )
        .bind(job.id.to_string())
        .bind(job.server.to_string())
        .bind(json_text("request", &job.request)?)
        .bind(json_text("work", &job.work)?)
        .bind(word("state", &job.state)?)
        .bind(job.cancel)
        .bind(time_ns(job.begun)?);
        self.run(connection, statement).await?;
        self.put_steps(connection, job).await
    }

    /// Stores the new state of a job with all its steps. Whether it was cancelled is not touched.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn update_job(&self, job: &JobRow) -> Result<(), CatalogError> {
        let mut transaction = self.begin().await?;
        self.put_job(&mut transaction, job).await?;
        self.commit(transaction).await
    }

    async fn put_job(&self, connection: &mut Connection, job: &JobRow) -> Result<(), CatalogError> {
        let statement = query(
            "UPDATE jobs SET work = $2, state = $3, ended_ns = $4, message = $5, report = $6 WHERE id = $1",
        )
        .bind(job.id.to_string())
        .bind(json_text("work", &job.work)?)
        .bind(word("state", &job.state)?)
        .bind(job.ended.map(time_ns).transpose()?)
        .bind(job.message.clone())
        .bind(job.report.as_ref().map(|report| json_text("report", report)).transpose()?);
        self.run(connection, statement).await?;
        self.put_steps(connection, job).await
    }

    async fn put_steps(&self, connection: &mut Connection, job: &JobRow) -> Result<(), CatalogError> {
        for (number, step) in (0i64..).zip(&job.steps) {
            let statement = query(
                "INSERT INTO job_steps (job, number, step, state, attempts, begun_ns, ended_ns, message) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (job, number) DO UPDATE SET \
                 state = excluded.state, attempts = excluded.attempts, begun_ns = excluded.begun_ns, \
                 ended_ns = excluded.ended_ns, message = excluded.message",
            )
            .bind(job.id.to_string())
            .bind(number)
            .bind(word("step", &step.step)?)
            .bind(word("state", &step.state)?)
            .bind(i64::from(step.attempts))
            .bind(step.begun.map(time_ns).transpose()?)
            .bind(step.ended.map(time_ns).transpose()?)
            .bind(step.message.clone());
            self.run(connection, statement).await?;
        }
        Ok(())
    }

    /// Notes whether somebody wants a job to end.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn set_cancel(&self, job: JobId, cancel: bool) -> Result<(), CatalogError> {
        let statement = query("UPDATE jobs SET cancel = $2 WHERE id = $1").bind(job.to_string()).bind(cancel);
        self.run_alone(statement).await.map(drop)
    }

    /// One job.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn job(&self, job: JobId) -> Result<Option<JobRow>, CatalogError> {
        let row = self.optional(query(select_jobs!("WHERE id = $1")).bind(job.to_string())).await?;
        match row {
            Some(row) => Ok(Some(self.job_row(&row).await?)),
            None => Ok(None),
        }
    }

    /// The newest jobs, newest first: of one server or of all, at most `limit`.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn jobs(&self, server: Option<ServerId>, limit: u32) -> Result<Vec<JobRow>, CatalogError> {
        let statement =
            query(select_jobs!("WHERE server = COALESCE($1, server) ORDER BY number DESC LIMIT $2"))
                .bind(server.map(|server| server.to_string()))
                .bind(i64::from(limit));
        self.job_rows(&self.all(statement).await?).await
    }

    /// The newest drill of a server with a report, but for one.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn newest_report(&self, server: ServerId, but: JobId) -> Result<Option<JobRow>, CatalogError> {
        let statement = query(select_jobs!(
            "WHERE server = $1 AND report IS NOT NULL AND id <> $2 AND substr(request, 1, $3) = $4 \
             ORDER BY number DESC LIMIT 1"
        ))
        .bind(server.to_string())
        .bind(but.to_string())
        .bind(i64::try_from(DRILL.len()).unwrap_or(i64::MAX))
        .bind(DRILL);
        Ok(self.job_rows(&self.all(statement).await?).await?.pop())
    }

    /// The newest drill of a server that has come to an end by itself.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn newest_drill(&self, server: ServerId) -> Result<Option<JobRow>, CatalogError> {
        let statement = query(select_jobs!(
            "WHERE server = $1 AND state IN ('done', 'failed') AND substr(request, 1, $2) = $3 \
             ORDER BY number DESC LIMIT 1"
        ))
        .bind(server.to_string())
        .bind(i64::try_from(DRILL.len()).unwrap_or(i64::MAX))
        .bind(DRILL);
        Ok(self.job_rows(&self.all(statement).await?).await?.pop())
    }

    /// Jobs that have not ended, oldest first.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn jobs_under_way(&self) -> Result<Vec<JobRow>, CatalogError> {
        let statement = query(select_jobs!("WHERE state IN ('running', 'rolling-back') ORDER BY number"));
        self.job_rows(&self.all(statement).await?).await
    }

    /// Jobs whose id begins like this.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn jobs_beginning(&self, beginning: &str) -> Result<Vec<JobId>, CatalogError> {
        // Compared as text from here to there: nothing in an id means anything to LIKE.
        let statement = query("SELECT id FROM jobs WHERE substr(id, 1, $2) = $1 ORDER BY number LIMIT 9")
            .bind(beginning.to_owned())
            .bind(i64::try_from(beginning.len()).unwrap_or(i64::MAX));
        self.all(statement).await?.iter().map(|row| row.parsed("id")).collect()
    }

    async fn job_rows(&self, rows: &[DatabaseRow]) -> Result<Vec<JobRow>, CatalogError> {
        let mut jobs = Vec::with_capacity(rows.len());
        for row in rows {
            jobs.push(self.job_row(row).await?);
        }
        Ok(jobs)
    }

    async fn job_row(&self, row: &DatabaseRow) -> Result<JobRow, CatalogError> {
        let statement = query(
            "SELECT step, state, attempts, begun_ns, ended_ns, message FROM job_steps WHERE job = $1 \
             ORDER BY number",
        )
        .bind(row.text("id")?);
        let steps = self.all(statement).await?;
        Ok(JobRow {
            id: row.parsed("id")?,
            server: row.parsed("server")?,
            request: row.json("request")?,
            work: row.json("work")?,
            state: of_word(row, "state")?,
            cancel: row.flag("cancel")?,
            begun: row.time("begun_ns")?,
            ended: row.optional_time("ended_ns")?,
            message: row.optional_text("message")?,
            report: row.optional_text("report")?.map(|_| row.json("report")).transpose()?,
            steps: steps.iter().map(step_row).collect::<Result<_, _>>()?,
        })
    }
}

fn step_row(row: &DatabaseRow) -> Result<StepRow, CatalogError> {
    Ok(StepRow {
        step: of_word(row, "step")?,
        state: of_word(row, "state")?,
        attempts: row.number("attempts")?,
        begun: row.optional_time("begun_ns")?,
        ended: row.optional_time("ended_ns")?,
        message: row.optional_text("message")?,
    })
}

/// An enumeration's word, as its JSON has it.
fn word<T: serde::Serialize>(column: &str, value: &T) -> Result<String, CatalogError> {
    Ok(json_text(column, value)?.trim_matches('"').to_owned())
}

fn of_word<T: serde::de::DeserializeOwned>(row: &DatabaseRow, column: &str) -> Result<T, CatalogError> {
    let word = row.text(column)?;
    serde_json::from_value(serde_json::Value::String(word))
        .map_err(|error| CatalogError::Value { column: column.to_owned(), why: error.to_string() })
}
