//! Retention, merging and verification over a real database and a real store, with real HRL files.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod crash;
mod history;
mod lost;
mod merging;
mod site;
mod steps;
mod verification;
