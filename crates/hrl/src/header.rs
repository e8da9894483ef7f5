//! The header: whose changes a file holds and which key opens it.

use lifeboat_model::{BLOCK_BYTES, Digest, DiskNumber, Epoch, Part, ServerId, VaultId};

use crate::error::{HrlError, Piece, Problem, Result};
use crate::field::{bytes_at, put, u16_at, u32_at, u32_of, u64_at};
use crate::identity::{FileId, FileIdentity};
use crate::key::KeyId;
use crate::version::Version;

/// Enough bytes from the start of a file to hold the header of any version.
pub const HEADER_BYTES_MAX: usize = 512;

/// Bytes of the header in version 1.
pub(crate) const HEADER_BYTES: usize = 128;

/// The same number, for the sums.
pub(crate) const FRAMES_BEGIN: u64 = HEADER_BYTES as u64;

const MAGIC: [u8; 8] = *b"\x89LBHRL\r\n";
const DIGEST_AT: usize = 96;

/// A header, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The version of the format.
    pub version: Version,
    /// Whose changes the file holds.
    pub identity: FileIdentity,
    /// The file itself.
    pub file_id: FileId,
    /// The disk key that opens it.
    pub key_id: KeyId,
}

impl Header {
    /// Reads the header from the first bytes of a file; what follows it is ignored.
    ///
    /// # Errors
    /// When the bytes are no header, or not as they were written, or of a newer version.
    pub fn parse(start: &[u8]) -> Result<Self> {
        if start.len() < HEADER_BYTES {
            return Err(short(start.len()));
        }
        if bytes_at::<8>(start, 0) != MAGIC {
            return Err(HrlError::at(0, Problem::NoHrlFile));
        }
        match Version::of_number(u16_at(start, 8), 8)? {
            Version::V1 => Self::parse_v1(&start[..HEADER_BYTES]),
        }
    }

    fn parse_v1(bytes: &[u8]) -> Result<Self> {
        if Digest::of(&bytes[..DIGEST_AT]).0 != bytes_at::<32>(bytes, DIGEST_AT) {
            return Err(HrlError::at(0, Problem::Altered(Piece::Header)));
        }
        if usize::from(u16_at(bytes, 10)) != HEADER_BYTES {
            return Err(HrlError::at(10, Problem::Malformed("the header of version 1 has 128 bytes")));
        }
        if u32_at(bytes, 12) as usize != BLOCK_BYTES {
            return Err(HrlError::at(12, Problem::Malformed("a block has 4096 bytes")));
        }
        if u16_at(bytes, 34) != 0 {
            return Err(HrlError::at(34, Problem::Malformed("a field that must be zero is not")));
        }
        let identity = FileIdentity {
            vault: VaultId::new(u64_at(bytes, 16)),
            server: ServerId::new(u64_at(bytes, 24)),
            disk: DiskNumber(u16_at(bytes, 32)),
            part: Part(u32_at(bytes, 36)),
            first_epoch: Epoch(u64_at(bytes, 40)),
            last_epoch: Epoch(u64_at(bytes, 48)),
            disk_bytes: u64_at(bytes, 56),
        };
        identity.check().map_err(|problem| HrlError::at(16, problem))?;
        Ok(Self {
            version: Version::V1,
            identity,
            file_id: FileId(bytes_at(bytes, 64)),
            key_id: KeyId(bytes_at(bytes, 80)),
        })
    }

    /// Refuses another file than the one that was asked for.
    ///
    /// # Errors
    /// One that names both.
    pub fn expect(&self, expected: &FileIdentity) -> Result<()> {
        if self.identity == *expected {
            return Ok(());
        }
        let swapped = Problem::Swapped { expected: Box::new(*expected), found: Box::new(self.identity) };
        Err(HrlError::at(16, swapped))
    }

    /// The header as it stands in the file. There is one spelling only, so this is what was read.
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let identity = &self.identity;
        let mut bytes = [0; HEADER_BYTES];
        put(&mut bytes, 0, &MAGIC);
        put(&mut bytes, 8, &self.version.number().to_le_bytes());
        put(&mut bytes, 10, &u32_of(HEADER_BYTES).to_le_bytes()[..2]);
        put(&mut bytes, 12, &u32_of(BLOCK_BYTES).to_le_bytes());
        put(&mut bytes, 16, &identity.vault.number().to_le_bytes());
        put(&mut bytes, 24, &identity.server.number().to_le_bytes());
        put(&mut bytes, 32, &identity.disk.0.to_le_bytes());
        put(&mut bytes, 36, &identity.part.0.to_le_bytes());
        put(&mut bytes, 40, &identity.first_epoch.0.to_le_bytes());
        put(&mut bytes, 48, &identity.last_epoch.0.to_le_bytes());
        put(&mut bytes, 56, &identity.disk_bytes.to_le_bytes());
        put(&mut bytes, 64, &self.file_id.0);
        put(&mut bytes, 80, &self.key_id.0);
        let digest = Digest::of(&bytes[..DIGEST_AT]);
        put(&mut bytes, DIGEST_AT, &digest.0);
        bytes
    }

    /// The digest of the whole header, to which everything in the file is bound.
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.encode())
    }
}

pub(crate) fn short(has: usize) -> HrlError {
    let needs = FRAMES_BEGIN;
    HrlError::at(has as u64, Problem::Truncated { piece: Piece::Header, needs, has: has as u64 })
}
