//! Reads live disks and takes consistent points in time of them, without stopping them.
//!
//! [`Capture`] holds all disks of the server. Between points, [`Capture::precopy`] sends what was
//! written; [`Capture::optimistic_point`] and [`Capture::quiesced_point`] send the rest and name
//! the moment whose exact state the receiver then has. [`DiskReader`] reads one whole disk: for
//! the first copy and for comparing a disk with its copy by digests.
//!
//! Everything is synchronous: callers give it threads of its own. Changes go to a
//! [`ChangeSink`], which slows the reading down by blocking.
//!
//! # What the caller owes
//!
//! A block that was taken is safe only when the receiver has it durably; until then its *taken*
//! bit makes it count as written after a restart of the agent. [`Capture::mark`] and
//! [`Capture::acknowledge`] clear these bits in the one order that loses nothing.

mod capture;
mod disks;
mod engine;
mod error;
mod frame;
mod heat;
mod held;
mod open;
mod optimistic;
mod quiesce;
mod reader;
mod sink;

pub use capture::{Capture, CaptureOptions, CapturedPoint, Mark, Precopied};
pub use error::{CaptureError, HotBlock, NotTaken, PointError, ReadError, Unreadable};
pub use quiesce::{Hold, QuiesceError, QuiesceHooks, QuiesceOptions, Unfreezable, thaw_leftovers};
pub use reader::{Copied, CopyOptions, CopyStep, DiskReader, ReaderKind, ZeroBlocks};
pub use sink::{ChangeSink, SinkClosed};
