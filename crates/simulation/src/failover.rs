//! Failover at random moments: while a server is fenced nobody moves its history, whoever sends.
//!
//! Its agents are not told of it here. So they, and the process servers with what they have spooled, go
//! on trying all the time, which is the worst that a source that comes back can do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lifeboat_model::{PointId, ServerId};
use lifeboat_vault::Vault;
use lifeboat_vault::catalog::{PointFilter, PointRow};

use crate::line::Line;
use crate::model::check_sentence;
use crate::world::World;

/// Who owns the servers' histories, as far as it is known.
#[derive(Default)]
pub struct Fences {
    /// Servers that are fenced, with the points that they had then.
    up: BTreeMap<ServerId, BTreeSet<PointId>>,
    /// Servers whose fence was being put up or taken down when something failed.
    unsure: BTreeSet<ServerId>,
}

impl World {
    /// An operator lets a server fail over, or gives it back to its source.
    pub(crate) async fn fail_over(&mut self, server: ServerId) {
        let line = &mut self.line;
        let Some(vault) = line.recovery.vault.clone() else { return };
        if vault.catalog().server(server).await.unwrap().is_none() {
            return;
        }
        let is_up = line.model.fences.up.remove(&server).is_some();
        line.model.fences.unsure.remove(&server);
        line.note(format!("{server} {}", if is_up { "is given back to its source" } else { "fails over" }));
        let done = if is_up {
            line.within_vault("unfence", &vault, async |vault, wall| vault.unfence(server, wall).await).await
        } else {
            line.within_vault("fence", &vault, async |vault, wall| vault.fence(server, wall).await).await
        };
        match done {
            Ok(()) if !is_up => {
                let points = vault.catalog().points(PointFilter::From(server, 0)).await.unwrap();
                let points = points.iter().map(|point| point.id).collect();
                line.model.fences.up.insert(server, points);
                line.model.figures.failovers += 1;
            }
            Ok(()) => {}
            Err(error) => {
                check_sentence(&error.to_string());
                line.model.fences.unsure.insert(server);
            }
        }
    }

    /// Every source has its history again.
    pub(crate) async fn give_all_back(&mut self) {
        let fences = std::mem::take(&mut self.line.model.fences);
        let vault = self.line.recovery.vault.clone().unwrap();
        for server in fences.up.into_keys().chain(fences.unsure) {
            self.line.note(format!("{server} is given back to its source"));
            vault.unfence(server, self.line.vault_wall()).await.unwrap();
        }
    }
}

impl Line {
    /// A fence that is up stays up, also in a catalog that was made anew.
    pub async fn check_fences(&self, vault: &Arc<Vault>) {
        for server in self.model.fences.up.keys() {
            let since = vault.fenced_since(*server).await.unwrap();
            assert!(since.is_some(), "the source of {server} has the history again that was taken from it");
        }
    }

    /// No point came since the fence is up.
    pub fn check_owner(&self, server: ServerId, rows: &[PointRow]) {
        let Some(points) = self.model.fences.up.get(&server) else { return };
        let late = rows.iter().find(|row| !points.contains(&row.id));
        assert!(late.is_none(), "two owners of one history: {late:?} came after the failover of {server}");
    }
}
