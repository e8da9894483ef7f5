//! The same jobs with machines that libvirt runs.

use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_api::{JobState, MachineState};
use lifeboat_vault::jobs::{JobRequest, StartedAgain};

use crate::daemon::Daemon;
use crate::site::{Site, drill, failover};
use crate::support::SERVER;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_and_a_failover_through_libvirt_end_as_everywhere() {
    let daemon = Daemon::start();
    let site = Site::at_libvirt(daemon.uri()).await;
    let job = site.run(drill(false)).await;
    assert_eq!(job.state, JobState::Done, "{job:#?}");
    let report = job.report.unwrap();
    assert!(report.up && report.console.contains("second login: "), "{report:?}");
    assert!(report.first_instruction_ms.is_some() && report.screenshot.is_some(), "{report:?}");
    assert!(report.compute.contains("libvirt"), "{report:?}");
    site.assert_nothing_left().await;
    assert_eq!(daemon.virsh(&["list", "--all", "--name"]).1.trim(), "");

    let job = site.run(failover("latest")).await;
    assert_eq!(job.state, JobState::Done, "{job:#?}");
    // The vault stops and starts; the machine runs on and goes on with its disks.
    let site = site.restart(Arc::new(())).await;
    site.jobs.resume().await.unwrap();
    assert_eq!(site.jobs.machine(SERVER).await.unwrap().state, MachineState::Running);
    assert!(site.console().await.contains("second login: "));

    // An operator's stop is kept; one by other hands is told, and nobody works against them.
    site.jobs.stop_machine(SERVER, true, "jane").await.unwrap();
    site.jobs.look_at_machines(&mut StartedAgain::new(), Timestamp::now()).await.unwrap();
    assert_eq!(site.jobs.machine(SERVER).await.unwrap().state, MachineState::Off);
    let machine = site.jobs.start_again(SERVER, "jane").await.unwrap();
    site.until_console("second login: ", 2).await;
    assert_eq!(site.attention().await, [""; 0]);
    let domain = daemon.virsh(&["list", "--name"]).1.trim().to_owned();
    for (how, told) in
        [("suspend", vec!["machine_halted"]), ("resume", vec![]), ("destroy", vec!["machine_off"])]
    {
        assert!(daemon.virsh(&[how, &domain]).0, "{how} {domain} of {}", machine.id);
        site.jobs.look_at_machines(&mut StartedAgain::new(), Timestamp::now()).await.unwrap();
        assert_eq!(site.attention().await, told, "{how}");
    }
    assert_eq!(site.jobs.machine(SERVER).await.unwrap().state, MachineState::Off);

    let first = site.points().await[0].to_string();
    let job = site.run(JobRequest::ChangePoint { point: first }).await;
    assert_eq!(job.state, JobState::Done, "{job:#?}");
    assert!(site.console().await.contains("first login: "));
    let job = site.run(JobRequest::Commit).await;
    assert_eq!(job.state, JobState::Done, "{job:#?}");
    site.end().await;
    assert_eq!(daemon.virsh(&["list", "--all", "--name"]).1.trim(), "");
}
