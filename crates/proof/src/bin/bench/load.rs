//! 20 MB/s of 8 KiB random writes on two disks, half of each write compressible, protected with a
//! point every 5 s; process server and vault run on this machine too.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_proof::{LoopDisk, Site};

use crate::replication;

const DISK_BYTES: u64 = 2 << 30;

/// What is said of it in a table.
pub const ABOUT: &str = "Load: fio, 8 KiB random writes at 10 MB/s on each of two disks of 2 GiB, direct, half compressible; \
     agent, process server and vault on this machine; a point every 5 s.";

/// The load and what is known of it.
pub struct Loaded {
    pub site: Site,
    pub disks: [LoopDisk; 2],
    pub begun: Timestamp,
    pub seconds: f64,
    /// Bytes a second that were really written.
    pub written_per_second: f64,
}

/// Protects two disks, waits until the first point, then writes for `span`; `look` is called
/// twice a second meanwhile, after `warm_up`.
pub fn run(span: Duration, warm_up: Duration, mut look: impl FnMut(&Site)) -> Loaded {
    let disks = [LoopDisk::new(DISK_BYTES), LoopDisk::new(DISK_BYTES)];
    let site = Site::start(&[&disks[0], &disks[1]], "5s");
    replication::await_point_after(&site, Timestamp::UNIX_EPOCH);
    let writers = disks.each_ref().map(|disk| writer(disk, span + warm_up));
    std::thread::sleep(warm_up);
    let (begun, started) = (Timestamp::now(), Instant::now());
    while started.elapsed() < span {
        look(&site);
        std::thread::sleep(Duration::from_millis(500));
    }
    let seconds = started.elapsed().as_secs_f64();
    let written_per_second = writers.map(written_per_second).iter().sum();
    Loaded { site, disks, begun, seconds, written_per_second }
}

fn writer(disk: &LoopDisk, span: Duration) -> Child {
    Command::new("fio")
        .args(["--name=load", "--rw=randwrite", "--bs=8k", "--direct=1", "--ioengine=libaio", "--iodepth=8"])
        .args(["--rate=10000000", "--time_based", "--refill_buffers", "--buffer_compress_percentage=50"])
        .arg(format!("--runtime={}", span.as_secs()))
        .arg(format!("--filename={}", disk.device.display()))
        .args(["--output-format=json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn written_per_second(writer: Child) -> f64 {
    let output = writer.wait_with_output().unwrap();
    assert!(output.status.success(), "fio ended with {}", output.status);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    report["jobs"][0]["write"]["bw_bytes"].as_f64().unwrap()
}
