//! The disks of points that were read last, kept open for a while.
//!
//! An agent that compares a disk with its copy asks for the digests of some hundred chunks at a time.
//! To open the disk reads the indexes of all its files, which would be done anew for each request.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lifeboat_model::{DiskNumber, ServerId};
use lifeboat_volume::{DiskSource, FileSource, PointDisk};
use tokio::time::Instant;

/// Disks that are kept. The index of a large one takes some hundred mebibytes.
const DISKS_MAX: usize = 4;
/// How long one is kept after it was used.
const KEPT: Duration = Duration::from_secs(20);

/// Open disks, at most one state of each disk.
pub(crate) struct OpenDisks {
    kept: Duration,
    /// The one used last at the end.
    entries: Mutex<Vec<Entry>>,
}

struct Entry {
    key: Key,
    disk: PointDisk,
    used: Instant,
}

/// What a disk is made of. When retention merges its files it is another one.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Key {
    server: ServerId,
    number: DiskNumber,
    bytes: u64,
    files: Vec<FileSource>,
}

impl Key {
    pub(crate) fn of(source: &DiskSource) -> Self {
        let (server, number, bytes) = (source.server, source.disk, source.disk_bytes);
        Self { server, number, bytes, files: source.files.clone() }
    }
}

impl Default for OpenDisks {
    fn default() -> Self {
        Self { kept: KEPT, entries: Mutex::default() }
    }
}

impl OpenDisks {
    /// A disk that is open.
    pub(crate) fn find(&self, key: &Key) -> Option<PointDisk> {
        let mut entries = self.entries();
        let place = entries.iter().position(|entry| entry.key == *key)?;
        let found = Entry { used: Instant::now(), ..entries.remove(place) };
        let disk = found.disk.clone();
        entries.push(found);
        Some(disk)
    }

    /// Keeps a disk for a while, in the place of an older state of it. Must be called within a Tokio
    /// runtime.
    pub(crate) fn keep(self: &Arc<Self>, key: Key, disk: PointDisk) {
        {
            let mut entries = self.entries();
            entries.retain(|entry| (entry.key.server, entry.key.number) != (key.server, key.number));
            if entries.len() >= DISKS_MAX {
                entries.remove(0);
            }
            entries.push(Entry { key, disk, used: Instant::now() });
        }
        let (disks, kept) = (Arc::downgrade(self), self.kept);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(kept).await;
                let Some(disks) = disks.upgrade() else { return };
                if disks.forget_unused() == 0 {
                    return;
                }
            }
        });
    }

    /// How many are left.
    fn forget_unused(&self) -> usize {
        let mut entries = self.entries();
        entries.retain(|entry| entry.used.elapsed() < self.kept);
        entries.len()
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_model::VaultId;
    use lifeboat_volume::{FrameCache, Objects};
    use object_store::memory::InMemory;

    use super::*;

    fn source(disk: u16, bytes: u64) -> DiskSource {
        DiskSource {
            vault: VaultId::new(1),
            server: ServerId::new(2),
            disk: DiskNumber(disk),
            disk_bytes: bytes,
            files: Vec::new(),
            keys: Vec::new(),
        }
    }

    async fn keep(disks: &Arc<OpenDisks>, disk: u16, bytes: u64) -> Key {
        let source = source(disk, bytes);
        let key = Key::of(&source);
        let objects = Objects::new(Arc::new(InMemory::new()), None);
        let opened = PointDisk::open(source, objects, FrameCache::new(0)).await.unwrap();
        disks.keep(key.clone(), opened);
        key
    }

    #[tokio::test]
    async fn four_disks_are_kept_for_a_while_each_in_one_state() {
        let kept = Duration::from_millis(400);
        let disks = Arc::new(OpenDisks { kept, ..OpenDisks::default() });
        let mut keys = Vec::new();
        for number in 0..4 {
            keys.push(keep(&disks, number, 4096).await);
        }
        assert!(disks.find(&keys[0]).is_some());
        let fifth = keep(&disks, 4, 4096).await;
        assert!(disks.find(&keys[1]).is_none(), "the one that was used longest ago makes room");
        assert!(disks.find(&keys[0]).is_some() && disks.find(&fifth).is_some());
        let grown_used = Instant::now();
        keep(&disks, 0, 8192).await;
        assert!(disks.find(&keys[0]).is_none(), "the disk is another one now");
        while !disks.entries().is_empty() {
            tokio::time::sleep(kept / 8).await;
        }
        assert!(grown_used.elapsed() >= kept);
    }
}
