//! The process of a machine: found again by anybody, ended for certain.
//!
//! No number of a process is stored. A machine's QEMU is the process that works in the machine's directory
//! and carries the machine's name among its arguments; a number that was given to another process since can
//! therefore not be mistaken for it. Once found it is held by a pidfd, which never means another process.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::settings::KILL_LIMIT;
use crate::directory::MachineDirectory;
use crate::error::ComputeError;

const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The argument by which a machine's process is known.
pub(crate) fn marker(directory: &MachineDirectory) -> String {
    format!("guest=lifeboat-{}", directory.machine)
}

/// A machine's running process.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    handle: OwnedFd,
}

impl Process {
    /// The process of the machine, if it has one.
    pub(crate) fn find(directory: &MachineDirectory) -> Result<Option<Self>, ComputeError> {
        let Ok(place) = fs::canonicalize(directory.path()) else { return Ok(None) };
        Self::with_argument(Some(&place), &marker(directory))
    }

    /// The process that has this argument, alone or before a comma, and works in this place, if that matters.
    pub(crate) fn with_argument(place: Option<&Path>, argument: &str) -> Result<Option<Self>, ComputeError> {
        let proc = Path::new("/proc");
        for entry in fs::read_dir(proc).map_err(ComputeError::io("list", proc))?.flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
            let Some(pid) = pid.filter(|_| is_process(&entry.path(), place, argument)) else { continue };
            let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
            // Between looking and opening, the number could have changed hands.
            if is_process(&entry.path(), place, argument) {
                return Ok(Some(Self { pid, handle }));
            }
        }
        Ok(None)
    }

    /// Its number; it means this process for as long as this is not dropped and it has not ended.
    pub(crate) fn number(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Waits for its end, but not longer than this. Whether it ended.
    pub(crate) async fn ended_within(&self, limit: Duration) -> bool {
        let ended = async {
            // A pidfd can be read once its process is gone. A poll that fails tells nothing.
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let mut handle = [PollFd::new(&self.handle, PollFlags::IN)];
            while !poll(&mut handle, Some(&now)).is_ok_and(|ready| ready > 0) {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        tokio::time::timeout(limit, ended).await.is_ok()
    }

    /// Kills it and waits for its end.
    pub(crate) async fn kill(&self, directory: &MachineDirectory) -> Result<(), ComputeError> {
        if self.is_killed().await {
            return Ok(());
        }
        Err(ComputeError::Immortal { machine: directory.machine, process: self.number() })
    }

    /// Kills it and waits for its end, for which the kernel may take some time. Whether it ended.
    pub(crate) async fn is_killed(&self) -> bool {
        // The only refusal that root can get is that it ended already.
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
        self.ended_within(KILL_LIMIT).await
    }

    /// How much of this machine's memory it has at present, in bytes.
    pub(crate) fn resident_bytes(&self) -> io::Result<u64> {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.pid.as_raw_nonzero()))?;
        let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
        Ok(pages.unwrap_or(0) * rustix::param::page_size() as u64)
    }
}

fn is_process(proc: &Path, place: Option<&Path>, marker: &str) -> bool {
    let works_there = place.is_none_or(|place| fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd == place));
    works_there
        && fs::read(proc.join("cmdline")).is_ok_and(|arguments| {
            arguments.split(|byte| *byte == 0).any(|argument| {
                argument
                    .strip_prefix(marker.as_bytes())
                    .is_some_and(|rest| rest.is_empty() || rest[0] == b',')
            })
        })
}
