//! What is written to a volume is there as promised: now, after its server died, after the machine did.
#![allow(clippy::unwrap_used)]

mod fixture;

use std::path::Path;

use bytes::Bytes;
use fixture::{Site, grown, joined};
use lifeboat_nbd::{Export, ExportError, ZeroMode};
use lifeboat_volume::{BootId, PointDisk, VolumeDisk};
use proptest::prelude::*;
use tokio::runtime::Runtime;

const BOOTS: [BootId; 2] = [BootId::new([1; 16]), BootId::new([2; 16])];
const DISK_BYTES: u64 = 300 * 4096 - 700;

#[derive(Clone, Debug)]
enum Step {
    Write {
        offset: u64,
        len: u64,
        seed: u8,
        fua: bool,
    },
    Zero {
        offset: u64,
        len: u64,
        no_hole: bool,
        fua: bool,
    },
    Trim {
        offset: u64,
        len: u64,
    },
    Flush,
    /// Another process serves the volume.
    Restart,
    /// The machine went down; what was not flushed may be lost.
    PowerLoss,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || {
        let length = prop_oneof![1u64..600, 1u64..20_000, Just(4096u64), Just(40_960u64)];
        let start = prop_oneof![0u64..DISK_BYTES, (0u64..299).prop_map(|block| block * 4096)];
        (start, length).prop_map(|(offset, len)| (offset, len.min(DISK_BYTES - offset)))
    };
    prop_oneof![
        8 => (range(), 1u8.., prop::bool::weighted(0.1))
            .prop_map(|((offset, len), seed, fua)| Step::Write { offset, len, seed, fua }),
        3 => (range(), any::<bool>(), prop::bool::weighted(0.1))
            .prop_map(|((offset, len), no_hole, fua)| Step::Zero { offset, len, no_hole, fua }),
        2 => range().prop_map(|(offset, len)| Step::Trim { offset, len }),
        2 => Just(Step::Flush),
        1 => Just(Step::Restart),
        1 => Just(Step::PowerLoss),
    ]
}

/// The image, and for each byte what it may be after a power loss.
struct Model {
    now: Vec<u8>,
    /// What each block was at the last flush and became since then.
    versions: Vec<Vec<Vec<u8>>>,
}

impl Model {
    fn new(image: &[u8]) -> Self {
        let versions = image.chunks(4096).map(|block| vec![block.to_vec()]).collect();
        Self { now: image.to_vec(), versions }
    }

    fn set(&mut self, offset: u64, len: u64, value: impl Fn(usize) -> u8) {
        let range = usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
        for at in range.clone() {
            self.now[at] = value(at);
        }
        for block in range.start / 4096..range.end.div_ceil(4096) {
            let end = (block * 4096 + 4096).min(self.now.len());
            self.versions[block].push(self.now[block * 4096..end].to_vec());
        }
    }

    fn flush(&mut self) {
        for (block, versions) in self.versions.iter_mut().enumerate() {
            let end = (block * 4096 + 4096).min(self.now.len());
            *versions = vec![self.now[block * 4096..end].to_vec()];
        }
    }

    /// After a power loss each block is one of its versions since the last flush.
    fn adopt(&mut self, found: &[u8]) -> Result<(), TestCaseError> {
        for (block, (versions, found)) in self.versions.iter().zip(found.chunks(4096)).enumerate() {
            prop_assert!(
                versions.iter().any(|version| version == found),
                "block {} is none of the {} that it was since the last flush",
                block,
                versions.len()
            );
        }
        *self = Self::new(found);
        Ok(())
    }
}

fn open(point: &PointDisk, site: &Site, directory: &Path, boot: BootId) -> VolumeDisk {
    VolumeDisk::writable(point.clone(), "a volume".into(), directory, site.identity(), boot).unwrap()
}

async fn read_all(disk: &VolumeDisk) -> Vec<u8> {
    joined(disk.read(0, u32::try_from(disk.size_bytes()).unwrap()).await.unwrap())
}

