//! Replies of the transmission phase.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{
    ALLOCATION_CONTEXT_ID, Errno, ProtocolError, SIMPLE_REPLY_MAGIC, STRING_BYTES_MAX, STRUCTURED_REPLY_MAGIC,
};
use crate::export::StatusExtent;

const FLAG_DONE: u16 = 1;

/// What a chunk of a structured reply carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum ChunkKind {
    None = 0,
    OffsetData = 1,
    OffsetHole = 2,
    BlockStatus = 5,
    Error = 0x8001,
}

/// The fixed part of a reply or chunk, held without an allocation. Data may follow it on the
/// wire; each constructor says which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    bytes: [u8; Self::BYTES_MAX],
    len: u8,
}

impl Head {
    pub const BYTES_MAX: usize = 32;

    fn build(fill: impl FnOnce(&mut &mut [u8])) -> Self {
        let mut bytes = [0; Self::BYTES_MAX];
        let mut rest = &mut bytes[..];
        fill(&mut rest);
        let left = rest.len();
        // At most 32, so it fits.
        #[allow(clippy::cast_possible_truncation)]
        let len = (Self::BYTES_MAX - left) as u8;
        Self { bytes, len }
    }

    fn chunk(
        kind: ChunkKind,
        done: bool,
        cookie: u64,
        length: u32,
        fill: impl FnOnce(&mut &mut [u8]),
    ) -> Self {
        Self::build(|out| {
            out.put_u32(STRUCTURED_REPLY_MAGIC);
            out.put_u16(if done { FLAG_DONE } else { 0 });
            out.put_u16(kind as u16);
            out.put_u64(cookie);
            out.put_u32(length);
            fill(out);
        })
    }

    /// A whole simple reply, or one before the data of a read.
    pub fn simple(cookie: u64, error: Option<Errno>) -> Self {
        Self::build(|out| {
            out.put_u32(SIMPLE_REPLY_MAGIC);
            out.put_u32(error.map_or(0, Errno::number));
            out.put_u64(cookie);
        })
    }

    /// The whole end of a structured reply, or all of one that has nothing to say.
    pub fn done(cookie: u64) -> Self {
        Self::chunk(ChunkKind::None, true, cookie, 0, |_| {})
    }

    /// Before `len` bytes of data. `len` is at most [`super::PAYLOAD_BYTES_MAX`].
    pub fn data(cookie: u64, offset: u64, len: u32, done: bool) -> Self {
        Self::chunk(ChunkKind::OffsetData, done, cookie, 8 + len, |out| out.put_u64(offset))
    }

    /// A whole chunk that stands for zeroes.
    pub fn hole(cookie: u64, offset: u64, len: u32, done: bool) -> Self {
        Self::chunk(ChunkKind::OffsetHole, done, cookie, 12, |out| {
            out.put_u64(offset);
            out.put_u32(len);
        })
    }

    /// Before the `message_bytes` of a message for people, see [`truncated`].
    pub fn error(cookie: u64, error: Errno, message_bytes: u16) -> Self {
        Self::chunk(ChunkKind::Error, true, cookie, 6 + u32::from(message_bytes), |out| {
            out.put_u32(error.number());
            out.put_u16(message_bytes);
        })
    }

    /// Before `extents_bytes` of what [`encode_extents`] made.
    pub fn block_status(cookie: u64, extents_bytes: u32) -> Self {
        Self::chunk(ChunkKind::BlockStatus, true, cookie, 4 + extents_bytes, |out| {
            out.put_u32(ALLOCATION_CONTEXT_ID);
        })
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// The part of a message that the protocol can carry, and its length.
pub fn truncated(message: &str) -> (&str, u16) {
    let end = message.floor_char_boundary(STRING_BYTES_MAX.min(message.len()));
    let message = &message[..end];
    (message, u16::try_from(end).unwrap_or(0))
}

/// Extents for the wire: at most `extents_max`, at most `len` bytes together, neighbours of the
/// same status joined. There is always at least one, for clients must be able to go on; where
/// nothing is known it says "data", which is always safe.
pub fn encode_extents(extents: &[StatusExtent], len: u32, extents_max: usize) -> Bytes {
    let status = |extent: &StatusExtent| u32::from(extent.hole) | u32::from(extent.zero) << 1;
    let mut left = len;
    let mut joined: Vec<(u32, u32)> = Vec::with_capacity(extents.len().clamp(1, extents_max));
    for extent in extents {
        let taken = u32::try_from(extent.len).unwrap_or(u32::MAX).min(left);
        if taken == 0 {
            continue;
        }
        let full = joined.len() == extents_max;
        match joined.last_mut() {
            Some((length, last)) if *last == status(extent) => *length += taken,
            _ if full => break,
            _ => joined.push((taken, status(extent))),
        }
        left -= taken;
    }
    if joined.is_empty() {
        joined.push((len, 0));
    }
    let mut out = BytesMut::with_capacity(joined.len() * 8);
    for (length, status) in joined {
        out.put_u32(length);
        out.put_u32(status);
    }
    out.freeze()
}

/// The start of a reply, as a client decodes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyHead {
    Simple {
        error: u32,
        cookie: u64,
    },
    Chunk {
        done: bool,
        /// See [`ChunkKind`]; may be an unknown one.
        kind: u16,
        cookie: u64,
        /// Bytes that follow. Untrusted.
        length: u32,
    },
}

impl ReplyHead {
    /// Decodes the start of `bytes`; also says how many bytes it took.
    pub fn decode(mut bytes: &[u8]) -> Result<(Self, usize), ProtocolError> {
        const CUT: ProtocolError = ProtocolError::Malformed("reply too short");
        let found = bytes.try_get_u32().map_err(|_| CUT)?;
        match found {
            SIMPLE_REPLY_MAGIC if bytes.len() >= 12 => {
                Ok((Self::Simple { error: bytes.get_u32(), cookie: bytes.get_u64() }, 16))
            }
            STRUCTURED_REPLY_MAGIC if bytes.len() >= 16 => {
                let done = bytes.get_u16() & FLAG_DONE != 0;
                let (kind, cookie, length) = (bytes.get_u16(), bytes.get_u64(), bytes.get_u32());
                Ok((Self::Chunk { done, kind, cookie, length }, 20))
            }
            SIMPLE_REPLY_MAGIC | STRUCTURED_REPLY_MAGIC => Err(CUT),
            _ => Err(ProtocolError::Magic { expected: SIMPLE_REPLY_MAGIC.into(), found: found.into() }),
        }
    }
}
