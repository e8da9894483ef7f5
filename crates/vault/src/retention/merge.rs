//! Writing the content of successive files anew, as few files as it takes.
//!
//! **Digests.** The agent's digest of a frame goes along when the frame is taken whole. Where a
//! frame was overridden in part, or small frames lie side by side and are joined, the old frames are
//! opened first, which checks them against the agent's digest, and the new digest is computed from
//! those very bytes in memory. So each frame that is written holds what was checked a moment
//! ago, and the finished file is read back once more before anybody is told of it.
//!
//! **Memory.** The indexes of all files are held, and the frames that reach into the 64 blocks
//! where the merge is now; small files whole, up to [`WHOLE_BYTES`]. The output is staged in a file
//! of the state directory, as its name in the store holds its digest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use lifeboat_hrl::{
    DiskKey, FileId, FileIdentity, FrameSealer, HrlError, LEVEL_DEFAULT, Problem, Writer,
    verify_file_with_key,
};
use lifeboat_model::{Digest, DiskNumber, Epoch, Extent, FRAME_BLOCKS, FRAME_BYTES, Part};

use super::compose::{Layer, Piece, Place, compose};
use super::layout::Run;
use crate::background_pace::Pace;
use crate::catalog::StoredFile;
use crate::object_name::ObjectNames;
use crate::random::{NoRandomness, Randomness};
use crate::store::StoreError;
use crate::stored_file::{FileFault, OpenFile, Owner, Reader};

/// A frame that is taken whole has at least so many blocks; smaller ones are joined.
const WHOLE_FRAME_BLOCKS: u64 = 16;
/// Frames and zero extents after which another part is begun.
const ENTRIES_MAX: u32 = 1 << 18;
/// Files up to this size are read at once, ...
const SMALL_FILE_BYTES: u64 = 4 << 20;
/// ... until they are so much together.
const WHOLE_BYTES: u64 = 64 << 20;
/// Bytes that are handed to the store at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Files could not be merged. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// One of them is damaged, or cannot be read.
    #[error("{object}: {fault}")]
    Input {
        /// Its name.
        object: String,
        /// Why.
        fault: Box<FileFault>,
    },
    /// The new file cannot be written.
    #[error("the merged file cannot be written: {0}")]
    Output(Box<HrlError>),
    /// The staging file cannot be written.
    #[error("the merged file cannot be staged in {}: {source}; is there room?", path.display())]
    Staging {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The store refuses the new file.
    #[error("{0}")]
    Store(Box<StoreError>),
    /// What the store has is not what was written.
    #[error(
        "{object} was stored but does not read back as it was written; look for errors of the store's disk"
    )]
    ReadBack {
        /// Its name.
        object: String,
    },
    /// No random numbers for the new file's id.
    #[error(transparent)]
    Random(#[from] NoRandomness),
    /// The vault is stopping.
    #[error(transparent)]
    Stopped(#[from] crate::background_pace::Stopped),
}

impl From<HrlError> for MergeError {
    fn from(error: HrlError) -> Self {
        Self::Output(Box::new(error))
    }
}

impl From<StoreError> for MergeError {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}

/// What is merged, and what it takes.
pub(crate) struct Merge {
    pub owner: Owner,
    /// The key for the new files.
    pub key: DiskKey,
    pub names: ObjectNames,
    pub disk: DiskNumber,
    /// Oldest first, at least one.
    pub runs: Vec<Run>,
    pub reader: Reader,
    pub randomness: Arc<dyn Randomness>,
    /// Exists, and is used by nobody else meanwhile.
    pub staging: PathBuf,
    /// Bytes of data after which another part is begun.
    pub part_bytes: u64,
}

/// Merges, and stores the new files. Those that were stored are in `stored` also after an error.
/// Blocks.
pub(crate) fn merge(merge: &Merge, pace: &mut Pace, stored: &mut Vec<StoredFile>) -> Result<(), MergeError> {
    let inputs = open_inputs(merge, pace)?;
    let layers: Vec<Layer> = inputs
        .iter()
        .map(|(_, open)| Layer {
            covered: open.index.effective(),
            disk_blocks: open.index.footer().header.identity.disk_blocks(),
        })
        .collect();
    let pieces = compose(&layers);
    drop(layers);
    let disk_bytes = inputs.last().map_or(0, |(_, open)| open.index.footer().header.identity.disk_bytes);
    let mut output = Output::new(merge, disk_bytes);
    let mut frames = Frames { merge, inputs: &inputs, open: BTreeMap::new() };
    for group in Groups::new(&pieces, &inputs) {
        match group {
            Group::Zeroes(extent) => output.zeroes(extent, pace, stored)?,
            Group::Whole(piece, digest) => {
                let plain = frames.piece(&piece, pace)?;
                output.frame(piece.extent, &plain, digest, pace, stored)?;
            }
            Group::Joined(pieces) => {
                let Some((extent, plain)) = frames.join(pieces, pace)? else { continue };
                output.frame(extent, &plain, Digest::of(&plain), pace, stored)?;
            }
        }
    }
    output.end_part(pace, stored)?;
    // Runs in which nothing is left to say still need a file that stands for their epochs.
    if stored.is_empty() {
        output.begin_part()?;
        output.end_part(pace, stored)?;
    }
    Ok(())
}

fn open_inputs<'a>(merge: &'a Merge, pace: &mut Pace) -> Result<Vec<(&'a StoredFile, OpenFile)>, MergeError> {
    let mut room = WHOLE_BYTES;
    let mut inputs = Vec::new();
    for file in merge.runs.iter().flat_map(|run| &run.files) {
        let keep_whole = file.bytes <= SMALL_FILE_BYTES.min(room);
        if keep_whole {
            room -= file.bytes;
            pace.spend(file.bytes)?;
        }
        let open = OpenFile::open(&merge.reader, &merge.owner, file, keep_whole);
        let open =
            open.map_err(|fault| MergeError::Input { object: file.object.clone(), fault: Box::new(fault) })?;
        inputs.push((file, open));
    }
    Ok(inputs)
}

