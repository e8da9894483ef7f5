//! Single rules of the engine.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_capture::CapturedPoint;
use lifeboat_model::{BlockSet, Epoch, Extent, Part, PointId, PointKind, ReplicationPolicy, Span};
use lifeboat_wire::agent::{
    Assignment, CaptureFigures, CaptureMode, Command, CommandKind, DiskState, Outcome, SealPoint,
};

use super::disk::{Decision, decide};
use super::*;
use crate::record::{DiskRecord, PendingSeal, Sent, Sync};

const BYTES: u64 = 1 << 20;

fn record(sync: Sync, sealed: Option<u64>, epoch: u64, parts: u32) -> DiskRecord {
    let mut record = DiskRecord::new("serial".into(), "/dev/a".into());
    record.sync = sync;
    record.sealed = sealed.map(PointId::new);
    record.sent = Some(Sent { epoch: Epoch(epoch), parts });
    record.bytes = BYTES;
    record
}

fn state(sealed: Option<u64>, epoch: u64, next_part: u32, copy: bool) -> DiskState {
    DiskState {
        epoch: Epoch(epoch),
        next_part: Part(next_part),
        sealed: sealed.map(PointId::new),
        copy_bytes: copy.then_some(BYTES),
        other_writer: false,
    }
}

#[test]
fn copy_and_record_must_agree() {
    let pending = PendingSeal { point: PointId::new(8), epochs: [(DiskNumber(0), Epoch(5))].into() };
    let pending = Some((&pending, Epoch(5)));
    let following = record(Sync::Following, Some(7), 5, 2);
    let resyncs = |decision| matches!(decision, Decision::Resync(_));
    assert_eq!(decide(&following, None, &state(Some(7), 5, 2, true)), Decision::GoOn);
    // An acknowledgement that was lost.
    assert_eq!(decide(&following, None, &state(Some(7), 5, 3, true)), Decision::GoOn);
    // Durable parts that are gone.
    assert!(resyncs(decide(&following, None, &state(Some(7), 5, 1, true))));
    assert!(resyncs(decide(&following, None, &state(Some(6), 4, 2, true))));
    // What another agent sent meanwhile.
    let of_another = DiskState { other_writer: true, ..state(Some(7), 5, 3, true) };
    assert!(resyncs(decide(&following, None, &of_another)));
    assert_eq!(
        decide(&following, None, &DiskState { copy_bytes: None, ..of_another }),
        Decision::Resync("another agent with this server's certificate has written to its copy".into())
    );
    // A seal whose answer was lost, and one that is not ours.
    assert_eq!(decide(&following, pending, &state(Some(8), 6, 0, true)), Decision::GoOn);
    assert!(resyncs(decide(&following, None, &state(Some(8), 6, 0, true))));
    assert!(resyncs(decide(&following, pending, &state(Some(9), 6, 0, true))));
    assert!(resyncs(decide(&following, pending, &state(Some(8), 7, 0, true))));
    // A pending point says nothing about a later epoch.
    let later = record(Sync::Following, Some(8), 6, 3);
    assert!(resyncs(decide(&later, pending, &state(Some(8), 6, 0, true))));
    // No copy; one of zeroes is as good as none.
    assert_eq!(decide(&following, None, &state(None, 1, 0, false)), Decision::CopyAll);
    assert_eq!(
        decide(&record(Sync::Following, Some(7), 5, 0), None, &state(Some(7), 5, 0, false)),
        Decision::GoOn
    );
    let new = DiskRecord::new("serial".into(), "/dev/a".into());
    assert_eq!(decide(&new, None, &state(None, 1, 0, false)), Decision::CopyAll);
    assert!(resyncs(decide(&new, None, &state(None, 1, 1, true))));
}

