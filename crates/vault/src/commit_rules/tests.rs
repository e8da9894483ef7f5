use jiff::Timestamp;
use lifeboat_model::{Digest, PointKind};
use lifeboat_wire::agent::{CaptureFigures, SealDisk, SealPoint};
use lifeboat_wire::process_server::FileDescription;
use proptest::prelude::*;

use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn file(disk: u16, epoch: u64, part: u32) -> FileDescription {
    FileDescription {
        disk: DiskNumber(disk),
        epoch: Epoch(epoch),
        part: Part(part),
        bytes: 10,
        digest: Digest::of(b"content"),
        plain_bytes: 4096,
    }
}

/// A commit at `seconds` of disks, each with its epoch and parts.
fn commit(seconds: i64, disks: &[(u16, u64, u32)]) -> CommitPoint {
    let sealed = |(disk, epoch, parts): &(u16, u64, u32)| SealDisk {
        disk: DiskNumber(*disk),
        epoch: Epoch(*epoch),
        parts: *parts,
        bytes: 1 << 20,
    };
    let files = |(disk, epoch, parts): &(u16, u64, u32)| {
        (0..*parts).map(|part| file(*disk, *epoch, part)).collect::<Vec<_>>()
    };
    CommitPoint {
        server: ServerId::new(1),
        seal: SealPoint {
            point: PointId::new(u64::try_from(seconds).unwrap()),
            time: at(seconds),
            kind: PointKind::Crash,
            disks: disks.iter().map(sealed).collect(),
            removed: Vec::new(),
            capture: CaptureFigures::default(),
        },
        files: disks.iter().flat_map(files).collect(),
        sealed_at: at(seconds),
        uploaded_at: at(seconds),
    }
}

fn known(disks: u16) -> History {
    History { known: (0..disks).map(|disk| (DiskNumber(disk), Removed::No)).collect(), ..History::default() }
}

/// The history after a commit that was accepted.
fn after(mut history: History, commit: &CommitPoint) -> History {
    for disk in &commit.seal.disks {
        history.epochs.insert(disk.disk, disk.epoch);
    }
    history.newest = Some(NewestPoint {
        point: commit.seal.point,
        disks: commit.seal.disks.iter().map(|disk| disk.disk).collect(),
    });
    history
}

fn judge(history: &History, commit: &CommitPoint) -> Result<(), CommitRefusal> {
    check(history, commit)
}

#[test]
fn points_that_follow_are_taken() {
    let first = commit(100, &[(0, 1, 2), (1, 1, 0)]);
    let history = known(3);
    assert_eq!(judge(&history, &first), Ok(()));
    let history = after(history, &first);
    assert_eq!(judge(&history, &commit(101, &[(0, 2, 0), (1, 2, 1)])), Ok(()));
    assert_eq!(judge(&history, &commit(101, &[(0, 2, 1), (1, 2, 1), (2, 1, 1)])), Ok(()), "a new disk");
}

#[test]
fn another_history_is_refused() {
    let first = commit(100, &[(0, 1, 1)]);
    let history = after(known(1), &first);
    for epoch in [1, 3] {
        let refused = judge(&history, &commit(101, &[(0, epoch, 1)])).unwrap_err();
        assert!(matches!(refused, CommitRefusal::Epoch { expected: Epoch(2), .. }), "{refused}");
    }
}

#[test]
fn a_time_that_is_wrong_is_no_reason_to_refuse() {
    let history = after(known(1), &commit(100, &[(0, 1, 1)]));
    for seconds in [1, 100, 5_000_000_000] {
        assert_eq!(judge(&history, &commit(seconds, &[(0, 2, 1)])), Ok(()));
    }
}

