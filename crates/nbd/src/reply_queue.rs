//! Replies on their way to the client.
//!
//! There is no writer task. Whoever has queued a reply takes the writing half out of the queue,
//! writes all that is there, also what others add meanwhile, and puts it back. So a reply costs
//! no change of task, and replies that are ready together leave in one system call.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::protocol::Head;

/// Slices for one system call.
const SLICES_MAX: usize = 64;

/// A request's share of the limits, returned when its reply has been written.
pub(crate) struct Ticket {
    pub _slot: OwnedSemaphorePermit,
    pub _connection_bytes: Option<OwnedSemaphorePermit>,
    pub _server_bytes: Option<OwnedSemaphorePermit>,
}

/// A piece of the byte stream to the client.
pub(crate) enum Segment {
    Head(Head),
    Data(Bytes),
    /// All of a reply stands before this.
    End(#[allow(dead_code, reason = "held for its drop")] Option<Ticket>),
}

impl Segment {
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Head(head) => head.as_bytes(),
            Self::Data(data) => data,
            Self::End(_) => &[],
        }
    }
}

pub(crate) struct ReplyQueue<W> {
    inner: Mutex<Inner<W>>,
    /// Nothing can be written any more.
    closed: CancellationToken,
    stall_timeout: Duration,
}

struct Inner<W> {
    waiting: VecDeque<Segment>,
    waiting_bytes: usize,
    /// Absent while somebody writes.
    writer: Option<W>,
}

impl<W: AsyncWrite + Unpin + Send + 'static> ReplyQueue<W> {
    pub fn new(writer: W, stall_timeout: Duration) -> Arc<Self> {
        let inner = Inner { waiting: VecDeque::new(), waiting_bytes: 0, writer: Some(writer) };
        Arc::new(Self { inner: Mutex::new(inner), closed: CancellationToken::new(), stall_timeout })
    }

    /// Queues a reply, whole, behind those that wait. Returns how many bytes wait now.
    pub fn push(&self, ticket: Option<Ticket>, fill: impl FnOnce(&mut VecDeque<Segment>)) -> usize {
        let mut inner = self.lock();
        if self.closed.is_cancelled() {
            return 0;
        }
        let before = inner.waiting.len();
        fill(&mut inner.waiting);
        let added: usize = inner.waiting.range(before..).map(|segment| segment.as_bytes().len()).sum();
        inner.waiting.push_back(Segment::End(ticket));
        inner.waiting_bytes += added;
        inner.waiting_bytes
    }

    /// Writes what waits, unless somebody else is at it, who then does it.
    pub async fn flush(self: Arc<Self>) {
        let Some(mut writing) = self.begin() else { return };
        loop {
            let written = tokio::select! {
                biased;
                written = write_batch(&mut writing.writer, &mut writing.batch, self.stall_timeout) => written,
                () = self.closed.cancelled() => return,
            };
            if let Err(error) = written {
                tracing::debug!(%error, "a reply could not be sent");
                self.close();
                return;
            }
            match self.go_on(writing) {
                Some(more) => writing = more,
                None => return,
            }
        }
    }

    /// Like [`Self::flush`], but returns at once: what cannot be written now is left to a task.
    pub fn flush_soon(self: &Arc<Self>, context: &mut std::task::Context<'_>) {
        if !self.has_work() {
            return;
        }
        let mut flush = Box::pin(Arc::clone(self).flush());
        if flush.as_mut().poll(context).is_pending() {
            tokio::spawn(flush);
        }
    }

    /// Resolves when nothing can be written any more.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Drops what waits and all that will come.
    pub fn close(&self) {
        let dropped = {
            let mut inner = self.lock();
            self.closed.cancel();
            inner.waiting_bytes = 0;
            (std::mem::take(&mut inner.waiting), inner.writer.take())
        };
        drop(dropped);
    }

    /// Ends the stream in good order (TLS says so too). Everything must have been written.
    pub async fn shutdown(&self) {
        let writer = self.lock().writer.take();
        if let Some(mut writer) = writer {
            // The client may be gone already; there is nobody to tell.
            let _ = tokio::time::timeout(self.stall_timeout, writer.shutdown()).await;
        }
        self.close();
    }

    fn lock(&self) -> MutexGuard<'_, Inner<W>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_work(&self) -> bool {
        let inner = self.lock();
        inner.writer.is_some() && !inner.waiting.is_empty()
    }

    fn begin(&self) -> Option<Writing<W>> {
        let mut inner = self.lock();
        if inner.waiting.is_empty() {
            return None;
        }
        let writer = inner.writer.take()?;
        inner.waiting_bytes = 0;
        Some(Writing { writer, batch: std::mem::take(&mut inner.waiting) })
    }

    /// The next batch for the same writer; without one the writer goes back to the queue.
    fn go_on(&self, writing: Writing<W>) -> Option<Writing<W>> {
        let mut inner = self.lock();
        if self.closed.is_cancelled() {
            return None;
        }
        if inner.waiting.is_empty() {
            inner.writer = Some(writing.writer);
            // The emptied batch keeps its memory; use it for the next replies.
            inner.waiting = writing.batch;
            return None;
        }
        inner.waiting_bytes = 0;
        let batch = std::mem::replace(&mut inner.waiting, writing.batch);
        Some(Writing { writer: writing.writer, batch })
    }
}

struct Writing<W> {
    writer: W,
    batch: VecDeque<Segment>,
}

/// Writes the whole batch and empties it, releasing tickets as their replies leave.
async fn write_batch<W: AsyncWrite + Unpin>(
    writer: &mut W,
    batch: &mut VecDeque<Segment>,
    stall_timeout: Duration,
) -> io::Result<()> {
    let stalled = || io::Error::new(io::ErrorKind::TimedOut, "the client does not take replies");
    let mut skip = 0;
    loop {
        skip = release_written(batch, skip);
        if batch.is_empty() {
            break;
        }
        let written = {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = fill_slices(batch, skip, &mut slices);
            let write = writer.write_vectored(&slices[..count]);
            tokio::time::timeout(stall_timeout, write).await.map_err(|_| stalled())??
        };
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        skip += written;
    }
    tokio::time::timeout(stall_timeout, writer.flush()).await.map_err(|_| stalled())?
}

/// Takes off the front of the batch what the first `skip` bytes cover; returns the rest of
/// `skip`, which lies within the new front.
fn release_written(batch: &mut VecDeque<Segment>, mut skip: usize) -> usize {
    while let Some(front) = batch.front_mut() {
        let len = front.as_bytes().len();
        if skip < len {
            // Lets go of nothing, but keeps the slices below simple.
            if let Segment::Data(data) = front {
                data.advance(skip);
                skip = 0;
            }
            break;
        }
        skip -= len;
        batch.pop_front();
    }
    skip
}

fn fill_slices<'a>(
    batch: &'a VecDeque<Segment>,
    mut skip: usize,
    slices: &mut [IoSlice<'a>; SLICES_MAX],
) -> usize {
    let mut count = 0;
    for segment in batch {
        if count == SLICES_MAX {
            break;
        }
        let bytes = &segment.as_bytes()[skip..];
        skip = 0;
        if !bytes.is_empty() {
            slices[count] = IoSlice::new(bytes);
            count += 1;
        }
    }
    count
}
