//! The engine against a model of everything around it: disks that are written, pinned bits, a
//! process server, losses and restarts at every possible place.
//!
//! Content is a number a block. Work is done at once, but its answer waits in a queue, so that a
//! crash can come between any piece of work and the news of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_capture::CapturedPoint;
use lifeboat_model::{DiskNumber, Epoch, Part, PointId, PointKind, ReplicationPolicy};
use lifeboat_wire::agent::{Assignment, CHUNK_BLOCKS, CaptureFigures, DiskState, SealPoint};
use proptest::prelude::*;

use super::*;
use crate::record::Sync;

const BLOCKS: u64 = 9_000;
const DISKS: u16 = 2;

type Image = Vec<u32>;

#[derive(Clone, Debug)]
enum Step {
    /// The agent does its next thing, and hears the oldest news.
    Go(u8),
    Write(u16, u64),
    /// What the process server is asked next fails before or after it has done it.
    CutOff {
        done: bool,
    },
    Crash,
    Reboot(u16, u64),
    Unlocated(u16, u64),
    /// The process server goes back to its newest point, or to nothing.
    Rewind,
    LoseRecord,
    SecondDisk(bool),
    Unreadable(bool),
    Pause(bool),
}

#[derive(Default)]
struct Pins {
    there: bool,
    done: BTreeSet<u64>,
    taken: BTreeSet<u64>,
    unlocated: bool,
}

#[derive(Clone, Default)]
struct Copy {
    described: bool,
    epoch: u64,
    next_part: u32,
    sealed: Option<PointId>,
    content: Option<Image>,
}

struct World {
    engine: Engine,
    saved: Record,
    now: Duration,
    disks: Vec<Image>,
    pins: Vec<Pins>,
    copies: Vec<Copy>,
    at_seal: Vec<Copy>,
    inside: BTreeSet<u16>,
    news: VecDeque<Event>,
    next_number: u32,
    cut_off: Option<bool>,
    wanted: u16,
    /// The disks at T of the point under way; none when something was written that nobody could know of.
    captured: Option<Vec<Image>>,
    /// Disks with writes that the engine has not heard of.
    unknown_writes: BTreeSet<u16>,
    unreadable: bool,
    points: u32,
    paused: bool,
    revision: u64,
}

fn assignment(paused: bool, revision: u64) -> Event {
    Event::Assignment(Box::new(Assignment {
        revision,
        policy: ReplicationPolicy::default(),
        replicate: !paused,
        reason: None,
        commands: Vec::new(),
        committed: None,
        throttle_bytes_per_second: None,
    }))
}

fn engine_of(record: Record) -> Engine {
    let mut next = 100;
    // Ids only have to differ, also between two lives of the agent.
    next += record.pending.as_ref().map_or(0, |seal| seal.point.number() + 1);
    Engine::new(
        record,
        "model".into(),
        Box::new(move || {
            next += 7919;
            next
        }),
    )
}

impl World {
    fn new() -> Self {
        let engine = engine_of(Record::default());
        let mut world = Self {
            engine,
            saved: Record::default(),
            now: Duration::ZERO,
            disks: vec![vec![0; usize::try_from(BLOCKS).unwrap()]; usize::from(DISKS)],
            pins: (0..DISKS).map(|_| Pins::default()).collect(),
            copies: vec![Copy::default(); usize::from(DISKS)],
            at_seal: vec![Copy::default(); usize::from(DISKS)],
            inside: BTreeSet::new(),
            news: VecDeque::new(),
            next_number: 0,
            cut_off: None,
            wanted: 1,
            captured: None,
            unknown_writes: BTreeSet::new(),
            unreadable: false,
            points: 0,
            paused: false,
            revision: 1,
        };
        world.start();
        world
    }

