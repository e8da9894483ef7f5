//! Sealing and opening the pieces of one file. The crate's page says why no nonce repeats.

use lifeboat_model::{Digest, Extent};
use ring::aead::{Aad, LessSafeKey, Nonce};

use crate::error::{HrlError, Piece, Problem, Result};
use crate::footer::Contents;
use crate::header::Header;
use crate::key::{DiskKey, TAG_BYTES};

const CONTEXT_FILE_KEY: &str = "lifeboat 2026 hrl v1 file key";

/// Flag of an index entry: an extent of zeroes.
pub(crate) const FLAG_ZEROES: u8 = 1;
/// Flag of an index entry and of a frame: the plain text is compressed.
pub(crate) const FLAG_COMPRESSED: u8 = 2;

/// The key of one file, and what its pieces are bound to.
pub(crate) struct FileCipher {
    key: LessSafeKey,
    header_digest: Digest,
}

/// What a frame is bound to, besides the file.
#[derive(Clone, Copy)]
pub(crate) struct FramePlace {
    pub number: u32,
    pub extent: Extent,
    pub compressed: bool,
    pub digest: Digest,
}

impl FileCipher {
    /// The cipher of the file with this header.
    pub(crate) fn new(header: &Header, disk_key: &DiskKey) -> Result<Self> {
        if header.key_id != disk_key.id() {
            let wrong = Problem::WrongKey { expected: header.key_id, given: disk_key.id() };
            return Err(HrlError::at(80, wrong));
        }
        let header_digest = header.digest();
        let key = disk_key.secret().derive(CONTEXT_FILE_KEY, &header_digest.0).cipher();
        Ok(Self { key, header_digest })
    }

    /// Encrypts a frame where it stands and appends the tag. Once for each number.
    pub(crate) fn seal_frame(&self, place: &FramePlace, text: &mut Vec<u8>) {
        self.seal(nonce(place.number, 0), &self.frame_data(place), text);
    }

    /// Decrypts a frame where it stands. `None` if it is not the one that was sealed for this place.
    pub(crate) fn open_frame<'a>(&self, place: &FramePlace, sealed: &'a mut [u8]) -> Option<&'a mut [u8]> {
        let data = Aad::from(self.frame_data(place));
        self.key.open_in_place(nonce(place.number, 0), data, sealed).ok()
    }

    /// Encrypts the index. Once for a file.
    pub(crate) fn seal_index(&self, contents: &Contents, text: &mut Vec<u8>) {
        self.seal(nonce(0, 1), &self.index_data(contents), text);
    }

    /// Decrypts the index where it stands.
    pub(crate) fn open_index<'a>(
        &self,
        contents: &Contents,
        sealed: &'a mut [u8],
    ) -> Result<&'a [u8], Problem> {
        let data = Aad::from(self.index_data(contents));
        let opened = self.key.open_in_place(nonce(0, 1), data, sealed);
        opened.map(|text| &*text).map_err(|_| Problem::NotAuthentic(Piece::Index))
    }

    fn seal(&self, nonce: Nonce, data: &[u8], text: &mut Vec<u8>) {
        text.reserve_exact(TAG_BYTES);
        self.key
            .seal_in_place_append_tag(nonce, Aad::from(data), text)
            .expect("the bounds of frame and index are far below the cipher's 64 GiB");
    }

    fn frame_data(&self, place: &FramePlace) -> [u8; 80] {
        let mut data = [0; 80];
        data[..32].copy_from_slice(&self.header_digest.0);
        data[32..36].copy_from_slice(&place.number.to_le_bytes());
        data[36..44].copy_from_slice(&place.extent.first.to_le_bytes());
        // 1 to 64 blocks were checked before, so the high byte stays zero.
        data[44] = place.extent.blocks.to_le_bytes()[0];
        data[46] = if place.compressed { FLAG_COMPRESSED } else { 0 };
        data[48..].copy_from_slice(&place.digest.0);
        data
    }

    fn index_data(&self, contents: &Contents) -> [u8; 72] {
        let mut data = [0; 72];
        data[..32].copy_from_slice(&self.header_digest.0);
        data[32..].copy_from_slice(&contents.encode());
        data
    }
}

fn nonce(number: u32, kind: u8) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&number.to_le_bytes());
    nonce[11] = kind;
    Nonce::assume_unique_for_key(nonce)
}
