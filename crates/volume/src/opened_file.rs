//! Files, opened: their footers and indexes, checked against the catalog.

use std::sync::Arc;

use bytes::Bytes;
use lifeboat_hrl::{Covered, FOOTER_BYTES, Footer, Index};
use lifeboat_model::FRAME_BYTES;

use crate::error::VolumeError;
use crate::source::{DiskSource, FileSource, Objects};

/// Bytes of a file's end that are read at first: footer and index of nearly every epoch.
const TAIL_BYTES: u64 = 64 << 10;

/// A file whose index was checked.
pub(crate) struct OpenedFile {
    object: Arc<str>,
    index: Index,
}

impl OpenedFile {
    /// Reads and checks footer and index. Blocks. Also gives what the file covers.
    pub(crate) fn open(
        source: &DiskSource,
        file: &FileSource,
        objects: &Objects,
    ) -> Result<(Self, Vec<Covered>), VolumeError> {
        let tail = objects.read_tail(&file.object, file.bytes, TAIL_BYTES)?;
        let named = |error: lifeboat_hrl::HrlError| error.in_file(&file.object);
        let footer = Footer::parse(&tail, file.bytes).map_err(named)?;
        let found = footer.header.identity;
        footer.header.expect(&source.identity(file, &found)).map_err(named)?;
        if footer.digest != file.digest {
            let object = file.object.clone();
            return Err(VolumeError::Digest { object, expected: file.digest, found: footer.digest });
        }
        let key_id = footer.header.key_id;
        let key = source
            .key(key_id)
            .ok_or_else(|| VolumeError::NoKey { object: file.object.clone(), key: key_id })?;
        let sealed_bytes = footer.contents.index_bytes as usize;
        let index = match tail.len().checked_sub(FOOTER_BYTES + sealed_bytes) {
            Some(at) => Index::open(&footer, &tail[at..at + sealed_bytes], key),
            None => objects
                .with_range(&file.object, footer.index_range(), |sealed| Index::open(&footer, sealed, key))?,
        };
        let index = index.map_err(named)?;
        let covered = index.effective();
        Ok((Self { object: file.object.as_str().into(), index }, covered))
    }

    /// What stands for the file in a cache: its random id.
    pub(crate) const fn id(&self) -> u128 {
        u128::from_le_bytes(self.index.footer().header.file_id.0)
    }

    pub(crate) fn object(&self) -> Arc<str> {
        Arc::clone(&self.object)
    }

    /// Blocks of the disk at the file's last epoch.
    pub(crate) const fn disk_blocks(&self) -> u64 {
        self.index.footer().header.identity.disk_blocks()
    }

    /// Reads, decrypts and checks a frame. Blocks.
    pub(crate) fn load(&self, objects: &Objects, number: u32) -> Result<Bytes, VolumeError> {
        let range = self.range(number)?;
        objects.with_range(&self.object, range, |sealed| self.decode(number, sealed))?
    }

    /// Decrypts and checks a frame, where it stands.
    pub(crate) fn decode(&self, number: u32, sealed: &mut [u8]) -> Result<Bytes, VolumeError> {
        let plain = self.index.open_frame_in_place(number, sealed);
        let plain = plain.map_err(|error| error.in_file(&self.object))?;
        debug_assert!(plain.len() <= FRAME_BYTES);
        Ok(plain.into())
    }

    /// Where a frame is in the file.
    pub(crate) fn range(&self, number: u32) -> Result<std::ops::Range<u64>, VolumeError> {
        // The map holds only frames of the index, so this would be a fault of the program.
        let frame = self.index.frame(number).ok_or(VolumeError::GivenUp)?;
        Ok(frame.1.range())
    }

    /// About how much memory it holds.
    pub(crate) fn memory_bytes(&self) -> usize {
        size_of_val(self.index.entries())
            + self.index.footer().contents.frames as usize * size_of::<u32>()
            + size_of::<Self>()
            + self.object.len()
    }
}
