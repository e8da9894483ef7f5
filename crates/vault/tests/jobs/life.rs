//! The life of a copy: drill, failover, change of point, commit; and what is refused meanwhile.

use std::sync::Arc;

use lifeboat_api::{JobState, MachinePurpose, MachineState, StepState};
use lifeboat_model::ServerId;
use lifeboat_vault::jobs::{JobRequest, Step};

use crate::site::{Site, drill, failover, target};
use crate::support::{SERVER, register};

const OTHER_SERVER: ServerId = ServerId::new(0xbbbb_0000_0000_0001);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_boots_the_newest_point_tells_and_leaves_nothing() {
    let site = Site::new().await;
    let job = site.run(drill(false)).await;
    assert_eq!(job.state, JobState::Done, "{job:#?}");
    let report = job.report.unwrap();
    assert!(report.up && report.console.contains("second login: "), "{report:?}");
    assert_eq!(Some(report.point), site.points().await.pop());
    assert!(report.probes[0].passed && report.boot_ms.is_some() && report.previous.is_none());
    assert!(report.first_instruction_ms.is_some() && report.screenshot.is_some(), "{report:?}");
    site.assert_nothing_left().await;

    let again = site.run(drill(false)).await.report.unwrap();
    assert_eq!(again.previous.unwrap().job, job.id);
    let mut larger = target("second login: ");
    larger.memory_mib = Some(96);
    site.jobs.set_target(SERVER, &larger).await.unwrap();
    let other = site.run(drill(false)).await.report.unwrap();
    let differences = other.differences;
    assert!(differences.contains(&"Memory: 96 MiB; before: 64 MiB.".to_owned()), "{differences:?}");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_does_not_come_up_makes_a_drill_fail_and_leaves_nothing() {
    let site = Site::new().await;
    site.never_up("20s").await;
    let job = site.run(drill(false)).await;
    assert_eq!(job.state, JobState::Failed, "{job:#?}");
    assert!(job.message.unwrap().contains("did not come up within 20 s"));
    let report = job.report.unwrap();
    assert!(!report.up && report.console.contains("second login: "), "{report:?}");
    site.assert_nothing_left().await;
    let events =
        site.vault.catalog().events(lifeboat_wire::event::Severity::Critical, None, 10).await.unwrap();
    assert!(events.iter().any(|event| event.code == "drill_failed"), "{events:?}");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_drill_runs_until_it_is_cleaned_up() {
    let site = Site::new().await;
    let first = site.points().await[0].to_string();
    let job = site.run(JobRequest::Drill { point: first[..8].to_owned(), keep: true, network: None }).await;
    assert_eq!(job.state, JobState::Done, "{job:#?}");
    let machine = site.jobs.machine(SERVER).await.unwrap();
    assert_eq!((machine.purpose, machine.state), (MachinePurpose::Drill, MachineState::Running));
    assert!(site.console().await.contains("first login: "));
    assert!(site.jobs.screenshot(SERVER).await.unwrap().starts_with(b"\x89PNG"));

    let refused = async |request| site.begin(request).await.unwrap_err().to_string();
    assert!(refused(drill(false)).await.contains("a drill of this server"));
    assert!(refused(failover("latest")).await.contains("lifeboat failover cleanup"));
    assert!(refused(JobRequest::Commit).await.contains("has not failed over"));
    let volume = machine.volume.unwrap().to_string();
    let error =
        site.volumes.close(&volume, true, "a test", jiff::Timestamp::now()).await.unwrap_err().to_string();
    assert!(error.contains("the disks of a machine"), "{error}");

    let cleaned = site.run(JobRequest::CleanUp { note: Some("went well".to_owned()) }).await;
    assert_eq!(cleaned.state, JobState::Done, "{cleaned:#?}");
    assert_eq!(cleaned.message.as_deref(), Some("went well"));
    let noted = site.jobs.job(job.id).await.unwrap().report.unwrap().note;
    assert_eq!(noted.as_deref(), Some("went well"));
    site.assert_nothing_left().await;
    assert!(refused(JobRequest::CleanUp { note: None }).await.contains("nothing to clean up"));
    let error = site.jobs.machine(SERVER).await.unwrap_err().to_string();
    assert!(error.contains("machine of server \"db1\""), "{error}");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_can_change_its_point_until_it_is_committed() {
    let site = Site::new().await;
    let refused = async |site: &Site, request| site.begin(request).await.unwrap_err().to_string();
    assert!(
        refused(&site, JobRequest::ChangePoint { point: "latest-processed".into() })
            .await
            .contains("has not failed over")
    );
    let job = site.run(failover("latest")).await;
    assert_eq!(job.state, JobState::Done, "{job:#?}");
    assert!(job.steps[0].message.as_ref().unwrap().contains("the newest point that is stored is used"));
    assert!(site.console().await.contains("second login: "));
    assert!(refused(&site, drill(false)).await.contains("has failed over"));
    assert!(refused(&site, JobRequest::CleanUp { note: None }).await.contains("has failed over"));

    let first = site.points().await[0].to_string();
    let job = site.run(JobRequest::ChangePoint { point: first }).await;
    assert_eq!(job.state, JobState::Done, "{job:#?}");
    assert!(site.console().await.contains("first login: "));
    assert_eq!(site.volumes.list().await.unwrap().len(), 1);
    assert!(
        refused(&site, JobRequest::ChangePoint { point: "latest".into() }).await.contains("latest-processed")
    );

    assert_eq!(site.run(JobRequest::Commit).await.state, JobState::Done);
    let machine = site.jobs.machine(SERVER).await.unwrap();
    assert!(machine.committed.is_some() && machine.state == MachineState::Running, "{machine:?}");
    assert!(refused(&site, JobRequest::Commit).await.contains("that is final"));
    let processed = JobRequest::ChangePoint { point: "latest-processed".into() };
    assert!(refused(&site, processed).await.contains("that is final"));
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_a_point_is_refused_before_its_source_is_fenced() {
    let site = Site::new().await;
    register(&site.vault, OTHER_SERVER, "db2", 0).await;
    for request in [drill(false), failover("latest"), JobRequest::PlannedFailover { network: None }] {
        let error = site.jobs.begin(OTHER_SERVER, request).await.unwrap_err().to_string();
        assert!(error.contains("the server has no points yet"), "{error}");
    }
    assert_eq!(site.vault.fenced_since(OTHER_SERVER).await.unwrap(), None);
    assert_eq!(site.jobs.list(Some(OTHER_SERVER), 10).await.unwrap(), []);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_whose_machine_does_not_come_up_stands_and_says_what_can_be_done() {
    let site = Site::new().await;
    site.never_up("5s").await;
    let job = site.run(failover("latest-processed")).await;
    assert_eq!(job.state, JobState::Failed, "{job:#?}");
    let message = job.message.unwrap();
    assert!(message.contains("The machine runs all the same"), "{message}");
    assert!(message.contains(&format!("lifeboat job retry {}", job.id)), "{message}");
    assert_eq!(site.jobs.machine(SERVER).await.unwrap().state, MachineState::Running);
    assert!(site.vault.fenced_since(SERVER).await.unwrap().is_some());

    // A change of point too says what stands, wherever it fails.
    let change = || JobRequest::ChangePoint { point: "latest-processed".into() };
    let message = site.run(change()).await.message.unwrap();
    assert!(message.contains("The machine runs from the new point all the same"), "{message}");
    let mut too_large = target("login: ");
    too_large.memory_mib = Some(1 << 20);
    site.jobs.set_target(SERVER, &too_large).await.unwrap();
    let message = site.run(change()).await.message.unwrap();
    assert!(message.contains("No machine runs meanwhile: go on with `lifeboat job retry"), "{message}");
    // Nobody comes between it and the machine that it has begun.
    for error in [
        site.jobs.start_again(SERVER, "jane").await.unwrap_err(),
        site.begin(JobRequest::Commit).await.unwrap_err(),
    ] {
        assert!(error.to_string().contains("has failed midway: go on with `lifeboat job retry"), "{error}");
    }
    site.jobs.set_target(SERVER, &target("login: ")).await.unwrap();
    let job = site.jobs.list(Some(SERVER), 1).await.unwrap().remove(0);
    site.jobs.retry(job.id).await.unwrap();
    assert_eq!(site.end_of(&job).await.state, JobState::Done);
    assert_eq!(site.attention().await, [""; 0], "what failed before is of no concern");
    assert_eq!(site.run(JobRequest::Commit).await.state, JobState::Done);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_of_one_server_join_or_exclude_each_other_and_can_be_cancelled() {
    let site = Site::new().await;
    site.never_up("1h").await;
    let job = site.begin(drill(false)).await.unwrap();
    site.until_step(&job, Step::AwaitUp).await;
    assert_eq!(site.begin(drill(false)).await.unwrap().id, job.id, "the same again joins it");
    let error = site.begin(failover("latest")).await.unwrap_err().to_string();
    assert!(error.contains("a test failover"), "{error}");
    assert!(error.contains(&format!("cancel it (`lifeboat job cancel {}`)", job.id)), "{error}");

    site.jobs.cancel(job.id).await.unwrap();
    let ended = site.end_of(&job).await;
    assert_eq!(ended.state, JobState::Cancelled, "{ended:#?}");
    assert!(ended.steps.iter().any(|step| step.state == StepState::Undone));
    site.assert_nothing_left().await;
    assert!(site.jobs.cancel(job.id).await.unwrap_err().to_string().contains("has ended"));
    assert!(site.jobs.retry(job.id).await.unwrap_err().to_string().contains("cancelled"));

    // A failover whose machine has been started is not cancelled, though it does not come up.
    let job = site.begin(failover("latest")).await.unwrap();
    site.until_step(&job, Step::AwaitUp).await;
    let error = site.jobs.cancel(job.id).await.unwrap_err().to_string();
    assert!(error.contains("start the machine"), "{error}");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_and_its_job_outlive_the_vault() {
    let site = Site::new().await;
    site.never_up("1h").await;
    let job = site.begin(drill(true)).await.unwrap();
    site.until_step(&job, Step::AwaitUp).await;
    let site = site.restart(Arc::new(())).await;
    assert_eq!(site.jobs.machine(SERVER).await.unwrap().state, MachineState::Running);
    assert_eq!(site.jobs.job(job.id).await.unwrap().state, JobState::Running);

    site.jobs.set_target(SERVER, &target("login: ")).await.unwrap();
    site.jobs.resume().await.unwrap();
    let ended = site.end_of(&job).await;
    assert_eq!(ended.state, JobState::Done, "{ended:#?}");
    assert_eq!(site.run(JobRequest::CleanUp { note: None }).await.state, JobState::Done);
    site.assert_nothing_left().await;
    site.end().await;
}
