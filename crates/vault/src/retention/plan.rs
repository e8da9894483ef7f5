//! Which points are removed. Pure: points, policy and time come in, the decision goes out.
//!
//! **Rules.** A point is judged by the first rule whose `until` its age does not exceed. A rule
//! without `every` keeps all of its points. A rule with `every` keeps one point in each bucket:
//! buckets are as long as `every` and aligned to the Unix epoch, so that they never move. Of a
//! bucket the most consistent point is kept (application before filesystem before crash), and the
//! oldest of equals: what was chosen once stays chosen while younger points grow into the bucket.
//! What is older than every rule is removed.
//!
//! When each `every` is a multiple of the one before it, the best of a large bucket is also the
//! best of its small one, so thinning every minute leaves what thinning once would, but for the
//! buckets through which the edge between two rules runs, and no gap between points is longer
//! than two buckets. Where buckets do not nest it can be three.
//!
//! **Always kept:** the newest point, and those that are held (by open volumes, for instance).
//! Neither has a say in which point of a bucket is chosen.
//!
//! **Time.** A wrong clock must not delete what a right one would keep.
//!
//! - Age is counted back from the newest point or from now, whichever is earlier. So nothing ages
//!   while a server is silent, whether the clock jumps or the site is lost, and a clock that was
//!   set back only keeps more.
//! - When the clocks of vault and server jump forward together, the points show it as a silence:
//!   two commits that follow each other, with far more time between them than the policy's
//!   interval. A silence counts towards the age of what was before it only when points were taken
//!   for [`PROVEN`] since. Until then both points at its edges are kept, so that it can be
//!   known again the next time. An operator has that long to set the clocks right.
//! - When a clock that was ahead is set right, the times of points step back. Points that have later times
//!   than the newest one are as old as the first point after the step. Perhaps the step was the mistake,
//!   so none of them is removed before points were taken for [`PROVEN`] since. A time before that of an
//!   earlier point counts as that one's.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use lifeboat_model::{PointId, PointKind, ReplicationPolicy, RetentionRule};

/// More time than this between two commits is a silence, and more than ten intervals.
const SILENCE_MIN: SignedDuration = SignedDuration::from_mins(10);
/// Points of so much time prove that the clock is right.
pub const PROVEN: SignedDuration = SignedDuration::from_hours(24);

/// What counts of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The point.
    pub id: PointId,
    /// Counted in the order of commits.
    pub number: u64,
    /// The point in time T.
    pub time: Timestamp,
    /// What it guarantees.
    pub kind: PointKind,
}

/// A silence that does not count as time yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    /// The last point before it.
    pub before: PointId,
    /// When that was taken.
    pub from: Timestamp,
    /// When the next one was taken.
    pub to: Timestamp,
}

/// What becomes of a server's points.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be removed, oldest first.
    pub removed: Vec<PointId>,
    /// Kept for long, as the one of its bucket: it will stay while others around it go.
    pub lasting: BTreeSet<PointId>,
    /// Silences that hold thinning back.
    pub silences: Vec<Silence>,
}

/// Decides. `points` may come in any order.
#[must_use]
pub fn plan(
    points: &[Candidate],
    policy: &ReplicationPolicy,
    now: Timestamp,
    held: &BTreeSet<PointId>,
) -> Plan {
    let mut points = points.to_vec();
    points.sort_unstable_by_key(|point| point.number);
    let Some(newest) = points.last().copied() else { return Plan::default() };
    let times = plausible_times(&points);
    let Ages { ages, silences, waiting } = ages(&points, &times, policy, now.min(newest.time));
    let mut rules = policy.retention.clone();
    rules.sort_by_key(|rule| rule.until);

    let mut kept = BTreeSet::new();
    let mut best: BTreeMap<(usize, bool, i128), Candidate> = BTreeMap::new();
    for ((point, age), time) in points.iter().zip(&ages).zip(&times) {
        let Some(place) = rules.iter().position(|rule| *age <= nanoseconds(rule)) else { continue };
        match rules[place].every.map(|every| every.duration().as_nanos()) {
            None | Some(0) => {
                kept.insert(point.id);
            }
            Some(every) => {
                let every = i128::try_from(every).unwrap_or(i128::MAX);
                let bucket = point.time.as_nanosecond().div_euclid(every);
                // Points with a wrong time take no place from those that were taken at that time.
                let is_wrong = *time != point.time;
                let chosen = best.entry((place, is_wrong, bucket)).or_insert(*point);
                if rank(point) > rank(chosen) {
                    *chosen = *point;
                }
            }
        }
    }
    let lasting: BTreeSet<PointId> = best.into_values().map(|point| point.id).collect();
    kept.extend(&lasting);
    kept.insert(newest.id);
    kept.extend(held);
    kept.extend(waiting);
    let removed = points.iter().map(|point| point.id).filter(|id| !kept.contains(id)).collect();
    Plan { removed, lasting, silences }
}

fn rank(point: &Candidate) -> (PointKind, Reverse<(Timestamp, u64)>) {
    (point.kind, Reverse((point.time, point.number)))
}

fn nanoseconds(rule: &RetentionRule) -> i128 {
    i128::try_from(rule.until.duration().as_nanos()).unwrap_or(i128::MAX)
}

/// How old points are.
#[derive(Default)]
struct Ages {
    /// Of each point in nanoseconds, without the silences that are not proven.
    ages: Vec<i128>,
    /// Those silences.
    silences: Vec<Silence>,
    /// Points that stay until it is proven which clock was right: right before and right after each
    /// silence, and before a step back.
    waiting: BTreeSet<PointId>,
}

fn ages(points: &[Candidate], times: &[Timestamp], policy: &ReplicationPolicy, reference: Timestamp) -> Ages {
    let silence_ns = SILENCE_MIN
        .as_nanos()
        .max(i128::try_from(policy.interval.duration().as_nanos() * 10).unwrap_or(i128::MAX));
    let newest_ns = times.last().map_or(0, |newest| newest.as_nanosecond());
    let mut found = Ages { ages: vec![0; points.len()], ..Ages::default() };
    let mut left_out_ns = 0;
    for place in (0..points.len()).rev() {
        let (point, time_ns) = (&points[place], times[place].as_nanosecond());
        if let Some(after) = points.get(place + 1) {
            let gap_ns = times[place + 1].as_nanosecond() - time_ns;
            let is_proven = newest_ns - times[place + 1].as_nanosecond() - left_out_ns >= PROVEN.as_nanos();
            if point.time > times[place] && !is_proven {
                found.waiting.insert(point.id);
            }
            let is_silence = point.number + 1 == after.number && gap_ns > silence_ns;
            if is_silence && !is_proven {
                left_out_ns += gap_ns;
                found.silences.push(Silence { before: point.id, from: times[place], to: times[place + 1] });
                found.waiting.extend([point.id, after.id]);
            }
        }
        found.ages[place] = reference.as_nanosecond() - time_ns - left_out_ns;
    }
    found
}

/// When each point was taken, as far as the times of the others tell: never after a later point.
fn plausible_times(points: &[Candidate]) -> Vec<Timestamp> {
    let mut times: Vec<Timestamp> = points.iter().map(|point| point.time).collect();
    let Some(newest) = times.last().copied() else { return times };
    for place in (0..times.len().saturating_sub(1)).rev() {
        if times[place] > newest {
            times[place] = times[place + 1];
        }
    }
    for place in 1..times.len() {
        times[place] = times[place].max(times[place - 1]);
    }
    times
}

#[cfg(test)]
mod tests;
