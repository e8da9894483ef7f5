//! Many agents into one process server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lifeboat_proof::Random;

use crate::image::Files;
use crate::process;
use crate::roles::Roles;
use crate::simulated::{Frame, SimulatedAgent};
use crate::table::{Figure, Table, list, median, mib};

const AGENTS: usize = 32;
const FRAME_BYTES: usize = 256 << 10;
const FRAME_BLOCKS: u64 = 64;
/// The level of a process server that is not told another one.
const LEVEL: i32 = 1;
const THREADS: usize = 2;

pub fn run(quick: bool) -> Table {
    let mut table = Table::new("gateway", quick);
    let (frames_each, rounds) = if quick { (16, 1) } else { (512, 3) };
    let frames = Arc::new(pool(if quick { 64 } else { 1024 }));
    let roles = Roles::start();
    let agents: Vec<_> = (0..AGENTS).map(|number| agent(&roles, number, frames_each)).collect();
    let agents: Vec<_> = agents.into_iter().map(Arc::new).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(futures::future::join_all(agents.iter().map(|agent| agent.join())));

    let (mut ours, mut ours_cpu, mut peer) = (Vec::new(), Vec::new(), Vec::new());
    let megabytes = bytes_of(AGENTS * frames_each * FRAME_BYTES) / 1e6;
    for round in 0..rounds {
        let epoch = round as u64 + 1;
        peer.push(compress(&frames));
        let before = process::cpu_seconds(roles.process_server_pid);
        let begun = Instant::now();
        runtime.block_on(send_all(&agents, &frames, epoch, frames_each));
        ours.push(megabytes / begun.elapsed().as_secs_f64());
        await_upload(&roles);
        ours_cpu.push(megabytes / (process::cpu_seconds(roles.process_server_pid) - before));
    }
    let resident = bytes_of(usize::try_from(process::resident_peak(roles.process_server_pid)).unwrap());

    table.note(format!(
        "{AGENTS} simulated agents, each {} MiB at once (half files of /usr, half random, frames of 256 KiB), over TLS into one `lifeboat process-server serve`, which uploads to a real vault; agents and vault on this machine take the same {} processors. Medians of {rounds}.",
        (frames_each * FRAME_BYTES) >> 20,
        std::thread::available_parallelism().map_or(0, usize::from),
    ));
    table.note(format!(
        "Peer: zstd level {LEVEL} of the same frames in {THREADS} threads, nothing else, in the same run."
    ));
    table.figure(Figure {
        what: "resident, most".into(),
        ours: mib(resident),
        peer: "-".into(),
        ratio: Some(resident / f64::from(512 << 20)),
        goal: "<= 512 MiB".into(),
        reached: resident <= f64::from(512 << 20),
    });
    let (wall, alone) = (median(&ours), median(&peer));
    table.figure(Figure {
        what: "speed until all is acknowledged".into(),
        ours: format!("{wall:.0} MB/s"),
        peer: format!("zstd {alone:.0} MB/s"),
        ratio: Some(wall / alone),
        goal: ">= 0.70".into(),
        reached: wall / alone >= 0.7,
    });
    let both = median(&ours_cpu) * bytes_of(THREADS);
    table.figure(Figure {
        what: "the same with both processors for it alone".into(),
        ours: format!("{both:.0} MB/s (2 x MB per its processor second, upload too)"),
        peer: format!("zstd {alone:.0} MB/s"),
        ratio: Some(both / alone),
        goal: ">= 0.70".into(),
        reached: both / alone >= 0.7,
    });
    table.note(format!("Runs, MB/s: process server {}; zstd {}.", list(&ours, 0), list(&peer, 0)));
    table
}

#[allow(clippy::cast_precision_loss, reason = "a size for people")]
fn bytes_of(count: usize) -> f64 {
    count as f64
}

fn agent(roles: &Roles, number: usize, frames_each: usize) -> SimulatedAgent {
    let bytes = (frames_each * FRAME_BYTES) as u64;
    SimulatedAgent::new(format!("server-{number}"), roles.process_server, &roles.new_agent(number), bytes)
}

/// Frames that all agents send, each beginning at another one.
fn pool(count: usize) -> Vec<Frame> {
    let (mut files, mut random) = (Files::new(), Random::new(3));
    let frame = |number| {
        let mut bytes = vec![0; FRAME_BYTES];
        if number % 2 == 0 {
            files.fill(&mut bytes);
        } else {
            bytes
                .chunks_exact_mut(8)
                .for_each(|word| word.copy_from_slice(&random.next_number().to_le_bytes()));
        }
        Frame::new(Bytes::from(bytes))
    };
    (0..count).map(frame).collect()
}

async fn send_all(agents: &[Arc<SimulatedAgent>], frames: &Arc<Vec<Frame>>, epoch: u64, frames_each: usize) {
    let tasks = agents.iter().enumerate().map(|(number, agent)| {
        let (agent, frames) = (Arc::clone(agent), Arc::clone(frames));
        tokio::spawn(async move {
            let part = (0..frames_each)
                .map(|place| {
                    (place as u64 * FRAME_BLOCKS, frames[(place + number * 37) % frames.len()].clone())
                })
                .collect();
            agent.send(epoch, 0, Arc::new(part)).await;
            agent.seal(epoch, 1).await;
        })
    });
    futures::future::join_all(tasks.collect::<Vec<_>>()).await.into_iter().for_each(|task| task.unwrap());
}

/// Waits until the spool is empty.
fn await_upload(roles: &Roles) {
    let begun = Instant::now();
    loop {
        let servers = roles.json(&["server", "list"]);
        let waiting =
            servers.as_array().unwrap().iter().any(|server| server["spool_bytes"].as_u64() != Some(0));
        if !waiting {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(300), "the spool does not empty");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Compresses all frames in two threads; answers MB/s.
fn compress(frames: &Arc<Vec<Frame>>) -> f64 {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let frames = Arc::clone(frames);
            scope.spawn(move || {
                let mut compressor = zstd::bulk::Compressor::new(LEVEL).unwrap();
                let mut packed = vec![0; FRAME_BYTES * 2];
                for frame in frames.iter().skip(thread).step_by(THREADS) {
                    compressor.compress_to_buffer(&frame.bytes, &mut packed).unwrap();
                }
            });
        }
    });
    bytes_of(frames.len() * FRAME_BYTES) / 1e6 / begun.elapsed().as_secs_f64()
}
