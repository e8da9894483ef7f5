use lifeboat_model::{DiskNumber, PointId, ReplicationPolicy, ServerId, Span};
use lifeboat_vault::Vault;
use lifeboat_vault::catalog::RetentionChange;
use lifeboat_vault::rebuild::{CheckFiles, rebuild_catalog};
use lifeboat_wire::event::Severity;

use crate::support::*;

#[tokio::test]
async fn a_committed_point_is_listed_with_all_that_it_needs() {
    let fixture = Fixture::new().await;
    let vault = &fixture.vault;
    register(vault, SERVER, "db1", 0).await;
    register(vault, SERVER, "db1", 1).await;
    let receipt = take(vault, 10, &[(0, 1, 3), (1, 1, 1)]).await;
    assert_eq!((receipt.point, receipt.committed_at), (point(SERVER, 10), at(11)));
    take(vault, 15, &[(0, 2, 1), (1, 2, 0)]).await;
    let points = vault.points(SERVER, 10).await.unwrap();
    assert_eq!(
        points.iter().map(|point| point.id).collect::<Vec<_>>(),
        [point(SERVER, 15), point(SERVER, 10)]
    );
    assert_eq!(points[0].bytes, file(0, 2, 0).bytes);
    assert_eq!((points[0].time, points[0].committed), (at(15), at(16)));
    let (_, files) = vault.files_of_point(points[0].id, DiskNumber(0)).await.unwrap();
    let order: Vec<_> = files.iter().map(|file| (file.last_epoch.0, file.part.0)).collect();
    assert_eq!(order, [(1, 0), (1, 1), (1, 2), (2, 0)]);
    let (_, earlier) = vault.files_of_point(points[1].id, DiskNumber(0)).await.unwrap();
    assert_eq!(earlier, files[..3], "a point needs no later file");
    check_all_points(vault).await;
    let registration = vault
        .register_disk(PROCESS_SERVER, SERVER, DiskNumber(1), &description("db1", "/dev/sd1"), at(20))
        .await
        .unwrap();
    assert_eq!(registration.committed, Some((point(SERVER, 15), lifeboat_model::Epoch(2))));
}

#[tokio::test]
async fn a_commit_that_is_repeated_gets_the_first_receipt() {
    let fixture = Fixture::new().await;
    register(&fixture.vault, SERVER, "db1", 0).await;
    let receipt = take(&fixture.vault, 10, &[(0, 1, 2)]).await;
    let mut again = commit(SERVER, 10, &[(0, 1, 2)]);
    again.uploaded_at = at(99);
    again.files.reverse();
    assert_eq!(fixture.vault.commit_point(PROCESS_SERVER, &again, at(200)).await.unwrap(), receipt);
    let fixture = fixture.reopen(None).await;
    assert_eq!(fixture.vault.commit_point(PROCESS_SERVER, &again, at(300)).await.unwrap(), receipt);
    again.seal.disks[0].bytes += 4096;
    let error = fixture.vault.commit_point(PROCESS_SERVER, &again, at(300)).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (409, "point_differs"));
}

#[tokio::test]
async fn a_commit_without_all_of_its_files_makes_no_point() {
    let fixture = Fixture::new().await;
    register(&fixture.vault, SERVER, "db1", 0).await;
    let tried = commit(SERVER, 10, &[(0, 1, 2)]);
    upload(&fixture.vault, SERVER, &tried.files[0]).await.unwrap();
    let error = fixture.vault.commit_point(PROCESS_SERVER, &tried, at(11)).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (409, "file_missing"));
    assert!(error.to_string().contains("part 1"), "{error}");
    assert_eq!(listed(&fixture.vault, SERVER).await, Vec::<PointId>::new());
    let manifests = tree(&fixture.store_path()).into_iter().filter(|name| name.contains("/points/"));
    assert_eq!(manifests.count(), 0);
    upload_all(&fixture.vault, &tried).await.unwrap();
    fixture.vault.commit_point(PROCESS_SERVER, &tried, at(12)).await.unwrap();
}

#[tokio::test]
async fn a_file_that_changed_in_the_store_makes_no_point() {
    let fixture = Fixture::new().await;
    register(&fixture.vault, SERVER, "db1", 0).await;
    let tried = commit(SERVER, 10, &[(0, 1, 1)]);
    upload_all(&fixture.vault, &tried).await.unwrap();
    let name = tree(&fixture.store_path()).into_iter().find(|name| name.ends_with(".hrl")).unwrap();
    std::fs::write(fixture.store_path().join(name), "cut").unwrap();
    let error = fixture.vault.commit_point(PROCESS_SERVER, &tried, at(11)).await.unwrap_err();
    assert_eq!(error.code(), "file_differs", "{error}");
    upload_all(&fixture.vault, &tried).await.expect("it is not stored any more, so it is sent anew");
    fixture.vault.commit_point(PROCESS_SERVER, &tried, at(12)).await.unwrap();
    check_all_points(&fixture.vault).await;
}

