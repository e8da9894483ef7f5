use lifeboat_model::{DiskNumber, ServerId};
use lifeboat_vault::rebuild::{CheckFiles, RebuildReport, rebuild_catalog};

use crate::support::*;

/// A vault with a history that has some of everything.
async fn with_history() -> Fixture {
    let fixture = Fixture::new().await;
    let vault = &fixture.vault;
    register(vault, SERVER, "db1", 0).await;
    register(vault, SERVER, "db1", 1).await;
    register(vault, ServerId::new(0xbbbb_0000_0000_0001), "web1", 0).await;
    take(vault, 10, &[(0, 1, 2), (1, 1, 1)]).await;
    take(vault, 20, &[(0, 2, 0), (1, 2, 1)]).await;
    vault.remove_disk(SERVER, DiskNumber(1), at(25)).await.unwrap();
    take(vault, 30, &[(0, 3, 1)]).await;
    take(vault, 40, &[(0, 4, 1)]).await;
    let facts = include_str!("../../../wire/tests/golden/v1-facts.json");
    vault.take_facts(SERVER, serde_json::from_str(facts).unwrap(), at(45)).await.unwrap();
    fixture
}

async fn rebuild(fixture: Fixture, check: CheckFiles) -> (Fixture, RebuildReport) {
    let state = fixture.state();
    let Fixture { dir, vault } = fixture;
    vault.close().await;
    drop(vault);
    let report = rebuild_catalog(&state, None, check, at(2000)).await.unwrap();
    let vault = lifeboat_vault::Vault::open(&state, None, Counted::from(1000), at(3000));
    let vault = vault.await.unwrap();
    (Fixture { dir, vault }, report)
}

/// The file of a point's manifest.
fn manifest(fixture: &Fixture, seconds: i64) -> std::path::PathBuf {
    let id = point(SERVER, seconds).to_string();
    let name = tree(&fixture.store_path()).into_iter().find(|name| name.contains(&id)).unwrap();
    fixture.store_path().join(name)
}

#[tokio::test]
async fn the_store_alone_gives_the_former_catalog() {
    let fixture = with_history().await;
    let former = rows(&fixture.state()).await;
    assert!(former.len() > 20, "{former:#?}");
    let (fixture, report) = rebuild(fixture, CheckFiles::Digests).await;
    assert_eq!(report.refused, []);
    assert_eq!((report.servers, report.points, report.files), (2, 4, 6));
    assert!(report.former_catalog.as_ref().is_some_and(|path| path.exists()), "{report:?}");
    assert_eq!(rows(&fixture.state()).await, former);
    take(&fixture.vault, 50, &[(0, 5, 1)]).await;
    check_all_points(&fixture.vault).await;
}

#[tokio::test]
async fn store_and_master_key_are_enough() {
    let fixture = with_history().await;
    let (id, former) = (fixture.vault.id(), rows(&fixture.state()).await);
    let key = fixture.vault.disk_key(SERVER, DiskNumber(0), None).await.unwrap();
    for file in ["catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm", "vault.id", "version"] {
        let _ = std::fs::remove_file(fixture.state().join(file));
    }
    let (fixture, report) = rebuild(fixture, CheckFiles::Sizes).await;
    assert_eq!((report.vault, fixture.vault.id()), (id, id));
    assert_eq!(rows(&fixture.state()).await, former);
    let again = fixture.vault.disk_key(SERVER, DiskNumber(0), None).await.unwrap();
    assert_eq!(again.expose(), key.expose());
}

#[tokio::test]
async fn a_manifest_that_was_altered_is_refused_by_name_and_so_is_what_builds_on_it() {
    let fixture = with_history().await;
    let path = manifest(&fixture, 30);
    let altered = std::fs::read_to_string(&path).unwrap().replace("\"attempts\":1", "\"attempts\":2");
    std::fs::write(&path, altered).unwrap();
    let (fixture, report) = rebuild(fixture, CheckFiles::Sizes).await;
    assert_eq!(listed(&fixture.vault, SERVER).await, [point(SERVER, 10), point(SERVER, 20)]);
    let why = |seconds: i64| {
        let id = point(SERVER, seconds).to_string();
        report.refused.iter().find(|refused| refused.object.contains(&id)).unwrap().why.clone()
    };
    assert!(why(30).contains("signature"), "{}", why(30));
    assert!(why(40).contains(&point(SERVER, 30).to_string()), "{}", why(40));
    check_all_points(&fixture.vault).await;
}

#[tokio::test]
async fn a_point_is_not_listed_without_its_files() {
    for (check, damage) in [(CheckFiles::Sizes, None), (CheckFiles::Digests, Some(()))] {
        let fixture = with_history().await;
        let name = tree(&fixture.store_path())
            .into_iter()
            .find(|name| name.contains("/disks/0/00000000000000000003-"));
        let path = fixture.store_path().join(name.unwrap());
        match damage {
            None => std::fs::remove_file(path).unwrap(),
            Some(()) => {
                let mut bytes = std::fs::read(&path).unwrap();
                bytes[9] ^= 1;
                std::fs::write(path, bytes).unwrap();
            }
        }
        let (fixture, report) = rebuild(fixture, check).await;
        assert_eq!(listed(&fixture.vault, SERVER).await, [point(SERVER, 10), point(SERVER, 20)]);
        assert_eq!(report.refused.len(), 3, "the file and the points that need it: {:#?}", report.refused);
        check_all_points(&fixture.vault).await;
    }
}

#[tokio::test]
async fn a_rebuild_that_fails_leaves_the_former_catalog() {
    let fixture = with_history().await;
    let state = fixture.state();
    let Fixture { dir, vault } = fixture;
    vault.close().await;
    drop(vault);
    let before = rows(&state).await;
    std::fs::remove_file(state.join("master.key")).unwrap();
    let error = rebuild_catalog(&state, None, CheckFiles::Sizes, at(5)).await.unwrap_err().to_string();
    assert!(error.contains("master.key"), "{error}");
    assert_eq!(rows(&state).await, before);
    drop(dir);
}

#[tokio::test]
async fn a_catalog_from_a_backup_adopts_the_points_that_it_lacks() {
    let fixture = Fixture::new().await;
    let state = fixture.state();
    register(&fixture.vault, SERVER, "db1", 0).await;
    take(&fixture.vault, 10, &[(0, 1, 1)]).await;
    let Fixture { dir, vault } = fixture;
    vault.close().await;
    drop(vault);
    let backup = std::fs::read(state.join("catalog.sqlite")).unwrap();
    let open = || lifeboat_vault::Vault::open(&state, None, Counted::from(1000), at(90));
    let vault = open().await.unwrap();
    take(&vault, 20, &[(0, 2, 1)]).await;
    take(&vault, 30, &[(0, 3, 1)]).await;
    vault.close().await;
    drop(vault);
    std::fs::write(state.join("catalog.sqlite"), backup).unwrap();
    let vault = open().await.unwrap();
    assert_eq!(listed(&vault, SERVER).await.len(), 3);
    check_all_points(&vault).await;
    drop(dir);
}
