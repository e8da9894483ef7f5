//! The services of this server in a planned failover: stopped, started again, or done with for good.
//!
//! A thread of its own, since commands of an operator may take minutes. While the server stands down,
//! its file systems are held frozen and this thread alone lets them go.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use lifeboat_capture::Hold;
use lifeboat_tracker::DiskDevice;
use rustix::fs::MemfdFlags;

use crate::engine::Event;
use crate::quiet::Quiet;
use crate::replicator::Inbox;
use crate::settings::{PlannedFailover, Settings};

/// File systems are never held longer, whatever becomes of the recovery site.
const HELD_MAX: Duration = Duration::from_secs(30 * 60);

/// How often it is looked whether they still are.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Bytes of a command's output that an operator is shown.
const OUTPUT_BYTES: u64 = 400;

/// What is wanted of the services.
#[derive(Debug)]
pub(crate) enum Stand {
    /// Stop them, and hold the file systems on these disks.
    Down(Vec<String>),
    /// Let the file systems go and start them.
    Up,
    /// Let the file systems go and do what is to be done when the copy has taken over.
    Retired,
}

/// The thread's own.
pub(crate) struct Services {
    pub config: PathBuf,
    pub quiet: Arc<Quiet>,
    pub inbox: Inbox,
    pub hold: Option<Hold>,
}

impl Services {
    /// Carries out orders until there can be no more; then lets go of what is held.
    pub fn run(mut self, orders: &Receiver<Stand>) {
        loop {
            match orders.recv_timeout(LOOK_EVERY) {
                Ok(Stand::Down(disks)) => {
                    let result = self.stand_down(&disks);
                    self.inbox.send(Event::StoodDown(result));
                }
                Ok(Stand::Up) => {
                    let result = self.stand_up();
                    self.inbox.send(Event::StoodUp(result));
                }
                Ok(Stand::Retired) => {
                    let result = self.retire();
                    self.inbox.send(Event::Retired(result));
                }
                Err(RecvTimeoutError::Timeout) => self.look(),
                Err(RecvTimeoutError::Disconnected) => {
                    self.let_go();
                    return;
                }
            }
        }
    }

    /// True when every file system is frozen, so that what the disks hold is clean.
    fn stand_down(&mut self, disks: &[String]) -> Result<bool, String> {
        if let Some(hold) = &self.hold {
            return Ok(hold.not_frozen().is_empty());
        }
        // Anew: what counts is what the settings say now.
        let settings = Settings::load(&self.config).map_err(|error| error.to_string())?;
        let planned = &settings.planned_failover;
        run(&planned.stop, planned.within.duration(), "stop")?;
        match self.hold(disks, &settings.frozen_file()) {
            Ok(clean) => Ok(clean),
            Err(why) => match start(planned) {
                Ok(()) => Err(format!("{why}; the services were started again")),
                Err(more) => Err(format!("{why}; and they could not be started again: {more}")),
            },
        }
    }

    fn hold(&mut self, disks: &[String], record: &Path) -> Result<bool, String> {
        let mut numbers = Vec::new();
        for disk in disks {
            let device = DiskDevice::inspect(Path::new(disk)).map_err(|error| error.to_string())?;
            numbers.push(rustix::fs::makedev(device.identity.major, device.identity.minor));
        }
        self.quiet.hold();
        match Hold::begin(&numbers, record, HELD_MAX) {
            Ok(hold) => {
                let clean = hold.not_frozen().is_empty();
                self.hold = Some(hold);
                Ok(clean)
            }
            Err(error) => {
                self.quiet.let_go();
                Err(format!("the file systems cannot be held: {error}"))
            }
        }
    }

    fn stand_up(&mut self) -> Result<(), String> {
        self.let_go();
        let settings = Settings::load(&self.config).map_err(|error| error.to_string())?;
        start(&settings.planned_failover)
    }

    fn retire(&mut self) -> Result<(), String> {
        self.let_go();
        let settings = Settings::load(&self.config).map_err(|error| error.to_string())?;
        let planned = &settings.planned_failover;
        run(&planned.afterwards, planned.within.duration(), "afterwards")
    }

