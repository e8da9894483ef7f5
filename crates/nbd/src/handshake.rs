//! The handshake as a state machine: bytes in, bytes and a decision out.
//!
//! It does no input or output of its own, so it can be fed by a socket, a test or a fuzzer.

#[cfg(test)]
mod tests;

use bytes::{Buf, BufMut, BytesMut};

use crate::export::ExportInfo;
use crate::protocol::{
    ALLOCATION_CONTEXT, ALLOCATION_CONTEXT_ID, ClientOption, InfoRequest, MetaQuery, OPTION_BYTES_MAX,
    OptionHeader, OptionReply, ProtocolError, ReplyError, handshake_flag, info_number, option_number,
};

/// What can be chosen in a handshake.
pub trait Catalogue {
    /// What the server needs to serve an export.
    type Handle;

    /// Calls `visit` with name and description of every export.
    fn list(&self, visit: &mut dyn FnMut(&str, &str));

    /// Looks an export up.
    fn find(&self, name: &str) -> Option<(ExportInfo, Self::Handle)>;
}

/// The connection's protection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// Not on offer: the transport is protected otherwise.
    Off,
    /// Everything but `STARTTLS` is refused until it has begun.
    Required,
    /// Running.
    Active,
}

/// What [`Handshake::step`] came to.
#[derive(Debug)]
pub enum Step<H> {
    /// The input does not hold a whole message. Send the output, then read more.
    NeedInput,
    /// A message was answered. Call again.
    Continue,
    /// Send the output, run TLS, call [`Handshake::tls_started`], go on.
    StartTls,
    /// Send the output and begin transmission.
    Serve(Agreement<H>),
    /// Send the output and close: the client has ended it.
    Goodbye,
}

/// The outcome of a handshake.
#[derive(Debug)]
pub struct Agreement<H> {
    pub name: String,
    pub info: ExportInfo,
    pub handle: H,
    /// The client takes structured replies.
    pub structured: bool,
    /// The client chose `base:allocation` for this export.
    pub allocation: bool,
}

/// Why the connection must be closed without another word.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("the client set flags that were not offered ({0:#x})")]
    ClientFlags(u32),
    #[error("the client is too old for TLS, which is required here")]
    TooOldForTls,
    #[error("the client asked for an export in the old way, which can only be refused by closing: {0}")]
    ExportName(&'static str),
    #[error("the client sent {0} bytes in the clear after asking for TLS")]
    ClearTextAfterStartTls(usize),
}

/// State of one handshake.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    tls: Tls,
    no_zeroes: bool,
    structured: bool,
    /// The export that `base:allocation` was chosen for.
    allocation_of: Option<String>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    ClientFlags,
    Option,
    /// An option too long to keep: drop its data, then refuse it.
    Skip {
        number: u32,
        left: u32,
    },
}

impl Handshake {
    /// The client is owed [`crate::protocol::greeting`] first.
    pub fn new(tls: Tls) -> Self {
        Self { state: State::ClientFlags, tls, no_zeroes: false, structured: false, allocation_of: None }
    }

    /// Takes at most one message off `input` and appends the answer to `output`.
    pub fn step<C: Catalogue>(
        &mut self,
        input: &mut BytesMut,
        output: &mut BytesMut,
        catalogue: &C,
    ) -> Result<Step<C::Handle>, HandshakeError> {
        match self.state {
            State::ClientFlags => {
                if input.len() < 4 {
                    return Ok(Step::NeedInput);
                }
                self.client_flags(input.get_u32())?;
                self.state = State::Option;
                Ok(Step::Continue)
            }
            State::Option => self.option(input, output, catalogue),
            State::Skip { number, left } => {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                input.advance(here);
                let left = left - u32::try_from(here).unwrap_or(left);
                if left > 0 {
                    self.state = State::Skip { number, left };
                    return Ok(Step::NeedInput);
                }
                self.state = State::Option;
                if number == option_number::EXPORT_NAME {
                    return Err(HandshakeError::ExportName("the name is too long"));
                }
                if number == option_number::ABORT {
                    OptionReply::Ack.encode(number, output);
                    return Ok(Step::Goodbye);
                }
                self.refuse_skipped(number, output);
                Ok(Step::Continue)
            }
        }
    }

