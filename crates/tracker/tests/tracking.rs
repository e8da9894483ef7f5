//! Tracking of real loop devices. Needs root.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use std::sync::atomic::{AtomicBool, Ordering};

use lifeboat_model::BlockSet;
use lifeboat_tracker::{Attached, EpochSide, FreshReason, TrackerError, Variant, check_support};
use rig::{LoopDisk, MIB, Numbers, Pins, Stage, extent, extents, run, take};

#[test]
fn this_machine_is_supported() {
    let support = check_support().unwrap();
    assert_eq!(support.variant, Variant::Atomic, "{support:?}");
}

#[test]
fn every_written_block_is_found_and_no_other() {
    let (disk, pins) = (LoopDisk::new(4096 * MIB), Pins::new());
    let device = disk.device();
    let mut set = pins.open();
    let (mut tracker, attached) = set.attach(&device.key, &device.identity).unwrap();
    assert_eq!(attached, Attached::Fresh(FreshReason::NeverTracked));
    assert!(!tracker.is_waiting());

    let mut io = disk.open();
    let mut written = BlockSet::new(device.identity.blocks);
    let mut numbers = Numbers(42);
    for _ in 0..300 {
        let at = extent(numbers.below(device.identity.blocks - 300), 1 + numbers.below(300));
        io.write(at.first, at.blocks, 7);
        written.insert(at);
    }
    // The last block of the disk, and less than a block in the middle of one.
    io.write(device.identity.blocks - 1, 1, 7);
    written.insert(extent(device.identity.blocks - 1, 1));
    io.write_bytes(9 * 4096 + 512, 1024, 7);
    written.insert(extent(9, 1));

    assert_eq!(tracker.waiting_blocks(), written.len());
    assert_eq!(extents(&take(&mut tracker)), extents(&written));
    assert_eq!(tracker.taken_extents().len(), extents(&written).len());
    assert!(!tracker.is_waiting() && take(&mut tracker).is_empty());
    assert!(tracker.resync_wanted().is_none());
    let stats = tracker.stats();
    assert!(stats.issues >= 302 && stats.completions >= 302 && stats.failed == 0, "{stats:?}");
}

#[test]
fn reads_mark_nothing() {
    let (disk, pins) = (LoopDisk::new(64 * MIB), Pins::new());
    let device = disk.device();
    let (tracker, _) = pins.open().attach(&device.key, &device.identity).unwrap();
    let mut io = disk.open();
    for block in 0..100 {
        io.read_stamp(block * 7);
    }
    assert!(!tracker.is_waiting() && !tracker.issued_any(EpochSide::A));
}

/// The promise itself: an image that is fed by "take, then read" equals the disk in the end,
/// whatever was written meanwhile.
fn an_image_fed_by_takes_equals_the_disk(variant: Variant) {
    const BLOCKS: u64 = 512;
    let (disk, pins) = (LoopDisk::new(64 * MIB), Pins::new());
    let device = disk.device();
    let mut set = pins.open();
    set.set_variant(variant);
    let (mut tracker, _) = set.attach(&device.key, &device.identity).unwrap();
    let writing = AtomicBool::new(true);
    let mut image = vec![0; 512];
    let mut takes = 0;
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2u64)
            .map(|writer| {
                let mut io = disk.open();
                scope.spawn(move || {
                    let mut numbers = Numbers(99 + writer);
                    for stamp in 1..=20_000 {
                        // Two writers, disjoint blocks in the same words, a few of them hot.
                        let range = if stamp % 2 == 0 { 4 } else { BLOCKS / 2 };
                        io.write_stamp(numbers.below(range) * 2 + writer, stamp);
                    }
                })
            })
            .collect();
        let (writing, image, takes) = (&writing, &mut image, &mut takes);
        let tracker = &mut tracker;
        let mut io = disk.open();
        scope.spawn(move || {
            loop {
                let last = !writing.load(Ordering::SeqCst);
                for at in take(tracker).extents() {
                    for block in (at.first..at.end()).filter(|block| *block < BLOCKS) {
                        image[usize::try_from(block).unwrap()] = io.read_stamp(block);
                    }
                }
                *takes += 1;
                if last {
                    break;
                }
            }
        });
        for writer in writers {
            writer.join().unwrap();
        }
        writing.store(false, Ordering::SeqCst);
    });
    let mut io = disk.open();
    let found: Vec<u64> = (0..BLOCKS).map(|block| io.read_stamp(block)).collect();
    assert!(takes > 10, "the test did not take beside the writers");
    assert_eq!(image, found);
}

