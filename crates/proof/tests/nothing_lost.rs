//! Roles are killed at random moments under load. Afterwards the newest point is the source, bit
//! for bit, and every older point still opens.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use lifeboat_proof::{LoopDisk, Random, Site, assert_same, scratch, wait_for};

const MIB: u64 = 1 << 20;
const KILLS: u32 = 24;

#[test]
fn killed_roles_lose_nothing() {
    let disks = [Arc::new(LoopDisk::new(96 * MIB)), Arc::new(LoopDisk::new(32 * MIB))];
    disks[0].write(0, 8000, 1);
    let site = Site::start(&[&disks[0], &disks[1]], "1s");
    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..2)
        .map(|number| {
            let (disk, stop, written) = (Arc::clone(&disks[number]), Arc::clone(&stop), Arc::clone(&written));
            thread::spawn(move || {
                let mut random = Random::new(number as u64 + 7);
                let blocks = disk.bytes() / 4096;
                while !stop.load(Ordering::Relaxed) {
                    let (first, len) = (random.below(blocks - 64), 1 + random.below(16));
                    disk.write(first, len, written.fetch_add(1, Ordering::Relaxed) + 100);
                    thread::sleep(Duration::from_millis(2));
                }
            })
        })
        .collect();

    let mut random = Random::new(20_261_123);
    for _ in 0..KILLS {
        thread::sleep(Duration::from_millis(200 + random.below(1500)));
        let role = ["agent", "process-server", "vault"][usize::try_from(random.below(3)).unwrap()];
        site.kill(role);
    }
    stop.store(true, Ordering::Relaxed);
    writers.into_iter().for_each(|writer| writer.join().unwrap());

    wait_for("all roles to be back", || {
        ["agent", "process-server", "vault"].iter().all(|role| site.role(role).is_some()).then_some(())
    });
    let point = site.await_point_taken("a point after the load");
    let out = tempfile::tempdir_in(scratch()).unwrap();
    let images = site.copy_out(&point, out.path());
    assert_same(&images[0], &disks[0].device);
    assert_same(&images[1], &disks[1].device);
    let report = site.json(["verify", "source"]);
    assert_eq!(report["report"]["good"], true, "{report}");
    assert!(written.load(Ordering::Relaxed) > 500, "the writers hardly wrote");
}
