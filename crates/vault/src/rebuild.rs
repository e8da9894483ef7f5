//! Making the catalog anew from the store alone.
//!
//! The manifests say everything that the catalog does about servers, disks, keys, points, files, and what
//! servers' machines are made of. What they do not have is lost with a catalog: events, requests, open volumes, and which
//! process server a server came through (it is learnt again with the next report).
//!
//! A point is taken only when all of its history is there: its manifest names the point before
//! it, that one's the one before, and so on to the first; and every file on the way lies in the
//! store. Everything that is not taken is told, with the reason.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use lifeboat_hrl::MasterKey;
use lifeboat_model::{PointId, ServerId, VaultId};
use lifeboat_trust::FileError;
use lifeboat_trust::private_file::sync_directory_of;

use crate::catalog::{Catalog, StoredFile};
use crate::commit::point_row;
use crate::error::VaultError;
use crate::manifest::{
    self, MANIFEST_BYTES_MAX, MachineManifest, ManifestError, PointManifest, ServerManifest, VaultManifest,
};
use crate::object_name::{ObjectNames, VAULTS};
use crate::state_directory::{StateDirectory, StateError};
use crate::store::Store;

mod history;
mod server;

use history::History;

/// Objects that are looked at once.
const LOOKUPS: usize = 16;

/// How thoroughly stored files are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckFiles {
    /// They are there and have the right size.
    Sizes,
    /// They are read whole, and their digests compared. Takes as long as reading the store does.
    Digests,
}

/// What a rebuild found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RebuildReport {
    /// The vault.
    pub vault: VaultId,
    /// Servers in the new catalog.
    pub servers: u64,
    /// Points in it.
    pub points: u64,
    /// Files in it.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// What is in the store and not in the new catalog.
    pub refused: Vec<Refused>,
    /// Where the former catalog is now, when there was one.
    pub former_catalog: Option<PathBuf>,
}

/// An object that the new catalog does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its name.
    pub object: String,
    /// One sentence: why.
    pub why: String,
}

/// Makes the catalog anew. The former one is put aside, not removed. No vault may be running.
///
/// The state directory needs to hold no more than the master key.
///
/// # Errors
/// When the master key is missing, the store holds no vault of it, or store or catalog fail; the
/// former catalog is left where it is then.
pub async fn rebuild_catalog(
    state_path: &Path,
    store: Option<Store>,
    check: CheckFiles,
    now: Timestamp,
) -> Result<RebuildReport, VaultError> {
    let store = match store {
        Some(store) => store,
        None => Store::local(&state_path.join("store"))?,
    };
    let find = async |key: &MasterKey| find_vault(&store, key).await;
    let state = StateDirectory::open_for_rebuild(state_path, find).await?;
    let path = state.path().join("catalog.sqlite.new");
    remove_database(&path)?;
    let mut rebuild = Rebuild {
        names: ObjectNames::new(state.vault()),
        store,
        state,
        check,
        report: RebuildReport {
            vault: VaultId::new(0),
            servers: 0,
            points: 0,
            files: 0,
            bytes: 0,
            refused: Vec::new(),
            former_catalog: None,
        },
    };
    rebuild.report.vault = rebuild.state.vault();
    let created = rebuild.created(now).await?;
    let catalog = Catalog::create(&path, rebuild.state.vault(), created).await?;
    let filled = rebuild.fill(&catalog).await;
    catalog.close().await;
    filled?;
    rebuild.report.former_catalog = put_in_place(&path, &rebuild.state.catalog(), now)?;
    rebuild.state.finish()?;
    Ok(rebuild.report)
}

struct Rebuild {
    state: StateDirectory,
    store: Store,
    names: ObjectNames,
    check: CheckFiles,
    report: RebuildReport,
}

impl Rebuild {
    /// When the vault was made; now, when its manifest is not to be believed.
    async fn created(&mut self, now: Timestamp) -> Result<Timestamp, VaultError> {
        let object = self.names.vault();
        match self.read::<VaultManifest>(&object).await? {
            Ok(Some(manifest)) => Ok(manifest.created),
            Ok(None) => {
                self.refuse(&object, "it is missing");
                Ok(now)
            }
            Err(error) => {
                self.refuse(&object, &error.to_string());
                Ok(now)
            }
        }
    }

