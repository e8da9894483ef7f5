//! Which files of a disk are merged. Pure.
//!
//! A *run* is what is merged and replaced as one: all files of the same epochs. Runs between two
//! successive retained points are a *group*; no point needs one of them without the others. All
//! points need the first group, with the base in it.
//!
//! - A group that no further point will join, because the point at its end is there for long, is
//!   merged into one run.
//! - A group that still grows (points leave it every minute) is merged in steps, each time that
//!   enough runs of similar size have come together. So every block is rewritten a few
//!   times, not with every minute.
//! - The base is rewritten only when what lies over it holds more than a part of its data. Until
//!   then the runs over it are merged among themselves.

use std::ops::Range;

use lifeboat_model::Epoch;

use crate::catalog::StoredFile;

/// Runs of a growing group that are merged at once.
const GROWING_RUNS: usize = 32;
/// Runs over the base that are merged at once.
const OVER_BASE_RUNS: usize = 8;
/// The most runs of a group, whatever their sizes.
const RUNS_MAX: usize = 128;
/// Differences below this do not matter, in bytes of data.
const SMALL_BYTES: u64 = 64 << 10;

/// All files of the same epochs of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first epoch.
    pub first: Epoch,
    /// The last epoch.
    pub last: Epoch,
    /// By part.
    pub files: Vec<StoredFile>,
}

impl Run {
    fn plain_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.plain_bytes).sum()
    }
}

/// Where a retained point ends an epoch of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Boundary {
    /// The epoch.
    pub epoch: Epoch,
    /// The point is there for long.
    pub lasting: bool,
}

/// The files of a disk, in the order in which they apply, as runs. None when they overlap, which
/// the catalog never has.
pub(crate) fn runs(files: &[StoredFile]) -> Option<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    for file in files {
        match runs.last_mut() {
            Some(run) if (run.first, run.last) == (file.first_epoch, file.last_epoch) => {
                run.files.push(file.clone());
            }
            Some(run) if run.last >= file.first_epoch => return None,
            _ => {
                runs.push(Run { first: file.first_epoch, last: file.last_epoch, files: vec![file.clone()] });
            }
        }
    }
    Some(runs)
}

/// Successive runs that are to become one, the oldest first. `boundaries` are in order.
pub(crate) fn merges(runs: &[Run], boundaries: &[Boundary], fold_percent: u64) -> Vec<Range<usize>> {
    let mut merges = Vec::new();
    let mut start = 0;
    for boundary in boundaries {
        let end = start + runs[start..].partition_point(|run| run.last <= boundary.epoch);
        let group = start..end;
        start = end;
        if group.len() < 2 {
            continue;
        }
        let has_base = runs[group.start].first == Epoch(1);
        merges.extend(if has_base {
            merge_over_base(runs, group, boundary.lasting, fold_percent)
        } else if boundary.lasting {
            Some(group)
        } else {
            similar(runs, group, GROWING_RUNS)
        });
    }
    merges
}

fn merge_over_base(
    runs: &[Run],
    group: Range<usize>,
    lasting: bool,
    fold_percent: u64,
) -> Option<Range<usize>> {
    let over = group.start + 1..group.end;
    let over_bytes: u64 = runs[over.clone()].iter().map(Run::plain_bytes).sum();
    let base_bytes = runs[group.start].plain_bytes();
    if u128::from(over_bytes) * 100 > u128::from(base_bytes) * u128::from(fold_percent) {
        return Some(group);
    }
    similar(runs, over, if lasting { OVER_BASE_RUNS } else { GROWING_RUNS })
}

