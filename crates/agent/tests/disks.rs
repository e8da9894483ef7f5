//! Disks that should not be protected, or not twice, and disks that come into trouble: what the
//! operator is told, and that all else goes on.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that cannot go on fails")]

mod site;

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use site::Site;
use site::disk::Block;

/// Past the device, and so past the tracking.
fn write_to_file(file: &Path, bytes: &[u8], offset: u64) {
    OpenOptions::new().write(true).open(file).unwrap().write_all_at(bytes, offset).unwrap();
}

/// What is written to a disk reaches its copy, whether points are taken or not.
fn travels(site: &Site, disk: u16, block: u64, number: u64) {
    site.disks[usize::from(disk)].write(block, number);
    let content = Block::of(number).0;
    site.until("a change of the disk that is well", || site.server.has_block(disk, block as usize, &content));
}

#[test]
fn a_read_only_disk_is_protected_and_told_of() {
    let mut site = Site::new(&[8]);
    site.disks[0].fill(2);
    site.disks[0].detach();
    site.disks[0].attach(&["--read-only"]);
    let path = site.disks[0].path.clone();
    site.name_disk(0, &path);
    site.start();
    site.until("news of it", || !site.server.messages("disk_read_only", Some(0)).is_empty());
    site.check_newest_point();
    let check = site.command(&["check", "--disk", &site.disks[0].path]);
    let text = String::from_utf8(check.stdout).unwrap();
    assert!(check.status.success() && text.contains("it is read-only, so no change is expected"), "{text}");
    assert!(text.contains(&format!("the agent with process {} does it already", site.process())), "{text}");
}

#[test]
fn a_disk_of_another_agent_is_refused_until_that_one_lets_go() {
    let mut first = Site::new(&[8]);
    first.disks[0].fill(2);
    first.start();
    first.check_newest_point();

    let mut second = Site::new(&[8]);
    second.add_path(&first.disks[0].path);
    second.disks[0].fill(3);
    second.start();
    second.until("the refusal", || !second.server.messages("disk_trouble", Some(1)).is_empty());
    let told = second.server.messages("disk_trouble", Some(1));
    let process =
        format!("is already protected by another agent on this machine (process {}", first.process());
    assert!(told[0].contains(&process) && told[0].contains("take the disk out of the settings"), "{told:?}");
    first.check_newest_point();

    assert_eq!(first.stop(), Some(0));
    second.until("a point of both", || second.server.newest().is_some_and(|seal| seal.disks.len() == 2));
    second.check_newest_point();
    // And now the other way round.
    first.start();
    first.until("the refusal", || !first.server.messages("disk_trouble", Some(0)).is_empty());
}

#[test]
fn a_disk_that_is_named_twice_is_protected_once_and_told_of() {
    let mut site = Site::new(&[8]);
    let link = site.dir.path().join("by-path");
    symlink(&site.disks[0].path, &link).unwrap();
    site.add_path(link.to_str().unwrap());
    site.start();
    site.until("news of it", || !site.server.messages("disk_named_twice", None).is_empty());
    let told = &site.server.messages("disk_named_twice", None)[0];
    assert!(told.contains(&format!("by-path is the same disk as {}", site.disks[0].path)), "{told}");
    site.check_newest_point();
    assert_eq!(site.server.newest().unwrap().disks.len(), 1);
}

/// nbdfuse, which shows an NBD export as a file, and a loop device over that file.
struct MountedVolume {
    folder: tempfile::TempDir,
    nbdfuse: Child,
    disk: Option<String>,
}

impl MountedVolume {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (image, point) = (folder.path().join("image"), folder.path().join("a volume"));
        std::fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
        std::fs::create_dir(&point).unwrap();
        let nbdfuse = Command::new("nbdfuse")
            .arg(&point)
            .args(["--socket-activation", "qemu-nbd", "-f", "raw"])
            .arg(&image)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut volume = Self { folder, nbdfuse, disk: None };
        let begun = Instant::now();
        while !volume.file().exists() {
            assert!(begun.elapsed() < Duration::from_secs(60), "nbdfuse did not mount");
            std::thread::sleep(Duration::from_millis(20));
        }
        let made = Command::new("losetup").args(["--find", "--show"]).arg(volume.file()).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        volume.disk = Some(String::from_utf8(made.stdout).unwrap().trim().to_owned());
        volume
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("a volume/nbd")
    }
}

impl Drop for MountedVolume {
    fn drop(&mut self) {
        if let Some(disk) = &self.disk {
            let _ = Command::new("losetup").args(["--detach", disk]).status();
        }
        let _ = Command::new("umount").arg("--lazy").arg(self.folder.path().join("a volume")).status();
        let _ = self.nbdfuse.wait();
    }
}

#[test]
fn a_volume_that_is_mounted_as_a_disk_is_refused() {
    let volume = MountedVolume::new();
    let site = Site::new(&[8]);
    let disk = volume.disk.as_deref().unwrap();
    let check = site.command(&["check", "--disk", disk, "--output", "json"]);
    assert_eq!(check.status.code(), Some(1));
    let answer: serde_json::Value = serde_json::from_slice(&check.stdout).unwrap();
    let finding = &answer["findings"][1];
    assert_eq!((&answer["can_be_protected"], &finding["disk"]), (&false.into(), &disk.into()));
    let sentence = finding["sentence"].as_str().unwrap();
    assert!(sentence.contains("a volume/nbd, a volume that is mounted through FUSE"), "{sentence}");
}

