//! One module a noun.

pub mod certificate;
pub mod event;
pub mod export;
pub mod point;
pub mod rebuild;
pub mod role;
pub mod server;
pub mod status;
pub mod trial;
pub mod verify;
pub mod volume;
