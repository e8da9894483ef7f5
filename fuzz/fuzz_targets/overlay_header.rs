//! Any bytes as the header of an overlay: what is read is written back bit for bit.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    lifeboat_volume::fuzz::overlay_header(data);
    if let Some(content) = data.get(..96) {
        let mut fitting = content.to_vec();
        fitting.extend_from_slice(blake3::hash(content).as_bytes());
        lifeboat_volume::fuzz::overlay_header(&fitting);
    }
});
