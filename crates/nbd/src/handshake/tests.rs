use proptest::prelude::*;

use super::*;
use crate::export::BlockSizes;

struct Shelf;

impl Catalogue for Shelf {
    type Handle = u8;

    fn list(&self, visit: &mut dyn FnMut(&str, &str)) {
        visit("disk", "a disk");
        visit("other", "");
    }

    fn find(&self, name: &str) -> Option<(ExportInfo, u8)> {
        let handle = ["disk", "other"].iter().position(|known| *known == name)?;
        let info = ExportInfo {
            size_bytes: 1 << 30,
            read_only: false,
            description: "a disk".to_owned(),
            block_sizes: BlockSizes::default(),
        };
        Some((info, u8::try_from(handle).unwrap()))
    }
}

/// A handshake with what it answered.
struct Talk {
    handshake: Handshake,
    output: BytesMut,
}

impl Talk {
    fn new(tls: Tls, flags: u32) -> Result<Self, HandshakeError> {
        let mut talk = Self { handshake: Handshake::new(tls), output: BytesMut::new() };
        talk.feed(&flags.to_be_bytes())?;
        Ok(talk)
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<Step<u8>, HandshakeError> {
        let mut input = BytesMut::from(bytes);
        loop {
            match self.handshake.step(&mut input, &mut self.output, &Shelf)? {
                Step::Continue if !input.is_empty() => {}
                step => return Ok(step),
            }
        }
    }

    fn send(&mut self, option: &ClientOption<'_>) -> Result<Step<u8>, HandshakeError> {
        self.output.clear();
        let mut wire = BytesMut::new();
        option.encode(&mut wire);
        self.feed(&wire)
    }

    fn replies(&self) -> Vec<OptionReply<'_>> {
        let mut rest = &self.output[..];
        let mut replies = Vec::new();
        while !rest.is_empty() {
            let (_, reply, taken) = OptionReply::decode(rest).unwrap();
            replies.push(reply);
            rest = &rest[taken..];
        }
        replies
    }

    fn error(&self) -> ReplyError {
        match self.replies().last() {
            Some(OptionReply::Error { error, .. }) => *error,
            other => panic!("no error but {other:?}"),
        }
    }
}

fn go(name: &str) -> ClientOption<'_> {
    ClientOption::Go(InfoRequest { name, wanted: vec![info_number::BLOCK_SIZE] })
}

