//! What remains of entries that override each other.

use std::collections::BinaryHeap;

use lifeboat_model::Extent;

use super::{Content, Covered, Entry, Source};

/// Sweeps over the disk once; at every block the latest entry that covers it holds.
pub(super) fn effective(entries: &[Entry]) -> Vec<Covered> {
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by_key(|&place| entries[place].extent.first);
    let mut arrivals = order.into_iter().peekable();
    let mut covered: Vec<Covered> = Vec::with_capacity(entries.len());
    // The entries that have begun, the latest written on top.
    let mut begun: BinaryHeap<usize> = BinaryHeap::new();
    let mut at = 0;
    loop {
        while let Some(place) = arrivals.next_if(|&place| entries[place].extent.first <= at) {
            begun.push(place);
        }
        while begun.peek().is_some_and(|&place| entries[place].extent.end() <= at) {
            begun.pop();
        }
        let next_first = arrivals.peek().map(|&place| entries[place].extent.first);
        match (begun.peek(), next_first) {
            (Some(&top), _) => {
                let end = entries[top].extent.end().min(next_first.unwrap_or(u64::MAX));
                push(&mut covered, piece(&entries[top], Extent { first: at, blocks: end - at }));
                at = end;
            }
            (None, Some(first)) => at = first,
            (None, None) => return covered,
        }
    }
}

fn piece(entry: &Entry, extent: Extent) -> Covered {
    let source = match entry.content {
        Content::Zeroes => Source::Zeroes,
        Content::Frame(frame) => {
            Source::Frame { number: frame.number, skip_blocks: extent.first - entry.extent.first }
        }
    };
    Covered { extent, source }
}

/// Appends a piece, or lengthens the last one if it only goes on.
fn push(covered: &mut Vec<Covered>, piece: Covered) {
    if let Some(last) = covered.last_mut()
        && last.extent.end() == piece.extent.first
    {
        let goes_on = match (last.source, piece.source) {
            (Source::Zeroes, Source::Zeroes) => true,
            (Source::Frame { number: a, skip_blocks }, Source::Frame { number: b, skip_blocks: skip_b }) => {
                a == b && skip_blocks + last.extent.blocks == skip_b
            }
            _ => false,
        };
        if goes_on {
            last.extent.blocks += piece.extent.blocks;
            return;
        }
    }
    covered.push(piece);
}
