//! What can go wrong, said to the operator.

use std::io;
use std::path::PathBuf;

/// Why a disk cannot be tracked.
#[derive(Debug, thiserror::Error)]
pub enum TrackerError {
    /// Not enough rights.
    #[error(
        "tracking needs root, or the capabilities CAP_BPF and CAP_PERFMON; this process lacks {missing}: \
         run the agent as root or give its service these capabilities"
    )]
    NotPrivileged {
        /// The capabilities that are missing.
        missing: String,
    },
    /// The kernel is too old.
    #[error(
        "Linux {release} is too old to track changed blocks: 5.8 is the first that can; \
         boot a newer kernel of the distribution"
    )]
    KernelTooOld {
        /// What `uname -r` says.
        release: String,
    },
    /// The kernel has no type information.
    #[error(
        "this kernel has no type information ({path}: {source}); boot one that was built with \
         CONFIG_DEBUG_INFO_BTF, as the distributions' kernels since about 2021 are"
    )]
    NoTypeInformation {
        /// Where it should be.
        path: &'static str,
        /// Why it could not be read.
        source: io::Error,
    },
    /// The kernel's type information cannot be understood.
    #[error(
        "the kernel's type information cannot be used: {why}; please report this with the output of uname -a"
    )]
    BadTypeInformation {
        /// What is wrong.
        why: String,
    },
    /// The kernel has no block tracepoints.
    #[error(
        "this kernel has no tracepoint {tracepoint}; boot one that was built with CONFIG_BLOCK and CONFIG_BPF_EVENTS"
    )]
    NoTracepoint {
        /// The tracepoint that is missing.
        tracepoint: &'static str,
    },
    /// The processor is not supported.
    #[error("changed blocks cannot be tracked on {architecture}: x86_64 and aarch64 are supported")]
    Architecture {
        /// What this program was built for.
        architecture: &'static str,
    },
    /// The pins' directory is on no BPF file system.
    #[error("{path} is not on a BPF file system; mount one: mount -t bpf bpf /sys/fs/bpf")]
    NoBpfFs {
        /// The directory.
        path: PathBuf,
    },
    /// The BPF file system cannot be mounted.
    #[error(
        "cannot mount a BPF file system on {path}: {source}; mount it by hand: mount -t bpf bpf /sys/fs/bpf"
    )]
    MountBpfFs {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another process uses the same directory of pins.
    #[error("{path} is in use by another agent on this machine; stop that one first")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// What is pinned there is none of ours.
    #[error(
        "{path} is not what this version pins there ({why}); stop all agents and remove it, which means a resync"
    )]
    ForeignPin {
        /// The pin.
        path: PathBuf,
        /// What differs.
        why: String,
    },
    /// The kernel refused the programs.
    #[error("the kernel refused to load the tracking programs ({variant}): {why}")]
    Load {
        /// Which of the objects.
        variant: &'static str,
        /// The kernel's reason, with the end of the verifier's log.
        why: String,
    },
    /// The kernel has no atomic operations, and there is no safe way without them here.
    #[error(
        "this kernel cannot do atomic operations in eBPF ({why}), and on {architecture} tracking would not be \
         safe without; boot Linux 5.18 or newer"
    )]
    NoAtomics {
        /// What this program was built for.
        architecture: &'static str,
        /// The kernel's reason.
        why: String,
    },
    /// The maps could not be made.
    #[error("cannot create the bitmaps of disk {key} ({mebibytes} MiB of kernel memory): {why}")]
    Maps {
        /// The disk.
        key: String,
        /// What they would take.
        mebibytes: u64,
        /// The kernel's reason.
        why: String,
    },
    /// Attaching or pinning failed.
    #[error("cannot {what} for disk {key}: {why}")]
    Attach {
        /// The disk.
        key: String,
        /// What was tried.
        what: String,
        /// The kernel's reason.
        why: String,
    },
    /// A system call failed.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A name that cannot be a key.
    #[error("a disk's key is 1 to 64 letters, digits, '-' and '_', not {0:?}")]
    BadKey(String),
    /// The disk has no blocks or too many.
    #[error("a disk of {blocks} blocks of 4 KiB cannot be tracked: 1 block to 256 TiB are possible")]
    BadSize {
        /// Its size.
        blocks: u64,
    },
    /// There is nothing at the path.
    #[error("{path} does not exist; `lsblk --nodeps` lists the disks of this server")]
    NoSuchPath {
        /// The path.
        path: PathBuf,
    },
    /// The path is no block device.
    #[error("{path} is not a block device; name a whole disk such as /dev/sda")]
    NotABlockDevice {
        /// The path.
        path: PathBuf,
    },
    /// The kernel knows no such device.
    #[error("the kernel knows no block device {major}:{minor} ({path}); was the disk removed?")]
    NoSuchDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
        /// Where it should be described.
        path: PathBuf,
    },
    /// A file of sysfs says something unexpected.
    #[error("{path} says {text:?}, which is not a number; please report this")]
    BadSysfs {
        /// The file.
        path: PathBuf,
        /// Its content.
        text: String,
    },
    /// A partition.
    #[error("/dev/{name} is a partition; protect the whole disk /dev/{whole} instead")]
    Partition {
        /// The partition.
        name: String,
        /// The disk that it is on.
        whole: String,
    },
    /// A device without a request queue.
    #[error("/dev/{name} is {kind}, whose writes cannot be tracked; {instead}")]
    BioBased {
        /// The device.
        name: String,
        /// What it is.
        kind: &'static str,
        /// What to do.
        instead: String,
    },
    /// A disk over the network.
    #[error(
        "/dev/{name} is a disk that another machine or program serves over NBD, such as a volume of Lifeboat; \
         protect the disk where it is, not here"
    )]
    NetworkDisk {
        /// The device.
        name: String,
    },
    /// A loop device over a volume.
    #[error(
        "/dev/{name} shows {file}, a volume that is mounted through FUSE; protect the disk that the volume is a \
         copy of, not the volume"
    )]
    MountedVolume {
        /// The device.
        name: String,
        /// What it is over.
        file: PathBuf,
    },
    /// Another agent has the disk.
    #[error(
        "/dev/{name} is already protected by another agent on this machine (process {process}, which tracks it in \
         {directory}); take the disk out of the settings of one of the two"
    )]
    TrackedElsewhere {
        /// The device.
        name: String,
        /// That agent.
        process: u32,
        /// Its directory of pins.
        directory: PathBuf,
    },
    /// A zoned disk.
    #[error(
        "/dev/{name} is a zoned disk ({model}), whose writes name no fixed place; it cannot be protected"
    )]
    Zoned {
        /// The disk.
        name: String,
        /// The kind of zones.
        model: String,
    },
    /// No medium.
    #[error("/dev/{name} has no medium or no size; insert or attach one first")]
    Empty {
        /// The device.
        name: String,
    },
}

impl TrackerError {
    /// Whether the same call can succeed later without anybody changing the machine.
    #[must_use]
    pub fn can_retry(&self) -> bool {
        matches!(self, Self::InUse { .. } | Self::Maps { .. })
    }

    pub(crate) fn io(what: &'static str, path: &std::path::Path, source: impl Into<io::Error>) -> Self {
        Self::Io { what, path: path.to_owned(), source: source.into() }
    }
}
