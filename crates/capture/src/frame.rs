//! Cutting what was read into what is sent.

use bytes::Bytes;
use lifeboat_model::{BLOCK_BYTES, Digest, DiskNumber, Extent, FRAME_BLOCKS, FRAME_BYTES};

use crate::{ChangeSink, SinkClosed};

/// Zeroes at the edge of a frame are cut off from this many blocks on; fewer are not worth a
/// message of their own, since they compress to nothing.
const EDGE_BLOCKS_MIN: usize = 8;

static ZEROES: [u8; FRAME_BYTES] = [0; FRAME_BYTES];

/// Whether all bytes are zero. Compares with memory that stays in the cache; ends at the first
/// byte that differs.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(FRAME_BYTES).all(|piece| piece == &ZEROES[..piece.len()])
}

/// Cuts an extent where frames end: at multiples of 64 blocks.
pub(crate) fn frames(extent: Extent) -> impl Iterator<Item = Extent> {
    let end = extent.end();
    let mut first = extent.first;
    std::iter::from_fn(move || {
        let stop = (first - first % FRAME_BLOCKS).saturating_add(FRAME_BLOCKS).min(end);
        let frame = Extent::new(first, stop.checked_sub(first)?)?;
        first = stop;
        Some(frame)
    })
}

/// How a frame is sent: zeroes, data, zeroes; in blocks, any of them perhaps none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Split {
    pub zeroes_before: usize,
    pub data: usize,
    pub zeroes_after: usize,
}

/// Finds the zeroes of a frame that are worth a message of their own.
pub(crate) fn split(bytes: &[u8]) -> Split {
    let blocks = bytes.len() / BLOCK_BYTES;
    let zero = |block: &[u8]| is_zero(block);
    let before = bytes.chunks(BLOCK_BYTES).take_while(|block| zero(block)).count();
    if before == blocks {
        return Split { zeroes_before: blocks, data: 0, zeroes_after: 0 };
    }
    let after = bytes.rchunks(BLOCK_BYTES).take_while(|block| zero(block)).count();
    let worth = |run: usize| if run >= EDGE_BLOCKS_MIN { run } else { 0 };
    let (before, after) = (worth(before), worth(after));
    Split { zeroes_before: before, data: blocks - before - after, zeroes_after: after }
}

/// How many blocks were handed to a sink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Emitted {
    pub data_blocks: u64,
    pub zero_blocks: u64,
}

/// Hands one frame to the sink; its zeroes only when `send_zeroes`.
pub(crate) fn emit(
    sink: &mut dyn ChangeSink,
    disk: DiskNumber,
    extent: Extent,
    bytes: &[u8],
    send_zeroes: bool,
) -> Result<Emitted, SinkClosed> {
    let Split { zeroes_before, data, zeroes_after } = split(bytes);
    let mut emitted = Emitted::default();
    let mut first = extent.first;
    for (blocks, is_data) in [(zeroes_before, false), (data, true), (zeroes_after, false)] {
        let Some(piece) = Extent::new(first, blocks as u64) else { continue };
        if is_data {
            let start = zeroes_before * BLOCK_BYTES;
            let content = &bytes[start..start + blocks * BLOCK_BYTES];
            sink.data(disk, piece, Digest::of(content), Bytes::copy_from_slice(content))?;
            emitted.data_blocks += piece.blocks;
        } else {
            if send_zeroes {
                sink.zeroes(disk, piece)?;
            }
            emitted.zero_blocks += piece.blocks;
        }
        first = piece.end();
    }
    Ok(emitted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Image(Vec<Option<u8>>);

    impl ChangeSink for Image {
        fn data(
            &mut self,
            _: DiskNumber,
            at: Extent,
            digest: Digest,
            bytes: Bytes,
        ) -> Result<(), SinkClosed> {
            assert_eq!(digest, Digest::of(&bytes));
            assert_eq!(at.len_bytes(), bytes.len() as u64);
            for (block, content) in (at.first..).zip(bytes.chunks(BLOCK_BYTES)) {
                assert_eq!(self.0[usize::try_from(block).unwrap()].replace(content[17]), None);
            }
            Ok(())
        }

        fn zeroes(&mut self, _: DiskNumber, at: Extent) -> Result<(), SinkClosed> {
            for block in at.first..at.end() {
                assert_eq!(self.0[usize::try_from(block).unwrap()].replace(0), None);
            }
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn every_block_of_a_frame_is_sent_once_as_it_is(
            first in 0u64..64,
            content in prop::collection::vec(prop::sample::select(vec![0u8, 0, 0, 7]), 1..65),
        ) {
            let mut bytes = vec![0; content.len() * BLOCK_BYTES];
            for (block, mark) in bytes.chunks_mut(BLOCK_BYTES).zip(&content) {
                block[17] = *mark;
            }
            let extent = Extent { first, blocks: content.len() as u64 };
            let mut image = Image(vec![None; 128]);
            let emitted = emit(&mut image, DiskNumber(0), extent, &bytes, true).unwrap();
            prop_assert_eq!(emitted.data_blocks + emitted.zero_blocks, extent.blocks);
            for (block, got) in (0u64..).zip(&image.0) {
                let inside = block.checked_sub(first).and_then(|at| content.get(usize::try_from(at).unwrap()));
                prop_assert_eq!(got.as_ref(), inside);
            }
            prop_assert_eq!(emitted.data_blocks == 0, content.iter().all(|mark| *mark == 0));
        }

        #[test]
        fn frames_cover_an_extent_and_end_at_multiples_of_64(first in 0u64..1000, blocks in 1u64..500) {
            let extent = Extent { first, blocks };
            let cut: Vec<_> = frames(extent).collect();
            prop_assert_eq!(cut[0].first, first);
            prop_assert_eq!(cut.last().unwrap().end(), extent.end());
            for pair in cut.windows(2) {
                prop_assert_eq!(pair[0].end(), pair[1].first);
                prop_assert_eq!(pair[0].end() % 64, 0);
            }
            prop_assert!(cut.iter().all(|frame| (1..=64).contains(&frame.blocks)));
        }

        #[test]
        fn one_byte_makes_it_not_zero(len in 0usize..600_000, at in any::<prop::sample::Index>()) {
            let mut bytes = vec![0; len];
            prop_assert!(is_zero(&bytes));
            if len > 0 {
                bytes[at.index(len)] = 1;
                prop_assert!(!is_zero(&bytes));
            }
        }
    }

    #[test]
    fn short_zero_edges_stay_in_the_data() {
        let mut bytes = vec![0; 20 * BLOCK_BYTES];
        bytes[7 * BLOCK_BYTES] = 1;
        assert_eq!(split(&bytes), Split { zeroes_before: 0, data: 8, zeroes_after: 12 });
    }
}
