//! An operator on another machine than the vault's.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use lifeboat_proof::{LoopDisk, SeparateMachines, assert_same, scratch, wait_for};
use serde_json::Value;

const MIB: u64 = 1 << 20;

fn answer(output: &std::process::Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn volumes_are_used_and_exported_from_another_machine() {
    let disk = LoopDisk::new(32 * MIB);
    disk.write(0, 4000, 1);
    let mut site = SeparateMachines::start(&[&disk], &["--interval", "2s"]);
    wait_for("a point", || {
        let points = answer(&site.lifeboat(["point", "list", "source", "--limit", "1"]));
        (points.as_array().unwrap().len() == 1).then_some(())
    });
    let out = tempfile::tempdir_in(scratch()).unwrap();
    let image = out.path().join("disk.qcow2");
    let image = image.to_str().unwrap();
    let export = ["volume", "export", "source", "--disk", "0", "--format", "qcow2", image];

    // As long as the vault offers volumes on its own machine alone, that is what is said.
    let refused = site.lifeboat_elsewhere(export);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    let error: Value = serde_json::from_str(said.trim()).unwrap();
    assert_eq!(error["error"]["code"], "no_way_to_volume", "{said}");
    assert!(said.contains("set `listen` in [nbd] of the vault's settings"), "{said}");
    assert!(answer(&site.lifeboat(["volume", "list"])).as_array().unwrap().is_empty());
    let opened = site.lifeboat_elsewhere(["volume", "open", "source", "--read-only"]);
    assert!(String::from_utf8_lossy(&opened.stderr).contains("on the vault's machine alone"));
    let volume = answer(&opened)["volume"].as_str().unwrap().to_owned();
    answer(&site.lifeboat_elsewhere(["volume", "close", &volume]));

    site.offer_volumes_elsewhere();
    answer(&site.lifeboat_elsewhere(export));
    assert!(answer(&site.lifeboat(["volume", "list"])).as_array().unwrap().is_empty());
    site.run_elsewhere(&["qemu-img", "compare", "-F", "raw", image, disk.device.to_str().unwrap()]);

    let opened = answer(&site.lifeboat_elsewhere(["volume", "open", "source", "--read-only"]));
    let uri = opened["disks"][0]["nbd_uri"].as_str().unwrap();
    assert!(uri.starts_with("nbds://10.97.2.2:10809/"), "{uri}");
    let copy = out.path().join("copy.img");
    site.run_elsewhere(&["nbdcopy", uri, copy.to_str().unwrap()]);
    assert_same(&copy, &disk.device);
    // On the vault's own machine the same volume has its socket.
    let listed = answer(&site.lifeboat(["volume", "list"]));
    assert!(listed[0]["disks"][0]["nbd_uri"].as_str().unwrap().starts_with("nbd+unix:"), "{listed}");
}
