//! Disks that are open for reading, and reads over all of them at once.
//!
//! A read that fails is cut in halves and tried again, down to single blocks, so that one bad
//! sector costs one block. What cannot be read at all is named. A disk of which nothing can be
//! read any more is gone, and that is an error of its own: its blocks are not "unreadable".

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use lifeboat_model::{BLOCK_BYTES, DiskNumber, Extent, FRAME_BYTES, blocks_of_bytes};

use crate::engine::{AlignedBuffer, Engine, Finished, Job, SECTOR_BYTES_MAX};
use crate::{ReadError, ReaderKind, Unreadable};

/// A read may begin and end up to a sector outside of its blocks.
const BUFFER_BYTES: usize = FRAME_BYTES + 2 * SECTOR_BYTES_MAX;

/// How often reads may be told to try again in one batch before that counts as an error.
const AGAIN_MAX: u32 = 1000;

struct OpenDisk {
    file: Arc<File>,
    bytes: u64,
    sector_bytes: u64,
}

/// Reads blocks of several disks with one engine and one bounded set of buffers.
pub(crate) struct Disks {
    engine: Engine,
    /// Buffers that no read uses, each with its place in `begun`.
    idle: Vec<(usize, AlignedBuffer)>,
    disks: BTreeMap<DiskNumber, OpenDisk>,
    begun: Vec<Option<Begun>>,
}

#[derive(Clone, Copy)]
struct Begun {
    disk: DiskNumber,
    extent: Extent,
    /// Where in the buffer the extent begins.
    lead: usize,
    /// Bytes that the disk has of the extent.
    len: usize,
}

/// Blocks as they were read, the part beyond the end of the disk zero.
pub(crate) struct Blocks<'a> {
    pub disk: DiskNumber,
    pub extent: Extent,
    pub bytes: &'a [u8],
}

/// What one batch of reads left to say.
#[derive(Debug, Default)]
pub(crate) struct BatchEnd {
    pub unreadable: Vec<Unreadable>,
    /// The receiver of blocks broke it off.
    pub broken_off: bool,
}

/// What goes on inside of [`Disks::read`].
struct Batch<'a> {
    wanted: &'a mut dyn Iterator<Item = (DiskNumber, Extent)>,
    again: Vec<(DiskNumber, Extent)>,
    agains: u32,
    end: BatchEnd,
    /// Disks that were found alive after their first bad block.
    alive: Vec<DiskNumber>,
}

impl Disks {
    /// No disks; `depth` reads at once at most, each with up to 384 KiB of memory.
    pub fn new(depth: u32, kind: Option<ReaderKind>) -> Result<Self, ReadError> {
        let engine = match kind {
            Some(ReaderKind::Threads) => Engine::threads(depth),
            _ => Engine::new(depth),
        };
        let engine = engine.map_err(ReadError::Engine)?;
        let idle = (0..depth as usize).map(|token| Ok((token, AlignedBuffer::new(BUFFER_BYTES)?)));
        let idle = idle.collect::<io::Result<_>>().map_err(ReadError::Engine)?;
        let begun = (0..depth).map(|_| None).collect();
        Ok(Self { engine, idle, disks: BTreeMap::new(), begun })
    }

    pub fn kind(&self) -> ReaderKind {
        self.engine.kind()
    }

