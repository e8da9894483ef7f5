//! From the command to the guest's first instruction, and how guests run from volumes.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use lifeboat_proof::{DiskLayout, Random, ServerDisk, boot_sector, wait_within};
use serde_json::Value;

use crate::boot;
use crate::process::{resident, version};
use crate::roles::Roles;
use crate::simulated::{Frame, SimulatedAgent};
use crate::table::{Figure, Table, list, median, mib};

const GIB: u64 = 1 << 30;
const FRAME_BYTES: usize = 256 << 10;
const BLOCK_BYTES: u64 = 4096;
/// Machines of which each is a processor and a little memory.
const TOGETHER: usize = 10;
const UP_WITHIN: Duration = Duration::from_secs(600);

pub fn run(quick: bool) -> Table {
    let mut table = Table::new("failover", quick);
    let (points, rounds) = if quick { (20, 1) } else { (1000, 5) };
    table.note(format!(
        "{}; small guests are a boot sector that offers a login on the serial console.",
        version("qemu-system-x86_64", "--version")
    ));
    let roles = Roles::start();
    let small = server(&roles, "small", 10 * GIB, points);
    let large = server(&roles, "large", 1024 * GIB, points);
    start_rows(&mut table, &roles, [&small, &large], rounds, points);
    change_row(&mut table, &roles, &small, rounds);
    together_rows(&mut table, &roles);
    if quick {
        table.note("Boots of a Debian server are left out.");
    } else {
        boots(&mut table, &roles);
    }
    table
}

/// A server whose disk boots, with so many points of which each changes a few blocks anywhere.
fn server(roles: &Roles, name: &str, bytes: u64, points: u64) -> String {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let agent = SimulatedAgent::new(name.into(), roles.process_server, &roles.new_agent_named(name), bytes);
    runtime.block_on(async {
        agent.join().await;
        let mut random = Random::new(bytes);
        for epoch in 1..=points {
            let mut first = boot_sector("one login: ");
            first.resize(4096, 0);
            let mut frames = vec![(0, Frame::new(Bytes::from(first)))];
            let mut blocks: Vec<_> = (0..8).map(|_| 1 + random.below(bytes / BLOCK_BYTES - 1)).collect();
            blocks.sort_unstable();
            blocks.dedup();
            let content = Bytes::from(vec![u8::try_from(epoch % 251).unwrap(); 4096]);
            frames.extend(blocks.into_iter().map(|block| (block, Frame::new(content.clone()))));
            agent.send(epoch, 0, Arc::new(frames)).await;
            agent.seal(epoch, 1).await;
        }
    });
    await_points(roles, name, points);
    roles.json(&["target", "set", name, "--memory", "64", "--cpus", "1", "--up-within", "10m"]);
    name.to_owned()
}

fn await_points(roles: &Roles, name: &str, points: u64) {
    wait_within(UP_WITHIN, "the last point to be committed", || {
        (roles.json(&["server", "show", name])["points"].as_u64()? >= points).then_some(())
    });
}

/// Seconds from the command to the machine's first instruction, of a drill that is cleaned up again.
fn start_once(roles: &Roles, server: &str) -> f64 {
    let asked = Timestamp::now();
    let job = roles.json(&["failover", "test", server]);
    first_instruction(&job, asked)
}

fn first_instruction(job: &Value, asked: Timestamp) -> f64 {
    let begun: Timestamp = job["begun"].as_str().unwrap().parse().unwrap();
    let ms = job["report"]["first_instruction_ms"].as_f64().unwrap();
    begun.duration_since(asked).as_secs_f64() + ms / 1e3
}

fn start_rows(table: &mut Table, roles: &Roles, servers: [&str; 2], rounds: usize, points: u64) {
    // What QEMU can do here is found out once after a start of the machine.
    start_once(roles, servers[0]);
    let mut runs: [Vec<f64>; 2] = Default::default();
    for _ in 0..rounds {
        for (server, runs) in servers.iter().zip(&mut runs) {
            runs.push(start_once(roles, server));
        }
    }
    let [small, large] = [median(&runs[0]), median(&runs[1])];
    for (size, seconds, all) in [("10 GiB", small, &runs[0]), ("1 TiB", large, &runs[1])] {
        table.figure(Figure {
            what: format!("command to first instruction, {size}, {points} points"),
            ours: format!("{seconds:.2} s ({})", list(all, 2)),
            peer: "-".into(),
            ratio: Some(seconds),
            goal: "<= 2 s".into(),
            reached: seconds <= 2.0,
        });
    }
    let ratio = large / small;
    table.figure(Figure {
        what: "the large disk against the small one".into(),
        ours: format!("{large:.2} s"),
        peer: format!("{small:.2} s"),
        ratio: Some(ratio),
        goal: "0.8 to 1.2".into(),
        reached: (0.8..=1.2).contains(&ratio),
    });
}

