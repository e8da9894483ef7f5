//! The promise itself: every point is a state that a power cut could have left.
//!
//! Each writer sends one 4 KiB write after the other, each after the one before has completed,
//! and fills the whole block with its sequence number. So of each writer a right image holds
//! exactly the writes up to some number M, and perhaps a part of the one in flight.
//!
//! Some machines keep tracing programs from running above certain tasks of their own, and then
//! the tracker is not told of a completion now and then; its counts tell, fewer completions than
//! issues when all writes are done. The promise holds in such a run too, and so these count.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_capture::{CaptureOptions, CapturedPoint, PointError};
use lifeboat_model::{BLOCK_BYTES, DiskNumber};
use rig::{Aligned, Images, LoopDisk, MIB, Rig, alone, direct};

/// Points a load; raise it for a longer run.
const POINTS: u32 = 70;

const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy)]
struct Load {
    disks: u64,
    disk_bytes: u64,
    writers: u64,
    /// This part of the writes hits four blocks.
    hot_percent: u64,
    pause: Duration,
}

impl Load {
    const fn one_disk(hot_percent: u64, pause_us: u64) -> Self {
        let pause = Duration::from_micros(pause_us);
        Self { disks: 1, disk_bytes: 64 * MIB, writers: 1, hot_percent, pause }
    }

    fn disk_blocks(&self) -> u64 {
        self.disk_bytes / 4096
    }

    /// Where write `n` of a writer goes: writers share no block, and take turns over the disks.
    fn place(&self, writer: u64, n: u64) -> (usize, u64) {
        let share = self.disk_blocks() / self.writers;
        let mut x = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x ^= x >> 29;
        x = x.wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x ^= x >> 32;
        let block = if (x >> 40) % 100 < self.hot_percent { x & 3 } else { x % share };
        (usize::try_from(n % self.disks).unwrap(), writer * share + block)
    }
}

/// Follows the writers through the points.
struct Checker {
    load: Load,
    /// The newest write that each block must have, a writer.
    newest: Vec<Vec<u64>>,
    known: Vec<u64>,
}

fn stamps(block: &[u8]) -> (u64, u64, bool) {
    let first = u64::from_le_bytes(block[..8].try_into().unwrap());
    let last = u64::from_le_bytes(block[BLOCK_BYTES - 8..].try_into().unwrap());
    (first, last, block[..BLOCK_BYTES - 8] == block[8..])
}

impl Checker {
    fn new(load: Load) -> Self {
        let blocks = usize::try_from(load.disk_blocks()).unwrap();
        let disks = usize::try_from(load.disks).unwrap();
        let writers = usize::try_from(load.writers).unwrap();
        Self { load, newest: vec![vec![0; blocks]; disks], known: vec![0; writers] }
    }

    /// How many blocks are not as they were after the newest write that is in the image.
    fn wrong_blocks(&mut self, images: &Images, upper: &[u64]) -> u64 {
        let share = self.load.disk_blocks() / self.load.writers;
        let mut wrong = 0;
        for writer in 0..self.load.writers {
            let index = usize::try_from(writer).unwrap();
            let blocks = writer * share..(writer + 1) * share;
            let mut newest = 0;
            for disk in 0..images.disks.len() {
                for block in blocks.clone() {
                    let (first, last, _) = stamps(images.block(disk, block));
                    newest = newest.max(first).max(last);
                }
            }
            assert!(newest <= upper[index], "the image has write {newest}, not sent yet");
            for n in self.known[index] + 1..=newest {
                let (disk, block) = self.load.place(writer, n);
                self.newest[disk][usize::try_from(block).unwrap()] = n;
            }
            wrong += u64::from(newest < self.known[index]);
            self.known[index] = newest;
            let in_flight = self.load.place(writer, newest);
            for disk in 0..images.disks.len() {
                for block in blocks.clone() {
                    let (first, _, even) = stamps(images.block(disk, block));
                    let right = self.newest[disk][usize::try_from(block).unwrap()];
                    let torn_in_flight = !even && (disk, block) == in_flight;
                    let is_wrong = !torn_in_flight && (!even || first != right);
                    if is_wrong {
                        println!(
                            "  point at write {newest}: block {block} of disk {disk} has write {first}, not {right}"
                        );
                    }
                    wrong += u64::from(is_wrong);
                }
            }
        }
        wrong
    }
}

