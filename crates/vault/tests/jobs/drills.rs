//! Drills that the vault begins by itself, and the room that there is for drills.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use lifeboat_api::{DrillSchedule, JobState};
use lifeboat_model::{ServerId, Span};
use lifeboat_vault::jobs::{Interruption, JobError, JobRequest, MachineLimits, Step};

use crate::site::{Site, drill, failover, target};
use crate::support::SERVER;

const OTHER: ServerId = ServerId::new(0xbbbb_0000_0000_0002);

fn hours(hours: i64) -> SignedDuration {
    SignedDuration::from_hours(hours)
}

impl Site {
    async fn schedule(&self, server: ServerId) -> DrillSchedule {
        let schedules = self.jobs.drill_schedules().await.unwrap();
        schedules.into_iter().find(|schedule| schedule.server == server).unwrap()
    }

    /// Looks at what is due at this moment, and waits for the end of the drill that was begun.
    async fn look(&self, now: Timestamp) -> Option<JobState> {
        let job = self.jobs.begin_due_drill(now).await.unwrap()?;
        let job = self.jobs.job(job).await.unwrap();
        Some(self.end_of(&job).await.state)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_that_is_due_is_begun_once_and_its_result_shows() {
    let site = Site::new().await;
    let week = Span::seconds(7 * 86_400);
    let now = Timestamp::now();
    let schedule = site.jobs.schedule_drills(SERVER, week, now).await.unwrap();
    assert!(schedule.next > now && schedule.next <= now + hours(7 * 24), "{schedule:?}");
    assert_eq!(site.look(schedule.next - hours(1)).await, None);

    // The vault was down for weeks, in which more than one was due.
    let up_again = schedule.next + hours(30 * 24);
    assert_eq!(site.look(up_again).await, Some(JobState::Done));
    assert_eq!(site.look(up_again).await, None);
    let then = site.schedule(SERVER).await;
    assert!(then.next >= up_again + hours(84) && then.waiting.is_none(), "{then:?}");
    // The same interval again is no new beginning.
    assert_eq!(site.jobs.schedule_drills(SERVER, week, up_again).await.unwrap(), then);

    let shown = site.vault.server(SERVER, Timestamp::now()).await.unwrap().last_drill.unwrap();
    assert!(shown.up && shown.boot_ms.is_some(), "{shown:?}");
    assert_eq!(shown.point, site.points().await.pop());
    assert!(shown.verdict.as_ref().unwrap().contains("was up after"), "{shown:?}");
    assert_eq!(then.last, Some(shown));

    site.jobs.stop_drills(SERVER).await.unwrap();
    assert_eq!(site.look(then.next + hours(1000)).await, None);
    assert!(site.jobs.drill_schedules().await.unwrap().is_empty());
    let error = site.jobs.schedule_drills(SERVER, Span::seconds(60), now).await.unwrap_err();
    assert!(error.to_string().contains("1h to 366d"), "{error}");
    site.assert_nothing_left().await;
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_that_cannot_begin_says_why_and_is_tried_later() {
    let site = Site::new().await;
    let schedule = site.jobs.schedule_drills(SERVER, Span::seconds(86_400), Timestamp::now()).await.unwrap();
    assert_eq!(site.run(drill(true)).await.state, JobState::Done);
    let due = schedule.next;
    assert_eq!(site.look(due).await, None);
    let waits = site.schedule(SERVER).await;
    assert!(waits.waiting.as_ref().unwrap().contains("lifeboat failover cleanup"), "{waits:?}");
    assert_eq!(waits.next, due);

    assert_eq!(site.look(due + hours(25)).await, None);
    let events =
        site.vault.catalog().events(lifeboat_wire::event::Severity::Warning, None, 10).await.unwrap();
    let told =
        |events: &[lifeboat_api::Event]| events.iter().filter(|event| event.code == "drill_overdue").count();
    assert_eq!(told(&events), 1, "{events:?}");
    assert_eq!(site.look(due + hours(50)).await, None);
    let events =
        site.vault.catalog().events(lifeboat_wire::event::Severity::Warning, None, 10).await.unwrap();
    assert_eq!(told(&events), 1, "it is told once: {events:?}");

    assert_eq!(site.run(JobRequest::CleanUp { note: None }).await.state, JobState::Done);
    let soon = SignedDuration::from_mins(1);
    assert_eq!(site.look(due + hours(50) + soon).await, None, "what was put off is not tried at every look");
    assert_eq!(site.look(due + hours(51) + soon).await, Some(JobState::Done));

    assert_eq!(site.run(failover("latest-processed")).await.state, JobState::Done);
    assert_eq!(site.look(due + hours(2000)).await, None);
    assert!(
        site.schedule(SERVER).await.waiting.unwrap().contains("drilled again when it is protected again")
    );
    let events =
        site.vault.catalog().events(lifeboat_wire::event::Severity::Warning, None, 10).await.unwrap();
    assert_eq!(told(&events), 1, "nobody waits for that drill: {events:?}");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_needs_room_and_a_failover_takes_it() {
    let site = Site::new().await;
    site.second_server(OTHER, "db2").await;
    // Each machine has 64 MiB.
    site.jobs.set_limits(MachineLimits { memory_mib: Some(100), cpus: None });
    let schedule = site.jobs.schedule_drills(OTHER, Span::seconds(86_400), Timestamp::now()).await.unwrap();
    assert_eq!(site.run(drill(true)).await.state, JobState::Done);

    let refused = site.jobs.begin(OTHER, drill(false)).await.unwrap_err().to_string();
    assert!(refused.contains("needs 64 MiB of memory, and machines may have 100 MiB"), "{refused}");
    assert!(refused.contains("lifeboat failover cleanup db1"), "{refused}");
    assert_eq!(site.look(schedule.next).await, None);
    assert_eq!(site.schedule(OTHER).await.waiting.unwrap(), refused);
    // As soon as there is room it begins.
    assert_eq!(site.run(JobRequest::CleanUp { note: None }).await.state, JobState::Done);
    assert_eq!(site.look(schedule.next).await, Some(JobState::Done));
    assert_eq!(site.schedule(OTHER).await.waiting, None);

    // Processors alike; and one that has not started its machine yet counts already.
    site.jobs.set_limits(MachineLimits { memory_mib: None, cpus: Some(1) });
    site.never_up("1h").await;
    let first = site.begin(drill(false)).await.unwrap();
    let refused = site.jobs.begin(OTHER, drill(false)).await.unwrap_err().to_string();
    assert!(refused.contains("needs 1 of processors, and machines may have 1"), "{refused}");

    // A failover begins all the same.
    let job = site.jobs.begin(OTHER, failover("latest-processed")).await.unwrap();
    let job = site.jobs.view(job).await.unwrap();
    assert_eq!(site.end_of(&job).await.state, JobState::Done);
    site.jobs.cancel(first.id).await.unwrap();
    site.end_of(&first).await;
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_finds_too_little_memory_is_told_which_drills_have_it() {
    let site = Site::new().await;
    site.second_server(OTHER, "db2").await;
    assert_eq!(site.run(drill(true)).await.state, JobState::Done);
    let mut huge = target("login: ");
    huge.memory_mib = Some(64 << 20);
    site.jobs.set_target(OTHER, &huge).await.unwrap();
    let job = site.jobs.begin(OTHER, failover("latest-processed")).await.unwrap();
    let job = site.end_of(&site.jobs.view(job).await.unwrap()).await;
    assert_eq!(job.state, JobState::Failed);
    let why = job.message.unwrap();
    assert!(why.contains("`lifeboat failover cleanup db1` makes room of 64 MiB"), "{why}");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_that_failed_before_its_report_is_the_newest_result() {
    let site = Site::with(Arc::new(NoMachine)).await;
    let job = site.run(drill(false)).await;
    assert_eq!(job.state, JobState::Failed);
    let shown = site.vault.server(SERVER, Timestamp::now()).await.unwrap().last_drill.unwrap();
    assert_eq!((shown.job, shown.up, shown.boot_ms), (job.id, false, None));
    assert_eq!(shown.verdict, job.message);
    site.end().await;
}

/// No machine can be started.
struct NoMachine;

impl Interruption for NoMachine {
    fn before(&self, step: Step) -> Result<(), JobError> {
        if step == Step::StartMachine { Err(JobError::MadeToFail) } else { Ok(()) }
    }
}
