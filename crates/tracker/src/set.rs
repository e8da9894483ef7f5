//! All tracked disks of a server and the epoch that they share.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::fence;

use aya::maps::{Array, MapData};
use rustix::fs::FlockOperation;

use crate::TrackerError;
use crate::device::{DiskIdentity, DiskKey};
use crate::disk::DiskTracker;
use crate::instance::{FreshReason, Instance, MMAPABLE, PinnedInstance, directory_of, open_map};
use crate::layout::SMALL_MAP_WORDS;
use crate::mapping::WordMap;
use crate::object::{Kernel, Variant, explain};
use crate::support::{check_kernel, prepare_directory};

/// Which of a disk's two `issued` bitmaps. They take turns: an epoch uses one until the
/// next epoch begins with the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EpochSide {
    /// The first.
    A,
    /// The second.
    B,
}

impl EpochSide {
    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    pub(crate) const fn slot(self) -> usize {
        match self {
            Self::A => 0,
            Self::B => 1,
        }
    }
}

/// How tracking of a disk began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attached {
    /// It went on since an earlier process attached: the bits tell of every write since.
    Continued,
    /// It starts now: nothing is known of earlier writes, so the disk must be compared or
    /// copied, reading it after this.
    Fresh(FreshReason),
}

/// The pins of a server in one directory, which one process at a time may hold.
#[derive(Debug)]
pub struct TrackerSet {
    directory: PathBuf,
    control: WordMap,
    control_id: u32,
    kernel: Kernel,
    variant: Option<Variant>,
    _lock: Lock,
}

impl TrackerSet {
    /// Opens a directory of pins, such as `/sys/fs/bpf/lifeboat`, making it if need be.
    ///
    /// # Errors
    /// When the machine cannot track (see [`crate::check_support`]), or another process has
    /// the directory open.
    pub fn open(directory: &Path) -> Result<Self, TrackerError> {
        check_kernel()?;
        prepare_directory(directory)?;
        let lock = Lock::new(directory)?;
        let (control, control_id) = open_control(&directory.join("control"))?;
        let set = Self {
            directory: directory.to_owned(),
            control,
            control_id,
            kernel: Kernel::read()?,
            variant: None,
            _lock: lock,
        };
        for instance in set.list()?.into_iter().filter(|instance| instance.identity.is_none()) {
            tracing::warn!(disk = %instance.key, "removing what a crash left half-made");
            set.detach(&instance.key)?;
        }
        Ok(set)
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Uses these programs for disks attached from now on, not the best that the kernel accepts.
    pub fn set_variant(&mut self, variant: Variant) {
        self.variant = Some(variant);
    }

    /// The epoch that writes are counted to now.
    #[must_use]
    pub fn epoch(&self) -> EpochSide {
        if self.control[0].load(SeqCst) & 1 == 0 { EpochSide::A } else { EpochSide::B }
    }

    /// Begins a new epoch for all disks at one instant and returns it.
    ///
    /// Every write whose issue begins after this returns is marked in the new epoch, and in it
    /// no other than writes sent after the instant are marked, but for stragglers, which err on
    /// the side of a collision. All attached disks should be given; for one that is not, the
    /// marks of the epoch before the last stay and look like collisions.
    pub fn switch_epoch<'a>(&mut self, disks: impl IntoIterator<Item = &'a mut DiskTracker>) -> EpochSide {
        let next = self.epoch().other();
        for disk in disks {
            disk.clear_issued(next);
        }
        fence(SeqCst);
        self.control[0].store(next.slot() as u64, SeqCst);
        fence(SeqCst);
        next
    }

    /// Tracks a disk, going on with what is pinned for it where that belongs to it.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is left behind then.
    pub fn attach(
        &mut self,
        key: &DiskKey,
        identity: &DiskIdentity,
    ) -> Result<(DiskTracker, Attached), TrackerError> {
        let directory = directory_of(&self.directory, key);
        let reason = match Instance::open(&directory, identity, self.control_id)? {
            Ok(instance) => {
                tracing::info!(disk = %key, variant = instance.variant.as_str(), "tracking went on");
                return Ok((self.tracker(key, identity, instance), Attached::Continued));
            }
            Err(reason) => reason,
        };
        tracing::info!(disk = %key, %reason, "tracking starts now");
        Instance::remove(&directory)?;
        let control = self.directory.join("control");
        Instance::create(&directory, key, identity, (&control, self.control_id), &self.kernel, self.variant)?;
        match Instance::open(&directory, identity, self.control_id)? {
            Ok(instance) => Ok((self.tracker(key, identity, instance), Attached::Fresh(reason))),
            Err(reason) => Err(TrackerError::Attach {
                key: key.to_string(),
                what: "open what was just pinned".into(),
                why: reason.to_string(),
            }),
        }
    }

    /// Ends the tracking of a disk and removes its pins. Whether there were any.
    ///
    /// # Errors
    /// When a pin cannot be removed; calling it again goes on.
    pub fn detach(&self, key: &DiskKey) -> Result<bool, TrackerError> {
        Instance::remove(&directory_of(&self.directory, key))
    }

    /// What is pinned, ordered by key.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<Vec<PinnedInstance>, TrackerError> {
        Self::list_in(&self.directory)
    }

    /// As [`Self::list`], beside a process that has the directory open.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list_in(directory: &Path) -> Result<Vec<PinnedInstance>, TrackerError> {
        Instance::list(directory)
    }

    fn tracker(&self, key: &DiskKey, identity: &DiskIdentity, instance: Instance) -> DiskTracker {
        DiskTracker::new(key.clone(), *identity, instance)
    }
}

/// The right to use a directory of pins.
#[derive(Debug)]
struct Lock(File);

impl Lock {
    fn new(directory: &Path) -> Result<Self, TrackerError> {
        let file = File::open(directory).map_err(|source| TrackerError::io("open", directory, source))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(TrackerError::InUse { path: directory.to_owned() }),
            Err(error) => Err(TrackerError::io("lock", directory, error)),
        }
    }
}

impl Drop for Lock {
    /// Closing alone would leave it to a child process that was forked and has not yet
    /// executed its program.
    fn drop(&mut self) {
        if let Err(error) = rustix::fs::flock(&self.0, FlockOperation::Unlock) {
            tracing::warn!(%error, "cannot unlock the directory of pins");
        }
    }
}

fn open_control(path: &Path) -> Result<(WordMap, u32), TrackerError> {
    if !path.exists() {
        let failed = |what, error: &dyn std::error::Error| {
            TrackerError::io(what, path, std::io::Error::other(explain(error)))
        };
        let map = Array::<MapData, u64>::create(SMALL_MAP_WORDS, MMAPABLE)
            .map_err(|error| failed("create the control map", &error))?;
        map.pin(path).map_err(|error| failed("pin the control map", &error))?;
    }
    open_map(path, SMALL_MAP_WORDS)?
        .map_err(|reason| TrackerError::ForeignPin { path: path.to_owned(), why: reason.to_string() })
}
