use proptest::prelude::*;

use super::*;
use crate::export::BlockSizes;
use crate::protocol::PAYLOAD_BYTES_MAX;

fn terms(minimum: u32) -> Terms {
    let info = ExportInfo {
        size_bytes: 1 << 20,
        read_only: false,
        description: String::new(),
        block_sizes: BlockSizes { minimum, ..BlockSizes::default() },
    };
    Terms { info, structured: true, allocation: true }
}

fn request(command: Command, flags: u16, offset: u64, length: u32) -> Request {
    Request { flags, command, cookie: 1, offset, length }
}

fn errno(terms: &Terms, command: Command, flags: u16, offset: u64, length: u32) -> Option<Errno> {
    check(&request(command, flags, offset, length), terms).err().map(|refusal| refusal.errno)
}

#[test]
fn errors_are_those_of_the_protocol() {
    use Command::*;
    let open = terms(1);
    let end = 1 << 20;
    assert_eq!(errno(&open, Read, 0, end - 1, 2), Some(Errno::Invalid));
    assert_eq!(errno(&open, Write, 0, end - 1, 2), Some(Errno::NoSpace));
    assert_eq!(errno(&open, WriteZeroes, 0, end, 1), Some(Errno::NoSpace));
    assert_eq!(errno(&open, Trim, 0, u64::MAX, 2), Some(Errno::Invalid));
    assert_eq!(errno(&open, BlockStatus, 0, 0, 0), Some(Errno::Invalid));
    assert_eq!(errno(&open, Flush, 0, 1, 0), Some(Errno::Invalid));
    assert_eq!(errno(&open, Unknown(8), 0, 0, 0), Some(Errno::Invalid));
    assert_eq!(errno(&open, Read, 0, 0, PAYLOAD_BYTES_MAX + 1), Some(Errno::Overflow));
    assert_eq!(errno(&open, Write, 0, 0, PAYLOAD_BYTES_MAX + 1), Some(Errno::Invalid));
    assert_eq!(errno(&open, Write, command_flag::DF, 0, 1), Some(Errno::Invalid));
    assert_eq!(errno(&open, Read, command_flag::DF | command_flag::FUA, 0, 1), None);
    assert_eq!(errno(&open, Read, 1 << 5, 0, 1), Some(Errno::Invalid));
    assert_eq!(errno(&open, Disconnect, 1 << 9, 3, 3), None);

    let plain = Terms { structured: false, allocation: false, ..terms(1) };
    assert_eq!(errno(&plain, Read, command_flag::DF, 0, 1), Some(Errno::Invalid));
    assert_eq!(errno(&plain, Read, 0, 0, PAYLOAD_BYTES_MAX + 1), Some(Errno::Invalid));
    assert_eq!(errno(&plain, BlockStatus, 0, 0, 1), Some(Errno::Invalid));

    let mut sealed = terms(512);
    sealed.info.read_only = true;
    for command in [Write, WriteZeroes, Trim] {
        assert_eq!(errno(&sealed, command, 0, 0, 512), Some(Errno::NotPermitted));
    }
    assert_eq!(errno(&sealed, Read, 0, 512, 100), Some(Errno::Invalid));
    assert_eq!(errno(&sealed, Read, 0, 100, 512), Some(Errno::Invalid));
    assert_eq!(errno(&sealed, Flush, 0, 0, 0), None);
}

proptest! {
    #[test]
    fn what_is_admitted_lies_within_the_export(
        flags in 0u16..64,
        command in 0u16..10,
        offset in prop_oneof![0u64..(1 << 21), any::<u64>()],
        length in prop_oneof![0u32..(1 << 21), any::<u32>()],
        shift in 0u32..10,
    ) {
        let terms = terms(1 << shift);
        let request = request(Command::from_number(command), flags, offset, length);
        if let Ok(operation) = check(&request, &terms) {
            let range = match operation {
                Operation::Read { offset, len, .. }
                | Operation::Write { offset, len, .. }
                | Operation::WriteZeroes { offset, len, .. }
                | Operation::Trim { offset, len, .. }
                | Operation::Cache { offset, len }
                | Operation::BlockStatus { offset, len, .. } => Some((offset, len)),
                Operation::Flush | Operation::Disconnect => None,
            };
            prop_assert!(operation.cost_bytes() <= PAYLOAD_BYTES_MAX);
            if let Some((offset, len)) = range {
                prop_assert!(offset + u64::from(len) <= terms.info.size_bytes);
                prop_assert!(offset % (1 << shift) == 0 && len % (1 << shift) == 0);
            }
        }
    }
}
