//! An NBD server: any [`Export`] served to any NBD client.
//!
//! The crate knows the protocol and nothing about volumes. What is served implements
//! [`Export`]; [`NbdServer`] gives exports a name and listens on Unix sockets and on TCP
//! with TLS. The protocol is the fixed newstyle of the NBD project's `doc/proto.md`, with
//! structured replies and the `base:allocation` metadata context.
//!
//! The way of a connection: [`handshake`] decides what is served, as a state machine without
//! input or output; `transmission` reads requests, checks them with [`operation`], runs them
//! against the export side by side and queues the replies. [`protocol`] holds the byte
//! formats and nothing else.
//!
//! Memory is bounded: see [`Limits`].

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod connection;
mod error;
mod export;
pub mod handshake;
mod limits;
pub mod operation;
pub mod protocol;
mod registry;
mod reply_queue;
mod request_reader;
mod server;
mod socket;
mod transmission;
mod uri;

pub use error::NbdError;
pub use export::{BlockSizes, Export, ExportError, ExportInfo, ReadChunk, StatusExtent, ZeroMode};
pub use limits::Limits;
pub use server::NbdServer;
pub use uri::{tls_uri, unix_uri};
