//! The Debian packages that building, trying and testing need.

use std::process::{Command, Stdio};

use crate::{Outcome, process};

/// To build the two programs.
pub const BUILD: &[&str] = &["build-essential"];

/// For the demonstration server and for opening its volumes.
pub const DEMONSTRATION: &[&str] =
    &["build-essential", "postgresql-15", "e2fsprogs", "qemu-utils", "libnbd-bin"];

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
    "libnbd-bin",
    "python3-libnbd",
    "fuse3",
    "fio",
    "iproute2",
];

/// What Lifeboat is measured against.
pub const PEERS: &[&str] = &["restic", "borgbackup", "zstd", "openssl", "qemu-utils", "fio", "postgresql-15"];

/// Installs those of `packages` that are missing, after saying which.
pub fn install(packages: &[&str]) -> Outcome {
    let missing: Vec<_> = packages.iter().copied().filter(|package| !installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("Installing Debian packages: {}", missing.join(" "));
    need_root("installing Debian packages")?;
    process::finish(apt().args(["update", "--quiet"]).stdout(Stdio::null()))?;
    process::finish(
        apt().args(["install", "--yes", "--no-install-recommends"]).args(&missing).stdout(Stdio::null()),
    )
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
