//! Files of every version ever released, as they were written then.
//!
//! `LIFEBOAT_WRITE_GOLDEN=1 cargo test -p lifeboat-hrl golden` writes missing files. Those of a released
//! version are never written again.

use std::fs;
use std::path::PathBuf;

use lifeboat_hrl::{FileId, verify_file};

use crate::fixture::{Change, Disk, blocks, extent, identity, key, model, read, write};

const DISK_BLOCKS: u64 = 64;

struct Golden {
    name: &'static str,
    changes: Vec<Change>,
    /// zstd may one day compress otherwise; what it does not touch stays the same bit for bit.
    exact: bool,
}

fn golden() -> Vec<Golden> {
    vec![
        Golden { name: "v1-empty.hrl", changes: vec![], exact: true },
        Golden {
            name: "v1-raw.hrl",
            changes: vec![
                Change::Zeroes(extent(0, 10)),
                Change::Data(extent(4, 2), blocks(1, 2, true)),
                Change::Data(extent(63, 1), blocks(2, 1, true)),
                Change::Zeroes(extent(5, 1)),
                Change::Zeroes(extent(20, 40)),
            ],
            exact: true,
        },
        Golden {
            name: "v1-compressed.hrl",
            changes: vec![
                Change::Data(extent(0, 64), blocks(3, 64, false)),
                Change::Data(extent(30, 1), blocks(4, 1, true)),
                Change::Data(extent(31, 2), blocks(5, 2, false)),
                Change::Zeroes(extent(32, 3)),
            ],
            exact: false,
        },
    ]
}

fn stored(golden: &Golden) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(golden.name);
    if std::env::var_os("LIFEBOAT_WRITE_GOLDEN").is_some() && !path.exists() {
        fs::write(&path, written_now(golden)).unwrap();
    }
    fs::read(&path).unwrap()
}

fn written_now(golden: &Golden) -> Vec<u8> {
    write(identity(DISK_BLOCKS), FileId(*b"a golden file id"), &golden.changes)
}

fn expected(golden: &Golden) -> Disk {
    model(DISK_BLOCKS, &golden.changes)
}

#[test]
fn golden_files_are_still_read() {
    for golden in golden() {
        let file = stored(&golden);
        let verified = verify_file(file.as_slice()).unwrap();
        verified.header.expect(&identity(DISK_BLOCKS)).unwrap();
        assert!(read(&file, &key()).unwrap() == expected(&golden), "{}", golden.name);
    }
}

#[test]
fn golden_files_are_still_written() {
    for golden in golden() {
        let file = written_now(&golden);
        if golden.exact {
            assert!(file == stored(&golden), "{} would be written otherwise now", golden.name);
        }
        assert!(read(&file, &key()).unwrap() == expected(&golden), "{}", golden.name);
    }
}
