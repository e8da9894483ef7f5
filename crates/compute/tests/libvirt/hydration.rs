//! Copies of disks in local files, and machines that move over to them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use lifeboat_compute::{DiskFormat, HydrationState, HydrationTarget, MachineSpec, OffReason, Provider};
use lifeboat_model::DiskNumber;

use crate::daemon::kill;
use crate::guests::{COUNTS, number};
use crate::machine::{DISK_BYTES, spec, wait_for};
use crate::serving::{Server, address, last_number};
use crate::site::Site;

const DISK: DiskNumber = DiskNumber(0);
/// So slow that the copy does not end by itself while a test looks.
const SLOW: Option<u64> = Some(1 << 10);

/// A machine that counts on a disk that is served, and its server.
async fn counting(site: &Site<'_>) -> (MachineSpec, Server) {
    let image = site.image(COUNTS, "");
    // Something to copy in every part of the disk.
    let mut content = fs::read(&image).unwrap();
    for (at, byte) in content.iter_mut().enumerate().skip(4096) {
        *byte = u8::try_from(at % 251).unwrap();
    }
    fs::write(&image, content).unwrap();
    let server = Server::start(site.place.path()).await;
    let spec = spec(1, address(site.place.path()));
    site.provider().start(&spec).await.unwrap();
    goes_on(site, &spec).await;
    (spec, server)
}

/// Waits until the guest has counted further than it has now.
async fn goes_on(site: &Site<'_>, spec: &MachineSpec) {
    let said = site.said(spec.id).await;
    let more = site.hears(spec.id, |more| more.len() > said.len() && last_number(more) > 5).await;
    let more = site.hears(spec.id, |later| last_number(later) > last_number(&more) + 5).await;
    assert!(!more.contains("FAILED"), "the guest got an error");
}

fn target(site: &Site<'_>, format: DiskFormat, bytes_per_second: Option<u64>) -> HydrationTarget {
    HydrationTarget { path: site.place.path().join("copy"), format, bytes_per_second }
}

async fn state(site: &Site<'_>, spec: &MachineSpec) -> Option<HydrationState> {
    let mut all = site.provider().hydration(spec.id).await.unwrap();
    assert!(all.len() <= 1);
    all.pop().map(|one| one.state)
}

async fn moved(site: &Site<'_>, spec: &MachineSpec) {
    let moved = wait_for(async || (state(site, spec).await == Some(HydrationState::Local)).then_some(()));
    assert!(moved.await.is_some(), "{:?}", state(site, spec).await);
}

/// What is in a copy, byte for byte.
fn content(target: &HydrationTarget) -> Vec<u8> {
    let raw: PathBuf = target.path.with_extension("raw");
    let format = if target.format == DiskFormat::Raw { "raw" } else { "qcow2" };
    let converted = Command::new("qemu-img")
        .args(["convert", "-f", format, "-O", "raw"])
        .args([&target.path, &raw])
        .status()
        .unwrap();
    assert!(converted.success());
    fs::read(raw).unwrap()
}

async fn moves_over(format: DiskFormat) {
    let site = Site::new().await;
    let (spec, server) = counting(&site).await;
    let target = target(&site, format, None);
    assert_eq!(state(&site, &spec).await, None);
    site.provider().hydrate(spec.id, DISK, &target).await.unwrap();
    moved(&site, &spec).await;
    site.provider().hydrate(spec.id, DISK, &target).await.unwrap();
    let error = site.provider().cancel_hydration(spec.id, DISK).await.unwrap_err();
    assert!(error.to_string().contains("has moved to its local copy"), "{error}");

    drop(server);
    fs::remove_file(site.place.path().join("image")).unwrap();
    goes_on(&site, &spec).await;
    site.provider().power_off(spec.id).await.unwrap();
    let copy = content(&target);
    assert_eq!(copy.len() as u64, DISK_BYTES);
    let written = number(std::str::from_utf8(&copy[1024..1032]).unwrap()).unwrap();
    assert!(written >= last_number(&site.said(spec.id).await), "a write that was confirmed is lost");
    assert!(copy[4096..].iter().enumerate().all(|(at, byte)| usize::from(*byte) == (at + 4096) % 251));

    // From now on the copy is the disk, and the machine's spec stays what it was.
    let before = site.said(spec.id).await.len();
    site.provider().start(&spec).await.unwrap();
    site.hears(spec.id, |said| last_number(&said[before..]) > 5).await;
    assert_eq!(state(&site, &spec).await, Some(HydrationState::Local));
    site.provider().power_off(spec.id).await.unwrap();
    let mut other = spec.clone();
    other.disks[0].bytes *= 2;
    let error = site.provider().start(&other).await.unwrap_err();
    assert!(error.to_string().contains("runs from local copies of its disks"), "{error}");
    site.provider().remove(spec.id).await.unwrap();
    assert!(!target.path.exists(), "the copy is left");
    site.assert_nothing_left();
}

