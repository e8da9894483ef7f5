use proptest::prelude::*;

use super::*;

const DISK_BLOCKS: u64 = 10_000;

fn encode(messages: &[Message]) -> Vec<u8> {
    let mut stream = begin().to_vec();
    for message in messages {
        match message {
            Message::Data { extent, digest, bytes } => {
                data(*extent, *digest, bytes.clone())
                    .iter()
                    .for_each(|piece| stream.extend_from_slice(piece));
            }
            Message::Zeroes { extent } => stream.extend_from_slice(&zeroes(*extent)),
        }
    }
    stream.extend_from_slice(&end(messages.len() as u64));
    stream
}

fn decode(stream: &[u8], piece_len: usize) -> Result<Vec<Message>, StreamError> {
    let mut decoder = Decoder::new(DISK_BLOCKS);
    let mut messages = Vec::new();
    for piece in stream.chunks(piece_len.max(1)) {
        decoder.push(Bytes::copy_from_slice(piece));
        while let Some(message) = decoder.next_message()? {
            messages.push(message);
        }
    }
    decoder.finish()?;
    Ok(messages)
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        (0..DISK_BLOCKS - 4, 1u64..4, any::<u8>()).prop_map(|(first, blocks, fill)| {
            let extent = Extent { first, blocks };
            let bytes = Bytes::from(vec![fill; usize::try_from(extent.len_bytes()).unwrap()]);
            Message::Data { extent, digest: Digest::of(&bytes), bytes }
        }),
        (0..DISK_BLOCKS / 2, 1..DISK_BLOCKS / 2)
            .prop_map(|(first, blocks)| Message::Zeroes { extent: Extent { first, blocks } }),
    ]
}

proptest! {
    #[test]
    fn what_was_sent_arrives_whatever_the_pieces(
        messages in prop::collection::vec(message(), 0..6),
        piece_len in 1usize..20_000,
    ) {
        prop_assert_eq!(decode(&encode(&messages), piece_len).unwrap(), messages);
    }

    #[test]
    fn a_stream_that_is_cut_off_counts_for_nothing(
        messages in prop::collection::vec(message(), 0..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let stream = encode(&messages);
        let cut = cut.index(stream.len());
        let cut_off = matches!(decode(&stream[..cut], 4096), Err(StreamError::CutOff { .. }));
        prop_assert!(cut_off);
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(decode(&[MAGIC, &bytes[..]].concat(), 7).is_err() || bytes == end(0));
        prop_assert!(decode(&bytes, 7).is_err());
    }
}

#[test]
fn an_extent_beyond_the_disk_is_refused() {
    let stream = encode(&[Message::Zeroes { extent: Extent { first: DISK_BLOCKS - 1, blocks: 2 } }]);
    assert!(matches!(decode(&stream, 4096), Err(StreamError::Extent { message: 0, .. })));
}

#[test]
fn bytes_after_the_end_are_refused() {
    let mut stream = encode(&[]);
    stream.push(b'E');
    assert_eq!(decode(&stream, 1), Err(StreamError::Trailing));
    assert_eq!(decode(&stream, 100), Err(StreamError::Trailing));
}

#[test]
fn a_wrong_count_is_refused() {
    let stream = [&begin()[..], &end(3)].concat();
    assert_eq!(decode(&stream, 100), Err(StreamError::Count { claimed: 3, received: 0 }));
}
