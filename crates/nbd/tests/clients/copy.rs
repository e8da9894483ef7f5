//! Whole disks in and out.

use std::fs;

use lifeboat_nbd::unix_uri;

use crate::export::SparseDisk;
use crate::support::{Bench, fill, noise, run, same, try_run};

const SIZE: usize = 40 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdcopy_takes_a_disk_out_and_in() {
    let source = SparseDisk::shared(SIZE as u64);
    let content = fill(&source, SIZE);
    let target = SparseDisk::shared(SIZE as u64);
    target.put(0, &noise(99, SIZE));
    let bench = Bench::serving(&source).await;
    bench.server.add("target", target.clone()).unwrap();

    let out = bench.text_path("out.img");
    run("nbdcopy", &["--connections=4", "--requests=64", &bench.uri("disk"), &out]).await;
    same(&bench.path("out.img"), &content);
    let whole = bench.text_path("whole.img");
    run("nbdcopy", &["--no-extents", "--request-size=1048576", &bench.uri("disk"), &whole]).await;
    same(&bench.path("whole.img"), &content);

    run("nbdcopy", &["--connections=4", "--flush", &out, &bench.uri("target")]).await;
    assert!(target.get(0, SIZE as u64) == content, "the copied disk differs");
    assert!(target.calls().contains(&crate::export::Call::Flush));
    // From one export to another, both here.
    target.put(0, &noise(98, SIZE));
    run("nbdcopy", &["--synchronous", &bench.uri("disk"), &bench.uri("target")]).await;
    assert!(target.get(0, SIZE as u64) == content, "the copied disk differs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_map_is_right() {
    let disk = SparseDisk::shared(1 << 20);
    disk.put(65536, &noise(1, 65536));
    disk.put(200 << 10, &noise(2, 4096));
    let bench = Bench::serving(&disk).await;
    let map = run("nbdinfo", &["--map", &bench.uri("disk")]).await;
    let map: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    let expected = [
        ["0", "65536", "3"],
        ["65536", "65536", "0"],
        ["131072", "73728", "3"],
        ["204800", "4096", "0"],
        ["208896", "839680", "3"],
    ];
    assert_eq!(map, expected);
    let map = run("qemu-img", &["map", "--output=json", &bench.uri("disk")]).await;
    let found = map.matches("\"zero\": true").count();
    assert_eq!((found, map.matches("\"data\": true").count()), (3, 2), "{map}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_map_of_very_many_extents_is_complete() {
    // Every other page: more extents than one reply holds.
    let disk = SparseDisk::shared(200 << 20);
    for page in (0..200 << 8).step_by(2) {
        disk.put(page * 4096, b"x");
    }
    let bench = Bench::serving(&disk).await;
    let totals = run("nbdinfo", &["--map", "--totals", &bench.uri("disk")]).await;
    let lines: Vec<_> = totals.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(lines, ["104857600", "104857600"], "{totals}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_img_converts_and_compares() {
    let source = SparseDisk::shared(SIZE as u64);
    let content = fill(&source, SIZE);
    let target = SparseDisk::shared(SIZE as u64);
    target.put(0, &noise(99, 1 << 20));
    let bench = Bench::serving(&source).await;
    bench.server.add("target", target.clone()).unwrap();
    let (uri, target_uri) = (bench.uri("disk"), bench.uri("target"));

    let qcow = bench.text_path("disk.qcow2");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "-m", "16", "-W", &uri, &qcow]).await;
    run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &uri, &qcow]).await;
    let differ = try_run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &uri, &target_uri]).await;
    assert_eq!(differ.status.code(), Some(1), "qemu-img saw no difference");

    run("qemu-img", &["convert", "-n", "-f", "qcow2", "-O", "raw", &qcow, &target_uri]).await;
    assert!(target.get(0, SIZE as u64) == content, "the converted disk differs");
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &uri, &target_uri]).await;
    // Holes arrived as holes: zeroes were not sent as data.
    assert!(target.page_count() <= source.page_count());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_qcow2_lives_on_an_export() {
    let disk = SparseDisk::shared(64 << 20);
    let bench = Bench::serving(&disk).await;
    run("qemu-img", &["create", "-f", "qcow2", &bench.uri("disk"), "1G"]).await;
    let commands = [
        "-c",
        "write -P 0xab 0 1M",
        "-c",
        "write -P 0xcd 1000M 64k",
        "-c",
        "discard 0 512k",
        "-c",
        "flush",
        "-c",
        "read -P 0xcd 1000M 64k",
        "-c",
        "read -P 0xab 512k 512k",
        "-c",
        "read -P 0 0 512k",
    ];
    let uri = bench.uri("disk");
    let mut arguments = vec!["-f", "qcow2", "-d", "unmap", uri.as_str()];
    arguments.extend(commands);
    run("qemu-io", &arguments).await;
    run("qemu-img", &["check", "-f", "qcow2", &uri]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_nbd_serves_what_we_serve() {
    let disk = SparseDisk::shared(8 << 20);
    let content = fill(&disk, 8 << 20);
    let bench = Bench::serving(&disk).await;
    let relay = bench.text_path("relay.sock");
    let (uri, out) = (bench.uri("disk"), bench.text_path("relay.img"));
    let pid = bench.text_path("relay.pid");
    // Ends by itself when its client leaves.
    run("qemu-nbd", &["--fork", "--pid-file", &pid, "-f", "raw", "-k", &relay, &uri]).await;
    run("nbdcopy", &["--connections=1", &unix_uri("", &bench.path("relay.sock")), &out]).await;
    same(&bench.path("relay.img"), &content);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fio_verifies_what_it_wrote() {
    let disk = SparseDisk::shared(16 << 20);
    let bench = Bench::serving(&disk).await;
    let uri = format!("--uri={}", bench.uri("disk"));
    let state = format!("--aux-path={}", bench.folder.path().display());
    let common = [
        "--name=verify",
        "--ioengine=nbd",
        "--size=16m",
        "--bsrange=512-128k",
        "--blockalign=512",
        "--iodepth=32",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--randrepeat=1",
        "--norandommap=0",
        "--verify_state_save=0",
    ];
    for pattern in ["--rw=randwrite", "--rw=write"] {
        let mut arguments = common.to_vec();
        arguments.extend([uri.as_str(), state.as_str(), pattern]);
        run("fio", &arguments).await;
    }
    assert!(fs::read_dir(bench.folder.path()).unwrap().count() >= 1);
}
