//! How the C library treats freed memory. The only unsafe code of the program.
#![allow(unsafe_code)]

/// Larger pieces are given back to the system as soon as they are freed.
#[cfg(target_env = "gnu")]
const KEPT_PIECE_BYTES_MAX: libc::c_int = 4 << 20;

/// So much may lie idle at the end of each of the C library's heaps.
#[cfg(target_env = "gnu")]
const KEPT_HEAP_BYTES_MAX: libc::c_int = 32 << 20;

/// Has the C library keep what is freed for what is allocated next. Before the first thread.
///
/// The roles allocate and free pieces of some 100 KiB all the time: frames, and what is read from
/// connections. Left to itself the library gives most of them back to the system and asks for them
/// again, and each page then costs a fault and is filled with zeroes: in a process server under load
/// that was one of eight processor seconds.
pub fn keep_what_is_freed() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt` takes two numbers and is called while there is one thread. What it refuses it
    // leaves as it was.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT_PIECE_BYTES_MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_HEAP_BYTES_MAX);
    }
}
