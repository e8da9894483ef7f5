//! What all manifests together tell of a server. Pure.

use std::collections::BTreeMap;

use crate::manifest::{PointManifest, ServerManifest};

/// The server's own manifest, or what its newest point has of it; with every disk and key that
/// any of its points names. `points` are sorted, oldest first.
pub(super) fn describe(own: Option<ServerManifest>, points: &[PointManifest]) -> Option<ServerManifest> {
    let mut description = own.or_else(|| points.last().map(|point| point.server.clone()))?;
    let mut disks = BTreeMap::new();
    let mut keys = BTreeMap::new();
    let manifests = points.iter().map(|point| &point.server).chain([&description]);
    for manifest in manifests {
        for disk in &manifest.disks {
            disks.insert(disk.disk, disk.clone());
        }
        for key in &manifest.keys {
            keys.insert((key.disk, key.wrapped.id()), key.clone());
        }
    }
    (description.disks, description.keys) = (disks.into_values().collect(), keys.into_values().collect());
    Some(description)
}
