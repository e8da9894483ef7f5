//! What is on its way for one server. Plain state: no files, no clock.
//!
//! Every disk has one open epoch. Its parts are durable in the order of their numbers. Sealing a point
//! closes the open epochs of its disks. Files go to the vault in any order, points strictly in theirs.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_model::{DiskNumber, Epoch, Part, PointId, ServerId};
use lifeboat_wire::agent::DiskState;
use lifeboat_wire::process_server::{CommitPoint, FileDescription};
use tokio_util::sync::CancellationToken;

use crate::rate::RateWindow;
use crate::spool::{FileFacts, FileKey, FoundServer, KnownDisk, KnownServer, SealedPoint};

/// Points whose files are looked at for the next upload.
const POINTS_AHEAD_MAX: usize = 64;

/// When something that failed is tried again.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Retry {
    failures: u32,
    not_before: Duration,
}

impl Retry {
    pub fn is_due(&self, now: Duration) -> bool {
        now >= self.not_before
    }

    /// Doubles the pause from `first` up to `max`. Of several that fail together, one counts.
    pub fn failed(&mut self, now: Duration, first: Duration, max: Duration) {
        if now < self.not_before {
            return;
        }
        let pause = first.saturating_mul(1 << self.failures.min(16)).min(max);
        self.failures += 1;
        self.not_before = now.saturating_add(pause);
    }

    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// When it is due, if that is still to come.
    pub fn due_at(&self, now: Duration) -> Option<Duration> {
        (self.not_before > now).then_some(self.not_before)
    }
}

/// Where a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Here.
    Waiting,
    /// Here, and an upload runs.
    Uploading,
    /// Here and in the vault's store.
    Stored,
    /// In the vault's store only.
    StoredOnly,
    /// Here, and it is not what was written.
    Damaged,
}

impl Place {
    pub fn is_stored(self) -> bool {
        matches!(self, Self::Stored | Self::StoredOnly)
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct SpooledFile {
    pub facts: Option<FileFacts>,
    pub place: Place,
    /// This process wrote it, or has read all of it.
    pub checked: bool,
    pub stored_at: Option<Timestamp>,
}

#[derive(Debug)]
pub(crate) struct QueuedPoint {
    pub sealed: SealedPoint,
    /// A file of it is damaged or missing: it cannot be committed.
    pub broken: bool,
}

/// Who sends a part of a disk.
#[derive(Debug)]
pub(crate) struct Receiving {
    pub turn: u64,
    pub cancel: CancellationToken,
}

#[derive(Debug)]
pub(crate) struct DiskQueue {
    pub known: KnownDisk,
    pub open: Epoch,
    pub receiving: Option<Receiving>,
    /// A part gets its name right now.
    pub publishing: bool,
}

#[derive(Debug, Default)]
pub(crate) struct ServerQueue {
    pub disks: BTreeMap<DiskNumber, DiskQueue>,
    pub files: BTreeMap<FileKey, SpooledFile>,
    pub points: VecDeque<QueuedPoint>,
    /// A point becomes durable right now.
    pub sealing: bool,
    /// The front point is being committed.
    pub committing: bool,
    /// After a refusal of the vault.
    pub refused: Retry,
    /// One sentence while uploading does not succeed.
    pub trouble: Option<String>,
    /// One sentence when something of this server in the spool is damaged.
    pub damage: Option<String>,
    /// Commits that ended well, to tell an old answer of the vault from a new one.
    pub commits: u64,
    pub received: RateWindow,
    pub uploaded: RateWindow,
}

/// What a start must remove, since it was committed.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    pub files: Vec<FileKey>,
    pub points: Vec<SealedPoint>,
}

impl ServerQueue {
    /// Puts together what a start found.
    pub fn rebuild(found: FoundServer) -> (Self, Leftovers) {
        let FoundServer { known, files, points, mut damage } = found;
        let mut queue = Self::default();
        let mut leftovers = Leftovers::default();
        for (number, known) in known.disks {
            let open = known.registration.committed.map_or(Epoch(1), |(_, epoch)| epoch.next());
            queue.disks.insert(number, DiskQueue { known, open, receiving: None, publishing: false });
        }
        let mut files: BTreeMap<FileKey, SpooledFile> = files
            .into_iter()
            .map(|(key, file)| {
                let place = match (&file.facts, file.stored_only) {
                    (None, _) => Place::Damaged,
                    (_, true) => Place::StoredOnly,
                    (_, false) => Place::Waiting,
                };
                (key, SpooledFile { facts: file.facts, place, checked: false, stored_at: None })
            })
            .collect();
        for sealed in points {
            queue.take_point(sealed, &mut files, &mut leftovers, &mut damage);
        }
        for (key, file) in files {
            queue.take_open_file(key, file, &mut leftovers, &mut damage);
        }
        queue.find_gaps(&mut damage);
        queue.damage = summary(&damage);
        (queue, leftovers)
    }

