//! The source's part in a failover: its last point, and in a planned one that it stands down.

use std::time::Duration;

use lifeboat_api::{Protection, Request, RequestState};
use lifeboat_model::PointKind;
use lifeboat_wire::agent::CommandKind;

use super::{JobError, Jobs};
use crate::catalog::JobRow;

/// How long the source may take for its last point.
const LAST_POINT_WITHIN: Duration = Duration::from_secs(30);
/// How long the source may take to stop its services and give its last point. Its own settings bound
/// the commands that it runs.
const STAND_DOWN_WITHIN: Duration = Duration::from_secs(20 * 60);
/// How long it may take to start its services again.
const STAND_UP_WITHIN: Duration = Duration::from_secs(6 * 60);
/// How long it is waited for an answer to the news that the copy has taken over: it may be powering off.
const RETIRE_WITHIN: Duration = Duration::from_secs(20);

impl Jobs {
    /// The source may be gone: without its point the newest one that is stored has to do.
    pub(super) async fn last_point(&self, job: &JobRow) -> Result<Option<String>, JobError> {
        let without = |why: &str| Ok(Some(format!("{why}; the newest point that is stored is used")));
        if self.source_is_away(job).await? {
            return without("the source does not answer");
        }
        let take = CommandKind::TakePoint { kind: PointKind::Crash };
        let request = self.ask_source(job, take, LAST_POINT_WITHIN).await?;
        match (request.state, request.point) {
            (RequestState::Done, Some(point)) => Ok(Some(format!("the source has given point {point}"))),
            (RequestState::Failed, _) => without(
                request.message.as_deref().unwrap_or("the source could not take one").trim_end_matches('.'),
            ),
            _ => without(&format!("the source gave none within {} s", LAST_POINT_WITHIN.as_secs())),
        }
    }

    pub(super) async fn stand_down(&self, job: &mut JobRow) -> Result<Option<String>, JobError> {
        if self.source_is_away(job).await? {
            return Err(JobError::Source(
                "the source does not answer, so its last write cannot be sent; if it is lost, use `lifeboat failover run`"
                    .to_owned(),
            ));
        }
        let request = self.ask_source(job, CommandKind::StandDown, STAND_DOWN_WITHIN).await?;
        let message = request.message.unwrap_or_default();
        match (request.state, request.point) {
            (RequestState::Done, Some(point)) => {
                let row = self.vault.catalog().point(point).await?;
                job.work.point = row.map(|row| (point, row.time));
                job.work.nothing_lost = Some(message.clone());
                Ok(Some(message))
            }
            (RequestState::Failed, _) => Err(JobError::Source(message.trim_end_matches('.').to_owned())),
            _ => Err(JobError::Source(format!(
                "the source has not given its last point within {} minutes",
                STAND_DOWN_WITHIN.as_secs() / 60
            ))),
        }
    }

    /// The source goes on as before. One that does not answer keeps the order until it does.
    pub(super) async fn stand_up(&self, job: &JobRow) -> Result<(), JobError> {
        self.vault.withdraw(job.server, &CommandKind::StandDown, (self.clock)()).await?;
        let request = self.ask_source(job, CommandKind::StandUp, STAND_UP_WITHIN).await?;
        match request.state {
            RequestState::Done => Ok(()),
            RequestState::Failed => {
                Err(JobError::Source(request.message.unwrap_or_default().trim_end_matches('.').to_owned()))
            }
            RequestState::Running => Err(JobError::Source(
                "the source has not answered yet; it starts its services as soon as it is reached".to_owned(),
            )),
        }
    }

    /// The copy is up, so whatever the source says is no failure.
    pub(super) async fn retire(&self, job: &JobRow) -> Result<Option<String>, JobError> {
        let request = self.ask_source(job, CommandKind::Retire, RETIRE_WITHIN).await?;
        Ok(Some(match request.state {
            RequestState::Done => "the source has done what its settings say for then".to_owned(),
            RequestState::Failed => request.message.unwrap_or_default(),
            RequestState::Running => "the source has not answered; it is told when it is reached".to_owned(),
        }))
    }

    async fn source_is_away(&self, job: &JobRow) -> Result<bool, JobError> {
        Ok(self.vault.server(job.server, (self.clock)()).await?.state == Protection::Disconnected)
    }

    async fn ask_source(
        &self,
        job: &JobRow,
        command: CommandKind,
        within: Duration,
    ) -> Result<Request, JobError> {
        let asked = self.vault.ask(job.server, command, (self.clock)()).await?;
        Ok(self.vault.request_within(&asked.id, within).await?)
    }
}
