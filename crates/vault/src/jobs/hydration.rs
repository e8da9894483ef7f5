//! Copying the disks of a machine that took over to the recovery site's own storage, while it runs.

use std::time::Duration;

use lifeboat_compute::{DiskHydration, HydrationState, HydrationTarget};
use lifeboat_model::DiskNumber;

use super::{JobError, JobRequest, Jobs};
use crate::catalog::JobRow;
use crate::error::VaultError;

/// Time between two looks at the copies.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Looks between two notes of how far they are.
const LOOKS_PER_NOTE: u32 = 6;

impl Jobs {
    /// Copies all disks, and waits until the machine runs on the copies.
    pub(super) async fn copy_disks(&self, job: &mut JobRow) -> Result<Option<String>, JobError> {
        let JobRequest::Hydrate { format, bytes_per_second } = job.request else { return Ok(None) };
        let recovery = self.vault.catalog().recovery(job.server).await?.ok_or_else(no_machine)?;
        let disks = &recovery.spec.disks;
        for disk in disks {
            let path = self.provider.place_of_copy(recovery.machine, disk.number, format)?;
            let target = HydrationTarget { path, format, bytes_per_second };
            self.provider.hydrate(recovery.machine, disk.number, &target).await?;
        }
        for look in 0_u32.. {
            let copies = self.provider.hydration(recovery.machine).await?;
            if let Some((disk, why)) = failed(&copies) {
                return Err(JobError::NotCopied(format!(
                    "disk {disk} was not copied: {why}; the machine goes on with its volume"
                )));
            }
            let local = copies.iter().filter(|copy| copy.state == HydrationState::Local).count();
            if local == disks.len() {
                break;
            }
            if look.is_multiple_of(LOOKS_PER_NOTE) {
                note(job, progress(&copies));
                self.store(job).await?;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(Some(format!("the machine runs on copies of {} disks", disks.len())))
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
