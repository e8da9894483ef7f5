//! Single commands, their flags and their errors.

use std::sync::atomic::Ordering;

use lifeboat_nbd::{Limits, ZeroMode};

use crate::export::{Call, SparseDisk};
use crate::support::{Bench, noise, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_io_patterns_hold() {
    let disk = SparseDisk::shared(16 << 20);
    let bench = Bench::serving(&disk).await;
    let uri = bench.uri("disk");
    let commands = [
        "write -P 0x11 0 1M",
        "write -P 0x22 4k 512",
        "write -P 0x33 1000 3001",
        "aio_write -P 0x44 2M 4M",
        "aio_flush",
        "write -f -P 0x55 8M 64k",
        "write -z 2M 1M",
        "write -z -u 3M 1M",
        "discard 4M 1M",
        "flush",
        "read -P 0x33 1000 3001",
        "read -P 0x22 4k 512",
        "read -P 0x11 5k 100k",
        "read -P 0 2M 2M",
        "read -P 0x44 5M 1M",
        "read -P 0x55 8M 64k",
    ];
    let mut arguments = vec!["-f", "raw", "-d", "unmap", uri.as_str()];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    let said = run("qemu-io", &arguments).await;
    assert!(!said.contains("failed"), "{said}");
    let calls = disk.calls();
    assert!(calls.contains(&Call::Write { offset: 8 << 20, len: 64 << 10, fua: true }), "{calls:?}");
    assert!(calls.contains(&Call::Trim { offset: 4 << 20, len: 1 << 20, fua: false }), "{calls:?}");
    assert!(calls.contains(&Call::Flush));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flags_reach_the_export() {
    let disk = SparseDisk::shared(1 << 20);
    let bench = Bench::serving(&disk).await;
    bench
        .shell(
            "
h.pwrite(b'x' * 100, 50, nbd.CMD_FLAG_FUA)
h.zero(4096, 0, nbd.CMD_FLAG_NO_HOLE)
h.zero(4096, 4096, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_FAST_ZERO)
h.trim(8192, 8192, nbd.CMD_FLAG_FUA)
h.cache(4096, 0)
h.flush()
",
        )
        .await;
    let zeroes = |offset, no_hole, fua, fast| {
        let mode = ZeroMode { no_hole, fua, fast };
        Call::Zeroes { offset, len: 4096, mode }
    };
    let expected = [
        Call::Write { offset: 50, len: 100, fua: true },
        zeroes(0, true, false, false),
        zeroes(4096, false, true, true),
        Call::Trim { offset: 8192, len: 8192, fua: true },
        Call::Prefetch { offset: 0, len: 4096 },
        Call::Flush,
    ];
    assert_eq!(disk.calls(), expected);

    disk.fast_zero.store(false, Ordering::SeqCst);
    bench
        .shell(
            "
try:
    h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO)
    raise SystemExit('slow zeroes were taken for fast ones')
except nbd.Error as error:
    assert error.errno == 'ENOTSUP', error
h.zero(4096, 0)
",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_come_in_chunks_unless_df_is_set() {
    let disk = SparseDisk::shared(1 << 20);
    disk.put(4096, &noise(1, 4096));
    disk.put(16384, &noise(2, 8192));
    let bench = Bench::serving(&disk).await;
    bench
        .shell(
            "
def chunks(length, offset, flags=0):
    seen = []
    data = h.pread_structured(length, offset, lambda part, at, status, error: seen.append((at, len(part), status)), flags)
    return data, seen
DATA, HOLE = nbd.READ_DATA, nbd.READ_HOLE
whole, seen = chunks(65536, 0)
assert sorted(seen) == [(0, 4096, HOLE), (4096, 4096, DATA), (8192, 8192, HOLE), (16384, 8192, DATA), (24576, 40960, HOLE)], seen
again, seen = chunks(65536, 0, nbd.CMD_FLAG_DF)
assert seen == [(0, 65536, DATA)], seen
assert whole == again == h.pread(65536, 0)
data, seen = chunks(3000, 5000)
assert seen == [(5000, 3000, DATA)], seen
assert data == whole[5000:8000]
data, seen = chunks(100000, 100000, nbd.CMD_FLAG_DF)
assert seen == [(100000, 100000, HOLE)] and data == bytes(100000), seen
data, seen = chunks(8192, 4096 + 100, nbd.CMD_FLAG_DF)
assert seen == [(4196, 8192, DATA)] and data == whole[4196:4196 + 8192], seen
",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn block_status_honours_req_one() {
    let disk = SparseDisk::shared(1 << 20);
    disk.put(4096, b"x");
    let bench = Bench::serving(&disk).await;
    bench
        .shell(
            "
def status(length, offset, flags=0):
    seen = []
    h.block_status(length, offset, lambda context, at, entries, error: seen.extend(entries), flags)
    return seen
assert status(16384, 0) == [4096, 3, 4096, 0, 8192, 3]
assert status(16384, 0, nbd.CMD_FLAG_REQ_ONE) == [4096, 3]
assert status(100, 10, nbd.CMD_FLAG_REQ_ONE) == [100, 3]
assert status(5000, 4096 + 96) == [4000, 0, 1000, 3]
",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_hits_one_request_and_not_the_connection() {
    let disk = SparseDisk::shared(1 << 20);
    disk.put(0, &noise(1, 1 << 20));
    *disk.bad.lock().unwrap() = Some(500_000..500_100);
    *disk.panicking.lock().unwrap() = Some(700_000..700_001);
    let bench = Bench::serving(&disk).await;
    let script = "
good = h.pread(4096, 0)
for at in (499_000, 699_000):
    for read in (h.pread, lambda *range: h.pread_structured(*range, lambda *part: 0, nbd.CMD_FLAG_DF if h.can_df() else 0)):
        try:
            read(4096, at)
            raise SystemExit('an unreadable range was read')
        except nbd.Error as error:
            assert error.errno == 'EIO', error
assert h.pread(4096, 0) == good

h.set_strict_mode(0)
def fails(call, errno):
    try:
        call()
        raise SystemExit('should have failed')
    except nbd.Error as error:
        assert error.errno == errno, error
size = h.get_size()
fails(lambda: h.pread(2, size - 1), 'EINVAL')
fails(lambda: h.pwrite(b'xx', size - 1), 'ENOSPC')
fails(lambda: h.zero(2, size - 1), 'ENOSPC')
fails(lambda: h.trim(2, size - 1), 'EINVAL')
fails(lambda: h.trim(2, 2**64 - 1), 'EINVAL')
fails(lambda: h.pwrite(b'xx', 0, nbd.CMD_FLAG_DF), 'EINVAL')
fails(lambda: h.block_status(0, 0, lambda *a: 0), 'EINVAL') if h.get_structured_replies_negotiated() else None
h.pwrite(b'', 0)
assert h.pread(4096, 0) == good
";
    bench.shell(script).await;
    let simple = format!(
        "
h.set_request_structured_replies(False)
h.set_export_name('disk')
h.connect_unix('{}')
{script}",
        bench.text_path("nbd.sock")
    );
    crate::support::shell_at(&[], &simple).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_run_side_by_side_and_are_answered_out_of_order() {
    let disk = SparseDisk::shared(1 << 20);
    let bench = Bench::serving(&disk).await;
    disk.hold(true);
    // Zeroes pass while reads are held; so does a flush, which must not wait for them.
    let script = "
buffers = [nbd.Buffer(4096) for _ in range(20)]
cookies = [h.aio_pread(buffer, 4096 * n) for n, buffer in enumerate(buffers)]
h.zero(4096, 65536)
h.flush()
assert not any(h.aio_command_completed(cookie) for cookie in cookies)
print('flushed', flush=True)
while h.aio_in_flight() > 0:
    h.poll(-1)
";
    let release = async {
        disk.wait_running(20).await;
        while !disk.calls().contains(&Call::Flush) {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        disk.hold(false);
    };
    let (said, ()) = tokio::join!(bench.shell(script), release);
    assert_eq!(said.trim(), "flushed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_beyond_the_limits_wait_their_turn() {
    // Both byte limits are raised to one request of the largest size.
    let limits =
        Limits { connection_bytes_max: 1, server_bytes_max: 1, in_flight_max: 3, ..Limits::default() };
    let disk = SparseDisk::shared(64 << 20);
    disk.put(0, &noise(5, 64 << 20));
    let bench = Bench::with(limits).await;
    bench.server.add("disk", disk.clone()).unwrap();
    let script = "
import hashlib
size = 32 << 20
want = hashlib.sha256(h.pread(size, 0)).digest()
buffers = [nbd.Buffer(size) for _ in range(4)]
for buffer in buffers:
    h.aio_pread(buffer, 0)
small = [nbd.Buffer(512) for _ in range(200)]
for n, buffer in enumerate(small):
    h.aio_pread(buffer, n * 1024)
data = nbd.Buffer.from_bytearray(bytearray(b'w' * size))
h.aio_pwrite(data, size)
while h.aio_in_flight() > 0:
    h.poll(-1)
assert all(hashlib.sha256(buffer.to_bytearray()).digest() == want for buffer in buffers)
assert h.pread(size, size) == b'w' * size
";
    let (first, second) = tokio::join!(bench.shell(script), bench.shell(script));
    assert_eq!((first.as_str(), second.as_str()), ("", ""));
    // Of two connections together.
    assert!(disk.peak_bytes.load(Ordering::SeqCst) <= 32 << 20);
    assert!(disk.peak_running.load(Ordering::SeqCst) <= 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_see_each_others_writes() {
    let disk = SparseDisk::shared(1 << 20);
    let bench = Bench::serving(&disk).await;
    let script = format!(
        "
other = nbd.NBD()
other.connect_uri('{}')
assert h.can_multi_conn()
for n in range(100):
    data = bytes([n + 1]) * 5000
    h.pwrite(data, n * 10000)
    assert other.pread(5000, n * 10000) == data
    other.pwrite(data, n * 10000 + 5000)
    assert h.pread(10000, n * 10000) == data * 2
",
        bench.uri("disk")
    );
    bench.shell(&script).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversize_requests_leave_the_stream_in_step() {
    let disk = SparseDisk::shared(128 << 20);
    disk.put(0, b"start");
    let bench = Bench::serving(&disk).await;
    bench
        .shell(
            "
h.set_strict_mode(0)
size = (32 << 20) + 1
for call in (lambda: h.pread(size, 0), lambda: h.pwrite(bytes(size), 0)):
    try:
        call()
        raise SystemExit('more than 32 MiB in one request')
    except nbd.Error as error:
        assert error.errno in ('EOVERFLOW', 'EINVAL', 'ERANGE'), error
    assert h.pread(5, 0) == b'start'
h.zero(100 << 20, 0)
assert h.pread(5, 0) == bytes(5)
",
        )
        .await;
    assert_eq!(disk.calls().len(), 1);
}
