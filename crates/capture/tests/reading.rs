//! Copies and digests of whole disks, good ones and broken ones.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use lifeboat_capture::{
    CaptureError, CopyOptions, DiskReader, ReadError, ReaderKind, Unreadable, ZeroBlocks,
};
use lifeboat_model::{BlockDigest, BlockSet, DiskNumber, Extent, blocks_of_bytes};
use lifeboat_wire::agent::ZERO_DIGEST;
use rig::{Images, LoopDisk, MIB, alone};

const DISK: DiskNumber = DiskNumber(0);
const KINDS: [ReaderKind; 2] = [ReaderKind::Ring, ReaderKind::Threads];

/// Fills the file behind a disk: data with holes of all sizes. Gives the content.
fn fill(disk: &LoopDisk, bytes: u64) -> Vec<u8> {
    let mut content = vec![0u8; usize::try_from(bytes).unwrap()];
    for (index, block) in content.chunks_mut(4096).enumerate() {
        // Data in runs, single blocks among zeroes, and long zeroes.
        if !(1000..1300).contains(&index) && (index % 97 < 40 || index % 7 == 0) {
            block.fill(u8::try_from(index % 251 + 1).unwrap());
        }
    }
    let file = OpenOptions::new().write(true).open(&disk.backing).unwrap();
    file.write_all_at(&content, 0).unwrap();
    file.sync_all().unwrap();
    content
}

fn all(reader: &DiskReader) -> BlockSet {
    let blocks = blocks_of_bytes(reader.bytes());
    let mut set = BlockSet::new(blocks);
    set.insert(Extent { first: 0, blocks });
    set
}

fn options(stop: &AtomicBool) -> CopyOptions<'_> {
    CopyOptions { zeroes: ZeroBlocks::Skip, bytes_per_second: None, stop }
}

#[test]
fn a_copy_is_the_disk_whatever_its_size_and_sectors() {
    let _alone = alone();
    let odd = 9 * MIB + 3 * 4096 + 1536;
    for (bytes, losetup) in [(odd, vec![]), (9 * MIB, vec!["--sector-size", "4096"])] {
        let disk = LoopDisk::with(bytes, &losetup);
        let content = fill(&disk, bytes);
        for kind in KINDS {
            let mut reader = DiskReader::open_with(DISK, &disk.path, Some(kind)).unwrap();
            assert_eq!((reader.bytes(), reader.reader_kind()), (bytes, kind));
            let mut images = Images::new(&[bytes]);
            let stop = AtomicBool::new(false);
            let mut seen = BlockSet::new(blocks_of_bytes(bytes));
            let blocks = all(&reader);
            let copied = reader
                .copy(&blocks, &mut images, options(&stop), &mut |step| {
                    assert!(!seen.contains(step.extent.first));
                    seen.insert(step.extent);
                })
                .unwrap();
            assert!(images.disks[0][..content.len()] == content[..]);
            assert!(images.disks[0][content.len()..].iter().all(|byte| *byte == 0), "padding");
            assert_eq!(seen, blocks);
            assert_eq!(copied.done_blocks, blocks_of_bytes(bytes));
            assert!(copied.data_blocks == images.data_blocks && copied.data_blocks < copied.done_blocks);
            assert!(copied.unreadable.is_empty() && !copied.stopped);
        }
    }
}

#[test]
fn zeroes_are_sent_where_the_copy_may_have_something_else() {
    let _alone = alone();
    let disk = LoopDisk::new(4 * MIB);
    let content = fill(&disk, 4 * MIB);
    let mut reader = DiskReader::open(DISK, &disk.path).unwrap();
    let mut images = Images::new(&[4 * MIB]);
    images.disks[0].fill(0xee);
    let stop = AtomicBool::new(false);
    let options = CopyOptions { zeroes: ZeroBlocks::Send, ..options(&stop) };
    let blocks = all(&reader);
    reader.copy(&blocks, &mut images, options, &mut |_| ()).unwrap();
    assert!(images.disks[0] == content);
}

