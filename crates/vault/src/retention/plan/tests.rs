use std::collections::BTreeMap;

use lifeboat_model::Span;
use proptest::prelude::*;

use super::*;

const MINUTE: i64 = 60;
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// Not the beginning of any bucket.
const BEGIN: i64 = 1_900_000_123;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn point(number: u64, seconds: i64) -> Candidate {
    Candidate { id: PointId::new(number), number, time: at(seconds), kind: PointKind::Crash }
}

fn policy(rules: &[(i64, Option<i64>)]) -> ReplicationPolicy {
    let span = |seconds: i64| Span::seconds(seconds.unsigned_abs());
    let rule =
        |&(until, every): &(i64, Option<i64>)| RetentionRule { until: span(until), every: every.map(span) };
    ReplicationPolicy { retention: rules.iter().map(rule).collect(), ..ReplicationPolicy::default() }
}

fn apply(points: &mut Vec<Candidate>, plan: &Plan) {
    let removed: BTreeSet<PointId> = plan.removed.iter().copied().collect();
    points.retain(|point| !removed.contains(&point.id));
}

fn nobody() -> BTreeSet<PointId> {
    BTreeSet::new()
}

#[test]
fn the_default_policy_keeps_what_it_says() {
    let every = 5 * MINUTE;
    let all: Vec<Candidate> =
        (0..20 * DAY / every).map(|step| point(step.unsigned_abs() + 1, BEGIN + step * every)).collect();
    let newest = all.last().unwrap().time;
    let plan = plan(&all, &ReplicationPolicy::default(), newest, &nobody());
    let mut kept = all.clone();
    apply(&mut kept, &plan);
    let aged = |from: i64, to: i64| {
        kept.iter()
            .filter(|point| {
                let age = newest.duration_since(point.time).as_secs();
                from < age && age <= to
            })
            .count()
    };
    assert_eq!(aged(-1, 2 * HOUR), 25);
    assert!((22..=23).contains(&aged(2 * HOUR, DAY)), "{}", aged(2 * HOUR, DAY));
    assert!((72..=73).contains(&aged(DAY, 7 * DAY)));
    assert!((48..=49).contains(&aged(7 * DAY, 15 * DAY)));
    assert_eq!(aged(15 * DAY, 30 * DAY), 0);
    assert!(plan.lasting.iter().all(|id| kept.iter().any(|point| point.id == *id)));
}

#[test]
fn of_a_bucket_the_most_consistent_point_is_kept_and_of_equals_the_oldest() {
    let policy = policy(&[(MINUTE, None), (DAY, Some(HOUR))]);
    let hour = BEGIN - BEGIN % HOUR;
    let mut points: Vec<Candidate> =
        (0..60i64).map(|minute| point(minute.unsigned_abs() + 1, hour + minute * MINUTE)).collect();
    // Not the one right after, so that the time between is no silence.
    let newest = point(200, hour + 2 * HOUR);
    points.push(newest);
    let kept = |points: &[Candidate]| {
        let mut points = points.to_vec();
        let plan = plan(&points, &policy, newest.time, &nobody());
        apply(&mut points, &plan);
        points.iter().map(|point| point.number).collect::<Vec<_>>()
    };
    assert_eq!(kept(&points), [1, 200]);
    points[20].kind = PointKind::Filesystem;
    points[40].kind = PointKind::Filesystem;
    assert_eq!(kept(&points), [21, 200]);
    points[50].kind = PointKind::Application;
    assert_eq!(kept(&points), [51, 200]);
}

#[test]
fn a_silent_server_keeps_its_history_and_a_clock_that_runs_away_deletes_nothing() {
    let mut points: Vec<Candidate> =
        (0..3 * DAY / 60).map(|step| point(step.unsigned_abs() + 1, BEGIN + step * 60)).collect();
    let newest = points.last().unwrap().time;
    let thinned = plan(&points, &ReplicationPolicy::default(), newest, &nobody());
    apply(&mut points, &thinned);
    for now in [newest, at(BEGIN + 400 * DAY), at(BEGIN - 400 * DAY), at(0), Timestamp::MAX] {
        let again = plan(&points, &ReplicationPolicy::default(), now, &nobody());
        assert!(again.removed.is_empty(), "at {now}: {:?}", again.removed);
    }
}