/// An engine with one disk that follows its source, and what came out of it.
struct Bench {
    engine: Engine,
    now: Duration,
    told: Vec<&'static str>,
    results: Vec<(u64, Outcome)>,
    ways: Vec<Way>,
    seals: Vec<SealPoint>,
    fail_points: bool,
    fail_freezes: bool,
    /// What a comparison finds, and whether points find that it was written.
    differs: Option<Differs>,
    joined: BTreeSet<DiskNumber>,
    untracked: Vec<DiskNumber>,
    /// What was done to the services.
    stood: Vec<&'static str>,
    /// Whether they can be stopped.
    stop_fails: bool,
    /// File systems are held: nothing is written but so many times.
    held: Option<u32>,
}

/// A block that differs from the point that the disk is compared with.
#[derive(Clone, Copy, Default)]
struct Differs {
    was_written: bool,
    settled: bool,
    points_since: u32,
}

impl Bench {
    fn new(policy: ReplicationPolicy) -> Self {
        let mut number = 0;
        let draw = Box::new(move || {
            number += 1;
            number
        });
        let mut bench = Self {
            engine: Engine::new(Record::default(), "bench".into(), draw),
            now: Duration::ZERO,
            told: Vec::new(),
            results: Vec::new(),
            ways: Vec::new(),
            seals: Vec::new(),
            fail_points: false,
            fail_freezes: false,
            differs: None,
            joined: BTreeSet::new(),
            untracked: Vec::new(),
            stood: Vec::new(),
            stop_fails: false,
            held: None,
        };
        let disk = WantedDisk { path: "/dev/a".into(), identity: Some("serial of /dev/a".into()) };
        bench.engine.apply(Event::Wanted(vec![disk]), bench.now);
        bench.assign(policy, 1, Vec::new());
        bench
    }

    fn assign(&mut self, policy: ReplicationPolicy, revision: u64, commands: Vec<Command>) {
        let assignment = Assignment {
            revision,
            policy,
            replicate: true,
            reason: None,
            commands,
            committed: None,
            throttle_bytes_per_second: None,
        };
        self.engine.apply(Event::Assignment(Box::new(assignment)), self.now);
        self.run();
    }

    fn wait(&mut self, seconds: u64) {
        for _ in 0..seconds * 10 {
            self.now += Duration::from_millis(100);
            self.run();
        }
    }

    fn run(&mut self) {
        while let Some(action) = self.engine.next(self.now) {
            if let Some(event) = self.answer(action) {
                self.engine.apply(event, self.now);
            }
        }
    }

    fn answer(&mut self, action: Action) -> Option<Event> {
        Some(match action {
            Action::Save(_) => Event::Saved(Ok(())),
            Action::Open(disk, _) => {
                let tracking = Tracking::Fresh("new".into());
                Event::Opened(disk, Ok(Opened { bytes: BYTES, hardware_id: None, tracking, unlocated: None }))
            }
            Action::Describe(disk, _) => Event::Described(disk, Ok(state(None, 1, 0, false))),
            Action::Join(disk) => {
                self.joined.insert(disk);
                Event::Joined(disk, Ok(()))
            }
            Action::Leave(disk) => {
                self.joined.remove(&disk);
                Event::Left(disk)
            }
            Action::Close { disk, untrack: true } => {
                self.untracked.push(disk);
                return None;
            }
            Action::Copier(job) => {
                let took = Duration::from_secs(1);
                match job.what {
                    CopyJob::Compare { .. } => {
                        return Some(Event::Copier(job.disk, CopyStep::Compared { candidates: 1, took }));
                    }
                    CopyJob::Settle { .. } => {
                        self.differs.as_mut().unwrap().settled = true;
                        let settled = CopyStep::Settled { changed: 0, still: block_of_finding() };
                        return Some(Event::Copier(job.disk, settled));
                    }
                    CopyJob::Copy { .. } | CopyJob::Resync { .. } => {}
                }
                Event::Copier(job.disk, CopyStep::Sent { next_part: 1, sent_bytes: 4096, took })
            }
            Action::Round(round) => {
                let point = round.point.as_ref().map(|order| self.point(order));
                let parts = round.open.iter().map(|open| (open.disk, open.part + 1)).collect();
                let is_written = self.held != Some(0);
                if let Some(left) = self.held.as_mut().filter(|_| round.point.is_none()) {
                    *left = left.saturating_sub(1);
                }
                Event::Round(RoundEnd::Done(RoundDone {
                    parts: if is_written {
                        parts
                    } else {
                        round.open.iter().map(|open| (open.disk, open.part)).collect()
                    },
                    sent_bytes: if is_written { 4096 } else { 0 },
                    deferred: false,
                    more: false,
                    before_point: Duration::from_millis(10),
                    point,
                    unreadable: BTreeMap::new(),
                    writes: BTreeMap::new(),
                }))
            }
            Action::Acknowledge => Event::Acknowledged,
            Action::Collected(disk) => {
                let found = self.differs.unwrap();
                let taken = found.was_written && found.points_since > 0;
                let set = if taken { block_of_finding() } else { BlockSet::new(BYTES / 4096) };
                Event::Collected(disk, Some(set))
            }
            Action::Seal(seal) => {
                let point = seal.point;
                self.seals.push(seal);
                Event::Sealed(Ok(point))
            }
            Action::StandDown(disks) => {
                assert_eq!(disks, ["/dev/a"]);
                self.stood.push("down");
                let failed = || Err("the service will not stop".to_owned());
                Event::StoodDown(if self.stop_fails { failed() } else { Ok(true) })
            }
            Action::StandUp => {
                self.stood.push("up");
                self.held = None;
                Event::StoodUp(Ok(()))
            }
            Action::Retire => {
                self.stood.push("retired");
                self.held = None;
                Event::Retired(Ok(()))
            }
            Action::Tell(notice) => {
                self.told.push(notice.code);
                return None;
            }
            Action::Result(result) => {
                self.results.push((result.request, result.outcome));
                return None;
            }
            _ => return None,
        })
    }