#[derive(Default)]
struct Outcome {
    /// Completions that the tracker did not see.
    unseen: u64,
    points: Vec<CapturedPoint>,
    wrong_points: u32,
    not_taken: Vec<PointError>,
    writes: u64,
    elapsed: Duration,
}

impl Outcome {
    fn report(&self, name: &str) {
        let median = |mut numbers: Vec<u64>| {
            numbers.sort_unstable();
            numbers.get(numbers.len() / 2).copied().unwrap_or(0)
        };
        let figures = || self.points.iter().map(|point| &point.figures);
        let attempts: u32 = figures().map(|f| f.attempts).sum();
        let (points, wrong) = (self.points.len(), self.wrong_points);
        let (window, longest) = (
            median(figures().map(|f| f.window_us).collect()),
            figures().map(|f| f.window_us).max().unwrap_or(0),
        );
        let duration = median(figures().map(|f| f.duration_us).collect());
        let blocks = median(figures().map(|f| f.blocks_in_window).collect());
        let rate = u128::from(self.writes) * 1000 / self.elapsed.as_millis().max(1);
        println!(
            "{name}: {points} points, {wrong} wrong, {attempts} attempts, {} not taken, window median {window} us \
             max {longest} us, duration median {duration} us, {blocks} blocks in the window, {rate} writes/s, \
             {} completions not seen",
            self.not_taken.len(),
            self.unseen
        );
        for error in &self.not_taken {
            println!("  {error}");
        }
    }
}

fn run(name: &str, load: Load, points: u32, options: CaptureOptions) -> Outcome {
    let outcome = run_once(load, points, options);
    outcome.report(name);
    outcome
}

/// Takes points under a load, with pre-copy passes and acknowledgements in between.
fn run_once(load: Load, points: u32, options: CaptureOptions) -> Outcome {
    let disks: Vec<_> = (0..load.disks).map(|_| LoopDisk::filled(load.disk_bytes)).collect();
    let mut rig = Rig::new(disks, options);
    let paths: Vec<_> = rig.disks.iter().map(|disk| disk.path.clone()).collect();
    let stop = AtomicBool::new(false);
    let sent: Vec<_> = (0..load.writers).map(|_| AtomicU64::new(0)).collect();
    let mut images = Images::new(&vec![load.disk_bytes; paths.len()]);
    let mut checker = Checker::new(load);
    let mut outcome = Outcome::default();
    std::thread::scope(|scope| {
        for (writer, sent) in (0..).zip(&sent) {
            let (paths, stop) = (&paths, &stop);
            scope.spawn(move || write(load, writer, paths, sent, stop));
        }
        let begun = Instant::now();
        let capture = rig.capture();
        for round in 0..points {
            std::thread::sleep(Duration::from_millis(u64::from(5 + round % 7 * 5)));
            if round % 3 == 0 {
                capture.precopy(&mut images).unwrap();
            }
            let before = Timestamp::now();
            match capture.optimistic_point(&mut images, Instant::now() + DEADLINE, &Timestamp::now) {
                Ok(point) => {
                    assert!(before <= point.time && point.time <= Timestamp::now());
                    let upper: Vec<_> = sent.iter().map(|sent| sent.load(SeqCst)).collect();
                    let wrong = checker.wrong_blocks(&images, &upper);
                    outcome.wrong_points += u32::from(wrong > 0);
                    outcome.points.push(point);
                    if let Some(mark) = capture.mark() {
                        capture.acknowledge(mark);
                    }
                }
                Err(error) => outcome.not_taken.push(error),
            }
        }
        outcome.elapsed = begun.elapsed();
        stop.store(true, SeqCst);
    });
    for disk in 0..u16::try_from(load.disks).unwrap() {
        let stats = rig.capture().tracker(DiskNumber(disk)).unwrap().stats();
        outcome.unseen += stats.issues.saturating_sub(stats.completions);
    }
    outcome.writes = sent.iter().map(|sent| sent.load(SeqCst)).sum();
    outcome
}

