//! A protected server becomes a machine at the recovery site, and everything may be killed meanwhile.
//!
//! The server's disk holds a boot sector that offers a login on the serial console. So the whole
//! way is gone, from a write on a real disk to a guest in QEMU, with boots of seconds.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use lifeboat_proof::{LoopDisk, Programs, Site, obedient_boot_sector, wait_for};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// The guest that boots from now on says this, and shuts down when it is told to.
fn install(disk: &LoopDisk, text: &str) {
    let device = File::options().write(true).open(&disk.device).unwrap();
    device.write_all_at(&obedient_boot_sector(text), 0).unwrap();
    device.sync_all().unwrap();
}

/// Starts a job, kills the vault when the job does its step number `step`, and waits for its end.
fn with_a_killed_vault(site: &Site, words: &[&str], step: usize) -> Value {
    let words: Vec<_> = words.iter().copied().chain(["--no-wait"]).collect();
    let job = site.json(&words)["id"].as_str().unwrap().to_owned();
    let show = || -> Option<Value> {
        let output = site.lifeboat(["job", "show", &job]);
        serde_json::from_slice(&output.stdout).ok()
    };
    wait_for("the step", || {
        let job = show()?;
        let has_come = job["steps"][step]["state"] != "waiting" || job["state"] != "running";
        has_come.then_some(())
    });
    site.kill("vault");
    wait_for(&format!("the end of {words:?}, killed in step {step}\n{}", site.logs()), || {
        show().filter(|job| job["state"] != "running" && job["state"] != "rolling-back")
    })
}

fn steps(site: &Site, job: &Value) -> usize {
    let job = site.json(["job", "show", job["id"].as_str().unwrap()]);
    job["steps"].as_array().unwrap().len()
}

