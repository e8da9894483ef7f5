//! What goes to the vault beside the data: reports, events, results; and what comes back.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lifeboat_model::{ByteCount, ServerId};
use lifeboat_wire::event::{Event, Severity};
use lifeboat_wire::process_server::{ProcessServerReport, ServerReport, ServerResult, SpoolState};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::agents::Agents;
use crate::assignments::AssignmentDesk;
use crate::clock::Clock;
use crate::gateway::Gateway;
use crate::link::{LinkError, VaultLink};
use crate::outbox::Outbox;
use crate::refusal::Refusal;
use crate::settings::SpoolSettings;
use crate::space::Space;

/// Time between two reports when nothing changes.
const REPORT_EVERY: Duration = Duration::from_secs(2);

/// Time between two reports when much changes.
const REPORT_PAUSE: Duration = Duration::from_millis(500);

/// The pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// Lots of events, and results, that wait for the vault.
pub(crate) const EVENT_LOTS_MAX: usize = 2000;
pub(crate) const RESULTS_MAX: usize = 1000;

/// Files that are removed at once when the spool runs low.
const RELIEF_FILES_MAX: usize = 256;

/// Carries everything but data between process server and vault.
pub(crate) struct Courier<V> {
    pub gateway: Arc<Gateway>,
    pub link: Arc<V>,
    pub agents: Arc<Agents>,
    pub desk: Arc<AssignmentDesk>,
    pub events: Arc<Outbox<Vec<Event>>>,
    pub results: Arc<Outbox<ServerResult>>,
    pub spool: SpoolSettings,
    pub clock: Clock,
    /// Asks for a report now.
    pub report_soon: Arc<Notify>,
    pub last_state: Mutex<SpoolState>,
}

