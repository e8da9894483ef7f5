//! Many reads at once, into a bounded number of aligned buffers.

mod buffer;
mod ring;
mod threads;

use std::fs::File;
use std::io;
use std::sync::Arc;

pub(crate) use buffer::{AlignedBuffer, SECTOR_BYTES_MAX, lock_in_memory};
use ring::Ring;
use threads::Threads;

use crate::ReaderKind;

/// A read to be done. The buffer and the file travel with it, so that neither can go away
/// while the kernel writes.
pub(crate) struct Job {
    pub file: Arc<File>,
    pub offset: u64,
    pub len: usize,
    pub buffer: AlignedBuffer,
    pub token: u64,
}

/// A read that ended.
pub(crate) struct Finished {
    pub buffer: AlignedBuffer,
    pub token: u64,
    pub read: io::Result<usize>,
}

/// Does reads in parallel. Never more are begun than `depth`.
pub(crate) enum Engine {
    Ring(Box<Ring>),
    Threads(Threads),
}

impl Engine {
    /// A ring where the kernel allows one, else threads.
    pub fn new(depth: u32) -> io::Result<Self> {
        match Ring::new(depth) {
            Ok(ring) => Ok(Self::Ring(Box::new(ring))),
            Err(error) => {
                tracing::warn!(%error, "io_uring is not allowed here; disks are read by threads, which is slower");
                Self::threads(depth)
            }
        }
    }

    /// Threads, whatever the kernel allows.
    pub fn threads(depth: u32) -> io::Result<Self> {
        Ok(Self::Threads(Threads::new(depth)?))
    }

    pub fn kind(&self) -> ReaderKind {
        match self {
            Self::Ring(_) => ReaderKind::Ring,
            Self::Threads(_) => ReaderKind::Threads,
        }
    }

    /// Begins a read; on failure the buffer is lost and the engine is of no more use.
    pub fn begin(&mut self, job: Job) -> io::Result<()> {
        match self {
            Self::Ring(ring) => ring.begin(job),
            Self::Threads(threads) => threads.begin(job),
        }
    }

    /// Waits for the next read to end. `None` when none is begun.
    pub fn wait(&mut self) -> io::Result<Option<Finished>> {
        match self {
            Self::Ring(ring) => ring.wait(),
            Self::Threads(threads) => threads.wait(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn reads_all(mut engine: Engine) {
        let mut file = tempfile::tempfile().unwrap();
        for block in 0..32u8 {
            file.write_all(&[block; 4096]).unwrap();
        }
        let file = Arc::new(file);
        for round in 0..3 {
            for token in 0..8 {
                let buffer = AlignedBuffer::new(4096).unwrap();
                let offset = (token + round * 8) * 4096;
                engine.begin(Job { file: Arc::clone(&file), offset, len: 4096, buffer, token }).unwrap();
            }
            let mut seen = [false; 8];
            while let Some(done) = engine.wait().unwrap() {
                assert_eq!(done.read.unwrap(), 4096);
                assert!(done.buffer.bytes().iter().all(|b| u64::from(*b) == done.token + round * 8));
                seen[usize::try_from(done.token).unwrap()] = true;
            }
            assert_eq!(seen, [true; 8]);
        }
        // One past the end, and one that is never waited for.
        let buffer = AlignedBuffer::new(4096).unwrap();
        engine.begin(Job { file: Arc::clone(&file), offset: 1 << 20, len: 4096, buffer, token: 0 }).unwrap();
        assert_eq!(engine.wait().unwrap().unwrap().read.unwrap(), 0);
        let buffer = AlignedBuffer::new(4096).unwrap();
        engine.begin(Job { file, offset: 0, len: 4096, buffer, token: 0 }).unwrap();
    }

    #[test]
    fn the_ring_reads() {
        reads_all(Engine::Ring(Box::new(Ring::new(8).unwrap())));
    }

    #[test]
    fn the_threads_read() {
        reads_all(Engine::threads(8).unwrap());
    }
}
