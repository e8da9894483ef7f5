//! The transmission phase: requests in, replies out, many at a time.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::export::{ExportError, ReadChunk, StatusExtent};
use crate::limits::Limits;
use crate::operation::{self, Operation, Terms};
use crate::protocol::{Errno, Head, PAYLOAD_BYTES_MAX, Request, encode_extents, truncated};
use crate::registry::Attachment;
use crate::reply_queue::{ReplyQueue, Segment, Ticket};
use crate::request_reader::{ReadError, RequestReader};

/// Queued replies of this size are sent without waiting for the rest of the requests at hand.
const FLUSH_BYTES: usize = 256 << 10;
/// Payload of a refused write that is read and dropped to stay in step. A client that claims
/// more is cut off.
const DISCARD_BYTES_MAX: u32 = 2 * PAYLOAD_BYTES_MAX;

static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// What the requests of one connection may use.
pub(crate) struct Budget {
    in_flight_max: u32,
    slots: Arc<Semaphore>,
    connection_bytes: Arc<Semaphore>,
    server_bytes: Arc<Semaphore>,
}

impl Budget {
    pub fn new(limits: &Limits, server_bytes: Arc<Semaphore>) -> Self {
        let in_flight_max = limits.in_flight_max.max(1);
        Self {
            in_flight_max,
            slots: Arc::new(Semaphore::new(in_flight_max as usize)),
            connection_bytes: Arc::new(Semaphore::new(
                limits.connection_bytes_max.max(PAYLOAD_BYTES_MAX) as usize
            )),
            server_bytes,
        }
    }

    /// Waits for a share. All connections take the three in the same order, and who holds one
    /// for an operation that runs needs no other, so this cannot lock up.
    async fn ticket(&self, cost_bytes: u32) -> Option<Ticket> {
        let slot = Arc::clone(&self.slots).acquire_owned().await.ok()?;
        let bytes = async |semaphore: &Arc<Semaphore>| -> Option<Option<OwnedSemaphorePermit>> {
            if cost_bytes == 0 {
                return Some(None);
            }
            Arc::clone(semaphore).acquire_many_owned(cost_bytes).await.ok().map(Some)
        };
        Some(Ticket {
            _slot: slot,
            _connection_bytes: bytes(&self.connection_bytes).await?,
            _server_bytes: bytes(&self.server_bytes).await?,
        })
    }

    /// Waits until every reply has been written or dropped.
    async fn all_answered(&self) {
        let _all = self.slots.acquire_many(self.in_flight_max).await;
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    #[error("the client disconnected")]
    Disconnected,
    #[error("the export was removed")]
    Removed,
    #[error("replies could not be sent")]
    NoReplies,
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the client announced a write of {0} bytes")]
    AbsurdWrite(u32),
}

/// What all requests of a connection share.
struct Session<W> {
    attachment: Attachment,
    terms: Terms,
    replies: Arc<ReplyQueue<W>>,
}

/// Serves requests until one side ends the connection. `buffered` holds bytes that were read
/// with the handshake.
pub(crate) async fn serve<R, W>(
    source: R,
    sink: W,
    buffered: BytesMut,
    attachment: Attachment,
    terms: Terms,
    budget: &Budget,
    limits: &Limits,
) -> End
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let mut reader = RequestReader::new(source, buffered, limits.stall_timeout);
    let replies = ReplyQueue::new(sink, limits.stall_timeout);
    let session = Arc::new(Session { attachment, terms, replies: Arc::clone(&replies) });
    let abort = session.attachment.abort.clone();
    let end = tokio::select! {
        end = session.run(&mut reader, budget) => end,
        () = abort.cancelled() => End::Removed,
    };
    drop(session);
    replies.close();
    end
}

