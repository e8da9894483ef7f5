//! Threads that compress and encrypt, shared fairly by all connections.
//!
//! Each connection has a lane of its own. The threads take one job from each lane in turn, so an agent
//! that sends a lot does not hold up one that sends little.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// The threads. They end when the pool is dropped.
pub(crate) struct SealingPool {
    shared: Arc<Shared>,
    workers: usize,
}

struct Shared {
    lanes: Mutex<Lanes>,
    ready: Condvar,
}

#[derive(Default)]
struct Lanes {
    jobs: HashMap<u64, VecDeque<Job>>,
    /// Lanes with jobs, in the order of their turns; each at most once.
    turns: VecDeque<u64>,
    next_lane: u64,
    stopping: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SealingPool {
    /// Starts `workers` threads.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(workers: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { lanes: Mutex::default(), ready: Condvar::new() });
        let pool = Self { shared, workers };
        for number in 0..workers {
            let shared = Arc::clone(&pool.shared);
            thread::Builder::new().name(format!("seal-{number}")).spawn(move || work(&shared))?;
        }
        Ok(pool)
    }

    /// How many threads there are.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// A lane for one connection.
    pub fn lane(&self) -> Lane {
        let mut lanes = self.shared.lock();
        let lane = lanes.next_lane;
        lanes.next_lane += 1;
        Lane { shared: Arc::clone(&self.shared), lane }
    }
}

impl Drop for SealingPool {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.ready.notify_all();
    }
}

/// The jobs of one connection. Those that wait are forgotten when it is dropped.
pub(crate) struct Lane {
    shared: Arc<Shared>,
    lane: u64,
}

impl Lane {
    /// Has `work` done. The receiver fails if it panicked or will never be done.
    pub fn submit<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move || {
            // Nobody waits any more when the connection is gone.
            let _ = sender.send(work());
        });
        let mut lanes = self.shared.lock();
        let jobs = lanes.jobs.entry(self.lane).or_default();
        jobs.push_back(job);
        if jobs.len() == 1 {
            lanes.turns.push_back(self.lane);
        }
        drop(lanes);
        self.shared.ready.notify_one();
        receiver
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let mut lanes = self.shared.lock();
        let forgotten = lanes.jobs.remove(&self.lane);
        lanes.turns.retain(|lane| *lane != self.lane);
        drop(lanes);
        drop(forgotten);
    }
}

fn work(shared: &Shared) {
    while let Some(job) = next_job(shared) {
        // The job's receiver learns of the panic, since its sender is dropped.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("compressing or encrypting a frame panicked; its part is refused");
        }
    }
}

fn next_job(shared: &Shared) -> Option<Job> {
    let mut lanes = shared.lock();
    loop {
        if lanes.stopping {
            return None;
        }
        let Some(lane) = lanes.turns.pop_front() else {
            lanes = shared.ready.wait(lanes).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        let Some(jobs) = lanes.jobs.get_mut(&lane) else { continue };
        let job = jobs.pop_front();
        if jobs.is_empty() {
            lanes.jobs.remove(&lane);
        } else {
            lanes.turns.push_back(lane);
        }
        if job.is_some() {
            return job;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn lanes_take_turns() {
        let pool = SealingPool::start(1).unwrap();
        let (open, gate) = mpsc::channel::<()>();
        let (done, order) = mpsc::channel();
        let (busy, quiet, third) = (pool.lane(), pool.lane(), pool.lane());
        let blocker = third.submit(move || gate.recv());
        let jobs = |lane: &Lane, name: &'static str, count: usize| {
            for _ in 0..count {
                let done = done.clone();
                drop(lane.submit(move || done.send(name)));
            }
        };
        jobs(&busy, "busy", 100);
        jobs(&quiet, "quiet", 2);
        open.send(()).unwrap();
        blocker.blocking_recv().unwrap().unwrap();
        let first: Vec<_> = order.iter().take(6).collect();
        assert_eq!(first.iter().filter(|name| **name == "quiet").count(), 2, "{first:?}");
    }

    #[test]
    fn a_panic_fails_its_job_and_nothing_else() {
        let pool = SealingPool::start(1).unwrap();
        let lane = pool.lane();
        let panics = lane.submit(|| panic!("on purpose"));
        let works = lane.submit(|| 7);
        assert!(panics.blocking_recv().is_err());
        assert_eq!(works.blocking_recv(), Ok(7));
    }

    #[test]
    fn a_dropped_lane_forgets_what_waits() {
        let pool = SealingPool::start(1).unwrap();
        let (open, gate) = mpsc::channel::<()>();
        let blocking = pool.lane();
        let blocker = blocking.submit(move || gate.recv());
        let lane = pool.lane();
        let forgotten = lane.submit(|| 7);
        drop(lane);
        assert!(forgotten.blocking_recv().is_err());
        open.send(()).unwrap();
        blocker.blocking_recv().unwrap().unwrap();
    }
}
