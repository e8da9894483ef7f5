//! The source of a planned failover: a service that acknowledges numbered lines once they are synced, on a disk
//! whose guest is a boot sector in front of the file system.

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
use tempfile::TempDir;

pub const STOP: &str = "touch DIR/stop; while [ ! -e DIR/stopped ]; do sleep 0.05; done";

/// A service that is stopped and started by files in a directory, as an operator's commands do it.
pub struct Service {
    dir: PathBuf,
    acknowledged: Arc<AtomicU64>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Service {
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), acknowledged: Arc::default(), writer: Mutex::default() }
    }

    pub fn start(&self, lines: &Path) {
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
    pub fn ended(&self) -> u64 {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        writer.unwrap().join().unwrap();
        self.acknowledged.load(Ordering::Relaxed)
    }

    pub fn await_more(&self) {
        let before = self.acknowledged.load(Ordering::Relaxed);
        wait_for("the service to write", || {
            (self.acknowledged.load(Ordering::Relaxed) > before + 5).then_some(())
        });
    }

    pub fn has(&self, name: &str) -> bool {
        self.dir.join(name).exists()
    }
}

/// Writes that nobody stops, such as those of a log: only held file systems keep them off the disk.
pub struct Noise {
    stop: Arc<AtomicBool>,
    writer: Option<JoinHandle<()>>,
}

impl Noise {
    pub fn start(file: &Path) -> Self {
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
pub fn set_commands(site: &Site, service: &Service, stop: &str) {
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

/// A protected source whose service writes.
pub struct Source {
    // Dropped in this order: what writes to the file system before that.
    _noise: Noise,
    pub site: Site,
    pub service: Service,
    pub lines: PathBuf,
    pub place: TempDir,
    pub mount: Mount,
    _disk: LoopDisk,
}

impl Source {
    pub fn start() -> Self {
        let disk = LoopDisk::new(64 << 20);
        run("mkfs.ext4", ["-q".as_ref(), disk.device.as_os_str()]);
        let device = File::options().write(true).open(&disk.device).unwrap();
        device.write_all_at(&boot_sector("one login: "), 0).unwrap();
        device.sync_all().unwrap();
        let mount = Mount::new(&disk.device, "defaults");
        let lines = mount.path().join("lines");
        let place = tempfile::tempdir().unwrap();
        let service = Service::new(place.path());
        let site = Site::start(&[&disk], "2s");
        site.await_first_point();
        site.json(["target", "set", "source", "--memory", "64", "--cpus", "1", "--up-within", "5m"]);
        service.start(&lines);
        service.await_more();
        let noise = Noise::start(&mount.path().join("noise"));
        Self { _noise: noise, site, service, lines, place, mount, _disk: disk }
    }

    /// Before a planned failover that is to come to nothing.
    pub fn expect_to_go_on(&self) {
        let _ = fs::remove_file(self.service.dir.join("started"));
    }

    /// Nothing is left of it: the source was started again, and what it writes becomes a point.
    pub fn goes_on(&self, job: &Value) {
        let Self { site, service, lines, .. } = self;
        assert!(service.has("started"), "{job}");
        assert!(!service.has("afterwards"), "{job}");
        assert_eq!(site.json(["machine", "list"]), Value::Array(Vec::new()));
        assert_eq!(site.json(["volume", "list"]), Value::Array(Vec::new()));
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

    /// The copy owns the history, and has every acknowledged line and no other.
    pub fn is_replaced(&self, job: &Value) {
        let Self { site, service, place, mount, .. } = self;
        let acknowledged = service.ended();
        assert_eq!(job["state"], "done", "{job}");
        let message = job["message"].as_str().unwrap();
        assert!(message.contains("No write is lost") && message.contains("none since"), "{message}");
        // It is told when it can be reached; the job does not wait for that for ever.
        wait_for("what is to be done afterwards", || service.has("afterwards").then_some(()));
        let newest = site.newest_point();
        assert_eq!(newest["id"], job["point"], "no point came after the last one");
        assert_eq!(newest["kind"], "filesystem");
        // The source's file system was let go. What is written there now is nobody's.
        fs::write(mount.path().join("late"), "late").unwrap();

        let copied = site.copy_out(job["point"].as_str().unwrap(), place.path());
        let copy = Mount::new(&copied[0], "ro,loop");
        let found = fs::read_to_string(copy.path().join("lines")).unwrap();
        let newest_line: u64 = found.lines().last().unwrap().parse().unwrap();
        assert_eq!(newest_line, acknowledged, "every acknowledged line is in the copy, and no other");
        assert_eq!(found.lines().count() as u64, acknowledged);
        assert!(!copy.path().join("late").exists());
        assert_eq!(site.json(["server", "show", "source"])["state"], "failed-over");
    }
}
