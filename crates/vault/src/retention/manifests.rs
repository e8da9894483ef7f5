//! What the manifests of points have to say, by the catalog.

use std::collections::{BTreeMap, BTreeSet};

use lifeboat_model::{DiskNumber, PointId, ServerId};
use lifeboat_wire::agent::{SealDisk, SealPoint};

use super::Retention;
use crate::catalog::{PointFilter, PointRow, StoredFile};
use crate::commit::WriteMode;
use crate::error::VaultError;
use crate::manifest::{ManifestError, PointManifest};

/// What changes in a point's manifest after its commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// The point before it.
    pub previous: Option<PointId>,
    /// The files that it needs and the point before it does not.
    pub files: Vec<StoredFile>,
}

/// The view of each point, and the files that none of them needs. `points` are oldest first.
pub(crate) fn views(
    points: &[&PointRow],
    files: &BTreeMap<DiskNumber, Vec<StoredFile>>,
) -> (BTreeMap<PointId, View>, Vec<StoredFile>) {
    let mut views: BTreeMap<PointId, View> = BTreeMap::new();
    let mut previous = None;
    for point in points {
        views.insert(point.id, View { previous, files: Vec::new() });
        previous = Some(point.id);
    }
    let mut unneeded = Vec::new();
    for (disk, files) in files {
        let mut ends = points.iter().filter_map(|point| {
            let of_point = point.disks.iter().find(|of_point| of_point.disk == *disk)?;
            Some((point.id, of_point.epoch))
        });
        let mut end = ends.next();
        for file in files {
            while end.is_some_and(|(_, epoch)| epoch < file.last_epoch) {
                end = ends.next();
            }
            match end.and_then(|(point, _)| views.get_mut(&point)) {
                Some(view) => view.files.push(file.clone()),
                None => unneeded.push(file.clone()),
            }
        }
    }
    (views, unneeded)
}

impl Retention {
    /// Writes the manifests anew that an interrupted change has left in doubt. Under the server's lock.
    pub(super) async fn settle_manifests(&self, server: ServerId) -> Result<(), VaultError> {
        let catalog = self.vault.catalog();
        let unsettled = catalog.unsettled_manifests(server).await?;
        if unsettled.is_empty() {
            return Ok(());
        }
        self.vault.check_files(server, None).await?;
        let mut points = catalog.points(PointFilter::From(server, 0)).await?;
        points.reverse();
        let files = catalog.files_of_server(server).await?;
        let (views, _) = views(&points.iter().collect::<Vec<_>>(), &files);
        for point in points.iter().filter(|point| unsettled.contains(&point.id)) {
            if let Some(view) = views.get(&point.id) {
                self.write_view(point, view).await?;
            }
        }
        catalog.manifests_settled(server).await?;
        tracing::info!(%server, manifests = unsettled.len(), "put manifests right after an interruption");
        Ok(())
    }

    /// Makes the manifests of `points` say what `views` has. Under the server's lock; what is
    /// noted here is cleared by the catalog's change that follows.
    pub(super) async fn write_views(
        &self,
        server: ServerId,
        changed: &[(&PointRow, &View)],
    ) -> Result<(), VaultError> {
        let ids: Vec<PointId> = changed.iter().map(|(point, _)| point.id).collect();
        self.vault.catalog().unsettle_manifests(server, &ids).await?;
        self.step("manifests noted")?;
        for (point, view) in changed {
            self.write_view(point, view).await?;
            self.step("manifest written")?;
        }
        Ok(())
    }

    async fn write_view(&self, point: &PointRow, view: &View) -> Result<(), VaultError> {
        let written = self.vault.replace_point_files(point, view.previous, view.files.clone()).await;
        match written {
            // What another version wrote is not ours to replace.
            Err(VaultError::Manifest(error)) if !matches!(error, ManifestError::Format { .. }) => {
                tracing::warn!(point = %point.id, %error, "the manifest is written anew from the catalog");
                self.vault
                    .write_point_manifest(&self.manifest_of(point, view).await?, WriteMode::Replace)
                    .await
            }
            written => written,
        }
    }

    /// The manifest of a point from the catalog alone.
    async fn manifest_of(&self, point: &PointRow, view: &View) -> Result<PointManifest, VaultError> {
        let disks = point.disks.iter().map(|disk| {
            let is_own = |file: &&StoredFile| file.disk == disk.disk && file.first_epoch == disk.epoch;
            // As many as were committed, unless they are merged; then nobody asks any more.
            let parts = u32::try_from(view.files.iter().filter(is_own).count()).unwrap_or(u32::MAX);
            SealDisk { disk: disk.disk, epoch: disk.epoch, parts, bytes: disk.bytes }
        });
        Ok(PointManifest {
            server: self.vault.server_manifest(point.server).await?,
            number: point.number,
            previous: view.previous,
            seal: SealPoint {
                point: point.id,
                time: point.time,
                kind: point.kind,
                disks: disks.collect(),
                removed: Vec::new(),
                capture: point.capture.clone(),
            },
            sealed: point.sealed,
            uploaded: point.uploaded,
            committed: point.committed,
            commit_digest: point.commit_digest,
            files: view.files.clone(),
        })
    }
}

/// Ids as a set, for looking things up.
pub(super) fn set(points: &[PointId]) -> BTreeSet<PointId> {
    points.iter().copied().collect()
}
