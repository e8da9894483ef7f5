//! How a point comes to exist, and why it survives a crash at any moment.
//!
//! 1. Every file of the point is in the store, durable, with the size and digest that the point
//!    names.
//! 2. The point's manifest is written into the store, unless there is one. It alone says all that
//!    the catalog will say.
//! 3. One transaction puts the point and its files into the catalog. This makes the point exist.
//! 4. Only now the process server gets its receipt, and may forget the files.
//!
//! A crash before 2 leaves files that no point has. The process server commits again.
//! A crash between 2 and 3 leaves a manifest without a point. It is *adopted* when the vault is
//! opened, or before the next commit of that server when the vault lives on: as all of its files
//! are there, the catalog gets what the manifest says. So a manifest in the store never names a
//! point that the catalog will not have, and rebuilding from the store gives the same history.
//! A crash between 3 and 4 is answered when the commit is repeated: the same receipt.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use lifeboat_model::{Digest, PointId, ServerId};
use lifeboat_wire::agent::SealPoint;
use lifeboat_wire::event::{Event, Severity};
use lifeboat_wire::process_server::{CommitPoint, CommitReceipt, FileDescription};

use crate::catalog::{DiskRow, Newest, PointDiskRow, PointRow, StoredFile, UploadRow};
use crate::commit_rules::{self, CommitRefusal, History, NewestPoint, Removed};
use crate::error::VaultError;
use crate::manifest::{self, MANIFEST_BYTES_MAX, PointManifest};
use crate::point_time::{self, Claims, Why};
use crate::store::Created;
use crate::upload::check_file;
use crate::vault::{ServerProgress, Vault};

/// Objects that are looked for at once.
const LOOKUPS: usize = 16;

impl Vault {
    /// Makes a recovery point exist. Committing the same point again gives the same receipt.
    ///
    /// # Errors
    /// When the point does not follow the server's history, a file is not stored as the point says,
    /// or store or catalog fail. There is no such point then, or it is adopted later, whole.
    pub async fn commit_point(
        &self,
        process_server: &str,
        commit: &CommitPoint,
        now: Timestamp,
    ) -> Result<CommitReceipt, VaultError> {
        let lock = self.server_lock(commit.server);
        let mut progress = lock.lock().await;
        self.settle_locked(commit.server, &mut progress, now).await?;
        let digest = commit_digest(commit)?;
        let _reserved = Reserved::take(self, commit.seal.point, commit.server)?;
        if let Some((owner, committed_at, committed)) = self.catalog.commit_of(commit.seal.point).await? {
            if owner != commit.server {
                return Err(CommitRefusal::PointTaken { point: commit.seal.point, owner }.into());
            }
            if committed != digest {
                return Err(CommitRefusal::PointDiffers(commit.seal.point).into());
            }
            return Ok(CommitReceipt { point: commit.seal.point, committed_at });
        }
        self.refuse_fenced(commit.server).await?;
        let _committing = Committing::begin(self, commit.server, commit.seal.time);
        let (history, newest) = self.history(commit.server).await?;
        commit_rules::check(&history, commit)?;
        let (time, why) = point_time::of(
            newest.as_ref().map(|newest| newest.time),
            Claims { agent: commit.seal.time, process_server: commit.sealed_at },
            now,
        );
        let files = self.check_stored(commit, now).await?;
        // Before the manifest, which tells of the disks as they are with this point.
        self.change_disks(commit.server, commit_rules::changed_disks(&history, commit), &mut progress, now)
            .await?;
        let manifest = PointManifest {
            server: self.server_manifest(commit.server).await?,
            number: newest.as_ref().map_or(1, |newest| newest.number + 1),
            previous: newest.as_ref().map(|newest| newest.point),
            seal: SealPoint { time, ..commit.seal.clone() },
            sealed: commit.sealed_at,
            uploaded: commit.uploaded_at,
            committed: now,
            commit_digest: digest,
            files,
        };
        // Also when this future is dropped: whatever it left is settled before the next commit.
        progress.settled = false;
        self.write_point_manifest(&manifest, WriteMode::New).await?;
        let point = point_row(&manifest);
        self.catalog.insert_point(&point, &manifest.files, manifest.previous).await?;
        progress.settled = true;
        drop(progress);
        self.route(commit.server, process_server).await?;
        tracing::debug!(server = %commit.server, point = %point.id, number = point.number, "committed a point");
        self.changed();
        self.tell_of_time(commit, time, why, now).await;
        Ok(CommitReceipt { point: point.id, committed_at: now })
    }

