//! Bytes a second, over the last ten seconds.

use std::time::Duration;

const SECONDS: u64 = 10;
const BUCKETS: usize = 10;

/// Counts bytes by the second. Time comes from a clock that never goes back.
#[derive(Debug, Default)]
pub(crate) struct RateWindow {
    buckets: [u64; BUCKETS],
    /// The second of the newest bucket.
    newest: u64,
}

impl RateWindow {
    pub fn add(&mut self, bytes: u64, now: Duration) {
        self.advance(now);
        *self.bucket(self.newest) += bytes;
    }

    pub fn bytes_per_second(&mut self, now: Duration) -> u64 {
        self.advance(now);
        self.buckets.iter().sum::<u64>() / SECONDS
    }

    fn advance(&mut self, now: Duration) {
        let second = now.as_secs();
        if second <= self.newest {
            return;
        }
        let first = (self.newest + 1).max(second.saturating_sub(SECONDS - 1));
        for passed in first..=second {
            *self.bucket(passed) = 0;
        }
        self.newest = second;
    }

    fn bucket(&mut self, second: u64) -> &mut u64 {
        #[allow(clippy::cast_possible_truncation, reason = "less than SECONDS")]
        &mut self.buckets[(second % SECONDS) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_ten_seconds_count() {
        let mut rate = RateWindow::default();
        rate.add(1000, Duration::from_secs(5));
        rate.add(3000, Duration::from_secs(9));
        assert_eq!(rate.bytes_per_second(Duration::from_secs(9)), 400);
        assert_eq!(rate.bytes_per_second(Duration::from_secs(15)), 300);
        assert_eq!(rate.bytes_per_second(Duration::from_secs(19)), 0);
        rate.add(10, Duration::from_secs(1_000_000));
        assert_eq!(rate.bytes_per_second(Duration::from_secs(1_000_000)), 1);
    }
}
