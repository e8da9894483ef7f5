//! A machine's directory: what is stored about it, and the names of its files.
//!
//! A QEMU on this machine runs in this directory and names its files relative to it, so that no path is too long
//! for a Unix socket. Everything in it is private to the vault's user: the console may show secrets.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lifeboat_model::{DiskNumber, MachineId};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use crate::error::ComputeError;
use crate::hydration::HydrationTarget;
use crate::network::Forward;
use crate::provider::OffReason;
use crate::spec::{DiskAddress, DiskFormat, MachineDisk, MachineSpec};

/// The socket on which QEMU takes commands.
pub(crate) const QMP: &str = "qmp";
/// What the guest wrote to its first serial port.
pub(crate) const CONSOLE: &str = "console";
/// The socket on which QEMU takes what is typed on that port.
pub(crate) const CONSOLE_SOCKET: &str = "console-input";
/// What QEMU said since its last start.
pub(crate) const LOG: &str = "qemu.log";
/// The variables of the machine's UEFI.
pub(crate) const VARIABLES: &str = "uefi-variables";
/// A screenshot on its way.
pub(crate) const SCREEN: &str = "screen";
const STATE: &str = "machine.json";
const VERSION: u32 = 1;

/// What is stored about a machine, before QEMU learns of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MachineState {
    version: u32,
    pub spec: MachineSpec,
    /// When its present or last process was started.
    pub since: Timestamp,
    pub first_instruction: Option<Timestamp>,
    /// All forwards of its interfaces, with the host ports that they got.
    pub forwards: Vec<Forward>,
    /// Why it is off; none while it should be running.
    pub off: Option<OffReason>,
    /// Local copies of its disks, at most one of each.
    #[serde(default)]
    pub copies: Vec<LocalCopy>,
    /// Whether its guest is held still while a disk moves to its copy.
    #[serde(default)]
    pub held: bool,
}

/// A copy of a disk in a local file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LocalCopy {
    pub disk: DiskNumber,
    pub target: HydrationTarget,
    pub stage: Stage,
}

/// How far a copy is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// It is not complete, and the disk's source is what counts.
    Copying,
    /// It is what counts; the disk's source is no longer written.
    Local,
    /// It was given up and its file removed.
    Failed { why: String },
}

impl MachineState {
    /// A machine about to be started, some of whose disks may be in local copies.
    pub(crate) fn new(spec: MachineSpec, copies: Vec<LocalCopy>, now: Timestamp) -> Self {
        Self {
            version: VERSION,
            spec,
            since: now,
            first_instruction: None,
            forwards: Vec::new(),
            off: Some(OffReason::NotStarted { why: None }),
            copies,
            held: false,
        }
    }

    pub(crate) fn copy_of(&self, disk: DiskNumber) -> Option<&LocalCopy> {
        self.copies.iter().find(|copy| copy.disk == disk)
    }

    /// Its disks, each with the address of what counts.
    pub(crate) fn disks(&self) -> Vec<MachineDisk> {
        let mut disks = self.spec.disks.clone();
        for disk in &mut disks {
            if let Some(LocalCopy { target, stage: Stage::Local, .. }) = self.copy_of(disk.number) {
                disk.source = DiskAddress::File { path: target.path.clone(), format: target.format };
            }
        }
        disks
    }
}

/// The directory of one machine, which may not be there.
#[derive(Clone, Debug)]
pub(crate) struct MachineDirectory {
    pub machine: MachineId,
    path: PathBuf,
}

impl MachineDirectory {
    /// The directory of this machine in the directory of all.
    pub(crate) fn new(machines: &Path, machine: MachineId) -> Self {
        Self { machine, path: machines.join(machine.to_string()) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Connects to a socket in it.
    pub(crate) async fn connect(&self, name: &str) -> io::Result<UnixStream> {
        // The way through /proc is short, whatever the path of the directory.
        let place = File::open(&self.path)?;
        UnixStream::connect(format!("/proc/self/fd/{}/{name}", place.as_raw_fd())).await
    }

    /// Where a copy of a disk is kept.
    pub(crate) fn place_of_copy(&self, disk: DiskNumber, format: DiskFormat) -> PathBuf {
        let ending = match format {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        };
        self.file(&format!("disk-{disk}.{ending}"))
    }

    pub(crate) fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Makes the directory if it is not there.
    pub(crate) fn create(&self) -> Result<(), ComputeError> {
        match fs::create_dir(&self.path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(ComputeError::io("create", &self.path)(error)),
        }
        fs::set_permissions(&self.path, Permissions::from_mode(0o700))
            .map_err(ComputeError::io("protect", &self.path))
    }

    /// What is stored; none when the machine's making did not get that far.
    pub(crate) fn load(&self) -> Result<Option<MachineState>, ComputeError> {
        let path = self.file(STATE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ComputeError::io("read", path)(error)),
        };
        let damaged = |why: String| ComputeError::Damaged { path: path.clone(), why };
        let state: MachineState =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if state.version != VERSION {
            return Err(damaged(format!(
                "it has version {} and this Lifeboat knows {VERSION}",
                state.version
            )));
        }
        if state.spec.id != self.machine {
            return Err(damaged(format!("it describes machine {}", state.spec.id)));
        }
        Ok(Some(state))
    }

    /// Stores it, so that it is there after a loss of power.
    pub(crate) fn store(&self, state: &MachineState) -> Result<(), ComputeError> {
        let (path, new) = (self.file(STATE), self.file("machine.json.new"));
        let text = serde_json::to_vec_pretty(state)
            .map_err(|error| ComputeError::io("write", &path)(io::Error::other(error)))?;
        let write = || {
            let mut file = private_file(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(ComputeError::io("write", path))
    }

    /// The end of what QEMU said, as one line.
    pub(crate) fn last_words(&self) -> String {
        let text = fs::read(self.file(LOG)).unwrap_or_default();
        last_lines(&String::from_utf8_lossy(&text))
    }

    /// Removes the directory and all in it.
    pub(crate) fn remove(&self) -> Result<(), ComputeError> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ComputeError::io("remove", &self.path)(error))
            }
            _ => Ok(()),
        }
    }
}

/// Creates or empties a file that only the owner may read.
pub(crate) fn private_file(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// The last three lines that a program said, as one line without the program's name. Warnings count only
/// when there is nothing else.
pub(crate) fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let errors: Vec<_> = lines.iter().copied().filter(|line| !line.contains(": warning: ")).collect();
    let lines = if errors.is_empty() { lines } else { errors };
    let last: Vec<_> = lines
        .iter()
        .skip(lines.len().saturating_sub(3))
        .map(|line| {
            line.split_once(": ").filter(|(name, _)| name.starts_with("qemu")).map_or(*line, |(_, rest)| rest)
        })
        .collect();
    last.join("; ")
}
