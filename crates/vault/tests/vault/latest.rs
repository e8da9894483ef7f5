//! The words that mean the newest point, of any kind or of one.

use lifeboat_model::{PointId, PointKind};
use lifeboat_vault::Vault;

use crate::support::*;

/// A point of this kind at this second, with its disk's epoch.
async fn take_of(vault: &Vault, kind: PointKind, seconds: i64, epoch: u64) -> PointId {
    let mut commit = commit(SERVER, seconds, &[(0, epoch, 1)]);
    commit.seal.kind = kind;
    upload(vault, SERVER, &commit.files[0]).await.unwrap();
    vault.commit_point(PROCESS_SERVER, &commit, at(seconds + 1)).await.unwrap().point
}

#[tokio::test]
async fn the_newest_application_consistent_point_is_found_or_what_to_take_instead_is_said() {
    let fixture = Fixture::new().await;
    let vault = &fixture.vault;
    register(vault, SERVER, "db1", 0).await;
    let refused = async || vault.find_point(SERVER, "latest-app").await.unwrap_err();
    assert!(refused().await.to_string().contains("has no points yet"));

    let crash = take_of(vault, PointKind::Crash, 10, 1).await;
    let none = refused().await;
    assert_eq!((none.status(), none.code()), (404, "no_app_point"));
    let none = none.to_string();
    assert!(none.starts_with("db1 has no application-consistent point"), "{none}");
    assert!(none.contains("latest-processed") && none.contains("--filesystem-interval 1h"), "{none}");

    let filesystem = take_of(vault, PointKind::Filesystem, 20, 2).await;
    let newest = take_of(vault, PointKind::Crash, 30, 3).await;
    let none = refused().await.to_string();
    assert!(none.contains(&format!("--point {filesystem}")) && !none.contains(&crash.to_string()), "{none}");

    let application = take_of(vault, PointKind::Application, 40, 4).await;
    let later = take_of(vault, PointKind::Filesystem, 50, 5).await;
    assert_eq!(vault.find_point(SERVER, "latest-app").await.unwrap(), application);
    for latest in ["latest", "latest-processed"] {
        let found = vault.find_point(SERVER, latest).await.unwrap();
        assert_eq!(found, later, "not {newest}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_a_newest_point_at_every_moment_while_points_are_committed() {
    let fixture = Fixture::new().await;
    let vault = &fixture.vault;
    register(vault, SERVER, "db1", 0).await;
    take_of(vault, PointKind::Crash, 10, 1).await;
    let committing = async {
        for epoch in 2..150 {
            take_of(vault, PointKind::Crash, 10 * i64::try_from(epoch).unwrap(), epoch).await;
        }
    };
    let looking = async {
        loop {
            vault.find_point(SERVER, "latest").await.unwrap();
        }
    };
    tokio::select! {
        () = committing => {}
        () = looking => {}
    }
}
