//! The command line as its users meet it: names, exit codes, errors, JSON.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use lifeboat_proof::{LoopDisk, Mount, Programs, Site, run, scratch, wait_for};
use serde_json::Value;

const MIB: u64 = 1 << 20;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", text(&output.stdout), text(&output.stderr)))
}

/// The code of the error on standard error.
fn refused(output: &Output) -> (String, Value) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    let error: Value = serde_json::from_str(said.trim()).unwrap_or_else(|_| panic!("no JSON: {said}"));
    (error["error"]["code"].as_str().unwrap().to_owned(), error["error"].clone())
}

/// The answer that the documentation shows for the command that begins so.
fn documented(command: &str) -> Value {
    let text = include_str!("../../../docs/reference/command-line.md");
    let after =
        text.split(&format!("\n`{command}")).nth(1).unwrap_or_else(|| panic!("{command} is not documented"));
    let example = after.split("```json").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    serde_json::from_str(example).unwrap_or_else(|error| panic!("the example of {command}: {error}"))
}

/// Fails when `answer` has a field that the example does not show, or of another type.
fn assert_documented(command: &str, answer: &Value) {
    fn compare(command: &str, at: &str, answer: &Value, shown: &Value) {
        match (answer, shown) {
            (Value::Object(answer), Value::Object(shown)) => {
                for (name, value) in answer {
                    let at = format!("{at}.{name}");
                    let shown =
                        shown.get(name).unwrap_or_else(|| panic!("{command}: {at} is not documented"));
                    compare(command, &at, value, shown);
                }
            }
            (Value::Array(answer), Value::Array(shown)) => {
                answer.iter().for_each(|value| compare(command, at, value, &shown[0]));
            }
            (Value::Null, _) => {}
            (answer, shown) => assert_eq!(
                std::mem::discriminant(answer),
                std::mem::discriminant(shown),
                "{command}: {at} is documented as {shown}, not {answer}"
            ),
        }
    }
    compare(command, "", answer, &documented(command));
}

/// `lifeboat` with a home directory and an environment of its own.
fn lifeboat(home: &Path, site: Option<&str>, words: &[&str]) -> Output {
    let mut command = Command::new(Programs::find().lifeboat);
    command.env("HOME", home).env_remove("XDG_CONFIG_HOME").env_remove("LIFEBOAT_SITE");
    if let Some(site) = site {
        command.env("LIFEBOAT_SITE", site);
    }
    command.args(words).output().unwrap()
}

#[test]
fn a_site_is_named_in_three_ways_and_only_one_is_remembered() {
    let disk = LoopDisk::new(8 * MIB);
    let site = Site::start(&[&disk], "5s");
    let dir = site.dir.to_str().unwrap();
    let home = tempfile::tempdir_in(scratch()).unwrap();
    let home = home.path();
    let says = |output: Output| {
        assert_eq!(output.status.code(), Some(2));
        text(&output.stderr)
    };
    assert!(says(lifeboat(home, None, &["status"])).contains("which site?"));
    // The environment is meant for as long as it says so.
    assert!(lifeboat(home, Some(dir), &["status"]).status.success());
    assert!(says(lifeboat(home, None, &["status"])).contains("which site?"));
    // By its URL, with the operator's certificate.
    let settings = fs::read_to_string(site.dir.join("site.toml")).unwrap();
    let url = settings.split('"').find(|part| part.starts_with("https://")).unwrap();
    assert!(says(lifeboat(home, None, &["status", "--site", url])).contains("--credentials"));
    let operator = site.dir.join("operator");
    let words = ["status", "--site", url, "--credentials", operator.to_str().unwrap()];
    assert!(lifeboat(home, None, &words).status.success());
    // Named once, it is remembered, and one from the environment goes before it without replacing it.
    assert!(lifeboat(home, None, &["status"]).status.success());
    assert!(says(lifeboat(home, Some("/no/such/dir"), &["status"])).contains("/no/such/dir"));
    assert!(lifeboat(home, None, &["server", "list"]).status.success());
    assert!(lifeboat(home, Some("/no/such/dir"), &["status", "--site", dir]).status.success());
}

