//! Merging the files of a server, and putting the new ones in place.

use jiff::Timestamp;
use lifeboat_hrl::{DiskKey, KeyOwner};
use lifeboat_model::{ByteCount, DiskNumber, ServerId};
use lifeboat_wire::event::{Event, Severity};

use super::Retention;
use super::layout::{Boundary, Run, merges, runs};
use super::manifests::views;
use super::merge::{Merge, MergeError, merge};
use crate::background_pace::{Pace, Stopped, at_low_priority};
use crate::catalog::{CatalogError, PointFilter, RetentionChange, ServerRow, StoredFile};
use crate::error::VaultError;
use crate::stored_file::{Owner, Reader};
use crate::vault::Vault;

/// Where a file is staged, in the state directory.
const STAGING: &str = "merging.hrl";
/// Bytes that must stay free in the store when a merge begins.
const ROOM_LEFT: u64 = 64 << 20;

impl Vault {
    /// Whose the files of a disk are and with which keys they may have been written.
    pub(crate) async fn file_owner(&self, server: ServerId, disk: DiskNumber) -> Result<Owner, VaultError> {
        let owner = KeyOwner { vault: self.id(), server, disk };
        let mut keys: Vec<DiskKey> = Vec::new();
        for row in self.catalog.disk_keys(server).await?.iter().filter(|row| row.disk == disk) {
            keys.push(self.state.master_key().unwrap(&owner, &row.wrapped)?);
        }
        Ok(Owner { vault: self.id(), server, keys })
    }
}

impl Retention {
    pub(super) async fn merge_server(&self, server: &ServerRow, now: Timestamp) -> Result<(), VaultError> {
        let (points, plan) = self.plan_of(server, now).await?;
        let going = super::manifests::set(&plan.removed);
        let files = self.vault.catalog().files_of_server(server.id).await?;
        for (disk, files) in files {
            let boundaries: Vec<Boundary> = points
                .iter()
                .filter(|point| !going.contains(&point.id))
                .filter_map(|point| {
                    let of_point = point.disks.iter().find(|of_point| of_point.disk == disk)?;
                    Some(Boundary { epoch: of_point.epoch, lasting: plan.lasting.contains(&point.id) })
                })
                .collect();
            let Some(runs) = runs(&files) else {
                return Err(VaultError::Invalid(format!(
                    "files of disk {disk} overlap in the catalog, so they are not merged; \
                     make it anew from the store with: lifeboat vault rebuild-catalog"
                )));
            };
            for range in merges(&runs, &boundaries, self.settings.fold_percent) {
                self.merge_runs(server, disk, &runs[range], now).await?;
            }
        }
        Ok(())
    }

    async fn merge_runs(
        &self,
        server: &ServerRow,
        disk: DiskNumber,
        runs: &[Run],
        now: Timestamp,
    ) -> Result<(), VaultError> {
        let (Some(first), Some(last)) = (runs.first(), runs.last()) else { return Ok(()) };
        let old: Vec<StoredFile> = runs.iter().flat_map(|run| run.files.iter().cloned()).collect();
        let what = format!("merge {} {disk} {}-{}", server.id, first.first, last.last);
        if self.failed_lately(&what, now) || !self.has_room(server, disk, &old, &what, now).await? {
            return Ok(());
        }
        self.step("before merging")?;
        let (new, result) = self.write_merged(server.id, disk, runs).await?;
        self.step("merged files stored")?;
        let result = match result {
            Ok(()) => self.replace_files(server.id, &old, &new, now).await,
            Err(MergeError::Stopped(_)) => Ok(false),
            Err(error) => {
                self.has_failed(what, now);
                self.note_merge_failure(server, disk, &error, now).await?;
                Ok(false)
            }
        };
        if matches!(result, Ok(true)) {
            self.count(|figures| {
                figures.merged_files += old.len() as u64;
                figures.new_files += new.len() as u64;
            });
            tracing::debug!(server = %server.id, %disk, old = old.len(), new = new.len(), "merged files");
            return self.step("files replaced");
        }
        // Nobody was told of them, unless the catalog failed without saying whether it changed.
        if matches!(result, Ok(false)) {
            for file in new {
                self.vault.store().delete(&file.object).await?;
            }
        }
        result.map(drop)
    }

