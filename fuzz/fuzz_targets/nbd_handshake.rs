//! Feeds arbitrary bytes to the NBD handshake, in pieces.

#![no_main]

use bytes::BytesMut;
use lifeboat_nbd::handshake::{Catalogue, Handshake, Step, Tls};
use lifeboat_nbd::{BlockSizes, ExportInfo};
use libfuzzer_sys::fuzz_target;

struct Shelf;

impl Catalogue for Shelf {
    type Handle = ();

    fn list(&self, visit: &mut dyn FnMut(&str, &str)) {
        visit("a", "description");
    }

    fn find(&self, name: &str) -> Option<(ExportInfo, ())> {
        let info = ExportInfo {
            size_bytes: 1 << 30,
            read_only: name.is_empty(),
            description: "description".to_owned(),
            block_sizes: BlockSizes::default(),
        };
        matches!(name, "" | "a").then_some((info, ()))
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((first, data)) = data.split_first() else { return };
    let tls = if first & 1 == 0 { Tls::Off } else { Tls::Required };
    let piece = usize::from(first >> 1) + 1;
    let (mut handshake, mut input, mut output) = (Handshake::new(tls), BytesMut::new(), BytesMut::new());
    for part in data.chunks(piece) {
        input.extend_from_slice(part);
        loop {
            match handshake.step(&mut input, &mut output, &Shelf) {
                Ok(Step::Continue) => output.clear(),
                Ok(Step::NeedInput) => break,
                Ok(Step::StartTls) => {
                    // The rest stands for what comes through TLS.
                    if handshake.tls_started(&BytesMut::new()).is_err() {
                        return;
                    }
                }
                Ok(Step::Serve(agreement)) => {
                    assert!(tls == Tls::Off || output.len() > 0);
                    assert!(agreement.structured || !agreement.allocation);
                    return;
                }
                Ok(Step::Goodbye) | Err(_) => return,
            }
        }
        // What is kept is bounded by the longest option.
        assert!(input.len() <= 16 + (64 << 10) + piece);
    }
});
