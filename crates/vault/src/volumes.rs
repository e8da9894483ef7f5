//! Recovery points opened as disks over NBD.
//!
//! A volume is a row in the catalog, which keeps its point and files, and, if it can be written, a
//! directory with an overlay for each disk. The row comes first and goes last but for the
//! directory: so no file that an open volume reads is removed, and after a crash every volume that
//! has a row is served again under the same address, and a directory without a row is
//! left alone and told.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_api as api;
use lifeboat_model::{DiskNumber, PointId, ServerId, VolumeId};
use lifeboat_nbd::{Limits, NbdError, NbdServer, tls_uri, unix_uri};
use lifeboat_volume::{
    DiskSource, FileSource, FrameCache, Objects, OverlayError, PointDisk, VolumeDisk, VolumeError,
};
use rustls::ServerConfig;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::catalog::{PointRow, StoredFile, VolumeRow};
use crate::error::{LookupError, VaultError};
use crate::memory::frame_cache_bytes;
use crate::open_disks::{Key, OpenDisks};
use crate::random;
use crate::settings::NbdSettings;
use crate::vault::{Vault, unknown};

mod events;
mod lease;
mod serving;

use serving::{Served, export_name};

/// The name of the socket in its directory.
const SOCKET: &str = "volumes.sock";
/// How long a client that has disconnected may take until it is gone.
const LEAVE_MAX: Duration = Duration::from_secs(1);

/// A volume cannot be opened, served or closed.
#[derive(Debug, thiserror::Error)]
pub enum VolumesError {
    /// The vault refuses or fails.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// A disk of the point cannot be read.
    #[error("disk {disk} of point {point} cannot be read: {source}")]
    Disk {
        /// The disk.
        disk: DiskNumber,
        /// The point.
        point: PointId,
        /// Why not.
        source: Arc<VolumeError>,
    },
    /// A copy cannot be read.
    #[error("the copy of disk {disk} cannot be read: {source}")]
    Unreadable {
        /// The disk.
        disk: DiskNumber,
        /// Why not.
        source: Arc<VolumeError>,
    },
    /// An overlay cannot be used.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// NBD cannot be served.
    #[error(transparent)]
    Nbd(#[from] NbdError),
    /// The socket cannot be had.
    #[error("{0}; each vault needs a directory of its own as `socket_directory` in [nbd] of its settings")]
    Socket(NbdError),
    /// It is in use.
    #[error(
        "volume {volume} is in use by {clients} connection{}; disconnect them, or close it with --force, which breaks \
         them off and drops what they wrote", if *clients == 1 { "" } else { "s" }
    )]
    InUse {
        /// The volume.
        volume: VolumeId,
        /// NBD connections to its disks.
        clients: usize,
    },
    /// It is the disks of a machine.
    #[error(
        "volume {volume} is the disks of a machine that is a copy of server {server}; `lifeboat failover cleanup` \
         removes both when it is a drill's"
    )]
    OfMachine {
        /// The volume.
        volume: VolumeId,
        /// The server.
        server: ServerId,
    },
    /// A directory cannot be used.
    #[error("cannot use {}: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// All volumes of a vault.
pub struct Volumes {
    vault: Arc<Vault>,
    server: NbdServer,
    objects: Objects,
    cache: Arc<FrameCache>,
    /// For digests.
    open_disks: Arc<OpenDisks>,
    overlays: PathBuf,
    socket: PathBuf,
    /// The socket's directory was made by this process, which then removes it.
    made_directory: bool,
    /// Host and port for clients elsewhere.
    remote: Option<(String, u16)>,
    /// Held while one is opened or closed.
    served: Mutex<BTreeMap<VolumeId, Served>>,
}

/// Where programs on this machine find a disk of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalDisk {
    /// The disk.
    pub disk: DiskNumber,
    /// The socket of the NBD server.
    pub socket: PathBuf,
    /// The name of its export there.
    pub export: String,
    /// Its size in bytes.
    pub bytes: u64,
}

