//! Options of the handshake and the replies to them.

use bytes::{Buf, BufMut, BytesMut};

use super::{OPTION_MAGIC, OPTION_REPLY_MAGIC, ProtocolError, check_string, info_number, option_number};
use crate::export::BlockSizes;

/// What stands before the data of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    pub number: u32,
    /// Bytes of data that follow. Untrusted.
    pub data_bytes: u32,
}

impl OptionHeader {
    pub const BYTES: usize = 16;

    pub fn decode(mut bytes: &[u8]) -> Result<Self, ProtocolError> {
        if bytes.len() < Self::BYTES {
            return Err(ProtocolError::Malformed("option header too short"));
        }
        let found = bytes.get_u64();
        if found != OPTION_MAGIC {
            return Err(ProtocolError::Magic { expected: OPTION_MAGIC, found });
        }
        Ok(Self { number: bytes.get_u32(), data_bytes: bytes.get_u32() })
    }

    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u64(OPTION_MAGIC);
        out.put_u32(self.number);
        out.put_u32(self.data_bytes);
    }
}

/// Why an option is refused. The connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OptionError(pub &'static str);

/// An option as a client sends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientOption<'a> {
    ExportName(&'a str),
    Abort,
    List,
    StartTls,
    Info(InfoRequest<'a>),
    Go(InfoRequest<'a>),
    StructuredReply,
    ListMetaContext(MetaQuery<'a>),
    SetMetaContext(MetaQuery<'a>),
    /// Not known here; to be answered with [`ReplyError::Unsupported`].
    Unknown(u32),
}

/// Data of `INFO` and `GO`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InfoRequest<'a> {
    pub name: &'a str,
    /// See [`super::info_number`]; may hold unknown ones.
    pub wanted: Vec<u16>,
}

/// Data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaQuery<'a> {
    pub export: &'a str,
    pub queries: Vec<&'a str>,
}

impl<'a> ClientOption<'a> {
    /// Decodes the data of option `number`.
    pub fn decode(number: u32, data: &'a [u8]) -> Result<Self, OptionError> {
        let without_data = |option| {
            if data.is_empty() { Ok(option) } else { Err(OptionError("this option takes no data")) }
        };
        match number {
            option_number::EXPORT_NAME => Ok(Self::ExportName(text(data)?)),
            // The protocol asks to ignore data here.
            option_number::ABORT => Ok(Self::Abort),
            option_number::LIST => without_data(Self::List),
            option_number::STARTTLS => without_data(Self::StartTls),
            option_number::INFO => Ok(Self::Info(InfoRequest::decode(data)?)),
            option_number::GO => Ok(Self::Go(InfoRequest::decode(data)?)),
            option_number::STRUCTURED_REPLY => without_data(Self::StructuredReply),
            option_number::LIST_META_CONTEXT => Ok(Self::ListMetaContext(MetaQuery::decode(data)?)),
            option_number::SET_META_CONTEXT => Ok(Self::SetMetaContext(MetaQuery::decode(data)?)),
            _ => Ok(Self::Unknown(number)),
        }
    }

    /// The option's number on the wire.
    pub fn number(&self) -> u32 {
        match self {
            Self::ExportName(_) => option_number::EXPORT_NAME,
            Self::Abort => option_number::ABORT,
            Self::List => option_number::LIST,
            Self::StartTls => option_number::STARTTLS,
            Self::Info(_) => option_number::INFO,
            Self::Go(_) => option_number::GO,
            Self::StructuredReply => option_number::STRUCTURED_REPLY,
            Self::ListMetaContext(_) => option_number::LIST_META_CONTEXT,
            Self::SetMetaContext(_) => option_number::SET_META_CONTEXT,
            Self::Unknown(number) => *number,
        }
    }

    /// Appends the option with its header, as a client sends it.
    pub fn encode(&self, out: &mut BytesMut) {
        let mut data = BytesMut::new();
        match self {
            Self::ExportName(name) => data.put_slice(name.as_bytes()),
            Self::Info(request) | Self::Go(request) => request.encode(&mut data),
            Self::ListMetaContext(query) | Self::SetMetaContext(query) => query.encode(&mut data),
            Self::Abort | Self::List | Self::StartTls | Self::StructuredReply | Self::Unknown(_) => {}
        }
        OptionHeader { number: self.number(), data_bytes: wire_len(data.len()) }.encode(out);
        out.put_slice(&data);
    }
}

impl<'a> InfoRequest<'a> {
    fn decode(mut data: &'a [u8]) -> Result<Self, OptionError> {
        let name = counted_text(&mut data)?;
        let count = data.try_get_u16().map_err(|_| OptionError("the number of requests is missing"))?;
        if data.len() != usize::from(count) * 2 {
            return Err(OptionError("the number of requests does not fit the option's length"));
        }
        let wanted = data.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
        Ok(Self { name, wanted })
    }

    fn encode(&self, out: &mut BytesMut) {
        put_counted(out, self.name);
        out.put_u16(u16::try_from(self.wanted.len()).unwrap_or(u16::MAX));
        self.wanted.iter().for_each(|number| out.put_u16(*number));
    }
}

impl<'a> MetaQuery<'a> {
    fn decode(mut data: &'a [u8]) -> Result<Self, OptionError> {
        let export = counted_text(&mut data)?;
        let count = data.try_get_u32().map_err(|_| OptionError("the number of queries is missing"))?;
        let mut queries = Vec::new();
        // Every round takes at least four bytes of what was received, or ends in an error.
        for _ in 0..count {
            queries.push(counted_text(&mut data)?);
        }
        if !data.is_empty() {
            return Err(OptionError("bytes follow the last query"));
        }
        Ok(Self { export, queries })
    }

    fn encode(&self, out: &mut BytesMut) {
        put_counted(out, self.export);
        out.put_u32(wire_len(self.queries.len()));
        self.queries.iter().for_each(|query| put_counted(out, query));
    }
}

/// Why an option is refused, as the protocol numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ReplyError {
    Unsupported = 0x8000_0001,
    Policy = 0x8000_0002,
    Invalid = 0x8000_0003,
    TlsRequired = 0x8000_0005,
    UnknownExport = 0x8000_0006,
    ShuttingDown = 0x8000_0007,
    TooBig = 0x8000_0009,
}

impl ReplyError {
    const ALL: [Self; 7] = [
        Self::Unsupported,
        Self::Policy,
        Self::Invalid,
        Self::TlsRequired,
        Self::UnknownExport,
        Self::ShuttingDown,
        Self::TooBig,
    ];
}

/// A reply to an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptionReply<'a> {
    Ack,
    Server { name: &'a str, description: &'a str },
    InfoExport { size_bytes: u64, flags: u16 },
    InfoName(&'a str),
    InfoDescription(&'a str),
    InfoBlockSize(BlockSizes),
    MetaContext { id: u32, name: &'a str },
    Error { error: ReplyError, message: &'a str },
}

const REPLY_ACK: u32 = 1;
const REPLY_SERVER: u32 = 2;
const REPLY_INFO: u32 = 3;
const REPLY_META_CONTEXT: u32 = 4;

impl<'a> OptionReply<'a> {
    /// Bytes before the data: magic, option, type, length.
    pub const HEADER_BYTES: usize = 20;

    /// Appends the reply to option `number`.
    pub fn encode(&self, number: u32, out: &mut BytesMut) {
        out.put_u64(OPTION_REPLY_MAGIC);
        out.put_u32(number);
        out.put_u32(self.kind());
        let length_at = out.len();
        out.put_u32(0);
        self.encode_data(out);
        let length = wire_len(out.len() - length_at - 4);
        out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
    }

    fn kind(&self) -> u32 {
        match self {
            Self::Ack => REPLY_ACK,
            Self::Server { .. } => REPLY_SERVER,
            Self::InfoExport { .. }
            | Self::InfoName(_)
            | Self::InfoDescription(_)
            | Self::InfoBlockSize(_) => REPLY_INFO,
            Self::MetaContext { .. } => REPLY_META_CONTEXT,
            Self::Error { error, .. } => *error as u32,
        }
    }

    fn encode_data(&self, out: &mut BytesMut) {
        match self {
            Self::Ack => {}
            Self::Server { name, description } => {
                put_counted(out, name);
                out.put_slice(description.as_bytes());
            }
            Self::InfoExport { size_bytes, flags } => {
                out.put_u16(info_number::EXPORT);
                out.put_u64(*size_bytes);
                out.put_u16(*flags);
            }
            Self::InfoName(name) => {
                out.put_u16(info_number::NAME);
                out.put_slice(name.as_bytes());
            }
            Self::InfoDescription(description) => {
                out.put_u16(info_number::DESCRIPTION);
                out.put_slice(description.as_bytes());
            }
            Self::InfoBlockSize(sizes) => {
                out.put_u16(info_number::BLOCK_SIZE);
                out.put_u32(sizes.minimum);
                out.put_u32(sizes.preferred);
                out.put_u32(sizes.maximum);
            }
            Self::MetaContext { id, name } => {
                out.put_u32(*id);
                out.put_slice(name.as_bytes());
            }
            Self::Error { message, .. } => out.put_slice(message.as_bytes()),
        }
    }

    /// Decodes one reply at the start of `bytes`, as a client does: the option that it answers,
    /// the reply, and how many bytes it took.
    pub fn decode(bytes: &'a [u8]) -> Result<(u32, Self, usize), ProtocolError> {
        let mut header = bytes;
        if header.len() < Self::HEADER_BYTES {
            return Err(ProtocolError::Malformed("option reply header too short"));
        }
        let found = header.get_u64();
        if found != OPTION_REPLY_MAGIC {
            return Err(ProtocolError::Magic { expected: OPTION_REPLY_MAGIC, found });
        }
        let (number, kind, length) = (header.get_u32(), header.get_u32(), header.get_u32());
        let data = usize::try_from(length).ok().and_then(|length| header.get(..length));
        let data = data.ok_or(ProtocolError::Malformed("option reply is cut off"))?;
        let reply = Self::decode_data(kind, data).map_err(|error| ProtocolError::Malformed(error.0))?;
        Ok((number, reply, Self::HEADER_BYTES + data.len()))
    }

    fn decode_data(kind: u32, mut data: &'a [u8]) -> Result<Self, OptionError> {
        const CUT: OptionError = OptionError("the reply's data is too short");
        match kind {
            REPLY_ACK if data.is_empty() => Ok(Self::Ack),
            REPLY_ACK => Err(OptionError("an acknowledgement has no data")),
            REPLY_SERVER => {
                let name = counted_text(&mut data)?;
                Ok(Self::Server { name, description: text(data)? })
            }
            REPLY_META_CONTEXT => {
                let id = data.try_get_u32().map_err(|_| CUT)?;
                Ok(Self::MetaContext { id, name: text(data)? })
            }
            REPLY_INFO => match data.try_get_u16().map_err(|_| CUT)? {
                info_number::EXPORT if data.len() == 10 => {
                    Ok(Self::InfoExport { size_bytes: data.get_u64(), flags: data.get_u16() })
                }
                info_number::NAME => Ok(Self::InfoName(text(data)?)),
                info_number::DESCRIPTION => Ok(Self::InfoDescription(text(data)?)),
                info_number::BLOCK_SIZE if data.len() == 12 => Ok(Self::InfoBlockSize(BlockSizes {
                    minimum: data.get_u32(),
                    preferred: data.get_u32(),
                    maximum: data.get_u32(),
                })),
                _ => Err(OptionError("unknown information, or of the wrong length")),
            },
            _ => {
                let error = ReplyError::ALL.into_iter().find(|error| *error as u32 == kind);
                let error = error.ok_or(OptionError("unknown kind of reply"))?;
                Ok(Self::Error { error, message: text(data)? })
            }
        }
    }
}

fn wire_len(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn put_counted(out: &mut BytesMut, text: &str) {
    out.put_u32(wire_len(text.len()));
    out.put_slice(text.as_bytes());
}

fn text(data: &[u8]) -> Result<&str, OptionError> {
    let text = std::str::from_utf8(data).map_err(|_| OptionError("a string is not UTF-8"))?;
    check_string(text).map_err(|_| OptionError("a string is longer than 4096 bytes or contains NUL"))?;
    Ok(text)
}

fn counted_text<'a>(data: &mut &'a [u8]) -> Result<&'a str, OptionError> {
    let length = data.try_get_u32().map_err(|_| OptionError("the length of a string is missing"))?;
    let length = usize::try_from(length).map_err(|_| OptionError("a string is too long"))?;
    let (head, rest) =
        data.split_at_checked(length).ok_or(OptionError("a string is longer than the option"))?;
    *data = rest;
    text(head)
}
