//! Thinning points out, and merging the files between those that remain.
//!
//! Which points go is decided in [`plan`], which files are merged in `layout`, how in `merge`. This
//! page is about the order of changes, which makes a crash at any moment harmless.
//!
//! The catalog is the truth; the manifests in the store must say the same, so that a rebuild from
//! the store alone gives the same history. A file is told of in the manifest of the first
//! retained point that needs it. So a merge changes one manifest, and removing points changes the
//! manifest of the point after them, which also names its predecessor anew.
//!
//! 1. New files are written off to the side, stored durably, and read back. No lock is held.
//! 2. Under the server's lock it is checked that all is still as it was, and the catalog notes
//!    which manifests are about to be written anew.
//! 3. Those manifests are replaced, each as one object.
//! 4. One transaction changes the catalog: points and old files go, new files come, the note of 2
//!    goes, and everything that nobody needs any more is noted as *retired*.
//! 5. Retired manifests are deleted, then, after a grace time, retired files; each note goes after
//!    its object.
//!
//! A crash after 1 leaves stored files that neither catalog nor manifest names; they are found by
//! listing the store, when they are old enough. After 2 or 3 the note stands: the manifests are written
//! again from the catalog, before anything else is done with that server. A rebuild in that state
//! would take the new manifests, whose files are all there too. After 4, and between deletions, the
//! notes of what is retired stand, and deleting goes on.
//!
//! **What keeps a file:** the catalog, a manifest, an upload without a point, and open volumes: a
//! retired file stays while a volume is open that was opened over it. Everybody
//! else who reads files by a list from the catalog has the grace time to come to an end, and begins
//! anew with the present list when a file is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use lifeboat_model::{PointId, ServerId};
use lifeboat_wire::event::{Event, Severity};

use crate::catalog::{PointFilter, PointRow, ServerRow};
use crate::error::VaultError;
use crate::vault::Vault;

mod compose;
mod layout;
mod manifests;
mod merge;
mod merging;
mod orphans;
pub mod plan;
mod thin;

pub(crate) use manifests::{View, views};
pub use merge::MergeError;

use plan::{Candidate, Plan, plan};

/// What failed is tried again after this time, and not told of again before.
const AGAIN_AFTER: SignedDuration = SignedDuration::from_hours(1);
/// How often the store is searched for files that nobody knows.
const ORPHANS_EVERY: SignedDuration = SignedDuration::from_hours(6);
/// The clock jumped when it differs so much from the time that passed.
const JUMP: SignedDuration = SignedDuration::from_mins(10);

/// How retention works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetentionSettings {
    /// Bytes a second that merging reads and writes; 0 is no limit.
    pub merge_bytes_per_second: u64,
    /// The base of a disk is rewritten when so many percent of its data lie over it.
    pub fold_percent: u64,
    /// Bytes of data in the largest merged file.
    pub part_bytes: u64,
    /// Retired files are deleted after this time.
    pub delete_after: SignedDuration,
    /// Files that nobody knows are deleted at this age.
    pub orphan_after: SignedDuration,
}