    fn point(&mut self, order: &PointOrder) -> Result<CapturedPoint, PointFailure> {
        self.ways.push(order.way);
        if self.fail_points && order.way == Way::Optimistic {
            return Err(PointFailure::NotTaken("too busy".into()));
        }
        if self.fail_freezes && order.way != Way::Optimistic {
            return Err(PointFailure::NotFrozen("cannot freeze /boot".into()));
        }
        if let Some(differs) = &mut self.differs
            && differs.settled
        {
            differs.points_since += 1;
        }
        let kind = if order.way == Way::Optimistic { PointKind::Crash } else { PointKind::Filesystem };
        Ok(CapturedPoint {
            time: Timestamp::from_millisecond(i64::try_from(self.now.as_millis()).unwrap()).unwrap(),
            kind,
            figures: CaptureFigures::default(),
            disks: self.joined.iter().map(|disk| (*disk, BYTES)).collect(),
            unreadable: Vec::new(),
            not_frozen: Vec::new(),
        })
    }
}

/// The settings name these disks.
fn wanted(paths: &[&str]) -> Event {
    let disk = |path: &&str| WantedDisk { path: (*path).into(), identity: Some(format!("serial of {path}")) };
    Event::Wanted(paths.iter().map(disk).collect())
}

fn block_of_finding() -> BlockSet {
    let mut set = BlockSet::new(BYTES / 4096);
    set.insert(Extent { first: 5, blocks: 1 });
    set
}

fn policy() -> ReplicationPolicy {
    ReplicationPolicy { interval: Span::seconds(5), ..ReplicationPolicy::default() }
}

#[test]
fn points_come_at_a_fixed_rate() {
    let mut bench = Bench::new(policy());
    bench.wait(100);
    assert!((19..=22).contains(&bench.seals.len()), "{}", bench.seals.len());
    assert!(bench.ways.iter().all(|way| *way == Way::Optimistic));
    assert!(bench.seals.windows(2).all(|pair| pair[0].disks[0].epoch.next() == pair[1].disks[0].epoch));
    assert_eq!(bench.engine.summary().capture, CaptureMode::Optimistic);
}

