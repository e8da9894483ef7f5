//! What goes wrong at a site, what its operator is told, and that protection goes on by itself.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use lifeboat_proof::{LoopDisk, Mount, NbdDisk, Programs, Site, assert_same, run, scratch, wait_for};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// A trial that must refuse to start.
fn refused(dir: &Path, words: &[&str]) -> String {
    let programs = Programs::find();
    let output: Output = Command::new(programs.lifeboat)
        .arg("trial")
        .arg("--agent")
        .arg(programs.agent)
        .args(["--no-ui", "--dir"])
        .arg(dir.join("site"))
        .args(words)
        .env("HOME", dir)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert_eq!(said.trim().lines().count(), 1, "one sentence: {said}");
    said
}

#[test]
fn a_trial_refuses_what_cannot_work_before_it_makes_anything() {
    let dir = tempfile::tempdir_in(scratch()).unwrap();
    let file = dir.path().join("no-disk");
    fs::write(&file, "not a disk").unwrap();
    for (disk, why) in [
        ("/dev/no-such-disk", "/dev/no-such-disk does not exist"),
        (file.to_str().unwrap(), "is not a block device; name a whole disk"),
        ("/dev/null", "is not a block device"),
    ] {
        let said = refused(dir.path(), &["--disk", disk]);
        assert!(said.contains(why), "{said}");
        assert!(!dir.path().join("site").exists(), "nothing may be made: {said}");
    }
    let disk = LoopDisk::new(8 * MIB);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for option in ["--vault-listen", "--process-server-listen"] {
        let said = refused(dir.path(), &["--disk", disk.device.to_str().unwrap(), option, &address]);
        assert!(said.contains(&format!("{address} is taken by another program")), "{said}");
        assert!(said.contains(option), "{said}");
    }
}

fn events(site: &Site) -> Vec<Value> {
    site.json(["event", "list"]).as_array().unwrap().clone()
}

#[test]
fn a_site_whose_file_system_is_full_says_so_and_goes_on_when_there_is_room() {
    // The spool keeps 1 GiB in reserve.
    let store = LoopDisk::new(3072 * MIB);
    run("mkfs.ext4", ["-q", "-m", "0", store.device.to_str().unwrap()]);
    let store = Mount::new(&store.device, "defaults");
    let disk = LoopDisk::new(128 * MIB);
    disk.write(0, 1000, 1);
    let site = Site::start_in(store.path(), &[&disk], "1s");
    site.await_first_point();

    let ballast = store.path().join("ballast");
    let free = rustix::fs::statvfs(store.path()).unwrap();
    let room = free.f_bavail * free.f_frsize - 900 * MIB;
    rustix::fs::fallocate(File::create(&ballast).unwrap(), rustix::fs::FallocateFlags::empty(), 0, room)
        .unwrap();
    disk.write(2000, 10_000, 2);
    let told = wait_for("an event about the full file system", || {
        events(&site).into_iter().find(|event| {
            let sentence = event["message"].as_str().unwrap_or_default();
            event["severity"] != "information" && (sentence.contains("full") || sentence.contains("free"))
        })
    });
    assert!(told["message"].as_str().unwrap().len() > 40, "{told}");
    std::thread::sleep(Duration::from_secs(3));

    fs::remove_file(&ballast).unwrap();
    let point = site.await_point_taken("a point after there was room");
    let out = tempfile::tempdir_in(scratch()).unwrap();
    assert_same(&site.copy_out(&point, out.path())[0], &disk.device);
    assert_eq!(site.json(["verify", "source"])["report"]["good"], true);
}

