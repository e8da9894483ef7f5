//! A file system under a role becomes read-only: its operator is told, and all goes on by itself when
//! it is writable again.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};
use std::process::Command;

use lifeboat_proof::{LoopDisk, Programs, Site, assert_same, run, scratch, wait_for};

const MIB: u64 = 1 << 20;

/// A directory that is read-only for whoever opens files in it from now on, until this is dropped.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn make(dir: &Path) -> Self {
        let text = dir.to_str().unwrap();
        run("mount", ["--bind", text, text]);
        let mounted = Self(dir.to_owned());
        run("mount", ["-o", "remount,bind,ro", text]);
        mounted
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        // A role that is reading keeps it busy for a moment; whoever comes later sees the one below.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).output();
    }
}

/// What the operator reads of the server and of the site.
fn said(site: &Site) -> String {
    let server = site.json(["server", "show", "source"]);
    let status = site.json(["status"]);
    format!(
        "{}; {}; spool {}",
        server["reason"].as_str().unwrap_or_default(),
        server["capture"]["reason"].as_str().unwrap_or_default(),
        status["process_servers"][0]["spool_state"].as_str().unwrap_or_default()
    )
}

fn await_saying(site: &Site, text: &str) -> String {
    wait_for(&format!("somebody to say {text:?}"), || {
        let said = said(site);
        said.contains(text).then_some(said)
    })
}

fn await_event(site: &Site, code: &str) {
    wait_for(&format!("the event {code}"), || {
        site.events().iter().any(|event| event["code"] == code).then_some(())
    });
}

fn goes_on(site: &Site, disk: &LoopDisk, what: &str) {
    let point = site.await_point_taken(&format!("a point after {what} was writable again"));
    let out = tempfile::tempdir_in(scratch()).unwrap();
    assert_same(&site.copy_out(&point, out.path())[0], &disk.device);
}

#[test]
fn each_role_says_that_its_directory_is_read_only_and_goes_on_when_it_is_not() {
    let disk = LoopDisk::new(32 * MIB);
    disk.write(0, 500, 1);
    let site = Site::start(&[&disk], "1s");
    site.await_first_point();

    let spool = ReadOnly::make(&site.dir.join("process-server/state"));
    disk.write(1000, 500, 2);
    await_saying(&site, "spool read-only");
    // It cannot be kept there, and reaches the vault all the same.
    await_event(&site, "spool_read_only");
    drop(spool);
    goes_on(&site, &disk, "the spool");
    await_event(&site, "spool_recovered");

    let state = ReadOnly::make(&site.dir.join("agent/state"));
    disk.write(2000, 500, 3);
    let sentence = await_saying(&site, "its file system is read-only");
    assert!(sentence.contains("The agent cannot save what it must remember"), "{sentence}");
    assert!(sentence.contains("mount -o remount,rw"), "{sentence}");
    drop(state);
    goes_on(&site, &disk, "the agent's state");

    let store = ReadOnly::make(&site.dir.join("vault/state/store"));
    disk.write(3000, 500, 4);
    // What was said of the agent's state before may still be there for a moment.
    let sentence = await_saying(&site, "the vault cannot do it now");
    assert!(sentence.contains("read-only"), "{sentence}");
    drop(store);
    goes_on(&site, &disk, "the store");
    assert_eq!(site.json(["verify", "source"])["report"]["good"], true);
}

#[test]
fn a_role_does_not_start_on_a_read_only_directory_and_says_why() {
    let disk = LoopDisk::new(8 * MIB);
    let mut site = Site::start(&[&disk], "1s");
    site.await_first_point();
    site.stop();
    let Programs { lifeboat, agent } = Programs::find();
    for (role, program, words) in [
        ("process-server", &lifeboat, &["process-server", "serve"][..]),
        ("vault", &lifeboat, &["vault", "serve"]),
        ("agent", &agent, &["run"]),
    ] {
        let _state = ReadOnly::make(&site.dir.join(role).join("state"));
        let output = Command::new(program)
            .args(words)
            .arg("--config")
            .arg(site.dir.join(role).join(format!("{role}.toml")))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{role}: {said}");
        let sentence = said.lines().last().unwrap();
        assert!(
            sentence.contains("its file system is read-only") && sentence.contains("remount,rw"),
            "{role}: {said}"
        );
    }
    site.resume();
    goes_on(&site, &disk, "everything");
}