#[test]
fn three_failures_in_a_row_lead_to_freezes_and_back_again_and_it_is_told() {
    let mut bench = Bench::new(policy());
    bench.wait(6);
    bench.fail_points = true;
    bench.wait(20);
    assert!(matches!(bench.engine.summary().capture, CaptureMode::Quiesced { .. }));
    assert!(bench.told.contains(&"capture_quiesced"));
    assert!(bench.told.iter().filter(|code| **code == "point_not_taken").count() >= 3);
    assert!(bench.seals.iter().any(|seal| seal.kind == PointKind::Filesystem));
    bench.fail_points = false;
    bench.wait(90);
    assert_eq!(bench.engine.summary().capture, CaptureMode::Optimistic);
    assert!(bench.told.contains(&"capture_optimistic"));
}

#[test]
fn where_freezing_fails_too_it_goes_on_without() {
    let mut bench = Bench::new(policy());
    bench.wait(6);
    let sealed = bench.seals.len();
    bench.ways.clear();
    bench.fail_points = true;
    bench.fail_freezes = true;
    bench.wait(60);
    assert_eq!(bench.seals.len(), sealed);
    let optimistic = bench.ways.iter().filter(|way| **way == Way::Optimistic).count();
    assert!(optimistic >= 6 && bench.ways.len() > optimistic, "{:?}", bench.ways);
}

#[test]
fn a_filesystem_point_is_taken_when_the_policy_or_an_operator_asks() {
    let filesystem_interval = Some(Span::seconds(60));
    let mut bench = Bench::new(ReplicationPolicy { filesystem_interval, ..policy() });
    bench.wait(125);
    assert_eq!(bench.ways.iter().filter(|way| **way == Way::Quiesced).count(), 2);
    let command = |request, kind| Command { request, kind: CommandKind::TakePoint { kind } };
    let commands = vec![
        command(1, PointKind::Filesystem),
        command(2, PointKind::Application),
        command(3, PointKind::Crash),
    ];
    bench.assign(policy(), 2, commands.clone());
    bench.wait(1);
    // The same commands again are not carried out again.
    let sealed = bench.seals.len();
    bench.assign(policy(), 3, commands);
    assert_eq!(bench.seals.len(), sealed);
    let taken =
        |request| bench.results.iter().find(|(number, _)| *number == request).map(|(_, outcome)| outcome);
    assert!(matches!(taken(1), Some(Outcome::PointTaken { .. })));
    assert!(matches!(taken(2), Some(Outcome::Failed { message }) if message.contains("adapters")));
    assert!(matches!(taken(3), Some(Outcome::PointTaken { .. })));
}

#[test]
fn points_that_are_asked_for_do_not_put_off_those_that_are_due() {
    let mut bench = Bench::new(policy());
    bench.wait(12);
    for request in 1..=20 {
        let kind = CommandKind::TakePoint { kind: PointKind::Crash };
        bench.assign(policy(), request, vec![Command { request, kind }]);
    }
    let before = bench.seals.len();
    bench.wait(10);
    assert_eq!(bench.seals.len(), before + 2);
}

#[test]
fn a_record_that_cannot_be_saved_stops_everything_until_it_can() {
    let mut bench = Bench::new(policy());
    bench.wait(6);
    let sealed = bench.seals.len();
    bench.engine.save_needed = true;
    assert!(matches!(bench.engine.next(bench.now), Some(Action::Save(_))));
    bench.engine.apply(Event::Saved(Err("no space".into())), bench.now);
    assert_eq!(bench.engine.next(bench.now + Duration::from_secs(4)), None);
    assert!(
        matches!(bench.engine.summary().capture, CaptureMode::Stalled { reason } if reason.contains("no space"))
    );
    bench.wait(12);
    assert!(bench.seals.len() > sealed);
}

#[test]
fn a_disk_that_is_gone_stalls_points_and_is_compared_when_it_returns() {
    let mut bench = Bench::new(policy());
    bench.wait(6);
    bench.engine.apply(Event::Problem(DiskNumber(0), DiskProblem::Gone("it is gone".into())), bench.now);
    let summary = bench.engine.summary();
    assert!(matches!(summary.capture, CaptureMode::Stalled { .. }), "{summary:?}");
    assert_eq!(summary.disks[0].trouble.as_deref(), Some("it is gone"));
    assert!(matches!(bench.engine.record().disks[&DiskNumber(0)].sync, Sync::Resync { .. }));
    assert!(bench.told.is_empty() || !bench.told.contains(&"resync_finished"));
}

