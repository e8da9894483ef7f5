//! A real process, killed at random moments while an agent sends.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test may fail where it stands")]

mod common;
mod site;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{files_ending, seal_disk, seal_of};
use lifeboat_hrl::verify_file_with_key;
use lifeboat_model::{DiskNumber, Epoch, Part, ServerId};
use lifeboat_process_server::Settings;
use site::{Agent, Site, data, encode, free_address, until, wait_for_port};

const SERVER: ServerId = ServerId::new(0x51);
const SETTINGS: &str = "LIFEBOAT_TEST_SETTINGS";
const DISK: DiskNumber = DiskNumber(0);

/// No test of its own: what the other tests start and kill.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "runs as a child of the other tests"]
async fn child() {
    let Ok(text) = std::env::var(SETTINGS) else { return };
    let settings = Settings::from_toml(&text).unwrap();
    lifeboat_process_server::serve(settings, std::future::pending()).await.unwrap();
}

/// Does not outlive a test that fails.
struct Killed(Child);

impl Killed {
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_child(text: &str) -> Killed {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child", "--nocapture"])
        .env(SETTINGS, text)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Killed(child.unwrap())
}

/// What an agent knows: each part it got a receipt for, by epoch, and each sealed point.
#[derive(Default)]
struct Ledger {
    parts: Vec<(u64, u32)>,
    points: Vec<u64>,
}

/// Sends parts and points until the process server dies.
async fn send_until_cut(agent: &Agent, ledger: &mut Ledger) {
    let Ok(state) = agent.describe(0).await else { return };
    let (mut epoch, mut part) = (state.epoch.0, state.next_part.0);
    loop {
        let changes: Vec<_> =
            (0..8).map(|n| data(n * 64, 64, epoch * 1000 + u64::from(part) * 10 + n)).collect();
        match agent.send(0, epoch, part, encode(&changes)).await {
            Ok(_) => ledger.parts.push((epoch, part)),
            Err(error) => return assert!(error.is_retryable(), "{error}"),
        }
        part += 1;
        if part == 3 {
            match agent.seal(&seal_of(epoch, vec![seal_disk(0, epoch, part)])).await {
                Ok(_) => ledger.points.push(epoch),
                Err(error) => return assert!(error.is_retryable(), "{error}"),
            }
            (epoch, part) = (epoch + 1, 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill_nine() {
    let site = Site::new().await;
    let state_dir = site.state_dir();
    let mut ledger = Ledger::default();
    for (round, delay_ms) in [3u64, 40, 170, 15, 90, 260, 60, 120].into_iter().cycle().enumerate() {
        // However slow the machine is: until enough has been sent.
        if round >= 8 && ledger.parts.len() > 3 {
            break;
        }
        assert!(round < 80, "too little was sent to prove anything: {}", ledger.parts.len());
        let delay_ms = delay_ms * (1 + round as u64 / 8);
        let address = free_address();
        let mut child = start_child(&site.settings_text(address, &state_dir, ""));
        wait_for_port(address).await;
        let agent = site.agent(SERVER, address);
        agent.assigned().await;
        let killing = async {
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            child.kill();
        };
        tokio::join!(killing, send_until_cut(&agent, &mut ledger));
        for (epoch, part) in &ledger.parts {
            let committed =
                site.vault().committed.iter().any(|commit| commit.seal.disks[0].epoch.0 == *epoch);
            let path = state_dir.join(format!("spool/{SERVER}/0/{epoch}-{part}.hrl"));
            match std::fs::File::open(&path) {
                Ok(file) => {
                    let verified = verify_file_with_key(file, &common::disk_key(SERVER, DISK)).unwrap();
                    assert_eq!(verified.summary.data_blocks, 512);
                }
                Err(_) => assert!(committed, "{} was acknowledged and is lost", path.display()),
            }
        }
    }

    let address = free_address();
    let mut child = start_child(&site.settings_text(address, &state_dir, ""));
    wait_for_port(address).await;
    let agent = site.agent(SERVER, address);
    agent.assigned().await;
    assert!(files_ending(&state_dir.join("spool"), ".partial").is_empty());
    let state = agent.describe(0).await.unwrap();
    // Durable may be one more than acknowledged, since an answer can be lost.
    let last = ledger.parts.last().copied().unwrap();
    assert!((state.epoch.0, state.next_part.0) > (last.0, last.1) || state.epoch.0 > last.0);
    agent.seal(&seal_of(state.epoch.0, vec![seal_disk(0, state.epoch.0, state.next_part.0)])).await.unwrap();
    until("everything is committed", || {
        site.vault().committed.last().is_some_and(|commit| commit.seal.disks[0].epoch == state.epoch)
    })
    .await;
    let vault = site.vault();
    let epochs: Vec<_> = vault.committed.iter().map(|commit| commit.seal.disks[0].epoch.0).collect();
    assert_eq!(epochs, (1..=state.epoch.0).collect::<Vec<_>>(), "points are missing or out of order");
    for commit in &vault.committed {
        let parts: Vec<_> = commit.files.iter().map(|file| file.part).collect();
        assert_eq!(parts, (0..commit.seal.disks[0].parts).map(Part).collect::<Vec<_>>());
    }
    for (epoch, part) in &ledger.parts {
        let name = site::object_name(SERVER, DISK, Epoch(*epoch), Part(*part));
        let object = std::io::Cursor::new(vault.objects[&name].clone());
        verify_file_with_key(object, &common::disk_key(SERVER, DISK)).unwrap();
    }
    assert!(vault.events.iter().all(|event| event.code != "spool_damaged"), "{:?}", vault.events);
    drop(vault);
    child.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_two_agents_fit_into_the_memory_that_is_promised() {
    let site = Site::new().await;
    let address = free_address();
    let mut child = start_child(&site.settings_text(address, &site.state_dir(), ""));
    wait_for_port(address).await;
    let mut agents = tokio::task::JoinSet::new();
    for number in 0..32 {
        let agent = site.agent(ServerId::new(number + 1), address);
        agents.spawn(async move {
            agent.assigned().await;
            agent.describe(0).await.unwrap();
            let changes: Vec<_> = (0..64).map(|n| data(n * 64, 64, n * 100 + number)).collect();
            agent.send(0, 1, 0, encode(&changes)).await.unwrap();
        });
    }
    while let Some(sent) = agents.join_next().await {
        sent.unwrap();
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.0.id())).unwrap();
    child.kill();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim();
    let peak_kib: u64 = peak.trim_end_matches(" kB").trim().parse().unwrap();
    println!("peak of the resident memory: {} MiB", peak_kib / 1024);
    assert!(peak_kib < 512 * 1024, "{peak_kib} KiB");
}
