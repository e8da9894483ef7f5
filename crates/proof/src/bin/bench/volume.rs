//! Opening and reading a point of a large disk with a long history, beside qemu-nbd.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lifeboat_proof::{Random, run as run_command, wait_for};

use crate::image::Files;
use crate::process::{timed, version};
use crate::roles::Roles;
use crate::simulated::{Frame, SimulatedAgent};
use crate::table::{Figure, Table, list, median};

const DISK_BYTES: u64 = 1 << 40;
/// Where the content lies on the disk.
const CONTENT_AT: u64 = 512 << 30;
const FRAME_BYTES: usize = 256 << 10;
const BLOCK_BYTES: u64 = 4096;
/// Extents of four blocks that an epoch changes.
const CHANGES: u64 = 32;
const CHANGE_BYTES: usize = 16 << 10;

pub fn run(quick: bool) -> Table {
    let mut table = Table::new("volume", quick);
    let (epochs, content_bytes, rounds, seconds) =
        if quick { (30, 64 << 20, 1, 2) } else { (1000, 1 << 30, 3, 8) };
    let roles = Roles::start();
    let raw = roles.dir().join("disk.raw");
    let begun = Instant::now();
    write_history(&roles, &raw, epochs, content_bytes);
    table.note(format!(
        "A disk of 1 TiB with {} MiB of content (files of /usr) at 512 GiB, then {} epochs of {CHANGES} changes of 16 KiB in it; made by a simulated agent through the real process server and vault in {:.0} s.",
        content_bytes >> 20,
        epochs - 1,
        begun.elapsed().as_secs_f64()
    ));
    let qcow2 = roles.dir().join("disk.qcow2");
    let took = timed(
        Command::new("qemu-img")
            .args(["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd"])
            .args([&raw, &qcow2]),
    );
    table.note(format!(
        "{}: the same content as qcow2 with zstd ({:.0} s to make), qemu-nbd --read-only, defaults.",
        version("qemu-nbd", "--version"),
        took.seconds
    ));
    let fio = version("fio", "--version");
    table.note(format!("{fio}, ioengine=nbd, queue of 16, {seconds} s a run over the content, in turn; medians of {rounds}. Both may keep what they read in memory: Lifeboat decoded data (an eighth of the machine's memory, unless set), qemu-nbd the compressed file in the page cache."));

    let opened = open(&mut table, &roles, epochs, rounds.max(3));
    let socket = roles.dir().join("qemu.sock");
    let peer = Server::start(&qcow2, &socket);
    let uris = [opened["disks"][0]["nbd_uri"].as_str().unwrap().to_owned(), peer.uri.clone()];
    let same = compare(&uris, &raw, content_bytes);
    table.value("content the same as the source", if same { "yes" } else { "NO" }, "-");
    read_rows(&mut table, &uris, content_bytes, rounds, seconds);
    drop(peer);
    roles.json(&["volume", "close", opened["volume"].as_str().unwrap()]);
    table
}

/// Opens the newest point several times, and leaves it open the last time.
fn open(table: &mut Table, roles: &Roles, epochs: u64, times: usize) -> serde_json::Value {
    let mut opens = Vec::new();
    let mut opened = serde_json::Value::Null;
    for number in 0..times {
        let begun = Instant::now();
        opened = roles.json(&["volume", "open", "server", "--point", "latest", "--read-only"]);
        opens.push(begun.elapsed().as_secs_f64());
        if number + 1 < times {
            roles.json(&["volume", "close", opened["volume"].as_str().unwrap()]);
        }
    }
    let first = opens[0];
    table.figure(Figure {
        what: format!("open a point of {epochs} epochs, the first time"),
        ours: format!("{first:.3} s (then {})", list(&opens[1..], 3)),
        peer: "-".into(),
        ratio: Some(first),
        goal: "<= 1 s".into(),
        reached: first <= 1.0,
    });
    opened
}

fn read_rows(table: &mut Table, uris: &[String; 2], content_bytes: u64, rounds: usize, seconds: u32) {
    for (what, words, unit) in [
        ("4 KiB random reads", ["--rw=randread", "--bs=4k"], Unit::Operations),
        ("1 MiB sequential reads", ["--rw=read", "--bs=1m"], Unit::Mebibytes),
    ] {
        let mut runs: [Vec<f64>; 2] = Default::default();
        for _ in 0..rounds {
            for (uri, runs) in uris.iter().zip(&mut runs) {
                runs.push(read(uri, &words, content_bytes, seconds, unit));
            }
        }
        let [ours, peer] = runs;
        let ratio = median(&ours) / median(&peer);
        table.figure(Figure {
            what: what.into(),
            ours: unit.show(median(&ours)),
            peer: format!("qemu-nbd {}", unit.show(median(&peer))),
            ratio: Some(ratio),
            goal: ">= 1".into(),
            reached: ratio >= 1.0,
        });
        table.note(format!("Runs, {what}: Lifeboat {}; qemu-nbd {}.", list(&ours, 0), list(&peer, 0)));
    }
}

