//! How long to wait before the next try.

use std::time::Duration;

/// Waiting times that double with each failure up to a bound, each drawn from the upper half of
/// its span so that many clients of one failed server do not come back at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits about `first` after the first failure and never more than `max`.
    #[must_use]
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, failures: 0 }
    }

    /// The time to wait after one more failure. `random` is any random number.
    pub fn next_delay(&mut self, random: u64) -> Duration {
        let doubled = 2u32.checked_pow(self.failures).and_then(|factor| self.first.checked_mul(factor));
        let span = doubled.unwrap_or(self.max).min(self.max);
        self.failures = self.failures.saturating_add(1);
        let half = span / 2;
        let jitter = u128::from(random) * half.as_nanos() / u128::from(u64::MAX);
        half + Duration::from_nanos(u64::try_from(jitter).unwrap_or(u64::MAX)).min(half)
    }

    /// Failures since the last success.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Starts over, after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn delays_stay_between_half_and_whole_of_a_doubling_span(
            randoms in prop::collection::vec(any::<u64>(), 1..80),
            first_ms in 1u64..10_000,
            max_ms in 1u64..100_000_000,
        ) {
            let max = Duration::from_millis(max_ms);
            let mut backoff = Backoff::new(Duration::from_millis(first_ms), max);
            for (failures, random) in randoms.into_iter().enumerate() {
                let span = (u128::from(first_ms) << failures.min(64)).min(u128::from(max_ms));
                let span = Duration::from_millis(u64::try_from(span).unwrap());
                let delay = backoff.next_delay(random);
                prop_assert!(delay >= span / 2 && delay <= span, "{delay:?} of {span:?}");
            }
            backoff.reset();
            prop_assert!(backoff.next_delay(u64::MAX) <= Duration::from_millis(first_ms));
        }
    }
}
