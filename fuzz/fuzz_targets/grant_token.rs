//! A grant token from the network: never panics, and only what this key signed is honoured.

#![no_main]

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use lifeboat_trust::GrantKey;

fuzz_target!(|input: (String, Vec<u8>, u64)| {
    let (text, claims, place) = input;
    let key = GrantKey::new(&[7; 32]);
    let now = Timestamp::UNIX_EPOCH;
    assert!(key.verify(&text, now).is_err());
    let Ok(mut token) = key.sign(&claims, Timestamp::MAX) else { return };
    assert_eq!(key.verify(&token, now).as_deref(), Ok(claims.as_slice()));
    let place = (place % token.len() as u64) as usize;
    let other = if &token[place..=place] == "A" { "B" } else { "A" };
    token.replace_range(place..=place, other);
    assert!(key.verify(&token, now).is_err());
});
