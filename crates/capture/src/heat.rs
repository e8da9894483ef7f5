//! Which blocks are rewritten again and again.

use std::collections::{BTreeSet, HashMap};

use lifeboat_model::{DiskNumber, Extent};

use crate::capture::Extents;

/// Blocks remembered at most.
const BLOCKS_MAX: usize = 8192;

/// A pass that took more than this says nothing about single blocks.
const PASS_BLOCKS_MAX: u64 = 8192;

/// Written in this many passes in a row, a block is hot.
const HOT_SCORE: u32 = 3;

#[derive(Clone, Copy)]
struct Seen {
    score: u32,
    pass: u64,
}

/// Counts in how many passes a block was taken; passes without it make it forgotten.
pub(crate) struct Heat {
    seen: HashMap<(DiskNumber, u64), Seen>,
    pass: u64,
}

impl Heat {
    pub fn new() -> Self {
        Self { seen: HashMap::with_capacity(BLOCKS_MAX), pass: 0 }
    }

    /// Counts one pass over the changes.
    pub fn pass(&mut self, taken: &[(DiskNumber, Extent)], blocks: u64) {
        self.pass += 1;
        if blocks > PASS_BLOCKS_MAX {
            return;
        }
        let pass = self.pass;
        let each = || {
            taken.iter().flat_map(|(disk, extent)| (extent.first..extent.end()).map(|block| (*disk, block)))
        };
        let mut new = 0;
        for key in each() {
            match self.seen.get_mut(&key) {
                Some(seen) => {
                    seen.score = score(*seen, pass).saturating_add(1);
                    seen.pass = pass;
                }
                None => new += 1,
            }
        }
        if self.seen.len() + new > BLOCKS_MAX {
            self.seen.retain(|_, seen| score(*seen, pass) > 1);
        }
        for key in each() {
            if self.seen.len() >= BLOCKS_MAX {
                break;
            }
            self.seen.entry(key).or_insert(Seen { score: 1, pass });
        }
    }

    /// How often a block was written lately: the worse, the higher.
    pub fn of(&self, disk: DiskNumber, block: u64) -> u32 {
        self.seen.get(&(disk, block)).map_or(0, |seen| score(*seen, self.pass))
    }

    /// The hottest block of an extent.
    pub fn of_extent(&self, disk: DiskNumber, extent: Extent) -> u32 {
        (extent.first..extent.end()).map(|block| self.of(disk, block)).max().unwrap_or(0)
    }

    /// The hot blocks, at most `blocks_max`, the hottest if there are more.
    pub fn hot(&self, blocks_max: usize) -> BTreeSet<(DiskNumber, u64)> {
        let mut hot: Vec<_> = self
            .seen
            .iter()
            .map(|(key, seen)| (score(*seen, self.pass), *key))
            .filter(|(score, _)| *score >= HOT_SCORE)
            .collect();
        hot.sort_unstable_by(|a, b| b.cmp(a));
        hot.into_iter().take(blocks_max).map(|(_, key)| key).collect()
    }

    /// Halves all scores, so that blocks that wait for a point are not called hot for ever.
    pub fn cool(&mut self) {
        self.seen.values_mut().for_each(|seen| seen.score /= 2);
    }
}

fn score(seen: Seen, pass: u64) -> u32 {
    let missed = pass.saturating_sub(seen.pass).saturating_sub(1);
    u32::try_from(missed).ok().and_then(|missed| seen.score.checked_shr(missed)).unwrap_or(0)
}

/// Cuts the blocks in `out` out of extents: what is left, and what was cut out.
pub(crate) fn carve(
    extents: &[(DiskNumber, Extent)],
    out: &BTreeSet<(DiskNumber, u64)>,
) -> (Extents, Extents) {
    let (mut left, mut cut) = (Vec::with_capacity(extents.len()), Vec::new());
    for (disk, extent) in extents {
        let mut first = extent.first;
        for (_, block) in out.range((*disk, extent.first)..(*disk, extent.end())) {
            left.extend(Extent::new(first, block - first).map(|before| (*disk, before)));
            cut.push((*disk, Extent { first: *block, blocks: 1 }));
            first = block + 1;
        }
        left.extend(Extent::new(first, extent.end() - first).map(|rest| (*disk, rest)));
    }
    (left, cut)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DISK: DiskNumber = DiskNumber(0);

    fn one(block: u64) -> (DiskNumber, Extent) {
        (DISK, Extent { first: block, blocks: 1 })
    }

    #[test]
    fn what_is_written_in_every_pass_is_hot_and_cools_down_after() {
        let mut heat = Heat::new();
        for pass in 0..4 {
            heat.pass(&[one(7), one(100 + pass)], 2);
        }
        assert_eq!(heat.hot(10), BTreeSet::from([(DISK, 7)]));
        assert!(heat.of(DISK, 7) > heat.of(DISK, 103));
        for _ in 0..4 {
            heat.pass(&[], 0);
        }
        assert!(heat.hot(10).is_empty());
    }

    #[test]
    fn it_remembers_a_bounded_number_of_blocks() {
        let mut heat = Heat::new();
        for pass in 0..10 {
            heat.pass(&[(DISK, Extent { first: pass * 8000, blocks: 8000 }), one(1 << 40)], 8001);
        }
        assert!(heat.seen.len() <= BLOCKS_MAX);
        assert_eq!(heat.hot(10), BTreeSet::from([(DISK, 1 << 40)]));
    }

    proptest! {
        #[test]
        fn carving_loses_and_doubles_nothing(
            runs in prop::collection::vec((1u64..5, 1u64..80), 0..6),
            out in prop::collection::btree_set(0u64..400, 0..20),
        ) {
            let mut first = 0;
            let extents: Vec<_> = runs.iter().map(|(gap, blocks)| {
                let extent = Extent { first: first + gap, blocks: *blocks };
                first = extent.end();
                (DISK, extent)
            }).collect();
            let out: BTreeSet<_> = out.into_iter().map(|block| (DISK, block)).collect();
            let (left, cut) = carve(&extents, &out);
            let blocks = |list: &[(DiskNumber, Extent)]| -> Vec<u64> {
                list.iter().flat_map(|(_, extent)| extent.first..extent.end()).collect()
            };
            let expected_cut: Vec<_> =
                blocks(&extents).into_iter().filter(|block| out.contains(&(DISK, *block))).collect();
            let expected_left: Vec<_> =
                blocks(&extents).into_iter().filter(|block| !out.contains(&(DISK, *block))).collect();
            prop_assert_eq!(blocks(&cut), expected_cut);
            prop_assert_eq!(blocks(&left), expected_left);
        }
    }
}
