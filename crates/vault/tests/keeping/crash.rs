//! A process that takes points, thins out and merges, and is killed at any moment.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use lifeboat_model::{PointId, PointKind};
use lifeboat_vault::retention::Retention;
use lifeboat_vault::{SystemRandomness, Vault};
use rand::{Rng, SeedableRng};

use crate::site::*;

const CHILD: &str = "LIFEBOAT_TEST_KEEPING";
const SECONDS: i64 = 60;

/// What an epoch changes: known from its number alone, to this process and the other.
fn changes(epoch: u64) -> Vec<Vec<Change>> {
    if epoch == 1 {
        return vec![vec![Change { first: 0, blocks: DISK_BLOCKS, seed: 1 }]];
    }
    let first = epoch * 53 % (DISK_BLOCKS - 16);
    vec![vec![Change { first, blocks: 1 + epoch % 16, seed: epoch }, Change { first, blocks: 1, seed: 0 }]]
}

/// Not a test of its own: the process that [`killed_at_any_moment_no_point_is_harmed`] kills.
#[test]
fn killed_keeper() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let state = Path::new(&dir).join("state");
        let vault = Vault::open(&state, None, Arc::new(SystemRandomness), at(0)).await.unwrap();
        let vault = Arc::new(vault);
        let newest = vault.catalog().newest(SERVER).await.unwrap();
        let mut epoch = newest.map_or(1, |newest| newest.number + 1);
        let retention = Retention::new(Arc::clone(&vault), at_once());
        loop {
            let seconds = i64::try_from(epoch).unwrap() * SECONDS;
            let disks = [changes(epoch)];
            let point = write_epochs(&vault, seconds, PointKind::Crash, &[epoch], &disks).await;
            commit(&vault, &point).await.unwrap();
            if epoch % 5 == 0 {
                retention.thin(at(seconds)).await.unwrap();
                retention.merge(at(seconds)).await.unwrap();
            }
            epoch += 1;
        }
    });
}

/// Killed when dropped, so that a failing test leaves no process.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_no_point_is_harmed() {
    const ROUNDS: u32 = 10;
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let vault = Vault::create(&state, None, Arc::new(SystemRandomness), at(0)).await.unwrap();
    register(&vault, 0).await;
    // A few points in all, then buckets of ten minutes.
    vault.set_policy(SERVER, &policy(&[(300, None), (3600, Some(600))])).await.unwrap();
    vault.close().await;
    drop(vault);
    let mut random = rand::rngs::StdRng::seed_from_u64(20_260_202);
    let mut newest = 0;
    let mut round = 0;
    // However slow the machine is: until enough has been interrupted.
    while round < ROUNDS || newest <= 60 {
        round += 1;
        assert!(round < 20 * ROUNDS, "only {newest} points were taken: too slow to show anything");
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["crash::killed_keeper", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let child = Killed(child);
        let killed_after = Duration::from_millis(random.random_range(300..1500));
        tokio::time::sleep(killed_after).await;
        drop(child);
        let vault = Arc::new(Vault::open(&state, None, Arc::new(SystemRandomness), at(0)).await.unwrap());
        let numbers = check_all(&vault, &state).await;
        assert!(numbers.last() >= Some(&newest));
        newest = numbers.last().copied().unwrap_or(0);
        // What was interrupted is put right by the next process.
        let now = at(i64::try_from(newest).unwrap() * SECONDS);
        let retention = Retention::new(Arc::clone(&vault), at_once());
        retention.thin(now).await.unwrap();
        check_all(&vault, &state).await;
        drop(retention);
        vault.close().await;
    }
}

/// Checks every point; gives their numbers, which are their epochs.
async fn check_all(vault: &Vault, state: &Path) -> Vec<u64> {
    let mut numbers = Vec::new();
    let mut expected: BTreeMap<PointId, Vec<Image>> = BTreeMap::new();
    let points = listed(vault).await;
    for point in &points {
        let number = vault.catalog().point(*point).await.unwrap().unwrap().number;
        let mut image = vec![0; usize::try_from(DISK_BLOCKS).unwrap()];
        for epoch in 1..=number {
            for part in changes(epoch) {
                apply(&mut image, &part);
            }
        }
        expected.insert(*point, vec![image]);
        numbers.push(number);
    }
    check_points(vault, state, &points, &expected).await;
    numbers
}
