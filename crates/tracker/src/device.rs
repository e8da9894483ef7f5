//! What a block device is, from sysfs, and whether it can be tracked.

use std::fmt;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use lifeboat_model::blocks_of_bytes;

use crate::TrackerError;

/// Which disk it is, as far as the kernel can tell disks apart until it boots again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DiskIdentity {
    /// Major number of the whole disk.
    pub major: u32,
    /// Its first minor number.
    pub minor: u32,
    /// Its size in blocks of 4 KiB, the last one perhaps in part.
    pub blocks: u64,
    /// Counts disks and media since boot, so a number that was reused is noticed. Absent
    /// before Linux 5.15.
    pub diskseq: Option<u64>,
}

/// The name of a disk among the pins: 1 to 64 letters, digits, `-` and `_`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DiskKey(String);

impl DiskKey {
    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DiskKey {
    type Err = TrackerError;

    fn from_str(text: &str) -> Result<Self, TrackerError> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if text.is_empty() || text.len() > 64 || !text.bytes().all(fits) {
            return Err(TrackerError::BadKey(text.chars().take(80).collect()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for DiskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A whole disk that can be tracked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskDevice {
    /// What tracking needs to know.
    pub identity: DiskIdentity,
    /// A key made from the kernel's name.
    pub key: DiskKey,
    /// The kernel's name, such as `sda`.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Whether the kernel refuses to write to it.
    pub read_only: bool,
    /// The maker's name for the model.
    pub model: Option<String>,
    /// The serial number.
    pub serial: Option<String>,
    /// The world-wide identifier.
    pub wwid: Option<String>,
    /// Whether it is a loop device, and over which file.
    pub backing_file: Option<PathBuf>,
}

impl DiskDevice {
    /// Looks at the device behind a path such as `/dev/sda`.
    ///
    /// # Errors
    /// With the reason and what to protect instead, for all that is no whole disk with a
    /// request queue: partitions, device mapper, software RAID, zoned disks.
    pub fn inspect(path: &Path) -> Result<Self, TrackerError> {
        let metadata = fs::metadata(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => TrackerError::NoSuchPath { path: path.to_owned() },
            _ => TrackerError::io("look at", path, source),
        })?;
        if !metadata.file_type().is_block_device() {
            return Err(TrackerError::NotABlockDevice { path: path.to_owned() });
        }
        let device = metadata.rdev();
        Self::inspect_in(Path::new("/sys"), rustix::fs::major(device), rustix::fs::minor(device))
    }

    fn inspect_in(sys: &Path, major: u32, minor: u32) -> Result<Self, TrackerError> {
        let link = sys.join(format!("dev/block/{major}:{minor}"));
        let folder = fs::canonicalize(&link).map_err(|_| TrackerError::NoSuchDevice {
            major,
            minor,
            path: link.clone(),
        })?;
        let sysfs = Sysfs { folder };
        let name = sysfs.name();
        sysfs.refuse_what_cannot_be_tracked(&name)?;
        let backing_file = sysfs.text(&["loop/backing_file"]).map(PathBuf::from);
        refuse_volumes(&name, major, backing_file.as_deref())?;

        let sectors = sysfs.number("size")?.unwrap_or_default();
        if sectors == 0 {
            return Err(TrackerError::Empty { name });
        }
        let size_bytes = sectors.saturating_mul(512);
        let blocks = blocks_of_bytes(size_bytes);
        let diskseq = sysfs.number("diskseq")?;
        Ok(Self {
            identity: DiskIdentity { major, minor, blocks, diskseq },
            key: name.replace(|c: char| !c.is_ascii_alphanumeric(), "-").parse()?,
            size_bytes,
            read_only: sysfs.number("ro")?.unwrap_or_default() != 0,
            model: sysfs.text(&["device/model"]),
            serial: sysfs.text(&["serial", "device/serial"]),
            wwid: sysfs.text(&["wwid", "device/wwid"]),
            backing_file,
            name,
        })
    }
}

/// The kernel's NBD devices.
const NBD_MAJOR: u32 = 43;

/// A volume that somebody opened on this server is a disk as any other to the kernel. Protecting it
/// would copy the copy, and block for as long as its server is away.
fn refuse_volumes(name: &str, major: u32, backing_file: Option<&Path>) -> Result<(), TrackerError> {
    if major == NBD_MAJOR {
        return Err(TrackerError::NetworkDisk { name: name.to_owned() });
    }
    let Some(file) = backing_file else { return Ok(()) };
    // Not asked of the file itself, which would wait for a server that is away.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if shows_volume(&mounts, file) {
        return Err(TrackerError::MountedVolume { name: name.to_owned(), file: file.to_owned() });
    }
    Ok(())
}

/// Whether a file is what nbdfuse and qemu-storage-daemon make of a network disk: the mount point of
/// a FUSE file system, or the file `nbd` right below it.
fn shows_volume(mountinfo: &str, file: &Path) -> bool {
    mountinfo.lines().any(|line| {
        let Some((before, after)) = line.split_once(" - ") else { return false };
        let is_fuse = after.starts_with("fuse ") || after.starts_with("fuse.");
        let point = before.split(' ').nth(4).map(unescaped).unwrap_or_default();
        is_fuse && (file == Path::new(&point) || file == Path::new(&point).join("nbd"))
    })
}

/// The kernel writes blanks, tabs, line ends and backslashes of a path as octal numbers.
fn unescaped(point: &str) -> String {
    let pairs = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    pairs.into_iter().fold(point.to_owned(), |text, (from, to)| text.replace(from, to))
}

struct Sysfs {
    folder: PathBuf,
}

impl Sysfs {
    /// The kernel's name; it writes a slash of the name as an exclamation mark.
    fn name(&self) -> String {
        let name = self.folder.file_name().unwrap_or_default();
        name.to_string_lossy().replace('!', "/")
    }

    fn has(&self, entry: &str) -> bool {
        self.folder.join(entry).exists()
    }

    fn text(&self, entries: &[&str]) -> Option<String> {
        let read = |entry: &&str| fs::read_to_string(self.folder.join(entry)).ok();
        entries.iter().filter_map(read).map(|text| text.trim().to_owned()).find(|text| !text.is_empty())
    }

    fn number(&self, entry: &str) -> Result<Option<u64>, TrackerError> {
        let Some(text) = self.text(&[entry]) else { return Ok(None) };
        let path = self.folder.join(entry);
        text.parse()
            .map(Some)
            .map_err(|_| TrackerError::BadSysfs { path, text: text.chars().take(80).collect() })
    }

    fn refuse_what_cannot_be_tracked(&self, name: &str) -> Result<(), TrackerError> {
        if self.has("partition") {
            let whole = Self { folder: self.folder.parent().unwrap_or(&self.folder).to_owned() };
            return Err(TrackerError::Partition { name: name.to_owned(), whole: whole.name() });
        }
        let kinds = [
            ("dm", "a device-mapper device (LVM, encryption, multipath)"),
            ("md", "a software RAID"),
            ("bcache", "a bcache device"),
        ];
        let kind = kinds.into_iter().find(|(entry, _)| self.has(entry)).map(|(_, kind)| kind);
        let kind = match kind {
            None if self.has("mq") => None,
            None if name.starts_with("nvme") => Some("an NVMe disk under the kernel's own multipathing"),
            other => Some(other.unwrap_or("a device without a request queue")),
        };
        if let Some(kind) = kind {
            let instead = self.instead(name);
            return Err(TrackerError::BioBased { name: name.to_owned(), kind, instead });
        }
        match self.text(&["queue/zoned"]) {
            Some(model) if model != "none" => Err(TrackerError::Zoned { name: name.to_owned(), model }),
            _ => Ok(()),
        }
    }

    /// What to protect instead of a device that is made of others.
    fn instead(&self, name: &str) -> String {
        let entries = fs::read_dir(self.folder.join("slaves")).into_iter().flatten().flatten();
        let mut parts: Vec<String> = entries
            .map(|entry| format!("/dev/{}", entry.file_name().to_string_lossy().replace('!', "/")))
            .collect();
        parts.sort();
        if !parts.is_empty() {
            return format!("protect the disks under it instead: {}", parts.join(", "));
        }
        if name.starts_with("nvme") {
            return "boot with nvme_core.multipath=N if the disk has a single path".to_owned();
        }
        "protect the disks under it instead, if it has any".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sysfs of one device with these files (a trailing slash makes a folder).
    fn inspect(device: &str, entries: &[(&str, &str)]) -> Result<DiskDevice, TrackerError> {
        let sys = tempfile::tempdir().unwrap();
        let folder = sys.path().join("devices").join(device);
        fs::create_dir_all(&folder).unwrap();
        for (entry, text) in entries {
            let path = folder.join(entry);
            if entry.ends_with('/') {
                fs::create_dir_all(path).unwrap();
            } else {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
        }
        fs::create_dir_all(sys.path().join("dev/block")).unwrap();
        std::os::unix::fs::symlink(&folder, sys.path().join("dev/block/8:16")).unwrap();
        DiskDevice::inspect_in(sys.path(), 8, 16)
    }

    #[test]
    fn a_whole_disk_is_described() {
        let entries = [
            ("mq/", ""),
            ("size", "2097153\n"),
            ("ro", "1\n"),
            ("diskseq", "9\n"),
            ("queue/zoned", "none\n"),
            ("device/model", "FAST DISK  \n"),
            ("device/wwid", "naa.5000\n"),
        ];
        let disk = inspect("cciss!c0d0", &entries).unwrap();
        assert_eq!(disk.identity, DiskIdentity { major: 8, minor: 16, blocks: 262_145, diskseq: Some(9) });
        assert_eq!((disk.name.as_str(), disk.key.as_str()), ("cciss/c0d0", "cciss-c0d0"));
        assert_eq!(disk.model.as_deref(), Some("FAST DISK"));
        assert_eq!((disk.wwid.as_deref(), disk.serial), (Some("naa.5000"), None));
        assert!(disk.read_only && disk.backing_file.is_none());
    }

    #[test]
    fn a_partition_is_refused_with_the_disk_to_name_instead() {
        let error = inspect("sdb/sdb1", &[("partition", "1"), ("size", "8")]).unwrap_err();
        assert_eq!(error.to_string(), "/dev/sdb1 is a partition; protect the whole disk /dev/sdb instead");
    }

    #[test]
    fn bio_based_devices_are_refused_with_the_disks_under_them() {
        // Request-based multipath has a queue and is refused all the same.
        let dm =
            [("dm/name", "vg-root"), ("mq/", ""), ("slaves/sdb/", ""), ("slaves/sda/", ""), ("size", "8")];
        let error = inspect("dm-0", &dm).unwrap_err().to_string();
        assert!(error.ends_with("protect the disks under it instead: /dev/sda, /dev/sdb"), "{error}");
        let error = inspect("md0", &[("md/level", "raid1"), ("size", "8")]).unwrap_err().to_string();
        assert!(error.contains("a software RAID"), "{error}");
        let error = inspect("nvme0n1", &[("size", "8")]).unwrap_err().to_string();
        assert!(error.contains("nvme_core.multipath=N"), "{error}");
        let error = inspect("zram0", &[("size", "8")]).unwrap_err().to_string();
        assert!(error.contains("without a request queue"), "{error}");
    }

    #[test]
    fn zoned_empty_and_missing_disks_are_refused() {
        let zoned = inspect("sda", &[("mq/", ""), ("queue/zoned", "host-managed"), ("size", "8")]);
        assert!(matches!(zoned, Err(TrackerError::Zoned { .. })), "{zoned:?}");
        assert!(matches!(inspect("sr0", &[("mq/", ""), ("size", "0")]), Err(TrackerError::Empty { .. })));
        assert!(matches!(inspect("sda", &[("mq/", ""), ("size", "x")]), Err(TrackerError::BadSysfs { .. })));
        let nowhere = DiskDevice::inspect_in(Path::new("/nowhere"), 1, 2);
        assert!(matches!(nowhere, Err(TrackerError::NoSuchDevice { .. })));
        let file = DiskDevice::inspect(Path::new("/proc/self/exe"));
        assert!(matches!(file, Err(TrackerError::NotABlockDevice { .. })));
    }

    #[test]
    fn volumes_that_are_shown_as_files_are_known_by_their_mounts() {
        let mounts = "25 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                      45 25 0:41 / /mnt/a\\040volume rw,nosuid - fuse /dev/fuse rw,user_id=0\n\
                      46 25 0:42 / /mnt/disk0 rw - fuse.qemu exports rw\n\
                      47 25 0:43 / /mnt/other rw - tmpfs fuse rw\n";
        let shows = |file: &str| shows_volume(mounts, Path::new(file));
        assert!(shows("/mnt/a volume/nbd") && shows("/mnt/disk0"));
        assert!(!shows("/mnt/a volume/disk.img") && !shows("/srv/disk.img") && !shows("/mnt/other/nbd"));
        let error = refuse_volumes("nbd0", NBD_MAJOR, None).unwrap_err().to_string();
        assert!(error.starts_with("/dev/nbd0 is a disk that another machine or program serves"), "{error}");
    }

    #[test]
    fn keys_cannot_leave_their_directory() {
        for text in ["", ".", "..", "a/b", "a b", &"x".repeat(65)] {
            assert!(text.parse::<DiskKey>().is_err(), "{text:?}");
        }
        assert_eq!("nvme0n1_A-9".parse::<DiskKey>().unwrap().as_str(), "nvme0n1_A-9");
    }
}
