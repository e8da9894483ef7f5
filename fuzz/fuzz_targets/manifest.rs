//! Any bytes as a manifest: only what was signed with the vault's key under its name is believed, and
//! any signed content is refused or read without a panic.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lifeboat_hrl::MasterKey;
use lifeboat_vault::manifest::{PointManifest, ServerManifest, VaultManifest, decode, encode};
use serde_json::Value;

const OBJECT: &str = "v1/0000000000000001/vault.manifest";

fuzz_target!(|data: &[u8]| {
    let key = MasterKey::new([7; 32]).manifest_key();
    assert!(decode::<VaultManifest>(&key, OBJECT, data).is_err(), "nobody signed this");
    let Ok(content) = serde_json::from_slice::<Value>(data) else { return };
    let signed = encode(&key, OBJECT, &content).unwrap();
    assert!(decode::<Value>(&key, "another", &signed).is_err(), "it was put under another name");
    let _ = decode::<VaultManifest>(&key, OBJECT, &signed);
    let _ = decode::<ServerManifest>(&key, OBJECT, &signed);
    if let Ok(point) = decode::<PointManifest>(&key, OBJECT, &signed) {
        let again = encode(&key, OBJECT, &point).unwrap();
        assert_eq!(decode::<PointManifest>(&key, OBJECT, &again).unwrap(), point);
    }
});
