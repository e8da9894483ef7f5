//! Copying the disks of a machine that took over to the recovery site's own storage, while it runs.
//!
//! It begins when an operator asks for it, or by itself as a job that follows a commit. Until then a change of
//! point would throw the copies away.

use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use lifeboat_compute::{DiskFormat, DiskHydration, HydrationState, HydrationTarget};
use lifeboat_model::{DiskNumber, JobId};

use super::views::free_bytes;
use super::{JobError, JobRequest, Jobs, Next};
use crate::catalog::{JobRow, RecoveryRow};
use crate::error::VaultError;

/// Time between two looks at the copies.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Looks between two notes of how far they are.
const LOOKS_PER_NOTE: u32 = 6;
/// Room that copies leave on their file system: the machine's own writes may go there as well.
const KEPT_FREE_BYTES: u64 = 256 << 20;

/// How the disks of a machine are copied by themselves once its failover is final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hydration {
    /// How the copies are kept.
    pub format: DiskFormat,
    /// At most so many bytes a second for each disk; as fast as it goes if none.
    pub bytes_per_second: Option<u64>,
}

impl Jobs {
    /// Decides what becomes of the disks of a failover that is final, and says so in one sentence.
    pub(super) async fn after_commit(
        &self,
        job: &mut JobRow,
        recovery: &RecoveryRow,
    ) -> Result<String, JobError> {
        if !self.volumes.is_open(recovery.volume).await? {
            return Ok("Its machine runs on copies of its disks at this site already.".to_owned());
        }
        if let Some(why) = self.provider.why_no_copies() {
            return Ok(format!("Its machine goes on with the vault's volume: {why}."));
        }
        let wanted = *self.hydration.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Hydration { format, bytes_per_second }) = wanted else {
            return Ok(format!(
                "Its machine goes on with the vault's volume until its disks are copied to this site with `lifeboat \
                 machine hydrate {}`.",
                recovery.spec.name
            ));
        };
        let id = self.new_id()?;
        job.work.next = Some(Next { job: id, request: JobRequest::Hydrate { format, bytes_per_second } });
        Ok(format!(
            "Job {id} copies its disks to this site now, while its machine runs; follow it with `lifeboat job show {id}`."
        ))
    }

    /// Copies all disks, and waits until the machine runs on the copies.
    pub(super) async fn copy_disks(&self, job: &mut JobRow) -> Result<Option<String>, JobError> {
        let JobRequest::Hydrate { format, bytes_per_second } = job.request else { return Ok(None) };
        let recovery = self.vault.catalog().recovery(job.server).await?.ok_or_else(no_machine)?;
        let room = self.room_for_copies(&recovery, format)?;
        self.check_room_for_copies(&recovery, &room, job.id).await?;
        let copying = async {
            for disk in &recovery.spec.disks {
                let path = self.provider.place_of_copy(recovery.machine, disk.number, format)?;
                let target = HydrationTarget { path, format, bytes_per_second };
                self.provider.hydrate(recovery.machine, disk.number, &target).await?;
            }
            self.until_copied(job, &recovery, &room).await
        };
        let copied = copying.await;
        // Nothing is copied behind a job that has failed.
        if copied.is_err()
            && let Err(error) = self.end_copies(job).await
        {
            tracing::warn!(job = %job.id, %error, "copies of disks could not be ended");
        }
        copied
    }

    async fn until_copied(
        &self,
        job: &mut JobRow,
        recovery: &RecoveryRow,
        room: &Path,
    ) -> Result<Option<String>, JobError> {
        let disks = &recovery.spec.disks;
        for look in 0_u32.. {
            let copies = self.provider.hydration(recovery.machine).await?;
            if let Some((disk, why)) = failed(&copies) {
                return Err(JobError::NotCopied(format!(
                    "disk {disk} was not copied: {why}; the machine goes on with its volume"
                )));
            }
            // What is started anew goes on with what was copied to its end, and forgets the rest.
            if let Some(disk) = disks.iter().find(|disk| copies.iter().all(|copy| copy.disk != disk.number)) {
                return Err(JobError::NotCopied(format!(
                    "disk {} was not copied: the machine was started anew meanwhile; it goes on with its volume, and \
                     `lifeboat job retry {}` copies again",
                    disk.number, job.id
                )));
            }
            let local = copies.iter().filter(|copy| copy.state == HydrationState::Local).count();
            if local == disks.len() {
                break;
            }
            if free_bytes(room).is_some_and(|free| free < KEPT_FREE_BYTES / 2) {
                let what = "the disks were not copied to their end, since";
                return Err(no_room(what, room, free_bytes(room), job.id));
            }
            if look.is_multiple_of(LOOKS_PER_NOTE) {
                note(job, progress(&copies));
                self.store(job).await?;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(Some(format!("the machine runs on copies of {} disks", disks.len())))
    }

    /// The directory in which the copies of a machine's disks are kept.
    fn room_for_copies(&self, recovery: &RecoveryRow, format: DiskFormat) -> Result<PathBuf, JobError> {
        let Some(disk) = recovery.spec.disks.first() else { return Ok(PathBuf::new()) };
        let path = self.provider.place_of_copy(recovery.machine, disk.number, format)?;
        Ok(path.parent().map(Path::to_owned).unwrap_or_default())
    }

    /// Refuses copies that would fill their file system. Those that are begun already have their part of it.
    async fn check_room_for_copies(
        &self,
        recovery: &RecoveryRow,
        room: &Path,
        job: JobId,
    ) -> Result<(), JobError> {
        let begun = self.provider.hydration(recovery.machine).await?;
        let is_begun = |disk: &DiskNumber| {
            begun
                .iter()
                .any(|copy| copy.disk == *disk && !matches!(copy.state, HydrationState::Failed { .. }))
        };
        let data = self.volumes.data_bytes(recovery.volume).await;
        let needed: u64 = data.iter().filter(|(disk, _)| !is_begun(disk)).map(|(_, bytes)| bytes).sum();
        match free_bytes(room) {
            Some(free) if needed > 0 && needed.saturating_add(KEPT_FREE_BYTES) > free => {
                let what = format!("the disks have {} MiB to copy, and", needed.div_ceil(1 << 20));
                Err(no_room(&what, room, Some(free), job))
            }
            _ => Ok(()),
        }
    }

    /// Lets the machine go on with its volume, as far as it has not moved already.
    pub(super) async fn end_copies(&self, job: &JobRow) -> Result<(), JobError> {
        let Some(recovery) = self.vault.catalog().recovery(job.server).await? else { return Ok(()) };
        for copy in self.provider.hydration(recovery.machine).await? {
            if copy.state != HydrationState::Local {
                self.provider.cancel_hydration(recovery.machine, copy.disk).await?;
            }
        }
        Ok(())
    }

    /// Closes the volume, since nothing reads it any more.
    pub(super) async fn release_volume(&self, job: &JobRow) -> Result<Option<String>, JobError> {
        if let Some((_, volume)) = job.work.former {
            self.volumes.close_as(volume).await?;
        }
        Ok(None)
    }
}

/// `what` begins the sentence.
fn no_room(what: &str, room: &Path, free: Option<u64>, job: JobId) -> JobError {
    JobError::NotCopied(format!(
        "{what} {} has {} MiB free, of which {} MiB stay free; the machine goes on with its volume: make room there, \
         then run `lifeboat job retry {job}`",
        room.display(),
        free.unwrap_or(0) >> 20,
        KEPT_FREE_BYTES >> 20
    ))
}

fn failed(copies: &[DiskHydration]) -> Option<(DiskNumber, &str)> {
    copies.iter().find_map(|copy| match &copy.state {
        HydrationState::Failed { why } => Some((copy.disk, why.as_str())),
        _ => None,
    })
}

/// Tells of the step that runs how far it is.
fn note(job: &mut JobRow, message: String) {
    let running = job.steps.iter_mut().find(|step| step.state == lifeboat_api::StepState::Running);
    if let Some(step) = running {
        step.message = Some(message);
    }
}

fn progress(copies: &[DiskHydration]) -> String {
    let of_disk = |copy: &DiskHydration| match &copy.state {
        HydrationState::Copying { done_bytes, total_bytes } => {
            format!("disk {}: {} of {} MiB", copy.disk, done_bytes >> 20, total_bytes >> 20)
        }
        HydrationState::Local => format!("disk {}: done", copy.disk),
        HydrationState::Failed { why } => format!("disk {}: {why}", copy.disk),
    };
    copies.iter().map(of_disk).collect::<Vec<_>>().join(", ")
}

/// Only for a catalog that was altered: the job began because there is one.
fn no_machine() -> VaultError {
    VaultError::Invalid("the server has no machine any more, so there is nothing to copy".to_owned())
}