impl<W: AsyncWrite + Unpin + Send + 'static> Session<W> {
    async fn run<R: AsyncRead + Unpin>(
        self: &Arc<Self>,
        reader: &mut RequestReader<R>,
        budget: &Budget,
    ) -> End {
        let end = match self.take_requests(reader, budget).await {
            Ok(end) => end,
            // The stream is out of step or gone. Writes in flight run on, nobody hears of it.
            Err(end) => return end,
        };
        if matches!(end, End::Removed)
            && !self.attachment.stopping.is_cancelled()
            && let Err(end) = self.turn_away(reader, budget).await
        {
            return end;
        }
        self.flush_soon().await;
        tokio::select! {
            () = budget.all_answered() => {}
            () = self.replies.closed() => return End::NoReplies,
        }
        Arc::clone(&self.replies).flush().await;
        self.replies.shutdown().await;
        end
    }

    /// Starts requests as they come. `Ok` if those in flight are still to be answered.
    async fn take_requests<R: AsyncRead + Unpin>(
        self: &Arc<Self>,
        reader: &mut RequestReader<R>,
        budget: &Budget,
    ) -> Result<End, End> {
        let closing = self.attachment.closing.cancelled();
        let closed = self.replies.closed();
        tokio::pin!(closing, closed);
        loop {
            if !reader.has_request() {
                self.flush_soon().await;
            }
            let request = tokio::select! {
                biased;
                () = &mut closing => return Ok(End::Removed),
                () = &mut closed => return Err(End::NoReplies),
                request = reader.next() => request?,
            };
            let Some(request) = request else { return Ok(End::Disconnected) };
            match operation::check(&request, &self.terms) {
                Ok(Operation::Disconnect) => return Ok(End::Disconnected),
                Ok(operation) => self.start(&request, operation, reader, budget).await?,
                Err(refusal) => {
                    discard_payload(&request, reader).await?;
                    self.refuse(&request, refusal.errno, refusal.message);
                    // Nothing else bounds how many of these wait.
                    Arc::clone(&self.replies).flush().await;
                }
            }
        }
    }

    /// Answers requests with `ESHUTDOWN` while those in flight are finished.
    async fn turn_away<R: AsyncRead + Unpin>(
        &self,
        reader: &mut RequestReader<R>,
        budget: &Budget,
    ) -> Result<(), End> {
        let answered = budget.all_answered();
        tokio::pin!(answered);
        let mut waiting = true;
        while waiting || reader.has_request() {
            Arc::clone(&self.replies).flush().await;
            let request = tokio::select! {
                () = &mut answered, if waiting => {
                    waiting = false;
                    continue;
                }
                () = self.replies.closed() => return Err(End::NoReplies),
                request = reader.next() => request?,
            };
            let Some(request) = request else { return Ok(()) };
            if matches!(operation::check(&request, &self.terms), Ok(Operation::Disconnect)) {
                return Ok(());
            }
            discard_payload(&request, reader).await?;
            self.refuse(&request, Errno::Shutdown, "the export is being shut down");
        }
        Ok(())
    }

    /// Waits for room, takes the payload and sets the operation going.
    async fn start<R: AsyncRead + Unpin>(
        self: &Arc<Self>,
        request: &Request,
        operation: Operation,
        reader: &mut RequestReader<R>,
        budget: &Budget,
    ) -> Result<(), End> {
        let ticket = match budget.ticket(operation.cost_bytes()).now_or_never() {
            Some(ticket) => ticket,
            None => {
                // Replies that wait hold the very room that is waited for.
                self.flush_soon().await;
                tokio::select! {
                    ticket = budget.ticket(operation.cost_bytes()) => ticket,
                    () = self.replies.closed() => return Err(End::NoReplies),
                }
            }
        };
        let payload_bytes = request.payload_bytes();
        if !reader.has_payload(payload_bytes) {
            self.flush_soon().await;
        }
        let payload = reader.payload(payload_bytes).await?;

        let session = Arc::clone(self);
        let cookie = request.cookie;
        let mut work = Box::pin(async move {
            let outcome = session.carry_out(operation, payload).await;
            session.answer(cookie, operation, outcome, ticket)
        });
        // Most answers are ready at once; a task of their own would cost more than they do.
        match poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await {
            Poll::Ready(waiting_bytes) if waiting_bytes >= FLUSH_BYTES => self.flush_soon().await,
            Poll::Ready(_) => {}
            Poll::Pending => {
                let replies = Arc::clone(&self.replies);
                tokio::spawn(finish(work, replies));
            }
        }
        Ok(())
    }

    async fn flush_soon(&self) {
        poll_fn(|context| {
            self.replies.flush_soon(context);
            Poll::Ready(())
        })
        .await;
    }

    /// Runs the operation. Whatever the export does, there is an outcome.
    async fn carry_out(&self, operation: Operation, payload: Bytes) -> Result<Outcome, ExportError> {
        if operation.is_empty() {
            return Ok(Outcome::Done);
        }
        let call = AssertUnwindSafe(self.call(operation, payload)).catch_unwind();
        let outcome = tokio::select! {
            biased;
            outcome = call => outcome,
            () = self.attachment.abort.cancelled() => return Err(ExportError::ShuttingDown),
        };
        outcome.unwrap_or_else(|_| {
            tracing::error!(?operation, "the export panicked; the request is answered with EIO");
            Err(ExportError::Io("internal error, see the log of the server".to_owned()))
        })
    }

    async fn call(&self, operation: Operation, payload: Bytes) -> Result<Outcome, ExportError> {
        let export = &*self.attachment.export;
        match operation {
            Operation::Read { offset, len, .. } => {
                let chunks = export.read(offset, len).await?;
                let read: u64 = chunks.iter().map(ReadChunk::len).sum();
                if read != u64::from(len) {
                    tracing::error!(offset, len, read, "the export returned the wrong number of bytes");
                    return Err(ExportError::Io("internal error, see the log of the server".to_owned()));
                }
                return Ok(Outcome::Data(chunks));
            }
            Operation::BlockStatus { offset, len, extents_max } => {
                return Ok(Outcome::Status(export.block_status(offset, len.into(), extents_max).await?));
            }
            Operation::Write { offset, fua, .. } => export.write(offset, payload, fua).await?,
            Operation::WriteZeroes { offset, len, mode } => {
                export.write_zeroes(offset, len.into(), mode).await.map_err(|error| match error {
                    // Only a client that asked for speed understands this error.
                    ExportError::NotSupported(message) if !mode.fast => ExportError::Io(message),
                    error => error,
                })?;
            }
            Operation::Trim { offset, len, fua } => export.trim(offset, len.into(), fua).await?,
            Operation::Cache { offset, len } => export.prefetch(offset, len.into()).await?,
            Operation::Flush => export.flush().await?,
            Operation::Disconnect => {}
        }
        Ok(Outcome::Done)
    }

    /// Queues the reply; returns how many bytes wait to be sent.
    fn answer(
        &self,
        cookie: u64,
        operation: Operation,
        outcome: Result<Outcome, ExportError>,
        ticket: Option<Ticket>,
    ) -> usize {
        let structured = self.terms.structured;
        self.replies.push(ticket, |out| match (outcome, operation) {
            (Ok(Outcome::Data(chunks)), Operation::Read { offset, no_fragments, .. }) => {
                if structured {
                    structured_data(cookie, offset, chunks, no_fragments, out);
                } else {
                    out.push_back(Segment::Head(Head::simple(cookie, None)));
                    chunks.into_iter().for_each(|chunk| push_chunk(chunk, out));
                }
            }
            (Ok(Outcome::Status(extents)), Operation::BlockStatus { len, extents_max, .. }) => {
                let extents = encode_extents(&extents, len, extents_max);
                let extents_bytes = u32::try_from(extents.len()).unwrap_or(u32::MAX);
                out.push_back(Segment::Head(Head::block_status(cookie, extents_bytes)));
                out.push_back(Segment::Data(extents));
            }
            (Ok(_), _) => {
                let head = if structured { Head::done(cookie) } else { Head::simple(cookie, None) };
                out.push_back(Segment::Head(head));
            }
            (Err(error), _) => push_error(structured, cookie, error.errno(), &error.to_string(), out),
        })
    }

    fn refuse(&self, request: &Request, errno: Errno, message: &str) {
        tracing::debug!(?request, ?errno, message, "request refused");
        self.replies.push(None, |out| push_error(self.terms.structured, request.cookie, errno, message, out));
    }
}

