//! Tracking outlives the process that began it. Needs root.
//!
//! Some tests start this program again as the process that is lost; see `the_other_process`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use lifeboat_model::BlockSet;
use lifeboat_tracker::{Attached, DiskIdentity, FreshReason, TrackerSet};
use rig::{LoopDisk, MIB, Numbers, Pins, extent, extents, take};

const ROLE: &str = "LIFEBOAT_TEST_ROLE";
const PINS: &str = "LIFEBOAT_TEST_PINS";
const DISK: &str = "LIFEBOAT_TEST_DISK";

/// No test of its own: what the other process does, which has a role in its environment.
#[test]
fn the_other_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let device = lifeboat_tracker::DiskDevice::inspect(&PathBuf::from(std::env::var(DISK).unwrap())).unwrap();
    let mut set = TrackerSet::open(&PathBuf::from(std::env::var(PINS).unwrap())).unwrap();
    let (mut tracker, attached) = set.attach(&device.key, &device.identity).unwrap();
    println!("\nready");
    if role == "attach" {
        assert!(matches!(attached, Attached::Fresh(_)));
        return;
    }
    assert_eq!(attached, Attached::Continued);
    loop {
        tracker.take(|_| ());
        tracker.put_back_all();
    }
}

/// Starts the other process and waits until it has attached.
fn start(role: &str, pins: &Pins, disk: &LoopDisk) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_other_process", "--nocapture"])
        .env(ROLE, role)
        .env(PINS, &pins.0)
        .env(DISK, &disk.path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = String::new();
    let stdout = child.stdout.as_mut().unwrap();
    let mut byte = [0];
    while !output.ends_with("\nready\n") {
        assert_eq!(stdout.read(&mut byte).unwrap(), 1, "the other process failed: {output}");
        output.push(char::from(byte[0]));
    }
    child
}

#[test]
fn tracking_goes_on_when_the_process_is_gone() {
    let (disk, pins) = (LoopDisk::new(256 * MIB), Pins::new());
    let device = disk.device();
    let mut child = start("attach", &pins, &disk);
    assert!(child.wait().unwrap().success());

    disk.open().write(1000, 77, 1);

    let mut set = pins.open();
    let instances = set.list().unwrap();
    assert_eq!(instances.len(), 1);
    assert_eq!((&instances[0].key, instances[0].identity), (&device.key, Some(device.identity)));
    let (mut tracker, attached) = set.attach(&device.key, &device.identity).unwrap();
    assert_eq!(attached, Attached::Continued);
    assert_eq!(extents(&take(&mut tracker)), [(1000, 77)]);

    assert!(set.detach(&device.key).unwrap());
    assert!(!set.detach(&device.key).unwrap());
    disk.open().write(5, 1, 1);
    assert!(!tracker.is_waiting(), "detached");
    let (tracker, attached) = set.attach(&device.key, &device.identity).unwrap();
    assert_eq!(attached, Attached::Fresh(FreshReason::NeverTracked));
    assert!(!tracker.is_waiting());
}

#[test]
fn a_kill_in_the_midst_of_takes_loses_nothing() {
    let (disk, pins) = (LoopDisk::new(2048 * MIB), Pins::new());
    let device = disk.device();
    assert!(start("attach", &pins, &disk).wait().unwrap().success());
    let mut io = disk.open();
    let mut numbers = Numbers(4711);
    for round in 0..25 {
        let mut child = start("take", &pins, &disk);
        let mut written = BlockSet::new(device.identity.blocks);
        for _ in 0..50 + numbers.below(400) {
            let block = numbers.below(device.identity.blocks);
            io.write(block, 1, 1);
            written.insert(extent(block, 1));
        }
        child.kill().unwrap();
        child.wait().unwrap();

        let mut set = pins.open();
        let (mut tracker, attached) = set.attach(&device.key, &device.identity).unwrap();
        assert_eq!(attached, Attached::Continued);
        let mut found = BlockSet::new(device.identity.blocks);
        for at in tracker.taken_extents() {
            found.insert(at);
        }
        found.union_with(&take(&mut tracker));
        // All writes are complete, so of those that are open still the kernel has not reported it.
        let mut unreported = Vec::new();
        tracker.open_now(|at| unreported.push(at));
        for at in unreported {
            found.insert(at);
            tracker.forget_open(at);
        }
        assert_eq!(extents(&found), extents(&written), "round {round}");
        for at in found.extents() {
            tracker.acknowledge(at);
        }
        assert!(tracker.taken_extents().is_empty() && !tracker.is_waiting());
    }
}

#[test]
fn an_instance_of_another_disk_is_not_reused() {
    let (disk, pins) = (LoopDisk::new(64 * MIB), Pins::new());
    let before = disk.device().identity;
    let key = disk.device().key;
    let mut set = pins.open();
    set.attach(&key, &before).unwrap();
    disk.open().write(1, 1, 1);

    // The same numbers and size, given to another disk.
    let after = DiskIdentity { diskseq: before.diskseq.map(|number| number + 1), ..before };
    assert_ne!(after, before, "this kernel should count disks");
    let (tracker, attached) = set.attach(&key, &after).unwrap();
    assert_eq!(attached, Attached::Fresh(FreshReason::OtherDisk { was: before }));
    assert!(!tracker.is_waiting());

    let grown = DiskIdentity { blocks: after.blocks + 1, ..after };
    let (_, attached) = set.attach(&key, &grown).unwrap();
    assert_eq!(attached, Attached::Fresh(FreshReason::OtherDisk { was: after }));
    let (_, attached) = set.attach(&key, &grown).unwrap();
    assert_eq!(attached, Attached::Continued);
}

#[test]
fn half_made_instances_are_recognised() {
    let (disk, pins) = (LoopDisk::new(64 * MIB), Pins::new());
    let device = disk.device();
    let folder = pins.0.join(format!("disk-{}", device.key));
    for pin in ["meta", "taken", "done", "stats", "link_on_issue_1", "link_on_complete_0"] {
        let mut set = pins.open();
        set.attach(&device.key, &device.identity).unwrap();
        std::fs::remove_file(folder.join(pin)).unwrap();
        let (_, attached) = set.attach(&device.key, &device.identity).unwrap();
        assert!(matches!(attached, Attached::Fresh(FreshReason::Incomplete { .. })), "{pin}: {attached:?}");
        disk.open().write(3, 1, 1);
        let (mut tracker, attached) = set.attach(&device.key, &device.identity).unwrap();
        assert_eq!(attached, Attached::Continued);
        assert_eq!(extents(&take(&mut tracker)), [(3, 1)]);
    }
    // One without meta is cleared away by the next process that opens the directory.
    std::fs::remove_file(folder.join("meta")).unwrap();
    assert_eq!(TrackerSet::list_in(&pins.0).unwrap()[0].identity, None);
    assert!(pins.open().list().unwrap().is_empty());
    assert!(!folder.exists());
}

#[test]
fn instances_that_follow_another_epoch_are_not_reused() {
    let (disk, pins) = (LoopDisk::new(64 * MIB), Pins::new());
    let device = disk.device();
    pins.open().attach(&device.key, &device.identity).unwrap();
    std::fs::remove_file(pins.0.join("control")).unwrap();
    let (_, attached) = pins.open().attach(&device.key, &device.identity).unwrap();
    assert_eq!(attached, Attached::Fresh(FreshReason::OtherControl));
}
