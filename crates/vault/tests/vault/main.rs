//! The vault on real files, a real database and real connections.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod commit;
mod crash;
mod faults;
mod faulty_store;
mod full_store;
mod http;
mod latest;
mod old_catalog;
mod openapi;
mod rebuild;
mod requests;
mod support;
mod upload;
mod volumes;
