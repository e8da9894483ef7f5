//! What processes take: time, processor time, memory.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Processor time that a process has used so far, in seconds.
pub fn cpu_seconds(pid: u32) -> f64 {
    ticks(&format!("/proc/{pid}/stat"), [11, 12])
}

/// Seconds since a process was started.
pub fn age_seconds(pid: u32) -> f64 {
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    uptime - ticks(&format!("/proc/{pid}/stat"), [19, usize::MAX])
}

/// The sum of fields of a `stat` file that are counted in ticks, in seconds. Fields are counted
/// from 0 after the name in parentheses, which may hold spaces.
fn ticks(stat: &str, fields: [usize; 2]) -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0;
    let text = fs::read_to_string(stat).unwrap_or_default();
    let words: Vec<_> = text.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let sum: f64 = fields.iter().filter_map(|field| words.get(*field)?.trim().parse::<f64>().ok()).sum();
    sum / TICKS_PER_SECOND
}

/// Resident memory of a process in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resident {
    /// Without the tracker's bitmaps.
    pub own: u64,
    /// The mapped bitmaps of the tracker, which the kernel holds whether they are mapped or not.
    pub bitmaps: u64,
}

/// Resident memory now, from the mappings of the process.
pub fn resident(pid: u32) -> Resident {
    let mut resident = Resident::default();
    let mut is_bitmap = false;
    for line in fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default().lines() {
        if let Some(size) = line.strip_prefix("Rss:") {
            let kib: u64 = size.trim().trim_end_matches(" kB").parse().unwrap_or(0);
            *(if is_bitmap { &mut resident.bitmaps } else { &mut resident.own }) += kib * 1024;
        } else if line.split(' ').next().is_some_and(|word| word.contains('-')) {
            is_bitmap = line.contains("bpf");
        }
    }
    resident
}

/// The most memory that a process ever had resident, in bytes.
pub fn resident_peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
}

/// How long a command took.
#[derive(Clone, Copy, Debug)]
pub struct Took {
    pub seconds: f64,
    pub cpu_seconds: f64,
}

/// Runs a command that must succeed, and measures it with all of its children.
pub fn timed(command: &mut Command) -> Took {
    const OWN: &str = "/proc/self/stat";
    let (begun, before) = (Instant::now(), ticks(OWN, [13, 14]));
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let seconds = begun.elapsed().as_secs_f64();
    assert!(
        output.status.success(),
        "{command:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Took { seconds, cpu_seconds: ticks(OWN, [13, 14]) - before }
}

/// The first line that a program says about its version.
pub fn version(program: &str, word: &str) -> String {
    let output = Command::new(program).arg(word).stdin(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("of unknown version").trim().to_owned()
}
