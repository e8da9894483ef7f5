//! The spool's files: where they lie, how they are written, how they are read back at start.
//!
//! Everything is written beside its place, synced, renamed, and the directory synced. So a name that
//! exists is whole, unless the disk lost it, and that is found by the footer or the digest.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lifeboat_hrl::{FOOTER_BYTES, FileSummary, Footer};
use lifeboat_model::{DiskNumber, Epoch, Part, ServerId};
use lifeboat_trust::private_file;
use lifeboat_wire::agent::{DiskDescription, SealPoint};
use lifeboat_wire::process_server::DiskRegistration;
use serde::{Deserialize, Serialize};

use crate::space::Space;
use crate::state_dir::{StateDir, StateError, read_checked, remove_file, sync_directory, write_checked};

/// Which file of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileKey {
    /// The disk.
    pub disk: DiskNumber,
    /// The epoch.
    pub epoch: Epoch,
    /// The part of it.
    pub part: Part,
}

/// A disk as it is remembered over restarts and while the vault is away.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct KnownDisk {
    pub description: DiskDescription,
    pub registration: DiskRegistration,
    /// The vault was told this description.
    pub vault_knows: bool,
    /// The life of the agent that described it last; 0 for one that says nothing of it.
    #[serde(default, skip_serializing_if = "is_unknown")]
    pub writer: u64,
    /// With this attempt it took the disk over from another, and has not said yet that it knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_over: Option<u64>,
}

const fn is_unknown(writer: &u64) -> bool {
    *writer == 0
}

/// All disks of a server.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct KnownServer {
    pub disks: BTreeMap<DiskNumber, KnownDisk>,
}

/// A point that is durable here and not committed yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedPoint {
    /// Its place among all points of this process server.
    pub order: u64,
    /// The server.
    pub server: ServerId,
    /// The point as its agent sealed it.
    pub seal: SealPoint,
    /// When it became durable here.
    pub sealed_at: Timestamp,
}

/// What is known of a file without reading all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileFacts {
    pub summary: FileSummary,
    /// Size of the disk when it was written.
    pub disk_bytes: u64,
}

/// What a start finds.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub servers: BTreeMap<ServerId, FoundServer>,
    /// What belongs to no server that is known.
    pub strange: Vec<String>,
}

/// What a start finds of one server.
#[derive(Debug, Default)]
pub(crate) struct FoundServer {
    pub known: KnownServer,
    pub files: BTreeMap<FileKey, FoundFile>,
    /// In their order.
    pub points: Vec<SealedPoint>,
    /// One sentence for each thing that is damaged.
    pub damage: Vec<String>,
}

/// A file that a start finds.
#[derive(Debug)]
pub(crate) struct FoundFile {
    /// None when it is damaged.
    pub facts: Option<FileFacts>,
    /// It lies in the vault's store only.
    pub stored_only: bool,
}

/// The files of a state directory.
#[derive(Debug)]
pub(crate) struct Spool {
    dir: StateDir,
}

impl Spool {
    pub fn new(dir: StateDir) -> Self {
        Self { dir }
    }

    /// The file system that holds it.
    pub fn space(&self) -> Result<Space, StateError> {
        Space::of(&self.dir.join("spool"))
    }

    pub fn dir(&self) -> &StateDir {
        &self.dir
    }

    fn disk_dir(&self, server: ServerId, disk: DiskNumber) -> PathBuf {
        self.dir.join("spool").join(server.to_string()).join(disk.to_string())
    }

    /// Where a file lies once it is whole.
    pub fn file_path(&self, server: ServerId, key: FileKey) -> PathBuf {
        self.disk_dir(server, key.disk).join(format!("{}.hrl", stem(key)))
    }

    fn stored_path(&self, server: ServerId, key: FileKey) -> PathBuf {
        self.disk_dir(server, key.disk).join(format!("{}.stored", stem(key)))
    }

    /// Where a file is written; `turn` tells attempts apart.
    pub fn partial_path(&self, server: ServerId, key: FileKey, turn: u64) -> PathBuf {
        self.disk_dir(server, key.disk).join(format!("{}.{turn}.partial", stem(key)))
    }

