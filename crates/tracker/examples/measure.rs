//! Measures what tracking costs, on a loop device over a sparse file. Needs root.
//!
//! `cargo run --release --package lifeboat-tracker --example measure -- /dev/loop0`
//!
//! Writes to the device. Prints the time to attach, the time of a take (idle, and after
//! scattered writes) and the cost of an event as the kernel counts it.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss, reason = "a measurement, not a product")]

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use lifeboat_tracker::{DiskDevice, DiskTracker, TrackerSet, Variant};

const WRITES: u64 = 20_000;

fn main() {
    let path = PathBuf::from(std::env::args().nth(1).expect("name a loop device whose content may be lost"));
    let device = DiskDevice::inspect(&path).unwrap();
    assert!(device.backing_file.is_some(), "{} is no loop device; this writes to it", path.display());
    println!("{} with {} blocks", path.display(), device.identity.blocks);
    let pins = PathBuf::from(format!("/sys/fs/bpf/lifeboat-measure-{}", std::process::id()));
    for variant in [Variant::Atomic, Variant::PlainBytes] {
        measure(&path, &device, &pins, variant);
    }
    std::fs::remove_file(pins.join("control")).unwrap();
    std::fs::remove_dir(pins).unwrap();
}

fn measure(path: &Path, device: &DiskDevice, pins: &Path, variant: Variant) {
    println!("{}:", variant.as_str());
    let start = Instant::now();
    let mut set = TrackerSet::open(pins).unwrap();
    println!("  open the set        {:?}", start.elapsed());
    set.set_variant(variant);
    let start = Instant::now();
    let (mut tracker, _) = set.attach(&device.key, &device.identity).unwrap();
    println!("  attach, new         {:?}", start.elapsed());
    drop(tracker);
    let start = Instant::now();
    tracker = set.attach(&device.key, &device.identity).unwrap().0;
    println!("  attach, again       {:?}", start.elapsed());

    println!("  take, idle          {:?}", best(|| take(&mut tracker)));
    let stats = enable_stats(Stats::RunTime).unwrap();
    let before = programs();
    write(path, device.identity.blocks);
    for (name, [(runs, time), (runs_before, time_before)]) in pairs(&programs(), &before) {
        let (runs, time) = (runs - runs_before, time - time_before);
        println!("  {name:<19} {:.0} ns each of {runs} runs", time.as_nanos() as f64 / runs as f64);
    }
    drop(stats);
    println!("  waiting_blocks      {:?}", best(|| tracker.waiting_blocks()));
    let start = Instant::now();
    let blocks = take(&mut tracker);
    println!("  take, {blocks} blocks  {:?}", start.elapsed());
    println!("  switch_epoch        {:?}", best(|| set.switch_epoch([&mut tracker])));
    println!("  {:?}", tracker.stats());
    set.detach(&device.key).unwrap();
}

fn take(tracker: &mut DiskTracker) -> u64 {
    tracker.take(|_| ()).blocks
}

fn best<T>(mut run: impl FnMut() -> T) -> Duration {
    let times = (0..20).map(|_| {
        let start = Instant::now();
        std::hint::black_box(run());
        start.elapsed()
    });
    times.min().unwrap()
}

/// Scattered writes of one block.
fn write(path: &Path, blocks: u64) {
    let direct = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).unwrap();
    let file = OpenOptions::new().write(true).custom_flags(direct).open(path).unwrap();
    let buffer = vec![1; 8192];
    let skip = buffer.as_ptr().align_offset(4096);
    let mut number = 1u64;
    for _ in 0..WRITES {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let block = (number >> 20) % blocks;
        // Seven of eight hit the first blocks, so that the file does not grow without need.
        let block = if number >> 60 < 14 { block % 1000 } else { block };
        file.write_all_at(&buffer[skip..skip + 4096], block * 4096).unwrap();
    }
}

type Runs = (u64, Duration);

fn programs() -> Vec<(String, Runs)> {
    let ours = loaded_programs().flatten().filter_map(|info| {
        let name = info.name_as_str()?.to_owned();
        (name.starts_with("on_issue_") || name.starts_with("on_complete_"))
            .then(|| (name, (info.run_count(), info.run_time())))
    });
    let mut ours: Vec<_> = ours.collect();
    ours.sort();
    ours
}

fn pairs(after: &[(String, Runs)], before: &[(String, Runs)]) -> Vec<(String, [Runs; 2])> {
    after.iter().zip(before).map(|(one, other)| (one.0.clone(), [one.1, other.1])).collect()
}
