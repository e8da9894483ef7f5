//! Manifests: what lies beside the files so that the catalog can be made anew from the store alone.
//!
//! A manifest is two lines of JSON. The first is the content, with its format's number; the
//! second, `{"signature":"<64 hexadecimal digits>"}`, is BLAKE3 of the object's name, a line feed
//! and the first line, keyed with a key that only this vault has. So a manifest that was altered,
//! or put under another name, is refused.
//!
//! There are four kinds: of the vault ([`VaultManifest`]), of each server ([`ServerManifest`],
//! replaced when the server changes), of what its machine is made of ([`MachineManifest`], likewise) and of each point ([`PointManifest`], written once, replaced
//! only when retention has changed which files end with its epochs).

use jiff::Timestamp;
use lifeboat_api::TargetSettings;
use lifeboat_hrl::ManifestKey;
use lifeboat_model::{Digest, PointId, ReplicationPolicy, ServerId, VaultId};
use lifeboat_wire::agent::SealPoint;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::catalog::{DiskKeyRow, DiskRow, FactsRow, StoredFile};

/// The format that this program writes and reads.
const FORMAT: u32 = 1;
/// Bytes of the largest manifest: of a point with about 200,000 files.
pub const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// What there is of the vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultManifest {
    /// The vault.
    pub vault: VaultId,
    /// When it was made.
    pub created: Timestamp,
    /// Its servers, for people who look into a store.
    pub servers: Vec<NamedServer>,
}

/// A server in [`VaultManifest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedServer {
    /// Its id.
    pub server: ServerId,
    /// Its name.
    pub name: String,
}

/// What there is of a server but its points.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerManifest {
    /// The server.
    pub server: ServerId,
    /// Its name.
    pub name: String,
    /// When its first disk was registered.
    pub registered: Timestamp,
    /// How it is protected.
    pub policy: ReplicationPolicy,
    /// Its disks, removed ones too.
    pub disks: Vec<DiskRow>,
    /// All keys of its disks, encrypted by the master key.
    pub keys: Vec<DiskKeyRow>,
    /// Since when its source may not go on with its history, because it has failed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fenced: Option<Timestamp>,
}

/// What a server's machine at the recovery site is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineManifest {
    /// The server.
    pub server: ServerId,
    /// What its agent has found out about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<FactsRow>,
    /// What an operator has set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<TargetSettings>,
}

/// What there is of a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointManifest {
    /// The server as it was at the commit.
    pub server: ServerManifest,
    /// Counted from 1 in the order of commits.
    pub number: u64,
    /// The point that it followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<PointId>,
    /// The point as its agent sealed it.
    pub seal: SealPoint,
    /// When the process server had sealed it.
    pub sealed: Timestamp,
    /// When its last file had been uploaded.
    pub uploaded: Timestamp,
    /// When it was committed.
    pub committed: Timestamp,
    /// Of what was committed.
    pub commit_digest: Digest,
    /// The files that end with its epochs, or with epochs of points before it that are gone.
    pub files: Vec<StoredFile>,
}

/// A manifest that is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It was altered, cut off, put under another name, or is another vault's.
    #[error("the manifest {object} is refused: its signature is not right for its name and content")]
    Signature {
        /// Its name.
        object: String,
    },
    /// Another version wrote it.
    #[error(
        "the manifest {object} has format {found}, but this program reads format {FORMAT}; \
         use the version of Lifeboat that wrote it, or a newer one"
    )]
    Format {
        /// Its name.
        object: String,
        /// Its format.
        found: u32,
    },
    /// Signed, but not what it should be.
    #[error("the manifest {object} is refused: {why}")]
    Content {
        /// Its name.
        object: String,
        /// What is wrong.
        why: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    format: u32,
    content: T,
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signed {
    signature: Digest,
}

/// The bytes of a manifest.
///
/// # Errors
/// When the content cannot be written as JSON.
pub fn encode<T: Serialize>(key: &ManifestKey, object: &str, content: &T) -> Result<Vec<u8>, ManifestError> {
    let failed = |error: serde_json::Error| ManifestError::Content {
        object: object.to_owned(),
        why: error.to_string(),
    };
    let mut bytes = serde_json::to_vec(&Versioned { format: FORMAT, content }).map_err(failed)?;
    let signature = key.sign(&signed_bytes(object, &bytes));
    bytes.push(b'\n');
    serde_json::to_writer(&mut bytes, &Signed { signature }).map_err(failed)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Reads a manifest that was found under the name `object`.
///
/// # Errors
/// When it is not exactly what this vault wrote under that name.
pub fn decode<T: DeserializeOwned>(
    key: &ManifestKey,
    object: &str,
    bytes: &[u8],
) -> Result<T, ManifestError> {
    let refused = || ManifestError::Signature { object: object.to_owned() };
    let lines = bytes.strip_suffix(b"\n").ok_or_else(refused)?;
    let end = lines.iter().rposition(|byte| *byte == b'\n').ok_or_else(refused)?;
    let (content, signature) = (&lines[..end], &lines[end + 1..]);
    // The one spelling that the writer has, so that no bit of a manifest is free.
    let signature: Signed = serde_json::from_slice(signature).map_err(|_| refused())?;
    let spelled = serde_json::to_vec(&signature).map_err(|_| refused())?;
    if spelled != lines[end + 1..] || !key.verify(&signed_bytes(object, content), &signature.signature) {
        return Err(refused());
    }
    let unreadable = |error: serde_json::Error| ManifestError::Content {
        object: object.to_owned(),
        why: error.to_string(),
    };
    let FormatOnly { format } = serde_json::from_slice(content).map_err(unreadable)?;
    if format != FORMAT {
        return Err(ManifestError::Format { object: object.to_owned(), found: format });
    }
    Ok(serde_json::from_slice::<Versioned<T>>(content).map_err(unreadable)?.content)
}

fn signed_bytes(object: &str, content: &[u8]) -> Vec<u8> {
    [object.as_bytes(), b"\n", content].concat()
}

#[cfg(test)]
pub(crate) mod tests;