/// The newest runs of which none is much larger than those after it together, if they are enough.
/// Runs that were merged before are left out so, until there are too many of them.
fn similar(runs: &[Run], group: Range<usize>, enough: usize) -> Option<Range<usize>> {
    if group.len() > RUNS_MAX {
        return Some(group);
    }
    let mut start = group.end;
    let mut sum: u64 = 0;
    while start > group.start {
        let bytes = runs[start - 1].plain_bytes();
        // What changes in a few seconds is not even, so the first few may differ more.
        let allowed = if group.end - start < enough / 2 { sum.max(SMALL_BYTES) * 4 } else { sum / 4 };
        if bytes > allowed {
            break;
        }
        sum = sum.saturating_add(bytes);
        start -= 1;
    }
    (group.end - start >= enough).then_some(start..group.end)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init, reason = "lists of ranges are what is compared")]

    use super::*;
    use lifeboat_model::{Digest, DiskNumber, Part};

    fn run(first: u64, last: u64, plain_bytes: u64) -> Run {
        let file = StoredFile {
            disk: DiskNumber(0),
            first_epoch: Epoch(first),
            last_epoch: Epoch(last),
            part: Part(0),
            object: format!("{first}-{last}"),
            bytes: plain_bytes,
            digest: Digest::of(b""),
            plain_bytes,
        };
        Run { first: Epoch(first), last: Epoch(last), files: vec![file] }
    }

    fn boundaries(epochs: impl IntoIterator<Item = (u64, bool)>) -> Vec<Boundary> {
        epochs.into_iter().map(|(epoch, lasting)| Boundary { epoch: Epoch(epoch), lasting }).collect()
    }

    #[test]
    fn files_that_points_need_apart_stay_as_they_are() {
        let runs: Vec<Run> = (1..=1440).map(|epoch| run(epoch, epoch, 4096)).collect();
        let each = boundaries((1..=1440).map(|epoch| (epoch, false)));
        assert!(merges(&runs, &each, 25).is_empty());
    }

    #[test]
    fn a_finished_group_becomes_one_run_and_a_growing_one_is_merged_in_steps() {
        let mut runs = vec![run(1, 1, 1 << 40)];
        runs.extend((2..=40).map(|epoch| run(epoch, epoch, 4096)));
        assert_eq!(merges(&runs, &boundaries([(1, true), (40, true)]), 25), [1..40]);
        assert_eq!(merges(&runs, &boundaries([(1, true), (40, false)]), 25), [1..40]);
        assert!(merges(&runs[..20], &boundaries([(1, true), (20, false)]), 25).is_empty());
    }

    #[test]
    fn a_growing_group_rewrites_its_data_a_few_times_only() {
        // 720 epochs of an hour, one at a time, merged as often as it is asked for.
        let mut runs = Vec::new();
        let mut written = 0;
        for epoch in 2..722 {
            runs.push(run(epoch, epoch, 1000));
            while let Some(range) = merges(&runs, &boundaries([(1, true), (epoch, false)]), 25).pop() {
                let bytes = runs[range.clone()].iter().map(Run::plain_bytes).sum();
                let merged = run(runs[range.start].first.0, runs[range.end - 1].last.0, bytes);
                written += bytes;
                runs.splice(range, [merged]);
            }
            assert!(runs.len() < RUNS_MAX, "{} files", runs.len());
        }
        assert!(written <= 3 * 720_000, "{written} bytes were written for 720,000");
    }

    #[test]
    fn the_base_is_rewritten_only_when_enough_lies_over_it() {
        let lasting = boundaries([(9, true)]);
        let small: Vec<Run> =
            std::iter::once(run(1, 1, 100_000)).chain((2..=5).map(|e| run(e, e, 1000))).collect();
        assert!(merges(&small, &lasting, 25).is_empty());
        let many: Vec<Run> =
            std::iter::once(run(1, 1, 100_000)).chain((2..=9).map(|e| run(e, e, 1000))).collect();
        assert_eq!(merges(&many, &lasting, 25), [1..9]);
        let large = [run(1, 1, 100_000), run(2, 9, 25_001)];
        assert_eq!(merges(&large, &lasting, 25), [0..2]);
    }

    #[test]
    fn overlapping_files_are_not_touched() {
        let mut files = run(1, 5, 1).files;
        files.extend(run(5, 6, 1).files);
        assert_eq!(runs(&files), None);
    }
}
