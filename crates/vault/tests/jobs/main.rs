//! Jobs with real machines: guests of one boot sector in QEMU, by itself and through libvirt, from points of a real vault.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "shared with the end-to-end tests")]
#[path = "../../../proof/src/boot_sector.rs"]
mod boot_sector;
#[allow(dead_code, reason = "shared with the tests of libvirt's machines")]
#[path = "../../../compute/tests/libvirt/daemon.rs"]
mod daemon;
mod drills;
mod facts;
mod failing;
mod fencing;
mod hydration;
mod libvirt;
mod life;
mod networks;
mod power;
mod site;
mod ssh;
#[allow(dead_code, reason = "shared with the tests of the vault")]
#[path = "../vault/support.rs"]
mod support;
