//! One part, from the bytes of a request to a durable file.
//!
//! ```text
//! body ─▶ decoder ─▶ sealing pool ─▶ writer thread ─▶ fdatasync ─▶ rename ─▶ receipt
//!         (task)     (shared)        (in order)
//! ```
//!
//! Memory is bounded by one budget for all connections: a frame takes its share before it is handed to
//! the pool and gives it back when it is in the file. Whoever waits for a share holds one message.

use std::fs::OpenOptions;
use std::io::{BufWriter, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use lifeboat_hrl::{FileId, FileSummary, HrlError, Problem, SealedFrame, Writer};
use lifeboat_model::{Extent, blocks_of_bytes};
use lifeboat_wire::agent::PartReceipt;
use lifeboat_wire::process_server::SpoolState;
use lifeboat_wire::stream::{Decoder, Message};
use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::clock::Clock;
use crate::gateway::{Gateway, PartPlace, PartTicket};
use crate::refusal::Refusal;
use crate::sealing_pool::{Lane, SealingPool};
use crate::settings::SpoolSettings;
use crate::state_dir::StateError;
use crate::write_behind::WriteBehind;

/// Messages of the longest part. Bounds the memory that the index of its file takes.
pub const MESSAGES_PER_PART_MAX: u64 = 1 << 18;

/// A connection that sends nothing for so long is given up.
const STALL_MAX: Duration = Duration::from_secs(60);

/// Bytes between two looks at the room that is left.
const ROOM_CHECK_BYTES: u64 = 4 << 20;

/// Small frames are gathered up to so many bytes; larger ones are written as they are.
const GATHER_BYTES: usize = 32 << 10;

/// Receives parts for all agents.
pub(crate) struct Receiver {
    pub gateway: Arc<Gateway>,
    pub pool: SealingPool,
    /// One permit for each block that may be in memory.
    pub budget: Arc<Semaphore>,
    pub compression_level: i32,
    pub spool: SpoolSettings,
    pub clock: Clock,
}

enum Step {
    Frame(oneshot::Receiver<lifeboat_hrl::Result<SealedFrame>>, OwnedSemaphorePermit),
    Zeroes(Extent),
    /// Without it the part was cut off.
    End,
}

impl Receiver {
    /// Receives a part. When this returns a receipt, the part is durable.
    ///
    /// # Errors
    /// When it is refused, damaged or cut off. It counts for nothing then.
    pub async fn receive<E: std::fmt::Display>(
        &self,
        place: PartPlace,
        body: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<PartReceipt, Refusal> {
        let body = std::pin::pin!(body);
        check_room(&self.gateway, &self.spool)?;
        let disk = place.disk;
        let ticket = self.gateway.begin_part(place, fresh_file_id()?, self.compression_level)?;
        let ticket = Arc::new(ticket);
        let (steps, inbox) = mpsc::channel(self.pool.workers() * 2 + 2);
        let writer = PartWriter {
            gateway: Arc::clone(&self.gateway),
            spool: self.spool.clone(),
            ticket: Arc::clone(&ticket),
        };
        // When this task is dropped since the connection was cut, the thread sees the end of its inbox.
        let writing = tokio::task::spawn_blocking(move || writer.write(inbox));
        let fed = tokio::select! {
            biased;
            () = ticket.taken_over.cancelled() => Err(Refusal::Superseded { disk }),
            // The writer has ended, and says below how.
            () = steps.closed() => Ok(()),
            fed = self.feed(&ticket, body, &steps) => fed,
        };
        drop(steps);
        let written = writing.await.map_err(|_| Refusal::Stopping)?;
        fed?;
        written
    }

    /// Hands the messages of the body to pool and writer.
    async fn feed<E: std::fmt::Display>(
        &self,
        ticket: &PartTicket,
        mut body: impl Stream<Item = Result<Bytes, E>> + Send + Unpin,
        steps: &mpsc::Sender<Step>,
    ) -> Result<(), Refusal> {
        let lane = self.pool.lane();
        let mut decoder = Decoder::new(blocks_of_bytes(ticket.disk_bytes()));
        let mut messages = 0;
        let mut frames = 0;
        loop {
            let piece = match tokio::time::timeout(STALL_MAX, body.next()).await {
                Err(_) => return Err(Refusal::Stalled(STALL_MAX)),
                Ok(None) => break,
                Ok(Some(piece)) => piece.map_err(|error| Refusal::CutOff(error.to_string()))?,
            };
            self.gateway.count_received(ticket.server(), piece.len() as u64, self.clock.now());
            decoder.push(piece);
            while let Some(message) = decoder.next_message()? {
                messages += 1;
                if messages > MESSAGES_PER_PART_MAX {
                    return Err(Refusal::TooLong { messages_max: MESSAGES_PER_PART_MAX });
                }
                let step = self.step(message, &mut frames, ticket, &lane).await?;
                if steps.send(step).await.is_err() {
                    return Ok(());
                }
            }
        }
        decoder.finish()?;
        // When the writer is gone already, it says why.
        let _ = steps.send(Step::End).await;
        // Wait for it here, since with the lane its jobs would be forgotten.
        steps.closed().await;
        Ok(())
    }

    async fn step(
        &self,
        message: Message,
        frames: &mut u32,
        ticket: &PartTicket,
        lane: &Lane,
    ) -> Result<Step, Refusal> {
        let (extent, digest, bytes) = match message {
            Message::Zeroes { extent } => return Ok(Step::Zeroes(extent)),
            Message::Data { extent, digest, bytes } => (extent, digest, bytes),
        };
        let blocks = u32::try_from(extent.blocks).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.budget).acquire_many_owned(blocks).await;
        let permit = permit.map_err(|_| Refusal::Stopping)?;
        let (number, sealer) = (*frames, ticket.sealer.clone());
        *frames += 1;
        Ok(Step::Frame(lane.submit(move || sealer.seal(number, extent, &bytes, digest)), permit))
    }
}

/// Writes one file, on a thread of its own.
struct PartWriter {
    gateway: Arc<Gateway>,
    spool: SpoolSettings,
    ticket: Arc<PartTicket>,
}

impl PartWriter {
    fn write(self, mut inbox: mpsc::Receiver<Step>) -> Result<PartReceipt, Refusal> {
        let path = &self.ticket.partial;
        let written = self.write_file(path, &mut inbox);
        let finished = written.and_then(|summary| self.gateway.finish_part(&self.ticket, summary));
        if finished.is_err() {
            remove_partial(path);
        }
        finished
    }

    fn write_file(&self, path: &Path, inbox: &mut mpsc::Receiver<Step>) -> Result<FileSummary, Refusal> {
        let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = created.map_err(|error| self.refusal(Problem::Io(error).into()))?;
        let buffered = BufWriter::with_capacity(GATHER_BYTES, WriteBehind::new(file));
        let mut writer = Writer::new(buffered, &self.ticket.sealer).map_err(|error| self.refusal(error))?;
        let mut checked_at = 0;
        loop {
            let wrote = match inbox.blocking_recv() {
                Some(Step::Frame(sealed, _permit)) => {
                    let sealed = sealed.blocking_recv().map_err(|_| Refusal::Stopping)?;
                    sealed.and_then(|frame| writer.append(frame))
                }
                Some(Step::Zeroes(extent)) => writer.zeroes(extent),
                Some(Step::End) => break,
                None => return Err(Refusal::CutOff("it closed".into())),
            };
            wrote.map_err(|error| self.refusal(error))?;
            if writer.bytes() - checked_at > ROOM_CHECK_BYTES {
                check_room(&self.gateway, &self.spool)?;
                checked_at = writer.bytes();
            }
        }
        let (buffered, summary) = writer.finish().map_err(|error| self.refusal(error))?;
        let synced = buffered.into_inner().map_err(std::io::IntoInnerError::into_error);
        synced.and_then(|file| file.sync_data()).map_err(|error| self.refusal(Problem::Io(error).into()))?;
        Ok(summary)
    }

    /// What an error of the file means for the agent.
    fn refusal(&self, error: HrlError) -> Refusal {
        match &error.problem {
            Problem::Io(cause) if cause.kind() == ErrorKind::StorageFull => {
                let free_bytes = self.gateway.space().map_or(0, |space| space.free_bytes);
                Refusal::SpoolFull { free_bytes }
            }
            Problem::DataMismatch(_) | Problem::BadExtent { .. } => Refusal::Data(error),
            Problem::Full(_) => Refusal::TooLong { messages_max: MESSAGES_PER_PART_MAX },
            _ => Refusal::Write(error.in_file(self.ticket.partial.display())),
        }
    }
}

impl Drop for PartWriter {
    fn drop(&mut self) {
        self.gateway.abandon_part(&self.ticket);
    }
}

/// Refuses while less than the reserve is free, or nothing can be written.
pub(crate) fn check_room(gateway: &Gateway, settings: &SpoolSettings) -> Result<(), Refusal> {
    let space = gateway.space()?;
    match space.state(settings) {
        SpoolState::Full => Err(Refusal::SpoolFull { free_bytes: space.free_bytes }),
        SpoolState::ReadOnly => Err(Refusal::SpoolReadOnly { path: gateway.state_dir().join("spool") }),
        _ => Ok(()),
    }
}

fn fresh_file_id() -> Result<FileId, Refusal> {
    let mut id = [0; 16];
    OsRng.try_fill_bytes(&mut id).map_err(|error| {
        let path = PathBuf::from("the system's random numbers");
        Refusal::State(StateError::Io { action: "read", path, source: std::io::Error::other(error) })
    })?;
    Ok(FileId(id))
}

fn remove_partial(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!("{} stays until the next start: {error}", path.display());
    }
}