#[tokio::test]
async fn a_running_machine_moves_to_a_raw_copy_and_needs_its_server_no_longer() {
    moves_over(DiskFormat::Raw).await;
}

#[tokio::test]
async fn a_running_machine_moves_to_a_qcow2_copy_and_needs_its_server_no_longer() {
    moves_over(DiskFormat::Qcow2).await;
}

#[tokio::test]
async fn a_copy_that_is_cancelled_is_gone_and_the_guest_goes_on() {
    let site = Site::new().await;
    let (spec, _server) = counting(&site).await;
    let target = target(&site, DiskFormat::Qcow2, SLOW);
    site.provider().cancel_hydration(spec.id, DISK).await.unwrap();
    site.provider().hydrate(spec.id, DISK, &target).await.unwrap();
    let Some(HydrationState::Copying { done_bytes, total_bytes }) = state(&site, &spec).await else {
        panic!("{:?}", state(&site, &spec).await);
    };
    assert!(done_bytes < DISK_BYTES && total_bytes <= 2 * DISK_BYTES, "{done_bytes} of {total_bytes}");
    let mut other = target.clone();
    other.path.set_extension("other");
    let error = site.provider().hydrate(spec.id, DISK, &other).await.unwrap_err();
    assert!(error.to_string().contains("disk 0 of machine 0000000000000001 has a copy in"), "{error}");
    assert!(!other.path.exists());
    site.provider().cancel_hydration(spec.id, DISK).await.unwrap();
    assert!(!target.path.exists());
    assert_eq!(state(&site, &spec).await, None);
    goes_on(&site, &spec).await;

    fs::write(&target.path, "somebody else's").unwrap();
    let error = site.provider().hydrate(spec.id, DISK, &target).await.unwrap_err();
    assert!(error.to_string().contains("which exists already"), "{error}");
    assert_eq!(fs::read(&target.path).unwrap(), b"somebody else's");
    fs::remove_file(&target.path).unwrap();
    site.provider().hydrate(spec.id, DISK, &target).await.unwrap();
    site.provider().remove(spec.id).await.unwrap();
    assert!(!target.path.exists(), "a copy that is not complete is left");
}

#[tokio::test]
async fn a_copy_goes_on_when_its_provider_is_replaced() {
    let mut site = Site::new().await;
    let (spec, server) = counting(&site).await;
    let slow = target(&site, DiskFormat::Raw, SLOW);
    site.provider().hydrate(spec.id, DISK, &slow).await.unwrap();
    site.replace_provider(|| ()).await;
    assert!(matches!(state(&site, &spec).await, Some(HydrationState::Copying { .. })));
    // Asked again, it is the same copy, without the limit.
    let fast = target(&site, DiskFormat::Raw, None);
    site.provider().hydrate(spec.id, DISK, &fast).await.unwrap();
    moved(&site, &spec).await;
    drop(server);
    goes_on(&site, &spec).await;
    site.provider().remove(spec.id).await.unwrap();
}

#[tokio::test]
async fn a_machine_that_dies_while_it_is_copied_starts_from_its_source() {
    let site = Site::new().await;
    let (spec, _server) = counting(&site).await;
    let slow = target(&site, DiskFormat::Raw, SLOW);
    site.provider().hydrate(spec.id, DISK, &slow).await.unwrap();
    kill(site.processes(spec.id)[0]);
    assert!(matches!(site.off(spec.id).await, OffReason::Ended { .. }));
    assert!(!slow.path.exists(), "a copy that is not complete is left");
    let failed = state(&site, &spec).await;
    assert!(
        matches!(&failed, Some(HydrationState::Failed { why }) if why.contains("went off")),
        "{failed:?}"
    );
    site.provider().start(&spec).await.unwrap();
    goes_on(&site, &spec).await;
    let fast = target(&site, DiskFormat::Raw, None);
    site.provider().hydrate(spec.id, DISK, &fast).await.unwrap();
    moved(&site, &spec).await;
    goes_on(&site, &spec).await;
    site.provider().remove(spec.id).await.unwrap();
}
