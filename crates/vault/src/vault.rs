//! The vault without its network: everything that it knows and does, with the time as a parameter.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use lifeboat_api as api;
use lifeboat_hrl::{DiskKey, KeyId, KeyOwner, ManifestKey};
use lifeboat_model::{DiskNumber, Epoch, PointId, ServerId, VaultId};
use lifeboat_trust::GrantKey;
use lifeboat_wire::event::{Event, Severity};
use tokio::sync::watch;

use crate::catalog::{Acknowledged, Catalog, PointFilter, PointRow, StoredFile};
use crate::error::{LookupError, VaultError};
use crate::manifest::{self, VaultManifest};
use crate::object_name::ObjectNames;
use crate::random::{self, Randomness};
use crate::reports::Live;
use crate::state_directory::StateDirectory;
use crate::store::{Store, StoreError};

/// Events that are named at once.
const ACKNOWLEDGED_MAX: usize = 1000;

/// A vault in use by this process.
pub struct Vault {
    pub(crate) state: StateDirectory,
    pub(crate) catalog: Catalog,
    pub(crate) store: Store,
    pub(crate) names: ObjectNames,
    pub(crate) manifest_key: ManifestKey,
    pub(crate) grant_key: GrantKey,
    pub(crate) randomness: Arc<dyn Randomness>,
    pub(crate) created: Timestamp,
    pub(crate) opened: Timestamp,
    pub(crate) live: Mutex<Live>,
    /// Held while a server is made known; true when the vault's manifest is as the catalog has it.
    pub(crate) registration: tokio::sync::Mutex<bool>,
    servers: Mutex<HashMap<ServerId, ServerLock>>,
    /// Points whose commit goes on, and whose they are.
    points_in_commit: Mutex<BTreeMap<PointId, ServerId>>,
    changes: watch::Sender<u64>,
}

/// Held while something about one server changes.
pub(crate) type ServerLock = Arc<tokio::sync::Mutex<ServerProgress>>;

/// What is known to be in order about a server.
#[derive(Debug, Default)]
pub(crate) struct ServerProgress {
    /// No manifest of a point lies in the store that the catalog does not have.
    pub(crate) settled: bool,
    /// The server's manifest is as the catalog has it.
    pub(crate) described: bool,
}

impl Vault {
    /// Makes a vault: state directory, master key, catalog. Without a `store` it is the directory
    /// `store` in the state directory. An interrupted attempt can be repeated.
    ///
    /// # Errors
    /// When the directory holds a vault already, or something cannot be written.
    pub async fn create(
        state_path: &Path,
        store: Option<Store>,
        randomness: Arc<dyn Randomness>,
        now: Timestamp,
    ) -> Result<Self, VaultError> {
        let state = StateDirectory::create(state_path, randomness.as_ref())?;
        let store = match store {
            Some(store) => store,
            None => {
                lifeboat_trust::private_file::create_private_directory(&state_path.join("store"))
                    .map_err(crate::state_directory::StateError::from)?;
                Store::local(&state_path.join("store"))?
            }
        };
        let catalog = Catalog::create(&state.catalog(), state.vault(), now).await?;
        let created = catalog.created().await?;
        let vault = Self::assemble(state, catalog, store, randomness, created, now)?;
        vault.write_vault_manifest().await?;
        vault.state.finish()?;
        Ok(vault)
    }

    /// Takes a vault into use: checks that state, catalog and store belong together, removes what
    /// a killed process left behind, and adopts points whose commit it had begun.
    ///
    /// # Errors
    /// When something is missing, damaged, of another version or in use.
    pub async fn open(
        state_path: &Path,
        store: Option<Store>,
        randomness: Arc<dyn Randomness>,
        now: Timestamp,
    ) -> Result<Self, VaultError> {
        let state = StateDirectory::open(state_path)?;
        let store = match store {
            Some(store) => store,
            None => Store::local(&state_path.join("store"))?,
        };
        let catalog = Catalog::open(&state.catalog(), state.vault()).await?;
        let created = catalog.created().await?;
        let vault = Self::assemble(state, catalog, store, randomness, created, now)?;
        vault.check_store().await?;
        let removed = vault.store.remove_leftovers().await?;
        if removed > 0 {
            tracing::info!(files = removed, "removed what unfinished uploads had left in the store");
        }
        for server in vault.catalog.servers().await? {
            vault.settle(server.id, now).await?;
        }
        vault.check_clock(now).await?;
        Ok(vault)
    }

