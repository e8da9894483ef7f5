//! The demonstration server: two loop disks with ext4, PostgreSQL with its data on one and its
//! write-ahead log on the other, and pgbench as its load. All of it goes when this is dropped; the
//! two images stay, so that starting again goes on with the same disks. What a killed run has left
//! is taken over: an image that was attached or mounted twice would be destroyed.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::{Outcome, process};

const BIN: &str = "/usr/lib/postgresql/15/bin";
const IMAGE_BYTES: u64 = 1 << 30;
const DISKS: [&str; 2] = ["data", "wal"];
/// Outside the state directory, since the postgres user may not be able to enter that.
const MOUNTS: &str = "/run/lifeboat-demonstration";
const PORT: &str = "54329";

pub struct Demonstration {
    loops: Vec<PathBuf>,
    mounted: Vec<PathBuf>,
    running: bool,
    load: Option<Child>,
}

impl Demonstration {
    /// Makes what is missing, mounts it and starts PostgreSQL and the load.
    pub fn start(dir: &Path) -> Result<Self, String> {
        let mut demonstration = Self { loops: Vec::new(), mounted: Vec::new(), running: false, load: None };
        fs::create_dir_all(dir).map_err(|error| format!("cannot create {}: {error}", dir.display()))?;
        println!("Demonstration server: two disks of 1 GiB with ext4 and PostgreSQL under pgbench");
        for name in DISKS {
            demonstration.attach(dir, name)?;
        }
        demonstration.start_postgresql()?;
        demonstration.start_load()?;
        Ok(demonstration)
    }

    /// The disks to protect.
    pub fn disks(&self) -> Vec<PathBuf> {
        self.loops.clone()
    }

    fn attach(&mut self, dir: &Path, name: &str) -> Outcome {
        let image = dir.join(format!("{name}.img"));
        let fresh = !image.exists();
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&image);
        file.and_then(|file| file.set_len(IMAGE_BYTES))
            .map_err(|error| format!("cannot create {}: {error}", image.display()))?;
        let device = match attached(&image)? {
            Some(device) => device,
            None => PathBuf::from(process::output("losetup", attach_words(&image))?),
        };
        self.loops.push(device.clone());
        if fresh {
            process::output("mkfs.ext4", [OsStr::new("-q"), device.as_os_str()])?;
        }
        let mount = Path::new(MOUNTS).join(name);
        fs::create_dir_all(&mount).map_err(|error| format!("cannot create {}: {error}", mount.display()))?;
        match mounted_at(&mount) {
            Some(source) if source == device => {}
            Some(source) => {
                return Err(format!(
                    "{} is in use by another demonstration, on {}: stop that `cargo xtask up`, or run: umount {}",
                    mount.display(),
                    source.display(),
                    mount.display()
                ));
            }
            None => drop(process::output("mount", [device.as_os_str(), mount.as_os_str()])?),
        }
        self.mounted.push(mount);
        Ok(())
    }

    fn start_postgresql(&mut self) -> Outcome {
        let (data, wal) = (format!("{MOUNTS}/data/pg"), format!("{MOUNTS}/wal/pg"));
        let fresh = !Path::new(&data).join("PG_VERSION").exists();
        for dir in [&data, &wal] {
            fs::create_dir_all(dir).map_err(|error| format!("cannot create {dir}: {error}"))?;
            own_by_postgres(Path::new(dir))?;
        }
        if fresh {
            as_postgres(&[&format!("{BIN}/initdb"), "--pgdata", &data, "--waldir", &wal, "--auth=trust"])?;
        }
        link_wal_from_beside(Path::new(&data))?;
        if as_postgres(&[&format!("{BIN}/pg_ctl"), "status", "-D", &data]).is_ok() {
            self.running = true;
            return Ok(());
        }
        let options = format!("-p {PORT} -k /tmp -c listen_addresses=''");
        let log = format!("{data}/server.log");
        as_postgres(&[&format!("{BIN}/pg_ctl"), "start", "-w", "-D", &data, "-l", &log, "-o", &options])?;
        self.running = true;
        if fresh {
            as_postgres(&[
                &format!("{BIN}/pgbench"),
                "-i",
                "-s",
                "10",
                "-q",
                "-h",
                "/tmp",
                "-p",
                PORT,
                "postgres",
            ])?;
        }
        Ok(())
    }

    fn start_load(&mut self) -> Outcome {
        let load = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--reuid=postgres", "--regid=postgres", "--init-groups"])
            .arg(format!("{BIN}/pgbench"))
            .args(["-n", "-c", "2", "-T", "1000000", "--rate=100", "-h", "/tmp", "-p", PORT, "postgres"])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.load = Some(load.map_err(|error| format!("cannot start pgbench: {error}"))?);
        Ok(())
    }
}