fn nothing_left(site: &Site) {
    assert_eq!(site.json(["machine", "list"]), Value::Array(Vec::new()));
    assert_eq!(site.json(["volume", "list"]), Value::Array(Vec::new()));
    let place = site.dir.display().to_string();
    let processes =
        String::from_utf8(Command::new("ps").args(["-eo", "args"]).output().unwrap().stdout).unwrap();
    let left: Vec<_> =
        processes.lines().filter(|line| line.contains("qemu-system") && line.contains(&place)).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn drills_and_failover_go_on_after_a_vault_that_is_killed_at_every_step() {
    let disk = LoopDisk::new(16 * MIB);
    install(&disk, "one login: ");
    let mut site = Site::start(&[&disk], "2s");
    site.await_first_point();
    the_server_is_known_and_judged(&site);
    let target = ["target", "set", "source", "--memory", "64", "--cpus", "1", "--up-within", "5m"];
    let target = site.json(target.iter().chain(&["--firmware", "bios", "--disk-bus", "virtio"]));
    let derived: Vec<_> = target["derived"].as_object().unwrap().keys().map(String::as_str).collect();
    // The address too, where this machine has a fixed one.
    let derived: Vec<_> = derived.into_iter().filter(|name| *name != "address").collect();
    assert_eq!(derived, ["mac", "network_card"], "{target}");

    let report = site.dir.join("drill.html");
    let drill = site.json(["failover", "test", "source", "--report", report.to_str().unwrap()]);
    assert_eq!(drill["state"], "done", "{drill}");
    assert!(drill["report"]["console"].as_str().unwrap().contains("one login: "), "{drill}");
    assert!(std::fs::read_to_string(report).unwrap().contains("data:image/png;base64,"));
    nothing_left(&site);
    an_operator_is_told_how_to_go_on(&site);
    nothing_left(&site);
    for step in 0..steps(&site, &drill) {
        let drill = with_a_killed_vault(&site, &["failover", "test", "source"], step);
        assert_eq!(drill["state"], "done", "killed in step {step}: {drill}");
        nothing_left(&site);
    }
    // Replication went on meanwhile.
    install(&disk, "two login: ");
    let second = site.await_point_taken("a point after the drills");

    // Agents take no application-consistent points; what is refused changes nothing.
    let refused = site.lifeboat(["failover", "run", "source", "--point", "latest-app"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    let refused: Value = serde_json::from_slice(&refused.stderr).unwrap();
    assert_eq!(refused["error"]["code"], "no_app_point", "{refused}");

    let failover = with_a_killed_vault(&site, &["failover", "run", "source", "--point", "latest"], 1);
    assert_eq!(failover["state"], "done", "{failover}");
    assert!(console(&site).contains("two login: "));
    let points: Vec<_> = points(&site);
    assert!(points.contains(&second));
    let older = points.last().unwrap();
    for step in 0..6 {
        let point = if step % 2 == 0 { older.as_str() } else { "latest-processed" };
        let changed =
            with_a_killed_vault(&site, &["failover", "change-point", "source", "--point", point], step);
        assert_eq!(changed["state"], "done", "killed in step {step}: {changed}");
        let text = if step % 2 == 0 { "one login: " } else { "two login: " };
        assert!(console(&site).contains(text), "killed in step {step}: {}", console(&site));
        assert_eq!(site.json(["machine", "list"]).as_array().unwrap().len(), 1);
        assert_eq!(site.json(["volume", "list"]).as_array().unwrap().len(), 1);
    }
    the_disks_are_copied(&site);
    the_machine_is_stopped_and_started(&site);
    the_source_is_fenced(&mut site, &disk, &points);
}

fn an_operator_is_told_how_to_go_on(site: &Site) {
    let said = site.text(&["failover", "test", "source", "--keep"]);
    assert!(said.contains("The copy runs on: `lifeboat machine show source`"), "{said}");
    assert!(said.contains("`lifeboat failover cleanup source` removes it"), "{said}");
    let said = site.text(&["failover", "cleanup", "source", "--note", "all is there"]);
    assert_eq!(said.matches("all is there").count(), 1, "{said}");
    let said = site.text(&["server", "show", "source"]);
    assert!(said.contains("Note: all is there"), "{said}");

    // Whoever no longer wants to wait learns what becomes of the job.
    site.json(["target", "set", "source", "--probe", "console=never: "]);
    let mut waiting = site.command("text");
    waiting.args(["failover", "test", "source"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut waiting = waiting.spawn().unwrap();
    let mut lines = BufReader::new(waiting.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    let job = first.strip_prefix("Job ").and_then(|rest| rest.split(':').next()).unwrap().to_owned();
    let step = lines.find(|line| line.as_ref().unwrap() == "  ...     wait until the machine is up");
    assert!(step.is_some(), "it does not say what it waits for");
    let again = site.command("text").args(["failover", "test", "source", "--no-wait"]).output().unwrap();
    let said = String::from_utf8_lossy(&again.stderr);
    assert!(said.contains(&format!("under way already: this follows job {job}")), "{again:?}");
    Command::new("kill").args(["-INT", &waiting.id().to_string()]).status().unwrap();
    let output = waiting.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains(&format!("job {job} goes on")), "{said}");
    let cancelled = site.json(["job", "cancel", &job]);
    assert_eq!(cancelled["state"], "cancelled", "{cancelled}");
    site.json(["target", "set", "source", "--probe", "console=login: "]);
}

/// A commit is followed by the copying of the disks, although the vault is killed right after it.
fn the_disks_are_copied(site: &Site) {
    let commit = site.json(["failover", "commit", "source"]);
    site.kill("vault");
    assert_eq!(commit["state"], "done", "{commit}");
    let copying = commit["next"].as_str().unwrap();
    assert!(commit["message"].as_str().unwrap().contains(copying), "{commit}");
    let ended = wait_for(&format!("the disks to be copied\n{}", site.logs()), || {
        let output = site.lifeboat(["job", "show", copying]);
        let job: Value = serde_json::from_slice(&output.stdout).ok()?;
        (job["state"] != "running").then_some(job)
    });
    assert_eq!((&ended["kind"], &ended["state"]), (&"hydrate".into(), &"done".into()), "{ended}");
    assert_eq!(site.json(["volume", "list"]), Value::Array(Vec::new()));
    assert_eq!(site.json(["machine", "list"])[0]["state"], "running");
    let machine = site.text(&["machine", "show", "source"]);
    let file =
        machine.lines().find_map(|line| line.strip_prefix("Disk 0")).unwrap_or_else(|| panic!("{machine}"));
    assert!(Path::new(file.trim()).is_file() && !machine.contains("volume"), "{machine}");
}

/// It runs on files by now, and goes on with what it has written to them.
fn the_machine_is_stopped_and_started(site: &Site) {
    let state = || site.json(["machine", "show", "source"])["state"].as_str().unwrap().to_owned();
    let boots = || console(site).matches("login: ").count();
    let before = boots();
    let said = site.text(&["machine", "stop", "source"]);
    assert!(said.contains("off: the guest shut down"), "{said}");
    site.kill("vault");
    wait_for("the vault to be back", || site.lifeboat(["status"]).status.success().then_some(()));
    assert_eq!(state(), "off");
    let said = site.text(&["machine", "start", "source"]);
    assert!(said.contains("committed") && said.contains("running"), "{said}");
    wait_for("the guest to boot again", || (boots() > before).then_some(()));

    // Ended by somebody else, it is started again within seconds, and that is told until it is acknowledged.
    let status = || site.json(["status"])["attention"].as_array().unwrap().clone();
    let machine = site.json(["machine", "show", "source"])["id"].as_str().unwrap().to_owned();
    let is_its = format!("guest=lifeboat-{machine}");
    Command::new("pkill").args(["-KILL", "--full", &is_its]).status().unwrap();
    let told = wait_for(&format!("the machine to be started again\n{}", site.logs()), || {
        status().into_iter().find(|event| event["code"] == "machine_restarted")
    });
    assert_eq!(state(), "running");
    let number = told["number"].to_string();
    let said = site.text(&["status"]);
    assert!(said.contains(&number) && said.contains("lifeboat event acknowledge"), "{said}");
    let refused = site.lifeboat(["event", "acknowledge", "123456"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert_eq!(site.json(["event", "acknowledge", &number])["acknowledged"], 1);
    assert!(status().iter().all(|event| event["code"] != "machine_restarted"));
    site.json(["event", "acknowledge", "--all"]);
    assert_eq!(status(), [Value::Null; 0]);
    let said = site.text(&["event", "list", "--severity", "warning"]);
    assert!(said.contains("acknowledged") && said.contains("by "), "{said}");
}

/// The agent has found out where it runs. This machine's own system is not on the protected disk, so
/// that a copy of it would have none.
fn the_server_is_known_and_judged(site: &Site) {
    let facts = wait_for("the facts of the server", || {
        Some(site.json(["server", "show", "source"])["facts"].clone()).filter(|facts| !facts.is_null())
    });
    let cpus = std::thread::available_parallelism().unwrap().get();
    assert_eq!(facts["cpus"], cpus, "{facts}");
    let output = site.lifeboat(["readiness", "source"]);
    let readiness: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{readiness}");
    assert_eq!(readiness["verdict"], "not-ready");
    let finding =
        readiness["findings"].as_array().unwrap().iter().find(|one| one["code"] == "disk_not_protected");
    let finding = finding.unwrap_or_else(|| panic!("{readiness}"));
    assert!(finding["what"].as_str().unwrap().starts_with("/ lies on"), "{finding}");
    // But for what depends on how much memory is free at the moment.
    let settled = |mut target: Value| {
        target["derived"].as_object_mut().unwrap().remove("memory_mib");
        target.as_object_mut().unwrap().remove("memory_mib");
        target
    };
    assert_eq!(settled(readiness["target"].clone()), settled(site.json(["target", "show", "source"])));
}

/// The source goes on running and writing; nothing of it becomes a point any more, and it is told.
fn the_source_is_fenced(site: &mut Site, disk: &LoopDisk, before: &[String]) {
    install(disk, "three login: ");
    let status = wait_for("the agent to be told", || {
        let mut command = Command::new(Programs::find().agent);
        command.args(["status", "--output", "json", "--config"]).arg(site.dir.join("agent/agent.toml"));
        let status: Value = serde_json::from_slice(&command.output().unwrap().stdout).ok()?;
        (status["capture"]["mode"] == "stalled").then_some(status)
    });
    assert!(status["capture"]["reason"].as_str().unwrap().contains("failed over"), "{status}");
    let output = site.lifeboat(["point", "take", "source", "--wait"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(points(site), before);
    let server = site.json(["server", "show", "source"]);
    assert_eq!(server["state"], "failed-over", "{server}");

    // Also after everything was restarted; and the machine comes back with it.
    site.stop();
    site.resume();
    wait_for("the machine to run again", || {
        (site.json(["machine", "list"])[0]["state"] == "running").then_some(())
    });
    assert_eq!(points(site), before);
}

fn console(site: &Site) -> String {
    site.json(["machine", "console", "source"])["text"].as_str().unwrap().to_owned()
}

/// The ids of the server's points, newest first.
fn points(site: &Site) -> Vec<String> {
    let points = site.json(["point", "list", "source"]);
    points.as_array().unwrap().iter().map(|point| point["id"].as_str().unwrap().to_owned()).collect()
}