#[test]
fn a_revoked_agent_is_told_and_its_server_goes_on() {
    let disk = LoopDisk::new(16 * MIB);
    disk.write(0, 100, 1);
    let site = Site::start(&[&disk], "1s");
    site.await_first_point();
    let authority = site.dir.join("authority");
    let authority = authority.to_str().unwrap();
    let certificates = site.json(["certificate", "list", "--authority", authority]);
    let agent = certificates
        .as_array()
        .unwrap()
        .iter()
        .find(|certificate| certificate["identity"].as_str().unwrap().starts_with("lifeboat://agent/"));
    let serial = agent.unwrap()["serial"].as_str().unwrap();
    site.json(["certificate", "revoke", serial, "--authority", authority]);
    wait_for("the agent to say that it is revoked", || {
        let log = fs::read_to_string(site.dir.join("logs/agent.log")).unwrap();
        log.contains("our certificate is revoked; enrol this machine again").then_some(())
    });
    let points = site.json(["point", "list", "source"]).as_array().unwrap().len();
    disk.write(200, 100, 2);
    std::thread::sleep(Duration::from_secs(3));
    let after = site.json(["point", "list", "source"]).as_array().unwrap().len();
    assert!(after <= points + 1, "points came from a revoked agent: {points}, then {after}");
}

#[test]
fn an_export_leaves_a_whole_image_or_nothing() {
    let disk = LoopDisk::new(256 * MIB);
    for first in (0..60_000).step_by(1000) {
        disk.write(first, 1000, first + 1);
    }
    let site = Site::start(&[&disk], "5s");
    site.await_first_point();
    let out = tempfile::tempdir_in(scratch()).unwrap();
    let export = |name: &str| {
        let mut command = Command::new(Programs::find().lifeboat);
        command.args(["volume", "export", "source", "--disk", "0", "--format", "qcow2"]);
        command.arg(out.path().join(name)).arg("--site").arg(&site.dir).env("HOME", out.path());
        command.stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let files = || -> Vec<_> {
        let entries = fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().file_name());
        entries.filter(|name| name != ".config").collect()
    };
    let volumes = || site.json(["volume", "list"]).as_array().unwrap().len();

    let interrupted = export("image");
    wait_for("the export to begin", || (volumes() == 1).then_some(()));
    run("kill", ["-INT", &interrupted.id().to_string()]);
    let output = interrupted.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("interrupted"));
    assert_eq!((files(), volumes()), (vec![], 0));

    let both = [export("image"), export("image")].map(|child| child.wait_with_output().unwrap());
    let done = both.iter().filter(|output| output.status.success()).count();
    assert_eq!(done, 1, "one of two exports to a name is refused: {both:?}");
    assert_eq!((files(), volumes()), (vec!["image".into()], 0));
    let mode = fs::metadata(out.path().join("image")).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600);
    run(
        "qemu-img",
        ["compare", "-F", "raw", out.path().join("image").to_str().unwrap(), disk.device.to_str().unwrap()],
    );
}

#[test]
fn a_volume_in_use_is_closed_by_force_alone() {
    let disk = LoopDisk::new(16 * MIB);
    disk.write(0, 100, 1);
    let site = Site::start(&[&disk], "5s");
    site.await_first_point();
    let opened = site.json(["volume", "open", "source"]);
    let volume = opened["volume"].as_str().unwrap();
    let client = NbdDisk::connect(opened["disks"][0]["nbd_uri"].as_str().unwrap());
    let refused = site.lifeboat(["volume", "close", volume]);
    let said = String::from_utf8_lossy(&refused.stderr) + String::from_utf8_lossy(&refused.stdout);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("is in use by") && said.contains("--force"), "{said}");
    assert_eq!(site.json(["volume", "list"]).as_array().unwrap().len(), 1);
    drop(client);
    site.json(["volume", "close", volume]);

    let opened = site.json(["volume", "open", "source"]);
    let _client = NbdDisk::connect(opened["disks"][0]["nbd_uri"].as_str().unwrap());
    site.json(["volume", "close", opened["volume"].as_str().unwrap(), "--force"]);
    assert!(site.json(["volume", "list"]).as_array().unwrap().is_empty());
}
