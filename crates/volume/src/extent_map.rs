//! Which frame of which file holds each block of a disk.

use std::collections::BinaryHeap;
use std::ops::Range;

use lifeboat_hrl::{Covered, Source};
use lifeboat_model::Extent;

/// Where the content of blocks is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// They are zeroes: written as such, or never written.
    Zeroes,
    /// In a frame, after so many other blocks of it.
    Frame {
        /// The number of the file, from the oldest.
        file: u32,
        /// The number of the frame in the file.
        frame: u32,
        /// Blocks of the frame that come first.
        skip_blocks: u64,
    },
}

/// Blocks with one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The blocks.
    pub extent: Extent,
    /// Where their content is.
    pub place: Place,
}

/// What one file adds to a map.
pub struct Layer {
    /// In block order, without overlaps.
    pub covered: Vec<Covered>,
    /// Blocks of the disk at the file's last epoch. What older files have beyond is gone.
    pub disk_blocks: u64,
}

/// The blocks from `first` to the next piece's `first`. 24 bytes; a large disk has millions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    first: u64,
    file: u32,
    frame: u32,
    skip_blocks: u8,
}

const ZEROES: u32 = u32::MAX;
/// Extents from which on more threads are worth their start.
const PARALLEL_FROM: usize = 50_000;
const THREADS_MAX: usize = 8;

/// Which frame of which file holds each block of a disk: sorted pieces that cover all of it.
#[derive(Debug)]
pub struct ExtentMap {
    pieces: Vec<Piece>,
    disk_blocks: u64,
}

/// An extent of a file, with all that the sweep needs.
#[derive(Clone, Copy)]
struct Arrival {
    first: u64,
    end: u64,
    file: u32,
    frame: u32,
    skip_blocks: u8,
}

impl ExtentMap {
    /// Lays the files over each other, the oldest first; later ones hold where they overlap. Large
    /// maps are made by several threads, each of which takes a part of the disk.
    #[must_use]
    pub fn new(layers: &[Layer], disk_blocks: u64) -> Self {
        let count: usize = layers.iter().map(|layer| layer.covered.len()).sum();
        let threads = match count {
            0..PARALLEL_FROM => 1,
            _ => std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX),
        };
        let step = disk_blocks.div_ceil(threads as u64).max(1);
        let parts: Vec<Range<u64>> = (0..threads as u64)
            .map(|part| (part * step).min(disk_blocks)..((part + 1) * step).min(disk_blocks))
            .collect();
        let swept: Vec<Vec<Piece>> = match parts.as_slice() {
            [all] => vec![sweep(&arrivals(layers, all), all)],
            parts => std::thread::scope(|scope| {
                let sweep_part = |part: &Range<u64>| sweep(&arrivals(layers, part), part);
                let spawned: Vec<_> =
                    parts.iter().map(|part| (part, scope.spawn(move || sweep_part(part)))).collect();
                // A panic of a thread would come again here, where it is caught as one of this thread.
                spawned
                    .into_iter()
                    .map(|(part, thread)| thread.join().unwrap_or_else(|_| sweep_part(part)))
                    .collect()
            }),
        };
        let total = swept.iter().map(Vec::len).sum::<usize>();
        let mut swept = swept.into_iter();
        let mut pieces = swept.next().unwrap_or_default();
        pieces.reserve_exact(total - pieces.len());
        swept.flatten().for_each(|piece| push(&mut pieces, piece));
        Self { pieces, disk_blocks }
    }

    /// Blocks of the disk.
    #[must_use]
    pub const fn disk_blocks(&self) -> u64 {
        self.disk_blocks
    }

    /// About how much memory it holds.
    #[must_use]
    pub const fn memory_bytes(&self) -> usize {
        self.pieces.capacity() * size_of::<Piece>()
    }

    /// How many runs of blocks it distinguishes.
    #[must_use]
    pub const fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// What is in the blocks of `extent`, in order and without gaps, as far as the disk reaches.
    pub fn spans(&self, extent: Extent) -> impl Iterator<Item = Span> + '_ {
        let end = extent.end().min(self.disk_blocks);
        let mut at = extent.first;
        let mut next = self.pieces.partition_point(|piece| piece.first <= at);
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let piece = self.pieces[next - 1];
            let piece_end = self.pieces.get(next).map_or(self.disk_blocks, |piece| piece.first);
            let blocks = piece_end.min(end) - at;
            let place = match piece.file {
                ZEROES => Place::Zeroes,
                file => Place::Frame {
                    file,
                    frame: piece.frame,
                    skip_blocks: u64::from(piece.skip_blocks) + (at - piece.first),
                },
            };
            let span = Span { extent: Extent { first: at, blocks }, place };
            at += blocks;
            next += 1;
            Some(span)
        })
    }

    /// How many blocks are in frames.
    #[must_use]
    pub fn data_blocks(&self) -> u64 {
        let all = Extent { first: 0, blocks: self.disk_blocks };
        self.spans(all).filter(|span| span.place != Place::Zeroes).map(|span| span.extent.blocks).sum()
    }

    /// The first block from `from` on that is in a frame.
    #[must_use]
    pub fn next_data(&self, from: u64) -> Option<u64> {
        let rest = Extent::new(from, self.disk_blocks.checked_sub(from)?)?;
        self.spans(rest).find(|span| span.place != Place::Zeroes).map(|span| span.extent.first)
    }
}

