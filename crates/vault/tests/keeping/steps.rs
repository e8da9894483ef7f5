//! Every step of thinning and merging, interrupted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lifeboat_vault::rebuild::{CheckFiles, rebuild_catalog};
use lifeboat_vault::{SystemRandomness, Vault, VaultError};

use crate::site::*;
use crate::verification::verify;

const NOW: i64 = 80 * 60;

/// Points of 80 minutes of which most go, and files that are merged then. Ends at the step of this
/// number; none when there was no such step.
async fn interrupted_at(step: usize) -> Option<Site> {
    let mut site = Site::new(1).await;
    for minute in 0..=80u64 {
        let change = Change { first: minute * 3, blocks: 5, seed: 2 * minute + 2 };
        let change = if minute == 0 { Change { blocks: DISK_BLOCKS, ..change } } else { change };
        site.take(i64::try_from(minute).unwrap() * 60, change).await;
    }
    site.set_policy(&policy(&[(600, None), (36_000, Some(1800))])).await;
    let left = Arc::new(AtomicUsize::new(step));
    let counted = Arc::clone(&left);
    let retention = site.retention_with(Arc::new(move |_| {
        let is_left = counted.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        is_left.map(drop).map_err(|_| VaultError::Invalid("the test ends it here".into()))
    }));
    let mut ended = retention.thin(at(NOW)).await;
    if ended.is_ok() {
        ended = retention.merge(at(NOW)).await;
    }
    if ended.is_ok() {
        ended = retention.thin(at(NOW)).await;
    }
    ended.is_err().then_some(site)
}

/// A crash at each step, after which nothing asks for the same again: what was begun must be undone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vault_that_was_interrupted_puts_right_what_it_had_begun() {
    let mut step = 0;
    while let Some(site) = interrupted_at(step).await {
        let site = site.reopen(at(NOW)).await;
        site.check().await;
        site.set_policy(&policy(&[(36_000, None)])).await;
        site.retention().thin(at(NOW)).await.unwrap();
        let report = verify(&site).await;
        assert!(report.good, "after step {step}: {report:#?}");
        site.check().await;
        let retention = site.retention();
        retention.merge(at(NOW)).await.unwrap();
        retention.thin(at(NOW)).await.unwrap();
        site.check().await;
        site.check_nothing_left_over().await;
        // Few steps are alike but for those that delete one object after the other.
        step += if step < 30 { 1 } else { 29 };
    }
    assert!(step > 30, "only {step} steps");
}

/// A crash at each step that takes the catalog with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_any_step_the_store_alone_tells_a_whole_history() {
    let mut step = 0;
    while let Some(site) = interrupted_at(step).await {
        let state = site.state();
        site.vault.close().await;
        let Site { dir, vault, settings, epochs, images, points, times, newest } = site;
        drop(vault);
        rebuild_catalog(&state, None, CheckFiles::Digests, at(NOW)).await.unwrap();
        let vault = Vault::open(&state, None, Arc::new(SystemRandomness), at(NOW)).await.unwrap();
        let vault = Arc::new(vault);
        let site = Site { dir, vault, settings, epochs, images, points, times, newest };
        site.check().await;
        let report = verify(&site).await;
        assert!(report.good, "after step {step}: {report:#?}");
        let retention = site.retention();
        for _ in 0..2 {
            retention.thin(at(NOW)).await.unwrap();
            retention.merge(at(NOW)).await.unwrap();
        }
        retention.thin(at(NOW)).await.unwrap();
        site.check().await;
        site.check_nothing_left_over().await;
        step += if step < 20 { 2 } else { 37 };
    }
}
