//! Any bytes as the stream of an agent, in pieces of any size: the same messages come out however it
//! was cut, and what came out is written back as it came in.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use lifeboat_wire::stream::{self, Decoder, Message, StreamError};

const DISK_BLOCKS: u64 = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((piece, stream)) = data.split_first() else { return };
    let piece = usize::from(*piece) + 1;
    let whole = decode(stream, stream.len().max(1));
    let cut = decode(stream, piece);
    assert_eq!(whole.0, cut.0, "the pieces of a stream change what it says");
    assert_eq!(whole.1.is_ok(), cut.1.is_ok());
    if whole.1.is_ok() {
        assert_eq!(encode(&whole.0), stream, "two spellings of one stream");
    }
});

fn decode(stream: &[u8], piece: usize) -> (Vec<Message>, Result<(), StreamError>) {
    let mut decoder = Decoder::new(DISK_BLOCKS);
    let mut messages = Vec::new();
    for part in stream.chunks(piece) {
        decoder.push(Bytes::copy_from_slice(part));
        loop {
            match decoder.next_message() {
                Ok(Some(message)) => {
                    let (Message::Data { extent, .. } | Message::Zeroes { extent }) = &message;
                    assert!(extent.blocks > 0 && extent.end() <= DISK_BLOCKS);
                    messages.push(message);
                }
                Ok(None) => break,
                Err(error) => return (messages, Err(error)),
            }
        }
    }
    let end = decoder.finish();
    (messages, end)
}

fn encode(messages: &[Message]) -> Vec<u8> {
    let mut out = stream::begin().to_vec();
    for message in messages {
        match message.clone() {
            Message::Data { extent, digest, bytes } => {
                stream::data(extent, digest, bytes).iter().for_each(|part| out.extend_from_slice(part));
            }
            Message::Zeroes { extent } => out.extend_from_slice(&stream::zeroes(extent)),
        }
    }
    out.extend_from_slice(&stream::end(messages.len() as u64));
    out
}
