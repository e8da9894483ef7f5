//! A point's disk reads as the changes up to it say, and not at all when a file is not what it was.
#![allow(clippy::unwrap_used)]

mod fixture;

use std::fs;
use std::sync::Arc;

use fixture::{Change, Site, content, grown, joined};
use futures::TryStreamExt;
use lifeboat_hrl::{Piece, Problem};
use lifeboat_model::{BLOCK_BYTES, BlockDigest, Epoch, Extent, Part};
use lifeboat_volume::{
    CHUNK_BLOCKS, FrameCache, PointDisk, VolumeError, block_digests, chunk_count, chunk_digests,
};
use proptest::prelude::*;
use tokio::runtime::Runtime;

const DISK_BYTES: u64 = 400 * 4096 - 1000;

fn change() -> impl Strategy<Value = Change> {
    let extent =
        (0u64..400, 1u64..150).prop_map(|(first, blocks)| Extent { first, blocks: blocks.min(400 - first) });
    (extent, prop::option::weighted(0.7, any::<u64>())).prop_map(|(extent, seed)| match seed {
        Some(seed) => Change::Data(extent, seed),
        None => Change::Zeroes(extent),
    })
}

/// Parts of epochs: how many parts, and the changes of each.
fn epochs() -> impl Strategy<Value = Vec<Vec<Vec<Change>>>> {
    let part = prop::collection::vec(change(), 0..6);
    prop::collection::vec(prop::collection::vec(part, 1..4), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_point_reads_as_the_changes_up_to_it(
        epochs in epochs(),
        reads in prop::collection::vec((0u64..DISK_BYTES, 1u64..600_000), 1..10),
        cache_bytes in prop::sample::select(vec![0usize, 600_000, 64 << 20]),
        direct in any::<bool>(),
    ) {
        let runtime = Runtime::new().unwrap();
        let mut site = Site::new(DISK_BYTES);
        for (epoch, parts) in epochs.iter().enumerate() {
            for (part, changes) in parts.iter().enumerate() {
                // Trailing zeroes of the last block are the agent's duty.
                let (epoch, part) = (epoch as u64 + 1, u32::try_from(part).unwrap());
                site.add(epoch, part, changes);
            }
            let disk = runtime.block_on(site.open(cache_bytes, direct));
            for (offset, len) in &reads {
                let len = (*len).min(DISK_BYTES - offset);
                let found = joined(runtime.block_on(disk.read(*offset, u32::try_from(len).unwrap())).unwrap());
                let range = usize::try_from(*offset).unwrap()..usize::try_from(offset + len).unwrap();
                prop_assert!(found == site.image[range], "epoch {}, {} bytes at {}", epoch + 1, len, offset);
                check_status(&disk, &site.image, *offset, len)?;
            }
        }
        check_digests(&runtime, &runtime.block_on(site.open(cache_bytes, direct)));
    }
}

fn check_status(disk: &PointDisk, image: &[u8], offset: u64, len: u64) -> Result<(), TestCaseError> {
    let mut at = usize::try_from(offset).unwrap();
    let runs = disk.status(offset, len, usize::MAX);
    prop_assert_eq!(runs.iter().map(|run| run.len).sum::<u64>(), len);
    for run in runs {
        let end = at + usize::try_from(run.len).unwrap();
        prop_assert!(!run.zero || image[at..end].iter().all(|byte| *byte == 0));
        at = end;
    }
    prop_assert!(disk.status(offset, len, 1).len() == 1);
    Ok(())
}

/// Against the content as it is read, padded to whole blocks.
fn check_digests(runtime: &Runtime, disk: &PointDisk) {
    let len = u32::try_from(disk.size_bytes()).unwrap();
    let mut image = joined(runtime.block_on(disk.read(0, len)).unwrap());
    image.resize(image.len().next_multiple_of(BLOCK_BYTES), 0);
    // The file may hold more in the last block than the disk has; that is part of the block.
    let digest = |bytes: &[u8]| match bytes.iter().all(|byte| *byte == 0) {
        true => [0; 16],
        false => BlockDigest::of(bytes).0,
    };
    let chunk_bytes = BLOCK_BYTES * usize::try_from(CHUNK_BLOCKS).unwrap();
    let expected: Vec<_> = image.chunks(chunk_bytes).map(digest).collect();
    let collect = |stream: lifeboat_volume::DigestStream| {
        runtime.block_on(stream.try_collect::<Vec<_>>()).unwrap().concat()
    };
    let count = usize::try_from(chunk_count(disk)).unwrap();
    assert_eq!(count, expected.len());
    let full = count - 1;
    assert!(collect(chunk_digests(disk, 0, full as u64)) == expected[..full].concat());
    assert!(collect(chunk_digests(disk, 2, 1)) == expected[2]);
    assert_eq!(collect(chunk_digests(disk, 0, u64::MAX)).len(), 16 * count, "cut at the end of the disk");
    let blocks: Vec<_> = image.chunks(BLOCK_BYTES).map(digest).collect();
    let per_chunk = usize::try_from(CHUNK_BLOCKS).unwrap();
    let expected = [&blocks[3 * per_chunk..4 * per_chunk], &blocks[..per_chunk]].concat().concat();
    assert!(collect(block_digests(disk, vec![3, 0, 1 << 40])) == expected);
}

#[test]
fn a_disk_that_shrank_and_grew_again_has_zeroes_where_it_was_cut() {
    let runtime = Runtime::new().unwrap();
    let mut site = Site::new(100 * 4096);
    site.add(1, 0, &[Change::Data(Extent { first: 0, blocks: 100 }, 1)]);
    site.source.disk_bytes = 50 * 4096;
    site.add(2, 0, &[Change::Data(Extent { first: 10, blocks: 1 }, 2)]);
    site.source.disk_bytes = 100 * 4096;
    site.add(3, 0, &[Change::Data(Extent { first: 90, blocks: 2 }, 3)]);
    site.image[50 * 4096..90 * 4096].fill(0);
    site.image[92 * 4096..].fill(0);
    let disk = runtime.block_on(site.open(1 << 20, true));
    assert!(joined(runtime.block_on(disk.read(0, 100 * 4096)).unwrap()) == site.image);
}

#[test]
fn readers_of_one_frame_share_its_decoding_and_the_cache_keeps_its_bound() {
    let runtime = Runtime::new().unwrap();
    let site = grown(32 << 20, 0);
    runtime.block_on(async {
        let cache = FrameCache::new(4 << 20);
        let disk =
            PointDisk::open(site.source.clone(), site.objects(true), Arc::clone(&cache)).await.unwrap();
        let disks: Vec<_> = (0..64).map(|_| disk.clone()).collect();
        let readers = disks.iter().enumerate().map(|(at, disk)| disk.read(at as u64 * 4096, 4096));
        futures::future::try_join_all(readers).await.unwrap();
        assert_eq!(cache.figures().misses, 1, "64 readers of one frame decode it once");
        let second =
            PointDisk::open(site.source.clone(), site.objects(true), Arc::clone(&cache)).await.unwrap();
        second.read(0, 4096).await.unwrap();
        assert_eq!(cache.figures().misses, 1, "another volume of the same file finds it");
        for at in 0..32 {
            disk.read(at << 20, 1 << 20).await.unwrap();
            assert!(cache.figures().bytes <= 4 << 20, "{:?}", cache.figures());
        }
    });
}

fn refused(site: &Site) -> Arc<VolumeError> {
    let runtime = Runtime::new().unwrap();
    let both = [true, false].map(|direct| {
        runtime.block_on(async {
            PointDisk::open(site.source.clone(), site.objects(direct), FrameCache::new(0))
                .await
                .err()
                .unwrap()
        })
    });
    let texts = both.clone().map(|error| error.to_string());
    for text in &texts {
        assert!(text.contains("disk/2-0.hrl") || text.contains("epoch"), "the file is named: {text}");
    }
    let [first, _] = both;
    first
}

#[test]
fn a_missing_file_is_named() {
    let site = grown(4 << 20, 3);
    fs::remove_file(site.path("disk/2-0.hrl")).unwrap();
    assert!(matches!(*refused(&site), VolumeError::Missing { .. }));
}

#[test]
fn a_file_that_was_cut_or_lengthened_is_named() {
    let site = grown(4 << 20, 3);
    let path = site.path("disk/2-0.hrl");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert!(matches!(*refused(&site), VolumeError::Length { .. }));
    fs::write(&path, [bytes.as_slice(), b"x"].concat()).unwrap();
    assert!(matches!(*refused(&site), VolumeError::Length { .. }));
}

#[test]
fn another_epochs_file_in_its_place_is_named_with_both_identities() {
    let mut site = grown(4 << 20, 3);
    fs::copy(site.path("disk/3-0.hrl"), site.path("disk/2-0.hrl")).unwrap();
    // A catalog that was led astray in the same way.
    site.source.files[2].bytes = site.source.files[3].bytes;
    site.source.files[2].digest = site.source.files[3].digest;
    let error = refused(&site).to_string();
    assert!(error.contains("epoch 3, part 0, expected was") && error.contains("epoch 2, part 0"), "{error}");
}

#[test]
fn another_file_for_the_same_epoch_is_refused() {
    let mut site = grown(4 << 20, 3);
    let changes = [Change::Data(Extent { first: 1, blocks: 3 }, 77)];
    let other = site.write(2, 0, &changes, "disk/2-0.hrl");
    site.source.files[2].bytes = other.bytes;
    assert!(matches!(*refused(&site), VolumeError::Digest { .. }));
}

#[test]
fn a_file_under_an_unknown_key_is_refused() {
    let mut site = grown(4 << 20, 3);
    site.source.keys.pop();
    let runtime = Runtime::new().unwrap();
    let opened = runtime.block_on(async {
        PointDisk::open(site.source.clone(), site.objects(true), FrameCache::new(0)).await
    });
    assert!(matches!(*opened.err().unwrap(), VolumeError::NoKey { .. }));
}

#[test]
fn a_damaged_footer_or_index_is_refused_when_the_disk_is_opened() {
    let site = grown(4 << 20, 3);
    let path = site.path("disk/2-0.hrl");
    let bytes = fs::read(&path).unwrap();
    for from_end in [1, 100, 200, 250, 300] {
        let mut damaged = bytes.clone();
        let at = damaged.len() - from_end;
        damaged[at] ^= 1;
        fs::write(&path, damaged).unwrap();
        assert!(matches!(*refused(&site), VolumeError::File(_)), "{from_end} from the end");
    }
}

#[test]
fn a_damaged_frame_gives_no_data_and_the_rest_stays_readable() {
    let runtime = Runtime::new().unwrap();
    let mut site = Site::new(4 << 20);
    site.add(1, 0, &[Change::Data(Extent { first: 0, blocks: 1024 }, 1)]);
    let path = site.path("disk/1-0.hrl");
    let mut bytes = fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    fs::write(&path, &bytes).unwrap();
    for direct in [true, false] {
        let disk = runtime.block_on(site.open(8 << 20, direct));
        for _ in 0..2 {
            let error = runtime.block_on(disk.read(4096, 4096)).unwrap_err();
            let VolumeError::File(refusal) = &*error else { panic!("{error}") };
            assert!(matches!(refusal.problem, Problem::NotAuthentic(Piece::Frame(0, _))), "{error}");
            assert!(error.to_string().starts_with("disk/1-0.hrl, byte 128: frame 0"), "{error}");
        }
        let rest = runtime.block_on(disk.read(64 * 4096, 4096)).unwrap();
        assert!(joined(rest) == content(Extent { first: 64, blocks: 1 }, 1));
        assert!(runtime.block_on(chunk_digests(&disk, 0, 1).try_collect::<Vec<_>>()).is_err());
        // Put right, it is read again: the failure was not kept.
        bytes[1000] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(joined(runtime.block_on(disk.read(0, 4096)).unwrap()) == site.image[..4096]);
        bytes[1000] ^= 1;
        fs::write(&path, &bytes).unwrap();
    }
}

#[test]
fn a_list_of_files_with_a_gap_is_refused() {
    let runtime = Runtime::new().unwrap();
    let site = grown(4 << 20, 3);
    let open = |source| {
        runtime
            .block_on(async { PointDisk::open(source, site.objects(true), FrameCache::new(0)).await.err() })
    };
    for gap in [0, 1] {
        let mut source = site.source.clone();
        // Epoch 1 gets a third part, so that the second one can be missed.
        source.files.insert(2, lifeboat_volume::FileSource { part: Part(2), ..source.files[1].clone() });
        source.files.remove(gap);
        let error = open(source).unwrap();
        let missed = Part(u32::try_from(gap).unwrap());
        assert!(matches!(*error, VolumeError::Gap { epoch: Epoch(1), part } if part == missed), "{error}");
    }
    let mut source = site.source.clone();
    source.files.swap(2, 3);
    assert!(matches!(*open(source).unwrap(), VolumeError::OutOfOrder { .. }));
    let mut source = site.source.clone();
    source.files.clear();
    assert!(open(source).is_none(), "a disk that was never written is zeroes");
    let mut source = site.source.clone();
    source.files.remove(3);
    assert!(open(source).is_none(), "an epoch without a file is one in which nothing changed");
}
