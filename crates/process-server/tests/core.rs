//! Single promises of the core, each on real files.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test may fail where it stands")]

mod common;

use std::fs;
use std::time::Duration;

use common::{begin, describe, files_ending, seal_disk, seal_of, send_part};
use jiff::Timestamp;
use lifeboat_hrl::FileId;
use lifeboat_model::{DiskNumber, Epoch, Part, PointId, ServerId};
use lifeboat_process_server::{Gateway, LinkError, PartPlace, UploadError, WriterClaim, set_aside};
use lifeboat_wire::event::Severity;
use lifeboat_wire::process_server::CommitReceipt;

const SERVER: ServerId = ServerId::new(7);
const OTHER: ServerId = ServerId::new(8);
const DISK: DiskNumber = DiskNumber(0);
const WALL: Timestamp = Timestamp::UNIX_EPOCH;

fn upload_all(gateway: &Gateway, now: Duration) -> usize {
    let mut count = 0;
    while let Some(upload) = gateway.next_upload(now) {
        gateway.upload_ended(&upload, &Ok(()), now, WALL);
        count += 1;
    }
    count
}

fn commit_next(gateway: &Gateway, now: Duration) -> Option<PointId> {
    let commit = gateway.next_commit(now)?;
    let receipt = CommitReceipt { point: commit.seal.point, committed_at: WALL };
    gateway.commit_ended(&commit, &Ok(receipt), now, WALL).unwrap();
    Some(commit.seal.point)
}

fn refused() -> LinkError {
    LinkError::Refused {
        status: 403,
        code: "unknown_server".into(),
        message: "this server is not known".into(),
    }
}

#[test]
fn wrong_numbers_are_answered_with_where_the_disk_stands() {
    let dir = common::fast_dir();
    let gateway = common::open(&dir.path().join("state")).unwrap();
    let unknown = begin(&gateway, SERVER, DISK, Epoch(1), Part(0)).unwrap_err();
    assert_eq!((unknown.status(), unknown.code()), (404, "unknown_disk"));
    describe(&gateway, SERVER, DISK);
    send_part(&gateway, SERVER, DISK, Epoch(1), Part(0), 1).unwrap();
    for (epoch, part, code) in [
        (1, 0, "part_already_durable"),
        (1, 2, "wrong_part"),
        (2, 0, "wrong_epoch"),
        (0, 0, "wrong_epoch"),
        (u64::MAX, u32::MAX, "wrong_epoch"),
    ] {
        let refusal = begin(&gateway, SERVER, DISK, Epoch(epoch), Part(part)).unwrap_err();
        assert_eq!((refusal.status(), refusal.code()), (409, code), "{refusal}");
        let state = refusal.state().unwrap();
        assert_eq!((state.epoch, state.next_part), (Epoch(1), Part(1)));
    }
    for (disks, code) in [
        (vec![], "malformed_point"),
        (vec![seal_disk(0, 1, 1), seal_disk(0, 1, 1)], "malformed_point"),
        (vec![seal_disk(0, 2, 1)], "wrong_epoch"),
        (vec![seal_disk(0, 1, 0)], "parts_differ"),
        (vec![seal_disk(0, 1, 2)], "parts_differ"),
        (vec![seal_disk(0, 1, 1), seal_disk(1, 1, 0)], "unknown_disk"),
        (vec![lifeboat_wire::agent::SealDisk { bytes: 4096, ..seal_disk(0, 1, 1) }], "size_differs"),
    ] {
        let refusal = gateway.seal_point(SERVER, &seal_of(1, disks), 0, WALL).unwrap_err();
        assert_eq!(refusal.code(), code, "{refusal}");
    }
    assert!(files_ending(&dir.path().join("state/points"), "").is_empty());
}

#[test]
fn points_are_committed_in_order_although_files_are_stored_in_any() {
    let dir = common::fast_dir();
    let gateway = common::open(&dir.path().join("state")).unwrap();
    describe(&gateway, SERVER, DISK);
    for point in 1..=3 {
        send_part(&gateway, SERVER, DISK, Epoch(point), Part(0), point).unwrap();
        gateway.seal_point(SERVER, &seal_of(point, vec![seal_disk(0, point, 1)]), 0, WALL).unwrap();
    }
    let now = Duration::ZERO;
    let uploads: Vec<_> = std::iter::from_fn(|| gateway.next_upload(now)).collect();
    assert_eq!(uploads.len(), 3);
    for upload in uploads.iter().rev() {
        assert!(gateway.next_commit(now).is_none(), "a point was committed before the one before it");
        gateway.upload_ended(upload, &Ok(()), now, WALL);
    }
    let order: Vec<_> = std::iter::from_fn(|| commit_next(&gateway, now)).collect();
    assert_eq!(order, [PointId::new(1), PointId::new(2), PointId::new(3)]);
}

