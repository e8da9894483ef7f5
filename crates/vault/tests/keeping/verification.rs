//! Damage is found and named, whatever it is, and nothing else is touched by it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lifeboat_api::{RequestState, VerifyKind, VerifyReport};
use lifeboat_wire::event::Severity;

use crate::site::*;

async fn site() -> Site {
    let mut site = Site::new(2).await;
    site.take(0, Change { first: 0, blocks: 200, seed: 5 }).await;
    for step in 1..=4u64 {
        let change = Change { first: 10 * step, blocks: 30, seed: 9 + step };
        site.take(60 * i64::try_from(step).unwrap(), change).await;
    }
    site
}

pub async fn verify(site: &Site) -> VerifyReport {
    let request = site.vault.ask_verification(SERVER, VerifyKind::Stored, at(1000)).await.unwrap();
    loop {
        let request = site.vault.request_within(&request.id, Duration::from_secs(20)).await.unwrap();
        match request.state {
            RequestState::Running => {}
            RequestState::Done => return request.report.unwrap(),
            RequestState::Failed => panic!("{request:?}"),
        }
    }
}

fn edit(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    edit(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_as_it_was_sent_is_good() {
    let site = site().await;
    let report = verify(&site).await;
    assert!(report.good, "{report:#?}");
    let bytes: u64 = site.stored().iter().map(|name| site.path_of(name).metadata().unwrap().len()).sum();
    assert_eq!((report.files, report.bytes), (10, bytes));
    // Also after files were merged.
    site.set_policy(&policy(&[(60, None)])).await;
    site.retention().thin(at(240)).await.unwrap();
    site.retention().merge(at(240)).await.unwrap();
    site.retention().thin(at(240)).await.unwrap();
    let report = verify(&site).await;
    assert!(report.good && report.files < 10, "{report:#?}");
    assert!(site.vault.catalog().events(Severity::Warning, None, 10).await.unwrap().is_empty());
}

/// Damages disk 0's file of epoch 3 and expects what the report says of it.
async fn expect_fault(damage: impl FnOnce(&Site, &Path), wanted: &[&str]) {
    let site = site().await;
    let file = site.files(0).await.remove(2);
    damage(&site, &site.path_of(&file.object));
    let report = verify(&site).await;
    assert!(!report.good);
    let fault = report.faults.iter().find(|fault| fault.file == file.object).unwrap();
    for wanted in wanted {
        assert!(fault.message.contains(wanted), "{wanted:?} is not in {:?}", fault.message);
    }
    let points = site.listed().await;
    assert_eq!(fault.points, points[2..], "points from epoch 3 on need it");
    // The points say so, and it is told of once, as long as it lasts.
    let shown = site.vault.points(SERVER, 10).await.unwrap();
    for point in &shown {
        assert_eq!(point.damage.is_some(), point.disks[0].epoch.0 >= 3, "{point:?}");
    }
    verify(&site).await;
    let events = site.vault.catalog().events(Severity::Critical, None, 10).await.unwrap();
    let of_file = events.iter().filter(|event| event.message.contains(&file.object));
    assert_eq!(of_file.count(), 1, "{events:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_is_named_with_its_place() {
    let flip = |_: &Site, path: &Path| edit(path, |bytes| bytes[130] ^= 1);
    expect_fault(flip, &["byte 128", "frame 0 (blocks 20..50)", "failed authentication"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_flipped_byte_of_a_file_is_found() {
    let site = site().await;
    let file = site.files(1).await.remove(4);
    let path = site.path_of(&file.object);
    let whole = std::fs::read(&path).unwrap();
    for place in (0..whole.len()).step_by(331).chain([whole.len() - 1]) {
        edit(&path, |bytes| bytes[place] ^= 0x40);
        let report = verify(&site).await;
        assert_eq!(report.faults.len(), 1, "byte {place}: {report:#?}");
        assert_eq!(report.faults[0].file, file.object);
        std::fs::write(&path, &whole).unwrap();
    }
    assert!(verify(&site).await.good);
    let events = site.vault.catalog().events(Severity::Information, None, 1000).await.unwrap();
    assert!(events.iter().any(|event| event.code == "stored_file_mended"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_was_cut_short_is_named() {
    let cut = |_: &Site, path: &Path| edit(path, |bytes| bytes.truncate(bytes.len() - 100));
    expect_fault(cut, &["bytes and should have", "cut short"]).await;
    let empty = |_: &Site, path: &Path| std::fs::write(path, b"").unwrap();
    expect_fault(empty, &["header"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_file_is_named() {
    expect_fault(|_, path| std::fs::remove_file(path).unwrap(), &["missing from the store"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exchanged_files_are_both_named() {
    for other in [(0u16, 3usize), (1, 2)] {
        let site = site().await;
        let one = site.files(0).await.remove(2).object;
        let two = site.files(other.0).await.remove(other.1).object;
        let third = site.path_of("third");
        std::fs::rename(site.path_of(&one), &third).unwrap();
        std::fs::rename(site.path_of(&two), site.path_of(&one)).unwrap();
        std::fs::rename(&third, site.path_of(&two)).unwrap();
        let report = verify(&site).await;
        let named: Vec<_> = report.faults.iter().map(|fault| fault.file.clone()).collect();
        assert_eq!(named, [one, two]);
        assert!(
            report.faults.iter().all(|fault| fault.message.contains("files were exchanged")),
            "{report:#?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn manifests_that_a_rebuild_could_not_use_are_named() {
    let site = site().await;
    let points = site.vault.points(SERVER, 10).await.unwrap();
    let manifest = |number: usize| site.vault.names().point(SERVER, 5 - number as u64, points[number].id);
    std::fs::remove_file(site.path_of(&manifest(0))).unwrap();
    edit(&site.path_of(&manifest(2)), |bytes| bytes[20] ^= 1);
    let report = verify(&site).await;
    let named: Vec<_> =
        report.faults.iter().map(|fault| (fault.file.clone(), fault.points.clone())).collect();
    assert_eq!(named, [(manifest(0), vec![points[0].id]), (manifest(2), vec![points[2].id])]);
    // Retention goes on, and writes what it needs anew.
    site.set_policy(&policy(&[(60, None)])).await;
    site.retention().thin(at(240)).await.unwrap();
    site.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_check_in_the_background_goes_round_all_files() {
    let site = site().await;
    let damaged = site.files(1).await.remove(1).object;
    edit(&site.path_of(&damaged), |bytes| bytes[200] ^= 1);
    let mut checked = 0;
    while site.vault.check_next(0, at(2000)).await.unwrap() {
        checked += 1;
    }
    assert_eq!(checked, 10);
    let events = site.vault.catalog().events(Severity::Critical, None, 10).await.unwrap();
    assert_eq!(events.len(), 1);
    assert!(events[0].message.contains(&damaged) && events[0].code == "stored_file_damaged");
    // A day later they are due again.
    assert!(site.vault.check_next(0, at(2000 + 24 * 3600)).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_is_not_merged_and_others_are() {
    let site = site().await;
    site.set_policy(&policy(&[(60, None)])).await;
    let files = site.files(0).await;
    let damaged = &files[2];
    edit(&site.path_of(&damaged.object), |bytes| bytes[200] ^= 1);
    let retention = site.retention();
    retention.thin(at(240)).await.unwrap();
    retention.merge(at(240)).await.unwrap();
    retention.thin(at(240)).await.unwrap();
    assert_eq!(site.files(0).await, files, "what cannot be vouched for stays as it is");
    assert!(site.files(1).await.len() < 5);
    assert_eq!(site.listed().await.len(), 2, "points are thinned out all the same");
    let events = site.vault.catalog().events(Severity::Critical, None, 10).await.unwrap();
    assert!(events.iter().any(|event| event.message.contains(&damaged.object)), "{events:#?}");
    assert!(Arc::strong_count(&site.vault) >= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asked_twice_it_is_one_verification_and_a_comparison_is_the_agents() {
    let site = site().await;
    let against_source =
        site.vault.ask_verification(SERVER, VerifyKind::AgainstSource, at(1000)).await.unwrap();
    assert_eq!(against_source.kind, "compare");
    let one = site.vault.ask_verification(SERVER, VerifyKind::Stored, at(1000)).await.unwrap();
    let two = site.vault.ask_verification(SERVER, VerifyKind::Stored, at(1000)).await.unwrap();
    let ended = site.vault.request(&one.id).await.unwrap().state != RequestState::Running;
    assert!(one.id == two.id || ended);
}