#[test]
fn only_what_was_asked_for_is_copied_and_a_stop_is_heard() {
    let _alone = alone();
    let disk = LoopDisk::new(32 * MIB);
    fill(&disk, 32 * MIB);
    let mut reader = DiskReader::open(DISK, &disk.path).unwrap();
    let mut some = BlockSet::new(blocks_of_bytes(32 * MIB));
    some.insert(Extent { first: 100, blocks: 1 });
    some.insert(Extent { first: 190, blocks: 70 });
    let mut seen = BlockSet::new(some.disk_blocks());
    let stop = AtomicBool::new(false);
    let mut images = Images::new(&[32 * MIB]);
    reader.copy(&some, &mut images, options(&stop), &mut |step| seen.insert(step.extent)).unwrap();
    assert_eq!(seen, some);

    // So slow that it would never end.
    let slow = CopyOptions { bytes_per_second: Some(100_000), ..options(&stop) };
    let blocks = all(&reader);
    let copied = reader.copy(&blocks, &mut images, slow, &mut |_| stop.store(true, SeqCst)).unwrap();
    assert!(copied.stopped);
    assert_eq!(copied.done_blocks, 64, "a frame, and nothing after the stop");
}

#[test]
fn exactly_the_unreadable_blocks_are_named() {
    let _alone = alone();
    let disk = LoopDisk::new(16 * MIB);
    let content = fill(&disk, 16 * MIB);
    // Behind the shorter file the loop device gives errors: from the middle of a frame on.
    let good = 16 * MIB - 100 * 4096;
    OpenOptions::new().write(true).open(&disk.backing).unwrap().set_len(good).unwrap();
    for kind in KINDS {
        let mut reader = DiskReader::open_with(DISK, &disk.path, Some(kind)).unwrap();
        let mut images = Images::new(&[16 * MIB]);
        let stop = AtomicBool::new(false);
        let blocks = all(&reader);
        let copied = reader.copy(&blocks, &mut images, options(&stop), &mut |_| ()).unwrap();
        let mut bad = BlockSet::new(blocks.disk_blocks());
        for Unreadable { extent, errno, .. } in &copied.unreadable {
            assert_eq!(*errno, libc::EIO);
            bad.insert(*extent);
        }
        let expected = Extent { first: good / 4096, blocks: 100 };
        assert_eq!(bad.extents().collect::<Vec<_>>(), [expected]);
        let good = usize::try_from(good).unwrap();
        assert!(images.disks[0][..good] == content[..good]);
        assert_eq!(copied.done_blocks, blocks.len());

        let chunks = reader.digest_chunks(0..u64::MAX).unwrap();
        let readable: Vec<_> = chunks.iter().map(Option::is_some).collect();
        assert_eq!(readable, (0..64).map(|chunk| chunk < 62).collect::<Vec<_>>());
        let blocks = reader.digest_blocks(&[62]).unwrap();
        assert_eq!(blocks.iter().take_while(|digest| digest.is_some()).count(), 28);
    }
}

#[test]
fn a_disk_of_which_nothing_can_be_read_is_gone() {
    let _alone = alone();
    let disk = LoopDisk::new(16 * MIB);
    fill(&disk, 16 * MIB);
    for kind in KINDS {
        let mut reader = DiskReader::open_with(DISK, &disk.path, Some(kind)).unwrap();
        OpenOptions::new().write(true).open(&disk.backing).unwrap().set_len(0).unwrap();
        let stop = AtomicBool::new(false);
        let blocks = all(&reader);
        let error = reader.copy(&blocks, &mut Images::new(&[16 * MIB]), options(&stop), &mut |_| ());
        assert!(
            matches!(error, Err(CaptureError::Read(ReadError::DiskGone { disk: DISK, .. }))),
            "{error:?}"
        );
        fill(&disk, 16 * MIB);
        assert!(reader.digest_chunks(0..4).unwrap().iter().all(Option::is_some), "it came back");
    }
}

