//! The directory that holds what a vault knows and its store does not.
//!
//! | file | content |
//! | --- | --- |
//! | `version` | which layout the directory has; written last when it is made |
//! | `vault.id` | the vault's id |
//! | `master.key` | the key that wraps all disk keys, 64 hexadecimal digits; **back it up** |
//! | `catalog.sqlite` | the catalog; can be rebuilt from the store and the master key |
//! | `ssh/` | the key with which the vault logs in to servers' machines, and their host keys |
//! | `lock` | held by the process that uses the directory |
//! | `store/` | the object store, unless it is elsewhere |

use std::fs::File;
use std::path::{Path, PathBuf};

use lifeboat_hrl::MasterKey;
use lifeboat_model::VaultId;
use lifeboat_trust::FileError;
use lifeboat_trust::private_file::{
    check_private_directory, create_private_directory, read_private, read_public, write_durably,
    write_private_new,
};
use rustix::fs::{FlockOperation, flock};
use zeroize::Zeroizing;

use crate::random::{self, NoRandomness, Randomness};

const VERSION: &str = "lifeboat vault state 1";

/// The state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file in it cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is no vault in it.
    #[error("{} holds no vault", path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// There is a vault in it already.
    #[error("{} holds a vault already; it is not made anew", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// Another version of Lifeboat wrote it.
    #[error(
        "{} is a state directory of version {found:?}, but this program reads {VERSION:?}; \
         use the version of Lifeboat that wrote it, or one that can bring it up to date",
        path.display()
    )]
    Version {
        /// The directory.
        path: PathBuf,
        /// What its version file says.
        found: String,
    },
    /// Another process uses it.
    #[error("{} is in use by another process; only one vault can use it at a time", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A file in it is damaged.
    #[error("{} is damaged: {why}; put it back from a backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The lock cannot be taken.
    #[error("cannot lock {}: {source}", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// No random numbers.
    #[error(transparent)]
    Random(#[from] NoRandomness),
}

/// A state directory in use by this process. The lock goes with it.
#[derive(Debug)]
pub struct StateDirectory {
    path: PathBuf,
    vault: VaultId,
    master_key: MasterKey,
    _lock: File,
}

impl StateDirectory {
    /// Makes id and master key, or takes what an interrupted attempt has left. The directory holds
    /// no vault before [`StateDirectory::finish`].
    ///
    /// # Errors
    /// When it holds a vault already, or files cannot be written.
    pub fn create(path: &Path, randomness: &dyn Randomness) -> Result<Self, StateError> {
        create_private_directory(path)?;
        let lock = lock(path)?;
        if path.join("version").exists() {
            return Err(StateError::Exists { path: path.to_owned() });
        }
        if !path.join("master.key").exists() {
            let key = Zeroizing::new(hex(random::key(randomness)?.as_ref()));
            write_private_new(&path.join("master.key"), key.as_bytes())?;
        }
        if !path.join("vault.id").exists() {
            let id = VaultId::new(random::number(randomness)?);
            write_durably(&path.join("vault.id"), format!("{id}\n").as_bytes())?;
        }
        Self::read(path, lock)
    }

