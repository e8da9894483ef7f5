//! A trial that is killed leaves nothing running.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use lifeboat_proof::{LoopDisk, Site};

const MIB: u64 = 1 << 20;

/// So long may the roles take until they are gone; an agent that stops waits 10 s for its threads.
const GONE_MAX: Duration = Duration::from_secs(60);

#[test]
fn the_roles_of_a_killed_trial_stop() {
    let disk = LoopDisk::new(16 * MIB);
    let mut site = Site::start(&[&disk], "2s");
    let roles = ["agent", "process-server", "vault"].map(|name| (name, site.role(name).unwrap()));
    assert!(roles.iter().all(|(_, pid)| runs(*pid, &site.dir)), "{roles:?}");

    site.kill_trial();
    let killed = Instant::now();
    let mut left = roles.to_vec();
    while !left.is_empty() && killed.elapsed() < GONE_MAX {
        std::thread::sleep(Duration::from_millis(50));
        left.retain(|(_, pid)| runs(*pid, &site.dir));
    }
    for (_, pid) in &left {
        // Nothing else would, and the disk is still in its hands.
        let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
    }
    assert_eq!(left, [], "still there {} s after the trial was killed", GONE_MAX.as_secs());
}

/// Whether the process is there and still is a role of this site: ids are used again.
fn runs(pid: u32, site: &Path) -> bool {
    let words = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words.contains(site.to_str().unwrap())
}
