//! Real NBD clients over the whole stack: HRL files, map, cache, overlay, protocol.
//!
//! They need the packages libnbd-bin, python3-libnbd, qemu-utils and fio.
#![allow(clippy::unwrap_used)]

mod fixture;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use fixture::{Site, grown, joined, objects};
use lifeboat_nbd::{Export, Limits, NbdServer};
use lifeboat_volume::{BootId, FrameCache, PointDisk, VolumeDisk};
use tempfile::TempDir;

const DISK_BYTES: u64 = 24 << 20;

struct Served {
    site: Site,
    directory: TempDir,
    server: NbdServer,
}

impl Served {
    async fn new(writable: bool) -> Self {
        let site = grown(DISK_BYTES, 5);
        let directory = tempfile::tempdir().unwrap();
        let point = site.open(8 << 20, true).await;
        let disk = if writable {
            let overlay = directory.path().join("overlay");
            let boot = BootId::now().unwrap();
            VolumeDisk::writable(point, String::new(), &overlay, site.identity(), boot).unwrap()
        } else {
            VolumeDisk::read_only(point, String::new())
        };
        let server = NbdServer::new(Limits::default());
        server.add("disk", Arc::new(disk)).unwrap();
        server.listen_unix(&directory.path().join("nbd")).await.unwrap();
        fs::write(directory.path().join("image"), &site.image).unwrap();
        Self { site, directory, server }
    }

    fn uri(&self) -> String {
        lifeboat_nbd::unix_uri("disk", &self.path("nbd"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// A client; Python from elsewhere on the path would not find the system's libnbd.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin").stdin(Stdio::null());
    command
}

async fn run(program: &str, arguments: &[&str]) -> String {
    let mut command = command(program);
    command.args(arguments);
    let name = program.to_owned();
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
    let output = output.unwrap_or_else(|error| panic!("{name} cannot be run: {error}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{name}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdcopy_and_qemu_img_find_the_point() {
    let served = Served::new(false).await;
    let (uri, image, copy) = (served.uri(), served.path("image"), served.path("copy"));
    run("nbdcopy", &[&uri, copy.to_str().unwrap()]).await;
    assert!(fs::read(copy).unwrap() == served.site.image);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &uri, image.to_str().unwrap()]).await;
    served.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdinfo_shows_holes_where_nothing_is() {
    let served = Served::new(false).await;
    let map = run("nbdinfo", &["--map", &served.uri()]).await;
    let mut zeroes = 0;
    let mut total = 0;
    for line in map.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (offset, len): (usize, usize) = (fields[0].parse().unwrap(), fields[1].parse().unwrap());
        assert_eq!(offset, total);
        total += len;
        if line.contains("hole,zero") {
            zeroes += len;
            assert!(served.site.image[offset..total].iter().all(|byte| *byte == 0), "{line}");
        }
    }
    assert_eq!(total as u64, DISK_BYTES);
    assert!(zeroes > 4 << 20, "{map}");
    served.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fio_verifies_what_it_wrote() {
    let served = Served::new(true).await;
    let uri = format!("--uri={}", served.uri());
    let size = format!("--size={DISK_BYTES}");
    let verify = [
        "--name=verify",
        "--ioengine=nbd",
        "--rw=randrw",
        "--bsrange=512-64k",
        "--bs_unaligned=1",
        "--iodepth=16",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        "--fsync=50",
        &uri,
        &size,
    ];
    let dir = served.directory.path().to_owned();
    let mut fio = command("fio");
    fio.args(verify).current_dir(dir);
    let output = tokio::task::spawn_blocking(move || fio.output()).await.unwrap().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("err= 0"), "{said}");
    served.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_converted_onto_a_volume_reads_back() {
    let served = Served::new(true).await;
    let (uri, other, back) = (served.uri(), served.path("other"), served.path("back"));
    let mut image = served.site.image.clone();
    image.rotate_left(12_345);
    fs::write(&other, &image).unwrap();
    run("qemu-img", &["convert", "-n", "-W", "-f", "raw", "-O", "raw", other.to_str().unwrap(), &uri]).await;
    run("nbdcopy", &["--connections=4", &uri, back.to_str().unwrap()]).await;
    assert!(fs::read(back).unwrap() == image);
    served.server.shutdown().await;
}

/// Not a test: what the child process of the next one does, which is killed.
#[test]
#[ignore = "the other half of a test"]
fn serve_until_killed() {
    let Ok(directory) = std::env::var("LIFEBOAT_TEST_SERVE") else { return };
    let directory = Path::new(&directory);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        // Made anew by each process, it is the same each time.
        let site = grown(DISK_BYTES, 5);
        let point =
            PointDisk::open(site.source.clone(), objects(site.store.path(), true), FrameCache::new(8 << 20));
        let point = point.await.unwrap();
        let boot = BootId::now().unwrap();
        let overlay = directory.join("overlay");
        let disk = VolumeDisk::writable(point, String::new(), &overlay, site.identity(), boot).unwrap();
        let server = NbdServer::new(Limits::default());
        server.add("disk", Arc::new(disk)).unwrap();
        server.listen_unix(&directory.join("nbd")).await.unwrap();
        println!("serving");
        std::future::pending::<()>().await;
    });
}

fn start_server(directory: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "serve_until_killed", "--ignored", "--nocapture"])
        .env("LIFEBOAT_TEST_SERVE", directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("serving")), "the server did not start");
    // Keeps the pipe open.
    std::thread::spawn(move || lines.for_each(drop));
    child
}