#[test]
fn servers_points_and_volumes_are_named_and_what_is_not_there_is_told() {
    let (one, other) = (LoopDisk::new(16 * MIB), LoopDisk::new(8 * MIB));
    run("mkfs.ext4", ["-q", one.device.to_str().unwrap()]);
    let _mounted = Mount::new(&one.device, "defaults");
    let site = Site::start(&[&one, &other], "1s");
    site.await_first_point();
    let first = site.take_point("crash");
    let second = site.take_point("filesystem");

    let server = site.json(["server", "show", "source"]);
    let id = server["id"].as_str().unwrap();
    for name in [id, &id[..6], "sour"] {
        assert_eq!(site.json(["server", "show", name])["id"], server["id"], "{name}");
    }
    let (code, error) = refused(&site.lifeboat(["server", "show", "other"]));
    assert_eq!(code, "not_found", "{error}");
    assert!(error["message"].as_str().unwrap().contains("there is: source"), "{error}");
    assert!(!error["request_id"].as_str().unwrap().is_empty(), "{error}");
    let out = tempfile::tempdir_in(scratch()).unwrap();
    let image = out.path().join("image");
    let words = ["volume", "export", "source", "--disk", "1", "--format", "vmdk", image.to_str().unwrap()];
    assert_documented("lifeboat volume export", &site.json(words));

    let points = site.json(["point", "list", "source"]);
    let points = points.as_array().unwrap();
    assert!(
        points.len() >= 2
            && site.json(["point", "list", "source", "--limit", "2"]).as_array().unwrap().len() == 2
    );
    let of = |id: &str| points.iter().find(|point| point["id"] == id).unwrap();
    assert_eq!(of(&second)["kind"], "filesystem");
    let opened = |words: &[&str]| {
        let words = ["volume", "open", "source", "--read-only"].iter().chain(words);
        let opened = site.json(words);
        assert_documented("lifeboat volume open", &opened);
        let volume = opened["volume"].as_str().unwrap().to_owned();
        let listed = site.json(["volume", "list"]);
        assert_documented("lifeboat volume close", &site.json(["volume", "close", &volume]));
        (opened, listed[0].clone())
    };
    // A time means the newest point not after it.
    let time = of(&first)["time"].as_str().unwrap();
    for point in [first.as_str(), &first[..8], time] {
        let (opened, listed) = opened(&["--point", point, "--disk", "1", "--lease", "10m"]);
        assert_eq!(listed["point"], first, "{point}");
        assert_eq!(listed["lease"], "10m");
        assert_eq!(opened["disks"].as_array().unwrap().len(), 1);
        assert_eq!(opened["disks"][0]["disk"], 1);
    }
    let (code, error) =
        refused(&site.lifeboat(["volume", "open", "source", "--point", "1999-01-01T00:00:00Z"]));
    assert_eq!(code, "not_found", "{error}");
    let (code, _) = refused(&site.lifeboat(["volume", "open", "source", "--disk", "7"]));
    assert_eq!(code, "not_found");
    let (code, error) = refused(&site.lifeboat(["volume", "open", "source", "--lease", "1s"]));
    assert_eq!(code, "invalid", "{error}");
    assert_eq!(refused(&site.lifeboat(["volume", "close", "0123"])).0, "not_found");

    // Who opened and closed what, and which roles were started, is in the list of events.
    let events = site.json(["event", "list", "--limit", "1000"]);
    let has = |code: &str| events.as_array().unwrap().iter().filter(|event| event["code"] == code).count();
    for code in ["vault_started", "process_server_started", "agent_started"] {
        assert_eq!(has(code), 1, "{code} in {events}");
    }
    assert_eq!((has("volume_opened"), has("volume_closed")), (4, 4), "{events}");
    networks_and_regular_drills(&site);
}