#[derive(Clone, Copy)]
enum Unit {
    Operations,
    Mebibytes,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Operations => format!("{value:.0} /s"),
            Self::Mebibytes => format!("{value:.0} MiB/s"),
        }
    }
}

/// Sends a base and then one small epoch after the other, and writes the same to a sparse file.
fn write_history(roles: &Roles, raw: &Path, epochs: u64, content_bytes: u64) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let raw = File::create(raw).unwrap();
    raw.set_len(DISK_BYTES).unwrap();
    let agent = SimulatedAgent::new("server".into(), roles.process_server, &roles.new_agent(0), DISK_BYTES);
    let mut files = Files::new();
    let mut frame = |first: u64, bytes: usize| {
        let mut content = vec![0; bytes];
        files.fill(&mut content);
        raw.write_all_at(&content, first * BLOCK_BYTES).unwrap();
        (first, Frame::new(Bytes::from(content)))
    };
    runtime.block_on(async {
        agent.join().await;
        let mut part = 0;
        for start in (0..content_bytes).step_by(64 << 20) {
            let frames = (start..(start + (64 << 20)).min(content_bytes))
                .step_by(FRAME_BYTES)
                .map(|at| frame((CONTENT_AT + at) / BLOCK_BYTES, FRAME_BYTES))
                .collect();
            agent.send(1, part, Arc::new(frames)).await;
            part += 1;
        }
        agent.seal(1, part).await;
        let mut random = Random::new(9);
        for epoch in 2..=epochs {
            let mut changes: Vec<_> =
                (0..CHANGES).map(|_| random.below(content_bytes / (4 * BLOCK_BYTES)) * 4).collect();
            changes.sort_unstable();
            changes.dedup();
            let frames = changes
                .into_iter()
                .map(|block| frame(CONTENT_AT / BLOCK_BYTES + block, CHANGE_BYTES))
                .collect();
            agent.send(epoch, 0, Arc::new(frames)).await;
            agent.seal(epoch, 1).await;
        }
    });
    raw.sync_all().unwrap();
    wait_for("the last point to be committed", || {
        let points = roles.json(&["server", "show", "server"])["points"].as_u64()?;
        (points >= epochs).then_some(())
    });
}

/// Whether what both serve is the source, where the content is.
fn compare(uris: &[String; 2], raw: &Path, content_bytes: u64) -> bool {
    let source = File::open(raw).unwrap();
    uris.iter().all(|uri| {
        (0..8).all(|place| {
            let at = CONTENT_AT + content_bytes / 8 * place;
            let script = format!(
                "import hashlib, nbd; h = nbd.NBD(); h.connect_uri('{uri}'); \
                 print(hashlib.sha256(h.pread(1048576, {at})).hexdigest())"
            );
            // Debian's own Python, which has Debian's libnbd.
            let out = run_command("/usr/bin/python3", ["-c", &script]);
            let mut bytes = vec![0; 1 << 20];
            source.read_exact_at(&mut bytes, at).unwrap();
            let wanted = raw.with_file_name("compare");
            std::fs::write(&wanted, bytes).unwrap();
            let sum = run_command("sha256sum", [wanted.as_os_str()]);
            sum.starts_with(out.trim())
        })
    })
}

fn read(uri: &str, words: &[&str], content_bytes: u64, seconds: u32, unit: Unit) -> f64 {
    let output = Command::new("fio")
        .args(["--name=read", "--ioengine=nbd", "--iodepth=16", "--time_based", "--randrepeat=1"])
        .args(words)
        .arg(format!("--uri={uri}"))
        .arg(format!("--runtime={seconds}"))
        .arg(format!("--offset={CONTENT_AT}"))
        .arg(format!("--size={content_bytes}"))
        .arg("--output-format=json")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "fio: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    // The engine says something of its own first.
    let report = text.find('{').and_then(|at| serde_json::from_str::<serde_json::Value>(&text[at..]).ok());
    let report = report.unwrap_or_else(|| panic!("fio said: {text}"));
    let reads = &report["jobs"][0]["read"];
    match unit {
        Unit::Operations => reads["iops"].as_f64().unwrap(),
        Unit::Mebibytes => reads["bw_bytes"].as_f64().unwrap() / f64::from(1 << 20),
    }
}

/// qemu-nbd with an image. Ended when dropped.
struct Server {
    child: Child,
    uri: String,
}

impl Server {
    fn start(image: &Path, socket: &Path) -> Self {
        let child = Command::new("qemu-nbd")
            .args(["--read-only", "--format=qcow2", "--persistent", "--shared=8", "--socket"])
            .args([socket, image])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        wait_for("qemu-nbd", || socket.exists().then_some(()));
        std::thread::sleep(Duration::from_millis(200));
        Self { child, uri: format!("nbd+unix:///?socket={}", socket.display()) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
