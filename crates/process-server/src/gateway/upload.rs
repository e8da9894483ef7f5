//! Files and points on their way to the vault.

use std::time::Duration;

use jiff::Timestamp;
use lifeboat_model::{PointId, ServerId};
use lifeboat_wire::event::{Event, Severity};
use lifeboat_wire::process_server::{CommitPoint, CommitReceipt};

use super::{Gateway, State, push_event, spool_damaged};
use crate::link::LinkError;
use crate::queue::{Place, ServerQueue, Upload, describe, key_of};
use crate::spool::{FileKey, SealedPoint};
use crate::state_dir::StateError;

/// The pause after the first failure to reach the vault; it doubles.
const UNREACHABLE_FIRST: Duration = Duration::from_millis(500);

/// The pause after the first refusal; it doubles.
const REFUSED_FIRST: Duration = Duration::from_secs(5);

/// An outage shorter than this is not worth an event.
const OUTAGE_WORTH_TELLING: Duration = Duration::from_secs(30);

/// Why a file was not uploaded.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The vault or the line to it.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The file in the spool is not what was written.
    #[error("{0}")]
    Damaged(String),
}

impl Gateway {
    /// The next file to upload; servers take turns. It is the caller's until
    /// [`Gateway::upload_ended`].
    #[must_use]
    pub fn next_upload(&self, now: Duration) -> Option<Upload> {
        let mut state = self.lock();
        if !state.line.is_due(now) {
            return None;
        }
        let (server, key) =
            in_turn(&state, |queue| if queue.refused.is_due(now) { queue.next_upload() } else { None })?;
        state.last_served = Some(server);
        let file = state.servers.get_mut(&server)?.files.get_mut(&key)?;
        file.place = Place::Uploading;
        let description = describe(key, &file.facts?);
        let path = self.spool.file_path(server, key);
        Some(Upload { server, file: description, path, checked: file.checked })
    }

    /// Takes back what [`Gateway::next_upload`] gave, stored or not.
    pub fn upload_ended(
        &self,
        upload: &Upload,
        result: &Result<(), UploadError>,
        now: Duration,
        wall: Timestamp,
    ) {
        let mut state = self.lock();
        let key = key_of(&upload.file);
        if let Some(queue) = state.servers.get_mut(&upload.server)
            && let Some(file) = queue.files.get_mut(&key)
            && file.place == Place::Uploading
        {
            file.place = if result.is_ok() { Place::Stored } else { Place::Waiting };
            file.stored_at = result.is_ok().then_some(wall);
            file.checked |= result.is_ok();
        }
        match result {
            Ok(()) => self.went_well(&mut state, upload.server, now, wall),
            Err(UploadError::Link(error)) => {
                let what = format!("file {}-{} of disk {}", key.epoch, key.part, key.disk);
                self.went_wrong(&mut state, upload.server, &what, error, now, wall);
            }
            Err(UploadError::Damaged(why)) => {
                let State { servers, events, .. } = &mut *state;
                if let Some(queue) = servers.get_mut(&upload.server) {
                    queue.mark_damaged(key, why);
                    push_event(events, spool_damaged(upload.server, why, wall));
                }
            }
        }
        drop(state);
        self.changed();
    }

    /// The next point to commit. It is the caller's until [`Gateway::commit_ended`].
    #[must_use]
    pub fn next_commit(&self, now: Duration) -> Option<CommitPoint> {
        let mut state = self.lock();
        if !state.line.is_due(now) {
            return None;
        }
        let due = |queue: &ServerQueue| queue.refused.is_due(now).then(|| queue.next_commit())?;
        let (server, point) = in_turn(&state, due)?;
        state.servers.get_mut(&server)?.committing = true;
        Some(point)
    }