impl Drop for Demonstration {
    fn drop(&mut self) {
        if let Some(load) = &mut self.load {
            let _ = load.kill();
            let _ = load.wait();
        }
        let mut outcomes = Vec::new();
        if self.running {
            let data = format!("{MOUNTS}/data/pg");
            outcomes.push(as_postgres(&[&format!("{BIN}/pg_ctl"), "stop", "-w", "-m", "fast", "-D", &data]));
        }
        for mount in self.mounted.iter().rev() {
            outcomes.push(process::output("umount", [mount]).map(drop));
        }
        for mount in &self.mounted {
            let _ = fs::remove_dir(mount);
        }
        let _ = fs::remove_dir(MOUNTS);
        for device in &self.loops {
            outcomes.push(process::output("losetup", [OsStr::new("--detach"), device.as_os_str()]).map(drop));
        }
        for sentence in outcomes.into_iter().filter_map(Result::err) {
            eprintln!("cargo xtask: taking the demonstration down: {sentence}");
        }
    }
}

fn attach_words(image: &Path) -> [&OsStr; 4] {
    [OsStr::new("--find"), OsStr::new("--show"), OsStr::new("--direct-io=on"), image.as_os_str()]
}

/// The device that an image is attached to already.
fn attached(image: &Path) -> Result<Option<PathBuf>, String> {
    let words = [
        OsStr::new("--noheadings"),
        OsStr::new("--output"),
        OsStr::new("NAME"),
        OsStr::new("--associated"),
        image.as_os_str(),
    ];
    let listed = process::output("losetup", words)?;
    let devices: Vec<_> = listed.split_whitespace().collect();
    match devices.as_slice() {
        [] => Ok(None),
        [device] => Ok(Some(device.into())),
        several => Err(format!(
            "{} is attached more than once, as {}: detach what is not mounted with losetup --detach",
            image.display(),
            several.join(" and ")
        )),
    }
}

/// The device that is mounted there.
fn mounted_at(mount: &Path) -> Option<PathBuf> {
    let words = [OsStr::new("--noheadings"), OsStr::new("--output"), OsStr::new("SOURCE"), mount.as_os_str()];
    process::output("findmnt", words).ok().filter(|source| !source.is_empty()).map(PathBuf::from)
}

/// Lets the database find its write-ahead log from where it lies itself: a copy of both disks that is
/// mounted elsewhere has its own, and never the running server's.
fn link_wal_from_beside(data: &Path) -> Outcome {
    let link = data.join("pg_wal");
    let beside = Path::new("../../wal/pg");
    if fs::read_link(&link).is_ok_and(|target| target == beside) {
        return Ok(());
    }
    let failed = |error| format!("cannot link {}: {error}", link.display());
    let next = data.join("pg_wal.next");
    let _ = fs::remove_file(&next);
    std::os::unix::fs::symlink(beside, &next).map_err(failed)?;
    fs::rename(&next, &link).map_err(failed)
}

fn as_postgres(words: &[&str]) -> Outcome {
    let before = ["--reuid=postgres", "--regid=postgres", "--init-groups"];
    let status = Command::new("setpriv")
        .args(before)
        .args(words)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|error| format!("cannot run {}: {error}", words[0]))?;
    if status.success() { Ok(()) } else { Err(format!("`{}` ended with {status}", words.join(" "))) }
}

fn own_by_postgres(dir: &Path) -> Outcome {
    let number = |flag| -> Result<u32, String> {
        process::output("id", [flag, "postgres"])?.parse().map_err(|_| "there is no user postgres".to_owned())
    };
    chown(dir, Some(number("-u")?), Some(number("-g")?))
        .map_err(|error| format!("cannot give {} to postgres: {error}", dir.display()))
}
