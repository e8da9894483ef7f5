//! Freezing and thawing, and the watchdog that thaws whatever happens.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// `_IOWR('X', 119, int)` and `_IOWR('X', 120, int)`: the same on all architectures that the
/// tracker knows.
const FIFREEZE: libc::c_ulong = 0xC004_5877;
const FITHAW: libc::c_ulong = 0xC004_5878;

/// Between two tries of the watchdog, should a freeze come in late.
const WATCH_AGAIN: Duration = Duration::from_millis(500);

pub(crate) fn freeze(root: &File) -> io::Result<()> {
    frozen_ioctl(root, FIFREEZE)
}

/// Thaws; false if it was not frozen.
pub(crate) fn thaw(root: &File) -> io::Result<bool> {
    match frozen_ioctl(root, FITHAW) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

fn frozen_ioctl(root: &File, request: libc::c_ulong) -> io::Result<()> {
    loop {
        // SAFETY: both requests ignore their argument, so no memory is read or written.
        let result = unsafe { libc::ioctl(root.as_raw_fd(), request as _, 0) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

struct Watched {
    roots: Vec<File>,
    /// When to thaw; none while it is not armed.
    deadline: Mutex<Option<Instant>>,
    ended: AtomicBool,
    changed: Condvar,
    fired: AtomicBool,
}

/// A thread that thaws all of its file systems when it was not called off in time. It is there,
/// with all that it needs, before anything is frozen.
pub(crate) struct Watchdog {
    watched: Arc<Watched>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    pub fn new(roots: Vec<File>) -> io::Result<Self> {
        let watched = Arc::new(Watched {
            roots,
            deadline: Mutex::new(None),
            ended: AtomicBool::new(false),
            changed: Condvar::new(),
            fired: AtomicBool::new(false),
        });
        let shared = Arc::clone(&watched);
        let thread =
            std::thread::Builder::new().name("lifeboat-thaw".into()).spawn(move || shared.watch())?;
        Ok(Self { watched, thread: Some(thread) })
    }

    pub fn arm(&self, frozen_max: Duration) {
        self.watched.fired.store(false, SeqCst);
        self.set(Some(Instant::now() + frozen_max));
    }

    pub fn disarm(&self) {
        self.set(None);
    }

    /// Whether it has begun to thaw since it was armed. While this is false, all that was frozen
    /// since then still is, as far as it is up to the watchdog.
    pub fn has_fired(&self) -> bool {
        self.watched.fired.load(SeqCst)
    }

    fn set(&self, deadline: Option<Instant>) {
        *self.watched.deadline.lock().unwrap_or_else(PoisonError::into_inner) = deadline;
        self.watched.changed.notify_all();
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.watched.ended.store(true, SeqCst);
        self.set(None);
        if let Some(thread) = self.thread.take() {
            // It does nothing that could panic.
            let _ = thread.join();
        }
    }
}

impl Watched {
    fn watch(&self) {
        let mut deadline = self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.ended.load(SeqCst) {
            let wait = match *deadline {
                None => Duration::from_secs(3600),
                Some(at) => at.saturating_duration_since(Instant::now()),
            };
            if wait.is_zero() {
                self.fired.store(true, SeqCst);
                // Without the lock: a thaw may take its time, and the owner must be able to go on.
                drop(deadline);
                for root in &self.roots {
                    // Whatever one says, the others are to be thawed, and then all once more.
                    let _ = thaw(root);
                }
                deadline = self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(at) = &mut *deadline {
                    *at = Instant::now() + WATCH_AGAIN;
                }
                continue;
            }
            let (next, _) = self.changed.wait_timeout(deadline, wait).unwrap_or_else(PoisonError::into_inner);
            deadline = next;
        }
    }
}