    fn start(&mut self) {
        self.inside.clear();
        self.news.clear();
        self.engine = engine_of(self.saved.clone());
        let wanted = (0..self.wanted).map(|number| WantedDisk {
            path: format!("/dev/{number}"),
            identity: Some(format!("serial {number}")),
        });
        self.news.push_back(Event::Wanted(wanted.collect()));
        self.news.push_back(assignment(self.paused, self.revision));
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Go(times) => (0..times).for_each(|_| self.go()),
            Step::Write(disk, block) => self.write(disk, block, true),
            Step::CutOff { done } => self.cut_off = Some(done),
            Step::Crash => self.start(),
            Step::Reboot(disk, block) => {
                self.pins.iter_mut().for_each(|pins| *pins = Pins::default());
                self.unknown_writes.clear();
                self.write(disk, block, false);
                self.start();
            }
            Step::Unlocated(disk, block) => {
                self.write(disk, block, false);
                let pins = &mut self.pins[usize::from(disk)];
                if pins.there {
                    pins.unlocated = true;
                    self.unknown_writes.insert(disk);
                    // It may overtake the answer to what is under way.
                    let problem = DiskProblem::Unlocated("pass-through".into());
                    self.news.push_front(Event::Problem(DiskNumber(disk), problem));
                }
            }
            Step::Rewind => self.copies.clone_from(&self.at_seal),
            Step::LoseRecord => {
                self.saved = Record::default();
                self.start();
            }
            Step::SecondDisk(there) => {
                self.wanted = if there { 2 } else { 1 };
                let wanted = (0..self.wanted).map(|number| WantedDisk {
                    path: format!("/dev/{number}"),
                    identity: Some(format!("serial {number}")),
                });
                self.news.push_back(Event::Wanted(wanted.collect()));
            }
            Step::Unreadable(bad) => self.unreadable = bad,
            Step::Pause(paused) => {
                self.paused = paused;
                self.revision += 1;
                self.news.push_back(assignment(paused, self.revision));
            }
        }
    }

    fn write(&mut self, disk: u16, block: u64, tracked: bool) {
        self.next_number += 1;
        let index = usize::try_from(block % BLOCKS).unwrap();
        self.disks[usize::from(disk)][index] = if block.is_multiple_of(5) { 0 } else { self.next_number };
        let pins = &mut self.pins[usize::from(disk)];
        if tracked && pins.there {
            pins.done.insert(block % BLOCKS);
        }
    }

    fn go(&mut self) {
        if let Some(action) = self.engine.next(self.now) {
            self.perform(action);
        } else if let Some(event) = self.news.pop_front() {
            if let Event::Problem(disk, _) = &event {
                self.unknown_writes.remove(&disk.0);
            }
            self.engine.apply(event, self.now);
        } else {
            self.now += Duration::from_millis(500);
        }
    }

    fn perform(&mut self, action: Action) {
        let news = match action {
            Action::Save(record) => {
                self.saved = *record;
                return self.engine.apply(Event::Saved(Ok(())), self.now);
            }
            Action::Open(disk, _) => Event::Opened(disk, Ok(self.open(disk))),
            Action::Close { disk, untrack } => {
                assert!(!self.inside.contains(&disk.0), "closed while the flow has it");
                if untrack {
                    self.pins[usize::from(disk.0)] = Pins::default();
                    self.unknown_writes.remove(&disk.0);
                }
                return;
            }
            Action::Settle(disk) => {
                self.pins[usize::from(disk.0)].unlocated = false;
                return;
            }
            Action::Describe(disk, description) => {
                assert_eq!(description.description.bytes, BLOCKS * 4096);
                Event::Described(disk, self.describe(disk))
            }
            Action::Join(disk) => {
                self.inside.insert(disk.0);
                Event::Joined(disk, Ok(()))
            }
            Action::Leave(disk) => {
                self.put_back();
                self.inside.remove(&disk.0);
                Event::Left(disk)
            }
            Action::Round(round) => Event::Round(self.round(&round)),
            Action::Acknowledge => {
                for disk in &self.inside {
                    self.pins[usize::from(*disk)].taken.clear();
                }
                Event::Acknowledged
            }
            Action::Copier(job) => Event::Copier(job.disk, self.copy(&job)),
            Action::Seal(seal) => Event::Sealed(self.seal(&seal)),
            Action::Collected(_)
            | Action::CollectEnd
            | Action::PutBack(..)
            | Action::Result(_)
            | Action::StandDown(_)
            | Action::StandUp
            | Action::Retire
            | Action::Tell(_) => return,
        };
        self.news.push_back(news);
    }

    fn open(&mut self, disk: DiskNumber) -> Opened {
        assert!(self.saved.disks[&disk].attaching, "attached without that being on record");
        let pins = &mut self.pins[usize::from(disk.0)];
        let tracking =
            if pins.there { Tracking::Continued } else { Tracking::Fresh("the machine booted".into()) };
        pins.there = true;
        let taken = std::mem::take(&mut pins.taken);
        pins.done.extend(taken);
        let unlocated = pins.unlocated.then(|| "pass-through".to_owned());
        // The engine hears of it with this.
        self.unknown_writes.remove(&disk.0);
        Opened { bytes: BLOCKS * 4096, hardware_id: None, tracking, unlocated }
    }

    /// Whether the process server does what it is asked, and whether the agent hears of it.
    fn fate(&mut self) -> (bool, bool) {
        match self.cut_off.take() {
            None => (true, true),
            Some(done) => (done, false),
        }
    }

    fn describe(&mut self, disk: DiskNumber) -> Result<DiskState, Failure> {
        let (done, heard) = self.fate();
        let copy = &mut self.copies[usize::from(disk.0)];
        if done && !copy.described {
            *copy = Copy { described: true, epoch: 1, ..Copy::default() };
        }
        if !heard {
            return Err(Failure::Away("cut off".into()));
        }
        Ok(DiskState {
            epoch: Epoch(copy.epoch),
            next_part: Part(copy.next_part),
            sealed: copy.sealed,
            copy_bytes: copy.content.as_ref().map(|_| BLOCKS * 4096),
            other_writer: false,
        })
    }

    /// Makes a part durable, if it is the right one and not lost.
    fn part(&mut self, open: OpenEpoch, blocks: impl Iterator<Item = u64>) -> Result<u32, Failure> {
        let (done, heard) = self.fate();
        let copy = &mut self.copies[usize::from(open.disk.0)];
        if !copy.described || (copy.epoch, copy.next_part) != (open.epoch.0, open.part) {
            return Err(Failure::Conflict("another part is next".into()));
        }
        if done {
            let source = &self.disks[usize::from(open.disk.0)];
            let content = copy.content.get_or_insert_with(|| vec![0; source.len()]);
            for block in blocks {
                let index = usize::try_from(block).unwrap();
                content[index] = source[index];
            }
            copy.next_part += 1;
        }
        if heard { Ok(open.part + 1) } else { Err(Failure::Away("cut off".into())) }
    }

    fn put_back(&mut self) {
        for disk in &self.inside {
            let pins = &mut self.pins[usize::from(*disk)];
            let taken = std::mem::take(&mut pins.taken);
            pins.done.extend(taken);
        }
    }

    fn round(&mut self, round: &Round) -> RoundEnd {
        let disks: BTreeSet<u16> = round.open.iter().map(|open| open.disk.0).collect();
        assert_eq!(disks, self.inside, "a round has all disks of the flow");
        let mut done = RoundDone {
            parts: Vec::new(),
            sent_bytes: 0,
            deferred: false,
            more: false,
            before_point: Duration::ZERO,
            point: None,
            unreadable: BTreeMap::new(),
            writes: BTreeMap::new(),
        };
        for open in &round.open {
            let pins = &mut self.pins[usize::from(open.disk.0)];
            pins.taken.append(&mut pins.done);
            let blocks = pins.taken.clone();
            let mut parts = open.part;
            if !blocks.is_empty() {
                match self.part(*open, blocks.iter().copied()) {
                    Ok(next) => parts = next,
                    Err(failure) => {
                        self.put_back();
                        return RoundEnd::Lost(failure);
                    }
                }
                done.sent_bytes += blocks.len() as u64 * 4096;
            }
            done.parts.push((open.disk, parts));
        }
        if self.unreadable {
            done.unreadable.insert(round.open[0].disk, "blocks 1..2".into());
        } else if round.point.is_some() {
            self.captured = self.unknown_writes.is_empty().then(|| self.disks.clone());
            let seconds = i64::try_from(self.now.as_secs()).unwrap();
            let time = Timestamp::from_second(seconds).unwrap();
            done.point = Some(Ok(CapturedPoint {
                time,
                kind: PointKind::Crash,
                figures: CaptureFigures::default(),
                disks: round.open.iter().map(|open| (open.disk, BLOCKS * 4096)).collect(),
                unreadable: Vec::new(),
                not_frozen: Vec::new(),
            }));
        }
        RoundEnd::Done(done)
    }

    fn copy(&mut self, job: &Job) -> CopyStep {
        let disk = usize::from(job.disk.0);
        assert!(!self.inside.contains(&job.disk.0), "copied while the flow has it");
        let (open, blocks): (_, Vec<u64>) = match job.what {
            CopyJob::Copy { epoch, part, range, send_zeroes } => {
                let wanted = (range.first..range.end())
                    .filter(|block| send_zeroes || self.disks[disk][usize::try_from(*block).unwrap()] != 0);
                (OpenEpoch { disk: job.disk, epoch, part }, wanted.collect())
            }
            CopyJob::Resync { epoch, part, first_chunk, chunks } => {
                let end = ((first_chunk + chunks) * CHUNK_BLOCKS).min(BLOCKS);
                let content =
                    self.copies[disk].content.clone().unwrap_or_else(|| vec![0; self.disks[disk].len()]);
                let wanted = (first_chunk * CHUNK_BLOCKS..end).filter(|block| {
                    let index = usize::try_from(*block).unwrap();
                    self.disks[disk][index] != content[index]
                });
                (OpenEpoch { disk: job.disk, epoch, part }, wanted.collect())
            }
            CopyJob::Compare { .. } | CopyJob::Settle { .. } => return CopyStep::Stopped,
        };
        let sent_bytes = blocks.len() as u64 * 4096;
        let sent = if blocks.is_empty() { Ok(open.part) } else { self.part(open, blocks.into_iter()) };
        match sent {
            Ok(next_part) => CopyStep::Sent { next_part, sent_bytes, took: Duration::from_secs(1) },
            Err(failure) => CopyStep::Lost(failure),
        }
    }

    fn seal(&mut self, seal: &SealPoint) -> Result<PointId, Failure> {
        let pending = self.saved.pending.as_ref().expect("a point is on record before it is sealed");
        assert_eq!(pending.point, seal.point);
        let (done, heard) = self.fate();
        let again =
            seal.disks.iter().all(|disk| self.copies[usize::from(disk.disk.0)].sealed == Some(seal.point));
        if !again {
            for disk in &seal.disks {
                let copy = &self.copies[usize::from(disk.disk.0)];
                if (copy.epoch, copy.next_part) != (disk.epoch.0, disk.parts) {
                    return Err(Failure::Conflict("another epoch is open".into()));
                }
            }
            if done {
                self.check_point(seal);
                for disk in &seal.disks {
                    let copy = &mut self.copies[usize::from(disk.disk.0)];
                    copy.sealed = Some(seal.point);
                    copy.epoch += 1;
                    copy.next_part = 0;
                    self.at_seal[usize::from(disk.disk.0)] = copy.clone();
                }
            }
        }
        if heard { Ok(seal.point) } else { Err(Failure::Away("cut off".into())) }
    }

    /// The promise: a sealed point is the disks at its time, bit for bit.
    fn check_point(&mut self, seal: &SealPoint) {
        let Some(captured) = &self.captured else { return };
        for disk in &seal.disks {
            let index = usize::from(disk.disk.0);
            let zeroes = vec![0; captured[index].len()];
            let content = self.copies[index].content.as_ref().unwrap_or(&zeroes);
            let wrong: Vec<_> =
                (0..zeroes.len()).filter(|block| content[*block] != captured[index][*block]).collect();
            assert!(wrong.is_empty(), "disk {} of the point is wrong at {wrong:?}", disk.disk);
        }
        self.points += 1;
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let disk = 0..DISKS;
    let block = 0..BLOCKS;
    let step = prop_oneof![
        30 => (1u8..30).prop_map(Step::Go),
        20 => (disk.clone(), block.clone()).prop_map(|(disk, block)| Step::Write(disk, block)),
        6 => any::<bool>().prop_map(|done| Step::CutOff { done }),
        4 => Just(Step::Crash),
        1 => (disk.clone(), block.clone()).prop_map(|(disk, block)| Step::Reboot(disk, block)),
        1 => (disk, block).prop_map(|(disk, block)| Step::Unlocated(disk, block)),
        1 => Just(Step::Rewind),
        1 => Just(Step::LoseRecord),
        1 => any::<bool>().prop_map(Step::SecondDisk),
        1 => any::<bool>().prop_map(Step::Unreadable),
        1 => any::<bool>().prop_map(Step::Pause),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn every_sealed_point_is_the_disks_at_its_time_and_there_is_one_in_the_end(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        // Now nothing goes wrong any more.
        for step in [Step::Unreadable(false), Step::Pause(false), Step::SecondDisk(true), Step::Write(1, 77)] {
            world.step(&step);
        }
        world.cut_off = None;
        let before = world.points;
        for _ in 0..3000 {
            world.go();
            let newest: Vec<_> = world.copies.iter().map(|copy| copy.sealed).collect();
            if world.points > before + 1 && newest[0].is_some() && newest[0] == newest[1] {
                break;
            }
        }
        prop_assert!(world.points > before + 1, "no points any more: {:?}", world.engine.summary());
        for (number, disk) in world.disks.iter().enumerate() {
            let copy = world.at_seal[number].content.as_ref();
            prop_assert!(copy == Some(disk) || disk.iter().all(|block| *block == 0), "disk {} is not in its newest point", number);
        }
    }
}

#[test]
fn a_first_copy_goes_on_where_it_was_acknowledged() {
    let mut world = World::new();
    for block in (1..BLOCKS).step_by(7) {
        world.write(0, block, false);
    }
    while !matches!(world.saved.disks.get(&DiskNumber(0)).map(|disk| &disk.sync), Some(Sync::Copy { next_block, .. }) if *next_block > 0)
    {
        world.go();
    }
    world.step(&Step::Crash);
    for _ in 0..40 {
        world.go();
    }
    let Some(Sync::Copy { next_block, .. }) = world.saved.disks.get(&DiskNumber(0)).map(|disk| &disk.sync)
    else {
        assert!(world.points > 0 || world.inside.contains(&0), "the copy neither went on nor ended");
        return;
    };
    assert!(*next_block > 0, "the copy began anew");
}
