//! The clocks, read here and nowhere else.

use std::time::{Duration, Instant};

use jiff::Timestamp;

/// Time since the process began, from the clock that never goes back, and the time on the wall.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that begins now.
    #[must_use]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Time since the beginning.
    #[must_use]
    pub fn now(self) -> Duration {
        self.start.elapsed()
    }

    /// The time on the wall. It may jump, so nothing is measured with it.
    #[must_use]
    pub fn wall(self) -> Timestamp {
        Timestamp::now()
    }

    /// When [`Clock::now`] will be `at`.
    #[must_use]
    pub fn instant(self, at: Duration) -> tokio::time::Instant {
        (self.start + at).into()
    }
}
