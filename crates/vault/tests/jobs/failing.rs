//! Every step of every job fails once, and is done twice.

use std::sync::Arc;

use lifeboat_api::JobState;
use lifeboat_compute::DiskFormat;
use lifeboat_vault::jobs::{JobError, JobRequest, Step};

use crate::site::{Once, Site, drill, failover};

/// All steps but those in which a source has a part.
const STEPS: [Step; 14] = [
    Step::LastPoint,
    Step::Fence,
    Step::ChoosePoint,
    Step::OpenVolume,
    Step::RemoveFormerMachine,
    Step::StartMachine,
    Step::CloseFormerVolume,
    Step::AwaitUp,
    Step::Report,
    Step::RemoveMachine,
    Step::CloseVolume,
    Step::Commit,
    Step::CopyDisks,
    Step::ReleaseVolume,
];

/// Runs every kind of job once; each ends as `ended` says.
async fn whole_life(site: &Site, mut ended: impl AsyncFnMut(&Site, JobRequest)) {
    ended(site, drill(false)).await;
    ended(site, drill(true)).await;
    ended(site, JobRequest::CleanUp { note: None }).await;
    site.assert_nothing_left().await;
    ended(site, failover("latest")).await;
    let first = site.points().await[0].to_string();
    ended(site, JobRequest::ChangePoint { point: first }).await;
    ended(site, JobRequest::Commit).await;
    assert!(site.console().await.contains("first login: "));
    assert_eq!(site.provider_machines().await, 1);
    assert_eq!(site.volumes.list().await.unwrap().len(), 1);
    ended(site, JobRequest::Hydrate { format: DiskFormat::Raw, bytes_per_second: None }).await;
    assert_eq!(site.provider_machines().await, 1);
    assert_eq!(site.volumes.list().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_step_can_be_done_twice() {
    // As after a crash between a step and the note that it is done.
    let once = Once::new(true, |_| Some(JobError::Interrupted));
    let site = Site::with(once.clone()).await;
    whole_life(&site, async |site, request| {
        let job = site.run(request).await;
        assert_eq!(job.state, JobState::Done, "{job:#?}");
    })
    .await;
    let hit = once.hit();
    assert!(STEPS.iter().all(|step| hit.contains(step)), "{hit:?}");
    site.end().await;
}

/// Lets each step fail once; what failed is retried, and a drill, which rolls back, begun anew.
async fn every_step_fails(after: bool) {
    let once = Once::new(after, |_| Some(JobError::MadeToFail));
    let site = Site::with(once.clone()).await;
    whole_life(&site, async |site, request| {
        let mut job = site.run(request.clone()).await;
        while job.state == JobState::Failed {
            assert!(job.message.as_ref().unwrap().contains("made to fail"), "{job:#?}");
            job = match request {
                JobRequest::Drill { .. } => {
                    site.assert_nothing_left().await;
                    site.run(request.clone()).await
                }
                _ => {
                    site.jobs.retry(job.id).await.unwrap();
                    site.end_of(&job).await
                }
            };
        }
        assert_eq!(job.state, JobState::Done, "{job:#?}");
    })
    .await;
    let hit = once.hit();
    assert!(STEPS.iter().all(|step| hit.contains(step)), "{hit:?}");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_step_can_fail_before_it_does_anything() {
    every_step_fails(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_step_can_fail_after_it_did_all() {
    every_step_fails(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_failed_before_its_machine_started_is_cancelled_and_the_source_goes_on() {
    for step in [Step::Fence, Step::ChoosePoint, Step::OpenVolume, Step::StartMachine] {
        let once = Arc::new(FailsAlways(step));
        let site = Site::with(once).await;
        let job = site.run(failover("latest-processed")).await;
        assert_eq!(job.state, JobState::Failed, "{job:#?}");
        let way_out = format!("let the source go on with `lifeboat job cancel {}`", job.id);
        assert!(job.message.as_ref().unwrap().contains(&way_out), "{job:#?}");
        site.jobs.cancel(job.id).await.unwrap();
        let ended = site.end_of(&job).await;
        assert_eq!(ended.state, JobState::Cancelled, "{ended:#?}");
        assert_eq!(site.vault.fenced_since(crate::support::SERVER).await.unwrap(), None);
        site.assert_nothing_left().await;
        site.end().await;
    }
}

/// A step that fails however often it is tried, after it did all.
struct FailsAlways(Step);

impl lifeboat_vault::jobs::Interruption for FailsAlways {
    fn after(&self, step: Step) -> Result<(), JobError> {
        if step == self.0 { Err(JobError::MadeToFail) } else { Ok(()) }
    }
}
