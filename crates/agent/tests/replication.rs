//! The real agent on loop devices, against a process server that keeps images.
//!
//! Needs root, loop devices and a kernel that can track.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that cannot go on fails")]

mod site;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lifeboat_model::PointKind;
use lifeboat_wire::agent::{AgentReport, CaptureMode, Command, CommandKind, Outcome};

use site::Site;
use site::disk::{Writer, prefix_of};

#[test]
fn a_disk_is_copied_and_every_point_under_writes_is_an_exact_prefix_of_them() {
    let mut site = Site::new(&[32]);
    let log = {
        let writer = Writer::start(&site.disks[0], 4000, Duration::from_micros(300));
        let log = Arc::clone(&writer.log);
        let (checked, newest) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let wrong = Arc::new(std::sync::Mutex::new(Vec::new()));
        let (counts, newests, wrongs) = (Arc::clone(&checked), Arc::clone(&newest), Arc::clone(&wrong));
        let writes = Arc::clone(&writer.log);
        site.server.state.lock().unwrap().check = Some(Box::new(move |images| {
            let log = writes.lock().unwrap().clone();
            match prefix_of(&images[&0], &log) {
                Ok(number) => drop(newests.fetch_max(number, Ordering::Relaxed)),
                Err(why) => wrongs.lock().unwrap().push(why),
            }
            counts.fetch_add(1, Ordering::Relaxed);
        }));
        site.start();
        site.until("ten points", || checked.load(Ordering::Relaxed) >= 10);
        let wrong = wrong.lock().unwrap().clone();
        if !wrong.is_empty() {
            // Two looks at the tracking, to compare its counts with the writer's.
            let written = writer.stop();
            std::thread::sleep(Duration::from_millis(2500));
            panic!("{wrong:?}; {written} writes; log:\n{}", site.log());
        }
        assert!(newest.load(Ordering::Relaxed) > 0);
        writer.stop();
        log
    };
    site.check_newest_point();
    let state = site.server.state.lock().unwrap();
    let log = log.lock().unwrap();
    assert_eq!(prefix_of(&state.images[&0], &log), Ok(log.len() as u64));
    assert!(state.seals.iter().all(|seal| seal.kind == PointKind::Crash && seal.capture.frozen_us == 0));
    assert!(state.seals.windows(2).all(|pair| pair[0].time < pair[1].time));
    assert!(state.received_zeroes < 1000, "zeroes of a fresh copy travelled: {}", state.received_zeroes);
}

#[test]
fn an_agent_that_is_killed_again_and_again_loses_nothing() {
    let mut site = Site::new(&[24, 16]);
    site.disks[1].fill(3);
    let writers = [
        Writer::start(&site.disks[0], 3000, Duration::from_micros(500)),
        Writer::start(&site.disks[1], 900, Duration::from_millis(1)),
    ];
    for round in 0..15_u64 {
        site.start();
        // At moments that differ: in the first copy, in points, at the very start.
        std::thread::sleep(Duration::from_millis(30 + round * 137 % 900));
        site.kill();
    }
    site.start();
    site.until("points", || site.server.newest().is_some());
    for writer in writers {
        assert!(writer.stop() > 0);
    }
    site.check_newest_point();
    assert_eq!(site.stop(), Some(0));
}

#[test]
fn a_process_server_that_was_away_gets_what_was_written_meanwhile_once() {
    let mut site = Site::new(&[16]);
    site.disks[0].fill(2);
    site.start();
    site.check_newest_point();
    site.server.set_away(true);
    // The same hundred blocks again and again: they travel once.
    for number in 0..2000 {
        site.disks[0].write(number % 100, number + 1);
    }
    site.until("the agent's complaint", || site.log().contains("process_server_lost"));
    let before = site.server.state.lock().unwrap().received_blocks;
    site.server.set_away(false);
    site.check_newest_point();
    let sent = site.server.state.lock().unwrap().received_blocks - before;
    assert!((100..1000).contains(&sent), "{sent} blocks");
    site.until("news of it", || site.server.has_event("process_server_back"));
    assert!(!site.server.has_event("resync_started"));
}

#[test]
fn after_lost_tracking_only_what_differs_travels() {
    let mut site = Site::new(&[64]);
    site.disks[0].fill(2);
    site.start();
    site.check_newest_point();
    assert_eq!(site.stop(), Some(0));
    let untracked = site.command(&["untrack", "--config", site.config().to_str().unwrap()]);
    assert!(untracked.status.success(), "{untracked:?}");
    // Unseen: new content, and zeroes over old content.
    for block in 0..50 {
        site.disks[0].write(block * 7 + 1, block + 1);
        site.disks[0].write(8000 + block * 2, 0);
    }
    let before = site.server.state.lock().unwrap().received_blocks;
    site.start();
    site.until("the resync", || site.server.has_event("resync_finished"));
    site.check_newest_point();
    let sent = site.server.state.lock().unwrap().received_blocks - before;
    assert!((100..200).contains(&sent), "{sent} blocks travelled for 100 that differ");
}

