//! Keys: one for every disk, wrapped by the vault's own.

use std::fmt;
use std::str::FromStr;

use lifeboat_model::{Digest, DiskNumber, ServerId, VaultId};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::hex;
use crate::identity::hex_ids;

const CONTEXT_KEY_ID: &str = "lifeboat 2026 disk key id";
const CONTEXT_WRAP: &str = "lifeboat 2026 key that wraps a disk key";
const CONTEXT_MANIFEST: &str = "lifeboat 2026 manifest key";
const WRAPPED_PREFIX: &str = "lbk1:";

/// Bytes that AES-256-GCM adds.
pub(crate) const TAG_BYTES: usize = 16;

hex_ids! {
    /// Which disk key: a fingerprint, computed from the key, that tells nothing about it.
    KeyId = "a key's id";
}

/// 32 secret bytes, wiped when dropped, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct Secret([u8; 32]);

impl Secret {
    /// A key for one purpose, computed from this one.
    pub(crate) fn derive(&self, context: &str, material: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(&self.0).update(material);
        let mut hash = hasher.finalize();
        let derived = Self(*hash.as_bytes());
        hasher.zeroize();
        hash.zeroize();
        derived
    }

    /// For sealing and opening. The cipher's own copy is not wiped.
    pub(crate) fn cipher(&self) -> LessSafeKey {
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &self.0).expect("the key has the cipher's 32 bytes"))
    }
}

/// The key of one disk: everything in its files is encrypted under keys derived from it.
#[derive(Clone)]
pub struct DiskKey {
    secret: Secret,
    id: KeyId,
}

impl DiskKey {
    /// A key of 32 bytes from the system's random numbers.
    #[must_use]
    pub fn new(secret: [u8; 32]) -> Self {
        let secret = Secret(secret);
        let mut id = [0; 16];
        id.copy_from_slice(&secret.derive(CONTEXT_KEY_ID, &[]).0[..16]);
        Self { secret, id: KeyId(id) }
    }

    /// Its fingerprint.
    #[must_use]
    pub const fn id(&self) -> KeyId {
        self.id
    }

    /// The key itself, for handing it to a process server over an authenticated connection.
    #[must_use]
    pub const fn expose(&self) -> &[u8; 32] {
        &self.secret.0
    }

    pub(crate) const fn secret(&self) -> &Secret {
        &self.secret
    }
}

impl fmt::Debug for DiskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DiskKey(secret)")
    }
}

/// The disk that a key belongs to. A wrapped key can be unwrapped for its owner only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyOwner {
    /// The vault.
    pub vault: VaultId,
    /// The server.
    pub server: ServerId,
    /// The server's disk.
    pub disk: DiskNumber,
}

impl fmt::Display for KeyOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vault {}, server {}, disk {}", self.vault, self.server, self.disk)
    }
}

/// The vault's own key. Who loses it loses every disk key, and with them all data.
#[derive(Clone)]
pub struct MasterKey(Secret);

impl MasterKey {
    /// A key of 32 bytes from the system's random numbers.
    #[must_use]
    pub const fn new(secret: [u8; 32]) -> Self {
        Self(Secret(secret))
    }

