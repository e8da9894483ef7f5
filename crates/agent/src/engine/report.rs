//! What the engine says about itself.

use jiff::Timestamp;
use lifeboat_wire::agent::{CaptureMode, DiskReport};

use super::Engine;
use super::disk::Member;
use crate::record::Sync;

/// The engine's part of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// How the server is being captured.
    pub capture: CaptureMode,
    /// The time T of the newest captured point.
    pub captured: Option<Timestamp>,
    /// All protected disks; what waits on them is not known here.
    pub disks: Vec<DiskReport>,
}

impl Engine {
    /// What to report now.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary { capture: self.mode(), captured: self.record.last_point, disks: self.disk_reports() }
    }

    fn mode(&self) -> CaptureMode {
        if !self.wanted_known || self.assignment.is_none() && self.reach.error.is_none() {
            return CaptureMode::Starting;
        }
        let off = self.assignment.as_ref().is_some_and(|assignment| !assignment.replicate);
        let hindered = self.save_error.is_some() || self.disks.is_empty();
        let trouble = self.disks.values().any(|disk| disk.trouble.is_some() || disk.unreadable.is_some());
        if (off || hindered || trouble)
            && let Some(reason) = self.no_points_because()
        {
            return CaptureMode::Stalled { reason };
        }
        if self.is_at_rest() {
            let reason = "The server stands down for a planned failover: its services are stopped, its file systems \
                          are held, and its last point is taken.";
            return CaptureMode::Stalled { reason: reason.into() };
        }
        if let Some(error) = self.reach.error.as_ref().filter(|_| self.reach.told) {
            let reason = format!("Nothing can be sent: {error}. Look at the process server and the network.");
            return CaptureMode::Stalled { reason };
        }
        let protected = || self.disks.keys().filter_map(|number| self.record.disks.get(number));
        let resync = protected().find_map(|disk| match &disk.sync {
            Sync::Resync { reason, .. } => Some(reason.clone()),
            _ => None,
        });
        if let Some(reason) = resync {
            return CaptureMode::Resync { reason };
        }
        if self.no_points_because().is_some() {
            let copying = protected().any(|disk| matches!(disk.sync, Sync::Copy { .. }));
            return if copying { CaptureMode::InitialCopy } else { CaptureMode::Starting };
        }
        match self.schedule.quiesced_because() {
            Some(reason) => CaptureMode::Quiesced { reason: reason.to_owned() },
            None => CaptureMode::Optimistic,
        }
    }

    fn disk_reports(&self) -> Vec<DiskReport> {
        self.disks
            .iter()
            .filter(|(_, disk)| !disk.unwanted || disk.member != Member::Out)
            .filter_map(|(number, disk)| {
                let record = self.record.disks.get(number)?;
                let unreadable = disk.unreadable.as_ref();
                let unreadable = unreadable.map(|place| {
                    format!("It cannot be read at {place}: replace the disk or mend the place.")
                });
                Some(DiskReport {
                    disk: *number,
                    path: record.path.clone(),
                    bytes: disk.opened().map_or(0, |opened| opened.bytes),
                    waiting_bytes: 0,
                    copy: self.progress_of(*number),
                    trouble: disk.trouble.clone().or(unreadable),
                })
            })
            .collect()
    }
}
