//! Where the drivers are that a machine of another make needs: in the running kernel, in its initramfs,
//! or among the modules on the root file system.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use lifeboat_wire::facts::{DRIVERS, DriverPlace, Fact};

use super::host::Host;
use super::initramfs::{self, module_name};

/// Bytes of the longest list of modules.
const LIST_BYTES_MAX: u64 = 32 << 20;
/// Bytes of the largest initramfs that is read.
const INITRAMFS_BYTES_MAX: u64 = 2 << 30;

type Modules = Result<BTreeSet<String>, String>;

/// What an initramfs was found to have. It is read again only when it is another file.
#[derive(Default)]
pub(super) struct KnownInitramfs(Option<(PathBuf, Stamp, Modules)>);

/// What changes when a file does.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

/// Where each of [`DRIVERS`] is for the kernel `release`.
pub(super) fn places(
    host: &Host,
    release: &str,
    known: &mut KnownInitramfs,
) -> BTreeMap<String, Fact<DriverPlace>> {
    let directory = ["/lib/modules", "/usr/lib/modules"].map(|place| format!("{place}/{release}"));
    let directory = directory.iter().find(|place| host.has(place)).unwrap_or(&directory[0]);
    let list = |name: &str| host.long_text(format!("{directory}/{name}"), LIST_BYTES_MAX);
    let lists = list("modules.builtin").and_then(|builtin| Ok((builtin, list("modules.dep")?)));
    match lists {
        Ok((builtin, dependencies)) => {
            let lists =
                Lists { builtin: builtin_names(&builtin), dependencies: dependencies_of(&dependencies) };
            let initramfs = known.modules(host, release);
            DRIVERS.map(|driver| (driver.to_owned(), lists.place(driver, &initramfs))).into()
        }
        Err(why) => DRIVERS.map(|driver| (driver.to_owned(), Fact::Unknown(why.clone()))).into(),
    }
}

struct Lists {
    builtin: BTreeSet<String>,
    /// What each of the drivers that are modules needs, all the way down.
    dependencies: BTreeMap<String, Vec<String>>,
}

impl Lists {
    fn place(&self, driver: &str, initramfs: &Modules) -> Fact<DriverPlace> {
        if self.builtin.contains(driver) {
            return Fact::Known(DriverPlace::BuiltIn);
        }
        let Some(needed) = self.dependencies.get(driver) else { return Fact::Known(DriverPlace::Absent) };
        match initramfs {
            Ok(modules) => {
                let has = |name: &String| modules.contains(name) || self.builtin.contains(name);
                let is_there = modules.contains(driver) && needed.iter().all(has);
                Fact::Known(if is_there { DriverPlace::Initramfs } else { DriverPlace::RootFileSystem })
            }
            Err(why) => Fact::Unknown(why.clone()),
        }
    }
}

/// Lines such as `kernel/drivers/block/virtio_blk.ko`.
fn builtin_names(list: &str) -> BTreeSet<String> {
    list.lines().filter_map(module_name).collect()
}

/// Lines such as `kernel/drivers/block/virtio_blk.ko.xz: kernel/drivers/virtio/virtio.ko.xz`.
fn dependencies_of(list: &str) -> BTreeMap<String, Vec<String>> {
    let lines = list.lines().filter_map(|line| line.split_once(':'));
    let named = lines.filter_map(|(module, needed)| Some((module_name(module)?, needed)));
    let wanted = named.filter(|(module, _)| DRIVERS.contains(&module.as_str()));
    wanted
        .map(|(module, needed)| (module, needed.split_whitespace().filter_map(module_name).collect()))
        .collect()
}

impl KnownInitramfs {
    fn modules(&mut self, host: &Host, release: &str) -> Modules {
        let (path, stamp) = find(host, release)?;
        if let Some((_, _, modules)) = self.0.as_ref().filter(|known| (&known.0, known.1) == (&path, stamp)) {
            return modules.clone();
        }
        let modules = read(host, &path, stamp, release).map_err(|why| format!("{}: {why}", path.display()));
        self.0 = Some((path, stamp, modules.clone()));
        modules
    }
}

/// The initramfs of a kernel, by the names that distributions give it.
fn find(host: &Host, release: &str) -> Result<(PathBuf, Stamp), String> {
    let machine = host.word("/etc/machine-id").unwrap_or_default();
    let candidates = [
        format!("/boot/initrd.img-{release}"),
        format!("/boot/initramfs-{release}.img"),
        format!("/boot/initrd-{release}"),
        format!("/boot/initramfs-{release}"),
        format!("/boot/{machine}/{release}/initrd"),
        format!("/boot/efi/{machine}/{release}/initrd"),
        format!("/efi/{machine}/{release}/initrd"),
        format!("/usr/lib/modules/{release}/initrd"),
        "/boot/initramfs-linux.img".to_owned(),
    ];
    host.pause();
    let found = candidates.iter().find_map(|candidate| {
        let data = std::fs::metadata(host.path(candidate)).ok().filter(std::fs::Metadata::is_file)?;
        let stamp =
            Stamp { inode: data.ino(), bytes: data.len(), changed: (data.mtime(), data.mtime_nsec()) };
        Some((PathBuf::from(candidate), stamp))
    });
    found.ok_or_else(|| format!("no initramfs of the kernel {release} was found below /boot"))
}

fn read(host: &Host, path: &std::path::Path, stamp: Stamp, release: &str) -> Modules {
    if stamp.bytes > INITRAMFS_BYTES_MAX {
        return Err(format!("it has more than {} GiB", INITRAMFS_BYTES_MAX >> 30));
    }
    let file = host.open(path).map_err(|error| format!("it cannot be read: {error}"))?;
    initramfs::modules(&mut Paced { file: file.take(INITRAMFS_BYTES_MAX), host }, release)
}

/// A file that is not read while file systems are frozen.
struct Paced<'a, R> {
    file: R,
    host: &'a Host,
}

impl<R: Read> Read for Paced<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.host.pause();
        self.file.read(buffer)
    }
}

#[cfg(test)]
mod tests;
