//! Roles are killed at random moments under load, dozens of times. Afterwards the newest point is the
//! source, bit for bit, and older points are what the source was when they were taken.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lifeboat_proof::{LoopDisk, Random, Site, assert_same, scratch, wait_for};

const MIB: u64 = 1 << 20;
const ROLES: [&str; 3] = ["agent", "process-server", "vault"];
/// Kills that hit, of each role.
const KILLS: u32 = 12;
/// After so many kills the writers stand still for a point whose exact content is known.
const KEEP_EVERY: u32 = 9;

/// Writers on all disks, which can be made to stand still.
struct Load {
    stop: Arc<AtomicBool>,
    /// Held by whoever wants them to stand still; a writer holds it during a write.
    gates: Vec<Arc<Mutex<()>>>,
    writers: Vec<JoinHandle<()>>,
    written: Arc<AtomicU64>,
}

impl Load {
    fn start(disks: &[Arc<LoopDisk>]) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let gates: Vec<_> = disks.iter().map(|_| Arc::new(Mutex::new(()))).collect();
        let writer = |(number, disk): (usize, &Arc<LoopDisk>)| {
            let (disk, stop, written) = (Arc::clone(disk), Arc::clone(&stop), Arc::clone(&written));
            let gate = Arc::clone(&gates[number]);
            thread::spawn(move || {
                let mut random = Random::new(number as u64 + 7);
                let blocks = disk.bytes() / 4096;
                while !stop.load(Ordering::Relaxed) {
                    let (first, len) = (random.below(blocks - 64), 1 + random.below(16));
                    let open = gate.lock().unwrap_or_else(PoisonError::into_inner);
                    disk.write(first, len, written.fetch_add(1, Ordering::Relaxed) + 100);
                    drop(open);
                    thread::sleep(Duration::from_millis(2));
                }
            })
        };
        let writers = disks.iter().enumerate().map(writer).collect();
        Self { stop, gates, writers, written }
    }

    /// Nobody writes while `work` runs.
    fn standing_still<T>(&self, work: impl FnOnce() -> T) -> T {
        let _closed: Vec<_> =
            self.gates.iter().map(|gate| gate.lock().unwrap_or_else(PoisonError::into_inner)).collect();
        work()
    }

    /// Ends it; answers how many writes there were.
    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.writers.into_iter().for_each(|writer| writer.join().unwrap());
        self.written.load(Ordering::Relaxed)
    }
}

/// A point, and what was on the disks when it was taken.
struct Kept {
    point: String,
    images: Vec<PathBuf>,
}

fn keep(site: &Site, load: &Load, disks: &[Arc<LoopDisk>], into: &Path) -> Kept {
    load.standing_still(|| {
        let point = site.await_point_taken("a point between kills");
        let images = disks.iter().enumerate().map(|(number, disk)| {
            let image = into.join(format!("{point}-{number}"));
            fs::copy(&disk.image, &image).unwrap();
            image
        });
        Kept { images: images.collect(), point }
    })
}

#[test]
fn killed_roles_lose_nothing() {
    let disks = [Arc::new(LoopDisk::new(96 * MIB)), Arc::new(LoopDisk::new(32 * MIB))];
    disks[0].write(0, 8000, 1);
    let site = Site::start(&[&disks[0], &disks[1]], "1s");
    let out = tempfile::tempdir_in(scratch()).unwrap();
    let load = Load::start(&disks);

    let mut random = Random::new(20_261_123);
    let (mut hits, mut kept) = ([0; 3], Vec::new());
    for kill in 1.. {
        thread::sleep(Duration::from_millis(200 + random.below(1500)));
        let wanting: Vec<usize> = (0..3).filter(|role| hits[*role] < KILLS).collect();
        if wanting.is_empty() {
            break;
        }
        let role = wanting[usize::try_from(random.below(wanting.len() as u64)).unwrap()];
        // One that is just being started again is hit another time.
        hits[role] += u32::from(site.kill(ROLES[role]));
        if kill % KEEP_EVERY == 0 {
            kept.push(keep(&site, &load, &disks, out.path()));
        }
    }
    let written = load.end();
    assert!(written > 50, "the writers hardly wrote: {written}");
    assert!(kept.len() >= 3, "{} points were kept", kept.len());

    wait_for("all roles to be back", || ROLES.iter().all(|role| site.role(role).is_some()).then_some(()));
    let point = site.await_point_taken("a point after the load");
    let images = site.copy_out(&point, out.path());
    assert_same(&images[0], &disks[0].device);
    assert_same(&images[1], &disks[1].device);
    for Kept { point, images: expected } in &kept {
        let images = site.copy_out(point, out.path());
        for (image, expected) in images.iter().zip(expected) {
            assert_same(image, expected);
        }
    }
    let report = site.json(["verify", "source"]);
    assert_eq!(report["report"]["good"], true, "{report}");
}
