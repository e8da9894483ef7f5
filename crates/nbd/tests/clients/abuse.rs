//! Clients that break the rules, are slow, or vanish.

use std::time::Duration;

use lifeboat_nbd::Limits;
use lifeboat_nbd::protocol::{ClientOption, Command, InfoRequest, OPTION_MAGIC};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::export::SparseDisk;
use crate::raw::RawClient;
use crate::support::{Bench, noise, run};

/// A real client is still served.
async fn still_serves(bench: &Bench) {
    run("nbdinfo", &["--size", &bench.uri("disk")]).await;
}

#[test]
fn garbage_ends_only_its_own_connection() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let disk = SparseDisk::shared(1 << 20);
    let content = noise(1, 1 << 20);
    disk.put(0, &content);
    let bench = runtime.block_on(Bench::serving(&disk));
    let config = ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() };
    let garbage = proptest::collection::vec(any::<u8>(), 1..3000);
    proptest::test_runner::TestRunner::new(config)
        .run(&(garbage, 0..3), |(garbage, stage)| {
            runtime.block_on(async {
                let mut client = match stage {
                    0 => RawClient { stream: UnixStream::connect(bench.socket()).await.unwrap() },
                    1 => RawClient::greeted(&bench.socket()).await,
                    _ => RawClient::transmitting(&bench.socket(), "disk").await,
                };
                if stage == 1 {
                    client.stream.write_all(&OPTION_MAGIC.to_be_bytes()).await.unwrap();
                }
                // The server may have closed already.
                let _ = client.stream.write_all(&garbage).await;
                let _ = client.stream.shutdown().await;
                client.closed().await;
            });
            Ok(())
        })
        .unwrap();
    runtime.block_on(still_serves(&bench));
    assert!(disk.get(0, 1 << 20) == content);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_handshakes_are_ended() {
    let limits = Limits { handshake_timeout: Duration::from_secs(3), handshakes_max: 3, ..Limits::default() };
    let bench = Bench::with(limits).await;
    bench.server.add("disk", SparseDisk::shared(1 << 20)).unwrap();
    let silent = RawClient::greeted(&bench.socket()).await;
    let mut half = RawClient::greeted(&bench.socket()).await;
    half.stream.write_all(&OPTION_MAGIC.to_be_bytes()[..5]).await.unwrap();
    let mut long = RawClient::greeted(&bench.socket()).await;
    long.stream.write_all(&OPTION_MAGIC.to_be_bytes()).await.unwrap();
    long.stream.write_all(&[0, 0, 0, 3, 0xff, 0xff, 0xff, 0xff, 1, 2, 3]).await.unwrap();
    // One too many: closed without a word.
    let mut refused = UnixStream::connect(bench.socket()).await.unwrap();
    assert_eq!(refused.read(&mut [0; 100]).await.unwrap(), 0);
    for client in [silent, half, long] {
        assert_eq!(client.closed().await, b"");
    }
    still_serves(&bench).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_limited() {
    let bench = Bench::with(Limits { connections_max: 2, ..Limits::default() }).await;
    bench.server.add("disk", SparseDisk::shared(1 << 20)).unwrap();
    let first = RawClient::transmitting(&bench.socket(), "disk").await;
    let second = RawClient::transmitting(&bench.socket(), "disk").await;
    assert_eq!(bench.server.connection_count(), 2);
    let mut third = RawClient::greeted(&bench.socket()).await;
    let mut wire = bytes::BytesMut::new();
    ClientOption::Go(InfoRequest { name: "disk", wanted: vec![] }).encode(&mut wire);
    third.stream.write_all(&wire).await.unwrap();
    assert_eq!(third.closed().await, b"");
    let mut first = first;
    first.send(Command::Disconnect, 0, 0, 0).await;
    assert_eq!(first.closed().await, b"");
    while bench.server.connection_count() > 1 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    still_serves(&bench).await;
    drop(second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_write_is_no_write() {
    let disk = SparseDisk::shared(4 << 20);
    let bench = Bench::serving(&disk).await;
    for (announced, sent) in [(1 << 20, 0), (1 << 20, 1000), (1 << 20, 500_000), (4096, 4095)] {
        let mut client = RawClient::transmitting(&bench.socket(), "disk").await;
        client.send(Command::Write, 7, 0, announced).await;
        client.stream.write_all(&vec![0xee; sent]).await.unwrap();
        client.stream.shutdown().await.unwrap();
        assert_eq!(client.closed().await, b"");
    }
    still_serves(&bench).await;
    assert_eq!((disk.page_count(), disk.calls().len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_stalls_is_cut_off() {
    let limits = Limits { stall_timeout: Duration::from_millis(200), ..Limits::default() };
    let bench = Bench::with(limits).await;
    let disk = SparseDisk::shared(64 << 20);
    bench.server.add("disk", disk.clone()).unwrap();
    // One whose payload is wanted and one whose payload is to be dropped.
    for offset in [0, 1 << 40] {
        let mut client = RawClient::transmitting(&bench.socket(), "disk").await;
        client.send(Command::Write, 7, offset, 32 << 20).await;
        client.stream.write_all(&[1; 5000]).await.unwrap();
        assert_eq!(client.closed().await, b"");
    }
    still_serves(&bench).await;
    assert_eq!(disk.calls(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_no_replies_harms_nobody() {
    let limits =
        Limits { stall_timeout: Duration::from_millis(500), server_bytes_max: 32 << 20, ..Limits::default() };
    let bench = Bench::with(limits).await;
    let disk = SparseDisk::shared(64 << 20);
    disk.put(0, &noise(1, 64 << 20));
    bench.server.add("disk", disk.clone()).unwrap();
    let mut greedy = RawClient::transmitting(&bench.socket(), "disk").await;
    for cookie in 0..100 {
        greedy.send(Command::Read, cookie, 0, 16 << 20).await;
    }
    // It holds the whole budget; another client is served once it is cut off.
    let script = "assert len(h.pread(32 << 20, 0)) == 32 << 20";
    bench.shell(script).await;
    let received = greedy.closed().await.len();
    assert!(received < 16 << 20, "{received} bytes were sent to a client that took none");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absurd_write_closes_the_connection() {
    let bench = Bench::serving(&SparseDisk::shared(1 << 20)).await;
    let mut client = RawClient::transmitting(&bench.socket(), "disk").await;
    client.send(Command::Write, 7, 0, u32::MAX).await;
    assert_eq!(client.closed().await, b"");
    still_serves(&bench).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_commands_are_answered() {
    let bench = Bench::serving(&SparseDisk::shared(1 << 20)).await;
    let mut client = RawClient::transmitting(&bench.socket(), "disk").await;
    for number in [8, 9, 1000, u16::MAX] {
        client.send(Command::Unknown(number), number.into(), 0, 4096).await;
        assert_eq!(client.reply().await, (number.into(), 22));
    }
    client.send(Command::Flush, 1, 0, 0).await;
    assert_eq!(client.reply().await, (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_before_a_disconnect_is_answered() {
    let disk = SparseDisk::shared(1 << 20);
    let bench = Bench::serving(&disk).await;
    for politely in [true, false] {
        let mut client = RawClient::transmitting(&bench.socket(), "disk").await;
        for cookie in 0..200 {
            client.send(Command::Write, cookie, cookie * 4096, 2).await;
            client.stream.write_all(b"ab").await.unwrap();
        }
        if politely {
            client.send(Command::Disconnect, 0, 0, 0).await;
        } else {
            client.stream.shutdown().await.unwrap();
        }
        let mut answered: Vec<u64> = Vec::new();
        for _ in 0..200 {
            let (cookie, error) = client.reply().await;
            assert_eq!(error, 0);
            answered.push(cookie);
        }
        answered.sort_unstable();
        assert_eq!(answered, (0..200).collect::<Vec<_>>());
        assert_eq!(client.closed().await, b"");
    }
    assert_eq!(disk.calls().len(), 400);
}