#[test]
fn when_all_clocks_jump_forward_a_day_is_left_to_set_them_right() {
    let policy = ReplicationPolicy::default();
    let mut points: Vec<Candidate> =
        (0..3 * DAY / 60).map(|step| point(step.unsigned_abs() + 1, BEGIN + step * 60)).collect();
    let mut without_jump = points.clone();
    let count: i64 = points.len().try_into().unwrap();
    for step in 0..DAY / 60 {
        let time = BEGIN + (count + step) * 60;
        let number = (count + step).unsigned_abs() + 1;
        points.push(point(number, time + 365 * DAY));
        without_jump.push(point(number, time));
        let jumped = plan(&points, &policy, points.last().unwrap().time, &nobody());
        apply(&mut points, &jumped);
        let right = plan(&without_jump, &policy, at(time), &nobody());
        apply(&mut without_jump, &right);
        // Near the edge between two rules another point of the bucket may be the one that is kept.
        for right in without_jump.iter().filter(|point| point.number <= count.unsigned_abs()) {
            let is_near = |kept: &&Candidate| kept.time.duration_since(right.time).as_secs().abs() <= HOUR;
            assert!(points.iter().any(|kept| is_near(&kept)), "after {step} minutes: {right:?} is missing");
        }
        assert!(!jumped.silences.is_empty() || step > DAY / 60 - 2);
    }
    points.push(point(1_000_000, BEGIN + 369 * DAY + 60));
    let proven = plan(&points, &policy, points.last().unwrap().time, &nobody());
    apply(&mut points, &proven);
    assert!(points.iter().all(|point| point.time >= at(BEGIN + 365 * DAY)), "the silence counts now");
}

/// Points every minute, with the clock ahead by `offset` seconds from `jump` on until `back`, thinned out
/// all the time by a vault with the same clock.
fn with_wrong_clock(minutes: i64, jump: i64, back: i64, offset: i64) -> Vec<Candidate> {
    let policy = ReplicationPolicy::default();
    let mut points = Vec::new();
    for minute in 0..minutes {
        let wrong = if (jump..back).contains(&minute) { offset } else { 0 };
        points.push(point(minute.unsigned_abs() + 1, BEGIN + minute * 60 + wrong));
        let thinned = plan(&points, &policy, points.last().unwrap().time, &nobody());
        apply(&mut points, &thinned);
    }
    points
}

/// The longest time without a point that is left, by the number of points taken in it.
fn longest_gap(points: &[Candidate], from: u64, to: u64) -> u64 {
    let inside: Vec<u64> =
        points.iter().map(|point| point.number).filter(|number| (from..=to).contains(number)).collect();
    let ends = [from, to];
    let all: Vec<u64> = ends[..1].iter().chain(&inside).chain(&ends[1..]).copied().collect();
    all.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap()
}

#[test]
fn a_clock_that_was_wrong_for_hours_costs_no_history() {
    let (jump, back, end) = (2 * 1440, 2 * 1440 + 180, 6 * 1440);
    for offset in [DAY, 365 * DAY, -30 * DAY, -365 * DAY] {
        let points = with_wrong_clock(end, jump, back, offset);
        let (jump, back) = (jump.unsigned_abs(), back.unsigned_abs());
        // What is days old has a point in every two hours; what was taken with the wrong clock too.
        let before = longest_gap(&points, 1, jump);
        assert!(before <= 240, "{offset}: {before} minutes without a point before the jump");
        let after = longest_gap(&points, back + 240, end.unsigned_abs() - 1);
        assert!(after <= 240, "{offset}: {after} minutes without a point after the jump");
        let wrong = points.iter().filter(|point| (jump + 1..=back).contains(&point.number)).count();
        assert!((1..=4).contains(&wrong), "{offset}: {wrong} points of the wrong clock are left");
    }
}

