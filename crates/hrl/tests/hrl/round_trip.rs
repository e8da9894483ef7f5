use std::io::Cursor;

use lifeboat_hrl::{FileId, FileVerifier, Footer, FrameSealer, Writer, verify_file, verify_file_with_key};
use lifeboat_model::{BLOCK_BYTES, Extent};
use proptest::prelude::*;

use crate::fixture::{Change, blocks, extent, identity, key, model, open_index, read, seal, write};

const DISK_BLOCKS: u64 = 200;

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let one = (0..DISK_BLOCKS, 1u64..=64, 1u64..=DISK_BLOCKS, any::<u32>(), 0u8..3).prop_map(
        |(first, data_blocks, zero_blocks, seed, kind)| {
            let cut = |blocks: u64| Extent { first, blocks: blocks.min(DISK_BLOCKS - first) };
            if kind == 0 {
                return Change::Zeroes(cut(zero_blocks));
            }
            let extent = cut(data_blocks);
            Change::Data(extent, blocks(seed, extent.blocks, kind == 1))
        },
    );
    prop::collection::vec(one, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn what_is_read_is_what_was_written_the_later_over_the_earlier(changes in changes()) {
        let file = write(identity(DISK_BLOCKS), FileId([1; 16]), &changes);
        prop_assert!(read(&file, &key()).unwrap() == model(DISK_BLOCKS, &changes));
        let by_key = verify_file_with_key(Cursor::new(&file), &key()).unwrap();
        prop_assert_eq!(verify_file(file.as_slice()).unwrap(), by_key);
    }

    #[test]
    fn the_verifier_takes_pieces_of_any_size(
        sizes in prop::collection::vec(prop_oneof![1usize..700, 1usize..100_000], 1..20),
    ) {
        // Longer than what the verifier gathers.
        let changes = [Change::Data(extent(3, 40), blocks(1, 40, true)), Change::Zeroes(extent(49, 9))];
        let file = write(identity(DISK_BLOCKS), FileId([1; 16]), &changes);
        let mut verifier = FileVerifier::new();
        let mut rest = file.as_slice();
        for size in sizes.iter().cycle() {
            let (piece, tail) = rest.split_at((*size).min(rest.len()));
            verifier.update(piece).unwrap();
            rest = tail;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(verifier.finish().unwrap(), verify_file(file.as_slice()).unwrap());
    }
}

#[test]
fn a_file_without_changes_is_a_file() {
    let file = write(identity(DISK_BLOCKS), FileId([1; 16]), &[]);
    assert_eq!(file.len(), 128 + 16 + 256);
    assert!(read(&file, &key()).unwrap().iter().all(Option::is_none));
}

#[test]
fn frames_sealed_on_many_threads_make_the_same_file() {
    let data: Vec<_> = (0..12u32).map(|number| blocks(number, 16, number % 2 == 0)).collect();
    let place = |number: u32| extent(u64::from(number) * 16, 16);
    let changes: Vec<_> = (0..12).map(|n| Change::Data(place(n), data[n as usize].clone())).collect();
    let sequential = write(identity(DISK_BLOCKS), FileId([1; 16]), &changes);

    let sealer = FrameSealer::new(identity(DISK_BLOCKS), FileId([1; 16]), &key(), 1).unwrap();
    let mut frames: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3u32)
            .map(|worker| {
                let (sealer, data) = (sealer.clone(), &data);
                scope.spawn(move || {
                    let mine = (0..12).filter(|number| number % 3 == worker);
                    mine.map(|number| seal(&sealer, number, place(number), &data[number as usize])).collect()
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| -> Vec<_> { worker.join().unwrap() }).collect()
    });
    frames.sort_by_key(lifeboat_hrl::SealedFrame::number);
    let mut writer = Writer::new(Vec::new(), &sealer).unwrap();
    frames.into_iter().for_each(|frame| writer.append(frame).unwrap());
    assert_eq!(writer.finish().unwrap().0, sequential);
}

#[test]
fn the_summary_counts_what_was_written() {
    let sealer = FrameSealer::new(identity(DISK_BLOCKS), FileId([1; 16]), &key(), 1).unwrap();
    let mut writer = Writer::new(Vec::new(), &sealer).unwrap();
    writer.zeroes(extent(0, 10)).unwrap();
    writer.zeroes(extent(10, 10)).unwrap();
    writer.append(seal(&sealer, 0, extent(20, 2), &blocks(1, 2, true))).unwrap();
    writer.append(seal(&sealer, 1, extent(20, 3), &blocks(2, 3, false))).unwrap();
    writer.zeroes(extent(90, 5)).unwrap();
    let (file, summary) = writer.finish().unwrap();
    assert_eq!((summary.frames, summary.data_blocks), (2, 5));
    assert_eq!(summary.plain_bytes, 5 * BLOCK_BYTES as u64);
    assert_eq!((summary.zero_extents, summary.zero_blocks), (2, 25), "extents that touch are one");
    let footer = Footer::parse(&file, file.len() as u64).unwrap();
    assert_eq!(footer.summary(), summary);
    let frames = open_index(&file, &footer, &key()).unwrap();
    assert!(!frames.frame(0).unwrap().1.compressed && frames.frame(1).unwrap().1.compressed);
    let text = serde_json::to_string(&summary).unwrap();
    assert_eq!(serde_json::from_str::<lifeboat_hrl::FileSummary>(&text).unwrap(), summary);
}

#[test]
fn zero_extents_may_be_as_long_as_the_disk() {
    let mut wide = identity(1);
    wide.disk_bytes = u64::MAX;
    let whole = extent(0, wide.disk_blocks());
    let file = write(wide, FileId([1; 16]), &[Change::Zeroes(whole), Change::Zeroes(extent(5, 1))]);
    let footer = Footer::parse(&file, file.len() as u64).unwrap();
    let effective = open_index(&file, &footer, &key()).unwrap().effective();
    assert_eq!(effective.len(), 1);
    assert_eq!(effective[0].extent, whole);
}