impl<V: VaultLink> Courier<V> {
    /// Works until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut tasks = tokio::task::JoinSet::new();
        let courier = Arc::clone(&self);
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move { courier.send_reports().await }));
        let courier = Arc::clone(&self);
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move { courier.fetch_assignments().await }));
        let courier = Arc::clone(&self);
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move { courier.send_events().await }));
        let courier = Arc::clone(&self);
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move { courier.send_results().await }));
        tasks.spawn(stop.run_until_cancelled_owned(async move { self.watch_spool().await }));
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!("a reporting task failed: {error}");
            }
        }
    }

    async fn send_reports(&self) {
        loop {
            match self.gateway.space() {
                Ok(space) => match self.link.report(&self.report(space)).await {
                    Ok(hello) => {
                        if let Err(error) = self.desk.revoke(hello.revoked).await {
                            tracing::error!(
                                "the list of revoked certificates holds now, but not after a restart: {error}"
                            );
                        }
                    }
                    Err(error) => tracing::debug!("the vault took no report: {error}"),
                },
                Err(error) => tracing::error!("{error}"),
            }
            tokio::time::sleep(REPORT_PAUSE).await;
            tokio::select! {
                () = self.report_soon.notified() => {}
                () = tokio::time::sleep(REPORT_EVERY.saturating_sub(REPORT_PAUSE)) => {}
            }
        }
    }

    fn report(&self, space: Space) -> ProcessServerReport {
        let now = self.clock.now();
        let mut agents = self.agents.all(now);
        let servers: BTreeSet<ServerId> =
            self.gateway.servers().into_iter().chain(agents.keys().copied()).collect();
        let servers = servers.into_iter().map(|server| {
            let seen = agents.remove(&server);
            ServerReport {
                server,
                heard: seen.as_ref().map(|seen| seen.heard),
                agent: seen.and_then(|seen| seen.report),
                spool: self.gateway.spool_report(server, now),
            }
        });
        ProcessServerReport {
            time: self.clock.wall(),
            version: env!("CARGO_PKG_VERSION").into(),
            spool_total_bytes: space.total_bytes,
            spool_free_bytes: space.free_bytes,
            spool_state: space.state(&self.spool),
            servers: servers.collect(),
        }
    }

    async fn fetch_assignments(&self) {
        loop {
            match self.link.assignments(self.desk.seen()).await {
                Ok(assignments) => {
                    if let Err(error) = self.desk.assign(assignments).await {
                        tracing::error!("the vault's assignments hold now, but not after a restart: {error}");
                    }
                }
                Err(error) => {
                    tracing::debug!("the vault gave no assignments: {error}");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    async fn send_events(&self) {
        loop {
            let filled = self.events.filled.notified();
            let Some((order, events)) = self.events.front() else {
                filled.await;
                continue;
            };
            let result = self.link.events(&events).await;
            sent(&self.events, order, &result, "events").await;
        }
    }

    async fn send_results(&self) {
        loop {
            let filled = self.results.filled.notified();
            let Some((order, result)) = self.results.front() else {
                filled.await;
                continue;
            };
            let result = self.link.result(&result).await;
            sent(&self.results, order, &result, "a result").await;
        }
    }

    /// Watches the room in the spool, gives room where it can, and takes the gateway's events.
    async fn watch_spool(self: Arc<Self>) {
        let mut changes = self.gateway.subscribe();
        loop {
            changes.mark_unchanged();
            let courier = Arc::clone(&self);
            if let Err(error) = tokio::task::spawn_blocking(move || courier.look_at_spool()).await {
                tracing::error!("watching the spool failed: {error}");
            }
            tokio::select! {
                _ = changes.changed() => tokio::time::sleep(Duration::from_millis(200)).await,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    }

    fn look_at_spool(&self) {
        let mut events = self.gateway.take_events();
        match self.gateway.space() {
            Ok(space) => {
                let state = space.state(&self.spool);
                self.desk.spool_is(state);
                let mut last = self.last_state.lock().unwrap_or_else(PoisonError::into_inner);
                let before = std::mem::replace(&mut *last, state);
                drop(last);
                if before != state {
                    events.push(spool_event(before, state, space, &self.spool, self.clock));
                    self.report_soon.notify_one();
                }
                if matches!(state, SpoolState::Critical | SpoolState::Throttling | SpoolState::Full)
                    && let Err(error) = self.gateway.keep_stored_only(RELIEF_FILES_MAX)
                {
                    tracing::error!("the spool could not be relieved: {error}");
                }
            }
            Err(error) => tracing::error!("{error}"),
        }
        if !events.is_empty() {
            self.tell(events);
        }
    }

    /// Keeps events until the vault has taken them. When there is no room, the oldest that are no more
    /// than information go first.
    pub fn tell(&self, events: Vec<Event>) {
        for event in &events {
            let (code, server) = (&event.code, event.server.map(|server| server.to_string()));
            match event.severity {
                Severity::Critical => tracing::error!(code, server, "{}", event.message),
                Severity::Warning => tracing::warn!(code, server, "{}", event.message),
                Severity::Information => tracing::info!(code, server, "{}", event.message),
            }
        }
        let only_information =
            |lot: &Vec<Event>| lot.iter().all(|event| event.severity == Severity::Information);
        if let Some(order) = self.events.expendable(only_information) {
            tracing::warn!("the list of events is full: the oldest are dropped");
            if let Err(error) = self.events.remove(order) {
                tracing::error!("old events may come again after a restart: {error}");
            }
        }
        if let Err(error) = self.events.keep(events) {
            tracing::error!("events wait for the vault, but not over a restart: {error}");
        }
    }

    /// Keeps a result until the vault has taken it.
    pub fn keep_result(&self, result: ServerResult) -> Result<(), Refusal> {
        if self.results.push(result)? { Ok(()) } else { Err(Refusal::OutboxFull) }
    }
}

/// Removes what the vault took, and what it will never take.
async fn sent<T: serde::Serialize + serde::de::DeserializeOwned + Clone>(
    outbox: &Outbox<T>,
    order: u64,
    result: &Result<(), LinkError>,
    what: &str,
) {
    match result {
        Ok(()) => {}
        // 403 and the like is about us; only what is wrong with this one item goes.
        Err(LinkError::Refused { status: 400 | 404 | 409 | 410 | 422, message, .. }) => {
            tracing::error!("the vault will never take {what}, so it is dropped: {message}");
        }
        Err(error) => {
            tracing::debug!("the vault did not take {what}: {error}");
            tokio::time::sleep(RETRY_PAUSE).await;
            return;
        }
    }
    if let Err(error) = outbox.remove(order) {
        tracing::error!("{what} may be sent twice: {error}");
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

fn spool_event(
    before: SpoolState,
    state: SpoolState,
    space: Space,
    settings: &SpoolSettings,
    clock: Clock,
) -> Event {
    let (free, total) = (ByteCount(space.free_bytes), ByteCount(space.total_bytes));
    let (severity, code, what) = match state {
        SpoolState::Good => (Severity::Information, "spool_recovered", "has room again".to_owned()),
        SpoolState::Warning => {
            (Severity::Warning, "spool_low", format!("has less than {} % free", settings.warn_below_percent))
        }
        SpoolState::Critical => (
            Severity::Critical,
            "spool_critical",
            format!("has less than {} % free", settings.critical_below_percent),
        ),
        SpoolState::Throttling => (
            Severity::Critical,
            "spool_throttling",
            format!("has less than {} % free, so agents are slowed down", settings.throttle_below_percent),
        ),
        SpoolState::Full => (
            Severity::Critical,
            "spool_full",
            format!("has less than its reserve of {} MiB free, so changes are refused", settings.reserve_mib),
        ),
        SpoolState::ReadOnly => (
            Severity::Critical,
            "spool_read_only",
            "is on a file system that is read-only, so changes are refused".to_owned(),
        ),
    };
    let worse = rank(state) > rank(before);
    let next_step = if state == SpoolState::ReadOnly {
        "Look in the process server's kernel log why (dmesg), then make it writable: mount -o remount,rw MOUNTPOINT."
            .to_owned()
    } else if worse && state != SpoolState::Good {
        "Check the line to the vault and its speed, or give the spool a larger file system.".to_owned()
    } else {
        String::new()
    };
    // On the way up a state is better news than it is on the way down.
    let severity = if worse { severity } else { Severity::Information };
    Event {
        time: clock.wall(),
        severity,
        code: code.into(),
        server: None,
        disk: None,
        message: format!("The spool of the process server {what} ({free} of {total})."),
        next_step,
    }
}

fn rank(state: SpoolState) -> u8 {
    match state {
        SpoolState::Good => 0,
        SpoolState::Warning => 1,
        SpoolState::Critical => 2,
        SpoolState::Throttling => 3,
        SpoolState::Full => 4,
        SpoolState::ReadOnly => 5,
    }
}
