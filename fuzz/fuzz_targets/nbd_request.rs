//! Decodes arbitrary NBD requests and checks them against an export.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lifeboat_nbd::operation::{Operation, Terms, check};
use lifeboat_nbd::protocol::{OptionReply, PAYLOAD_BYTES_MAX, ReplyHead, Request};
use lifeboat_nbd::{BlockSizes, ExportInfo};

fuzz_target!(|data: &[u8]| {
    let _ = ReplyHead::decode(data);
    let _ = OptionReply::decode(data);
    let Ok(request) = Request::decode(data) else { return };
    assert_eq!(request.encode()[..], data[..Request::BYTES]);
    for (minimum, read_only, structured) in [(1, false, true), (512, false, false), (4096, true, true)] {
        let block_sizes = BlockSizes { minimum, ..BlockSizes::default() };
        let info = ExportInfo { size_bytes: 1 << 40, read_only, description: String::new(), block_sizes };
        let terms = Terms { info, structured, allocation: structured };
        let Ok(operation) = check(&request, &terms) else { continue };
        assert!(operation.cost_bytes() <= PAYLOAD_BYTES_MAX);
        let (offset, len) = match operation {
            Operation::Read { offset, len, .. } | Operation::Cache { offset, len } => (offset, len),
            Operation::BlockStatus { offset, len, .. } => (offset, len),
            Operation::Write { offset, len, .. }
            | Operation::WriteZeroes { offset, len, .. }
            | Operation::Trim { offset, len, .. } => {
                assert!(!read_only);
                (offset, len)
            }
            Operation::Flush | Operation::Disconnect => (0, 0),
        };
        assert!(offset + u64::from(len) <= 1 << 40);
        assert!(offset % u64::from(minimum) == 0 && len % minimum == 0);
    }
});