    /// Opens a disk; gives its size in bytes.
    pub fn open(&mut self, number: DiskNumber, path: &Path) -> Result<u64, ReadError> {
        let open_error = |source| ReadError::Open { path: path.to_owned(), source };
        let mut file =
            OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).map_err(open_error)?;
        let bytes = file.seek(SeekFrom::End(0)).map_err(open_error)?;
        // A regular file knows no sectors; what its file system wants is never more than a block.
        let sector_bytes = rustix::fs::ioctl_blksszget(&file).map_or(BLOCK_BYTES as u64, u64::from);
        if !sector_bytes.is_power_of_two() || sector_bytes > SECTOR_BYTES_MAX as u64 {
            return Err(ReadError::Sectors { path: path.to_owned(), sector_bytes });
        }
        self.disks.insert(number, OpenDisk { file: Arc::new(file), bytes, sector_bytes });
        Ok(bytes)
    }

    pub fn close(&mut self, number: DiskNumber) {
        self.disks.remove(&number);
    }

    /// The sizes that the disks had when they were opened.
    pub fn sizes(&self) -> impl Iterator<Item = (DiskNumber, u64)> + '_ {
        self.disks.iter().map(|(number, disk)| (*number, disk.bytes))
    }

    /// The device numbers of the disks.
    pub fn device_numbers(&self) -> io::Result<Vec<u64>> {
        self.disks.values().map(|disk| Ok(disk.file.metadata()?.rdev())).collect()
    }

    /// Looks whether all disks are there, with the sizes that they had.
    pub fn check_sizes(&self) -> Result<(), ReadError> {
        self.disks.iter().try_for_each(|(number, disk)| disk.check_size(*number))
    }

    /// Keeps the buffers from being paged out, for reading while file systems are frozen.
    pub fn lock_buffers(&self) {
        self.idle.iter().for_each(|(_, buffer)| buffer.lock());
    }

    /// Reads all `wanted` extents (at most a frame each), in parallel, begun in their order, and
    /// hands each to `done` right after it was read, in any order. `done` may break it off; then
    /// what else was read meanwhile is dropped.
    pub fn read(
        &mut self,
        wanted: &mut dyn Iterator<Item = (DiskNumber, Extent)>,
        done: &mut dyn FnMut(Blocks<'_>) -> ControlFlow<()>,
    ) -> Result<BatchEnd, ReadError> {
        // A caller that panicked in `done` may have left reads behind.
        self.drain()?;
        let mut batch =
            Batch { wanted, again: Vec::new(), agains: 0, end: BatchEnd::default(), alive: Vec::new() };
        let result = self.run(&mut batch, done);
        self.drain()?;
        result.map(|()| batch.end)
    }

    fn run(
        &mut self,
        batch: &mut Batch<'_>,
        done: &mut dyn FnMut(Blocks<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        loop {
            while let Some((token, buffer)) = self.idle.pop() {
                let Some((disk, extent)) = batch.again.pop().or_else(|| batch.wanted.next()) else {
                    self.idle.push((token, buffer));
                    break;
                };
                self.begin(disk, extent, token, buffer)?;
            }
            let Some((begun, mut buffer, token, read)) = self.next_finished()? else { return Ok(()) };
            let Begun { disk, extent, lead, len } = begun;
            let flow = match read {
                Ok(read) if read >= lead + len => {
                    let whole = lead..lead + usize_of(extent.len_bytes());
                    buffer.bytes_mut()[lead + len..whole.end].fill(0);
                    done(Blocks { disk, extent, bytes: &buffer.bytes()[whole] })
                }
                // Less than the disk is supposed to have is an error too.
                Ok(_) => self.failed(batch, begun, io::Error::from_raw_os_error(libc::EIO))?,
                Err(error) => self.failed(batch, begun, error)?,
            };
            self.idle.push((token, buffer));
            if flow.is_break() {
                batch.end.broken_off = true;
                return Ok(());
            }
        }
    }

    fn begin(
        &mut self,
        number: DiskNumber,
        extent: Extent,
        token: usize,
        buffer: AlignedBuffer,
    ) -> Result<(), ReadError> {
        let disk = self.disks.get(&number).ok_or(ReadError::NoSuchDisk { disk: number });
        let placed = disk.and_then(|disk| Ok((disk, disk.place(number, extent)?)));
        let (disk, place) = match placed {
            Ok(placed) => placed,
            Err(error) => {
                self.idle.push((token, buffer));
                return Err(error);
            }
        };
        let Place { offset, lead, len, read_len } = place;
        self.begun[token] = Some(Begun { disk: number, extent, lead, len });
        let job = Job { file: Arc::clone(&disk.file), offset, len: read_len, buffer, token: token as u64 };
        self.engine.begin(job).map_err(ReadError::Engine)
    }

    #[allow(clippy::type_complexity, reason = "taken apart at once by its one caller")]
    fn next_finished(
        &mut self,
    ) -> Result<Option<(Begun, AlignedBuffer, usize, io::Result<usize>)>, ReadError> {
        let finished = self.engine.wait().map_err(ReadError::Engine)?;
        let Some(Finished { buffer, token, read }) = finished else { return Ok(None) };
        let token = usize_of(token);
        let begun = self.begun.get_mut(token).and_then(Option::take);
        let begun = begun.ok_or_else(|| ReadError::Engine(io::Error::other("a read ended twice")))?;
        Ok(Some((begun, buffer, token, read)))
    }

    /// Waits for what is still being read, and drops it.
    fn drain(&mut self) -> Result<(), ReadError> {
        while let Some((_, buffer, token, _)) = self.next_finished()? {
            self.idle.push((token, buffer));
        }
        Ok(())
    }

    /// Decides what becomes of a read that failed.
    fn failed(
        &self,
        batch: &mut Batch<'_>,
        begun: Begun,
        error: io::Error,
    ) -> Result<ControlFlow<()>, ReadError> {
        let Begun { disk: number, extent, .. } = begun;
        let disk = self.disks.get(&number).ok_or(ReadError::NoSuchDisk { disk: number })?;
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        if matches!(errno, libc::EAGAIN | libc::EINTR) && batch.agains < AGAIN_MAX {
            batch.agains += 1;
            std::thread::yield_now();
            batch.again.push((number, extent));
            return Ok(ControlFlow::Continue(()));
        }
        disk.check_size(number)?;
        if matches!(errno, libc::ENODEV | libc::ENXIO) {
            return Err(ReadError::DiskGone { disk: number, source: error });
        }
        if extent.blocks > 1 {
            batch.again.extend(extent.pieces(extent.blocks.div_ceil(2)).map(|half| (number, half)));
            return Ok(ControlFlow::Continue(()));
        }
        if !batch.alive.contains(&number) {
            if !disk.is_alive() {
                return Err(ReadError::DiskGone { disk: number, source: error });
            }
            batch.alive.push(number);
        }
        add_unreadable(&mut batch.end.unreadable, Unreadable { disk: number, extent, errno });
        Ok(ControlFlow::Continue(()))
    }
}

/// Where a read begins and ends on the disk and in its buffer, in bytes.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    offset: u64,
    lead: usize,
    len: usize,
    read_len: usize,
}