    /// Writes the file that makes the directory one with a vault in it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(&self) -> Result<(), StateError> {
        Ok(write_durably(&self.path.join("version"), format!("{VERSION}\n").as_bytes())?)
    }

    /// Takes a directory with a vault into use.
    ///
    /// # Errors
    /// When there is no vault in it, another version wrote it, it is damaged, or in use.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let found = match read_public(&path.join("version")) {
            Err(FileError::Missing { .. }) => return Err(StateError::Missing { path: path.to_owned() }),
            read => read?,
        };
        let found = String::from_utf8_lossy(&found).trim().to_owned();
        if found != VERSION {
            let found = found.chars().take(80).collect();
            return Err(StateError::Version { path: path.to_owned(), found });
        }
        check_private_directory(path)?;
        let lock = lock(path)?;
        Self::read(path, lock)
    }

    /// Takes a directory into use in which there may be nothing but the master key. `vault` is
    /// asked for the vault's id when that is missing too.
    ///
    /// # Errors
    /// When the master key is missing or damaged, another version wrote the directory, or it is in use.
    pub async fn open_for_rebuild<E, F>(path: &Path, find_vault: F) -> Result<Self, E>
    where
        E: From<StateError>,
        F: AsyncFnOnce(&MasterKey) -> Result<VaultId, E>,
    {
        if path.join("version").exists() && path.join("vault.id").exists() {
            return Ok(Self::open(path)?);
        }
        check_private_directory(path).map_err(StateError::from)?;
        let lock = lock(path)?;
        let master_key = read_master_key(path)?;
        if !path.join("vault.id").exists() {
            let vault = find_vault(&master_key).await?;
            write_durably(&path.join("vault.id"), format!("{vault}\n").as_bytes())
                .map_err(StateError::from)?;
        }
        Ok(Self::read(path, lock)?)
    }

    fn read(path: &Path, lock: File) -> Result<Self, StateError> {
        let id_path = path.join("vault.id");
        let id = read_public(&id_path)?;
        let vault = String::from_utf8_lossy(&id)
            .trim()
            .parse()
            .map_err(|error| StateError::Damaged { path: id_path, why: format!("{error}") })?;
        Ok(Self { path: path.to_owned(), vault, master_key: read_master_key(path)?, _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The vault's id.
    #[must_use]
    pub const fn vault(&self) -> VaultId {
        self.vault
    }

    /// The key that wraps all disk keys.
    #[must_use]
    pub const fn master_key(&self) -> &MasterKey {
        &self.master_key
    }

    /// The file of the catalog.
    #[must_use]
    pub fn catalog(&self) -> PathBuf {
        self.path.join("catalog.sqlite")
    }
}

fn read_master_key(path: &Path) -> Result<MasterKey, StateError> {
    let path = path.join("master.key");
    let text = read_private(&path)?;
    let key = parse_key(text.trim_ascii())
        .ok_or_else(|| StateError::Damaged { path, why: "it is not 64 hexadecimal digits".into() })?;
    Ok(MasterKey::new(*key))
}

fn lock(path: &Path) -> Result<File, StateError> {
    let path = path.join("lock");
    let failed = |source| StateError::Lock { path: path.clone(), source };
    let file = File::options().create(true).append(true).open(&path).map_err(FileError::io("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(StateError::InUse { path: path.parent().unwrap_or(&path).to_owned() })
        }
        Err(errno) => Err(failed(errno.into())),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse_key(text: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    if text.len() != 64 {
        return None;
    }
    let mut key = Zeroizing::new([0; 32]);
    for (byte, digits) in key.iter_mut().zip(text.chunks_exact(2)) {
        let high = char::from(digits[0]).to_digit(16)?;
        let low = char::from(digits[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SystemRandomness;

    #[test]
    fn a_directory_of_another_version_is_refused_with_both_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        StateDirectory::create(&path, &SystemRandomness).unwrap().finish().unwrap();
        std::fs::write(path.join("version"), "lifeboat vault state 2\n").unwrap();
        let error = StateDirectory::open(&path).unwrap_err().to_string();
        assert!(error.contains("state 2") && error.contains("state 1"), "{error}");
    }

    #[test]
    fn one_process_uses_a_directory_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let first = StateDirectory::create(&path, &SystemRandomness).unwrap();
        first.finish().unwrap();
        assert!(matches!(StateDirectory::open(&path), Err(StateError::InUse { .. })));
        drop(first);
        StateDirectory::open(&path).unwrap();
    }

    #[test]
    fn an_interrupted_creation_goes_on_with_the_same_key_and_never_replaces_a_vault() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let id = StateDirectory::create(&path, &SystemRandomness).unwrap().vault();
        let key = std::fs::read(path.join("master.key")).unwrap();
        assert!(matches!(StateDirectory::open(&path), Err(StateError::Missing { .. })));
        let again = StateDirectory::create(&path, &SystemRandomness).unwrap();
        assert_eq!((again.vault(), std::fs::read(path.join("master.key")).unwrap()), (id, key));
        again.finish().unwrap();
        drop(again);
        let error = StateDirectory::create(&path, &SystemRandomness).unwrap_err();
        assert!(matches!(error, StateError::Exists { .. }), "{error}");
    }

    #[test]
    fn a_damaged_master_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        StateDirectory::create(&path, &SystemRandomness).unwrap().finish().unwrap();
        std::fs::write(path.join("master.key"), "00").unwrap();
        let error = StateDirectory::open(&path).unwrap_err().to_string();
        assert!(error.contains("master.key is damaged"), "{error}");
    }
}