    /// TLS runs. Nothing that was said before it counts any more.
    pub fn tls_started(&mut self, leftover: &BytesMut) -> Result<(), HandshakeError> {
        // Such bytes may have been put there by somebody on the way; taking them for protected
        // ones would let that somebody speak for the client.
        if !leftover.is_empty() {
            return Err(HandshakeError::ClearTextAfterStartTls(leftover.len()));
        }
        self.tls = Tls::Active;
        self.structured = false;
        self.allocation_of = None;
        Ok(())
    }

    fn client_flags(&mut self, flags: u32) -> Result<(), HandshakeError> {
        const FIXED: u32 = handshake_flag::FIXED_NEWSTYLE as u32;
        const NO_ZEROES: u32 = handshake_flag::NO_ZEROES as u32;
        if flags & !(FIXED | NO_ZEROES) != 0 {
            return Err(HandshakeError::ClientFlags(flags));
        }
        if flags & FIXED == 0 && self.tls == Tls::Required {
            return Err(HandshakeError::TooOldForTls);
        }
        self.no_zeroes = flags & NO_ZEROES != 0;
        Ok(())
    }

    fn option<C: Catalogue>(
        &mut self,
        input: &mut BytesMut,
        output: &mut BytesMut,
        catalogue: &C,
    ) -> Result<Step<C::Handle>, HandshakeError> {
        if input.len() < OptionHeader::BYTES {
            // A wrong magic number is told apart from a slow client at once.
            if let Some(start) = input.get(..8) {
                let mut padded = [0; OptionHeader::BYTES];
                padded[..8].copy_from_slice(start);
                OptionHeader::decode(&padded)?;
            }
            return Ok(Step::NeedInput);
        }
        let header = OptionHeader::decode(input)?;
        let data_bytes = usize::try_from(header.data_bytes).unwrap_or(usize::MAX);
        if data_bytes > OPTION_BYTES_MAX {
            input.advance(OptionHeader::BYTES);
            self.state = State::Skip { number: header.number, left: header.data_bytes };
            return Ok(Step::Continue);
        }
        if input.len() - OptionHeader::BYTES < data_bytes {
            return Ok(Step::NeedInput);
        }
        input.advance(OptionHeader::BYTES);
        let data = input.split_to(data_bytes);
        self.answer(header.number, &data, output, catalogue)
    }

    fn answer<C: Catalogue>(
        &mut self,
        number: u32,
        data: &[u8],
        output: &mut BytesMut,
        catalogue: &C,
    ) -> Result<Step<C::Handle>, HandshakeError> {
        let mut refuse = |error, message: &str| {
            OptionReply::Error { error, message }.encode(number, output);
            Ok(Step::Continue)
        };
        if self.tls == Tls::Required && number != option_number::STARTTLS && number != option_number::ABORT {
            if number == option_number::EXPORT_NAME {
                return Err(HandshakeError::ExportName("TLS is required"));
            }
            return refuse(ReplyError::TlsRequired, "this server requires TLS");
        }
        let option = match ClientOption::decode(number, data) {
            Ok(option) => option,
            Err(error) if number == option_number::EXPORT_NAME => {
                return Err(HandshakeError::ExportName(error.0));
            }
            Err(error) => {
                if number == option_number::SET_META_CONTEXT {
                    self.allocation_of = None;
                }
                return refuse(ReplyError::Invalid, error.0);
            }
        };
        match option {
            ClientOption::ExportName(name) => self.export_name(name, output, catalogue),
            ClientOption::Abort => {
                OptionReply::Ack.encode(number, output);
                Ok(Step::Goodbye)
            }
            ClientOption::List => {
                catalogue.list(&mut |name, description| {
                    OptionReply::Server { name, description }.encode(number, output);
                });
                OptionReply::Ack.encode(number, output);
                Ok(Step::Continue)
            }
            ClientOption::StartTls => match self.tls {
                Tls::Off => refuse(ReplyError::Unsupported, "TLS is not offered here"),
                Tls::Active => refuse(ReplyError::Invalid, "TLS has already begun"),
                Tls::Required => {
                    OptionReply::Ack.encode(number, output);
                    Ok(Step::StartTls)
                }
            },
            ClientOption::Info(request) => Ok(self.info(number, &request, output, catalogue)),
            ClientOption::Go(request) => Ok(self.info(number, &request, output, catalogue)),
            ClientOption::StructuredReply => {
                self.structured = true;
                OptionReply::Ack.encode(number, output);
                Ok(Step::Continue)
            }
            ClientOption::ListMetaContext(query) | ClientOption::SetMetaContext(query) => {
                self.meta_context(number, &query, output, catalogue);
                Ok(Step::Continue)
            }
            ClientOption::Unknown(_) => refuse(ReplyError::Unsupported, "this option is not known here"),
        }
    }