    /// Encrypts a disk key, for storing it.
    ///
    /// The result is always the same for the same key and owner. The key that wraps is derived from
    /// owner and key id, and the id from the disk key, so a constant nonce never meets two texts.
    #[must_use]
    pub fn wrap(&self, owner: &KeyOwner, key: &DiskKey) -> WrappedKey {
        let place = place(owner, key.id);
        let mut sealed = [0; 48];
        let (text, tag_place) = sealed.split_at_mut(32);
        text.copy_from_slice(key.expose());
        let tag = self
            .0
            .derive(CONTEXT_WRAP, &place)
            .cipher()
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key([0; 12]), Aad::from(place), text)
            .expect("32 bytes are not too long for the cipher");
        tag_place.copy_from_slice(tag.as_ref());
        WrappedKey { id: key.id, sealed }
    }

    /// Decrypts a disk key.
    ///
    /// # Errors
    /// When it was wrapped under another master key or for another owner, or was altered.
    pub fn unwrap(&self, owner: &KeyOwner, wrapped: &WrappedKey) -> Result<DiskKey, KeyError> {
        let place = place(owner, wrapped.id);
        let mut sealed = wrapped.sealed;
        let opened = self.0.derive(CONTEXT_WRAP, &place).cipher().open_in_place(
            Nonce::assume_unique_for_key([0; 12]),
            Aad::from(place),
            &mut sealed,
        );
        let refused = KeyError::Refused { id: wrapped.id, owner: *owner };
        let Some(secret) = opened.ok().and_then(|text| <[u8; 32]>::try_from(&*text).ok()) else {
            return Err(refused);
        };
        sealed.zeroize();
        let key = DiskKey::new(secret);
        if key.id == wrapped.id { Ok(key) } else { Err(refused) }
    }

    /// The key that signs the manifests of this vault.
    #[must_use]
    pub fn manifest_key(&self) -> ManifestKey {
        ManifestKey(self.0.derive(CONTEXT_MANIFEST, &[]))
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(secret)")
    }
}

/// What a wrapped key is bound to.
fn place(owner: &KeyOwner, id: KeyId) -> [u8; 34] {
    let mut place = [0; 34];
    place[..8].copy_from_slice(&owner.vault.number().to_le_bytes());
    place[8..16].copy_from_slice(&owner.server.number().to_le_bytes());
    place[16..18].copy_from_slice(&owner.disk.0.to_le_bytes());
    place[18..].copy_from_slice(&id.0);
    place
}

/// An encrypted disk key, written as `lbk1:` and 128 hexadecimal digits: the key's id, the
/// encrypted key, the tag.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WrappedKey {
    id: KeyId,
    sealed: [u8; 32 + TAG_BYTES],
}

impl WrappedKey {
    /// Which disk key it holds.
    #[must_use]
    pub const fn id(&self) -> KeyId {
        self.id
    }
}

/// A disk key cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is damaged, or another thing.
    #[error("a wrapped key is {WRAPPED_PREFIX} and 128 hexadecimal digits; this text is something else")]
    NoWrappedKey,
    /// It does not open.
    #[error(
        "disk key {id} does not open for {owner}: the master key is another one, \
         the key is another disk's, or it was altered"
    )]
    Refused {
        /// Which key.
        id: KeyId,
        /// For whom it was tried.
        owner: KeyOwner,
    },
}

impl fmt::Display for WrappedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(WRAPPED_PREFIX)?;
        hex::write(f, &self.id.0)?;
        hex::write(f, &self.sealed)
    }
}

impl fmt::Debug for WrappedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WrappedKey({})", self.id)
    }
}

impl FromStr for WrappedKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes: [u8; 64] =
            text.strip_prefix(WRAPPED_PREFIX).and_then(hex::parse).ok_or(KeyError::NoWrappedKey)?;
        let mut wrapped = Self { id: KeyId([0; 16]), sealed: [0; 48] };
        wrapped.id.0.copy_from_slice(&bytes[..16]);
        wrapped.sealed.copy_from_slice(&bytes[16..]);
        Ok(wrapped)
    }
}

impl TryFrom<String> for WrappedKey {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl From<WrappedKey> for String {
    fn from(key: WrappedKey) -> Self {
        key.to_string()
    }
}

/// Signs and checks manifests: BLAKE3, keyed.
#[derive(Clone)]
pub struct ManifestKey(Secret);

impl ManifestKey {
    /// The signature of `manifest`.
    #[must_use]
    pub fn sign(&self, manifest: &[u8]) -> Digest {
        blake3::keyed_hash(&self.0.0, manifest).into()
    }

    /// Whether `signature` is that of `manifest`. Takes the same time whatever the answer.
    #[must_use]
    pub fn verify(&self, manifest: &[u8], signature: &Digest) -> bool {
        // Comparing `blake3::Hash` takes constant time, comparing `Digest` does not.
        blake3::keyed_hash(&self.0.0, manifest) == blake3::Hash::from_bytes(signature.0)
    }
}

impl fmt::Debug for ManifestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ManifestKey(secret)")
    }
}

#[cfg(test)]
mod tests;
