//! The core of the process server: what it promises, without HTTP and without a clock.
//!
//! # The promises
//!
//! - What was acknowledged is durable: the file was synced, then renamed, then its directory synced,
//!   before [`Gateway::finish_part`] returned. It stays until the vault has committed its point.
//! - A point is sealed by one file that appears atomically. From then on it is committed, sooner or
//!   later, and in the order of sealing among the points of its server.
//! - After the receipt of the commit, first the new committed epoch is remembered, then the point's
//!   file is removed, then its changes. So a crash in between leaves something to remove, never
//!   a point without its files.
//! - A disk's parts have one writer. A later connection takes over from an earlier one, whose part is
//!   discarded.
//! - What is damaged is kept, reported, and stops what comes after it for that server.
//!
//! Methods do file input and output and may block; none holds the lock while it does. Time comes in as a
//! parameter: `now` from a clock that never goes back, timestamps from the wall.

mod receive;
mod upload;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_model::{DiskNumber, Epoch, ServerId};
use lifeboat_wire::agent::{DiskDescription, DiskState};
use lifeboat_wire::event::{Event, Severity};
use lifeboat_wire::process_server::{DiskRegistration, FileDescription, RegisterDisk, SpoolReport};
use tokio::sync::watch;

use crate::queue::{DiskQueue, Retry, ServerQueue, describe};
use crate::refusal::Refusal;
use crate::space::Space;
use crate::spool::{KnownDisk, Spool};
use crate::state_dir::{StateDir, StateError};

pub use receive::{PartPlace, PartTicket};
pub use upload::UploadError;

/// Events kept until somebody takes them.
const EVENTS_MAX: usize = 1000;

/// The pauses between attempts at what failed.
#[derive(Clone, Copy, Debug)]
pub struct Pauses {
    /// The longest while the vault cannot be reached.
    pub unreachable_max: Duration,
    /// The longest after the vault said no.
    pub refused_max: Duration,
}

/// The core of the process server.
pub struct Gateway {
    spool: Spool,
    pauses: Pauses,
    state: Mutex<State>,
    /// Held while a server's disks are written down, so that the newest is written last.
    remembering: Mutex<()>,
    changes: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    servers: BTreeMap<ServerId, ServerQueue>,
    next_order: u64,
    next_turn: u64,
    /// Whose file was uploaded last, so that servers take turns.
    last_served: Option<ServerId>,
    /// While the vault cannot be reached.
    line: Retry,
    line_lost_at: Option<Duration>,
    events: Vec<Event>,
}

/// What of a disk an agent wants to compare with.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    disk: DiskNumber,
    open: Epoch,
    parts: u32,
    order: u64,
}

/// What of a snapshot has not reached the vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    /// Files that are not stored.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Points that are not committed.
    pub points: u64,
}

impl Gateway {
    /// Reads the spool back. What is damaged becomes an event and stays.
    ///
    /// # Errors
    /// When the state directory cannot be read.
    pub fn open(dir: StateDir, pauses: Pauses, wall: Timestamp) -> Result<Self, StateError> {
        let spool = Spool::new(dir);
        let found = spool.read_back()?;
        let mut state = State::default();
        for sentence in &found.strange {
            tracing::warn!("left alone in the state directory: {sentence}");
        }
        for (server, found) in found.servers {
            let last_order = found.points.last().map_or(0, |point| point.order + 1);
            state.next_order = state.next_order.max(last_order);
            let (queue, leftovers) = ServerQueue::rebuild(found);
            if let Some(damage) = &queue.damage {
                let event = spool_damaged(server, damage, wall);
                state.events.push(event);
            }
            for point in &leftovers.points {
                spool.remove_point(point)?;
            }
            let of_points = leftovers.points.iter().flat_map(|point| &point.seal.disks);
            let committed = queue
                .files
                .keys()
                .filter(|key| of_points.clone().any(|seal| (seal.disk, seal.epoch) == (key.disk, key.epoch)));
            spool.remove_files(server, leftovers.files.iter().chain(committed).copied())?;
            state.servers.insert(server, queue);
        }
        let (changes, _) = watch::channel(());
        Ok(Self { spool, pauses, state: Mutex::new(state), remembering: Mutex::new(()), changes })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No method leaves the state half changed where it could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_replace(());
    }

