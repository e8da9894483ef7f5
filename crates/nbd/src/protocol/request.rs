//! Requests of the transmission phase.

use bytes::{Buf, BufMut};

use super::{ProtocolError, REQUEST_MAGIC};

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    Cache,
    WriteZeroes,
    BlockStatus,
    Unknown(u16),
}

impl Command {
    pub fn from_number(number: u16) -> Self {
        match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            _ => Self::Unknown(number),
        }
    }

    pub fn number(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::Cache => 5,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
            Self::Unknown(number) => number,
        }
    }
}

/// The fixed part of a request. A write is followed by `length` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// See [`super::command_flag`].
    pub flags: u16,
    pub command: Command,
    /// Chosen by the client, returned with the reply.
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
}

impl Request {
    pub const BYTES: usize = 28;

    pub fn decode(mut bytes: &[u8]) -> Result<Self, ProtocolError> {
        if bytes.len() < Self::BYTES {
            return Err(ProtocolError::Malformed("request too short"));
        }
        let found = bytes.get_u32();
        if found != REQUEST_MAGIC {
            return Err(ProtocolError::Magic { expected: REQUEST_MAGIC.into(), found: found.into() });
        }
        Ok(Self {
            flags: bytes.get_u16(),
            command: Command::from_number(bytes.get_u16()),
            cookie: bytes.get_u64(),
            offset: bytes.get_u64(),
            length: bytes.get_u32(),
        })
    }

    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let mut out = &mut bytes[..];
        out.put_u32(REQUEST_MAGIC);
        out.put_u16(self.flags);
        out.put_u16(self.command.number());
        out.put_u64(self.cookie);
        out.put_u64(self.offset);
        out.put_u32(self.length);
        bytes
    }

    /// Bytes that follow the fixed part on the wire.
    pub fn payload_bytes(&self) -> u32 {
        if self.command == Command::Write { self.length } else { 0 }
    }
}