/// What is said of networks and drills is kept and shown, and what is used is not deleted.
fn networks_and_regular_drills(site: &Site) {
    let lab = site.json(["network", "create", "lab", "--subnet", "10.5.0.0/24", "--dhcp"]);
    assert_eq!((&lab["kind"], &lab["gateway"]), (&"isolated".into(), &"10.5.0.1".into()), "{lab}");
    assert_eq!(site.json(["network", "show", "la"]), lab);
    assert_eq!(site.json(["network", "list"]), Value::Array(vec![lab]));
    site.json(["network", "create", "hall", "--bridge", "br0"]);
    site.json(["network", "map", "10.5.0.0/24", "--test", "lab"]);
    let mapped = site.json(["network", "map", "10.5.0.0/24", "--production", "hall"]);
    assert_eq!((&mapped[0]["test"], &mapped[0]["production"]), (&"lab".into(), &"hall".into()), "{mapped}");
    let words =
        ["target", "set", "source", "--test-network", "la", "--network", "own", "--address", "10.5.0.7"];
    let target = site.json(words);
    assert_eq!((&target["test_network"], &target["network"]), (&"lab".into(), &"own".into()), "{target}");
    let (code, error) = refused(&site.lifeboat(["network", "delete", "lab"]));
    assert_eq!(code, "network_in_use", "{error}");
    let none = site.json(["target", "set", "source", "--test-network", "none", "--address", "none"]);
    // Without one that was set it is that of the source, where this machine has a fixed one.
    assert_eq!(none["test_network"], Value::Null, "{none}");
    assert_ne!(none["address"], "10.5.0.7", "{none}");
    assert_eq!(site.json(["network", "map", "10.5.0.0/24", "--off"]), Value::Array(Vec::new()));
    assert_eq!(site.json(["network", "delete", "lab"]), serde_json::json!({ "deleted": "lab" }));
    assert_eq!(refused(&site.lifeboat(["network", "show", "lab"])).0, "not_found");

    let schedule = site.json(["drill", "schedule", "source", "--every", "7d"]);
    assert_eq!(
        (&schedule["every"], &schedule["server_name"]),
        (&"7d".into(), &"source".into()),
        "{schedule}"
    );
    assert_eq!(site.json(["drill", "list"]), Value::Array(vec![schedule]));
    assert_eq!(refused(&site.lifeboat(["drill", "schedule", "source", "--every", "1m"])).0, "invalid");
    assert_eq!(site.json(["drill", "schedule", "source", "--off"]), serde_json::json!({ "off": "source" }));
    assert_eq!(site.json(["drill", "list"]), Value::Array(Vec::new()));
}

#[test]
fn an_agent_that_does_not_answer_is_not_waited_for_in_silence() {
    let disk = LoopDisk::new(8 * MIB);
    run("mkfs.ext4", ["-q", disk.device.to_str().unwrap()]);
    let _mounted = Mount::new(&disk.device, "defaults");
    let site = Site::start(&[&disk], "1s");
    site.await_first_point();
    let agent = site.role("agent").unwrap().to_string();
    run("kill", ["-STOP", &agent]);
    let (code, error) = refused(&site.lifeboat([
        "point",
        "take",
        "source",
        "--kind",
        "filesystem",
        "--wait",
        "--timeout",
        "2s",
    ]));
    assert_eq!(code, "timeout", "{error}");
    assert!(error["message"].as_str().unwrap().contains("was not done within 2s"), "{error}");
    wait_for("the agent to count as disconnected", || {
        (site.json(["server", "show", "source"])["state"] == "disconnected").then_some(())
    });
    let output = lifeboat(
        site.dir.parent().unwrap(),
        site.dir.to_str(),
        &["verify", "source", "--against-source", "--timeout", "1s"],
    );
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("source is disconnected: The agent was last heard of at"), "{said}");
    // What was asked for is done when the agent is back.
    run("kill", ["-CONT", &agent]);
    site.await_point_taken("a point when the agent is back");
    wait_for("the point that was asked for", || {
        let points = site.json(["point", "list", "source"]);
        points.as_array().unwrap().iter().any(|point| point["kind"] == "filesystem").then_some(())
    });
    // The vault remembers when it heard of the agent, also after it was killed.
    let heard = |site: &Site| -> Option<jiff::Timestamp> {
        let output = site.lifeboat(["server", "show", "source"]);
        let server: Value = serde_json::from_slice(&output.stdout).ok()?;
        server["heard"].as_str()?.parse().ok()
    };
    // It notes that every ten seconds.
    std::thread::sleep(Duration::from_secs(12));
    run("kill", ["-STOP", &agent]);
    std::thread::sleep(Duration::from_secs(1));
    let before = heard(&site).unwrap();
    site.kill("process-server");
    site.kill("vault");
    let after = wait_for("the vault to be back", || heard(&site));
    run("kill", ["-CONT", &agent]);
    assert!(before.duration_since(after).as_secs() <= 20, "{before} went back to {after}");
}

fn stored_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(stored_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "hrl") {
            files.push(path);
        }
    }
    files
}