#[test]
fn a_restart_goes_on_without_a_resync_and_a_lost_record_does_not() {
    let mut site = Site::new(&[16]);
    site.disks[0].fill(5);
    site.start();
    site.check_newest_point();
    assert_eq!(site.stop(), Some(0));
    site.disks[0].write(9, 99);
    let before = site.server.state.lock().unwrap().received_blocks;
    site.start();
    site.check_newest_point();
    let sent = site.server.state.lock().unwrap().received_blocks - before;
    assert!(sent < 100, "{sent} blocks after a restart");
    assert!(!site.server.has_event("resync_started"));
    assert_eq!(site.stop(), Some(0));
    std::fs::remove_file(site.dir.path().join("state/record.json")).unwrap();
    site.disks[0].write(10, 100);
    site.start();
    site.until("the resync", || site.server.has_event("resync_finished"));
    site.check_newest_point();
}

#[test]
fn disks_come_and_go_and_grow_while_points_go_on() {
    let mut site = Site::new(&[16]);
    site.disks[0].fill(3);
    site.start();
    site.check_newest_point();
    site.add_disk(48);
    site.disks[1].fill(2);
    site.until("a point of two disks", || site.server.newest().is_some_and(|seal| seal.disks.len() == 2));
    site.check_newest_point();

    site.disks[0].grow(32);
    site.disks[0].write(6000, 6);
    site.until("a point of the new size", || {
        site.server.newest().is_some_and(|seal| seal.disks[0].bytes == 32 << 20)
    });
    site.check_newest_point();
    assert!(site.server.has_event("disk_grown"));
    assert!(!site.server.has_event("resync_started"), "growth compared the old area");

    site.remove_disk(0);
    site.until("a point of one disk", || site.server.newest().is_some_and(|seal| seal.disks.len() == 1));
    let newest = site.server.newest().unwrap();
    assert_eq!(newest.disks[0].disk.0, 1, "a disk keeps its number");
}

#[test]
fn a_second_agent_on_the_same_state_is_refused() {
    let mut site = Site::new(&[8]);
    site.start();
    site.until("a point", || site.server.newest().is_some());
    let config = site.config();
    let second = site.command(&["run", "--config", config.to_str().unwrap()]);
    assert_eq!(second.status.code(), Some(2));
    let sentence = String::from_utf8(second.stderr).unwrap();
    assert!(sentence.contains("another agent uses") && sentence.contains("systemctl stop"), "{sentence}");

    let status = site.command(&["status", "--config", config.to_str().unwrap(), "--output", "json"]);
    let answer: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(answer["running"], true);
    let report: AgentReport = serde_json::from_value(answer).unwrap();
    assert_eq!(
        (report.capture, report.disks.len(), status.status.code()),
        (CaptureMode::Optimistic, 1, Some(0))
    );
    assert_eq!(site.stop(), Some(0));
    let down = site.command(&["status", "--config", config.to_str().unwrap(), "--output", "json"]);
    let answer: serde_json::Value = serde_json::from_slice(&down.stdout).unwrap();
    assert_eq!((down.status.code(), &answer["running"]), (Some(1), &false.into()));
    assert!(answer["message"].as_str().unwrap().starts_with("The agent does not run ("), "{answer}");
    let untracked = site.command(&["untrack", "--config", config.to_str().unwrap(), "--output", "json"]);
    let answer: serde_json::Value = serde_json::from_slice(&untracked.stdout).unwrap();
    assert_eq!(answer, serde_json::json!({"untracked": ["d0-2048"]}));
    let wrong = site.command(&["untrack", "--config", "/nowhere/agent.toml", "--output", "json"]);
    let answer: serde_json::Value = serde_json::from_slice(&wrong.stderr).unwrap();
    assert_eq!((wrong.status.code(), &answer["error"]["code"]), (Some(2), &"failed".into()));
    let check = site.command(&["check", "--disk", &site.disks[0].path, "--disk", "/dev/null"]);
    let text = String::from_utf8(check.stdout).unwrap();
    assert_eq!(check.status.code(), Some(1));
    assert!(text.contains("can be protected") && text.contains("/dev/null is not a block device"), "{text}");
}

