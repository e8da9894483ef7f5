//! A memory-mapped BPF array as a slice of atomic words. The only unsafe code of the crate.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::ops::Deref;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The words of a map, shared with the kernel's programs and with whoever has it mapped too.
#[derive(Debug)]
pub(crate) struct WordMap {
    address: NonNull<c_void>,
    bytes: usize,
    words: usize,
}

impl WordMap {
    /// Maps the first `words` words of an array map of 64-bit values.
    ///
    /// The kernel refuses to map more than the array has, to the page.
    pub(crate) fn new(map: BorrowedFd<'_>, words: usize) -> io::Result<Self> {
        let page = rustix::param::page_size();
        let bytes = words
            .checked_mul(size_of::<AtomicU64>())
            .and_then(|bytes| bytes.checked_next_multiple_of(page))
            .filter(|bytes| *bytes > 0)
            .ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let address = unsafe {
            mmap(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, map, 0)
        }?;
        let address = NonNull::new(address).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { address, bytes, words })
    }
}

impl Deref for WordMap {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, readable and writable, at least `words` words
        // long and lives as long as `self`. Other writers (programs, processes) make single
        // stores and atomic operations on aligned words or bytes, and this side uses atomics
        // only. Every bit pattern is a valid word.
        unsafe { std::slice::from_raw_parts(self.address.cast::<AtomicU64>().as_ptr(), self.words) }
    }
}

impl Drop for WordMap {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped; borrows of it cannot outlive `self`.
        if let Err(error) = unsafe { munmap(self.address.as_ptr(), self.bytes) } {
            tracing::warn!(%error, bytes = self.bytes, "cannot unmap a bitmap");
        }
    }
}

// SAFETY: the mapping belongs to the process, not to a thread, and all access is atomic.
unsafe impl Send for WordMap {}
// SAFETY: as above.
unsafe impl Sync for WordMap {}