#[test]
fn damage_is_a_no_and_a_lost_catalog_comes_back_with_every_point() {
    let disk = LoopDisk::new(16 * MIB);
    disk.write(0, 2000, 1);
    let mut site = Site::start(&[&disk], "5s");
    site.await_first_point();
    site.take_point("crash");
    let good = site.lifeboat(["verify", "source"]);
    assert_eq!((good.status.code(), &json(&good)["report"]["good"]), (Some(0), &Value::Bool(true)));

    wait_for("the trial to tell of a point", || site.printed().contains("UTC  point ").then_some(()));
    // Rebuilt first, from an undamaged store.
    site.stop();
    let printed = site.printed();
    assert!(
        printed.contains("source: ") && printed.contains("UTC  point ") && printed.contains("Stopped."),
        "{printed}"
    );
    let state = site.dir.join("vault/state");
    let catalog = state.join("catalog.sqlite");
    assert!(
        catalog.exists(),
        "{:?}",
        fs::read_dir(&state).unwrap().flatten().map(|e| e.file_name()).collect::<Vec<_>>()
    );
    let settings = site.dir.join("vault/vault.toml");
    let points_before = {
        site.resume();
        let points = site.json(["point", "list", "source"]);
        site.stop();
        points
    };
    for name in ["catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm"] {
        let _ = fs::remove_file(state.join(name));
    }
    let rebuilt = site.lifeboat([
        "vault",
        "rebuild-catalog",
        "--check-digests",
        "--config",
        settings.to_str().unwrap(),
    ]);
    assert_eq!(rebuilt.status.code(), Some(0), "{}", text(&rebuilt.stderr));
    let report = json(&rebuilt);
    assert_documented("lifeboat vault rebuild-catalog", &report);
    assert_eq!(report["refused"], Value::Array(Vec::new()), "{report}");
    assert!(report["points"].as_u64().unwrap() >= points_before.as_array().unwrap().len() as u64, "{report}");
    site.resume();
    let points = site.json(["point", "list", "source"]);
    for point in points_before.as_array().unwrap() {
        let same = points.as_array().unwrap().iter().find(|found| found["id"] == point["id"]);
        assert_eq!(same.unwrap_or_else(|| panic!("{} is lost", point["id"]))["disks"], point["disks"]);
    }

    // The largest file is the first copy, which every point needs.
    let file =
        stored_files(&state.join("store")).into_iter().max_by_key(|path| path.metadata().unwrap().len());
    let file = file.unwrap();
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    let bad = site.lifeboat(["verify", "source"]);
    assert_eq!(bad.status.code(), Some(1), "{}", text(&bad.stderr));
    let report = &json(&bad)["report"];
    assert_eq!(report["good"], false);
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(report["faults"][0]["file"].as_str().unwrap().ends_with(name), "{report}");
}

#[test]
fn certificates_are_issued_listed_and_revoked() {
    let dir = tempfile::tempdir_in(scratch()).unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let done = |words: &[&str]| {
        let output = lifeboat(dir.path(), None, &[&["--output", "json"], words].concat());
        assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
        json(&output)
    };
    let authority = path("authority");
    let created = done(&["authority", "create", "--name", "hall", &authority]);
    assert_documented("lifeboat authority create", &created);
    assert_eq!(created["site"], "hall");
    let again = lifeboat(dir.path(), None, &["authority", "create", "--name", "hall", &authority]);
    assert_eq!(again.status.code(), Some(2), "an authority is not replaced");
    let anna = path("anna");
    let issued = done(&[
        "certificate",
        "issue",
        "--authority",
        &authority,
        "--for",
        "operator",
        "--name",
        "anna",
        &anna,
    ]);
    assert_documented("lifeboat certificate issue", &issued);
    assert_eq!(issued["identity"], "lifeboat://operator/anna");
    // Under the names that libnbd and QEMU look for as well.
    for (name, file) in [("ca-cert", "authority"), ("client-cert", "certificate"), ("client-key", "key")] {
        let same = |name: &str| fs::read(dir.path().join(format!("anna/{name}.pem"))).unwrap();
        assert_eq!(same(name), same(file));
    }
    let words = ["certificate", "issue", "--authority", &authority, "--for", "operator", &path("nameless")];
    let nameless = lifeboat(dir.path(), None, &words);
    assert!(text(&nameless.stderr).contains("add --name"), "{nameless:?}");
    let serial = issued["serial"].as_str().unwrap();
    let revoked = done(&["certificate", "revoke", serial, "--authority", &authority]);
    assert_documented("lifeboat certificate revoke", &revoked);
    assert_eq!(revoked["revoked"], true);
    let listed = done(&["certificate", "list", "--authority", &authority]);
    assert_eq!((&listed[0]["serial"], &listed[0]["revoked"]), (&issued["serial"], &Value::Bool(true)));
}