/// What becomes one entry of the new file.
enum Group<'a> {
    Zeroes(Extent),
    /// One frame as it is.
    Whole(Piece, Digest),
    /// Pieces side by side, within 64 blocks.
    Joined(&'a [Piece]),
}

/// Cuts the pieces into groups.
struct Groups<'a> {
    pieces: &'a [Piece],
    inputs: &'a [(&'a StoredFile, OpenFile)],
    next: usize,
}

impl<'a> Groups<'a> {
    fn new(pieces: &'a [Piece], inputs: &'a [(&'a StoredFile, OpenFile)]) -> Self {
        Self { pieces, inputs, next: 0 }
    }

    /// The digest of the frame, when the piece is all of it.
    fn whole(&self, piece: &Piece) -> Option<Digest> {
        let Place::Frame { file, number, .. } = piece.place else { return None };
        let (extent, frame) = self.inputs.get(file)?.1.index.frame(number)?;
        (extent == piece.extent).then_some(frame.digest)
    }

    fn is_large(&self, piece: &Piece) -> bool {
        piece.extent.blocks >= WHOLE_FRAME_BLOCKS && self.whole(piece).is_some()
    }
}

impl<'a> Iterator for Groups<'a> {
    type Item = Group<'a>;

    fn next(&mut self) -> Option<Group<'a>> {
        let pieces = self.pieces;
        let first = pieces.get(self.next)?;
        let start = self.next;
        self.next += 1;
        if first.place == Place::Zeroes {
            return Some(Group::Zeroes(first.extent));
        }
        if !self.is_large(first) {
            while let Some(piece) = pieces.get(self.next)
                && piece.place != Place::Zeroes
                && piece.extent.first == pieces[self.next - 1].extent.end()
                && piece.extent.end() - first.extent.first <= FRAME_BLOCKS
                && !self.is_large(piece)
            {
                self.next += 1;
            }
        }
        match (self.next - start, self.whole(first)) {
            (1, Some(digest)) => Some(Group::Whole(*first, digest)),
            _ => Some(Group::Joined(&pieces[start..self.next])),
        }
    }
}

/// The frames around where the merge is now.
struct Frames<'a> {
    merge: &'a Merge,
    inputs: &'a [(&'a StoredFile, OpenFile)],
    /// By file and number: the frame's end and its blocks.
    open: BTreeMap<(usize, u32), (Extent, Vec<u8>)>,
}

