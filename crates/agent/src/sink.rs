//! Where captured blocks go: each disk's into the body of a request, one part at a time.
//!
//! A channel of a few pieces lies between the reader and the request, so a process server that
//! takes no more stops the reading, and memory does not grow.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::stream;
use lifeboat_capture::{ChangeSink, SinkClosed};
use lifeboat_model::{Digest, DiskNumber, Extent, Part};
use lifeboat_wire::agent::PartReceipt;
use lifeboat_wire::stream as change_stream;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinHandle;

use crate::engine::{Failure, OpenEpoch};
use crate::link::ProcessServer;
use crate::pace::Pace;

/// Pieces between the reader and a request.
const PIECES: usize = 8;

/// Small messages are gathered up to this size; what is larger goes as it is.
const PIECE_BYTES: usize = 128 << 10;

/// A part is ended when it has so much content, and the next one goes on.
const PART_BYTES_MAX: u64 = 256 << 20;

/// A part is ended when it has so many messages.
const PART_MESSAGES_MAX: u64 = 60_000;

/// A part that got nothing for so long is ended: the process server gives up after 60 s.
const IDLE_MAX: Duration = Duration::from_secs(20);

/// A process server that takes nothing for so long is lost.
const STALL_MAX: Duration = Duration::from_secs(90);

/// What all sinks of an agent share.
#[derive(Debug)]
pub(crate) struct Uplink {
    pub server: ProcessServer,
    pub runtime: Handle,
    /// The limit of everything that is sent.
    pub throttle: Pace,
    /// The limit of first copies and resyncs.
    pub copy_limit: Pace,
    /// Ends all sending soon.
    pub stop: AtomicBool,
}

/// Which limits hold for a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// Changes on the way to a point.
    Changes,
    /// First copies and resyncs.
    Copy,
}

/// Takes changes of some disks in their open epochs.
#[derive(Debug)]
pub(crate) struct PartSink {
    uplink: Arc<Uplink>,
    traffic: Traffic,
    disks: BTreeMap<DiskNumber, Places>,
    failure: Option<Failure>,
    sent_bytes: u64,
}

#[derive(Debug)]
struct Places {
    next: OpenEpoch,
    open: Option<Upload>,
}

/// One request under way.
#[derive(Debug)]
struct Upload {
    pieces: mpsc::Sender<Bytes>,
    gathered: BytesMut,
    messages: u64,
    bytes: u64,
    last_push: Instant,
    task: JoinHandle<Result<PartReceipt, Failure>>,
}

impl PartSink {
    pub fn new(uplink: Arc<Uplink>, traffic: Traffic, open: &[OpenEpoch]) -> Self {
        let disks = open.iter().map(|next| (next.disk, Places { next: *next, open: None })).collect();
        Self { uplink, traffic, disks, failure: None, sent_bytes: 0 }
    }

