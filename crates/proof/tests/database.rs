//! PostgreSQL under pgbench, its data and its write-ahead log on different disks: every point
//! recovers to a consistent database that has every commit acknowledged before the point.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_proof::{LoopDisk, Mount, NbdDisk, PostgreSql, Site, reachable_dir, run, wait_for};

const MIB: u64 = 1 << 20;
const POINTS: usize = 4;

#[test]
fn points_of_a_database_on_ext4_recover() {
    points_recover("ext4", 55_101);
}

#[test]
fn points_of_a_database_on_xfs_recover() {
    points_recover("xfs", 55_111);
}

fn points_recover(file_system: &str, port: u16) {
    let disks = [LoopDisk::new(768 * MIB), LoopDisk::new(512 * MIB)];
    for disk in &disks {
        run(&format!("mkfs.{file_system}"), ["-q", disk.device.to_str().unwrap()]);
    }
    let [data, wal] = disks.each_ref().map(|disk| Mount::new(&disk.device, "defaults"));
    let sockets = reachable_dir();
    let source = PostgreSql::create(data.path(), wal.path(), sockets.path(), port);
    source.pgbench_init(5);
    source.sql("create table numbered (n bigint primary key)");

    let site = Site::start(&[&disks[0], &disks[1]], "1s");
    site.await_first_point();
    let load = source.pgbench(&["-c", "4", "-T", "600"]);
    let load = EndedWithTest(load);
    let numbers = Numbers::start(sockets.path(), port);
    wait_for("a first commit", || (!numbers.acknowledged.lock().unwrap().is_empty()).then_some(()));
    let points: Vec<_> = (0..POINTS)
        .map(|number| {
            thread::sleep(Duration::from_millis(700));
            site.take_point(if number % 2 == 0 { "crash" } else { "filesystem" })
        })
        .collect();
    let acknowledged = numbers.stop();
    drop(load);
    drop((source, data, wal));

    let listed = site.json(["point", "list", "source"]);
    for (number, point) in points.iter().enumerate() {
        let entry = listed.as_array().unwrap().iter().find(|entry| entry["id"] == **point).unwrap();
        let time: Timestamp = entry["time"].as_str().unwrap().parse().unwrap();
        let wanted = acknowledged.iter().filter(|(_, at)| *at < time).map(|(n, _)| *n).max().unwrap_or(0);
        let port = port + 1 + u16::try_from(number).unwrap();
        check_point(&site, point, file_system, port, wanted);
    }
}

/// Opens the point as disks, mounts them as the source had them, recovers PostgreSQL, checks it.
fn check_point(site: &Site, point: &str, file_system: &str, port: u16, wanted: u64) {
    let opened = site.json(["volume", "open", "source", "--point", point]);
    let disks: Vec<_> = opened["disks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|disk| NbdDisk::connect(disk["nbd_uri"].as_str().unwrap()))
        .collect();
    // The copy has the source's UUID, which XFS minds while the source may be mounted.
    let options = if file_system == "xfs" { "nouuid" } else { "defaults" };
    let mounts: Vec<_> = disks.iter().map(|disk| Mount::new(&disk.device, options)).collect();
    let data = mounts[0].path().join("pg");
    fs::remove_file(data.join("pg_wal")).unwrap();
    std::os::unix::fs::symlink(mounts[1].path().join("pg"), data.join("pg_wal")).unwrap();
    let sockets = reachable_dir();
    let copy = PostgreSql::start(&data, sockets.path(), port);
    copy.check_pgbench();
    let newest: u64 = copy.sql("select coalesce(max(n), 0) from numbered").parse().unwrap();
    let count: u64 = copy.sql("select count(*) from numbered").parse().unwrap();
    assert_eq!(count, newest, "commits are missing in the middle");
    assert!(newest >= wanted, "commit {wanted} was acknowledged before the point, but it ends at {newest}");
    assert!(wanted > 0, "nothing was committed before the point, so it proves nothing");
    drop(copy);
    drop(mounts);
    drop(disks);
    site.json(["volume", "close", opened["volume"].as_str().unwrap()]);
}

/// Commits 1, 2, 3 … one after the other and notes when each was acknowledged.
struct Numbers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<(u64, Timestamp)>>>,
    writer: thread::JoinHandle<()>,
}

impl Numbers {
    fn start(socket_dir: &Path, port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let (stopped, noted) = (Arc::clone(&stop), Arc::clone(&acknowledged));
        let (socket_dir, port) = (socket_dir.to_owned(), port.to_string());
        let writer = thread::spawn(move || {
            use std::io::{BufRead, BufReader, Write};
            let mut psql = Command::new("setpriv")
                .args([
                    "--reuid=postgres",
                    "--regid=postgres",
                    "--init-groups",
                    "/usr/lib/postgresql/15/bin/psql",
                ])
                .args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-h"])
                .arg(&socket_dir)
                .args(["-p", &port, "postgres"])
                .current_dir("/")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut statements = psql.stdin.take().unwrap();
            let mut answers = BufReader::new(psql.stdout.take().unwrap()).lines();
            for n in 1.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                writeln!(statements, "insert into numbered values ({n}); select {n};").unwrap();
                let answer = answers.next().unwrap().unwrap();
                assert_eq!(answer, n.to_string());
                noted.lock().unwrap().push((n, Timestamp::now()));
            }
            drop(statements);
            psql.wait().unwrap();
        });
        Self { stop, acknowledged, writer }
    }

    fn stop(self) -> Vec<(u64, Timestamp)> {
        self.stop.store(true, Ordering::Relaxed);
        self.writer.join().unwrap();
        self.acknowledged.lock().unwrap().clone()
    }
}

struct EndedWithTest(Child);

impl Drop for EndedWithTest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
