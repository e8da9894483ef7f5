//! The stream in which an agent sends one part of an epoch, as the body of a request.
//!
//! ```text
//! stream  = "LBPART01" message* end
//! data    = 'D' first:u64 blocks:u16 digest:[u8;32] bytes:[u8; blocks * 4096]
//! zeroes  = 'Z' first:u64 blocks:u64
//! end     = 'E' messages:u64
//! ```
//!
//! Numbers are little endian. `digest` is the BLAKE3 digest of `bytes`, made by the agent when it
//! read them; it stays with them in the HRL file until a volume reads them back. A message may
//! override blocks of an earlier one. A stream without its end was cut off and counts for nothing.
//! The last block of a disk whose size is no multiple of a block is filled up with zeroes.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use lifeboat_model::{BLOCK_BYTES, Digest, Extent, FRAME_BLOCKS};

const MAGIC: &[u8; 8] = b"LBPART01";
const DATA_HEADER_BYTES: usize = 1 + 8 + 2 + 32;
const ZEROES_BYTES: usize = 1 + 8 + 8;
const END_BYTES: usize = 1 + 8;

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// New content.
    Data {
        /// Where, at most [`FRAME_BLOCKS`] long.
        extent: Extent,
        /// The digest of `bytes`.
        digest: Digest,
        /// The content.
        bytes: Bytes,
    },
    /// All zeroes now.
    Zeroes {
        /// Where.
        extent: Extent,
    },
}

/// What is wrong with a stream. The part that it carried counts for nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// It does not begin as it must.
    #[error("the body is no stream of changes: it does not begin with LBPART01")]
    Magic,
    /// A message of no known kind.
    #[error("the stream of changes is damaged at message {message}: unknown kind {kind:#04x}")]
    Kind {
        /// Which message, from 0.
        message: u64,
        /// Its first byte.
        kind: u8,
    },
    /// An extent that is empty, too long or beyond the disk.
    #[error(
        "the stream of changes is damaged at message {message}: {blocks} blocks from block {first} are not on a disk of {disk_blocks} blocks, or too many for one message"
    )]
    Extent {
        /// Which message, from 0.
        message: u64,
        /// Its first block.
        first: u64,
        /// How many blocks it claims.
        blocks: u64,
        /// Blocks of the disk.
        disk_blocks: u64,
    },
    /// The end names another number of messages than came.
    #[error("the stream of changes ends with a count of {claimed} messages, but {received} came")]
    Count {
        /// By the end message.
        claimed: u64,
        /// Received.
        received: u64,
    },
    /// Bytes after the end.
    #[error("the stream of changes goes on after its end")]
    Trailing,
    /// No end.
    #[error("the stream of changes was cut off after {received} messages")]
    CutOff {
        /// Whole messages before the cut.
        received: u64,
    },
}

/// The beginning of a stream.
#[must_use]
pub fn begin() -> Bytes {
    Bytes::from_static(MAGIC)
}

/// A data message, as its header and its bytes, so that the content is not copied.
///
/// # Panics
/// When `bytes` is not as long as `extent`, or `extent` is longer than a frame.
#[must_use]
pub fn data(extent: Extent, digest: Digest, bytes: Bytes) -> [Bytes; 2] {
    assert!(
        extent.blocks <= FRAME_BLOCKS && bytes.len() as u64 == extent.len_bytes(),
        "a data message is one frame"
    );
    let mut header = Vec::with_capacity(DATA_HEADER_BYTES);
    header.push(b'D');
    header.extend_from_slice(&extent.first.to_le_bytes());
    header.extend_from_slice(&extent.blocks.to_le_bytes()[..2]);
    header.extend_from_slice(&digest.0);
    [header.into(), bytes]
}

/// A message for blocks that are all zeroes.
#[must_use]
pub fn zeroes(extent: Extent) -> Bytes {
    let mut message = Vec::with_capacity(ZEROES_BYTES);
    message.push(b'Z');
    message.extend_from_slice(&extent.first.to_le_bytes());
    message.extend_from_slice(&extent.blocks.to_le_bytes());
    message.into()
}

/// The end of a stream of `messages` data and zeroes messages.
#[must_use]
pub fn end(messages: u64) -> Bytes {
    let mut message = Vec::with_capacity(END_BYTES);
    message.push(b'E');
    message.extend_from_slice(&messages.to_le_bytes());
    message.into()
}

/// Reads a stream from pieces of any size. Holds at most one message and the piece that it came in.
#[derive(Debug)]
pub struct Decoder {
    disk_blocks: u64,
    pieces: VecDeque<Bytes>,
    buffered: usize,
    messages: u64,
    begun: bool,
    ended: bool,
}

impl Decoder {
    /// For a disk of `disk_blocks` blocks.
    #[must_use]
    pub fn new(disk_blocks: u64) -> Self {
        Self { disk_blocks, pieces: VecDeque::new(), buffered: 0, messages: 0, begun: false, ended: false }
    }

