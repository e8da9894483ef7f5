//! Machines with the real QEMU. Guests are boot sectors that are assembled here (`guests.rs`).

#![allow(clippy::unwrap_used)]

mod console;
mod guests;
mod hydration;
mod life;
mod linux;
mod machine;
mod nbd;
mod network;
mod serving;
mod shared;
mod site;
mod takeover;
mod wrong;
