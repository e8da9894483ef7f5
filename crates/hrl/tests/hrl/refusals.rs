//! What is refused, and with which words.

use std::io::{self, Cursor, Write};

use lifeboat_hrl::{
    DiskKey, FileId, FileVerifier, Footer, FrameSealer, Header, Index, Problem, Writer, verify_file_with_key,
};
use lifeboat_model::{Digest, Epoch, Extent};
use proptest::prelude::*;

use crate::fixture::{Change, blocks, extent, identity, key, read, repair, seal, write};

fn sealer() -> FrameSealer {
    FrameSealer::new(identity(64), FileId([5; 16]), &key(), 1).unwrap()
}

fn file() -> Vec<u8> {
    write(identity(64), FileId([5; 16]), &[Change::Data(extent(4, 1), blocks(1, 1, true))])
}

#[test]
fn another_key_is_named() {
    let other = DiskKey::new([0x43; 32]);
    let error = read(&file(), &other).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&key().id().to_string()) && text.contains(&other.id().to_string()), "{text}");
    assert!(!error.retry_helps());
    assert!(verify_file_with_key(Cursor::new(file()), &other).is_err());
}

#[test]
fn another_file_than_expected_is_refused_with_both_names() {
    let header = Header::parse(&file()).unwrap();
    header.expect(&identity(64)).unwrap();
    let mut wanted = identity(64);
    (wanted.first_epoch, wanted.last_epoch) = (Epoch(10), Epoch(10));
    let text = header.expect(&wanted).unwrap_err().in_file("disk-2/7-9.1.hrl").to_string();
    assert_eq!(
        text,
        "disk-2/7-9.1.hrl, byte 16: the file holds vault 0123456789abcdef, server fedcba9876543210, \
         disk 2 of 261632 bytes, epochs 7 to 9, part 1, expected was vault 0123456789abcdef, \
         server fedcba9876543210, disk 2 of 261632 bytes, epoch 10, part 1: files were exchanged"
    );
}

#[test]
fn a_newer_version_says_what_to_do() {
    let mut newer = file();
    newer[8] = 2;
    repair(&mut newer);
    let text = Header::parse(&newer).unwrap_err().to_string();
    assert_eq!(
        text,
        "byte 8: format version 2 was written by a newer Lifeboat: upgrade this vault (it reads up to version 1)"
    );
    let mut newer = file();
    let at = newer.len() - 12;
    newer[at] = 9;
    let error = Footer::parse(&newer, newer.len() as u64).unwrap_err();
    assert!(matches!(error.problem, Problem::NewerVersion(9)), "{error}");
}

#[test]
fn other_files_and_unfinished_ones_are_told_apart() {
    let mut verifier = FileVerifier::new();
    let error = verifier.update(&[0x7f; 600]).unwrap_err();
    assert_eq!(error.to_string(), "byte 0: this is no HRL file: it does not begin like one");
    let file = file();
    let torn = &file[..file.len() - 300];
    let error = Footer::parse(torn, torn.len() as u64).unwrap_err();
    assert!(error.to_string().contains("cut short or never finished"), "{error}");
    let error = Footer::parse(&file, file.len() as u64 + 1).unwrap_err();
    assert!(matches!(error.problem, Problem::Truncated { .. }), "{error}");
}

#[test]
fn data_that_changed_on_its_way_is_not_sealed() {
    let sealer = sealer();
    let data = blocks(1, 2, true);
    let digest = Digest::of(&data);
    let mut changed = data.clone();
    changed[8191] ^= 1;
    let error = sealer.seal(0, extent(10, 2), &changed, digest).unwrap_err();
    assert!(error.to_string().contains("blocks 10..12") && error.retry_helps(), "{error}");
    sealer.seal(0, extent(10, 2), &data, digest).unwrap();
}

#[test]
fn a_number_is_sealed_once_even_by_a_clone() {
    let sealer = sealer();
    let data = blocks(1, 1, true);
    seal(&sealer, 3, extent(10, 1), &data);
    let again = sealer.clone().seal(3, extent(10, 1), &data, Digest::of(&data));
    assert!(matches!(again.unwrap_err().problem, Problem::Misuse(_)));
    let beyond = sealer.seal(lifeboat_hrl::FRAMES_MAX, extent(10, 1), &data, Digest::of(&data));
    assert!(matches!(beyond.unwrap_err().problem, Problem::Full(_)));
}

