//! Real loop devices, real tracking, and an image made of what the sink was given.
#![allow(dead_code, reason = "each test program uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lifeboat_capture::{Capture, CaptureOptions, ChangeSink, SinkClosed};
use lifeboat_model::{BLOCK_BYTES, Digest, DiskNumber, Extent};
use lifeboat_tracker::{DiskDevice, TrackerSet};

pub const MIB: u64 = 1 << 20;

/// Loads of different tests must not disturb each other.
pub fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A loop device over a file.
pub struct LoopDisk {
    pub path: PathBuf,
    pub backing: PathBuf,
    _folder: tempfile::TempDir,
}

impl LoopDisk {
    /// Over a sparse file.
    pub fn new(bytes: u64) -> Self {
        Self::with(bytes, &[])
    }

    /// With more options to losetup.
    pub fn with(bytes: u64, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let backing = folder.path().join("disk.img");
        File::create(&backing).unwrap().set_len(bytes).unwrap();
        let output = Command::new("losetup")
            .args(["--find", "--show", "--direct-io=on"])
            .args(options)
            .arg(&backing)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "these tests need root and loop devices: {error}");
        let path = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
        Self { path, backing, _folder: folder }
    }

    /// Over a file whose blocks are all there, so that writes take the same time everywhere.
    pub fn filled(bytes: u64) -> Self {
        let disk = Self::new(bytes);
        let file = disk.open();
        let mut zeroes = Aligned::new(1 << 20);
        for offset in (0..bytes).step_by(1 << 20) {
            file.write_all_at(zeroes.bytes(), offset).unwrap();
        }
        disk
    }

    pub fn open(&self) -> File {
        direct(&self.path)
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}

pub fn run(program: &str, arguments: &[&OsStr]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?} failed: {status}");
}

pub fn direct(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path).unwrap()
}

/// Memory that direct writes accept.
pub struct Aligned(Vec<u8>, usize);

impl Aligned {
    pub fn new(len: usize) -> Self {
        Self(vec![0; len + 4096], len)
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        let skip = self.0.as_ptr().align_offset(4096);
        &mut self.0[skip..skip + self.1]
    }

    /// Eight bytes, again and again.
    pub fn stamp(&mut self, stamp: u64) -> &[u8] {
        for word in self.bytes().chunks_exact_mut(8) {
            word.copy_from_slice(&stamp.to_le_bytes());
        }
        self.bytes()
    }
}

/// A tracker's pins and a capture over loop disks, removed at the end.
pub struct Rig {
    pub capture: Option<Capture>,
    pub disks: Vec<LoopDisk>,
    pins: PathBuf,
}

impl Rig {
    pub fn new(disks: Vec<LoopDisk>, options: CaptureOptions) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let pins = PathBuf::from(format!("/sys/fs/bpf/lifeboat-capture-{}-{number}", std::process::id()));
        let set = TrackerSet::open(&pins).unwrap();
        let mut capture = Capture::new(set, options).unwrap();
        for (number, disk) in disks.iter().enumerate() {
            let device = DiskDevice::inspect(&disk.path).unwrap();
            let (tracker, _) = capture.trackers().attach(&device.key, &device.identity).unwrap();
            capture.add_disk(DiskNumber(u16::try_from(number).unwrap()), &disk.path, tracker).unwrap();
        }
        Self { capture: Some(capture), disks, pins }
    }

    /// As a kernel does that skips the programs. The kernel detaches them when it comes to it, so
    /// the first block of each disk is written until that is not reported any more.
    pub fn stop_reporting_completions(&mut self) {
        for disk in &self.disks {
            let key = DiskDevice::inspect(&disk.path).unwrap().key;
            for copy in 0..3 {
                let link = format!("disk-{key}/link_on_complete_{copy}");
                std::fs::remove_file(self.pins.join(link)).unwrap();
            }
        }
        for number in 0..self.disks.len() {
            let disk = DiskNumber(u16::try_from(number).unwrap());
            let file = self.disks[number].open();
            loop {
                let before = self.capture().tracker(disk).unwrap().stats();
                file.write_all_at(Aligned::new(BLOCK_BYTES).stamp(1), 0).unwrap();
                let after = self.capture().tracker(disk).unwrap().stats();
                if after.issues > before.issues && after.completions == before.completions {
                    break;
                }
            }
        }
    }

    pub fn capture(&mut self) -> &mut Capture {
        self.capture.as_mut().unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let Some(mut capture) = self.capture.take() else { return };
        for (number, _) in capture.disks() {
            if let Some(tracker) = capture.remove_disk(number) {
                let key = tracker.key().clone();
                drop(tracker);
                let _ = capture.trackers().detach(&key);
            }
        }
        drop(capture);
        let _ = std::fs::remove_file(self.pins.join("control"));
        let _ = std::fs::remove_dir(&self.pins);
    }
}

/// What a receiver has of the disks, in memory.
#[derive(Clone, Default)]
pub struct Images {
    pub disks: Vec<Vec<u8>>,
    pub data_blocks: u64,
    pub messages: u64,
    /// Takes no more from this message on.
    pub closes_after: Option<u64>,
}

impl Images {
    pub fn new(bytes: &[u64]) -> Self {
        let image = |bytes: &u64| vec![0; usize::try_from(bytes.next_multiple_of(4096)).unwrap()];
        Self { disks: bytes.iter().map(image).collect(), ..Self::default() }
    }

    pub fn block(&self, disk: usize, block: u64) -> &[u8] {
        let at = usize::try_from(block).unwrap() * BLOCK_BYTES;
        &self.disks[disk][at..at + BLOCK_BYTES]
    }

    fn target(&mut self, disk: DiskNumber, extent: Extent) -> Result<&mut [u8], SinkClosed> {
        self.messages += 1;
        if self.closes_after.is_some_and(|last| self.messages > last) {
            return Err(SinkClosed);
        }
        let at = usize::try_from(extent.offset_bytes()).unwrap();
        Ok(&mut self.disks[usize::from(disk.0)][at..at + usize::try_from(extent.len_bytes()).unwrap()])
    }
}

impl ChangeSink for Images {
    fn data(
        &mut self,
        disk: DiskNumber,
        extent: Extent,
        digest: Digest,
        bytes: Bytes,
    ) -> Result<(), SinkClosed> {
        assert!(extent.first / 64 == (extent.end() - 1) / 64, "{extent} lies across frames");
        assert_eq!(digest, Digest::of(&bytes));
        self.target(disk, extent)?.copy_from_slice(&bytes);
        self.data_blocks += extent.blocks;
        Ok(())
    }

    fn zeroes(&mut self, disk: DiskNumber, extent: Extent) -> Result<(), SinkClosed> {
        self.target(disk, extent)?.fill(0);
        Ok(())
    }
}