    fn assemble(
        state: StateDirectory,
        catalog: Catalog,
        store: Store,
        randomness: Arc<dyn Randomness>,
        created: Timestamp,
        opened: Timestamp,
    ) -> Result<Self, VaultError> {
        // Grants live for an hour at most and are asked for anew, so their key need not outlive the process.
        let grant_key = GrantKey::new(&*random::key(randomness.as_ref())?);
        Ok(Self {
            names: ObjectNames::new(state.vault()),
            manifest_key: state.master_key().manifest_key(),
            grant_key,
            catalog,
            store,
            randomness,
            created,
            opened,
            live: Mutex::default(),
            registration: tokio::sync::Mutex::default(),
            servers: Mutex::default(),
            points_in_commit: Mutex::default(),
            changes: watch::Sender::new(0),
            state,
        })
    }

    async fn check_store(&self) -> Result<(), VaultError> {
        let object = self.names.vault();
        let Some(bytes) = self.store.read(&object, manifest::MANIFEST_BYTES_MAX).await? else {
            let (store, vault) = (self.store.url().to_owned(), self.id());
            return Err(StoreError::NotOurs { store, vault, object }.into());
        };
        let _: VaultManifest = manifest::decode(&self.manifest_key, &object, &bytes)?;
        Ok(())
    }

    /// Tells the operator when the vault's clock was set back behind its own newest commit.
    async fn check_clock(&self, now: Timestamp) -> Result<(), VaultError> {
        let mut newest = None;
        for server in self.catalog.servers().await? {
            newest = newest.max(self.catalog.newest(server.id).await?.map(|point| point.committed));
        }
        let Some(newest) = newest.filter(|newest| now < *newest) else { return Ok(()) };
        tracing::warn!(%now, newest_commit = %newest, "the vault's clock is behind its newest commit");
        self.note(Event {
            time: now,
            severity: Severity::Critical,
            code: "vault_clock_back".into(),
            server: None,
            disk: None,
            message: format!(
                "The vault's clock shows {now}, which is before its newest commit at {newest}: it was \
                 set back, or was ahead then."
            ),
            next_step: "See that the vault's clock is right; points go on, and none is removed for that within a day.".into(),
        })
        .await
    }

    /// The vault's id.
    #[must_use]
    pub const fn id(&self) -> VaultId {
        self.state.vault()
    }

    /// The catalog, for reading. What changes points or servers goes through the vault.
    #[must_use]
    pub const fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The object store.
    #[must_use]
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// The names of the vault's objects.
    #[must_use]
    pub const fn names(&self) -> &ObjectNames {
        &self.names
    }

    /// Source of ids and keys.
    #[must_use]
    pub fn randomness(&self) -> &dyn Randomness {
        self.randomness.as_ref()
    }

    /// One key of a disk, or the one in use when `key` is none.
    ///
    /// # Errors
    /// When there is no such key, or it does not open.
    pub async fn disk_key(
        &self,
        server: ServerId,
        disk: DiskNumber,
        key: Option<KeyId>,
    ) -> Result<DiskKey, VaultError> {
        let keys = self.catalog.disk_keys(server).await?;
        let mut keys = keys.iter().rev().filter(|row| row.disk == disk);
        let row = keys
            .find(|row| key.is_none_or(|key| row.wrapped.id() == key))
            .ok_or(VaultError::NoKey { server, disk })?;
        let owner = KeyOwner { vault: self.id(), server, disk };
        Ok(self.state.master_key().unwrap(&owner, &row.wrapped)?)
    }

    /// Every key of a disk.
    pub(crate) async fn disk_keys(
        &self,
        server: ServerId,
        disk: DiskNumber,
    ) -> Result<Vec<DiskKey>, VaultError> {
        let owner = KeyOwner { vault: self.id(), server, disk };
        let rows = self.catalog.disk_keys(server).await?;
        let of_disk = rows.iter().filter(|row| row.disk == disk);
        of_disk.map(|row| Ok(self.state.master_key().unwrap(&owner, &row.wrapped)?)).collect()
    }

    /// The state directory.
    pub(crate) fn state_path(&self) -> &Path {
        self.state.path()
    }