impl OpenDisk {
    fn place(&self, number: DiskNumber, extent: Extent) -> Result<Place, ReadError> {
        let fits = extent.len_bytes() <= FRAME_BYTES as u64 && extent.end() <= blocks_of_bytes(self.bytes);
        if !fits {
            let text = format!("{extent} of disk {number} cannot be read: beyond its end, or too many");
            return Err(ReadError::Engine(io::Error::new(io::ErrorKind::InvalidInput, text)));
        }
        let sector = self.sector_bytes;
        let start = extent.offset_bytes();
        let end = (start + extent.len_bytes()).min(self.bytes);
        let offset = start - start % sector;
        Ok(Place {
            offset,
            lead: usize_of(start - offset),
            len: usize_of(end - start),
            read_len: usize_of(end.next_multiple_of(sector) - offset),
        })
    }

    fn check_size(&self, number: DiskNumber) -> Result<(), ReadError> {
        let gone = |source| ReadError::DiskGone { disk: number, source };
        let is_bytes = (&*self.file).seek(SeekFrom::End(0)).map_err(gone)?;
        if is_bytes == 0 && self.bytes > 0 {
            return Err(gone(io::Error::from_raw_os_error(libc::ENODEV)));
        }
        if is_bytes != self.bytes {
            return Err(ReadError::SizeChanged { disk: number, was_bytes: self.bytes, is_bytes });
        }
        Ok(())
    }

    /// Whether anything can be read: a sector at the beginning, the end, or one of some between.
    fn is_alive(&self) -> bool {
        const PLACES: u64 = 8;
        let Ok(mut buffer) = AlignedBuffer::new(SECTOR_BYTES_MAX) else { return true };
        let last = self.bytes.saturating_sub(1) / self.sector_bytes;
        (0..=PLACES).any(|place| {
            let sector = u128::from(last) * u128::from(place) / u128::from(PLACES);
            let offset = u64::try_from(sector).unwrap_or(0) * self.sector_bytes;
            let target = &mut buffer.bytes_mut()[..usize_of(self.sector_bytes)];
            self.file.read_at(target, offset).is_ok_and(|read| read > 0)
        })
    }
}

/// Adds a block to a list of unreadable ones, joined to the last where they touch.
fn add_unreadable(list: &mut Vec<Unreadable>, new: Unreadable) {
    if let Some(last) = list.last_mut()
        && (last.disk, last.errno, last.extent.end()) == (new.disk, new.errno, new.extent.first)
    {
        last.extent.blocks += new.extent.blocks;
        return;
    }
    list.push(new);
}

#[allow(clippy::cast_possible_truncation, reason = "lengths inside of a buffer, and its number")]
fn usize_of(bytes: u64) -> usize {
    bytes as usize
}

#[cfg(test)]
mod tests;