#[test]
fn a_disk_may_be_left_out_only_when_it_was_removed() {
    let mut history = after(known(2), &commit(100, &[(0, 1, 1), (1, 1, 1)]));
    let without = commit(101, &[(0, 2, 1)]);
    let refused = judge(&history, &without).unwrap_err();
    assert!(matches!(refused, CommitRefusal::DiskMissing { disk: DiskNumber(1), .. }), "{refused}");
    history.known.insert(DiskNumber(1), Removed::Yes);
    assert_eq!(judge(&history, &without), Ok(()));
    let history = after(history, &without);
    let back = judge(&history, &commit(102, &[(0, 3, 1), (1, 1, 1)])).unwrap_err();
    assert!(
        matches!(back, CommitRefusal::Epoch { .. }),
        "a disk that comes back goes on with its epochs: {back}"
    );
}

#[test]
fn a_disk_may_be_left_out_when_the_agent_says_that_it_was_taken_out_of_the_settings() {
    let mut history = after(known(2), &commit(100, &[(0, 1, 1), (1, 1, 1)]));
    let mut without = commit(101, &[(0, 2, 1)]);
    without.seal.removed = vec![DiskNumber(1)];
    assert_eq!(judge(&history, &without), Ok(()));
    assert_eq!(changed_disks(&history, &without), [(DiskNumber(1), Removed::Yes)]);
    history.known.insert(DiskNumber(1), Removed::Yes);
    // A point that was sealed before still has it: it stays removed.
    assert_eq!(changed_disks(&history, &commit(101, &[(0, 2, 1), (1, 2, 1)])), []);
    let history = after(history, &without);
    assert_eq!(changed_disks(&history, &without), [], "said again with every point");
    let back = commit(102, &[(0, 3, 1), (1, 2, 1)]);
    assert_eq!(judge(&history, &back), Ok(()));
    assert_eq!(changed_disks(&history, &back), [(DiskNumber(1), Removed::No)]);
}

#[test]
fn files_are_exactly_the_parts() {
    let whole = commit(100, &[(0, 1, 3)]);
    let mut missing = whole.clone();
    missing.files.remove(1);
    assert!(matches!(
        judge(&known(1), &missing),
        Err(CommitRefusal::FilesMissing { found: 2, parts: 3, .. })
    ));
    for odd in [file(0, 1, 0), file(0, 1, 3), file(0, 2, 0), file(1, 1, 0)] {
        let mut more = whole.clone();
        more.files.push(odd);
        assert!(matches!(judge(&known(1), &more), Err(CommitRefusal::FileUnexpected { .. })));
    }
}

#[test]
fn disks_are_known_whole_and_named_once() {
    assert!(matches!(judge(&known(1), &commit(1, &[])), Err(CommitRefusal::NoDisks(_))));
    assert!(matches!(judge(&known(1), &commit(1, &[(1, 1, 0)])), Err(CommitRefusal::DiskUnknown(_))));
    assert!(matches!(
        judge(&known(1), &commit(1, &[(0, 1, 0), (0, 1, 0)])),
        Err(CommitRefusal::DiskTwice(_))
    ));
    for bytes in [0, u64::MAX] {
        let mut odd = commit(1, &[(0, 1, 0)]);
        odd.seal.disks[0].bytes = bytes;
        assert!(matches!(judge(&known(1), &odd), Err(CommitRefusal::DiskBytes { .. })));
    }
}

/// What is wrong with a commit that is tried.
#[derive(Clone, Debug)]
enum Wrong {
    Nothing,
    Epoch(u16, i8),
    LeftOut(u16),
    PartLost(u16),
    PartTwice(u16),
}

