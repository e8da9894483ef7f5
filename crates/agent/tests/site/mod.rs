//! A small process server that keeps images instead of files, disks on loop devices, and the real
//! agent as a process.

#![allow(dead_code, reason = "each test file uses its part")]

pub mod disk;
pub mod server;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_model::ServerId;
use lifeboat_trust::{Identity, IssuedCertificate, SiteAuthority};

use disk::LoopDisk;
use server::Server;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// An agent with its settings, its process server and its disks.
pub struct Site {
    pub dir: tempfile::TempDir,
    pub server: Arc<Server>,
    pub disks: Vec<LoopDisk>,
    pin_dir: PathBuf,
    agent: Option<Child>,
    disk_paths: Vec<String>,
}

impl Site {
    pub fn new(disk_mib: &[u64]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let pin_dir =
            PathBuf::from(format!("/sys/fs/bpf/lifeboat-agent-test-{}-{number}", std::process::id()));
        let now = Timestamp::now();
        let authority = SiteAuthority::create(&dir.path().join("authority"), "test", now).unwrap();
        let day = Duration::from_secs(86_400);
        let issue = |identity: Identity, hosts: &[String]| -> IssuedCertificate {
            authority.issue(&identity, hosts, day, now).unwrap()
        };
        let gateway = issue(Identity::ProcessServer("test".into()), &["127.0.0.1".into()]);
        let agent = issue(Identity::Agent(ServerId::new(7)), &[]);
        agent.write_bundle(&dir.path().join("credentials")).unwrap();
        let server = Server::start(&gateway.credentials().unwrap());
        let disks: Vec<LoopDisk> = disk_mib
            .iter()
            .enumerate()
            .map(|(index, mib)| LoopDisk::new(&dir.path().join(format!("disk{index}")), *mib))
            .collect();
        let disk_paths = disks.iter().map(|disk| disk.path.clone()).collect();
        let site = Self { dir, server, disks, pin_dir, agent: None, disk_paths };
        site.write_settings();
        site
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("agent.toml")
    }

    pub fn add_disk(&mut self, mib: u64) {
        let disk = LoopDisk::new(&self.dir.path().join(format!("disk{}", self.disks.len())), mib);
        self.disk_paths.push(disk.path.clone());
        self.disks.push(disk);
        self.write_settings();
    }

    /// The settings name one more disk, by this path.
    pub fn add_path(&mut self, path: &str) {
        self.disk_paths.push(path.to_owned());
        self.write_settings();
    }

    /// The settings name this disk by another path.
    pub fn name_disk(&mut self, index: usize, path: &str) {
        path.clone_into(&mut self.disk_paths[index]);
        self.write_settings();
    }

    /// The agent's process.
    pub fn process(&self) -> u32 {
        self.agent.as_ref().unwrap().id()
    }

    /// The settings name this disk no longer.
    pub fn remove_disk(&mut self, index: usize) {
        self.disk_paths.remove(index);
        self.write_settings();
    }

    fn write_settings(&self) {
        let text = format!(
            "process_servers = [\"https://127.0.0.1:{}\"]\ncredentials = {:?}\nstate = {:?}\n\
             name = \"test\"\ndisks = {:?}\npin_dir = {:?}\n",
            self.server.port,
            self.dir.path().join("credentials"),
            self.dir.path().join("state"),
            self.disk_paths,
            self.pin_dir,
        );
        let new = self.dir.path().join("agent.toml.new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.config()).unwrap();
    }

    pub fn start(&mut self) {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_lifeboat-agent"))
            .args(["run", "--config"])
            .arg(self.config())
            .env("RUST_LOG", "debug,lifeboat_agent=trace,hyper_util=info,reqwest=info,rustls=info")
            .stderr(Stdio::from(log))
            .spawn()
            .unwrap();
        self.agent = Some(child);
    }

    /// As `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().unwrap();
            agent.wait().unwrap();
        }
    }

    /// As SIGTERM; gives the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        let mut agent = self.agent.take()?;
        Command::new("kill").arg(agent.id().to_string()).status().unwrap();
        agent.wait().unwrap().code()
    }

    pub fn command(&self, words: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_lifeboat-agent")).args(words).output().unwrap()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Waits until something holds, looking often; fails with the agent's log.
    pub fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "{what} did not come about; the agent's log:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for a point whose time is after now.
    pub fn until_new_point(&self) {
        let now = Timestamp::now();
        self.until("a new point", || self.server.newest().is_some_and(|seal| seal.time > now));
    }

    /// The newest point is the disks as they are, bit for bit. Nobody writes meanwhile.
    pub fn check_newest_point(&self) {
        self.until_new_point();
        for (number, disk) in self.disks.iter().enumerate() {
            self.server.check_image(u16::try_from(number).unwrap(), &disk.content(), &self.log());
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Whether the kernel skipped a program because it was running already.
            let programs = Command::new("bpftool").args(["prog", "show"]).output();
            let text = programs
                .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
                .unwrap_or_default();
            text.lines().filter(|line| line.contains("misses")).for_each(|line| eprintln!("{line}"));
        }
        if std::thread::panicking() {
            self.stop();
            for l in self.log().lines().filter(|l| l.contains("DUMP")) {
                eprintln!("{l}");
            }
        }
        self.kill();
        remove_pins(&self.pin_dir);
    }
}

/// Pins are files in directories; a BPF file system knows no recursive removal of its own.
fn remove_pins(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            remove_pins(&path);
        } else {
            let _ = std::fs::remove_file(path);
        }
    }
    let _ = std::fs::remove_dir(dir);
}
