//! Machines with the real libvirt. Its daemons are started here, in a mount and process name space of their own
//! (`daemon.rs`): what this machine's own libvirt has is neither seen nor touched. Guests are the boot sectors of
//! the tests of QEMU.

#![allow(clippy::unwrap_used)]

mod console;
mod daemon;
mod elsewhere;
#[path = "../../../proof/src/free_port.rs"]
mod free_port;
#[allow(dead_code, reason = "shared with the tests of QEMU")]
#[path = "../machines/guests.rs"]
mod guests;
mod hydration;
mod life;
#[allow(dead_code, reason = "shared with the tests of QEMU's machines")]
#[path = "../machines/linux.rs"]
mod linux;
#[path = "../machines/machine.rs"]
mod machine;
mod nbd;
mod network;
#[path = "../machines/serving.rs"]
mod serving;
mod site;
mod wrong;
