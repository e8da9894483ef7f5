//! Server and client over real sockets on the loopback interface.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod answers;
mod certificates;
mod serving;
mod site;
mod streams;
