//! What the agents reported last.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_model::ServerId;
use lifeboat_wire::agent::AgentReport;

/// An agent that was not heard of for so long is silent.
const SILENT_AFTER: Duration = Duration::from_secs(30);

/// The newest report of each agent, without its events.
#[derive(Default)]
pub(crate) struct Agents {
    seen: Mutex<BTreeMap<ServerId, Seen>>,
}

struct Seen {
    report: AgentReport,
    heard: Timestamp,
    heard_at: Duration,
}

/// What is known of one agent.
pub(crate) struct AgentSeen {
    /// None while it is silent.
    pub report: Option<AgentReport>,
    pub heard: Timestamp,
}

impl Agents {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServerId, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a report, without its events. True when the way of capture or a trouble has changed.
    pub fn heard(&self, server: ServerId, report: AgentReport, now: Duration, wall: Timestamp) -> bool {
        let new = Seen { report, heard: wall, heard_at: now };
        let troubles = |seen: &Seen| {
            seen.report.disks.iter().map(|disk| (disk.disk, disk.trouble.clone())).collect::<Vec<_>>()
        };
        let mut seen = self.lock();
        let changed = seen
            .get(&server)
            .is_none_or(|old| old.report.capture != new.report.capture || troubles(old) != troubles(&new));
        seen.insert(server, new);
        changed
    }

    /// Everything known, by server.
    pub fn all(&self, now: Duration) -> BTreeMap<ServerId, AgentSeen> {
        let seen = self.lock();
        let known = seen.iter().map(|(server, seen)| {
            let silent = now.saturating_sub(seen.heard_at) > SILENT_AFTER;
            let report = (!silent).then(|| seen.report.clone());
            (*server, AgentSeen { report, heard: seen.heard })
        });
        known.collect()
    }
}
