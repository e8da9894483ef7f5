//! What process servers ask of the vault, and what becomes of it on the way.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use lifeboat_hrl::verify_file;
use lifeboat_model::{DiskNumber, ServerId};
use lifeboat_process_server::{Gateway, LinkError, UploadError};
use lifeboat_vault::catalog::PointFilter;
use lifeboat_vault::{Vault, VaultError};
use lifeboat_wire::agent::DiskDescription;
use lifeboat_wire::process_server::{CommitPoint, CommitReceipt, DiskRegistration, GrantRequest};
use rand::Rng;

use super::{Fate, Line};
use crate::model::check_sentence;
use crate::store::{Fault, FaultKind};

impl Line {
    /// The vault, if a request reaches it, and whether its answer comes back.
    pub(super) fn vault_for(&mut self, what: &str) -> Result<(Arc<Vault>, bool), LinkError> {
        let cut = self.now < self.vault_cut_until;
        let fate = self.fate(cut);
        if fate == Fate::NotSent {
            self.note(format!("  {what} does not reach the vault"));
            return Err(LinkError::Unreachable("the line to the vault is cut".into()));
        }
        let vault = self.recovery.vault.clone();
        let vault = vault.ok_or_else(|| LinkError::Unreachable("the vault is down".into()))?;
        Ok((vault, fate != Fate::AnswerLost))
    }

    pub fn link_error(&mut self, what: &str, error: &VaultError) -> LinkError {
        let message = error.to_string();
        check_sentence(&message);
        self.note(format!("  {what} failed ({}): {message}", error.code()));
        match error.status() {
            408 | 429 | 500.. => LinkError::NotNow(message),
            status => LinkError::Refused { status, code: error.code().into(), message },
        }
    }

    /// A fault of the store within the next request, perhaps.
    pub fn draw_store_fault(&mut self) -> Option<Fault> {
        let fails = self.chance(self.faults.store_calls, 60);
        let kills = self.chance(self.faults.vault_crash, 20);
        let kind = match (fails, kills) {
            (_, true) => FaultKind::Kill,
            (true, false) if self.random.random_bool(0.5) => FaultKind::Once,
            (true, false) => FaultKind::Lasting,
            (false, false) => return None,
        };
        Some(Fault { call: self.random.random_range(0..6), after: self.random.random_bool(0.5), kind })
    }

    /// Runs a request at the vault, which may be killed in it.
    pub async fn at_vault<T>(
        &mut self,
        what: &str,
        request: impl AsyncFnOnce(&Vault, Timestamp) -> Result<T, VaultError>,
    ) -> Result<T, LinkError> {
        let (vault, heard) = self.vault_for(what)?;
        match self.within_vault(what, &vault, request).await {
            Ok(_) if !heard => {
                self.note(format!("  the answer to {what} is lost"));
                Err(LinkError::Unreachable("the answer was lost".into()))
            }
            result => result,
        }
    }

    /// Does something at the vault, which may be killed in it.
    pub async fn within_vault<T>(
        &mut self,
        what: &str,
        vault: &Vault,
        request: impl AsyncFnOnce(&Vault, Timestamp) -> Result<T, VaultError>,
    ) -> Result<T, LinkError> {
        let wall = self.vault_wall();
        let fault = self.draw_store_fault();
        if let Some(fault) = fault {
            self.note(format!("  during {what} the store has {fault:?}"));
        }
        self.recovery.store.arm(fault);
        let store = self.recovery.store.clone();
        let result = tokio::select! {
            biased;
            result = request(vault, wall) => Some(result),
            () = store.killed() => None,
        };
        store.arm(None);
        store.revive();
        match result {
            None => {
                self.note(format!("  the vault is killed in {what}"));
                self.recovery.crash();
                Err(LinkError::Unreachable("the vault was killed".into()))
            }
            Some(Err(error)) => Err(self.link_error(what, &error)),
            Some(Ok(value)) => Ok(value),
        }
    }

