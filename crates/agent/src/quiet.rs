//! No file is written while file systems are frozen.
//!
//! The agent's state and its log may lie on a file system that a quiesced point freezes: directly,
//! or because whoever reads the log writes it there. So from before the freeze until after the
//! thaw the record is not saved, and lines of the log wait in memory.
//!
//! While a server stands down, file systems are held frozen for minutes and points are taken all the
//! same. The record then stays in memory alone: that of before is on disk, and an agent that starts with
//! it finds that the process server has more, and compares the disks.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use lifeboat_capture::QuiesceHooks;
use tracing_subscriber::fmt::MakeWriter;

/// Bytes of the log that wait at most; lines beyond that are counted.
const WAITING_BYTES_MAX: usize = 64 << 10;

/// Who may write now.
#[derive(Debug)]
pub struct Quiet {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    frozen: bool,
    /// It will be for long, so nobody waits for the thaw.
    held: bool,
    saving: u32,
    lines: Vec<u8>,
    dropped: u64,
}

impl Quiet {
    /// Everybody may write.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let lines = Vec::with_capacity(WAITING_BYTES_MAX);
        let state = Mutex::new(State { frozen: false, held: false, saving: 0, lines, dropped: 0 });
        Arc::new(Self { state, changed: Condvar::new() })
    }

    /// Does `save`, which writes files, when nothing is frozen; freezing waits until it is done.
    /// `None` without doing it while file systems are held.
    pub fn when_thawed<T>(&self, save: impl FnOnce() -> T) -> Option<T> {
        let state = self.state();
        let mut state = self
            .changed
            .wait_while(state, |state| state.frozen && !state.held)
            .unwrap_or_else(PoisonError::into_inner);
        if state.held {
            return None;
        }
        state.saving += 1;
        drop(state);
        let _saving = Saving(self);
        Some(save())
    }

    /// Nobody writes any more until [`Quiet::let_go`]. Waits for who is writing.
    pub(crate) fn hold(&self) {
        self.begin();
        self.state().held = true;
        self.changed.notify_all();
    }

    /// Everybody may write again.
    pub(crate) fn let_go(&self) {
        self.end(&mut io::stderr());
    }

    /// Returns when nothing is frozen; freezing does not wait for what is done then.
    pub fn await_thaw(&self) {
        let state = self.state();
        drop(self.changed.wait_while(state, |state| state.frozen).unwrap_or_else(PoisonError::into_inner));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) {
        let state = self.state();
        let mut state =
            self.changed.wait_while(state, |state| state.saving > 0).unwrap_or_else(PoisonError::into_inner);
        state.frozen = true;
    }

    fn end(&self, log: &mut impl Write) {
        let mut state = self.state();
        (state.frozen, state.held) = (false, false);
        self.changed.notify_all();
        // Nobody could be told that the log cannot be written.
        let _ = log.write_all(&state.lines);
        state.lines.clear();
        let dropped = std::mem::take(&mut state.dropped);
        if dropped > 0 {
            let _ = writeln!(log, "{dropped} lines of the log were lost while file systems were frozen");
        }
    }

    fn log(&self, line: &[u8], log: &mut impl Write) -> io::Result<()> {
        let mut state = self.state();
        if !state.frozen {
            return log.write_all(line);
        }
        if state.lines.len() + line.len() <= WAITING_BYTES_MAX {
            state.lines.extend_from_slice(line);
        } else {
            state.dropped += 1;
        }
        Ok(())
    }
}

struct Saving<'a>(&'a Quiet);

impl Drop for Saving<'_> {
    fn drop(&mut self) {
        self.0.state().saving -= 1;
        self.0.changed.notify_all();
    }
}

/// The hooks of a quiesced point.
pub(crate) struct KeepQuiet(pub Arc<Quiet>);

impl QuiesceHooks for KeepQuiet {
    fn prepare(&mut self) -> Result<(), String> {
        self.0.begin();
        Ok(())
    }

    fn release(&mut self) {
        self.0.end(&mut io::stderr());
    }
}

/// Where the log goes: standard error, unless something is frozen.
#[derive(Clone, Debug)]
pub struct QuietLog(pub Arc<Quiet>);

impl Write for QuietLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.log(bytes, &mut io::stderr())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for QuietLog {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    #[test]
    fn lines_wait_for_the_thaw_and_those_beyond_the_bound_are_counted() {
        let quiet = Quiet::new();
        let mut log = Vec::new();
        quiet.log(b"before\n", &mut log).unwrap();
        quiet.begin();
        quiet.log(b"while\n", &mut log).unwrap();
        quiet.log(&vec![b'x'; WAITING_BYTES_MAX], &mut log).unwrap();
        assert_eq!(log, b"before\n");
        quiet.end(&mut log);
        quiet.log(b"after\n", &mut log).unwrap();
        let text = String::from_utf8(log).unwrap();
        let lost = "1 lines of the log were lost while file systems were frozen";
        assert_eq!(text, format!("before\nwhile\n{lost}\nafter\n"));
    }

    #[test]
    fn nobody_waits_for_file_systems_that_are_held() {
        let quiet = Quiet::new();
        let mut log = Vec::new();
        quiet.hold();
        assert_eq!(quiet.when_thawed(|| "saved"), None);
        quiet.log(b"while\n", &mut log).unwrap();
        assert!(log.is_empty());
        quiet.end(&mut log);
        assert_eq!(log, b"while\n");
        assert_eq!(quiet.when_thawed(|| "saved"), Some("saved"));
    }

    #[test]
    fn a_save_waits_for_the_thaw_and_the_freeze_for_a_save() {
        let quiet = Quiet::new();
        let (said, order) = channel();
        quiet.begin();
        thread::scope(|scope| {
            let saved = said.clone();
            let saving = scope.spawn(|| quiet.when_thawed(move || saved.send("saved").unwrap()));
            let (reading, quiet) = (said.clone(), &quiet);
            let read = scope.spawn(move || {
                quiet.await_thaw();
                reading.send("saved").unwrap();
            });
            thread::yield_now();
            said.send("thawed").unwrap();
            quiet.end(&mut io::sink());
            saving.join().unwrap();
            read.join().unwrap();
        });
        let told = [order.recv().unwrap(), order.recv().unwrap(), order.recv().unwrap()];
        assert_eq!(told, ["thawed", "saved", "saved"]);

        let (begun, has_begun) = channel();
        let (go_on, may_go_on) = channel::<()>();
        thread::scope(|scope| {
            let saved = said.clone();
            let quiet = &quiet;
            scope.spawn(move || {
                quiet.when_thawed(|| {
                    begun.send(()).unwrap();
                    may_go_on.recv().unwrap();
                    saved.send("saved").unwrap();
                });
            });
            has_begun.recv().unwrap();
            let freezing = scope.spawn(|| {
                quiet.begin();
                said.send("frozen").unwrap();
            });
            thread::yield_now();
            go_on.send(()).unwrap();
            freezing.join().unwrap();
        });
        assert_eq!([order.recv().unwrap(), order.recv().unwrap()], ["saved", "frozen"]);
    }
}