#[test]
fn a_disk_of_another_size_is_noticed() {
    let _alone = alone();
    let disk = LoopDisk::new(16 * MIB);
    let mut reader = DiskReader::open(DISK, &disk.path).unwrap();
    OpenOptions::new().write(true).open(&disk.backing).unwrap().set_len(20 * MIB).unwrap();
    assert!(Command::new("losetup").arg("--set-capacity").arg(&disk.path).status().unwrap().success());
    let stop = AtomicBool::new(false);
    let blocks = all(&reader);
    let error = reader.copy(&blocks, &mut Images::new(&[16 * MIB]), options(&stop), &mut |_| ());
    let Err(CaptureError::Read(ReadError::SizeChanged { was_bytes, is_bytes, .. })) = error else {
        panic!("{error:?}");
    };
    assert_eq!((was_bytes, is_bytes), (16 * MIB, 20 * MIB));
}

#[test]
fn digests_are_those_of_the_content() {
    let _alone = alone();
    let bytes = 9 * MIB + 5 * 4096 + 512;
    let disk = LoopDisk::new(bytes);
    let mut content = fill(&disk, bytes);
    content.resize(content.len().next_multiple_of(4096), 0);
    let mut reader = DiskReader::open(DISK, &disk.path).unwrap();
    let digest = |bytes: &[u8]| {
        let zero = bytes.iter().all(|byte| *byte == 0);
        Some(if zero { BlockDigest(ZERO_DIGEST) } else { BlockDigest::of(bytes) })
    };
    let expected: Vec<_> = content.chunks(64 * 4096).map(digest).collect();
    assert_eq!(reader.digest_chunks(0..1000).unwrap(), expected);
    assert_eq!(reader.digest_chunks(3..5).unwrap(), expected[3..5]);
    assert!(reader.digest_chunks(37..40).unwrap().is_empty());

    let of_chunk = |chunk: usize| content.chunks(64 * 4096).nth(chunk).unwrap().chunks(4096).map(digest);
    let expected: Vec<_> = of_chunk(36).chain(of_chunk(1)).chain(of_chunk(36)).collect();
    assert_eq!(reader.digest_blocks(&[36, 99, 1, 36]).unwrap(), expected);
    assert!(expected.contains(&Some(BlockDigest(ZERO_DIGEST))));
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    let error = DiskReader::open(DISK, "/nowhere/disk".as_ref()).err().unwrap();
    assert!(error.to_string().starts_with("cannot open /nowhere/disk: "), "{error}");
}

/// Asserts nothing about time: prints how fast a copy is.
#[test]
fn throughput_of_a_copy() {
    struct Nowhere;
    impl lifeboat_capture::ChangeSink for Nowhere {
        fn data(
            &mut self,
            _: DiskNumber,
            _: Extent,
            _: lifeboat_model::Digest,
            _: bytes::Bytes,
        ) -> Result<(), lifeboat_capture::SinkClosed> {
            Ok(())
        }
        fn zeroes(&mut self, _: DiskNumber, _: Extent) -> Result<(), lifeboat_capture::SinkClosed> {
            Ok(())
        }
    }
    let _alone = alone();
    let disk = LoopDisk::new(128 * MIB);
    let mut content = vec![0u8; usize::try_from(MIB).unwrap()];
    let file = OpenOptions::new().write(true).open(&disk.backing).unwrap();
    for at in 0..128 {
        content.fill(at + 1);
        file.write_all_at(&content, u64::from(at) * MIB).unwrap();
    }
    file.sync_all().unwrap();
    for kind in KINDS {
        let mut reader = DiskReader::open_with(DISK, &disk.path, Some(kind)).unwrap();
        let stop = AtomicBool::new(false);
        let blocks = all(&reader);
        let begun = std::time::Instant::now();
        reader.copy(&blocks, &mut Nowhere, options(&stop), &mut |_| ()).unwrap();
        println!("copy by {kind:?}: {} MiB/s", 128 * 1000 / begun.elapsed().as_millis().max(1));
    }
}
