//! The byte formats of the protocol, both directions, without input or output.
//!
//! All numbers on the wire are big-endian. Decoders never allocate by a length that they were
//! told: what they build is bounded by the bytes that they hold.

mod option;
mod reply;
mod request;
#[cfg(test)]
mod tests;

pub use option::{ClientOption, InfoRequest, MetaQuery, OptionError, OptionHeader, OptionReply, ReplyError};
pub use reply::{ChunkKind, Head, ReplyHead, encode_extents, truncated};
pub use request::{Command, Request};

/// First eight bytes of a server, `NBDMAGIC`.
pub const SERVER_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: second eight bytes of a server, and the start of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Start of every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Start of every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Start of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Start of every chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Longest string (name, description, message, query) that the protocol allows.
pub const STRING_BYTES_MAX: usize = 4096;
/// Longest option that is kept in memory. Longer ones are skipped and refused.
pub const OPTION_BYTES_MAX: usize = 64 << 10;
/// Largest payload of one request, and the size that every server should take.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// Most extents in one reply to a block status request; 64 KiB on the wire.
pub const STATUS_EXTENTS_MAX: usize = 8192;

/// The one metadata context that is served.
pub const ALLOCATION_CONTEXT: &str = "base:allocation";
/// The number that stands for it in replies.
pub const ALLOCATION_CONTEXT_ID: u32 = 1;

/// Flags of the server's greeting; a client answers with the same bits.
pub mod handshake_flag {
    pub const FIXED_NEWSTYLE: u16 = 1;
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// What an export can do, told at the end of the handshake.
pub mod transmission_flag {
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Flags of a request.
pub mod command_flag {
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Numbers of the options.
pub mod option_number {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Kinds of information in replies to `INFO` and `GO`.
pub mod info_number {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Errors as requests are answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    NotPermitted = 1,
    Io = 5,
    NoMemory = 12,
    Invalid = 22,
    NoSpace = 28,
    Overflow = 75,
    NotSupported = 95,
    Shutdown = 108,
}

impl Errno {
    /// The number on the wire.
    pub fn number(self) -> u32 {
        self as u32
    }
}

/// Bytes that cannot be the protocol. The connection is out of step and must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("the magic number is {found:#x} instead of {expected:#x}: the peer does not speak NBD")]
    Magic { expected: u64, found: u64 },
    #[error("the message is malformed: {0}")]
    Malformed(&'static str),
}

/// The greeting of a fixed newstyle server.
pub fn greeting() -> [u8; 18] {
    let mut bytes = [0; 18];
    bytes[..8].copy_from_slice(&SERVER_MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
    bytes[16..].copy_from_slice(&flags.to_be_bytes());
    bytes
}

/// Whether a string may be an export name, a query or a description.
pub fn check_string(text: &str) -> Result<(), &'static str> {
    if text.len() > STRING_BYTES_MAX {
        return Err("it is longer than 4096 bytes");
    }
    if text.contains('\0') {
        return Err("it contains a NUL character");
    }
    Ok(())
}
