//! A server's disks are protected, and points of them are opened as disks.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use lifeboat_proof::{LoopDisk, Site, assert_same, run, scratch, wait_for};

const MIB: u64 = 1 << 20;

#[test]
fn points_of_two_disks_are_copied_opened_written_and_exported() {
    let (one, two) = (LoopDisk::new(64 * MIB), LoopDisk::new(40 * MIB + 512));
    one.write(100, 3000, 1);
    two.write(0, 2000, 2);
    let mut site = Site::start(&[&one, &two], "2s");
    site.await_first_point();

    let first = site.take_point("crash");
    let before = tempfile::tempdir().unwrap();
    run("cp", [one.device.to_str().unwrap(), before.path().join("one").to_str().unwrap()]);
    one.write(50, 200, 3);
    two.write(7000, 500, 4);
    let second = site.take_point("crash");

    let out = tempfile::tempdir_in(scratch()).unwrap();
    let images = site.copy_out(&second, out.path());
    assert_same(&images[0], &one.device);
    assert_same(&images[1], &two.device);
    let images = site.copy_out(&first, out.path());
    assert_same(&images[0], &before.path().join("one"));

    written_volumes_keep_what_was_written(&mut site, &second, &one);
    for (format, word) in [("raw", "raw"), ("qcow2", "qcow2"), ("vhd", "vpc"), ("vmdk", "vmdk")] {
        let file = out.path().join(format!("export.{format}"));
        let words = ["volume", "export", "source", "--point", &second, "--disk", "0", "--format", format];
        site.json(words.iter().map(std::ffi::OsString::from).chain([file.clone().into()]));
        let (image, device) = (file.to_str().unwrap(), one.device.to_str().unwrap());
        run("qemu-img", ["compare", "-f", word, "-F", "raw", image, device]);
    }
    let report = site.json(["verify", "source"]);
    assert_eq!(report["report"]["good"], true, "{report}");
    let report = site.json(["verify", "source", "--against-source"]);
    assert_eq!(report["report"]["different_blocks"], 0, "{report}");
    assert!(report["report"]["equal_blocks"].as_u64().unwrap() > 10_000, "{report}");
}

/// Writes to a volume survive a restart of the whole site and change neither point nor source.
fn written_volumes_keep_what_was_written(site: &mut Site, point: &str, source: &LoopDisk) {
    let opened = site.json(["volume", "open", "source", "--point", point]);
    let uri = opened["disks"][0]["nbd_uri"].as_str().unwrap().to_owned();
    run("qemu-io", ["-f", "raw", "-c", "write -P 0xab 1M 64k", "-c", "flush", &uri]);
    site.stop();
    site.resume();
    let volumes = wait_for("the volume to be served again", || {
        let volumes = site.json(["volume", "list"]);
        volumes[0]["trouble"].is_null().then_some(volumes)
    });
    assert_eq!(volumes[0]["id"], opened["volume"]);
    let uri = volumes[0]["disks"][0]["nbd_uri"].as_str().unwrap();
    run("qemu-io", ["-r", "-f", "raw", "-c", "read -P 0xab 1M 64k", uri]);
    let out = tempfile::tempdir_in(scratch()).unwrap();
    let images = site.copy_out(point, out.path());
    assert_same(&images[0], &source.device);
    site.json(["volume", "close", opened["volume"].as_str().unwrap()]);
    assert_eq!(site.json(["volume", "list"]).as_array().unwrap().len(), 0);
}