    async fn fill(&mut self, catalog: &Catalog) -> Result<(), VaultError> {
        let folder = self.names.servers();
        let mut names_taken = BTreeSet::new();
        let mut points_taken: BTreeSet<PointId> = BTreeSet::new();
        for name in self.store.folders(&folder).await? {
            let Ok(server) = name.parse::<ServerId>() else {
                self.refuse(&format!("{folder}/{name}"), "it is not named by a server's id");
                continue;
            };
            let mut points = self.read_points(server).await?;
            for twice in points.extract_if(.., |point| points_taken.contains(&point.seal.point)) {
                let object = self.names.point(server, twice.number, twice.seal.point);
                self.refuse(&object, "another server has a point of this id");
            }
            let object = self.names.server(server);
            let own = self.read::<ServerManifest>(&object).await?;
            let own = match own {
                Ok(own) => own.filter(|own| own.server == server),
                Err(error) => {
                    self.refuse(&object, &error.to_string());
                    None
                }
            };
            let Some(mut description) = server::describe(own, &points) else {
                self.refuse(&format!("{folder}/{name}"), "no manifest tells of this server");
                continue;
            };
            if !names_taken.insert(description.name.clone()) {
                description.name = format!("{}-{server}", description.name);
                names_taken.insert(description.name.clone());
            }
            let history = self.take_history(points).await?;
            points_taken.extend(history.points().map(|point| point.seal.point));
            self.write(catalog, &description, &history).await?;
            self.take_machine(catalog, server).await?;
        }
        Ok(())
    }

    /// Takes what the server's machine is made of. Without it, a machine would be the usual one.
    async fn take_machine(&mut self, catalog: &Catalog, server: ServerId) -> Result<(), VaultError> {
        let object = self.names.machine(server);
        match self.read::<MachineManifest>(&object).await? {
            Ok(Some(MachineManifest { facts, target, .. })) => {
                if let Some(facts) = facts {
                    catalog.put_facts(server, &facts).await?;
                }
                if let Some(target) = target {
                    catalog.put_target(server, &target).await?;
                }
            }
            Ok(None) => {}
            Err(error) => self.refuse(&object, &error.to_string()),
        }
        Ok(())
    }

    /// The manifests of a server's points that can be believed, in the order of their numbers.
    async fn read_points(&mut self, server: ServerId) -> Result<Vec<PointManifest>, VaultError> {
        let mut points = Vec::new();
        for object in self.store.names_after(&self.names.points(server), "").await? {
            match self.read::<PointManifest>(&object).await? {
                Ok(Some(manifest)) => {
                    let named = self.names.point(server, manifest.number, manifest.seal.point);
                    if manifest.server.server == server && named == object {
                        points.push(manifest);
                    } else {
                        self.refuse(&object, "it tells of another point than its name");
                    }
                }
                Ok(None) => {}
                Err(error) => self.refuse(&object, &error.to_string()),
            }
        }
        points.sort_by_key(|point| (point.number, point.committed));
        Ok(points)
    }

    /// Leaves the points whose history and files are all there.
    async fn take_history(&mut self, points: Vec<PointManifest>) -> Result<History, VaultError> {
        let (mut history, refused) = History::choose(points);
        for (point, why) in refused {
            let object = self.names.point(point.server.server, point.number, point.seal.point);
            self.refuse(&object, &why);
        }
        let looked_for: Vec<_> = history.files().map(|file| self.look(file.clone())).collect();
        let looked: Vec<(StoredFile, Option<String>)> =
            stream::iter(looked_for).buffered(LOOKUPS).try_collect().await?;
        for (file, fault) in looked {
            let Some(fault) = fault else { continue };
            let why = format!("its file {} {fault}", file.object);
            self.refuse(&file.object, &fault);
            for point in history.cut_at(&file) {
                let object = self.names.point(point.server.server, point.number, point.seal.point);
                self.refuse(&object, &why);
            }
        }
        Ok(history)
    }

    /// What is wrong with a stored file.
    async fn look(&self, file: StoredFile) -> Result<(StoredFile, Option<String>), VaultError> {
        let found = match self.check {
            CheckFiles::Sizes => self.store.size(&file.object).await?.map(|bytes| Ok((bytes, file.digest))),
            CheckFiles::Digests => {
                let verified = self.store.verify(&file.object).await?;
                verified.map(|verified| verified.map(|file| (file.summary.bytes, file.summary.digest)))
            }
        };
        let fault = match found {
            None => Some("is missing from the store".to_owned()),
            Some(Err(fault)) => Some(format!("is damaged: {fault}")),
            Some(Ok((bytes, _))) if bytes != file.bytes => {
                Some(format!("has {bytes} bytes in the store instead of {}", file.bytes))
            }
            Some(Ok((_, digest))) if digest != file.digest => {
                Some("has another digest in the store".to_owned())
            }
            Some(Ok(_)) => None,
        };
        Ok((file, fault))
    }

