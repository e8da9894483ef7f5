//! Checking that what is stored is what was sent: when an operator asks, and all the time at a
//! modest rate.
//!
//! A file is good when its header, footer and index are those of the file that the catalog means,
//! its digest is the catalog's, and every frame opens with its key and holds what the agent read.
//! What is wrong is kept in the catalog with the file until a later check finds it good, shown with
//! every point that needs the file, and told of once as the critical event `stored_file_damaged`.
//!
//! Nothing is mended on its own. The copy is what a resync is compared with, so a resync cannot
//! tell the damaged blocks from good ones before they can be read. A damaged file is never merged: its
//! frames would be written anew under digests that nobody vouches for. So it stays as it is, and
//! the store's own redundancy or backup can bring it back; the next check notices.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lifeboat_api::{Request, RequestState, VerifyFault, VerifyKind, VerifyReport};
use lifeboat_model::{DiskNumber, PointId, ServerId};
use lifeboat_wire::agent::CommandKind;
use lifeboat_wire::event::{Event, Severity};

use crate::background_pace::{Pace, Stopped, at_low_priority};
use crate::catalog::{DueFile, RequestRow, StoredFile};
use crate::error::VaultError;
use crate::requests::request;
use crate::stored_file::{self, FileFault, Owner, Reader};
use crate::vault::{Vault, unknown};

mod manifests;

/// A file is not read again within this time, however small the store.
const AGAIN_AFTER: SignedDuration = SignedDuration::from_hours(24);
/// How long to wait when no file is due.
const IDLE: Duration = Duration::from_secs(60);
/// How often progress of a request is noted.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);
/// Points that a message names.
const POINTS_NAMED: usize = 3;

/// What a request of this kind is called.
const KIND: &str = "verify";

impl Vault {
    /// Asks for a verification. Asked again while one is running, it is the same request.
    ///
    /// # Errors
    /// When the server is not known or the catalog fails.
    pub async fn ask_verification(
        self: &Arc<Self>,
        server: ServerId,
        kind: VerifyKind,
        now: Timestamp,
    ) -> Result<Request, VaultError> {
        if kind == VerifyKind::AgainstSource {
            return self.ask(server, CommandKind::Compare, now).await;
        }
        if self.catalog.server(server).await?.is_none() {
            return Err(unknown("server", &server.to_string(), Vec::new()));
        }
        let lock = self.server_lock(server);
        let _guard = lock.lock().await;
        let is_same = |row: &RequestRow| row.server == server && row.command.is_none() && row.kind == KIND;
        if let Some(row) = self.catalog.running_requests().await?.into_iter().find(is_same) {
            return Ok(request(row));
        }
        let row = self.new_request(server, KIND, None, now)?;
        self.update_request(&row).await?;
        let (vault, running) = (Arc::clone(self), row.clone());
        tokio::spawn(async move { vault.verify_for(running).await });
        Ok(request(row))
    }

    /// Works on a request for a verification until it has ended.
    async fn verify_for(&self, mut row: RequestRow) {
        let result = self.verify_server(&mut row).await;
        row.ended = Some(Timestamp::now());
        match result {
            Ok(report) => {
                let faults = report.faults.len();
                row.message = (faults > 0).then(|| {
                    format!(
                        "{faults} stored files are not as they should be; points that need them are damaged."
                    )
                });
                row.report = Some(report);
                row.state = RequestState::Done;
            }
            Err(error) => {
                row.message = Some(format!("The verification could not be finished: {error}."));
                row.report = None;
                row.state = RequestState::Failed;
            }
        }
        if let Err(error) = self.update_request(&row).await {
            tracing::warn!(%error, "the result of a verification could not be stored");
        }
    }