    fn take_point(
        &mut self,
        sealed: SealedPoint,
        files: &mut BTreeMap<FileKey, SpooledFile>,
        leftovers: &mut Leftovers,
        damage: &mut Vec<String>,
    ) {
        let committed =
            sealed.seal.disks.iter().all(|seal| self.committed_epoch(seal.disk) >= Some(seal.epoch));
        if committed {
            leftovers.points.push(sealed);
            return;
        }
        let point = sealed.seal.point;
        let mut broken = false;
        for seal in &sealed.seal.disks {
            match self.disks.get_mut(&seal.disk) {
                Some(disk) if seal.epoch <= disk.open => disk.open = disk.open.max(seal.epoch.next()),
                Some(disk) => {
                    damage.push(format!(
                        "point {point} ends epoch {} of disk {}, but the point that ends epoch {} is missing",
                        seal.epoch, seal.disk, disk.open
                    ));
                    disk.open = seal.epoch.next();
                    broken = true;
                }
                None => {
                    damage.push(format!("point {point} has disk {}, which is not known here", seal.disk));
                    broken = true;
                }
            }
            for number in 0..seal.parts {
                let key = FileKey { disk: seal.disk, epoch: seal.epoch, part: Part(number) };
                match files.remove(&key) {
                    Some(file) => {
                        broken |= file.place == Place::Damaged;
                        self.files.insert(key, file);
                    }
                    // A point of 2^32 parts is a damaged one; one sentence says it.
                    None => {
                        damage.push(format!(
                            "point {point} misses part {number} of epoch {} of disk {}",
                            seal.epoch, seal.disk
                        ));
                        broken = true;
                        break;
                    }
                }
            }
        }
        self.points.push_back(QueuedPoint { sealed, broken });
    }

    fn take_open_file(
        &mut self,
        key: FileKey,
        file: SpooledFile,
        leftovers: &mut Leftovers,
        damage: &mut Vec<String>,
    ) {
        if self.committed_epoch(key.disk) >= Some(key.epoch) {
            leftovers.files.push(key);
            return;
        }
        let FileKey { disk, epoch, part } = key;
        match self.disks.get(&disk) {
            Some(queue) if queue.open == epoch => {}
            Some(queue) => damage.push(format!(
                "part {part} of epoch {epoch} of disk {disk} belongs to no point, and epoch {} is the open one",
                queue.open
            )),
            None => damage.push(format!("part {part} of epoch {epoch} is of disk {disk}, which is not known here")),
        }
        self.files.insert(key, file);
    }

    fn find_gaps(&self, damage: &mut Vec<String>) {
        for (number, disk) in &self.disks {
            let parts: Vec<Part> = self.epoch_files(*number, disk.open).map(|(key, _)| key.part).collect();
            let durable = parts.len() as u64;
            if parts.last().is_some_and(|last| u64::from(last.0) + 1 != durable) {
                damage.push(format!(
                    "a part of open epoch {} of disk {number} is missing: {parts:?}",
                    disk.open
                ));
            }
        }
    }

    fn committed_epoch(&self, disk: DiskNumber) -> Option<Epoch> {
        self.disks.get(&disk)?.known.registration.committed.map(|(_, epoch)| epoch)
    }

    /// The files of one epoch, in order.
    pub fn epoch_files(
        &self,
        disk: DiskNumber,
        epoch: Epoch,
    ) -> impl Iterator<Item = (&FileKey, &SpooledFile)> {
        let key = |part| FileKey { disk, epoch, part };
        self.files.range(key(Part(0))..=key(Part(u32::MAX)))
    }

    /// The files of a point, in order.
    pub fn point_files<'a>(
        &'a self,
        point: &'a SealedPoint,
    ) -> impl Iterator<Item = (&'a FileKey, &'a SpooledFile)> {
        point.seal.disks.iter().flat_map(|seal| self.epoch_files(seal.disk, seal.epoch))
    }

    /// Where a disk stands.
    pub fn disk_state(&self, number: DiskNumber) -> Option<DiskState> {
        let disk = self.disks.get(&number)?;
        let registration = &disk.known.registration;
        let newest = self.points.iter().rev().find_map(|point| {
            let seal = point.sealed.seal.disks.iter().find(|seal| seal.disk == number)?;
            Some((point.sealed.seal.point, seal.bytes))
        });
        let parts: Vec<&SpooledFile> = self.epoch_files(number, disk.open).map(|(_, file)| file).collect();
        let open_bytes = parts.last().and_then(|file| Some(file.facts?.disk_bytes));
        let next_part = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        Some(DiskState {
            epoch: disk.open,
            next_part: Part(next_part),
            sealed: newest.map(|(point, _)| point).or(registration.committed.map(|(point, _)| point)),
            copy_bytes: open_bytes.or(newest.map(|(_, bytes)| bytes)).or(registration.committed_bytes),
            other_writer: disk.known.taken_over.is_some(),
        })
    }

