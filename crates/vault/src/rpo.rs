//! How old the newest point is, and what that time was spent on. Pure.

use jiff::{SignedDuration, Timestamp};
use lifeboat_api::Rpo;
use lifeboat_model::Span;

/// Clocks that differ by more are corrected for, and an event tells of them.
pub(crate) const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_secs(2);

/// How far the newest points of a server have come: their times T, by the vault's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The newest committed one.
    pub committed: Timestamp,
    /// One whose files are all stored and that is being committed.
    pub uploaded: Option<Timestamp>,
    /// The newest sealed one.
    pub sealed: Option<Timestamp>,
    /// The newest captured one.
    pub captured: Option<Timestamp>,
}

/// Splits the age of the newest committed point. The parts always add up to the age.
#[must_use]
pub fn split(now: Timestamp, progress: Progress, interval: Span) -> Rpo {
    // Each step is at least as far as the one after it; reports that are older than the commit
    // would say otherwise.
    let uploaded = progress.uploaded.map_or(progress.committed, |time| time.max(progress.committed));
    let sealed = progress.sealed.map_or(uploaded, |time| time.max(uploaded));
    let captured = progress.captured.map_or(sealed, |time| time.max(sealed));
    let now = now.max(captured);
    let between = |earlier: Timestamp, later: Timestamp| {
        u64::try_from(later.as_millisecond() - earlier.as_millisecond()).unwrap_or(0)
    };
    let parts = [
        ("capture", between(captured, now)),
        ("queue", between(sealed, captured)),
        ("transfer", between(uploaded, sealed)),
        ("commit", between(progress.committed, uploaded)),
    ];
    let age_ms = between(progress.committed, now);
    let usual_ms = interval.duration().as_millis().saturating_mul(2);
    // Of equal parts the earlier step gates: the later ones wait for it.
    let largest = parts.iter().rev().max_by_key(|(_, ms)| *ms).map_or("nothing", |(name, _)| *name);
    let gated_by = if u128::from(age_ms) <= usual_ms { "nothing" } else { largest };
    Rpo {
        age_ms,
        capture_ms: parts[0].1,
        queue_ms: parts[1].1,
        transfer_ms: parts[2].1,
        commit_ms: parts[3].1,
        gated_by: gated_by.to_owned(),
    }
}

/// What has to be added to a time of a remote clock to have it by the vault's: nothing while the
/// clocks agree as far as a message can tell.
#[must_use]
pub fn correction(remote: Timestamp, here: Timestamp) -> SignedDuration {
    let difference = here.duration_since(remote);
    if difference.abs() > CLOCKS_DIFFER { difference } else { SignedDuration::ZERO }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(ms).unwrap()
    }

    fn progress(
        committed: i64,
        uploaded: Option<i64>,
        sealed: Option<i64>,
        captured: Option<i64>,
    ) -> Progress {
        Progress {
            committed: at(committed),
            uploaded: uploaded.map(at),
            sealed: sealed.map(at),
            captured: captured.map(at),
        }
    }

    fn gate(now: i64, of: Progress) -> String {
        split(at(now), of, Span::seconds(5)).gated_by
    }

    #[test]
    fn each_step_that_lags_is_named() {
        assert_eq!(gate(109_000, progress(100_000, None, Some(104_000), Some(108_000))), "nothing");
        assert_eq!(gate(190_000, progress(100_000, None, Some(100_000), Some(100_000))), "capture");
        assert_eq!(gate(190_000, progress(100_000, None, Some(101_000), Some(189_000))), "queue");
        assert_eq!(gate(190_000, progress(100_000, None, Some(187_000), Some(189_000))), "transfer");
        assert_eq!(gate(190_000, progress(100_000, Some(180_000), Some(187_000), Some(189_000))), "commit");
        assert_eq!(gate(190_000, progress(100_000, None, None, None)), "capture");
    }

    #[test]
    fn small_differences_of_clocks_are_the_network() {
        assert_eq!(correction(at(1_000), at(2_500)), SignedDuration::ZERO);
        assert_eq!(correction(at(1_000), at(61_000)), SignedDuration::from_secs(60));
        assert_eq!(correction(at(61_000), at(1_000)), SignedDuration::from_secs(-60));
    }

    proptest! {
        #[test]
        fn the_parts_add_up_to_the_age(
            now in 0_i64..10_000, committed in 0_i64..10_000, uploaded in prop::option::of(0_i64..10_000),
            sealed in prop::option::of(0_i64..10_000), captured in prop::option::of(0_i64..10_000),
        ) {
            let rpo = split(at(now), progress(committed, uploaded, sealed, captured), Span::seconds(5));
            prop_assert_eq!(rpo.age_ms, rpo.capture_ms + rpo.queue_ms + rpo.transfer_ms + rpo.commit_ms);
            prop_assert!(rpo.age_ms >= u64::try_from((now - committed).max(0)).unwrap());
        }
    }
}
