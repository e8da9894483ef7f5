//! Whether a rebuild from the store would find what the catalog has.

use lifeboat_api::VerifyFault;
use lifeboat_model::{PointId, ServerId};
use serde::de::DeserializeOwned;

use crate::catalog::{PointFilter, PointRow};
use crate::commit::point_row;
use crate::error::VaultError;
use crate::manifest::{self, MANIFEST_BYTES_MAX, ServerManifest, VaultManifest};
use crate::retention::{View, views};
use crate::vault::Vault;

impl Vault {
    /// Compares all manifests of a server with the catalog.
    pub(super) async fn verify_manifests(&self, server: ServerId) -> Result<Vec<VerifyFault>, VaultError> {
        let mut faults = Vec::new();
        self.verify_manifest::<VaultManifest>(self.names.vault(), &mut faults).await?;
        self.verify_manifest::<ServerManifest>(self.names.server(server), &mut faults).await?;
        for point in self.catalog.points(PointFilter::From(server, 0)).await? {
            // Under the lock, as retention writes them anew; one at a time, so that commits go on.
            let lock = self.server_lock(server);
            let _guard = lock.lock().await;
            let object = self.names.point(server, point.number, point.id);
            let message = match self.read_point_manifest(&object).await {
                Ok(None) => Some("the manifest is missing from the store".to_owned()),
                Err(VaultError::Manifest(error)) => Some(error.to_string()),
                Err(error) => return Err(error),
                Ok(Some(manifest)) => {
                    let found = View { previous: manifest.previous, files: manifest.files.clone() };
                    let row = PointRow { bytes: point.bytes, ..point_row(&manifest) };
                    match self.view(&point).await? {
                        Some(view) if view != found || row != point => {
                            Some("the manifest says something else than the catalog".to_owned())
                        }
                        // None: thinned out meanwhile.
                        _ => None,
                    }
                }
            };
            if let Some(message) = message
                && self.catalog.point(point.id).await?.is_some()
            {
                faults.push(VerifyFault { file: object, message, points: vec![point.id] });
            }
        }
        Ok(faults)
    }

    async fn verify_manifest<T: DeserializeOwned>(
        &self,
        object: String,
        faults: &mut Vec<VerifyFault>,
    ) -> Result<(), VaultError> {
        let message = match self.store.read(&object, MANIFEST_BYTES_MAX).await? {
            None => "the manifest is missing from the store".to_owned(),
            Some(bytes) => match manifest::decode::<T>(&self.manifest_key, &object, &bytes) {
                Ok(_) => return Ok(()),
                Err(error) => error.to_string(),
            },
        };
        faults.push(VerifyFault { file: object, message, points: Vec::new() });
        Ok(())
    }

    /// What the manifest of a point has to say; none when the point is gone.
    async fn view(&self, point: &PointRow) -> Result<Option<View>, VaultError> {
        let before = self.catalog.point_before(point.server, point.number).await?;
        let before = match before {
            Some(before) => self.catalog.point(before).await?,
            None => None,
        };
        let mut files = std::collections::BTreeMap::new();
        for disk in &point.disks {
            // Of this disk another point may be the one before: any that has it.
            let after = self.catalog.epoch_before(point.server, disk.disk, disk.epoch).await?;
            let of_disk = self.catalog.files_between(point.server, disk.disk, after, disk.epoch).await?;
            files.insert(disk.disk, of_disk);
        }
        let (mut views, _) = views(&[point], &files);
        let previous: Option<PointId> = before.map(|before| before.id);
        let is_there = self.catalog.point(point.id).await?.is_some();
        Ok(views.remove(&point.id).filter(|_| is_there).map(|view| View { previous, ..view }))
    }
}
