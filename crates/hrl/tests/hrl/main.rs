//! HRL files as their users write and read them.

#![allow(clippy::unwrap_used)]

mod damage;
mod fixture;
mod golden;
mod refusals;
mod round_trip;
