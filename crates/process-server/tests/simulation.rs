//! Random sequences of what agents, line, vault and power can do to the core, against a small model.
//!
//! After every step: what was acknowledged is in the spool or in the vault's store, every disk stands
//! where its agent thinks, and the vault got points whole and in their order. At the end everything
//! sealed is committed.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test may fail where it stands")]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use common::{begin, describe, files_ending, seal_disk, seal_of, write_partial};
use jiff::Timestamp;
use lifeboat_hrl::verify_file;
use lifeboat_model::{Digest, DiskNumber, Epoch, Part, PointId, ServerId};
use lifeboat_process_server::{Gateway, LinkError, Refusal, UploadError};
use lifeboat_wire::agent::SealPoint;
use lifeboat_wire::process_server::{CommitPoint, CommitReceipt, FileDescription};
use proptest::prelude::*;

const SERVERS: u64 = 2;
const DISKS: u16 = 2;
const WALL: Timestamp = Timestamp::UNIX_EPOCH;

/// How the line and the vault treat one request.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Good,
    /// It was done, but the answer got lost.
    Lost,
    Unreachable,
    Refused,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Part {
        server: u64,
        disk: u16,
        power_off: Option<bool>,
    },
    TwoConnections {
        server: u64,
        disk: u16,
    },
    WrongPart {
        server: u64,
        disk: u16,
        epoch: u64,
        part: u32,
    },
    Seal {
        server: u64,
        again: bool,
    },
    SealWrong {
        server: u64,
    },
    Upload {
        answer: Answer,
    },
    Commit {
        answer: Answer,
    },
    /// The vault's registration, from before the last `lag` commits.
    Describe {
        server: u64,
        disk: u16,
        lag: usize,
        vault_away: bool,
    },
    KeepStoredOnly,
    PowerOff {
        upload_runs: bool,
    },
}

fn steps() -> impl Strategy<Value = Step> {
    let (server, disk) = (|| 0..SERVERS, || 0..DISKS);
    let answer = || {
        prop_oneof![
            6 => Just(Answer::Good),
            1 => Just(Answer::Lost),
            1 => Just(Answer::Unreachable),
            1 => Just(Answer::Refused),
        ]
    };
    prop_oneof![
        8 => (server(), disk(), prop_oneof![8 => Just(None), 1 => any::<bool>().prop_map(Some)])
            .prop_map(|(server, disk, power_off)| Step::Part { server, disk, power_off }),
        1 => (server(), disk()).prop_map(|(server, disk)| Step::TwoConnections { server, disk }),
        1 => (server(), disk(), 0..6u64, 0..4u32)
            .prop_map(|(server, disk, epoch, part)| Step::WrongPart { server, disk, epoch, part }),
        5 => (server(), any::<bool>()).prop_map(|(server, again)| Step::Seal { server, again }),
        1 => server().prop_map(|server| Step::SealWrong { server }),
        8 => answer().prop_map(|answer| Step::Upload { answer }),
        5 => answer().prop_map(|answer| Step::Commit { answer }),
        1 => (server(), disk(), 0..3usize, any::<bool>())
            .prop_map(|(server, disk, lag, vault_away)| Step::Describe { server, disk, lag, vault_away }),
        1 => Just(Step::KeepStoredOnly),
        2 => any::<bool>().prop_map(|upload_runs| Step::PowerOff { upload_runs }),
    ]
}

type Place = (ServerId, DiskNumber, Epoch, Part);

#[derive(Default)]
struct Vault {
    stored: BTreeMap<Place, Digest>,
    /// Points with their epochs, by server, in the order of commit.
    committed: BTreeMap<ServerId, Vec<SealPoint>>,
}

struct World {
    _dir: tempfile::TempDir,
    path: PathBuf,
    gateway: Option<Gateway>,
    vault: Vault,
    /// Acknowledged and not committed.
    acknowledged: BTreeMap<Place, Digest>,
    open: BTreeMap<(ServerId, DiskNumber), (Epoch, u32)>,
    sealed: BTreeMap<ServerId, Vec<SealPoint>>,
    next: u64,
    now: Duration,
}

