//! Serving the disks of volumes, again after a start or after trouble, until they are withdrawn.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lifeboat_model::{DiskNumber, Span, VolumeId};
use lifeboat_nbd::NbdError;
use lifeboat_volume::{BootId, OverlayIdentity, VolumeDisk};
use tokio::time::Instant;

use super::lease::Used;
use super::{Volumes, VolumesError};
use crate::catalog::VolumeRow;
use crate::error::VaultError;

/// When a volume in trouble is tried again, at the earliest.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Retries take at most this part of the time, since nothing else is done with volumes meanwhile.
const RETRY_PART: u32 = 4;

/// What is known of a volume beside its row.
#[derive(Default)]
pub(super) struct Served {
    pub(super) disks: BTreeMap<DiskNumber, VolumeDisk>,
    pub(super) trouble: Option<Trouble>,
    pub(super) lease: Option<Span>,
    pub(super) used: Used,
}

/// Why a volume cannot be served.
pub(super) struct Trouble {
    pub(super) message: String,
    retry_at: Instant,
}

impl Trouble {
    /// After an attempt that began then.
    fn since(began: Instant, error: &VolumesError) -> Self {
        let pause = RETRY_AFTER.max(began.elapsed() * RETRY_PART);
        Self { message: error.to_string(), retry_at: Instant::now() + pause }
    }
}

impl Volumes {
    /// Tries volumes in trouble again, for as long as it is polled.
    pub(crate) async fn retry_now_and_then(&self) {
        loop {
            tokio::time::sleep(RETRY_AFTER).await;
            if let Err(error) = self.retry(&mut *self.served.lock().await).await {
                tracing::warn!(%error, "volumes in trouble could not be tried again");
            }
        }
    }

    /// Serves the volumes in trouble whose time has come.
    pub(super) async fn retry(&self, served: &mut BTreeMap<VolumeId, Served>) -> Result<(), VolumesError> {
        let now = Instant::now();
        let is_due = |open: &Served| open.trouble.as_ref().is_some_and(|trouble| trouble.retry_at <= now);
        if !served.values().any(is_due) {
            return Ok(());
        }
        for row in self.vault.catalog().volumes().await.map_err(VaultError::from)? {
            let Some(open) = served.get_mut(&row.id).filter(|open| is_due(open)) else { continue };
            let began = Instant::now();
            match self.serve(&row).await {
                Ok(disks) => {
                    tracing::info!(volume = %row.id, "a volume that was in trouble is served again");
                    *open = Served { disks, lease: row.lease, ..Served::default() };
                }
                Err(error) => {
                    tracing::debug!(volume = %row.id, %error, "a volume is still in trouble");
                    open.trouble = Some(Trouble::since(began, &error));
                }
            }
        }
        Ok(())
    }

    pub(super) async fn resume(&self) -> Result<(), VolumesError> {
        let rows = self.vault.catalog().volumes().await.map_err(VaultError::from)?;
        let known: Vec<_> = rows.iter().map(|row| row.id.to_string()).collect();
        tell_of_leftovers(&self.overlays, &known);
        let mut served = self.served.lock().await;
        for row in rows {
            let began = Instant::now();
            let (disks, trouble) = match self.serve(&row).await {
                Ok(disks) => (disks, None),
                Err(error) => {
                    tracing::error!(volume = %row.id, %error, "a volume cannot be served again");
                    (BTreeMap::new(), Some(Trouble::since(began, &error)))
                }
            };
            served.insert(row.id, Served { disks, trouble, lease: row.lease, used: Used::default() });
        }
        Ok(())
    }

    /// Opens every disk of a volume, then offers all of them.
    pub(super) async fn serve(
        &self,
        volume: &VolumeRow,
    ) -> Result<BTreeMap<DiskNumber, VolumeDisk>, VolumesError> {
        let mut disks = BTreeMap::new();
        for disk in &volume.disks {
            disks.insert(*disk, self.open_disk(volume, *disk).await?);
        }
        for (disk, open) in &disks {
            if let Err(error) = self.server.add(&export_name(volume.id, *disk), Arc::new(open.clone())) {
                self.withdraw(volume).await?;
                return Err(error.into());
            }
        }
        Ok(disks)
    }

    async fn open_disk(&self, volume: &VolumeRow, disk: DiskNumber) -> Result<VolumeDisk, VolumesError> {
        let (point, files) = self.vault.files_of_point(volume.point, disk).await?;
        let bytes = point.disks.iter().find(|of_point| of_point.disk == disk).map_or(0, |disk| disk.bytes);
        let source = self.vault.disk_source(volume.server, disk, bytes, &files).await?;
        let opened = self.read_disk(source).await;
        let opened = opened.map_err(|source| VolumesError::Disk { disk, point: volume.point, source })?;
        let description = format!("disk {disk} of server {} at {}", volume.server, point.time);
        if volume.read_only {
            return Ok(VolumeDisk::read_only(opened, description));
        }
        let identity = OverlayIdentity {
            vault: self.vault.id(),
            server: volume.server,
            point: volume.point,
            disk,
            disk_bytes: bytes,
        };
        let directory = self.overlays.join(volume.id.to_string()).join(disk.to_string());
        let unknown_boot =
            |source| VolumesError::Directory { path: "/proc/sys/kernel/random/boot_id".into(), source };
        let boot = BootId::now().map_err(unknown_boot)?;
        let writable = tokio::task::spawn_blocking(move || {
            VolumeDisk::writable(opened, description, &directory, identity, boot)
        });
        let stopped =
            |error| VolumesError::Directory { path: self.overlays.clone(), source: io::Error::other(error) };
        Ok(writable.await.map_err(stopped)??)
    }

    /// Ends a volume: exports, row, overlays.
    pub(super) async fn forget(&self, volume: &VolumeRow) -> Result<(), VolumesError> {
        self.withdraw(volume).await?;
        self.vault.catalog().remove_volume(volume.id).await.map_err(VaultError::from)?;
        self.remove_overlays(volume.id).await
    }

    pub(super) async fn remove_overlays(&self, id: VolumeId) -> Result<(), VolumesError> {
        let directory = self.overlays.join(id.to_string());
        match tokio::fs::remove_dir_all(&directory).await {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(VolumesError::Directory { path: directory, source })
            }
            _ => Ok(()),
        }
    }

    /// Ends what is offered of a volume.
    async fn withdraw(&self, volume: &VolumeRow) -> Result<(), VolumesError> {
        for disk in &volume.disks {
            match self.server.remove(&export_name(volume.id, *disk)).await {
                Ok(()) | Err(NbdError::UnknownExport { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

pub(super) fn export_name(volume: VolumeId, disk: DiskNumber) -> String {
    format!("{volume}-{disk}")
}

/// Tells of directories whose volume the catalog does not have. They are left alone: a catalog that
/// was made anew has lost the volumes, and what was written to them may be wanted.
fn tell_of_leftovers(overlays: &Path, known: &[String]) {
    let Ok(entries) = std::fs::read_dir(overlays) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.parse::<VolumeId>().is_ok() && !known.contains(&name) {
            tracing::warn!(path = %entry.path().display(), "what was written to a volume that is not open any more; remove it when nobody needs it");
        }
    }
}
