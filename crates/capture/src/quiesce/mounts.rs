//! Which file systems are on the protected disks.
//!
//! A mount names its device, or, where the kernel gives it none of its own (btrfs), its source.
//! From there it goes down: a partition to its disk, a device-mapper or RAID device to what it
//! is made of, a loop device to the file behind it and the device of that file's file system.
//! Only mounts of this process's mount namespace are found.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DeviceNumber {
    pub major: u32,
    pub minor: u32,
}

impl DeviceNumber {
    pub fn of(number: u64) -> Self {
        Self { major: rustix::fs::major(number), minor: rustix::fs::minor(number) }
    }

    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }

    fn sysfs(self) -> PathBuf {
        PathBuf::from(format!("/sys/dev/block/{}:{}", self.major, self.minor))
    }
}

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub device: DeviceNumber,
    /// Where it is mounted; some of these may be hidden under other mounts.
    pub points: Vec<PathBuf>,
    pub kind: String,
    pub source: String,
}

/// The file systems on `disks`, each once, in the order in which they must be frozen: one that
/// lies in a file of another comes before that other.
pub(crate) fn mounts_on(disks: &BTreeSet<DeviceNumber>) -> io::Result<Vec<Mount>> {
    let text = fs::read("/proc/self/mountinfo")?;
    let mut found: Vec<(u32, Mount)> = Vec::new();
    for mount in parse_mountinfo(&text) {
        if let Some((_, known)) = found.iter_mut().find(|(_, known)| known.device == mount.device) {
            known.points.extend(mount.points);
            continue;
        }
        let mut below = Below::default();
        for device in mount.devices() {
            below.descend(device, 0)?;
        }
        if below.disks.is_disjoint(disks) {
            continue;
        }
        found.push((below.levels, mount));
    }
    found.sort_by_key(|(levels, _)| std::cmp::Reverse(*levels));
    Ok(found.into_iter().map(|(_, mount)| mount).collect())
}

