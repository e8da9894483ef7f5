use proptest::prelude::*;

use super::*;

const DISK_BLOCKS: u64 = 1 << 40;

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let one = (0..DISK_BLOCKS, 1u64..=64, any::<[u8; 32]>(), 0u8..3);
    prop::collection::vec(one, 0..40).prop_map(|drawn| {
        let mut offset = FRAMES_BEGIN;
        let mut number = 0;
        drawn
            .into_iter()
            .map(|(first, blocks, digest, kind)| {
                let extent = Extent { first: first.min(DISK_BLOCKS - blocks), blocks };
                if kind == 0 {
                    return Entry { extent, content: Content::Zeroes };
                }
                let raw_bytes = u32::try_from(blocks * 4096 + 16).unwrap();
                let compressed = kind == 2;
                let stored_bytes = if compressed { 17 + u32::from(digest[0]) } else { raw_bytes };
                let frame = Frame { number, offset, stored_bytes, compressed, digest: Digest(digest) };
                offset += u64::from(stored_bytes);
                number += 1;
                Entry { extent, content: Content::Frame(frame) }
            })
            .collect()
    })
}

fn contents(entries: &[Entry], text: &[u8]) -> Contents {
    let index_bytes = u32::try_from(text.len() + TAG_BYTES).unwrap();
    let mut contents = Contents { index_offset: FRAMES_BEGIN, index_bytes, ..Contents::default() };
    for entry in entries {
        match entry.content {
            Content::Zeroes => {
                contents.zero_extents += 1;
                contents.zero_blocks += entry.extent.blocks;
            }
            Content::Frame(frame) => {
                contents.frames += 1;
                contents.data_blocks += entry.extent.blocks;
                contents.index_offset = frame.range().end;
            }
        }
    }
    contents
}

proptest! {
    #[test]
    fn entries_read_back_and_no_prefix_passes_for_the_whole(entries in entries()) {
        let text = encode(&entries);
        let contents = contents(&entries, &text);
        let (read, frames) = decode(&text, &contents, DISK_BLOCKS).unwrap();
        prop_assert_eq!(&read, &entries);
        for (number, place) in frames.into_iter().enumerate() {
            let Content::Frame(frame) = read[place as usize].content else { panic!("no frame") };
            prop_assert_eq!(frame.number as usize, number);
        }
        for cut in 0..text.len() {
            prop_assert!(decode(&text[..cut], &contents, DISK_BLOCKS).is_err(), "cut at {}", cut);
        }
        let mut longer = text.clone();
        longer.extend([1, 0, 1]);
        prop_assert!(decode(&longer, &contents, DISK_BLOCKS).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        text in prop::collection::vec(any::<u8>(), 0..400),
        frames in 0u32..8,
        zero_extents in 0u32..8,
        counts in any::<[u64; 3]>(),
    ) {
        let contents = Contents {
            index_offset: counts[0],
            frames,
            zero_extents,
            data_blocks: counts[1],
            zero_blocks: counts[2],
            ..Contents::default()
        };
        let _ = decode(&text, &contents, DISK_BLOCKS);
    }
}

#[test]
fn the_counts_of_the_footer_cannot_make_the_reader_allocate() {
    let contents =
        Contents { frames: crate::FRAMES_MAX, zero_extents: crate::ZERO_EXTENTS_MAX, ..Contents::default() };
    let problem = decode(&[0; 100], &contents, DISK_BLOCKS).unwrap_err();
    assert!(problem.to_string().contains("too short for its entries"), "{problem}");
}