impl World {
    fn new() -> Self {
        let dir = common::fast_dir();
        let path = dir.path().join("state");
        let gateway = common::open(&path).unwrap();
        let mut open = BTreeMap::new();
        for server in (0..SERVERS).map(ServerId::new) {
            for disk in (0..DISKS).map(DiskNumber) {
                describe(&gateway, server, disk);
                open.insert((server, disk), (Epoch(1), 0));
            }
        }
        Self {
            _dir: dir,
            path,
            gateway: Some(gateway),
            vault: Vault::default(),
            acknowledged: BTreeMap::new(),
            open,
            sealed: BTreeMap::new(),
            next: 1,
            now: Duration::ZERO,
        }
    }

    fn gateway(&self) -> &Gateway {
        self.gateway.as_ref().unwrap()
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn restart(&mut self) {
        self.gateway = None;
        self.gateway = Some(common::open(&self.path).unwrap());
        assert!(files_ending(&self.path, ".partial").is_empty(), "a partial file outlived a restart");
        assert!(self.gateway().take_events().is_empty(), "a restart found damage");
    }

    fn acknowledge(&mut self, server: ServerId, disk: DiskNumber, digest: Digest) {
        let (epoch, parts) = self.open.get_mut(&(server, disk)).unwrap();
        self.acknowledged.insert((server, disk, *epoch, Part(*parts)), digest);
        *parts += 1;
    }

    fn apply(&mut self, step: Step) {
        // Every pause between attempts is over.
        self.now += Duration::from_secs(1000);
        match step {
            Step::Part { server, disk, power_off } => {
                self.part(ServerId::new(server), DiskNumber(disk), power_off);
            }
            Step::TwoConnections { server, disk } => {
                self.two_connections(ServerId::new(server), DiskNumber(disk));
            }
            Step::WrongPart { server, disk, epoch, part } => {
                let (server, disk) = (ServerId::new(server), DiskNumber(disk));
                let right = (Epoch(epoch), part) == self.open[&(server, disk)];
                let begun = begin(self.gateway(), server, disk, Epoch(epoch), Part(part));
                match begun {
                    Ok(ticket) => {
                        assert!(right);
                        self.gateway().abandon_part(&ticket);
                    }
                    Err(refusal) => {
                        assert!(!right, "{refusal}");
                        let state = refusal.state().unwrap();
                        let (epoch, parts) = self.open[&(server, disk)];
                        assert_eq!((state.epoch, state.next_part), (epoch, Part(parts)));
                    }
                }
            }
            Step::Seal { server, again } => self.seal(ServerId::new(server), again),
            Step::SealWrong { server } => {
                let server = ServerId::new(server);
                let (epoch, parts) = self.open[&(server, DiskNumber(0))];
                let point = self.fresh();
                let seal = seal_of(point, vec![seal_disk(0, epoch.0, parts + 1)]);
                let refused = self.gateway().seal_point(server, &seal, 0, WALL).unwrap_err();
                assert!(matches!(refused, Refusal::PartsDiffer { .. }), "{refused}");
            }
            Step::Upload { answer } => {
                self.upload(answer);
            }
            Step::Commit { answer } => {
                self.commit(answer);
            }
            Step::Describe { server, disk, lag, vault_away } => {
                self.describe(ServerId::new(server), DiskNumber(disk), lag, vault_away);
            }
            Step::KeepStoredOnly => drop(self.gateway().keep_stored_only(3).unwrap()),
            Step::PowerOff { upload_runs } => {
                if upload_runs && let Some(upload) = self.gateway().next_upload(self.now) {
                    self.store(upload.server, &upload.file, &upload.path);
                }
                self.restart();
            }
        }
    }

    fn part(&mut self, server: ServerId, disk: DiskNumber, power_off: Option<bool>) {
        let (epoch, part) = self.open[&(server, disk)];
        let seed = self.fresh();
        let ticket = begin(self.gateway(), server, disk, epoch, Part(part)).unwrap();
        let summary = write_partial(&ticket, seed, 1);
        match power_off {
            None => {
                self.gateway().finish_part(&ticket, summary).unwrap();
                self.acknowledge(server, disk, summary.digest);
            }
            // Before the answer arrived: either it counts or not, and the agent asks which.
            Some(durable) => {
                if durable {
                    self.gateway().finish_part(&ticket, summary).unwrap();
                    self.acknowledge(server, disk, summary.digest);
                }
                self.restart();
            }
        }
    }

    fn two_connections(&mut self, server: ServerId, disk: DiskNumber) {
        let (epoch, part) = self.open[&(server, disk)];
        let (one, two) = (self.fresh(), self.fresh());
        let first = begin(self.gateway(), server, disk, epoch, Part(part)).unwrap();
        let first_summary = write_partial(&first, one, 1);
        let second = begin(self.gateway(), server, disk, epoch, Part(part)).unwrap();
        assert!(first.taken_over.is_cancelled() && !second.taken_over.is_cancelled());
        let second_summary = write_partial(&second, two, 1);
        let refused = self.gateway().finish_part(&first, first_summary).unwrap_err();
        assert!(matches!(refused, Refusal::Superseded { .. }), "{refused}");
        fs::remove_file(&first.partial).unwrap();
        self.gateway().finish_part(&second, second_summary).unwrap();
        self.acknowledge(server, disk, second_summary.digest);
    }

    fn seal(&mut self, server: ServerId, again: bool) {
        let disks: Vec<_> = (0..DISKS)
            .map(|disk| {
                let (epoch, parts) = self.open[&(server, DiskNumber(disk))];
                seal_disk(disk, epoch.0, parts)
            })
            .collect();
        let point = self.fresh();
        let seal = seal_of(point, disks);
        self.gateway().seal_point(server, &seal, 0, WALL).unwrap();
        if again {
            let receipt = self.gateway().seal_point(server, &seal, 0, WALL).unwrap();
            assert_eq!(receipt.point, seal.point);
            let mut other = seal.clone();
            other.disks.pop();
            let refused = self.gateway().seal_point(server, &other, 0, WALL).unwrap_err();
            assert!(matches!(refused, Refusal::PointDiffers { .. }), "{refused}");
        }
        for disk in (0..DISKS).map(DiskNumber) {
            let (epoch, parts) = self.open.get_mut(&(server, disk)).unwrap();
            (*epoch, *parts) = (epoch.next(), 0);
        }
        self.sealed.entry(server).or_default().push(seal);
    }

    fn store(&mut self, server: ServerId, file: &FileDescription, path: &std::path::Path) {
        let verified = verify_file(File::open(path).unwrap()).unwrap();
        assert_eq!((verified.summary.digest, verified.summary.bytes), (file.digest, file.bytes));
        let place = (server, file.disk, file.epoch, file.part);
        assert_eq!(
            self.acknowledged.get(&place),
            Some(&file.digest),
            "what was never acknowledged is uploaded"
        );
        self.vault.stored.insert(place, file.digest);
    }

    fn upload(&mut self, answer: Answer) -> bool {
        let Some(upload) = self.gateway().next_upload(self.now) else { return false };
        if matches!(answer, Answer::Good | Answer::Lost) {
            self.store(upload.server, &upload.file, &upload.path);
        }
        let result = link_result(answer).map_err(UploadError::Link);
        self.gateway().upload_ended(&upload, &result, self.now, WALL);
        let _ = self.gateway().take_events();
        true
    }

    fn commit(&mut self, answer: Answer) -> bool {
        let Some(commit) = self.gateway().next_commit(self.now) else { return false };
        if matches!(answer, Answer::Good | Answer::Lost) {
            self.take_commit(&commit);
        }
        let receipt = CommitReceipt { point: commit.seal.point, committed_at: WALL };
        let result = link_result(answer).map(|()| receipt);
        self.gateway().commit_ended(&commit, &result, self.now, WALL).unwrap();
        let _ = self.gateway().take_events();
        if result.is_ok() {
            self.acknowledged.retain(|(server, disk, epoch, _), _| {
                *server != commit.server
                    || !commit.seal.disks.iter().any(|seal| (seal.disk, seal.epoch) == (*disk, *epoch))
            });
        }
        true
    }

    /// What the vault checks.
    fn take_commit(&mut self, commit: &CommitPoint) {
        let server = commit.server;
        let done = self.vault.committed.entry(server).or_default();
        if done.iter().any(|seal| seal.point == commit.seal.point) {
            return;
        }
        assert_eq!(Some(&commit.seal), self.sealed[&server].get(done.len()), "out of order");
        let mut wanted = Vec::new();
        for seal in &commit.seal.disks {
            wanted.extend((0..seal.parts).map(|part| (server, seal.disk, seal.epoch, Part(part))));
        }
        let named: Vec<_> =
            commit.files.iter().map(|file| (server, file.disk, file.epoch, file.part)).collect();
        assert_eq!(named, wanted, "a point names all of its files and no other");
        for (place, file) in named.iter().zip(&commit.files) {
            assert_eq!(
                self.vault.stored.get(place),
                Some(&file.digest),
                "a point names a file that is not stored"
            );
        }
        done.push(commit.seal.clone());
    }

    fn describe(&mut self, server: ServerId, disk: DiskNumber, lag: usize, vault_away: bool) {
        let done = self.vault.committed.get(&server).map_or(&[][..], Vec::as_slice);
        let at = done.len().saturating_sub(lag);
        let committed = at.checked_sub(1).map(|last| {
            let seal = done[last].disks.iter().find(|seal| seal.disk == disk).unwrap();
            (done[last].point, seal.epoch)
        });
        // The answer is as old as its lag: commits have ended since it was asked for.
        let commits = self.gateway().commits(server).wrapping_sub(u64::from(lag > 0));
        let registration = (!vault_away).then(|| (common::registration(server, disk, committed), commits));
        let gateway = self.gateway();
        gateway.describe_disk(server, disk, &common::description(), None, registration, WALL).unwrap();
        assert!(gateway.take_events().is_empty());
    }

    fn check(&self) {
        for ((server, disk), (epoch, parts)) in &self.open {
            let state = self.gateway().disk_state(*server, *disk).unwrap();
            assert_eq!((state.epoch, state.next_part), (*epoch, Part(*parts)), "{server} {disk}");
            let newest = self.sealed.get(server).and_then(|sealed| sealed.last());
            assert_eq!(state.sealed, newest.map(|seal| seal.point));
            assert_eq!(state.copy_bytes.is_some(), epoch.0 > 1 || *parts > 0);
        }
        for (place, digest) in &self.acknowledged {
            let (server, disk, epoch, part) = place;
            let path = self.path.join(format!("spool/{server}/{disk}/{epoch}-{part}.hrl"));
            match File::open(&path) {
                Ok(file) => assert_eq!(verify_file(file).unwrap().summary.digest, *digest),
                Err(_) => {
                    assert_eq!(self.vault.stored.get(place), Some(digest), "{} is lost", path.display());
                }
            }
        }
    }

    /// Line and vault work again.
    fn settle(&mut self) {
        loop {
            self.now += Duration::from_secs(1000);
            let uploaded = self.upload(Answer::Good);
            let committed = self.commit(Answer::Good);
            if !uploaded && !committed {
                break;
            }
        }
        self.restart();
        self.check();
        for (server, sealed) in &self.sealed {
            assert_eq!(self.vault.committed.get(server), Some(sealed), "sealed points stay uncommitted");
        }
        assert!(files_ending(&self.path.join("points"), ".json").is_empty());
        let open: u32 = self.open.values().map(|(_, parts)| parts).sum();
        let mut left = files_ending(&self.path.join("spool"), "");
        // A file that is stored only may have been put on record twice.
        left.iter_mut().for_each(|path| assert!(path.set_extension("")));
        left.dedup();
        assert_eq!(left.len(), open as usize, "files of committed points stay: {left:?}");
    }
}

fn link_result(answer: Answer) -> Result<(), LinkError> {
    match answer {
        Answer::Good => Ok(()),
        Answer::Lost | Answer::Unreachable => Err(LinkError::Unreachable("the line is cut".into())),
        Answer::Refused => {
            Err(LinkError::Refused { status: 409, code: "no".into(), message: "it does not like it".into() })
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_acknowledged_is_lost_and_points_are_committed_in_order(
        steps in prop::collection::vec(steps(), 1..60),
    ) {
        let mut world = World::new();
        for step in steps {
            world.apply(step);
            world.check();
        }
        world.settle();
    }
}

#[test]
fn a_point_of_nothing_is_committed_too() {
    let mut world = World::new();
    world.seal(ServerId::new(0), true);
    assert_eq!(world.gateway().disk_state(ServerId::new(0), DiskNumber(1)).unwrap().epoch, Epoch(2));
    world.settle();
    assert_eq!(world.vault.committed[&ServerId::new(0)][0].point, PointId::new(2));
}
