//! What is told of volumes in the list of events.

use jiff::Timestamp;
use lifeboat_wire::event::{Event, Severity};

use super::Volumes;
use crate::catalog::VolumeRow;

impl Volumes {
    /// Notes an event. What it tells of has happened, also when it cannot be noted.
    pub(super) async fn tell(&self, event: Event) {
        if let Err(error) = self.vault.note(event).await {
            tracing::warn!(%error, "an event about a volume could not be noted");
        }
    }
}

pub(super) fn opened(row: &VolumeRow, by: &str, now: Timestamp) -> Event {
    let disks: Vec<_> = row.disks.iter().map(ToString::to_string).collect();
    let which = if disks.len() == 1 { "disk" } else { "disks" };
    let how = if row.read_only { "for reading" } else { "for reading and writing" };
    let message = format!(
        "Volume {} was opened {how} by {by}: {which} {} of point {}.",
        row.id,
        disks.join(", "),
        row.point
    );
    about(row, "volume_opened", message, now)
}

pub(super) fn closed(row: &VolumeRow, by: &str, now: Timestamp) -> Event {
    about(row, "volume_closed", format!("Volume {} was closed by {by}.", row.id), now)
}

pub(super) fn lease_ended(row: &VolumeRow, now: Timestamp) -> Event {
    let lease = row.lease.map(|lease| lease.to_string()).unwrap_or_default();
    let message =
        format!("Volume {} was closed: no client used it for {lease}, which was its lease.", row.id);
    about(row, "volume_closed", message, now)
}

fn about(row: &VolumeRow, code: &str, message: String, now: Timestamp) -> Event {
    Event {
        time: now,
        severity: Severity::Information,
        code: code.into(),
        server: Some(row.server),
        disk: None,
        message,
        next_step: String::new(),
    }
}