    /// Bytes of disk that were sent.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Ends all parts and waits until they are acknowledged. Gives the number of durable parts of
    /// each disk's epoch, for disks that have any.
    pub fn finish(mut self) -> Result<Vec<(DiskNumber, u32)>, Failure> {
        if let Some(failure) = self.failure.take() {
            self.abandon();
            return Err(failure);
        }
        // All ends are sent before any answer is awaited: the disks' syncs overlap.
        let numbers: Vec<_> = self.disks.keys().copied().collect();
        let mut ended = Vec::new();
        for number in numbers {
            if let Some(upload) = self.disks.get_mut(&number).and_then(|places| places.open.take()) {
                ended.push((number, self.end(upload)));
            }
        }
        let mut failure = None;
        for (number, task) in ended {
            match task.and_then(|task| self.receipt(task)) {
                Ok(_) => {
                    if let Some(places) = self.disks.get_mut(&number) {
                        places.next.part += 1;
                    }
                }
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(failure) => Err(failure),
            None => Ok(self.disks.iter().map(|(number, places)| (*number, places.next.part)).collect()),
        }
    }

    /// Breaks off all parts: they count for nothing at the other end.
    pub fn abandon(&mut self) {
        for places in self.disks.values_mut() {
            if let Some(upload) = places.open.take() {
                upload.task.abort();
            }
        }
    }

    /// Why the sink closed.
    pub fn take_failure(&mut self) -> Failure {
        self.failure.take().unwrap_or_else(|| Failure::Away("the agent stops".into()))
    }

    fn message(
        &mut self,
        disk: DiskNumber,
        head: &[u8],
        content: Bytes,
        bytes: u64,
    ) -> Result<(), SinkClosed> {
        let sent = self.try_message(disk, head, content, bytes);
        sent.map_err(|failure| {
            self.failure.get_or_insert(failure);
            self.abandon();
            SinkClosed
        })
    }

    fn try_message(
        &mut self,
        disk: DiskNumber,
        head: &[u8],
        content: Bytes,
        bytes: u64,
    ) -> Result<(), Failure> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        self.wait_for_pace(content.len() as u64)?;
        self.end_parts(|number, upload| number != disk && upload.last_push.elapsed() > IDLE_MAX)?;
        let mut upload = self.upload_of(disk)?;
        upload.messages += 1;
        upload.bytes += content.len() as u64;
        upload.gathered.extend_from_slice(head);
        if content.len() >= PIECE_BYTES {
            self.flush(&mut upload)?;
            self.push(&mut upload, content)?;
        } else {
            upload.gathered.extend_from_slice(&content);
            if upload.gathered.len() >= PIECE_BYTES || upload.last_push.elapsed() > IDLE_MAX / 4 {
                self.flush(&mut upload)?;
            }
        }
        self.sent_bytes += bytes;
        if let Some(places) = self.disks.get_mut(&disk) {
            places.open = Some(upload);
        }
        Ok(())
    }

    /// Ends all open parts and waits until they are durable, before a time in which nothing is sent.
    pub fn pause(&mut self) -> Result<(), SinkClosed> {
        self.end_parts(|_, _| true).map_err(|failure| {
            self.failure.get_or_insert(failure);
            self.abandon();
            SinkClosed
        })
    }

