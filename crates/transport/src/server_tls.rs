//! The certificate that a listener shows, which can be renewed while it runs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use lifeboat_trust::{ClientCertificates, Credentials, Revocations, TrustError};
use rustls::ServerConfig;

/// TLS of a listener. New connections use what was loaded last; old ones keep what they began with.
#[derive(Debug)]
pub struct ServerTls {
    config: RwLock<Arc<ServerConfig>>,
    clients: ClientCertificates,
    revocations: Revocations,
}

impl ServerTls {
    /// TLS that shows `credentials`. Whoever holds a clone of `revocations` can add to it at any
    /// time; it is asked at every handshake and at every request.
    ///
    /// # Errors
    /// When rustls refuses the credentials.
    pub fn new(
        credentials: &Credentials,
        clients: ClientCertificates,
        revocations: Revocations,
    ) -> Result<Self, TrustError> {
        let config = RwLock::new(Arc::new(credentials.server_config(clients, &revocations)?));
        Ok(Self { config, clients, revocations })
    }

    /// Shows `credentials` from now on.
    ///
    /// # Errors
    /// When rustls refuses the credentials; the old ones stay.
    pub fn reload(&self, credentials: &Credentials) -> Result<(), TrustError> {
        let config = Arc::new(credentials.server_config(self.clients, &self.revocations)?);
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        tracing::info!(identity = %credentials.identity(), not_after = %credentials.not_after(), "certificate taken");
        Ok(())
    }

    /// Loads the credentials in `dir` again and shows them from now on.
    ///
    /// # Errors
    /// When they cannot be loaded; the old ones stay.
    pub fn reload_from(&self, dir: &Path, now: Timestamp) -> Result<(), TrustError> {
        self.reload(&Credentials::load(dir, now)?)
    }

    /// Looks at the files in `dir` every so often and takes them when they changed. Runs until dropped.
    pub async fn reload_on_change(&self, dir: PathBuf, every: Duration) {
        let mut seen = modified(&dir).await;
        loop {
            tokio::time::sleep(every).await;
            let found = modified(&dir).await;
            if found == seen {
                continue;
            }
            match self.reload_from(&dir, Timestamp::now()) {
                Ok(()) => seen = found,
                Err(error) => tracing::warn!("the renewed certificate is not taken: {error}"),
            }
        }
    }

    /// The certificates that are refused.
    #[must_use]
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// What a connection that begins now uses.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn modified(dir: &Path) -> [Option<SystemTime>; 3] {
    let mut times = [None; 3];
    for (time, name) in times.iter_mut().zip(["certificate.pem", "key.pem", "authority.pem"]) {
        *time = tokio::fs::metadata(dir.join(name)).await.and_then(|data| data.modified()).ok();
    }
    times
}
