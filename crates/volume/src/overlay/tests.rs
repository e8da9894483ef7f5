use proptest::prelude::*;

use super::*;

fn identity(disk_bytes: u64) -> OverlayIdentity {
    OverlayIdentity {
        vault: VaultId::new(1),
        server: ServerId::new(2),
        point: PointId::new(3),
        disk: DiskNumber(4),
        disk_bytes,
    }
}

const BOOT: BootId = BootId::new([1; 16]);
const NEXT_BOOT: BootId = BootId::new([2; 16]);
/// A few pages of states.
const BLOCKS: u64 = 40_000;

fn open(directory: &Path, boot: BootId) -> Overlay {
    Overlay::open(directory, identity(BLOCKS * BLOCK - 7), boot).unwrap()
}

#[test]
fn an_overlay_of_another_point_or_size_is_refused_and_named() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), BOOT));
    let other = OverlayIdentity { point: PointId::new(9), ..identity(BLOCKS * BLOCK - 7) };
    let error = Overlay::open(dir.path(), other, BOOT).err().unwrap().to_string();
    assert!(error.contains("point 0000000000000003") && error.contains("0000000000000009"), "{error}");
    let larger = identity(BLOCKS * BLOCK);
    assert!(matches!(Overlay::open(dir.path(), larger, BOOT), Err(OverlayError::Foreign { .. })));
    drop(open(dir.path(), BOOT));
}

#[test]
fn one_server_uses_an_overlay_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path(), BOOT);
    let second = Overlay::open(dir.path(), identity(BLOCKS * BLOCK - 7), BOOT);
    assert!(matches!(second, Err(OverlayError::InUse { .. })));
    drop(first);
    drop(open(dir.path(), BOOT));
}

#[test]
fn a_header_that_was_altered_in_any_bit_or_cut_short_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), BOOT));
    let path = dir.path().join("header");
    let bytes = fs::read(&path).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut altered = bytes.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        assert!(Header::decode(&altered, &path).is_err(), "bit {bit}");
    }
    for length in 0..bytes.len() {
        assert!(Header::decode(&bytes[..length], &path).is_err(), "{length} bytes");
    }
    let mut newer = bytes.clone();
    newer[8] = 2;
    assert!(matches!(Header::decode(&newer, &path), Err(OverlayError::NewerVersion { version: 2, .. })));
}

proptest! {
    #[test]
    fn bytes_that_are_no_header_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Header::decode(&bytes, Path::new("x")).is_err());
    }
}

#[test]
fn files_of_another_length_or_with_unknown_states_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), BOOT));
    let current = File::options().write(true).open(dir.path().join("current")).unwrap();
    current.write_all_at(&[0b11_00], 5).unwrap();
    let again = || Overlay::open(dir.path(), identity(BLOCKS * BLOCK - 7), BOOT);
    assert!(matches!(again(), Err(OverlayError::Damaged { .. })));
    current.write_all_at(&[0], 5).unwrap();
    current.set_len(100).unwrap();
    assert!(matches!(again(), Err(OverlayError::Damaged { .. })));
}

#[test]
fn written_data_without_a_header_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), BOOT).write_blocks(5, &[1; BLOCK_BYTES]).unwrap();
    fs::remove_file(dir.path().join("header")).unwrap();
    let again = Overlay::open(dir.path(), identity(BLOCKS * BLOCK - 7), BOOT);
    assert!(matches!(again, Err(OverlayError::Damaged { .. })));
    let empty = tempfile::tempdir().unwrap();
    drop(open(empty.path(), BOOT));
    fs::remove_file(empty.path().join("header")).unwrap();
    drop(open(empty.path(), BOOT));
}

