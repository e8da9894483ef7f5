//! The text of a guest's serial console, which QEMU appends to a file.
//!
//! A guest can write without end, so the beginning of a long text is given back to the file system; the
//! places of what remains do not change by that.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

use crate::provider::{CONSOLE_BYTES_KEPT, ConsoleText};

/// At most so much in one answer.
const PART_BYTES: u64 = 1 << 20;
/// The unit in which the beginning is given back.
const GIVEN_BACK_BYTES: u64 = 1 << 20;

/// Reads from this byte on; a file that is not there yet is an empty one.
pub(crate) fn read(path: &Path, from: u64) -> io::Result<ConsoleText> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(ConsoleText { from, text: String::new(), next: from });
        }
        Err(error) => return Err(error),
    };
    let len = file.metadata()?.len();
    let from = from.max(kept_from(len)).min(len);
    let want = usize::try_from((len - from).min(PART_BYTES)).map_err(io::Error::other)?;
    let mut bytes = vec![0; want];
    file.read_exact_at(&mut bytes, from)?;
    // A character that is only half there belongs to the next part, unless half of it is all there is.
    if let Err(error) = std::str::from_utf8(&bytes)
        && error.error_len().is_none()
        && error.valid_up_to() > 0
    {
        bytes.truncate(error.valid_up_to());
    }
    let next = from + bytes.len() as u64;
    Ok(ConsoleText { from, text: String::from_utf8_lossy(&bytes).into_owned(), next })
}

/// Gives the beginning of a long text back.
pub(crate) fn trim(path: &Path) -> io::Result<()> {
    let file = match File::options().write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let gone = kept_from(file.metadata()?.len());
    if gone == 0 {
        return Ok(());
    }
    Ok(fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, gone)?)
}

fn kept_from(len: u64) -> u64 {
    len.saturating_sub(CONSOLE_BYTES_KEPT) / GIVEN_BACK_BYTES * GIVEN_BACK_BYTES
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn parts_of_a_text_never_split_a_character() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("console");
        std::fs::write(&path, &"a–b".as_bytes()[..2]).unwrap();
        let first = read(&path, 0).unwrap();
        assert_eq!((first.text.as_str(), first.next), ("a", 1));
        std::fs::write(&path, "a–b\u{0}").unwrap();
        assert_eq!(read(&path, first.next).unwrap().text, "–b\u{0}");
        std::fs::write(&path, b"\xff!").unwrap();
        assert_eq!(read(&path, 0).unwrap().text, "\u{fffd}!");
    }

    #[test]
    fn a_long_text_loses_its_beginning_and_keeps_its_places() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("console");
        let line = vec![b'x'; 1 << 20];
        let file = File::create(&path).unwrap();
        let mebibytes = (CONSOLE_BYTES_KEPT >> 20) + 4;
        for place in 0..mebibytes {
            file.write_all_at(&line, place << 20).unwrap();
        }
        file.write_all_at(b"end", mebibytes << 20).unwrap();
        let before = file.metadata().unwrap().blocks();
        trim(&path).unwrap();
        assert!(file.metadata().unwrap().blocks() <= before - 4 * 2048 + 64);
        let first = read(&path, 0).unwrap();
        assert_eq!((first.from, first.next), (4 << 20, 5 << 20));
        assert!(first.text.bytes().all(|byte| byte == b'x'));
        assert_eq!(read(&path, mebibytes << 20).unwrap().text, "end");
    }
}