    /// Wakes whenever anything here has changed.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// The file system that holds the spool.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn space(&self) -> Result<Space, StateError> {
        self.spool.space()
    }

    pub(crate) fn state_dir(&self) -> &StateDir {
        self.spool.dir()
    }

    /// Where a disk stands; none if it was never described here.
    #[must_use]
    pub fn disk_state(&self, server: ServerId, disk: DiskNumber) -> Option<DiskState> {
        self.lock().servers.get(&server)?.disk_state(disk)
    }

    /// Whether the disk is known here, so that it can be described while the vault is away.
    #[must_use]
    pub fn knows_disk(&self, server: ServerId, disk: DiskNumber) -> bool {
        self.lock().servers.get(&server).is_some_and(|queue| queue.disks.contains_key(&disk))
    }

    /// A number that changes when a point of the server is committed: read it before asking the vault for
    /// a registration, and hand it to [`Gateway::describe_disk`] with the answer.
    #[must_use]
    pub fn commits(&self, server: ServerId) -> u64 {
        self.lock().servers.get(&server).map_or(0, |queue| queue.commits)
    }

    /// Takes an agent's description of a disk, with the vault's registration where it answered, and says
    /// where the disk stands. `commits` is from before the vault was asked. With a claim the agent is the
    /// one that writes to the disk from now on.
    ///
    /// # Errors
    /// When the disk is new here and there is no registration, or it cannot be written down.
    pub fn describe_disk(
        &self,
        server: ServerId,
        disk: DiskNumber,
        description: &DiskDescription,
        claim: Option<&WriterClaim>,
        registration: Option<(DiskRegistration, u64)>,
        wall: Timestamp,
    ) -> Result<DiskState, Refusal> {
        if description.bytes == 0 || description.server_name.is_empty() {
            let why = format!("{} bytes, server name {:?}", description.bytes, description.server_name);
            return Err(Refusal::MalformedDescription { why });
        }
        if let Some((fresh, _)) = &registration
            && receive::disk_key(&fresh.key_id, &fresh.key).is_none()
        {
            return Err(Refusal::UnusableKey { disk, key_id: fresh.key_id.clone() });
        }
        self.spool.make_disk_dir(server, disk)?;
        let remembering = self.remembering.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, superseded) = {
            let mut state = self.lock();
            let State { servers, events, .. } = &mut *state;
            // A server that is new stays out until something of it is known.
            let mut fresh = ServerQueue::default();
            let queue = servers.get_mut(&server).unwrap_or(&mut fresh);
            let superseded = merge(queue, server, disk, description, registration, wall, events)?;
            if let (Some(claim), Some(entry)) = (claim, queue.disks.get_mut(&disk)) {
                claim.take(entry);
            }
            let known = queue.known();
            servers.entry(server).or_insert(fresh);
            (known, superseded)
        };
        self.spool.write_server(server, &known)?;
        drop(remembering);
        self.spool.remove_files(server, superseded)?;
        self.changed();
        self.disk_state(server, disk).ok_or(Refusal::UnknownDisk { disk })
    }

    /// Disks whose description the vault does not have yet.
    #[must_use]
    pub fn untold_disks(&self) -> Vec<(ServerId, DiskNumber, RegisterDisk)> {
        let state = self.lock();
        let disks = state.servers.iter().flat_map(|(server, queue)| {
            queue.disks.iter().filter(|(_, disk)| !disk.known.vault_knows).map(|(number, disk)| {
                (*server, *number, RegisterDisk { description: disk.known.description.clone() })
            })
        });
        disks.collect()
    }

    /// All servers with a disk or a file here.
    #[must_use]
    pub fn servers(&self) -> Vec<ServerId> {
        self.lock().servers.keys().copied().collect()
    }

    /// What the spool holds for one server.
    #[must_use]
    pub fn spool_report(&self, server: ServerId, now: Duration) -> SpoolReport {
        let mut state = self.lock();
        let Some(queue) = state.servers.get_mut(&server) else { return SpoolReport::default() };
        let time = |point: Option<&crate::queue::QueuedPoint>| point.map(|point| point.sealed.seal.time);
        let trouble = match (&queue.damage, &queue.trouble) {
            (Some(damage), _) => Some(format!("the spool is damaged: {damage}")),
            (None, trouble) => trouble.clone(),
        };
        SpoolReport {
            files: queue.files.len() as u64,
            bytes: queue.files.values().filter_map(|file| Some(file.facts?.summary.bytes)).sum(),
            oldest_sealed: time(queue.points.front()),
            newest_sealed: time(queue.points.back()),
            received_bytes_per_second: queue.received.bytes_per_second(now),
            uploaded_bytes_per_second: queue.uploaded.bytes_per_second(now),
            upload_trouble: trouble,
        }
    }

    /// Counts bytes that an agent sent.
    pub fn count_received(&self, server: ServerId, bytes: u64, now: Duration) {
        if let Some(queue) = self.lock().servers.get_mut(&server) {
            queue.received.add(bytes, now);
        }
    }

    /// Counts bytes that were sent on.
    pub fn count_uploaded(&self, server: ServerId, bytes: u64, now: Duration) {
        if let Some(queue) = self.lock().servers.get_mut(&server) {
            queue.uploaded.add(bytes, now);
        }
    }

    /// What happened since the last call.
    #[must_use]
    pub fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut self.lock().events)
    }

    /// What of a disk is durable here now.
    #[must_use]
    pub fn snapshot(&self, server: ServerId, disk: DiskNumber) -> Option<Snapshot> {
        let state = self.lock();
        let at = state.servers.get(&server)?.disk_state(disk)?;
        Some(Snapshot { disk, open: at.epoch, parts: at.next_part.0, order: state.next_order })
    }

    /// What of a snapshot has not reached the vault; none when all has.
    #[must_use]
    pub fn behind(&self, server: ServerId, snapshot: &Snapshot) -> Option<Behind> {
        let state = self.lock();
        let queue = state.servers.get(&server)?;
        let mut behind = Behind { files: 0, bytes: 0, points: 0 };
        for (key, file) in &queue.files {
            let within = (key.epoch, key.part.0) < (snapshot.open, snapshot.parts);
            if key.disk == snapshot.disk && within && !file.place.is_stored() {
                behind.files += 1;
                behind.bytes += file.facts.map_or(0, |facts| facts.summary.bytes);
            }
        }
        let waits = |point: &&crate::queue::QueuedPoint| {
            point.sealed.order < snapshot.order
                && point.sealed.seal.disks.iter().any(|seal| seal.disk == snapshot.disk)
        };
        behind.points = queue.points.iter().filter(waits).count() as u64;
        (behind.files + behind.points > 0).then_some(behind)
    }

    /// The files of a disk that are stored but belong to no committed point, up to the first that is not.
    #[must_use]
    pub fn stored_files(&self, server: ServerId, disk: DiskNumber) -> Vec<FileDescription> {
        let state = self.lock();
        let Some(queue) = state.servers.get(&server) else { return Vec::new() };
        let files = queue.files.iter().filter(|(key, _)| key.disk == disk);
        files
            .take_while(|(_, file)| file.place.is_stored())
            .filter_map(|(key, file)| Some(describe(*key, &file.facts?)))
            .collect()
    }
}

