use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::export::{BlockSizes, StatusExtent};

fn name() -> impl Strategy<Value = String> {
    "[^\\x00]{0,40}"
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(number in 0u32..14, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = ClientOption::decode(number, &bytes);
        let _ = OptionHeader::decode(&bytes);
        let _ = OptionReply::decode(&bytes);
        let _ = Request::decode(&bytes);
        let _ = ReplyHead::decode(&bytes);
    }

    #[test]
    fn options_round_trip(name in name(), queries in proptest::collection::vec(name(), 0..5), wanted in proptest::collection::vec(any::<u16>(), 0..5)) {
        let info = InfoRequest { name: &name, wanted };
        let meta = MetaQuery { export: &name, queries: queries.iter().map(String::as_str).collect() };
        let options = [
            ClientOption::ExportName(&name),
            ClientOption::Abort,
            ClientOption::List,
            ClientOption::StartTls,
            ClientOption::Info(info.clone()),
            ClientOption::Go(info),
            ClientOption::StructuredReply,
            ClientOption::ListMetaContext(meta.clone()),
            ClientOption::SetMetaContext(meta),
            ClientOption::Unknown(4711),
        ];
        for option in options {
            let mut wire = BytesMut::new();
            option.encode(&mut wire);
            let header = OptionHeader::decode(&wire).unwrap();
            let data = &wire[OptionHeader::BYTES..];
            prop_assert_eq!(header.data_bytes as usize, data.len());
            prop_assert_eq!(ClientOption::decode(header.number, data), Ok(option.clone()));
            // With a byte more or less it is another message, or none.
            if !matches!(option, ClientOption::ExportName(_) | ClientOption::Abort | ClientOption::Unknown(_)) {
                prop_assert!(ClientOption::decode(header.number, &[data, b"x"].concat()).is_err());
                for end in 0..data.len() {
                    prop_assert!(ClientOption::decode(header.number, &data[..end]).is_err());
                }
            }
        }
    }

    #[test]
    fn option_replies_round_trip(number in any::<u32>(), name in name(), text in name(), size_bytes in any::<u64>(), flags in any::<u16>(), id in any::<u32>()) {
        let sizes = BlockSizes { minimum: 512, preferred: id, maximum: 1 << 20 };
        let replies = [
            OptionReply::Ack,
            OptionReply::Server { name: &name, description: &text },
            OptionReply::InfoExport { size_bytes, flags },
            OptionReply::InfoName(&name),
            OptionReply::InfoDescription(&text),
            OptionReply::InfoBlockSize(sizes),
            OptionReply::MetaContext { id, name: &name },
            OptionReply::Error { error: ReplyError::Policy, message: &text },
        ];
        for reply in replies {
            let mut wire = BytesMut::new();
            reply.encode(number, &mut wire);
            prop_assert_eq!(OptionReply::decode(&wire), Ok((number, reply, wire.len())));
            for end in 0..wire.len() {
                prop_assert!(OptionReply::decode(&wire[..end]).is_err());
            }
        }
    }

    #[test]
    fn requests_round_trip(flags in any::<u16>(), command in any::<u16>(), cookie in any::<u64>(), offset in any::<u64>(), length in any::<u32>()) {
        let request = Request { flags, command: Command::from_number(command), cookie, offset, length };
        let mut wire = request.encode();
        prop_assert_eq!(request.command.number(), command);
        prop_assert_eq!(Request::decode(&wire), Ok(request));
        prop_assert!(Request::decode(&wire[..27]).is_err());
        wire[2] ^= 1;
        let refused = matches!(Request::decode(&wire), Err(ProtocolError::Magic { .. }));
        prop_assert!(refused);
    }

    #[test]
    fn replies_round_trip(cookie in any::<u64>(), offset in any::<u64>(), len in 1u32..=PAYLOAD_BYTES_MAX, message_bytes in 0u16..4096) {
        let chunk = |done, kind: ChunkKind, length| ReplyHead::Chunk { done, kind: kind as u16, cookie, length };
        let cases = [
            (Head::simple(cookie, None), ReplyHead::Simple { error: 0, cookie }, 0),
            (Head::simple(cookie, Some(Errno::NoSpace)), ReplyHead::Simple { error: 28, cookie }, 0),
            (Head::done(cookie), chunk(true, ChunkKind::None, 0), 0),
            (Head::data(cookie, offset, len, false), chunk(false, ChunkKind::OffsetData, len + 8), 8),
            (Head::hole(cookie, offset, len, true), chunk(true, ChunkKind::OffsetHole, 12), 12),
            (Head::block_status(cookie, 16), chunk(true, ChunkKind::BlockStatus, 20), 4),
            (Head::error(cookie, Errno::Io, message_bytes), chunk(true, ChunkKind::Error, u32::from(message_bytes) + 6), 6),
        ];
        for (head, expected, rest) in cases {
            let wire = head.as_bytes();
            let (decoded, taken) = ReplyHead::decode(wire).unwrap();
            prop_assert_eq!(decoded, expected);
            prop_assert_eq!(wire.len() - taken, rest);
        }
    }

    #[test]
    fn extents_cover_no_more_than_was_asked(
        extents in proptest::collection::vec((0u64..10_000, any::<bool>(), any::<bool>()), 0..30),
        len in 1u32..20_000,
        extents_max in 1usize..10,
    ) {
        let extents: Vec<_> = extents.into_iter().map(|(len, hole, zero)| StatusExtent { len, hole, zero }).collect();
        let wire = encode_extents(&extents, len, extents_max);
        let told: Vec<(u32, u32)> = wire
            .chunks(8)
            .map(|pair| (u32::from_be_bytes(pair[..4].try_into().unwrap()), u32::from_be_bytes(pair[4..].try_into().unwrap())))
            .collect();
        prop_assert!(!told.is_empty() && told.len() <= extents_max);
        prop_assert!(told.iter().all(|(length, _)| *length > 0));
        prop_assert!(told.windows(2).all(|pair| pair[0].1 != pair[1].1));
        prop_assert!(told.iter().map(|(length, _)| u64::from(*length)).sum::<u64>() <= u64::from(len));
        let expand = |runs: &mut dyn Iterator<Item = (u64, u32)>| -> Vec<u32> {
            runs.flat_map(|(length, status)| std::iter::repeat_n(status, usize::try_from(length).unwrap())).collect()
        };
        let known = expand(&mut extents.iter().map(|e| (e.len, u32::from(e.hole) | u32::from(e.zero) << 1)));
        let told = expand(&mut told.iter().map(|(length, status)| (u64::from(*length), *status)));
        if known.is_empty() {
            prop_assert!(told.iter().all(|status| *status == 0));
        } else {
            prop_assert_eq!(&told[..], &known[..told.len()]);
        }
    }
}

#[test]
fn a_huge_count_of_queries_is_refused_by_what_is_there() {
    let mut data = BytesMut::new();
    ClientOption::SetMetaContext(MetaQuery { export: "x", queries: vec![] }).encode(&mut data);
    let mut data = data.split_off(OptionHeader::BYTES).to_vec();
    let end = data.len();
    data[end - 4..].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(ClientOption::decode(option_number::SET_META_CONTEXT, &data).is_err());
}

#[test]
fn overlong_names_and_nul_are_refused() {
    let long = "x".repeat(4097);
    assert!(ClientOption::decode(option_number::EXPORT_NAME, long.as_bytes()).is_err());
    assert!(ClientOption::decode(option_number::EXPORT_NAME, &long.as_bytes()[1..]).is_ok());
    assert!(ClientOption::decode(option_number::EXPORT_NAME, b"a\0b").is_err());
    assert!(ClientOption::decode(option_number::EXPORT_NAME, b"\xff").is_err());
}

#[test]
fn messages_are_cut_between_characters() {
    let text = format!("{}ü", "x".repeat(4095));
    assert_eq!(truncated(&text).1, 4095);
    assert_eq!(truncated("short"), ("short", 5));
}
