//! The pins of one disk: made, found again, judged, removed.
//!
//! `disk-KEY/` holds the maps, a link for every program and, pinned last, `meta`, which says
//! what all this belongs to. An instance without `meta` was left half-made by a crash. It is
//! removed the other way round: `meta` first.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;

use aya::Ebpf;
use aya::maps::{Map, MapData, MapType};
use aya::programs::links::{FdLink, LinkType, PinnedLink};

use crate::TrackerError;
use crate::device::{DiskIdentity, DiskKey};
use crate::layout::{LAYOUT_VERSION, Layout, SMALL_MAP_WORDS, index};
use crate::mapping::WordMap;
use crate::object::{Kernel, PROGRAMS, Variant, explain, program};

pub(crate) const MMAPABLE: u32 = 1 << 10;

/// "lifeboat" as the bytes of a word.
const MAGIC: u64 = u64::from_be_bytes(*b"lifeboat");

pub(crate) const BITMAPS: [&str; 5] = ["done", "issued0", "issued1", "open", "taken"];

/// Why tracking of a disk begins anew, so that the disk must be compared or copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FreshReason {
    /// Nothing was pinned: the first time, or the first since the machine booted.
    NeverTracked,
    /// What was pinned is not complete.
    Incomplete {
        /// What is missing or wrong.
        what: String,
    },
    /// It was made by a version with another layout.
    OtherLayout {
        /// The version of that layout.
        version: u64,
    },
    /// It tracked another disk or the disk had another size.
    OtherDisk {
        /// What it tracked.
        was: DiskIdentity,
    },
    /// Its programs follow the epoch of another control map.
    OtherControl,
}

impl fmt::Display for FreshReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeverTracked => write!(f, "the disk was not tracked since the machine booted"),
            Self::Incomplete { what } => write!(f, "what was pinned for it is not complete ({what})"),
            Self::OtherLayout { version } => {
                write!(f, "it was tracked by a version with another layout ({version}, not {LAYOUT_VERSION})")
            }
            Self::OtherDisk { was } => write!(
                f,
                "another disk or size was tracked under its key ({}:{}, {} blocks, sequence {})",
                was.major,
                was.minor,
                was.blocks,
                was.diskseq.map_or_else(|| "unknown".to_owned(), |number| number.to_string())
            ),
            Self::OtherControl => write!(f, "its programs follow another control map"),
        }
    }
}

/// An instance that is pinned, as [`crate::TrackerSet::list`] finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedInstance {
    /// The disk's key.
    pub key: DiskKey,
    /// Which disk it tracks; absent when it is half-made.
    pub identity: Option<DiskIdentity>,
    /// Which programs it runs; absent when it is half-made.
    pub variant: Option<Variant>,
}

/// The mapped maps of a disk.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) layout: Layout,
    pub(crate) variant: Variant,
    pub(crate) done: WordMap,
    pub(crate) issued: [WordMap; 2],
    pub(crate) open: WordMap,
    pub(crate) taken: WordMap,
    pub(crate) stats: WordMap,
}

/// What `meta` says, a word each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Meta {
    identity: DiskIdentity,
    variant: Variant,
    control_id: u64,
}

impl Meta {
    fn words(self) -> [u64; 8] {
        let DiskIdentity { major, minor, blocks, diskseq } = self.identity;
        // The kernel counts disks from 1.
        let diskseq = diskseq.unwrap_or(0);
        let (variant, control) = (self.variant.code(), self.control_id);
        [MAGIC, LAYOUT_VERSION, u64::from(major), u64::from(minor), blocks, diskseq, variant, control]
    }

    fn read(words: [u64; 8]) -> Result<Self, FreshReason> {
        let [magic, version, major, minor, blocks, diskseq, variant, control_id] = words;
        let incomplete = |what: &str| FreshReason::Incomplete { what: what.to_owned() };
        if magic != MAGIC {
            return Err(incomplete("meta is not filled in"));
        }
        if version != LAYOUT_VERSION {
            return Err(FreshReason::OtherLayout { version });
        }
        let (Ok(major), Ok(minor)) = (u32::try_from(major), u32::try_from(minor)) else {
            return Err(incomplete("meta names an impossible device"));
        };
        let variant = Variant::from_code(variant).ok_or_else(|| incomplete("meta names unknown programs"))?;
        let diskseq = (diskseq != 0).then_some(diskseq);
        Ok(Self { identity: DiskIdentity { major, minor, blocks, diskseq }, variant, control_id })
    }
}