/// What the files have in a part of the disk, by first block.
fn arrivals(layers: &[Layer], part: &Range<u64>) -> Vec<Arrival> {
    let within = |layer: &Layer| {
        let first = layer.covered.partition_point(|covered| covered.extent.end() <= part.start);
        let end = layer.covered.partition_point(|covered| covered.extent.first < part.end);
        first..end.max(first)
    };
    let mut arrivals = Vec::with_capacity(layers.iter().map(|layer| within(layer).len()).sum());
    let mut end = part.end;
    for (file, layer) in layers.iter().enumerate().rev() {
        end = end.min(layer.disk_blocks);
        let file = u32::try_from(file).unwrap_or(ZEROES - 1);
        let here = layer.covered[within(layer)].iter();
        arrivals.extend(here.filter_map(|covered| arrival(covered, file, part.start..end)));
    }
    // Stable: what is there already are as many sorted runs as files.
    arrivals.sort_by_key(|arrival| arrival.first);
    arrivals
}

fn arrival(covered: &Covered, file: u32, limits: Range<u64>) -> Option<Arrival> {
    let first = covered.extent.first.max(limits.start);
    let end = covered.extent.end().min(limits.end);
    let (frame, skip_blocks) = match covered.source {
        Source::Zeroes => (ZEROES, 0),
        Source::Frame { number, skip_blocks } => (number, skip_blocks + (first - covered.extent.first)),
    };
    // A frame has at most 64 blocks, which the index checked.
    let skip_blocks = u8::try_from(skip_blocks).ok()?;
    (first < end).then_some(Arrival { first, end, file, frame, skip_blocks })
}

/// Goes over a part of the disk once; at every block the newest file that covers it holds.
fn sweep(arrivals: &[Arrival], part: &Range<u64>) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(arrivals.len() + 1);
    pieces.push(Piece { first: part.start, file: ZEROES, frame: 0, skip_blocks: 0 });
    let mut waiting = arrivals.iter().enumerate().peekable();
    // The extents that have begun, the newest file's on top: file, place in `arrivals`.
    let mut begun: BinaryHeap<(u32, usize)> = BinaryHeap::new();
    let mut at = part.start;
    while at < part.end {
        while let Some((place, arrival)) = waiting.next_if(|(_, arrival)| arrival.first <= at) {
            begun.push((arrival.file, place));
        }
        while begun.peek().is_some_and(|(_, place)| arrivals[*place].end <= at) {
            begun.pop();
        }
        let next_first = waiting.peek().map_or(part.end, |(_, arrival)| arrival.first);
        let Some((_, top)) = begun.peek() else {
            push(&mut pieces, Piece { first: at, file: ZEROES, frame: 0, skip_blocks: 0 });
            at = next_first;
            continue;
        };
        let top = &arrivals[*top];
        let zeroes = top.frame == ZEROES;
        let skipped = u8::try_from(at - top.first).unwrap_or(u8::MAX);
        let piece = if zeroes {
            Piece { first: at, file: ZEROES, frame: 0, skip_blocks: 0 }
        } else {
            Piece { first: at, file: top.file, frame: top.frame, skip_blocks: top.skip_blocks + skipped }
        };
        push(&mut pieces, piece);
        at = top.end.min(next_first);
    }
    pieces
}

/// Appends a piece, unless the last one only goes on.
fn push(pieces: &mut Vec<Piece>, piece: Piece) {
    if let Some(last) = pieces.last_mut() {
        if last.first == piece.first {
            *last = piece;
            return;
        }
        let same = (last.file, last.frame) == (piece.file, piece.frame);
        let step = piece.first - last.first;
        if same
            && (piece.file == ZEROES || u64::from(last.skip_blocks) + step == u64::from(piece.skip_blocks))
        {
            return;
        }
    }
    pieces.push(piece);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Enough extents for several threads, some of them across the borders of their parts.
    #[test]
    fn a_map_made_by_several_threads_is_the_same() {
        const BLOCKS: u64 = 1 << 20;
        let layer = |file: u64| {
            let extent = |number: u64| Extent { first: number * 40, blocks: 1 + (number * 7 + file) % 39 };
            let covered = |number| match number % 5 {
                0 => Covered { extent: extent(number), source: Source::Zeroes },
                _ => Covered {
                    extent: extent(number),
                    source: Source::Frame { number: u32::try_from(number).unwrap(), skip_blocks: file },
                },
            };
            let mut covered: Vec<_> = (file * 100..BLOCKS / 40).step_by(3).map(covered).collect();
            if file == 2 {
                covered
                    .insert(0, Covered { extent: Extent { first: 0, blocks: 3000 }, source: Source::Zeroes });
            }
            Layer { covered, disk_blocks: BLOCKS - file }
        };
        let layers: Vec<_> = (0..8).map(layer).collect();
        assert!(layers.iter().map(|layer| layer.covered.len()).sum::<usize>() > PARALLEL_FROM);
        let made = ExtentMap::new(&layers, BLOCKS);
        let mut alone = Vec::new();
        for piece in sweep(&arrivals(&layers, &(0..BLOCKS)), &(0..BLOCKS)) {
            push(&mut alone, piece);
        }
        assert!(made.pieces == alone);
        assert_eq!(
            made.spans(Extent { first: 0, blocks: BLOCKS }).map(|span| span.extent.blocks).sum::<u64>(),
            BLOCKS
        );
    }
}