#[test]
fn a_comparison_finds_a_wrong_block_of_the_copy_and_mends_it() {
    let mut site = Site::new(&[16]);
    site.disks[0].fill(2);
    site.start();
    site.check_newest_point();
    site.server.ask(1, CommandKind::Compare);
    site.until("a comparison", || site.server.outcome(1).is_some());
    let Some(Outcome::Compared { disks, .. }) = site.server.outcome(1) else {
        panic!("{:?}", site.server.outcome(1))
    };
    assert_eq!((disks[0].equal_blocks, disks[0].different_blocks), (4096, 0));

    // The copy rots; and somebody writes while it is compared.
    site.server.state.lock().unwrap().disks.get_mut(&0).unwrap().content.as_mut().unwrap()[700 * 4096 + 5] ^=
        1;
    let writer = Writer::start(&site.disks[0], 600, Duration::from_millis(1));
    site.server.ask(2, CommandKind::Compare);
    site.until("a comparison", || site.server.outcome(2).is_some());
    writer.stop();
    let Some(Outcome::Compared { disks, .. }) = site.server.outcome(2) else {
        panic!("{:?}", site.server.outcome(2))
    };
    assert_eq!(disks[0].different_blocks, 1, "{disks:?}");
    site.until("the finding", || site.server.has_event("copy_differs"));
    site.check_newest_point();
}

#[test]
fn replication_that_is_switched_off_sends_nothing_and_loses_nothing() {
    let mut site = Site::new(&[16]);
    site.disks[0].fill(4);
    site.start();
    site.check_newest_point();
    site.server.change_assignment(|assignment| {
        assignment.replicate = false;
        assignment.reason = Some("protection is paused".into());
    });
    let stalled = || {
        let state = site.server.state.lock().unwrap();
        let capture = state.report.as_ref().map(|report| report.capture.clone());
        matches!(capture, Some(CaptureMode::Stalled { reason }) if reason.contains("protection is paused"))
    };
    site.until("the report of it", stalled);
    let before = site.server.state.lock().unwrap().received_blocks;
    for block in 0..100 {
        site.disks[0].write(block, block + 5);
    }
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(site.server.state.lock().unwrap().received_blocks, before);
    site.server.change_assignment(|assignment| assignment.replicate = true);
    site.check_newest_point();
    assert!(!site.server.has_event("resync_started"));
}

#[test]
fn a_first_copy_keeps_to_its_limit_and_a_throttle_holds_for_everything() {
    let mut site = Site::new(&[8]);
    site.disks[0].fill(1);
    site.server.change_assignment(|assignment| {
        assignment.policy.copy_bytes_per_second = Some(2 << 20);
    });
    // Lower bounds say that something was slow on purpose; there are no upper ones.
    let begun = std::time::Instant::now();
    site.start();
    site.until("a first point", || site.server.newest().is_some());
    let took = begun.elapsed().as_millis();
    assert!(took >= 3_000, "8 MiB at 2 MiB a second took {took} ms");

    // The limit of copies does not hold for what is written later.
    let before = site.server.newest().unwrap().point;
    let write = |from: u64| (0..1024).for_each(|block| site.disks[0].write(from + block, from + block + 7));
    write(0);
    site.check_newest_point();
    assert_ne!(site.server.newest().unwrap().point, before);
    // The process server's throttle does. A command that came with it is done: so it is in force.
    let take_point = CommandKind::TakePoint { kind: PointKind::Crash };
    site.server.change_assignment(|assignment| {
        assignment.throttle_bytes_per_second = Some(512 << 10);
        assignment.commands.push(Command { request: 1, kind: take_point.clone() });
    });
    site.until("a point with the throttle", || site.server.outcome(1).is_some());
    let begun = std::time::Instant::now();
    write(1024);
    site.server.ask(2, take_point);
    site.until("a point", || site.server.outcome(2).is_some());
    let took = begun.elapsed().as_millis();
    assert!(took >= 5_000, "4 MiB at 512 KiB a second took {took} ms");
    site.server.change_assignment(|assignment| assignment.throttle_bytes_per_second = None);
    site.check_newest_point();
}

#[test]
fn a_filesystem_point_is_taken_in_a_freeze_when_asked_for() {
    let mut site = Site::new(&[64]);
    let mount = site.dir.path().join("mount");
    std::fs::create_dir(&mount).unwrap();
    let run = |program: &str, words: &[&str]| {
        let done = std::process::Command::new(program).args(words).output().unwrap();
        assert!(done.status.success(), "{program}: {done:?}");
    };
    run("mkfs.ext4", &["-q", &site.disks[0].path]);
    run("mount", &[&site.disks[0].path, mount.to_str().unwrap()]);
    struct Unmount(std::path::PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg(&self.0).status();
        }
    }
    let unmount = Unmount(mount.clone());
    site.start();
    site.until("points", || site.server.newest().is_some());
    std::fs::write(mount.join("file"), b"content").unwrap();
    site.server.ask(4, CommandKind::TakePoint { kind: PointKind::Filesystem });
    site.until("an outcome", || site.server.outcome(4).is_some());
    let outcome = site.server.outcome(4);
    let Some(Outcome::PointTaken { point }) = outcome else { panic!("{outcome:?}; {}", site.log()) };
    let state = site.server.state.lock().unwrap();
    let seal = state.seals.iter().find(|seal| seal.point == point).unwrap().clone();
    drop(state);
    assert_eq!(seal.kind, PointKind::Filesystem);
    assert!(seal.capture.frozen_us > 0);
    drop(unmount);
    site.check_newest_point();
}
