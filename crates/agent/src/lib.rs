//! The Mobility service of a protected server: follows its disks and replicates them.
//!
//! [`engine`] decides, without touching anything. [`replicator`] drives it: a device thread tracks
//! and reads disks and takes points, a copier thread makes first copies and compares, and requests
//! to the process server run beside them. [`record`] is what survives the agent.
//!
//! Memory is bounded: what is read goes straight into the body of a request, and a slow process
//! server slows the reading down. What was written meanwhile is bits in kernel memory.

pub mod check;
pub mod cli;
pub mod device;
pub mod engine;
#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod quiet;
pub mod record;
pub mod replicator;
pub mod run;
pub mod settings;
pub mod status;

mod copier;
mod devices;
mod facts;
mod fit;
mod link;
mod notify;
mod pace;
mod recovery_copy;
mod rtnetlink;
mod services;
mod sink;
mod unreported;
