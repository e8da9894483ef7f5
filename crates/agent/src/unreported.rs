//! Writes whose completion the kernel did not report, as the operator hears of them.
//!
//! They are in the points all the same, so this is nobody's emergency; but the kernel did what the
//! tracking cannot see coming, and which kernels do is worth knowing. One that does it may do it
//! with every load, so what comes within an hour is told as one event.

use std::time::{Duration, Instant};

use lifeboat_model::DiskNumber;
use lifeboat_wire::event::Severity;

use crate::engine::Notice;

const TELL_EVERY: Duration = Duration::from_hours(1);

/// What was told of one disk.
#[derive(Debug)]
pub(crate) struct Unreported {
    /// The tracking's count that all events until now add up to.
    told_blocks: u64,
    told: Option<Instant>,
}

impl Unreported {
    /// The count goes on from a former agent's, which told its own.
    pub fn since(blocks: u64) -> Self {
        Self { told_blocks: blocks, told: None }
    }

    /// The event that is due when the tracking's count is `blocks`, if one is.
    pub fn notice(&mut self, disk: DiskNumber, path: &str, blocks: u64, now: Instant) -> Option<Notice> {
        if blocks < self.told_blocks {
            // The tracking began anew, and the count with it.
            self.told_blocks = 0;
        }
        let new_blocks = blocks - self.told_blocks;
        let told_lately = self.told.is_some_and(|told| now.duration_since(told) < TELL_EVERY);
        if new_blocks == 0 || told_lately {
            return None;
        }
        *self = Self { told_blocks: blocks, told: Some(now) };
        let what = if new_blocks == 1 { "a block".into() } else { format!("{new_blocks} blocks") };
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        Some(Notice {
            severity: Severity::Warning,
            code: "completion_unreported",
            disk: Some(disk),
            message: format!(
                "The kernel {kernel} did not report that a write to {what} of disk {disk} ({path}) completed; nothing \
                 is lost, since what it did not report is read for every point all the same."
            ),
            next_step: format!(
                "Report the kernel's version, {kernel}, to Lifeboat's developers; this server needs nothing."
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    fn tell(unreported: &mut Unreported, blocks: u64, now: Instant) -> Option<String> {
        let notice = unreported.notice(DiskNumber(3), "/dev/sdb", blocks, now);
        notice.map(|notice| {
            assert_eq!(notice.disk, Some(DiskNumber(3)));
            notice.message
        })
    }

    #[test]
    fn growth_is_told_at_most_once_an_hour_and_all_of_it() {
        let begin = Instant::now();
        let mut unreported = Unreported::since(7);
        assert_eq!(tell(&mut unreported, 7, begin), None);
        let first = tell(&mut unreported, 8, begin + MINUTE).unwrap();
        assert!(first.contains("a write to a block of disk 3 (/dev/sdb)"), "{first}");
        assert_eq!(tell(&mut unreported, 10, begin + 2 * MINUTE), None);
        assert_eq!(tell(&mut unreported, 12, begin + 60 * MINUTE), None);
        let second = tell(&mut unreported, 12, begin + 61 * MINUTE).unwrap();
        assert!(second.contains("4 blocks"), "{second}");
        assert_eq!(tell(&mut unreported, 12, begin + 200 * MINUTE), None);
    }

    #[test]
    fn a_count_that_begins_anew_is_told_from_there() {
        let begin = Instant::now();
        let mut unreported = Unreported::since(7);
        assert_eq!(tell(&mut unreported, 0, begin), None);
        let told = tell(&mut unreported, 2, begin).unwrap();
        assert!(told.contains("2 blocks"), "{told}");
    }
}
