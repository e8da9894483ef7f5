//! Whether this machine can track changed blocks, before anything is set up.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;
use rustix::process::{Resource, Rlimit};

use crate::TrackerError;
use crate::device::{DiskIdentity, DiskKey};
use crate::object::{Kernel, Variant};

const BPFFS: &str = "/sys/fs/bpf";
const BPFFS_MAGIC: u64 = 0xcafe_4a11;

const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// What a machine that can be protected has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Support {
    /// What `uname -r` says.
    pub kernel_release: String,
    /// Which programs its kernel accepts.
    pub variant: Variant,
    /// Whether there is a BPF file system.
    pub bpffs: BpfFs,
}

/// The file system that the pins live in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BpfFs {
    /// It is mounted on `/sys/fs/bpf`.
    Mounted,
    /// It is not, and [`crate::TrackerSet::open`] will mount it.
    Mountable,
}

/// Checks whether this process may track at all.
///
/// # Errors
/// With the rights that are missing.
pub fn check_privileges() -> Result<(), TrackerError> {
    check_capabilities()
}

/// Checks rights and kernel, and loads the programs once without attaching them.
///
/// # Errors
/// With the first thing that is missing, and what to do about it.
pub fn check_support() -> Result<Support, TrackerError> {
    let kernel_release = check_kernel()?;
    let kernel = Kernel::read()?;
    let nothing = DiskIdentity { major: 0, minor: 0, blocks: 1, diskseq: None };
    let key: DiskKey = "probe".parse()?;
    let (_programs, variant) = kernel.load(&key, &nothing, None, None)?;
    let bpffs = if is_bpffs(Path::new(BPFFS))? { BpfFs::Mounted } else { BpfFs::Mountable };
    if bpffs == BpfFs::Mountable
        && !fs::read_to_string("/proc/filesystems").is_ok_and(|all| all.contains("\tbpf\n"))
    {
        return Err(TrackerError::NoBpfFs { path: PathBuf::from(BPFFS) });
    }
    Ok(Support { kernel_release, variant, bpffs })
}

/// Rights, architecture and version; raises what must be raised for the rest to work.
pub(crate) fn check_kernel() -> Result<String, TrackerError> {
    if cfg!(not(any(target_arch = "x86_64", target_arch = "aarch64"))) {
        return Err(TrackerError::Architecture { architecture: std::env::consts::ARCH });
    }
    check_capabilities()?;
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let version = version_of(&release);
    if version < (5, 8) {
        return Err(TrackerError::KernelTooOld { release });
    }
    if version < (5, 11) {
        // Until then maps count as locked memory, of which a process may have 64 KiB.
        let unlimited = Rlimit { current: None, maximum: None };
        if let Err(error) = rustix::process::setrlimit(Resource::Memlock, unlimited) {
            tracing::warn!(%error, "cannot raise the limit of locked memory; creating maps may fail");
        }
    }
    Ok(release)
}

fn check_capabilities() -> Result<(), TrackerError> {
    let path = Path::new("/proc/self/status");
    let status = fs::read_to_string(path).map_err(|source| TrackerError::io("read", path, source))?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok())
        .unwrap_or_default();
    let missing = missing_capabilities(effective);
    if missing.is_empty() {
        Ok(())
    } else {
        Err(TrackerError::NotPrivileged { missing: missing.join(" and ") })
    }
}

fn missing_capabilities(effective: u64) -> Vec<&'static str> {
    let has = |capability: u32| effective >> capability & 1 == 1;
    if has(CAP_SYS_ADMIN) {
        return Vec::new();
    }
    [(CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON")]
        .into_iter()
        .filter(|(capability, _)| !has(*capability))
        .map(|(_, name)| name)
        .collect()
}

/// Major and minor number at the beginning of a release; zeroes for what is none.
fn version_of(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Makes a directory for pins, mounting the BPF file system where it is expected.
pub(crate) fn prepare_directory(directory: &Path) -> Result<(), TrackerError> {
    let bpffs = Path::new(BPFFS);
    if directory.starts_with(bpffs) && !is_bpffs(bpffs)? {
        let mounted = rustix::mount::mount("bpf", bpffs, "bpf", MountFlags::empty(), None);
        mounted.map_err(|error| TrackerError::MountBpfFs { path: bpffs.to_owned(), source: error.into() })?;
    }
    // Checked before anything is made, lest directories appear on an ordinary file system.
    let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(directory);
    if !is_bpffs(existing)? {
        return Err(TrackerError::NoBpfFs { path: directory.to_owned() });
    }
    fs::create_dir_all(directory).map_err(|source| TrackerError::io("create", directory, source))
}

pub(crate) fn is_bpffs(path: &Path) -> Result<bool, TrackerError> {
    match rustix::fs::statfs(path) {
        Ok(found) => Ok(u64::try_from(found.f_type).is_ok_and(|magic| magic == BPFFS_MAGIC)),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(TrackerError::io("look at", path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_releases_of_distributions() {
        assert_eq!(version_of("6.1.0-28-amd64"), (6, 1));
        assert_eq!(version_of("5.14.0-503.el9.x86_64"), (5, 14));
        assert_eq!(version_of("5.4"), (5, 4));
        assert_eq!(version_of("weird"), (0, 0));
    }

    #[test]
    fn missing_capabilities_are_named() {
        assert!(missing_capabilities(1 << CAP_SYS_ADMIN).is_empty());
        assert!(missing_capabilities(1 << CAP_BPF | 1 << CAP_PERFMON).is_empty());
        assert_eq!(missing_capabilities(1 << CAP_BPF), ["CAP_PERFMON"]);
    }
}
