//! The state of each block: in memory where anything was written, and in the file `current`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use lifeboat_model::{BlockSet, Extent};

use crate::error::OverlayError;

/// Bytes of states that are kept, written and flushed together.
pub(super) const STATES_PAGE_BYTES: usize = 4096;
const PAGE_BLOCKS: u64 = 4 * STATES_PAGE_BYTES as u64;

/// Where the content of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The point has it.
    Base = 0,
    /// The overlay's data has it.
    Data = 1,
    /// It is zeroes.
    Zeroes = 2,
}

type Page = Option<Box<[u8]>>;

pub(super) struct BlockStates {
    current: File,
    flushed: File,
    blocks: u64,
    /// None where all is [`State::Base`].
    pages: Vec<RwLock<Page>>,
    /// Pages that differ from the file `flushed`.
    changed: Mutex<BlockSet>,
    in_data: AtomicU64,
}

/// Bytes of a state file for a disk.
pub(super) const fn file_bytes(blocks: u64) -> u64 {
    blocks.div_ceil(PAGE_BLOCKS) * STATES_PAGE_BYTES as u64
}

/// The first page from `page` on that one of the files may hold; all before it are zeroes. `count`, when there is
/// none: then all pages were seen.
fn next_held(files: [&File; 2], page: u64, count: u64) -> io::Result<u64> {
    let mut next = count;
    for file in files {
        match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(page * STATES_PAGE_BYTES as u64)) {
            Ok(at) => next = next.min(at / STATES_PAGE_BYTES as u64),
            Err(rustix::io::Errno::NXIO) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(next)
}

impl BlockStates {
    /// Reads `current`, and finds the pages that `flushed` has otherwise. What neither file holds is passed over, so
    /// that the time depends on what was written and not on the size of the disk.
    pub fn load(current: File, flushed: File, blocks: u64, path: &Path) -> Result<Self, OverlayError> {
        let count = blocks.div_ceil(PAGE_BLOCKS);
        let mut pages = Vec::new();
        let mut in_data = 0;
        let mut changed = BlockSet::new(count);
        let mut buffer = vec![0; STATES_PAGE_BYTES];
        let mut other = vec![0; STATES_PAGE_BYTES];
        let mut page = 0;
        loop {
            page = next_held([&current, &flushed], page, count).map_err(OverlayError::io("read", path))?;
            pages.resize_with(usize::try_from(page).unwrap_or(usize::MAX), || RwLock::new(None));
            if page == count {
                break;
            }
            let at = page * STATES_PAGE_BYTES as u64;
            current.read_exact_at(&mut buffer, at).map_err(OverlayError::io("read", path))?;
            flushed.read_exact_at(&mut other, at).map_err(OverlayError::io("read", path))?;
            if buffer != other {
                changed.insert(Extent { first: page, blocks: 1 });
            }
            if buffer.iter().any(|byte| byte & (byte >> 1) & 0x55 != 0) {
                return Err(OverlayError::Damaged {
                    path: path.to_owned(),
                    why: "it holds an unknown state",
                });
            }
            // A low bit alone is `Data`.
            in_data += buffer.iter().map(|byte| u64::from((byte & 0x55).count_ones())).sum::<u64>();
            let is_base = buffer.iter().all(|byte| *byte == 0);
            pages.push(RwLock::new((!is_base).then(|| buffer.clone().into_boxed_slice())));
            page += 1;
        }
        let (changed, in_data) = (Mutex::new(changed), AtomicU64::new(in_data));
        Ok(Self { current, flushed, blocks, pages, changed, in_data })
    }

    /// How many blocks are [`State::Data`].
    pub fn in_data(&self) -> u64 {
        self.in_data.load(Ordering::Relaxed)
    }

    pub fn get(&self, block: u64) -> State {
        match &*self.page(block).read().unwrap_or_else(PoisonError::into_inner) {
            Some(states) => state_of(states, block % PAGE_BLOCKS),
            None => State::Base,
        }
    }

    /// The states of blocks of the disk, as runs in order.
    pub fn runs(&self, extent: Extent) -> Vec<(Extent, State)> {
        let mut runs: Vec<(Extent, State)> = Vec::with_capacity(1);
        let mut add = |first: u64, blocks: u64, state: State| match runs.last_mut() {
            Some((last, last_state)) if *last_state == state => last.blocks += blocks,
            _ => runs.push((Extent { first, blocks }, state)),
        };
        for piece in page_pieces(extent) {
            match &*self.page(piece.first).read().unwrap_or_else(PoisonError::into_inner) {
                None => add(piece.first, piece.blocks, State::Base),
                Some(states) => {
                    for block in piece.first..piece.end() {
                        add(block, 1, state_of(states, block % PAGE_BLOCKS));
                    }
                }
            }
        }
        runs
    }

    /// Gives all blocks of an extent a state, first in the file, then in memory.
    pub fn set(&self, extent: Extent, state: State) -> io::Result<()> {
        debug_assert!(extent.end() <= self.blocks);
        page_pieces(extent).try_for_each(|piece| self.set_within_page(piece, state))
    }

    fn set_within_page(&self, piece: Extent, state: State) -> io::Result<()> {
        let first = piece.first % PAGE_BLOCKS;
        let end = first + piece.blocks;
        {
            let page = self.page(piece.first).read().unwrap_or_else(PoisonError::into_inner);
            let is_so = |states: &[u8]| (first..end).all(|block| state_of(states, block) == state);
            if page.as_deref().map_or(state == State::Base, is_so) {
                return Ok(());
            }
        }
        let mut page = self.page(piece.first).write().unwrap_or_else(PoisonError::into_inner);
        // A block's state shares its byte with three others, which only this lock protects.
        let bytes = index(first / 4)..index(end.div_ceil(4));
        let mut states = match &*page {
            Some(states) => states[bytes.clone()].to_vec(),
            None => vec![0; bytes.len()],
        };
        let before = count_data(&states);
        for block in first..end {
            let byte = &mut states[index(block / 4) - bytes.start];
            let shift = 2 * (block % 4);
            *byte = *byte & !(3 << shift) | (state as u8) << shift;
        }
        let page_number = piece.first / PAGE_BLOCKS;
        let page_at = page_number * STATES_PAGE_BYTES as u64;
        if page.is_none() {
            // Both files get their space now: when the disk is full, a flush must still find it.
            let base = [0; STATES_PAGE_BYTES];
            self.flushed.write_all_at(&base, page_at)?;
            self.current.write_all_at(&base, page_at)?;
        }
        self.current.write_all_at(&states, page_at + bytes.start as u64)?;
        let after = count_data(&states);
        // Wraps round when it becomes less, which is what is meant.
        self.in_data.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
        page.get_or_insert_with(|| vec![0; STATES_PAGE_BYTES].into_boxed_slice())[bytes]
            .copy_from_slice(&states);
        // Under the page's lock, so that a flush which takes the page later finds its mark.
        self.put_back_changed([index(page_number)]);
        Ok(())
    }

    /// Copies of all pages that have changed since the last flush, with their numbers.
    pub fn take_changed(&self) -> Vec<(usize, Vec<u8>)> {
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        let taken: Vec<u64> = changed.extents().flat_map(|extent| extent.first..extent.end()).collect();
        changed.clear();
        drop(changed);
        let copy = |number: u64| {
            let page = self.pages[index(number)].read().unwrap_or_else(PoisonError::into_inner);
            let states = page.as_deref().map_or_else(|| vec![0; STATES_PAGE_BYTES], <[u8]>::to_vec);
            (index(number), states)
        };
        taken.into_iter().map(copy).collect()
    }

    /// Puts copies that [`Self::take_changed`] gave into `flushed`.
    pub fn write_flushed(&self, changed: &[(usize, Vec<u8>)]) -> io::Result<()> {
        let mut pages = changed.iter();
        pages.try_for_each(|(page, states)| {
            self.flushed.write_all_at(states, (page * STATES_PAGE_BYTES) as u64)
        })
    }

    /// Makes `flushed` durable.
    pub fn sync_flushed(&self) -> io::Result<()> {
        self.flushed.sync_data()
    }

    /// Marks pages as changed, again or for the first time.
    pub fn put_back_changed(&self, pages: impl IntoIterator<Item = usize>) {
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        pages.into_iter().for_each(|page| changed.insert(Extent { first: page as u64, blocks: 1 }));
    }

    fn page(&self, block: u64) -> &RwLock<Page> {
        &self.pages[index(block / PAGE_BLOCKS)]
    }
}

/// Makes the file `current` what `flushed` is, writing only what differs, and syncs it. Takes no new
/// space: a page that either has is allocated in both.
pub(super) fn roll_back(current: &File, flushed: &File, blocks: u64) -> io::Result<()> {
    let (mut now, mut then) = (vec![0; STATES_PAGE_BYTES], vec![0; STATES_PAGE_BYTES]);
    let count = blocks.div_ceil(PAGE_BLOCKS);
    let mut page = next_held([current, flushed], 0, count)?;
    while page < count {
        let at = page * STATES_PAGE_BYTES as u64;
        current.read_exact_at(&mut now, at)?;
        flushed.read_exact_at(&mut then, at)?;
        if now != then {
            current.write_all_at(&then, at)?;
        }
        page = next_held([current, flushed], page + 1, count)?;
    }
    current.sync_all()
}

fn page_pieces(extent: Extent) -> impl Iterator<Item = Extent> {
    let mut at = extent.first;
    std::iter::from_fn(move || {
        let until = ((at / PAGE_BLOCKS + 1) * PAGE_BLOCKS).min(extent.end());
        let piece = Extent::new(at, until.checked_sub(at)?)?;
        at = until;
        Some(piece)
    })
}

fn state_of(states: &[u8], block: u64) -> State {
    match states[index(block / 4)] >> (2 * (block % 4)) & 3 {
        0 => State::Base,
        1 => State::Data,
        _ => State::Zeroes,
    }
}

fn count_data(states: &[u8]) -> u64 {
    states.iter().map(|byte| u64::from((byte & 0x55).count_ones())).sum()
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "the pages of the disk were allocated, so their numbers fit"
)]
const fn index(number: u64) -> usize {
    number as usize
}
