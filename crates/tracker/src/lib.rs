//! Changed-block tracking: which blocks of a live disk were written, with no driver.
//!
//! Small eBPF programs (`bpf/tracker.bpf.c`) at the kernel's `block_rq_issue` and
//! `block_rq_complete` set bits in maps that this crate has mapped into its memory. Maps and
//! links are pinned, so tracking goes on while no agent runs; an agent that comes back finds
//! the bits where they were.
//!
//! Every disk has five bitmaps:
//!
//! | bitmap | set when | cleared when |
//! | --- | --- | --- |
//! | `done` | a write of the block has **completed** | [`DiskTracker::take`] |
//! | `issued[a]`, `issued[b]` | a write was **sent** in that epoch | the other epoch ends |
//! | `open` | a write was sent | it completed |
//! | `taken` | the block was taken | [`DiskTracker::acknowledge`], [`DiskTracker::put_back`] |
//!
//! # Why no write is lost
//!
//! Take, then read. A bit is set at completion. If that is before the take, the block is
//! taken and read afterwards, so the read finds the write. If it is later, the bit stays for
//! the next take. So a block must be read *after* the take has reported it.
//!
//! 1. **Block before summary.** Scanning a terabyte of bits takes milliseconds, so one bit
//!    more for every 16 MiB says "look here". The program sets the block's bit, then the
//!    summary's; the taker clears the summary, then looks at the blocks. A bit set after the
//!    taker looked has its summary set after the taker cleared it: the next take finds it. All
//!    are atomic and fully ordered (the program uses the fetching OR, which is so on arm64
//!    too; on old x86-64 kernels stores are in order and an atomic addition follows them).
//! 2. **Taken before clear.** A take sets the bit in `taken`, then clears it in `done`, and
//!    clears only the bits that it saw. The summary of `taken` is set before that of `done` is
//!    cleared. So at every instant each written block is in one of the two, and an agent that
//!    is killed loses nothing: on opening, every region with something in `taken` is looked at
//!    again in `done`.
//! 3. **Clear, switch, fence, take, read, check.** For a consistent point, `issued` of the
//!    new epoch is cleared, then one store switches the epoch of all disks, then a full fence.
//!    A write that is sent afterwards reads the new epoch and sets its bit before the device
//!    sees it. So if a block that was taken and read *after* the switch has no bit in the new
//!    epoch, what was read was sent before the switch; and whatever that write depended on had
//!    completed, and set its bit in `done`, before the switch too.
//!
//! Since Linux 6.2 the kernel does not run a program that is already running on the same CPU.
//! A completion in an interrupt that arrives while the program runs for another would be lost,
//! so every program is attached three times: task, soft interrupt and hard interrupt are three
//! levels, and one copy is always free.
//!
//! # When the kernel does not report
//!
//! All this rests on every completion being reported. Some kernels withhold reports: seen on a
//! hardened 6.18, which runs no program for an interrupt that arrives in the context of a process
//! that it protects. A block whose write was sent and never reported stays in `open`;
//! [`DiskTracker::open_now`] gives those, and each point reads them too. Programs without
//! atomic operations cannot keep `open`. A write that was not even reported as *sent* is not
//! found by anything.
//!
//! # What is not seen
//!
//! Pass-through commands, zone operations and writes beyond the end that the disk had when
//! tracking began are counted, not located: [`DiskTracker::resync_wanted`]. Commands to a
//! controller (an NVMe format through `/dev/nvme0`) belong to no disk and are not seen at all.
//! Device mapper, software RAID and NVMe multipath do not pass here: protect the disks below.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that cannot go on fails"))]

#[cfg(not(target_pointer_width = "64"))]
compile_error!("the tracker maps bitmaps that need a 64-bit address space");

mod bitmap;
mod device;
mod disk;
mod error;
mod instance;
mod layout;
mod mapping;
mod neighbours;
mod object;
mod prototype;
mod set;
mod support;

pub use device::{DiskDevice, DiskIdentity, DiskKey};
pub use disk::{DiskTracker, ResyncWanted, Stats, Taken};
pub use error::TrackerError;
pub use instance::{FreshReason, PinnedInstance};
pub use neighbours::RunningTracker;
pub use object::Variant;
pub use set::{Attached, EpochSide, TrackerSet};
pub use support::{BpfFs, Support, check_privileges, check_support};

/// For the fuzz targets.
#[cfg(feature = "fuzz")]
pub mod fuzz {
    /// Reads the kernel's type information as it is read before the programs are loaded.
    ///
    /// # Errors
    /// When it cannot be understood.
    pub fn tracepoint_arguments(btf: &[u8], tracepoint: &str) -> Result<Option<u32>, String> {
        crate::prototype::tracepoint_arguments(btf, tracepoint)
    }
}