impl Instance {
    /// Opens what is pinned, if it is whole and belongs to this disk.
    pub(crate) fn open(
        directory: &Path,
        identity: &DiskIdentity,
        control_id: u32,
    ) -> Result<Result<Self, FreshReason>, TrackerError> {
        if !directory.exists() {
            return Ok(Err(FreshReason::NeverTracked));
        }
        let meta = match read_meta(directory)? {
            Ok(meta) => meta,
            Err(reason) => return Ok(Err(reason)),
        };
        if meta.identity != *identity {
            return Ok(Err(FreshReason::OtherDisk { was: meta.identity }));
        }
        if meta.control_id != u64::from(control_id) {
            return Ok(Err(FreshReason::OtherControl));
        }
        for (name, _) in PROGRAMS {
            if let Err(reason) = check_link(&directory.join(link_name(name)))? {
                return Ok(Err(reason));
            }
        }
        let layout = Layout::new(identity.blocks)?;
        let mut maps = Vec::with_capacity(6);
        for (name, entries) in
            BITMAPS.into_iter().map(|name| (name, layout.map_entries())).chain([("stats", SMALL_MAP_WORDS)])
        {
            match open_map(&directory.join(name), entries)? {
                Ok((map, _)) => maps.push(map),
                Err(reason) => return Ok(Err(reason)),
            }
        }
        let Ok([done, issued0, issued1, open, taken, stats]) = <[WordMap; 6]>::try_from(maps) else {
            return Ok(Err(FreshReason::Incomplete { what: "a map is missing".into() }));
        };
        Ok(Ok(Self { layout, variant: meta.variant, done, issued: [issued0, issued1], open, taken, stats }))
    }

    /// Makes, attaches and pins a new instance; what it had made is removed on an error.
    pub(crate) fn create(
        directory: &Path,
        key: &DiskKey,
        identity: &DiskIdentity,
        control: (&Path, u32),
        kernel: &Kernel,
        variant: Option<Variant>,
    ) -> Result<(), TrackerError> {
        let (mut ebpf, variant) = kernel.load(key, identity, Some(control.0), variant)?;
        fs::create_dir(directory).map_err(|source| TrackerError::io("create", directory, source))?;
        let meta = Meta { identity: *identity, variant, control_id: u64::from(control.1) };
        let made = pin_all(&mut ebpf, directory, key, meta);
        if made.is_err()
            && let Err(error) = Self::remove(directory)
        {
            tracing::warn!(disk = %key, %error, "cannot remove a half-made instance");
        }
        made
    }

    /// Removes all pins, which ends the tracking. Whether anything was pinned.
    pub(crate) fn remove(directory: &Path) -> Result<bool, TrackerError> {
        if !directory.exists() {
            return Ok(false);
        }
        remove_pin(&directory.join("meta"))?;
        for path in entries(directory)? {
            remove_pin(&path)?;
        }
        fs::remove_dir(directory).map_err(|source| TrackerError::io("remove", directory, source))?;
        Ok(true)
    }

    /// What is pinned in the directory of a set.
    pub(crate) fn list(set: &Path) -> Result<Vec<PinnedInstance>, TrackerError> {
        let mut found = Vec::new();
        for path in entries(set)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some(Ok(key)) = name.strip_prefix("disk-").map(str::parse::<DiskKey>) else { continue };
            let meta = read_meta(&path)?.ok();
            found.push(PinnedInstance {
                key,
                identity: meta.map(|meta| meta.identity),
                variant: meta.map(|meta| meta.variant),
            });
        }
        found.sort_by(|one, other| one.key.cmp(&other.key));
        Ok(found)
    }
}

/// The directory of a disk's pins.
pub(crate) fn directory_of(set: &Path, key: &DiskKey) -> PathBuf {
    set.join(format!("disk-{key}"))
}

fn link_name(program: &str) -> String {
    format!("link_{program}")
}

fn pin_all(ebpf: &mut Ebpf, directory: &Path, key: &DiskKey, meta: Meta) -> Result<(), TrackerError> {
    let failed = |what: String, why: String| TrackerError::Attach { key: key.to_string(), what, why };
    for name in BITMAPS.into_iter().chain(["stats"]) {
        let map = map_of(ebpf, name)
            .ok_or_else(|| failed(format!("find map {name}"), "not in the object".into()))?;
        map.pin(directory.join(name)).map_err(|error| failed(format!("pin map {name}"), explain(&error)))?;
    }
    for (name, _) in PROGRAMS {
        let attached = program(ebpf, name).and_then(|program| {
            let link = program.attach()?;
            program.take_link(link)
        });
        let link = attached.map_err(|error| failed(format!("attach {name}"), explain(&error)))?;
        let path = directory.join(link_name(name));
        // The descriptor is closed at the end of this statement; the pin holds the link.
        FdLink::from(link)
            .pin(path)
            .map_err(|error| failed(format!("pin the link of {name}"), explain(&error)))?;
    }
    let map =
        map_of(ebpf, "meta").ok_or_else(|| failed("find map meta".into(), "not in the object".into()))?;
    let words = WordMap::new(map.fd().as_fd(), index(u64::from(SMALL_MAP_WORDS)))
        .map_err(|error| failed("map meta into memory".into(), error.to_string()))?;
    for (word, value) in words.iter().zip(meta.words()) {
        word.store(value, SeqCst);
    }
    map.pin(directory.join("meta")).map_err(|error| failed("pin map meta".into(), explain(&error)))
}