fn byte(seed: u8) -> impl Fn(usize) -> u8 {
    move |at| seed ^ (at % 251).to_le_bytes()[0]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_volume_is_a_disk(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = Runtime::new().unwrap();
        let site = grown(DISK_BYTES, 2);
        let directory = tempfile::tempdir().unwrap();
        runtime.block_on(async {
            let point = site.open(8 << 20, true).await;
            let mut boot = 0;
            let mut disk = open(&point, &site, directory.path(), BOOTS[boot]);
            let mut model = Model::new(&site.image);
            for step in &steps {
                match *step {
                    Step::Write { offset, len, seed, fua } => {
                        let value = byte(seed);
                        let range = usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
                        let data: Vec<u8> = range.map(&value).collect();
                        disk.write(offset, Bytes::from(data), fua).await.unwrap();
                        model.set(offset, len, value);
                        if fua { model.flush() }
                    }
                    Step::Zero { offset, len, no_hole, fua } => {
                        disk.write_zeroes(offset, len, ZeroMode { no_hole, fua, fast: false }).await.unwrap();
                        model.set(offset, len, |_| 0);
                        if fua { model.flush() }
                    }
                    Step::Trim { offset, len } => {
                        disk.trim(offset, len, false).await.unwrap();
                        // Whole blocks become zeroes, parts of blocks stay.
                        let (first, end) = (offset.next_multiple_of(4096), (offset + len) / 4096 * 4096);
                        if first < end { model.set(first, end - first, |_| 0) }
                    }
                    Step::Flush => {
                        disk.flush().await.unwrap();
                        model.flush();
                    }
                    Step::Restart => {
                        drop(disk);
                        disk = open(&point, &site, directory.path(), BOOTS[boot]);
                    }
                    Step::PowerLoss => {
                        drop(disk);
                        boot = 1 - boot;
                        disk = open(&point, &site, directory.path(), BOOTS[boot]);
                        model.adopt(&read_all(&disk).await)?;
                    }
                }
                prop_assert!(read_all(&disk).await == model.now, "after {:?}", step);
                check_status(&disk, &model.now).await?;
            }
            Ok(())
        })?;
    }
}

async fn check_status(disk: &VolumeDisk, image: &[u8]) -> Result<(), TestCaseError> {
    let runs = disk.block_status(100, DISK_BYTES - 100, usize::MAX).await.unwrap();
    prop_assert_eq!(runs.iter().map(|run| run.len).sum::<u64>(), DISK_BYTES - 100);
    let mut at = 100;
    for run in runs {
        let end = at + usize::try_from(run.len).unwrap();
        prop_assert!(
            !run.zero || image[at..end].iter().all(|byte| *byte == 0),
            "{}..{} is not zero",
            at,
            end
        );
        at = end;
    }
    Ok(())
}

#[test]
fn a_read_only_volume_takes_no_writes() {
    let runtime = Runtime::new().unwrap();
    let site = grown(1 << 20, 1);
    runtime.block_on(async {
        let disk = VolumeDisk::read_only(site.open(1 << 20, true).await, String::new());
        let refused = disk.write(0, Bytes::from_static(b"x"), false).await.unwrap_err();
        assert!(matches!(refused, ExportError::NotPermitted(_)));
        assert!(disk.read_only());
    });
}

/// On a file system of 2 MiB, so that it really is full.
#[test]
fn a_full_disk_is_told_and_loses_nothing() {
    let mount = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
        .arg(mount.path())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("not tried: mounting needs root");
        return;
    }
    let outcome = std::panic::catch_unwind(|| fill(mount.path()));
    assert!(std::process::Command::new("umount").arg(mount.path()).status().unwrap().success());
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn fill(mount: &Path) {
    let runtime = Runtime::new().unwrap();
    let site = grown(8 << 20, 1);
    runtime.block_on(async {
        let point = site.open(8 << 20, true).await;
        let disk = open(&point, &site, &mount.join("overlay"), BOOTS[0]);
        let mut image = site.image.clone();
        let mut full = 0;
        for at in (0..8 << 20).step_by(65536) {
            let data = vec![byte(1)(at); 65536];
            match disk.write(at as u64, Bytes::from(data.clone()), false).await {
                Ok(()) => image[at..at + 65536].copy_from_slice(&data),
                Err(ExportError::NoSpace(_)) => full += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(full > 50, "most of it did not fit");
        disk.flush().await.unwrap();
        // A refused write may be there in part, block by block, but nothing else has changed.
        let found = read_all(&disk).await;
        for (block, (found, expected)) in found.chunks(4096).zip(image.chunks(4096)).enumerate() {
            let refused = vec![byte(1)(block * 4096 / 65536 * 65536); 4096];
            assert!(found == expected || found == refused, "block {block}");
        }
        drop(disk);
        let disk = open(&point, &site, &mount.join("overlay"), BOOTS[1]);
        assert!(read_all(&disk).await == found, "and it was durable");
        disk.trim(0, 8 << 20, false).await.unwrap();
        disk.write(4 << 20, Bytes::from(vec![5; 65536]), true).await.unwrap();
    });
}