#[test]
fn a_clock_that_was_set_back_removes_nothing_before_a_day_has_proven_it() {
    let mut points: Vec<Candidate> =
        (0..120i64).map(|step| point(step.unsigned_abs() + 1, BEGIN + step * 60)).collect();
    for step in 0..1439i64 {
        points.push(point(121 + step.unsigned_abs(), BEGIN - 400 * DAY + step * 60));
        let thinned = plan(&points, &ReplicationPolicy::default(), points.last().unwrap().time, &nobody());
        apply(&mut points, &thinned);
        assert!(points[..120].iter().map(|point| point.number).eq(1..=120), "after {step} minutes");
    }
}

#[test]
fn times_are_read_as_the_others_allow() {
    let read = |times: &[i64]| {
        let points: Vec<Candidate> = (1..).zip(times).map(|(number, time)| point(number, *time)).collect();
        plausible_times(&points).iter().map(|time| time.as_second()).collect::<Vec<_>>()
    };
    assert_eq!(read(&[10, 20, 30]), [10, 20, 30]);
    assert_eq!(read(&[10, 900, 905, 30, 40]), [10, 30, 30, 30, 40], "a clock that was ahead");
    assert_eq!(read(&[100, 3, 4, 130]), [100, 100, 100, 130], "a clock that was behind");
    assert_eq!(read(&[100, 110, 3, 4]), [3, 3, 3, 4], "or perhaps ahead all the time");
    assert_eq!(read(&[]), Vec::<i64>::new());
}

/// Policies whose spans are multiples of each other.
fn nested() -> impl Strategy<Value = ReplicationPolicy> {
    (1i64..4, 1i64..4, 2i64..4, 1i64..3).prop_map(|(all, every, factor, longer)| {
        let every = every * 10 * MINUTE;
        policy(&[
            (all * HOUR, None),
            (all * HOUR + 6 * HOUR, Some(every)),
            (all * HOUR + 6 * HOUR + longer * 12 * HOUR, Some(every * factor)),
        ])
    })
}

fn kinds() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![8 => Just(0u8), 1 => Just(1u8), 1 => Just(2u8)], 400)
}