impl Frames<'_> {
    /// The blocks of a piece, which were checked against the digest of their frame.
    fn piece(&mut self, piece: &Piece, pace: &mut Pace) -> Result<Vec<u8>, MergeError> {
        let Place::Frame { file, number, skip_blocks } = piece.place else {
            return Ok(vec![0; bytes_of(piece.extent.blocks)]);
        };
        self.open.retain(|_, (extent, _)| extent.end() > piece.extent.first);
        let (input, open) = &self.inputs[file];
        if !self.open.contains_key(&(file, number)) {
            let (extent, frame) = open
                .index
                .frame(number)
                .map_or((piece.extent, 0), |(extent, frame)| (extent, frame.stored_bytes));
            pace.spend(u64::from(frame))?;
            let plain = open.frame(&self.merge.reader, number);
            let plain = plain.map_err(|fault| MergeError::Input {
                object: input.object.clone(),
                fault: Box::new(fault),
            })?;
            self.open.insert((file, number), (extent, plain));
        }
        let (_, plain) = &self.open[&(file, number)];
        let start = bytes_of(skip_blocks).min(plain.len());
        let end = bytes_of(skip_blocks + piece.extent.blocks).min(plain.len());
        Ok(plain[start..end].to_vec())
    }

    fn join(&mut self, pieces: &[Piece], pace: &mut Pace) -> Result<Option<(Extent, Vec<u8>)>, MergeError> {
        let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else { return Ok(None) };
        let mut plain = Vec::with_capacity(FRAME_BYTES);
        for piece in pieces {
            plain.extend(self.piece(piece, pace)?);
        }
        let (first, end) = (first.extent.first, last.extent.end());
        Ok(Extent::new(first, end - first).map(|extent| (extent, plain)))
    }
}

/// Bytes of a few blocks.
fn bytes_of(blocks: u64) -> usize {
    usize::try_from(blocks * lifeboat_model::BLOCK_BYTES as u64).unwrap_or(usize::MAX)
}

/// The new files, one after the other.
struct Output<'a> {
    merge: &'a Merge,
    identity: FileIdentity,
    part: Option<OpenPart>,
    next_part: u32,
}

struct OpenPart {
    sealer: FrameSealer,
    writer: Writer<BufWriter<File>>,
    plain_bytes: u64,
    zero_extents: u32,
}

impl<'a> Output<'a> {
    fn new(merge: &'a Merge, disk_bytes: u64) -> Self {
        let edge = |run: Option<&Run>, of: fn(&Run) -> Epoch| run.map_or(Epoch(0), of);
        let identity = FileIdentity {
            vault: merge.owner.vault,
            server: merge.owner.server,
            disk: merge.disk,
            first_epoch: edge(merge.runs.first(), |run| run.first),
            last_epoch: edge(merge.runs.last(), |run| run.last),
            part: Part(0),
            disk_bytes,
        };
        Self { merge, identity, part: None, next_part: 0 }
    }

    fn staging_error(&self) -> impl Fn(std::io::Error) -> MergeError + use<> {
        let path = self.merge.staging.clone();
        move |source| MergeError::Staging { path: path.clone(), source }
    }

    fn begin_part(&mut self) -> Result<(), MergeError> {
        let mut id = [0; 16];
        self.merge.randomness.fill(&mut id)?;
        let identity = FileIdentity { part: Part(self.next_part), ..self.identity };
        let sealer = FrameSealer::new(identity, FileId(id), &self.merge.key, LEVEL_DEFAULT)?;
        let file =
            File::options().read(true).write(true).create(true).truncate(true).open(&self.merge.staging);
        let file = file.map_err(self.staging_error())?;
        let writer = Writer::new(BufWriter::with_capacity(CHUNK_BYTES, file), &sealer)?;
        self.part = Some(OpenPart { sealer, writer, plain_bytes: 0, zero_extents: 0 });
        self.next_part += 1;
        Ok(())
    }