    fn end_parts(&mut self, which: impl Fn(DiskNumber, &Upload) -> bool) -> Result<(), Failure> {
        let numbers: Vec<_> = self
            .disks
            .iter()
            .filter(|(number, places)| places.open.as_ref().is_some_and(|upload| which(**number, upload)))
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            let Some(upload) = self.disks.get_mut(&number).and_then(|places| places.open.take()) else {
                continue;
            };
            let task = self.end(upload)?;
            self.receipt(task)?;
            if let Some(places) = self.disks.get_mut(&number) {
                places.next.part += 1;
            }
        }
        Ok(())
    }

    /// The open part of a disk, or the next one. A full part is acknowledged first: parts come in order.
    fn upload_of(&mut self, disk: DiskNumber) -> Result<Upload, Failure> {
        let missing = || Failure::Refused(format!("disk {disk} is not being sent"));
        let open = self.disks.get_mut(&disk).ok_or_else(missing)?.open.take();
        match open {
            Some(upload) if upload.bytes < PART_BYTES_MAX && upload.messages < PART_MESSAGES_MAX => {
                return Ok(upload);
            }
            Some(full) => {
                let task = self.end(full)?;
                self.receipt(task)?;
                self.disks.get_mut(&disk).ok_or_else(missing)?.next.part += 1;
            }
            None => {}
        }
        let OpenEpoch { epoch, part, .. } = self.disks.get(&disk).ok_or_else(missing)?.next;
        let (pieces, receiver) = mpsc::channel::<Bytes>(PIECES);
        let body = stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|piece| (Ok::<_, std::io::Error>(piece), receiver))
        });
        let uplink = Arc::clone(&self.uplink);
        let task =
            self.uplink.runtime.spawn(async move { uplink.server.part(disk, epoch, Part(part), body).await });
        let gathered = BytesMut::from(change_stream::begin().as_ref());
        Ok(Upload { pieces, gathered, messages: 0, bytes: 0, last_push: Instant::now(), task })
    }

    fn end(&self, mut upload: Upload) -> Result<JoinHandle<Result<PartReceipt, Failure>>, Failure> {
        upload.gathered.extend_from_slice(&change_stream::end(upload.messages));
        self.flush(&mut upload)?;
        Ok(upload.task)
    }

    fn receipt(&self, task: JoinHandle<Result<PartReceipt, Failure>>) -> Result<PartReceipt, Failure> {
        let abort = task.abort_handle();
        let answer = self.uplink.runtime.block_on(async { tokio::time::timeout(STALL_MAX, task).await });
        match answer {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Failure::Away("sending a part was broken off".into())),
            Err(_) => {
                abort.abort();
                Err(Failure::Away(format!("no part was acknowledged for {} s", STALL_MAX.as_secs())))
            }
        }
    }

    fn flush(&self, upload: &mut Upload) -> Result<(), Failure> {
        if upload.gathered.is_empty() {
            return Ok(());
        }
        let piece = upload.gathered.split().freeze();
        self.push(upload, piece)
    }

    fn push(&self, upload: &mut Upload, mut piece: Bytes) -> Result<(), Failure> {
        let begun = Instant::now();
        loop {
            if self.uplink.stop.load(Ordering::Relaxed) {
                upload.task.abort();
                return Err(Failure::Away("the agent stops".into()));
            }
            piece = match upload.pieces.try_send(piece) {
                Ok(()) => {
                    upload.last_push = Instant::now();
                    return Ok(());
                }
                // The request ended before its body: its answer says why.
                Err(TrySendError::Closed(_)) => return Err(self.why_closed(upload)),
                Err(TrySendError::Full(piece)) => piece,
            };
            if begun.elapsed() > STALL_MAX {
                upload.task.abort();
                return Err(Failure::Away(format!(
                    "the process server took nothing for {} s",
                    STALL_MAX.as_secs()
                )));
            }
            let pieces = upload.pieces.clone();
            self.uplink.runtime.block_on(async {
                // Room, or time to look at the flags again.
                let _ = tokio::time::timeout(Duration::from_millis(200), pieces.reserve()).await;
            });
        }
    }

    fn why_closed(&self, upload: &mut Upload) -> Failure {
        let task = &mut upload.task;
        let answer = self.uplink.runtime.block_on(async { tokio::time::timeout(STALL_MAX, task).await });
        match answer {
            Ok(Ok(Err(failure))) => failure,
            Ok(Ok(Ok(_))) => Failure::Away("the process server answered before the part was whole".into()),
            _ => Failure::Away("sending a part was broken off".into()),
        }
    }

    fn wait_for_pace(&self, bytes: u64) -> Result<(), Failure> {
        let now = Instant::now();
        let mut wait = self.uplink.throttle.delay(bytes, now);
        if self.traffic == Traffic::Copy {
            wait = wait.max(self.uplink.copy_limit.delay(bytes, now));
        }
        let until = now + wait;
        while let left = until.saturating_duration_since(Instant::now())
            && !left.is_zero()
        {
            if self.uplink.stop.load(Ordering::Relaxed) {
                return Err(Failure::Away("the agent stops".into()));
            }
            std::thread::sleep(left.min(Duration::from_millis(200)));
        }
        Ok(())
    }
}

impl ChangeSink for PartSink {
    fn data(
        &mut self,
        disk: DiskNumber,
        extent: Extent,
        digest: Digest,
        bytes: Bytes,
    ) -> Result<(), SinkClosed> {
        let [head, content] = change_stream::data(extent, digest, bytes);
        let sent = content.len() as u64;
        self.message(disk, &head, content, sent)
    }

    fn zeroes(&mut self, disk: DiskNumber, extent: Extent) -> Result<(), SinkClosed> {
        self.message(disk, &change_stream::zeroes(extent), Bytes::new(), extent.len_bytes())
    }
}

impl Drop for PartSink {
    fn drop(&mut self) {
        self.abandon();
    }
}