/// Takes a description and a registration into a queue. Gives back files of the open epoch that the
/// vault has gone past without them.
fn merge(
    queue: &mut ServerQueue,
    server: ServerId,
    number: DiskNumber,
    description: &DiskDescription,
    registration: Option<(DiskRegistration, u64)>,
    wall: Timestamp,
    events: &mut Vec<Event>,
) -> Result<Vec<crate::spool::FileKey>, Refusal> {
    let Some((fresh, commits)) = registration else {
        let disk = queue.disks.get_mut(&number).ok_or(Refusal::UnknownDisk { disk: number })?;
        if disk.known.description != *description {
            disk.known.description = description.clone();
            disk.known.vault_knows = false;
        }
        return Ok(Vec::new());
    };
    let fresh_epoch = fresh.committed.map(|(_, epoch)| epoch);
    let next = fresh_epoch.map_or(Epoch(1), Epoch::next);
    let answer_is_old = commits != queue.commits || queue.committing;
    let sealed = queue.points.iter().any(|point| point.sealed.seal.disks.iter().any(|s| s.disk == number));
    let Some(disk) = queue.disks.get(&number) else {
        let description = description.clone();
        let known =
            KnownDisk { description, registration: fresh, vault_knows: true, writer: 0, taken_over: None };
        queue.disks.insert(number, DiskQueue { known, open: next, receiving: None, publishing: false });
        return Ok(Vec::new());
    };
    let open = disk.open;
    let before = disk.known.registration.committed.map(|(_, epoch)| epoch);
    let open_files: Vec<_> = queue.epoch_files(number, open).map(|(key, _)| *key).collect();
    let mut superseded = Vec::new();
    let Some(disk) = queue.disks.get_mut(&number) else { return Ok(superseded) };
    disk.known.description = description.clone();
    disk.known.vault_knows = true;
    if fresh_epoch < before && answer_is_old {
        // The key is as good as ever, but a commit has overtaken the rest of the answer.
        let DiskRegistration { vault, key_id, key, .. } = fresh;
        let old = &mut disk.known.registration;
        (old.vault, old.key_id, old.key) = (vault, key_id, key);
        return Ok(superseded);
    }
    if next > open {
        tracing::warn!(%server, disk = %number, epoch = %open, vault = %next, "the vault has gone past this spool");
        if !open_files.is_empty() {
            events.push(superseded_event(server, number, open, open_files.len(), wall));
        }
        superseded = open_files;
        disk.open = next;
    } else if next < open && fresh_epoch < before {
        events.push(vault_went_back(server, number, before, fresh_epoch, wall));
        if !sealed && open_files.is_empty() {
            disk.open = next;
        }
    }
    disk.known.registration = fresh;
    disk.receiving = if superseded.is_empty() { disk.receiving.take() } else { None };
    for key in &superseded {
        queue.files.remove(key);
    }
    Ok(superseded)
}