    /// A part with room for another entry.
    fn part(&mut self, pace: &mut Pace, stored: &mut Vec<StoredFile>) -> Result<&mut OpenPart, MergeError> {
        let is_full = self.part.as_ref().is_some_and(|part| {
            part.plain_bytes >= self.merge.part_bytes
                || part.writer.next_frame() >= ENTRIES_MAX
                || part.zero_extents >= ENTRIES_MAX
        });
        if is_full {
            self.end_part(pace, stored)?;
        }
        if self.part.is_none() {
            self.begin_part()?;
        }
        self.part.as_mut().ok_or_else(|| HrlError::from(Problem::Misuse("no part is open")).into())
    }

    fn zeroes(
        &mut self,
        extent: Extent,
        pace: &mut Pace,
        stored: &mut Vec<StoredFile>,
    ) -> Result<(), MergeError> {
        let part = self.part(pace, stored)?;
        part.zero_extents += 1;
        Ok(part.writer.zeroes(extent)?)
    }

    fn frame(
        &mut self,
        extent: Extent,
        plain: &[u8],
        digest: Digest,
        pace: &mut Pace,
        stored: &mut Vec<StoredFile>,
    ) -> Result<(), MergeError> {
        let part = self.part(pace, stored)?;
        // Sealing compares data and digest once more.
        let frame = part.sealer.seal(part.writer.next_frame(), extent, plain, digest)?;
        part.plain_bytes += plain.len() as u64;
        let bytes = frame.stored_bytes() as u64;
        part.writer.append(frame)?;
        Ok(pace.spend(bytes)?)
    }

    /// Finishes the part: reads it back with its key, then stores it.
    fn end_part(&mut self, pace: &mut Pace, stored: &mut Vec<StoredFile>) -> Result<(), MergeError> {
        let Some(part) = self.part.take() else { return Ok(()) };
        let part_number = part.sealer.header().identity.part;
        let (buffer, summary) = part.writer.finish()?;
        let mut file = buffer.into_inner().map_err(|error| self.staging_error()(error.into_error()))?;
        let verified = verify_file_with_key(&mut file, &self.merge.key)?;
        if verified.summary != summary {
            return Err(HrlError::from(Problem::Misuse("the file reads back as another")).into());
        }
        let (names, owner) = (&self.merge.names, &self.merge.owner);
        let epochs = (self.identity.first_epoch, self.identity.last_epoch);
        let object = names.merged_file(owner.server, self.merge.disk, epochs, part_number, &summary.digest);
        self.store(&mut file, &object, pace)?;
        let read_back = self.merge.reader.runtime().block_on(self.merge.reader.store().digest(&object))?;
        if read_back != Some((summary.bytes, summary.digest)) {
            return Err(MergeError::ReadBack { object });
        }
        stored.push(StoredFile {
            disk: self.merge.disk,
            first_epoch: epochs.0,
            last_epoch: epochs.1,
            part: part_number,
            object,
            bytes: summary.bytes,
            digest: summary.digest,
            plain_bytes: summary.plain_bytes,
        });
        Ok(())
    }

    fn store(&self, file: &mut File, object: &str, pace: &mut Pace) -> Result<(), MergeError> {
        let (store, runtime) = (self.merge.reader.store(), self.merge.reader.runtime());
        let failed = self.staging_error();
        file.seek(SeekFrom::Start(0)).map_err(&failed)?;
        let mut writer = runtime.block_on(store.begin(object))?;
        loop {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            let written = file
                .by_ref()
                .take(CHUNK_BYTES as u64)
                .read_to_end(&mut chunk)
                .map_err(&failed)
                .and_then(|_| Ok(pace.spend(0)?))
                .and_then(|()| {
                    let is_end = chunk.is_empty();
                    runtime.block_on(writer.write(Bytes::from(chunk)))?;
                    Ok(is_end)
                });
            match written {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => {
                    runtime.block_on(writer.abort());
                    return Err(error);
                }
            }
        }
        Ok(runtime.block_on(writer.finish())?)
    }
}