    /// All files that one disk of a point needs, in the order in which they apply.
    ///
    /// # Errors
    /// When there is no such point or disk in it, or the catalog fails.
    pub async fn files_of_point(
        &self,
        point: PointId,
        disk: DiskNumber,
    ) -> Result<(PointRow, Vec<StoredFile>), VaultError> {
        let row = self.catalog.points(PointFilter::Id(point)).await?.pop();
        let row = row.ok_or_else(|| unknown("point", &point.to_string(), Vec::new()))?;
        let epoch = row.disks.iter().find(|of_point| of_point.disk == disk).map(|disk| disk.epoch);
        let epoch = epoch.ok_or_else(|| {
            unknown("disk", &disk.to_string(), row.disks.iter().map(|disk| disk.disk.to_string()).collect())
        })?;
        let files = self.catalog.files_up_to(row.server, disk, epoch).await?;
        self.check_files(row.server, Some((disk, epoch))).await?;
        Ok((row, files))
    }

    /// Refuses a server's files when the catalog has lost rows of them.
    pub(crate) async fn check_files(
        &self,
        server: ServerId,
        disk: Option<(DiskNumber, Epoch)>,
    ) -> Result<(), VaultError> {
        match self.catalog.lost_files(server, disk).await? {
            Some(lost) => Err(VaultError::FilesLost { server, lost }),
            None => Ok(()),
        }
    }

    /// Stores an event. What it says is in the log as well.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn note(&self, event: Event) -> Result<(), VaultError> {
        self.note_all(&[event]).await
    }

    /// Notes that events were seen to.
    ///
    /// # Errors
    /// When it names no events, or some that there are not, or the catalog fails.
    pub async fn acknowledge(
        &self,
        events: &api::AcknowledgeEvents,
        by: &str,
        now: Timestamp,
    ) -> Result<api::AcknowledgedEvents, VaultError> {
        let which = match (events.numbers.as_slice(), events.up_to) {
            ([], Some(up_to)) => Acknowledged::UpTo(up_to),
            ([_, ..], None) if events.numbers.len() <= ACKNOWLEDGED_MAX => {
                Acknowledged::Named(&events.numbers)
            }
            _ => {
                let why =
                    format!("name 1 to {ACKNOWLEDGED_MAX} numbers of events, or up to which all are meant");
                return Err(VaultError::Invalid(why));
            }
        };
        for number in &events.numbers {
            if !self.catalog.has_event(*number).await? {
                return Err(unknown("event", &number.to_string(), Vec::new()));
            }
        }
        let acknowledged = self.catalog.acknowledge(&which, by, now).await?;
        self.changed();
        Ok(api::AcknowledgedEvents { acknowledged })
    }

    /// Stores events, of the vault itself or as a process server has sent them.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn note_all(&self, events: &[Event]) -> Result<(), VaultError> {
        let events: Vec<Event> = events.iter().map(bounded).collect();
        self.catalog.put_events(&events).await?;
        Ok(())
    }

    /// Changes whenever an assignment or a request may have.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(crate) fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// The lock under which one server's points, disks and manifests change.
    pub(crate) fn server_lock(&self, server: ServerId) -> ServerLock {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(servers.entry(server).or_default())
    }

    pub(crate) fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn points_in_commit(&self) -> MutexGuard<'_, BTreeMap<PointId, ServerId>> {
        self.points_in_commit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the catalog. The state directory is free when the vault is dropped.
    pub async fn close(&self) {
        self.catalog.close().await;
    }
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault")
            .field("id", &self.id())
            .field("store", &self.store.url())
            .finish_non_exhaustive()
    }
}

/// An event with texts of bounded length and a time that the catalog can hold.
fn bounded(event: &Event) -> Event {
    let cut = |text: &str, chars: usize| text.chars().take(chars).collect::<String>();
    let latest = Timestamp::from_nanosecond(i64::MAX.into()).unwrap_or(Timestamp::MAX);
    // A minute less: what repeats is looked for around it.
    let latest = latest.saturating_sub(SignedDuration::from_mins(1)).unwrap_or(latest);
    Event {
        time: event.time.clamp(Timestamp::UNIX_EPOCH, latest),
        code: cut(&event.code, 64),
        message: cut(&event.message, 2000),
        next_step: cut(&event.next_step, 2000),
        ..event.clone()
    }
}

pub(crate) fn unknown(what: &'static str, text: &str, known: Vec<String>) -> VaultError {
    LookupError::Unknown { what, text: text.chars().take(80).collect(), known }.into()
}
