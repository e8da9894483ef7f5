//! Any bytes as the decrypted index of a file, with any counts in the footer.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lifeboat_hrl::{Contents, fuzz};

fuzz_target!(|input: (&[u8], [u32; 2], [u64; 3], u64)| {
    let (text, [frames, zero_extents], [index_offset, data_blocks, zero_blocks], disk_blocks) = input;
    let contents = Contents { index_offset, index_bytes: 0, frames, zero_extents, data_blocks, zero_blocks };
    fuzz::index(text, &contents, disk_blocks >> 12);
});