    /// The newest sealed point with this id, or that the committed one of all its disks is this one.
    pub fn is_sealed(&self, point: PointId, disks: &[(DiskNumber, Epoch)]) -> Option<bool> {
        if let Some(found) = self.points.iter().find(|queued| queued.sealed.seal.point == point) {
            let has: Vec<_> = found.sealed.seal.disks.iter().map(|seal| (seal.disk, seal.epoch)).collect();
            return Some(has == disks);
        }
        let committed = |disk: &DiskNumber| self.disks.get(disk)?.known.registration.committed;
        let known: Vec<_> = disks.iter().map(|(disk, epoch)| (committed(disk), *epoch)).collect();
        if known.iter().any(|(committed, _)| committed.is_some_and(|(id, _)| id == point)) {
            return Some(known.iter().all(|(committed, epoch)| *committed == Some((point, *epoch))));
        }
        None
    }

    /// The next file to upload: of the oldest point that waits, then of the open epochs.
    pub fn next_upload(&self) -> Option<FileKey> {
        let waits = |(key, file): (&FileKey, &SpooledFile)| (file.place == Place::Waiting).then_some(*key);
        for point in self.points.iter().take(POINTS_AHEAD_MAX) {
            if point.broken {
                return None;
            }
            if let Some(key) = self.point_files(&point.sealed).find_map(waits) {
                return Some(key);
            }
        }
        if self.damage.is_some() || self.points.len() > POINTS_AHEAD_MAX {
            return None;
        }
        self.disks.iter().find_map(|(number, disk)| self.epoch_files(*number, disk.open).find_map(waits))
    }

    /// The front point, if all its files are stored.
    pub fn next_commit(&self) -> Option<CommitPoint> {
        let front = self.points.front().filter(|point| !point.broken && !self.committing)?;
        let mut files = Vec::new();
        let mut uploaded_at = front.sealed.sealed_at;
        for (key, file) in self.point_files(&front.sealed) {
            if !file.place.is_stored() {
                return None;
            }
            uploaded_at = uploaded_at.max(file.stored_at.unwrap_or(uploaded_at));
            files.push(describe(*key, &file.facts?));
        }
        files.sort_by_key(|file| (file.disk, file.epoch, file.part));
        let SealedPoint { server, seal, sealed_at, .. } = &front.sealed;
        Some(CommitPoint { server: *server, seal: seal.clone(), files, sealed_at: *sealed_at, uploaded_at })
    }

    /// Marks a file as damaged, and with it the point that has it.
    pub fn mark_damaged(&mut self, key: FileKey, why: &str) {
        if let Some(file) = self.files.get_mut(&key) {
            file.place = Place::Damaged;
        }
        for point in &mut self.points {
            point.broken |=
                point.sealed.seal.disks.iter().any(|seal| (seal.disk, seal.epoch) == (key.disk, key.epoch));
        }
        let damage = self.damage.get_or_insert_default();
        if !damage.is_empty() {
            damage.push_str("; ");
        }
        damage.push_str(why);
    }

    /// Gives up the open epoch of a disk that is protected no longer: its files, which are to be removed.
    pub fn forget_open(&mut self, number: DiskNumber) -> Vec<FileKey> {
        let Some(disk) = self.disks.get_mut(&number).filter(|disk| !disk.publishing) else {
            return Vec::new();
        };
        if let Some(receiving) = disk.receiving.take() {
            receiving.cancel.cancel();
        }
        // That the vault does not know its latest description matters no more, and would bring it back.
        disk.known.vault_knows = true;
        let open = disk.open;
        let keys: Vec<FileKey> = self.epoch_files(number, open).map(|(key, _)| *key).collect();
        for key in &keys {
            self.files.remove(key);
        }
        keys
    }

    /// A copy of what must be remembered.
    pub fn known(&self) -> KnownServer {
        KnownServer { disks: self.disks.iter().map(|(number, disk)| (*number, disk.known.clone())).collect() }
    }
}

/// The first few sentences, for people; the log has all of them.
fn summary(damage: &[String]) -> Option<String> {
    const SHOWN: usize = 3;
    damage.iter().for_each(|sentence| tracing::error!("spool damage: {sentence}"));
    let shown = damage.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join("; ");
    match damage.len() {
        0 => None,
        1..=SHOWN => Some(shown),
        count => Some(format!("{shown}; and {} more, which are in the log", count - SHOWN)),
    }
}

/// A file as the vault is told of it.
pub(crate) fn describe(key: FileKey, facts: &FileFacts) -> FileDescription {
    FileDescription {
        disk: key.disk,
        epoch: key.epoch,
        part: key.part,
        bytes: facts.summary.bytes,
        digest: facts.summary.digest,
        plain_bytes: facts.summary.plain_bytes,
    }
}

/// The place of a described file.
pub(crate) fn key_of(file: &FileDescription) -> FileKey {
    FileKey { disk: file.disk, epoch: file.epoch, part: file.part }
}

/// A file that waits for its upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// The server.
    pub server: ServerId,
    /// The file.
    pub file: FileDescription,
    /// Where it lies.
    pub path: std::path::PathBuf,
    /// This process wrote it or has read all of it. Otherwise it must be verified first.
    pub checked: bool,
}
