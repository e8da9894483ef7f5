use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::layout::REGION_BLOCKS;

struct Owned {
    words: Vec<AtomicU64>,
    layout: Layout,
}

impl Owned {
    fn new(blocks: u64) -> Self {
        let layout = Layout::new(blocks).unwrap();
        Self { words: (0..layout.words()).map(|_| AtomicU64::new(0)).collect(), layout }
    }

    fn map(&self) -> Bitmap<'_> {
        Bitmap::new(&self.words, self.layout)
    }

    fn blocks(&self) -> BTreeSet<u64> {
        collect(|mut report| self.map().visit(&mut report))
    }
}

fn collect(run: impl FnOnce(&mut dyn FnMut(usize, u64))) -> BTreeSet<u64> {
    let mut blocks = BTreeSet::new();
    run(&mut |word, bits| {
        blocks.extend((0..64).filter(|bit| bits >> bit & 1 == 1).map(|bit| word as u64 * 64 + bit));
    });
    blocks
}

fn extent(first: u64, blocks: u64) -> Extent {
    Extent { first, blocks }
}

proptest! {
    #[test]
    fn behaves_like_a_set_of_numbers(
        blocks in 1u64..3 * REGION_BLOCKS,
        steps in prop::collection::vec((any::<bool>(), 0u64..3 * REGION_BLOCKS, 1u64..5000), 0..12),
    ) {
        let bitmap = Owned::new(blocks);
        let mut model = BTreeSet::new();
        for (add, first, len) in steps {
            let range = first..(first + len).min(blocks);
            if add {
                bitmap.map().set(extent(first, len));
                model.extend(range);
            } else {
                bitmap.map().clear(extent(first, len));
                model.retain(|block| !range.contains(block));
            }
            prop_assert_eq!(bitmap.map().any_in(extent(first, len)), add && first < blocks);
        }
        prop_assert_eq!(bitmap.map().count(), model.len() as u64);
        prop_assert_eq!(bitmap.map().any(), !model.is_empty());
        prop_assert_eq!(bitmap.blocks(), model);
    }

    #[test]
    fn a_take_moves_everything(
        blocks in 1u64..3 * REGION_BLOCKS,
        extents in prop::collection::vec((0u64..3 * REGION_BLOCKS, 1u64..5000), 0..8),
        whole: bool,
    ) {
        let (done, taken) = (Owned::new(blocks), Owned::new(blocks));
        for (first, len) in extents {
            done.map().set(extent(first, len));
        }
        if whole {
            done.map().set_all();
        }
        let before = done.blocks();
        let reported = collect(|mut report| {
            let moved = done.map().take(taken.map(), &mut report);
            assert_eq!(moved, before.len() as u64);
        });
        prop_assert_eq!(&reported, &before);
        prop_assert_eq!(taken.blocks(), before);
        prop_assert!(!done.map().any());
        prop_assert!(!done.map().any_in(extent(0, blocks)));
    }
}

#[test]
fn clearing_everything_clears_whole_regions_too() {
    let bitmap = Owned::new(3 * REGION_BLOCKS - 7);
    bitmap.map().set_all();
    assert_eq!(bitmap.map().count(), 3 * REGION_BLOCKS - 7);
    bitmap.map().clear_all();
    assert!(bitmap.words.iter().all(|word| word.load(SeqCst) == 0));
}

/// Cuts a take off after each of its reports, as a kill would, and looks for lost blocks.
#[test]
fn a_take_that_is_cut_short_loses_nothing() {
    let blocks = 3 * REGION_BLOCKS;
    let mut cut_after = 0;
    loop {
        let (done, taken) = (Owned::new(blocks), Owned::new(blocks));
        for first in [5, 70, REGION_BLOCKS - 1, 2 * REGION_BLOCKS + 9] {
            done.map().set(extent(first, 3));
        }
        let before = done.blocks();
        let mut reports = 0;
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            done.map().take(taken.map(), &mut |_, _| {
                reports += 1;
                assert!(reports <= cut_after, "cut off here");
            })
        }));
        done.map().look_again(taken.map());
        let mut found = taken.blocks();
        found.extend(collect(|mut report| {
            done.map().take(taken.map(), &mut report);
        }));
        assert_eq!(found, before, "cut after {cut_after} reports");
        if outcome.is_ok() {
            break;
        }
        cut_after += 1;
    }
    assert!(cut_after >= 5);
}

/// Two threads mark blocks of one word in turn, as the program does, while a third takes.
/// A mark must be reported by one of the two takes that end next: the first may have passed
/// the block already.
#[test]
fn takes_beside_writers_miss_nothing() {
    const ROUNDS: u64 = 10_000;
    let (done, taken) = (Owned::new(2 * REGION_BLOCKS), Owned::new(2 * REGION_BLOCKS));
    let [takes, finished] = [const { AtomicU64::new(0) }; 2];
    let written = [const { AtomicU64::new(0) }; 64];
    let found = [const { AtomicU64::new(0) }; 64];
    std::thread::scope(|scope| {
        for writer in 0..2 {
            let (done, takes, finished, written, found) = (&done, &takes, &finished, &written, &found);
            scope.spawn(move || {
                let own = || (writer..64).step_by(2);
                let mut lost = 0;
                for round in 1..=ROUNDS {
                    for block in own() {
                        // The write completes, then its bit is set.
                        written[block].store(round, SeqCst);
                        done.map().set(extent(block as u64, 1));
                    }
                    let before = takes.load(SeqCst);
                    let missing = || own().any(|block| found[block].load(SeqCst) < round);
                    while missing() && takes.load(SeqCst) < before + 2 {
                        std::hint::spin_loop();
                    }
                    lost += u64::from(missing());
                }
                finished.fetch_add(1, SeqCst);
                assert_eq!(lost, 0, "marks of writer {writer} were lost");
            });
        }
        while finished.load(SeqCst) < 2 {
            done.map().take(taken.map(), &mut |_, bits| {
                for block in (0..64).filter(|block| bits >> block & 1 == 1) {
                    // Read after the bit was taken, and so never older than the mark.
                    found[block].store(written[block].load(SeqCst), SeqCst);
                }
            });
            takes.fetch_add(1, SeqCst);
            std::thread::yield_now();
        }
    });
}
