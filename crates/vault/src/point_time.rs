//! Which time a point gets in the history. Pure.
//!
//! The time T of a point is what its server's clock said. Clocks jump, by seconds or by years, and a
//! wrong one must neither stop a history nor spoil it. So the order of points is that of their
//! numbers, and a time that cannot be is replaced:
//!
//! - A time that is ahead of the vault's clock, or not after the newest point's, is wrong. The next
//!   best is when the process server had the point, then when the vault committed it. Both are later
//!   than T, and late is the harmless way to be wrong: whoever looks for a point from before an
//!   accident then gets an earlier one, never one that has the accident in it.
//! - When the *newest point* is ahead of the vault's clock, one of them is wrong. If agent and process
//!   server agree with the history, it is the vault's clock, and T is taken. Otherwise the history was
//!   written by a clock that was ahead, and times step back to now. The points with wrong times keep
//!   them, and their place; [retention](crate::retention) knows how to read that.

use jiff::{SignedDuration, Timestamp};

/// How far a time may lie ahead of the vault's clock without being wrong.
pub const AHEAD_MAX: SignedDuration = SignedDuration::from_mins(10);

/// Later than the newest point at least by this.
const STEP: SignedDuration = SignedDuration::from_millis(1);

/// What the clocks on the way of a point said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The agent's: the time T.
    pub agent: Timestamp,
    /// The process server's, when the point was sealed there.
    pub process_server: Timestamp,
}

/// How a point came to its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its agent gave it.
    AsClaimed,
    /// The agent's was wrong.
    Replaced,
    /// It is before that of the newest point, whose time was wrong.
    SteppedBack,
}

/// The time of the point that follows `newest`, committed `now` by the vault's clock.
#[must_use]
pub fn of(newest: Option<Timestamp>, claims: Claims, now: Timestamp) -> (Timestamp, Why) {
    let is_ahead = |time: Timestamp| time.duration_since(now) > AHEAD_MAX;
    let replaced_by =
        |time: Timestamp| (time, if time == claims.agent { Why::AsClaimed } else { Why::Replaced });
    let follows = |time: &Timestamp| newest.is_none_or(|newest| *time > newest);
    if newest.is_some_and(is_ahead) {
        let agree = follows(&claims.agent)
            && follows(&claims.process_server)
            && claims.agent.duration_since(claims.process_server) <= AHEAD_MAX;
        return if agree { (claims.agent, Why::AsClaimed) } else { (now, Why::SteppedBack) };
    }
    // The catalog knows no time before 1970, and no clock that is right shows one.
    let fits = |time: &Timestamp| *time >= Timestamp::UNIX_EPOCH && follows(time) && !is_ahead(*time);
    let found = [claims.agent, claims.process_server, now].into_iter().find(fits);
    let last = || newest.map_or(now, |newest| newest.saturating_add(STEP).unwrap_or(newest));
    replaced_by(found.unwrap_or_else(last))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: i64 = 86_400;
    const YEAR: i64 = 365 * DAY;
    const NOW: i64 = 1_800_000_000;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    /// Seconds from [`NOW`] of the time that a point gets.
    fn given(newest: Option<i64>, agent: i64, process_server: i64) -> (i64, Why) {
        let claims = Claims { agent: at(NOW + agent), process_server: at(NOW + process_server) };
        let (time, why) = of(newest.map(|newest| at(NOW + newest)), claims, at(NOW));
        (time.as_second() - NOW, why)
    }

    #[test]
    fn a_good_time_is_taken() {
        assert_eq!(given(None, -3, -2), (-3, Why::AsClaimed));
        assert_eq!(given(Some(-8), -3, -2), (-3, Why::AsClaimed));
        assert_eq!(
            given(Some(-YEAR), -DAY, -DAY + 1),
            (-DAY, Why::AsClaimed),
            "a spool that waited for a day"
        );
        assert_eq!(given(Some(-8), 600, -2), (600, Why::AsClaimed));
    }

    #[test]
    fn an_agent_that_is_ahead_is_not_believed() {
        assert_eq!(given(Some(-8), 601, -2), (-2, Why::Replaced));
        assert_eq!(given(None, YEAR, -2), (-2, Why::Replaced));
        assert_eq!(given(Some(-8), YEAR, YEAR), (0, Why::Replaced), "nor is it with its process server");
    }

    #[test]
    fn an_agent_that_is_behind_is_not_believed() {
        assert_eq!(given(Some(-8), -YEAR, -2), (-2, Why::Replaced));
        assert_eq!(given(Some(-8), -YEAR, -YEAR), (0, Why::Replaced));
        assert_eq!(given(Some(-8), -8, -2), (-2, Why::Replaced));
        assert_eq!(given(None, -NOW - 1, -2), (-2, Why::Replaced), "before 1970");
        assert_eq!(given(Some(60), -3, -2).0, 60, "right after the newest point, if it must be");
    }

    #[test]
    fn a_history_that_is_ahead_steps_back_once() {
        // Server, process server and vault on one machine, whose clock was a year ahead.
        let (time, why) = given(Some(YEAR), -3, -2);
        assert_eq!((time, why), (0, Why::SteppedBack));
        assert_eq!(given(Some(time - 5), -3, -2), (-3, Why::AsClaimed));
        assert_eq!(given(Some(YEAR), -2 * YEAR, -2), (0, Why::SteppedBack));
    }

    #[test]
    fn a_vault_that_is_behind_all_others_is_not_believed() {
        assert_eq!(given(Some(YEAR), YEAR + 5, YEAR + 6), (YEAR + 5, Why::AsClaimed));
        assert_eq!(given(Some(YEAR), YEAR + 5, YEAR + DAY), (YEAR + 5, Why::AsClaimed), "a late seal");
        assert_eq!(
            given(Some(YEAR), 9 * YEAR, YEAR + 5),
            (0, Why::SteppedBack),
            "nobody agrees with the agent"
        );
    }

    proptest! {
        #[test]
        fn a_time_goes_back_only_from_one_that_is_ahead_of_now(
            newest in prop::option::of(-2 * YEAR..2 * YEAR), agent in -2 * YEAR..2 * YEAR,
            process_server in -2 * YEAR..2 * YEAR,
        ) {
            let (time, why) = given(newest, agent, process_server);
            match newest {
                Some(newest) if newest > 600 => prop_assert!(time > newest || why == Why::SteppedBack),
                Some(newest) => prop_assert!(time >= newest && time <= 600),
                None => prop_assert!(time <= 600),
            }
        }
    }
}