#[test]
fn extents_that_cannot_be_are_not_written() {
    let sealer = sealer();
    let data = blocks(1, 65, true);
    for (extent, bytes) in [
        (Extent { first: 0, blocks: 65 }, 65 * 4096),
        (Extent { first: 63, blocks: 2 }, 2 * 4096),
        (Extent { first: 0, blocks: 0 }, 0),
        (Extent { first: u64::MAX, blocks: 2 }, 2 * 4096),
        (Extent { first: 0, blocks: 2 }, 4096),
    ] {
        let error = sealer.seal(0, extent, &data[..bytes], Digest::of(&data[..bytes])).unwrap_err();
        assert!(matches!(error.problem, Problem::BadExtent { .. }), "{extent:?}: {error}");
    }
    let mut writer = Writer::new(Vec::new(), &sealer).unwrap();
    for bad in [
        Extent { first: 60, blocks: 5 },
        Extent { first: 1, blocks: 0 },
        Extent { first: 2, blocks: u64::MAX },
    ] {
        writer.zeroes(bad).unwrap_err();
    }
}

#[test]
fn the_writer_refuses_frames_out_of_order_and_of_other_files() {
    let (mine, data) = (sealer(), blocks(1, 1, true));
    let other = FrameSealer::new(identity(64), FileId([6; 16]), &key(), 1).unwrap();
    let mut writer = Writer::new(Vec::new(), &mine).unwrap();
    writer.append(seal(&mine, 1, extent(10, 1), &data)).unwrap_err();
    writer.append(seal(&other, 0, extent(10, 1), &data)).unwrap_err();
    writer.append(seal(&mine, 0, extent(10, 1), &data)).unwrap();
    let (file, _) = writer.finish().unwrap();
    read(&file, &key()).unwrap();
}

/// A disk that is full after some bytes, and then has room again.
struct FullOnce {
    room: usize,
    refused: bool,
}

impl Write for FullOnce {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.room < bytes.len() && !self.refused {
            self.refused = true;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.room = self.room.saturating_sub(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_file_is_not_continued_after_a_failed_write() {
    let (sealer, data) = (sealer(), blocks(1, 1, true));
    let mut writer = Writer::new(FullOnce { room: 200, refused: false }, &sealer).unwrap();
    let error = writer.append(seal(&sealer, 0, extent(10, 1), &data)).unwrap_err();
    assert!(matches!(error.problem, Problem::Io(_)) && error.retry_helps(), "{error}");
    assert_eq!(error.at, Some(128));
    let error = writer.finish().map(|(_, summary)| summary).unwrap_err();
    assert!(matches!(error.problem, Problem::Misuse(_)), "{error}");
}

#[test]
fn a_frame_that_is_not_there_is_named() {
    let file = file();
    let footer = Footer::parse(&file, file.len() as u64).unwrap();
    let index = crate::fixture::open_index(&file, &footer, &key()).unwrap();
    assert_eq!(index.open_frame(1, &[]).unwrap_err().to_string(), "there is no frame 1: the file has 1");
    let text = index.open_frame(0, &file[128..200]).unwrap_err().to_string();
    assert!(
        text.starts_with("byte 128: frame 0 (blocks 4..5) has 72 bytes where it must have 4112"),
        "{text}"
    );
}

#[test]
fn identities_and_levels_that_cannot_be_are_refused() {
    let attempt = |identity, level| FrameSealer::new(identity, FileId([1; 16]), &key(), level);
    let mut backwards = identity(64);
    backwards.first_epoch = Epoch(10);
    attempt(backwards, 1).unwrap_err();
    let mut zero = identity(64);
    zero.first_epoch = Epoch(0);
    attempt(zero, 1).unwrap_err();
    let mut empty = identity(64);
    empty.disk_bytes = 0;
    attempt(empty, 1).unwrap_err();
    attempt(identity(64), 0).unwrap_err();
    attempt(identity(64), 20).unwrap_err();
}

#[test]
fn sealers_and_indexes_are_shared_by_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<FrameSealer>();
    shared::<Index>();
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..1200), fixed in any::<bool>()) {
        let mut bytes = bytes;
        if fixed && bytes.len() >= 384 {
            bytes[..16].copy_from_slice(&file()[..16]);
            repair(&mut bytes);
        }
        let _ = Header::parse(&bytes);
        let _ = Footer::parse(&bytes, bytes.len() as u64);
        let _ = lifeboat_hrl::verify_file(bytes.as_slice());
        let _ = verify_file_with_key(Cursor::new(&bytes), &key());
    }
}