    async fn write(
        &mut self,
        catalog: &Catalog,
        server: &ServerManifest,
        history: &History,
    ) -> Result<(), VaultError> {
        let mut transaction = catalog.begin().await?;
        let (id, name) = (server.server, &server.name);
        catalog.put_server(&mut transaction, id, name, &server.policy, server.registered).await?;
        if server.fenced.is_some() {
            catalog.set_fenced_within(&mut transaction, id, server.fenced).await?;
        }
        for disk in &server.disks {
            catalog.put_disk(&mut transaction, id, disk).await?;
        }
        for key in &server.keys {
            catalog.put_disk_key(&mut transaction, id, key).await?;
        }
        for point in history.points() {
            catalog.put_point(&mut transaction, &point_row(point)).await?;
            self.report.points += 1;
        }
        for file in history.files() {
            catalog.put_file(&mut transaction, id, file).await?;
            self.report.files += 1;
            self.report.bytes += file.bytes;
        }
        catalog.commit(transaction).await?;
        self.report.servers += 1;
        Ok(())
    }

    /// A manifest: the outer error is the store's, the inner one the manifest's.
    async fn read<T: serde::de::DeserializeOwned>(
        &self,
        object: &str,
    ) -> Result<Result<Option<T>, ManifestError>, VaultError> {
        let bytes = match self.store.read(object, MANIFEST_BYTES_MAX).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(Ok(None)),
            Err(error @ crate::store::StoreError::TooLarge { .. }) => {
                return Ok(Err(ManifestError::Content { object: object.to_owned(), why: error.to_string() }));
            }
            Err(error) => return Err(error.into()),
        };
        Ok(manifest::decode(&self.state.master_key().manifest_key(), object, &bytes).map(Some))
    }

    fn refuse(&mut self, object: &str, why: &str) {
        tracing::warn!(object, why, "not taken into the new catalog");
        self.report.refused.push(Refused { object: object.to_owned(), why: why.to_owned() });
    }
}

/// The one vault in the store that the master key is of.
async fn find_vault(store: &Store, key: &MasterKey) -> Result<VaultId, VaultError> {
    let mut found = Vec::new();
    for name in store.folders(VAULTS).await? {
        let Ok(vault) = name.parse::<VaultId>() else { continue };
        let object = ObjectNames::new(vault).vault();
        let Some(bytes) = store.read(&object, MANIFEST_BYTES_MAX).await? else { continue };
        if manifest::decode::<VaultManifest>(&key.manifest_key(), &object, &bytes).is_ok() {
            found.push(vault);
        }
    }
    match found.as_slice() {
        [vault] => Ok(*vault),
        _ => Err(VaultError::Invalid(format!(
            "the store {} holds {} vaults of this master key, not one; put the file vault.id back from a backup",
            store.url(),
            found.len()
        ))),
    }
}

/// SQLite's files beside the database.
const BESIDE: [&str; 3] = ["", "-wal", "-shm"];

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn remove_database(path: &Path) -> Result<(), StateError> {
    for suffix in BESIDE {
        let path = beside(path, suffix);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(FileError::Io { action: "remove", path, source }.into());
            }
            _ => {}
        }
    }
    Ok(())
}

/// Moves the former catalog aside and the new one to its place. A crash in between leaves no
/// catalog; the vault then says so, and the rebuild is repeated.
fn put_in_place(new: &Path, place: &Path, now: Timestamp) -> Result<Option<PathBuf>, StateError> {
    let aside = beside(place, &format!(".before-{}", now.as_second()));
    let mut former = None;
    for suffix in BESIDE {
        let (from, to) = (beside(place, suffix), beside(&aside, suffix));
        match std::fs::rename(&from, to) {
            Ok(()) => former = Some(aside.clone()),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(FileError::Io { action: "rename", path: from, source }.into()),
        }
    }
    std::fs::rename(new, place).map_err(|source| FileError::Io {
        action: "rename",
        path: new.to_owned(),
        source,
    })?;
    sync_directory_of(place)?;
    Ok(former)
}
