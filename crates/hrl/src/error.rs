//! What can be wrong with an HRL file: which file, where, why, and what to do.

use std::fmt;
use std::io;

use lifeboat_model::{Digest, Extent};

use crate::identity::FileIdentity;
use crate::key::KeyId;
use crate::version::Version;

/// The result of everything that reads or writes HRL files.
pub type Result<T, E = HrlError> = std::result::Result<T, E>;

/// A file was refused, or could not be written. No data comes with it.
#[derive(Debug)]
pub struct HrlError {
    /// The file's name, once a caller that knows it has added it with [`HrlError::in_file`].
    pub file: Option<Box<str>>,
    /// The byte of the file at which it was noticed, where there is one.
    pub at: Option<u64>,
    /// What is wrong.
    pub problem: Problem,
}

/// A part of a file, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The first 128 bytes.
    Header,
    /// The last 256 bytes.
    Footer,
    /// The sealed index.
    Index,
    /// A frame and the blocks that it holds.
    Frame(u32, Extent),
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("the header"),
            Self::Footer => f.write_str("the footer"),
            Self::Index => f.write_str("the index"),
            Self::Frame(number, extent) => write!(f, "frame {number} ({extent})"),
        }
    }
}

/// Why a file was refused or could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The bytes at its start are another file's.
    #[error("this is no HRL file: it does not begin like one")]
    NoHrlFile,
    /// A later release wrote it.
    #[error(
        "format version {0} was written by a newer Lifeboat: upgrade this vault (it reads up to version {max})",
        max = Version::CURRENT.number()
    )]
    NewerVersion(u16),
    /// A piece has fewer or more bytes than it must have.
    #[error("{piece} has {has} bytes where it must have {needs}: the file was cut short or read in part")]
    Truncated {
        /// Which piece.
        piece: Piece,
        /// What it must have.
        needs: u64,
        /// What is there.
        has: u64,
    },
    /// The end of the file is missing, or was never written.
    #[error("the file does not end with a footer: it was cut short or never finished")]
    Torn,
    /// The bytes of a piece are not those that were written.
    #[error("{0} does not match its checksum: it was altered or damaged")]
    Altered(Piece),
    /// The file's bytes are not those that were written.
    #[error("the file's digest is {found} and the footer says {expected}: it was altered or damaged")]
    FileDigest {
        /// The footer's.
        expected: Digest,
        /// The file's.
        found: Digest,
    },
    /// The fields contradict each other although the checksum fits.
    #[error("the fields of the file are impossible: {0}")]
    Malformed(&'static str),
    /// The file is another one than was asked for.
    #[error("the file holds {found}, expected was {expected}: files were exchanged")]
    Swapped {
        /// What the caller asked for.
        expected: Box<FileIdentity>,
        /// What the file says that it is.
        found: Box<FileIdentity>,
    },
    /// The header at the file's start is not the one in its footer.
    #[error("the header and the footer belong to different files")]
    HeaderOfAnotherFile,
    /// The key that was given is not the one that the file was written with.
    #[error("the file was written with disk key {expected} and cannot be read with {given}")]
    WrongKey {
        /// The file's.
        expected: KeyId,
        /// The caller's.
        given: KeyId,
    },
    /// Decryption refused the piece.
    #[error("{0} failed authentication: it was altered, or comes from another place or file")]
    NotAuthentic(Piece),
    /// The data is not what the agent read, although the decryption succeeded.
    #[error("{0} does not hold what its digest says, so it was wrong before it was encrypted")]
    WrongData(Piece),
    /// The file has no frame of this number.
    #[error("there is no frame {number}: the file has {frames}")]
    NoSuchFrame {
        /// The number asked for.
        number: u32,
        /// How many there are.
        frames: u32,
    },
    /// Data to be written is not what its sender read.
    #[error("the data for {0} does not match the digest that came with it: have it sent again")]
    DataMismatch(Extent),
    /// An extent to be written cannot be.
    #[error("{extent} cannot be written: {why}")]
    BadExtent {
        /// Which.
        extent: Extent,
        /// Why not.
        why: &'static str,
    },
    /// The writer was used in a way that would spoil the file.
    #[error("{0}")]
    Misuse(&'static str),
    /// No room for more.
    #[error("the file is full ({0}): go on in another part")]
    Full(&'static str),
    /// The compressor failed; it does so only without memory.
    #[error("compression failed: {0}")]
    Compression(#[source] io::Error),
    /// Reading or writing failed.
    #[error("{0}")]
    Io(#[source] io::Error),
}

impl HrlError {
    pub(crate) const fn at(at: u64, problem: Problem) -> Self {
        Self { file: None, at: Some(at), problem }
    }

    /// Adds the file's name, as a person knows it.
    #[must_use]
    pub fn in_file(mut self, name: impl fmt::Display) -> Self {
        self.file = Some(name.to_string().into());
        self
    }

    /// Whether doing the same again can help. Damage stays damage.
    #[must_use]
    pub const fn retry_helps(&self) -> bool {
        matches!(self.problem, Problem::Io(_) | Problem::Compression(_) | Problem::DataMismatch(_))
    }
}

impl From<Problem> for HrlError {
    fn from(problem: Problem) -> Self {
        Self { file: None, at: None, problem }
    }
}

impl fmt::Display for HrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.at) {
            (Some(file), Some(at)) => write!(f, "{file}, byte {at}: {}", self.problem),
            (Some(file), None) => write!(f, "{file}: {}", self.problem),
            (None, Some(at)) => write!(f, "byte {at}: {}", self.problem),
            (None, None) => self.problem.fmt(f),
        }
    }
}

impl std::error::Error for HrlError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.problem)
    }
}