    /// Says, once while it lasts, that a point did not get the time that its agent gave it.
    async fn tell_of_time(&self, commit: &CommitPoint, time: Timestamp, why: Why, now: Timestamp) {
        if !self.live().time_differs_anew(commit.server, why) {
            return;
        }
        let claimed = commit.seal.time;
        let (code, message) = match why {
            Why::AsClaimed => return,
            Why::Replaced => (
                "point_time_replaced",
                format!(
                    "The server's clock gave a point the time {claimed:.0}, which cannot be: it counts as of \
                     {time:.0} instead, and so do those that follow while the clock is wrong."
                ),
            ),
            Why::SteppedBack => (
                "point_times_step_back",
                format!(
                    "The points before this one have times after {time:.0}, which is now by the vault's clock: a \
                     clock was ahead when they were taken. They keep their times and their place before it."
                ),
            ),
        };
        let event = Event {
            time: now,
            severity: Severity::Warning,
            code: code.into(),
            server: Some(commit.server),
            disk: None,
            message,
            next_step: "Set the clocks of server, process server and vault right, best by NTP.".into(),
        };
        // The point is there; that nobody was told of its time is no reason to say otherwise.
        if let Err(error) = self.note(event).await {
            tracing::warn!(%error, "an event could not be stored");
        }
    }

    /// Adopts points of a server whose manifest the catalog does not have.
    pub(crate) async fn settle(&self, server: ServerId, now: Timestamp) -> Result<(), VaultError> {
        let lock = self.server_lock(server);
        let mut progress = lock.lock().await;
        self.settle_locked(server, &mut progress, now).await
    }

    pub(crate) async fn settle_locked(
        &self,
        server: ServerId,
        progress: &mut ServerProgress,
        now: Timestamp,
    ) -> Result<(), VaultError> {
        if progress.settled {
            return Ok(());
        }
        let newest = self.catalog.newest(server).await?;
        let folder = self.names.points(server);
        let after = format!("{folder}/{:012}", newest.map_or(0, |newest| newest.number) + 1);
        for object in self.store.names_after(&folder, &after).await? {
            if let Err(error) = self.adopt(server, &object).await {
                if error.status() >= 500 && !matches!(error, VaultError::Manifest(_)) {
                    return Err(error);
                }
                self.note_not_adopted(server, &object, &error, now).await?;
            }
        }
        progress.settled = true;
        Ok(())
    }

    async fn adopt(&self, server: ServerId, object: &str) -> Result<(), VaultError> {
        let Some(manifest) = self.read_point_manifest(object).await? else { return Ok(()) };
        let (history, newest) = self.history(server).await?;
        let follows = manifest.previous == newest.as_ref().map(|newest| newest.point)
            && manifest.server.server == server
            && self.names.point(server, manifest.number, manifest.seal.point) == object;
        if !follows {
            return Err(VaultError::Invalid("it does not follow the newest point of the catalog".into()));
        }
        let commit = commit_of(&manifest)?;
        commit_rules::check(&history, &commit)?;
        self.check_stored(&commit, manifest.committed).await?;
        self.catalog.insert_point(&point_row(&manifest), &manifest.files, manifest.previous).await?;
        tracing::info!(%server, point = %manifest.seal.point, "adopted a point whose commit was interrupted");
        self.changed();
        Ok(())
    }

    async fn note_not_adopted(
        &self,
        server: ServerId,
        object: &str,
        error: &VaultError,
        now: Timestamp,
    ) -> Result<(), VaultError> {
        tracing::warn!(%server, object, %error, "a manifest that the catalog does not have was not adopted");
        self.note(Event {
            time: now,
            severity: Severity::Critical,
            code: "manifest_not_adopted".into(),
            server: Some(server),
            disk: None,
            message: format!("The manifest {object} lies in the store but not in the catalog: {error}."),
            next_step: "If the catalog was put back from a backup, make it anew from the store with: \
                        lifeboat vault rebuild-catalog"
                .into(),
        })
        .await
    }

    async fn history(&self, server: ServerId) -> Result<(History, Option<Newest>), VaultError> {
        if self.catalog.server(server).await?.is_none() {
            return Err(CommitRefusal::ServerUnknown(server).into());
        }
        let newest = self.catalog.newest(server).await?;
        let epochs = self.catalog.committed_epochs(server).await?;
        let removed = |disk: &DiskRow| if disk.removed { Removed::Yes } else { Removed::No };
        let known = self.catalog.disks(server).await?;
        let history = History {
            newest: newest.as_ref().map(|newest| NewestPoint {
                point: newest.point,
                disks: newest.disks.iter().copied().collect::<BTreeSet<_>>(),
            }),
            epochs: epochs.into_iter().map(|(disk, (_, row))| (disk, row.epoch)).collect(),
            known: known.iter().map(|disk| (disk.disk, removed(disk))).collect::<BTreeMap<_, _>>(),
        };
        Ok((history, newest))
    }