impl Default for RetentionSettings {
    fn default() -> Self {
        Self {
            merge_bytes_per_second: 32 << 20,
            fold_percent: 25,
            part_bytes: 1 << 30,
            delete_after: SignedDuration::from_hours(1),
            orphan_after: SignedDuration::from_hours(1),
        }
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionFigures {
    /// Points removed.
    pub points: u64,
    /// Files replaced by merged ones.
    pub merged_files: u64,
    /// Merged files written.
    pub new_files: u64,
    /// Objects deleted from the store.
    pub deleted: u64,
}

/// Is called at each step with its name; an error there ends the work as a crash would.
pub type AtStep = Arc<dyn Fn(&'static str) -> Result<(), VaultError> + Send + Sync>;

/// Thins out and merges, for one vault. One of it at a time.
pub struct Retention {
    vault: Arc<Vault>,
    settings: RetentionSettings,
    at_step: AtStep,
    memory: Mutex<Memory>,
}

/// What need not outlive the process.
#[derive(Default)]
struct Memory {
    /// What failed, and when.
    failed: BTreeMap<String, Timestamp>,
    /// Silences that were told of.
    silences: BTreeSet<PointId>,
    orphans_looked: Option<Timestamp>,
    figures: RetentionFigures,
}

impl Retention {
    /// For a vault.
    #[must_use]
    pub fn new(vault: Arc<Vault>, settings: RetentionSettings) -> Self {
        Self { vault, settings, at_step: Arc::new(|_| Ok(())), memory: Mutex::default() }
    }

    /// For tests: `at_step` is called between any two changes of store or catalog.
    #[must_use]
    pub fn with_steps(self, at_step: AtStep) -> Self {
        Self { at_step, ..self }
    }

    /// What was done since the process began.
    #[must_use]
    pub fn figures(&self) -> RetentionFigures {
        self.memory().figures
    }

    /// Thins out the points of all servers and deletes what is not needed any more. A server where
    /// that fails does not keep the others from it; it is told of, and the first failure returned.
    ///
    /// # Errors
    /// When it failed for a server, or catalog or store fail.
    pub async fn thin(&self, now: Timestamp) -> Result<(), VaultError> {
        let mut result = Ok(());
        for server in self.vault.catalog().servers().await? {
            if let Err(error) = self.thin_server(&server, now).await {
                self.note_failure(
                    &server,
                    "retention_failed",
                    "Points could not be thinned out",
                    &error,
                    now,
                )
                .await;
                result = result.and(Err(error));
            }
        }
        self.sweep(now).await?;
        result
    }

    /// Merges files of all servers, and looks for files that nobody knows.
    ///
    /// # Errors
    /// As [`Retention::thin`].
    pub async fn merge(&self, now: Timestamp) -> Result<(), VaultError> {
        let mut result = Ok(());
        for server in self.vault.catalog().servers().await? {
            if let Err(error) = self.merge_server(&server, now).await {
                self.note_failure(&server, "merge_failed", "Files could not be merged", &error, now).await;
                result = result.and(Err(error));
            }
        }
        let is_due = self.memory().orphans_looked.is_none_or(|looked| {
            let since = now.duration_since(looked);
            since >= ORPHANS_EVERY || since.is_negative()
        });
        if is_due {
            for server in self.vault.catalog().servers().await? {
                self.remove_orphans(server.id, now).await?;
            }
            self.memory().orphans_looked = Some(now);
        }
        result
    }

    /// The points of a server, oldest first, and what is to become of them.
    async fn plan_of(&self, server: &ServerRow, now: Timestamp) -> Result<(Vec<PointRow>, Plan), VaultError> {
        // Manifests are written from the catalog, and what none names is deleted in the end: with rows
        // lost, the files of those would go too.
        self.vault.check_files(server.id, None).await?;
        let mut points = self.vault.catalog().points(PointFilter::From(server.id, 0)).await?;
        points.reverse();
        let mut held = self.vault.catalog().held_points(server.id).await?;
        held.extend(self.last_of_disks(server, &points).await?);
        let candidates: Vec<Candidate> = points
            .iter()
            .map(|point| Candidate { id: point.id, number: point.number, time: point.time, kind: point.kind })
            .collect();
        let plan = plan(&candidates, &server.policy, now, &held);
        Ok((points, plan))
    }

    /// The newest point that has each disk. When a disk is protected again its epochs go on from
    /// there, so that point is kept until the disk's history is older than all rules.
    async fn last_of_disks(
        &self,
        server: &ServerRow,
        points: &[PointRow],
    ) -> Result<BTreeSet<PointId>, VaultError> {
        let Some(newest) = points.last() else { return Ok(BTreeSet::new()) };
        let longest =
            server.policy.retention.iter().map(|rule| rule.until.duration()).max().unwrap_or_default();
        let longest = SignedDuration::try_from(longest).unwrap_or(SignedDuration::MAX);
        let disks = self.vault.catalog().disks(server.id).await?;
        let last = |disk: &crate::catalog::DiskRow| {
            let has = |point: &&PointRow| point.disks.iter().any(|of_point| of_point.disk == disk.disk);
            let point = points.iter().rev().find(has)?;
            let is_over = disk.removed && newest.time.duration_since(point.time) > longest;
            (!is_over).then_some(point.id)
        };
        Ok(disks.iter().filter_map(last).collect())
    }

    fn step(&self, name: &'static str) -> Result<(), VaultError> {
        (self.at_step)(name)
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something failed a short while ago.
    fn failed_lately(&self, what: &str, now: Timestamp) -> bool {
        let mut memory = self.memory();
        memory.failed.retain(|_, failed| {
            let since = now.duration_since(*failed);
            since < AGAIN_AFTER && !since.is_negative()
        });
        memory.failed.contains_key(what)
    }

    fn has_failed(&self, what: String, now: Timestamp) {
        self.memory().failed.insert(what, now);
    }

    async fn note_failure(
        &self,
        server: &ServerRow,
        code: &'static str,
        what: &str,
        error: &VaultError,
        now: Timestamp,
    ) {
        tracing::warn!(server = %server.id, code, %error, "retention will be tried again");
        let key = format!("{code} {}", server.id);
        if self.failed_lately(&key, now) {
            return;
        }
        self.has_failed(key, now);
        let event = Event {
            time: now,
            severity: Severity::Warning,
            code: code.into(),
            server: Some(server.id),
            disk: None,
            message: format!("{what}: {error}. Nothing is lost; it is tried again."),
            next_step: "If it goes on, the store fills up: put right what the message names.".into(),
        };
        if let Err(error) = self.vault.note(event).await {
            tracing::warn!(%error, "an event could not be stored");
        }
    }

    fn count(&self, add: impl FnOnce(&mut RetentionFigures)) {
        add(&mut self.memory().figures);
    }

    fn server_of(&self, server: ServerId) -> crate::vault::ServerLock {
        self.vault.server_lock(server)
    }
}

/// Thins out and merges for as long as it is polled. Dropped, it stops at once.
pub async fn run(vault: Arc<Vault>, every: Duration, settings: RetentionSettings) {
    let retention = Retention::new(vault, settings);
    let thinning = async {
        let mut clocks = Clocks::new();
        loop {
            tokio::time::sleep(every).await;
            let now = Timestamp::now();
            retention.tell_of_jump(clocks.jump(now), now).await;
            if let Err(error) = retention.thin(now).await {
                tracing::debug!(%error, "thinning ended with an error");
            }
        }
    };
    let merging = async {
        loop {
            tokio::time::sleep(every).await;
            if let Err(error) = retention.merge(Timestamp::now()).await {
                tracing::debug!(%error, "merging ended with an error");
            }
        }
    };
    tokio::join!(thinning, merging);
}

/// Compares the wall clock with one that never jumps.
struct Clocks {
    wall: Timestamp,
    steady: Instant,
}

impl Clocks {
    fn new() -> Self {
        Self { wall: Timestamp::now(), steady: Instant::now() }
    }

    /// How far the wall clock has jumped since the last call.
    fn jump(&mut self, now: Timestamp) -> SignedDuration {
        let before = std::mem::replace(self, Self { wall: now, steady: Instant::now() });
        let passed = SignedDuration::try_from(self.steady - before.steady).unwrap_or(SignedDuration::MAX);
        now.duration_since(before.wall).saturating_sub(passed)
    }
}

impl Retention {
    async fn tell_of_jump(&self, jump: SignedDuration, now: Timestamp) {
        if jump.abs() < JUMP {
            return;
        }
        let to = if jump.is_negative() { "back" } else { "forward" };
        let event = Event {
            time: now,
            severity: Severity::Critical,
            code: "vault_clock_jumped".into(),
            server: None,
            disk: None,
            message: format!("The vault's clock jumped {to} by {} s.", jump.unsigned_abs().as_secs()),
            next_step:
                "If it is wrong now, set it right within a day: until then no point is removed for it.".into(),
        };
        if let Err(error) = self.vault.note(event).await {
            tracing::warn!(%error, "an event could not be stored");
        }
    }
}
