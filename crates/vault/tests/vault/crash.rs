//! A vault that is killed at any moment.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use lifeboat_trust::{Identity, SiteAuthority};
use lifeboat_vault::{RunningVault, SystemRandomness, Vault};
use rand::{Rng, SeedableRng};

use crate::http::{authority, client, commit_over, files_of, point_now, settings};
use crate::support::*;

const CHILD: &str = "LIFEBOAT_TEST_VAULT";
const ADDRESS: &str = "listening on ";

/// Not a test of its own: the process that [`kill_and_reopen`] kills.
#[test]
fn killed_vault() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let vault = RunningVault::start(settings(dir.as_ref())).await.unwrap();
        println!("\n{ADDRESS}{}", vault.local_address());
        vault.run(std::future::pending()).await;
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

fn spawn(dir: &std::path::Path) -> (Killed, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["crash::killed_vault", "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let child = Killed(child);
    let address = lines.map_while(Result::ok).find_map(|line| line.strip_prefix(ADDRESS).map(str::to_owned));
    (child, format!("https://{}", address.unwrap()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_and_reopen() {
    const ROUNDS: u32 = 8;
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let mut random = rand::rngs::StdRng::seed_from_u64(20_260_101);
    let mut acknowledged = Vec::new();
    let mut epoch = 1;
    let mut pending = None;
    for round in 0.. {
        if round >= ROUNDS && acknowledged.len() >= 10 {
            break;
        }
        assert!(round < 20 * ROUNDS, "only {} points were committed", acknowledged.len());
        let (child, url) = spawn(dir.path());
        let killed_after = Duration::from_millis(random.random_range(20..600));
        let killer = tokio::task::spawn_blocking(move || {
            std::thread::sleep(killed_after);
            drop(child);
        });
        work(&authority, &url, &mut epoch, &mut pending, &mut acknowledged).await;
        killer.await.unwrap();
        let state = dir.path().join("state");
        if !state.join("version").exists() {
            continue;
        }
        let now = jiff::Timestamp::now();
        let vault = Vault::open(&state, None, Arc::new(SystemRandomness), now).await.unwrap();
        let points = listed(&vault, SERVER).await;
        assert!(points.starts_with(&acknowledged), "round {round}: {points:?} instead of {acknowledged:?}");
        assert!(points.len() <= acknowledged.len() + 1, "at most the point that was being committed");
        check_all_points(&vault).await;
        let leftovers = tree(&state.join("store")).into_iter().filter(|name| name.contains('#'));
        assert_eq!(leftovers.count(), 0);
        vault.close().await;
    }
}

/// Commits one point after the other until the vault is gone.
async fn work(
    authority: &SiteAuthority,
    url: &str,
    epoch: &mut u64,
    pending: &mut Option<lifeboat_wire::process_server::CommitPoint>,
    acknowledged: &mut Vec<lifeboat_model::PointId>,
) {
    let client = client(authority, url, &Identity::ProcessServer(PROCESS_SERVER.into()));
    let path = lifeboat_wire::process_server_path::disk(SERVER, lifeboat_model::DiskNumber(0));
    let body = lifeboat_wire::process_server::RegisterDisk { description: description("db1", "/dev/sda") };
    let Ok(registration) = client.put(&path, &body).await else { return };
    let files = files_of(&registration);
    loop {
        let point = pending.get_or_insert_with(|| point_now(&files, *epoch, 2)).clone();
        match commit_over(&client, &files, &point).await {
            Ok(receipt) => {
                assert_eq!(receipt.point, point.seal.point);
                acknowledged.push(receipt.point);
                *epoch += 1;
                *pending = None;
            }
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                return;
            }
        }
    }
}
