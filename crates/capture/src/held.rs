//! Blocks in memory: what was read around a point, until it is known to be part of it.

use std::collections::HashMap;

use bytes::BytesMut;
use lifeboat_model::{BLOCK_BYTES, DiskNumber, Extent, FRAME_BLOCKS};

use crate::capture::Extents;
use crate::engine::lock_in_memory;
use crate::frame::{Emitted, emit};
use crate::{ChangeSink, SinkClosed};

/// Blocks of one piece of memory.
const PIECE_BLOCKS: usize = 256;

/// The newest content of a bounded number of blocks.
pub(crate) struct Held {
    places: HashMap<(DiskNumber, u64), usize>,
    pieces: Vec<Box<[u8]>>,
    blocks_max: usize,
}

impl Held {
    pub fn new(bytes_max: usize) -> Self {
        let pieces_max = (bytes_max / (PIECE_BLOCKS * BLOCK_BYTES)).max(1);
        Self { places: HashMap::new(), pieces: Vec::new(), blocks_max: pieces_max * PIECE_BLOCKS }
    }

    pub fn blocks_max(&self) -> u64 {
        self.blocks_max as u64
    }

    pub fn len(&self) -> u64 {
        self.places.len() as u64
    }

    pub fn room(&self) -> u64 {
        self.blocks_max() - self.len()
    }

    /// Makes room for `blocks` more, in memory that is there now and stays there.
    pub fn prepare(&mut self, blocks: usize) {
        self.places.reserve(blocks);
        let wanted = (self.places.len() + blocks).min(self.blocks_max).div_ceil(PIECE_BLOCKS);
        while self.pieces.len() < wanted {
            self.pieces.push(vec![0; PIECE_BLOCKS * BLOCK_BYTES].into());
        }
        self.pieces.iter().for_each(|piece| lock_in_memory(piece));
    }

    /// Keeps the content of an extent, in place of what was kept of its blocks before. Whether
    /// there was room for all of it.
    #[must_use]
    pub fn insert(&mut self, disk: DiskNumber, extent: Extent, bytes: &[u8]) -> bool {
        for (block, content) in (extent.first..extent.end()).zip(bytes.chunks_exact(BLOCK_BYTES)) {
            let next = self.places.len();
            let known = self.places.get(&(disk, block)).copied();
            if known.is_none() && next == self.blocks_max {
                return false;
            }
            let place = known.unwrap_or(next);
            if known.is_none() {
                self.places.insert((disk, block), next);
                if next / PIECE_BLOCKS == self.pieces.len() {
                    self.pieces.push(vec![0; PIECE_BLOCKS * BLOCK_BYTES].into());
                }
            }
            let at = place % PIECE_BLOCKS * BLOCK_BYTES;
            self.pieces[place / PIECE_BLOCKS][at..at + BLOCK_BYTES].copy_from_slice(content);
        }
        true
    }

    /// The held blocks as extents inside of frames, in order.
    pub fn extents(&self) -> Extents {
        let mut keys: Vec<_> = self.places.keys().copied().collect();
        keys.sort_unstable();
        let mut extents: Extents = Vec::new();
        for (disk, block) in keys {
            match extents.last_mut() {
                Some((last, extent))
                    if *last == disk && extent.end() == block && !block.is_multiple_of(FRAME_BLOCKS) =>
                {
                    extent.blocks += 1;
                }
                _ => extents.push((disk, Extent { first: block, blocks: 1 })),
            }
        }
        extents
    }

    /// Hands all blocks to the sink and forgets them. When the sink closes they stay held.
    pub fn emit_all(&mut self, sink: &mut dyn ChangeSink) -> Result<Emitted, SinkClosed> {
        let mut total = Emitted::default();
        let mut frame = BytesMut::new();
        for (disk, extent) in self.extents() {
            frame.clear();
            for block in extent.first..extent.end() {
                frame.extend_from_slice(self.block(disk, block));
            }
            let emitted = emit(sink, disk, extent, &frame, true)?;
            total.data_blocks += emitted.data_blocks;
            total.zero_blocks += emitted.zero_blocks;
        }
        self.clear();
        Ok(total)
    }

    /// Forgets all blocks; the memory stays.
    pub fn clear(&mut self) {
        self.places.clear();
    }

    fn block(&self, disk: DiskNumber, block: u64) -> &[u8] {
        let place = self.places.get(&(disk, block)).copied().unwrap_or_default();
        let at = place % PIECE_BLOCKS * BLOCK_BYTES;
        &self.pieces[place / PIECE_BLOCKS][at..at + BLOCK_BYTES]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "small numbers of a test")]

    use bytes::Bytes;
    use lifeboat_model::Digest;

    use super::*;

    #[derive(Default)]
    struct Log(Vec<(u16, u64, u64, u8)>);

    impl ChangeSink for Log {
        fn data(&mut self, disk: DiskNumber, at: Extent, _: Digest, bytes: Bytes) -> Result<(), SinkClosed> {
            self.0.push((disk.0, at.first, at.blocks, bytes[0]));
            Ok(())
        }

        fn zeroes(&mut self, disk: DiskNumber, at: Extent) -> Result<(), SinkClosed> {
            self.0.push((disk.0, at.first, at.blocks, 0));
            Ok(())
        }
    }

    fn put(held: &mut Held, disk: u16, first: u64, blocks: u64, content: u8) -> bool {
        let extent = Extent { first, blocks };
        held.insert(DiskNumber(disk), extent, &vec![content; extent.len_bytes() as usize])
    }

    #[test]
    fn the_newest_content_of_each_block_is_sent_once_in_frames() {
        let mut held = Held::new(4 << 20);
        assert!(put(&mut held, 1, 62, 4, 1));
        assert!(put(&mut held, 0, 5, 1, 2));
        assert!(put(&mut held, 1, 64, 1, 3));
        assert!(put(&mut held, 1, 200, 1, 0));
        assert_eq!(held.len(), 6);
        let mut log = Log::default();
        held.emit_all(&mut log).unwrap();
        assert_eq!(log.0, [(0, 5, 1, 2), (1, 62, 2, 1), (1, 64, 2, 3), (1, 200, 1, 0)]);
        assert_eq!(held.len(), 0);
    }

    #[test]
    fn it_holds_no_more_than_its_bound() {
        let mut held = Held::new(1 << 20);
        assert!(put(&mut held, 0, 0, 256, 1));
        assert!(put(&mut held, 0, 100, 10, 2), "blocks that are held already need no room");
        assert!(!put(&mut held, 0, 256, 1, 3));
        assert_eq!((held.len(), held.room()), (256, 0));
    }
}
