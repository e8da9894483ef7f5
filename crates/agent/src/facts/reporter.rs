//! Sends the facts: at the start, when they change, and now and then so that it is known that they hold.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_transport::Backoff;
use lifeboat_wire::facts::ServerFacts;

use super::Collector;
use crate::engine::Failure;
use crate::quiet::Quiet;
use crate::settings::Settings;
use crate::sink::Uplink;

/// Time between two looks at the facts.
const COLLECT_EVERY: Duration = Duration::from_secs(600);

/// Facts that did not change are sent again after this.
const SEND_EVERY: Duration = Duration::from_secs(6 * 3600);

/// How often it is looked whether something is to be done.
const TICK: Duration = Duration::from_secs(1);

/// Of 0 to 19, the one that gives way to everybody.
const NICEST: i32 = 19;

/// What the thread works with.
pub(crate) struct Reporter {
    pub config: PathBuf,
    /// The protected disks, as the settings name them.
    pub disks: Vec<String>,
    pub uplink: Arc<Uplink>,
    pub quiet: Arc<Quiet>,
}

impl Reporter {
    /// Works until the agent stops.
    pub fn run(mut self) {
        // Without it, facts are found out as fast as everything else is done.
        if let Err(error) = rustix::process::setpriority_process(None, NICEST) {
            tracing::debug!("the thread of the facts keeps its priority: {error}");
        }
        let quiet = Arc::clone(&self.quiet);
        let mut collector = Collector::new(move || quiet.await_thaw());
        let mut sent: Option<(ServerFacts, Instant)> = None;
        loop {
            let facts = collector.collect(&self.disks, Timestamp::now());
            let is_known =
                sent.as_ref().is_some_and(|(sent, at)| sent.same_as(&facts) && at.elapsed() < SEND_EVERY);
            if !is_known {
                if !self.send(&facts) {
                    return;
                }
                sent = Some((facts, Instant::now()));
            }
            if !self.await_reason(Instant::now() + COLLECT_EVERY) {
                return;
            }
        }
    }

    /// Sends until the vault has them; false when the agent stops before.
    fn send(&mut self, facts: &ServerFacts) -> bool {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
        loop {
            // As a task of the runtime: it ends with that, which may be while this waits.
            let (uplink, facts) = (Arc::clone(&self.uplink), facts.clone());
            let task = self.uplink.runtime.spawn(async move { uplink.server.facts(&facts).await });
            match self.uplink.runtime.block_on(task) {
                Ok(Ok(())) => {
                    tracing::info!("the vault has the facts of this server");
                    return true;
                }
                // A vault that does not know the server yet refuses them, and so does an older one.
                Ok(Err(Failure::Away(why) | Failure::Conflict(why) | Failure::Refused(why))) => {
                    tracing::debug!("the facts cannot be sent yet: {why}");
                }
                Err(error) => tracing::debug!("sending the facts broke off: {error}"),
            }
            if !self.sleep_until(Instant::now() + backoff.next_delay(rand::random())) {
                return false;
            }
        }
    }

    /// Waits until `deadline` or until other disks are protected; false when the agent stops before.
    fn await_reason(&mut self, deadline: Instant) -> bool {
        while Instant::now() < deadline {
            if !self.sleep_until(Instant::now() + TICK) {
                return false;
            }
            // Settings that are wrong are told elsewhere; the old ones hold.
            if let Ok(settings) = Settings::load(&self.config)
                && settings.disks != self.disks
            {
                self.disks = settings.disks;
                return true;
            }
        }
        true
    }

    fn sleep_until(&self, deadline: Instant) -> bool {
        while !self.uplink.stop.load(Ordering::Relaxed) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(TICK));
        }
        false
    }
}