/// What came of an operation.
enum Outcome {
    Done,
    Data(Vec<ReadChunk>),
    Status(Vec<StatusExtent>),
}

/// Sees a request through that was not ready at once.
async fn finish<W: AsyncWrite + Unpin + Send + 'static>(
    work: Pin<Box<impl Future<Output = usize>>>,
    replies: Arc<ReplyQueue<W>>,
) {
    work.await;
    replies.flush().await;
}

async fn discard_payload<R: AsyncRead + Unpin>(
    request: &Request,
    reader: &mut RequestReader<R>,
) -> Result<(), End> {
    let payload_bytes = request.payload_bytes();
    if payload_bytes > DISCARD_BYTES_MAX {
        return Err(End::AbsurdWrite(payload_bytes));
    }
    Ok(reader.discard(payload_bytes).await?)
}

fn push_error(structured: bool, cookie: u64, errno: Errno, message: &str, out: &mut VecDeque<Segment>) {
    if !structured {
        out.push_back(Segment::Head(Head::simple(cookie, Some(errno))));
        return;
    }
    let (message, message_bytes) = truncated(message);
    out.push_back(Segment::Head(Head::error(cookie, errno, message_bytes)));
    out.push_back(Segment::Data(Bytes::copy_from_slice(message.as_bytes())));
}