    /// Adds the next bytes of the stream. Call [`Decoder::next_message`] until it gives none before the next call.
    pub fn push(&mut self, piece: Bytes) {
        self.buffered += piece.len();
        if !piece.is_empty() {
            self.pieces.push_back(piece);
        }
    }

    /// The next whole message, if it has arrived.
    ///
    /// # Errors
    /// When the stream is damaged; it cannot be read further then.
    pub fn next_message(&mut self) -> Result<Option<Message>, StreamError> {
        if !self.begun {
            if self.buffered < MAGIC.len() {
                return Ok(None);
            }
            if self.take(MAGIC.len()) != MAGIC[..] {
                return Err(StreamError::Magic);
            }
            self.begun = true;
        }
        let Some(kind) = self.pieces.front().and_then(|piece| piece.first().copied()) else {
            return Ok(None);
        };
        if self.ended {
            return Err(StreamError::Trailing);
        }
        match kind {
            b'D' => self.next_data(),
            b'Z' => self.next_zeroes(),
            b'E' => self.next_end(),
            kind => Err(StreamError::Kind { message: self.messages, kind }),
        }
    }

    /// Checks that the stream came whole. Call it when there are no more bytes.
    ///
    /// # Errors
    /// When it was cut off.
    pub fn finish(&self) -> Result<(), StreamError> {
        if self.ended && self.buffered == 0 {
            Ok(())
        } else {
            Err(StreamError::CutOff { received: self.messages })
        }
    }

    fn next_data(&mut self) -> Result<Option<Message>, StreamError> {
        if self.buffered < DATA_HEADER_BYTES {
            return Ok(None);
        }
        let mut header = [0; DATA_HEADER_BYTES];
        self.peek(&mut header);
        let mut fields = &header[1..];
        let (first, blocks) = (fields.get_u64_le(), u64::from(fields.get_u16_le()));
        let extent = self.extent(first, blocks, FRAME_BLOCKS)?;
        #[allow(clippy::cast_possible_truncation, reason = "at most FRAME_BLOCKS, as just checked")]
        let len = blocks as usize * BLOCK_BYTES;
        if self.buffered < DATA_HEADER_BYTES + len {
            return Ok(None);
        }
        let mut digest = [0; 32];
        fields.copy_to_slice(&mut digest);
        self.take(DATA_HEADER_BYTES);
        self.messages += 1;
        Ok(Some(Message::Data { extent, digest: Digest(digest), bytes: self.take(len) }))
    }

    fn next_zeroes(&mut self) -> Result<Option<Message>, StreamError> {
        if self.buffered < ZEROES_BYTES {
            return Ok(None);
        }
        let mut message = self.take(ZEROES_BYTES).slice(1..);
        let (first, blocks) = (message.get_u64_le(), message.get_u64_le());
        let extent = self.extent(first, blocks, u64::MAX)?;
        self.messages += 1;
        Ok(Some(Message::Zeroes { extent }))
    }

    fn next_end(&mut self) -> Result<Option<Message>, StreamError> {
        if self.buffered < END_BYTES {
            return Ok(None);
        }
        let claimed = self.take(END_BYTES).slice(1..).get_u64_le();
        if claimed != self.messages {
            return Err(StreamError::Count { claimed, received: self.messages });
        }
        self.ended = true;
        if self.buffered > 0 { Err(StreamError::Trailing) } else { Ok(None) }
    }

    fn extent(&self, first: u64, blocks: u64, blocks_max: u64) -> Result<Extent, StreamError> {
        Extent::new(first, blocks)
            .filter(|extent| extent.blocks <= blocks_max && extent.end() <= self.disk_blocks)
            .ok_or(StreamError::Extent {
                message: self.messages,
                first,
                blocks,
                disk_blocks: self.disk_blocks,
            })
    }

    /// Copies the next bytes without taking them; so many are buffered.
    fn peek(&self, into: &mut [u8]) {
        let mut filled = 0;
        for piece in &self.pieces {
            let count = piece.len().min(into.len() - filled);
            into[filled..filled + count].copy_from_slice(&piece[..count]);
            filled += count;
            if filled == into.len() {
                return;
            }
        }
    }

    /// Takes the next `len` bytes, without a copy when they lie in one piece; so many are buffered.
    fn take(&mut self, len: usize) -> Bytes {
        self.buffered -= len;
        if let Some(piece) = self.pieces.front_mut()
            && piece.len() >= len
        {
            let taken = piece.split_to(len);
            if piece.is_empty() {
                self.pieces.pop_front();
            }
            return taken;
        }
        let mut taken = BytesMut::with_capacity(len);
        while taken.len() < len
            && let Some(piece) = self.pieces.front_mut()
        {
            let count = piece.len().min(len - taken.len());
            taken.extend_from_slice(&piece.split_to(count));
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
        taken.freeze()
    }
}

#[cfg(test)]
mod tests;
