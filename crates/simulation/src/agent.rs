//! A protected server: the real engine of the agent, over model disks and a model tracker.
//!
//! The engine needs no devices, so it is the real one. What reads blocks, follows writes and
//! streams parts stands on eBPF and block devices, and is modelled here after its own rules: a
//! bit is set when a write has completed, taken before the block is read, and given back unless
//! the engine has acknowledged it. Pinned bits survive the agent, not the machine.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use lifeboat_agent::engine::{
    Action, CopyJob, CopyStep, DiskProblem, Engine, Event, Failure, Job, OpenEpoch, Opened, PointFailure,
    Round, RoundDone, RoundEnd, Tracking, WantedDisk,
};
use lifeboat_agent::record::{Record, Sync};
use lifeboat_capture::CapturedPoint;
use lifeboat_model::{DiskNumber, PointKind, ReplicationPolicy, RetentionRule, ServerId, Span};
use lifeboat_wire::agent::{
    Assignment, CHUNK_BLOCKS, CaptureFigures, DigestRequest, DigestsOf, SealPoint, ZERO_DIGEST,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::content::Image;
use crate::line::Line;
use crate::model::{ExpectedPoint, check_sentence};

/// How servers are protected here: many points, thinned out soon.
pub fn policy() -> ReplicationPolicy {
    ReplicationPolicy {
        interval: Span::seconds(2),
        retention: vec![
            RetentionRule { until: Span::seconds(KEEP_ALL_SECONDS), every: None },
            RetentionRule { until: Span::seconds(120), every: Some(Span::seconds(10)) },
            RetentionRule { until: Span::seconds(600), every: Some(Span::seconds(60)) },
        ],
        ..ReplicationPolicy::default()
    }
}

/// Younger points are all kept.
pub const KEEP_ALL_SECONDS: u64 = 12;

#[derive(Clone, Debug, Default)]
struct Pins {
    there: bool,
    done: BTreeSet<u64>,
    taken: BTreeSet<u64>,
    /// The size for which the bits are.
    bytes: u64,
}

/// A disk and what the kernel knows of it.
#[derive(Clone, Debug)]
pub struct SourceDisk {
    pub image: Image,
    pins: Pins,
    size_changed: bool,
}

pub struct Agent {
    pub label: String,
    pub server: ServerId,
    pub disks: Vec<SourceDisk>,
    /// How many of the disks the settings name.
    pub wanted: usize,
    pub paused: bool,
    engine: Engine,
    saved: Record,
    inside: BTreeSet<u16>,
    news: VecDeque<Event>,
    captured: Option<BTreeMap<DiskNumber, Rc<Image>>>,
    revision: u64,
    draws: u64,
}

fn engine_of(record: Record, draws: u64) -> Engine {
    let mut random = StdRng::seed_from_u64(draws);
    Engine::new(record, "source".into(), Box::new(move || random.random()))
}

impl Agent {
    pub fn new(label: &str, server: ServerId, disks: Vec<Image>, draws: u64) -> Self {
        let disk = |image| SourceDisk { image, pins: Pins::default(), size_changed: false };
        let mut agent = Self {
            label: label.to_owned(),
            server,
            wanted: 1,
            disks: disks.into_iter().map(disk).collect(),
            paused: false,
            engine: engine_of(Record::default(), draws),
            saved: Record::default(),
            inside: BTreeSet::new(),
            news: VecDeque::new(),
            captured: None,
            revision: 1,
            draws,
        };
        agent.start();
        agent
    }

    /// The same server put back from this moment, on another machine.
    pub fn clone_elsewhere(&self, draws: u64) -> Self {
        let mut clone = Self::new(&format!("clone of {}", self.label), self.server, Vec::new(), draws);
        clone.disks.clone_from(&self.disks);
        clone.disks.iter_mut().for_each(|disk| disk.pins = Pins::default());
        clone.wanted = self.wanted;
        clone.saved = self.saved.clone();
        clone.start();
        clone
    }

    /// The agent begins, with what it has saved.
    pub fn start(&mut self) {
        self.inside.clear();
        self.news.clear();
        self.captured = None;
        self.draws = self.draws.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        self.engine = engine_of(self.saved.clone(), self.draws);
        self.want(self.wanted);
        self.assign();
    }

    pub fn want(&mut self, disks: usize) {
        self.wanted = disks.min(self.disks.len());
        let wanted = (0..self.wanted).map(|number| WantedDisk {
            path: format!("/dev/sd{number}"),
            identity: Some(format!("serial {number}")),
        });
        self.news.push_back(Event::Wanted(wanted.collect()));
    }

    pub fn pause(&mut self, paused: bool) {
        self.paused = paused;
        self.revision += 1;
        self.assign();
    }

    fn assign(&mut self) {
        self.news.push_back(Event::Assignment(Box::new(Assignment {
            revision: self.revision,
            policy: policy(),
            replicate: !self.paused,
            reason: self.paused.then(|| "an operator paused it".into()),
            commands: Vec::new(),
            committed: None,
            throttle_bytes_per_second: None,
        })));
    }

    /// The machine starts anew: tracking begins from nothing, and something was written meanwhile.
    pub fn reboot(&mut self, line: &mut Line) {
        for disk in &mut self.disks {
            disk.pins = Pins::default();
        }
        self.guest_writes(line);
        self.start();
    }

    /// The agent's state directory is put back empty.
    pub fn lose_record(&mut self) {
        self.saved = Record::default();
        self.start();
    }

    /// A disk gets another size.
    pub fn resize(&mut self, disk: usize, bytes: u64) {
        let disk_number = DiskNumber(u16::try_from(disk).unwrap());
        let disk = &mut self.disks[disk];
        disk.image.resize(bytes);
        disk.size_changed = true;
        self.news.push_back(Event::Problem(disk_number, DiskProblem::SizeChanged));
    }

    /// Whoever works on the server writes something.
    pub fn guest_writes(&mut self, line: &mut Line) {
        let number = line.random.random_range(0..self.disks.len());
        let blocks = self.disks[number].image.len();
        let hot = line.random.random_ratio(1, 4);
        let first = if hot { line.random.random_range(0..3) } else { line.random.random_range(0..blocks) };
        let most = if hot { 1 } else { [4, 40, 150][line.random.random_range(0..3)] };
        let end = (first + line.random.random_range(1..=most)).min(blocks);
        let zeroes = line.random.random_ratio(1, 5);
        for block in first..end {
            let value = if zeroes { 0 } else { line.value() };
            self.disks[number].write(block, value);
        }
    }

    /// Does its next thing or hears the oldest news; false when there is nothing to do now.
    pub async fn go(&mut self, line: &mut Line) -> bool {
        line.writer = self.engine.life();
        if let Some(action) = self.engine.next(line.now) {
            self.perform(action, line).await;
        } else if let Some(event) = self.news.pop_front() {
            self.engine.apply(event, line.now);
        } else {
            return false;
        }
        true
    }

    pub fn follows_all(&self) -> bool {
        let all = self.saved.disks.values().filter(|disk| disk.protected);
        self.wanted == self.inside.len() && all.clone().all(|disk| disk.sync == Sync::Following)
    }

    pub fn state(&self) -> String {
        format!("{:?}", self.engine.summary())
    }

    async fn perform(&mut self, action: Action, line: &mut Line) {
        let news = match action {
            Action::Save(record) => {
                let saved = if line.chance(line.faults.record_not_saved, 10) {
                    Err("No space left on device".to_owned())
                } else {
                    self.saved = *record;
                    Ok(())
                };
                return self.engine.apply(Event::Saved(saved), line.now);
            }
            Action::Open(disk, _) => Event::Opened(disk, Ok(self.open(disk))),
            Action::Close { disk, untrack } => {
                assert!(!self.inside.contains(&disk.0), "a disk is closed while the flow has it");
                if untrack {
                    self.disk(disk).pins = Pins::default();
                }
                return;
            }
            Action::Describe(disk, description) => {
                line.note(format!("{} describes disk {disk}", self.label));
                Event::Described(disk, line.describe(self.server, disk, &description).await)
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
            Action::Round(round) => Event::Round(self.round(&round, line)),
            Action::Acknowledge => {
                for number in self.inside.clone() {
                    self.disks[usize::from(number)].pins.taken.clear();
                }
                Event::Acknowledged
            }
            Action::Copier(job) => {
                let step = self.copy(&job, line).await.unwrap_or_else(CopyStep::Lost);
                Event::Copier(job.disk, step)
            }
            Action::Seal(seal) => {
                self.expect_point(&seal, line);
                line.note(format!("{} seals point {}", self.label, seal.point));
                Event::Sealed(line.seal(self.server, &seal))
            }
            Action::Tell(notice) => {
                check_sentence(&notice.message);
                line.note(format!("{} tells {}: {}", self.label, notice.code, notice.message));
                line.model.figures.resyncs += u64::from(notice.code == "resync_finished");
                return;
            }
            Action::Settle(_)
            | Action::Collected(_)
            | Action::CollectEnd
            | Action::PutBack(..)
            | Action::StandDown(_)
            | Action::StandUp
            | Action::Retire
            | Action::Result(_) => {
                return;
            }
        };
        self.news.push_back(news);
    }

    fn disk(&mut self, disk: DiskNumber) -> &mut SourceDisk {
        &mut self.disks[usize::from(disk.0)]
    }

    fn open(&mut self, disk: DiskNumber) -> Opened {
        assert!(self.saved.disks[&disk].attaching, "a disk is attached without that being on record");
        let SourceDisk { image, pins, size_changed } = self.disk(disk);
        *size_changed = false;
        let tracking = match pins.there {
            false => Tracking::Fresh("the machine was started anew".into()),
            true if image.bytes > pins.bytes => Tracking::Grown,
            true => Tracking::Continued,
        };
        pins.there = true;
        pins.bytes = image.bytes;
        pins.give_back();
        let blocks = image.len();
        pins.done.retain(|block| *block < blocks);
        Opened { bytes: image.bytes, hardware_id: None, tracking, unlocated: None }
    }

    fn put_back(&mut self) {
        for number in &self.inside {
            self.disks[usize::from(*number)].pins.give_back();
        }
    }

    /// What is on the disks at the point is what it has to have, for ever.
    fn expect_point(&mut self, seal: &SealPoint, line: &mut Line) {
        let pending = self.saved.pending.as_ref().expect("a point is on record before it is sealed");
        assert_eq!(pending.point, seal.point);
        let Some(captured) = &self.captured else {
            assert!(line.model.points.contains_key(&seal.point), "a point that was never captured");
            return;
        };
        let images = seal.disks.iter().map(|disk| (disk.disk, Rc::clone(&captured[&disk.disk]))).collect();
        let expected =
            ExpectedPoint { server: self.server, time: seal.time, removed: seal.removed.clone(), images };
        line.model.points.entry(seal.point).or_insert(expected);
    }

    fn round(&mut self, round: &Round, line: &mut Line) -> RoundEnd {
        let disks: BTreeSet<u16> = round.open.iter().map(|open| open.disk.0).collect();
        assert_eq!(disks, self.inside, "a round has all disks of the flow");
        match self.try_round(round, line) {
            Ok(done) => RoundEnd::Done(done),
            Err(end) => {
                self.put_back();
                end
            }
        }
    }

    fn try_round(&mut self, round: &Round, line: &mut Line) -> Result<RoundDone, RoundEnd> {
        if let Some(open) = round.open.iter().find(|open| self.disks[usize::from(open.disk.0)].size_changed) {
            return Err(RoundEnd::Disk(open.disk, DiskProblem::SizeChanged));
        }
        let mut done = RoundDone {
            parts: Vec::new(),
            sent_bytes: 0,
            deferred: false,
            more: line.chance(true, 20),
            before_point: Duration::from_millis(line.random.random_range(0..300)),
            point: None,
            unreadable: BTreeMap::new(),
            writes: BTreeMap::new(),
        };
        let mut open = round.open.clone();
        let mut messages: Vec<Vec<Vec<u8>>> = vec![Vec::new(); open.len()];
        // Before the point blocks are read while the server goes on writing.
        for _ in 0..line.random.random_range(0..3) {
            for (place, messages) in open.iter_mut().zip(&mut messages) {
                messages.extend(self.read_taken(place.disk, &mut done, line));
                if line.random.random_ratio(1, 3) {
                    self.guest_writes(line);
                }
                if line.random.random_ratio(1, 6) {
                    self.send(place, messages, line)?;
                }
            }
        }
        let order = round.point.as_ref().filter(|_| !done.more);
        for (place, messages) in open.iter().zip(&mut messages) {
            messages.extend(self.read_taken(place.disk, &mut done, line));
        }
        if order.is_some() {
            let images = open.iter().map(|place| (place.disk, Rc::new(self.disk(place.disk).image.clone())));
            self.captured = Some(images.collect());
        }
        for (place, messages) in open.iter_mut().zip(&mut messages) {
            if line.random.random_ratio(1, 6) {
                self.guest_writes(line);
            }
            self.send(place, messages, line)?;
        }
        done.parts = open.iter().map(|place| (place.disk, place.part)).collect();
        if order.is_some() {
            let point = CapturedPoint {
                time: line.wall(line.clocks.agent_ms),
                kind: PointKind::Crash,
                figures: CaptureFigures::default(),
                disks: open
                    .iter()
                    .map(|place| (place.disk, self.disks[usize::from(place.disk.0)].image.bytes))
                    .collect(),
                unreadable: Vec::new(),
                not_frozen: Vec::new(),
            };
            let failed = line.chance(true, 20);
            done.point = Some(if failed {
                Err(PointFailure::NotTaken("the load was too high".into()))
            } else {
                Ok(point)
            });
        }
        Ok(done)
    }

    /// Takes the bits, then reads the blocks.
    fn read_taken(&mut self, disk: DiskNumber, done: &mut RoundDone, line: &mut Line) -> Vec<Vec<u8>> {
        let SourceDisk { image, pins, .. } = self.disk(disk);
        let blocks = std::mem::take(&mut pins.done);
        pins.taken.extend(&blocks);
        done.sent_bytes += blocks.len() as u64 * 4096;
        image.messages(&blocks, &mut line.random)
    }

    fn send(
        &self,
        open: &mut OpenEpoch,
        messages: &mut Vec<Vec<u8>>,
        line: &mut Line,
    ) -> Result<(), RoundEnd> {
        if messages.is_empty() {
            return Ok(());
        }
        line.note(format!("{} sends part {}-{} of disk {}", self.label, open.epoch, open.part, open.disk));
        line.part(self.server, *open, messages).map_err(RoundEnd::Lost)?;
        messages.clear();
        open.part += 1;
        Ok(())
    }

    async fn copy(&mut self, job: &Job, line: &mut Line) -> Result<CopyStep, Failure> {
        assert!(!self.inside.contains(&job.disk.0), "a disk is copied while the flow has it");
        if self.disk(job.disk).size_changed {
            return Ok(CopyStep::Disk(DiskProblem::SizeChanged));
        }
        let image = self.disk(job.disk).image.clone();
        let (mut open, blocks) = match job.what {
            CopyJob::Copy { epoch, part, range, send_zeroes } => {
                let wanted = range.first..range.end().min(image.len());
                let wanted = wanted.filter(|block| send_zeroes || image.value(*block) != 0).collect();
                (OpenEpoch { disk: job.disk, epoch, part }, wanted)
            }
            CopyJob::Resync { epoch, part, first_chunk, chunks } => {
                let chunks = first_chunk..(first_chunk + chunks).min(image.len().div_ceil(CHUNK_BLOCKS));
                let different = self.different(job.disk, &image, chunks, line).await?;
                (OpenEpoch { disk: job.disk, epoch, part }, different)
            }
            CopyJob::Compare { .. } | CopyJob::Settle { .. } => return Ok(CopyStep::Stopped),
        };
        let mut messages = image.messages(&blocks, &mut line.random);
        if let Err(RoundEnd::Lost(failure)) = self.send(&mut open, &mut messages, line) {
            return Err(failure);
        }
        // How long it took decides how large the next piece is.
        let took = Duration::from_millis(line.random.random_range(1..60_000));
        Ok(CopyStep::Sent { next_part: open.part, sent_bytes: blocks.len() as u64 * 4096, took })
    }

    /// The blocks of chunks that the copy does not have as the disk does.
    async fn different(
        &self,
        disk: DiskNumber,
        image: &Image,
        chunks: std::ops::Range<u64>,
        line: &mut Line,
    ) -> Result<BTreeSet<u64>, Failure> {
        let of = DigestsOf::Chunks { first: chunks.start, count: chunks.end.saturating_sub(chunks.start) };
        let theirs = line.digests(self.server, disk, &DigestRequest { point: None, of }).await?;
        let zero = lifeboat_model::BlockDigest(ZERO_DIGEST);
        let differ: Vec<u64> = chunks
            .enumerate()
            .filter(|(index, chunk)| {
                theirs.get(*index).copied().unwrap_or(zero) != image.chunk_digest(*chunk)
            })
            .map(|(_, chunk)| chunk)
            .collect();
        let of = DigestsOf::Blocks { chunks: differ.clone() };
        let theirs = line.digests(self.server, disk, &DigestRequest { point: None, of }).await?;
        let blocks = differ.iter().flat_map(|chunk| image.chunk(*chunk).first..image.chunk(*chunk).end());
        let different = blocks
            .enumerate()
            .filter(|(index, block)| {
                theirs.get(*index).copied().unwrap_or(zero) != image.block_digest(*block)
            })
            .map(|(_, block)| block);
        Ok(different.collect())
    }
}

impl Pins {
    fn give_back(&mut self) {
        let taken = std::mem::take(&mut self.taken);
        self.done.extend(taken);
    }
}

impl SourceDisk {
    fn write(&mut self, block: u64, value: u32) {
        self.image.set(block, value);
        let tracked = lifeboat_model::blocks_of_bytes(self.pins.bytes);
        if self.pins.there && block < tracked {
            self.pins.done.insert(block);
        }
    }
}
