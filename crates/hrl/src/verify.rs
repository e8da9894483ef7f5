//! Whole files, checked as they pass.

use std::io::{self, Read, Seek, SeekFrom};

use lifeboat_model::Digest;

use crate::error::{HrlError, Problem, Result};
use crate::footer::{FOOTER_BYTES, FileSummary, Footer};
use crate::header::{HEADER_BYTES, Header, short};
use crate::index::Index;
use crate::key::DiskKey;

const CHUNK_BYTES: usize = 256 << 10;

/// Bytes that are hashed at once. BLAKE3 works on many chunks side by side where they are whole and
/// aligned; the pieces that a connection gives, 16 KiB at odd places, take it twice as long.
const GATHER_BYTES: usize = 64 << 10;

/// A file that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// What it says that it is; compare it with [`Header::expect`].
    pub header: Header,
    /// What is in it.
    pub summary: FileSummary,
}

/// Checks all of a file that can be checked without a key, while it passes in pieces of any size.
///
/// That is enough to know that it is what its writer wrote, unless somebody forged it on purpose;
/// against that compare the digest with a signed manifest, or verify with the key.
#[derive(Default)]
pub struct FileVerifier {
    hasher: FileHasher,
    start: Vec<u8>,
    header: Option<Header>,
}

/// Computes the digest by which a file is known, [`FileSummary::digest`], while the file passes in
/// pieces of any size: BLAKE3 of all but the footer, which holds that digest.
#[derive(Default)]
pub struct FileHasher {
    hasher: blake3::Hasher,
    /// The last bytes seen, not hashed yet; the end of them may turn out to be the footer.
    tail: Vec<u8>,
    bytes: u64,
}

impl FileHasher {
    /// A hasher that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the file.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = GATHER_BYTES + FOOTER_BYTES - self.tail.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.tail.extend_from_slice(now);
            bytes = later;
            if self.tail.len() == GATHER_BYTES + FOOTER_BYTES {
                self.hasher.update(&self.tail[..GATHER_BYTES]);
                self.tail.drain(..GATHER_BYTES);
            }
        }
    }

    /// The digest of the file, which ends here.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let before_footer = self.tail.len().saturating_sub(FOOTER_BYTES);
        self.hasher.clone().update(&self.tail[..before_footer]).finalize().into()
    }

    fn footer(&self) -> &[u8] {
        &self.tail[self.tail.len().saturating_sub(FOOTER_BYTES)..]
    }
}

impl FileVerifier {
    /// A verifier that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the file.
    ///
    /// # Errors
    /// As soon as the header is known to be bad, so that nobody goes on sending a hopeless file.
    pub fn update(&mut self, bytes: &[u8]) -> Result<()> {
        if self.header.is_none() {
            let wanted = (HEADER_BYTES - self.start.len()).min(bytes.len());
            self.start.extend_from_slice(&bytes[..wanted]);
            if self.start.len() == HEADER_BYTES {
                self.header = Some(Header::parse(&self.start)?);
            }
        }
        self.hasher.update(bytes);
        Ok(())
    }

    /// The header, once its bytes have passed.
    #[must_use]
    pub const fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// Judges the file, which ends here.
    ///
    /// # Errors
    /// When it is not what was written.
    pub fn finish(self) -> Result<Verified> {
        let header = self.header.ok_or_else(|| short(self.start.len()))?;
        let footer = Footer::parse(self.hasher.footer(), self.hasher.bytes)?;
        check_whole(&header, &footer, self.hasher.digest())
    }
}

fn check_whole(header: &Header, footer: &Footer, found: Digest) -> Result<Verified> {
    if *header != footer.header {
        return Err(HrlError::at(0, Problem::HeaderOfAnotherFile));
    }
    if found != footer.digest {
        return Err(Problem::FileDigest { expected: footer.digest, found }.into());
    }
    Ok(Verified { header: *header, summary: footer.summary() })
}

/// Checks a whole file, without a key.
///
/// # Errors
/// When reading fails or the file is not what was written.
pub fn verify_file(mut reader: impl Read) -> Result<Verified> {
    let mut verifier = FileVerifier::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => return verifier.finish(),
            Ok(count) => verifier.update(&chunk[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(HrlError::at(verifier.hasher.bytes, Problem::Io(error))),
        }
    }
}

/// Checks a whole file, and with its key that every frame holds what the agent read.
///
/// # Errors
/// When reading fails, the key is another one, or the file is not what was written.
pub fn verify_file_with_key(mut reader: impl Read + Seek, key: &DiskKey) -> Result<Verified> {
    let file_bytes = reader.seek(SeekFrom::End(0)).map_err(Problem::Io)?;
    let footer_at = file_bytes.saturating_sub(FOOTER_BYTES as u64);
    let tail = read_at(&mut reader, footer_at, (file_bytes - footer_at).try_into().unwrap_or(FOOTER_BYTES))?;
    let footer = Footer::parse(&tail, file_bytes)?;
    // The footer was checked against the length of the file, so this allocates no more than is there.
    let index_bytes = footer.contents.index_bytes as usize;
    let sealed_index = read_at(&mut reader, footer.contents.index_offset, index_bytes)?;
    let index = Index::open(&footer, &sealed_index, key)?;

    let mut hasher = blake3::Hasher::new();
    let start = read_at(&mut reader, 0, HEADER_BYTES)?;
    let header = Header::parse(&start)?;
    hasher.update(&start);
    let mut sealed = Vec::new();
    for number in 0..footer.contents.frames {
        let Some((_, frame)) = index.frame(number) else { break };
        sealed.resize(frame.stored_bytes as usize, 0);
        reader.read_exact(&mut sealed).map_err(|error| HrlError::at(frame.offset, Problem::Io(error)))?;
        index.open_frame(number, &sealed)?;
        hasher.update(&sealed);
    }
    hasher.update(&sealed_index);
    check_whole(&header, &footer, hasher.finalize().into())
}

fn read_at(reader: &mut (impl Read + Seek), at: u64, count: usize) -> Result<Vec<u8>> {
    let failed = |error| HrlError::at(at, Problem::Io(error));
    reader.seek(SeekFrom::Start(at)).map_err(failed)?;
    let mut bytes = vec![0; count];
    reader.read_exact(&mut bytes).map_err(failed)?;
    Ok(bytes)
}
