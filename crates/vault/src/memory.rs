//! How much memory volumes may take for decoded frames.

use std::fs;
use std::path::Path;

/// Without a setting, decoded frames may take this part of the memory.
const SHARE: u64 = 8;
/// And at least and at most so many bytes.
const BYTES_MIN: u64 = 256 << 20;
const BYTES_MAX: u64 = 4 << 30;

/// Bytes of the frame cache: as set, or what fits the machine. A read of 4 KiB that is not in the
/// cache decodes up to 256 KiB, so a cache that holds what a virtual machine works with is worth
/// more than anything else.
pub(crate) fn frame_cache_bytes(set_mib: Option<usize>) -> usize {
    if let Some(mib) = set_mib {
        return mib << 20;
    }
    let machine = rustix::system::sysinfo();
    // The field has another type on other architectures.
    #[allow(clippy::useless_conversion)]
    let machine_bytes = u64::from(machine.totalram).saturating_mul(machine.mem_unit.into());
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = group_limit(Path::new("/sys/fs/cgroup"), &own);
    usize::try_from(share_of(machine_bytes.min(limit.unwrap_or(u64::MAX)))).unwrap_or(usize::MAX)
}

fn share_of(memory_bytes: u64) -> u64 {
    (memory_bytes / SHARE).clamp(BYTES_MIN, BYTES_MAX)
}

/// The least limit that a control group above this process sets, as for a service with `MemoryMax`
/// or a container. `own` is the text of `/proc/self/cgroup`.
fn group_limit(root: &Path, own: &str) -> Option<u64> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let groups = Path::new(path).ancestors();
    let limits = groups.filter_map(|group| fs::read_to_string(root.join(group).join("memory.max")).ok());
    limits.filter_map(|limit| limit.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_any_group_above_holds() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("system.slice/lifeboat.service");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        let own = "4:memory:/old\n0::/system.slice/lifeboat.service\n";
        assert_eq!(group_limit(root.path(), own), None);
        fs::write(root.path().join("system.slice/memory.max"), "1073741824\n").unwrap();
        assert_eq!(group_limit(root.path(), own), Some(1 << 30));
        fs::write(inner.join("memory.max"), "536870912\n").unwrap();
        assert_eq!(group_limit(root.path(), own), Some(1 << 29));
    }

    #[test]
    fn a_setting_holds_and_without_it_the_share_is_bounded() {
        assert_eq!(frame_cache_bytes(Some(3)), 3 << 20);
        assert_eq!(share_of(512 << 20), 256 << 20);
        assert_eq!(share_of(16 << 30), 2 << 30);
        assert_eq!(share_of(1 << 40), 4 << 30);
    }
}
