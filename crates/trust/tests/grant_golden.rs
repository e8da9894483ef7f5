//! A grant of version 1, as it was signed then.
//!
//! `LIFEBOAT_WRITE_GOLDEN=1 cargo test -p lifeboat-trust golden` writes it when it is missing. That of
//! a released version is never written again.

use std::fs;
use std::path::PathBuf;

use jiff::Timestamp;
use lifeboat_trust::GrantKey;

#[test]
fn a_golden_grant_is_still_honoured_and_still_written() {
    let key = GrantKey::new(&[7; 32]);
    let expires = Timestamp::from_millisecond(1_800_000_000_000).unwrap();
    let claims = b"{\"object\":\"v1/a.hrl\",\"bytes\":4711}";
    let signed = key.sign(claims, expires).unwrap();
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1-grant.txt");
    if std::env::var_os("LIFEBOAT_WRITE_GOLDEN").is_some() && !path.exists() {
        fs::write(&path, format!("{signed}\n")).unwrap();
    }
    let stored = fs::read_to_string(&path).unwrap();
    assert_eq!(key.verify(stored.trim(), Timestamp::UNIX_EPOCH).as_deref(), Ok(claims.as_slice()));
    assert_eq!(stored.trim(), signed, "a grant would be written otherwise now");
}
