//! Threads that read and decode files.
//!
//! They are apart from the runtime's blocking threads so that their number is fixed, what a client
//! waits for goes before what it may want next, and the decoder's buffers stay few.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::sync::oneshot;

/// Jobs of [`Urgency::Later`] that may wait before no more should be submitted.
const LATER_MAX: usize = 64;

type Job = Box<dyn FnOnce() + Send>;

/// Which jobs go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Somebody waits for it.
    Now,
    /// Somebody may want it.
    Later,
}

#[derive(Default)]
struct Queues {
    now: VecDeque<Job>,
    later: VecDeque<Job>,
    stopped: bool,
}

#[derive(Default)]
struct Shared {
    queues: Mutex<Queues>,
    ready: Condvar,
}

/// A fixed number of threads. They end when it is dropped, after the job that they are at.
pub(crate) struct Workers {
    shared: Arc<Shared>,
    count: usize,
}

impl Workers {
    /// Enough threads to keep all processors busy while some wait for the disk.
    pub(crate) fn start() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let count = (2 * processors).max(4);
        let shared = Arc::new(Shared::default());
        let started = (0..count).filter(|number| {
            let shared = Arc::clone(&shared);
            let thread = thread::Builder::new().name(format!("volume-{number}"));
            thread
                .spawn(move || work(&shared))
                .inspect_err(|error| tracing::warn!(%error, "no thread"))
                .is_ok()
        });
        let count = started.count();
        Self { shared, count }
    }

    /// How many threads there are.
    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    /// Whether another job of [`Urgency::Later`] is worth submitting.
    pub(crate) fn has_room_later(&self) -> bool {
        self.queues().later.len() < LATER_MAX
    }

    /// Takes a job.
    pub(crate) fn submit(&self, urgency: Urgency, job: impl FnOnce() + Send + 'static) {
        let mut queues = self.queues();
        match urgency {
            Urgency::Now => queues.now.push_back(Box::new(job)),
            Urgency::Later => queues.later.push_back(Box::new(job)),
        }
        drop(queues);
        self.shared.ready.notify_one();
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.shared.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a job that somebody waits for; the receiver errs if it panicked.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (sender, receiver) = oneshot::channel();
        self.submit(Urgency::Now, move || {
            // Nobody may wait any more.
            if !sender.is_closed() {
                let _ = sender.send(job());
            }
        });
        receiver
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        // Jobs are dropped outside of the lock: what they hold may want it.
        let waiting = std::mem::replace(&mut *self.queues(), Queues { stopped: true, ..Queues::default() });
        drop(waiting);
        self.shared.ready.notify_all();
    }
}

fn work(shared: &Shared) {
    let mut queues = shared.queues.lock().unwrap_or_else(PoisonError::into_inner);
    while !queues.stopped {
        let job = queues.now.pop_front().or_else(|| queues.later.pop_front());
        let Some(job) = job else {
            queues = shared.ready.wait(queues).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        drop(queues);
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("reading a file panicked; whoever waits for it gets an error");
        }
        queues = shared.queues.lock().unwrap_or_else(PoisonError::into_inner);
    }
}