impl Mount {
    /// Opens its root, or any directory or file of it that is mounted somewhere.
    pub fn open(&self) -> io::Result<(PathBuf, File)> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for point in &self.points {
            let opened = File::open(point).and_then(|file| {
                let device = DeviceNumber::of(file.metadata()?.dev());
                // Files of a btrfs name the subvolume's device, not the mount's.
                if self.device.major != 0 && device != self.device {
                    return Err(io::Error::other("another file system is mounted over it"));
                }
                Ok(file)
            });
            match opened {
                Ok(file) => return Ok((point.clone(), file)),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// For messages.
    pub fn name(&self) -> String {
        self.points.first().map_or_else(String::new, |point| point.display().to_string())
    }

    fn devices(&self) -> Vec<DeviceNumber> {
        if self.device.major != 0 {
            return vec![self.device];
        }
        let device_of = |path: &Path| {
            let data = fs::metadata(path).ok()?;
            Some(DeviceNumber::of(data.rdev())).filter(|device| device.major != 0)
        };
        let source = Path::new(&self.source);
        let Some(device) = source.is_absolute().then(|| device_of(source)).flatten() else {
            return Vec::new();
        };
        if self.kind == "btrfs" {
            let all = btrfs_devices(device);
            if !all.is_empty() {
                return all;
            }
        }
        vec![device]
    }
}

/// All devices of the btrfs that has `member` among them.
fn btrfs_devices(member: DeviceNumber) -> Vec<DeviceNumber> {
    for one in entries(Path::new("/sys/fs/btrfs")) {
        let devices: Vec<_> = entries(&one.join("devices"))
            .filter_map(|device| DeviceNumber::parse(&fs::read_to_string(device.join("dev")).ok()?))
            .collect();
        if devices.contains(&member) {
            return devices;
        }
    }
    Vec::new()
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

/// What lies below a device.
#[derive(Debug, Default)]
struct Below {
    disks: BTreeSet<DeviceNumber>,
    seen: BTreeSet<DeviceNumber>,
    /// How many file systems lie below, one in a file of the next.
    levels: u32,
}

impl Below {
    fn descend(&mut self, device: DeviceNumber, level: u32) -> io::Result<()> {
        self.levels = self.levels.max(level);
        if !self.seen.insert(device) {
            return Ok(());
        }
        let place = match fs::canonicalize(device.sysfs()) {
            Ok(place) => place,
            // No block device, or one that went away.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if place.join("partition").exists() {
            let disk = place.parent().map(|disk| disk.join("dev"));
            let disk = disk.and_then(|dev| DeviceNumber::parse(&fs::read_to_string(dev).ok()?));
            return disk.map_or(Ok(()), |disk| self.descend(disk, level));
        }
        // A loop device or a stack may be protected itself.
        self.disks.insert(device);
        for below in entries(&place.join("slaves")) {
            if let Some(below) = DeviceNumber::parse(&fs::read_to_string(below.join("dev"))?) {
                self.descend(below, level)?;
            }
        }
        if let Ok(file) = fs::read_to_string(place.join("loop/backing_file"))
            && let Ok(data) = fs::metadata(file.trim_end_matches('\n'))
        {
            let backing = DeviceNumber::of(data.dev());
            if backing.major == 0 {
                let text = fs::read("/proc/self/mountinfo")?;
                let host = parse_mountinfo(&text).find(|mount| mount.device == backing);
                for device in host.iter().flat_map(Mount::devices) {
                    self.descend(device, level + 1)?;
                }
            } else {
                self.descend(backing, level + 1)?;
            }
        }
        Ok(())
    }
}

/// Lines such as `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`. Lines of
/// another form are passed over.
fn parse_mountinfo(text: &[u8]) -> impl Iterator<Item = Mount> + '_ {
    use std::os::unix::ffi::OsStringExt;
    text.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let device = DeviceNumber::parse(std::str::from_utf8(fields.nth(2)?).ok()?)?;
        let point = PathBuf::from(std::ffi::OsString::from_vec(unescape(fields.nth(1)?)));
        let mut after = fields.skip_while(|field| *field != b"-").skip(1);
        let kind = String::from_utf8_lossy(after.next()?).into_owned();
        let source = String::from_utf8_lossy(&unescape(after.next()?)).into_owned();
        Some(Mount { device, points: vec![point], kind, source })
    })
}

/// The kernel writes space, tab, newline and backslash as `\\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| *byte == b'\\').and_then(|digits| {
            digits.iter().try_fold(0u8, |code, digit| {
                let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
                code.checked_mul(8)?.checked_add(digit)
            })
        });
        match code {
            Some(code) => {
                plain.push(code);
                rest = &after[3..];
            }
            None => {
                plain.push(*byte);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_read() {
        let text = br"36 35 98:3 / /a\040b\134c rw,noatime shared:1 master:2 - ext4 /dev/sda3 rw";
        let mounts: Vec<_> = parse_mountinfo(text).collect();
        let device = DeviceNumber { major: 98, minor: 3 };
        let (kind, source) = ("ext4".to_owned(), "/dev/sda3".to_owned());
        assert_eq!(mounts, [Mount { device, points: vec![PathBuf::from(r"/a b\c")], kind, source }]);
    }

    #[test]
    fn the_root_of_this_machine_is_found_on_its_disk() {
        let root = DeviceNumber::of(fs::metadata("/").unwrap().dev());
        if root.major == 0 {
            return;
        }
        let mut below = Below::default();
        below.descend(root, 0).unwrap();
        let mounts = mounts_on(&below.disks).unwrap();
        assert!(mounts.iter().any(|mount| mount.device == root), "{mounts:?}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_harm(text in prop::collection::vec(any::<u8>(), 0..300)) {
            parse_mountinfo(&text).for_each(drop);
        }

        #[test]
        fn what_was_escaped_reads_back(plain in prop::collection::vec(any::<u8>(), 0..40)) {
            let escaped: Vec<u8> = plain.iter().flat_map(|byte| match byte {
                b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
                other => vec![*other],
            }).collect();
            prop_assert_eq!(unescape(&escaped), plain);
        }
    }
}
