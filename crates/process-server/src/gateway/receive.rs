//! Parts and points, as agents send them.

use std::path::PathBuf;

use jiff::Timestamp;
use lifeboat_hrl::{DiskKey, FileId, FileIdentity, FileSummary, FrameSealer};
use lifeboat_model::{DiskNumber, Epoch, Part, ServerId};
use lifeboat_wire::agent::{PartReceipt, SealPoint, SealReceipt};
use tokio_util::sync::CancellationToken;

use super::{Gateway, State, push_event, spool_damaged};
use crate::queue::{Place, QueuedPoint, Receiving, ServerQueue, SpooledFile};
use crate::refusal::Refusal;
use crate::spool::{FileFacts, FileKey, SealedPoint};
use crate::state_dir::StateError;

/// Where a part belongs, and who sends it.
#[derive(Clone, Copy, Debug)]
pub struct PartPlace {
    /// The server.
    pub server: ServerId,
    /// The disk.
    pub disk: DiskNumber,
    /// The epoch.
    pub epoch: Epoch,
    /// The part of it.
    pub part: Part,
    /// The life of the agent.
    pub writer: u64,
}

/// Leave to write one part. Whoever holds it writes the file at [`PartTicket::partial`], syncs it and
/// calls [`Gateway::finish_part`], or [`Gateway::abandon_part`].
#[derive(Debug)]
pub struct PartTicket {
    server: ServerId,
    key: FileKey,
    turn: u64,
    disk_bytes: u64,
    /// Where the file is to be written.
    pub partial: PathBuf,
    /// Seals its frames.
    pub sealer: FrameSealer,
    /// Cancelled when a later connection takes over.
    pub taken_over: CancellationToken,
}

impl PartTicket {
    /// The server whose part it is.
    #[must_use]
    pub const fn server(&self) -> ServerId {
        self.server
    }

    /// The disk whose part it is.
    #[must_use]
    pub const fn disk(&self) -> DiskNumber {
        self.key.disk
    }

    /// Size of the disk, as it was described.
    #[must_use]
    pub const fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }
}

impl Gateway {
    /// Gives leave to write a part, and takes it from an earlier connection that has it.
    /// `file_id` is fresh from the system's random numbers.
    ///
    /// # Errors
    /// When it is not the next part, or nothing of this server is accepted.
    pub fn begin_part(
        &self,
        place: PartPlace,
        file_id: FileId,
        compression_level: i32,
    ) -> Result<PartTicket, Refusal> {
        let PartPlace { server, disk, epoch, part, writer } = place;
        let key = FileKey { disk, epoch, part };
        let mut state = self.lock();
        let State { servers, next_turn, .. } = &mut *state;
        let queue = servers.get_mut(&server).ok_or(Refusal::UnknownDisk { disk })?;
        check_writer(queue, disk, writer)?;
        check_place(queue, key)?;
        let sealing = queue.sealing;
        let entry = queue.disks.get_mut(&disk).ok_or(Refusal::UnknownDisk { disk })?;
        if sealing || entry.publishing {
            return Err(Refusal::Busy { disk });
        }
        let registration = &entry.known.registration;
        let disk_bytes = entry.known.description.bytes;
        let identity = FileIdentity {
            vault: registration.vault,
            server,
            disk,
            first_epoch: epoch,
            last_epoch: epoch,
            part,
            disk_bytes,
        };
        let sealer = disk_key(&registration.key_id, &registration.key)
            .ok_or_else(|| Refusal::UnusableKey { disk, key_id: registration.key_id.clone() })
            .and_then(|key| {
                FrameSealer::new(identity, file_id, &key, compression_level).map_err(Refusal::Write)
            })?;
        let turn = *next_turn;
        *next_turn += 1;
        let taken_over = CancellationToken::new();
        if let Some(earlier) = entry.receiving.replace(Receiving { turn, cancel: taken_over.clone() }) {
            earlier.cancel.cancel();
        }
        let partial = self.spool.partial_path(server, key, turn);
        Ok(PartTicket { server, key, turn, disk_bytes, partial, sealer, taken_over })
    }