impl Volumes {
    /// Serves again all volumes that were open, and listens. One that cannot be read is listed with
    /// its trouble and does not disturb the others. `tls` is asked at each connection from elsewhere.
    /// Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// When nothing can be listened on, or the catalog fails.
    pub async fn start(
        vault: Arc<Vault>,
        settings: &NbdSettings,
        tls: impl Fn() -> Arc<ServerConfig> + Send + Sync + 'static,
    ) -> Result<Self, VolumesError> {
        let directory = |path: &Path| {
            let path = path.to_owned();
            move |source| VolumesError::Directory { path, source }
        };
        let overlays = vault.state_path().join("volumes");
        std::fs::create_dir_all(&overlays).map_err(directory(&overlays))?;
        let made_directory = !settings.socket_directory.exists();
        std::fs::create_dir_all(&settings.socket_directory).map_err(directory(&settings.socket_directory))?;
        let store = vault.store();
        let objects = Objects::new(Arc::clone(store.objects()), store.local_root().map(Path::to_owned));
        let mut volumes = Self {
            server: NbdServer::new(Limits::default()),
            objects,
            cache: FrameCache::new(frame_cache_bytes(settings.frame_cache_mib)),
            open_disks: Arc::default(),
            overlays,
            socket: settings.socket_directory.join(SOCKET),
            made_directory,
            remote: None,
            served: Mutex::default(),
            vault,
        };
        // First the volumes: a client that comes back is to find its own.
        volumes.resume().await?;
        volumes.listen(settings, tls).await?;
        Ok(volumes)
    }

    async fn listen(
        &mut self,
        settings: &NbdSettings,
        tls: impl Fn() -> Arc<ServerConfig> + Send + Sync + 'static,
    ) -> Result<(), VolumesError> {
        self.server.listen_unix(&self.socket).await.map_err(|error| match error {
            NbdError::SocketInUse { .. } | NbdError::PathTooLong { .. } => VolumesError::Socket(error),
            error => error.into(),
        })?;
        if let Some(address) = settings.listen {
            let bound = self.server.listen_tcp(address, tls).await?;
            let host = settings.host.clone().unwrap_or_else(|| bound.ip().to_string());
            self.remote = Some((host, bound.port()));
        }
        Ok(())
    }

    /// Where NBD clients on other machines connect to, over TLS: a name and a port; none if nowhere.
    #[must_use]
    pub fn over_tls(&self) -> Option<(String, u16)> {
        self.remote.clone()
    }

    /// Opens disks of a point; `by` says for whom, in the event about it.
    ///
    /// # Errors
    /// When there is no such point or disk, or a disk cannot be read. Nothing stays open then.
    pub async fn open(
        &self,
        server: ServerId,
        request: &api::OpenVolume,
        by: &str,
        now: Timestamp,
    ) -> Result<api::OpenedVolume, VolumesError> {
        lease::check(request.lease)?;
        let point = self.vault.find_point(server, request.point.as_deref().unwrap_or("latest")).await?;
        let row = self.point(point).await?;
        let disks: Vec<_> = row.disks.iter().map(|disk| disk.disk).collect();
        let disks = match request.disk {
            Some(disk) if disks.contains(&disk) => vec![disk],
            Some(disk) => {
                let known = disks.iter().map(ToString::to_string).collect();
                return Err(unknown("disk", &disk.to_string(), known).into());
            }
            None => disks,
        };
        let id = VolumeId::new(random::number(self.vault.randomness()).map_err(VaultError::from)?);
        let volume = VolumeRow {
            id,
            server,
            point,
            read_only: request.read_only,
            opened: now,
            disks,
            lease: request.lease,
        };
        let mut served = self.served.lock().await;
        self.vault.catalog().put_volume(&volume).await.map_err(VaultError::from)?;
        let disks = self.open_new(&mut served, &volume).await?;
        drop(served);
        self.tell(events::opened(&volume, by, now)).await;
        Ok(api::OpenedVolume { volume: id, disks })
    }

    /// Opens all disks of a point as the volume of this id, to be written. If it is open already it
    /// stays as it is.
    ///
    /// # Errors
    /// When there is no such point, or a disk cannot be read. Nothing stays open then.
    pub(crate) async fn open_as(
        &self,
        id: VolumeId,
        server: ServerId,
        point: PointId,
        now: Timestamp,
    ) -> Result<(), VolumesError> {
        let mut served = self.served.lock().await;
        if self.row(id).await?.is_some() {
            return Ok(());
        }
        let Some(row) = self.vault.catalog().point(point).await.map_err(VaultError::from)? else {
            return Err(self.vault.no_such_point(server, &point.to_string()).await.into());
        };
        let disks = row.disks.iter().map(|disk| disk.disk).collect();
        let volume = VolumeRow { id, server, point, read_only: false, opened: now, disks, lease: None };
        self.vault.catalog().put_volume(&volume).await.map_err(VaultError::from)?;
        self.open_new(&mut served, &volume).await.map(drop)
    }

