//! An identity from a certificate: never panics, and has one spelling.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lifeboat_trust::Identity;

fuzz_target!(|text: &str| {
    if let Ok(identity) = text.parse::<Identity>() {
        assert_eq!(identity.to_string(), text);
        assert!(identity.check().is_ok());
    }
});