#[derive(Clone, Debug)]
enum Step {
    Commit { parts: Vec<u32>, wrong: Wrong },
    AddDisk,
    RemoveDisk(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let wrong = prop_oneof![
        4 => Just(Wrong::Nothing),
        1 => (0_u16..8, prop_oneof![Just(-1_i8), Just(1_i8)]).prop_map(|(disk, by)| Wrong::Epoch(disk, by)),
        1 => (0_u16..8).prop_map(Wrong::LeftOut),
        1 => (0_u16..8).prop_map(Wrong::PartLost),
        1 => (0_u16..8).prop_map(Wrong::PartTwice),
    ];
    let commit =
        (prop::collection::vec(0_u32..3, 8), wrong).prop_map(|(parts, wrong)| Step::Commit { parts, wrong });
    let step = prop_oneof![6 => commit, 1 => Just(Step::AddDisk), 1 => (0_u16..8).prop_map(Step::RemoveDisk)];
    prop::collection::vec(step, 1..30)
}

/// Puts what is wrong into a commit; says whether anything is wrong with it now.
fn spoil(commit: &mut CommitPoint, wrong: &Wrong, history: &History) -> bool {
    let count = u16::try_from(commit.seal.disks.len()).unwrap();
    match wrong {
        Wrong::Nothing => false,
        Wrong::Epoch(disk, by) => {
            let disk = &mut commit.seal.disks[usize::from(disk % count)];
            disk.epoch = Epoch(disk.epoch.0.saturating_add_signed(i64::from(*by)));
            let (number, epoch) = (disk.disk, disk.epoch);
            commit.files.iter_mut().filter(|file| file.disk == number).for_each(|file| file.epoch = epoch);
            true
        }
        Wrong::LeftOut(disk) => {
            let left_out = commit.seal.disks.remove(usize::from(disk % count)).disk;
            commit.files.retain(|file| file.disk != left_out);
            let had = history.newest.as_ref().is_some_and(|newest| newest.disks.contains(&left_out));
            commit.seal.disks.is_empty() || (had && history.known[&left_out] == Removed::No)
        }
        Wrong::PartLost(disk) => {
            let disk = commit.seal.disks[usize::from(disk % count)].disk;
            let before = commit.files.len();
            if let Some(place) = commit.files.iter().position(|file| file.disk == disk) {
                commit.files.remove(place);
            }
            commit.files.len() < before
        }
        Wrong::PartTwice(disk) => {
            let disk = commit.seal.disks[usize::from(disk % count)].disk;
            let file = commit.files.iter().find(|file| file.disk == disk).cloned();
            commit.files.extend(file.clone());
            file.is_some()
        }
    }
}

proptest! {
    /// Whatever is tried, what is accepted is one history: each disk's epochs count up by one.
    #[test]
    fn accepted_points_are_one_history(steps in steps()) {
        let mut history = known(2);
        let mut epochs: BTreeMap<DiskNumber, Vec<u64>> = BTreeMap::new();
        let mut seconds = 1;
        for step in steps {
            match step {
                Step::AddDisk => {
                    let disk = DiskNumber(u16::try_from(history.known.len()).unwrap());
                    history.known.insert(disk, Removed::No);
                }
                Step::RemoveDisk(disk) => {
                    if let Some(state) = history.known.get_mut(&DiskNumber(disk)) {
                        *state = Removed::Yes;
                    }
                }
                Step::Commit { parts, wrong } => {
                    seconds += 1;
                    let protected = history.known.iter().filter(|(_, removed)| **removed == Removed::No);
                    let disks: Vec<(u16, u64, u32)> = protected
                        .map(|(disk, _)| {
                            let epoch = history.epochs.get(disk).map_or(1, |epoch| epoch.0 + 1);
                            (disk.0, epoch, parts[usize::from(disk.0) % parts.len()])
                        })
                        .collect();
                    if disks.is_empty() {
                        continue;
                    }
                    let mut tried = commit(seconds, &disks);
                    let is_wrong = spoil(&mut tried, &wrong, &history);
                    let judged = judge(&history, &tried);
                    prop_assert_eq!(judged.is_err(), is_wrong, "{:?}: {:?}", wrong, judged);
                    if judged.is_ok() {
                        for disk in &tried.seal.disks {
                            epochs.entry(disk.disk).or_default().push(disk.epoch.0);
                        }
                        history = after(history, &tried);
                    }
                }
            }
        }
        for (disk, epochs) in epochs {
            let counted: Vec<u64> = (1..=epochs.len() as u64).collect();
            prop_assert_eq!(epochs, counted, "disk {}", disk);
        }
    }
}
