use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why the server could not do what its owner asked.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// The name breaks the protocol's rules for strings.
    #[error("export name {name:?} is not usable: {reason}; choose another name")]
    BadName { name: String, reason: &'static str },
    /// Another export has the name.
    #[error("export {name:?} is already served; remove it first or choose another name")]
    NameInUse { name: String },
    /// There is no export of this name.
    #[error("no export {name:?} is served")]
    UnknownExport { name: String },
    /// What the export says of itself cannot be told to a client.
    #[error("export {name:?} cannot be served: {reason}")]
    BadExport { name: String, reason: String },
    /// Somebody listens on the socket already.
    #[error("{} is in use by another process; stop it or choose another socket path", path.display())]
    SocketInUse { path: PathBuf },
    /// No socket can have so long a path.
    #[error("the socket path {} has {} bytes, and Linux takes at most {bytes_max}; choose a shorter one", path.display(), path.as_os_str().len())]
    PathTooLong { path: PathBuf, bytes_max: usize },
    /// There is something other than a socket at the path.
    #[error("{} exists and is not a socket; it was left alone, choose another path", path.display())]
    NotASocket { path: PathBuf },
    /// The operating system refused the Unix socket.
    #[error("cannot listen on {}: {source}", path.display())]
    ListenUnix { path: PathBuf, source: io::Error },
    /// The operating system refused the TCP address.
    #[error("cannot listen on {address}: {source}")]
    ListenTcp { address: SocketAddr, source: io::Error },
    /// The server is shut down, or about to be.
    #[error("the NBD server is shutting down")]
    ShuttingDown,
}
