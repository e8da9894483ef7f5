//! Points that were removed, and rows that were lost: neither is passed over in silence.

use jiff::SignedDuration;
use lifeboat_model::{DiskNumber, PointKind};
use lifeboat_vault::VaultError;

use crate::site::*;

const DISK: DiskNumber = DiskNumber(0);

fn change(seed: u64) -> Change {
    Change { first: seed % 200, blocks: 20, seed: seed + 2 }
}

/// Points each minute, of which those of the last ten minutes and one an hour are kept.
async fn thinned() -> Site {
    let mut site = Site::new(1).await;
    site.set_policy(&policy(&[(600, None), (36_000, Some(3600))])).await;
    for step in 0..90 {
        site.take(step * 60, change(step.unsigned_abs())).await;
    }
    site.retention().thin(at(90 * 60)).await.unwrap();
    site
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_point_that_was_removed_is_told_of() {
    let site = thinned().await;
    let listed = site.listed().await;
    let removed = *site.points.keys().find(|point| !listed.contains(point)).unwrap();
    let time = at(site.times[&removed]);
    let (oldest, newest) = (listed[0], *listed.last().unwrap());
    let ends =
        format!("the oldest point is {oldest} ({:.3}), the newest is {newest}", at(site.times[&oldest]));
    let told = format!("point {removed} ({time:.3}) was removed by retention at {:.0}", at(90 * 60));
    for text in [removed.to_string(), removed.to_string()[..12].to_owned()] {
        let error = site.vault.find_point(SERVER, &text).await.unwrap_err();
        assert_eq!((error.status(), error.code()), (404, "point_removed"), "{error}");
        assert!(error.to_string().contains(&told) && error.to_string().contains(&ends), "{error}");
    }
    // A time before the oldest point means one that is gone.
    site.set_policy(&policy(&[(600, None)])).await;
    site.retention().thin(at(90 * 60)).await.unwrap();
    let oldest = site.listed().await[0];
    assert!(site.times[&oldest] > 3000, "the first points are gone");
    let error = site.vault.find_point(SERVER, &at(3000).to_string()).await.unwrap_err();
    assert_eq!(error.code(), "point_removed", "{error}");
    let text = error.to_string();
    assert!(text.contains("no point at or before") && text.contains(&oldest.to_string()), "{text}");
    // For 90 days.
    let days = |days: i64| at(90 * 60) + SignedDuration::from_hours(24 * days);
    site.vault.expire_requests(days(89)).await.unwrap();
    let code = async || site.vault.find_point(SERVER, &removed.to_string()).await.unwrap_err().code();
    assert_eq!(code().await, "point_removed");
    site.vault.expire_requests(days(91)).await.unwrap();
    assert_eq!(code().await, "not_found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_row_is_named_and_retention_keeps_its_hands_off() {
    let mut site = Site::new(2).await;
    site.set_policy(&policy(&[(600, None), (36_000, Some(3600))])).await;
    // The second disk is empty at first.
    let first = site.commit(0, PointKind::Crash, &[vec![vec![change(1)]], vec![]]).await;
    let second = site.commit(60, PointKind::Crash, &[vec![vec![change(2)]], vec![vec![change(3)]]]).await;
    site.check().await;
    let object = site.files(0).await.remove(0).object;
    site.sql("DELETE FROM files WHERE object = ?1", &[&object]).await;
    for point in [first, second] {
        let error = site.vault.files_of_point(point, DISK).await.unwrap_err();
        assert!(matches!(error, VaultError::FilesLost { .. }), "{error}");
        let text = error.to_string();
        for wanted in [
            "0 instead of 1 files of epochs 1 to 1 of disk 0",
            &format!("server {SERVER}"),
            "lifeboat verify",
            "lifeboat vault rebuild-catalog",
        ] {
            assert!(text.contains(wanted), "{text}");
        }
        site.vault.files_of_point(point, DiskNumber(1)).await.unwrap();
    }
    let stored = site.stored();
    for step in 1..90 {
        site.commit(step * 120, PointKind::Crash, &[vec![], vec![]]).await;
    }
    assert!(site.retention().thin(at(90 * 120)).await.is_err());
    assert!(site.retention().merge(at(90 * 120)).await.is_err());
    assert_eq!(site.stored(), stored, "nothing is deleted that a rebuild finds");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_files_of_a_catalog_of_an_older_version_are_counted() {
    let mut site = thinned().await;
    site.retention().merge(at(90 * 60)).await.unwrap();
    site.check().await;
    site.sql("UPDATE point_disks SET files = 0", &[]).await;
    assert!(site.vault.files_of_point(site.newest.unwrap(), DISK).await.is_err());
    let migration = include_str!("../../migrations/0004_lost_and_removed.sql");
    let count = migration.split(';').find(|statement| statement.trim().starts_with("UPDATE")).unwrap();
    site.sql(count, &[]).await;
    site.check().await;
    site.take(91 * 60, change(5)).await;
    site.retention().thin(at(91 * 60)).await.unwrap();
    site.check().await;
}