    /// Makes a written and synced part durable under its name. Then it may be acknowledged.
    ///
    /// # Errors
    /// When a later connection took over, or the spool cannot be written. The part counts for nothing.
    pub fn finish_part(&self, ticket: &PartTicket, summary: FileSummary) -> Result<PartReceipt, Refusal> {
        let PartTicket { server, key, .. } = *ticket;
        {
            let mut state = self.lock();
            let queue = state.servers.get_mut(&server).ok_or(Refusal::UnknownDisk { disk: key.disk })?;
            check_place(queue, key)?;
            let sealing = queue.sealing;
            let disk = queue.disks.get_mut(&key.disk).ok_or(Refusal::UnknownDisk { disk: key.disk })?;
            if disk.receiving.as_ref().is_none_or(|receiving| receiving.turn != ticket.turn) {
                return Err(Refusal::Superseded { disk: key.disk });
            }
            if sealing || disk.publishing {
                return Err(Refusal::Busy { disk: key.disk });
            }
            disk.publishing = true;
        }
        let published = self.spool.publish(server, key, &ticket.partial);
        let mut state = self.lock();
        if let Some(queue) = state.servers.get_mut(&server) {
            if let Some(disk) = queue.disks.get_mut(&key.disk) {
                disk.publishing = false;
                disk.receiving = None;
            }
            if published.is_ok() {
                let facts = Some(FileFacts { summary, disk_bytes: ticket.disk_bytes });
                let file = SpooledFile { facts, place: Place::Waiting, checked: true, stored_at: None };
                queue.files.insert(key, file);
            }
        }
        drop(state);
        published?;
        self.changed();
        let FileSummary { bytes, data_blocks, zero_blocks, .. } = summary;
        Ok(PartReceipt { stored_bytes: bytes, data_blocks, zero_blocks })
    }

    /// Gives a ticket back, unused. The partial file is the caller's to remove.
    pub fn abandon_part(&self, ticket: &PartTicket) {
        let mut state = self.lock();
        let disk = state.servers.get_mut(&ticket.server).and_then(|q| q.disks.get_mut(&ticket.key.disk));
        if let Some(disk) = disk
            && disk.receiving.as_ref().is_some_and(|receiving| receiving.turn == ticket.turn)
        {
            disk.receiving = None;
        }
    }

    /// Seals a point durably and opens the next epochs of its disks. The same point again is answered
    /// the same.
    ///
    /// # Errors
    /// When the point does not fit what is durable here, or cannot be written.
    pub fn seal_point(
        &self,
        server: ServerId,
        seal: &SealPoint,
        writer: u64,
        wall: Timestamp,
    ) -> Result<SealReceipt, Refusal> {
        check_seal_form(seal)?;
        let receipt = SealReceipt { point: seal.point };
        let sealed = {
            let mut state = self.lock();
            let State { servers, next_order, .. } = &mut *state;
            let first = seal.disks[0].disk;
            let queue = servers.get_mut(&server).ok_or(Refusal::UnknownDisk { disk: first })?;
            let disks: Vec<_> = seal.disks.iter().map(|disk| (disk.disk, disk.epoch)).collect();
            match queue.is_sealed(seal.point, &disks) {
                Some(true) => return Ok(receipt),
                Some(false) => return Err(Refusal::PointDiffers { point: seal.point }),
                None => {}
            }
            seal.disks.iter().try_for_each(|disk| check_writer(queue, disk.disk, writer))?;
            check_seal(queue, seal)?;
            queue.sealing = true;
            let order = *next_order;
            *next_order += 1;
            SealedPoint { order, server, seal: seal.clone(), sealed_at: wall }
        };
        let written = self.spool.write_point(&sealed);
        let mut state = self.lock();
        let State { servers, events, .. } = &mut *state;
        if let Some(queue) = servers.get_mut(&server) {
            queue.sealing = false;
            match &written {
                Ok(()) => open_next_epochs(queue, sealed),
                Err((_, None)) => {}
                Err((_, Some(error))) => {
                    let damage = format!(
                        "point {} could neither be written nor taken back ({error}): restart the process server",
                        seal.point
                    );
                    push_event(events, spool_damaged(server, &damage, wall));
                    queue.damage = Some(damage);
                }
            }
        }
        drop(state);
        written.map_err(|(error, _): (StateError, _)| Refusal::State(error))?;
        self.forget_removed(server, &seal.removed);
        self.changed();
        Ok(receipt)
    }