/// The disks of the newest point, and those of which it says that they were removed.
fn newest_disks(bench: &Bench) -> (Vec<u16>, Vec<u16>) {
    let newest = bench.seals.last().unwrap();
    let numbers = |disks: &[DiskNumber]| disks.iter().map(|disk| disk.0).collect();
    let has: Vec<DiskNumber> = newest.disks.iter().map(|disk| disk.disk).collect();
    (numbers(&has), numbers(&newest.removed))
}

#[test]
fn a_disk_that_the_settings_name_no_longer_is_said_to_be_removed_until_it_is_back() {
    let mut bench = Bench::new(policy());
    bench.engine.apply(wanted(&["/dev/a", "/dev/b"]), bench.now);
    bench.wait(20);
    assert_eq!(newest_disks(&bench), (vec![0, 1], vec![]));
    bench.engine.apply(wanted(&["/dev/a"]), bench.now);
    bench.wait(12);
    assert_eq!(newest_disks(&bench), (vec![0], vec![1]));
    bench.engine.apply(wanted(&["/dev/a", "/dev/b"]), bench.now);
    bench.wait(20);
    assert_eq!(newest_disks(&bench), (vec![0, 1], vec![]));
}

#[test]
fn a_disk_that_was_taken_out_while_the_agent_was_stopped_is_untracked_and_said_to_be_removed() {
    let mut bench = Bench::new(policy());
    bench.engine.apply(wanted(&["/dev/a", "/dev/b"]), bench.now);
    bench.wait(20);
    let record = bench.engine.record().clone();
    let mut numbers = 1_000;
    let draw = Box::new(move || {
        numbers += 1;
        numbers
    });
    bench.engine = Engine::new(record, "bench".into(), draw);
    bench.joined.clear();
    bench.untracked.clear();
    bench.engine.apply(wanted(&["/dev/a"]), bench.now);
    bench.assign(policy(), 2, Vec::new());
    bench.wait(20);
    assert_eq!(newest_disks(&bench), (vec![0], vec![1]));
    assert_eq!(bench.untracked, [DiskNumber(1)]);
    assert_eq!(bench.engine.summary().capture, CaptureMode::Optimistic);
}

#[test]
fn a_resync_command_is_done_when_all_disks_are() {
    let mut bench = Bench::new(policy());
    bench.wait(6);
    bench.assign(policy(), 2, vec![Command { request: 9, kind: CommandKind::Resync }]);
    bench.wait(2);
    assert!(bench.told.contains(&"resync_started") && bench.told.contains(&"resync_finished"));
    assert_eq!(bench.results, [(9, Outcome::Done)]);
}

