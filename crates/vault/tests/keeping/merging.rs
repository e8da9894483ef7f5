//! What becomes of points and files in regular operation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lifeboat_vault::rebuild::{CheckFiles, rebuild_catalog};
use lifeboat_volume::FrameCache;

use crate::site::*;

fn change(step: i64) -> Change {
    let seed = step.unsigned_abs() + 1;
    Change { first: seed * 37 % (DISK_BLOCKS - 9), blocks: 1 + seed % 9, seed }
}

fn base() -> Change {
    Change { first: 0, blocks: DISK_BLOCKS - 20, seed: 0xba5e }
}

/// Two hours of points in all, then one an hour, as the default policy, with a point a minute.
const RULES: [(u64, Option<u64>); 2] = [(2 * 3600, None), (8 * 3600, Some(3600))];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_two_hours_one_file_for_each_hour_and_disk_is_left() {
    let mut site = Site::new(2).await;
    site.set_policy(&policy(&RULES)).await;
    let retention = site.retention();
    site.take(0, base()).await;
    for step in 1..=300 {
        site.take(step * 60, change(step)).await;
        if step % 10 == 0 {
            retention.thin(at(step * 60)).await.unwrap();
            retention.merge(at(step * 60)).await.unwrap();
        }
        if step == 120 {
            assert_eq!(site.listed().await.len(), 121);
            assert_eq!(
                (site.files(0).await.len(), site.files(1).await.len()),
                (121, 121),
                "files of all points stay"
            );
        }
    }
    // 5 hours: the points of the last two, and the first ones of the hours 0, 1, 2 (and 3, which is young).
    let listed = site.listed().await;
    let times: Vec<i64> = listed.iter().map(|point| site.times[point]).collect();
    assert_eq!(times[..4], [0, 3600, 7200, 10_800]);
    assert_eq!(listed.len(), 3 + 121);
    let files = site.files(0).await;
    let mut epochs: Vec<_> = files.iter().map(|file| (file.first_epoch.0, file.last_epoch.0)).collect();
    epochs.dedup();
    assert_eq!(epochs[..3], [(1, 1), (2, 61), (62, 121)]);
    assert!(files.len() <= 3 + 60 + 121, "{} files", files.len());
    site.check().await;
    site.check_nothing_left_over().await;
    let figures = retention.figures();
    assert_eq!(figures.points, 301 - 124);
    assert!(figures.merged_files > 200, "{figures:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_shrinks_and_a_rebuild_finds_the_same() {
    let mut site = Site::new(1).await;
    site.set_policy(&policy(&[(600, None), (3600, Some(1800))])).await;
    site.take(0, base()).await;
    for step in 1..=118 {
        // The same blocks over and over: one version of them is enough for the points that go.
        site.take(step * 60, Change { first: 10, blocks: 40, seed: 4 * step.unsigned_abs() + 1 }).await;
    }
    let bytes = |site: &Site| {
        site.stored().iter().map(|name| site.path_of(name).metadata().unwrap().len()).sum::<u64>()
    };
    let before = bytes(&site);
    let retention = site.retention();
    retention.thin(at(7080)).await.unwrap();
    for _ in 0..4 {
        retention.merge(at(7080)).await.unwrap();
        retention.thin(at(7080)).await.unwrap();
    }
    site.check().await;
    site.check_nothing_left_over().await;
    assert!(bytes(&site) * 3 < before, "{} of {before} bytes are left", bytes(&site));
    let (listed, files) = (site.listed().await, site.files(0).await);
    drop(retention);
    let state = site.state();
    site.vault.close().await;
    let Site { dir, vault, settings, epochs, images, points, times, newest } = site;
    drop(vault);
    let report = rebuild_catalog(&state, None, CheckFiles::Digests, at(7081)).await.unwrap();
    assert_eq!(report.refused, [], "every object of the store is known to the new catalog");
    let vault =
        lifeboat_vault::Vault::open(&state, None, Arc::new(lifeboat_vault::SystemRandomness), at(7082)).await;
    let site = Site { dir, vault: Arc::new(vault.unwrap()), settings, epochs, images, points, times, newest };
    assert_eq!((site.listed().await, site.files(0).await), (listed, files));
    site.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_base_is_split_into_parts_and_stays_readable_when_it_is_rewritten() {
    let mut site = Site::new(1).await;
    site.set_policy(&policy(&[(60, None)])).await;
    let parts: Vec<Vec<Change>> =
        (0..3).map(|part| vec![Change { first: part * 100, blocks: 100, seed: 100 + part }]).collect();
    site.commit(0, lifeboat_model::PointKind::Crash, &[parts]).await;
    let retention = site.retention();
    for step in 1..=100 {
        site.take(step * 60, change(step)).await;
        retention.thin(at(step * 60)).await.unwrap();
        retention.merge(at(step * 60)).await.unwrap();
    }
    site.check().await;
    let files = site.files(0).await;
    let base: Vec<_> = files.iter().filter(|file| file.first_epoch.0 == 1).collect();
    assert!(base[0].last_epoch.0 > 50, "{files:#?}");
    assert!(base.len() >= 2, "parts of 200 blocks: {files:#?}");
    let numbers: Vec<u32> = base.iter().map(|file| file.part.0).collect();
    assert_eq!(numbers, (0..u32::try_from(base.len()).unwrap()).collect::<Vec<_>>());
    retention.thin(at(7080)).await.unwrap();
    site.check_nothing_left_over().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_volume_keeps_its_point_and_the_files_that_it_was_opened_over() {
    let mut site = Site::new(1).await;
    site.set_policy(&policy(&[(600, None), (36_000, Some(3600))])).await;
    site.take(0, base()).await;
    for step in 1..=59 {
        site.take(step * 60, change(step)).await;
    }
    let held = *site.times.iter().find(|(_, time)| **time == 50 * 60).unwrap().0;
    site.open_volume("0000000000000001", held, 59 * 60).await;
    let (_, over) = site.vault.files_of_point(held, lifeboat_model::DiskNumber(0)).await.unwrap();
    let retention = site.retention();
    for step in 60..=130 {
        site.take(step * 60, change(step)).await;
        retention.thin(at(step * 60)).await.unwrap();
        retention.merge(at(step * 60)).await.unwrap();
    }
    assert!(site.listed().await.contains(&held));
    site.check().await;
    assert!(site.files(0).await.iter().filter(|file| over.contains(file)).count() < 20, "they were merged");
    // What was opened reads as it did.
    let cache = FrameCache::new(1 << 20);
    let disk = lifeboat_model::DiskNumber(0);
    let read = read_disk(&site.vault, &site.state(), disk, &over, &cache).await.unwrap();
    let image: Vec<u8> =
        (0..).zip(&site.points[&held][0]).flat_map(|(block, seed)| block_content(*seed, block)).collect();
    assert!(read == image);
    site.close_volume("0000000000000001").await;
    retention.thin(at(130 * 60)).await.unwrap();
    retention.merge(at(130 * 60)).await.unwrap();
    retention.thin(at(130 * 60)).await.unwrap();
    assert!(!site.listed().await.contains(&held));
    site.check().await;
    site.check_nothing_left_over().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_back_takes_no_file_from_an_open_volume() {
    let mut site = Site::new(1).await;
    site.set_policy(&policy(&[(600, None), (36_000, Some(3600))])).await;
    site.take(0, base()).await;
    for step in 1..=70 {
        site.take(step * 60, change(step)).await;
    }
    let held = *site.times.iter().find(|(_, time)| **time == 70 * 60).unwrap().0;
    // Ten days too late; the clock is put right after it.
    site.open_volume("0000000000000001", held, 10 * 86_400).await;
    let (_, over) = site.vault.files_of_point(held, lifeboat_model::DiskNumber(0)).await.unwrap();
    let retention = site.retention();
    for step in 71..=75 {
        site.take(step * 60, change(step)).await;
        retention.thin(at(step * 60)).await.unwrap();
        retention.merge(at(step * 60)).await.unwrap();
    }
    retention.thin(at(75 * 60)).await.unwrap();
    let gone = |site: &Site| over.iter().filter(|file| !site.stored().contains(&file.object)).count();
    assert!(site.files(0).await.iter().filter(|file| over.contains(file)).count() < over.len(), "merged");
    assert_eq!(gone(&site), 0, "the volume reads them");
    site.close_volume("0000000000000001").await;
    retention.thin(at(76 * 60)).await.unwrap();
    assert!(gone(&site) > 0, "nobody needs them any more");
    site.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_wait_out_their_grace_time_and_waiting_uploads_are_left_alone() {
    let mut site = Site::new(1).await;
    site.settings.delete_after = jiff::SignedDuration::from_hours(1);
    site.set_policy(&policy(&[(60, None)])).await;
    site.take(0, base()).await;
    for step in 1..=40 {
        site.take(step * 60, change(step)).await;
    }
    // Received, and not committed yet.
    let disks = [vec![vec![change(41)]]];
    let waiting =
        write_epochs(&site.vault, 2500, lifeboat_model::PointKind::Crash, &site.epochs, &disks).await;
    let retention = site.retention();
    let before = site.stored();
    retention.thin(at(2400)).await.unwrap();
    retention.merge(at(2400)).await.unwrap();
    retention.thin(at(2400 + 3599)).await.unwrap();
    assert!(site.stored().is_superset(&before));
    assert!(site.files(0).await.len() < 5);
    retention.thin(at(2400 + 3600)).await.unwrap();
    assert!(site.stored().len() < 7, "{:?}", site.stored());
    let fresh = site.retention();
    fresh.merge(at(2400 + 3600)).await.unwrap();
    commit(&site.vault, &waiting).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn points_that_are_committed_while_files_are_merged_stay_whole() {
    let mut site = Site::new(1).await;
    site.set_policy(&policy(&[(60, None)])).await;
    site.take(0, base()).await;
    for step in 1..=40 {
        site.take(step * 60, change(step)).await;
    }
    site.retention().thin(at(2400)).await.unwrap();
    // At the step before the files are replaced, points come and others go.
    let reached = Arc::new(AtomicBool::new(false));
    let (vault, flag, settings) = (Arc::clone(&site.vault), Arc::clone(&reached), site.settings);
    let epochs = site.epochs.clone();
    let mut images = site.images.clone();
    apply(&mut images[0], &[change(50)]);
    let late = site.retention_with(Arc::new(move |step| {
        if step == "merged files stored" && !flag.swap(true, Ordering::SeqCst) {
            let (vault, epochs) = (Arc::clone(&vault), epochs.clone());
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(async {
                    let disks = [vec![vec![change(50)]]];
                    let kind = lifeboat_model::PointKind::Crash;
                    let point = write_epochs(&vault, 2500, kind, &epochs, &disks).await;
                    commit(&vault, &point).await.unwrap();
                    let other = lifeboat_vault::retention::Retention::new(Arc::clone(&vault), settings);
                    other.thin(at(2500)).await.unwrap();
                });
            });
        }
        Ok(())
    }));
    late.merge(at(2400)).await.unwrap();
    assert!(reached.load(Ordering::SeqCst));
    let listed = site.listed().await;
    site.points.insert(*listed.last().unwrap(), images);
    site.newest = listed.last().copied();
    site.check().await;
    drop(late);
    site.retention().thin(at(2500)).await.unwrap();
    site.check().await;
    site.check_nothing_left_over().await;
}