    pub(super) async fn register(
        &mut self,
        server: ServerId,
        disk: DiskNumber,
        description: &DiskDescription,
    ) -> Result<DiskRegistration, LinkError> {
        self.at_vault("register", async |vault, wall| {
            vault.register_disk("site", server, disk, description, wall).await
        })
        .await
    }

    /// Tells the vault what agents said of their disks while it was away.
    pub async fn describe_untold(&mut self, site: usize) {
        let Some(gateway) = self.sites[site].gateway.clone() else { return };
        for (server, disk, request) in gateway.untold_disks() {
            let commits = gateway.commits(server);
            if let Ok(fresh) = self.register(server, disk, &request.description).await {
                let (fresh, wall) = (Some((fresh, commits)), self.wall(self.clocks.site_ms));
                let described = gateway.describe_disk(server, disk, &request.description, None, fresh, wall);
                if let Err(refusal) = described {
                    check_sentence(&refusal.to_string());
                }
                self.take_events(site);
            }
        }
    }

    /// One upload; false when there was nothing to do.
    pub async fn upload(&mut self, site: usize) -> bool {
        let Some(gateway) = self.sites[site].gateway.clone() else { return false };
        let Some(upload) = gateway.next_upload(self.now) else { return false };
        let result = if upload.checked { Ok(()) } else { verify(&upload.path, upload.file.digest) };
        let result = match result {
            Ok(()) => self.send(&upload).await.map_err(UploadError::Link),
            Err(why) => {
                check_sentence(&why);
                Err(UploadError::Damaged(why))
            }
        };
        if self.chance(self.faults.site_crash, 15) {
            drop(gateway);
            self.crash_site(site);
            return true;
        }
        gateway.upload_ended(&upload, &result, self.now, self.wall(self.clocks.site_ms));
        self.take_events(site);
        true
    }

    async fn send(&mut self, upload: &lifeboat_process_server::Upload) -> Result<(), LinkError> {
        let request = GrantRequest { server: upload.server, file: upload.file.clone() };
        let grant =
            self.at_vault("grant", async |vault, wall| vault.grant("site", &request, wall).await).await?;
        if grant.stored {
            return Ok(());
        }
        let Some(token) = grant.url.strip_prefix("/v1/objects/").map(str::to_owned) else {
            panic!("a grant for another place: {}", grant.url);
        };
        let Ok(content) = fs::read(&upload.path) else {
            return Err(LinkError::NotNow("the file cannot be opened here".into()));
        };
        let mut content = Bytes::from(content);
        let whole = content.len();
        let cut = self.chance(self.faults.streams, 30).then(|| self.random.random_range(0..=whole));
        let mut pieces = Vec::new();
        if let Some(end) = cut {
            content.truncate(end);
        }
        while !content.is_empty() {
            pieces.push(Ok(content.split_to(self.random.random_range(1..=content.len()))));
        }
        if cut.is_some() {
            pieces.push(Err("the line is cut"));
        }
        let body = futures::stream::iter(pieces);
        let sent = self
            .at_vault("upload", async |vault, wall| vault.receive("site", &token, body, wall).await)
            .await;
        match cut {
            // What the vault says to this nobody hears.
            Some(_) => {
                assert!(sent.is_err(), "an upload that was cut counts");
                Err(LinkError::Unreachable("the line was cut".into()))
            }
            None => sent,
        }
    }