/// Compares the disk, and gives how many blocks were found to differ.
fn compare(bench: &mut Bench) -> u64 {
    bench.wait(6);
    bench.assign(policy(), 2, vec![Command { request: 9, kind: CommandKind::Compare }]);
    bench.wait(6);
    let committed = bench.seals.last().map(|seal| seal.point);
    let mut assignment = bench.engine.assignment().unwrap().clone();
    assignment.committed = committed;
    bench.engine.apply(Event::Assignment(Box::new(assignment)), bench.now);
    bench.wait(1);
    match bench.results.as_slice() {
        [(9, Outcome::Compared { disks, .. })] => disks[0].different_blocks,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_difference_counts_only_when_points_too_found_no_write_to_it() {
    let mut bench = Bench::new(policy());
    bench.differs = Some(Differs::default());
    assert_eq!(compare(&mut bench), 1);
    assert!(bench.told.contains(&"copy_differs"));

    // No completion of this write was reported, so rounds have not taken it.
    let mut bench = Bench::new(policy());
    bench.differs = Some(Differs { was_written: true, ..Differs::default() });
    assert_eq!(compare(&mut bench), 0);
    assert!(!bench.told.contains(&"copy_differs"));
}

#[test]
fn a_comparison_waits_for_points_and_ends_when_replication_does() {
    let mut bench = Bench::new(policy());
    bench.differs = Some(Differs { was_written: true, ..Differs::default() });
    bench.fail_freezes = true;
    bench.wait(6);
    bench.assign(policy(), 2, vec![Command { request: 9, kind: CommandKind::Compare }]);
    bench.wait(6);
    bench.fail_points = true;
    let mut assignment = bench.engine.assignment().unwrap().clone();
    assignment.committed = bench.seals.last().map(|seal| seal.point);
    bench.engine.apply(Event::Assignment(Box::new(assignment.clone())), bench.now);
    bench.wait(1);
    assert!(bench.results.is_empty(), "points fail for now: {:?}", bench.results);
    assignment.replicate = false;
    bench.engine.apply(Event::Assignment(Box::new(assignment)), bench.now);
    bench.wait(6);
    assert!(
        matches!(bench.results.as_slice(), [(9, Outcome::Failed { message })] if message.contains("replication was switched off")),
        "{:?}",
        bench.results
    );
}

fn stand(request: u64, kind: CommandKind) -> Vec<Command> {
    vec![Command { request, kind }]
}

#[test]
fn a_server_that_stands_down_rests_after_its_last_point_until_it_is_told_to_go_on() {
    let mut bench = Bench::new(policy());
    bench.wait(12);
    // Two more writes come in: each is followed by a later point.
    bench.held = Some(2);
    let before = bench.seals.len();
    bench.assign(policy(), 2, stand(1, CommandKind::StandDown));
    assert_eq!(bench.stood, ["down"]);
    assert_eq!(bench.seals.len(), before + 3);
    let last = bench.seals.last().unwrap().clone();
    assert_eq!(last.kind, PointKind::Filesystem);
    let Some((1, Outcome::StoodDown { point, disks })) = bench.results.last() else {
        panic!("{:?}", bench.results)
    };
    assert_eq!(*point, last.point);
    assert_eq!((disks[0].disk, disks[0].epoch), (DiskNumber(0), last.disks[0].epoch));
    bench.wait(60);
    assert_eq!(bench.seals.len(), before + 3, "no point comes after the last one");

    bench.assign(policy(), 3, stand(2, CommandKind::StandUp));
    assert_eq!(bench.results.last(), Some(&(2, Outcome::Done)));
    bench.wait(12);
    assert!(bench.seals.len() > before + 3, "points go on");
    bench.assign(policy(), 4, stand(3, CommandKind::Retire));
    assert_eq!(bench.stood, ["down", "up", "retired"]);
    assert_eq!(bench.results.last(), Some(&(3, Outcome::Done)));
}

#[test]
fn a_server_that_cannot_stand_down_goes_on() {
    let mut bench = Bench::new(policy());
    bench.wait(12);
    bench.stop_fails = true;
    bench.assign(policy(), 2, stand(1, CommandKind::StandDown));
    let failed = |bench: &Bench, request, word: &str| {
        let Some((number, Outcome::Failed { message })) = bench.results.last() else {
            panic!("{:?}", bench.results)
        };
        assert!(*number == request && message.contains(word), "{message}");
    };
    failed(&bench, 1, "will not stop");
    assert_eq!(bench.stood, ["down"], "the services undo that themselves");

    // Something writes past the file systems.
    (bench.stop_fails, bench.held) = (false, Some(u32::MAX));
    bench.assign(policy(), 3, stand(2, CommandKind::StandDown));
    failed(&bench, 2, "goes on writing");
    assert_eq!(bench.stood, ["down", "down", "up"]);

    // The last point cannot be taken.
    (bench.fail_points, bench.held) = (true, Some(0));
    bench.assign(policy(), 4, stand(3, CommandKind::StandDown));
    failed(&bench, 3, "could not be taken");
    assert_eq!(bench.stood, ["down", "down", "up", "down", "up"]);
    bench.fail_points = false;
    let before = bench.seals.len();
    bench.wait(30);
    assert!(bench.seals.len() > before);
}
