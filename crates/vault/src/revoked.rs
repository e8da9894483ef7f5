//! Certificates that must be refused, from the list of the site's authority.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use lifeboat_trust::{FileError, Revocations, RevokedRecord, Serial};
use serde::Deserialize;

/// How often the file is looked at.
const LOOKED_AT_EVERY: Duration = Duration::from_secs(5);

/// The revoked certificates, as the file of the authority has them.
#[derive(Clone, Debug, Default)]
pub struct Revoked {
    /// Asked at every handshake.
    pub revocations: Revocations,
    serials: Arc<RwLock<Vec<Serial>>>,
}

/// The list of revoked certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RevokedError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is damaged.
    #[error("the list of revoked certificates {} is damaged: {source}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

#[derive(Deserialize)]
struct RevokedFile {
    revoked: Vec<RevokedRecord>,
}

impl Revoked {
    /// All serials, as they are told to process servers.
    #[must_use]
    pub fn serials(&self) -> Vec<String> {
        self.serials.read().unwrap_or_else(PoisonError::into_inner).iter().map(Serial::to_string).collect()
    }

    /// Takes the list in `path`. Without such a file nothing is revoked: the authority makes it
    /// with the first revocation.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged; what was revoked before stays so.
    pub fn load(&self, path: &Path) -> Result<(), RevokedError> {
        let serials: Vec<Serial> = match lifeboat_trust::private_file::read_public(path) {
            Err(FileError::Missing { .. }) => Vec::new(),
            read => {
                let file: RevokedFile = serde_json::from_slice(&read?)
                    .map_err(|source| RevokedError::Damaged { path: path.to_owned(), source })?;
                file.revoked.into_iter().map(|record| record.serial).collect()
            }
        };
        self.revocations.replace(serials.iter().copied());
        *self.serials.write().unwrap_or_else(PoisonError::into_inner) = serials;
        Ok(())
    }

    /// Takes the list again whenever the file changes. Runs until dropped.
    pub async fn follow(&self, path: &Path) {
        let modified = || std::fs::metadata(path).and_then(|data| data.modified()).ok();
        let mut taken: Option<SystemTime> = None;
        loop {
            let found = modified();
            if found != taken {
                match self.load(path) {
                    Ok(()) => taken = found,
                    Err(error) => tracing::warn!("revocations are not taken anew: {error}"),
                }
            }
            tokio::time::sleep(LOOKED_AT_EVERY).await;
        }
    }
}
