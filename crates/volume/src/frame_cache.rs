//! Frames that were decoded and checked, shared by all disks of a vault.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::Shared;
use tokio::sync::oneshot;

use crate::error::VolumeError;
use crate::opened_file::OpenedFile;
use crate::source::Objects;
use crate::workers::{Urgency, Workers};

const SHARDS_MAX: usize = 16;
/// A shard holds at least this much, so that a small cache is not all borders.
const SHARD_BYTES_MIN: usize = 4 << 20;

/// Decoded frames, up to a number of bytes, and the threads that decode them.
///
/// Readers of one frame share one decoding. Frames that were used again since they came are
/// spared once when room is needed, so that one long copy does not drive out what is in use.
pub struct FrameCache {
    shards: Box<[Mutex<Shard>]>,
    shard_bytes_max: usize,
    workers: Workers,
    hits: AtomicU64,
    misses: AtomicU64,
    read_ahead: AtomicU64,
}

/// What a cache has done, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheFigures {
    /// Bytes of frames that it holds.
    pub bytes: usize,
    /// Frames that a reader found, decoded or being decoded.
    pub hits: u64,
    /// Frames that had to be decoded for a reader.
    pub misses: u64,
    /// Frames that were decoded before anybody asked.
    pub read_ahead: u64,
}

/// Which frame: the file's random id and the number.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    file: u128,
    frame: u32,
}

type Loaded = Result<Bytes, Arc<VolumeError>>;
/// A frame on its way. All who wait for it get the same.
pub(crate) type Flight = Shared<oneshot::Receiver<Loaded>>;

enum Slot {
    Loading { flight: Flight, used: bool },
    Ready { frame: Bytes, used: bool },
}

#[derive(Default)]
struct Shard {
    slots: HashMap<Key, Slot, BuildHasherDefault<KeyHasher>>,
    /// Keys of `Ready` slots, the next to go in front.
    order: VecDeque<Key>,
    bytes: usize,
}

/// A frame that was asked for.
pub(crate) enum Fetched {
    /// It is there.
    Ready(Bytes),
    /// It comes.
    Loading(Flight),
}

