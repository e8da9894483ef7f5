//! What the agents are to do, as the vault said last.
//!
//! The last word is kept on disk, so that a restart while the vault is away changes nothing: above
//! all, a server that was fenced stays fenced.

use std::path::PathBuf;
use std::time::Duration;

use lifeboat_model::{Digest, ReplicationPolicy, ServerId};
use lifeboat_trust::{Revocations, Serial};
use lifeboat_wire::agent::Assignment;
use lifeboat_wire::process_server::{Assignments, SpoolState};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use crate::refusal::Refusal;
use crate::state_dir::{StateError, read_checked, write_checked};

/// What is kept of the vault's words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct VaultWords {
    /// None before the first time.
    assignments: Option<Assignments>,
    revoked: Vec<String>,
}

/// What the agents are to do.
pub(crate) struct AssignmentDesk {
    path: PathBuf,
    words: watch::Sender<VaultWords>,
    spool: watch::Sender<SpoolState>,
    throttle_bytes_per_second: u64,
    revocations: Revocations,
    writing: Mutex<()>,
}

impl AssignmentDesk {
    /// Takes up the last words.
    pub fn open(
        path: PathBuf,
        throttle_bytes_per_second: u64,
        revocations: Revocations,
    ) -> Result<Self, StateError> {
        let words: VaultWords = if path.exists() { read_checked(&path)? } else { VaultWords::default() };
        revoke(&revocations, &words.revoked);
        Ok(Self {
            path,
            words: watch::channel(words).0,
            spool: watch::channel(SpoolState::Good).0,
            throttle_bytes_per_second,
            revocations,
            writing: Mutex::new(()),
        })
    }

    /// The revision of the vault's assignments that is known.
    pub fn seen(&self) -> Option<u64> {
        self.words.borrow().assignments.as_ref().map(|assignments| assignments.revision)
    }

    /// Takes new assignments.
    pub async fn assign(&self, assignments: Assignments) -> Result<(), StateError> {
        self.change(|words| words.assignments = Some(assignments)).await
    }

    /// Takes the list of revoked certificates.
    pub async fn revoke(&self, revoked: Vec<String>) -> Result<(), StateError> {
        revoke(&self.revocations, &revoked);
        self.change(|words| words.revoked = revoked).await
    }

    async fn change(&self, change: impl FnOnce(&mut VaultWords)) -> Result<(), StateError> {
        let _writing = self.writing.lock().await;
        let mut words = self.words.borrow().clone();
        change(&mut words);
        if words == *self.words.borrow() {
            return Ok(());
        }
        // What holds must hold now, also if it cannot be written.
        self.words.send_replace(words.clone());
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || write_checked(&path, &words)).await;
        written.unwrap_or(Ok(()))
    }

    /// Says how full the spool is.
    pub fn spool_is(&self, state: SpoolState) {
        self.spool.send_if_modified(|old| std::mem::replace(old, state) != state);
    }

    /// What one agent is to do now.
    pub fn of(&self, server: ServerId) -> Assignment {
        let words = self.words.borrow();
        let throttled = matches!(*self.spool.borrow(), SpoolState::Throttling | SpoolState::Full);
        let throttle = throttled.then_some(self.throttle_bytes_per_second);
        with_revision(assignment(words.assignments.as_ref(), server), throttle)
    }

    /// The same, as soon as it differs from revision `seen`, and at the latest after `wait`.
    pub async fn wait_for(&self, server: ServerId, seen: Option<u64>, wait: Duration) -> Assignment {
        let deadline = tokio::time::Instant::now() + wait;
        let (mut words, mut spool) = (self.words.subscribe(), self.spool.subscribe());
        loop {
            words.mark_unchanged();
            spool.mark_unchanged();
            let now = self.of(server);
            if seen != Some(now.revision) {
                return now;
            }
            tokio::select! {
                _ = words.changed() => {}
                _ = spool.changed() => {}
                () = tokio::time::sleep_until(deadline) => return now,
            }
        }
    }

    /// Refuses what a server sends that is to send nothing.
    pub fn check_replicates(&self, server: ServerId) -> Result<(), Refusal> {
        let assignment = self.of(server);
        if assignment.replicate {
            return Ok(());
        }
        let reason = assignment.reason.unwrap_or_else(|| "the vault has paused its protection".into());
        Err(Refusal::NotReplicating { reason })
    }

    /// Servers that the vault knows.
    #[cfg(test)]
    pub fn known(&self) -> usize {
        self.words.borrow().assignments.as_ref().map_or(0, |assignments| assignments.servers.len())
    }
}