    async fn verify_server(&self, row: &mut RequestRow) -> Result<VerifyReport, VaultError> {
        let server = row.server;
        let mut report = VerifyReport {
            kind: VerifyKind::Stored,
            good: true,
            files: 0,
            bytes: 0,
            equal_blocks: 0,
            different_blocks: 0,
            changed_blocks: 0,
            faults: self.verify_manifests(server).await?,
        };
        let files = self.catalog.files_of_server(server).await?;
        let total: usize = files.values().map(Vec::len).sum();
        for (disk, files) in files {
            let owner = self.file_owner(server, disk).await?;
            for file in files {
                let read = Arc::new(AtomicU64::new(0));
                let checking = self.check_stored_file(&owner, &file, 0, &read);
                let fault = self.with_progress(checking, row, &report, &read, total).await?;
                report.bytes += read.load(Ordering::Relaxed);
                match fault {
                    Ok(()) => report.files += 1,
                    Err(FileFault::Missing) if self.catalog.file(&file.object).await?.is_none() => {
                        // Merged away meanwhile; what took its place was checked then.
                        continue;
                    }
                    Err(fault) if fault.is_damage() => {
                        report.files += 1;
                        let points = self.points_needing(server, &file).await?;
                        let message = fault.to_string();
                        report.faults.push(VerifyFault { file: file.object.clone(), message, points });
                    }
                    Err(FileFault::Store(error)) => return Err((*error).into()),
                    Err(fault) => return Err(VaultError::Invalid(fault.to_string())),
                }
                self.take_check(server, &file.object, &fault_of(&report, &file), Timestamp::now()).await?;
            }
        }
        report.good = report.faults.is_empty();
        Ok(report)
    }

    /// Waits for a check and notes meanwhile how far the request is.
    async fn with_progress(
        &self,
        checking: impl Future<Output = Result<(), FileFault>>,
        row: &mut RequestRow,
        report: &VerifyReport,
        read: &AtomicU64,
        total: usize,
    ) -> Result<Result<(), FileFault>, VaultError> {
        let mut checking = std::pin::pin!(checking);
        loop {
            match tokio::time::timeout(PROGRESS_EVERY, &mut checking).await {
                Ok(result) => return Ok(result),
                Err(_) => {
                    let bytes = report.bytes + read.load(Ordering::Relaxed);
                    let good = report.faults.is_empty();
                    row.message = Some(format!("{} of {total} files are read.", report.files));
                    row.report = Some(VerifyReport { bytes, good, ..report.clone() });
                    self.update_request(row).await?;
                }
            }
        }
    }

    async fn check_stored_file(
        &self,
        owner: &Owner,
        file: &StoredFile,
        bytes_per_second: u64,
        read: &Arc<AtomicU64>,
    ) -> Result<(), FileFault> {
        let (reader, owner, file) = (Reader::new(self.store.clone()), owner.clone(), file.clone());
        let read = Arc::clone(read);
        let checked = at_low_priority("lifeboat-verify", move |stop| {
            let mut pace = Pace::new(bytes_per_second, stop);
            stored_file::check(&reader, &owner, &file, &mut pace, |bytes| {
                read.fetch_add(bytes, Ordering::Relaxed);
            })
        });
        checked.await.unwrap_or(Err(FileFault::Stopped(Stopped)))
    }

    /// Points that need a file, oldest first.
    async fn points_needing(&self, server: ServerId, file: &StoredFile) -> Result<Vec<PointId>, VaultError> {
        Ok(self.catalog.points_needing(server, file.disk, file.last_epoch).await?)
    }

    /// Notes that a file was found damaged, by whoever read it.
    pub(crate) async fn note_damage(
        &self,
        server: ServerId,
        object: &str,
        fault: &FileFault,
        now: Timestamp,
    ) -> Result<(), VaultError> {
        self.take_check(server, object, &Some(fault.to_string()), now).await
    }

    /// Keeps the result of a check, and tells of what is new in it.
    async fn take_check(
        &self,
        server: ServerId,
        object: &str,
        fault: &Option<String>,
        now: Timestamp,
    ) -> Result<(), VaultError> {
        let fault = fault.as_ref().map(|fault| fault.chars().take(1000).collect::<String>());
        let before = self.catalog.put_check(object, now, fault.as_deref()).await?;
        let Some(file) = self.catalog.file(object).await? else { return Ok(()) };
        let event = match (before, fault) {
            (None, Some(fault)) => {
                let points = self.points_needing(server, &file).await?;
                tracing::error!(%server, object, fault, points = points.len(), "a stored file is damaged");
                damaged(server, &file, &fault, &points, now)
            }
            (Some(_), None) => Event {
                time: now,
                severity: Severity::Information,
                code: "stored_file_mended".into(),
                server: Some(server),
                disk: Some(file.disk),
                message: format!("{object} was damaged and is whole again."),
                next_step: String::new(),
            },
            _ => return Ok(()),
        };
        self.note(event).await
    }

