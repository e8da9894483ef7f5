//! Any bytes as an HRL file: with and without a key, as they are and with all checksums made to fit.

#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use lifeboat_hrl::{DiskKey, FOOTER_BYTES, Footer, Header, verify_file, verify_file_with_key};

fuzz_target!(|input: &[u8]| {
    read(input);
    let mut repaired = input.to_vec();
    if repaired.len() >= 128 + FOOTER_BYTES {
        repair(&mut repaired);
        read(&repaired);
    }
});

fn read(file: &[u8]) {
    let key = DiskKey::new([0x42; 32]);
    let header = Header::parse(file);
    let footer = Footer::parse(file, file.len() as u64);
    let keyless = verify_file(file);
    let keyed = verify_file_with_key(Cursor::new(file), &key);
    if let Ok(verified) = keyless {
        assert_eq!(header.ok(), Some(verified.header));
        assert_eq!(footer.map(|footer| footer.summary()).ok(), Some(verified.summary));
    }
    if let Ok(verified) = keyed {
        assert_eq!(keyless.ok(), Some(verified), "what the key accepts, everybody accepts");
    }
}

/// Gets past everything that needs no key: constants of the format and checksums.
fn repair(file: &mut [u8]) {
    let footer_at = file.len() - FOOTER_BYTES;
    file[..16].copy_from_slice(b"\x89LBHRL\r\n\x01\x00\x80\x00\x00\x10\x00\x00");
    let digest = blake3::hash(&file[..96]);
    file[96..128].copy_from_slice(digest.as_bytes());
    file.copy_within(..128, footer_at);
    let digest = blake3::hash(&file[..footer_at]);
    let file_bytes = file.len() as u64;
    let footer = &mut file[footer_at..];
    footer[168..176].copy_from_slice(&file_bytes.to_le_bytes());
    footer[176..208].copy_from_slice(digest.as_bytes());
    footer[240..].copy_from_slice(b"\x00\x01\x00\x00\x01\x00\x00\x00LBHRLEND");
    let mut hasher = blake3::Hasher::new();
    hasher.update(&footer[..208]).update(&footer[240..]);
    footer[208..240].copy_from_slice(hasher.finalize().as_bytes());
}