#[tokio::test]
async fn another_history_is_refused_with_the_reason() {
    let fixture = Fixture::new().await;
    register(&fixture.vault, SERVER, "db1", 0).await;
    take(&fixture.vault, 10, &[(0, 1, 1)]).await;
    for (seconds, disks, code) in [
        (20, vec![(0, 3, 1)], "other_history"),
        (20, vec![(0, 1, 1)], "other_history"),
        (20, vec![(0, 2, 1), (1, 1, 1)], "disk_unknown"),
    ] {
        let tried = commit(SERVER, seconds, &disks);
        let error = fixture.vault.commit_point(PROCESS_SERVER, &tried, at(30)).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
    assert_eq!(listed(&fixture.vault, SERVER).await, [point(SERVER, 10)]);
}

#[tokio::test]
async fn a_disk_that_the_agents_settings_name_no_longer_is_in_no_later_point() {
    let fixture = Fixture::new().await;
    let vault = &fixture.vault;
    register(vault, SERVER, "db1", 0).await;
    register(vault, SERVER, "db1", 1).await;
    take(vault, 10, &[(0, 1, 1), (1, 1, 1)]).await;
    let numbers = async || {
        let server = vault.server(SERVER, at(100)).await.unwrap();
        server.disks.iter().map(|disk| disk.number.0).collect::<Vec<_>>()
    };
    let mut without = commit(SERVER, 20, &[(0, 2, 1)]);
    upload_all(vault, &without).await.unwrap();
    let error = vault.commit_point(PROCESS_SERVER, &without, at(21)).await.unwrap_err();
    assert!(error.to_string().contains("lifeboat server remove-disk SERVER 1"), "{error}");
    assert_eq!(numbers().await, [0, 1]);
    without.seal.removed = vec![DiskNumber(1)];
    vault.commit_point(PROCESS_SERVER, &without, at(21)).await.unwrap();
    assert_eq!(numbers().await, [0]);
    let told = vault.catalog().events(Severity::Information, Some(SERVER), 1).await.unwrap();
    assert_eq!((told[0].code.as_str(), told[0].disk), ("disk_removed", Some(DiskNumber(1))));
    // It is described and copied again.
    register(vault, SERVER, "db1", 1).await;
    assert_eq!(numbers().await, [0, 1]);
    take(vault, 30, &[(0, 3, 1), (1, 2, 1)]).await;
    assert_eq!(numbers().await, [0, 1]);
    check_all_points(vault).await;
}

/// Commits the next epoch of disk 0, with the times that the three clocks say; the time it gets.
async fn commit_with_clocks(vault: &Vault, epoch: u64, agent: i64, process_server: i64, now: i64) -> i64 {
    let mut tried = commit(SERVER, agent, &[(0, epoch, 1)]);
    tried.seal.point = PointId::new(epoch);
    tried.sealed_at = at(process_server);
    upload_all(vault, &tried).await.unwrap();
    let receipt = vault.commit_point(PROCESS_SERVER, &tried, at(now)).await.unwrap();
    assert_eq!(vault.commit_point(PROCESS_SERVER, &tried, at(now + 1)).await.unwrap(), receipt);
    vault.points(SERVER, 1).await.unwrap()[0].time.as_second() - at(0).as_second()
}

#[tokio::test]
async fn clocks_that_jump_stop_no_history() {
    const YEAR: i64 = 365 * 86_400;
    let fixture = Fixture::new().await;
    let vault = &fixture.vault;
    register(vault, SERVER, "db1", 0).await;
    assert_eq!(commit_with_clocks(vault, 1, 1000, 1001, 1002).await, 1000);
    // The agent's clock alone, ahead and behind, and right again.
    assert_eq!(commit_with_clocks(vault, 2, YEAR, 1011, 1012).await, 1011);
    assert_eq!(commit_with_clocks(vault, 3, 5, 1021, 1022).await, 1021);
    assert_eq!(commit_with_clocks(vault, 4, 1030, 1031, 1032).await, 1030);
    // Everything on one machine, whose clock is ahead for a while.
    assert_eq!(commit_with_clocks(vault, 5, YEAR, YEAR + 1, YEAR + 2).await, YEAR);
    assert_eq!(commit_with_clocks(vault, 6, 1050, 1051, 1052).await, 1052);
    assert_eq!(commit_with_clocks(vault, 7, 1060, 1061, 1062).await, 1060);
    let rpo = vault.server(SERVER, at(1064)).await.unwrap().rpo.unwrap();
    assert_eq!(rpo.age_ms, 4000, "the age is that of the newest point by the clock that is right");
    // A point is found by its time, also beside those of the clock that was ahead.
    for (seconds, epoch) in [(1045, 4), (1055, 6), (2000, 7), (2 * YEAR, 7)] {
        let text = at(seconds).to_string();
        assert_eq!(vault.find_point(SERVER, &text).await.unwrap(), PointId::new(epoch), "{text}");
    }
    let told: Vec<_> = vault.catalog().events(Severity::Warning, None, 10).await.unwrap();
    let codes: Vec<_> = told.iter().map(|event| event.code.as_str()).collect();
    assert_eq!(codes, ["point_times_step_back", "point_time_replaced"], "newest first, each once");
    // What the store alone tells is the same.
    let listed = listed(vault, SERVER).await;
    let times: Vec<_> = vault.points(SERVER, 9).await.unwrap().iter().map(|point| point.time).collect();
    let Fixture { dir, vault } = fixture;
    vault.close().await;
    drop(vault);
    std::fs::remove_file(dir.path().join("state/catalog.sqlite")).unwrap();
    rebuild_catalog(&dir.path().join("state"), None, CheckFiles::Digests, at(1070)).await.unwrap();
    let fixture = Fixture {
        vault: Vault::open(&dir.path().join("state"), None, Counted::from(1000), at(1071)).await.unwrap(),
        dir,
    };
    assert_eq!(self::listed(&fixture.vault, SERVER).await, listed);
    let again: Vec<_> =
        fixture.vault.points(SERVER, 9).await.unwrap().iter().map(|point| point.time).collect();
    assert_eq!(again, times);
}

#[tokio::test]
async fn points_of_two_servers_do_not_meet() {
    let fixture = Fixture::new().await;
    let other = ServerId::new(0xbbbb_0000_0000_0001);
    register(&fixture.vault, SERVER, "db1", 0).await;
    register(&fixture.vault, other, "web1", 0).await;
    take(&fixture.vault, 10, &[(0, 1, 1)]).await;
    let mut theirs = commit(other, 5, &[(0, 1, 1)]);
    upload_all(&fixture.vault, &theirs).await.unwrap();
    fixture.vault.commit_point(PROCESS_SERVER, &theirs, at(20)).await.unwrap();
    theirs.seal.point = point(SERVER, 10);
    let error = fixture.vault.commit_point(PROCESS_SERVER, &theirs, at(20)).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (409, "point_taken"));
    let text = error.to_string();
    assert!(text.contains(&format!("server {SERVER}")) && text.contains("take the point again"), "{text}");
    assert_eq!(listed(&fixture.vault, other).await, [point(other, 5)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_servers_that_commit_one_id_at_once_one_is_refused() {
    let fixture = Fixture::new().await;
    let vault = &fixture.vault;
    let other = ServerId::new(0xbbbb_0000_0000_0001);
    register(vault, SERVER, "db1", 0).await;
    register(vault, other, "web1", 0).await;
    for epoch in 1..20 {
        let seconds = i64::try_from(epoch).unwrap() * 10;
        let mut both = [SERVER, other].map(|server| commit(server, seconds, &[(0, epoch, 1)]));
        both[1].seal.point = both[0].seal.point;
        for commit in &both {
            upload_all(vault, commit).await.unwrap();
        }
        let (ours, theirs) = tokio::join!(
            vault.commit_point(PROCESS_SERVER, &both[0], at(seconds)),
            vault.commit_point(PROCESS_SERVER, &both[1], at(seconds))
        );
        let (refused, error) = match (ours, theirs) {
            (Ok(_), Err(error)) => (1, error),
            (Err(error), Ok(_)) => (0, error),
            both => panic!("{both:?}"),
        };
        assert_eq!((error.status(), error.code()), (409, "point_taken"), "{error}");
        both[refused].seal.point = PointId::new(epoch);
        vault.commit_point(PROCESS_SERVER, &both[refused], at(seconds)).await.unwrap();
    }
    let manifests = tree(&fixture.store_path()).into_iter().filter(|name| name.contains("/points/")).count();
    assert_eq!(manifests, 2 * 19, "the refused commits have left no manifests");
}

#[tokio::test]
async fn a_removed_disk_may_be_left_out_and_its_points_stay() {
    let fixture = Fixture::new().await;
    let vault = &fixture.vault;
    register(vault, SERVER, "db1", 0).await;
    register(vault, SERVER, "db1", 1).await;
    take(vault, 10, &[(0, 1, 1), (1, 1, 1)]).await;
    let without = commit(SERVER, 20, &[(0, 2, 1)]);
    upload_all(vault, &without).await.unwrap();
    let error = vault.commit_point(PROCESS_SERVER, &without, at(21)).await.unwrap_err();
    assert_eq!(error.code(), "disk_missing");
    vault.remove_disk(SERVER, DiskNumber(1), at(21)).await.unwrap();
    assert!(vault.remove_disk(SERVER, DiskNumber(1), at(21)).await.is_err(), "removed once");
    vault.commit_point(PROCESS_SERVER, &without, at(22)).await.unwrap();
    let (_, files) = vault.files_of_point(point(SERVER, 10), DiskNumber(1)).await.unwrap();
    assert_eq!(files.len(), 1);
    assert_eq!(vault.server(SERVER, at(23)).await.unwrap().disks.len(), 1);
}

#[tokio::test]
async fn names_of_servers_are_unique_and_found_by_name_or_id() {
    let fixture = Fixture::new().await;
    let vault = &fixture.vault;
    let other = ServerId::new(0xaaaa_0000_0000_0002);
    register(vault, SERVER, "db1", 0).await;
    register(vault, other, "db1", 0).await;
    register(vault, other, "db1", 1).await;
    let names: Vec<_> = vault.servers(at(5)).await.unwrap().into_iter().map(|server| server.name).collect();
    assert_eq!(names, ["db1", "db1-aaaa0000"]);
    assert_eq!(vault.find_server("db1").await.unwrap(), SERVER);
    assert_eq!(vault.find_server("db1-aaaa0000").await.unwrap(), other);
    assert_eq!(vault.find_server("aaaa000000000002").await.unwrap(), other);
    let error = vault.find_server("aaaa").await.unwrap_err();
    assert_eq!((error.status(), error.code()), (409, "ambiguous"));
    assert!(error.to_string().contains("aaaa000000000001 (db1)"), "{error}");
    let error = vault.find_server("db2").await.unwrap_err();
    assert_eq!((error.status(), error.code()), (404, "not_found"));
    assert!(error.to_string().contains("db1, db1-aaaa0000"), "{error}");
}

#[tokio::test]
async fn points_are_found_by_id_beginning_and_time() {
    let fixture = Fixture::new().await;
    let vault = &fixture.vault;
    register(vault, SERVER, "db1", 0).await;
    take(vault, 10, &[(0, 1, 1)]).await;
    take(vault, 20, &[(0, 2, 1)]).await;
    let (first, second) = (point(SERVER, 10), point(SERVER, 20));
    assert_eq!(vault.find_point(SERVER, "latest").await.unwrap(), second);
    assert_eq!(vault.find_point(SERVER, &first.to_string()).await.unwrap(), first);
    assert_eq!(vault.find_point(SERVER, &first.to_string()[..9]).await.unwrap(), first);
    assert_eq!(vault.find_point(SERVER, &at(19).to_string()).await.unwrap(), first);
    assert_eq!(vault.find_point(SERVER, &at(20).to_string()).await.unwrap(), second);
    for text in ["", "zz", "%", &at(9).to_string()] {
        let error = vault.find_point(SERVER, text).await.unwrap_err();
        assert_eq!((error.status(), error.code()), (404, "not_found"), "{text:?}");
        let ends =
            format!("the oldest point is {first} ({:.3}), the newest is {second} ({:.3})", at(10), at(20));
        assert!(error.to_string().contains(&ends), "{error}");
    }
    register(vault, ServerId::new(5), "empty", 0).await;
    let error = vault.find_point(ServerId::new(5), "latest").await.unwrap_err();
    assert!(error.to_string().contains("the server has no points yet"), "{error}");
}

#[tokio::test]
async fn a_policy_that_cannot_be_meant_is_refused() {
    let fixture = Fixture::new().await;
    register(&fixture.vault, SERVER, "db1", 0).await;
    let good = ReplicationPolicy { interval: Span::seconds(30), ..ReplicationPolicy::default() };
    fixture.vault.set_policy(SERVER, &good).await.unwrap();
    let fixture = fixture.reopen(None).await;
    assert_eq!(fixture.vault.catalog().server(SERVER).await.unwrap().unwrap().policy, good);
    let mut backwards = good.clone();
    backwards.retention.reverse();
    for bad in [
        ReplicationPolicy { interval: Span::seconds(0), ..good.clone() },
        ReplicationPolicy { retention: Vec::new(), ..good.clone() },
        ReplicationPolicy { copy_bytes_per_second: Some(0), ..good.clone() },
        backwards,
    ] {
        let error = fixture.vault.set_policy(SERVER, &bad).await.unwrap_err();
        assert_eq!(error.status(), 400, "{error}");
    }
}

#[tokio::test]
async fn a_late_repetition_of_the_commit_of_a_point_that_retention_removed_gets_its_receipt() {
    let fixture = Fixture::new().await;
    let vault = &fixture.vault;
    register(vault, SERVER, "db1", 0).await;
    let receipt = take(vault, 10, &[(0, 1, 1)]).await;
    take(vault, 20, &[(0, 2, 1)]).await;
    let change = RetentionChange {
        server: SERVER,
        removed_points: vec![(point(SERVER, 10), vault.names().point(SERVER, 1, point(SERVER, 10)))],
        removed_files: Vec::new(),
        added_files: Vec::new(),
        now: at(30),
    };
    vault.catalog().apply(&change).await.unwrap();
    assert_eq!(listed(vault, SERVER).await, [point(SERVER, 20)]);
    check_all_points(vault).await;
    let late = vault.commit_point(PROCESS_SERVER, &commit(SERVER, 10, &[(0, 1, 1)]), at(41)).await.unwrap();
    assert_eq!(late, receipt);
    take(vault, 50, &[(0, 3, 1)]).await;
}

#[tokio::test]
async fn a_catalog_that_is_lost_damaged_or_foreign_is_told_with_the_way_out() {
    use lifeboat_vault::Vault;
    let fixture = Fixture::new().await;
    let state = fixture.state();
    let Fixture { dir, vault } = fixture;
    vault.close().await;
    drop(vault);
    let open = || Vault::open(&state, None, Counted::from(1000), at(5));
    let catalog = state.join("catalog.sqlite");
    let whole = std::fs::read(&catalog).unwrap();
    for (damage, what) in
        [(None, "missing"), (Some(&b"not a database, but long enough to be read"[..]), "damaged")]
    {
        std::fs::remove_file(&catalog).unwrap();
        if let Some(bytes) = damage {
            std::fs::write(&catalog, bytes).unwrap();
        }
        let error = open().await.unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("lifeboat vault rebuild-catalog"), "{error}");
        std::fs::write(&catalog, &whole).unwrap();
    }
    let elsewhere = dir.path().join("elsewhere");
    Vault::create(&elsewhere, None, Counted::from(5), at(0)).await.unwrap().close().await;
    std::fs::copy(elsewhere.join("catalog.sqlite"), &catalog).unwrap();
    let error = open().await.unwrap_err().to_string();
    assert!(error.contains("is not that of vault"), "{error}");
    std::fs::write(&catalog, &whole).unwrap();
    std::fs::rename(state.join("store"), dir.path().join("unmounted")).unwrap();
    std::fs::create_dir(state.join("store")).unwrap();
    let error = open().await.unwrap_err().to_string();
    assert!(error.contains("is it mounted"), "{error}");
}

#[tokio::test]
async fn a_clock_that_was_set_back_is_told() {
    use lifeboat_wire::event::Severity;
    let fixture = Fixture::new().await;
    register(&fixture.vault, SERVER, "db1", 0).await;
    take(&fixture.vault, 5000, &[(0, 1, 1)]).await;
    let fixture = fixture.reopen(None).await;
    let events = fixture.vault.catalog().events(Severity::Critical, None, 10).await.unwrap();
    assert_eq!(events.iter().map(|event| event.code.as_str()).collect::<Vec<_>>(), ["vault_clock_back"]);
}

#[tokio::test]
async fn a_catalog_of_a_later_release_is_not_called_damaged() {
    let fixture = Fixture::new().await;
    let state = fixture.state();
    let Fixture { dir: _dir, vault } = fixture;
    vault.close().await;
    drop(vault);
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(state.join("catalog.sqlite"));
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (9000, 'of a later release', TRUE, x'00', 0)";
    sqlx::query(later).execute(&pool).await.unwrap();
    pool.close().await;
    let before = std::fs::read(state.join("catalog.sqlite")).unwrap();
    let error = Vault::open(&state, None, Counted::from(1000), at(1000)).await.unwrap_err();
    assert_eq!(error.code(), "catalog_newer");
    let said = error.to_string();
    assert!(
        said.contains("later release") && said.contains("9000") && said.contains("start that release"),
        "{said}"
    );
    assert!(!said.contains("rebuild"), "{said}");
    assert_eq!(std::fs::read(state.join("catalog.sqlite")).unwrap(), before, "it is left as it is");
}
