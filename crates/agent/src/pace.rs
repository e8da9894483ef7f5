//! Holding data to a rate.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lifeboat_model::ByteCount;
use lifeboat_wire::event::Severity;

use crate::engine::Notice;
use crate::status::Status;

/// So far may a sender fall behind its rate and catch up later.
const CATCH_UP_MAX: Duration = Duration::from_millis(200);

/// The lowest rate: at less, the process server would take a slow part for a dead one.
const BYTES_PER_SECOND_MIN: u64 = 64 << 10;

/// A rate that several senders share. 0 is no limit.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    bytes_per_second: AtomicU64,
    next: Mutex<Option<Instant>>,
}

impl Pace {
    /// Sets the rate; none is no limit.
    pub fn set(&self, bytes_per_second: Option<u64>) {
        let rate = bytes_per_second.map_or(0, |rate| rate.max(BYTES_PER_SECOND_MIN));
        self.bytes_per_second.store(rate, Ordering::Relaxed);
    }

    /// How long to wait before `bytes` are sent, which are counted.
    pub fn delay(&self, bytes: u64, now: Instant) -> Duration {
        let rate = self.bytes_per_second.load(Ordering::Relaxed);
        if rate == 0 {
            return Duration::ZERO;
        }
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(CATCH_UP_MAX).unwrap_or(now);
        let start = next.unwrap_or(earliest).max(earliest);
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        *next = Some(start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 4)));
        start.saturating_duration_since(now)
    }
}

/// Tells once that a limit of the policy is lower than what the agent can keep.
#[derive(Debug, Default)]
pub(crate) struct RaisedLimit(Option<u64>);

impl RaisedLimit {
    pub fn tell(&mut self, limit: Option<u64>, status: &Status) {
        if let Some(notice) = self.notice(limit) {
            status.tell(notice);
        }
    }

    fn notice(&mut self, limit: Option<u64>) -> Option<Notice> {
        let low = limit.filter(|limit| *limit < BYTES_PER_SECOND_MIN);
        if std::mem::replace(&mut self.0, low) == low {
            return None;
        }
        Some(Notice {
            severity: Severity::Warning,
            code: "copy_limit_raised",
            disk: None,
            message: format!(
                "The policy limits copies to {} a second; they are sent at {} a second, since with less the process \
                 server would take a connection for dead.",
                ByteCount(low?),
                ByteCount(BYTES_PER_SECOND_MIN)
            ),
            next_step: format!(
                "Set the policy's copy limit to {BYTES_PER_SECOND_MIN} bytes or more, or to none."
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_too_low_is_told_once() {
        let mut raised = RaisedLimit::default();
        assert_eq!(raised.notice(None), None);
        assert_eq!(raised.notice(Some(BYTES_PER_SECOND_MIN)), None);
        let told = raised.notice(Some(1024)).unwrap();
        assert!(told.message.contains("1.0 KiB a second; they are sent at 64.0 KiB"), "{}", told.message);
        assert_eq!(raised.notice(Some(1024)), None);
        assert_eq!(raised.notice(None), None);
        assert!(raised.notice(Some(2048)).is_some());
    }

    #[test]
    fn the_rate_holds_over_many_sends_and_can_be_taken_away() {
        let pace = Pace::default();
        let mut now = Instant::now();
        assert_eq!(pace.delay(u64::MAX, now), Duration::ZERO);
        pace.set(Some(100_000));
        let start = now;
        for _ in 0..100 {
            now += pace.delay(10_000, now);
        }
        let took = now - start;
        assert!((Duration::from_millis(9_500)..=Duration::from_millis(10_000)).contains(&took), "{took:?}");
        pace.set(None);
        assert_eq!(pace.delay(u64::MAX, now), Duration::ZERO);
    }
}
