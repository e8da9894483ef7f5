//! What operators ask for once, and what agents are told.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lifeboat_api::{Request, RequestState, VerifyKind, VerifyReport};
use lifeboat_model::{PointId, ServerId};
use lifeboat_wire::agent::{Assignment, Command, CommandKind, Comparison, LastWrite, Outcome};
use lifeboat_wire::event::{Event, Severity};
use lifeboat_wire::process_server::{Assignments, ServerResult};

use crate::catalog::RequestRow;
use crate::error::VaultError;
use crate::fence;
use crate::random;
use crate::vault::{Vault, unknown};

/// A request that no agent has answered by then has failed.
const UNANSWERED_MAX: SignedDuration = SignedDuration::from_hours(24);
/// Ended requests are kept so long.
const KEPT: SignedDuration = SignedDuration::from_hours(30 * 24);
/// How long it is known which points retention removed.
const REMOVED_KEPT: SignedDuration = SignedDuration::from_hours(90 * 24);

impl Vault {
    /// Asks a server's agent for something. Asked again before the agent has answered, it is the
    /// same request.
    ///
    /// # Errors
    /// When the server is not known or the catalog fails.
    pub async fn ask(
        &self,
        server: ServerId,
        command: CommandKind,
        now: Timestamp,
    ) -> Result<Request, VaultError> {
        if self.catalog.server(server).await?.is_none() {
            return Err(unknown("server", &server.to_string(), Vec::new()));
        }
        let lock = self.server_lock(server);
        let _guard = lock.lock().await;
        let running = self.catalog.running_requests().await?;
        let same = |row: &RequestRow| {
            row.server == server && !row.answered && row.command.as_ref() == Some(&command)
        };
        if let Some(row) = running.into_iter().find(same) {
            return Ok(request(row));
        }
        let kind = match command {
            CommandKind::TakePoint { .. } => "take-point",
            CommandKind::Compare => "compare",
            CommandKind::Resync => "resync",
            CommandKind::StandDown => "stand-down",
            CommandKind::StandUp => "stand-up",
            CommandKind::Retire => "retire",
            CommandKind::Unknown => {
                return Err(VaultError::Invalid("this version does not know that command".into()));
            }
        };
        let row = self.new_request(server, kind, Some(command), now)?;
        self.catalog.put_request(&row).await?;
        self.changed();
        Ok(request(row))
    }

