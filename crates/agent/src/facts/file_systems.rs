//! File systems and swap: what is mounted, what a start mounts, and on which disks that is.

use std::collections::{BTreeMap, BTreeSet};

use lifeboat_wire::facts::FileSystem;

use super::block::{Below, DeviceNumber, btrfs_members};
use super::host::Host;

/// File systems that are told.
const FILE_SYSTEMS_MAX: usize = 500;

/// Kinds that a start brings along by itself, read-only images among them.
const PASSED_OVER: [&str; 6] = ["squashfs", "iso9660", "udf", "erofs", "overlay", "autofs"];

/// Kinds that come over the network.
const NETWORK: [&str; 10] =
    ["nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "9p", "afs", "ocfs2", "fuse.sshfs"];

/// The file systems of a server, and the disks that they lie on.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub file_systems: Vec<FileSystem>,
    pub disks: BTreeMap<DeviceNumber, String>,
}

/// Looks at what is mounted and what `fstab` wants. `protected` are the protected disks.
pub(super) fn find(host: &Host, protected: &BTreeSet<DeviceNumber>) -> Result<Found, String> {
    let mounts = mounts(&host.text("/proc/self/mountinfo")?);
    // A system without one mounts root alone.
    let table = host.text("/etc/fstab").map(|text| lines(&text)).unwrap_or_default();
    let mut found = Found::default();
    let mut known: BTreeSet<(Option<DeviceNumber>, String)> = BTreeSet::new();
    for line in &table {
        let mounted = mounts.iter().rfind(|mount| mount.point == line.point && line.kind != "swap");
        let device = mounted.and_then(|mount| mount.device(host)).or_else(|| device_of(host, &line.source));
        known.insert((device, line.point.clone()));
        found.add(host, protected, line.file_system(mounted), device);
    }
    for mount in &mounts {
        let device = mount.device(host);
        let is_known = known
            .iter()
            .any(|(other, point)| *point == mount.point || (device.is_some() && *other == device));
        // A file system that is mounted in many places is told once.
        if !is_known
            && (device.is_some() || mount.point == "/")
            && !PASSED_OVER.contains(&mount.kind.as_str())
        {
            known.insert((device, mount.point.clone()));
            found.add(host, protected, mount.file_system(), device);
        }
    }
    Ok(found)
}

impl Found {
    fn add(
        &mut self,
        host: &Host,
        protected: &BTreeSet<DeviceNumber>,
        mut file_system: FileSystem,
        device: Option<DeviceNumber>,
    ) {
        let mut below = Below::default();
        let devices = match (device, file_system.kind.as_str()) {
            (Some(device), "btrfs") => btrfs_members(host, device),
            (device, _) => device.into_iter().collect(),
        };
        for device in devices {
            below.add(host, device, protected);
        }
        file_system.disks = below.disks.values().cloned().collect();
        let is_unprotected = |(number, _): &(&DeviceNumber, &String)| !protected.contains(number);
        file_system.unprotected =
            below.disks.iter().filter(is_unprotected).map(|(_, name)| name.clone()).collect();
        file_system.layers = below.layers.into_iter().collect();
        if self.file_systems.len() < FILE_SYSTEMS_MAX {
            self.file_systems.push(file_system);
        }
        self.disks.extend(below.disks);
    }
}

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    number: DeviceNumber,
    point: String,
    kind: String,
    source: String,
}

impl Mount {
    fn device(&self, host: &Host) -> Option<DeviceNumber> {
        if self.number.major != 0 {
            return Some(self.number);
        }
        // Nothing is asked of a file system that may hang.
        let is_local = self.kind == "btrfs" && self.source.starts_with("/dev/");
        is_local.then(|| DeviceNumber::at(host, &self.source)).flatten()
    }

    fn file_system(&self) -> FileSystem {
        FileSystem {
            mount_point: self.point.clone(),
            kind: self.kind.clone(),
            source: self.source.clone(),
            needed: self.point == "/",
            disks: Vec::new(),
            unprotected: Vec::new(),
            layers: Vec::new(),
            network: NETWORK.contains(&self.kind.as_str()),
        }
    }
}

/// Lines such as `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`.
fn mounts(mountinfo: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(2);
        let number = DeviceNumber::parse(before.next()?)?;
        let point = unescaped(before.nth(1)?);
        let mut after = after.split(' ');
        let (kind, source) = (after.next()?.to_owned(), unescaped(after.next()?));
        Some(Mount { number, point, kind, source })
    };
    mountinfo.lines().filter_map(mount).collect()
}

/// A line of `fstab`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    source: String,
    point: String,
    kind: String,
    options: Vec<String>,
}

fn lines(fstab: &str) -> Vec<Line> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        let source = unescaped(fields.next().filter(|source| !source.starts_with('#'))?);
        let (point, kind) = (unescaped(fields.next()?), fields.next()?.to_owned());
        let options = fields.next().unwrap_or_default().split(',').map(str::to_owned).collect();
        let point = if kind == "swap" { kind.clone() } else { point };
        Some(Line { source, point, kind, options })
    };
    let is_real = |line: &Line| {
        line.source.contains('=') || line.source.starts_with("/") || NETWORK.contains(&line.kind.as_str())
    };
    fstab.lines().filter_map(line).filter(is_real).filter(|line| line.kind != "none").collect()
}

