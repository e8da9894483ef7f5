//! The disk that is copied: a quarter zero, half files of `/usr`, a quarter random.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use lifeboat_proof::Random;

const STRIPE_BYTES: usize = 16 << 20;
pub const CHANGE_BYTES: usize = 64 << 10;

/// Writes an image of `bytes`, a multiple of 64 MiB, in stripes: zero, files, files, random.
pub fn make(path: &Path, bytes: u64) {
    let mut image = BufWriter::new(File::create(path).unwrap());
    let mut files = Files::new();
    let mut random = Random::new(4);
    let mut stripe = vec![0; STRIPE_BYTES];
    for number in 0..bytes / STRIPE_BYTES as u64 {
        match number % 4 {
            0 => stripe.fill(0),
            1 | 2 => files.fill(&mut stripe),
            _ => fill_random(&mut random, &mut stripe),
        }
        image.write_all(&stripe).unwrap();
    }
    image.into_inner().unwrap().sync_all().unwrap();
}

/// Overwrites 1 % of the 64 KiB blocks of a disk: half of each random, half text. Answers what was
/// written, one block after the other.
pub fn change(disk: &Path, bytes: u64, seed: u64) -> Vec<u8> {
    let device = File::options().write(true).open(disk).unwrap();
    let blocks = bytes / CHANGE_BYTES as u64;
    let mut random = Random::new(seed);
    let mut written = Vec::new();
    let mut places = std::collections::BTreeSet::new();
    while (places.len() as u64) < blocks.div_ceil(100) {
        places.insert(random.below(blocks));
    }
    for place in places {
        let mut block = vec![0; CHANGE_BYTES];
        let (noise, text) = block.split_at_mut(CHANGE_BYTES / 2);
        fill_random(&mut random, noise);
        for word in text.chunks_exact_mut(16) {
            write!(&mut *word, "{:016x}", random.next_number()).unwrap();
        }
        device.write_all_at(&block, place * CHANGE_BYTES as u64).unwrap();
        written.extend_from_slice(&block);
    }
    device.sync_all().unwrap();
    written
}

fn fill_random(random: &mut Random, bytes: &mut [u8]) {
    bytes.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.next_number().to_le_bytes()));
}

/// The files below `/usr`, larger directories first come as they are found, as one stream.
pub struct Files {
    left: Vec<PathBuf>,
    open: Option<File>,
}

impl Files {
    pub fn new() -> Self {
        Self { left: vec!["/usr".into()], open: None }
    }

    /// Fills `bytes` with what comes next; begins again at the end of all files.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        let mut filled = 0;
        while filled < bytes.len() {
            let Some(file) = &mut self.open else {
                self.open_next();
                continue;
            };
            match file.read(&mut bytes[filled..]) {
                Ok(0) | Err(_) => self.open = None,
                Ok(count) => filled += count,
            }
        }
    }

    fn open_next(&mut self) {
        let Some(path) = self.left.pop() else {
            self.left.push("/usr".into());
            return;
        };
        let Ok(kind) = fs::symlink_metadata(&path).map(|found| found.file_type()) else { return };
        if kind.is_file() {
            self.open = File::open(path).ok();
        } else if kind.is_dir() {
            let mut inside: Vec<_> =
                fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
            inside.sort_unstable();
            self.left.extend(inside);
        }
    }
}