/// Several requests in flight; says of each when it is sent and when it was answered.
const WRITER: &str = "
import os, random
random.seed(int(os.environ['SEED']))
flying = set()
number = 0
def answered(number, error):
    flying.discard(number % 16)
    if error.value == 0:
        print('answered', number, flush=True)
    return 1
try:
    while True:
        # Ranges in flight do not overlap, so that their order does not matter.
        slot = number % 16
        while slot in flying or len(flying) >= 8:
            h.poll(-1)
        flying.add(slot)
        size = h.get_size() // 16
        length = random.choice([512, 1000, 4096, 4096, 8192, 65536])
        offset = slot * size + random.randrange(size - length)
        value = random.randrange(1, 256)
        kind = 'zero' if random.random() < 0.1 else 'write'
        if kind == 'zero':
            value = 0
        print('sent', number, offset, length, value, flush=True)
        done = (lambda number: lambda error: answered(number, error))(number)
        if kind == 'zero':
            h.aio_zero(length, offset, done)
        else:
            h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([value]) * length), offset, done)
        number += 1
except nbd.Error:
    pass
";

#[test]
fn kill_9_of_the_server_loses_no_answered_write() {
    let directory = tempfile::tempdir().unwrap();
    let uri = lifeboat_nbd::unix_uri("disk", &directory.path().join("nbd"));
    let site = grown(DISK_BYTES, 5);
    let mut image = site.image.clone();
    let mut answered_writes = 0;
    // What a write that was not answered may have made of a byte.
    let mut maybe: Vec<(usize, usize, u8)> = Vec::new();
    for round in 0..6u64 {
        let mut server = start_server(directory.path());
        let mut writer = command("nbdsh")
            .args(["-u", &uri, "-c", WRITER])
            .env("SEED", round.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut sent = Vec::new();
        let mut killed = false;
        for line in BufReader::new(writer.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let fields: Vec<&str> = line.split(' ').collect();
            let numbers: Vec<usize> = fields[1..].iter().filter_map(|field| field.parse().ok()).collect();
            match (fields[0], numbers.as_slice()) {
                ("sent", [number, offset, len, value]) if *number == sent.len() => {
                    sent.push((*offset, *len, u8::try_from(*value).unwrap(), false));
                }
                ("answered", [number]) => {
                    let (offset, len, value, answered) = &mut sent[*number];
                    *answered = true;
                    answered_writes += 1;
                    let range = *offset..*offset + *len;
                    image[range.clone()].fill(*value);
                    maybe.retain(|(first, end, _)| *end <= range.start || range.end <= *first);
                }
                _ => {}
            }
            if !killed && sent.len() > 300 + 250 * usize::try_from(round).unwrap() {
                server.kill().unwrap();
                killed = true;
            }
        }
        server.wait().unwrap();
        writer.wait().unwrap();
        assert!(killed, "the writer stopped by itself");
        let unanswered = sent.iter().filter(|(.., answered)| !answered);
        let unanswered = unanswered.map(|(offset, len, value, _)| (*offset, *offset + *len, *value));
        maybe = unanswered.collect();
        // The next round begins with what there is, once that was found possible.
        let found = read_overlay(directory.path(), &site, BootId::now().unwrap());
        for (at, (found, expected)) in found.iter().zip(&image).enumerate() {
            let allowed =
                |(first, end, value): &(usize, usize, u8)| (*first..*end).contains(&at) && value == found;
            assert!(found == expected || maybe.iter().any(allowed), "round {round}: byte {at} is {found}");
        }
        image = found;
    }
    assert!(answered_writes > 3000, "{answered_writes}");
    // The same files after a power cut: nothing was ever flushed.
    let found = read_overlay(directory.path(), &site, BootId::new([9; 16]));
    assert!(found == site.image, "as the point has it");
}

fn read_overlay(directory: &Path, site: &Site, boot: BootId) -> Vec<u8> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let point = site.open(8 << 20, true).await;
        let overlay = directory.join("overlay");
        let mut disk = VolumeDisk::writable(point.clone(), String::new(), &overlay, site.identity(), boot);
        // The kernel may be closing the dead server's files still.
        for _ in 0..100 {
            if disk.is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
            disk = VolumeDisk::writable(point.clone(), String::new(), &overlay, site.identity(), boot);
        }
        joined(disk.unwrap().read(0, u32::try_from(DISK_BYTES).unwrap()).await.unwrap())
    })
}
