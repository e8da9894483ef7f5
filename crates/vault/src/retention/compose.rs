//! What files of successive epochs say together about the blocks that they hold. Pure.

use std::collections::BinaryHeap;

use lifeboat_hrl::{Covered, Source};
use lifeboat_model::Extent;

/// What one file says.
#[derive(Debug)]
pub(crate) struct Layer {
    /// In block order, without overlaps.
    pub covered: Vec<Covered>,
    /// Blocks of the disk at the file's last epoch. What older files have beyond is gone.
    pub disk_blocks: u64,
}

/// Where the content of blocks is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Zeroes,
    Frame { file: usize, number: u32, skip_blocks: u64 },
}

/// Blocks with one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub extent: Extent,
    pub place: Place,
}

struct Arrival {
    extent: Extent,
    place: Place,
}

/// Lays the files over each other, the oldest first; later ones hold where they overlap. In block
/// order; blocks that no file has are left out.
///
/// When the disk was smaller in between, what it lost then is zeroes: older files must not show
/// through there.
pub(crate) fn compose(layers: &[Layer]) -> Vec<Piece> {
    let disk_blocks = layers.last().map_or(0, |layer| layer.disk_blocks);
    let mut arrivals = Vec::new();
    let mut limit = u64::MAX;
    for (file, layer) in layers.iter().enumerate().rev() {
        limit = limit.min(layer.disk_blocks);
        for covered in &layer.covered {
            let first = covered.extent.first;
            let end = covered.extent.end().min(limit);
            let Some(extent) = end.checked_sub(first).and_then(|blocks| Extent::new(first, blocks)) else {
                continue;
            };
            let place = match covered.source {
                Source::Zeroes => Place::Zeroes,
                Source::Frame { number, skip_blocks } => Place::Frame { file, number, skip_blocks },
            };
            arrivals.push((file + 1, Arrival { extent, place }));
        }
    }
    if let Some(extent) = disk_blocks.checked_sub(limit).and_then(|blocks| Extent::new(limit, blocks)) {
        arrivals.push((0, Arrival { extent, place: Place::Zeroes }));
    }
    arrivals.sort_by_key(|(_, arrival)| arrival.extent.first);
    sweep(&arrivals)
}

/// Goes over the disk once; at every block the newest file that has it holds.
fn sweep(arrivals: &[(usize, Arrival)]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut waiting = arrivals.iter().enumerate().peekable();
    // What has begun, the newest file's on top: its height, its place in `arrivals`.
    let mut begun: BinaryHeap<(usize, usize)> = BinaryHeap::new();
    let mut at = 0;
    loop {
        while let Some((place, (height, _))) = waiting.next_if(|(_, (_, arrival))| arrival.extent.first <= at)
        {
            begun.push((*height, place));
        }
        while begun.peek().is_some_and(|(_, place)| arrivals[*place].1.extent.end() <= at) {
            begun.pop();
        }
        let next = waiting.peek().map(|(_, (_, arrival))| arrival.extent.first);
        match (begun.peek(), next) {
            (Some((_, place)), _) => {
                let top = &arrivals[*place].1;
                let end = top.extent.end().min(next.unwrap_or(u64::MAX));
                push(&mut pieces, cut(top, Extent { first: at, blocks: end - at }));
                at = end;
            }
            (None, Some(first)) => at = first,
            (None, None) => return pieces,
        }
    }
}

fn cut(arrival: &Arrival, extent: Extent) -> Piece {
    let place = match arrival.place {
        Place::Zeroes => Place::Zeroes,
        Place::Frame { file, number, skip_blocks } => {
            Place::Frame { file, number, skip_blocks: skip_blocks + extent.first - arrival.extent.first }
        }
    };
    Piece { extent, place }
}

/// Appends a piece, or lengthens the last one if it only goes on.
fn push(pieces: &mut Vec<Piece>, piece: Piece) {
    if let Some(last) = pieces.last_mut()
        && last.extent.end() == piece.extent.first
    {
        let goes_on = match (last.place, piece.place) {
            (Place::Zeroes, Place::Zeroes) => true,
            (
                Place::Frame { file, number, skip_blocks },
                Place::Frame { file: next_file, number: next_number, skip_blocks: next_skip },
            ) => (file, number, skip_blocks + last.extent.blocks) == (next_file, next_number, next_skip),
            _ => false,
        };
        if goes_on {
            last.extent.blocks += piece.extent.blocks;
            return;
        }
    }
    pieces.push(piece);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layers() -> impl Strategy<Value = Vec<Layer>> {
        let layer = (prop::collection::vec((0u64..20, 1u64..9, any::<bool>()), 0..5), 1u64..60);
        prop::collection::vec(layer, 1..6).prop_map(|layers| {
            layers
                .into_iter()
                .map(|(entries, disk_blocks)| {
                    let mut at = 0;
                    let mut covered = Vec::new();
                    for (number, (gap, blocks, zero)) in (0..).zip(entries) {
                        let extent = Extent { first: at + gap, blocks };
                        at = extent.end();
                        if extent.end() <= disk_blocks {
                            let source =
                                if zero { Source::Zeroes } else { Source::Frame { number, skip_blocks: 0 } };
                            covered.push(Covered { extent, source });
                        }
                    }
                    Layer { covered, disk_blocks }
                })
                .collect()
        })
    }

    /// Block by block: nothing said, zeroes, or file, frame and block of it.
    type Blocks = Vec<Option<Option<(usize, u32, u64)>>>;

    fn model(layers: &[Layer]) -> Blocks {
        let mut blocks: Blocks = vec![None; 60];
        for (file, layer) in layers.iter().enumerate() {
            let end = usize::try_from(layer.disk_blocks).unwrap();
            blocks[end..].fill(Some(None));
            for covered in &layer.covered {
                for block in covered.extent.first..covered.extent.end() {
                    blocks[usize::try_from(block).unwrap()] = Some(match covered.source {
                        Source::Zeroes => None,
                        Source::Frame { number, skip_blocks } => {
                            Some((file, number, skip_blocks + block - covered.extent.first))
                        }
                    });
                }
            }
        }
        blocks.truncate(usize::try_from(layers.last().unwrap().disk_blocks).unwrap());
        blocks
    }

    proptest! {
        #[test]
        fn pieces_are_what_applying_file_by_file_leaves(layers in layers()) {
            let pieces = compose(&layers);
            let expected = model(&layers);
            let mut found: Blocks = vec![None; expected.len()];
            for pair in pieces.windows(2) {
                prop_assert!(pair[0].extent.end() <= pair[1].extent.first);
            }
            for piece in pieces {
                for (step, block) in (piece.extent.first..piece.extent.end()).enumerate() {
                    found[usize::try_from(block).unwrap()] = Some(match piece.place {
                        Place::Zeroes => None,
                        Place::Frame { file, number, skip_blocks } => Some((file, number, skip_blocks + step as u64)),
                    });
                }
            }
            prop_assert_eq!(found, expected);
        }
    }
}