#[test]
fn a_state_is_durable_only_with_its_data() {
    let dir = tempfile::tempdir().unwrap();
    let overlay = open(dir.path(), BOOT);
    overlay.write_blocks(5, &[1; BLOCK_BYTES]).unwrap();
    overlay.flush().unwrap();
    overlay.write_blocks(20_000, &[2; BLOCK_BYTES]).unwrap();
    drop(overlay);
    let overlay = open(dir.path(), NEXT_BOOT);
    assert_eq!(overlay.states.get(5), State::Data, "flushed");
    assert_eq!(overlay.states.get(20_000), State::Base, "not flushed, so as the point has it");
    drop(overlay);
    // The roll-back is not done twice: what is written now counts in this boot.
    let overlay = open(dir.path(), NEXT_BOOT);
    overlay.write_blocks(20_001, &[3; BLOCK_BYTES]).unwrap();
    drop(overlay);
    assert_eq!(open(dir.path(), NEXT_BOOT).states.get(20_001), State::Data);
}

#[test]
fn states_far_apart_keep_their_places_over_what_was_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let open = |boot| Overlay::open(dir.path(), identity(1 << 40), boot).unwrap();
    let (near, far) = (70_000, (1 << 28) - 1);
    let overlay = open(BOOT);
    overlay.write_blocks(far, &[1; BLOCK_BYTES]).unwrap();
    overlay.flush().unwrap();
    overlay.write_blocks(near, &[2; BLOCK_BYTES]).unwrap();
    drop(overlay);
    let states = |overlay: &Overlay| [near, near + 1, far - 1, far].map(|block| overlay.states.get(block));
    let overlay = open(BOOT);
    assert_eq!(states(&overlay), [State::Data, State::Base, State::Base, State::Data]);
    assert_eq!(overlay.written_bytes(), 2 * BLOCK);
    drop(overlay);
    let overlay = open(NEXT_BOOT);
    assert_eq!(states(&overlay), [State::Base, State::Base, State::Base, State::Data]);
}

#[test]
fn a_restart_of_the_server_alone_does_not_lose_the_need_to_flush() {
    let dir = tempfile::tempdir().unwrap();
    let overlay = open(dir.path(), BOOT);
    overlay.write_blocks(5, &[1; BLOCK_BYTES]).unwrap();
    drop(overlay);
    open(dir.path(), BOOT).flush().unwrap();
    assert_eq!(open(dir.path(), NEXT_BOOT).states.get(5), State::Data);
}

#[test]
fn after_a_failed_sync_nothing_is_written_and_the_last_flush_counts() {
    let dir = tempfile::tempdir().unwrap();
    let overlay = open(dir.path(), BOOT);
    overlay.write_blocks(1, &[1; BLOCK_BYTES]).unwrap();
    overlay.flush().unwrap();
    overlay.write_blocks(2, &[1; BLOCK_BYTES]).unwrap();
    let error = overlay.give_up(&io::Error::other("the disk is gone"));
    assert!(matches!(error, WriteError::Broken));
    assert!(overlay.write_blocks(3, &[1; BLOCK_BYTES]).is_err() && overlay.flush().is_err());
    let mut block = [0; BLOCK_BYTES];
    overlay.read(BLOCK, &mut block).unwrap();
    assert_eq!(block, [1; BLOCK_BYTES], "reading goes on");
    drop(overlay);
    let overlay = open(dir.path(), BOOT);
    assert_eq!((overlay.states.get(1), overlay.states.get(2)), (State::Data, State::Base));
}

#[test]
fn writers_within_one_block_do_not_undo_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let overlay = open(dir.path(), BOOT);
    let base = vec![9; BLOCK_BYTES];
    for round in 0..50u8 {
        let block = 100 + u64::from(round);
        std::thread::scope(|scope| {
            for part in 0..8u64 {
                let (overlay, base) = (&overlay, &base);
                scope.spawn(move || {
                    overlay.write_within_block(block * BLOCK + part * 512, &[round; 500], base).unwrap();
                });
            }
        });
        let mut found = vec![0; BLOCK_BYTES];
        overlay.read(block * BLOCK, &mut found).unwrap();
        for part in found.chunks(512) {
            assert!(
                part[..500].iter().all(|byte| *byte == round) && part[500..].iter().all(|byte| *byte == 9)
            );
        }
    }
}
