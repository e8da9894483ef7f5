//! Files that only their owner may read, and files that are whole or absent.
//!
//! A file is written beside its place under a temporary name, synced, renamed, and then the
//! directory is synced. A crash at any moment leaves the old content or the new one, and at worst
//! a leftover `.NAME.*.tmp` that nobody reads.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

/// Bytes of the largest file that [`read_private`] reads.
pub const PRIVATE_BYTES_MAX: u64 = 4 << 20;

/// A file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is no such file.
    #[error("{} does not exist", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// There is such a file already, and it must not be replaced.
    #[error("{} exists already and is not replaced", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Others than the owner can read or write it.
    #[error(
        "{} may be used by others than its owner (mode {mode:03o}); run: chmod {wanted:03o} {}",
        path.display(), path.display()
    )]
    NotPrivate {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The permission bits that it should have.
        wanted: u32,
    },
    /// It is too large to be what it should be.
    #[error("{} has {bytes} bytes, more than the {bytes_max} that such a file can have", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The largest size.
        bytes_max: u64,
    },
    /// It lies on a file system that may not be written.
    #[error(
        "cannot {action} {}: its file system is read-only; look in the kernel log why (dmesg), then make it \
         writable: mount -o remount,rw MOUNTPOINT",
        path.display()
    )]
    ReadOnly {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: `read`, `write`, `create`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl FileError {
    /// What it means that the system refused to `action` a file.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::NotFound => Self::Missing { path },
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { action, path },
            _ => Self::Io { action, path, source },
        }
    }
}

/// Reads a private file of up to [`PRIVATE_BYTES_MAX`] bytes.
///
/// # Errors
/// When it is missing, larger, or when others than its owner may read or write it.
pub fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let file = File::open(path).map_err(FileError::io("read", path))?;
    let metadata = file.metadata().map_err(FileError::io("read", path))?;
    check_mode(path, metadata.permissions().mode(), 0o077, 0o600)?;
    read_bounded(path, file).map(Zeroizing::new)
}

/// Reads a file of up to [`PRIVATE_BYTES_MAX`] bytes that is no secret.
///
/// # Errors
/// When it is missing or larger.
pub fn read_public(path: &Path) -> Result<Vec<u8>, FileError> {
    read_bounded(path, File::open(path).map_err(FileError::io("read", path))?)
}

/// Writes a file with mode 0600 so that it is there whole, durably, or not at all. Replaces.
///
/// # Errors
/// When the system refuses; the old content is then still there.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_replacing(path, bytes, 0o600)
}

/// Writes a file with mode 0644 so that it is there whole, durably, or not at all. Replaces.
///
/// # Errors
/// When the system refuses; the old content is then still there.
pub fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_replacing(path, bytes, 0o644)
}

/// As [`write_private`], but never replaces: of several that try at once, one succeeds.
///
/// # Errors
/// [`FileError::Exists`] when there is such a file, or when the system refuses.
pub fn write_private_new(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let temporary = write_temporary(path, bytes, 0o600)?;
    // A hard link, unlike a rename, fails when the name is taken.
    let linked = fs::hard_link(&temporary, path);
    // The temporary name is of no use any more, whether or not the link was made.
    let _ = fs::remove_file(&temporary);
    linked.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => FileError::Exists { path: path.to_owned() },
        _ => FileError::io("create", path)(source),
    })?;
    sync_directory_of(path)
}

/// Makes a directory with mode 0700 and whatever it lies in, durably. An empty directory that
/// exists is made private; one that holds something must be private already.
///
/// # Errors
/// When others may enter a directory that holds something, or when the system refuses.
pub fn create_private_directory(path: &Path) -> Result<(), FileError> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(FileError::io("create", parent))?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return sync_directory_of(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(FileError::io("create", path)(error)),
    }
    let empty = fs::read_dir(path).map_err(FileError::io("read", path))?.next().is_none();
    if empty {
        fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(FileError::io("change", path))?;
    }
    check_private_directory(path)
}

/// Checks that only its owner may use a directory.
///
/// # Errors
/// When it is missing or others may use it.
pub fn check_private_directory(path: &Path) -> Result<(), FileError> {
    let metadata = fs::metadata(path).map_err(FileError::io("read", path))?;
    check_mode(path, metadata.permissions().mode(), 0o077, 0o700)
}

/// Makes durable that files were made, renamed or removed in the directory that holds `path`.
///
/// # Errors
/// When the system refuses.
pub fn sync_directory_of(path: &Path) -> Result<(), FileError> {
    let directory = directory_of(path);
    File::open(directory).and_then(|dir| dir.sync_all()).map_err(FileError::io("sync", directory))
}

