//! Replacing a file of the system's configuration: whole or not at all, and with all that is known of it.

use std::ffi::CStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// Bytes of the longest file.
const TEXT_BYTES_MAX: u64 = 1 << 20;
/// Bytes of the names of a file's extended attributes, and of the longest value.
const ATTRIBUTES_BYTES: usize = 64 << 10;

/// The text of a file; none when there is no such file.
pub(super) fn text(path: &Path) -> io::Result<Option<String>> {
    match File::open(path) {
        Ok(file) if file.metadata()?.is_file() => {
            let mut text = String::new();
            file.take(TEXT_BYTES_MAX + 1).read_to_string(&mut text)?;
            if text.len() as u64 > TEXT_BYTES_MAX {
                return Err(io::Error::other(format!("it has more than {TEXT_BYTES_MAX} bytes")));
            }
            Ok(Some(text))
        }
        Ok(_) => Ok(None),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces a file, or what a link leads to, by one with another text and the same owner, mode and
/// attributes. As it was it goes to `kept` first, unless an earlier version is there.
pub(super) fn replace(path: &Path, kept: Option<&Path>, text: &str) -> io::Result<()> {
    let path = fs::canonicalize(path)?;
    let old = File::open(&path)?;
    if let Some(kept) = kept.filter(|kept| !kept.exists()) {
        let directory = kept.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        put(kept, |new| io::copy(&mut File::open(&path)?, new).map(drop))?;
    }
    put(&path, |new| {
        new.write_all(text.as_bytes())?;
        let known = old.metadata()?;
        fchown(&*new, Some(known.uid()), Some(known.gid()))?;
        new.set_permissions(known.permissions())?;
        copy_attributes(&old, new)
    })
}

/// Makes a file, which is there only when it is whole.
fn put(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // What reads whole directories passes over hidden files.
    let made: PathBuf = path.with_file_name(format!(".{name}.lifeboat"));
    match fs::remove_file(&made) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let put = || {
        let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&made)?;
        fill(&mut new)?;
        new.sync_all()?;
        fs::rename(&made, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    put().inspect_err(|_| drop(fs::remove_file(&made)))
}

/// Extended attributes: SELinux's label, access lists, and others.
fn copy_attributes(old: &File, new: &File) -> io::Result<()> {
    let mut names = vec![0_u8; ATTRIBUTES_BYTES];
    let length = match rustix::fs::flistxattr(old, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    names.truncate(length);
    for name in names.split_inclusive(|byte| *byte == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(io::Error::other)?;
        let value = attribute(old, name)?;
        // One that the system has given the new file already may not be set.
        if attribute(new, name).ok().as_ref() != Some(&value) {
            rustix::fs::fsetxattr(new, name, &value, XattrFlags::empty()).map_err(|error| {
                io::Error::other(format!("its attribute {} is not kept: {error}", name.to_string_lossy()))
            })?;
        }
    }
    Ok(())
}

fn attribute(file: &File, name: &CStr) -> io::Result<Vec<u8>> {
    let mut value = vec![0_u8; ATTRIBUTES_BYTES];
    let length = rustix::fs::fgetxattr(file, name, &mut value[..])?;
    value.truncate(length);
    Ok(value)
}
