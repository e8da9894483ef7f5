//! HRL files: the changes of one disk over one or more epochs, immutable, compressed, encrypted.
//!
//! This page is the specification of the format, enough to write another reader from. The crate
//! does no input or output of its own. A writer appends to any [`std::io::Write`]; a reader is
//! handed slices of bytes and says which range it wants next, so that it works over a local file
//! and over the ranged reads of an object store alike.
//!
//! # Layout, version 1
//!
//! All numbers are little endian. `u8[n]` are `n` bytes as they are. Fields named *zero* are zero,
//! and a reader refuses another value.
//!
//! | part | length | content |
//! | --- | --- | --- |
//! | header | 128 | whose changes these are |
//! | frames | any | sealed frames, one directly after the other, in the order of their numbers |
//! | index | any | one sealed piece: which blocks are where |
//! | footer | 256 | where the index is; the digest of everything before |
//!
//! A block is 4,096 bytes of a disk. A frame holds 1 to 64 successive blocks. When a disk's length
//! is no multiple of 4,096, its last block is filled up with zeroes.
//!
//! ## Header
//!
//! | at | type | field |
//! | --- | --- | --- |
//! | 0 | u8\[8\] | magic: `89 4c 42 48 52 4c 0d 0a` |
//! | 8 | u16 | version: 1 |
//! | 10 | u16 | length of the header: 128 |
//! | 12 | u32 | bytes of a block: 4096 |
//! | 16 | u64 | vault |
//! | 24 | u64 | server |
//! | 32 | u16 | disk |
//! | 34 | u16 | zero |
//! | 36 | u32 | part |
//! | 40 | u64 | first epoch, from 1 |
//! | 48 | u64 | last epoch, not before the first |
//! | 56 | u64 | bytes of the disk, not 0 |
//! | 64 | u8\[16\] | file id, random |
//! | 80 | u8\[16\] | key id: which disk key |
//! | 96 | u8\[32\] | BLAKE3 of bytes 0 to 96 |
//!
//! Magic, version and length stay where they are in every version to come.
//!
//! ## Footer
//!
//! | at | type | field |
//! | --- | --- | --- |
//! | 0 | u8\[128\] | the header again, so that one read of a file's tail is enough to open it |
//! | 128 | u64 | where the index begins, in the file |
//! | 136 | u32 | bytes of the sealed index |
//! | 140 | u32 | frames |
//! | 144 | u32 | zero extents |
//! | 148 | u32 | zero |
//! | 152 | u64 | blocks in frames, a block that is there twice counted twice |
//! | 160 | u64 | blocks in zero extents, counted likewise |
//! | 168 | u64 | bytes of the file, footer included |
//! | 176 | u8\[32\] | BLAKE3 of all bytes of the file before the footer |
//! | 208 | u8\[32\] | BLAKE3 of the footer's bytes 0 to 208 and 240 to 256 |
//! | 240 | u32 | length of the footer: 256 |
//! | 244 | u16 | version: 1 |
//! | 246 | u16 | zero |
//! | 248 | u8\[8\] | magic: `4c 42 48 52 4c 45 4e 44` |
//!
//! The last 16 bytes stay where they are in every version to come. Whoever has no key can still
//! check a whole file against its footer ([`FileVerifier`], [`verify_file`]).
//!
//! ## Keys
//!
//! A disk key is 32 random bytes. Its id is the first 16 bytes of
//! `derive_key("lifeboat 2026 disk key id", disk key)`, so a wrong key is known as such.
//! `derive_key` is BLAKE3's.
//!
//! A file's key is `derive_key("lifeboat 2026 hrl v1 file key", disk key ‖ BLAKE3(header))`. As the
//! header holds the random file id, no two files share a key, and as it holds the identity, a
//! file whose header was exchanged cannot be opened.
//!
//! ## Sealing, and why no nonce repeats
//!
//! Frames and index are sealed with AES-256-GCM; the tag of 16 bytes follows the ciphertext. The
//! nonce has 12 bytes:
//!
//! | at | type | field |
//! | --- | --- | --- |
//! | 0 | u32 | number of the frame, from 0; 0 for the index |
//! | 4 | u8\[7\] | zero |
//! | 11 | u8 | 0 for a frame, 1 for the index |
//!
//! A nonce must never be used twice with one key. Each file has its own key, so it is enough that a
//! number is used once in a file. [`FrameSealer`] refuses a number that it has sealed before, the
//! index is sealed once, when the writer is consumed, and a file is never continued: one that
//! was torn by a crash is thrown away and written anew *under a new file id*. Callers must draw
//! the file id from the system's random numbers for each attempt.
//!
//! Sealed with a frame, as associated data:
//!
//! | at | type | field |
//! | --- | --- | --- |
//! | 0 | u8\[32\] | BLAKE3 of the header |
//! | 32 | u32 | number of the frame |
//! | 36 | u64 | first block |
//! | 44 | u16 | blocks |
//! | 46 | u16 | flags, as in the index |
//! | 48 | u8\[32\] | BLAKE3 of the plain data |
//!
//! Sealed with the index: BLAKE3 of the header, then bytes 128 to 168 of the footer.
//!
//! So a frame that was altered, exchanged, reordered or taken from another file is refused, and so
//! are counts in the footer that are not the writer's.
//!
//! ## Frame
//!
//! The plain text of a frame is its blocks, or, if that is shorter and flag 2 is set, one zstd
//! frame of them (RFC 8878) that holds their length and no dictionary. After decryption and
//! decompression a reader compares BLAKE3 of the blocks with the index. The agent computed that
//! digest when it read the disk.
//!
//! ## Index
//!
//! The plain text of the index is its entries, in the order in which they were written, and
//! nothing else. A later entry overrides an earlier one where they overlap.
//!
//! | type | field |
//! | --- | --- |
//! | u8 | flags: 1 zero extent, 2 compressed; others are refused, and so are both at once |
//! | varint | first block, less the end of the entry before (0 before the first), zigzag |
//! | varint | blocks, not 0; at most 64 in a frame |
//! | varint | bytes of the sealed frame; frames only |
//! | u8\[32\] | BLAKE3 of the plain data; frames only |
//!
//! A varint has 7 bits a byte, the lowest first, bit 7 set in all bytes but the last, and at most
//! 10 bytes. Zigzag maps 0, −1, 1, −2 to 0, 1, 2, 3. Frames are numbered from 0 as they come. The
//! first begins where the header ends, each other where the one before it ends, and the index
//! begins where the last one ends.
//!
//! The entries are not compressed: nearly all of them is digests, which do not shrink.
//!
//! ## Bounds
//!
//! At most [`FRAMES_MAX`] frames and [`ZERO_EXTENTS_MAX`] zero extents; no extent reaches beyond the
//! disk. A reader checks the counts against the bytes that are there before it allocates.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod cipher;
mod compress;
mod error;
mod field;
mod footer;
mod header;
mod hex;
mod identity;
mod index;
mod key;
mod sealer;
mod verify;
mod version;
mod writer;

pub use error::{HrlError, Piece, Problem, Result};
pub use footer::{Contents, FOOTER_BYTES, FileSummary, Footer};
pub use header::{HEADER_BYTES_MAX, Header};
pub use identity::{FileId, FileIdentity, HexError};
#[cfg(feature = "fuzz")]
pub use index::fuzz;
pub use index::{Content, Covered, Entry, Frame, INDEX_BYTES_MAX, Index, Source};
pub use key::{DiskKey, KeyError, KeyId, KeyOwner, ManifestKey, MasterKey, WrappedKey};
pub use sealer::{FrameSealer, LEVEL_DEFAULT, LEVELS, SealedFrame};
pub use verify::{FileHasher, FileVerifier, Verified, verify_file, verify_file_with_key};
pub use version::Version;
pub use writer::Writer;

/// The most frames that a file may hold: at 64 blocks each 256 GiB, at one block each 4 GiB.
pub const FRAMES_MAX: u32 = 1 << 20;

/// The most zero extents that a file may hold.
pub const ZERO_EXTENTS_MAX: u32 = 1 << 20;