fn series(kinds: &[u8], step: i64) -> Vec<Candidate> {
    let kind_of =
        |kind: u8| [PointKind::Crash, PointKind::Filesystem, PointKind::Application][usize::from(kind)];
    let times = (0..).map(|place: i64| BEGIN + place * step);
    kinds
        .iter()
        .zip(times)
        .zip(1..)
        .map(|((kind, time), number)| Candidate { kind: kind_of(*kind), ..point(number, time) })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn neither_the_newest_nor_a_held_point_is_removed_and_once_is_enough(
        times in prop::collection::btree_set(0i64..40 * DAY, 0..60),
        numbers_skip in prop::collection::vec(1u64..3, 60),
        rules in prop::collection::vec((1i64..30 * DAY, prop::option::of(0i64..3 * DAY)), 0..5),
        held in prop::collection::btree_set(0usize..60, 0..5),
        now in -DAY..60 * DAY,
    ) {
        let mut number = 0;
        let mut points: Vec<Candidate> = times.iter().zip(&numbers_skip).map(|(time, skip)| {
            number += skip;
            point(number, BEGIN + time)
        }).collect();
        let held: BTreeSet<PointId> = held.iter().filter_map(|place| Some(points.get(*place)?.id)).collect();
        let now = at(BEGIN + now);
        let first = plan(&points, &policy(&rules), now, &held);
        prop_assert!(first.removed.iter().all(|id| !held.contains(id)));
        prop_assert!(points.last().is_none_or(|newest| !first.removed.contains(&newest.id)));
        apply(&mut points, &first);
        prop_assert_eq!(plan(&points, &policy(&rules), now, &held).removed, vec![]);
    }

    #[test]
    fn thinning_all_the_time_leaves_what_thinning_once_does(
        policy in nested(), kinds in kinds(), step in 3i64..9,
    ) {
        let all = series(&kinds, step * MINUTE);
        let mut kept: Vec<Candidate> = Vec::new();
        for new in &all {
            kept.push(*new);
            let step = plan(&kept, &policy, new.time, &nobody());
            apply(&mut kept, &step);
        }
        let newest = all.last().unwrap().time;
        let mut once = all.clone();
        let plan = plan(&all, &policy, newest, &nobody());
        apply(&mut once, &plan);
        // Where the edge between two rules runs through a bucket, thinning once sees two halves.
        let every = policy.retention.last().unwrap().every.unwrap().duration().as_nanos().cast_signed();
        let at_edge: BTreeSet<i128> = policy.retention.iter()
            .map(|rule| (newest.as_nanosecond() - nanoseconds(rule)).div_euclid(every)).collect();
        for points in [&mut kept, &mut once] {
            points.retain(|point| !at_edge.contains(&point.time.as_nanosecond().div_euclid(every)));
        }
        prop_assert_eq!(kept, once);
    }

    #[test]
    fn gaps_stay_below_two_buckets_or_three_where_buckets_do_not_nest(
        rules in prop::collection::vec((1i64..20, 1i64..6), 1..4),
        kinds in kinds(),
        runs_every in 1usize..7,
    ) {
        let step = 5 * MINUTE;
        let mut until = 0;
        let rules: Vec<_> = rules.iter().map(|(longer, every)| {
            until += longer * HOUR;
            (until, Some(every * 20 * MINUTE))
        }).collect();
        let nest = rules.windows(2).all(|pair| pair[1].1.unwrap() % pair[0].1.unwrap() == 0);
        let buckets = if nest { 2 } else { 3 };
        let mut kept: Vec<Candidate> = Vec::new();
        for (place, new) in series(&kinds, step).into_iter().enumerate() {
            kept.push(new);
            if place % runs_every != 0 {
                continue;
            }
            let plan = plan(&kept, &policy(&rules), new.time, &nobody());
            apply(&mut kept, &plan);
            for pair in kept.windows(2) {
                let age = new.time.duration_since(pair[0].time).as_secs();
                // A point carries the gaps of the rules that it has passed.
                let every = rules.iter().take(1 + rules.iter().filter(|rule| rule.0 < age).count())
                    .map(|rule| rule.1.unwrap()).max().unwrap();
                let gap = pair[1].time.duration_since(pair[0].time).as_secs();
                prop_assert!(gap <= buckets * every + step, "a gap of {} s at the age of {} s", gap, age);
            }
            // As far back as the rules reach there is something.
            let oldest = new.time.duration_since(kept[0].time).as_secs();
            let reach = until.min(place as i64 * step);
            let longest = rules.iter().map(|rule| rule.1.unwrap()).max().unwrap();
            prop_assert!(oldest + buckets * longest + step >= reach, "the oldest is {} s old of {} s", oldest, reach);
        }
    }

    #[test]
    fn with_clocks_that_jump_about_each_bucket_of_time_served_keeps_a_point(
        jumps in prop::collection::vec((0usize..300, 0i64..100 * DAY), 0..4),
        policy in nested(),
    ) {
        // The jumps are silences in the points' times; each alone must not cost what was before it.
        let mut offset = 0;
        let by_place: BTreeMap<usize, i64> = jumps.into_iter().collect();
        let (mut kept, mut right) = (Vec::new(), Vec::new());
        for place in 0..300usize {
            offset += by_place.get(&place).copied().unwrap_or(0);
            let time = BEGIN + place as i64 * 5 * MINUTE;
            let number = place as u64 + 1;
            kept.push(point(number, time + offset));
            right.push(point(number, time));
            let jumped = plan(&kept, &policy, kept.last().unwrap().time, &nobody());
            apply(&mut kept, &jumped);
            let plan = plan(&right, &policy, at(time), &nobody());
            apply(&mut right, &plan);
        }
        // 300 points are 25 hours, of which the last day proves nothing yet.
        let reach = |points: &[Candidate]| points[0].number;
        prop_assert!(reach(&kept) <= reach(&right).max(13) + 72, "{} and {}", reach(&kept), reach(&right));
    }
}
