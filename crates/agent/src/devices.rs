//! The device thread: tracks and reads the disks, sends what was written, takes points.
//!
//! It alone holds the trackers. It does one order after the other and never decides anything.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_capture::{
    Capture, CaptureError, CapturedPoint, Mark, PointError, QuiesceOptions, ReadError, Unfreezable,
    Unreadable,
};
use lifeboat_model::{DiskNumber, Extent, PointKind};
use lifeboat_tracker::{Attached, DiskDevice, DiskKey, DiskTracker, ResyncWanted, TrackerError, TrackerSet};
use lifeboat_wire::event::Severity;

use crate::device::hardware_id_of;
use crate::engine::{
    DiskProblem, Event, Notice, Opened, PointFailure, PointOrder, Round, RoundDone, RoundEnd, Tracking, Way,
};
use crate::quiet::{KeepQuiet, Quiet};
use crate::replicator::Inbox;
use crate::sink::{PartSink, Traffic, Uplink};
use crate::unreported::Unreported;

/// How often disks are looked at while nothing else is to be done.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A round that sent so much before its point ends there, so that it is on record.
const ROUND_BYTES_MAX: u64 = 256 << 20;

/// Passes before a point.
const PASSES_MAX: u32 = 6;

/// So few blocks in a pass are few enough for the point.
const FEW_BLOCKS: u64 = 256;

/// Points that are tried for longer are begun without an open part.
const LONG_TIMEOUT: Duration = Duration::from_secs(30);

/// An order to the device thread.
#[derive(Debug)]
pub(crate) enum Order {
    /// See the engine's action of the same name.
    Open(DiskNumber, String),
    Close {
        disk: DiskNumber,
        untrack: bool,
    },
    Settle(DiskNumber),
    Join(DiskNumber),
    Leave(DiskNumber),
    Round(Round),
    Acknowledge,
    Collected(DiskNumber),
    CollectEnd,
    /// Blocks count as written; answered when the pinned bits say so.
    PutBack(DiskNumber, Vec<Extent>, Option<Sender<()>>),
}

/// Blocks that wait on each disk, for reports.
pub(crate) type Waiting = Arc<Mutex<BTreeMap<DiskNumber, u64>>>;

/// The device thread's own.
pub(crate) struct Devices {
    capture: Capture,
    /// Disks that are tracked and not in the capture.
    apart: BTreeMap<DiskNumber, DiskTracker>,
    paths: BTreeMap<DiskNumber, (String, u64)>,
    mark: Option<Mark>,
    uplink: Arc<Uplink>,
    inbox: Inbox,
    waiting: Waiting,
    quiesce: QuiesceOptions,
    quiet: Arc<Quiet>,
    /// What was said of writes without a place and is not settled yet.
    unlocated: BTreeMap<DiskNumber, ResyncWanted>,
    /// What was told of writes whose completion was not reported.
    unreported: BTreeMap<DiskNumber, Unreported>,
    /// Disks that were told to be read-only.
    read_only: BTreeSet<DiskNumber>,
    clock_was_behind: bool,
}

impl Devices {
    pub fn new(
        capture: Capture,
        uplink: Arc<Uplink>,
        inbox: Inbox,
        waiting: Waiting,
        (quiesce, quiet): (QuiesceOptions, Arc<Quiet>),
    ) -> Self {
        let (apart, paths) = (BTreeMap::new(), BTreeMap::new());
        Self {
            capture,
            apart,
            paths,
            mark: None,
            unlocated: BTreeMap::new(),
            unreported: BTreeMap::new(),
            read_only: BTreeSet::new(),
            uplink,
            inbox,
            waiting,
            quiesce,
            quiet,
            clock_was_behind: false,
        }
    }