    /// Closes the volume of this id, whoever uses it. It is no error when there is none.
    ///
    /// # Errors
    /// When it cannot be closed whole; closing it again goes on.
    pub(crate) async fn close_as(&self, id: VolumeId) -> Result<(), VolumesError> {
        let mut served = self.served.lock().await;
        served.remove(&id);
        match self.row(id).await? {
            Some(volume) => self.forget(&volume).await,
            None => self.remove_overlays(id).await,
        }
    }

    /// Where programs on this machine find the disks of a volume.
    ///
    /// # Errors
    /// When there is no such volume, or it cannot be served now.
    pub(crate) async fn local_disks(&self, id: VolumeId) -> Result<Vec<LocalDisk>, VolumesError> {
        let served = self.served.lock().await;
        let disks = match served.get(&id) {
            Some(Served { trouble: Some(trouble), .. }) => {
                return Err(VaultError::Invalid(trouble.message.clone()).into());
            }
            Some(Served { disks, .. }) => disks,
            None => return Err(unknown("volume", &id.to_string(), Vec::new()).into()),
        };
        let local = |(disk, open): (&DiskNumber, &VolumeDisk)| LocalDisk {
            disk: *disk,
            socket: self.socket.clone(),
            export: export_name(id, *disk),
            bytes: open.point().size_bytes(),
        };
        Ok(disks.iter().map(local).collect())
    }

    /// Whether there is a volume of this id.
    ///
    /// # Errors
    /// When the catalog fails.
    pub(crate) async fn is_open(&self, id: VolumeId) -> Result<bool, VolumesError> {
        Ok(self.row(id).await?.is_some())
    }

    /// Bytes of each disk of a volume that are no zeroes, at most; nothing of one that is not served now.
    pub(crate) async fn data_bytes(&self, id: VolumeId) -> BTreeMap<DiskNumber, u64> {
        let disks = self.served.lock().await.get(&id).map(|open| open.disks.clone()).unwrap_or_default();
        disks.into_iter().map(|(disk, open)| (disk, open.data_bytes())).collect()
    }

    async fn row(&self, id: VolumeId) -> Result<Option<VolumeRow>, VolumesError> {
        let rows = self.vault.catalog().volumes().await.map_err(VaultError::from)?;
        Ok(rows.into_iter().find(|row| row.id == id))
    }

    /// Serves a volume whose row was just stored, or forgets it again.
    async fn open_new(
        &self,
        served: &mut BTreeMap<VolumeId, Served>,
        volume: &VolumeRow,
    ) -> Result<Vec<api::VolumeDisk>, VolumesError> {
        match self.serve(volume).await {
            Ok(disks) => {
                let addresses =
                    disks.iter().map(|(disk, open)| self.address(volume.id, *disk, open)).collect();
                served.insert(volume.id, Served { disks, lease: volume.lease, ..Served::default() });
                let VolumeRow { id, point, read_only, .. } = volume;
                tracing::info!(volume = %id, %point, read_only, "volume opened");
                Ok(addresses)
            }
            Err(error) => {
                self.forget(volume).await?;
                Err(error)
            }
        }
    }