    fn let_go(&mut self) {
        let Some(hold) = self.hold.take() else { return };
        let ended = hold.end();
        self.quiet.let_go();
        match ended {
            Ok(held) => tracing::info!(seconds = held.as_secs(), "file systems are no longer held"),
            Err(error) => tracing::error!(%error, "letting file systems go"),
        }
    }

    /// The watchdog may have let them go.
    fn look(&mut self) {
        let lost = self.hold.as_ref().and_then(|hold| hold.check().err());
        if let Some(error) = lost {
            self.let_go();
            self.inbox.send(Event::HoldLost(error.to_string()));
        }
    }
}

fn start(planned: &PlannedFailover) -> Result<(), String> {
    run(&planned.start, planned.within.duration(), "start")
}

/// Runs what a setting says, and waits for it. Nothing is run when it says nothing.
fn run(words: &[String], within: Duration, setting: &str) -> Result<(), String> {
    let Some((program, arguments)) = words.split_first() else { return Ok(()) };
    let failed = |what: String| format!("planned_failover.{setting} ({}) {what}", words.join(" "));
    // In memory: a file may be on a disk that is about to be held, and a pipe would be kept open by
    // services that were started.
    let output = rustix::fs::memfd_create("output", MemfdFlags::CLOEXEC).map(File::from);
    let output = output.map_err(|error| failed(format!("cannot be run: {error}")))?;
    let shared = || output.try_clone().map_err(|error| failed(format!("cannot be run: {error}")));
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(shared()?).stderr(shared()?);
    // A group of its own, so that all of it ends when its time is over.
    let mut child =
        command.process_group(0).spawn().map_err(|error| failed(format!("cannot be run: {error}")))?;
    let begun = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if begun.elapsed() < within => std::thread::sleep(Duration::from_millis(20)),
            Ok(None) => {
                if let Some(group) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
                    // It may have ended just now.
                    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
                }
                let _ = child.wait();
                return Err(failed(format!("did not end within {} s", within.as_secs())));
            }
            Err(error) => return Err(failed(format!("cannot be waited for: {error}"))),
        }
    };
    if status.success() {
        Ok(())
    } else {
        Err(failed(format!("ended with {status}: {}", last_words(output))))
    }
}

/// The end of what a command has said, in one line.
fn last_words(mut output: File) -> String {
    let mut text = Vec::new();
    let end = output.seek(SeekFrom::End(0)).unwrap_or(0);
    let read = output
        .seek(SeekFrom::Start(end.saturating_sub(OUTPUT_BYTES)))
        .and_then(|_| output.read_to_end(&mut text));
    if read.is_err() || text.is_empty() {
        return "it said nothing".to_owned();
    }
    String::from_utf8_lossy(&text).trim().replace('\n', "; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &[&str]) -> Vec<String> {
        text.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_command_that_fails_is_told_with_its_last_words() {
        let minute = Duration::from_secs(60);
        assert_eq!(run(&[], minute, "stop"), Ok(()));
        assert_eq!(run(&words(&["true"]), minute, "stop"), Ok(()));
        let error = run(&words(&["sh", "-c", "echo one; echo two >&2; exit 3"]), minute, "stop").unwrap_err();
        assert!(error.contains("planned_failover.stop") && error.contains("exit status: 3"), "{error}");
        assert!(error.ends_with("one; two"), "{error}");
        let error = run(&words(&["/no/such/program"]), minute, "start").unwrap_err();
        assert!(error.contains("/no/such/program") && error.contains("cannot be run"), "{error}");
    }

    #[test]
    fn a_command_is_ended_with_its_children_when_its_time_is_over() {
        let error =
            run(&words(&["sh", "-c", "sleep 1000 & wait"]), Duration::from_millis(200), "stop").unwrap_err();
        assert!(error.contains("did not end within"), "{error}");
    }

    #[test]
    fn a_service_that_stays_does_not_hold_the_command_up() {
        let started = run(&words(&["sh", "-c", "sleep 30 & true"]), Duration::from_secs(20), "start");
        assert_eq!(started, Ok(()));
    }
}
