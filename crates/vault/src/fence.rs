//! Who goes on with a server's history: its source, or its copy at the recovery site.
//!
//! A server is *fenced* while its copy has taken over. From then on the vault takes no point, no
//! file and no disk of it, and its agent is told so: it goes on tracking and sends nothing. The
//! fence goes up under the lock under which points are committed. So each point was committed
//! before it, and is there to be chosen, or is not committed at all: there are never two
//! histories. The server's manifest in the store says it too, so that a catalog that is made
//! anew does not let the source in again.

use jiff::Timestamp;
use lifeboat_model::ServerId;
use lifeboat_wire::event::{Event, Severity};

use crate::commit_rules::CommitRefusal;
use crate::error::VaultError;
use crate::vault::{Vault, unknown};

impl Vault {
    /// Takes a server's history from its source. Doing it again changes nothing.
    ///
    /// # Errors
    /// When there is no such server, or store or catalog fail. It may be fenced then.
    pub async fn fence(&self, server: ServerId, now: Timestamp) -> Result<(), VaultError> {
        let since = match self.fenced_since(server).await? {
            Some(since) => since,
            None => now,
        };
        self.set_fence(server, Some(since), now).await?;
        self.note(Event {
            time: now,
            severity: Severity::Information,
            code: "source_fenced".into(),
            server: Some(server),
            disk: None,
            message: "The server's history goes on at the recovery site; its source sends nothing any more."
                .into(),
            next_step: "Should the source come back, it goes on running and is not harmed.".into(),
        })
        .await
    }

    /// Gives a server's history back to its source. Doing it again changes nothing.
    ///
    /// # Errors
    /// When there is no such server, or store or catalog fail.
    pub async fn unfence(&self, server: ServerId, now: Timestamp) -> Result<(), VaultError> {
        self.set_fence(server, None, now).await
    }

    /// Since when a server is fenced.
    ///
    /// # Errors
    /// When there is no such server, or the catalog fails.
    pub async fn fenced_since(&self, server: ServerId) -> Result<Option<Timestamp>, VaultError> {
        let row = self.catalog.server(server).await?;
        Ok(row.ok_or_else(|| unknown("server", &server.to_string(), Vec::new()))?.fenced)
    }

    /// Refuses what only the source of a server may send.
    pub(crate) async fn refuse_fenced(&self, server: ServerId) -> Result<(), VaultError> {
        let row = self.catalog.server(server).await?;
        match row.and_then(|row| row.fenced) {
            Some(since) => Err(CommitRefusal::Fenced { server, since }.into()),
            None => Ok(()),
        }
    }

    async fn set_fence(
        &self,
        server: ServerId,
        fenced: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(), VaultError> {
        let lock = self.server_lock(server);
        let mut progress = lock.lock().await;
        // A commit that was interrupted is made or refused before the fence, never after it.
        self.settle_locked(server, &mut progress, now).await?;
        progress.described = false;
        self.catalog.set_fenced(server, fenced).await?;
        self.write_server_manifest(server).await?;
        progress.described = true;
        drop(progress);
        self.changed();
        Ok(())
    }
}

/// What the agent of a fenced server is told.
pub(crate) fn reason(since: Timestamp) -> String {
    format!(
        "the server has failed over at {since:.0} and its history goes on at the recovery site; this source sends \
         nothing until it is protected again"
    )
}
