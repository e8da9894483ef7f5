//! Facts of this server: what has to be known of it so that its copy starts elsewhere.
//!
//! They are read from `/proc`, `/sys`, `/etc`, `/boot` and the first bytes of disks: never written, bounded,
//! and nothing is executed but for the length of the last start, which systemd tells to its own program
//! alone. What cannot be found out is a fact as well, with the reason. [`reporter`] sends them.

mod addresses;
mod block;
mod drivers;
mod file_systems;
pub(crate) mod host;
pub(crate) mod initramfs;
pub(crate) mod network;
pub(crate) mod network_configuration;
pub(crate) mod partition_table;
pub(crate) mod reporter;
mod system;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use jiff::Timestamp;
use lifeboat_tracker::DiskDevice;
use lifeboat_wire::facts::{DiskFacts, Fact, FileSystem, ServerFacts};

use block::DeviceNumber;
use drivers::KnownInitramfs;
use file_systems::Found;
use host::Host;
use system::fact;

/// Where an EFI system partition is mounted.
const ESP_PLACES: [&str; 3] = ["/boot/efi", "/efi", "/boot"];

/// Finds facts out, and remembers what is costly and cannot have changed.
pub(crate) struct Collector {
    host: Host,
    initramfs: KnownInitramfs,
    boot_ms: Option<u64>,
}

/// A protected disk that is there.
struct Protected {
    path: String,
    device: DiskDevice,
}

impl Collector {
    /// `pause` is called before each reading and returns when reading may go on.
    pub fn new(pause: impl Fn() + Send + 'static) -> Self {
        Self { host: Host::new("/", pause), initramfs: KnownInitramfs::default(), boot_ms: None }
    }

    /// All facts. `paths` are the protected disks.
    pub fn collect(&mut self, paths: &[String], now: Timestamp) -> ServerFacts {
        let inspect = |path: &String| {
            let device = DiskDevice::inspect(Path::new(path)).ok()?;
            Some((number_of(&device), Protected { path: path.clone(), device }))
        };
        let protected: BTreeMap<DeviceNumber, Protected> = paths.iter().rev().filter_map(inspect).collect();
        let found = file_systems::find(&self.host, &protected.keys().copied().collect::<BTreeSet<_>>());
        let esp = found.as_ref().ok().and_then(|found| esp(&found.file_systems));
        let uname = rustix::system::uname();
        let release = uname.release().to_string_lossy().into_owned();
        let drivers = drivers::places(&self.host, &release, &mut self.initramfs);
        let host = &self.host;
        ServerFacts {
            time: now,
            os: fact(system::os(host)),
            kernel: release,
            architecture: uname.machine().to_string_lossy().into_owned(),
            kernel_command_line: fact(host.text("/proc/cmdline").map(|line| line.trim().to_owned())),
            firmware: Fact::Known(system::firmware(host, esp)),
            cpus: fact(system::cpus(host)),
            memory_bytes: fact(system::memory_bytes(host)),
            disks: disks(host, &protected, found.as_ref().ok()),
            interfaces: fact(addresses::of_this_server().map(|all| network::interfaces(host, &all))),
            drivers,
            boot_ms: self.boot_ms(),
            file_systems: fact(found.map(|found| found.file_systems)),
            fits_copies: true,
        }
    }

    /// It stays the same until the server starts again, and so does this agent then.
    fn boot_ms(&mut self) -> Fact<u64> {
        if let Some(known) = self.boot_ms {
            return Fact::Known(known);
        }
        let boot_ms = system::boot_ms(&self.host);
        self.boot_ms = boot_ms.as_ref().ok().copied();
        fact(boot_ms)
    }
}

fn number_of(device: &DiskDevice) -> DeviceNumber {
    DeviceNumber { major: device.identity.major, minor: device.identity.minor }
}

fn esp(file_systems: &[FileSystem]) -> Option<&'static str> {
    ESP_PLACES
        .into_iter()
        .find(|place| file_systems.iter().any(|fs| fs.mount_point == *place && fs.kind == "vfat"))
}

/// The protected disks, and those that the system needs beside them.
fn disks(
    host: &Host,
    protected: &BTreeMap<DeviceNumber, Protected>,
    found: Option<&Found>,
) -> Vec<DiskFacts> {
    let mut disks: Vec<_> = protected.values().map(|disk| protected_disk(host, disk)).collect();
    let needed = found.map(|found| &found.disks).into_iter().flatten();
    for (number, name) in needed.filter(|(number, _)| !protected.contains_key(number)) {
        let unread = || "the disk is not protected".to_owned();
        disks.push(DiskFacts {
            name: name.clone(),
            path: None,
            bytes: attribute(host, *number, "size").unwrap_or(0).saturating_mul(512),
            boot_code: Fact::Unknown(unread()),
            partitions: Fact::Unknown(unread()),
        });
    }
    disks
}

fn protected_disk(host: &Host, disk: &Protected) -> DiskFacts {
    let bytes = disk.device.size_bytes;
    let sector = attribute(host, number_of(&disk.device), "queue/logical_block_size").unwrap_or(512);
    let beginning = host.open(&disk.path).and_then(|file| {
        partition_table::read(bytes, sector, &mut |offset, length| {
            host.pause();
            let mut buffer = vec![0; length];
            file.read_exact_at(&mut buffer, offset)?;
            io::Result::Ok(buffer)
        })
    });
    let (boot_code, partitions) = match beginning {
        Ok(beginning) => (Fact::Known(beginning.boot_code), fact(beginning.table)),
        Err(error) => {
            let why = format!("{} cannot be read: {error}", disk.path);
            (Fact::Unknown(why.clone()), Fact::Unknown(why))
        }
    };
    DiskFacts { name: disk.device.name.clone(), path: Some(disk.path.clone()), bytes, boot_code, partitions }
}

fn attribute(host: &Host, number: DeviceNumber, name: &str) -> Option<u64> {
    host.word(format!("/sys/dev/block/{}:{}/{name}", number.major, number.minor))?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn this_machine_is_told_and_twice_the_same() {
        let pauses = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&pauses);
        let mut collector = Collector::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let facts = collector.collect(&["/dev/no-such-disk".into()], Timestamp::UNIX_EPOCH);
        assert!(facts.cpus.known().is_some_and(|cpus| *cpus > 0), "{:?}", facts.cpus);
        assert!(
            facts.memory_bytes.known().is_some_and(|bytes| *bytes > 64 << 20),
            "{:?}",
            facts.memory_bytes
        );
        assert!(facts.interfaces.known().is_some() && facts.os.known().is_some(), "{facts:?}");
        assert_eq!(facts.drivers.len(), lifeboat_wire::facts::DRIVERS.len());
        assert!(facts.disks.iter().all(|disk| disk.path.is_none()));
        // Reading can be held up at every file.
        assert!(pauses.load(Ordering::Relaxed) > 10);
        assert!(facts.same_as(&collector.collect(&["/dev/no-such-disk".into()], Timestamp::now())));
    }
}
