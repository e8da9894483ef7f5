//! Reads by threads, for systems that forbid io_uring.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::{Finished, Job};

const THREADS_MAX: u32 = 8;

pub(crate) struct Threads {
    jobs: Option<SyncSender<Job>>,
    finished: Receiver<Finished>,
    begun: usize,
    threads: Vec<JoinHandle<()>>,
}

impl Threads {
    pub fn new(depth: u32) -> io::Result<Self> {
        // Bounded channels hold their slots from the beginning: nothing is allocated later.
        let (jobs, queue) = sync_channel::<Job>(depth as usize);
        let (report, finished) = sync_channel(depth as usize);
        let queue = Arc::new(Mutex::new(queue));
        let threads = (0..depth.clamp(1, THREADS_MAX))
            .map(|_| {
                let (queue, report) = (Arc::clone(&queue), report.clone());
                std::thread::Builder::new().name("lifeboat-read".into()).spawn(move || work(&queue, &report))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { jobs: Some(jobs), finished, begun: 0, threads })
    }

    pub fn begin(&mut self, job: Job) -> io::Result<()> {
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if !sent {
            return Err(io::Error::other("the reading threads have ended"));
        }
        self.begun += 1;
        Ok(())
    }

    pub fn wait(&mut self) -> io::Result<Option<Finished>> {
        if self.begun == 0 {
            return Ok(None);
        }
        let finished =
            self.finished.recv().map_err(|_| io::Error::other("the reading threads have ended"))?;
        self.begun -= 1;
        Ok(Some(finished))
    }
}

fn work(queue: &Mutex<Receiver<Job>>, report: &SyncSender<Finished>) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { file, offset, len, mut buffer, token }) = next else { return };
        let read = loop {
            let target = buffer.bytes_mut().get_mut(..len);
            let read = target.map_or_else(
                || Err(io::Error::from(io::ErrorKind::InvalidInput)),
                |target| file.read_at(target, offset),
            );
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        if report.send(Finished { buffer, token, read }).is_err() {
            return;
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.jobs = None;
        while let Ok(Some(_)) = self.wait() {}
        for thread in self.threads.drain(..) {
            // A panic of a thread was reported by the thread.
            let _ = thread.join();
        }
    }
}