fn push_chunk(chunk: ReadChunk, out: &mut VecDeque<Segment>) {
    match chunk {
        ReadChunk::Data(data) => out.push_back(Segment::Data(data)),
        ReadChunk::Zeroes(len) => {
            let mut left = len as usize;
            while left > 0 {
                let here = left.min(ZEROES.len());
                out.push_back(Segment::Data(Bytes::from_static(&ZEROES[..here])));
                left -= here;
            }
        }
    }
}

/// The chunks of a read as chunks of the protocol: one for each run of data or zeroes, or one
/// for all if the client does not want fragments.
fn structured_data(
    cookie: u64,
    mut offset: u64,
    chunks: Vec<ReadChunk>,
    no_fragments: bool,
    out: &mut VecDeque<Segment>,
) {
    let is_zero = |chunk: &ReadChunk| matches!(chunk, ReadChunk::Zeroes(_));
    let all_zero = chunks.iter().all(is_zero);
    let mut chunks = chunks.into_iter().filter(|chunk| !chunk.is_empty()).peekable();
    while let Some(first) = chunks.next() {
        let zero = is_zero(&first) && (all_zero || !no_fragments);
        let mut run_bytes = first.len();
        let head_at = out.len();
        out.push_back(Segment::Data(Bytes::new()));
        if !zero {
            push_chunk(first, out);
        }
        let same = |next: &ReadChunk| (no_fragments && !all_zero) || is_zero(next) == zero;
        while let Some(next) = chunks.next_if(same) {
            run_bytes += next.len();
            if !zero {
                push_chunk(next, out);
            }
        }
        // The sum of all chunks was checked to be the length of the request.
        let len = u32::try_from(run_bytes).unwrap_or(u32::MAX);
        let done = chunks.peek().is_none();
        let head =
            if zero { Head::hole(cookie, offset, len, done) } else { Head::data(cookie, offset, len, done) };
        out[head_at] = Segment::Head(head);
        offset += run_bytes;
    }
}
