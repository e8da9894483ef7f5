//! Any bytes as an initramfs.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| lifeboat_agent::fuzz::initramfs(data));