    /// Removes what no point will have: the open epochs of disks that are protected no longer. What
    /// cannot be removed now is with the next point, which names them again.
    fn forget_removed(&self, server: ServerId, removed: &[DiskNumber]) {
        let keys: Vec<FileKey> = {
            let mut state = self.lock();
            let Some(queue) = state.servers.get_mut(&server) else { return };
            removed.iter().flat_map(|disk| queue.forget_open(*disk)).collect()
        };
        if let Err(error) = self.spool.remove_files(server, keys) {
            tracing::warn!(%server, "files of a disk that was removed stay in the spool until the next start: {error}");
        }
    }
}

fn open_next_epochs(queue: &mut ServerQueue, sealed: SealedPoint) {
    for seal in &sealed.seal.disks {
        if let Some(disk) = queue.disks.get_mut(&seal.disk) {
            disk.open = seal.epoch.next();
            if let Some(receiving) = disk.receiving.take() {
                receiving.cancel.cancel();
            }
        }
    }
    queue.points.push_back(QueuedPoint { sealed, broken: false });
}

/// Refuses what comes from another agent than the one that described the disk last.
fn check_writer(queue: &ServerQueue, disk: DiskNumber, writer: u64) -> Result<(), Refusal> {
    let known = queue.disks.get(&disk).map_or(0, |disk| disk.known.writer);
    if known == 0 || known == writer { Ok(()) } else { Err(Refusal::OtherWriter { disk }) }
}

/// Refuses a part that is not the next one.
fn check_place(queue: &ServerQueue, key: FileKey) -> Result<(), Refusal> {
    let FileKey { disk, epoch, part } = key;
    let at = queue.disk_state(disk).ok_or(Refusal::UnknownDisk { disk })?;
    if let Some(why) = &queue.damage {
        return Err(Refusal::SpoolDamaged { why: why.clone() });
    }
    if (epoch, part) == (at.epoch, at.next_part) {
        return Ok(());
    }
    let state = Box::new(at.clone());
    let durable = queue.files.contains_key(&key);
    Err(if durable {
        Refusal::AlreadyDurable { disk, epoch, part, state }
    } else if epoch == at.epoch {
        Refusal::WrongPart { disk, epoch, part, state }
    } else {
        Refusal::WrongEpoch { disk, epoch, state }
    })
}

fn check_seal_form(seal: &SealPoint) -> Result<(), Refusal> {
    let refuse = |why: String| Err(Refusal::MalformedPoint { why });
    if seal.disks.is_empty() {
        return refuse("it names none".into());
    }
    for (index, disk) in seal.disks.iter().enumerate() {
        if seal.disks[..index].iter().any(|other| other.disk == disk.disk) {
            return refuse(format!("disk {} is there twice", disk.disk));
        }
    }
    Ok(())
}

fn check_seal(queue: &ServerQueue, seal: &SealPoint) -> Result<(), Refusal> {
    if let Some(why) = &queue.damage {
        return Err(Refusal::SpoolDamaged { why: why.clone() });
    }
    for named in &seal.disks {
        let disk = named.disk;
        let entry = queue.disks.get(&disk).ok_or(Refusal::UnknownDisk { disk })?;
        let at = queue.disk_state(disk).ok_or(Refusal::UnknownDisk { disk })?;
        if queue.sealing || entry.publishing {
            return Err(Refusal::Busy { disk });
        }
        let (durable, described) = (at.next_part.0, entry.known.description.bytes);
        let state = Box::new(at);
        if named.epoch != state.epoch {
            return Err(Refusal::WrongEpoch { disk, epoch: named.epoch, state });
        }
        if named.parts != durable {
            return Err(Refusal::PartsDiffer {
                disk,
                epoch: named.epoch,
                claimed: named.parts,
                durable,
                state,
            });
        }
        if named.bytes != described {
            return Err(Refusal::SizeDiffers { disk, described, claimed: named.bytes, state });
        }
    }
    Ok(())
}

/// The key of a registration, if it is one and has the fingerprint that the vault says.
pub(super) fn disk_key(key_id: &str, key: &str) -> Option<DiskKey> {
    if key.len() != 64 || !key.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut secret = [0; 32];
    for (byte, digits) in secret.iter_mut().zip(key.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    let key = DiskKey::new(secret);
    (key.id().to_string() == key_id).then_some(key)
}
