//! File systems held frozen for longer, while the last point of a server is taken and carried away.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::{DeviceNumber, Freezer, Frozen, QuiesceError, Record, Unfreezable};

/// All file systems on some disks are frozen while this exists: no write reaches these disks through
/// them. Whoever writes hangs until the thaw, so services should have been stopped before.
///
/// Points are taken meanwhile as optimistic ones; a quiesced one cannot freeze what is frozen.
pub struct Hold {
    frozen: Option<Frozen>,
    record: Record,
}

impl Hold {
    /// Writes back what is cached, and freezes. `record` names the file from which
    /// [`thaw_leftovers`](super::thaw_leftovers) thaws after a crash; after `held_max` the watchdog does.
    ///
    /// Disks without a mounted file system are held by nothing, and that is no error.
    ///
    /// # Errors
    /// When a file system cannot be frozen; none is then.
    pub fn begin(device_numbers: &[u64], record: &Path, held_max: Duration) -> Result<Self, QuiesceError> {
        let disks: BTreeSet<_> = device_numbers.iter().copied().map(DeviceNumber::of).collect();
        let freezer = match Freezer::new(&disks, Unfreezable::Sync) {
            Err(QuiesceError::NoFileSystems) => {
                return Ok(Self { frozen: None, record: Record::new(record, &[]) });
            }
            freezer => freezer?,
        };
        let record = Record::new(record, &freezer.targets);
        freezer.sync()?;
        record.write()?;
        match freezer.freeze(held_max) {
            Ok(frozen) => Ok(Self { frozen: Some(frozen), record }),
            Err(error) => {
                record.remove();
                Err(error)
            }
        }
    }

    /// That everything has been frozen from the beginning until now.
    ///
    /// # Errors
    /// When the watchdog has thawed.
    pub fn check(&self) -> Result<(), QuiesceError> {
        self.frozen.as_ref().map_or(Ok(()), Frozen::check)
    }

    /// Mount points of file systems that know no freezing; they were synced.
    #[must_use]
    pub fn not_frozen(&self) -> Vec<String> {
        self.frozen.as_ref().map(Frozen::not_frozen).unwrap_or_default()
    }

    /// Thaws everything; how long it was frozen.
    ///
    /// # Errors
    /// When something else had thawed it, or it cannot be thawed.
    pub fn end(mut self) -> Result<Duration, QuiesceError> {
        let Some(frozen) = self.frozen.take() else { return Ok(Duration::ZERO) };
        let thawed = frozen.thaw();
        self.record.remove();
        thawed
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Thaws, and only then touches a file.
        if self.frozen.take().is_some() {
            self.record.remove();
        }
    }
}
