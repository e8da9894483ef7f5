//! Mounted file systems, and volumes mounted for reading back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::{run, wait_for};

/// A mounted file system. Unmounted when dropped.
pub struct Mount {
    dir: TempDir,
}

impl Mount {
    /// Mounts `device` under `/run`, where every user can reach it.
    pub fn new(device: &Path, options: &str) -> Self {
        let dir = reachable_dir();
        run("mount", ["-o", options, device.to_str().unwrap(), dir.path().to_str().unwrap()]);
        Self { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.dir.path()).output();
    }
}

/// An NBD export as a loop device: `nbdfuse` makes it a file, a loop device a disk. Gone when dropped.
pub struct NbdDisk {
    pub device: PathBuf,
    dir: TempDir,
    fuse: Child,
}

impl NbdDisk {
    pub fn connect(uri: &str) -> Self {
        let dir = reachable_dir();
        let file = dir.path().join("nbd");
        fs::write(&file, b"").unwrap();
        let mut command = Command::new("nbdfuse");
        let fuse = command.arg(&file).arg(uri).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        wait_for("nbdfuse to show the disk", || (file.metadata().ok()?.len() > 0).then_some(()));
        let device = run("losetup", ["--find", "--show", file.to_str().unwrap()]).into();
        Self { device, dir, fuse }
    }
}

impl Drop for NbdDisk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).output();
        let _ = Command::new("fusermount3").arg("-u").arg(self.dir.path().join("nbd")).output();
        let _ = Command::new("umount").arg(self.dir.path().join("nbd")).output();
        let _ = self.fuse.kill();
        let _ = self.fuse.wait();
    }
}

/// A directory under `/run` that other users may enter.
pub fn reachable_dir() -> TempDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::Builder::new().prefix("lifeboat-proof-").tempdir_in("/run").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}
