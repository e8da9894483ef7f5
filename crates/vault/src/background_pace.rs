//! Work in the background: held to a rate, and stopped at once when the vault stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Whoever waits looks so often whether to stop.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// So far may work fall behind its rate and catch up later.
const CATCH_UP_MAX: Duration = Duration::from_millis(500);

/// The work was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it was stopped with the vault")]
pub struct Stopped;

/// Tells work on another thread to stop when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Holds one piece of work to a rate, with pauses on its own thread.
#[derive(Debug)]
pub(crate) struct Pace {
    /// 0 is no limit.
    bytes_per_second: u64,
    next: Instant,
    stop: Arc<AtomicBool>,
}

impl Pace {
    /// Work at most so fast, until `stop` is dropped. 0 is no limit.
    pub fn new(bytes_per_second: u64, stop: &StopOnDrop) -> Self {
        Self { bytes_per_second, next: Instant::now(), stop: Arc::clone(&stop.0) }
    }

    /// Counts bytes, and waits while there were too many.
    ///
    /// # Errors
    /// When the work is to stop.
    pub fn spend(&mut self, bytes: u64) -> Result<(), Stopped> {
        if let Some(nanos) = (u128::from(bytes) * 1_000_000_000).checked_div(self.bytes_per_second.into()) {
            let earliest = Instant::now().checked_sub(CATCH_UP_MAX).unwrap_or(self.next);
            let span = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 4));
            self.next = self.next.max(earliest) + span;
        }
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Stopped);
            }
            let left = self.next.saturating_duration_since(Instant::now());
            if left.is_zero() || self.bytes_per_second == 0 {
                return Ok(());
            }
            std::thread::sleep(left.min(LOOK_EVERY));
        }
    }
}

/// Runs work that blocks on a thread of its own, at low priority, and waits for it. When the
/// future is dropped the work is told to stop.
///
/// # Errors
/// When the thread cannot be started, or ended without a result.
pub(crate) async fn at_low_priority<T: Send + 'static>(
    name: &str,
    work: impl FnOnce(&StopOnDrop) -> T + Send + 'static,
) -> Result<T, Stopped> {
    let stop = StopOnDrop::default();
    let told = StopOnDrop(Arc::clone(&stop.0));
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // On Linux this is the thread's own; it only lowers, which everybody may do.
        if let Err(error) = rustix::process::setpriority_process(None, 10) {
            tracing::debug!(%error, "the priority of work in the background could not be lowered");
        }
        drop(sender.send(work(&told)));
    });
    if let Err(error) = thread {
        tracing::warn!(%error, "no thread could be started for work in the background");
        return Err(Stopped);
    }
    let result = receiver.await.map_err(|_| Stopped);
    drop(stop);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_waits_for_its_rate_stops_at_once() {
        let stop = StopOnDrop::default();
        let mut pace = Pace::new(1, &stop);
        drop(stop);
        assert_eq!(pace.spend(u64::MAX), Err(Stopped));
    }

    #[tokio::test]
    async fn a_dropped_future_stops_its_work() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let work = at_low_priority("test", move |stop| {
            let mut pace = Pace::new(1, stop);
            sender.send(()).unwrap();
            assert_eq!(pace.spend(1_000_000), Err(Stopped));
            sender.send(()).unwrap();
        });
        let running = tokio::spawn(work);
        tokio::task::spawn_blocking(move || {
            receiver.recv().unwrap();
            running.abort();
            receiver.recv_timeout(Duration::from_secs(60)).unwrap();
        })
        .await
        .unwrap();
    }
}