/// Removes what writers of `path` that were killed left behind. Only for a caller that knows that
/// nobody writes `path` now.
pub(crate) fn remove_leftovers(path: &Path) -> Result<(), FileError> {
    let directory = directory_of(path);
    let prefix = format!(".{}.", name_of(path));
    for entry in fs::read_dir(directory).map_err(FileError::io("read", directory))? {
        let entry = entry.map_err(FileError::io("read", directory))?;
        let name = entry.file_name();
        let leftover = name.to_str().is_some_and(|name| name.starts_with(&prefix) && name.ends_with(".tmp"));
        if leftover {
            fs::remove_file(entry.path()).map_err(FileError::io("remove", &entry.path()))?;
        }
    }
    Ok(())
}

fn write_replacing(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let temporary = write_temporary(path, bytes, mode)?;
    if let Err(error) = fs::rename(&temporary, path) {
        let _ = fs::remove_file(&temporary);
        return Err(FileError::io("write", path)(error));
    }
    sync_directory_of(path)
}

fn write_temporary(path: &Path, bytes: &[u8], mode: u32) -> Result<PathBuf, FileError> {
    let mut random = [0; 8];
    SystemRandom::new().fill(&mut random).map_err(|_| FileError::Io {
        action: "name",
        path: path.to_owned(),
        source: io::Error::other("the system gives no random numbers"),
    })?;
    let name = format!(".{}.{:016x}.tmp", name_of(path), u64::from_be_bytes(random));
    let temporary = directory_of(path).join(name);
    let written =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary).and_then(|mut file| {
            // Not left to the umask, which may be stricter than what the reader needs.
            file.set_permissions(Permissions::from_mode(mode))?;
            file.write_all(bytes)?;
            file.sync_all()
        });
    if let Err(error) = written {
        let _ = fs::remove_file(&temporary);
        return Err(FileError::io("write", path)(error));
    }
    Ok(temporary)
}

fn read_bounded(path: &Path, file: File) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    file.take(PRIVATE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(FileError::io("read", path))?;
    let len = bytes.len() as u64;
    if len > PRIVATE_BYTES_MAX {
        return Err(FileError::TooLarge { path: path.to_owned(), bytes: len, bytes_max: PRIVATE_BYTES_MAX });
    }
    Ok(bytes)
}

fn check_mode(path: &Path, mode: u32, forbidden: u32, wanted: u32) -> Result<(), FileError> {
    if mode & forbidden == 0 {
        return Ok(());
    }
    Err(FileError::NotPrivate { path: path.to_owned(), mode: mode & 0o777, wanted })
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn private_files_are_private_and_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_private(&path, b"one").unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(*read_private(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left");
        write_durably(&path, b"three").unwrap();
        assert_eq!(mode(&path), 0o644);
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_command_that_mends_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_private(&path, b"one").unwrap();
        for bits in [0o640, 0o604, 0o620, 0o602] {
            fs::set_permissions(&path, Permissions::from_mode(bits)).unwrap();
            let error = read_private(&path).unwrap_err().to_string();
            assert!(error.ends_with(&format!("run: chmod 600 {}", path.display())), "{error}");
        }
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        read_private(&path).unwrap();
    }

    #[test]
    fn a_new_file_is_never_put_over_an_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_private_new(&path, b"one").unwrap();
        assert!(matches!(write_private_new(&path, b"two"), Err(FileError::Exists { .. })));
        assert_eq!(*read_private(&path).unwrap(), b"one");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left");
    }

    #[test]
    fn a_failed_write_leaves_the_old_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("place");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), b"x").unwrap();
        assert!(write_private(&path, b"one").is_err(), "a directory cannot be replaced by a file");
        assert!(path.join("inside").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left");
    }

    #[test]
    fn directories_are_made_private_only_while_they_are_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        create_private_directory(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        create_private_directory(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        fs::write(path.join("inside"), b"x").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        let error = create_private_directory(&path).unwrap_err().to_string();
        assert!(error.contains("chmod 700"), "{error}");
    }

    #[test]
    fn a_file_that_is_missing_or_too_large_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        assert!(matches!(read_private(&path), Err(FileError::Missing { .. })));
        write_private(&path, b"").unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(PRIVATE_BYTES_MAX + 1).unwrap();
        assert!(matches!(read_private(&path), Err(FileError::TooLarge { .. })));
    }
}