    /// The files of a commit as they are stored.
    async fn check_stored(
        &self,
        commit: &CommitPoint,
        now: Timestamp,
    ) -> Result<Vec<StoredFile>, VaultError> {
        let uploads = self.catalog.uploads(commit.server).await?;
        // Collected first, so that the futures borrow nothing from a closure.
        let looked_for: Vec<_> =
            commit.files.iter().map(|file| self.check_file(commit.server, file, &uploads, now)).collect();
        let mut files: Vec<StoredFile> =
            stream::iter(looked_for).buffer_unordered(LOOKUPS).try_collect().await?;
        files.sort_unstable();
        Ok(files)
    }

    async fn check_file(
        &self,
        server: ServerId,
        file: &FileDescription,
        uploads: &BTreeMap<String, UploadRow>,
        now: Timestamp,
    ) -> Result<StoredFile, VaultError> {
        let object = self.names.file(server, file.disk, file.epoch, file.part, &file.digest);
        let (disk, epoch, part) = (file.disk, file.epoch, file.part);
        let known = uploads.get(&object).map(|upload| (upload.bytes, upload.digest));
        let size = self.store.size(&object).await?;
        let is_as_received = known.is_some_and(|(bytes, _)| size == Some(bytes));
        // Without a note of its upload (it was killed before the note, or came past the vault) the
        // object itself must tell.
        let found = match known {
            Some(known) if is_as_received && known == (file.bytes, file.digest) => Found::ThisFile,
            Some(_) if is_as_received => Found::AnotherFile,
            _ if size.is_none() => Found::Nothing,
            _ => self.look_into(server, file, &object).await?,
        };
        match found {
            Found::Nothing => return Err(CommitRefusal::FileMissing { disk, epoch, part }.into()),
            Found::AnotherFile => return Err(CommitRefusal::FileDiffers { disk, epoch, part }.into()),
            Found::ThisFile => {}
        }
        let (bytes, digest) = (file.bytes, file.digest);
        if !is_as_received {
            self.catalog.put_upload(server, &object, &UploadRow { bytes, digest, stored: now }).await?;
        }
        Ok(StoredFile {
            disk,
            first_epoch: epoch,
            last_epoch: epoch,
            part,
            object,
            bytes,
            digest,
            plain_bytes: file.plain_bytes,
        })
    }

    /// Reads an object whole to know whether it is the file.
    async fn look_into(
        &self,
        server: ServerId,
        file: &FileDescription,
        object: &str,
    ) -> Result<Found, VaultError> {
        let Some(verified) = self.store.verify(object).await? else { return Ok(Found::Nothing) };
        let keys = self.key_ids(server, file.disk).await?;
        match verified.and_then(|verified| check_file(&verified, self.id(), server, file, &keys)) {
            Ok(()) => Ok(Found::ThisFile),
            Err(fault) => {
                tracing::warn!(object, %fault, "a stored file is not what it should be");
                Ok(Found::AnotherFile)
            }
        }
    }

    /// Writes a point's manifest.
    ///
    /// With [`WriteMode::New`] there may be one already only in one case: it was refused when it
    /// should have been adopted. It is replaced then, as the point's content is known better now.
    pub(crate) async fn write_point_manifest(
        &self,
        manifest: &PointManifest,
        mode: WriteMode,
    ) -> Result<(), VaultError> {
        let server = manifest.server.server;
        let object = self.names.point(server, manifest.number, manifest.seal.point);
        let bytes = manifest::encode(&self.manifest_key, &object, manifest)?;
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(VaultError::Invalid(format!(
                "a point with {} files is more than a manifest can hold; send larger parts",
                manifest.files.len()
            )));
        }
        if mode == WriteMode::New && self.store.create(&object, bytes.clone()).await? == Created::New {
            return Ok(());
        }
        Ok(self.store.replace(&object, bytes).await?)
    }

    /// Reads a point's manifest; none when there is none.
    ///
    /// # Errors
    /// When it is not what this vault wrote, or the store fails.
    pub async fn read_point_manifest(&self, object: &str) -> Result<Option<PointManifest>, VaultError> {
        let Some(bytes) = self.store.read(object, MANIFEST_BYTES_MAX).await? else { return Ok(None) };
        Ok(Some(manifest::decode(&self.manifest_key, object, &bytes)?))
    }

    /// Writes anew the manifest of a committed point, with other files: what retention does before
    /// it changes the catalog.
    ///
    /// # Errors
    /// When the manifest is missing or refused, or the store fails.
    pub async fn replace_point_files(
        &self,
        point: &PointRow,
        previous: Option<PointId>,
        files: Vec<StoredFile>,
    ) -> Result<(), VaultError> {
        let object = self.names.point(point.server, point.number, point.id);
        let manifest = self.read_point_manifest(&object).await?;
        let mut manifest = manifest.ok_or_else(|| manifest::ManifestError::Content {
            object,
            why: "it is missing, though the catalog has its point".into(),
        })?;
        manifest.files = files;
        manifest.previous = previous;
        self.write_point_manifest(&manifest, WriteMode::Replace).await
    }
}

