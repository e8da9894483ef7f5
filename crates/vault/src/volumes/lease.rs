//! Volumes that close by themselves: one with a lease goes when no client used it for so long. An
//! export has one, so that nothing of it stays when its program is killed.

use std::time::Duration;

use jiff::Timestamp;
use lifeboat_model::Span;
use tokio::time::Instant;

use super::{Volumes, VolumesError, events};
use crate::catalog::VolumeRow;
use crate::error::VaultError;

/// The shortest lease: a client that lost its connection needs a while until it is back.
const LEASE_MIN: Span = Span::seconds(10);
/// How often clients are looked for.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// When a volume was last seen in use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used(Instant);

impl Default for Used {
    fn default() -> Self {
        Self(Instant::now())
    }
}

/// Refuses a lease that no client could keep.
pub(super) fn check(lease: Option<Span>) -> Result<(), VolumesError> {
    match lease {
        Some(lease) if lease < LEASE_MIN => {
            let message = format!("a lease is at least {LEASE_MIN}, not {lease}");
            Err(VaultError::Invalid(message).into())
        }
        _ => Ok(()),
    }
}

impl Volumes {
    /// Closes volumes whose lease ran out, for as long as it is polled.
    pub(crate) async fn end_leases(&self, clock: fn() -> Timestamp) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match self.unused().await {
                Ok(unused) => {
                    for row in unused {
                        self.end_lease(&row, clock()).await;
                    }
                }
                Err(error) => tracing::warn!(%error, "leases of volumes could not be looked through"),
            }
        }
    }

    /// The volumes whose lease ran out. One in trouble is not counted as unused: nobody can use it.
    async fn unused(&self) -> Result<Vec<VolumeRow>, VolumesError> {
        let mut served = self.served.lock().await;
        if !served.values().any(|open| open.lease.is_some()) {
            return Ok(Vec::new());
        }
        let rows = self.vault.catalog().volumes().await.map_err(VaultError::from)?;
        let mut unused = Vec::new();
        for row in rows {
            let Some(open) = served.get_mut(&row.id) else { continue };
            let Some(lease) = open.lease else { continue };
            if open.trouble.is_some() || self.clients(&row) > 0 {
                open.used = Used::default();
            } else if open.used.0.elapsed() >= lease.duration() {
                unused.push(row);
            }
        }
        Ok(unused)
    }

    async fn end_lease(&self, row: &VolumeRow, now: Timestamp) {
        match self.close_row(row).await {
            Ok(()) => self.tell(events::lease_ended(row, now)).await,
            Err(error) => {
                tracing::warn!(volume = %row.id, %error, "a volume that nobody uses could not be closed");
            }
        }
    }
}
