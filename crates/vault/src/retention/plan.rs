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
    points.sort_unstable_by_key(|point| (point.time, point.number));
    let Some(newest) = points.last().copied() else { return Plan::default() };
    let (ages, silences) = ages(&points, policy, now.min(newest.time));
    let mut rules = policy.retention.clone();
    rules.sort_by_key(|rule| rule.until);

    let mut kept = BTreeSet::new();
    let mut best: BTreeMap<(usize, i128), Candidate> = BTreeMap::new();
    for (point, age) in points.iter().zip(&ages) {
        let Some(place) = rules.iter().position(|rule| *age <= nanoseconds(rule)) else { continue };
        match rules[place].every.map(|every| every.duration().as_nanos()) {
            None | Some(0) => {
                kept.insert(point.id);
            }
            Some(every) => {
                let every = i128::try_from(every).unwrap_or(i128::MAX);
                let bucket = point.time.as_nanosecond().div_euclid(every);
                let chosen = best.entry((place, bucket)).or_insert(*point);
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
    kept.extend(edges(&points, &silences));
    let removed = points.iter().map(|point| point.id).filter(|id| !kept.contains(id)).collect();
    Plan { removed, lasting, silences }
}

fn rank(point: &Candidate) -> (PointKind, Reverse<(Timestamp, u64)>) {
    (point.kind, Reverse((point.time, point.number)))
}

fn nanoseconds(rule: &RetentionRule) -> i128 {
    i128::try_from(rule.until.duration().as_nanos()).unwrap_or(i128::MAX)
}

/// The age of each point in nanoseconds, without the silences that are not proven.
fn ages(points: &[Candidate], policy: &ReplicationPolicy, reference: Timestamp) -> (Vec<i128>, Vec<Silence>) {
    let silence_ns = SILENCE_MIN
        .as_nanos()
        .max(i128::try_from(policy.interval.duration().as_nanos() * 10).unwrap_or(i128::MAX));
    let newest_ns = points.last().map_or(0, |newest| newest.time.as_nanosecond());
    let mut ages = vec![0; points.len()];
    let mut silences = Vec::new();
    let mut left_out_ns = 0;
    for place in (0..points.len()).rev() {
        let point = &points[place];
        if let Some(after) = points.get(place + 1) {
            let gap_ns = after.time.as_nanosecond() - point.time.as_nanosecond();
            let proven_ns = newest_ns - after.time.as_nanosecond() - left_out_ns;
            if point.number + 1 == after.number && gap_ns > silence_ns && proven_ns < PROVEN.as_nanos() {
                left_out_ns += gap_ns;
                silences.push(Silence { before: point.id, from: point.time, to: after.time });
            }
        }
        ages[place] = reference.as_nanosecond() - point.time.as_nanosecond() - left_out_ns;
    }
    (ages, silences)
}

/// The points right before and right after each silence.
fn edges(points: &[Candidate], silences: &[Silence]) -> BTreeSet<PointId> {
    let times: BTreeSet<Timestamp> = silences.iter().flat_map(|silence| [silence.from, silence.to]).collect();
    points.iter().filter(|point| times.contains(&point.time)).map(|point| point.id).collect()
}

#[cfg(test)]
mod tests;
