//! Memory at addresses that `O_DIRECT` accepts.
#![allow(unsafe_code)]

use std::io;
use std::ptr::{NonNull, null_mut};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// The largest logical sector size that can be read.
pub(crate) const SECTOR_BYTES_MAX: usize = 64 * 1024;

/// Zeroed memory of its own, aligned for sectors of any size up to [`SECTOR_BYTES_MAX`].
///
/// A mapping rather than memory of the allocator: pages that no read ever touches take no memory,
/// which is most of them where changes are small, and all of it goes back when it is dropped.
pub(crate) struct AlignedBuffer {
    mapping: NonNull<u8>,
    mapped: usize,
    memory: NonNull<u8>,
    len: usize,
}

// SAFETY: the buffer owns its memory alone, as a boxed slice of bytes would.
unsafe impl Send for AlignedBuffer {}

impl AlignedBuffer {
    pub fn new(len: usize) -> io::Result<Self> {
        let len = len.max(1);
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let mapped = len.checked_add(SECTOR_BYTES_MAX).ok_or_else(invalid)?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory in use.
        let start = unsafe { mmap_anonymous(null_mut(), mapped, protection, flags) }?;
        // Neighbouring mappings become one, and in huge pages they would be resident as a whole.
        // SAFETY: the range is the mapping that was just made; the advice changes none of its bytes.
        let advised = unsafe { madvise(start, mapped, Advice::LinuxNoHugepage) };
        if let Err(error) = advised {
            tracing::debug!(%error, "this kernel has no huge pages to be kept from");
        }
        let mapping = NonNull::new(start.cast::<u8>()).ok_or_else(invalid)?;
        let lead = mapping.addr().get().next_multiple_of(SECTOR_BYTES_MAX) - mapping.addr().get();
        // SAFETY: `lead` is less than SECTOR_BYTES_MAX, by which the mapping is longer than `len`.
        let memory = unsafe { mapping.add(lead) };
        Ok(Self { mapping, mapped, memory, len })
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the memory is mapped, zeroed or written since, `len` long and lives as long as
        // `self`; it is written only through `&mut self` or while the ring owns the buffer.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.len) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` makes it the only access.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.len) }
    }

    /// Keeps the memory from being paged out, as far as the system's limits allow it.
    pub fn lock(&self) {
        lock_in_memory(self.bytes());
    }
}

/// Keeps `bytes` from being paged out, as far as the system's limits allow it.
pub(crate) fn lock_in_memory(bytes: &[u8]) {
    // SAFETY: the range is memory of this process, and locking changes none of it.
    let locked = unsafe { rustix::mm::mlock(bytes.as_ptr().cast_mut().cast(), bytes.len()) };
    if let Err(error) = locked {
        tracing::debug!(%error, "memory for a freeze is not locked");
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length, and unmapped only here.
        let unmapped = unsafe { munmap(self.mapping.as_ptr().cast(), self.mapped) };
        if let Err(error) = unmapped {
            tracing::warn!(%error, "memory of a read buffer is not given back");
        }
    }
}
