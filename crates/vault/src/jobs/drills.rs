//! Drills that the vault begins by itself.
//!
//! Each server has its own moment within the time between two drills, made from its id, so that many
//! servers with the same interval are not drilled at once; and of those that are due at the same time,
//! as after weeks in which the vault was down, one is begun at each look. However often a drill was
//! due meanwhile, it is begun once.
//!
//! A drill that is due and cannot begin says why. When it found no room it is tried at every look, and
//! a smaller one may come before it; for any other reason it is put off.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lifeboat_api as api;
use lifeboat_model::{JobId, ServerId, Span};
use lifeboat_wire::event::{Event, Severity};

use super::{Conflict, JobError, JobRequest, Jobs};
use crate::catalog::DrillScheduleRow;
use crate::error::VaultError;

/// Time between two looks at what is due, and so between two drills that are begun.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// A drill that cannot begin is put off so far, or a quarter of its interval if that is less.
const PUT_OFF: SignedDuration = SignedDuration::from_hours(1);
/// An operator is told of a drill that has not begun so long after it was due.
const OVERDUE: SignedDuration = SignedDuration::from_hours(24);
/// Why a server that has failed over is not drilled.
const FAILED_OVER: &str = "it has failed over, and is drilled again when it is protected again";
/// What an interval may be: at least an hour, at most a year.
const EVERY_SECONDS: std::ops::RangeInclusive<u64> = 3_600..=366 * 86_400;

impl Jobs {
    /// Lets a server be drilled regularly. The same interval again changes nothing.
    ///
    /// # Errors
    /// When the interval cannot be meant, there is no such server, or the catalog fails.
    pub async fn schedule_drills(
        &self,
        server: ServerId,
        every: Span,
        now: Timestamp,
    ) -> Result<api::DrillSchedule, JobError> {
        if !EVERY_SECONDS.contains(&every.duration().as_secs()) {
            let why = format!("drills are 1h to 366d apart, not {every}");
            return Err(VaultError::Invalid(why).into());
        }
        let catalog = self.vault.catalog();
        self.server_name(server).await?;
        let before = catalog.drill_schedules().await?.into_iter().find(|row| row.server == server);
        if let Some(before) = before.filter(|before| before.every == every) {
            return self.schedule_view(before).await;
        }
        let due = slot(server, every, now);
        let row = DrillScheduleRow { server, every, due, try_at: due, waiting: None, told: false };
        catalog.put_drill_schedule(&row).await?;
        self.schedule_view(row).await
    }

    /// A server is not drilled regularly any more. Fine when it was not.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn stop_drills(&self, server: ServerId) -> Result<(), JobError> {
        self.vault.catalog().remove_drill_schedule(server).await?;
        Ok(())
    }

    /// Which servers are drilled regularly, the one that is due first at first.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn drill_schedules(&self) -> Result<Vec<api::DrillSchedule>, JobError> {
        let mut schedules = Vec::new();
        for row in self.vault.catalog().drill_schedules().await? {
            schedules.push(self.schedule_view(row).await?);
        }
        Ok(schedules)
    }

    async fn schedule_view(&self, row: DrillScheduleRow) -> Result<api::DrillSchedule, JobError> {
        let recovery = self.vault.catalog().recovery(row.server).await?;
        let is_failed_over = recovery.is_some_and(|row| row.purpose == api::MachinePurpose::Failover);
        Ok(api::DrillSchedule {
            server: row.server,
            server_name: self.server_name(row.server).await?,
            every: row.every,
            next: row.due,
            waiting: if is_failed_over { Some(FAILED_OVER.to_owned()) } else { row.waiting },
            last: self.vault.last_drill(row.server).await?,
        })
    }

    /// Looks again and again at what is due.
    pub async fn drill_regularly(self: &Arc<Self>) {
        loop {
            // First the wait: a vault that starts has other things to do.
            tokio::time::sleep(LOOK_EVERY).await;
            if let Err(error) = self.begin_due_drill((self.clock)()).await {
                tracing::warn!(%error, "drills that are due could not be looked through");
            }
        }
    }

    /// Begins one drill of those that are due, and notes of the others why they were not begun.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn begin_due_drill(self: &Arc<Self>, now: Timestamp) -> Result<Option<JobId>, JobError> {
        for mut schedule in self.vault.catalog().drill_schedules().await? {
            if schedule.try_at > now {
                continue;
            }
            // One that was begun by hand does as well, and so does one before whose end the vault was killed.
            let newest = self.vault.catalog().newest_drill(schedule.server).await?;
            if newest.is_some_and(|newest| newest.begun >= schedule.due) {
                take_next(&mut schedule, now);
                self.vault.catalog().put_drill_schedule(&schedule).await?;
                continue;
            }
            let begun = match self.begin(schedule.server, JobRequest::drill("latest")).await {
                Ok(job) => {
                    take_next(&mut schedule, now);
                    Some(job.id)
                }
                Err(JobError::Vault(VaultError::Catalog(error))) => return Err(error.into()),
                Err(error) => {
                    put_off(&mut schedule, &error, now);
                    self.tell_overdue(&mut schedule, &error, now).await?;
                    None
                }
            };
            self.vault.catalog().put_drill_schedule(&schedule).await?;
            if begun.is_some() {
                return Ok(begun);
            }
        }
        Ok(None)
    }

    async fn tell_overdue(
        &self,
        schedule: &mut DrillScheduleRow,
        error: &JobError,
        now: Timestamp,
    ) -> Result<(), JobError> {
        let is_failed_over = matches!(error, JobError::Conflict(Conflict::FailedOver { .. }));
        if is_failed_over || schedule.told || now.duration_since(schedule.due) < OVERDUE {
            return Ok(());
        }
        let why = schedule.waiting.as_deref().unwrap_or_default();
        let event = Event {
            time: now,
            severity: Severity::Warning,
            code: "drill_overdue".into(),
            server: Some(schedule.server),
            disk: None,
            message: format!("The drill that was due at {:.0} has not begun: {why}.", schedule.due),
            next_step: "It is tried again by itself; `lifeboat drill list` shows what it waits for.".into(),
        };
        self.vault.note(event).await?;
        schedule.told = true;
        Ok(())
    }
}

