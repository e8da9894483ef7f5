//! The server against the clients that people use. They must be installed.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod abuse;
mod commands;
mod copy;
mod export;
mod handshake;
mod lifecycle;
mod raw;
mod support;
mod tls;