#[test]
fn nothing_is_lost_under_writers() {
    an_image_fed_by_takes_equals_the_disk(Variant::Atomic);
}

#[test]
fn nothing_is_lost_under_writers_with_plain_bytes() {
    an_image_fed_by_takes_equals_the_disk(Variant::PlainBytes);
}

#[test]
fn plain_bytes_mark_a_superset() {
    let (disk, pins) = (LoopDisk::new(4096 * MIB), Pins::new());
    let device = disk.device();
    let mut set = pins.open();
    set.set_variant(Variant::PlainBytes);
    let (mut tracker, _) = set.attach(&device.key, &device.identity).unwrap();
    assert_eq!(tracker.variant(), Variant::PlainBytes);
    let mut io = disk.open();
    let mut expected = BlockSet::new(device.identity.blocks);
    let mut numbers = Numbers(7);
    for _ in 0..200 {
        let at = extent(numbers.below(device.identity.blocks - 300), 1 + numbers.below(300));
        io.write(at.first, at.blocks, 7);
        let (first, end) = (at.first / 8 * 8, at.end().next_multiple_of(8));
        expected.insert(extent(first, end - first));
    }
    assert_eq!(extents(&take(&mut tracker)), extents(&expected));
    assert!(!tracker.is_waiting());
    // Eight regions at a time where a discard is long.
    discard(&disk, &[], 512 * MIB, 256 * MIB);
    assert_eq!(extents(&take(&mut tracker)), [(512 * 256, 256 * 256)]);
}

/// A write that is held up under the device has been sent and has not completed. Marking it
/// as done too early would let a take read the old content and forget the block.
#[test]
fn a_write_is_issued_when_it_is_sent_and_done_when_it_completes() {
    let (stage, pins) = (Stage::new(), Pins::new());
    let disk = stage.disk(16 * MIB);
    let device = disk.device();
    let mut set = pins.open();
    let (mut tracker, _) = set.attach(&device.key, &device.identity).unwrap();
    let mut io = disk.open();
    io.write(0, 1024, 1);
    take(&mut tracker);

    assert_eq!(set.switch_epoch([&mut tracker]), EpochSide::B);
    stage.freeze();
    let writer = std::thread::spawn(move || io.write(100, 5, 2));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !tracker.issued_since(EpochSide::B, extent(104, 1)) && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    let waiting_while_held = tracker.is_waiting();
    // Another process would find the write that was in flight when it attached.
    let other = "other".parse().unwrap();
    let attached = set.attach(&other, &device.identity);
    stage.thaw();
    writer.join().unwrap();

    assert!(tracker.issued_since(EpochSide::B, extent(100, 5)), "the write was not seen in time");
    assert!(!waiting_while_held, "done before it completed");
    assert_eq!(extents(&take(&mut tracker)), [(100, 5)]);
    let (mut other, _) = attached.unwrap();
    assert!(!other.issued_any(EpochSide::A) && !other.issued_any(EpochSide::B));
    assert_eq!(extents(&take(&mut other)), [(100, 5)]);
}

fn discard(disk: &LoopDisk, options: &[&str], offset: u64, length: u64) {
    let (offset, length) = (offset.to_string(), length.to_string());
    let mut arguments: Vec<&str> = options.to_vec();
    arguments.extend(["--offset", &offset, "--length", &length]);
    let mut arguments: Vec<&std::ffi::OsStr> = arguments.into_iter().map(AsRef::as_ref).collect();
    arguments.push(disk.path.as_ref());
    run("blkdiscard", &arguments);
}

