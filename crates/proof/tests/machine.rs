//! A real Debian server, protected by an agent inside, loses its power and starts again elsewhere
//! from its newest recovery point.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use jiff::Timestamp;
use lifeboat_proof::{
    Acknowledged, DiskLayout, HOST_ADDRESS, MACHINE_DISK, NumberedCommits, Reach, ServerDisk, Site,
    VirtualMachine, install_agent, scratch, wait_within,
};
use serde_json::Value;

/// The first copy takes a minute or two on a machine of its own; the processor is emulated.
const LIMIT: Duration = Duration::from_secs(1200);
const POINTS_UNDER_LOAD: usize = 3;

#[test]
fn a_server_with_a_master_boot_record_starts_again_with_every_commit() {
    starts_again_with_every_commit(DiskLayout::Bios);
}

#[test]
fn a_server_with_uefi_starts_again_with_every_commit() {
    starts_again_with_every_commit(DiskLayout::Uefi);
}

fn starts_again_with_every_commit(layout: DiskLayout) {
    let home = tempfile::Builder::new().prefix("lifeboat-server-").tempdir_in(scratch()).unwrap();
    let disk = ServerDisk::in_dir(home.path(), layout);
    let site = Site::start_for_remote_agent(HOST_ADDRESS, MACHINE_DISK, "5s");
    let server = VirtualMachine::start(&disk, Reach::Host);
    server.await_login();
    install_agent(&server.ssh, &site.remote_agent_dir());
    wait_within(LIMIT, "the first point", || (!points(&site).is_empty()).then_some(()));

    let commits = NumberedCommits::start(&server.ssh, Duration::ZERO);
    let before = points(&site).len();
    wait_within(LIMIT, "points under load", || {
        (points(&site).len() >= before + POINTS_UNDER_LOAD).then_some(())
    });
    site.await_point_taken("a last point");
    server.cut_power();
    let acknowledged = commits.stop();

    let newest = points(&site)[0].clone();
    let opened = site.json(["volume", "open", "source", "--point", newest["id"].as_str().unwrap()]);
    let uri = opened["disks"][0]["nbd_uri"].as_str().unwrap();
    let copy = VirtualMachine::start_from(uri, &disk, Reach::Nobody);
    copy.await_login();
    wait_within(LIMIT, "PostgreSQL to recover", || {
        copy.ssh.attempt("pg_isready --quiet").status.success().then_some(())
    });
    assert_has(NumberedCommits::count(&copy.ssh), &acknowledged, newest["time"].as_str().unwrap());
    copy.cut_power();
    site.json(["volume", "close", opened["volume"].as_str().unwrap()]);
}

/// Fails unless a copy with the commits 1 to `count` has all that were acknowledged before `time`.
fn assert_has(count: u64, acknowledged: &[Acknowledged], time: &str) {
    let time: Timestamp = time.parse().unwrap();
    let before = acknowledged.iter().filter(|commit| commit.at < time);
    let wanted = before.map(|commit| commit.number).max().unwrap_or(0);
    assert!(wanted > 0, "nothing was committed before the point, so it proves nothing");
    assert!(count >= wanted, "commit {wanted} was acknowledged before the point, but it ends at {count}");
    let newest = acknowledged.last().unwrap().number;
    assert!(count <= newest + 1, "the copy has {count} commits, but the server made only {newest}");
}

/// The points of the server, newest first; none while the vault does not know it.
fn points(site: &Site) -> Vec<Value> {
    let output = site.lifeboat(["point", "list", "source"]);
    serde_json::from_slice(&output.stdout)
        .ok()
        .and_then(|points: Value| points.as_array().cloned())
        .unwrap_or_default()
}
