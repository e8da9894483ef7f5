//! What is owed between points: nothing is lost when a sink closes, a part is lost, a sector
//! cannot be read, or no point can be taken.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_capture::{CaptureError, CaptureOptions, CapturedPoint, PointError};
use lifeboat_model::{DiskNumber, Extent};
use rig::{Aligned, Images, LoopDisk, MIB, Rig, alone, direct};

const DISK: DiskNumber = DiskNumber(0);
const SIZE: u64 = 32 * MIB;

fn rig(options: CaptureOptions) -> Rig {
    Rig::new(vec![LoopDisk::new(SIZE)], options)
}

fn write(rig: &Rig, blocks: impl IntoIterator<Item = u64>, stamp: u64) {
    let file = rig.disks[0].open();
    let mut buffer = Aligned::new(4096);
    for block in blocks {
        file.write_all_at(buffer.stamp(stamp + block), block * 4096).unwrap();
    }
}

fn point(rig: &mut Rig, images: &mut Images) -> Result<CapturedPoint, PointError> {
    rig.capture().optimistic_point(images, Instant::now() + Duration::from_secs(10), &Timestamp::now)
}

fn assert_same(rig: &Rig, images: &Images) {
    let mut disk = Aligned::new(usize::try_from(SIZE).unwrap());
    rig.disks[0].open().read_exact_at(disk.bytes(), 0).unwrap();
    let differs = |(a, b): (&[u8], &[u8])| a != b;
    let first = disk.bytes().chunks(4096).zip(images.disks[0].chunks(4096)).position(differs);
    assert_eq!(first, None, "the first block that differs");
}

#[test]
fn a_sink_that_closes_at_any_message_loses_nothing() {
    let _alone = alone();
    let mut rig = rig(CaptureOptions::default());
    let mut images = Images::new(&[SIZE]);
    for round in 0..12 {
        write(&rig, (0..700).map(|n| n * 11 % 8192), round * 10_000 + 1);
        images.closes_after = Some(images.messages + round * round * 5);
        let closed = if round % 2 == 0 {
            rig.capture().precopy(&mut images).map(drop)
        } else {
            match point(&mut rig, &mut images) {
                Err(PointError::Capture(error)) => Err(error),
                other => other.map(drop).map_err(|error| panic!("{error}")),
            }
        };
        assert!(matches!(closed, Err(CaptureError::Sink(_)) | Ok(())), "{closed:?}");
        assert!(round > 8 || closed.is_err(), "round {round} was to be cut off");
        images.closes_after = None;
        if round % 3 == 0 {
            point(&mut rig, &mut images).unwrap();
            assert_same(&rig, &images);
        }
    }
    point(&mut rig, &mut images).unwrap();
    assert_same(&rig, &images);
}

#[test]
fn what_was_not_acknowledged_is_sent_again_and_only_that() {
    let _alone = alone();
    let mut rig = rig(CaptureOptions::default());
    let mut images = Images::new(&[SIZE]);
    write(&rig, 0..100, 1);
    point(&mut rig, &mut images).unwrap();
    let mark = rig.capture().mark().unwrap();
    assert!(rig.capture().mark().is_none(), "one at a time");
    // Written again after the mark: its acknowledgement must not cover these.
    write(&rig, 50..60, 1_000_000);
    rig.capture().precopy(&mut images).unwrap();
    rig.capture().acknowledge(mark);
    let taken = rig.capture().tracker(DISK).unwrap().taken_extents();
    assert_eq!(taken, [Extent { first: 50, blocks: 10 }]);

    rig.capture().resend_unacknowledged();
    let mut later = Images::new(&[SIZE]);
    point(&mut rig, &mut later).unwrap();
    assert_eq!(later.data_blocks, 10);
    assert_eq!(later.block(0, 55), images.block(0, 55));

    // A mark that was dropped by that does nothing any more.
    let mark = rig.capture().mark().unwrap();
    rig.capture().resend_unacknowledged();
    let next = rig.capture().mark().unwrap();
    point(&mut rig, &mut later).unwrap();
    rig.capture().acknowledge(mark);
    assert_eq!(rig.capture().tracker(DISK).unwrap().taken_extents(), [Extent { first: 50, blocks: 10 }]);
    rig.capture().acknowledge(next);
}