#[test]
fn discards_and_zeroes_of_any_length_are_writes() {
    let (disk, pins) = (LoopDisk::new(8192 * MIB), Pins::new());
    let device = disk.device();
    let (mut tracker, _) = pins.open().attach(&device.key, &device.identity).unwrap();
    for options in [&[][..], &["--zeroout"][..]] {
        for (offset, length) in [(MIB, MIB), (100 * MIB, 15 * MIB), (0, 16 * MIB)] {
            discard(&disk, options, offset, length);
            let found = take(&mut tracker);
            assert_eq!(extents(&found), [(offset / 4096, length / 4096)], "{options:?}");
        }
        // Long ones may be marked in whole regions of 16 MiB at their ends.
        for (offset, length) in [(7 * MIB, 1500 * MIB), (3000 * MIB, 5192 * MIB), (0, 8192 * MIB)] {
            discard(&disk, options, offset, length);
            let found = extents(&take(&mut tracker));
            let &[(first, blocks)] = &found[..] else { panic!("{options:?} {offset}: {found:?}") };
            let (end, wanted_end) = (first + blocks, (offset + length) / 4096);
            assert!(first <= offset / 4096 && first + 4096 > offset / 4096, "{options:?}: {found:?}");
            assert!(end >= wanted_end && end < wanted_end + 4096, "{options:?}: {found:?}");
        }
    }
    assert!(tracker.stats().whole_regions > 0, "{:?}", tracker.stats());
    assert!(tracker.resync_wanted().is_none());
    assert!(tracker.issued_since(EpochSide::A, extent(300_000, 1)));
}

#[test]
fn one_switch_is_the_same_instant_for_two_disks() {
    let (one, two, pins) = (LoopDisk::new(64 * MIB), LoopDisk::new(64 * MIB), Pins::new());
    let mut set = pins.open();
    let mut trackers = Vec::new();
    for disk in [&one, &two] {
        let device = disk.device();
        trackers.push(set.attach(&device.key, &device.identity).unwrap().0);
    }
    let (mut first, mut second) = (one.open(), two.open());
    let is_issued = |trackers: &[lifeboat_tracker::DiskTracker], side, block| {
        [0, 1].map(|disk: usize| trackers[disk].issued_since(side, extent(block, 1)))
    };
    assert_eq!(set.epoch(), EpochSide::A);
    first.write(10, 1, 1);
    second.write(11, 1, 1);
    assert_eq!(is_issued(&trackers, EpochSide::A, 10), [true, false]);

    assert_eq!(set.switch_epoch(&mut trackers), EpochSide::B);
    assert!(!trackers[0].issued_any(EpochSide::B) && !trackers[1].issued_any(EpochSide::B));
    second.write(12, 2, 1);
    assert_eq!(is_issued(&trackers, EpochSide::B, 12), [false, true]);
    assert_eq!(is_issued(&trackers, EpochSide::B, 14), [false, false]);
    assert_eq!(is_issued(&trackers, EpochSide::A, 12), [false, false]);
    assert_eq!(is_issued(&trackers, EpochSide::A, 11), [false, true]);

    assert_eq!(set.switch_epoch(&mut trackers), EpochSide::A);
    assert_eq!(is_issued(&trackers, EpochSide::A, 10), [false, false], "cleared before the switch");
    assert_eq!(is_issued(&trackers, EpochSide::A, 11), [false, false], "cleared before the switch");
    assert_eq!(is_issued(&trackers, EpochSide::B, 12), [false, true]);
}

/// An event that interrupts another's program is seen by one copy only: each must do alone.
#[test]
fn each_copy_of_the_programs_is_enough() {
    for alone in 0..3 {
        let (disk, pins) = (LoopDisk::new(64 * MIB), Pins::new());
        let device = disk.device();
        let (mut tracker, _) = pins.open().attach(&device.key, &device.identity).unwrap();
        for copy in (0..3).filter(|copy| *copy != alone) {
            for program in ["issue", "complete"] {
                let link = format!("disk-{}/link_on_{program}_{copy}", device.key);
                std::fs::remove_file(pins.0.join(link)).unwrap();
            }
        }
        let before = tracker.stats();
        disk.open().write(100, 3, 1);
        assert_eq!(extents(&take(&mut tracker)), [(100, 3)], "copy {alone}");
        assert!(tracker.issued_since(EpochSide::A, extent(102, 1)), "copy {alone}");
        assert_eq!(tracker.stats().completions, before.completions + 1, "copy {alone}");
    }
}