impl FrameCache {
    /// A cache of at most `bytes_max` bytes. Frames in use by readers come on top of that.
    #[must_use]
    pub fn new(bytes_max: usize) -> Arc<Self> {
        let shards = (bytes_max / SHARD_BYTES_MIN).clamp(1, SHARDS_MAX);
        Arc::new(Self {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            shard_bytes_max: bytes_max / shards,
            workers: Workers::start(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            read_ahead: AtomicU64::new(0),
        })
    }

    /// What it holds and has done.
    #[must_use]
    pub fn figures(&self) -> CacheFigures {
        CacheFigures {
            bytes: self.shards.iter().map(|shard| lock(shard).bytes).sum(),
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            read_ahead: self.read_ahead.load(Ordering::Relaxed),
        }
    }

    /// The most that it is worth to read ahead at once: more would drive out what was read ahead before.
    pub(crate) fn ahead_bytes_max(&self) -> u64 {
        (self.shard_bytes_max * self.shards.len()) as u64 / 4
    }

    pub(crate) const fn workers(&self) -> &Workers {
        &self.workers
    }

    /// A frame if it is there.
    pub(crate) fn peek(&self, file: &OpenedFile, frame: u32) -> Option<Bytes> {
        let key = Key { file: file.id(), frame };
        match lock(self.shard(key)).slots.get(&key) {
            Some(Slot::Ready { frame, .. }) => Some(frame.clone()),
            _ => None,
        }
    }

    /// A frame that somebody waits for.
    pub(crate) fn fetch(self: &Arc<Self>, objects: &Objects, file: &Arc<OpenedFile>, frame: u32) -> Fetched {
        self.fetch_with(Urgency::Now, objects, file, frame)
    }

    /// Sees to it that a frame will be there soon, unless there is more urgent work.
    pub(crate) fn prefetch(self: &Arc<Self>, objects: &Objects, file: &Arc<OpenedFile>, frame: u32) {
        if self.shard_bytes_max > 0 && self.workers.has_room_later() {
            self.fetch_with(Urgency::Later, objects, file, frame);
        }
    }

    fn fetch_with(
        self: &Arc<Self>,
        urgency: Urgency,
        objects: &Objects,
        file: &Arc<OpenedFile>,
        frame: u32,
    ) -> Fetched {
        let key = Key { file: file.id(), frame };
        let mut shard = lock(self.shard(key));
        let vacant = match shard.slots.entry(key) {
            Entry::Occupied(mut slot) => {
                self.hits.fetch_add(u64::from(urgency == Urgency::Now), Ordering::Relaxed);
                let (Slot::Loading { used, .. } | Slot::Ready { used, .. }) = slot.get_mut();
                *used |= urgency == Urgency::Now;
                return match slot.get() {
                    Slot::Loading { flight, .. } => Fetched::Loading(flight.clone()),
                    Slot::Ready { frame, .. } => Fetched::Ready(frame.clone()),
                };
            }
            Entry::Vacant(vacant) => vacant,
        };
        let count = if urgency == Urgency::Now { &self.misses } else { &self.read_ahead };
        count.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        let flight = receiver.shared();
        vacant.insert(Slot::Loading { flight: flight.clone(), used: false });
        drop(shard);
        let landing = Landing { cache: Arc::clone(self), key, sender: Some(sender) };
        start(urgency, landing, objects.clone(), Arc::clone(file), frame);
        Fetched::Loading(flight)
    }

    fn shard(&self, key: Key) -> &Mutex<Shard> {
        &self.shards[(hash(key) >> 32) as usize % self.shards.len()]
    }

    /// Puts a frame where the flight was, or takes the flight away.
    fn land(&self, key: Key, loaded: &Loaded) {
        let mut shard = lock(self.shard(key));
        match loaded {
            Ok(frame) if frame.len() <= self.shard_bytes_max => {
                shard.bytes += frame.len();
                let used = matches!(shard.slots.get(&key), Some(Slot::Loading { used: true, .. }));
                shard.slots.insert(key, Slot::Ready { frame: frame.clone(), used });
                shard.order.push_back(key);
                shard.shrink(self.shard_bytes_max);
            }
            _ => drop(shard.slots.remove(&key)),
        }
    }
}

/// Loads a frame: the bytes come from the store on the runtime or, if local, with the decoding.
fn start(urgency: Urgency, landing: Landing, objects: Objects, file: Arc<OpenedFile>, frame: u32) {
    let cache = Arc::clone(&landing.cache);
    if objects.is_local() {
        cache.workers.submit(urgency, move || landing.finish(file.load(&objects, frame)));
        return;
    }
    let runtime = objects.runtime().clone();
    runtime.spawn(async move {
        let sealed = match file.range(frame) {
            Ok(range) => objects.fetch_range(&file.object(), range).await,
            Err(error) => Err(error),
        };
        match sealed {
            Ok(sealed) => {
                let mut sealed = Vec::from(sealed);
                cache.workers.submit(urgency, move || landing.finish(file.decode(frame, &mut sealed)));
            }
            Err(error) => landing.finish(Err(error)),
        }
    });
}

/// Ends a flight whatever happens: dropped, it makes room for another try.
struct Landing {
    cache: Arc<FrameCache>,
    key: Key,
    sender: Option<oneshot::Sender<Loaded>>,
}

impl Landing {
    fn finish(mut self, loaded: Result<Bytes, VolumeError>) {
        let loaded = loaded.map_err(Arc::new);
        self.cache.land(self.key, &loaded);
        if let Some(sender) = self.sender.take() {
            // Nobody may wait any more.
            let _ = sender.send(loaded);
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if self.sender.is_some() {
            self.cache.land(self.key, &Err(Arc::new(VolumeError::GivenUp)));
        }
    }
}

impl Shard {
    fn shrink(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max {
            let Some(key) = self.order.pop_front() else { return };
            match self.slots.get_mut(&key) {
                Some(Slot::Ready { used: used @ true, .. }) => {
                    *used = false;
                    self.order.push_back(key);
                }
                Some(Slot::Ready { frame, .. }) => {
                    self.bytes -= frame.len();
                    self.slots.remove(&key);
                }
                _ => {}
            }
        }
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// File ids are random, so little is left to do for a hash.
fn hash(key: Key) -> u64 {
    let low = key.file.to_le_bytes();
    let mut half = [0; 8];
    half.copy_from_slice(&low[..8]);
    (u64::from_le_bytes(half) ^ u64::from(key.frame)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    #[allow(clippy::cast_possible_truncation, reason = "half of a random number is as random")]
    fn write_u128(&mut self, number: u128) {
        self.0 = number as u64;
    }
}
