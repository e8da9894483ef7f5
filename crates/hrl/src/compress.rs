//! Compression with contexts and buffers that each thread keeps, so that a frame costs no
//! allocation but its own output.

use std::cell::RefCell;
use std::io;

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::compress_bound;

struct Packing {
    compressor: Compressor<'static>,
    level: i32,
    buffer: Vec<u8>,
}

thread_local! {
    static PACKING: RefCell<Option<Packing>> = const { RefCell::new(None) };
    static UNPACKING: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    static SEALED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The shorter of `plain` and its compressed form, and whether it is the latter. `spare` bytes more
/// are reserved.
pub(crate) fn pack(level: i32, plain: &[u8], spare: usize) -> io::Result<(Vec<u8>, bool)> {
    PACKING.with_borrow_mut(|slot| {
        let packing = match slot {
            Some(packing) => packing,
            None => slot.insert(Packing { compressor: Compressor::new(level)?, level, buffer: Vec::new() }),
        };
        if packing.level != level {
            packing.compressor.set_compression_level(level)?;
            packing.level = level;
        }
        packing.buffer.clear();
        packing.buffer.reserve(compress_bound(plain.len()));
        packing.compressor.compress_to_buffer(plain, &mut packing.buffer)?;
        let compressed = packing.buffer.len() < plain.len();
        let text = if compressed { &packing.buffer } else { plain };
        let mut out = Vec::with_capacity(text.len() + spare);
        out.extend_from_slice(text);
        Ok((out, compressed))
    })
}

/// Decompresses exactly `plain_bytes`; `None` if the text holds another number of bytes or is damaged.
pub(crate) fn unpack(text: &[u8], plain_bytes: usize) -> Option<Vec<u8>> {
    UNPACKING.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => slot.insert(Decompressor::new().ok()?),
        };
        let mut plain = Vec::with_capacity(plain_bytes);
        decompressor.decompress_to_buffer(text, &mut plain).ok()?;
        (plain.len() == plain_bytes).then_some(plain)
    })
}

/// Runs `open` on a copy of `sealed` in the thread's own buffer.
pub(crate) fn with_copy<T>(sealed: &[u8], open: impl FnOnce(&mut [u8]) -> T) -> T {
    SEALED.with_borrow_mut(|buffer| {
        buffer.clear();
        buffer.extend_from_slice(sealed);
        open(buffer)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_shrink_is_kept_as_it_is() {
        let mut noise = vec![0; 4096];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let (text, compressed) = pack(1, &noise, 0).unwrap();
        assert!(!compressed && text == noise);
    }

    #[test]
    fn another_length_than_announced_is_refused() {
        let (text, compressed) = pack(1, &[7; 8192], 0).unwrap();
        assert!(compressed && text.len() < 100);
        assert_eq!(unpack(&text, 8192).unwrap(), vec![7; 8192]);
        for wrong in [0, 4096, 8191, 8193, 12288] {
            assert!(unpack(&text, wrong).is_none(), "{wrong}");
        }
    }
}
