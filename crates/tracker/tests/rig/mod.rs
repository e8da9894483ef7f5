//! Real loop devices and a directory of pins, removed when the test ends.
#![allow(dead_code, reason = "each test program uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use lifeboat_model::{BLOCK_BYTES, BlockSet, Extent};
use lifeboat_tracker::{DiskDevice, DiskTracker, TrackerSet};

pub const MIB: u64 = 1 << 20;
pub const BLOCK: u64 = BLOCK_BYTES as u64;

/// A loop device over a sparse file.
pub struct LoopDisk {
    pub path: PathBuf,
    pub file: PathBuf,
    _folder: tempfile::TempDir,
}

impl LoopDisk {
    pub fn new(bytes: u64) -> Self {
        Self::set_up(tempfile::tempdir().unwrap(), bytes, &[])
    }

    /// One that may have partitions.
    pub fn with_partitions(bytes: u64) -> Self {
        Self::set_up(tempfile::tempdir().unwrap(), bytes, &["--partscan"])
    }

    fn set_up(folder: tempfile::TempDir, bytes: u64, options: &[&str]) -> Self {
        let file = folder.path().join("disk.img");
        File::create(&file).unwrap().set_len(bytes).unwrap();
        let path = losetup(&[options, &["--find", "--show", "--direct-io=on"]].concat(), &file);
        Self { path, file, _folder: folder }
    }

    pub fn device(&self) -> DiskDevice {
        DiskDevice::inspect(&self.path).unwrap()
    }

    pub fn open(&self) -> Direct {
        Direct::open(&self.path)
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        clean_up("losetup", &["--detach".as_ref(), self.path.as_ref()]);
    }
}

fn losetup(options: &[&str], file: &Path) -> PathBuf {
    let output = Command::new("losetup").args(options).arg(file).output().unwrap();
    assert!(
        output.status.success(),
        "these tests need root and loop devices: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

pub fn run(program: &str, arguments: &[&std::ffi::OsStr]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?} failed: {status}");
}

/// As `run`, but a test that failed already says so itself.
fn clean_up(program: &str, arguments: &[&std::ffi::OsStr]) {
    let status = Command::new(program).args(arguments).status();
    if !std::thread::panicking() {
        assert!(status.unwrap().success(), "{program} {arguments:?} failed");
    }
}

/// A file system on a loop device, for disks whose writes can be held up by freezing it.
pub struct Stage {
    folder: tempfile::TempDir,
    _disk: LoopDisk,
}

impl Stage {
    pub fn new() -> Self {
        let disk = LoopDisk::new(256 * MIB);
        let folder = tempfile::tempdir().unwrap();
        run("mkfs.ext4", &["-q".as_ref(), disk.path.as_ref()]);
        run("mount", &[disk.path.as_ref(), folder.path().as_ref()]);
        Self { folder, _disk: disk }
    }

    /// A disk over a file of this file system; it must be dropped first.
    pub fn disk(&self, bytes: u64) -> LoopDisk {
        LoopDisk::set_up(tempfile::tempdir_in(self.folder.path()).unwrap(), bytes, &[])
    }

    pub fn freeze(&self) {
        run("fsfreeze", &["--freeze".as_ref(), self.folder.path().as_ref()]);
    }

    pub fn thaw(&self) {
        run("fsfreeze", &["--unfreeze".as_ref(), self.folder.path().as_ref()]);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        clean_up("umount", &[self.folder.path().as_ref()]);
    }
}

/// A device opened past the page cache.
pub struct Direct {
    file: File,
    /// Twice as long as needed, so that an aligned part can be used.
    buffer: Vec<u8>,
}

impl Direct {
    pub fn open(path: &Path) -> Self {
        let mut options = OpenOptions::new();
        let direct = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).unwrap();
        let file = options.read(true).write(true).custom_flags(direct).open(path).unwrap();
        Self { file, buffer: Vec::new() }
    }

    fn aligned(&mut self, bytes: usize) -> &mut [u8] {
        self.buffer.resize(bytes + BLOCK_BYTES, 0);
        let skip = self.buffer.as_ptr().align_offset(BLOCK_BYTES);
        &mut self.buffer[skip..skip + bytes]
    }

    /// Writes `blocks` blocks filled with `byte`.
    pub fn write(&mut self, first: u64, blocks: u64, byte: u8) {
        self.write_bytes(first * BLOCK, blocks * BLOCK, byte);
    }

    pub fn write_bytes(&mut self, offset: u64, bytes: u64, byte: u8) {
        let bytes = usize::try_from(bytes).unwrap();
        self.aligned(bytes).fill(byte);
        let skip = self.buffer.as_ptr().align_offset(BLOCK_BYTES);
        self.file.write_all_at(&self.buffer[skip..skip + bytes], offset).unwrap();
    }

    /// The block's content, as its first eight bytes.
    pub fn read_stamp(&mut self, block: u64) -> u64 {
        let skip = {
            self.aligned(BLOCK_BYTES);
            self.buffer.as_ptr().align_offset(BLOCK_BYTES)
        };
        self.file.read_exact_at(&mut self.buffer[skip..skip + BLOCK_BYTES], block * BLOCK).unwrap();
        u64::from_le_bytes(self.buffer[skip..skip + 8].try_into().unwrap())
    }

    pub fn write_stamp(&mut self, block: u64, stamp: u64) {
        let buffer = self.aligned(BLOCK_BYTES);
        for chunk in buffer.chunks_exact_mut(8) {
            chunk.copy_from_slice(&stamp.to_le_bytes());
        }
        let skip = self.buffer.as_ptr().align_offset(BLOCK_BYTES);
        self.file.write_all_at(&self.buffer[skip..skip + BLOCK_BYTES], block * BLOCK).unwrap();
    }
}

/// A directory of pins of its own.
pub struct Pins(pub PathBuf);

impl Pins {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(PathBuf::from(format!("/sys/fs/bpf/lifeboat-test-{}-{number}", std::process::id())))
    }

    pub fn open(&self) -> TrackerSet {
        match TrackerSet::open(&self.0) {
            Ok(set) => set,
            Err(error) => panic!("these tests need root and a kernel that can track: {error}"),
        }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if self.0.exists() {
            for instance in TrackerSet::list_in(&self.0).unwrap_or_default() {
                let folder = self.0.join(format!("disk-{}", instance.key));
                for pin in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                    let _ = std::fs::remove_file(pin.path());
                }
                let _ = std::fs::remove_dir(folder);
            }
            let _ = std::fs::remove_file(self.0.join("control"));
            let _ = std::fs::remove_dir(&self.0);
        }
    }
}

/// Takes everything as a set.
pub fn take(disk: &mut DiskTracker) -> BlockSet {
    let mut set = BlockSet::new(disk.identity().blocks);
    let taken = disk.take(|extent| set.insert(extent));
    assert_eq!(taken.blocks, set.len());
    set
}

pub fn extents(set: &BlockSet) -> Vec<(u64, u64)> {
    set.extents().map(|extent| (extent.first, extent.blocks)).collect()
}

pub fn extent(first: u64, blocks: u64) -> Extent {
    Extent { first, blocks }
}

/// Numbers that look random, the same in every run.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}