    async fn has_room(
        &self,
        server: &ServerRow,
        disk: DiskNumber,
        old: &[StoredFile],
        what: &str,
        now: Timestamp,
    ) -> Result<bool, VaultError> {
        let bytes: u64 = old.iter().map(|file| file.bytes).sum();
        let Some(free) = self.vault.store().free_bytes() else { return Ok(true) };
        if free >= bytes.saturating_add(bytes / 8).saturating_add(ROOM_LEFT) {
            return Ok(true);
        }
        self.has_failed(what.to_owned(), now);
        self.vault
            .note(Event {
                time: now,
                severity: Severity::Warning,
                code: "merge_needs_room".into(),
                server: Some(server.id),
                disk: Some(disk),
                message: format!(
                    "{} files of {} are not merged: the store has only {} free, and the old files go after \
                     the new one is there.",
                    old.len(),
                    ByteCount(bytes),
                    ByteCount(free)
                ),
                next_step: "Make room in the store, or lower the retention of a server.".into(),
            })
            .await?;
        Ok(false)
    }

    /// The new files that were stored, and whether they are all.
    async fn write_merged(
        &self,
        server: ServerId,
        disk: DiskNumber,
        runs: &[Run],
    ) -> Result<(Vec<StoredFile>, Result<(), MergeError>), VaultError> {
        let staging = self.vault.state.path().join(STAGING);
        let work = Merge {
            owner: self.vault.file_owner(server, disk).await?,
            key: self.vault.disk_key(server, disk, None).await?,
            names: *self.vault.names(),
            disk,
            runs: runs.to_vec(),
            reader: Reader::new(self.vault.store().clone()),
            randomness: self.vault.randomness.clone(),
            staging: staging.clone(),
            part_bytes: self.settings.part_bytes,
        };
        let bytes_per_second = self.settings.merge_bytes_per_second;
        let merged = at_low_priority("lifeboat-merge", move |stop| {
            let mut new = Vec::new();
            let result = merge(&work, &mut Pace::new(bytes_per_second, stop), &mut new);
            // A leftover is written over by the next merge.
            drop(std::fs::remove_file(&work.staging));
            (new, result)
        })
        .await;
        Ok(merged.unwrap_or((Vec::new(), Err(MergeError::Stopped(Stopped)))))
    }

    /// Puts the new files in the place of the old ones. False when those changed meanwhile.
    async fn replace_files(
        &self,
        server: ServerId,
        old: &[StoredFile],
        new: &[StoredFile],
        now: Timestamp,
    ) -> Result<bool, VaultError> {
        let catalog = self.vault.catalog();
        let lock = self.server_of(server);
        let _guard = lock.lock().await;
        self.settle_manifests(server).await?;
        let mut points = catalog.points(PointFilter::From(server, 0)).await?;
        points.reverse();
        let refs: Vec<_> = points.iter().collect();
        let mut files = catalog.files_of_server(server).await?;
        let (before, _) = views(&refs, &files);
        let (Some(disk), Some(first), Some(last)) =
            (old.first().map(|file| file.disk), old.first(), old.last())
        else {
            return Ok(false);
        };
        let of_disk = files.entry(disk).or_default();
        let Some(start) = of_disk.iter().position(|file| file == first) else { return Ok(false) };
        let is_same = of_disk.get(start..start + old.len()) == Some(old);
        // A point within would lose its state. Points only go, so this was checked before.
        let is_within = points.iter().flat_map(|point| &point.disks).any(|of_point| {
            of_point.disk == disk && of_point.epoch >= first.first_epoch && of_point.epoch < last.last_epoch
        });
        if !is_same || is_within {
            return Ok(false);
        }
        of_disk.splice(start..start + old.len(), new.iter().cloned());
        let (after, _) = views(&refs, &files);
        let changed: Vec<_> = points
            .iter()
            .filter_map(|point| Some((point, after.get(&point.id)?)))
            .filter(|(point, view)| before.get(&point.id) != Some(view))
            .collect();
        self.write_views(server, &changed).await?;
        let change = RetentionChange {
            server,
            removed_points: Vec::new(),
            removed_files: old.to_vec(),
            added_files: new.to_vec(),
            now,
        };
        match catalog.apply(&change).await {
            Ok(()) => Ok(true),
            Err(CatalogError::Overtaken { .. }) => {
                self.settle_manifests(server).await?;
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn note_merge_failure(
        &self,
        server: &ServerRow,
        disk: DiskNumber,
        error: &MergeError,
        now: Timestamp,
    ) -> Result<(), VaultError> {
        if let MergeError::Input { object, fault } = error
            && fault.is_damage()
        {
            return self.vault.note_damage(server.id, object, fault, now).await;
        }
        self.vault
            .note(Event {
                time: now,
                severity: Severity::Warning,
                code: "merge_failed".into(),
                server: Some(server.id),
                disk: Some(disk),
                message: format!(
                    "Files could not be merged: {error}. The old files stay; it is tried again."
                ),
                next_step: "If it goes on, the store fills up: put right what the message names.".into(),
            })
            .await
    }
}