fn change_row(table: &mut Table, roles: &Roles, server: &str, rounds: usize) {
    roles.json(&["failover", "run", server, "--point", "latest-processed"]);
    let points = roles.json(&["point", "list", server]);
    let older = points.as_array().unwrap().last().unwrap()["id"].as_str().unwrap().to_owned();
    let mut without_stop = Vec::new();
    for round in 0..rounds {
        let point = if round % 2 == 0 { older.as_str() } else { "latest-processed" };
        let asked = Timestamp::now();
        let job = roles.json(&["failover", "change-point", server, "--point", point]);
        let ended = |name: &str| step_seconds(&job, name, asked);
        let (_, stop) = ended("remove the machine that there was");
        let (started, _) = ended("start the machine");
        without_stop.push(started - stop);
    }
    let seconds = median(&without_stop);
    table.figure(Figure {
        what: "change of point, without the guest's stop".into(),
        ours: format!("{seconds:.2} s ({})", list(&without_stop, 2)),
        peer: "-".into(),
        ratio: Some(seconds),
        goal: "<= 2 s".into(),
        reached: seconds <= 2.0,
    });
}

/// When a step of a job had ended, counted from `asked`, and how long it took.
fn step_seconds(job: &Value, name: &str, asked: Timestamp) -> (f64, f64) {
    let step = job["steps"].as_array().unwrap().iter().find(|step| step["name"] == name).unwrap();
    let time = |field: &str| step[field].as_str().unwrap().parse::<Timestamp>().unwrap();
    let (begun, ended) = (time("begun"), time("ended"));
    (ended.duration_since(asked).as_secs_f64(), ended.duration_since(begun).as_secs_f64())
}

fn together_rows(table: &mut Table, roles: &Roles) {
    let names: Vec<_> = (0..TOGETHER).map(|number| server(roles, &format!("one-{number}"), GIB, 1)).collect();
    let begun = Instant::now();
    let jobs: Vec<_> = names
        .iter()
        .map(|name| {
            let job = roles.json(&["failover", "test", name, "--keep", "--no-wait"]);
            job["id"].as_str().unwrap().to_owned()
        })
        .collect();
    let mut up = Vec::new();
    for job in &jobs {
        let ended = wait_within(UP_WITHIN, "a drill", || {
            let job = roles.json(&["job", "show", job]);
            job["ended"].is_string().then_some(job)
        });
        if ended["report"]["up"] == true {
            up.push(ended["report"]["boot_ms"].as_f64().unwrap() / 1e3);
        }
    }
    let took = begun.elapsed().as_secs_f64();
    table.figure(Figure {
        what: format!("{TOGETHER} drills at once, all up"),
        ours: format!("{} up in {took:.1} s; each boot {} s", up.len(), list(&up, 1)),
        peer: "-".into(),
        ratio: None,
        goal: format!("{TOGETHER} up"),
        reached: up.len() == TOGETHER,
    });
    let memory = resident(roles.vault_pid).own;
    table.value("memory of the vault with them", mib(memory as f64), "-");
    for name in &names {
        roles.json(&["failover", "cleanup", name]);
    }
}

/// A whole Debian server, from its raw file and from a volume.
fn boots(table: &mut Table, roles: &Roles) {
    let home = tempfile::tempdir_in(roles.dir()).unwrap();
    let disk = ServerDisk::in_dir(home.path(), DiskLayout::Bios);
    replicate(roles, "debian", &disk.image);
    let opened = roles.json(&["volume", "open", "debian", "--point", "latest"]);
    boot::rows(table, home.path(), &disk.image, opened["disks"][0]["nbd_uri"].as_str().unwrap());
    roles.json(&["volume", "close", opened["volume"].as_str().unwrap()]);
}

/// Brings a raw file to the vault as a server's disk.
fn replicate(roles: &Roles, name: &str, image: &Path) {
    let content = std::fs::read(image).unwrap();
    let bytes = content.len() as u64;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let agent = SimulatedAgent::new(name.into(), roles.process_server, &roles.new_agent_named(name), bytes);
    runtime.block_on(async {
        agent.join().await;
        let mut part = 0;
        for (number, piece) in content.chunks(64 << 20).enumerate() {
            let first = (number as u64) * (64 << 20) / BLOCK_BYTES;
            let frames: Vec<_> = piece
                .chunks(FRAME_BYTES)
                .enumerate()
                .filter(|(_, frame)| frame.iter().any(|byte| *byte != 0))
                .map(|(place, frame)| {
                    let at = first + (place * FRAME_BYTES) as u64 / BLOCK_BYTES;
                    (at, Frame::new(Bytes::copy_from_slice(frame)))
                })
                .collect();
            if !frames.is_empty() {
                agent.send(1, part, Arc::new(frames)).await;
                part += 1;
            }
        }
        agent.seal(1, part).await;
    });
    await_points(roles, name, 1);
}
