//! What is on a disk: a number for each block, from which its bytes follow.

use std::collections::BTreeSet;

use bytes::Bytes;
use lifeboat_model::{BLOCK_BYTES, BlockDigest, Digest, Extent, FRAME_BLOCKS, blocks_of_bytes};
use lifeboat_wire::agent::{CHUNK_BLOCKS, ZERO_DIGEST};
use lifeboat_wire::stream;
use rand::Rng;
use rand::rngs::StdRng;

/// A disk's content. Block number 0 is zeroes, every other number is written once only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub bytes: u64,
    pub blocks: Vec<u32>,
}

impl Image {
    pub fn new(bytes: u64) -> Self {
        Self { bytes, blocks: vec![0; usize::try_from(blocks_of_bytes(bytes)).unwrap()] }
    }

    pub fn len(&self) -> u64 {
        self.blocks.len() as u64
    }

    pub fn resize(&mut self, bytes: u64) {
        self.bytes = bytes;
        self.blocks.resize(usize::try_from(blocks_of_bytes(bytes)).unwrap(), 0);
    }

    pub fn value(&self, block: u64) -> u32 {
        self.blocks[usize::try_from(block).unwrap()]
    }

    pub fn set(&mut self, block: u64, value: u32) {
        self.blocks[usize::try_from(block).unwrap()] = value;
    }

    /// The bytes of some blocks; beyond the disk's end they are zeroes.
    pub fn content(&self, extent: Extent) -> Vec<u8> {
        let mut content = Vec::with_capacity(usize::try_from(extent.len_bytes()).unwrap());
        for block in extent.first..extent.end() {
            let word = u64::from(self.value(block)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let start = content.len();
            (0..BLOCK_BYTES / 8).for_each(|_| content.extend_from_slice(&word.to_le_bytes()));
            let end_bytes = (block + 1) * BLOCK_BYTES as u64;
            if end_bytes > self.bytes {
                let beyond = usize::try_from(end_bytes - self.bytes).unwrap();
                content[start + BLOCK_BYTES - beyond..].fill(0);
            }
        }
        content
    }

    fn digest(&self, extent: Extent) -> BlockDigest {
        let zero = (extent.first..extent.end()).all(|block| self.value(block) == 0);
        if zero { BlockDigest(ZERO_DIGEST) } else { BlockDigest::of(&self.content(extent)) }
    }

    pub fn chunk(&self, chunk: u64) -> Extent {
        let first = chunk * CHUNK_BLOCKS;
        Extent { first, blocks: CHUNK_BLOCKS.min(self.len() - first) }
    }

    pub fn chunk_digest(&self, chunk: u64) -> BlockDigest {
        self.digest(self.chunk(chunk))
    }

    pub fn block_digest(&self, block: u64) -> BlockDigest {
        self.digest(Extent { first: block, blocks: 1 })
    }

    /// Messages for some blocks, as a reader makes them: runs of data or zeroes in frames of any size.
    pub fn messages(&self, blocks: &BTreeSet<u64>, random: &mut StdRng) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        let mut left = blocks.iter().copied().filter(|block| *block < self.len()).peekable();
        while let Some(first) = left.next() {
            let zero = self.value(first) == 0;
            let most = if random.random_ratio(1, 8) { random.random_range(1..8) } else { FRAME_BLOCKS };
            let mut blocks = 1;
            while blocks < most
                && left.peek().is_some_and(|next| *next == first + blocks && (self.value(*next) == 0) == zero)
            {
                left.next();
                blocks += 1;
            }
            let extent = Extent { first, blocks };
            if zero {
                messages.push(stream::zeroes(extent).to_vec());
            } else {
                let content = self.content(extent);
                let digest = Digest::of(&content);
                messages.push(stream::data(extent, digest, Bytes::from(content)).concat());
            }
        }
        messages
    }
}

/// A whole part.
pub fn part_stream(messages: &[Vec<u8>]) -> Vec<u8> {
    let mut body = stream::begin().to_vec();
    messages.iter().for_each(|message| body.extend_from_slice(message));
    body.extend_from_slice(&stream::end(messages.len() as u64));
    body
}
