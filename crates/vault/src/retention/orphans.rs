//! Objects in the store that nobody knows: files of merges that were interrupted, uploads that
//! were sent a second time in another shape, and, when the notes of what is retired were lost with a
//! catalog, what should have been deleted.

use std::collections::{BTreeMap, BTreeSet};

use futures::TryStreamExt;
use jiff::Timestamp;
use lifeboat_model::{DiskNumber, Epoch, ServerId};

use super::Retention;
use crate::catalog::PointFilter;
use crate::error::VaultError;

impl Retention {
    /// Deletes files of a server that are old enough, and that neither catalog nor any manifest names,
    /// and that no commit can name any more. Not while files are being merged.
    pub(super) async fn remove_orphans(&self, server: ServerId, now: Timestamp) -> Result<(), VaultError> {
        self.remove_bypassed(server).await?;
        let suspects = self.suspects(server, now).await?;
        if suspects.is_empty() {
            return Ok(());
        }
        let lock = self.server_of(server);
        let _guard = lock.lock().await;
        let Some(named) = self.named_by_manifests(server).await? else { return Ok(()) };
        for object in suspects {
            // As it is now: the first look was without the lock.
            let is_known = named.contains(&object) || self.vault.catalog().file(&object).await?.is_some();
            if is_known {
                continue;
            }
            self.vault.catalog().forget_upload(&object).await?;
            self.step("before deleting an orphan")?;
            self.vault.store().delete(&object).await?;
            self.count(|figures| figures.deleted += 1);
            tracing::info!(%server, object, "deleted a file that nobody knows");
        }
        Ok(())
    }

    /// Deletes manifests of points that were thinned out before the catalog was lost.
    ///
    /// Such a manifest lies, by number and by time of commit, between two points of the catalog that
    /// follow each other, or before the first: the later one's manifest passes it over, which only
    /// retention writes. Manifests of another history, which a rebuild has refused, do not fit
    /// in both ways and are left alone.
    async fn remove_bypassed(&self, server: ServerId) -> Result<(), VaultError> {
        let lock = self.server_of(server);
        let _guard = lock.lock().await;
        self.settle_manifests(server).await?;
        let points = self.vault.catalog().points(PointFilter::From(server, 0)).await?;
        let known: BTreeSet<String> =
            points.iter().map(|point| self.vault.names().point(server, point.number, point.id)).collect();
        for object in self.vault.store().names_after(&self.vault.names().points(server), "").await? {
            if known.contains(&object) {
                continue;
            }
            let Ok(Some(manifest)) = self.vault.read_point_manifest(&object).await else { continue };
            // Newest first, so the first that is before it is right before it.
            let before =
                points.iter().position(|point| point.number < manifest.number).unwrap_or(points.len());
            let after_fits = before
                .checked_sub(1)
                .and_then(|after| points.get(after))
                .is_some_and(|after| after.number > manifest.number && after.committed > manifest.committed);
            let before_fits = points.get(before).is_none_or(|before| before.committed <= manifest.committed);
            if after_fits && before_fits {
                self.step("before deleting a manifest")?;
                self.vault.store().delete(&object).await?;
                self.count(|figures| figures.deleted += 1);
                tracing::info!(%server, object, "deleted the manifest of a point that was thinned out");
            }
        }
        Ok(())
    }

    async fn suspects(&self, server: ServerId, now: Timestamp) -> Result<Vec<String>, VaultError> {
        let catalog = self.vault.catalog();
        let known = catalog.known_objects(server).await?;
        let uploads = catalog.uploads(server).await?;
        let committed: BTreeMap<DiskNumber, Epoch> = catalog
            .committed_epochs(server)
            .await?
            .into_iter()
            .map(|(disk, (_, row))| (disk, row.epoch))
            .collect();
        let mut suspects = Vec::new();
        for disk in catalog.disks(server).await? {
            let committed = committed.get(&disk.disk).copied().unwrap_or_default();
            let mut listed = self.vault.store().list(&self.vault.names().disk(server, disk.disk));
            while let Some(meta) = listed.try_next().await? {
                let object = meta.location.to_string();
                let modified = Timestamp::from_nanosecond(
                    meta.last_modified.timestamp_nanos_opt().unwrap_or_default().into(),
                );
                // The name tells what it was for. What has no such name is not ours.
                let Some(last) = object.rsplit('/').next().and_then(last_epoch) else { continue };
                let is_old =
                    modified.is_ok_and(|time| now.duration_since(time) >= self.settings.orphan_after);
                let is_known = known.contains(&object) && !uploads.contains_key(&object);
                if is_old && !is_known && last <= committed {
                    suspects.push(object);
                }
            }
        }
        Ok(suspects)
    }

    /// All objects that manifests of a server name. None when a manifest cannot be read: nobody knows
    /// then what it names.
    async fn named_by_manifests(&self, server: ServerId) -> Result<Option<BTreeSet<String>>, VaultError> {
        let mut named = BTreeSet::new();
        for object in self.vault.store().names_after(&self.vault.names().points(server), "").await? {
            match self.vault.read_point_manifest(&object).await {
                Ok(manifest) => {
                    let files = manifest.into_iter().flat_map(|manifest| manifest.files);
                    named.extend(files.map(|file| file.object));
                }
                Err(VaultError::Manifest(error)) => {
                    tracing::warn!(%server, %error, "unknown files are left alone because of a manifest");
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Some(named))
    }
}

/// The last epoch in a file, by its name; see [`crate::ObjectNames`].
fn last_epoch(name: &str) -> Option<Epoch> {
    let fields: Vec<&str> = name.strip_suffix(".hrl")?.split('-').collect();
    let epoch = match fields.as_slice() {
        [epoch, _part, _digest] | [_, epoch, _part, _digest] => epoch,
        _ => return None,
    };
    (epoch.len() == 20).then(|| epoch.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use lifeboat_model::{Digest, Part, VaultId};

    use super::*;
    use crate::ObjectNames;

    #[test]
    fn the_epoch_of_a_file_is_in_its_name() {
        let names = ObjectNames::new(VaultId::new(1));
        let (server, disk, digest) = (ServerId::new(2), DiskNumber(0), Digest::of(b""));
        let of = |object: String| last_epoch(object.rsplit('/').next().unwrap());
        assert_eq!(of(names.file(server, disk, Epoch(7), Part(3), &digest)), Some(Epoch(7)));
        let merged = names.merged_file(server, disk, (Epoch(2), Epoch(9)), Part(0), &digest);
        assert_eq!(of(merged), Some(Epoch(9)));
        assert_eq!(last_epoch("notes.txt"), None);
        assert_eq!(last_epoch("x.hrl"), None);
    }
}