fn write(load: Load, writer: u64, paths: &[std::path::PathBuf], sent: &AtomicU64, stop: &AtomicBool) {
    let files: Vec<_> = paths.iter().map(|path| direct(path)).collect();
    let mut buffer = Aligned::new(BLOCK_BYTES);
    for n in 1.. {
        if stop.load(SeqCst) {
            return;
        }
        let (disk, block) = load.place(writer, n);
        sent.store(n, SeqCst);
        files[disk].write_all_at(buffer.stamp(n), block * 4096).unwrap();
        if !load.pause.is_zero() {
            std::thread::sleep(load.pause);
        }
    }
}

fn every_point_is_a_prefix(name: &str, load: Load) {
    let _alone = alone();
    let outcome = run(name, load, POINTS, CaptureOptions::default());
    assert_eq!(outcome.wrong_points, 0);
    assert!(outcome.not_taken.is_empty(), "{}", outcome.not_taken[0]);
}

#[test]
fn uniform_at_full_speed() {
    every_point_is_a_prefix("uniform, full speed", Load::one_disk(0, 0));
}

#[test]
fn a_fifth_on_four_blocks_at_full_speed() {
    every_point_is_a_prefix("20 % hot, full speed", Load::one_disk(20, 0));
}

#[test]
fn half_on_four_blocks() {
    every_point_is_a_prefix("50 % hot, 1 ms", Load::one_disk(50, 1000));
}

#[test]
fn all_on_four_blocks() {
    every_point_is_a_prefix("100 % hot, 1 ms", Load::one_disk(100, 1000));
}

#[test]
fn all_on_four_blocks_at_full_speed() {
    every_point_is_a_prefix("100 % hot, full speed", Load::one_disk(100, 0));
}

/// So many collisions that most attempts fail.
const FOUR_HOT_WRITERS: Load =
    Load { disks: 1, disk_bytes: 64 * MIB, writers: 4, hot_percent: 100, pause: Duration::ZERO };

#[test]
fn four_writers_on_hot_blocks_at_full_speed() {
    every_point_is_a_prefix("4 writers, 100 % hot, full speed", FOUR_HOT_WRITERS);
}

#[test]
fn writers_that_take_turns_over_two_disks() {
    let pause = Duration::from_micros(200);
    let load = Load { disks: 2, disk_bytes: 32 * MIB, writers: 3, hot_percent: 10, pause };
    every_point_is_a_prefix("3 writers over 2 disks", load);
}

#[test]
fn without_io_uring() {
    let _alone = alone();
    let reader_kind = Some(lifeboat_capture::ReaderKind::Threads);
    let options = CaptureOptions { reader_kind, ..CaptureOptions::default() };
    let outcome = run("20 % hot, full speed, by threads", Load::one_disk(20, 0), POINTS / 3, options);
    assert_eq!(outcome.wrong_points, 0);
    assert!(outcome.not_taken.is_empty(), "{}", outcome.not_taken[0]);
}

#[test]
fn with_little_memory() {
    let _alone = alone();
    let options = CaptureOptions { held_bytes_max: 1 << 20, ..CaptureOptions::default() };
    let outcome = run("20 % hot, full speed, 1 MiB held", Load::one_disk(20, 0), POINTS / 3, options);
    assert_eq!(outcome.wrong_points, 0);
    assert!(outcome.not_taken.is_empty(), "{}", outcome.not_taken[0]);
}

/// A window so wide that most attempts collide.
const WIDE: Duration = Duration::from_millis(2);

#[test]
fn in_a_wide_window_the_check_finds_what_was_written() {
    let _alone = alone();
    let options = CaptureOptions { window_pause: WIDE, ..CaptureOptions::default() };
    let outcome = run("50 % hot, 1 ms, wide window", Load::one_disk(50, 1000), POINTS / 2, options);
    assert_eq!(outcome.wrong_points, 0);
    assert!(outcome.not_taken.is_empty(), "{}", outcome.not_taken[0]);
}

/// The tests of this file could fail: with the check switched off they do.
#[test]
fn without_the_check_points_are_wrong() {
    let _alone = alone();
    let options = CaptureOptions { unchecked: true, window_pause: WIDE, ..CaptureOptions::default() };
    let name = "20 % hot, full speed, wide window, check switched off";
    // A machine that is busy with other things may write too little in a window.
    assert!((0..6).any(|_| run(name, Load::one_disk(20, 0), POINTS / 2, options).wrong_points > 0));
}