    /// Makes the directory of a disk, durably.
    pub fn make_disk_dir(&self, server: ServerId, disk: DiskNumber) -> Result<(), StateError> {
        let server_dir = self.dir.join("spool").join(server.to_string());
        private_file::create_private_directory(&server_dir)?;
        private_file::create_private_directory(&self.disk_dir(server, disk))?;
        Ok(())
    }

    /// Gives a whole, synced file its name, durably. After an error there is no such file.
    pub fn publish(&self, server: ServerId, key: FileKey, partial: &Path) -> Result<(), StateError> {
        let path = self.file_path(server, key);
        fs::rename(partial, &path).map_err(StateError::io("rename", partial))?;
        let synced = sync_directory(&self.disk_dir(server, key.disk));
        if synced.is_err() {
            // Nobody was told that it is there, and the next attempt replaces it.
            let _ = fs::remove_file(&path);
        }
        synced
    }

    /// Records that the file lies in the vault's store, and removes it here.
    pub fn keep_stored_only(
        &self,
        server: ServerId,
        key: FileKey,
        facts: &FileFacts,
    ) -> Result<(), StateError> {
        write_checked(&self.stored_path(server, key), facts)?;
        remove_file(&self.file_path(server, key))
    }

    /// Removes files of committed points. A crash leaves some, and the next start removes them.
    pub fn remove_files(
        &self,
        server: ServerId,
        keys: impl IntoIterator<Item = FileKey>,
    ) -> Result<(), StateError> {
        for key in keys {
            remove_file(&self.file_path(server, key))?;
            remove_file(&self.stored_path(server, key))?;
        }
        Ok(())
    }

    fn point_path(&self, point: &SealedPoint) -> PathBuf {
        let SealedPoint { order, server, seal, .. } = point;
        self.dir.join("points").join(format!("{order:020}-{server}-{}.json", seal.point))
    }

    /// Makes a point durable. After an error it is not there, or the second error says that it may be.
    pub fn write_point(&self, point: &SealedPoint) -> Result<(), (StateError, Option<StateError>)> {
        write_checked(&self.point_path(point), point).map_err(|error| (error, self.remove_point(point).err()))
    }

    /// Removes a point, durably.
    pub fn remove_point(&self, point: &SealedPoint) -> Result<(), StateError> {
        remove_file(&self.point_path(point))?;
        sync_directory(&self.dir.join("points"))
    }

    /// Remembers a server's disks.
    pub fn write_server(&self, server: ServerId, known: &KnownServer) -> Result<(), StateError> {
        write_checked(&self.dir.join("servers").join(format!("{server}.json")), known)
    }

    /// Reads everything back. Removes what was never whole; everything else stays, damaged or not.
    pub fn read_back(&self) -> Result<Found, StateError> {
        let mut found = Found::default();
        self.read_servers(&mut found)?;
        self.read_points(&mut found)?;
        for (name, path) in entries(&self.dir.join("spool"))? {
            let Ok(server) = name.parse::<ServerId>() else {
                found.strange.push(format!("{} is no server's directory", path.display()));
                continue;
            };
            for (name, path) in entries(&path)? {
                match name.parse::<DiskNumber>() {
                    Ok(disk) => self.read_disk(server, disk, &path, &mut found)?,
                    Err(_) => found.strange.push(format!("{} is no disk's directory", path.display())),
                }
            }
        }
        Ok(found)
    }

    fn read_servers(&self, found: &mut Found) -> Result<(), StateError> {
        for (name, path) in entries(&self.dir.join("servers"))? {
            let Some(server) = name.strip_suffix(".json").and_then(|name| name.parse().ok()) else {
                found.strange.push(format!("{} is no server's file", path.display()));
                continue;
            };
            let entry: &mut FoundServer = found.servers.entry(server).or_default();
            match read_checked(&path) {
                Ok(known) => entry.known = known,
                Err(error) => entry.damage.push(error.to_string()),
            }
        }
        Ok(())
    }

