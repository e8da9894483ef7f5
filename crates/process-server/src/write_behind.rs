//! A file whose writes begin their way to the disk long before it is synced. The only unsafe code of
//! the crate.
//!
//! A part is acknowledged when it is synced. Left to itself the kernel keeps all of it in memory until
//! then, so that the disk idles while the part comes, and its agent idles while it is synced.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;

/// Bytes that are set going at once.
const STRIDE_BYTES: u64 = 4 << 20;

/// Writes one file from its beginning to its end.
pub(crate) struct WriteBehind {
    file: File,
    written: u64,
    /// Up to where the kernel was told to begin.
    begun: u64,
}

impl WriteBehind {
    /// The file is empty.
    pub fn new(file: File) -> Self {
        Self { file, written: 0, begun: 0 }
    }

    /// Waits until all of it is on the disk.
    pub fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Has the kernel begin to write what was not begun yet.
    fn begin(&mut self) {
        let range = i64::try_from(self.begun).ok().zip(i64::try_from(self.written - self.begun).ok());
        let Some((offset, bytes)) = range else { return };
        // SAFETY: the descriptor is open as long as `file` is, and nothing but numbers is passed.
        let status = unsafe {
            libc::sync_file_range(self.file.as_raw_fd(), offset, bytes, libc::SYNC_FILE_RANGE_WRITE)
        };
        if status != 0 {
            let error = io::Error::last_os_error();
            tracing::debug!("a part cannot be written behind, so its sync does all of it: {error}");
        }
        self.begun = self.written;
    }
}

impl Write for WriteBehind {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.written += count as u64;
        if self.written - self.begun >= STRIDE_BYTES {
            self.begin();
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
