//! Which of the points that manifests tell of are one history. Pure.

use std::collections::BTreeMap;

use lifeboat_model::{DiskNumber, PointId};

use crate::catalog::StoredFile;
use crate::manifest::PointManifest;

/// The points of one server, each following the one before it, and their files.
#[derive(Debug, Default)]
pub(super) struct History {
    points: Vec<PointManifest>,
}

impl History {
    /// Chooses from manifests that are sorted by number the longest history that ends newest, and
    /// gives the others with the reason why each is not of it.
    pub(super) fn choose(manifests: Vec<PointManifest>) -> (Self, Vec<(PointManifest, String)>) {
        let mut by_id: BTreeMap<PointId, PointManifest> = BTreeMap::new();
        let mut order = Vec::new();
        for manifest in manifests {
            order.push(manifest.seal.point);
            by_id.insert(manifest.seal.point, manifest);
        }
        let mut broken: BTreeMap<PointId, PointId> = BTreeMap::new();
        let mut chain = Vec::new();
        for head in order.iter().rev() {
            match chain_to(*head, &by_id) {
                Ok(found) => {
                    chain = found;
                    break;
                }
                Err(missing) => {
                    broken.insert(*head, missing);
                }
            }
        }
        let points: Vec<_> = chain.iter().filter_map(|point| by_id.remove(point)).collect();
        let refused = order.into_iter().filter_map(|point| {
            let manifest = by_id.remove(&point)?;
            let why = match broken.get(&point) {
                Some(missing) => format!("the manifest of point {missing} before it is missing or refused"),
                None => "another point took its place in the server's history".to_owned(),
            };
            Some((manifest, why))
        });
        let refused = refused.collect();
        (Self { points }, refused)
    }

    /// The points, oldest first.
    pub(super) fn points(&self) -> impl Iterator<Item = &PointManifest> {
        self.points.iter()
    }

    /// The files of all points, oldest first.
    pub(super) fn files(&self) -> impl Iterator<Item = &StoredFile> {
        self.points.iter().flat_map(|point| &point.files)
    }

    /// Takes away all points that need `file`, which cannot be had.
    pub(super) fn cut_at(&mut self, file: &StoredFile) -> Vec<PointManifest> {
        let needs = |point: &PointManifest| {
            let epochs: BTreeMap<DiskNumber, _> =
                point.seal.disks.iter().map(|disk| (disk.disk, disk.epoch)).collect();
            epochs.get(&file.disk).is_some_and(|epoch| *epoch >= file.last_epoch)
        };
        match self.points.iter().position(needs) {
            Some(first) => self.points.split_off(first),
            None => Vec::new(),
        }
    }
}

/// The points from the first one to `head`, or the one that is missing on the way.
fn chain_to(head: PointId, by_id: &BTreeMap<PointId, PointManifest>) -> Result<Vec<PointId>, PointId> {
    let mut chain = Vec::new();
    let mut next = Some(head);
    let mut number_above = u64::MAX;
    while let Some(point) = next {
        // Numbers fall on the way back, so a chain has an end.
        let manifest = by_id.get(&point).filter(|manifest| manifest.number < number_above).ok_or(point)?;
        chain.push(point);
        number_above = manifest.number;
        next = manifest.previous;
    }
    chain.reverse();
    Ok(chain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::chained;

    fn ids(history: &History) -> Vec<u64> {
        history.points().map(|point| point.seal.point.number()).collect()
    }

    fn choose(points: &[(u64, u64, Option<u64>)]) -> (Vec<u64>, Vec<(u64, String)>) {
        let manifests = points.iter().map(|(point, number, previous)| chained(*point, *number, *previous));
        let (history, refused) = History::choose(manifests.collect());
        (ids(&history), refused.into_iter().map(|(point, why)| (point.seal.point.number(), why)).collect())
    }

    #[test]
    fn a_whole_chain_is_taken_with_the_gaps_that_retention_leaves() {
        let (taken, refused) = choose(&[(1, 3, None), (2, 7, Some(1)), (3, 8, Some(2))]);
        assert_eq!((taken, refused), (vec![1, 2, 3], Vec::new()));
    }

    #[test]
    fn what_follows_a_missing_point_is_refused() {
        let (taken, refused) = choose(&[(1, 1, None), (3, 3, Some(2)), (4, 4, Some(3))]);
        assert_eq!(taken, [1]);
        assert_eq!(refused.len(), 2);
        assert!(refused.iter().all(|(_, why)| why.contains("0000000000000002")), "{refused:?}");
    }

    #[test]
    fn of_two_points_in_one_place_the_one_that_was_built_on_is_taken() {
        let (taken, refused) = choose(&[(1, 1, None), (2, 2, Some(1)), (9, 2, Some(1)), (3, 3, Some(2))]);
        assert_eq!(taken, [1, 2, 3]);
        assert!(refused[0].0 == 9 && refused[0].1.contains("took its place"), "{refused:?}");
    }

    #[test]
    fn a_circle_has_an_end() {
        let (taken, refused) = choose(&[(1, 1, Some(2)), (2, 2, Some(1))]);
        assert!(taken.is_empty() && refused.len() == 2, "{refused:?}");
    }
}