fn set<'a>(export: &'a str, queries: &[&'a str]) -> ClientOption<'a> {
    ClientOption::SetMetaContext(MetaQuery { export, queries: queries.to_vec() })
}

fn agreement(step: Step<u8>) -> Agreement<u8> {
    match step {
        Step::Serve(agreement) => agreement,
        other => panic!("not served but {other:?}"),
    }
}

#[test]
fn a_context_counts_only_for_the_export_it_was_set_for() {
    let mut talk = Talk::new(Tls::Off, 3).unwrap();
    talk.send(&set("disk", &["base:allocation"])).unwrap();
    assert_eq!(talk.error(), ReplyError::Invalid, "structured replies come first");
    talk.send(&ClientOption::StructuredReply).unwrap();
    talk.send(&set("disk", &["base:allocation", "qemu:dirty-bitmap:x"])).unwrap();
    assert_eq!(talk.replies().len(), 2);
    let agreed = agreement(talk.send(&go("disk")).unwrap());
    assert!(agreed.structured && agreed.allocation);
    assert_eq!((agreed.name.as_str(), agreed.handle), ("disk", 0));

    for spoiler in [set("none", &["base:allocation"]), set("disk", &["base:"]), set("disk", &[])] {
        let mut talk = Talk::new(Tls::Off, 3).unwrap();
        talk.send(&ClientOption::StructuredReply).unwrap();
        talk.send(&set("disk", &["base:allocation"])).unwrap();
        talk.send(&spoiler).unwrap();
        assert!(!agreement(talk.send(&go("disk")).unwrap()).allocation, "{spoiler:?}");
    }
    let mut talk = Talk::new(Tls::Off, 3).unwrap();
    talk.send(&ClientOption::StructuredReply).unwrap();
    talk.send(&set("disk", &["base:allocation"])).unwrap();
    assert!(!agreement(talk.send(&go("other")).unwrap()).allocation);
}

#[test]
fn listing_contexts_takes_wildcards() {
    let mut talk = Talk::new(Tls::Off, 3).unwrap();
    for (queries, found) in [
        (vec![], 1),
        (vec!["base:"], 1),
        (vec!["base:allocation"], 1),
        (vec!["qemu:"], 0),
        (vec!["base:x"], 0),
    ] {
        talk.send(&ClientOption::ListMetaContext(MetaQuery { export: "disk", queries })).unwrap();
        assert_eq!(talk.replies().len(), found + 1);
    }
}

#[test]
fn nothing_is_told_before_tls_where_it_is_required() {
    let mut talk = Talk::new(Tls::Required, 3).unwrap();
    for option in [ClientOption::List, go("disk"), ClientOption::StructuredReply, ClientOption::Unknown(99)] {
        talk.send(&option).unwrap();
        assert_eq!(talk.error(), ReplyError::TlsRequired);
        assert_eq!(talk.replies().len(), 1);
    }
    assert!(matches!(talk.send(&ClientOption::StartTls), Ok(Step::StartTls)));
    talk.handshake.tls_started(&BytesMut::new()).unwrap();
    talk.send(&ClientOption::StartTls).unwrap();
    assert_eq!(talk.error(), ReplyError::Invalid);
    talk.send(&ClientOption::List).unwrap();
    assert_eq!(talk.replies().len(), 3);

    let mut talk = Talk::new(Tls::Required, 3).unwrap();
    assert!(matches!(talk.send(&ClientOption::ExportName("disk")), Err(HandshakeError::ExportName(_))));
    assert!(matches!(Talk::new(Tls::Required, 2).err(), Some(HandshakeError::TooOldForTls)));
}

#[test]
fn tls_forgets_what_was_said_before_it() {
    // Cannot happen where TLS is required, but must not depend on that.
    let mut handshake = Handshake::new(Tls::Required);
    handshake.structured = true;
    handshake.allocation_of = Some("disk".to_owned());
    handshake.tls_started(&BytesMut::new()).unwrap();
    assert!(!handshake.structured && handshake.allocation_of.is_none());
    let injected = BytesMut::from(&b"IHAVEOPT"[..]);
    let refused = Handshake::new(Tls::Required).tls_started(&injected);
    assert_eq!(refused, Err(HandshakeError::ClearTextAfterStartTls(8)));
}

#[test]
fn export_name_ends_the_handshake_with_or_without_padding() {
    for (flags, bytes) in [(3, 10), (1, 134), (0, 134)] {
        let mut talk = Talk::new(Tls::Off, flags).unwrap();
        agreement(talk.send(&ClientOption::ExportName("disk")).unwrap());
        assert_eq!(talk.output.len(), bytes);
    }
    let mut talk = Talk::new(Tls::Off, 3).unwrap();
    assert!(talk.send(&ClientOption::ExportName("none")).is_err());
}

#[test]
fn unknown_and_overlong_options_leave_the_stream_in_step() {
    let mut talk = Talk::new(Tls::Off, 3).unwrap();
    talk.send(&ClientOption::Unknown(11)).unwrap();
    assert_eq!(talk.error(), ReplyError::Unsupported);
    for (number, error) in [(option_number::LIST, ReplyError::TooBig), (77, ReplyError::Unsupported)] {
        talk.output.clear();
        let mut wire = BytesMut::new();
        OptionHeader { number, data_bytes: 100_000 }.encode(&mut wire);
        talk.feed(&wire).unwrap();
        for _ in 0..10 {
            assert!(talk.output.is_empty());
            talk.feed(&[7; 10_000]).unwrap();
        }
        assert_eq!(talk.error(), error);
    }
    talk.send(&ClientOption::List).unwrap();
    let server = |name, description| OptionReply::Server { name, description };
    assert_eq!(talk.replies(), [server("disk", "a disk"), server("other", ""), OptionReply::Ack]);
}

#[test]
fn unknown_client_flags_end_the_connection() {
    assert_eq!(Talk::new(Tls::Off, 4).err(), Some(HandshakeError::ClientFlags(4)));
}

#[test]
fn df_is_offered_only_with_structured_replies() {
    use crate::protocol::transmission_flag::SEND_DF;
    let mut talk = Talk::new(Tls::Off, 3).unwrap();
    let flags = |talk: &Talk| match talk.replies()[0] {
        OptionReply::InfoExport { flags, .. } => flags,
        ref other => panic!("{other:?}"),
    };
    talk.send(&go("disk")).unwrap();
    assert_eq!(flags(&talk) & SEND_DF, 0);
    talk.send(&ClientOption::StructuredReply).unwrap();
    talk.send(&go("disk")).unwrap();
    assert_eq!(flags(&talk) & SEND_DF, SEND_DF);
}

proptest! {
    /// However the bytes are cut, the answers are the same, and garbage never panics.
    #[test]
    fn cuts_do_not_matter(
        numbers in proptest::collection::vec((0u32..14, proptest::collection::vec(any::<u8>(), 0..30)), 0..6),
        tail in proptest::collection::vec(any::<u8>(), 0..40),
        piece in 1usize..50,
    ) {
        let mut wire = BytesMut::from(&3u32.to_be_bytes()[..]);
        for (number, data) in &numbers {
            OptionHeader { number: *number, data_bytes: u32::try_from(data.len()).unwrap() }.encode(&mut wire);
            wire.extend_from_slice(data);
        }
        wire.extend_from_slice(&tail);
        let run = |piece: usize| {
            let (mut handshake, mut input, mut output) = (Handshake::new(Tls::Off), BytesMut::new(), BytesMut::new());
            for part in wire.chunks(piece) {
                input.extend_from_slice(part);
                loop {
                    match handshake.step(&mut input, &mut output, &Shelf) {
                        Ok(Step::Continue) => {}
                        Ok(Step::NeedInput) => break,
                        Ok(Step::Serve(_) | Step::StartTls | Step::Goodbye) | Err(_) => return output,
                    }
                }
            }
            output
        };
        prop_assert_eq!(run(piece), run(wire.len()));
    }
}
