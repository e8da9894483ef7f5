//! What clients learn before they read a byte.

use std::sync::Arc;

use lifeboat_nbd::{BlockSizes, NbdError};

use crate::export::SparseDisk;
use crate::support::{Bench, run, shell_at, try_run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdinfo_shows_an_export() {
    let bench = Bench::serving(&SparseDisk::shared(10 << 20)).await;
    let shown = run("nbdinfo", &[&bench.uri("disk")]).await;
    for line in [
        "protocol: newstyle-fixed without TLS, using structured packets",
        "export=\"disk\":",
        "description: a disk for tests",
        "export-size: 10485760 (10M)",
        "base:allocation",
        "is_read_only: false",
        "can_multi_conn: true",
        "can_fast_zero: true",
        "can_fua: true",
        "can_flush: true",
        "can_trim: true",
        "can_zero: true",
        "can_df: true",
        "can_cache: true",
        "block_size_minimum: 1",
        "block_size_preferred: 4096",
        "block_size_maximum: 33554432",
    ] {
        assert!(shown.contains(line), "{line:?} is missing in\n{shown}");
    }
    assert_eq!(run("nbdinfo", &["--size", &bench.uri("disk")]).await.trim(), "10485760");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_export_says_so() {
    let mut disk = SparseDisk::new(1 << 20);
    disk.read_only = true;
    disk.block_sizes = BlockSizes { minimum: 512, preferred: 65536, maximum: 1 << 20 };
    let bench = Bench::serving(&Arc::new(disk)).await;
    let shown = run("nbdinfo", &[&bench.uri("disk")]).await;
    for line in
        ["is_read_only: true", "can_zero: false", "block_size_minimum: 512", "block_size_maximum: 1048576"]
    {
        assert!(shown.contains(line), "{line:?} is missing in\n{shown}");
    }
    let script = "
h.set_strict_mode(0)
for command in (lambda: h.pwrite(b'x' * 512, 0), lambda: h.zero(512, 0), lambda: h.trim(512, 0)):
    try:
        command()
        raise SystemExit('writing was allowed')
    except nbd.Error as error:
        assert error.errno == 'EPERM', error
try:
    h.pread(100, 0)
    raise SystemExit('an unaligned read was allowed')
except nbd.Error as error:
    assert error.errno == 'EINVAL', error
h.pread(512, 512)
";
    bench.shell(script).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_are_listed_and_found_by_any_name() {
    let bench = Bench::new().await;
    let names = ["", "disk", "a/b", "ümläut & space?", "%41", "/lead", "x#y+z"];
    for (number, name) in names.iter().enumerate() {
        bench.server.add(name, SparseDisk::shared(4096 * (number as u64 + 1))).unwrap();
    }
    let listed = run("nbdinfo", &["--list", &bench.uri("")]).await;
    for (number, name) in names.iter().enumerate() {
        assert!(listed.contains(&format!("export=\"{name}\":")), "{name:?} is missing in\n{listed}");
        let size = (4096 * (number + 1)).to_string();
        assert_eq!(run("nbdinfo", &["--size", &bench.uri(name)]).await.trim(), size, "{name:?}");
        // QEMU parses URIs with another library.
        let shown = run("qemu-img", &["info", "--output=json", &bench.uri(name)]).await;
        assert!(shown.contains(&format!("\"virtual-size\": {size},")), "{name:?}: {shown}");
    }
    assert_eq!(bench.server.export_names().len(), names.len());
    let unknown = try_run("nbdinfo", &[&bench.uri("nobody")]).await;
    assert!(!unknown.status.success());
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("nobody"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_ways_of_shaking_hands_work() {
    let disk = SparseDisk::shared(1 << 20);
    disk.put(4096, b"hello");
    let bench = Bench::serving(&disk).await;
    let socket = bench.text_path("nbd.sock");
    // Without structured replies, without fixed newstyle, without NO_ZEROES.
    for (structured, flags) in [(true, 3), (false, 3), (false, 2), (false, 1), (false, 0)] {
        let structured = if structured { "True" } else { "False" };
        let script = format!(
            "
h.set_handshake_flags({flags})
h.set_request_structured_replies({structured})
h.set_export_name('disk')
h.connect_unix('{socket}')
assert h.get_size() == 1 << 20
assert h.get_structured_replies_negotiated() == {structured}
h.zero(4096, 0)
assert h.pread(8192, 0) == bytes(4096) + b'hello' + bytes(4091)
h.pwrite(b'bye', 100)
assert h.pread(5, 99) == b'\\0bye\\0'
try:
    h.set_strict_mode(0)
    h.pread(10, 1 << 20)
    raise SystemExit('read beyond the end')
except nbd.Error as error:
    assert error.errno == 'EINVAL', error
assert h.pread(5, 4096) == b'hello'
"
        );
        shell_at(&[], &script).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_can_be_tried_one_by_one() {
    let bench = Bench::serving(&SparseDisk::shared(1 << 20)).await;
    let script = format!(
        "
h.set_opt_mode(True)
h.connect_unix('{}')
h.set_export_name('nobody')
try:
    h.opt_info()
    raise SystemExit('there is no such export')
except nbd.Error as error:
    assert error.errno == 'ENOENT', error
h.set_export_name('disk')
h.add_meta_context('base:allocation')
h.add_meta_context('x-other:thing')
h.opt_info()
assert h.get_size() == 1 << 20 and h.can_meta_context('base:allocation')
seen = []
for query, found in ((None, 1), ('base:', 1), ('qemu:', 0)):
    h.clear_meta_contexts()
    if query:
        h.add_meta_context(query)
    assert h.opt_list_meta_context(lambda name: seen.append(name)) == found
assert seen == ['base:allocation'] * 2, seen
h.clear_meta_contexts()
h.add_meta_context('base:allocation')
h.add_meta_context('x-other:thing')
names = []
assert h.opt_list(lambda name, text: names.append((name, text))) == 1
assert names == [('disk', 'a disk for tests')], names
h.opt_go()
assert h.can_meta_context('base:allocation') and not h.can_meta_context('x-other:thing')
h.shutdown()

other = nbd.NBD()
other.set_opt_mode(True)
other.connect_unix('{}')
other.opt_abort()
",
        bench.text_path("nbd.sock"),
        bench.text_path("nbd.sock")
    );
    shell_at(&[], &script).await;
}

#[tokio::test]
async fn unusable_exports_are_refused() {
    let bench = Bench::new().await;
    let add = |name: &str, disk: SparseDisk| bench.server.add(name, Arc::new(disk));
    assert!(matches!(add("a\0b", SparseDisk::new(4096)), Err(NbdError::BadName { .. })));
    assert!(matches!(add(&"x".repeat(4097), SparseDisk::new(4096)), Err(NbdError::BadName { .. })));
    assert!(matches!(add("big", SparseDisk::new(1 << 63)), Err(NbdError::BadExport { .. })));
    for (minimum, preferred, maximum) in
        [(0, 4096, 1 << 20), (3, 4096, 1 << 20), (4096, 512, 1 << 20), (1, 4096, 1 << 26), (1, 4096, 512)]
    {
        let mut disk = SparseDisk::new(1 << 20);
        disk.block_sizes = BlockSizes { minimum, preferred, maximum };
        assert!(matches!(add("blocks", disk), Err(NbdError::BadExport { .. })));
    }
    add("twice", SparseDisk::new(4096)).unwrap();
    assert!(matches!(add("twice", SparseDisk::new(4096)), Err(NbdError::NameInUse { .. })));
}