/// A server that the vault does not know yet describes its disks, by which it becomes known; one that
/// may not is refused there. Before the vault was ever reached, nobody can say who is fenced.
fn assignment(assignments: Option<&Assignments>, server: ServerId) -> Assignment {
    let known = assignments.and_then(|assignments| assignments.servers.get(&server));
    let unknown = || {
        Assignment {
        revision: 0,
        policy: ReplicationPolicy::default(),
        replicate: assignments.is_some(),
        reason: assignments.is_none().then(|| {
            "the process server has not reached the vault since it was set up: check its settings and the line".into()
        }),
        commands: Vec::new(),
        committed: None,
        throttle_bytes_per_second: None,
    }
    };
    known.cloned().unwrap_or_else(unknown)
}

/// The revision is made from the content, so it says the same before and after a restart.
fn with_revision(mut assignment: Assignment, throttle: Option<u64>) -> Assignment {
    assignment.throttle_bytes_per_second =
        [assignment.throttle_bytes_per_second, throttle].into_iter().flatten().min();
    assignment.revision = 0;
    let content = serde_json::to_vec(&assignment).unwrap_or_default();
    let mut first = [0; 8];
    first.copy_from_slice(&Digest::of(&content).0[..8]);
    // Not more than 53 bits, which every reader of JSON keeps.
    assignment.revision = u64::from_le_bytes(first) >> 11;
    assignment
}

fn revoke(revocations: &Revocations, revoked: &[String]) {
    let mut serials: Vec<Serial> = Vec::new();
    for text in revoked {
        match text.parse() {
            Ok(serial) => serials.push(serial),
            Err(error) => tracing::error!("the vault revoked a certificate that cannot be known: {error}"),
        }
    }
    revocations.replace(serials);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn assignments(revision: u64, replicate: bool) -> Assignments {
        let one = Assignment {
            revision: 1,
            policy: ReplicationPolicy::default(),
            replicate,
            reason: (!replicate).then(|| "it was failed over".to_owned()),
            commands: Vec::new(),
            committed: None,
            throttle_bytes_per_second: None,
        };
        Assignments { revision, servers: BTreeMap::from([(ServerId::new(1), one)]) }
    }

    fn open(dir: &std::path::Path) -> AssignmentDesk {
        AssignmentDesk::open(dir.join("vault.json"), 1000, Revocations::new()).unwrap()
    }

    #[tokio::test]
    async fn nothing_is_sent_before_the_vault_was_reached_and_a_fence_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let desk = open(dir.path());
        let error = desk.check_replicates(ServerId::new(1)).unwrap_err();
        assert!(error.to_string().contains("not reached the vault"), "{error}");
        desk.assign(assignments(7, false)).await.unwrap();
        assert!(desk.check_replicates(ServerId::new(2)).is_ok(), "a new server becomes known by sending");
        let before = desk.of(ServerId::new(1));
        drop(desk);
        let desk = open(dir.path());
        assert_eq!(desk.seen(), Some(7));
        assert_eq!(desk.known(), 1);
        assert_eq!(desk.of(ServerId::new(1)), before);
        let error = desk.check_replicates(ServerId::new(1)).unwrap_err();
        assert!(error.to_string().contains("it was failed over"), "{error}");
    }

    #[tokio::test]
    async fn a_wait_ends_with_a_change_of_this_servers_assignment_or_with_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let desk = std::sync::Arc::new(open(dir.path()));
        desk.assign(assignments(1, true)).await.unwrap();
        let server = ServerId::new(1);
        let first = desk.wait_for(server, None, Duration::from_secs(60)).await;
        assert_eq!(first.throttle_bytes_per_second, None);
        let waiting = {
            let (desk, seen) = (std::sync::Arc::clone(&desk), Some(first.revision));
            tokio::spawn(async move { desk.wait_for(server, seen, Duration::from_secs(60)).await })
        };
        tokio::task::yield_now().await;
        desk.spool_is(SpoolState::Throttling);
        let second = waiting.await.unwrap();
        assert_eq!(second.throttle_bytes_per_second, Some(1000));
        assert_ne!(second.revision, first.revision);
        let same = desk.wait_for(server, Some(second.revision), Duration::from_millis(1)).await;
        assert_eq!(same, second);
    }

    #[tokio::test]
    async fn revoked_certificates_stay_revoked_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let serial = "40000000000000000000000000000001";
        let desk = open(dir.path());
        desk.revoke(vec![serial.to_owned(), "rubbish".to_owned()]).await.unwrap();
        let revocations = Revocations::new();
        AssignmentDesk::open(dir.path().join("vault.json"), 1000, revocations.clone()).unwrap();
        assert!(revocations.contains(&serial.parse().unwrap()));
    }
}
