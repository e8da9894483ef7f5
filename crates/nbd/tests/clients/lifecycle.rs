//! Exports and sockets that come and go.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lifeboat_nbd::protocol::Command;
use lifeboat_nbd::{Limits, NbdError, NbdServer};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use crate::export::SparseDisk;
use crate::raw::RawClient;
use crate::support::{Bench, noise, run, try_run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removal_finishes_what_runs_and_refuses_the_rest() {
    let disk = SparseDisk::shared(1 << 20);
    disk.put(0, &noise(1, 1 << 20));
    let bench = Bench::serving(&disk).await;
    let mut client = RawClient::transmitting(&bench.socket(), "disk").await;
    let idle = RawClient::transmitting(&bench.socket(), "disk").await;
    disk.hold(true);
    for cookie in 0..8 {
        client.send(Command::Read, cookie, cookie * 4096, 512).await;
    }
    disk.wait_running(8).await;
    let talk = async {
        while !bench.server.export_names().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(idle.closed().await, b"");
        client.send(Command::Read, 99, 0, 512).await;
        assert_eq!(client.reply().await, (99, 108));
        client.send(Command::Write, 98, 0, 3).await;
        tokio::io::AsyncWriteExt::write_all(&mut client.stream, b"abc").await.unwrap();
        assert_eq!(client.reply().await, (98, 108));
        disk.hold(false);
        for _ in 0..8 {
            let (cookie, error) = client.reply().await;
            assert_eq!(error, 0);
            let mut data = vec![0; 512];
            client.stream.read_exact(&mut data).await.unwrap();
            assert_eq!(data, disk.get(cookie * 4096, 512));
        }
        assert_eq!(client.closed().await, b"");
    };
    let (removed, ()) = tokio::join!(bench.server.remove("disk"), talk);
    removed.unwrap();
    assert_eq!(Arc::strong_count(&disk), 1, "the server still holds the export");
    assert_eq!(disk.calls(), []);
    assert!(matches!(bench.server.remove("disk").await, Err(NbdError::UnknownExport { .. })));
    assert!(!try_run("nbdinfo", &[&bench.uri("disk")]).await.status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removal_does_not_wait_for_ever() {
    let bench = Bench::with(Limits { drain_timeout: Duration::from_millis(200), ..Limits::default() }).await;
    let disk = SparseDisk::shared(1 << 20);
    bench.server.add("disk", disk.clone()).unwrap();
    let mut client = RawClient::transmitting(&bench.socket(), "disk").await;
    disk.hold(true);
    client.send(Command::Read, 1, 0, 512).await;
    disk.wait_running(1).await;
    bench.server.remove("disk").await.unwrap();
    assert_eq!(disk.running.load(Ordering::SeqCst), 0);
    assert_eq!(Arc::strong_count(&disk), 1);
    client.closed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removal_under_load_ends_real_clients() {
    let bench = Bench::new().await;
    let load = "
try:
    while True:
        cookies = []
        for n in range(16):
            cookies.append(h.aio_pread(nbd.Buffer(65536), n * 65536))
            cookies.append(h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(65536)), n * 65536))
        for cookie in cookies:
            while not h.aio_command_completed(cookie):
                h.poll(-1)
except nbd.Error as error:
    assert error.errno in ('ESHUTDOWN', 'ENOTCONN', 'ECONNRESET', 'EPIPE') or h.aio_is_dead() or h.aio_is_closed(), error
";
    for _ in 0..3 {
        let disk = SparseDisk::shared(1 << 20);
        bench.server.add("disk", disk.clone()).unwrap();
        let remove = async {
            // Both must be in before the export goes, or the later one finds none.
            while bench.server.connection_count() < 2 || disk.calls().len() < 100 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            bench.server.remove("disk").await.unwrap();
            assert_eq!(disk.running.load(Ordering::SeqCst), 0);
            assert_eq!(Arc::strong_count(&disk), 1);
        };
        tokio::join!(bench.shell(load), bench.shell(load), remove);
        while bench.server.connection_count() > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_closes_everything() {
    let disk = SparseDisk::shared(1 << 20);
    let bench = Bench::serving(&disk).await;
    let client = RawClient::transmitting(&bench.socket(), "disk").await;
    let shaking = RawClient::greeted(&bench.socket()).await;
    bench.server.shutdown().await;
    assert_eq!(client.closed().await, b"");
    assert_eq!(shaking.closed().await, b"");
    assert!(!bench.socket().exists());
    assert_eq!(Arc::strong_count(&disk), 1);
    assert!(matches!(bench.server.add("late", disk), Err(NbdError::ShuttingDown)));
    assert!(matches!(bench.server.listen_unix(&bench.socket()).await, Err(NbdError::ShuttingDown)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_server_ends_it() {
    let disk = SparseDisk::shared(1 << 20);
    let Bench { server, folder } = Bench::serving(&disk).await;
    let client = RawClient::transmitting(&folder.path().join("nbd.sock"), "disk").await;
    drop(server);
    assert_eq!(client.closed().await, b"");
    while folder.path().join("nbd.sock").exists() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_dead_socket_is_replaced() {
    let bench = Bench::serving(&SparseDisk::shared(1 << 20)).await;
    let mode = fs::metadata(bench.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let other = NbdServer::new(Limits::default());
    let refused = other.listen_unix(&bench.socket()).await;
    assert!(matches!(refused, Err(NbdError::SocketInUse { .. })), "{refused:?}");
    run("nbdinfo", &["--size", &bench.uri("disk")]).await;

    let file = bench.path("precious");
    fs::write(&file, b"data").unwrap();
    let refused = other.listen_unix(&file).await;
    assert!(matches!(refused, Err(NbdError::NotASocket { .. })), "{refused:?}");
    assert_eq!(fs::read(&file).unwrap(), b"data");

    let long = bench.path(&"long".repeat(40));
    let refused = other.listen_unix(&long).await;
    assert!(matches!(refused, Err(NbdError::PathTooLong { .. })), "{refused:?}");

    // A listener that is closed without its file being removed, as after a crash.
    let stale = bench.path("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(stale.exists());
    other.listen_unix(&stale).await.unwrap();
    UnixStream::connect(&stale).await.unwrap();
    assert_eq!(fs::metadata(&stale).unwrap().permissions().mode() & 0o777, 0o600);

    // Its successor's file is not removed with it.
    fs::remove_file(&stale).unwrap();
    let _successor = std::os::unix::net::UnixListener::bind(&stale).unwrap();
    other.shutdown().await;
    assert!(stale.exists());
}