#[test]
fn blocks_that_are_rewritten_again_and_again_wait_for_the_point() {
    let _alone = alone();
    let mut rig = rig(CaptureOptions::default());
    let mut images = Images::new(&[SIZE]);
    let mut deferred = 0;
    for pass in 0..10 {
        write(&rig, [7, 4000, 100 + pass * 2], pass * 100 + 1);
        deferred += rig.capture().precopy(&mut images).unwrap().deferred_blocks;
    }
    assert!(deferred >= 10, "{deferred}");
    assert!(images.data_blocks <= 10 + 8, "{} blocks were sent", images.data_blocks);
    point(&mut rig, &mut images).unwrap();
    assert_same(&rig, &images);
}

#[test]
fn writes_are_collected_for_a_comparison() {
    let _alone = alone();
    let mut rig = rig(CaptureOptions::default());
    let mut images = Images::new(&[SIZE]);
    write(&rig, 0..10, 1);
    point(&mut rig, &mut images).unwrap();
    assert!(rig.capture().collected_changes(DISK).is_none());
    rig.capture().collect_changes(DISK);
    write(&rig, 20..25, 1);
    rig.capture().precopy(&mut images).unwrap();
    write(&rig, 30..31, 1);
    point(&mut rig, &mut images).unwrap();
    let set = rig.capture().stop_collecting(DISK).unwrap();
    let expected = [Extent { first: 20, blocks: 5 }, Extent { first: 30, blocks: 1 }];
    assert_eq!(set.extents().collect::<Vec<_>>(), expected);
    assert!(rig.capture().collected_changes(DISK).is_none());
}

#[test]
fn discarded_blocks_are_zero_in_the_point() {
    let _alone = alone();
    let mut rig = rig(CaptureOptions::default());
    let mut images = Images::new(&[SIZE]);
    write(&rig, 0..200, 1);
    point(&mut rig, &mut images).unwrap();
    let path = rig.disks[0].path.clone();
    let range = ["--offset", "409600", "--length", "204800"].map(std::ffi::OsStr::new);
    rig::run("blkdiscard", &[range[0], range[1], range[2], range[3], path.as_os_str()]);
    point(&mut rig, &mut images).unwrap();
    assert!(images.block(0, 120).iter().all(|byte| *byte == 0));
    assert_same(&rig, &images);
}

#[test]
fn changed_blocks_that_cannot_be_read_are_named_and_not_forgotten() {
    let _alone = alone();
    let mut rig = rig(CaptureOptions::default());
    let mut images = Images::new(&[SIZE]);
    write(&rig, 0..200, 1);
    let backing = OpenOptions::new().write(true).open(&rig.disks[0].backing).unwrap();
    let bad = Extent { first: 8000, blocks: 192 };
    backing.set_len(8000 * 4096).unwrap();
    rig.capture().tracker(DISK).unwrap().put_back(bad);
    let blocks =
        |list: &[lifeboat_capture::Unreadable]| list.iter().map(|bad| bad.extent.blocks).sum::<u64>();
    let pass = rig.capture().precopy(&mut images).unwrap();
    assert_eq!((pass.data_blocks, blocks(&pass.unreadable)), (200, 192));
    for _ in 0..2 {
        let captured = point(&mut rig, &mut images).unwrap();
        assert_eq!(blocks(&captured.unreadable), 192);
        assert!(captured.unreadable.iter().all(|part| part.extent.intersection(bad) == Some(part.extent)));
    }
    // It can be read again.
    backing.set_len(SIZE).unwrap();
    let captured = point(&mut rig, &mut images).unwrap();
    assert!(captured.unreadable.is_empty());
    assert_eq!(rig.capture().tracker(DISK).unwrap().waiting_blocks(), 0);
}

