//! Points in time with the file systems of the protected disks frozen.
//!
//! Each attempt: settle, `prepare`, sync until that is quick, freeze, `frozen`, switch, take, read
//! the hottest blocks, thaw, `release`, read the rest. Reading and checking are those of the
//! optimistic point, so the image is right whatever is written after the thaw; the freeze is
//! what makes it a *clean* state, since the switch lies inside of it.
//!
//! # What can go wrong while frozen
//!
//! Whoever writes to a frozen file system hangs until it thaws. So between freeze and thaw this
//! code writes no file, logs nothing, and hands nothing to the sink (which may log); the blocks
//! that are read go to memory that was there before and is locked, and so do the lists of what is
//! to be read, up to some thousand extents. The watchdog covers the rest:
//! a thread with its own timer and its own open files, begun before the freeze, that thaws when
//! the time is up, whether a hook hangs, a read hangs, or the capture thread is gone. A thread
//! that unwinds thaws on its way. A process that was killed left a record, written and synced
//! before the freeze, from which [`thaw_leftovers`] thaws at the next start.
//!
//! The agent's own state and logs may lie on a file system that is frozen. Other threads of the
//! agent must not write there between `prepare` and `release`, or they hang for the length of the
//! freeze, and with them whoever waits for them; if the capture thread waits for them, until the
//! watchdog acts. The agent's hooks hold them up until `release`.
//!
//! # When the point is valid
//!
//! The watchdog says that it fires before it thaws. If it has not said so *after* the switch,
//! everything was frozen at the switch. And if the thaw finds a file system that is not frozen
//! any more though the watchdog never fired, someone else thawed it, perhaps before the switch.

mod freeze;
mod hold;
mod mounts;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_model::{DiskNumber, Extent, PointKind};

use self::freeze::{Watchdog, freeze, thaw};
pub use self::hold::Hold;
use self::mounts::{DeviceNumber, Mount, mounts_on};
use crate::capture::{Extents, Taken};
use crate::optimistic::{Moment, Run};
use crate::{Capture, CaptureError, CapturedPoint, ChangeSink, PointError};

/// A sync as quick as this leaves little for the freeze to write.
const QUICK_SYNC: Duration = Duration::from_millis(50);

/// Syncs before one freeze at most.
const SYNCS_MAX: u32 = 5;

/// Extents that the window of a freeze can list in memory that was there before.
const EXTENTS_PREPARED: usize = 4096;

/// How file systems are frozen.
#[derive(Clone, Debug)]
pub struct QuiesceOptions {
    /// After this the watchdog thaws, whatever else happens.
    pub frozen_max: Duration,
    /// What to do about file systems that cannot be frozen, such as FAT.
    pub unfreezable: Unfreezable,
    /// The file that says what is frozen while it is, for [`thaw_leftovers`].
    pub record: PathBuf,
    /// Blocks read inside the freeze at most, the most often rewritten first.
    pub blocks_in_freeze_max: usize,
}

impl QuiesceOptions {
    /// A watchdog of 3 seconds, refusing what cannot be frozen, 1024 blocks read inside.
    #[must_use]
    pub fn new(record: PathBuf) -> Self {
        let frozen_max = Duration::from_secs(3);
        Self { frozen_max, unfreezable: Unfreezable::Refuse, record, blocks_in_freeze_max: 1024 }
    }
}

/// What to do about a file system that knows no freezing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfreezable {
    /// Take no point.
    Refuse,
    /// Sync it and name it in the point.
    Sync,
}