    /// Every open volume, the oldest first.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn list(&self) -> Result<Vec<api::Volume>, VolumesError> {
        let catalog = self.vault.catalog();
        let servers = catalog.servers().await.map_err(VaultError::from)?;
        let mut served = self.served.lock().await;
        self.retry(&mut served).await?;
        let mut volumes = Vec::new();
        for row in catalog.volumes().await.map_err(VaultError::from)? {
            let point = self.point(row.point).await?;
            let name = servers.iter().find(|server| server.id == row.server);
            let open = served.get(&row.id);
            let disks = open.into_iter().flat_map(|open| &open.disks);
            volumes.push(api::Volume {
                id: row.id,
                server: row.server,
                server_name: name.map_or_else(String::new, |server| server.name.clone()),
                point: row.point,
                point_time: point.time,
                read_only: row.read_only,
                opened: row.opened,
                lease: row.lease,
                overlay_bytes: disks.clone().map(|(_, disk)| disk.overlay_bytes()).sum(),
                disks: disks.map(|(disk, open)| self.address(row.id, *disk, open)).collect(),
                trouble: open.and_then(|open| open.trouble.as_ref()).map(|trouble| trouble.message.clone()),
            });
        }
        Ok(volumes)
    }

    /// Closes a volume, named by id or a unique beginning of one. What was written to it is gone.
    /// `by` says who closes it, in the event about it.
    ///
    /// # Errors
    /// When there is no such volume, or it cannot be closed whole; closing it again goes on.
    pub async fn close(&self, text: &str, force: bool, by: &str, now: Timestamp) -> Result<(), VolumesError> {
        let rows = self.vault.catalog().volumes().await.map_err(VaultError::from)?;
        let matching: Vec<_> =
            rows.iter().filter(|row| !text.is_empty() && row.id.to_string().starts_with(text)).collect();
        let volume = match matching.as_slice() {
            [volume] => *volume,
            [] => {
                return Err(
                    unknown("volume", text, rows.iter().map(|row| row.id.to_string()).collect()).into()
                );
            }
            several => {
                let matching = several.iter().map(|row| row.id.to_string()).collect();
                let error = LookupError::Ambiguous { what: "volume", text: text.to_owned(), matching };
                return Err(VaultError::from(error).into());
            }
        };
        let recoveries = self.vault.catalog().recoveries().await.map_err(VaultError::from)?;
        if recoveries.iter().any(|recovery| recovery.volume == volume.id) {
            return Err(VolumesError::OfMachine { volume: volume.id, server: volume.server });
        }
        if !force {
            self.refuse_in_use(volume).await?;
        }
        self.close_row(volume).await?;
        self.tell(events::closed(volume, by, now)).await;
        Ok(())
    }

    async fn close_row(&self, volume: &VolumeRow) -> Result<(), VolumesError> {
        let mut served = self.served.lock().await;
        served.remove(&volume.id);
        self.forget(volume).await?;
        tracing::info!(volume = %volume.id, "volume closed");
        Ok(())
    }

    /// Connections to a volume's disks now.
    fn clients(&self, volume: &VolumeRow) -> usize {
        volume.disks.iter().map(|disk| self.server.clients(&export_name(volume.id, *disk))).sum()
    }

    /// Fails while clients use the volume. One that has just left may still be seen for a moment.
    async fn refuse_in_use(&self, volume: &VolumeRow) -> Result<(), VolumesError> {
        let patience = Instant::now() + LEAVE_MAX;
        loop {
            let clients = self.clients(volume);
            if clients == 0 {
                return Ok(());
            }
            if Instant::now() >= patience {
                return Err(VolumesError::InUse { volume: volume.id, clients });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) const fn vault(&self) -> &Arc<Vault> {
        &self.vault
    }

    /// Stops serving; volumes stay open for the next start.
    pub async fn stop(&self) {
        self.server.shutdown().await;
        if let Some(directory) = self.socket.parent().filter(|_| self.made_directory) {
            // Not when there is something else in it.
            let _ = tokio::fs::remove_dir(directory).await;
        }
    }

    /// A disk of a point, or of what is stored after it, for reading only.
    pub(crate) async fn read_disk(&self, source: DiskSource) -> Result<PointDisk, Arc<VolumeError>> {
        PointDisk::open(source, self.objects.clone(), Arc::clone(&self.cache)).await
    }

    /// As [`Self::read_disk`], and keeps it open for the next request.
    pub(crate) async fn read_disk_again(&self, source: DiskSource) -> Result<PointDisk, Arc<VolumeError>> {
        let key = Key::of(&source);
        if let Some(open) = self.open_disks.find(&key) {
            return Ok(open);
        }
        let opened = self.read_disk(source).await?;
        self.open_disks.keep(key, opened.clone());
        Ok(opened)
    }

    async fn point(&self, point: PointId) -> Result<PointRow, VolumesError> {
        let row = self.vault.catalog().point(point).await.map_err(VaultError::from)?;
        Ok(row.ok_or_else(|| unknown("point", &point.to_string(), Vec::new()))?)
    }

    fn address(&self, volume: VolumeId, disk: DiskNumber, open: &VolumeDisk) -> api::VolumeDisk {
        let name = export_name(volume, disk);
        api::VolumeDisk {
            disk,
            nbd_uri: unix_uri(&name, &self.socket),
            nbds_uri: self.remote.as_ref().map(|(host, port)| tls_uri(&name, host, *port)),
            bytes: open.point().size_bytes(),
        }
    }
}

impl Vault {
    /// What a disk is made of, given its files in the order in which they apply.
    pub(crate) async fn disk_source(
        &self,
        server: ServerId,
        disk: DiskNumber,
        disk_bytes: u64,
        files: &[StoredFile],
    ) -> Result<DiskSource, VaultError> {
        let file = |file: &StoredFile| FileSource {
            object: file.object.clone(),
            bytes: file.bytes,
            digest: file.digest,
            first_epoch: file.first_epoch,
            last_epoch: file.last_epoch,
            part: file.part,
        };
        Ok(DiskSource {
            vault: self.id(),
            server,
            disk,
            disk_bytes,
            files: files.iter().map(file).collect(),
            keys: self.disk_keys(server, disk).await?,
        })
    }
}
