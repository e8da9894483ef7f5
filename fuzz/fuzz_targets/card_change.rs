//! Any bytes as the tables of a firmware (SMBIOS): an order that is read is written and read again as the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lifeboat_model::CardChange;

fuzz_target!(|data: &[u8]| {
    for change in CardChange::all_from_smbios(data) {
        assert_eq!(change.to_string().parse(), Ok(change));
    }
});