#[test]
fn a_disk_that_shrinks_is_compared_and_the_other_goes_on() {
    let mut site = Site::new(&[16, 8]);
    site.disks[0].fill(3);
    site.start();
    site.check_newest_point();
    site.disks[0].cut_file(8);
    site.disks[0].set_capacity();
    travels(&site, 1, 100, 1);
    site.until("a point of the new size", || {
        site.server.newest().is_some_and(|seal| seal.disks[0].bytes == 8 << 20)
    });
    let told = site.server.messages("resync_started", Some(0));
    assert!(
        told.iter().any(|told| told.contains("its size changed from 16777216 to 8388608 bytes")),
        "{told:?}"
    );
    site.disks[0].write(7, 7);
    site.check_newest_point();
    assert!(site.server.messages("resync_started", Some(1)).is_empty());
}

#[test]
fn sectors_that_cannot_be_read_stop_points_and_nothing_else() {
    let mut site = Site::new(&[16, 8]);
    site.disks[0].fill(3);
    site.start();
    site.check_newest_point();
    site.server.change_assignment(|assignment| {
        assignment.replicate = false;
        assignment.reason = Some("the test breaks a disk".into());
    });
    site.until("a stop", || site.server.stalled().is_some());
    site.disks[0].write(3000, 3);
    let content = site.disks[0].content();
    // Block 3000 lies beyond the end of the file now.
    site.disks[0].cut_file(8);
    site.server.change_assignment(|assignment| assignment.replicate = true);
    site.until("news of it", || !site.server.messages("unreadable_sectors", Some(0)).is_empty());
    site.until("the state", || {
        site.server.stalled().is_some_and(|why| why.contains("Disk 0 cannot be read at block"))
    });
    let points = site.server.state.lock().unwrap().seals.len();
    travels(&site, 1, 200, 2);
    travels(&site, 0, 1, 4);
    assert_eq!(site.server.state.lock().unwrap().seals.len(), points);

    // The disk reads as it did before.
    write_to_file(&site.disks[0].file, &content[8 << 20..], 8 << 20);
    site.until("news of the end of it", || !site.server.messages("readable_again", Some(0)).is_empty());
    site.check_newest_point();
}

#[test]
fn a_disk_that_disappears_and_comes_back_is_compared_and_the_other_goes_on() {
    let mut site = Site::new(&[16, 8]);
    let link = site.dir.path().join("disk-by-id");
    symlink(&site.disks[0].path, &link).unwrap();
    site.name_disk(0, link.to_str().unwrap());
    site.disks[0].fill(3);
    site.start();
    site.check_newest_point();

    std::fs::remove_file(&link).unwrap();
    site.disks[0].detach();
    site.until("news of it", || !site.server.messages("disk_trouble", Some(0)).is_empty());
    site.until("the state", || site.server.stalled().is_some_and(|why| why.contains("Disk 0: ")));
    site.until("the agent to let go", || !site.disks[0].is_attached());
    let points = site.server.state.lock().unwrap().seals.len();
    travels(&site, 1, 200, 2);
    assert_eq!(site.server.state.lock().unwrap().seals.len(), points);

    // Somebody wrote to it elsewhere.
    write_to_file(&site.disks[0].file, &Block::of(77).0, 9 * 4096);
    site.disks[0].attach(&[]);
    symlink(&site.disks[0].path, &link).unwrap();
    site.until("the resync", || !site.server.messages("resync_finished", Some(0)).is_empty());
    site.check_newest_point();
    assert_eq!(site.server.newest().unwrap().disks.len(), 2);
    assert!(site.server.messages("resync_started", Some(1)).is_empty());
}

#[test]
fn who_is_not_root_is_told_so_first() {
    let site = Site::new(&[8]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let copy = |from: &Path, name: &str, mode| {
        let to = folder.path().join(name);
        std::fs::copy(from, &to).unwrap();
        std::fs::set_permissions(&to, PermissionsExt::from_mode(mode)).unwrap();
        to
    };
    let agent = copy(Path::new(env!("CARGO_BIN_EXE_lifeboat-agent")), "lifeboat-agent", 0o755);
    let config = copy(&site.config(), "agent.toml", 0o644);
    let nobody = |words: &[&str]| {
        Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&agent)
            .args(words)
            .output()
            .unwrap()
    };
    let sentence = "tracking needs root, or the capabilities CAP_BPF and CAP_PERFMON; this process lacks CAP_BPF and \
                    CAP_PERFMON: run the agent as root or give its service these capabilities";
    let run = nobody(&["run", "--config", config.to_str().unwrap()]);
    assert_eq!(run.status.code(), Some(2));
    assert_eq!(String::from_utf8(run.stderr).unwrap(), format!("lifeboat-agent: {sentence}.\n"));
    let check = nobody(&["check"]);
    assert_eq!(check.status.code(), Some(1));
    assert!(String::from_utf8(check.stdout).unwrap().contains(&format!("no:  {sentence}")));
}
