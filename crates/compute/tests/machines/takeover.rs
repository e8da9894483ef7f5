//! Machines outlive whoever started them.

use std::process::{Command, Stdio};

use lifeboat_compute::{MachineId, MachineStatus, Provider, QemuProvider};

use crate::guests::UP;
use crate::machine::wait_for;
use crate::site::{Site, kill, processes_in, settings};

const PLACE: &str = "LIFEBOAT_TEST_PLACE";

/// Runs as a process of its own: starts a machine and then waits to be killed.
#[tokio::test]
#[ignore = "a part of another test"]
async fn starter() {
    let Some(place) = std::env::var_os(PLACE) else { return };
    let place = std::path::PathBuf::from(place);
    let provider = QemuProvider::open(settings(&place)).await.unwrap();
    let path = place.join("image");
    let source = lifeboat_compute::DiskAddress::File { path, format: lifeboat_compute::DiskFormat::Raw };
    provider.start(&crate::machine::spec(1, source)).await.unwrap();
    std::fs::write(place.join("started"), "").unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_machine_survives_its_starter_and_is_taken_over() {
    let site = Site::new().await;
    let spec = site.spec(1, UP);
    let Site { place, provider } = &site;
    // Another process is to have the directory.
    let other = QemuProvider::open(settings(place.path())).await.unwrap_err();
    assert!(other.to_string().contains("in use by another process"), "{other}");
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::copy(place.path().join("image"), elsewhere.path().join("image")).unwrap();
    let mut starter = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "takeover::starter", "--ignored", "--nocapture"])
        .env(PLACE, elsewhere.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(async || elsewhere.path().join("started").exists().then_some(()))
        .await
        .expect("it does not start");
    let error = QemuProvider::open(settings(elsewhere.path())).await.unwrap_err();
    assert!(error.to_string().contains("in use by another process"), "{error}");
    starter.kill().unwrap();
    starter.wait().unwrap();

    let taken = QemuProvider::open(settings(elsewhere.path())).await.unwrap();
    let processes = processes_in(elsewhere.path());
    assert_eq!(processes.len(), 1, "the machine ended with its starter");
    assert_eq!(taken.machines().await.unwrap(), [MachineId::new(1)]);
    let status = taken.status(MachineId::new(1)).await.unwrap();
    assert!(matches!(status, MachineStatus::Running { first_instruction: Some(_), .. }), "{status:?}");
    wait_for(async || {
        Some(taken.console(MachineId::new(1), 0).await.unwrap()).filter(|part| part.text.contains("UP"))
    })
    .await
    .expect("the guest says nothing");
    taken.remove(MachineId::new(1)).await.unwrap();
    assert_eq!(processes_in(elsewhere.path()), [0; 0]);
    provider.remove(spec.id).await.unwrap();
}

#[tokio::test]
async fn a_machine_whose_process_died_unseen_is_off() {
    let site = Site::new().await;
    let spec = site.spec(1, UP);
    site.provider.start(&spec).await.unwrap();
    let place = site.place.path().to_owned();
    kill(processes_in(&place)[0]);
    wait_for(async || processes_in(&place).is_empty().then_some(())).await.unwrap();
    // A process with the same arguments elsewhere, and one in the directory without them, are not it.
    let directory = place.join(format!("state/machines/{}", spec.id));
    let marker = format!("guest=lifeboat-{}", spec.id);
    let mut others =
        [("/", marker.as_str()), (directory.to_str().unwrap(), "guest=else")].map(|(cwd, argument)| {
            Command::new("sh")
                .args(["-c", "read x", argument])
                .current_dir(cwd)
                .stdin(Stdio::piped())
                .spawn()
                .unwrap()
        });
    let status = site.provider.status(spec.id).await.unwrap();
    assert!(matches!(status, MachineStatus::Off { .. }), "{status:?}");
    site.provider.power_off(spec.id).await.unwrap();
    for other in &mut others {
        assert_eq!(other.try_wait().unwrap(), None, "a process of somebody else was ended");
        other.kill().unwrap();
        other.wait().unwrap();
    }
}

#[tokio::test]
async fn a_long_path_is_no_obstacle() {
    let place = tempfile::tempdir().unwrap();
    let long = place.path().join("a".repeat(150)).join("b".repeat(150));
    std::fs::create_dir_all(&long).unwrap();
    let site = Site::new().await;
    let spec = site.spec(1, UP);
    let provider = QemuProvider::open(settings(&long)).await.unwrap();
    provider.start(&spec).await.unwrap();
    let status = provider.status(spec.id).await.unwrap();
    provider.remove(spec.id).await.unwrap();
    assert!(matches!(status, MachineStatus::Running { halted: None, .. }), "{status:?}");
}