#[test]
fn servers_take_turns_at_the_line() {
    let dir = common::fast_dir();
    let gateway = common::open(&dir.path().join("state")).unwrap();
    for server in [SERVER, OTHER] {
        describe(&gateway, server, DISK);
        for part in 0..3 {
            send_part(&gateway, server, DISK, Epoch(1), Part(part), 1).unwrap();
        }
    }
    let served: Vec<_> =
        std::iter::from_fn(|| gateway.next_upload(Duration::ZERO)).map(|u| u.server).collect();
    assert_eq!(served, [SERVER, OTHER, SERVER, OTHER, SERVER, OTHER]);
}

#[test]
fn a_refusal_is_told_once_kept_as_trouble_and_tried_again_slowly() {
    let dir = common::fast_dir();
    let gateway = common::open(&dir.path().join("state")).unwrap();
    for server in [SERVER, OTHER] {
        describe(&gateway, server, DISK);
        send_part(&gateway, server, DISK, Epoch(1), Part(0), 1).unwrap();
    }
    let mut now = Duration::ZERO;
    let upload = gateway.next_upload(now).unwrap();
    let bad = upload.server;
    gateway.upload_ended(&upload, &Err(UploadError::Link(refused())), now, WALL);
    let events = gateway.take_events();
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].severity, events[0].code.as_str()), (Severity::Critical, "upload_refused"));
    let trouble = gateway.spool_report(bad, now).upload_trouble.unwrap();
    assert!(trouble.contains("this server is not known"), "{trouble}");
    let other = gateway.next_upload(now).unwrap();
    assert_ne!(other.server, bad, "another server's files go on");
    gateway.upload_ended(&other, &Ok(()), now, WALL);
    assert!(gateway.next_upload(now).is_none(), "tried again at once");
    now += Duration::from_secs(301);
    let again = gateway.next_upload(now).unwrap();
    gateway.upload_ended(&again, &Err(UploadError::Link(refused())), now, WALL);
    assert!(gateway.take_events().is_empty(), "told twice");
    now += Duration::from_secs(301);
    let again = gateway.next_upload(now).unwrap();
    gateway.upload_ended(&again, &Ok(()), now, WALL);
    assert_eq!(gateway.spool_report(bad, now).upload_trouble, None);
}

#[test]
fn a_damaged_file_is_reported_kept_and_stops_its_server_until_it_is_set_aside() {
    let dir = common::fast_dir();
    let path = dir.path().join("state");
    let gateway = common::open(&path).unwrap();
    for server in [SERVER, OTHER] {
        describe(&gateway, server, DISK);
        for epoch in 1..=3 {
            send_part(&gateway, server, DISK, Epoch(epoch), Part(0), epoch).unwrap();
            gateway.seal_point(server, &seal_of(epoch, vec![seal_disk(0, epoch, 1)]), 0, WALL).unwrap();
        }
    }
    drop(gateway);
    let file = path.join(format!("spool/{SERVER}/0/2-0.hrl"));
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 10]).unwrap();

    let gateway = common::open(&path).unwrap();
    let events = gateway.take_events();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!((events[0].severity, events[0].server), (Severity::Critical, Some(SERVER)));
    assert!(events[0].message.contains("2-0.hrl"), "{}", events[0].message);
    assert!(file.exists());
    let refusal = begin(&gateway, SERVER, DISK, Epoch(4), Part(0)).unwrap_err();
    assert_eq!(refusal.code(), "spool_damaged");
    assert_eq!(upload_all(&gateway, Duration::ZERO), 4, "what comes before the damage still goes");
    let commits = std::iter::from_fn(|| commit_next(&gateway, Duration::ZERO)).count();
    assert_eq!(commits, 4);
    assert!(gateway.spool_report(SERVER, Duration::ZERO).upload_trouble.unwrap().contains("2-0.hrl"));
    drop(gateway);

    let place = set_aside(&path, SERVER, WALL).unwrap();
    assert_eq!(files_ending(&place, ".hrl").len(), 2);
    let gateway = common::open(&path).unwrap();
    assert!(gateway.take_events().is_empty());
    assert_eq!(gateway.disk_state(SERVER, DISK), None);
    assert_eq!(gateway.disk_state(OTHER, DISK).unwrap().epoch, Epoch(4));
    let committed = Some((PointId::new(1), Epoch(1)));
    let fresh = Some((common::registration(SERVER, DISK, committed), gateway.commits(SERVER)));
    let state = gateway.describe_disk(SERVER, DISK, &common::description(), None, fresh, WALL).unwrap();
    assert_eq!((state.epoch, state.sealed), (Epoch(2), Some(PointId::new(1))));
    send_part(&gateway, SERVER, DISK, Epoch(2), Part(0), 9).unwrap();
}