    /// A request with a new id, not stored yet. For what the vault itself does: with no command.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn new_request(
        &self,
        server: ServerId,
        kind: &str,
        command: Option<CommandKind>,
        now: Timestamp,
    ) -> Result<RequestRow, VaultError> {
        Ok(RequestRow {
            id: random::number(self.randomness.as_ref())?,
            server,
            kind: kind.to_owned(),
            command,
            state: RequestState::Running,
            answered: false,
            asked: now,
            ended: None,
            message: None,
            point: None,
            report: None,
        })
    }

    /// Stores the new state of a request that the vault itself works on, and wakes who waits for it.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn update_request(&self, row: &RequestRow) -> Result<(), VaultError> {
        self.catalog.put_request(row).await?;
        self.changed();
        Ok(())
    }

    /// Takes a request back, if it has not ended: no agent is told of it any more.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn withdraw(
        &self,
        server: ServerId,
        command: &CommandKind,
        now: Timestamp,
    ) -> Result<(), VaultError> {
        let lock = self.server_lock(server);
        let _guard = lock.lock().await;
        for mut row in self.catalog.running_requests().await? {
            if row.server == server && row.command.as_ref() == Some(command) {
                end(&mut row, RequestState::Failed, Some("It was taken back.".to_owned()), now);
                self.update_request(&row).await?;
            }
        }
        Ok(())
    }

    /// A request by its id.
    ///
    /// # Errors
    /// When there is no such request or the catalog fails.
    pub async fn request(&self, id: &str) -> Result<Request, VaultError> {
        let number = (id.len() == 16).then(|| u64::from_str_radix(id, 16).ok()).flatten();
        let row = match number {
            Some(number) => self.catalog.request(number).await?,
            None => None,
        };
        row.map(request).ok_or_else(|| unknown("request", id, Vec::new()))
    }

    /// As [`Vault::request`], but waits up to `wait` for its end.
    ///
    /// # Errors
    /// When there is no such request or the catalog fails.
    pub async fn request_within(&self, id: &str, wait: Duration) -> Result<Request, VaultError> {
        let mut changes = self.changes();
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            changes.mark_unchanged();
            let request = self.request(id).await?;
            let is_over = request.state != RequestState::Running
                || !matches!(tokio::time::timeout_at(deadline, changes.changed()).await, Ok(Ok(())));
            if is_over {
                return Ok(request);
            }
        }
    }

    /// Takes the result of a command from an agent. Repeating it changes nothing.
    ///
    /// A point that was taken ends its request only when it is committed.
    ///
    /// # Errors
    /// When the result names another server's request, or the catalog fails.
    pub async fn take_result(&self, result: &ServerResult, now: Timestamp) -> Result<(), VaultError> {
        // Under the lock no commit of the point comes between looking for it and noting the wait.
        let lock = self.server_lock(result.server);
        let _guard = lock.lock().await;
        let Some(mut row) = self.catalog.request(result.result.request).await? else {
            tracing::debug!(
                request = result.result.request,
                "a result of a request that is not known any more"
            );
            return Ok(());
        };
        if row.server != result.server {
            return Err(VaultError::Invalid("the result is of another server's request".into()));
        }
        if row.answered || row.state != RequestState::Running {
            return Ok(());
        }
        row.answered = true;
        match &result.result.outcome {
            Outcome::PointTaken { point } => {
                row.point = Some(*point);
                if self.catalog.point(*point).await?.is_some() {
                    end(&mut row, RequestState::Done, None, now);
                }
            }
            Outcome::StoodDown { point, disks } => {
                row.point = Some(*point);
                row.message = Some(nothing_lost(disks));
                if self.catalog.point(*point).await?.is_some() {
                    let message = row.message.take();
                    end(&mut row, RequestState::Done, message, now);
                }
            }
            Outcome::Compared { point, disks } => self.take_comparison(&mut row, *point, disks, now).await?,
            Outcome::Done => end(&mut row, RequestState::Done, None, now),
            Outcome::Failed { message } => {
                let message = message.chars().take(2000).collect();
                end(&mut row, RequestState::Failed, Some(message), now);
            }
        }
        self.update_request(&row).await
    }

    async fn take_comparison(
        &self,
        row: &mut RequestRow,
        point: PointId,
        disks: &[Comparison],
        now: Timestamp,
    ) -> Result<(), VaultError> {
        let sum = |of: fn(&Comparison) -> u64| disks.iter().map(of).fold(0, u64::saturating_add);
        let different_blocks = sum(|disk| disk.different_blocks);
        row.point = Some(point);
        row.report = Some(VerifyReport {
            kind: VerifyKind::AgainstSource,
            good: different_blocks == 0,
            files: 0,
            bytes: 0,
            equal_blocks: sum(|disk| disk.equal_blocks),
            different_blocks,
            changed_blocks: sum(|disk| disk.changed_blocks),
            faults: Vec::new(),
        });
        self.catalog.set_compared_point(row.server, point).await?;
        let message = (different_blocks > 0).then(|| {
            format!("{different_blocks} blocks of the copy differ from the source though nobody wrote them.")
        });
        if let Some(message) = &message {
            self.note(Event {
                time: now,
                severity: Severity::Critical,
                code: "copy_differs".into(),
                server: Some(row.server),
                disk: None,
                message: message.clone(),
                next_step: "Start a resync of the server; points taken before it are not to be trusted."
                    .into(),
            })
            .await?;
        }
        end(row, RequestState::Done, message, now);
        Ok(())
    }

    /// Fails requests that nobody answered for a day, and forgets old ones.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn expire_requests(&self, now: Timestamp) -> Result<(), VaultError> {
        for mut row in self.catalog.running_requests().await? {
            if row.command.is_some() && now.duration_since(row.asked) > UNANSWERED_MAX {
                let message = match row.point {
                    Some(point) => format!("Point {point} was taken but not committed within a day."),
                    None => "The server's agent did not answer within a day; is it running?".to_owned(),
                };
                end(&mut row, RequestState::Failed, Some(message), now);
                self.update_request(&row).await?;
            }
        }
        let before = now.saturating_sub(KEPT).unwrap_or(Timestamp::UNIX_EPOCH).max(Timestamp::UNIX_EPOCH);
        self.catalog.forget_requests(before).await?;
        let before = now.saturating_sub(REMOVED_KEPT).unwrap_or(Timestamp::UNIX_EPOCH);
        self.catalog.forget_removed_points(before.max(Timestamp::UNIX_EPOCH)).await?;
        Ok(())
    }

    /// What the agents behind a process server are to do. The revisions are computed from the
    /// content, so they mean the same after a restart.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn assignments(&self, process_server: &str) -> Result<Assignments, VaultError> {
        let mut assignments = Assignments { revision: 0, servers: std::collections::BTreeMap::new() };
        let requests = self.catalog.running_requests().await?;
        for server in self.catalog.servers().await? {
            if server.process_server.as_deref() != Some(process_server) {
                continue;
            }
            let commands = requests.iter().filter(|row| row.server == server.id && !row.answered);
            let mut assignment = Assignment {
                revision: 0,
                policy: server.policy,
                replicate: server.fenced.is_none(),
                reason: server.fenced.map(fence::reason),
                commands: commands
                    .filter_map(|row| Some(Command { request: row.id, kind: row.command.clone()? }))
                    .collect(),
                committed: self.catalog.newest(server.id).await?.map(|newest| newest.point),
                throttle_bytes_per_second: None,
            };
            assignment.revision = revision_of(&assignment)?;
            assignments.servers.insert(server.id, assignment);
        }
        assignments.revision = revision_of(&assignments)?;
        Ok(assignments)
    }

    /// As [`Vault::assignments`], held back up to `wait` until they differ from revision `seen`.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn assignments_after(
        &self,
        process_server: &str,
        seen: Option<u64>,
        wait: Duration,
    ) -> Result<Assignments, VaultError> {
        let mut changes = self.changes();
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            changes.mark_unchanged();
            let assignments = self.assignments(process_server).await?;
            let is_over = Some(assignments.revision) != seen
                || !matches!(tokio::time::timeout_at(deadline, changes.changed()).await, Ok(Ok(())));
            if is_over {
                return Ok(assignments);
            }
        }
    }
}

