//! What the roles say to each other: the stream in which an agent sends changes, and the JSON
//! bodies of the requests between agent, process server and vault. No input or output here.
//!
//! Every request runs over mutual TLS. The server's identity is never in a path or a body that
//! an agent sends: the process server takes it from the agent's certificate.

pub mod agent;
pub mod event;
pub mod facts;
pub mod process_server;
pub mod stream;

mod paths;

pub use paths::{agent_path, process_server_path};