#[test]
fn every_kind_of_loss_in_the_spool_is_noticed_at_the_start() {
    type Harm = fn(&std::path::Path);
    let harms: [(&str, Harm); 6] = [
        ("a sealed file is gone", |path| {
            fs::remove_file(path.join(format!("spool/{SERVER}/0/1-0.hrl"))).unwrap();
        }),
        ("an open file is gone", |path| {
            fs::remove_file(path.join(format!("spool/{SERVER}/0/2-0.hrl"))).unwrap();
        }),
        ("two files were exchanged", |path| {
            let of = |name: &str| path.join(format!("spool/{SERVER}/0/{name}.hrl"));
            fs::rename(of("1-0"), of("2-1")).unwrap();
        }),
        ("the point is gone", |path| {
            fs::remove_file(&files_ending(&path.join("points"), ".json")[0]).unwrap();
        }),
        ("the point is damaged", |path| {
            let point = &files_ending(&path.join("points"), ".json")[0];
            let text = fs::read_to_string(point).unwrap().replace("\"parts\":1", "\"parts\":0");
            fs::write(point, text).unwrap();
        }),
        ("the keys are gone", |path| fs::remove_file(path.join(format!("servers/{SERVER}.json"))).unwrap()),
    ];
    for (name, harm) in harms {
        let dir = common::fast_dir();
        let path = dir.path().join("state");
        let gateway = common::open(&path).unwrap();
        describe(&gateway, SERVER, DISK);
        send_part(&gateway, SERVER, DISK, Epoch(1), Part(0), 1).unwrap();
        gateway.seal_point(SERVER, &seal_of(1, vec![seal_disk(0, 1, 1)]), 0, WALL).unwrap();
        send_part(&gateway, SERVER, DISK, Epoch(2), Part(0), 2).unwrap();
        send_part(&gateway, SERVER, DISK, Epoch(2), Part(1), 3).unwrap();
        drop(gateway);
        harm(&path);
        let before = files_ending(&path, "").len();
        let gateway = common::open(&path).unwrap();
        let events = gateway.take_events();
        assert!(events.iter().any(|event| event.code == "spool_damaged"), "{name}: not noticed");
        upload_all(&gateway, Duration::ZERO);
        let commit = gateway.next_commit(Duration::ZERO);
        if let Some(commit) = commit {
            assert_eq!(commit.files.len(), 1, "{name}: a point without its files would be committed");
        }
        assert_eq!(files_ending(&path, "").len(), before, "{name}: something was removed");
    }
}

#[test]
fn a_crash_at_any_moment_of_a_commit_leaves_nothing_half() {
    let dir = common::fast_dir();
    let path = dir.path().join("state");
    let gateway = common::open(&path).unwrap();
    describe(&gateway, SERVER, DISK);
    send_part(&gateway, SERVER, DISK, Epoch(1), Part(0), 1).unwrap();
    gateway.seal_point(SERVER, &seal_of(1, vec![seal_disk(0, 1, 1)]), 0, WALL).unwrap();
    let point = files_ending(&path.join("points"), ".json").remove(0);
    let file = path.join(format!("spool/{SERVER}/0/1-0.hrl"));
    let (point_bytes, file_bytes) = (fs::read(&point).unwrap(), fs::read(&file).unwrap());
    upload_all(&gateway, Duration::ZERO);
    commit_next(&gateway, Duration::ZERO).unwrap();
    drop(gateway);
    assert!(!point.exists() && !file.exists());
    // The order is: remember the commit, remove the point, remove the file.
    for with_point in [true, false] {
        fs::write(&file, &file_bytes).unwrap();
        if with_point {
            lifeboat_trust::private_file::write_private(&point, &point_bytes).unwrap();
        }
        let gateway = common::open(&path).unwrap();
        assert!(gateway.take_events().is_empty(), "taken for damage");
        let state = gateway.disk_state(SERVER, DISK).unwrap();
        assert_eq!((state.epoch, state.next_part, state.sealed), (Epoch(2), Part(0), Some(PointId::new(1))));
        assert!(!point.exists() && !file.exists(), "what was committed stays");
    }
}