/// Shows in the server's RPO that a point is being committed, until it is dropped.
struct Committing<'a> {
    vault: &'a Vault,
    server: ServerId,
}

impl<'a> Committing<'a> {
    fn begin(vault: &'a Vault, server: ServerId, time: Timestamp) -> Self {
        vault.live().committing(server, time);
        Self { vault, server }
    }
}

impl Drop for Committing<'_> {
    fn drop(&mut self) {
        self.vault.live().committed(self.server);
    }
}

/// The id of a point whose commit goes on, until it is dropped. Two servers have two locks, and the
/// second must not have written a manifest by the time that the catalog refuses it.
struct Reserved<'a> {
    vault: &'a Vault,
    point: PointId,
}

impl<'a> Reserved<'a> {
    fn take(vault: &'a Vault, point: PointId, server: ServerId) -> Result<Self, CommitRefusal> {
        match vault.points_in_commit().entry(point) {
            Entry::Occupied(other) => Err(CommitRefusal::PointTaken { point, owner: *other.get() }),
            Entry::Vacant(free) => {
                free.insert(server);
                Ok(Self { vault, point })
            }
        }
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.vault.points_in_commit().remove(&self.point);
    }
}

/// What lies under a file's name in the store.
enum Found {
    Nothing,
    ThisFile,
    AnotherFile,
}

/// Whether a manifest may be there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteMode {
    New,
    Replace,
}

/// What tells a repeated commit from another one. The process server's own times are left out:
/// after a restart it may know them less well.
fn commit_digest(commit: &CommitPoint) -> Result<Digest, VaultError> {
    let (mut seal, mut files) = (commit.seal.clone(), commit.files.clone());
    seal.disks.sort_unstable_by_key(|disk| disk.disk);
    files.sort_unstable_by_key(|file| (file.disk, file.epoch, file.part));
    let content: (ServerId, SealPoint, Vec<FileDescription>) = (commit.server, seal, files);
    let bytes = serde_json::to_vec(&content).map_err(|error| VaultError::Invalid(error.to_string()))?;
    Ok(Digest::of(&bytes))
}

/// The commit that a manifest tells of.
fn commit_of(manifest: &PointManifest) -> Result<CommitPoint, VaultError> {
    if manifest.files.iter().any(|file| file.first_epoch != file.last_epoch) {
        return Err(VaultError::Invalid("its files were merged, so its commit is long over".into()));
    }
    let files = manifest.files.iter().map(|file| FileDescription {
        disk: file.disk,
        epoch: file.last_epoch,
        part: file.part,
        bytes: file.bytes,
        digest: file.digest,
        plain_bytes: file.plain_bytes,
    });
    Ok(CommitPoint {
        server: manifest.server.server,
        seal: manifest.seal.clone(),
        files: files.collect(),
        sealed_at: manifest.sealed,
        uploaded_at: manifest.uploaded,
    })
}

/// The catalog's row of the point that a manifest tells of.
pub(crate) fn point_row(manifest: &PointManifest) -> PointRow {
    let seal = &manifest.seal;
    let mut disks: Vec<PointDiskRow> = seal
        .disks
        .iter()
        .map(|disk| PointDiskRow {
            disk: disk.disk,
            epoch: disk.epoch,
            bytes: disk.bytes,
            files: manifest.files.iter().filter(|file| file.disk == disk.disk).count() as u64,
        })
        .collect();
    disks.sort_unstable_by_key(|disk| disk.disk);
    PointRow {
        id: seal.point,
        server: manifest.server.server,
        number: manifest.number,
        time: seal.time,
        kind: seal.kind,
        capture: seal.capture.clone(),
        sealed: manifest.sealed,
        uploaded: manifest.uploaded,
        committed: manifest.committed,
        commit_digest: manifest.commit_digest,
        disks,
        bytes: manifest.files.iter().map(|file| file.bytes).sum(),
    }
}
