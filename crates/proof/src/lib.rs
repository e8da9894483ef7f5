//! What the proofs of the whole product stand on: real loop devices, the real programs, a trial
//! site driven through its command line. Used by the end-to-end tests and the benchmarks only.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a proof that cannot go on fails")]

mod boot_sector;
mod disk;
mod free_port;
mod installation;
mod machine;
mod mount;
mod numbered_commits;
mod postgresql;
mod qmp;
mod random;
mod separate;
mod server_disk;
mod site;
mod ssh;
mod virtual_machine;

pub use boot_sector::{boot_sector, echoing_boot_sector, obedient_boot_sector};
pub use disk::{LoopDisk, assert_same, content};
pub use free_port::free_port;
pub use installation::install_agent;
pub use machine::{PATIENCE, Programs, run, scratch, wait_for, wait_within};
pub use mount::{Mount, NbdDisk, reachable_dir};
pub use numbered_commits::{Acknowledged, NumberedCommits};
pub use postgresql::PostgreSql;
pub use random::Random;
pub use separate::{Cable, SeparateMachines};
pub use server_disk::{DiskLayout, ServerDisk};
pub use site::Site;
pub use ssh::Ssh;
pub use virtual_machine::{HOST_ADDRESS, MACHINE_DISK, Reach, VirtualMachine};
