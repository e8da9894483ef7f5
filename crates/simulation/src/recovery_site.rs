//! The vault: the real one, on a real catalog and the simulated store.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use lifeboat_model::{DiskNumber, ServerId};
use lifeboat_vault::catalog::StoredFile;
use lifeboat_vault::rebuild::{CheckFiles, RebuildReport, rebuild_catalog};
use lifeboat_vault::retention::{Retention, RetentionSettings};
use lifeboat_vault::{
    NbdSettings, NoRandomness, ObjectNames, Randomness, Store, Vault, VaultError, Volumes, VolumesError,
};
use lifeboat_volume::{DiskSource, FileSource, FrameCache, Objects, PointDisk};
use lifeboat_wire::process_server::DigestRequest;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use rustls::ServerConfig;

use crate::store::SimStore;

struct Seeded(Mutex<StdRng>);

impl Randomness for Seeded {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        self.0.lock().unwrap().fill_bytes(bytes);
        Ok(())
    }
}

/// A vault that may be down.
pub struct RecoverySite {
    pub path: PathBuf,
    pub store: SimStore,
    pub names: ObjectNames,
    pub vault: Option<Arc<Vault>>,
    pub volumes: Option<Volumes>,
    pub retention: Option<Arc<Retention>>,
    randomness: Arc<dyn Randomness>,
    settings: RetentionSettings,
}

impl RecoverySite {
    pub async fn new(path: PathBuf, seed: u64, wall: Timestamp) -> Self {
        let store = SimStore::new();
        let randomness: Arc<dyn Randomness> = Arc::new(Seeded(Mutex::new(StdRng::seed_from_u64(seed))));
        let settings = RetentionSettings {
            merge_bytes_per_second: 0,
            fold_percent: 25,
            part_bytes: [64 << 10, 1 << 20, 1 << 30][usize::try_from(seed % 3).unwrap()],
            delete_after: SignedDuration::from_secs(30),
            orphan_after: SignedDuration::from_secs(60),
        };
        let objects = Store::new(Arc::new(store.clone()), "simulated");
        let vault = Vault::create(&path, Some(objects), Arc::clone(&randomness), wall).await.unwrap();
        let mut site = Self {
            path,
            store,
            names: *vault.names(),
            vault: None,
            volumes: None,
            retention: None,
            randomness,
            settings,
        };
        site.begin(vault).await.unwrap();
        site
    }

    fn objects(&self) -> Store {
        Store::new(Arc::new(self.store.clone()), "simulated")
    }

    async fn begin(&mut self, vault: Vault) -> Result<(), VolumesError> {
        let vault = Arc::new(vault);
        let settings = NbdSettings {
            socket_directory: self.path.join("nbd"),
            frame_cache_mib: Some(1),
            ..NbdSettings::default()
        };
        self.volumes = Some(Volumes::start(Arc::clone(&vault), &settings, no_tls).await?);
        self.retention = Some(Arc::new(Retention::new(Arc::clone(&vault), self.settings)));
        self.vault = Some(vault);
        Ok(())
    }

    /// Retention that ends like a crash at its `last`th step.
    pub fn retention_ending_at(&self, last: u64) -> Option<Retention> {
        let left = Mutex::new(last);
        let at_step = move |_: &'static str| {
            let mut left = left.lock().unwrap();
            match left.checked_sub(1) {
                Some(fewer) => *left = fewer,
                None => return Err(VaultError::Invalid("the simulation ends the work at this step".into())),
            }
            Ok(())
        };
        Some(Retention::new(self.vault.clone()?, self.settings).with_steps(Arc::new(at_step)))
    }

    pub async fn open(&mut self, wall: Timestamp) -> Result<(), VolumesError> {
        let opened =
            Vault::open(&self.path, Some(self.objects()), Arc::clone(&self.randomness), wall).await?;
        self.begin(opened).await
    }

    /// As if the process was killed.
    pub fn crash(&mut self) {
        self.retention = None;
        self.volumes = None;
        self.vault = None;
    }

    pub async fn stop(&mut self) {
        if let Some(vault) = &self.vault {
            vault.close().await;
        }
        self.crash();
    }

    /// Removes the catalog and makes it anew from the store. The vault is down before and after.
    pub async fn rebuild(&mut self, check: CheckFiles, wall: Timestamp) -> Result<RebuildReport, VaultError> {
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(self.path.join(format!("catalog.sqlite{suffix}")));
        }
        rebuild_catalog(&self.path, Some(self.objects()), check, wall).await
    }

    /// Opens a disk over these files.
    pub async fn open_disk(
        &self,
        vault: &Vault,
        server: ServerId,
        disk: DiskNumber,
        disk_bytes: u64,
        files: &[StoredFile],
    ) -> Result<PointDisk, String> {
        let key = vault.disk_key(server, disk, None).await.map_err(|error| error.to_string())?;
        let files = files.iter().map(|file| FileSource {
            object: file.object.clone(),
            bytes: file.bytes,
            digest: file.digest,
            first_epoch: file.first_epoch,
            last_epoch: file.last_epoch,
            part: file.part,
        });
        let source = DiskSource {
            vault: vault.id(),
            server,
            disk,
            disk_bytes,
            files: files.collect(),
            keys: vec![key],
        };
        let objects = Objects::new(Arc::new(self.store.for_volumes()), None);
        let opened = PointDisk::open(source, objects, FrameCache::new(4 << 20)).await;
        opened.map_err(|error| error.to_string())
    }

    /// The digests of a copy, as the vault answers a process server.
    pub async fn digests(
        &self,
        server: ServerId,
        disk: DiskNumber,
        request: &DigestRequest,
    ) -> Result<Vec<u8>, VolumesError> {
        let Some(volumes) = &self.volumes else { return Ok(Vec::new()) };
        let mut pieces = volumes.digests(server, disk, request).await?;
        let mut digests = Vec::new();
        while let Some(piece) = pieces.next().await {
            let unreadable = |source| VolumesError::Unreadable { disk, source: Arc::new(source) };
            digests.extend_from_slice(&piece.map_err(unreadable)?);
        }
        Ok(digests)
    }
}

/// For connections that nobody makes.
fn no_tls() -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let names = rustls::server::ResolvesServerCertUsingSni::new();
    Arc::new(builder.with_no_client_auth().with_cert_resolver(Arc::new(names)))
}