#[test]
fn a_disk_that_is_gone_ends_a_pass_and_loses_nothing() {
    let _alone = alone();
    let mut rig = rig(CaptureOptions::default());
    let mut images = Images::new(&[SIZE]);
    write(&rig, 0..200, 1);
    let backing = OpenOptions::new().read(true).write(true).open(&rig.disks[0].backing).unwrap();
    let mut content = vec![0; usize::try_from(SIZE).unwrap()];
    backing.read_exact_at(&mut content, 0).unwrap();
    backing.set_len(0).unwrap();
    let error = rig.capture().precopy(&mut images).unwrap_err();
    assert!(error.to_string().starts_with("disk 0 is gone: "), "{error}");
    assert!(matches!(point(&mut rig, &mut images), Err(PointError::Capture(_))));
    backing.write_all_at(&content, 0).unwrap();
    backing.sync_all().unwrap();
    point(&mut rig, &mut images).unwrap();
    assert_same(&rig, &images);
}

#[test]
fn a_point_that_cannot_be_taken_says_why_in_numbers() {
    let _alone = alone();
    // So long that the writer writes in it, however busy the machine is.
    let window_pause = Duration::from_millis(50);
    let mut rig = rig(CaptureOptions { window_pause, ..CaptureOptions::default() });
    let mut images = Images::new(&[SIZE]);
    let path = rig.disks[0].path.clone();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = direct(&path);
            let mut buffer = Aligned::new(4096);
            for n in 1.. {
                file.write_all_at(buffer.stamp(n), 77 * 4096).unwrap();
                if stop.load(SeqCst) {
                    return;
                }
            }
        });
        // A disk that stands still for long lets a point be taken all the same.
        let why = (0..5).find_map(|_| {
            let deadline = Instant::now() + Duration::from_secs(1);
            match rig.capture().optimistic_point(&mut images, deadline, &Timestamp::now) {
                Err(PointError::NotTaken(why)) => Some(why),
                Ok(_) => None,
                Err(other) => panic!("{other:?}"),
            }
        });
        stop.store(true, SeqCst);
        let why = why.unwrap();
        assert!(why.attempts > 1);
        assert_eq!((why.hottest[0].disk, why.hottest[0].block), (DISK, 77));
        assert!(why.hottest[0].collisions > 0);
        assert!(why.to_string().contains("disk 0 block 77"), "{why}");
    });
    point(&mut rig, &mut images).unwrap();
    assert_same(&rig, &images);
}

#[test]
fn more_changes_than_fit_into_memory_make_a_point_too() {
    let _alone = alone();
    let mut rig = rig(CaptureOptions { held_bytes_max: 1 << 20, ..CaptureOptions::default() });
    let mut images = Images::new(&[SIZE]);
    write(&rig, 0..8192, 1);
    point(&mut rig, &mut images).unwrap();
    assert_same(&rig, &images);
}

#[test]
fn writes_whose_completion_is_not_reported_are_in_the_point() {
    let _alone = alone();
    let mut rig = rig(CaptureOptions::default());
    let mut images = Images::new(&[SIZE]);
    write(&rig, 0..100, 1);
    point(&mut rig, &mut images).unwrap();
    rig.stop_reporting_completions();
    write(&rig, [7, 8, 4096, 8191], 1000);
    for _ in 0..2 {
        let captured = point(&mut rig, &mut images).unwrap();
        assert_eq!(captured.figures.attempts, 1);
        assert!(captured.figures.blocks_in_window >= 4, "{:?}", captured.figures);
        assert_same(&rig, &images);
    }
    // What was read in that way and not acknowledged is sent again.
    let mut again = Images::new(&[SIZE]);
    rig.capture().resend_unacknowledged();
    point(&mut rig, &mut again).unwrap();
    assert_same(&rig, &again);
}
