//! The authority's records: which certificates it issued, and which it revoked.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::private_file::{sync_directory_of, write_private};
use crate::{FileError, Identity, Serial, TrustError};

/// Bytes of the largest record file: a million certificates.
const RECORDS_BYTES_MAX: u64 = 256 << 20;
/// Characters kept of the reason for a revocation.
const REASON_CHARS_MAX: usize = 500;

/// A certificate that the authority issued: a line of `issued.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedRecord {
    /// Its number.
    pub serial: Serial,
    /// Who it speaks for.
    pub identity: Identity,
    /// Until when it holds.
    pub not_after: Timestamp,
    /// When it was issued.
    pub issued_at: Timestamp,
}

/// A certificate that the authority revoked: an entry of `revoked.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedRecord {
    /// Its number.
    pub serial: Serial,
    /// When it was revoked.
    pub at: Timestamp,
    /// Why.
    pub reason: String,
}

#[derive(Default, Serialize, Deserialize)]
struct RevokedFile {
    revoked: Vec<RevokedRecord>,
}

/// The records in an authority's directory. Writers hold the authority's lock.
#[derive(Debug)]
pub(crate) struct Ledger {
    issued: PathBuf,
    revoked: PathBuf,
}

impl Ledger {
    pub(crate) fn of(dir: &Path) -> Self {
        Self { issued: dir.join("issued.jsonl"), revoked: dir.join("revoked.json") }
    }

    pub(crate) fn append_issued(&self, record: &IssuedRecord) -> Result<(), TrustError> {
        let io = |error| FileError::io("write", &self.issued)(error);
        let new = !self.issued.exists();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.issued)
            .map_err(io)?;
        let whole = whole_lines_bytes(&mut file).map_err(io)?;
        // A line without its end is of a writer that was killed: its certificate was never given out.
        file.set_len(whole).map_err(io)?;
        file.seek(SeekFrom::End(0)).map_err(io)?;
        let mut line = serde_json::to_vec(record)
            .map_err(|error| TrustError::Crypto { action: "record a certificate", why: error.to_string() })?;
        line.push(b'\n');
        file.write_all(&line).map_err(io)?;
        file.sync_all().map_err(io)?;
        if new {
            sync_directory_of(&self.issued)?;
        }
        Ok(())
    }

    pub(crate) fn issued(&self) -> Result<Vec<IssuedRecord>, TrustError> {
        let Some(bytes) = read_records(&self.issued)? else { return Ok(Vec::new()) };
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let lines = bytes[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines
            .enumerate()
            .map(|(index, line)| {
                serde_json::from_slice(line)
                    .map_err(|error| damaged(&self.issued, format!("line {}", index + 1), &error))
            })
            .collect()
    }

    pub(crate) fn revoked(&self) -> Result<Vec<RevokedRecord>, TrustError> {
        let Some(bytes) = read_records(&self.revoked)? else { return Ok(Vec::new()) };
        let file: RevokedFile = serde_json::from_slice(&bytes)
            .map_err(|error| damaged(&self.revoked, format!("line {}", error.line()), &error))?;
        Ok(file.revoked)
    }

    /// Whether it was not revoked before.
    pub(crate) fn revoke(&self, serial: Serial, reason: &str, at: Timestamp) -> Result<bool, TrustError> {
        let mut revoked = self.revoked()?;
        if revoked.iter().any(|record| record.serial == serial) {
            return Ok(false);
        }
        revoked.push(RevokedRecord { serial, at, reason: reason.chars().take(REASON_CHARS_MAX).collect() });
        let text = serde_json::to_vec_pretty(&RevokedFile { revoked })
            .map_err(|error| TrustError::Crypto { action: "record a revocation", why: error.to_string() })?;
        write_private(&self.revoked, &text)?;
        Ok(true)
    }
}

fn damaged(path: &Path, place: String, error: &serde_json::Error) -> TrustError {
    TrustError::Records { path: path.to_owned(), place, why: error.to_string() }
}

/// Bytes up to and with the last line end.
fn whole_lines_bytes(file: &mut File) -> std::io::Result<u64> {
    const STEP_BYTES: u64 = 4096;
    let mut end = file.seek(SeekFrom::End(0))?;
    while end > 0 {
        let start = end.saturating_sub(STEP_BYTES);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        Read::by_ref(file).take(end - start).read_to_end(&mut bytes)?;
        if let Some(place) = bytes.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + place as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

fn read_records(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::io("read", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(RECORDS_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(FileError::io("read", path))?;
    let len = bytes.len() as u64;
    if len > RECORDS_BYTES_MAX {
        return Err(FileError::TooLarge { path: path.to_owned(), bytes: len, bytes_max: RECORDS_BYTES_MAX });
    }
    Ok(Some(bytes))
}
