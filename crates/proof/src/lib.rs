//! What the proofs of the whole product stand on: real loop devices, the real programs, a trial
//! site driven through its command line. Used by the end-to-end tests and the benchmarks only.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a proof that cannot go on fails")]

mod boot_sector;
mod disk;
mod machine;
mod mount;
mod postgresql;
mod random;
mod separate;
mod site;

pub use boot_sector::boot_sector;
pub use disk::{LoopDisk, assert_same, content};
pub use machine::{PATIENCE, Programs, run, scratch, wait_for};
pub use mount::{Mount, NbdDisk, reachable_dir};
pub use postgresql::PostgreSql;
pub use random::Random;
pub use separate::{Cable, SeparateMachines};
pub use site::Site;
