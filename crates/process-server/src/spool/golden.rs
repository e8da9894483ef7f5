//! Files of a spool of version 1, as they were written then.
//!
//! `LIFEBOAT_WRITE_GOLDEN=1 cargo test -p lifeboat-process-server golden` writes those that are missing.
//! Those of a released version are never written again.

use std::fmt::Debug;

use lifeboat_model::{PointId, PointKind, VaultId};
use lifeboat_wire::agent::{CaptureFigures, SealDisk, SealPoint};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::*;

fn point() -> SealedPoint {
    let time = "2026-11-24T19:13:00.123456789Z".parse().unwrap();
    let disks = vec![SealDisk { disk: DiskNumber(3), epoch: Epoch(7), parts: 1, bytes: 1 << 30 }];
    let capture =
        CaptureFigures { duration_us: 1, window_us: 2, frozen_us: 3, attempts: 4, blocks_in_window: 5 };
    let removed = Vec::new();
    let seal = SealPoint { point: PointId::new(0xaa), time, kind: PointKind::Crash, disks, removed, capture };
    SealedPoint { order: 9, server: ServerId::new(0x0123), seal, sealed_at: time }
}

fn server() -> KnownServer {
    let description = DiskDescription {
        server_name: "db1".into(),
        path: "/dev/sda".into(),
        hardware_id: Some("ACME 7".into()),
        bytes: 1 << 30,
    };
    let registration = DiskRegistration {
        vault: VaultId::new(0xbb),
        key_id: "00112233445566778899aabbccddeeff".into(),
        key: "00".repeat(32),
        committed: Some((PointId::new(0xa9), Epoch(6))),
        committed_bytes: Some(1 << 30),
    };
    let disk = KnownDisk { description, registration, vault_knows: true, writer: 0, taken_over: None };
    KnownServer { disks: [(DiskNumber(3), disk)].into() }
}

/// Reads a file and writes it again.
fn same<T: Serialize + DeserializeOwned + Debug>(name: &str, value: &T) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let dir = tempfile::tempdir().unwrap();
    let now = dir.path().join("now.json");
    write_checked(&now, value).unwrap();
    let written = fs::read_to_string(&now).unwrap();
    if std::env::var_os("LIFEBOAT_WRITE_GOLDEN").is_some() && !golden.exists() {
        fs::write(&golden, &written).unwrap();
    }
    let stored = fs::read_to_string(&golden).unwrap();
    // Only a private file is believed.
    let then = dir.path().join("then.json");
    private_file::write_private(&then, stored.as_bytes()).unwrap();
    let read: T = read_checked(&then).unwrap();
    assert_eq!(format!("{read:?}"), format!("{value:?}"));
    assert_eq!(stored, written, "{name} would be written otherwise now");
}

#[test]
fn golden_files_of_a_spool_are_still_read_and_still_written() {
    same("v1-point.json", &point());
    same("v1-server.json", &server());
}
