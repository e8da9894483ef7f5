use std::error::Error;
use std::io;

/// The object store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URL names no store.
    #[error("the store {url:?} cannot be used: {why}")]
    Url {
        /// As it was given.
        url: String,
        /// Why not.
        why: String,
    },
    /// No room.
    #[error("cannot {action} {object}: the store {store} is full; make room there or lower the retention")]
    Full {
        /// What was tried.
        action: &'static str,
        /// On which object.
        object: String,
        /// Which store.
        store: String,
    },
    /// The file system of a local store is read-only.
    #[error(
        "cannot {action} {object}: the store {store} is read-only; look for errors of its disk and mount it anew"
    )]
    ReadOnly {
        /// What was tried.
        action: &'static str,
        /// On which object.
        object: String,
        /// Which store.
        store: String,
    },
    /// The store does not let the vault do that.
    #[error(
        "cannot {action} {object}: the store {store} refuses access; check its owner, mode and credentials"
    )]
    Denied {
        /// What was tried.
        action: &'static str,
        /// On which object.
        object: String,
        /// Which store.
        store: String,
    },
    /// The store did not answer as it should.
    #[error("cannot {action} {object}: the store {store} cannot be reached: {source}")]
    Unreachable {
        /// What was tried.
        action: &'static str,
        /// On which object.
        object: String,
        /// Which store.
        store: String,
        /// What came instead.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Any other failure of a local store.
    #[error("cannot {action} {object} in the store {store}: {source}")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// On which object.
        object: String,
        /// Which store.
        store: String,
        /// Why it failed.
        source: Box<dyn Error + Send + Sync>,
    },
    /// An object is larger than what it should be can be.
    #[error("{object} has {bytes} bytes, more than the {bytes_max} that such an object can have")]
    TooLarge {
        /// Which object.
        object: String,
        /// Its size.
        bytes: u64,
        /// The largest size.
        bytes_max: u64,
    },
    /// The store is not that of this vault.
    #[error(
        "the store {store} does not hold the vault {vault}: {object} is missing; \
         is the right store configured, and is it mounted?"
    )]
    NotOurs {
        /// Which store.
        store: String,
        /// Whose it should be.
        vault: lifeboat_model::VaultId,
        /// The vault's manifest.
        object: String,
    },
}

impl StoreError {
    pub(super) fn new(
        action: &'static str,
        object: &str,
        store: &str,
        is_local: bool,
        error: object_store::Error,
    ) -> Self {
        if let Some(kind) = io_error(&error).and_then(io::Error::raw_os_error).and_then(Kind::of) {
            return kind.error(action, object, store);
        }
        let (object, store) = (object.to_owned(), store.to_owned());
        match error {
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                Self::Denied { action, object, store }
            }
            error if is_local => Self::Failed { action, object, store, source: Box::new(error) },
            error => Self::Unreachable { action, object, store, source: Box::new(error) },
        }
    }

    pub(super) fn from_io(action: &'static str, store: &str, object: &str, source: io::Error) -> Self {
        match source.raw_os_error().and_then(Kind::of) {
            Some(kind) => kind.error(action, object, store),
            None => Self::Failed {
                action,
                object: object.to_owned(),
                store: store.to_owned(),
                source: Box::new(source),
            },
        }
    }
}

enum Kind {
    Full,
    ReadOnly,
    Denied,
}

impl Kind {
    fn of(errno: i32) -> Option<Self> {
        use rustix::io::Errno;
        match Errno::from_raw_os_error(errno) {
            Errno::NOSPC | Errno::DQUOT => Some(Self::Full),
            Errno::ROFS => Some(Self::ReadOnly),
            Errno::ACCESS | Errno::PERM => Some(Self::Denied),
            _ => None,
        }
    }

    fn error(self, action: &'static str, object: &str, store: &str) -> StoreError {
        let (object, store) = (object.to_owned(), store.to_owned());
        match self {
            Self::Full => StoreError::Full { action, object, store },
            Self::ReadOnly => StoreError::ReadOnly { action, object, store },
            Self::Denied => StoreError::Denied { action, object, store },
        }
    }
}

/// The system's own error, wherever the store's error holds it.
fn io_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io);
        }
        next = error.source();
    }
    None
}
