//! Any bytes as the beginning of a disk, also with checksums that fit.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| lifeboat_agent::fuzz::partition_table(data));
