//! One module a noun.

pub mod certificate;
pub mod console;
pub mod drill;
pub mod event;
pub mod export;
pub mod failover;
pub mod job;
pub mod machine;
pub mod network;
pub mod point;
pub mod readiness;
pub mod rebuild;
mod report;
pub mod role;
pub mod server;
pub mod status;
pub mod target;
pub mod trial;
pub mod verify;
pub mod volume;
