//! The roles on separate machines, and the network between them cut and slowed under load.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lifeboat_proof::{Cable, LoopDisk, Random, SeparateMachines, assert_same, run, scratch, wait_for};

const MIB: u64 = 1 << 20;

#[test]
fn a_network_that_is_cut_and_slowed_loses_nothing() {
    let disk = Arc::new(LoopDisk::new(64 * MIB));
    disk.write(0, 4000, 1);
    let site = SeparateMachines::start(&[&disk], &["--interval", "1s"]);
    let points = || {
        let output = site.lifeboat(["point", "list", "source"]);
        let points: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        points.as_array().unwrap().len()
    };
    wait_for("the first point", || (points() > 0).then_some(()));

    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (disk, stop) = (Arc::clone(&disk), Arc::clone(&stop));
        thread::spawn(move || {
            let mut random = Random::new(5);
            while !stop.load(Ordering::Relaxed) {
                disk.write(random.below(16_000), 1 + random.below(8), random.next_number());
                thread::sleep(Duration::from_millis(3));
            }
        })
    };
    for cable in [Cable::Agent, Cable::Vault] {
        site.cut(cable);
        thread::sleep(Duration::from_secs(6));
        site.mend(cable);
        let before = points();
        wait_for("a point after the cable was mended", || (points() > before).then_some(()));
        site.slow(cable, "4mbit");
        thread::sleep(Duration::from_secs(4));
        site.hasten(cable);
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();

    let output = site.lifeboat(["point", "take", "source", "--wait"]);
    let request: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let point = request["point"].as_str().unwrap_or_else(|| panic!("{request}"));
    let output = site.lifeboat(["volume", "open", "source", "--point", point, "--read-only"]);
    let opened: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let out = tempfile::tempdir_in(scratch()).unwrap();
    let image = out.path().join("image");
    run("nbdcopy", [opened["disks"][0]["nbd_uri"].as_str().unwrap(), image.to_str().unwrap()]);
    assert_same(&image, &disk.device);
}
