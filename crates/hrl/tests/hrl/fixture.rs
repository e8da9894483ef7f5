//! Files for the tests, and a reader that does what a volume does.

use lifeboat_hrl::{
    DiskKey, FileId, FileIdentity, Footer, FrameSealer, Header, HrlError, Index, Source, Writer,
};
use lifeboat_model::{BLOCK_BYTES, Digest, DiskNumber, Epoch, Extent, Part, ServerId, VaultId};

/// One thing that is written to a file.
#[derive(Clone, Debug)]
pub enum Change {
    Data(Extent, Vec<u8>),
    Zeroes(Extent),
}

pub fn identity(disk_blocks: u64) -> FileIdentity {
    FileIdentity {
        vault: VaultId::new(0x0123_4567_89ab_cdef),
        server: ServerId::new(0xfedc_ba98_7654_3210),
        disk: DiskNumber(2),
        first_epoch: Epoch(7),
        last_epoch: Epoch(9),
        part: Part(1),
        // The last block is not whole.
        disk_bytes: disk_blocks * BLOCK_BYTES as u64 - 512,
    }
}

pub fn key() -> DiskKey {
    DiskKey::new([0x42; 32])
}

pub fn extent(first: u64, blocks: u64) -> Extent {
    Extent::new(first, blocks).unwrap()
}

/// Blocks that zstd cannot shrink, or can.
pub fn blocks(seed: u32, count: u64, noise: bool) -> Vec<u8> {
    let mut data = vec![0; usize::try_from(count).unwrap() * BLOCK_BYTES];
    let mut stream = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let step = if noise { BLOCK_BYTES } else { 64 };
    for block in data.chunks_exact_mut(BLOCK_BYTES) {
        stream.fill(&mut block[..step]);
    }
    data
}

pub fn seal(sealer: &FrameSealer, number: u32, extent: Extent, data: &[u8]) -> lifeboat_hrl::SealedFrame {
    sealer.seal(number, extent, data, Digest::of(data)).unwrap()
}

pub fn write(identity: FileIdentity, file_id: FileId, changes: &[Change]) -> Vec<u8> {
    let sealer = FrameSealer::new(identity, file_id, &key(), 1).unwrap();
    let mut writer = Writer::new(Vec::new(), &sealer).unwrap();
    for change in changes {
        match change {
            Change::Data(extent, data) => {
                let frame = seal(&sealer, writer.next_frame(), *extent, data);
                writer.append(frame).unwrap();
            }
            Change::Zeroes(extent) => writer.zeroes(*extent).unwrap(),
        }
    }
    let (file, summary) = writer.finish().unwrap();
    assert_eq!(summary.bytes, file.len() as u64);
    file
}

/// Block by block, what a file says: unknown, or 4,096 bytes.
pub type Disk = Vec<Option<Vec<u8>>>;

/// Reads all of a file by ranges, as from an object store, and applies it to an unknown disk.
pub fn read(file: &[u8], key: &DiskKey) -> Result<Disk, HrlError> {
    let header = Header::parse(&file[..file.len().min(512)])?;
    let footer = Footer::parse(&file[file.len().saturating_sub(1000)..], file.len() as u64)?;
    footer.header.expect(&header.identity)?;
    let index = open_index(file, &footer, key)?;
    let mut disk = vec![None; usize::try_from(header.identity.disk_blocks()).unwrap()];
    for covered in index.effective() {
        let first = usize::try_from(covered.extent.first).unwrap();
        let target = &mut disk[first..usize::try_from(covered.extent.end()).unwrap()];
        assert!(target.iter().all(Option::is_none), "blocks twice in the effective index");
        match covered.source {
            Source::Zeroes => target.fill(Some(vec![0; BLOCK_BYTES])),
            Source::Frame { number, skip_blocks } => {
                let plain = open_frame(file, &index, number)?;
                let skip = usize::try_from(skip_blocks).unwrap();
                for (block, data) in target.iter_mut().zip(plain.chunks_exact(BLOCK_BYTES).skip(skip)) {
                    *block = Some(data.to_vec());
                }
            }
        }
    }
    // Frames that were overridden count too: a damaged file is refused as a whole here.
    for number in 0..footer.contents.frames {
        open_frame(file, &index, number)?;
    }
    Ok(disk)
}

pub fn open_index(file: &[u8], footer: &Footer, key: &DiskKey) -> Result<Index, HrlError> {
    Index::open(footer, slice(file, footer.index_range()), key)
}

pub fn open_frame(file: &[u8], index: &Index, number: u32) -> Result<Vec<u8>, HrlError> {
    let (extent, frame) = index.frame(number).unwrap();
    let plain = index.open_frame(number, slice(file, frame.range()))?;
    assert_eq!(plain.len() as u64, extent.len_bytes());
    Ok(plain)
}

/// What an object store gives for a range: less than asked for where the object ends.
pub fn slice(file: &[u8], range: std::ops::Range<u64>) -> &[u8] {
    let end = usize::try_from(range.end).unwrap().min(file.len());
    &file[usize::try_from(range.start).unwrap().min(end)..end]
}

/// What `changes` make of an unknown disk, computed the simple way.
pub fn model(disk_blocks: u64, changes: &[Change]) -> Disk {
    let mut disk = vec![None; usize::try_from(disk_blocks).unwrap()];
    for change in changes {
        let (extent, data) = match change {
            Change::Data(extent, data) => (*extent, Some(data)),
            Change::Zeroes(extent) => (*extent, None),
        };
        for place in 0..usize::try_from(extent.blocks).unwrap() {
            let block = data.map_or_else(
                || vec![0; BLOCK_BYTES],
                |data| data[place * BLOCK_BYTES..(place + 1) * BLOCK_BYTES].to_vec(),
            );
            disk[usize::try_from(extent.first).unwrap() + place] = Some(block);
        }
    }
    disk
}

/// Makes all checksums that need no key fit again, as somebody without the key could.
pub fn repair(file: &mut [u8]) {
    let footer_at = file.len() - 256;
    let digest = Digest::of(&file[..96]);
    file[96..128].copy_from_slice(&digest.0);
    file.copy_within(..128, footer_at);
    let digest = Digest::of(&file[..footer_at]);
    let (_, footer) = file.split_at_mut(footer_at);
    footer[176..208].copy_from_slice(&digest.0);
    let mut hasher = blake3::Hasher::new();
    hasher.update(&footer[..208]).update(&footer[240..]);
    footer[208..240].copy_from_slice(hasher.finalize().as_bytes());
}
