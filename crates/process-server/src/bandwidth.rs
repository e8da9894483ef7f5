//! Keeps uploads below their limit.

use std::time::Duration;

/// How much may be sent at once after a pause, as time at the limit.
const BURST: Duration = Duration::from_millis(250);

/// A bucket that fills at the limit. Time comes in as time since any fixed moment, from a clock that
/// never goes back.
#[derive(Debug, Default)]
pub struct TokenBucket {
    /// When everything taken up to now will have been paid for.
    paid_until: Duration,
}

impl TokenBucket {
    /// Takes `bytes` at a limit of `bytes_per_second`; says how long to wait before sending them.
    /// The limit may be another one at each call.
    pub fn take(&mut self, bytes: u64, bytes_per_second: u64, now: Duration) -> Duration {
        let earliest = now.saturating_sub(BURST);
        let begins = self.paid_until.max(earliest);
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_second.max(1));
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.paid_until = begins.saturating_add(cost);
        self.paid_until.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_run_keeps_the_limit() {
        let mut bucket = TokenBucket::default();
        let mut now = Duration::from_secs(100);
        let start = now;
        for _ in 0..1000 {
            now += bucket.take(10_000, 1_000_000, now);
        }
        let took = now - start;
        assert!(took >= Duration::from_millis(9_700) && took <= Duration::from_millis(10_000), "{took:?}");
    }

    #[test]
    fn a_pause_is_not_saved_up() {
        let mut bucket = TokenBucket::default();
        bucket.take(1, 1_000_000, Duration::from_secs(1));
        let wait = bucket.take(2_000_000, 1_000_000, Duration::from_secs(1_000));
        assert_eq!(wait, Duration::from_millis(1_750));
    }

    #[test]
    fn a_limit_of_zero_is_slow_and_no_crash() {
        assert!(TokenBucket::default().take(u64::MAX, 0, Duration::ZERO) > Duration::from_secs(1_000));
    }
}
