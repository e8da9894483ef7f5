//! Takes requests and their payloads off a connection.

use std::io;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::protocol::{ProtocolError, Request};

/// Holds some 500 requests without payload. Not larger, because what lands here of a write's
/// payload is copied once more; the rest goes straight to its place.
const BUFFER_BYTES: usize = 16 << 10;

/// Why no more requests can be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("the client sent nothing for {0:?} in the middle of a request")]
    Stalled(Duration),
}

pub(crate) struct RequestReader<R> {
    source: R,
    buffer: BytesMut,
    stall_timeout: Duration,
}

impl<R: AsyncRead + Unpin> RequestReader<R> {
    /// `buffer` may hold bytes that were read already.
    pub fn new(source: R, buffer: BytesMut, stall_timeout: Duration) -> Self {
        Self { source, buffer, stall_timeout }
    }

    /// Whether [`Self::next`] will return without waiting for the client.
    pub fn has_request(&self) -> bool {
        self.buffer.len() >= Request::BYTES
    }

    /// The next request, or `None` if the client has closed the connection between requests.
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Option<Request>, ReadError> {
        while !self.has_request() {
            self.buffer.reserve(BUFFER_BYTES);
            let mut space = (&mut self.buffer).limit(BUFFER_BYTES);
            if self.source.read_buf(&mut space).await? == 0 {
                if self.buffer.is_empty() {
                    return Ok(None);
                }
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
        let request = Request::decode(&self.buffer)?;
        self.buffer.advance(Request::BYTES);
        Ok(Some(request))
    }

    /// Whether [`Self::payload`] will return without waiting for the client.
    pub fn has_payload(&self, len: u32) -> bool {
        u32::try_from(self.buffer.len()).is_ok_and(|held| held >= len)
    }

    /// The payload of a write. The caller has checked `len` and set memory aside for it.
    pub async fn payload(&mut self, len: u32) -> Result<Bytes, ReadError> {
        let len = usize::try_from(len).map_err(|_| ProtocolError::Malformed("length above memory"))?;
        let mut payload = BytesMut::with_capacity(len);
        let held = self.buffer.len().min(len);
        payload.put_slice(&self.buffer[..held]);
        self.buffer.advance(held);
        while payload.len() < len {
            let left = len - payload.len();
            let mut space = (&mut payload).limit(left);
            let read = self.source.read_buf(&mut space);
            let read = tokio::time::timeout(self.stall_timeout, read).await;
            if read.map_err(|_| ReadError::Stalled(self.stall_timeout))?? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
        Ok(payload.freeze())
    }

    /// Drops the payload of a write that is refused, through the buffer that is there.
    pub async fn discard(&mut self, len: u32) -> Result<(), ReadError> {
        let mut left = usize::try_from(len).map_err(|_| ProtocolError::Malformed("length above memory"))?;
        loop {
            let held = self.buffer.len().min(left);
            self.buffer.advance(held);
            left -= held;
            if left == 0 {
                return Ok(());
            }
            self.buffer.reserve(BUFFER_BYTES);
            let mut space = (&mut self.buffer).limit(BUFFER_BYTES);
            let read = self.source.read_buf(&mut space);
            let read = tokio::time::timeout(self.stall_timeout, read).await;
            if read.map_err(|_| ReadError::Stalled(self.stall_timeout))?? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }
}
