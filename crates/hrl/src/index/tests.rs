//! Frames that a faulty writer sealed with the right key: authentic, and still not what the agent read.

use lifeboat_model::{BLOCK_BYTES, DiskNumber, Epoch, Part, ServerId, VaultId};

use super::*;
use crate::sealer::SealedFrame;
use crate::{FileId, FileIdentity, FrameSealer, Writer};

const EXTENT: Extent = Extent { first: 4, blocks: 2 };

/// Writes a file of one frame whose plain text is `text`, whatever `digest` says, and opens the frame.
fn write_and_open(text: &[u8], compressed: bool, digest: Digest) -> Result<Vec<u8>> {
    let identity = FileIdentity {
        vault: VaultId::new(1),
        server: ServerId::new(1),
        disk: DiskNumber(0),
        first_epoch: Epoch(1),
        last_epoch: Epoch(1),
        part: Part(0),
        disk_bytes: 1 << 20,
    };
    let key = DiskKey::new([1; 32]);
    let sealer = FrameSealer::new(identity, FileId([1; 16]), &key, 1).unwrap();
    let place = FramePlace { number: 0, extent: EXTENT, compressed, digest };
    let mut bytes = text.to_vec();
    sealer.shared().cipher.seal_frame(&place, &mut bytes);
    let mut writer = Writer::new(Vec::new(), &sealer).unwrap();
    writer.append(SealedFrame { place, file_id: FileId([1; 16]), bytes }).unwrap();
    let (file, summary) = writer.finish().unwrap();
    let footer = Footer::parse(&file, summary.bytes).unwrap();
    let piece =
        |range: Range<u64>| &file[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
    let index = Index::open(&footer, piece(footer.index_range()), &key).unwrap();
    let range = index.frame(0).unwrap().1.range();
    index.open_frame(0, piece(range))
}

#[test]
fn data_that_does_not_match_the_agents_digest_is_not_returned() {
    let plain = vec![7; 2 * BLOCK_BYTES];
    let packed = zstd::bulk::compress(&plain, 1).unwrap();
    assert_eq!(write_and_open(&plain, false, Digest::of(&plain)).unwrap(), plain);
    assert_eq!(write_and_open(&packed, true, Digest::of(&plain)).unwrap(), plain);
    for (text, compressed) in [(&plain, false), (&packed, true)] {
        let error = write_and_open(text, compressed, Digest::of(b"other")).unwrap_err();
        assert!(matches!(error.problem, Problem::WrongData(Piece::Frame(0, EXTENT))), "{error}");
    }
}

#[test]
fn a_frame_that_unpacks_to_another_length_is_not_returned() {
    for blocks in [1, 3, 1000] {
        let plain = vec![7; blocks * BLOCK_BYTES];
        let packed = zstd::bulk::compress(&plain, 1).unwrap();
        let error = write_and_open(&packed, true, Digest::of(&plain)).unwrap_err();
        assert!(matches!(error.problem, Problem::WrongData(_)), "{blocks} blocks: {error}");
    }
    let error = write_and_open(b"no zstd frame", true, Digest::of(b"")).unwrap_err();
    assert!(matches!(error.problem, Problem::WrongData(_)), "{error}");
}