impl Line {
    fn has(&self, option: &str) -> bool {
        self.options.iter().any(|has| has == option)
    }

    fn file_system(&self, mounted: Option<&Mount>) -> FileSystem {
        let is_left_out = ["noauto", "nofail", "x-systemd.automount"].iter().any(|option| self.has(option));
        FileSystem {
            mount_point: self.point.clone(),
            kind: mounted.map_or(&self.kind, |mount| &mount.kind).clone(),
            source: self.source.clone(),
            // A start waits for swap that is missing, but not for ever.
            needed: self.point == "/" || (!is_left_out && self.kind != "swap"),
            disks: Vec::new(),
            unprotected: Vec::new(),
            layers: Vec::new(),
            network: self.has("_netdev") || NETWORK.contains(&self.kind.as_str()),
        }
    }
}

/// The device that `fstab` names by its path or by a tag.
fn device_of(host: &Host, source: &str) -> Option<DeviceNumber> {
    let Some((tag, value)) = source.split_once('=').filter(|_| !source.starts_with('/')) else {
        return DeviceNumber::at(host, source);
    };
    let directory = match tag {
        "UUID" => "by-uuid",
        "LABEL" => "by-label",
        "PARTUUID" => "by-partuuid",
        "PARTLABEL" => "by-partlabel",
        "ID" => "by-id",
        _ => return None,
    };
    DeviceNumber::at(host, &format!("/dev/disk/{directory}/{}", linked(value.trim_matches('"'))))
}

/// A value as udev writes it in a link's name.
fn linked(value: &str) -> String {
    let byte = |byte: u8| match byte {
        b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'#' | b'+' | b'-' | b'.' | b':' | b'=' | b'@' | b'_' => {
            char::from(byte).to_string()
        }
        other => format!("\\x{other:02x}"),
    };
    value.bytes().map(byte).collect()
}

/// `fstab` and the kernel write blanks, tabs, line ends and backslashes of a path as octal numbers.
fn unescaped(text: &str) -> String {
    let pairs = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    pairs.into_iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn host(mountinfo: &str, fstab: &str) -> (tempfile::TempDir, Host) {
        let root = super::super::block::tests::sys(&[
            ("sda", "8:0", &[]),
            ("sda/sda1", "8:1", &[]),
            ("sdb", "8:16", &[]),
        ]);
        fs::write(root.path().join("sys/devices/sda/sda1/partition"), "1\n").unwrap();
        fs::create_dir_all(root.path().join("proc/self")).unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        fs::write(root.path().join("proc/self/mountinfo"), mountinfo).unwrap();
        fs::write(root.path().join("etc/fstab"), fstab).unwrap();
        let host = Host::new(root.path(), || {});
        (root, host)
    }

    const MOUNTS: &str = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
                          23 22 0:5 / /dev rw - devtmpfs udev rw\n\
                          24 22 8:16 / /srv/a\\040b rw - xfs /dev/sdb rw\n\
                          25 22 8:1 /var/lib/x /srv/bound rw - ext4 /dev/sda1 rw\n\
                          26 22 0:44 / /mnt/n rw - nfs4 nas:/n rw\n";
    const TABLE: &str = "# <file system> <mount point>\n\
                         UUID=abc / ext4 errors=remount-ro 0 1\n\
                         /dev/sdb /srv/a\\040b xfs defaults 0 2\n\
                         nas:/n /mnt/n nfs4 defaults 0 0\n\
                         LABEL=more\\040space /more ext4 nofail 0 2\n\
                         UUID=def none swap sw 0 0\n\
                         tmpfs /tmp tmpfs defaults 0 0\n";

    #[test]
    fn what_a_start_needs_is_told_with_its_disks() {
        let (_root, host) = host(MOUNTS, TABLE);
        let sda = DeviceNumber { major: 8, minor: 0 };
        let found = find(&host, &BTreeSet::from([sda])).unwrap();
        let told: Vec<_> = found
            .file_systems
            .iter()
            .map(|fs| {
                (fs.mount_point.as_str(), fs.needed, fs.disks.join(","), fs.unprotected.join(","), fs.network)
            })
            .collect();
        let s = str::to_owned;
        assert_eq!(
            told,
            [
                ("/", true, s("sda"), s(""), false),
                ("/srv/a b", true, s("sdb"), s("sdb"), false),
                ("/mnt/n", true, s(""), s(""), true),
                ("/more", false, s(""), s(""), false),
                ("swap", false, s(""), s(""), false),
            ]
        );
        assert_eq!(found.disks.values().collect::<Vec<_>>(), ["sda", "sdb"]);
    }

    #[test]
    fn without_a_table_what_is_mounted_is_told_once_each() {
        let (root, host) = host(MOUNTS, "");
        fs::remove_file(root.path().join("etc/fstab")).unwrap();
        let found = find(&host, &BTreeSet::new()).unwrap();
        let points: Vec<_> =
            found.file_systems.iter().map(|fs| (fs.mount_point.as_str(), fs.needed)).collect();
        assert_eq!(points, [("/", true), ("/srv/a b", false)]);
    }

    #[test]
    fn a_label_is_looked_up_as_udev_writes_it() {
        assert_eq!(linked("more space/1"), "more\\x20space\\x2f1");
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_harm(text in "[ -~\n\t]{0,400}") {
            let _ = mounts(&text);
            let _ = lines(&text);
        }
    }
}
