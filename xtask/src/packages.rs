//! The Debian packages that building, trying and testing need.

use std::process::{Command, Stdio};

use crate::{Outcome, process};

/// To build the two programs.
pub const BUILD: &[&str] = &["build-essential"];

/// For the demonstration server and for opening its volumes.
pub const DEMONSTRATION: &[&str] =
    &["build-essential", "postgresql-15", "e2fsprogs", "qemu-utils", "libnbd-bin"];

/// For the demonstration server in a virtual machine.
pub const MACHINE: &[&str] = &[
    "build-essential",
    "qemu-utils",
    "libnbd-bin",
    "debootstrap",
    "qemu-system-x86",
    "grub-pc-bin",
    "grub-common",
    "e2fsprogs",
    "fdisk",
    "openssh-client",
];

/// Everything, for the tests.
pub const ALL: &[&str] = &[
    "build-essential",
    "clang",
    "llvm",
    "bpftool",
    "libbpf-dev",
    "postgresql-15",
    "e2fsprogs",
    "xfsprogs",
    "qemu-utils",
    "qemu-system-x86",
    "ovmf",
    "libnbd-bin",
    "python3-libnbd",
    "fuse3",
    "fio",
    "iproute2",
    // What an initramfs is made with.
    "cpio",
    "zstd",
    "xz-utils",
    "lz4",
    // Machines at libvirt. Its daemons without `libvirt-daemon-system`, which would have this machine run them.
    "libvirt-daemon",
    "libvirt-clients",
    // Servers in virtual machines.
    "debootstrap",
    "grub-common",
    "grub-pc-bin",
    "grub-efi-amd64-bin",
    "fdisk",
    "lvm2",
    "dosfstools",
    "mtools",
    "openssh-client",
    // Commands over SSH as probes.
    "openssh-server",
    // Networks at the recovery site, and the guests that try them.
    "dnsmasq-base",
    "slirp4netns",
    "nftables",
    "busybox-static",
];

/// What Lifeboat is measured against.
pub const PEERS: &[&str] = &["restic", "borgbackup", "zstd", "openssl", "qemu-utils", "fio", "postgresql-15"];

const EMULATOR: &str = "qemu-system-x86";

/// The emulator and QEMU's tools share files, so they are of one version. Where the tools came from backports
/// and the emulator is missing there, the tools go back.
const QEMU_OF_THE_RELEASE: [&str; 2] = ["qemu-utils/bookworm", "qemu-block-extra/bookworm"];

/// Installs those of `packages` that are missing, after saying which.
pub fn install(packages: &[&str]) -> Outcome {
    let missing: Vec<_> = packages.iter().copied().filter(|package| !installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("Installing Debian packages: {}", missing.join(" "));
    need_root("installing Debian packages")?;
    process::finish(apt().args(["update", "--quiet"]).stdout(Stdio::null()))?;
    let mut install = apt();
    install.args(["install", "--yes", "--no-install-recommends"]).args(&missing).stdout(Stdio::null());
    match process::finish(&mut install) {
        Err(_) if missing.contains(&EMULATOR) => {
            println!("Trying again with all of QEMU in the release's own version");
            process::finish(install.arg("--allow-downgrades").args(QEMU_OF_THE_RELEASE))
        }
        outcome => outcome,
    }
}

/// Refuses unless this is root.
pub fn need_root(what_for: &str) -> Outcome {
    let user = process::output("id", ["-u"])?;
    if user == "0" { Ok(()) } else { Err(format!("{what_for} needs root: run it again with sudo -E")) }
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn installed(package: &str) -> bool {
    process::output("dpkg-query", ["--show", "--showformat=${db:Status-Status}", package])
        .is_ok_and(|status| status == "installed")
}
