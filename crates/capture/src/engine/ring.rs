//! Reads through io_uring.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, types::Fd};

use super::{Finished, Job};

/// Jobs that the kernel has are in `begun` and nowhere else until their completion is seen.
pub(crate) struct Ring {
    uring: IoUring,
    begun: Vec<Option<Job>>,
    free: Vec<usize>,
    unsubmitted: usize,
}

impl Ring {
    pub fn new(depth: u32) -> io::Result<Self> {
        let mut uring = IoUring::new(depth)?;
        // A filter may allow setting a ring up but not using it.
        let probe = opcode::Nop::new().build();
        // SAFETY: a no-op refers to no memory.
        unsafe { uring.submission().push(&probe) }.map_err(io::Error::other)?;
        submit_and_wait(&uring, 1)?;
        let answer = uring.completion().next().map_or(0, |entry| entry.result());
        if answer < 0 {
            return Err(io::Error::from_raw_os_error(-answer));
        }
        let slots = depth as usize;
        Ok(Self {
            uring,
            begun: (0..slots).map(|_| None).collect(),
            free: (0..slots).rev().collect(),
            unsubmitted: 0,
        })
    }

    pub fn begin(&mut self, mut job: Job) -> io::Result<()> {
        let bytes = job.buffer.bytes_mut();
        let len = u32::try_from(job.len).ok().filter(|_| job.len <= bytes.len());
        let (Some(slot), Some(len)) = (self.free.pop(), len) else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        let entry = opcode::Read::new(Fd(job.file.as_raw_fd()), bytes.as_mut_ptr(), len)
            .offset(job.offset)
            .build()
            .user_data(slot as u64);
        self.begun[slot] = Some(job);
        // SAFETY: the buffer (heap memory that does not move with its owner, at least `len` long)
        // and the file are kept in `begun` until the kernel has reported this slot's completion;
        // `drop` waits for that too.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        if let Err(error) = pushed {
            self.begun[slot] = None;
            self.free.push(slot);
            return Err(io::Error::other(error));
        }
        self.unsubmitted += 1;
        Ok(())
    }

    pub fn wait(&mut self) -> io::Result<Option<Finished>> {
        if self.free.len() == self.begun.len() {
            return Ok(None);
        }
        loop {
            let ready = !self.uring.completion().is_empty();
            if !ready || self.unsubmitted > 0 {
                submit_and_wait(&self.uring, usize::from(!ready))?;
                self.unsubmitted = self.uring.submission().len();
            }
            let Some(entry) = self.uring.completion().next() else { continue };
            let slot = usize::try_from(entry.user_data()).ok().filter(|slot| *slot < self.begun.len());
            let Some((slot, job)) = slot.and_then(|slot| Some((slot, self.begun[slot].take()?))) else {
                return Err(io::Error::other("io_uring reported a read that was not begun"));
            };
            self.free.push(slot);
            let result = entry.result();
            let read = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
            return Ok(Some(Finished { buffer: job.buffer, token: job.token, read }));
        }
    }
}

fn submit_and_wait(uring: &IoUring, want: usize) -> io::Result<()> {
    loop {
        match uring.submit_and_wait(want) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Short of memory or completions: what has ended must be fetched first.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                std::thread::yield_now();
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        loop {
            match self.wait() {
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(error) => {
                    // The kernel may still write into these buffers, so they are never freed.
                    tracing::error!(%error, "io_uring failed; its buffers are given up");
                    self.begun.drain(..).for_each(std::mem::forget);
                    return;
                }
            }
        }
    }
}