    /// One commit; false when there was nothing to do.
    pub async fn commit(&mut self, site: usize) -> bool {
        let Some(gateway) = self.sites[site].gateway.clone() else { return false };
        let Some(commit) = gateway.next_commit(self.now) else { return false };
        let result = self.commit_at_vault(&commit).await;
        if self.chance(self.faults.streams, 40) && result.is_ok() {
            let again = self.commit_at_vault(&commit).await;
            if let (Ok(first), Ok(again)) = (&result, &again) {
                assert_eq!(first, again, "a repeated commit gets another receipt");
            }
        }
        if self.chance(self.faults.site_crash, 20) {
            drop(gateway);
            self.crash_site(site);
            return true;
        }
        if self.chance(self.faults.site_crash, 20) {
            self.crash_while_noting(site, gateway, &commit, &result);
            return true;
        }
        if let Err(LinkError::Refused { code, message, .. }) = &result
            && code == "other_history"
        {
            assert!(self.faults.second_site, "another history where there is only one: {message}");
            self.model.stuck.insert((site, commit.server));
        }
        let noted = gateway.commit_ended(&commit, &result, self.now, self.wall(self.clocks.site_ms));
        noted.unwrap();
        self.take_events(site);
        true
    }

    /// Notes a commit and is killed somewhere in it: of what was removed the last remains there.
    fn crash_while_noting(
        &mut self,
        site: usize,
        gateway: Arc<Gateway>,
        commit: &CommitPoint,
        result: &Result<CommitReceipt, LinkError>,
    ) {
        let before: Vec<_> =
            self.sites[site].files().into_iter().map(|path| (fs::read(&path).unwrap(), path)).collect();
        gateway.commit_ended(commit, result, self.now, self.wall(self.clocks.site_ms)).unwrap();
        drop(gateway);
        self.crash_site(site);
        let removed: Vec<_> = before.into_iter().filter(|(_, path)| !path.exists()).collect();
        let (points, files): (Vec<_>, Vec<_>) =
            removed.into_iter().partition(|(_, path)| path.to_string_lossy().contains("/points/"));
        let kept_files =
            if self.random.random_bool(0.5) { 0 } else { self.random.random_range(0..=files.len()) };
        let with_point = kept_files == 0 && self.random.random_bool(0.5);
        let points = points.iter().filter(|_| with_point);
        for (content, path) in files[kept_files..].iter().chain(points) {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap();
            file.write_all(content).unwrap();
        }
    }

    async fn commit_at_vault(&mut self, commit: &CommitPoint) -> Result<CommitReceipt, LinkError> {
        let receipt = self
            .at_vault("commit", async |vault, wall| vault.commit_point("site", commit, wall).await)
            .await?;
        assert_eq!(receipt.point, commit.seal.point);
        self.note(format!("  point {} of {} is committed", commit.seal.point, commit.server));
        for file in &commit.files {
            let object =
                self.recovery.names.file(commit.server, file.disk, file.epoch, file.part, &file.digest);
            let newer_points_only = self.model.removed.contains(&commit.seal.point);
            let whole = self
                .recovery
                .store
                .content(&object)
                .is_some_and(|content| content.len() as u64 == file.bytes);
            let listed = self
                .model
                .committed
                .get(&commit.server)
                .is_some_and(|points| points.contains_key(&commit.seal.point));
            assert!(
                whole || listed || newer_points_only,
                "point {} is committed without {object}",
                commit.seal.point
            );
        }
        // The vault may give it another time than its agent did. None when it is removed already.
        let vault = self.recovery.vault.clone();
        let listed = match &vault {
            Some(vault) => vault.catalog().points(PointFilter::Id(commit.seal.point)).await.unwrap().pop(),
            None => None,
        };
        if let Some(row) = listed {
            self.model.committed.entry(commit.server).or_default().insert(row.id, row.time);
        }
        for disk in &commit.seal.disks {
            let newest = self.model.committed_epochs.entry((commit.server, disk.disk)).or_default();
            *newest = disk.epoch.max(*newest);
        }
        self.model.figures.committed += 1;
        Ok(receipt)
    }
}

fn verify(path: &std::path::Path, digest: lifeboat_model::Digest) -> Result<(), String> {
    let name = path.display();
    let Ok(file) = File::open(path) else { return Err(format!("the file {name} is gone from the spool")) };
    match verify_file(file) {
        Ok(verified) if verified.summary.digest == digest => Ok(()),
        Ok(_) => Err(format!("{name} is another file than at the start")),
        Err(error) => Err(error.in_file(name).to_string()),
    }
}
