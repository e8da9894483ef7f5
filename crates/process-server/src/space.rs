//! How full the spool is, and what follows from it.

use std::path::Path;

use lifeboat_wire::process_server::SpoolState;
use rustix::fs::StatVfsMountFlags;

use crate::settings::SpoolSettings;
use crate::state_dir::StateError;

/// The file system that holds the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Its bytes.
    pub total_bytes: u64,
    /// Its free bytes, of those that this process may use.
    pub free_bytes: u64,
    /// It may not be written.
    pub is_read_only: bool,
}

impl Space {
    /// Of the file system that holds `path`.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn of(path: &Path) -> Result<Self, StateError> {
        let stat =
            rustix::fs::statvfs(path).map_err(|error| StateError::io("measure", path)(error.into()))?;
        Ok(Self {
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            is_read_only: stat.f_flag.contains(StatVfsMountFlags::RDONLY),
        })
    }

    /// What that means.
    #[must_use]
    pub fn state(self, settings: &SpoolSettings) -> SpoolState {
        let below = |percent: u8| {
            u128::from(self.free_bytes) * 100 < u128::from(self.total_bytes) * u128::from(percent)
        };
        if self.is_read_only {
            SpoolState::ReadOnly
        } else if self.free_bytes < settings.reserve_mib << 20 {
            SpoolState::Full
        } else if below(settings.throttle_below_percent) {
            SpoolState::Throttling
        } else if below(settings.critical_below_percent) {
            SpoolState::Critical
        } else if below(settings.warn_below_percent) {
            SpoolState::Warning
        } else {
            SpoolState::Good
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_threshold_is_where_it_says() {
        let settings = SpoolSettings { reserve_mib: 50, ..SpoolSettings::default() };
        let space = |free_mib: u64| Space {
            total_bytes: 1000 << 20,
            free_bytes: free_mib << 20,
            is_read_only: false,
        };
        let state = |free_mib: u64| space(free_mib).state(&settings);
        assert_eq!(state(300), SpoolState::Good);
        assert_eq!(state(299), SpoolState::Warning);
        assert_eq!(state(250), SpoolState::Warning);
        assert_eq!(state(249), SpoolState::Critical);
        assert_eq!(state(199), SpoolState::Throttling);
        assert_eq!(state(50), SpoolState::Throttling);
        assert_eq!(state(49), SpoolState::Full);
        assert_eq!(state(0), SpoolState::Full);
        assert_eq!(Space { is_read_only: true, ..space(300) }.state(&settings), SpoolState::ReadOnly);
    }
}