    /// Takes back what [`Gateway::next_commit`] gave. After the vault's receipt the point and its files
    /// are removed here.
    ///
    /// # Errors
    /// When the receipt cannot be written down. The point stays and is committed again, which the
    /// vault answers the same.
    pub fn commit_ended(
        &self,
        commit: &CommitPoint,
        result: &Result<CommitReceipt, LinkError>,
        now: Duration,
        wall: Timestamp,
    ) -> Result<(), StateError> {
        let server = commit.server;
        let done = match result {
            Ok(_) => self.forget_committed(commit),
            Err(error) => {
                let mut state = self.lock();
                let what = format!("point {}", commit.seal.point);
                self.went_wrong(&mut state, server, &what, error, now, wall);
                if let Some(queue) = state.servers.get_mut(&server)
                    && !error.retry_helps()
                {
                    // Perhaps a file is missing in the store: have each of them asked for again.
                    offer_again(queue, commit);
                }
                Ok(())
            }
        };
        let mut state = self.lock();
        if result.is_ok() {
            self.went_well(&mut state, server, now, wall);
        }
        if let Some(queue) = state.servers.get_mut(&server) {
            queue.committing = false;
            queue.commits += u64::from(result.is_ok());
            if done.is_err() {
                queue.refused.failed(now, REFUSED_FIRST, self.pauses.refused_max);
            }
        }
        drop(state);
        self.changed();
        done
    }

    /// In this order: remember the commit, remove the point, forget it, remove its files.
    fn forget_committed(&self, commit: &CommitPoint) -> Result<(), StateError> {
        let server = commit.server;
        let point: Option<SealedPoint> = {
            let remembering = self.remembering.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let (known, point) = {
                let mut state = self.lock();
                let Some(queue) = state.servers.get_mut(&server) else { return Ok(()) };
                note_commit(queue, commit.seal.point);
                let front = queue.points.front().map(|point| point.sealed.clone());
                (queue.known(), front.filter(|point| point.seal.point == commit.seal.point))
            };
            self.spool.write_server(server, &known)?;
            drop(remembering);
            point
        };
        let Some(point) = point else { return Ok(()) };
        self.spool.remove_point(&point)?;
        let keys: Vec<FileKey> = {
            let mut state = self.lock();
            let Some(queue) = state.servers.get_mut(&server) else { return Ok(()) };
            let keys = queue.point_files(&point).map(|(key, _)| *key).collect::<Vec<_>>();
            for key in &keys {
                queue.files.remove(key);
            }
            queue.points.pop_front();
            keys
        };
        // What cannot be removed now, the next start removes.
        if let Err(error) = self.spool.remove_files(server, keys) {
            tracing::warn!(%server, "files of a committed point stay in the spool until the next start: {error}");
        }
        Ok(())
    }