    /// What is known to be wrong with the files of each point, in a sentence.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn known_damage(
        &self,
        server: ServerId,
    ) -> Result<impl Fn(&lifeboat_api::Point) -> Option<String> + use<>, VaultError> {
        let mut by_disk: BTreeMap<DiskNumber, Vec<_>> = BTreeMap::new();
        for damaged in self.catalog.damaged_files(server).await? {
            by_disk.entry(damaged.disk).or_default().push(damaged);
        }
        Ok(move |point: &lifeboat_api::Point| {
            let needed = point.disks.iter().flat_map(|of_point| {
                let damaged = by_disk.get(&of_point.disk).into_iter().flatten();
                damaged.filter(|file| file.last_epoch <= of_point.epoch)
            });
            let needed: Vec<_> = needed.collect();
            let first = needed.first()?;
            let more = match needed.len() {
                1 => String::new(),
                count => format!(" and {} more damaged files are needed", count - 1),
            };
            Some(format!("Disk {}: {}: {}{more}.", first.disk, first.object, first.fault))
        })
    }

    /// Checks the file whose check is due. False when none is.
    ///
    /// # Errors
    /// When the catalog fails. A store that cannot be read is not: the file's turn comes again.
    pub async fn check_next(&self, bytes_per_second: u64, now: Timestamp) -> Result<bool, VaultError> {
        let Some(DueFile { server, file, checked, .. }) = self.catalog.file_due().await? else {
            return Ok(false);
        };
        let is_early = checked.is_some_and(|checked| {
            let since = now.duration_since(checked);
            since < AGAIN_AFTER && !since.is_negative()
        });
        if is_early {
            return Ok(false);
        }
        let owner = self.file_owner(server, file.disk).await?;
        match self.check_stored_file(&owner, &file, bytes_per_second, &Arc::default()).await {
            Ok(()) => self.take_check(server, &file.object, &None, now).await?,
            Err(fault) if fault.is_damage() => self.note_damage(server, &file.object, &fault, now).await?,
            Err(fault) => {
                tracing::warn!(object = file.object, %fault, "a stored file could not be checked");
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Ends requests that the process before this one was working on.
    async fn fail_interrupted(&self, now: Timestamp) -> Result<(), VaultError> {
        for mut row in self.catalog.running_requests().await? {
            if row.command.is_none() && row.kind == KIND && row.asked < self.opened {
                row.state = RequestState::Failed;
                row.ended = Some(now);
                row.report = None;
                row.message = Some("The vault was restarted meanwhile; ask again.".into());
                self.update_request(&row).await?;
            }
        }
        Ok(())
    }
}

fn fault_of(report: &VerifyReport, file: &StoredFile) -> Option<String> {
    let last = report.faults.last().filter(|fault| fault.file == file.object);
    last.map(|fault| fault.message.clone())
}

fn damaged(server: ServerId, file: &StoredFile, fault: &str, points: &[PointId], now: Timestamp) -> Event {
    let named: Vec<String> = points.iter().take(POINTS_NAMED).map(PointId::to_string).collect();
    let more = if points.len() > POINTS_NAMED { ", …" } else { "" };
    Event {
        time: now,
        severity: Severity::Critical,
        code: "stored_file_damaged".into(),
        server: Some(server),
        disk: Some(file.disk),
        message: format!(
            "{} is damaged: {fault}. {} points need it: {}{more}.",
            file.object,
            points.len(),
            named.join(", ")
        ),
        next_step:
            "Put the file back from a backup of the store; the next verification notices. Blocks that \
                    are not in it stay readable. Look for errors of the store's disk."
                .into(),
    }
}

/// Checks stored files one after the other, at a rate, for as long as it is polled. 0 switches it off.
pub async fn run(vault: Arc<Vault>, bytes_per_second: u64) {
    if let Err(error) = vault.fail_interrupted(Timestamp::now()).await {
        tracing::warn!(%error, "interrupted verifications could not be ended");
    }
    if bytes_per_second == 0 {
        return std::future::pending().await;
    }
    loop {
        match vault.check_next(bytes_per_second, Timestamp::now()).await {
            Ok(true) => {}
            Ok(false) => tokio::time::sleep(IDLE).await,
            Err(error) => {
                tracing::warn!(%error, "stored files could not be checked");
                tokio::time::sleep(IDLE).await;
            }
        }
    }
}