    fn read_points(&self, found: &mut Found) -> Result<(), StateError> {
        let mut points = entries(&self.dir.join("points"))?;
        points.sort();
        for (name, path) in points {
            let mut pieces = name.split('-');
            let order = pieces.next().and_then(|order| order.parse::<u64>().ok());
            let server = pieces.next().and_then(|server| server.parse::<ServerId>().ok());
            let Some((order, server)) = order.zip(server) else {
                found.strange.push(format!("{} is no point", path.display()));
                continue;
            };
            let entry = found.servers.entry(server).or_default();
            match read_checked::<SealedPoint>(&path) {
                Ok(point) if point.server == server && point.order == order => entry.points.push(point),
                Ok(_) => {
                    entry.damage.push(format!("{} holds another point than its name says", path.display()));
                }
                Err(error) => entry.damage.push(error.to_string()),
            }
        }
        Ok(())
    }

    fn read_disk(
        &self,
        server: ServerId,
        disk: DiskNumber,
        dir: &Path,
        found: &mut Found,
    ) -> Result<(), StateError> {
        let entry = found.servers.entry(server).or_default();
        for (name, path) in entries(dir)? {
            if name.ends_with(".partial") {
                remove_file(&path)?;
                continue;
            }
            let (stem, stored_only) = match name.rsplit_once('.') {
                Some((stem, "hrl")) => (stem, false),
                Some((stem, "stored")) => (stem, true),
                _ => ("", false),
            };
            let Some(key) = key_of(disk, stem) else {
                found.strange.push(format!("{} is no file of the spool", path.display()));
                continue;
            };
            let facts = if stored_only {
                read_checked(&path).map_err(|error| error.to_string())
            } else {
                read_facts(&path, server, key)
            };
            let damage = facts.as_ref().err().cloned();
            let new = FoundFile { facts: facts.ok(), stored_only };
            // A crash may leave both; the file itself is worth more than the word that it is stored.
            match entry.files.get(&key) {
                Some(old) if old.facts.is_some() && (new.stored_only || new.facts.is_none()) => continue,
                _ => entry.files.insert(key, new),
            };
            entry.damage.extend(damage);
        }
        Ok(())
    }
}

/// Checks the end of a file and that it is the one its name says.
fn read_facts(path: &Path, server: ServerId, key: FileKey) -> Result<FileFacts, String> {
    let name = path.display();
    let read = || -> std::io::Result<(Vec<u8>, u64)> {
        let mut file = File::open(path)?;
        let bytes = file.metadata()?.len();
        file.seek(SeekFrom::Start(bytes.saturating_sub(FOOTER_BYTES as u64)))?;
        let mut tail = Vec::new();
        file.take(FOOTER_BYTES as u64).read_to_end(&mut tail)?;
        Ok((tail, bytes))
    };
    let (tail, bytes) = read().map_err(|error| format!("{name} cannot be read: {error}"))?;
    let footer = Footer::parse(&tail, bytes).map_err(|error| error.in_file(name.to_string()).to_string())?;
    let is = footer.header.identity;
    if (is.server, is.disk, is.first_epoch, is.last_epoch, is.part)
        != (server, key.disk, key.epoch, key.epoch, key.part)
    {
        return Err(format!("{name} holds another file than its name says: {is}"));
    }
    Ok(FileFacts { summary: footer.summary(), disk_bytes: is.disk_bytes })
}

fn stem(key: FileKey) -> String {
    format!("{}-{}", key.epoch, key.part)
}

fn key_of(disk: DiskNumber, text: &str) -> Option<FileKey> {
    let (epoch, part) = text.split_once('-')?;
    let key = FileKey { disk, epoch: epoch.parse().ok()?, part: part.parse().ok()? };
    // One spelling only, so that no two names are the same file.
    (stem(key) == text).then_some(key)
}

/// Name and path of what is in a directory. What a killed writer left is removed.
fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>, StateError> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir).map_err(StateError::io("read", dir))? {
        let entry = entry.map_err(StateError::io("read", dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') && name.ends_with(".tmp") {
            remove_file(&entry.path())?;
        } else {
            entries.push((name, entry.path()));
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod golden;
