//! Machines that operators stop and start, and machines that go off by themselves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use lifeboat_api::{AcknowledgeEvents, JobState, Machine, MachineState};
use lifeboat_compute::{DiskFormat, DiskHydration, HydrationState, MachineSpec};
use lifeboat_vault::jobs::{JobRequest, StartedAgain, Step};

use crate::site::{Site, drill, failover, target};
use crate::support::SERVER;

const BY: &str = "jane";

async fn until_off(site: &Site) -> Machine {
    let begun = Instant::now();
    loop {
        let machine = site.jobs.machine(SERVER).await.unwrap();
        if machine.state == MachineState::Off {
            return machine;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{machine:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn in_minutes(minutes: i64) -> Timestamp {
    Timestamp::now() + SignedDuration::from_mins(minutes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_an_operator_stops_stays_off_until_it_is_started() {
    let site = Site::new().await;
    site.obedient_guest().await;
    assert_eq!(site.run(failover("latest-processed")).await.state, JobState::Done);
    let mut started = StartedAgain::new();
    for (word, force) in [("guest shut down", false), ("powered off", true)] {
        assert!(site.jobs.stop_machine(SERVER, force, BY).await.unwrap().stopped.is_some());
        let off = until_off(&site).await;
        assert!(off.reason.as_ref().unwrap().contains(word), "{off:?}");
        site.jobs.look_at_machines(&mut started, Timestamp::now()).await.unwrap();
        assert_eq!(site.attention().await, [""; 0], "it was wanted");
        // Stopped again it is what it was.
        site.jobs.stop_machine(SERVER, true, BY).await.unwrap();
        if !force {
            site.jobs.start_again(SERVER, BY).await.unwrap();
            site.until_console("third login: ", 2).await;
        }
    }

    // Powered off, it would be started by a vault that starts, had nobody wanted it off.
    let site = site.restart(Arc::new(())).await;
    site.jobs.resume().await.unwrap();
    assert_eq!(site.jobs.machine(SERVER).await.unwrap().state, MachineState::Off);
    let mut larger = target("login: ");
    larger.memory_mib = Some(96);
    site.jobs.set_target(SERVER, &larger).await.unwrap();
    let machine = site.jobs.start_again(SERVER, BY).await.unwrap();
    assert_eq!((machine.state, machine.stopped, machine.memory_mib), (MachineState::Running, None, 96));
    site.until_console("third login: ", 3).await;
    assert_eq!(site.jobs.start_again(SERVER, BY).await.unwrap().id, machine.id, "it runs");
    let events = site.vault.catalog().events(lifeboat_wire::event::Severity::Information, Some(SERVER), 50);
    let told: Vec<_> = events.await.unwrap().into_iter().map(|event| event.message).collect();
    for what in ["was told to shut down by jane", "was powered off by jane", "was started by jane"] {
        assert!(told.iter().any(|message| message.contains(what)), "{what}: {told:#?}");
    }
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_whose_process_ends_is_started_again_but_not_again_and_again() {
    let site = Site::new().await;
    assert_eq!(site.run(failover("latest-processed")).await.state, JobState::Done);
    let mut started = StartedAgain::new();
    site.jobs.look_at_machines(&mut started, Timestamp::now()).await.unwrap();
    assert_eq!(site.attention().await, [""; 0]);

    site.kill_machine().await;
    site.jobs.look_at_machines(&mut started, Timestamp::now()).await.unwrap();
    assert_eq!(site.jobs.machine(SERVER).await.unwrap().state, MachineState::Running);
    site.until_console("second login: ", 2).await;
    assert_eq!(site.attention().await, ["machine_restarted"]);

    site.kill_machine().await;
    for _ in 0..3 {
        site.jobs.look_at_machines(&mut started, Timestamp::now()).await.unwrap();
    }
    assert_eq!(site.jobs.machine(SERVER).await.unwrap().state, MachineState::Off);
    assert_eq!(site.attention().await, ["machine_off", "machine_restarted"]);
    let off = site.vault.catalog().attention(1).await.unwrap().remove(0);
    assert_eq!(off.severity, "critical");
    assert!(off.message.contains("db1 is off: its process ended"), "{off:?}");
    assert!(off.next_step.ends_with("lifeboat machine start db1"), "{off:?}");

    // Some minutes later it is tried once more.
    site.jobs.look_at_machines(&mut started, in_minutes(6)).await.unwrap();
    assert_eq!(site.jobs.machine(SERVER).await.unwrap().state, MachineState::Running);
    assert_eq!(site.attention().await, ["machine_restarted"], "nothing is off any more");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_shuts_itself_down_is_told_of_until_somebody_starts_it() {
    let site = Site::new().await;
    site.obedient_guest().await;
    assert_eq!(site.run(failover("latest-processed")).await.state, JobState::Done);
    let machine = site.jobs.machine(SERVER).await.unwrap();
    // As by somebody at its own keyboard.
    site.provider.shut_down(machine.id).await.unwrap();
    until_off(&site).await;
    let mut started = StartedAgain::new();
    for _ in 0..2 {
        site.jobs.look_at_machines(&mut started, Timestamp::now()).await.unwrap();
    }
    // A vault that was started anew knows that it has told.
    let site = site.restart(Arc::new(())).await;
    site.jobs.resume().await.unwrap();
    site.jobs.look_at_machines(&mut StartedAgain::new(), Timestamp::now()).await.unwrap();
    assert_eq!(site.jobs.machine(SERVER).await.unwrap().state, MachineState::Off, "it is not started again");
    let codes = site.vault.catalog().events(lifeboat_wire::event::Severity::Warning, Some(SERVER), 50);
    let codes: Vec<_> = codes.await.unwrap().into_iter().map(|event| event.code).collect();
    assert_eq!(codes, ["machine_off"]);

    // Started by other hands, it needs no attention either; and what goes off again does, however soon.
    let spec = site.vault.catalog().recovery(SERVER).await.unwrap().unwrap().spec;
    for boots in [2, 3] {
        site.provider.start(&spec).await.unwrap();
        site.jobs.look_at_machines(&mut started, Timestamp::now()).await.unwrap();
        assert_eq!(site.attention().await, [""; 0]);
        site.until_console("third login: ", boots).await;
        site.provider.shut_down(machine.id).await.unwrap();
        until_off(&site).await;
        site.jobs.look_at_machines(&mut started, Timestamp::now()).await.unwrap();
        assert_eq!(site.attention().await, ["machine_off"]);
    }
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_does_not_shut_down_is_told_of_and_jobs_keep_the_power_to_themselves() {
    let site = Site::new().await;
    let error = site.jobs.stop_machine(SERVER, true, BY).await.unwrap_err().to_string();
    assert!(error.contains("there is no machine of server \"db1\""), "{error}");
    site.never_up("1h").await;
    let job = site.begin(failover("latest-processed")).await.unwrap();
    site.until_step(&job, Step::AwaitUp).await;
    for error in [
        site.jobs.stop_machine(SERVER, true, BY).await.unwrap_err(),
        site.jobs.start_again(SERVER, BY).await.unwrap_err(),
    ] {
        assert!(error.to_string().contains("a failover, is under way for this server"), "{error}");
    }
    site.jobs.set_target(SERVER, &target("login: ")).await.unwrap();
    let site = site.restart(Arc::new(())).await;
    site.jobs.resume().await.unwrap();
    assert_eq!(site.end_of(&job).await.state, JobState::Done);

    // Its guest does not listen.
    site.jobs.stop_machine(SERVER, false, BY).await.unwrap();
    let mut started = StartedAgain::new();
    site.jobs.look_at_machines(&mut started, in_minutes(9)).await.unwrap();
    assert_eq!(site.attention().await, [""; 0]);
    site.jobs.look_at_machines(&mut started, in_minutes(11)).await.unwrap();
    assert_eq!(site.attention().await, ["machine_not_stopped"]);
    let machine = site.jobs.machine(SERVER).await.unwrap();
    assert_eq!((machine.state, machine.stopped), (MachineState::Running, None));
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_cannot_be_started_again_is_tried_later() {
    let site = Site::new().await;
    assert_eq!(site.run(failover("latest-processed")).await.state, JobState::Done);
    let catalog = site.vault.catalog();
    let spec = catalog.recovery(SERVER).await.unwrap().unwrap().spec;
    catalog.set_spec(SERVER, &MachineSpec { memory_mib: 1 << 30, ..spec.clone() }).await.unwrap();
    site.kill_machine().await;
    let mut started = StartedAgain::new();
    site.jobs.look_at_machines(&mut started, Timestamp::now()).await.unwrap();
    let off = catalog.attention(1).await.unwrap().remove(0);
    assert!(off.message.contains("it could not be started again: "), "{off:?}");
    catalog.set_spec(SERVER, &spec).await.unwrap();
    site.jobs.look_at_machines(&mut started, in_minutes(1)).await.unwrap();
    assert_eq!(site.attention().await, ["machine_off"]);
    site.jobs.look_at_machines(&mut started, in_minutes(6)).await.unwrap();
    assert_eq!(site.attention().await, ["machine_restarted"]);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_machine_of_a_failover_that_failed_midway_is_left_to_its_job() {
    let site = Site::new().await;
    let mut too_large = target("login: ");
    too_large.memory_mib = Some(1 << 20);
    site.jobs.set_target(SERVER, &too_large).await.unwrap();
    let job = site.run(failover("latest-processed")).await;
    assert_eq!(job.state, JobState::Failed);
    site.jobs.look_at_machines(&mut StartedAgain::new(), Timestamp::now()).await.unwrap();
    assert_eq!(site.attention().await, ["failover_failed"], "there is no machine yet that could be off");
    let error = site.jobs.start_again(SERVER, BY).await.unwrap_err().to_string();
    assert!(error.contains(&format!("or end it with `lifeboat job cancel {}`", job.id)), "{error}");

    // What came after it is not undone with it.
    site.jobs.set_target(SERVER, &target("login: ")).await.unwrap();
    let change = JobRequest::ChangePoint { point: "latest-processed".into() };
    assert_eq!(site.run(change).await.state, JobState::Done);
    let error = site.jobs.cancel(job.id).await.unwrap_err().to_string();
    assert!(error.contains("runs at the recovery site"), "{error}");
    assert!(site.vault.fenced_since(SERVER).await.unwrap().is_some());
    assert_eq!(site.jobs.machine(SERVER).await.unwrap().state, MachineState::Running);
    assert_eq!(site.attention().await, [""; 0]);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copying_ends_when_its_machine_is_started_anew() {
    let site = Site::new().await;
    assert_eq!(site.run(failover("latest-processed")).await.state, JobState::Done);
    let copying = JobRequest::Hydrate { format: DiskFormat::Raw, bytes_per_second: Some(1) };
    let job = site.begin(copying).await.unwrap();
    site.until_step(&job, Step::CopyDisks).await;
    let machine = site.jobs.machine(SERVER).await.unwrap().id;
    let is_copying = |copy: &DiskHydration| matches!(copy.state, HydrationState::Copying { .. });
    while !site.provider.hydration(machine).await.unwrap().iter().any(is_copying) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    site.kill_machine().await;
    site.jobs.start_again(SERVER, BY).await.unwrap();
    let ended = site.end_of(&job).await;
    assert_eq!(ended.state, JobState::Failed, "{ended:#?}");
    assert!(ended.message.unwrap().contains("disk 0 was not copied"));
    assert_eq!(site.jobs.machine(SERVER).await.unwrap().state, MachineState::Running);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn things_of_their_own_are_told_apart_and_acknowledged_one_by_one() {
    let site = Site::new().await;
    for message in
        ["The certificate of the vault ends.", "The certificate of ps1 ends.", "The certificate of ps1 ends."]
    {
        let event = lifeboat_wire::event::Event {
            time: Timestamp::now(),
            severity: lifeboat_wire::event::Severity::Warning,
            code: "certificate_ends_soon".into(),
            server: None,
            disk: None,
            message: message.into(),
            next_step: String::new(),
        };
        site.vault.note(event).await.unwrap();
    }
    let attention = site.vault.catalog().attention(10).await.unwrap();
    let messages: Vec<_> = attention.iter().map(|event| event.message.as_str()).collect();
    assert_eq!(messages, ["The certificate of ps1 ends.", "The certificate of the vault ends."]);
    let named = AcknowledgeEvents { numbers: vec![attention[0].number], up_to: None };
    assert_eq!(site.vault.acknowledge(&named, BY, Timestamp::now()).await.unwrap().acknowledged, 1);
    assert_eq!(site.attention().await, ["certificate_ends_soon"]);
    let unknown = AcknowledgeEvents { numbers: vec![99], up_to: None };
    let error = site.vault.acknowledge(&unknown, BY, Timestamp::now()).await.unwrap_err().to_string();
    assert!(error.contains("there is no event \"99\""), "{error}");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_that_is_kept_is_stopped_and_started_but_not_watched() {
    let site = Site::new().await;
    assert_eq!(site.run(drill(true)).await.state, JobState::Done);
    site.jobs.stop_machine(SERVER, true, BY).await.unwrap();
    assert_eq!(site.jobs.start_again(SERVER, BY).await.unwrap().state, MachineState::Running);
    site.kill_machine().await;
    site.jobs.look_at_machines(&mut StartedAgain::new(), Timestamp::now()).await.unwrap();
    assert_eq!(site.jobs.machine(SERVER).await.unwrap().state, MachineState::Off);
    assert_eq!(site.run(JobRequest::CleanUp { note: None }).await.state, JobState::Done);
    site.assert_nothing_left().await;
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_failed_wants_attention_until_it_succeeds_or_is_acknowledged() {
    let site = Site::new().await;
    site.never_up("3s").await;
    for _ in 0..2 {
        assert_eq!(site.run(drill(false)).await.state, JobState::Failed);
    }
    assert_eq!(site.attention().await, ["drill_failed"], "one thing, however often");
    site.jobs.set_target(SERVER, &target("login: ")).await.unwrap();
    let job = site.run(drill(false)).await;
    assert_eq!(job.state, JobState::Done);
    assert_eq!(site.attention().await, [""; 0]);
    let events =
        site.vault.catalog().events(lifeboat_wire::event::Severity::Critical, None, 10).await.unwrap();
    let by = events[0].acknowledged_by.as_ref().unwrap();
    assert!(by.contains(&job.id.to_string()), "{by}");

    // What fails again, be it at once, wants attention again.
    site.never_up("3s").await;
    assert_eq!(site.run(drill(false)).await.state, JobState::Failed);
    assert_eq!(site.attention().await, ["drill_failed"]);
    site.end().await;
}
