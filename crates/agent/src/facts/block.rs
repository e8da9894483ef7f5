//! What lies below a block device: the layers, and at the bottom whole disks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lifeboat_wire::facts::Layer;

use super::host::{Host, name};

/// Layers that are followed down.
const DEPTH_MAX: u32 = 16;

/// A device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DeviceNumber {
    pub major: u32,
    pub minor: u32,
}

/// What a file system or swap lies on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Below {
    /// Whole disks, by number, with the kernel's names.
    pub disks: BTreeMap<DeviceNumber, String>,
    pub layers: BTreeSet<Layer>,
}

impl DeviceNumber {
    pub fn of(number: u64) -> Self {
        Self { major: rustix::fs::major(number), minor: rustix::fs::minor(number) }
    }

    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }

    /// Of the block device at a path.
    pub fn at(host: &Host, path: &str) -> Option<Self> {
        let data = fs::metadata(host.path(path)).ok()?;
        Some(Self::of(data.rdev())).filter(|device| device.major != 0)
    }

    fn sysfs(self) -> String {
        format!("/sys/dev/block/{}:{}", self.major, self.minor)
    }
}

impl Below {
    /// Adds what is below a device. A device in `protected` is a disk, whatever it is made of.
    pub fn add(&mut self, host: &Host, device: DeviceNumber, protected: &BTreeSet<DeviceNumber>) {
        self.descend(host, device, protected, 0);
    }

    fn descend(&mut self, host: &Host, device: DeviceNumber, protected: &BTreeSet<DeviceNumber>, depth: u32) {
        if depth > DEPTH_MAX || self.disks.contains_key(&device) {
            return;
        }
        let Ok(place) = fs::canonicalize(host.path(device.sysfs())) else { return };
        if place.join("partition").exists() {
            let disk = place.parent().and_then(number_of);
            if let Some(disk) = disk {
                self.descend(host, disk, protected, depth + 1);
            }
            return;
        }
        let slaves = below(&place);
        let backing = fs::read_to_string(place.join("loop/backing_file")).ok();
        if protected.contains(&device) || (slaves.is_empty() && backing.is_none()) {
            self.disks.insert(device, name(&place).replace('!', "/"));
            return;
        }
        self.layers.extend(layer(&place));
        for slave in slaves {
            self.descend(host, slave, protected, depth + 1);
        }
        let file = backing.and_then(|file| fs::metadata(file.trim_end_matches('\n')).ok());
        if let Some(file) = file {
            self.layers.insert(Layer::File);
            self.descend(host, DeviceNumber::of(file.dev()), protected, depth + 1);
        }
    }
}

fn number_of(place: &Path) -> Option<DeviceNumber> {
    DeviceNumber::parse(&fs::read_to_string(place.join("dev")).ok()?)
}

fn below(place: &Path) -> Vec<DeviceNumber> {
    let entries = fs::read_dir(place.join("slaves")).into_iter().flatten().flatten();
    let places: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    places.iter().filter_map(|place| number_of(place)).collect()
}

/// What a device that has others below it is.
fn layer(place: &Path) -> Option<Layer> {
    if place.join("md").exists() {
        return Some(Layer::Raid);
    }
    let uuid = fs::read_to_string(place.join("dm/uuid")).ok()?;
    Some(match uuid.trim() {
        uuid if uuid.starts_with("LVM-") => Layer::Lvm,
        uuid if uuid.starts_with("CRYPT-") => Layer::Encryption,
        uuid if uuid.starts_with("mpath-") || uuid.contains("-mpath-") => Layer::Multipath,
        _ => Layer::DeviceMapper,
    })
}

/// All devices of the btrfs that has `member` among them.
pub(super) fn btrfs_members(host: &Host, member: DeviceNumber) -> Vec<DeviceNumber> {
    for one in host.entries("/sys/fs/btrfs") {
        let devices = host.entries(&one.join("devices").to_string_lossy());
        let numbers: Vec<_> = devices
            .iter()
            .filter_map(|device| DeviceNumber::parse(&host.word(device.join("dev"))?))
            .collect();
        if numbers.contains(&member) {
            return numbers;
        }
    }
    vec![member]
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use std::os::unix::fs::symlink;

    use super::*;

    /// A `/sys` with devices, each at its path below `devices`, with its number and the names of what is below it.
    pub(crate) fn sys(devices: &[(&str, &str, &[&str])]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("sys/dev/block")).unwrap();
        for (path, number, below) in devices {
            let place = root.path().join("sys/devices").join(path);
            fs::create_dir_all(place.join("slaves")).unwrap();
            fs::write(place.join("dev"), format!("{number}\n")).unwrap();
            symlink(&place, root.path().join("sys/dev/block").join(number)).unwrap();
            for slave in *below {
                let to = root.path().join("sys/devices").join(slave);
                symlink(to, place.join("slaves").join(slave.rsplit('/').next().unwrap())).unwrap();
            }
        }
        root
    }

    #[test]
    fn a_logical_volume_on_encryption_on_raid_leads_to_two_disks() {
        let root = sys(&[
            ("sda", "8:0", &[]),
            ("sda/sda2", "8:2", &[]),
            ("sdb", "8:16", &[]),
            ("sdb/sdb1", "8:17", &[]),
            ("md0", "9:0", &["sda/sda2", "sdb/sdb1"]),
            ("dm-0", "253:0", &["md0"]),
            ("dm-1", "253:1", &["dm-0"]),
        ]);
        let write = |path: &str, text: &str| {
            let path = root.path().join("sys/devices").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("sda/sda2/partition", "2\n");
        write("sdb/sdb1/partition", "1\n");
        write("md0/md/level", "raid1\n");
        write("dm-0/dm/uuid", "CRYPT-LUKS2-abc\n");
        write("dm-1/dm/uuid", "LVM-abc\n");
        let host = Host::new(root.path(), || {});
        let volume = DeviceNumber { major: 253, minor: 1 };
        let mut below = Below::default();
        below.add(&host, volume, &BTreeSet::new());
        assert_eq!(below.disks.values().collect::<Vec<_>>(), ["sda", "sdb"]);
        assert_eq!(
            below.layers.into_iter().collect::<Vec<_>>(),
            [Layer::Lvm, Layer::Raid, Layer::Encryption]
        );

        // A RAID that is protected as a whole is the disk.
        let mut below = Below::default();
        below.add(&host, volume, &BTreeSet::from([DeviceNumber { major: 9, minor: 0 }]));
        assert_eq!(below.disks.values().collect::<Vec<_>>(), ["md0"]);
    }
}