#[test]
fn what_is_taken_is_put_back_or_acknowledged() {
    let (disk, pins) = (LoopDisk::new(64 * MIB), Pins::new());
    let device = disk.device();
    let (mut tracker, _) = pins.open().attach(&device.key, &device.identity).unwrap();
    let mut io = disk.open();
    io.write(100, 50, 1);
    assert_eq!(extents(&take(&mut tracker)), [(100, 50)]);
    tracker.acknowledge(extent(100, 10));
    tracker.put_back(extent(140, 10));
    assert_eq!(tracker.taken_extents(), [extent(110, 30)]);
    assert_eq!(extents(&take(&mut tracker)), [(140, 10)]);
    assert_eq!(tracker.put_back_all(), 40);
    assert!(tracker.taken_extents().is_empty());
    assert_eq!(tracker.waiting_blocks(), 40);
    tracker.mark_all();
    assert_eq!(tracker.waiting_blocks(), device.identity.blocks);
    assert_eq!(extents(&take(&mut tracker)), [(0, device.identity.blocks)]);
}

#[test]
fn a_write_beyond_the_known_end_asks_for_a_resync() {
    let (disk, pins) = (LoopDisk::new(64 * MIB), Pins::new());
    let device = disk.device();
    let mut identity = device.identity;
    identity.blocks -= 100;
    let (mut tracker, _) = pins.open().attach(&device.key, &identity).unwrap();
    disk.open().write(identity.blocks - 1, 2, 1);
    let wanted = tracker.resync_wanted().expect("the write went beyond the end");
    assert!(wanted.stats.beyond_end >= 1, "{wanted:?}");
    assert_eq!(extents(&take(&mut tracker)), [(identity.blocks - 1, 1)]);
    disk.open().write(identity.blocks + 5, 1, 1);
    tracker.settle_resync(&wanted);
    let wanted = tracker.resync_wanted().expect("a later write is not settled");
    tracker.settle_resync(&wanted);
    assert!(tracker.resync_wanted().is_none());
}

#[test]
fn a_directory_of_pins_has_one_user() {
    let pins = Pins::new();
    let set = pins.open();
    assert!(matches!(lifeboat_tracker::TrackerSet::open(&pins.0), Err(TrackerError::InUse { .. })));
    drop(set);
    pins.open();
}

#[test]
fn pins_elsewhere_than_on_a_bpf_file_system_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pins");
    let error = lifeboat_tracker::TrackerSet::open(&path).unwrap_err();
    assert!(matches!(error, TrackerError::NoBpfFs { .. }), "{error}");
    assert!(!path.exists());
}

#[test]
fn a_partition_is_refused_on_the_real_thing() {
    let disk = LoopDisk::with_partitions(64 * MIB);
    run("addpart", &[disk.path.as_ref(), "1".as_ref(), "2048".as_ref(), "8192".as_ref()]);
    let name = disk.path.file_name().unwrap().to_string_lossy().into_owned();
    let sysfs = format!("/sys/block/{name}/{name}p1/dev");
    let numbers = std::fs::read_to_string(&sysfs).unwrap();
    let (major, minor) = numbers.trim().split_once(':').unwrap();
    // The machine may have no udev to make the node.
    let node = disk.file.with_file_name("partition");
    run("mknod", &[node.as_ref(), "b".as_ref(), major.as_ref(), minor.as_ref()]);
    let error = lifeboat_tracker::DiskDevice::inspect(&node).unwrap_err().to_string();
    assert_eq!(error, format!("/dev/{name}p1 is a partition; protect the whole disk /dev/{name} instead"));
    assert_eq!(disk.device().backing_file.as_deref(), Some(disk.file.as_path()));
}