    /// Gives room: up to `files_max` files that the vault's store has are kept there only. For when the
    /// spool runs low, so that an initial copy may be larger than the spool.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn keep_stored_only(&self, files_max: usize) -> Result<usize, StateError> {
        let candidates: Vec<_> = {
            let state = self.lock();
            let stored = state.servers.iter().flat_map(|(server, queue)| {
                let files = queue.files.iter().filter(|(_, file)| file.place == Place::Stored);
                files.filter_map(|(key, file)| Some((*server, *key, file.facts?)))
            });
            stored.take(files_max).collect()
        };
        let count = candidates.len();
        for (server, key, facts) in candidates {
            {
                // Mark first: a commit that ends now removes both.
                let mut state = self.lock();
                let file = state.servers.get_mut(&server).and_then(|queue| queue.files.get_mut(&key));
                match file.filter(|file| file.place == Place::Stored) {
                    Some(file) => file.place = Place::StoredOnly,
                    None => continue,
                }
            }
            self.spool.keep_stored_only(server, key, &facts)?;
            let committed =
                self.lock().servers.get(&server).is_none_or(|queue| !queue.files.contains_key(&key));
            if committed {
                self.spool.remove_files(server, [key])?;
            }
        }
        Ok(count)
    }

    /// When something that failed is due again, if anything is.
    #[must_use]
    pub fn next_due(&self, now: Duration) -> Option<Duration> {
        let state = self.lock();
        let servers = state.servers.values().filter_map(|queue| queue.refused.due_at(now));
        servers.chain(state.line.due_at(now)).min()
    }

    fn went_well(&self, state: &mut State, server: ServerId, now: Duration, wall: Timestamp) {
        state.line.succeeded();
        if let Some(outage) = state.line_lost_at.take().map(|lost_at| now.saturating_sub(lost_at))
            && outage >= OUTAGE_WORTH_TELLING
        {
            push_event(&mut state.events, reached_again(outage, wall));
        }
        if let Some(queue) = state.servers.get_mut(&server) {
            queue.refused.succeeded();
            queue.trouble = None;
        }
        // The line was everybody's trouble.
        for queue in state.servers.values_mut().filter(|queue| queue.refused.due_at(Duration::ZERO).is_none())
        {
            queue.trouble = None;
        }
    }

    fn went_wrong(
        &self,
        state: &mut State,
        server: ServerId,
        what: &str,
        error: &LinkError,
        now: Duration,
        wall: Timestamp,
    ) {
        let State { servers, events, line, line_lost_at, .. } = state;
        let Some(queue) = servers.get_mut(&server) else { return };
        let sentence = format!("{what} was not taken: {error}");
        if error.retry_helps() {
            line.failed(now, UNREACHABLE_FIRST, self.pauses.unreachable_max);
            line_lost_at.get_or_insert(now);
        } else {
            if queue.refused.due_at(Duration::ZERO).is_none() {
                push_event(events, upload_refused(server, &sentence, wall));
            }
            queue.refused.failed(now, REFUSED_FIRST, self.pauses.refused_max);
        }
        tracing::warn!(%server, "{sentence}");
        queue.trouble = Some(sentence);
    }
}

/// Asks the servers one after the other, beginning after the one that was served last.
fn in_turn<T>(state: &State, pick: impl Fn(&ServerQueue) -> Option<T>) -> Option<(ServerId, T)> {
    let after = state.servers.iter().filter(|(server, _)| Some(**server) > state.last_served);
    let before = state.servers.iter().filter(|(server, _)| Some(**server) <= state.last_served);
    after.chain(before).find_map(|(server, queue)| Some((*server, pick(queue)?)))
}

fn note_commit(queue: &mut ServerQueue, point: PointId) {
    let Some(front) = queue.points.front().filter(|front| front.sealed.seal.point == point) else { return };
    for seal in &front.sealed.seal.disks {
        let Some(disk) = queue.disks.get_mut(&seal.disk) else { continue };
        let registration = &mut disk.known.registration;
        // A registration that came in the meantime may know of more.
        if registration.committed.is_none_or(|(_, epoch)| epoch <= seal.epoch) {
            registration.committed = Some((point, seal.epoch));
            registration.committed_bytes = Some(seal.bytes);
        }
    }
}

fn offer_again(queue: &mut ServerQueue, commit: &CommitPoint) {
    for file in &commit.files {
        if let Some(file) = queue.files.get_mut(&key_of(file))
            && file.place == Place::Stored
        {
            file.place = Place::Waiting;
            // Perhaps it is this one that is damaged: read all of it before it is sent again.
            file.checked = false;
        }
    }
}

fn upload_refused(server: ServerId, sentence: &str, wall: Timestamp) -> Event {
    Event {
        time: wall,
        severity: Severity::Critical,
        code: "upload_refused".into(),
        server: Some(server),
        disk: None,
        message: format!("The vault refuses changes of server {server}: {sentence}."),
        next_step: "Do what the vault's answer says. The process server keeps the changes and tries again."
            .into(),
    }
}

fn reached_again(outage: Duration, wall: Timestamp) -> Event {
    Event {
        time: wall,
        severity: Severity::Warning,
        code: "vault_reached_again".into(),
        server: None,
        disk: None,
        message: format!("The vault could not be reached for {} s. Uploading goes on now.", outage.as_secs()),
        next_step: String::new(),
    }
}
