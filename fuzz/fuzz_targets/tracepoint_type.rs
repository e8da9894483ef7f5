//! Any bytes as a kernel's type information.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = lifeboat_tracker::fuzz::tracepoint_arguments(data, "block_rq_issue");
});