/// What was due was begun now.
fn take_next(schedule: &mut DrillScheduleRow, now: Timestamp) {
    // The next one has half of the interval at least, however late this one was.
    let half = SignedDuration::try_from(schedule.every.duration() / 2).unwrap_or_default();
    schedule.due = slot(schedule.server, schedule.every, later(now, half));
    (schedule.try_at, schedule.waiting, schedule.told) = (schedule.due, None, false);
}

/// What is due could not begin.
fn put_off(schedule: &mut DrillScheduleRow, error: &JobError, now: Timestamp) {
    // Room may come at any time.
    if !matches!(error, JobError::Conflict(Conflict::NoRoom(why)) if !why.is_for_good()) {
        let quarter = SignedDuration::try_from(schedule.every.duration() / 4).unwrap_or_default();
        schedule.try_at = later(now, PUT_OFF.min(quarter));
    }
    schedule.waiting = Some(error.to_string());
}

/// The first moment after `after` at which a server with this interval is drilled.
fn slot(server: ServerId, every: Span, after: Timestamp) -> Timestamp {
    let every_ms = i64::try_from(every.milliseconds()).unwrap_or(i64::MAX).max(1);
    let phase_ms = i64::try_from(server.number() % every.milliseconds().max(1)).unwrap_or_default();
    let since_ms = (after.as_millisecond() - phase_ms).rem_euclid(every_ms);
    later(after, SignedDuration::from_millis(every_ms - since_ms))
}

/// A time so much later; the last one that there is where that is beyond it.
fn later(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.saturating_add(by).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_with_one_interval_are_drilled_at_times_of_their_own() {
        let every = Span::seconds(7 * 86_400);
        let now: Timestamp = "2026-11-26T15:00:00Z".parse().unwrap();
        let mut slots = Vec::new();
        for number in 0..70u64 {
            // As ids are: spread over all numbers.
            let hash = blake3::hash(&number.to_le_bytes());
            let server = ServerId::new(u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap()));
            let first = slot(server, every, now);
            assert!(first > now && first <= later(now, SignedDuration::from_hours(7 * 24)));
            let second = slot(server, every, first);
            assert_eq!(second.duration_since(first), SignedDuration::from_hours(7 * 24));
            slots.push(first);
        }
        let days: Vec<_> = slots.iter().map(|slot| slot.duration_since(now).as_hours() / 24).collect();
        for day in 0..7 {
            let on_this_day = days.iter().filter(|on| **on == day).count();
            assert!((2..=20).contains(&on_this_day), "{on_this_day} of 70 on day {day}");
        }
    }
}