    /// Carries out orders until there can be no more.
    pub fn run(mut self, orders: &Receiver<Order>) {
        let mut looked = Instant::now();
        loop {
            match orders.recv_timeout(LOOK_EVERY) {
                Ok(order) => self.carry_out(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if looked.elapsed() >= LOOK_EVERY {
                self.look();
                looked = Instant::now();
            }
        }
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Open(disk, path) => {
                let result = self.open(disk, &path);
                self.inbox.send(Event::Opened(disk, result));
            }
            Order::Close { disk, untrack } => self.close(disk, untrack),
            Order::Settle(disk) => {
                // What came after that answer was given is not settled by it.
                if let Some(wanted) = self.unlocated.remove(&disk)
                    && let Some(tracker) = self.tracker(disk)
                {
                    tracker.settle_resync(&wanted);
                }
            }
            Order::Join(disk) => {
                let result = self.join(disk);
                self.inbox.send(Event::Joined(disk, result));
            }
            Order::Leave(disk) => {
                self.capture.resend_unacknowledged();
                if let Some(tracker) = self.capture.remove_disk(disk) {
                    self.apart.insert(disk, tracker);
                }
                self.inbox.send(Event::Left(disk));
            }
            Order::Round(round) => {
                let end = self.round(&round);
                self.inbox.send(Event::Round(end));
            }
            Order::Acknowledge => {
                if let Some(mark) = self.mark.take() {
                    self.capture.acknowledge(mark);
                }
                self.inbox.send(Event::Acknowledged);
            }
            Order::Collected(disk) => {
                let set = self.capture.collected_changes(disk).cloned();
                self.inbox.send(Event::Collected(disk, set));
            }
            Order::CollectEnd => {
                for (disk, _) in self.capture.disks() {
                    self.capture.stop_collecting(disk);
                }
            }
            Order::PutBack(disk, extents, done) => {
                if let Some(tracker) = self.tracker(disk) {
                    extents.iter().for_each(|extent| tracker.put_back(*extent));
                }
                // Nobody waits any more when the agent stops.
                done.map(|done| done.send(()));
            }
        }
    }

    fn tracker(&mut self, disk: DiskNumber) -> Option<&mut DiskTracker> {
        match self.apart.get_mut(&disk) {
            Some(tracker) => Some(tracker),
            None => self.capture.tracker(disk),
        }
    }

    fn open(&mut self, disk: DiskNumber, path: &str) -> Result<Opened, String> {
        let sentence = |error: TrackerError| error.to_string();
        let device = DiskDevice::inspect(Path::new(path)).map_err(sentence)?;
        self.capture.trackers().refuse_tracked_elsewhere(&device).map_err(sentence)?;
        self.tell_of_read_only(disk, path, device.read_only);
        self.apart.remove(&disk);
        let (tracker, tracking) = attach(self.capture.trackers(), disk, &device).map_err(sentence)?;
        let wanted = tracker.resync_wanted();
        let unreported = Unreported::since(tracker.stats().unreported);
        // A disk that comes back may not be told of more often for that.
        self.unreported.entry(disk).or_insert(unreported);
        self.apart.insert(disk, tracker);
        let unlocated = wanted.map(|wanted| self.note_unlocated(disk, wanted));
        self.paths.insert(disk, (path.to_owned(), device.size_bytes));
        Ok(Opened { bytes: device.size_bytes, hardware_id: hardware_id_of(&device), tracking, unlocated })
    }

    /// Nothing can write to such a disk here, so it can be protected; but whoever named it may have
    /// meant another one, and a disk that another machine writes is not followed.
    fn tell_of_read_only(&mut self, disk: DiskNumber, path: &str, read_only: bool) {
        if !read_only {
            self.read_only.remove(&disk);
        } else if self.read_only.insert(disk) {
            self.inbox.tell(Notice {
                severity: Severity::Information,
                code: "disk_read_only",
                disk: Some(disk),
                message: format!(
                    "Disk {disk} ({path}) is read-only; it is copied, and no change is expected until it can be \
                     written."
                ),
                next_step: "If another machine writes to this disk, protect it there: writes from elsewhere are \
                            not seen here."
                    .into(),
            });
        }
    }

    fn note_unlocated(&mut self, disk: DiskNumber, wanted: ResyncWanted) -> String {
        self.unlocated.insert(disk, wanted);
        unlocated(&wanted.stats)
    }

    fn close(&mut self, disk: DiskNumber, untrack: bool) {
        self.paths.remove(&disk);
        self.unlocated.remove(&disk);
        if untrack {
            self.unreported.remove(&disk);
            self.read_only.remove(&disk);
        }
        let tracker = self.apart.remove(&disk).or_else(|| self.capture.remove_disk(disk));
        drop(tracker);
        if untrack && let Err(error) = self.untrack(disk) {
            tracing::warn!(%disk, %error, "the tracking of a disk that is no longer protected goes on");
        }
    }

    /// Ends the tracking of a disk, also one that this process never opened.
    fn untrack(&mut self, disk: DiskNumber) -> Result<(), TrackerError> {
        let set = self.capture.trackers();
        for tracked in set.list()? {
            if tracked.key.as_str().starts_with(&key_prefix(disk)) {
                set.detach(&tracked.key)?;
            }
        }
        Ok(())
    }

    fn join(&mut self, disk: DiskNumber) -> Result<(), DiskProblem> {
        let gone = |message: String| DiskProblem::Gone(message);
        let (path, _) = self.paths.get(&disk).cloned().ok_or_else(|| gone("it is not open".into()))?;
        let tracker = self.apart.remove(&disk).ok_or_else(|| gone("it is not tracked".into()))?;
        let added = self.capture.add_disk(disk, Path::new(&path), tracker);
        self.capture.collect_changes(disk);
        added.map_err(|error| match error {
            CaptureError::TrackedSize { .. } => DiskProblem::SizeChanged,
            other => gone(other.to_string()),
        })
    }

    /// One round: passes, perhaps a point, and everything durable at the end.
    fn round(&mut self, round: &Round) -> RoundEnd {
        let begun = Instant::now();
        let mut sink = PartSink::new(Arc::clone(&self.uplink), Traffic::Changes, &round.open);
        match self.capture_round(round, &mut sink, begun) {
            Ok(mut done) => {
                done.sent_bytes = sink.sent_bytes();
                done.writes = self.writes();
                self.mark = self.capture.mark();
                match sink.finish() {
                    Ok(parts) => {
                        done.parts = parts;
                        RoundEnd::Done(done)
                    }
                    Err(failure) => {
                        self.give_up();
                        RoundEnd::Lost(failure)
                    }
                }
            }
            Err(error) => {
                sink.abandon();
                self.give_up();
                match error {
                    CaptureError::Sink(_) => RoundEnd::Lost(sink.take_failure()),
                    CaptureError::Read(ReadError::SizeChanged { disk, .. })
                    | CaptureError::TrackedSize { disk, .. } => {
                        RoundEnd::Disk(disk, DiskProblem::SizeChanged)
                    }
                    CaptureError::Read(ReadError::DiskGone { disk, .. }) => {
                        RoundEnd::Disk(disk, DiskProblem::Gone(error.to_string()))
                    }
                    error => RoundEnd::Broken(error.to_string()),
                }
            }
        }
    }

    /// Writes that were sent to each disk of the capture since its tracking began.
    fn writes(&mut self) -> BTreeMap<DiskNumber, u64> {
        let disks = self.capture.disks();
        disks.iter().filter_map(|(disk, _)| Some((*disk, self.tracker(*disk)?.stats().issues))).collect()
    }

    fn give_up(&mut self) {
        self.mark = None;
        self.capture.resend_unacknowledged();
    }

    fn capture_round(
        &mut self,
        round: &Round,
        sink: &mut PartSink,
        begun: Instant,
    ) -> Result<RoundDone, CaptureError> {
        let mut done = RoundDone {
            parts: Vec::new(),
            sent_bytes: 0,
            deferred: false,
            more: false,
            before_point: Duration::ZERO,
            point: None,
            unreadable: BTreeMap::new(),
            writes: BTreeMap::new(),
        };
        for _ in 0..PASSES_MAX {
            let pass = self.capture.precopy(sink)?;
            done.unreadable = places(&pass.unreadable);
            done.deferred = pass.deferred_blocks > 0;
            if sink.sent_bytes() >= ROUND_BYTES_MAX {
                done.more = true;
                return Ok(done);
            }
            if pass.data_blocks + pass.zero_blocks <= FEW_BLOCKS || round.point.is_none() {
                break;
            }
        }
        done.before_point = begun.elapsed();
        let Some(order) = &round.point else { return Ok(done) };
        if !done.unreadable.is_empty() {
            return Ok(done);
        }
        if order.timeout > LONG_TIMEOUT {
            sink.pause()?;
        }
        match self.point(order, sink) {
            Ok(captured) if !captured.unreadable.is_empty() => done.unreadable = places(&captured.unreadable),
            Ok(captured) => done.point = Some(Ok(captured)),
            Err(PointError::NotTaken(why)) => done.point = Some(Err(PointFailure::NotTaken(why.to_string()))),
            Err(PointError::Quiesce(why)) => done.point = Some(Err(PointFailure::NotFrozen(why.to_string()))),
            Err(PointError::Capture(error)) => return Err(error),
        }
        Ok(done)
    }

    fn point(&mut self, order: &PointOrder, sink: &mut PartSink) -> Result<CapturedPoint, PointError> {
        let deadline = Instant::now() + order.timeout;
        // What the clock says, also when it was set: the vault keeps the order of points by their numbers,
        // and knows a time that cannot be.
        let clock = Timestamp::now;
        self.tell_of_clock(order.newest);
        let captured = match order.way {
            Way::Optimistic => self.capture.optimistic_point(sink, deadline, &clock),
            Way::Quiesced | Way::QuiescedIfPossible => {
                let mut options = self.quiesce.clone();
                options.unfreezable =
                    if order.way == Way::Quiesced { Unfreezable::Refuse } else { Unfreezable::Sync };
                let mut hooks = KeepQuiet(Arc::clone(&self.quiet));
                self.capture.quiesced_point(sink, &options, &mut hooks, deadline, &clock).map(|mut point| {
                    if !point.not_frozen.is_empty() {
                        point.kind = PointKind::Crash;
                    }
                    point
                })
            }
        };
        if order.collect && captured.is_ok() {
            for (disk, _) in self.capture.disks() {
                self.capture.collect_changes(disk);
            }
        }
        captured
    }

    fn tell_of_clock(&mut self, newest: Option<Timestamp>) {
        let now = Timestamp::now();
        let behind = newest.is_some_and(|newest| now <= newest);
        if behind && !self.clock_was_behind {
            self.inbox.tell(Notice {
                severity: Severity::Warning,
                code: "clock_jumped",
                disk: None,
                message: format!(
                    "The clock says {now}, which is before the newest point ({}): it was ahead then, or is \
                     behind now. Points go on.",
                    newest.map(|newest| newest.to_string()).unwrap_or_default()
                ),
                next_step: "See that the clock is right, best by NTP.".into(),
            });
        }
        self.clock_was_behind = behind;
    }

    /// Looks at what nobody asked about: sizes, disks that went away, writes without a place or
    /// without a completion.
    fn look(&mut self) {
        let mut waiting = BTreeMap::new();
        let disks: Vec<_> =
            self.paths.iter().map(|(disk, (path, bytes))| (*disk, path.clone(), *bytes)).collect();
        for (disk, path, bytes) in disks {
            let Some(tracker) = self.tracker(disk) else { continue };
            tracing::trace!(%disk, waiting = tracker.waiting_blocks(), stats = ?tracker.stats(), "look");
            waiting.insert(disk, tracker.waiting_blocks());
            let identity = *tracker.identity();
            let unreported_blocks = tracker.stats().unreported;
            let wanted = tracker.resync_wanted();
            let wanted = wanted.filter(|wanted| self.unlocated.get(&disk) != Some(wanted));
            let problem = match DiskDevice::inspect(Path::new(&path)) {
                Err(error) => Some(DiskProblem::Gone(error.to_string())),
                Ok(device)
                    if (device.identity.major, device.identity.minor, device.identity.diskseq)
                        != (identity.major, identity.minor, identity.diskseq) =>
                {
                    Some(DiskProblem::Gone(format!("{path} is another disk now than it was")))
                }
                Ok(device) if device.size_bytes != bytes => Some(DiskProblem::SizeChanged),
                Ok(_) => wanted.map(|wanted| DiskProblem::Unlocated(self.note_unlocated(disk, wanted))),
            };
            if let Some(problem) = problem {
                self.inbox.send(Event::Problem(disk, problem));
            }
            let told = self.unreported.get_mut(&disk);
            if let Some(notice) =
                told.and_then(|told| told.notice(disk, &path, unreported_blocks, Instant::now()))
            {
                self.inbox.tell(notice);
            }
        }
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = waiting;
    }
}

/// The name of a disk among the pins. The size is in it, so that the tracking of a disk that grew
/// can begin while that of the old size still runs.
fn key_of(disk: DiskNumber, blocks: u64) -> Result<DiskKey, TrackerError> {
    format!("{}{blocks}", key_prefix(disk)).parse()
}

fn key_prefix(disk: DiskNumber) -> String {
    format!("d{disk}-")
}

fn attach(
    set: &mut TrackerSet,
    disk: DiskNumber,
    device: &DiskDevice,
) -> Result<(DiskTracker, Tracking), TrackerError> {
    let key = key_of(disk, device.identity.blocks)?;
    let (mut tracker, attached) = set.attach(&key, &device.identity)?;
    let mut tracking = match attached {
        Attached::Continued => {
            tracker.put_back_all();
            Tracking::Continued
        }
        Attached::Fresh(reason) => Tracking::Fresh(reason.to_string()),
    };
    for other in set.list()? {
        if other.key == key || !other.key.as_str().starts_with(&key_prefix(disk)) {
            continue;
        }
        // The same disk when it was smaller: both track now, so nothing falls in between.
        let smaller = other.identity.filter(|was| {
            (was.major, was.minor, was.diskseq)
                == (device.identity.major, device.identity.minor, device.identity.diskseq)
                && was.blocks < device.identity.blocks
        });
        if let (Some(was), Tracking::Fresh(_)) = (smaller, &tracking) {
            let (mut old, attached) = set.attach(&other.key, &was)?;
            let located = old.resync_wanted().is_none_or(|wanted| {
                // What was written beyond the old end is copied anyway.
                wanted.stats.pass_through == 0 && wanted.stats.opaque == 0
            });
            if attached == Attached::Continued && located {
                old.put_back_all();
                old.take(|extent| tracker.put_back(extent));
                tracking = Tracking::Grown;
            }
        }
        set.detach(&other.key)?;
    }
    Ok((tracker, tracking))
}

fn unlocated(stats: &lifeboat_tracker::Stats) -> String {
    format!(
        "something was written that cannot be located ({} pass-through commands, {} writes without a known extent, \
         {} beyond the end)",
        stats.pass_through, stats.opaque, stats.beyond_end
    )
}

/// Where each disk cannot be read, in a few words.
fn places(unreadable: &[Unreadable]) -> BTreeMap<DiskNumber, String> {
    let mut by_disk: BTreeMap<DiskNumber, Vec<&Unreadable>> = BTreeMap::new();
    for bad in unreadable {
        by_disk.entry(bad.disk).or_default().push(bad);
    }
    by_disk
        .into_iter()
        .map(|(disk, bad)| {
            let first = bad[0];
            let sector = first.extent.offset_bytes() / 512;
            let more =
                if bad.len() > 1 { format!(" and {} more places", bad.len() - 1) } else { String::new() };
            let error = std::io::Error::from_raw_os_error(first.errno);
            (disk, format!("{} (sector {sector}: {error}){more}", first.extent))
        })
        .collect()
}