/// Who an agent is that describes a disk, see [`lifeboat_wire::agent::DescribeDisk`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriterClaim {
    /// Its life.
    pub writer: u64,
    /// The life that it goes on from.
    pub follows: Option<u64>,
    /// Counts its descriptions.
    pub attempt: u64,
    /// The newest one whose answer it has taken in.
    pub heard: u64,
}

impl WriterClaim {
    /// Makes it the writer. Whoever was it before writes no more.
    fn take(&self, disk: &mut DiskQueue) {
        let known = &mut disk.known;
        if known.writer == self.writer {
            known.taken_over = known.taken_over.filter(|attempt| self.heard < *attempt);
            return;
        }
        // A life that did not say that it knows of another one may not have known.
        let goes_on = known.writer == 0 || (Some(known.writer) == self.follows && known.taken_over.is_none());
        known.taken_over = (!goes_on).then_some(self.attempt);
        known.writer = self.writer;
        if let Some(receiving) = disk.receiving.take() {
            receiving.cancel.cancel();
        }
    }
}

fn push_event(events: &mut Vec<Event>, event: Event) {
    if events.len() == EVENTS_MAX {
        events.remove(0);
    }
    events.push(event);
}

fn spool_damaged(server: ServerId, damage: &str, wall: Timestamp) -> Event {
    Event {
        time: wall,
        severity: Severity::Critical,
        code: "spool_damaged".into(),
        server: Some(server),
        disk: None,
        message: format!(
            "Changes of server {server} in the spool of the process server are damaged: {damage}."
        ),
        next_step: format!(
            "Check the process server's disk. Then stop the process server and run \
             `lifeboat process-server set-aside --server {server}`: the server's disks are compared with \
             the vault's copy and mended. Until then no point of this server is committed."
        ),
    }
}

fn superseded_event(
    server: ServerId,
    disk: DiskNumber,
    epoch: Epoch,
    files: usize,
    wall: Timestamp,
) -> Event {
    Event {
        time: wall,
        severity: Severity::Warning,
        code: "spool_superseded".into(),
        server: Some(server),
        disk: Some(disk),
        message: format!(
            "{files} files of epoch {epoch} of disk {disk} were removed from the spool: the vault has committed \
             this epoch without them, so the server was replicated another way in the meantime."
        ),
        next_step: String::new(),
    }
}

fn vault_went_back(
    server: ServerId,
    disk: DiskNumber,
    before: Option<Epoch>,
    now: Option<Epoch>,
    wall: Timestamp,
) -> Event {
    let text = |epoch: Option<Epoch>| epoch.map_or_else(|| "none".to_owned(), |epoch| epoch.to_string());
    Event {
        time: wall,
        severity: Severity::Critical,
        code: "vault_went_back".into(),
        server: Some(server),
        disk: Some(disk),
        message: format!(
            "The vault had committed epoch {} of disk {disk} and now says that the newest one is {}: its catalog \
             was restored from an older state, or it is another vault.",
            text(before),
            text(now)
        ),
        next_step: "Check the vault. The server's disks will be compared with its copy and mended.".into(),
    }
}
