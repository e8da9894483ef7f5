//! The header: what an overlay belongs to, and in which boot it was used.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use lifeboat_model::{BLOCK_BYTES, Digest, DiskNumber, PointId, ServerId, VaultId};

use super::OverlayIdentity;
use crate::error::OverlayError;

const HEADER_BYTES: usize = 128;
const DIGEST_AT: usize = 96;
const MAGIC: [u8; 8] = *b"\x89LBOVL\r\n";
const VERSION: u16 = 1;

/// One run of the kernel, from power on to power off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootId([u8; 16]);

impl BootId {
    /// No boot: never equal to one of [`BootId::now`].
    pub(crate) const NONE: Self = Self([0; 16]);

    /// The boot with this id, for tests of what a restart of the machine does.
    #[must_use]
    pub const fn new(id: [u8; 16]) -> Self {
        Self(id)
    }

    /// This boot.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn now() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        match u128::from_str_radix(&digits, 16) {
            Ok(id) if id != 0 => Ok(Self(id.to_be_bytes())),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's boot id is no number")),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub identity: OverlayIdentity,
    pub boot: BootId,
}

impl Header {
    /// The header at `path`; none when there is no file.
    pub fn read(path: &Path) -> Result<Option<Self>, OverlayError> {
        let mut bytes = Vec::new();
        let read =
            File::open(path).and_then(|file| file.take(HEADER_BYTES as u64 + 1).read_to_end(&mut bytes));
        match read {
            Ok(_) => Self::decode(&bytes, path).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(OverlayError::io("read", path)(error)),
        }
    }

    /// Writes over the header in `directory`, durably. That needs no space, which a full disk does not
    /// have, and all of it lies in one sector, which a disk writes whole.
    pub fn update(self, directory: &Path) -> Result<Self, OverlayError> {
        let path = directory.join("header");
        let written = File::options().write(true).open(&path).and_then(|file| {
            file.write_all_at(&self.encode(), 0)?;
            file.sync_data()
        });
        written.map_err(OverlayError::io("write", path))?;
        Ok(self)
    }

    /// Makes the header in `directory`, durably.
    pub fn create(self, directory: &Path) -> Result<Self, OverlayError> {
        let path = directory.join("header.new");
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(&self.encode())?;
            file.sync_all()?;
            fs::rename(&path, directory.join("header"))?;
            File::open(directory)?.sync_all()?;
            // The directory itself may be new.
            match directory.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
                _ => Ok(()),
            }
        });
        written.map_err(OverlayError::io("write", directory.join("header")))?;
        Ok(self)
    }

    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let OverlayIdentity { vault, server, point, disk, disk_bytes } = self.identity;
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(10, &128u16.to_le_bytes());
        put(12, &4096u32.to_le_bytes());
        put(16, &vault.number().to_le_bytes());
        put(24, &server.number().to_le_bytes());
        put(32, &point.number().to_le_bytes());
        put(40, &disk_bytes.to_le_bytes());
        put(48, &disk.0.to_le_bytes());
        put(64, &self.boot.0);
        let digest = Digest::of(&bytes[..DIGEST_AT]);
        bytes[DIGEST_AT..].copy_from_slice(&digest.0);
        bytes
    }

    pub fn decode(bytes: &[u8], path: &Path) -> Result<Self, OverlayError> {
        let damaged = |why| OverlayError::Damaged { path: path.to_owned(), why };
        if bytes.get(..8) != Some(&MAGIC) || bytes.len() < 12 {
            return Err(damaged("it does not begin like the header of an overlay"));
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version > VERSION {
            return Err(OverlayError::NewerVersion { path: path.to_owned(), version });
        }
        let bytes: &[u8; HEADER_BYTES] = bytes.try_into().map_err(|_| damaged("it has another length"))?;
        if Digest::of(&bytes[..DIGEST_AT]).0 != bytes[DIGEST_AT..] {
            return Err(damaged("it does not match its checksum"));
        }
        let header = Self {
            identity: OverlayIdentity {
                vault: VaultId::new(u64_at(bytes, 16)),
                server: ServerId::new(u64_at(bytes, 24)),
                point: PointId::new(u64_at(bytes, 32)),
                disk: DiskNumber(u16::from_le_bytes([bytes[48], bytes[49]])),
                disk_bytes: u64_at(bytes, 40),
            },
            boot: BootId(u128_at(bytes, 64)),
        };
        // There is one spelling only, so this also checks version, lengths and the zeroes.
        if header.encode() != *bytes {
            return Err(damaged("its fields are not those of version 1"));
        }
        Ok(header)
    }
}

const _: () = assert!(BLOCK_BYTES == 4096 && HEADER_BYTES == 128);

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}

fn u128_at(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; 16] {
    let mut field = [0; 16];
    field.copy_from_slice(&bytes[at..at + 16]);
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `LIFEBOAT_WRITE_GOLDEN=1 cargo test -p lifeboat-volume golden` writes it when it is missing. That
    /// of a released version is never written again.
    #[test]
    fn a_golden_header_is_still_read_and_still_written() {
        let header = Header {
            identity: OverlayIdentity {
                vault: VaultId::new(0x0102_0304_0506_0708),
                server: ServerId::new(2),
                point: PointId::new(3),
                disk: DiskNumber(4),
                disk_bytes: 5 << 30,
            },
            boot: BootId::new(*b"a golden boot id"),
        };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1-overlay-header");
        if std::env::var_os("LIFEBOAT_WRITE_GOLDEN").is_some() && !path.exists() {
            fs::write(&path, header.encode()).unwrap();
        }
        assert_eq!(Header::read(&path).unwrap(), Some(header));
        assert_eq!(fs::read(&path).unwrap(), header.encode(), "a header would be written otherwise now");
    }
}
