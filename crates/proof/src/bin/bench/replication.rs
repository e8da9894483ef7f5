//! What the benches ask of a running trial site.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_proof::Site;
use serde_json::Value;

use crate::process;

/// How long anything may take before a bench gives up.
const PATIENCE: Duration = Duration::from_secs(900);

/// A recovery point, as far as it is measured.
pub struct Point {
    pub time: Timestamp,
    pub sealed: Timestamp,
    pub uploaded: Timestamp,
    pub committed: Timestamp,
    pub bytes: u64,
    pub window_us: u64,
    pub frozen_us: u64,
    pub attempts: u64,
}

/// All points of the site's server, oldest first.
pub fn points(site: &Site) -> Vec<Point> {
    let listed = site.json(["point", "list", "source"]);
    let mut points: Vec<_> = listed.as_array().unwrap().iter().map(point_of).collect();
    points.sort_by_key(|point| point.time);
    points
}

fn point_of(point: &Value) -> Point {
    let time = |field: &str| point[field].as_str().unwrap().parse().unwrap();
    let number = |field: &str| point[field].as_u64().unwrap();
    Point {
        time: time("time"),
        sealed: time("sealed"),
        uploaded: time("uploaded"),
        committed: time("committed"),
        bytes: number("bytes"),
        window_us: number("window_us"),
        frozen_us: number("frozen_us"),
        attempts: number("attempts"),
    }
}

/// Waits until a point later than `after` is committed; answers it.
pub fn await_point_after(site: &Site, after: Timestamp) -> Point {
    let begun = Instant::now();
    loop {
        if let Some(point) = points(site).into_iter().find(|point| point.time > after) {
            return point;
        }
        assert!(begun.elapsed() < PATIENCE, "no recovery point came: {}", site.logs());
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Processor seconds of the three roles so far.
pub fn cpu_of_roles(site: &Site) -> f64 {
    ["agent", "process-server", "vault"]
        .into_iter()
        .filter_map(|role| site.role(role))
        .map(process::cpu_seconds)
        .sum()
}

/// Lets process server and vault have only what nobody else wants of the processors, as if they
/// were on machines of their own.
pub fn yield_processors(site: &Site) {
    for pid in ["process-server", "vault"].into_iter().filter_map(|role| site.role(role)) {
        let words = ["--all-tasks", "--idle", "--pid", "0", &pid.to_string()];
        assert!(Command::new("chrt").args(words).status().unwrap().success(), "chrt failed");
    }
}

/// The time from a process's start to `until`, in seconds.
pub fn since_start_of(pid: u32, until: Timestamp) -> f64 {
    let age = process::age_seconds(pid);
    let later = until.duration_since(Timestamp::now()).as_secs_f64();
    age + later
}

/// Bytes that a directory takes on its file system.
pub fn disk_usage(dir: &Path) -> f64 {
    let words = ["--summarize".as_ref(), "--block-size=1".as_ref(), dir.as_os_str()];
    let text = lifeboat_proof::run("du", words);
    text.split_whitespace().next().unwrap().parse().unwrap()
}
