//! What must be true after every step.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::Arc;

use jiff::SignedDuration;
use lifeboat_agent::engine::OpenEpoch;
use lifeboat_hrl::verify_file;
use lifeboat_model::{BLOCK_BYTES, Digest, DiskNumber, Extent, FRAME_BLOCKS, Part, PointId, ServerId};
use lifeboat_nbd::ReadChunk;
use lifeboat_vault::Vault;
use lifeboat_vault::catalog::{PointFilter, PointRow, StoredFile};
use lifeboat_volume::PointDisk;

use crate::agent::KEEP_ALL_SECONDS;
use crate::content::Image;
use crate::line::Line;
use crate::model::{OpenVolume, PartPlace, check_sentence};

/// Bytes that are read of a point at once.
const READ_BYTES: u64 = 1 << 20;

impl Line {
    /// Checks everything.
    pub async fn check(&mut self) {
        self.check_spools();
        if let Some(vault) = self.recovery.vault.clone() {
            let servers: BTreeSet<ServerId> = self.model.points.values().map(|point| point.server).collect();
            for server in servers {
                self.check_points(&vault, server).await;
            }
            self.check_fences(&vault).await;
        }
        self.check_volumes();
    }

    /// An acknowledged part is in the spool, or in the store, or in a committed point.
    fn check_spools(&mut self) {
        let mut settled = Vec::new();
        let mut turn = self.now.as_millis() % 8;
        for (place, digest) in &self.model.acknowledged {
            let PartPlace { site, server, disk, epoch, part } = *place;
            if self.model.spool_damaged.contains(&(site, server)) {
                continue;
            }
            let path = self.sites[site].spool_path(server, OpenEpoch { disk, epoch, part });
            if let Ok(file) = File::open(&path) {
                // All of it is checked now and then; that it is there, always.
                turn += 1;
                if turn.is_multiple_of(8) {
                    let verified =
                        verify_file(file).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                    assert_eq!(verified.summary.digest, *digest, "{} holds another part", path.display());
                }
                continue;
            }
            let committed = self.model.committed_epochs.get(&(server, disk));
            let in_point = committed.is_some_and(|committed| *committed >= epoch);
            let object = self.recovery.names.file(server, disk, epoch, Part(part), digest);
            let stored =
                self.recovery.store.version(&object).is_some() || self.recovery.store.is_damaged(&object);
            assert!(in_point || stored, "an acknowledged part is lost: {place:?}");
            if !in_point {
                continue;
            }
            settled.push(*place);
        }
        for place in settled {
            self.model.acknowledged.remove(&place);
        }
    }

    /// Nothing that an open volume reads is deleted.
    fn check_volumes(&self) {
        for volume in &self.model.volumes {
            for object in volume.disks.iter().flat_map(|(_, _, objects)| objects) {
                let there =
                    self.recovery.store.version(object).is_some() || self.recovery.store.is_damaged(object);
                assert!(
                    there,
                    "the open volume {} of point {} needs {object}, which is gone",
                    volume.id, volume.point
                );
            }
        }
    }

    /// Reads an open volume.
    pub async fn read_volume(&self, volume: &OpenVolume) {
        let point = &self.model.points[&volume.point];
        for (disk, opened, objects) in &volume.disks {
            let damaged = objects.iter().any(|object| self.recovery.store.is_damaged(object));
            match compare(opened, &point.images[disk]).await {
                Err(message) if damaged => check_sentence(&message),
                Err(message) => panic!("the open volume {} cannot be read: {message}", volume.id),
                Ok(()) => {}
            }
        }
    }

    async fn check_points(&mut self, vault: &Arc<Vault>, server: ServerId) {
        let mut rows = vault.catalog().points(PointFilter::From(server, 0)).await.unwrap();
        rows.reverse();
        self.check_history(server, &rows);
        self.check_owner(server, &rows);
        let mut needed: BTreeMap<DiskNumber, Vec<StoredFile>> = BTreeMap::new();
        for row in &rows {
            for of_point in &row.disks {
                let (_, files) = vault.files_of_point(row.id, of_point.disk).await.unwrap();
                for file in &files {
                    let there = self.recovery.store.version(&file.object).is_some();
                    let by_us = self.recovery.store.is_damaged(&file.object);
                    assert!(there || by_us, "point {} needs {}, which is gone", row.id, file.object);
                }
                self.compare_once(vault, row, of_point.disk, of_point.bytes, &files).await;
                needed.insert(of_point.disk, files);
            }
        }
    }