#[test]
fn a_vault_that_went_back_or_went_past_is_noticed() {
    let dir = common::fast_dir();
    let gateway = common::open(&dir.path().join("state")).unwrap();
    describe(&gateway, SERVER, DISK);
    let describe_with = |committed| {
        let fresh = Some((common::registration(SERVER, DISK, committed), gateway.commits(SERVER)));
        gateway.describe_disk(SERVER, DISK, &common::description(), None, fresh, WALL).unwrap()
    };
    send_part(&gateway, SERVER, DISK, Epoch(1), Part(0), 1).unwrap();
    // Another process server took the agent over for a while.
    let state = describe_with(Some((PointId::new(9), Epoch(5))));
    assert_eq!((state.epoch, state.next_part, state.sealed), (Epoch(6), Part(0), Some(PointId::new(9))));
    assert_eq!(gateway.take_events()[0].code, "spool_superseded");
    assert!(files_ending(&dir.path().join("state/spool"), ".hrl").is_empty());
    // The vault's catalog was restored from an older state.
    let state = describe_with(Some((PointId::new(4), Epoch(3))));
    assert_eq!((state.epoch, state.sealed), (Epoch(4), Some(PointId::new(4))));
    assert_eq!(gateway.take_events()[0].code, "vault_went_back");
}

#[test]
fn a_key_that_is_not_the_one_it_is_called_is_refused() {
    let dir = common::fast_dir();
    let gateway = common::open(&dir.path().join("state")).unwrap();
    let mut registration = common::registration(SERVER, DISK, None);
    registration.key_id = common::disk_key(OTHER, DISK).id().to_string();
    let described =
        gateway.describe_disk(SERVER, DISK, &common::description(), None, Some((registration, 0)), WALL);
    assert_eq!(described.unwrap_err().code(), "unusable_key");
    assert_eq!(gateway.disk_state(SERVER, DISK), None);
}

/// Two agents with one certificate: whoever described the disk last writes, and the other is told.
#[test]
fn an_agent_whose_turn_was_taken_is_told_until_it_says_that_it_knows() {
    let dir = common::fast_dir();
    let path = dir.path().join("state");
    let claim = |gateway: &Gateway, writer, follows, attempt, heard| {
        let claim = WriterClaim { writer, follows, attempt, heard };
        let registration = Some((common::registration(SERVER, DISK, None), gateway.commits(SERVER)));
        let described =
            gateway.describe_disk(SERVER, DISK, &common::description(), Some(&claim), registration, WALL);
        described.unwrap().other_writer
    };
    let begin = |gateway: &Gateway, writer| {
        let (epoch, part) = (Epoch(1), Part(0));
        let place = PartPlace { server: SERVER, disk: DISK, epoch, part, writer };
        gateway.begin_part(place, FileId([u8::try_from(writer).unwrap(); 16]), 1)
    };
    let gateway = common::open(&path).unwrap();
    assert!(!claim(&gateway, 1, None, 1, 0), "nobody was there before");
    let ticket = begin(&gateway, 1).unwrap();
    assert!(claim(&gateway, 2, None, 1, 0), "the other one has written");
    assert!(ticket.taken_over.is_cancelled());
    let summary = common::write_partial(&ticket, 1, 1);
    assert_eq!(gateway.finish_part(&ticket, summary).unwrap_err().code(), "superseded");
    assert_eq!(begin(&gateway, 1).unwrap_err().code(), "other_writer");
    let seal = seal_of(1, vec![seal_disk(0, 1, 0)]);
    assert_eq!(gateway.seal_point(SERVER, &seal, 1, WALL).unwrap_err().code(), "other_writer");

    // The first one again. Its answer is lost, and the process server restarts.
    assert!(claim(&gateway, 1, None, 2, 1));
    drop(gateway);
    let gateway = common::open(&path).unwrap();
    assert_eq!(begin(&gateway, 2).unwrap_err().code(), "other_writer");
    assert!(claim(&gateway, 1, None, 3, 1), "it is told again");
    // A next life cannot know what that one has not heard.
    assert!(claim(&gateway, 3, Some(1), 1, 0));
    assert!(!claim(&gateway, 3, Some(1), 2, 1), "it has heard");
    assert!(!claim(&gateway, 4, Some(3), 1, 0), "the life after it goes on");
    begin(&gateway, 4).unwrap();
}
