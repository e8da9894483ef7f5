//! Disks on loop devices, and what writes to them.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rand::{Rng, SeedableRng};

/// `O_DIRECT` on x86-64 and arm64 alike would differ; the tests run where the agent does.
const O_DIRECT: i32 = rustix::fs::OFlags::DIRECT.bits() as i32;

/// A loop device over a file.
pub struct LoopDisk {
    pub path: String,
    pub file: PathBuf,
}

/// 4 KiB where direct writes want them.
#[repr(align(4096))]
pub struct Block(pub [u8; 4096]);

impl Block {
    /// A block that begins with a number and is filled from it.
    pub fn of(number: u64) -> Self {
        let mut block = Self([0; 4096]);
        for (index, word) in block.0.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *word = (number.wrapping_mul(index as u64 + 1)).to_le_bytes();
        }
        block
    }
}

impl LoopDisk {
    pub fn new(file: &Path, mib: u64) -> Self {
        File::create(file).unwrap().set_len(mib << 20).unwrap();
        let made =
            Command::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(file).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self { path: String::from_utf8(made.stdout).unwrap().trim().to_owned(), file: file.to_owned() }
    }

    pub fn blocks(&self) -> u64 {
        self.file.metadata().unwrap().len() / 4096
    }

    pub fn open(&self) -> File {
        OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(&self.path).unwrap()
    }

    pub fn write(&self, block: u64, number: u64) {
        self.open().write_all_at(&Block::of(number).0, block * 4096).unwrap();
    }

    /// Every `step`th block gets content.
    pub fn fill(&self, step: usize) {
        let disk = self.open();
        for block in (0..self.blocks()).step_by(step) {
            disk.write_all_at(&Block::of(block + 1_000_000).0, block * 4096).unwrap();
        }
    }

    pub fn grow(&self, mib: u64) {
        OpenOptions::new().write(true).open(&self.file).unwrap().set_len(mib << 20).unwrap();
        assert!(Command::new("losetup").arg("--set-capacity").arg(&self.path).status().unwrap().success());
    }

    /// The file ends there; the device does not know yet.
    pub fn cut_file(&self, mib: u64) {
        OpenOptions::new().write(true).open(&self.file).unwrap().set_len(mib << 20).unwrap();
    }

    /// The device is as long as the file.
    pub fn set_capacity(&self) {
        assert!(Command::new("losetup").arg("--set-capacity").arg(&self.path).status().unwrap().success());
    }

    /// The kernel detaches the device when nobody has it open any more.
    pub fn detach(&self) {
        assert!(Command::new("losetup").arg("--detach").arg(&self.path).status().unwrap().success());
    }

    /// Attaches the file again, perhaps as another device.
    pub fn attach(&mut self, options: &[&str]) {
        let made = Command::new("losetup")
            .args(["--find", "--show", "--direct-io=on"])
            .args(options)
            .arg(&self.file)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        self.path = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    }

    pub fn is_attached(&self) -> bool {
        let list = Command::new("losetup").arg("--associated").arg(&self.file).output().unwrap();
        !list.stdout.is_empty()
    }

    pub fn content(&self) -> Vec<u8> {
        File::open(&self.path).unwrap().sync_all().unwrap();
        std::fs::read(&self.file).unwrap()
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}

/// Writes one block after the other, each only when the one before is complete. So a state is a
/// prefix of the writes, or it could not have been there after a power cut.
pub struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    /// Which block the write of each number went to; number 1 is the first.
    pub log: Arc<Mutex<Vec<u64>>>,
}

impl Writer {
    pub fn start(disk: &LoopDisk, blocks: u64, pause: std::time::Duration) -> Self {
        let (file, stop, log) =
            (disk.open(), Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stops, logs) = (Arc::clone(&stop), Arc::clone(&log));
        let thread = std::thread::spawn(move || {
            let mut random = rand::rngs::StdRng::seed_from_u64(5);
            while !stops.load(Ordering::Relaxed) {
                let block = random.random_range(0..blocks);
                let number = {
                    let mut log: std::sync::MutexGuard<'_, Vec<u64>> = logs.lock().unwrap();
                    log.push(block);
                    log.len() as u64
                };
                file.write_all_at(&Block::of(number).0, block * 4096).unwrap();
                std::thread::sleep(pause);
            }
        });
        Self { stop, thread, log }
    }

    /// Ends it; gives how many writes there were.
    pub fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.log.lock().unwrap().len() as u64
    }
}

/// Checks that an image is an exact prefix of the writes, and gives its length.
pub fn prefix_of(image: &[u8], log: &[u64]) -> Result<u64, String> {
    let number_at = |block: u64| {
        let at = usize::try_from(block).unwrap() * 4096;
        u64::from_le_bytes(image[at..at + 8].try_into().unwrap())
    };
    let blocks = image.len() as u64 / 4096;
    let newest = (0..blocks).map(number_at).max().unwrap_or(0);
    let mut expected = vec![0; image.len() / 4096];
    for (index, block) in log.iter().take(usize::try_from(newest).unwrap()).enumerate() {
        expected[usize::try_from(*block).unwrap()] = index as u64 + 1;
    }
    for block in 0..blocks {
        let at = usize::try_from(block).unwrap();
        if number_at(block) != expected[at] || image[at * 4096..][..4096] != Block::of(expected[at]).0 {
            return Err(format!(
                "block {block} has write {} and not {} of {newest}",
                number_at(block),
                expected[at]
            ));
        }
    }
    Ok(newest)
}
