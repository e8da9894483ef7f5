//! The state directory: one process, one version, and files that know when they are damaged.
//!
//! ```text
//! version                                  "lifeboat process server state 1"
//! lock                                     held while a process runs
//! vault.json                               the vault's last assignments and revoked certificates
//! servers/<server>.json                    disks and their keys; private
//! spool/<server>/<disk>/<epoch>-<part>.hrl
//! points/<order>-<server>-<point>.json
//! events/, results/                        what the vault has not taken yet
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use lifeboat_model::Digest;
use lifeboat_trust::private_file::{self, FileError};
use rustix::fs::FlockOperation;
use serde::Serialize;
use serde::de::DeserializeOwned;

const VERSION: &str = "lifeboat process server state 1";

/// The state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another process has it.
    #[error(
        "another process server uses the state directory {}: stop it first, or give this one a directory of its own",
        path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// Another release wrote it.
    #[error(
        "the state directory {} was written by another release of Lifeboat ({found:?}, this one writes {VERSION:?}): \
         run the release that wrote it until its spool is empty",
        path.display()
    )]
    Version {
        /// The directory.
        path: PathBuf,
        /// What its version file says.
        found: String,
    },
    /// It holds files but no version: it is something else.
    #[error("the directory {} holds files that are no process server's: name an empty one", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is not what was written.
    #[error("{} is damaged: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How it is known.
        why: String,
    },
}

impl StateError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::ReadOnlyFilesystem => FileError::ReadOnly { action, path }.into(),
            _ => Self::Io { action, path, source },
        }
    }
}

/// A state directory that this process owns until it is dropped.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Takes the directory, making it where it is missing.
    ///
    /// # Errors
    /// When another process has it, or another release or something else wrote it.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        private_file::create_private_directory(path)?;
        let version_path = path.join("version");
        let lock_path = path.join("lock");
        let version = match fs::read_to_string(&version_path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(StateError::io("read", &version_path)(error)),
        };
        if version.is_none() && holds_more_than_a_beginning(path)? {
            return Err(StateError::Foreign { path: path.to_owned() });
        }
        let lock = File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(StateError::io("open", &lock_path))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(StateError::InUse { path: path.to_owned() }),
            Err(error) => return Err(StateError::io("lock", &lock_path)(error.into())),
        }
        match version {
            Some(text) if text.trim_end() == VERSION => {}
            Some(text) => {
                let found = text.chars().take(80).collect();
                return Err(StateError::Version { path: path.to_owned(), found });
            }
            None => private_file::write_durably(&version_path, format!("{VERSION}\n").as_bytes())?,
        }
        let dir = Self { path: path.to_owned(), _lock: lock };
        for name in ["servers", "spool", "points", "events", "results"] {
            private_file::create_private_directory(&dir.path.join(name))?;
        }
        Ok(dir)
    }

    /// A path in it.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// A crash during the very first start leaves a lock and perhaps a temporary file.
fn holds_more_than_a_beginning(path: &Path) -> Result<bool, StateError> {
    for entry in fs::read_dir(path).map_err(StateError::io("read", path))? {
        let name = entry.map_err(StateError::io("read", path))?.file_name();
        let name = name.to_string_lossy();
        // A file system of its own comes with this directory.
        if name != "lock" && name != "lost+found" && !name.starts_with(".version.") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Writes a private JSON file whose first line is the digest of the rest, whole or not at all.
pub(crate) fn write_checked<T: Serialize>(path: &Path, value: &T) -> Result<(), StateError> {
    let json = serde_json::to_string(value)
        .map_err(|error| StateError::Damaged { path: path.to_owned(), why: error.to_string() })?;
    let text = format!("{}\n{json}\n", Digest::of(json.as_bytes()));
    Ok(private_file::write_private(path, text.as_bytes())?)
}

/// Reads what [`write_checked`] wrote.
pub(crate) fn read_checked<T: DeserializeOwned>(path: &Path) -> Result<T, StateError> {
    let damaged = |why: String| StateError::Damaged { path: path.to_owned(), why };
    let bytes = private_file::read_private(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|error| damaged(error.to_string()))?;
    let (digest, json) = text.split_once('\n').ok_or_else(|| damaged("it was cut short".into()))?;
    let json = json.strip_suffix('\n').ok_or_else(|| damaged("it was cut short".into()))?;
    if Digest::of(json.as_bytes()).to_string() != digest {
        return Err(damaged("its content does not match the digest in its first line".into()));
    }
    serde_json::from_str(json).map_err(|error| damaged(error.to_string()))
}

/// Removes a file; one that is gone already is no error.
pub(crate) fn remove_file(path: &Path) -> Result<(), StateError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StateError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Makes durable what was made, renamed or removed in a directory.
pub(crate) fn sync_directory(path: &Path) -> Result<(), StateError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(StateError::io("sync", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let first = StateDir::open(&path).unwrap();
        let error = StateDir::open(&path).unwrap_err();
        assert!(matches!(error, StateError::InUse { .. }), "{error}");
        drop(first);
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn another_version_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        drop(StateDir::open(&path).unwrap());
        fs::write(path.join("version"), "lifeboat process server state 2\n").unwrap();
        let error = StateDir::open(&path).unwrap_err().to_string();
        assert!(error.contains("state 2") && error.contains("another release"), "{error}");
    }

    #[test]
    fn a_directory_of_something_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        private_file::create_private_directory(&path).unwrap();
        fs::write(path.join("holiday.jpg"), "x").unwrap();
        assert!(matches!(StateDir::open(&path), Err(StateError::Foreign { .. })));
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
    }

    #[test]
    fn a_flipped_bit_or_a_cut_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("value.json");
        write_checked(&path, &vec![1, 22, 333]).unwrap();
        assert_eq!(read_checked::<Vec<u32>>(&path).unwrap(), [1, 22, 333]);
        let good = fs::read(&path).unwrap();
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert!(read_checked::<Vec<u32>>(&path).is_err(), "bit flip at {place}");
            fs::write(&path, &good[..place]).unwrap();
            assert!(read_checked::<Vec<u32>>(&path).is_err(), "cut at {place}");
        }
    }
}
