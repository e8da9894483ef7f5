//! A planned failover loses no write; one that is given up leaves the source as it was.
//!
//! The service is a writer that acknowledges numbered lines once they are synced; the guest is a boot
//! sector in front of the file system that it writes to.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lifeboat_proof::{LoopDisk, Mount, Site, boot_sector, run, wait_for};
use serde_json::Value;

/// A service that is stopped and started by files in a directory, as an operator's commands do it.
struct Service {
    dir: PathBuf,
    acknowledged: Arc<AtomicU64>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Service {
    fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), acknowledged: Arc::default(), writer: Mutex::default() }
    }

    fn start(&self, lines: &Path) {
        let (stop, stopped) = (self.dir.join("stop"), self.dir.join("stopped"));
        let _ = (fs::remove_file(&stop), fs::remove_file(&stopped));
        let mut file = File::options().create(true).append(true).open(lines).unwrap();
        let acknowledged = Arc::clone(&self.acknowledged);
        let writer = thread::spawn(move || {
            while !stop.exists() {
                let next = acknowledged.load(Ordering::Relaxed) + 1;
                writeln!(file, "{next}").unwrap();
                file.sync_data().unwrap();
                acknowledged.store(next, Ordering::Relaxed);
            }
            drop(file);
            File::create(stopped).unwrap();
        });
        *self.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
    }

    /// Waits for the writer, which has been told to stop; the number of acknowledged lines.
    fn ended(&self) -> u64 {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        writer.unwrap().join().unwrap();
        self.acknowledged.load(Ordering::Relaxed)
    }

    fn await_more(&self) {
        let before = self.acknowledged.load(Ordering::Relaxed);
        wait_for("the service to write", || {
            (self.acknowledged.load(Ordering::Relaxed) > before + 5).then_some(())
        });
    }

    fn has(&self, name: &str) -> bool {
        self.dir.join(name).exists()
    }
}

/// Writes that nobody stops, such as those of a log: only held file systems keep them off the disk.
struct Noise {
    stop: Arc<AtomicBool>,
    writer: Option<JoinHandle<()>>,
}

impl Noise {
    fn start(file: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (file, stopped) = (File::create(file).unwrap(), Arc::clone(&stop));
        let writer = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                file.write_all_at(b"noise", 0).unwrap();
                file.sync_data().unwrap();
                thread::sleep(Duration::from_millis(5));
            }
        });
        Self { stop, writer: Some(writer) }
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.writer.take().unwrap().join();
    }
}

/// Gives the agent's settings these commands, with `DIR` for the service's directory.
fn set_commands(site: &Site, service: &Service, stop: &str) {
    let file = site.dir.join("agent/agent.toml");
    let dir = service.dir.display().to_string();
    let mut settings: toml::Table = fs::read_to_string(&file).unwrap().parse().unwrap();
    let shell = |script: &str| -> toml::Value {
        vec!["sh".to_owned(), "-c".to_owned(), script.replace("DIR", &dir)].into()
    };
    let mut planned = toml::Table::new();
    planned.insert("stop".into(), shell(stop));
    planned.insert("start".into(), shell("touch DIR/started"));
    planned.insert("afterwards".into(), shell("touch DIR/afterwards"));
    settings.insert("planned_failover".into(), planned.into());
    fs::write(&file, settings.to_string()).unwrap();
}

const STOP: &str = "touch DIR/stop; while [ ! -e DIR/stopped ]; do sleep 0.05; done";

/// A planned failover that is to fail: nothing of it is left, and the source goes on.
fn fails(site: &Site, service: &Service, lines: &Path, word: &str) {
    let _ = fs::remove_file(service.dir.join("started"));
    let output = site.lifeboat(["failover", "plan", "source"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let job: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(job["state"], "failed", "{job}");
    assert!(job["message"].as_str().unwrap().contains(word), "{job}");
    assert!(service.has("started"), "{job}");
    assert!(!service.has("afterwards"), "{job}");
    assert_eq!(site.json(["machine", "list"]), Value::Array(Vec::new()));
    assert_eq!(site.json(["volume", "list"]), Value::Array(Vec::new()));
    // It can be written again, and what is written becomes a point.
    if service.has("stopped") {
        service.ended();
        service.start(lines);
    }
    service.await_more();
    site.await_point_taken("a point after the failure");
    wait_for("the source to be protected", || {
        (site.json(["server", "show", "source"])["state"] == "protected").then_some(())
    });
}

#[test]
fn a_planned_failover_loses_nothing_and_one_that_fails_leaves_the_source_as_it_was() {
    let disk = LoopDisk::new(64 << 20);
    run("mkfs.ext4", ["-q".as_ref(), disk.device.as_os_str()]);
    let device = File::options().write(true).open(&disk.device).unwrap();
    device.write_all_at(&boot_sector("one login: "), 0).unwrap();
    device.sync_all().unwrap();
    let source = Mount::new(&disk.device, "defaults");
    let lines = source.path().join("lines");
    let place = tempfile::tempdir().unwrap();
    let service = Service::new(place.path());
    let site = Site::start(&[&disk], "2s");
    site.await_first_point();
    site.json(["target", "set", "source", "--memory", "64", "--cpus", "1", "--up-within", "5m"]);
    service.start(&lines);
    service.await_more();
    let _noise = Noise::start(&source.path().join("noise"));

    set_commands(&site, &service, "echo the service will not stop >&2; exit 7");
    fails(&site, &service, &lines, "the service will not stop");

    set_commands(&site, &service, STOP);
    site.json(["target", "set", "source", "--probe", "console=never said", "--up-within", "3s"]);
    fails(&site, &service, &lines, "did not come up");
    site.json(["target", "set", "source", "--probe", "default", "--up-within", "5m"]);

    service.await_more();
    let job = site.json(["failover", "plan", "source"]);
    let acknowledged = service.ended();
    assert_eq!(job["state"], "done", "{job}");
    let message = job["message"].as_str().unwrap();
    assert!(message.contains("No write is lost") && message.contains("none since"), "{message}");
    assert!(service.has("afterwards"));
    let newest = site.newest_point();
    assert_eq!(newest["id"], job["point"], "no point came after the last one");
    assert_eq!(newest["kind"], "filesystem");
    // The source's file system was let go. What is written there now is nobody's.
    fs::write(source.path().join("late"), "late").unwrap();

    let copied = site.copy_out(job["point"].as_str().unwrap(), place.path());
    let copy = Mount::new(&copied[0], "ro,loop");
    let found = fs::read_to_string(copy.path().join("lines")).unwrap();
    let newest_line: u64 = found.lines().last().unwrap().parse().unwrap();
    assert_eq!(newest_line, acknowledged, "every acknowledged line is in the copy, and no other");
    assert_eq!(found.lines().count() as u64, acknowledged);
    assert!(!copy.path().join("late").exists());
    assert_eq!(site.json(["server", "show", "source"])["state"], "failed-over");
    assert_eq!(site.json(["failover", "commit", "source"])["state"], "done");
}