    /// Points come in order, stay until retention may remove them, and do not come back.
    fn check_history(&mut self, server: ServerId, rows: &[PointRow]) {
        for pair in rows.windows(2) {
            assert!(pair[0].number < pair[1].number, "points out of order");
            // Unless the time before was more than ten minutes ahead when this point was committed.
            let ahead = pair[0].time.duration_since(pair[1].committed) > SignedDuration::from_mins(10);
            let follows = pair[0].number + 1 == pair[1].number;
            assert!(!follows || pair[0].time < pair[1].time || ahead, "times go back: {pair:?}");
            for disk in &pair[1].disks {
                let before = pair[0].disks.iter().find(|before| before.disk == disk.disk);
                assert!(before.is_none_or(|before| before.epoch < disk.epoch), "epochs out of order");
            }
            let removed = self.model.points.get(&pair[1].id).map(|point| &point.removed);
            let may_lack = |disk: DiskNumber| removed.is_some_and(|removed| removed.contains(&disk));
            let left_out = pair[0]
                .disks
                .iter()
                .find(|disk| !pair[1].disks.iter().any(|d| d.disk == disk.disk) && !may_lack(disk.disk));
            assert!(left_out.is_none(), "point {} is half there", pair[1].id);
        }
        let listed: BTreeSet<PointId> = rows.iter().map(|row| row.id).collect();
        for row in rows {
            let expected = self.model.points.get(&row.id);
            let expected = expected.unwrap_or_else(|| panic!("point {} was never sealed", row.id));
            assert_eq!(expected.server, row.server);
            let is_in_future = row.time.duration_since(row.committed) > SignedDuration::from_mins(10);
            assert!(row.time == expected.time || !is_in_future, "a time that cannot be: {row:?}");
            let disks: Vec<_> = row.disks.iter().map(|disk| (disk.disk, disk.bytes)).collect();
            let images: Vec<_> = expected.images.iter().map(|(disk, image)| (*disk, image.bytes)).collect();
            assert_eq!(disks, images, "point {} has other disks than were sealed", row.id);
            assert!(!self.model.removed.contains(&row.id), "point {} came back", row.id);
        }
        let committed = self.model.committed.entry(server).or_default();
        let newest = rows.last().map(|row| row.time);
        let keep_all = SignedDuration::from_secs(i64::try_from(KEEP_ALL_SECONDS).unwrap());
        let gone: Vec<_> =
            committed.iter().filter(|(point, _)| !listed.contains(point)).map(|(p, t)| (*p, *t)).collect();
        for (point, time) in gone {
            let may_go =
                self.faults.retention && newest.is_some_and(|newest| newest.duration_since(time) > keep_all);
            assert!(may_go, "committed point {point} of {time} is not listed; the newest is of {newest:?}");
            committed.remove(&point);
            self.model.removed.insert(point);
            self.model.figures.removed += 1;
        }
        committed.extend(rows.iter().map(|row| (row.id, row.time)));
        for disk in rows.iter().flat_map(|row| &row.disks) {
            let newest = self.model.committed_epochs.entry((server, disk.disk)).or_default();
            *newest = disk.epoch.max(*newest);
        }
    }

    /// Opens a disk of a point and compares it, unless that was done with these very objects.
    async fn compare_once(
        &mut self,
        vault: &Arc<Vault>,
        row: &PointRow,
        disk: DiskNumber,
        bytes: u64,
        files: &[StoredFile],
    ) {
        let mut signature = format!("{} {disk} {bytes}", row.id);
        let mut damaged = false;
        for file in files {
            let version = self.recovery.store.version(&file.object);
            signature.push_str(&format!(" {} {version:?}", file.object));
            damaged |= self.recovery.store.is_damaged(&file.object);
        }
        if !self.model.compared.insert(Digest::of(signature.as_bytes()).0) {
            return;
        }
        self.model.figures.compared += 1;
        let expected = Arc::new(self.model.points[&row.id].images[&disk].as_ref().clone());
        let opened = self.recovery.open_disk(vault, row.server, disk, bytes, files).await;
        let result = match opened {
            Ok(opened) => compare(&opened, &expected).await,
            Err(message) => Err(message),
        };
        match result {
            Ok(()) => {}
            Err(message) if damaged => check_sentence(&message),
            Err(message) => {
                let files: Vec<_> = files.iter().map(|file| file.object.as_str()).collect();
                panic!("disk {disk} of point {} cannot be read: {message}; its files: {files:?}", row.id)
            }
        }
    }
}

/// Reads a disk of a point and compares it with what it was. An error is that of the volume.
async fn compare(disk: &PointDisk, expected: &Image) -> Result<(), String> {
    assert_eq!(disk.size_bytes(), expected.bytes);
    let mut offset = 0;
    while offset < expected.bytes {
        let len = READ_BYTES.min(expected.bytes - offset);
        let chunks =
            disk.read(offset, u32::try_from(len).unwrap()).await.map_err(|error| error.to_string())?;
        let mut at = offset;
        for chunk in chunks {
            match &chunk {
                ReadChunk::Data(bytes) => compare_data(expected, at, bytes),
                ReadChunk::Zeroes(bytes) => compare_zeroes(expected, at, u64::from(*bytes)),
            }
            at += chunk.len();
        }
        assert_eq!(at, offset + len, "a read is shorter than was asked for");
        offset += len;
    }
    Ok(())
}

fn compare_data(expected: &Image, at: u64, bytes: &[u8]) {
    let block_bytes = BLOCK_BYTES as u64;
    assert_eq!(at % block_bytes, 0, "data begins within a block");
    let blocks = (bytes.len() as u64).div_ceil(block_bytes);
    let whole = Extent { first: at / block_bytes, blocks };
    for extent in whole.pieces(FRAME_BLOCKS) {
        let from = usize::try_from((extent.first - whole.first) * block_bytes).unwrap();
        let wanted = expected.content(extent);
        let got = &bytes[from..bytes.len().min(from + wanted.len())];
        if got != &wanted[..got.len()] {
            let wrong =
                got.chunks(BLOCK_BYTES).zip(wanted.chunks(BLOCK_BYTES)).position(|(g, w)| g != &w[..g.len()]);
            let block = extent.first + wrong.unwrap_or(0) as u64;
            panic!("block {block} is not what it was at the point (number {})", expected.value(block));
        }
    }
}

fn compare_zeroes(expected: &Image, at: u64, bytes: u64) {
    let (first, end) = (at / BLOCK_BYTES as u64, (at + bytes).div_ceil(BLOCK_BYTES as u64));
    for block in first..end {
        let value = expected.value(block);
        assert_eq!(value, 0, "block {block} is zeroes and should be number {value}");
    }
}
