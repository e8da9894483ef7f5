//! `cargo xtask up`: started, killed, taken over by the next, stopped.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use lifeboat_proof::{Programs, run, scratch, wait_for};

/// Where the demonstration is mounted.
const MOUNTS: &str = "/run/lifeboat-demonstration";

struct Up {
    process: Child,
    dir: PathBuf,
    log: PathBuf,
}

impl Up {
    fn start(dir: &Path, name: &str) -> Self {
        let log = dir.join(name);
        let printed = File::create(&log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.args(["up", "--debug", "--no-ui", "--interval", "2s", "--dir"]).arg(dir.join("trial"));
        command.env("XDG_CONFIG_HOME", dir).stdin(Stdio::null());
        let errors = printed.try_clone().unwrap();
        let dir = dir.to_owned();
        Self { dir, process: command.stdout(printed).stderr(errors).spawn().unwrap(), log }
    }

    fn printed(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn await_points(&mut self) {
        // Building and the first copy are given their time.
        for _ in 0..5 {
            for _ in 0..600 {
                if self.printed().contains("UTC  point ") {
                    return;
                }
                let ended = self.process.try_wait().unwrap();
                assert!(ended.is_none(), "it ended with {ended:?}: {}", self.printed());
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
        panic!("no recovery point: {}", self.printed());
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            let _ = Command::new("kill").args(["-INT", &self.process.id().to_string()]).status();
            let _ = self.process.wait();
        }
        // The tracking stays for the next run, and there is none.
        let settings = self.dir.join("trial/site/agent/agent.toml");
        let _ = Command::new(Programs::find().agent).arg("untrack").arg("--config").arg(settings).output();
    }
}

/// The trial of a run, by its process id.
fn trial_in(dir: &Path) -> Option<u32> {
    let dir = dir.join("trial/site");
    let dir = dir.to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| {
        let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = words.split('\0').collect();
        words.get(1) == Some(&"trial") && words.contains(&dir)
    })
}

#[test]
fn a_demonstration_goes_on_after_it_was_killed_and_leaves_nothing_when_it_is_stopped() {
    let dir = tempfile::tempdir_in(scratch()).unwrap();
    let mut up = Up::start(dir.path(), "first.log");
    up.await_points();
    assert!(trial_in(dir.path()).is_some());

    up.process.kill().unwrap();
    up.process.wait().unwrap();
    wait_for("the trial to stop with its parent", || trial_in(dir.path()).is_none().then_some(()));
    let killed = up;
    let mut up = Up::start(dir.path(), "second.log");
    up.await_points();
    for disk in ["data", "wal"] {
        let image = dir.path().join(format!("trial/demonstration/{disk}.img"));
        let attached = run("losetup", ["--noheadings", "--output", "NAME", "-j", image.to_str().unwrap()]);
        assert_eq!(attached.lines().count(), 1, "{disk} is attached once: {attached}");
        let mount = format!("{MOUNTS}/{disk}");
        assert_eq!(run("findmnt", ["--noheadings", "--output", "SOURCE", &mount]).trim(), attached.trim());
    }
    // A copy of both disks that is mounted elsewhere is to have its own log.
    let link = fs::read_link(format!("{MOUNTS}/data/pg/pg_wal")).unwrap();
    assert_eq!(link, Path::new("../../wal/pg"));
    // The directory that was given to `up` is one that commands take.
    let mut status = Command::new(Programs::find().lifeboat);
    status.args(["status", "--site"]).arg(dir.path().join("trial")).env("XDG_CONFIG_HOME", dir.path());
    assert!(status.output().unwrap().status.success());

    run("kill", ["-INT", &up.process.id().to_string()]);
    let ended = up.process.wait().unwrap();
    assert!(ended.success(), "{}", up.printed());
    assert!(!Path::new(MOUNTS).exists());
    for disk in ["data", "wal"] {
        let image = dir.path().join(format!("trial/demonstration/{disk}.img"));
        assert_eq!(run("losetup", ["-j", image.to_str().unwrap()]), "");
    }
    drop(killed);
}