/// What shows that no write is lost, in numbers.
fn nothing_lost(disks: &[LastWrite]) -> String {
    let disk = |last: &LastWrite| {
        format!(
            "disk {} had {} writes by the end of epoch {} and none since",
            last.disk, last.writes, last.epoch
        )
    };
    format!("No write is lost: {}.", disks.iter().map(disk).collect::<Vec<_>>().join(", "))
}

fn end(row: &mut RequestRow, state: RequestState, message: Option<String>, now: Timestamp) {
    row.state = state;
    row.message = message;
    row.ended = Some(now);
}

/// A number that changes with the content. 53 bits, which every JSON reader keeps exactly.
fn revision_of<T: serde::Serialize>(content: &T) -> Result<u64, VaultError> {
    let bytes = serde_json::to_vec(content).map_err(|error| VaultError::Invalid(error.to_string()))?;
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..8]);
    Ok(u64::from_le_bytes(first) >> 11)
}

/// A request as an operator sees it.
#[must_use]
pub fn request(row: RequestRow) -> Request {
    Request {
        id: format!("{:016x}", row.id),
        server: row.server,
        kind: row.kind,
        state: row.state,
        asked: row.asked,
        ended: row.ended,
        message: row.message,
        point: row.point,
        report: row.report,
    }
}