fn map_of<'a>(ebpf: &'a Ebpf, name: &str) -> Option<&'a MapData> {
    match ebpf.map(name) {
        Some(Map::Array(map)) => Some(map),
        _ => None,
    }
}

fn read_meta(directory: &Path) -> Result<Result<Meta, FreshReason>, TrackerError> {
    Ok(match open_map(&directory.join("meta"), SMALL_MAP_WORDS)? {
        Ok((map, _)) => {
            let mut words = [0; 8];
            for (word, value) in words.iter_mut().zip(map.iter()) {
                *word = value.load(SeqCst);
            }
            Meta::read(words)
        }
        Err(reason) => Err(reason),
    })
}

/// Opens and maps a pinned array of words; also its number in the kernel. The inner error is
/// for a pin that is not there or not what it should be.
pub(crate) fn open_map(
    path: &Path,
    entries: u32,
) -> Result<Result<(WordMap, u32), FreshReason>, TrackerError> {
    let incomplete = |what: &str| FreshReason::Incomplete { what: format!("{}: {what}", path.display()) };
    if !path.exists() {
        return Ok(Err(incomplete("missing")));
    }
    let failed = |what: &'static str, error: &dyn std::error::Error| {
        TrackerError::io(what, path, io::Error::other(explain(error)))
    };
    let map = MapData::from_pin(path).map_err(|error| failed("open the pinned map", &error))?;
    let info = map.info().map_err(|error| failed("ask about the pinned map", &error))?;
    let shape = (info.key_size(), info.value_size(), info.max_entries());
    let is_array = info.map_type().is_ok_and(|kind| kind == MapType::Array);
    if !is_array || shape != (4, 8, entries) || info.map_flags() & MMAPABLE == 0 {
        return Ok(Err(incomplete("another kind or size of map")));
    }
    let words = WordMap::new(map.fd().as_fd(), index(u64::from(entries)))
        .map_err(|source| TrackerError::io("map into memory", path, source))?;
    Ok(Ok((words, info.id())))
}

fn check_link(path: &Path) -> Result<Result<(), FreshReason>, TrackerError> {
    let incomplete =
        |what: &str| Err(FreshReason::Incomplete { what: format!("{}: {what}", path.display()) });
    if !path.exists() {
        return Ok(incomplete("missing"));
    }
    let failed = |error: &dyn std::error::Error| {
        TrackerError::io("open the pinned link", path, io::Error::other(explain(error)))
    };
    let link = PinnedLink::from_pin(path).map_err(|error| failed(&error))?;
    let info = FdLink::from(link).info().map_err(|error| failed(&error))?;
    Ok(match info.link_type() {
        Ok(LinkType::RawTracePoint | LinkType::Tracing) if info.program_id() != 0 => Ok(()),
        _ => incomplete("not attached to a tracepoint"),
    })
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, TrackerError> {
    let failed = |source| TrackerError::io("list", directory, source);
    fs::read_dir(directory).map_err(failed)?.map(|entry| Ok(entry.map_err(failed)?.path())).collect()
}

fn remove_pin(path: &Path) -> Result<(), TrackerError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(TrackerError::io("remove", path, source))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_reads_back_and_other_layouts_are_told() {
        let identity = DiskIdentity { major: 259, minor: 3, blocks: 1 << 28, diskseq: None };
        let meta = Meta { identity, variant: Variant::PlainBytes, control_id: 77 };
        assert_eq!(Meta::read(meta.words()), Ok(meta));
        let mut words = meta.words();
        words[1] += 1;
        assert_eq!(Meta::read(words), Err(FreshReason::OtherLayout { version: LAYOUT_VERSION + 1 }));
        words[0] = 0;
        assert!(matches!(Meta::read(words), Err(FreshReason::Incomplete { .. })));
        for (slot, value) in [(2, 1 << 40), (6, 9)] {
            let mut words = meta.words();
            words[slot] = value;
            assert!(matches!(Meta::read(words), Err(FreshReason::Incomplete { .. })), "{slot}");
        }
    }
}
