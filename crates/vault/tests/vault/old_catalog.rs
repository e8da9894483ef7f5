//! A catalog of the first version is brought up to date and says what it said.

use std::path::Path;

use jiff::Timestamp;
use lifeboat_model::{DiskNumber, Epoch, PointKind, ServerId, VaultId};
use lifeboat_vault::catalog::{Catalog, PointFilter};
use lifeboat_wire::event::Severity;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

/// Makes a catalog as the first version did, with rows that it wrote.
async fn write_first_version(path: &Path) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let first = tempfile::tempdir().unwrap();
    std::fs::copy(here.join("migrations/0001_catalog.sql"), first.path().join("0001_catalog.sql")).unwrap();
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
    Migrator::new(first.path()).await.unwrap().run(&pool).await.unwrap();
    sqlx::raw_sql(include_str!("../golden/v1-catalog.sql")).execute(&pool).await.unwrap();
    pool.close().await;
}

#[tokio::test]
async fn a_catalog_of_the_first_version_is_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog.sqlite");
    write_first_version(&path).await;
    let server = ServerId::new(0x123);
    let catalog = Catalog::open(&path, VaultId::new(0xbb)).await.unwrap();

    let servers = catalog.servers().await.unwrap();
    assert_eq!((servers.len(), servers[0].id, servers[0].name.as_str()), (1, server, "db1"));
    assert_eq!(servers[0].policy.interval.to_string(), "5s");
    assert_eq!(servers[0].policy.retention.len(), 2);
    let disks = catalog.disks(server).await.unwrap();
    assert_eq!(disks.iter().map(|disk| disk.removed).collect::<Vec<_>>(), [false, true]);

    let points = catalog.points(PointFilter::Newest(server, 10)).await.unwrap();
    assert_eq!(points.iter().map(|point| point.number).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(points[0].kind, PointKind::Filesystem);
    assert_eq!(points[0].time, Timestamp::from_second(1_790_000_020).unwrap());
    let files = catalog.files_up_to(server, DiskNumber(0), Epoch(2)).await.unwrap();
    assert_eq!(files.iter().map(|file| file.object.as_str()).collect::<Vec<_>>(), ["v1/a", "v1/b", "v1/c"]);
    // What later versions count was counted from what was there.
    assert_eq!(catalog.lost_files(server, None).await.unwrap(), None);

    let volumes = catalog.volumes().await.unwrap();
    assert_eq!((volumes.len(), volumes[0].read_only, volumes[0].lease), (1, true, None));
    let events = catalog.events(Severity::Information, None, 10).await.unwrap();
    assert_eq!((events.len(), events[0].code.as_str()), (1, "disk_trouble"));
    assert_eq!(catalog.process_servers().await.unwrap()[0].name, "hall-1");
    catalog.close().await;
}
