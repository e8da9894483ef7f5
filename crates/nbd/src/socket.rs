//! Sockets, as the server wants them.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use crate::error::NbdError;

const BACKLOG: i32 = 128;
/// Of an address, with room for the zero that ends it.
const PATH_BYTES_MAX: usize = 107;

/// The file of a socket that this process listens on; removed when dropped.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another server may have replaced it meanwhile; that one is not ours to remove.
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| found.dev() == self.device && found.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "socket file not removed");
        }
    }
}

/// Listens on `path`, for the owner of the process only. A socket file that nobody listens on
/// is replaced. Blocks for a moment.
pub(crate) fn bind_unix(path: &Path) -> Result<(UnixListener, SocketFile), NbdError> {
    let failed = |source: io::Error| NbdError::ListenUnix { path: path.to_owned(), source };
    if path.as_os_str().len() > PATH_BYTES_MAX {
        return Err(NbdError::PathTooLong { path: path.to_owned(), bytes_max: PATH_BYTES_MAX });
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // Two servers that find the same stale file must not each remove the other's new one.
    let open = rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let lock = open.map_err(|error| failed(error.into()))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;

    remove_stale(path)?;
    let listen = || -> Result<(UnixListener, SocketFile), io::Error> {
        let socket = unix_socket()?;
        // Before binding, so that the file never exists with wider permissions.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        let found = fs::symlink_metadata(path)?;
        let file = SocketFile { path: path.to_owned(), device: found.dev(), inode: found.ino() };
        rustix::net::listen(&socket, BACKLOG)?;
        Ok((UnixListener::from(socket), file))
    };
    listen().map_err(failed)
}

fn remove_stale(path: &Path) -> Result<(), NbdError> {
    let failed = |source: io::Error| NbdError::ListenUnix { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(NbdError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    let address = SocketAddrUnix::new(path).map_err(|error| failed(error.into()))?;
    let probe = unix_socket().map_err(failed)?;
    match rustix::net::connect(&probe, &address) {
        Err(Errno::CONNREFUSED) => {
            tracing::info!(path = %path.display(), "replacing a socket file that nobody listens on");
            fs::remove_file(path).map_err(failed)
        }
        // A full queue means that somebody listens, too.
        Ok(()) | Err(Errno::AGAIN) => Err(NbdError::SocketInUse { path: path.to_owned() }),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(failed(error.into())),
    }
}

/// Closed on exec and non-blocking.
fn unix_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// Lets the kernel find out, within some two minutes, that a silent client is gone.
pub(crate) fn keep_alive(socket: impl AsFd) -> io::Result<()> {
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(&socket, Duration::from_secs(15))?;
    sockopt::set_tcp_keepcnt(&socket, 4)?;
    Ok(())
}