/// What the caller does around the freeze.
pub trait QuiesceHooks {
    /// Before the freeze: bring applications to rest.
    ///
    /// # Errors
    /// One sentence; no point is taken then.
    fn prepare(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// Everything is frozen: wait for the other servers of a group. Must not write files, log or
    /// allocate much.
    ///
    /// # Errors
    /// One sentence; everything thaws and no point is taken then.
    fn frozen(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// Everything is thawed: let applications go on. Called after every `prepare`, failed or not.
    fn release(&mut self) {}
}

/// Why file systems were not frozen long enough for a point.
#[derive(Debug, thiserror::Error)]
pub enum QuiesceError {
    /// The list of mounts cannot be read.
    #[error("cannot find the file systems on the protected disks: {0}")]
    Mounts(io::Error),
    /// There are none, so there is nothing that such a point would promise.
    #[error("no mounted file system was found on the protected disks; take crash-consistent points")]
    NoFileSystems,
    /// One cannot be frozen.
    #[error("cannot freeze {mount} ({kind} on {device}): {source}")]
    Freeze {
        /// The mount point.
        mount: String,
        /// The file system's type.
        kind: String,
        /// What is mounted there.
        device: String,
        /// Why.
        source: io::Error,
    },
    /// Something thawed before the point in time.
    #[error("{mount} was thawed before the point was taken: {by}")]
    Thawed {
        /// The mount point, or all of them.
        mount: String,
        /// By whom.
        by: &'static str,
    },
    /// A hook refused.
    #[error("the {step} step said: {message}")]
    Hook {
        /// Which hook.
        step: &'static str,
        /// What it said.
        message: String,
    },
    /// The record of what is frozen cannot be written, so nothing was frozen.
    #[error("cannot write {path}, which must say what is frozen: {source}")]
    Record {
        /// The record.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A file system that is to be frozen.
struct Target {
    mount: Mount,
    point: PathBuf,
    root: File,
}

impl Target {
    fn error(&self, source: io::Error) -> QuiesceError {
        freeze_error(&self.mount, self.point.display().to_string(), source)
    }
}

fn freeze_error(mount: &Mount, point: String, source: io::Error) -> QuiesceError {
    QuiesceError::Freeze { mount: point, kind: mount.kind.clone(), device: mount.source.clone(), source }
}

/// All that a freeze needs, made before it.
struct Freezer {
    targets: Vec<Target>,
    watchdog: Watchdog,
    unfreezable: Unfreezable,
}

/// File systems are frozen while this exists.
struct Frozen {
    freezer: Arc<Freezer>,
    /// Which of the targets are frozen, as far as this process did it.
    frozen: Vec<bool>,
    since: Instant,
}

impl Freezer {
    fn new(disks: &BTreeSet<DeviceNumber>, unfreezable: Unfreezable) -> Result<Arc<Self>, QuiesceError> {
        let mounts = mounts_on(disks).map_err(QuiesceError::Mounts)?;
        if mounts.is_empty() {
            return Err(QuiesceError::NoFileSystems);
        }
        let mut targets = Vec::with_capacity(mounts.len());
        for mount in mounts {
            let (point, root) = mount.open().map_err(|source| freeze_error(&mount, mount.name(), source))?;
            targets.push(Target { mount, point, root });
        }
        let roots = targets.iter().map(|target| target.root.try_clone()).collect::<io::Result<_>>();
        let watchdog = roots.and_then(Watchdog::new).map_err(QuiesceError::Mounts)?;
        Ok(Arc::new(Self { targets, watchdog, unfreezable }))
    }

    fn sync(&self) -> Result<(), QuiesceError> {
        self.targets
            .iter()
            .try_for_each(|target| rustix::fs::syncfs(&target.root).map_err(|e| target.error(e.into())))
    }

    /// Freezes all targets, or none.
    fn freeze(self: &Arc<Self>, frozen_max: Duration) -> Result<Frozen, QuiesceError> {
        let frozen = vec![false; self.targets.len()];
        self.watchdog.arm(frozen_max);
        let mut frozen = Frozen { freezer: Arc::clone(self), frozen, since: Instant::now() };
        for (target, is_frozen) in self.targets.iter().zip(&mut frozen.frozen) {
            match freeze(&target.root) {
                Ok(()) => *is_frozen = true,
                Err(error)
                    if error.raw_os_error() == Some(libc::EOPNOTSUPP)
                        && self.unfreezable == Unfreezable::Sync =>
                {
                    rustix::fs::syncfs(&target.root).map_err(|e| target.error(e.into()))?;
                }
                Err(error) => return Err(target.error(error)),
            }
        }
        match self.targets.first() {
            Some(first) if !frozen.frozen.contains(&true) => {
                Err(first.error(io::Error::from_raw_os_error(libc::EOPNOTSUPP)))
            }
            _ => Ok(frozen),
        }
    }
}

impl Frozen {
    /// That everything is frozen still.
    fn check(&self) -> Result<(), QuiesceError> {
        if self.freezer.watchdog.has_fired() {
            let by = "the watchdog, since it had been frozen for too long";
            return Err(QuiesceError::Thawed { mount: "everything".into(), by });
        }
        Ok(())
    }

    fn not_frozen(&self) -> Vec<String> {
        let targets = self.freezer.targets.iter().zip(&self.frozen);
        targets
            .filter(|(_, frozen)| !**frozen)
            .map(|(target, _)| target.point.display().to_string())
            .collect()
    }

    /// Thaws everything; how long it was frozen.
    fn thaw(mut self) -> Result<Duration, QuiesceError> {
        let thawed = self.thaw_all();
        // After the thaws: a watchdog that fired meanwhile has said so by now.
        let by_watchdog = self.freezer.watchdog.has_fired();
        match thawed {
            Err(error) if !by_watchdog => Err(error),
            _ => Ok(self.since.elapsed()),
        }
    }

    fn thaw_all(&mut self) -> Result<(), QuiesceError> {
        let mut first = Ok(());
        // The other way round: nobody wakes up to write into what is frozen below.
        for (target, frozen) in self.freezer.targets.iter().zip(&mut self.frozen).rev() {
            if !std::mem::take(frozen) {
                continue;
            }
            let result = match thaw(&target.root) {
                Ok(true) => Ok(()),
                Ok(false) => {
                    let by = "another program";
                    Err(QuiesceError::Thawed { mount: target.point.display().to_string(), by })
                }
                Err(error) => Err(target.error(error)),
            };
            first = first.and(result);
        }
        self.freezer.watchdog.disarm();
        first
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = self.thaw_all() {
            tracing::warn!(%error, "thawing after a freeze that failed");
        }
    }
}

/// What a freeze gave (or what was too much for it), how long it was, and what was not frozen.
type FreezeEnd = (Result<Inside, Taken>, Duration, Vec<String>);

/// What lies between the switch and the thaw.
struct Inside {
    moment: Moment,
    clean: bool,
    rest: Extents,
}

impl Capture {
    /// Takes a point of all disks while every file system on them is frozen. The caller must not
    /// write to those file systems between `hooks.prepare` and `hooks.release`, logs included.
    ///
    /// The point's kind is `Filesystem`. A caller whose hooks brought the applications to rest
    /// may record it as `Application`.
    ///
    /// # Errors
    /// [`PointError::Quiesce`] with the mount when one cannot be frozen, [`PointError::NotTaken`]
    /// when the deadline passed. What was not handed to the sink counts as written again.
    pub fn quiesced_point(
        &mut self,
        sink: &mut dyn ChangeSink,
        options: &QuiesceOptions,
        hooks: &mut dyn QuiesceHooks,
        deadline: Instant,
        clock: &dyn Fn() -> Timestamp,
    ) -> Result<CapturedPoint, PointError> {
        let mut run = Run::new(deadline);
        let result = self.quiesced_attempts(&mut run, sink, options, hooks, clock);
        self.end_run(&run);
        let (moment, checked, frozen, not_frozen) = result?;
        Ok(CapturedPoint {
            time: moment.time,
            kind: PointKind::Filesystem,
            figures: run.figures(moment, checked, frozen),
            disks: self.disks(),
            unreadable: run.unreadable,
            not_frozen,
        })
    }

    fn quiesced_attempts(
        &mut self,
        run: &mut Run,
        sink: &mut dyn ChangeSink,
        options: &QuiesceOptions,
        hooks: &mut dyn QuiesceHooks,
        clock: &dyn Fn() -> Timestamp,
    ) -> Result<(Moment, Instant, Duration, Vec<String>), PointError> {
        self.put_back_held();
        self.reads.check_sizes().map_err(CaptureError::from)?;
        self.reads.lock_buffers();
        let numbers = self.reads.device_numbers().map_err(QuiesceError::Mounts)?;
        let disks: BTreeSet<_> = numbers.into_iter().map(DeviceNumber::of).collect();
        let freezer = Freezer::new(&disks, options.unfreezable)?;
        let record = Record::new(&options.record, &freezer.targets);
        loop {
            self.settle(run, sink)?;
            let (inside, frozen, not_frozen) =
                self.freeze_and_switch(run, sink, options, hooks, clock, (&freezer, &record))?;
            match inside {
                Err(taken) => self.absorb(&taken, run, sink)?,
                Ok(Inside { moment, clean, rest }) => {
                    if self.read_and_check(run, moment, &rest)? && clean && self.read_open(run, moment)? {
                        let checked = Instant::now();
                        self.held.emit_all(sink).map_err(CaptureError::from)?;
                        return Ok((moment, checked, frozen, not_frozen));
                    }
                }
            }
            if run.is_over() {
                return Err(run.not_taken().into());
            }
            run.pause();
        }
    }

    /// From `prepare` to `release`.
    fn freeze_and_switch(
        &mut self,
        run: &mut Run,
        sink: &mut dyn ChangeSink,
        options: &QuiesceOptions,
        hooks: &mut dyn QuiesceHooks,
        clock: &dyn Fn() -> Timestamp,
        (freezer, record): (&Arc<Freezer>, &Record),
    ) -> Result<FreezeEnd, PointError> {
        let mut hooks = Prepared::new(hooks)?;
        for _ in 0..SYNCS_MAX {
            let begun = Instant::now();
            freezer.sync()?;
            let took = begun.elapsed();
            self.settle(run, sink)?;
            if took <= QUICK_SYNC || run.is_over() {
                break;
            }
        }
        self.held.prepare(options.blocks_in_freeze_max);
        self.lists.prepare(EXTENTS_PREPARED);
        record.write()?;
        let result = self.inside_freeze(run, options, &mut hooks, clock, freezer);
        record.remove();
        result
    }

    /// From freeze to thaw: nothing here may write, log or call the sink.
    fn inside_freeze(
        &mut self,
        run: &mut Run,
        options: &QuiesceOptions,
        hooks: &mut Prepared<'_>,
        clock: &dyn Fn() -> Timestamp,
        freezer: &Arc<Freezer>,
    ) -> Result<FreezeEnd, PointError> {
        let frozen = freezer.freeze(options.frozen_max)?;
        let not_frozen = frozen.not_frozen();
        hooks.hooks.frozen().map_err(|message| QuiesceError::Hook { step: "frozen", message })?;
        frozen.check()?;
        let moment = self.switch(run, clock);
        frozen.check()?;
        let mut order = match self.take_after_switch(run, moment) {
            Ok(order) => order,
            Err(taken) => {
                let thawed = frozen.thaw();
                if thawed.is_err() {
                    self.put_back(&taken.extents);
                }
                return Ok((Err(taken), thawed?, not_frozen));
            }
        };
        let hot = hot_prefix(&order, options.blocks_in_freeze_max);
        let clean = self.read_and_check(run, moment, &order[..hot]);
        let thawed = frozen.thaw();
        let rest = order.split_off(hot);
        match (clean, thawed) {
            (Ok(clean), Ok(frozen_for)) => Ok((Ok(Inside { moment, clean, rest }), frozen_for, not_frozen)),
            (clean, thawed) => {
                self.put_back(&rest);
                clean?;
                Err(thawed.map_or_else(PointError::from, |_| run.not_taken().into()))
            }
        }
    }
}

/// How many of the first extents have no more than `blocks_max` blocks.
fn hot_prefix(order: &[(DiskNumber, Extent)], blocks_max: usize) -> usize {
    let mut blocks = 0;
    order
        .iter()
        .take_while(|(_, extent)| {
            blocks += extent.blocks;
            blocks <= blocks_max as u64
        })
        .count()
}

/// Applications are at rest while this exists.
struct Prepared<'a> {
    hooks: &'a mut dyn QuiesceHooks,
}

impl<'a> Prepared<'a> {
    fn new(hooks: &'a mut dyn QuiesceHooks) -> Result<Self, QuiesceError> {
        let prepared = Self { hooks };
        let result = prepared.hooks.prepare();
        result.map_err(|message| QuiesceError::Hook { step: "prepare", message })?;
        Ok(prepared)
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        self.hooks.release();
    }
}

/// What is frozen while it is: the boot's id and the mount points, each ended by a zero byte,
/// and a last word that shows that all of it was written.
struct Record {
    path: PathBuf,
    content: Vec<u8>,
}

const RECORD_END: &[u8] = b"end";

impl Record {
    fn new(path: &Path, targets: &[Target]) -> Self {
        let mut content = boot_id().into_bytes();
        content.push(0);
        for target in targets {
            content.extend_from_slice(target.point.as_os_str().as_bytes());
            content.push(0);
        }
        content.extend_from_slice(RECORD_END);
        Self { path: path.to_owned(), content }
    }

    fn write(&self) -> Result<(), QuiesceError> {
        let write = || {
            let mut file = File::create(&self.path)?;
            file.write_all(&self.content)?;
            file.sync_all()?;
            let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
        };
        write().map_err(|source| QuiesceError::Record { path: self.path.to_owned(), source })
    }

    /// A record that stays behind only makes the next start try to thaw what is not frozen.
    fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the record of a freeze");
        }
    }
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Thaws what an agent that was killed left frozen; call it at start, before anything that
/// writes a file. Gives the mount points that were still frozen.
///
/// # Errors
/// When the record cannot be read, or what it names cannot be thawed; the other file systems
/// are thawed all the same, and the record stays.
pub fn thaw_leftovers(record: &Path) -> io::Result<Vec<String>> {
    let content = match fs::read(record) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut thawed = Vec::new();
    let mut failed = None;
    for point in recorded_points(&content, &boot_id()) {
        let result = match File::open(&point) {
            Ok(root) => thaw(&root),
            // It is no longer mounted there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        };
        let name = point.display().to_string();
        match result {
            Ok(true) => thawed.push(name),
            Ok(false) => {}
            Err(error) => failed = Some(io::Error::new(error.kind(), format!("cannot thaw {name}: {error}"))),
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    fs::remove_file(record)?;
    Ok(thawed)
}

/// The mount points of a record, in the order of thawing; none if it is of another boot or was
/// not written whole, since then nothing is frozen.
fn recorded_points(content: &[u8], boot_id: &str) -> Vec<PathBuf> {
    let mut fields: Vec<&[u8]> = content.split(|byte| *byte == 0).collect();
    if fields.len() < 3 || fields.pop() != Some(RECORD_END) || fields[0] != boot_id.as_bytes() {
        return Vec::new();
    }
    let points = fields.into_iter().skip(1).rev();
    points.map(|point| PathBuf::from(std::ffi::OsString::from_vec(point.to_vec()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_its_mounts_only_when_whole_and_of_this_boot() {
        let content = b"boot\0/\0/srv/a b\0end";
        assert_eq!(recorded_points(content, "boot"), [Path::new("/srv/a b"), Path::new("/")]);
        assert!(recorded_points(content, "later").is_empty());
        for len in 0..content.len() {
            assert!(recorded_points(&content[..len], "boot").is_empty(), "cut at {len}");
        }
    }

    #[test]
    fn the_part_read_inside_the_freeze_is_bounded_in_blocks() {
        let order: Vec<_> = [3, 5, 1].map(|blocks| (DiskNumber(0), Extent { first: 0, blocks })).into();
        assert_eq!([2, 3, 8, 9, 100].map(|max| hot_prefix(&order, max)), [0, 1, 2, 3, 3]);
    }
}
