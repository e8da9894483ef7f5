//! Real block devices over files, and comparing them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::{run, scratch};

/// A loop device over a sparse file.
pub struct LoopDisk {
    pub device: PathBuf,
    pub image: PathBuf,
    _dir: Option<TempDir>,
}

impl LoopDisk {
    pub fn new(bytes: u64) -> Self {
        let dir = tempfile::Builder::new().prefix("lifeboat-disk-").tempdir_in(scratch()).unwrap();
        let image = dir.path().join("disk.img");
        File::create(&image).unwrap().set_len(bytes).unwrap();
        let device = run(
            "losetup",
            ["--find".as_ref(), "--show".as_ref(), "--direct-io=on".as_ref(), image.as_os_str()],
        );
        Self { device: device.into(), image, _dir: Some(dir) }
    }

    /// A loop device over a file that is there, read and written through the page cache: what reads
    /// the disk and what reads the file then find the same in memory.
    pub fn cached(image: &Path) -> Self {
        let device = run("losetup", ["--find".as_ref(), "--show".as_ref(), image.as_os_str()]);
        Self { device: device.into(), image: image.to_owned(), _dir: None }
    }

    /// Overwrites `blocks` blocks from block `first` with content made from `seed`.
    pub fn write(&self, first: u64, blocks: u64, seed: u64) {
        use std::os::unix::fs::FileExt;
        let device = File::options().write(true).open(&self.device).unwrap();
        for block in first..first + blocks {
            device.write_all_at(&content(block, seed), block * 4096).unwrap();
        }
        device.sync_all().unwrap();
    }

    pub fn bytes(&self) -> u64 {
        self.image.metadata().unwrap().len()
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}

/// One block that does not compress and differs by place and seed.
pub fn content(block: u64, seed: u64) -> [u8; 4096] {
    let mut bytes = [0; 4096];
    let mut state = block.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed.wrapping_mul(0xD1B5_4A32_D192_ED03) | 1;
    for word in bytes.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// Fails with the blocks in which two files or devices differ.
pub fn assert_same(left: &Path, right: &Path) {
    let (mut one, mut other) = (File::open(left).unwrap(), File::open(right).unwrap());
    let (mut a, mut b) = ([0; 4096], [0; 4096]);
    let mut different = Vec::new();
    for block in 0_u64.. {
        let count = read_full(&mut one, &mut a);
        let names = (left.display(), right.display());
        assert_eq!(count, read_full(&mut other, &mut b), "{} and {} differ in length", names.0, names.1);
        if count == 0 {
            assert!(different.is_empty(), "{} and {} differ in blocks {different:?}", names.0, names.1);
            return;
        }
        if a[..count] != b[..count] {
            different.push(block);
        }
    }
}

fn read_full(file: &mut File, into: &mut [u8]) -> usize {
    let mut filled = 0;
    while filled < into.len() {
        match file.read(&mut into[filled..]).unwrap() {
            0 => break,
            count => filled += count,
        }
    }
    filled
}