    fn refuse_skipped(&mut self, number: u32, output: &mut BytesMut) {
        let (error, message) = match number {
            _ if self.tls == Tls::Required && number != option_number::STARTTLS => {
                (ReplyError::TlsRequired, "this server requires TLS")
            }
            option_number::LIST..=option_number::SET_META_CONTEXT => {
                (ReplyError::TooBig, "the option's data is longer than 64 KiB")
            }
            _ => (ReplyError::Unsupported, "this option is not known here"),
        };
        if number == option_number::SET_META_CONTEXT {
            self.allocation_of = None;
        }
        OptionReply::Error { error, message }.encode(number, output);
    }

    fn export_name<C: Catalogue>(
        &mut self,
        name: &str,
        output: &mut BytesMut,
        catalogue: &C,
    ) -> Result<Step<C::Handle>, HandshakeError> {
        let Some((info, handle)) = catalogue.find(name) else {
            return Err(HandshakeError::ExportName("there is no such export"));
        };
        output.put_u64(info.size_bytes);
        output.put_u16(info.transmission_flags(self.structured));
        if !self.no_zeroes {
            output.put_bytes(0, 124);
        }
        Ok(Step::Serve(self.agree(name, info, handle)))
    }

    fn info<C: Catalogue>(
        &mut self,
        number: u32,
        request: &InfoRequest<'_>,
        output: &mut BytesMut,
        catalogue: &C,
    ) -> Step<C::Handle> {
        let mut reply = |reply: OptionReply<'_>| reply.encode(number, output);
        let Some((info, handle)) = catalogue.find(request.name) else {
            reply(unknown_export());
            return Step::Continue;
        };
        let wants = |wanted| request.wanted.contains(&wanted);
        let flags = info.transmission_flags(self.structured);
        reply(OptionReply::InfoExport { size_bytes: info.size_bytes, flags });
        if wants(info_number::NAME) {
            reply(OptionReply::InfoName(request.name));
        }
        if wants(info_number::DESCRIPTION) && !info.description.is_empty() {
            reply(OptionReply::InfoDescription(&info.description));
        }
        // Also told unasked if it is stricter than what clients take for granted.
        if wants(info_number::BLOCK_SIZE) || info.block_sizes.minimum > 1 {
            reply(OptionReply::InfoBlockSize(info.block_sizes));
        }
        reply(OptionReply::Ack);
        if number == option_number::GO {
            return Step::Serve(self.agree(request.name, info, handle));
        }
        Step::Continue
    }

    fn meta_context<C: Catalogue>(
        &mut self,
        number: u32,
        query: &MetaQuery<'_>,
        output: &mut BytesMut,
        catalogue: &C,
    ) {
        let set = number == option_number::SET_META_CONTEXT;
        if set {
            self.allocation_of = None;
        }
        let mut reply = |reply: OptionReply<'_>| reply.encode(number, output);
        if set && !self.structured {
            let message = "structured replies must be negotiated first";
            return reply(OptionReply::Error { error: ReplyError::Invalid, message });
        }
        if catalogue.find(query.export).is_none() {
            return reply(unknown_export());
        }
        let chosen = if set {
            query.queries.contains(&ALLOCATION_CONTEXT)
        } else {
            query.queries.is_empty()
                || query.queries.iter().any(|q| matches!(*q, "base:" | ALLOCATION_CONTEXT))
        };
        if chosen {
            let id = if set { ALLOCATION_CONTEXT_ID } else { 0 };
            reply(OptionReply::MetaContext { id, name: ALLOCATION_CONTEXT });
        }
        reply(OptionReply::Ack);
        if set && chosen {
            self.allocation_of = Some(query.export.to_owned());
        }
    }

    fn agree<H>(&mut self, name: &str, info: ExportInfo, handle: H) -> Agreement<H> {
        let allocation = self.structured && self.allocation_of.as_deref() == Some(name);
        Agreement { name: name.to_owned(), info, handle, structured: self.structured, allocation }
    }
}

fn unknown_export() -> OptionReply<'static> {
    OptionReply::Error { error: ReplyError::UnknownExport, message: "there is no such export" }
}
