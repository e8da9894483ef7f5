use super::*;

fn owner() -> KeyOwner {
    KeyOwner { vault: VaultId::new(1), server: ServerId::new(2), disk: DiskNumber(3) }
}

#[test]
fn a_wrapped_key_survives_its_text_and_opens_for_its_owner() {
    let master = MasterKey::new([7; 32]);
    let key = DiskKey::new([9; 32]);
    let text = serde_json::to_string(&master.wrap(&owner(), &key)).unwrap();
    assert!(text.starts_with("\"lbk1:"), "{text}");
    let wrapped: WrappedKey = serde_json::from_str(&text).unwrap();
    assert_eq!(wrapped.id(), key.id());
    let opened = master.unwrap(&owner(), &wrapped).unwrap();
    assert_eq!(opened.expose(), key.expose());
}

#[test]
fn a_wrapped_key_opens_for_nobody_else() {
    let master = MasterKey::new([7; 32]);
    let wrapped = master.wrap(&owner(), &DiskKey::new([9; 32]));
    let others = [
        KeyOwner { vault: VaultId::new(9), ..owner() },
        KeyOwner { server: ServerId::new(9), ..owner() },
        KeyOwner { disk: DiskNumber(9), ..owner() },
    ];
    for other in others {
        let error = master.unwrap(&other, &wrapped).unwrap_err();
        assert!(error.to_string().contains(&other.to_string()), "{error}");
    }
    MasterKey::new([8; 32]).unwrap(&owner(), &wrapped).unwrap_err();
}

#[test]
fn every_altered_digit_of_a_wrapped_key_is_refused() {
    let master = MasterKey::new([7; 32]);
    let text = master.wrap(&owner(), &DiskKey::new([9; 32])).to_string();
    for at in 0..text.len() {
        let mut altered = text.clone().into_bytes();
        altered[at] = if altered[at] == b'0' { b'1' } else { b'0' };
        let altered = String::from_utf8(altered).unwrap();
        let opened = altered.parse::<WrappedKey>().and_then(|wrapped| master.unwrap(&owner(), &wrapped));
        assert!(opened.is_err(), "digit {at}");
        assert!(text[..at].parse::<WrappedKey>().is_err(), "cut at {at}");
    }
}

#[test]
fn manifests_are_signed_under_the_master_key() {
    let key = MasterKey::new([7; 32]).manifest_key();
    let signature = key.sign(b"manifest");
    assert!(key.verify(b"manifest", &signature));
    assert!(!key.verify(b"manifesT", &signature));
    assert!(!MasterKey::new([8; 32]).manifest_key().verify(b"manifest", &signature));
    let mut altered = signature;
    altered.0[31] ^= 1;
    assert!(!key.verify(b"manifest", &altered));
}

#[test]
fn no_key_is_ever_printed() {
    let secret = [0xa5; 32];
    let printed = format!(
        "{:?} {:?} {:?}",
        DiskKey::new(secret),
        MasterKey::new(secret),
        MasterKey::new(secret).manifest_key()
    );
    assert_eq!(printed, "DiskKey(secret) MasterKey(secret) ManifestKey(secret)");
}
