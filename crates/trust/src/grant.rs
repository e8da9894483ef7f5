//! Tokens that allow one thing until a time, checked without asking anybody.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

/// Bytes in the longest claims of a token.
pub const CLAIMS_BYTES_MAX: usize = 1024;

const VERSION: u8 = 1;
const MAC_BYTES: usize = 32;
const HEAD_BYTES: usize = 1 + 8;
const TEXT_CHARS_MAX: usize = (HEAD_BYTES + CLAIMS_BYTES_MAX + MAC_BYTES).div_ceil(3) * 4;
const CONTEXT: &str = "lifeboat 2025 upload grant token v1";

/// The key that signs and verifies grants. Held by who gives them and who honours them.
pub struct GrantKey(Zeroizing<[u8; 32]>);

/// A grant could not be made or is not honoured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// The claims do not fit.
    #[error("a grant's claims are at most {CLAIMS_BYTES_MAX} bytes, not {0}")]
    ClaimsTooLong(usize),
    /// The token is no token.
    #[error("the grant is malformed; ask for a new one")]
    Malformed,
    /// The token was not signed by this key, or was altered.
    #[error("the grant was not given by this vault or was altered; ask for a new one")]
    Forged,
    /// The token's time is over.
    #[error("the grant expired at {0}; ask for a new one")]
    Expired(Timestamp),
}

impl GrantKey {
    /// A key from its bytes, which must be random.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        // The token's own key: the same bytes used elsewhere would not sign tokens.
        Self(Zeroizing::new(blake3::derive_key(CONTEXT, key)))
    }

    /// 32 random bytes for a new key; `None` if the system gives no random numbers.
    #[must_use]
    pub fn random_bytes() -> Option<Zeroizing<[u8; 32]>> {
        let mut bytes = Zeroizing::new([0; 32]);
        SystemRandom::new().fill(bytes.as_mut()).ok()?;
        Some(bytes)
    }

    /// A token for `claims` that holds until `expires` (to the millisecond), in characters that a
    /// URL takes as they are.
    ///
    /// # Errors
    /// When the claims are longer than [`CLAIMS_BYTES_MAX`].
    pub fn sign(&self, claims: &[u8], expires: Timestamp) -> Result<String, GrantError> {
        if claims.len() > CLAIMS_BYTES_MAX {
            return Err(GrantError::ClaimsTooLong(claims.len()));
        }
        let mut bytes = Vec::with_capacity(HEAD_BYTES + claims.len() + MAC_BYTES);
        bytes.push(VERSION);
        bytes.extend(expires.as_millisecond().to_be_bytes());
        bytes.extend(claims);
        let mac = blake3::keyed_hash(&self.0, &bytes);
        bytes.extend(mac.as_bytes());
        Ok(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// The claims of a token that this key signed and whose time is not over at `now`.
    ///
    /// # Errors
    /// When the token is malformed, not signed by this key, or expired.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Vec<u8>, GrantError> {
        if token.len() > TEXT_CHARS_MAX {
            return Err(GrantError::Malformed);
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| GrantError::Malformed)?;
        let signed = bytes.len().checked_sub(MAC_BYTES).ok_or(GrantError::Malformed)?;
        let (message, mac) = bytes.split_at(signed);
        let mac: [u8; MAC_BYTES] = mac.try_into().map_err(|_| GrantError::Malformed)?;
        // `blake3::Hash` compares in constant time.
        if blake3::keyed_hash(&self.0, message) != blake3::Hash::from_bytes(mac) {
            return Err(GrantError::Forged);
        }
        let (head, _) = message.split_at_checked(HEAD_BYTES).ok_or(GrantError::Malformed)?;
        let (version, expires_ms) = head.split_at(1);
        let expires_ms: [u8; 8] = expires_ms.try_into().map_err(|_| GrantError::Malformed)?;
        if version != [VERSION] {
            return Err(GrantError::Malformed);
        }
        let expires = timestamp(i64::from_be_bytes(expires_ms)).ok_or(GrantError::Malformed)?;
        if now >= expires {
            return Err(GrantError::Expired(expires));
        }
        bytes.truncate(signed);
        Ok(bytes.split_off(HEAD_BYTES))
    }
}

/// Takes the last second of time too, which `Timestamp::from_millisecond` does not.
fn timestamp(ms: i64) -> Option<Timestamp> {
    let nanoseconds = i32::try_from(ms % 1000).ok()? * 1_000_000;
    Timestamp::new(ms / 1000, nanoseconds).ok()
}

impl fmt::Debug for GrantKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GrantKey(secret)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXPIRES_MS: i64 = 1_800_000_000_000;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(ms).unwrap()
    }

    proptest! {
        #[test]
        fn a_token_gives_its_claims_back_in_time_only(claims in prop::collection::vec(any::<u8>(), 0..=CLAIMS_BYTES_MAX)) {
            let key = GrantKey::new(&[7; 32]);
            let token = key.sign(&claims, at(EXPIRES_MS)).unwrap();
            prop_assert!(token.len() <= TEXT_CHARS_MAX);
            prop_assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            prop_assert_eq!(key.verify(&token, at(EXPIRES_MS - 1)), Ok(claims));
            prop_assert_eq!(key.verify(&token, at(EXPIRES_MS)), Err(GrantError::Expired(at(EXPIRES_MS))));
            let other = GrantKey::new(&[8; 32]);
            prop_assert_eq!(other.verify(&token, at(0)), Err(GrantError::Forged));
        }

        #[test]
        fn any_text_is_answered(token in any::<String>()) {
            prop_assert!(GrantKey::new(&[7; 32]).verify(&token, at(0)).is_err());
        }

        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..1200)) {
            let token = URL_SAFE_NO_PAD.encode(bytes);
            prop_assert!(GrantKey::new(&[7; 32]).verify(&token, at(0)).is_err());
        }
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_refused() {
        let key = GrantKey::new(&[7; 32]);
        let token = key.sign(b"disk 3 epoch 17", at(EXPIRES_MS)).unwrap();
        let bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
        for len in 0..bytes.len() {
            assert!(key.verify(&URL_SAFE_NO_PAD.encode(&bytes[..len]), at(0)).is_err(), "{len} bytes");
        }
        for bit in 0..bytes.len() * 8 {
            let mut altered = bytes.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                key.verify(&URL_SAFE_NO_PAD.encode(&altered), at(0)),
                Err(GrantError::Forged),
                "bit {bit}"
            );
        }
        for (place, replaced) in token.char_indices() {
            for other in ['A', 'B', '_', '=', '+', ' '] {
                let mut text = token.clone();
                text.replace_range(place..=place, other.encode_utf8(&mut [0; 4]));
                assert!(other == replaced || key.verify(&text, at(0)).is_err(), "{text}");
            }
        }
        assert!(key.verify(&format!("{token}="), at(0)).is_err());
        assert!(key.verify(&format!("{token}AAAA"), at(0)).is_err());
    }

    #[test]
    fn a_token_can_hold_until_the_end_of_time() {
        let key = GrantKey::new(&[7; 32]);
        for expires in [Timestamp::MAX, at(EXPIRES_MS)] {
            let token = key.sign(b"disk 3", expires).unwrap();
            assert_eq!(key.verify(&token, at(0)).as_deref(), Ok(b"disk 3".as_slice()), "{expires}");
        }
    }

    #[test]
    fn claims_that_do_not_fit_are_refused() {
        let claims = [0; CLAIMS_BYTES_MAX + 1];
        assert_eq!(GrantKey::new(&[7; 32]).sign(&claims, at(0)), Err(GrantError::ClaimsTooLong(1025)));
    }
}
