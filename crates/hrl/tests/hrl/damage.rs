//! Damage of every kind to a small file: none of it is ever read as data.

use std::io::Cursor;

use lifeboat_hrl::{FileId, Footer, Problem, verify_file, verify_file_with_key};

use crate::fixture::{Change, blocks, extent, identity, key, open_frame, open_index, read, repair, write};

/// Two raw frames of one length, a compressed one, zero extents: about 9 KB.
fn changes() -> Vec<Change> {
    vec![
        Change::Data(extent(4, 1), blocks(1, 1, true)),
        Change::Zeroes(extent(20, 30)),
        Change::Data(extent(5, 1), blocks(2, 1, true)),
        Change::Data(extent(8, 2), blocks(3, 2, false)),
        Change::Zeroes(extent(9, 1)),
    ]
}

fn small_file() -> Vec<u8> {
    write(identity(64), FileId([5; 16]), &changes())
}

#[test]
fn every_truncation_is_refused() {
    let file = small_file();
    for end in 0..file.len() {
        let cut = &file[..end];
        assert!(verify_file(cut).is_err(), "verify, cut at {end}");
        assert!(read(cut, &key()).is_err(), "read, cut at {end}");
        assert!(verify_file_with_key(Cursor::new(cut), &key()).is_err(), "verify with key, cut at {end}");
    }
}

#[test]
fn every_altered_byte_is_refused() {
    let mut file = small_file();
    for at in 0..file.len() {
        for mask in [0x01, 0x80] {
            file[at] ^= mask;
            assert!(verify_file(file.as_slice()).is_err(), "verify, byte {at} ^ {mask:#x}");
            assert!(verify_file_with_key(Cursor::new(&file), &key()).is_err(), "with key, byte {at}");
            file[at] ^= mask;
        }
    }
    verify_file_with_key(Cursor::new(&file), &key()).unwrap();
}

/// A reader by ranges does not read the file's digest again, but everything that it does read.
#[test]
fn a_reader_by_ranges_refuses_every_altered_byte() {
    let mut file = small_file();
    for at in 0..file.len() {
        file[at] ^= 0x10;
        assert!(read(&file, &key()).is_err(), "byte {at}");
        file[at] ^= 0x10;
    }
}

/// Whoever can write to the store can make every checksum fit, but has no key.
#[test]
fn every_altered_byte_is_refused_by_the_key_although_all_checksums_fit() {
    let original = small_file();
    let footer_at = original.len() - 256;
    let checksums = [96..128, footer_at..footer_at + 128, footer_at + 176..footer_at + 240];
    for at in (0..original.len()).filter(|at| !checksums.iter().any(|range| range.contains(at))) {
        let mut file = original.clone();
        file[at] ^= 0x04;
        repair(&mut file);
        assert!(read(&file, &key()).is_err(), "byte {at}");
    }
    let mut file = original.clone();
    repair(&mut file);
    assert_eq!(file, original, "the repair is what the writer does");
}

#[test]
fn bytes_after_the_end_are_refused() {
    let mut file = small_file();
    file.push(0);
    assert!(matches!(verify_file(file.as_slice()).unwrap_err().problem, Problem::Torn));
    let footer = small_file().split_off(file.len() - 257);
    file.pop();
    file.extend(footer);
    verify_file(file.as_slice()).unwrap_err();
    read(&file, &key()).unwrap_err();
}

#[test]
fn frames_that_were_exchanged_are_refused() {
    let mut file = small_file();
    let footer = Footer::parse(&file, file.len() as u64).unwrap();
    let index = open_index(&file, &footer, &key()).unwrap();
    let (first, second) = (index.frame(0).unwrap().1.range(), index.frame(1).unwrap().1.range());
    assert_eq!(first.end - first.start, second.end - second.start, "else the lengths would tell");
    let place = usize::try_from(first.start).unwrap();
    let bytes = usize::try_from(first.end - first.start).unwrap();
    let (left, right) = file[place..place + 2 * bytes].split_at_mut(bytes);
    left.swap_with_slice(right);
    repair(&mut file);
    verify_file(file.as_slice()).unwrap();
    let error = open_frame(&file, &index, 0).unwrap_err();
    assert_eq!(
        error.in_file("a.hrl").to_string(),
        "a.hrl, byte 128: frame 0 (blocks 4..5) failed authentication: it was altered, or comes from another \
         place or file"
    );
    verify_file_with_key(Cursor::new(&file), &key()).unwrap_err();
}

/// The same changes of the same disk written twice, as after a crash, differ in the file id alone.
#[test]
fn pieces_of_another_file_are_refused() {
    let file = small_file();
    let other = write(identity(64), FileId([6; 16]), &changes());
    let footer = Footer::parse(&file, file.len() as u64).unwrap();
    let foreign = Footer::parse(&other, other.len() as u64).unwrap();
    assert_eq!(footer.contents, foreign.contents);

    let index = open_index(&file, &footer, &key()).unwrap();
    for number in 0..3 {
        let error = open_frame(&other, &index, number).unwrap_err();
        assert!(matches!(error.problem, Problem::NotAuthentic(_)), "{error}");
    }
    let error = open_index(&other, &footer, &key()).unwrap_err();
    assert!(matches!(error.problem, Problem::NotAuthentic(_)), "{error}");

    let mut mixed = file;
    mixed.truncate(mixed.len() - 256);
    mixed.extend(&other[other.len() - 256..]);
    let error = verify_file(mixed.as_slice()).unwrap_err();
    assert!(matches!(error.problem, Problem::HeaderOfAnotherFile), "{error}");
}

#[test]
fn another_identity_in_the_header_does_not_open() {
    // Byte 36 is the part: the header stays valid and says that it is another part.
    let mut file = small_file();
    file[36] ^= 1;
    repair(&mut file);
    let verified = verify_file(file.as_slice()).unwrap();
    assert_eq!(verified.header.identity.part.0, 0);
    let error = read(&file, &key()).unwrap_err();
    assert!(matches!(error.problem, Problem::NotAuthentic(_)), "{error}");
}

/// The frame numbers of two files are the same, so their keys must not be: else nonces would repeat.
#[test]
fn the_same_data_is_encrypted_otherwise_in_another_file() {
    let (one, two) = (small_file(), write(identity(64), FileId([6; 16]), &changes()));
    let mut part_2 = identity(64);
    part_2.part.0 = 2;
    let three = write(part_2, FileId([5; 16]), &changes());
    // The first 4,096 bytes after the header are ciphertext without the tag.
    for other in [two, three] {
        let equal = one[128..4224].iter().zip(&other[128..4224]).filter(|(a, b)| a == b).count();
        assert!(equal < 100, "{equal} of 4096 bytes are equal; by chance it would be 16");
    }
}
