#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::Path;

use super::*;

const RELEASE: &str = "6.1.0-28-amd64";

fn write(root: &Path, path: &str, bytes: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// One entry after the other as cpio has them, without content.
fn initramfs(modules: &[&str]) -> Vec<u8> {
    let mut archive = Vec::new();
    let names = modules.iter().map(|module| format!("lib/modules/{RELEASE}/kernel/{module}.ko"));
    for name in names.chain(["TRAILER!!!".to_owned()]) {
        archive.extend(b"070701");
        for field in 0..13 {
            let value = if field == 11 { name.len() + 1 } else { 0 };
            archive.extend(format!("{value:08x}").as_bytes());
        }
        archive.extend(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

fn site(modules: &[&str]) -> (tempfile::TempDir, Host) {
    let root = tempfile::tempdir().unwrap();
    let lists = format!("lib/modules/{RELEASE}");
    write(
        root.path(),
        &format!("{lists}/modules.builtin"),
        b"kernel/drivers/scsi/sd_mod.ko\nkernel/lib/ring.ko\n",
    );
    write(
        root.path(),
        &format!("{lists}/modules.dep"),
        b"kernel/virtio_blk.ko: kernel/virtio_ring.ko kernel/lib/ring.ko\nkernel/virtio_pci.ko: kernel/virtio_ring.ko\n\
          kernel/virtio_ring.ko:\nkernel/nvme.ko.xz: kernel/nvme-core.ko.xz\nkernel/nvme-core.ko.xz:\nkernel/e1000e.ko:\n",
    );
    write(root.path(), &format!("boot/initrd.img-{RELEASE}"), &initramfs(modules));
    let host = Host::new(root.path(), || {});
    (root, host)
}

#[test]
fn a_driver_is_in_the_initramfs_when_all_that_it_needs_is() {
    let (root, host) = site(&["virtio_blk", "virtio_ring", "nvme"]);
    let mut known = KnownInitramfs::default();
    let place = |known: &mut KnownInitramfs, driver: &str| places(&host, RELEASE, known)[driver].clone();
    assert_eq!(place(&mut known, "sd_mod"), Fact::Known(DriverPlace::BuiltIn));
    assert_eq!(place(&mut known, "virtio_blk"), Fact::Known(DriverPlace::Initramfs));
    assert_eq!(place(&mut known, "virtio_pci"), Fact::Known(DriverPlace::RootFileSystem));
    assert_eq!(
        place(&mut known, "nvme"),
        Fact::Known(DriverPlace::RootFileSystem),
        "without nvme-core it is no use"
    );
    assert_eq!(place(&mut known, "ahci"), Fact::Known(DriverPlace::Absent));

    // One that was made anew is read anew.
    let all = initramfs(&["virtio_blk", "virtio_ring", "nvme", "nvme_core", "virtio_pci"]);
    write(root.path(), &format!("boot/initrd.img-{RELEASE}"), &all);
    assert_eq!(place(&mut known, "nvme"), Fact::Known(DriverPlace::Initramfs));
}

#[test]
fn what_is_not_there_or_unreadable_makes_drivers_unknown() {
    let (root, host) = site(&[]);
    let reason =
        |host: &Host, driver: &str| match &places(host, RELEASE, &mut KnownInitramfs::default())[driver] {
            Fact::Unknown(why) => why.clone(),
            Fact::Known(place) => panic!("{place:?}"),
        };
    let image = format!("boot/initrd.img-{RELEASE}");
    write(root.path(), &image, b"BZh91AY");
    assert!(reason(&host, "nvme").contains("bzip2"));
    // What the kernel has built in is known all the same.
    assert_eq!(
        places(&host, RELEASE, &mut KnownInitramfs::default())["sd_mod"],
        Fact::Known(DriverPlace::BuiltIn)
    );
    fs::remove_file(root.path().join(image)).unwrap();
    assert!(reason(&host, "nvme").contains("no initramfs of the kernel"));
    let empty = tempfile::tempdir().unwrap();
    let host = Host::new(empty.path(), || {});
    assert!(reason(&host, "sd_mod").contains("modules.builtin"));
}
