//! Jobs with real machines: guests of one boot sector in QEMU, by itself and through libvirt, from points of a real vault.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "shared with the tests of libvirt's machines")]
#[path = "../../../compute/tests/libvirt/daemon.rs"]
mod daemon;
mod failing;
mod fencing;
mod libvirt;
mod life;
mod site;
#[allow(dead_code, reason = "shared with the tests of the vault")]
#[path = "../vault/support.rs"]
mod support;
