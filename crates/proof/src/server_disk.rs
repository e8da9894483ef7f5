//! The disk of a real Debian server: made once, kept, and copied for every run.
//!
//! `image/debian.sh` is the recipe. What it makes is kept by the recipe's digest, so that a changed
//! recipe makes a new one and the old is never altered. Copies get what a server has for itself: its
//! SSH keys and its machine id.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use lifeboat_model::Digest;

use crate::{Mount, run};

const RECIPE: &str = include_str!("../image/debian.sh");

/// Names the directory in which made images are kept.
const CACHE_VARIABLE: &str = "LIFEBOAT_IMAGE_CACHE";
const CACHE: &str = "/var/cache/lifeboat/images";

/// How the disk is divided and what starts from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskLayout {
    /// MBR partition table, GRUB in the MBR.
    Bios,
    /// The same, with root on a logical volume.
    Lvm,
    /// GPT, GRUB on an EFI system partition.
    Uefi,
}

/// A server's disk, and the keys for speaking to the server.
#[derive(Clone, Debug)]
pub struct ServerDisk {
    /// The whole disk as a sparse raw file.
    pub image: PathBuf,
    /// The private key that opens root's account over SSH.
    pub key: PathBuf,
    /// The server's host key, as [`HOST_ALIAS`], in the form of SSH's `known_hosts`.
    pub known_hosts: PathBuf,
    pub layout: DiskLayout,
}

/// The name under which [`ServerDisk::known_hosts`] has the server's key.
pub const HOST_ALIAS: &str = "source";

impl DiskLayout {
    fn word(self) -> &'static str {
        match self {
            Self::Bios => "bios",
            Self::Lvm => "lvm",
            Self::Uefi => "uefi",
        }
    }

    /// Where the root file system begins, in bytes; see the recipe.
    fn root_offset(self) -> u64 {
        match self {
            Self::Bios => 1 << 20,
            Self::Lvm => 2 << 20,
            Self::Uefi => 17 << 20,
        }
    }
}

impl ServerDisk {
    /// The disk in `dir`: the one that is there, or else a new server's. Making the first one of a
    /// recipe takes some minutes.
    pub fn in_dir(dir: &Path, layout: DiskLayout) -> Self {
        let disk = Self {
            image: dir.join("disk.img"),
            key: dir.join("key"),
            known_hosts: dir.join("known_hosts"),
            layout,
        };
        if !disk.image.exists() {
            disk.make(dir);
        }
        disk
    }

    fn make(&self, dir: &Path) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).unwrap();
        // The image gets its name when it is whole.
        let partial = dir.join("disk.img.partial");
        let kept = kept_image(self.layout);
        run("cp", ["--sparse=always".as_ref(), kept.as_os_str(), partial.as_os_str()]);
        let root = Mount::new(&partial, &format!("loop,offset={}", self.layout.root_offset()));
        self.give_keys(root.path());
        let id = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap().replace('-', "");
        fs::write(root.path().join("etc/machine-id"), id).unwrap();
        drop(root);
        fs::rename(&partial, &self.image).unwrap();
    }

    /// Makes keys for the server and for us; each learns the other's public one.
    fn give_keys(&self, root: &Path) {
        let _ = fs::remove_file(&self.key);
        run("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "proof", "-f", text(&self.key)]);
        let ssh = root.join("root/.ssh");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&ssh).unwrap();
        fs::copy(self.key.with_extension("pub"), ssh.join("authorized_keys")).unwrap();

        let host_key = root.join("etc/ssh/ssh_host_ed25519_key");
        run("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", HOST_ALIAS, "-f", text(&host_key)]);
        let public = fs::read_to_string(host_key.with_extension("pub")).unwrap();
        fs::write(&self.known_hosts, format!("{HOST_ALIAS} {public}")).unwrap();
    }
}

/// The kept image of this layout's recipe, made if it is not there yet.
fn kept_image(layout: DiskLayout) -> PathBuf {
    let dir = std::env::var_os(CACHE_VARIABLE).map_or_else(|| CACHE.into(), PathBuf::from);
    let recipe = Digest::of(format!("{RECIPE}{}", layout.word()).as_bytes()).to_string();
    let image = dir.join(format!("debian-12-{}-{}.img", layout.word(), &recipe[..16]));
    fs::create_dir_all(&dir).unwrap();
    // Whoever comes second waits, and then finds it.
    let lock = File::create(dir.join("lock")).unwrap();
    lock.lock().unwrap();
    if !image.exists() {
        build(layout, &image, lock);
    }
    image
}

/// Runs the recipe. The image gets its name when it is whole. The recipe inherits `lock`, so that
/// nobody else writes there while it runs, whatever becomes of this process.
fn build(layout: DiskLayout, image: &Path, lock: File) {
    let partial = image.with_extension("partial");
    let log = image.with_extension("log");
    println!("Making the disk of a Debian server, which takes some minutes: {}", log.display());
    let output = File::create(&log).unwrap();
    let errors = output.try_clone().unwrap();
    let status = Command::new("sh")
        .args(["-c", RECIPE, "debian.sh", layout.word()])
        .arg(&partial)
        .stdin(lock)
        .stdout(output)
        .stderr(errors)
        .status()
        .unwrap();
    assert!(status.success(), "making the server's disk ended with {status}: see {}", log.display());
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o444)).unwrap();
    File::open(&partial).unwrap().sync_all().unwrap();
    fs::rename(&partial, image).unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
